//! `[revocation]`: locations of denials in AWS.

use toml::Table;

use super::{Reader, path};
use crate::domain::{
    arn::{AccountId, RoleArn},
    denial::{Placement, Placements},
};

struct Account {
    id: AccountId,
    placement: Option<Placement>,
    revoker: Option<RoleArn>,
}

pub(super) fn read(reader: &mut Reader) -> Placements {
    let default = reader.optional("revocation", "placement");
    let mut placements = Placements {
        default: default.unwrap_or_default(),
        ..Placements::default()
    };
    let tables = reader.tables("revocation", "accounts");
    for (index, table) in tables.into_iter().enumerate() {
        // Position in the file; the first is 1.
        let section = format!("revocation.accounts[{}]", index + 1);
        match account(&section, table) {
            Ok(account) => add(reader, &section, account, &mut placements),
            Err(mistakes) => reader.mistakes.extend(mistakes),
        }
    }
    placements
}

fn account(section: &str, table: Table) -> Result<Account, Vec<String>> {
    let mut reader = Reader::of(Table::from_iter([(section.to_owned(), table.into())]));
    let id: Option<AccountId> = reader.required(section, "account");
    let placement = reader.optional(section, "placement");
    let revoker: Option<RoleArn> = reader.optional(section, "role_arn");
    if let (Some(id), Some(role)) = (&id, &revoker)
        && role.account() != id
    {
        reader.wrong(&path(section, "role_arn"), "it is of another account");
    }
    let account = id.map(|id| Account {
        id,
        placement,
        revoker,
    });
    reader.finish(account, &[section])
}

fn add(reader: &mut Reader, section: &str, account: Account, placements: &mut Placements) {
    let Account {
        id,
        placement,
        revoker,
    } = account;
    let placement = placement.unwrap_or(placements.default);
    if placements.accounts.insert(id.clone(), placement).is_some() {
        reader.wrong(&path(section, "account"), "it stands there twice");
    }
    placements.revokers.extend(revoker.map(|role| (id, role)));
}

#[cfg(test)]
mod tests {
    use crate::{
        config::Config,
        domain::denial::{PolicyLocation, PolicyOwner},
    };

    const EXAMPLE: &str = include_str!("../../deploy/credbroker.example.toml");

    #[test]
    fn an_account_has_its_own_placement_and_role() {
        let text = format!(
            "{EXAMPLE}\n[revocation]\nplacement = \"managed\"\n[[revocation.accounts]]\n\
             account = \"222233334444\"\nplacement = \"inline\"\n\
             role_arn = \"arn:aws:iam::222233334444:role/credbroker/credbroker-revoker\"\n"
        );
        let placements = Config::parse(&text).unwrap().revocation;
        let holder = |account: &str| -> PolicyOwner {
            let role = format!("arn:aws:iam::{account}:role/credbroker/any");
            role.parse().unwrap()
        };
        let there = holder("222233334444");
        assert_eq!(placements.of(&there), PolicyLocation::Inline(there.clone()));
        let here = holder("111122223333");
        let managed = PolicyLocation::Managed(here.account().clone());
        assert_eq!(placements.of(&here), managed);
        assert!(placements.revokers.contains_key(there.account()));
        assert!(!placements.revokers.contains_key(here.account()));
    }

    #[test]
    fn mistakes_of_an_account_are_told_with_its_place() {
        let text = format!(
            "{EXAMPLE}\n[revocation]\nplacement = \"outline\"\n\
             [[revocation.accounts]]\naccount = \"222233334444\"\n\
             role_arn = \"arn:aws:iam::111122223333:role/other\"\n\
             [[revocation.accounts]]\naccount = \"12\"\nregion = \"x\"\n"
        );
        let mistakes = Config::parse(&text).unwrap_err();
        for setting in [
            "revocation.placement",
            "revocation.accounts[1].role_arn",
            "revocation.accounts[2].account",
            "revocation.accounts[2].region",
        ] {
            let told = |m: &&String| m.starts_with(&format!("{setting}:"));
            assert_eq!(
                mistakes.iter().filter(told).count(),
                1,
                "{setting} in {mistakes:#?}"
            );
        }
    }
}
