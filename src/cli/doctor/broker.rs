//! Checks of the connection to the broker, step by step, and of the caller's identity.

use std::{path::PathBuf, time::Duration};

use jiff::{SignedDuration, Timestamp, fmt::rfc2822};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::timeout;
use tonic::{Code, Response, Status, metadata::MetadataMap};

use super::{
    endpoint::EndpointAnswer,
    host::Host,
    report::{Report, Step, Verdict, doubtful, fine, wrong},
};
use crate::{
    cli::{Connection, error::CliError},
    client::{
        Client, Evidence, Settings,
        diagnose::{BrokerAddress, ReachError, dial, readable},
    },
    domain::clock::wall_time,
    proto::{WhoAmIRequest, WhoAmIResponse},
};

/// Longest wait for an answer. The broker answers within 20 s, if only to report that the call
/// takes longer.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// Clock differences: up to `NOTICED` is fine, beyond `REFUSED` AWS refuses signatures.
const NOTICED: SignedDuration = SignedDuration::from_secs(5);
const REFUSED: SignedDuration = SignedDuration::from_mins(5);

/// Address of the broker, and this host's proof of identity.
#[derive(Clone)]
struct Met {
    place: BrokerAddress,
    ca_file: PathBuf,
    /// Evidence of the caller. The token of SDKs may be invalid; checks of the connection need
    /// none.
    evidence: Step<Evidence>,
}

impl Met {
    fn settings(&self) -> Step<Settings> {
        Ok(Settings {
            address: self.place.url(),
            ca_file: self.ca_file.clone(),
            evidence: self.evidence.clone()?,
        })
    }
}

/// Clients whose identity the broker accepted.
pub(super) struct Callers {
    /// Client with this program's own evidence.
    pub(super) own: Step<Client>,
    /// Client with the token that SDKs send to the endpoint.
    pub(super) endpoint: Step<Client>,
}

pub(super) async fn judge(
    connection: &Connection,
    host: &Host,
    asked: &EndpointAnswer,
    report: &mut Report,
) -> Callers {
    let met = met(connection, host, asked, report);
    let trusted = reach(&met, report).await;
    let served = report
        .after(&asked.endpoint, "endpoint_trust", async |endpoint| {
            machine_trusts(&endpoint.place, host).await
        })
        .await;
    let mut times = None;
    let known = trusted.and_then(|met| met.settings());
    let own = report
        .after(&known, "caller", async |settings| {
            recognized(settings, &mut times).await
        })
        .await;
    let sdks = sdks(&met, &served, asked);
    let endpoint = report
        .after(&sdks, "endpoint_caller", async |settings| {
            recognized(settings, &mut times).await
        })
        .await;
    let _ = match times {
        Some(times) => report.add("clock", times.judge()),
        None => report.skip("clock", "the broker has not sent its time"),
    };
    Callers { own, endpoint }
}

/// Checks the broker's name, its TCP port and its certificate.
async fn reach(met: &Step<Met>, report: &mut Report) -> Step<Met> {
    let found = report
        .after(met, "broker_name", async |met| {
            let found = met
                .place
                .resolve()
                .await
                .map_err(|error| unreached(&error))?;
            let shown: Vec<_> = found.iter().map(|found| found.ip().to_string()).collect();
            let told = fine(format!("{} is {}", met.place.host, shown.join(", ")))?;
            Ok(told.with((met.clone(), found)))
        })
        .await;
    let connected = report
        .after(&found, "broker_tcp", async |(met, found)| {
            let stream = dial(found).await.map_err(|error| unreached(&error))?;
            let told = fine(format!("{} takes connections", stream.peer_addr()?))?;
            Ok(told.with((met.clone(), found.clone())))
        })
        .await;
    report
        .after(&connected, "broker_tls", async |(met, found)| {
            let stream = dial(found).await.map_err(|error| unreached(&error))?;
            let (place, roots) = (&met.place, &met.ca_file);
            place
                .trust(stream, roots)
                .await
                .map_err(|error| unreached(&error))?;
            let told = fine(format!("the certificate of {} is trusted", place.host))?;
            Ok(told.with(met.clone()))
        })
        .await
}

