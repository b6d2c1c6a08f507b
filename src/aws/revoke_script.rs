//! Revocation as a shell script of AWS CLI commands, for an operator who must revoke while no
//! broker runs. POSIX sh, AWS CLI version 1 or 2.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
};

use jiff::Timestamp;

use super::iam::REVOKED_POLICY;
use crate::{
    broker::ports::{RevokeTarget, ServiceHoldings},
    domain::{
        arn::AccountId,
        denial::{Denial, PolicyOwner, document},
        grant::Kind,
        policy,
    },
};

/// Shell functions of the script, one for each step.
const FUNCTIONS: &str = include_str!("script.sh");
/// Prefix of the names of the script's policies. A broker maintains only its own policies.
const EMERGENCY: &str = "credbroker-emergency-";
/// Placeholder in a document for the time at which the script runs.
const MOMENT: Timestamp = Timestamp::UNIX_EPOCH;

/// Work in one account.
#[derive(Default)]
struct Part<'a> {
    denials: Vec<&'a Denial>,
    users: Vec<&'a str>,
}

/// Returns the script that ends all that `target` held at `now`. The script may be run repeatedly,
/// and beside scripts of other services.
///
/// # Errors
/// A denial has no policy, which never happens to a denial of a store.
pub fn script(
    target: &RevokeTarget,
    held: &ServiceHoldings,
    now: Timestamp,
) -> Result<String, fmt::Error> {
    let mut script = String::new();
    write(&mut script, target, held, now)?;
    Ok(script)
}

fn write(
    out: &mut String,
    target: &RevokeTarget,
    held: &ServiceHoldings,
    now: Timestamp,
) -> fmt::Result {
    let (name, policy) = (named(target), policy_name(target));
    write!(
        out,
        "#!/bin/sh\n\
         # Shuts {name} out in AWS while its broker is down: ends all that it held at\n\
         # {now:.0}, as the broker's store tells.\n\
         #\n\
         # Run it with the AWS CLI and the credentials of an IAM administrator, on a machine\n\
         # whose clock is right. It may be run again: what is gone already is passed over.\n\
         # Exit status 0: all of it is done. 1: something failed, or is in another account;\n\
         # standard error tells.\n\
         set -eu\n\n\
         {FUNCTIONS}\n\
         revoked={}\ndeny_all={}\nemergency={}\n\
         # AWS tells in whole seconds when a session was issued.\n\
         sleep 2\n\
         now=$(date -u +%Y-%m-%dT%H:%M:%SZ)\n",
        quoted(REVOKED_POLICY),
        quoted(&policy::deny_all().to_json()),
        quoted(&policy),
    )?;
    let parts = parts(held);
    if parts.is_empty() {
        writeln!(out, "\n# It holds nothing that has not ended.")?;
    }
    for (account, part) in &parts {
        write_part(out, account.as_ref(), part, &name)?;
    }
    write!(
        out,
        "\nif [ \"$failed\" -ne 0 ]; then\n    \
         printf 'not all of it is done: see to what is told above, then run this again\\n' >&2\n    \
         exit 1\nfi\nprintf 'done\\n'\n"
    )?;
    write_afterwards(out, target, held, &policy)
}

fn named(target: &RevokeTarget) -> String {
    match target {
        RevokeTarget::Service(service) => format!("service {service}"),
        RevokeTarget::Grant(grant) => format!("grant {grant}"),
    }
}

/// Returns the name of the policy. Each grant has its own, which does not replace its service's.
fn policy_name(target: &RevokeTarget) -> String {
    match target {
        RevokeTarget::Service(service) => format!("{EMERGENCY}{service}"),
        RevokeTarget::Grant(name) => format!("{EMERGENCY}{}.{}", name.service, name.grant),
    }
}

