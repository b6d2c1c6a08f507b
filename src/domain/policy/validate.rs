//! Checks of each text inside a statement, for statements that are read and for those that are
//! built.
//!
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements.html>

use super::condition;
use super::error::{PolicyError, Problem, excerpt};
use super::{Actions, Comparisons, Resources, Statement, Texts};
use crate::domain::arn::{Partition, shorten};

/// Checks the statements together: at least one, and each `Sid` once.
pub(super) fn statements(statements: &[Statement]) -> Result<(), PolicyError> {
    if statements.is_empty() {
        return Err(PolicyError::new(
            "Statement",
            Problem::Empty {
                cure: "add a statement with what to allow",
            },
        ));
    }
    for (at, statement) in statements.iter().enumerate() {
        if let Some(sid) = statement.sid()
            && statements[..at]
                .iter()
                .any(|earlier| earlier.sid() == Some(sid))
        {
            return Err(PolicyError::new(
                &format!("Statement[{at}].Sid"),
                Problem::SidTwice(excerpt(sid)),
            ));
        }
    }
    Ok(())
}

/// Checks one statement by itself.
pub(super) fn statement(statement: &Statement, place: &str) -> Result<(), PolicyError> {
    if let Some(sid) = statement.sid() {
        self::sid(sid, &format!("{place}.Sid"))?;
    }
    match &statement.actions {
        Actions::Only(texts) => each(texts, &format!("{place}.Action"), action)?,
        Actions::AllBut(texts) => each(texts, &format!("{place}.NotAction"), action)?,
    }
    match &statement.resources {
        Resources::Only(texts) => each(texts, &format!("{place}.Resource"), resource)?,
        Resources::AllBut(texts) => each(texts, &format!("{place}.NotResource"), resource)?,
    }
    for (operator, comparisons) in &statement.condition.0 {
        self::comparisons(operator, comparisons, &format!("{place}.Condition"))?;
    }
    Ok(())
}

/// Checks that a text has only characters that IAM and STS accept in a policy:
/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html>.
pub(super) fn characters(text: &str, place: &str) -> Result<(), PolicyError> {
    let allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{ff}');
    match text.chars().find(|c| !allowed(*c)) {
        Some(wrong) => Err(PolicyError::new(place, Problem::Character(wrong.into()))),
        None => Ok(()),
    }
}

pub(super) fn operator(operator: &str, place: &str) -> Result<condition::Family, PolicyError> {
    condition::family(operator)
        .ok_or_else(|| PolicyError::new(place, Problem::Operator(excerpt(operator))))
}

fn sid(sid: &str, place: &str) -> Result<(), PolicyError> {
    if sid.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        Ok(())
    } else {
        Err(PolicyError::new(place, Problem::Sid(excerpt(sid))))
    }
}

fn each(
    texts: &Texts,
    place: &str,
    check: fn(&str, &str) -> Result<(), PolicyError>,
) -> Result<(), PolicyError> {
    if texts.0.is_empty() {
        return Err(PolicyError::new(
            place,
            Problem::Empty {
                cure: "name at least one",
            },
        ));
    }
    texts
        .0
        .iter()
        .enumerate()
        .try_for_each(|(at, text)| check(text, &format!("{place}[{at}]")))
}

fn action(text: &str, place: &str) -> Result<(), PolicyError> {
    match action_fault(text) {
        Some(cure) => Err(PolicyError::new(
            place,
            Problem::Action {
                text: excerpt(text),
                cure,
            },
        )),
        None => Ok(()),
    }
}

/// Returns the remedy for a text that is not an action; `None` for an action. The service is `*` or
/// has no wildcard: IAM answers `Vendor … is not valid` to anything else.
fn action_fault(text: &str) -> Option<&'static str> {
    if text == "*" {
        return None;
    }
    let Some((service, name)) = text.split_once(':') else {
        return Some("write SERVICE:ACTION such as s3:GetObject, or * alone");
    };
    if service != "*" && service.contains(['*', '?']) {
        return Some("AWS takes no wildcard inside the service; name it whole or write *");
    }
    if service != "*" && !spelled(service, |byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Some("the service before the colon has only letters, digits and -");
    }
    if !spelled(name, |byte| {
        byte.is_ascii_alphanumeric() || byte == b'*' || byte == b'?'
    }) {
        return Some("the action after the colon has only letters, digits, * and ?");
    }
    None
}

fn resource(text: &str, place: &str) -> Result<(), PolicyError> {
    characters(text, place)?;
    variables(text, place)?;
    match resource_fault(text) {
        Some(cure) => Err(PolicyError::new(
            place,
            Problem::Resource {
                text: excerpt(text),
                cure,
            },
        )),
        None => Ok(()),
    }
}

