//! Findings of the checks, in order, and the checks that were skipped because of them.

use std::io;

use serde::Serialize;

use crate::cli::{
    error::{CliError, Exit},
    output::{Format, Output},
};

/// Cure for a problem that names none.
const LOOK: &str = "see docs/guide/services.md, \"Find out why an SDK gets no credentials\"";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    Ok,
    Warning,
    Problem,
    Skipped,
}

impl State {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
            Self::Skipped => "skipped",
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Finding {
    pub(super) check: &'static str,
    pub(super) state: State,
    pub(super) what: String,
    pub(super) cure: Option<String>,
    #[serde(skip)]
    exit: Option<Exit>,
}

/// Result of a check that found no problem: its text, and its value for later checks.
#[derive(Debug)]
pub(super) struct Detail<T> {
    what: String,
    /// Present if the result is a warning.
    cure: Option<String>,
    pub(super) value: T,
}

/// Outcome of a check. A problem is a [`CliError`]: the text, the cure, the exit status.
pub(super) type Verdict<T = ()> = Result<Detail<T>, CliError>;

impl<T> Detail<T> {
    pub(super) fn with<U>(self, value: U) -> Detail<U> {
        Detail {
            what: self.what,
            cure: self.cure,
            value,
        }
    }
}

#[expect(clippy::unnecessary_wraps, reason = "a verdict")]
pub(super) fn fine(what: impl Into<String>) -> Verdict {
    Ok(Detail {
        what: what.into(),
        cure: None,
        value: (),
    })
}

#[expect(clippy::unnecessary_wraps, reason = "a verdict")]
pub(super) fn doubtful(what: impl Into<String>, cure: impl Into<String>) -> Verdict {
    Ok(Detail {
        what: what.into(),
        cure: Some(cure.into()),
        value: (),
    })
}

/// Returns a problem of this host's configuration.
pub(super) fn wrong<T>(what: impl Into<String>, cure: impl Into<String>) -> Verdict<T> {
    Err(CliError::usage(what).next(cure))
}

/// Value of a check for later checks, or the reason why there is none.
pub(super) type Step<T> = Result<T, String>;

#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) findings: Vec<Finding>,
}

impl Report {
    pub(super) fn add<T>(&mut self, check: &'static str, verdict: Verdict<T>) -> Step<T> {
        let (finding, step) = match verdict {
            Ok(told) => {
                let state = match told.cure {
                    None => State::Ok,
                    Some(_) => State::Warning,
                };
                let finding = Finding {
                    check,
                    state,
                    what: told.what,
                    cure: told.cure,
                    exit: None,
                };
                (finding, Ok(told.value))
            }
            Err(failure) => {
                let exit = Some(failure.exit());
                let (what, cure) = failure.message();
                let finding = Finding {
                    check,
                    state: State::Problem,
                    what,
                    cure: Some(cure.unwrap_or_else(|| LOOK.to_owned())),
                    exit,
                };
                (finding, Err(format!("{check} has a problem")))
            }
        };
        self.findings.push(finding);
        step
    }

    pub(super) fn skip<T>(&mut self, check: &'static str, why: &str) -> Step<T> {
        self.findings.push(Finding {
            check,
            state: State::Skipped,
            what: why.to_owned(),
            cure: None,
            exit: None,
        });
        Err(why.to_owned())
    }

    /// Runs a check that needs the value of an earlier one, or skips it if there is none.
    pub(super) async fn after<T, U>(
        &mut self,
        earlier: &Step<T>,
        check: &'static str,
        work: impl AsyncFnOnce(&T) -> Verdict<U>,
    ) -> Step<U> {
        match earlier {
            Ok(value) => {
                let verdict = work(value).await;
                self.add(check, verdict)
            }
            Err(why) => self.skip(check, why),
        }
    }

    pub(super) fn write(&self, out: &mut Output) -> io::Result<()> {
        if out.format() == Format::Json {
            return out.list(&self.findings, &[]);
        }
        let width = self.findings.iter().map(|found| found.check.len()).max();
        let width = width.unwrap_or(0);
        for found in &self.findings {
            let (state, check) = (found.state.as_str(), found.check);
            out.line(&format!("{state:7}  {check:width$}  {}", found.what))?;
            if let Some(cure) = &found.cure {
                out.line(&format!("         cure: {cure}"))?;
            }
        }
        Ok(())
    }

    /// Returns an error if there are problems. The first problem decides the exit status.
    pub(super) fn outcome(&self) -> Result<(), CliError> {
        let problems = || self.findings.iter().filter(|found| found.exit.is_some());
        let Some(exit) = problems().find_map(|found| found.exit) else {
            return Ok(());
        };
        let names: Vec<_> = problems().map(|found| found.check).collect();
        let what = format!("there is a problem with {}", names.join(", "));
        Err(CliError::new(exit, what).next("cure the first, then look again"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_stands_on_a_problem_is_skipped_and_the_first_problem_decides() {
        let mut report = Report::default();
        let first = report.add("first", fine("it is there"));
        let second: Step<()> = report
            .after(&first, "second", async |()| {
                Err(CliError::unavailable("no process listens"))
            })
            .await;
        let third = report
            .after(&second, "third", async |()| fine("never"))
            .await;
        let _ = report.add::<()>("fourth", wrong("it is odd", "make it even"));
        assert_eq!(third, Err("second has a problem".to_owned()));
        let states: Vec<_> = report.findings.iter().map(|found| found.state).collect();
        let expected = [State::Ok, State::Problem, State::Skipped, State::Problem];
        assert_eq!(states, expected);
        assert!(report.findings[1].cure.is_some());
        let failure = report.outcome().unwrap_err();
        assert_eq!(failure.exit(), Exit::Unavailable);
        assert!(failure.message().0.contains("second, fourth"));
    }

    #[test]
    fn warnings_are_no_failure() {
        let mut report = Report::default();
        let _ = report.add("only", doubtful("it is odd", "make it even"));
        assert_eq!(report.findings[0].state, State::Warning);
        assert!(report.outcome().is_ok());
    }
}