fn met(
    connection: &Connection,
    host: &Host,
    asked: &EndpointAnswer,
    report: &mut Report,
) -> Step<Met> {
    let check = "broker_settings";
    match (&connection.addr, &asked.endpoint) {
        (None, Err(why)) if asked.is_set => report.skip(check, why),
        _ => report.add(check, settings(connection, host, asked)),
    }
}

fn settings(connection: &Connection, host: &Host, asked: &EndpointAnswer) -> Verdict<Met> {
    let endpoint = asked.endpoint.as_ref().ok();
    let of_endpoint = || endpoint.map(|endpoint| endpoint.place.url());
    let address = connection.addr.clone().or_else(of_endpoint);
    let address = address.ok_or_else(|| CliError::unset("CREDBROKER_ADDR", "--addr"))?;
    let Ok(place) = BrokerAddress::of(&address) else {
        return wrong(
            "CREDBROKER_ADDR is not the address of a broker",
            "write it like https://broker.example:8443",
        );
    };
    // SDKs that call the endpoint trust the certificates of the machine.
    let of_machine = || host.bundle.clone().filter(|_| connection.addr.is_none());
    let ca_file = connection.ca_file.clone().or_else(of_machine);
    let ca_file = ca_file.ok_or_else(|| CliError::unset("CREDBROKER_CA_FILE", "--ca-file"))?;
    readable(&ca_file).map_err(|error| unreached(&error))?;
    let evidence = evidence(connection, asked)?;
    let (url, shown) = (place.url(), ca_file.display());
    let told = match endpoint {
        Some(endpoint) if endpoint.place != place => doubtful(
            format!(
                "CREDBROKER_ADDR is {url}, but SDKs ask {}",
                endpoint.place.url()
            ),
            "make both the same, or unset CREDBROKER_ADDR to have that one looked at alone",
        ),
        _ => fine(format!("the broker is {url}, its CA in {shown}")),
    };
    Ok(told?.with(Met {
        place,
        ca_file,
        evidence,
    }))
}

/// Returns the program's own evidence, or else that of SDKs.
fn evidence(connection: &Connection, asked: &EndpointAnswer) -> Result<Step<Evidence>, CliError> {
    let (cert, key) = (&connection.client_cert_file, &connection.client_key_file);
    let has_token =
        connection.token_file.is_some() || std::env::var_os("CREDBROKER_TOKEN").is_some();
    match (cert, key) {
        (Some(_), None) if !has_token => {
            let key = "CREDBROKER_CLIENT_KEY_FILE";
            return Err(CliError::unset(key, "--client-key-file"));
        }
        (None, Some(_)) if !has_token => {
            let cert = "CREDBROKER_CLIENT_CERT_FILE";
            return Err(CliError::unset(cert, "--client-cert-file"));
        }
        (None, None) if !has_token && asked.is_set => {
            let token = asked.token.as_ref().map_err(Clone::clone);
            return Ok(token.map(|token| Evidence::Token(bare(token))));
        }
        _ => {}
    }
    let evidence = connection.evidence()?;
    match evidence.token()? {
        Some(token) if token.expose_secret().is_empty() => {
            let what = "the token in CREDBROKER_TOKEN or its file is empty";
            Err(CliError::usage(what).next("write the service's token there"))
        }
        _ => Ok(Ok(evidence)),
    }
}

/// Returns the token without the scheme `Bearer`, which some token files contain, and which the
/// broker accepts as well.
fn bare(token: &SecretString) -> SecretString {
    let text = token.expose_secret();
    SecretString::from(text.strip_prefix("Bearer ").unwrap_or(text))
}

