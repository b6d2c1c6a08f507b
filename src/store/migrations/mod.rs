//! SQL of the tables, by version.

use sqlx::migrate::{Migration, MigrationType, Migrator};

/// Name and statements of a version; the first is version 1.
type Version = (&'static str, &'static str);

pub(super) const SQLITE: [Version; 1] = [("initial", include_str!("sqlite/0001_initial.sql"))];
const POSTGRES: [Version; 1] = [("initial", include_str!("postgres/0001_initial.sql"))];

pub(super) fn sqlite() -> Migrator {
    migrator(&SQLITE)
}

pub(super) fn postgres() -> Migrator {
    migrator(&POSTGRES)
}

fn migrator(versions: &[Version]) -> Migrator {
    let migrations = versions.iter().zip(1..).map(|((name, sql), version)| {
        let sql = sqlx::SqlSafeStr::into_sql_str(*sql);
        Migration::new(version, (*name).into(), MigrationType::Simple, sql, false)
    });
    Migrator::with_migrations(migrations.collect())
}