/// Returns the remedy for a text that is not a resource; `None` for a resource. The rules are in
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_resource.html>.
/// Variables may stand in the last part only.
fn resource_fault(text: &str) -> Option<&'static str> {
    if text == "*" {
        return None;
    }
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    let ["arn", partition, service, region, account, rest] = parts[..] else {
        return Some("write * or an ARN of six parts such as arn:aws:s3:::bucket/*");
    };
    let head = |part: &str| {
        part.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-*?".contains(&byte))
    };
    if partition != "*" && partition.parse::<Partition>().is_err() {
        return Some("its second part is a partition: aws, aws-cn, aws-us-gov or *");
    }
    if !spelled(service, |byte| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'
    }) {
        return Some(
            "its third part is a service in lower case; AWS takes no wildcard or variable there",
        );
    }
    if !head(region) || !head(account) {
        return Some(
            "its region and account have only letters, digits, - and wildcards; variables come after the fifth colon",
        );
    }
    if rest.is_empty() {
        return Some("its sixth part names the resource and is empty; write * for all of them");
    }
    service_fault(service, region, account, rest)
}

fn service_fault(service: &str, region: &str, account: &str, rest: &str) -> Option<&'static str> {
    let typed = || {
        rest.split_once('/').is_some_and(|(kind, _)| {
            spelled(kind, |byte| byte.is_ascii_lowercase() || byte == b'-')
        })
    };
    match service {
        "iam" if !region.is_empty() => Some("IAM has no regions: leave the fourth part empty"),
        "iam" if rest != "*" && !typed() => {
            Some("IAM wants the kind in full before the name, such as role/NAME, or * alone")
        }
        "s3" if !region.is_empty() && account.is_empty() => {
            Some("a bucket's ARN has no region: leave the fourth part empty")
        }
        _ => None,
    }
}

fn spelled(text: &str, allowed: impl Fn(u8) -> bool) -> bool {
    !text.is_empty() && text.bytes().all(allowed)
}

/// Checks that each policy variable is closed and has a name:
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_variables.html>.
fn variables(text: &str, place: &str) -> Result<(), PolicyError> {
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("${") {
        match after.split_once('}') {
            Some((name, tail)) if !name.trim().is_empty() && !name.contains('{') => rest = tail,
            _ => return Err(PolicyError::new(place, Problem::Variable(excerpt(text)))),
        }
    }
    Ok(())
}

fn comparisons(operator: &str, comparisons: &Comparisons, place: &str) -> Result<(), PolicyError> {
    let family = self::operator(operator, place)?;
    for (at, (key, values)) in comparisons.0.iter().enumerate() {
        condition_key(key, place)?;
        // Keys are case-insensitive in AWS, which refuses the same key in two spellings.
        if comparisons.0[..at]
            .iter()
            .any(|(earlier, _)| earlier.eq_ignore_ascii_case(key))
        {
            return Err(PolicyError::new(
                place,
                Problem::DuplicateKey { key: excerpt(key) },
            ));
        }
        compared(
            family,
            values,
            &format!("{place}.{operator}.{}", shorten(key, 20)),
        )?;
    }
    Ok(())
}

fn compared(family: condition::Family, values: &Texts, place: &str) -> Result<(), PolicyError> {
    if values.0.is_empty() {
        let cure = "no value means that the condition never holds; add one";
        return Err(PolicyError::new(place, Problem::Empty { cure }));
    }
    for value in &values.0 {
        characters(value, place)?;
        if family.has_variables() {
            variables(value, place)?;
        }
        if !family.takes(value) {
            let problem = Problem::Value {
                text: excerpt(value),
                expected: family.expects(),
            };
            return Err(PolicyError::new(place, problem));
        }
    }
    Ok(())
}

/// Checks a condition key: the prefix of a service or identity provider, a colon, and a name. The
/// key of a tag, after a slash, may have nearly any character but must not be missing.
fn condition_key(key: &str, place: &str) -> Result<(), PolicyError> {
    let allowed = |c: char| matches!(c, ' '..='~' | '\u{a0}'..='\u{ff}');
    let right = key.split_once(':').is_some_and(|(prefix, name)| {
        spelled(prefix, |byte| {
            byte.is_ascii_alphanumeric() || b"-._/".contains(&byte)
        }) && !name.trim().is_empty()
            && !name.ends_with('/')
            && name.chars().all(allowed)
    });
    if right {
        Ok(())
    } else {
        Err(PolicyError::new(place, Problem::ConditionKey(excerpt(key))))
    }
}