/// Returns the connection settings of an SDK that calls the endpoint.
fn sdks(met: &Step<Met>, served: &Step<()>, asked: &EndpointAnswer) -> Step<Settings> {
    served.clone()?;
    Ok(Settings {
        address: asked.endpoint.clone()?.place.url(),
        evidence: Evidence::Token(bare(&asked.token.clone()?)),
        ca_file: met.clone()?.ca_file,
    })
}

/// Checks that SDKs that use the machine's certificates trust the endpoint.
async fn machine_trusts(place: &BrokerAddress, host: &Host) -> Verdict {
    let found = place.resolve().await.map_err(|error| unreached(&error))?;
    let stream = dial(&found).await.map_err(|error| unreached(&error))?;
    let cure = "add the broker's CA to the certificates of this machine, and to the list of an SDK that brings its own (Python, Java, JavaScript)";
    let Some(bundle) = &host.bundle else {
        return doubtful("this machine has no list of certificates to trust", cure);
    };
    match place.trust(stream, bundle).await {
        Ok(()) => fine(format!(
            "this machine trusts the certificate of {}",
            place.host
        )),
        Err(error @ (ReachError::OtherCa { .. } | ReachError::Roots(_))) => doubtful(
            format!("{error}: SDKs that go by it refuse the endpoint"),
            cure,
        ),
        Err(error) => Err(unreached(&error)),
    }
}

/// Checks that the broker identifies the caller as a service.
async fn recognized(settings: &Settings, times: &mut Option<Times>) -> Verdict<Client> {
    let client = Client::connect(settings).await?;
    let known = who(&client, times).await?;
    if known.role.is_some() {
        let what = format!(
            "the broker takes this host for {}, not for a service",
            known.actor
        );
        return Err(CliError::refused(Code::PermissionDenied, what)
            .next("give it a token of its service: credbroker service token create SERVICE"));
    }
    let told = fine(format!("the broker takes this host for {}", known.actor))?;
    Ok(told.with(client))
}

async fn who(client: &Client, times: &mut Option<Times>) -> Result<WhoAmIResponse, CliError> {
    let began = wall_time();
    let mut identity = client.identity();
    let asking = timeout(CALL_LIMIT, identity.who_am_i(WhoAmIRequest {}));
    let late = |_| CliError::unavailable("the broker takes connections, but does not answer");
    let answer = asking.await.map_err(late)?;
    let head = match &answer {
        Ok(answer) => answer.metadata(),
        Err(status) => status.metadata(),
    };
    // A refusal has the header `date` as well.
    if let Some(there) = date(head) {
        let ended = wall_time();
        *times = Some(Times {
            began,
            ended,
            there,
        });
    }
    answer.map(Response::into_inner).map_err(refused)
}

fn refused(status: Status) -> CliError {
    let unknown = status.code() == Code::Unauthenticated;
    let failure = CliError::from(status);
    if unknown && !failure.has_next() {
        return failure.next("give this host a token that is its service's and has not been deleted: credbroker service token create SERVICE");
    }
    failure
}

fn unreached(error: &ReachError) -> CliError {
    let cure = match error {
        ReachError::Address => "write the address like https://broker.example:8443",
        ReachError::Name { .. } => {
            "see that this is the broker's name, and that this host's DNS knows it"
        }
        ReachError::Refused(_) => "see that the broker is running, and that the port is its own",
        ReachError::Unconnected { .. } => {
            "see that routes and firewalls let this host through to the broker"
        }
        ReachError::Roots(_) => {
            "set CREDBROKER_CA_FILE to a file with the CA of the broker's certificate, PEM"
        }
        ReachError::OtherCa { .. } => {
            "set CREDBROKER_CA_FILE to the CA of the broker's certificate; if it is set right, another server answers there"
        }
        ReachError::OtherName(_) => {
            "ask the broker by a name of its certificate, or give it one for this name"
        }
        ReachError::Expired(_) => {
            "renew the broker's certificate, and see that this host's clock is right"
        }
        ReachError::NotYet(_) => "see that this host's clock is right",
        ReachError::Tls { .. } => "see that it is the broker that listens there",
    };
    let what = error.to_string();
    match error {
        ReachError::Address | ReachError::Roots(_) => CliError::usage(what),
        _ => CliError::unavailable(what),
    }
    .next(cure)
}