/// Groups the work by account; `None`: the account is unknown, and is that of the script's
/// credentials.
fn parts(held: &ServiceHoldings) -> BTreeMap<Option<AccountId>, Part<'_>> {
    let mut parts: BTreeMap<_, Part<'_>> = BTreeMap::new();
    for denial in &held.denials {
        let account = denial.against.holder.account();
        let part = parts.entry(Some(account.clone())).or_default();
        part.denials.push(denial);
    }
    for lease in &held.leases {
        if lease.binding.kind == Kind::IamUser {
            let part = parts.entry(held.account.clone()).or_default();
            part.users.push(&lease.binding.aws_name);
        }
    }
    parts
}

fn write_part(
    out: &mut String,
    account: Option<&AccountId>,
    part: &Part<'_>,
    name: &str,
) -> fmt::Result {
    let id = match account {
        Some(account) => {
            writeln!(out, "\n# This part takes credentials of account {account}.")?;
            quoted(account.as_str())
        }
        None => "\n\"$account\"".to_owned(),
    };
    writeln!(out, "if in_account {id}; then")?;
    if !part.denials.is_empty() {
        writeln!(
            out,
            "    # At each call of a session AWS asks the policies of its role, or of the user that\n    \
             # federated it. Denied there are the sessions of {name} that were issued\n    \
             # before now; others, and the user's own key, go on working.",
        )?;
    }
    for denial in &part.denials {
        let (kind, holder) = holder(&denial.against.holder);
        writeln!(
            out,
            "    deny_sessions {kind} {} {}",
            quoted(holder),
            quoted_document(denial)?
        )?;
    }
    if !part.users.is_empty() {
        writeln!(
            out,
            "    # IAM users, each made for one lease: all lose their access before any is removed."
        )?;
    }
    for step in ["end_access", "remove_user"] {
        for user in &part.users {
            writeln!(out, "    {step} {}", quoted(user))?;
        }
    }
    writeln!(out, "fi")
}

fn write_afterwards(
    out: &mut String,
    target: &RevokeTarget,
    held: &ServiceHoldings,
    policy: &str,
) -> fmt::Result {
    let target = match target {
        RevokeTarget::Service(service) => service.to_string(),
        RevokeTarget::Grant(grant) => grant.to_string(),
    };
    write!(
        out,
        "\n# The broker does not know of this, and would go on issuing. Once it is back, run\n\
         #\n#   credbroker revoke {target}\n#\n\
         # until it says that AWS refuses all of it: that is recorded, and its own denials stand.\n"
    )?;
    if held.denials.is_empty() {
        return Ok(());
    }
    writeln!(out, "# Then delete the emergency policies:")?;
    let mut account = None;
    for denial in &held.denials {
        let own = denial.against.holder.account();
        if account.replace(own) != Some(own) {
            writeln!(out, "#\n# in account {own}")?;
        }
        let (kind, name) = holder(&denial.against.holder);
        let (name, policy) = (quoted(name), quoted(policy));
        writeln!(
            out,
            "#   aws iam delete-{kind}-policy --{kind}-name {name} --policy-name {policy}"
        )?;
    }
    Ok(())
}

fn holder(holder: &PolicyOwner) -> (&'static str, &str) {
    match holder {
        PolicyOwner::Role(role) => ("role", role.name()),
        PolicyOwner::User(user) => ("user", user.name()),
    }
}

/// Returns the policy of one denial, for sessions issued before `$now`. A newer session is not
/// denied by it, so that the broker can later test its own denial with one.
fn quoted_document(denial: &Denial) -> Result<String, fmt::Error> {
    let denial = Denial {
        issued_before: MOMENT,
        denied_before: Some(MOMENT),
        spares_newer: true,
        ..denial.clone()
    };
    let document = document([&denial]).ok().flatten().ok_or(fmt::Error)?;
    let moment = format!("{MOMENT:.0}");
    Ok(quoted(&document.to_json()).replace(&moment, "'\"$now\"'"))
}

/// Quotes a text as one word of the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_quoted_whatever_is_in_it() {
        assert_eq!(quoted("a b$(c)"), "'a b$(c)'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
