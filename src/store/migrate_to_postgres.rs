//! The move to a database: copies every row of a store in a file, in one transaction.

use std::path::Path;

use secrecy::SecretString;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, PgConnection, Postgres, QueryBuilder, Row, Sqlite,
    SqliteConnection,
    query_builder::Separated,
    sqlite::{SqliteConnectOptions, SqliteRow},
};

use super::postgres::{self, OpenError};

/// Every table, with the columns that order its rows. Referenced tables come before those that
/// refer to them.
const TABLES: [(&str, &str); 18] = [
    ("services", "name"),
    ("operators", "name"),
    ("tokens", "token_id"),
    ("bindings", "binding_id"),
    ("approvals", "approval_id"),
    ("grant_versions", "service, grant_name, version"),
    ("leases", "lease_id"),
    ("denials", "service, holder, scope"),
    ("audit", "seq"),
    ("audit_spans", "idx"),
    ("audit_edge", "single"),
    ("audit_tiles", "level, idx"),
    ("audit_keys", "number"),
    ("audit_checkpoint", "single"),
    ("audit_witness", "single"),
    ("audit_sinks", "name"),
    ("deployment", "single"),
    ("admin_key", "single"),
];
/// Tables that have rows in a new store.
const FROM_THE_BEGINNING: [&str; 2] = ["audit_edge", "deployment"];
/// Rows read and written at once; PostgreSQL accepts 65,535 values per statement.
const AT_ONCE: i64 = 500;

/// Reason why a store cannot be copied. Nothing was copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The database cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The database is not empty.
    #[error("the database holds {0} already: give an empty one, as `credbroker migrate` makes it")]
    NotEmpty(&'static str),
    /// One of the two databases reports an error.
    #[error("the store cannot be copied: {0}")]
    Sql(#[from] sqlx::Error),
}

/// A column, and its type in PostgreSQL.
struct Column {
    name: String,
    kind: EngineKind,
}

#[derive(Clone, Copy)]
enum EngineKind {
    Number,
    Flag,
    Text,
    Bytes,
}

/// Copies every row of the store in the file at `from` to the database `to`, all or nothing. No
/// broker may be writing to the file. The database's tables must be of this version and empty.
///
/// # Errors
/// One of the two cannot be used, or the database is not empty.
pub async fn copy(from: &Path, to: &SecretString) -> Result<(), CopyError> {
    let source = SqliteConnectOptions::new().filename(from).read_only(true);
    let mut source = source.connect().await?;
    let mut target = postgres::connect(to).await?;
    let mut tx = target.begin().await?;
    for (table, order) in TABLES {
        if FROM_THE_BEGINNING.contains(&table) {
            let clear = AssertSqlSafe(format!("DELETE FROM {table}"));
            sqlx::query(clear).execute(&mut *tx).await?;
        } else if !is_empty(&mut tx, table).await? {
            return Err(CopyError::NotEmpty(table));
        }
        copy_table(&mut source, &mut tx, table, order).await?;
    }
    Ok(tx.commit().await?)
}

async fn is_empty(target: &mut PgConnection, table: &str) -> Result<bool, sqlx::Error> {
    let any = AssertSqlSafe(format!("SELECT NOT EXISTS (SELECT 1 FROM {table})"));
    sqlx::query_scalar(any).fetch_one(target).await
}

async fn copy_table(
    source: &mut SqliteConnection,
    target: &mut PgConnection,
    table: &str,
    order: &str,
) -> Result<(), sqlx::Error> {
    let columns = columns(target, table).await?;
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    let names = names.join(", ");
    let keys: Vec<&Column> = order
        .split(", ")
        .filter_map(|key| columns.iter().find(|column| column.name == key))
        .collect();
    let mut last: Option<SqliteRow> = None;
    loop {
        let mut select = QueryBuilder::<Sqlite>::new(format!("SELECT {names} FROM {table}"));
        if let Some(last) = &last {
            select.push(format!(" WHERE ({order}) > ("));
            let mut values = select.separated(", ");
            for key in &keys {
                let name = key.name.as_str();
                match key.kind {
                    EngineKind::Number => values.push_bind(last.try_get::<i64, _>(name)?),
                    _ => values.push_bind(last.try_get::<String, _>(name)?),
                };
            }
            select.push(")");
        }
        select.push(format!(" ORDER BY {order} LIMIT {AT_ONCE}"));
        let rows = select.build().fetch_all(&mut *source).await?;
        if rows.is_empty() {
            return Ok(());
        }
        let mut insert = QueryBuilder::new(format!("INSERT INTO {table} ({names}) "));
        let mut unreadable = None;
        insert.push_values(&rows, |mut values, row| {
            for (index, column) in columns.iter().enumerate() {
                if let Err(error) = push(&mut values, row, index, column.kind) {
                    unreadable = Some(error);
                }
            }
        });
        if let Some(error) = unreadable {
            return Err(error);
        }
        insert.build().execute(&mut *target).await?;
        last = rows.into_iter().last();
    }
}

fn push(
    values: &mut Separated<'_, Postgres, &'static str>,
    row: &SqliteRow,
    index: usize,
    kind: EngineKind,
) -> Result<(), sqlx::Error> {
    match kind {
        EngineKind::Number => values.push_bind(row.try_get::<Option<i64>, _>(index)?),
        EngineKind::Flag => values.push_bind(row.try_get::<Option<bool>, _>(index)?),
        EngineKind::Text => values.push_bind(row.try_get::<Option<String>, _>(index)?),
        EngineKind::Bytes => values.push_bind(row.try_get::<Option<Vec<u8>>, _>(index)?),
    };
    Ok(())
}

async fn columns(target: &mut PgConnection, table: &str) -> Result<Vec<Column>, sqlx::Error> {
    let columns: Vec<(String, String)> = sqlx::query_as(
        "SELECT column_name::TEXT, data_type::TEXT FROM information_schema.columns
         WHERE table_schema = current_schema() AND table_name = $1 ORDER BY ordinal_position",
    )
    .bind(table)
    .fetch_all(target)
    .await?;
    let column = |(name, kind): (String, String)| Column {
        kind: match kind.as_str() {
            "bigint" => EngineKind::Number,
            "boolean" => EngineKind::Flag,
            "bytea" => EngineKind::Bytes,
            _ => EngineKind::Text,
        },
        name,
    };
    Ok(columns.into_iter().map(column).collect())
}