/// Local start and end of a call, and the time of the broker's machine, to the second.
struct Times {
    began: Timestamp,
    ended: Timestamp,
    there: Timestamp,
}

/// Returns the time of the header `date` (RFC 9110, section 6.6.1).
fn date(head: &MetadataMap) -> Option<Timestamp> {
    let text = head.get("date")?.to_str().ok()?;
    rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

impl Times {
    /// Returns by how much this host's clock is ahead at least; negative if it is behind. The
    /// broker's time is exact to a second, and was read at some time during the call.
    fn ahead(&self) -> SignedDuration {
        let least = self.began.duration_since(self.there) - SignedDuration::from_secs(1);
        let most = self.ended.duration_since(self.there);
        if least.is_positive() {
            least
        } else if most.is_negative() {
            most
        } else {
            SignedDuration::ZERO
        }
    }

    fn judge(&self) -> Verdict {
        let ahead = self.ahead();
        let off = ahead.abs();
        if off <= NOTICED {
            return fine("this host's clock agrees with the broker's");
        }
        let side = if ahead.is_positive() {
            "ahead of"
        } else {
            "behind"
        };
        let what = format!(
            "this host's clock is {} s {side} the broker's",
            off.as_secs()
        );
        let cure = "have both follow a time server (timedatectl, chronyc tracking)";
        if off <= REFUSED {
            return doubtful(what, cure);
        }
        wrong(
            format!("{what}: AWS refuses signatures that are five minutes off"),
            cure,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::report::State::{self, Ok as Fine, Problem, Warning};

    fn found(began: i64, ended: i64, there: i64) -> (State, String) {
        let at = |second| Timestamp::from_second(second).unwrap();
        let times = Times {
            began: at(1_000_000 + began),
            ended: at(1_000_000 + ended),
            there: at(1_000_000 + there),
        };
        let mut report = Report::default();
        let _ = report.add("clock", times.judge());
        let found = report.findings.remove(0);
        (found.state, found.what)
    }

    #[test]
    fn a_clock_is_off_when_neither_the_call_nor_the_second_explains_it() {
        for (began, ended, there, state, words) in [
            (0, 0, 0, Fine, "agrees"),
            (0, 20, 10, Fine, "agrees"),
            (6, 6, 0, Fine, "agrees"),
            (7, 7, 0, Warning, "6 s ahead"),
            (0, 0, 5, Fine, "agrees"),
            (0, 0, 6, Warning, "6 s behind"),
            (0, 0, 300, Warning, "300 s behind"),
            (0, 0, 301, Problem, "AWS refuses"),
            (302, 302, 0, Problem, "301 s ahead"),
        ] {
            let (found, what) = found(began, ended, there);
            assert_eq!(found, state, "{began} {ended} {there}: {what}");
            assert!(what.contains(words), "{what}");
        }
    }

    #[test]
    fn the_scheme_before_a_token_is_left_out() {
        for text in ["cbs_x", "Bearer cbs_x"] {
            assert_eq!(bare(&text.into()).expose_secret(), "cbs_x");
        }
    }

    #[test]
    fn the_date_of_an_answer_is_read() {
        let mut head = MetadataMap::new();
        assert_eq!(date(&head), None);
        let text = "Thu, 01 Jan 2026 00:00:00 GMT".parse().unwrap();
        head.insert("date", text);
        assert_eq!(date(&head), "2026-01-01T00:00:00Z".parse().ok());
    }
}
