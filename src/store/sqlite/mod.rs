//! The embedded store: one SQLite file, one broker.
//!
//! WAL with `synchronous = FULL`, so that a commit is on disk when it returns
//! (<https://sqlite.org/pragma.html#pragma_synchronous>). One connection writes, a few
//! read.

mod admin_key;
mod audit;
mod deployment;
mod grants;
mod leases;
mod operators;
mod row;
mod services;
mod tokens;

use std::{
    fs::{File, OpenOptions, Permissions, TryLockError},
    io,
    ops::{Deref, DerefMut},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::{
    Sqlite, SqliteConnection, SqlitePool,
    migrate::{Migration, MigrationType, Migrator},
    pool::PoolConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use crate::{
    broker::ports::{
        AuditFilter, Begun, Counts, LeaseChange, LeaseFilter, Page, Store, StoreError, TokenOwner,
    },
    domain::{
        admin_key::AdminKey,
        arn::AccountId,
        audit::{AuditEvent, AuditRecord},
        grant::Grant,
        lease::Lease,
        name::{GrantName, LeaseId, Name},
        operator::{Operator, Role},
        request::RequestId,
        service::{Service, ServiceOverview, Suspension},
        token::{StoredToken, TokenId},
    },
};

const MIGRATIONS: [(&str, &str); 3] = [
    (
        "initial",
        include_str!("../migrations/sqlite/0001_initial.sql"),
    ),
    (
        "lease_life",
        include_str!("../migrations/sqlite/0002_lease_life.sql"),
    ),
    (
        "admin_key",
        include_str!("../migrations/sqlite/0003_admin_key.sql"),
    ),
];
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const READERS: u32 = 4;

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another broker has it.
    #[error(
        "another broker is using {0}; one file serves one broker: stop the other, or give this one its own store"
    )]
    InUse(PathBuf),
    /// The file system refuses.
    #[error(
        "cannot open the store {path}: {source}; check that the directory exists and may be written"
    )]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// SQLite refuses.
    #[error("cannot open the store {path}: {source}")]
    Database {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: sqlx::Error,
    },
    /// Its tables cannot be brought to this version.
    #[error(
        "cannot bring the store {path} to this version: {source}; was it written by a newer broker?"
    )]
    Migrate {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: sqlx::migrate::MigrateError,
    },
}

/// A write transaction. Dropped before its end it closes its connection, which rolls it
/// back whatever state a full or failing disk has left it in; the pool opens another.
struct Tx {
    connection: PoolConnection<Sqlite>,
    ended: bool,
}

impl Deref for Tx {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.connection
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        if !self.ended {
            self.connection.close_on_drop();
        }
    }
}

/// The embedded store.
#[derive(Debug)]
pub struct SqliteStore {
    writer: SqlitePool,
    readers: SqlitePool,
    /// Held for as long as the store is open.
    _lock: File,
}

impl SqliteStore {
    /// Opens `path`, creating it with mode 0600 if it is not there, and brings its
    /// tables to this version.
    ///
    /// # Errors
    /// Another broker has it open, or it cannot be read or written.
    pub async fn open(path: &Path) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io {
            path: path.to_owned(),
            source,
        };
        private_file(path).map_err(io)?;
        // One lock per file, by whatever name it is reached.
        let path = &path.canonicalize().map_err(io)?;
        let lock = lock(path)?;
        let database = |source| OpenError::Database {
            path: path.to_owned(),
            source,
        };
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .min_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options.clone())
            .await
            .map_err(database)?;
        migrator()
            .run(&writer)
            .await
            .map_err(|source| OpenError::Migrate {
                path: path.to_owned(),
                source,
            })?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_with(options.read_only(true))
            .await
            .map_err(database)?;
        Ok(Self {
            writer,
            readers,
            _lock: lock,
        })
    }

    /// Closes it in good order.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    async fn begin(&self) -> Result<Tx, StoreError> {
        let mut tx = Tx {
            connection: self.writer.acquire().await.map_err(row::store_error)?,
            ended: false,
        };
        run(&mut tx, "BEGIN IMMEDIATE").await?;
        Ok(tx)
    }
}

/// Adds the audit record and makes the whole transaction durable.
async fn commit(tx: Tx, event: &AuditEvent) -> Result<(), StoreError> {
    commit_all(tx, &[event]).await
}

/// The same for a transaction of many records.
async fn commit_all(mut tx: Tx, events: &[&AuditEvent]) -> Result<(), StoreError> {
    for event in events {
        audit::append(&mut tx, event).await?;
    }
    death::may_come("before", events);
    run(&mut tx, "COMMIT").await?;
    tx.ended = true;
    death::may_come("after", events);
    Ok(())
}

/// In builds with debug assertions, as the tests use, the process can be told to die
/// before or after the commit of a record: `CREDBROKER_TEST_DEATH=before:lease.issued`.
mod death {
    use crate::domain::audit::AuditEvent;

    #[cfg(debug_assertions)]
    pub(super) fn may_come(moment: &str, events: &[&AuditEvent]) {
        let told = std::env::var("CREDBROKER_TEST_DEATH").ok();
        let told = told.as_deref().and_then(|told| told.split_once(':'));
        let is_told = |event: &&AuditEvent| told == Some((moment, event.event.as_str()));
        if events.iter().any(is_told) {
            std::process::abort();
        }
    }

    #[cfg(not(debug_assertions))]
    pub(super) const fn may_come(_: &str, _: &[&AuditEvent]) {}
}

/// Leaves everything as it was.
async fn roll_back(mut tx: Tx) -> Result<(), StoreError> {
    run(&mut tx, "ROLLBACK").await?;
    tx.ended = true;
    Ok(())
}

async fn run(tx: &mut Tx, statement: &'static str) -> Result<(), StoreError> {
    sqlx::query(statement)
        .execute(&mut **tx)
        .await
        .map_err(row::store_error)?;
    Ok(())
}

fn migrator() -> Migrator {
    let migrations = MIGRATIONS.iter().zip(1..).map(|((name, sql), version)| {
        let sql = sqlx::SqlSafeStr::into_sql_str(*sql);
        Migration::new(version, (*name).into(), MigrationType::Simple, sql, false)
    });
    Migrator::with_migrations(migrations.collect())
}

fn lock(path: &Path) -> Result<File, OpenError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let io = |source| OpenError::Io {
        path: path.to_owned(),
        source,
    };
    let file = private_file(Path::new(&name)).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(io(source)),
    }
}

fn private_file(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

#[async_trait]
impl Store for SqliteStore {
    async fn record(&self, audit: AuditEvent) -> Result<(), StoreError> {
        commit(self.begin().await?, &audit).await
    }

    async fn audit(
        &self,
        filter: &AuditFilter,
        page: &Page,
    ) -> Result<Vec<AuditRecord>, StoreError> {
        audit::list(&self.readers, filter, page).await
    }

    async fn audit_size(&self) -> Result<u64, StoreError> {
        audit::size(&self.readers).await
    }

    async fn create_service(&self, service: &Service, audit: AuditEvent) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        services::insert(&mut tx, service).await?;
        commit(tx, &audit).await
    }

    async fn service(&self, name: &Name) -> Result<Option<ServiceOverview>, StoreError> {
        services::get(&self.readers, name).await
    }

    async fn services(&self, page: &Page) -> Result<Vec<ServiceOverview>, StoreError> {
        services::list(&self.readers, page).await
    }

    async fn suspend_service(
        &self,
        name: &Name,
        suspension: &Suspension,
        audit: AuditEvent,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        services::suspend(&mut tx, name, suspension).await?;
        commit(tx, &audit).await
    }

    async fn reinstate_service(&self, name: &Name, audit: AuditEvent) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        services::reinstate(&mut tx, name).await?;
        commit(tx, &audit).await
    }

    async fn delete_service(&self, name: &Name, audit: AuditEvent) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        services::delete(&mut tx, name).await?;
        grants::delete_all(&mut tx, name, &audit).await?;
        commit(tx, &audit).await
    }

    async fn revoke_service(
        &self,
        name: &Name,
        suspension: &Suspension,
        audit: AuditEvent,
    ) -> Result<(Suspension, Vec<Lease>), StoreError> {
        let mut tx = self.begin().await?;
        let standing = services::ensure_suspended(&mut tx, name, suspension).await?;
        let leases = leases::begin_revoking_all(&mut tx, name, suspension).await?;
        commit(tx, &audit).await?;
        Ok((standing, leases))
    }

    async fn create_token(
        &self,
        service: &Name,
        token: &StoredToken,
        audit: AuditEvent,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        tokens::insert_for_service(&mut tx, service, token).await?;
        commit(tx, &audit).await
    }

    async fn tokens(&self, service: &Name) -> Result<Vec<StoredToken>, StoreError> {
        tokens::list(&self.readers, service).await
    }

    async fn delete_token(
        &self,
        service: &Name,
        id: &TokenId,
        audit: AuditEvent,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        tokens::delete(&mut tx, service, id).await?;
        commit(tx, &audit).await
    }

    async fn token_owner(
        &self,
        id: &TokenId,
    ) -> Result<Option<(StoredToken, TokenOwner)>, StoreError> {
        tokens::owner(&self.readers, id).await
    }

    async fn create_operator(
        &self,
        name: &Name,
        role: Role,
        token: &StoredToken,
        audit: AuditEvent,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        operators::insert(&mut tx, name, role, token.created_at).await?;
        tokens::insert_for_operator(&mut tx, name, token).await?;
        commit(tx, &audit).await
    }

    async fn operators(&self) -> Result<Vec<Operator>, StoreError> {
        operators::list(&self.readers).await
    }

    async fn delete_operator(&self, name: &Name, audit: AuditEvent) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        operators::delete(&mut tx, name).await?;
        commit(tx, &audit).await
    }

    async fn replace_operator_token(
        &self,
        name: &Name,
        token: &StoredToken,
        audit: AuditEvent,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        operators::ensure_admin(&mut tx, name, token.created_at).await?;
        tokens::insert_for_operator(&mut tx, name, token).await?;
        commit(tx, &audit).await
    }

    async fn put_grant(&self, grant: &Grant, audit: AuditEvent) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        grants::insert(&mut tx, grant).await?;
        commit(tx, &audit).await
    }

    async fn grant(&self, name: &GrantName) -> Result<Option<Grant>, StoreError> {
        grants::get(&self.readers, name).await
    }

    async fn newest_grant_version(&self, name: &GrantName) -> Result<u64, StoreError> {
        grants::newest_version(&self.readers, name).await
    }

    async fn grants(&self, service: Option<&Name>, page: &Page) -> Result<Vec<Grant>, StoreError> {
        grants::list(&self.readers, service, page).await
    }

    async fn delete_grant(
        &self,
        name: &GrantName,
        at: Timestamp,
        by: &Name,
        audit: AuditEvent,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        grants::delete(&mut tx, name, at, by).await?;
        commit(tx, &audit).await
    }

    async fn begin_lease(
        &self,
        lease: &Lease,
        most: u64,
        audit: AuditEvent,
    ) -> Result<Begun, StoreError> {
        let mut tx = self.begin().await?;
        if let Some(hindrance) = leases::hindrance(&mut tx, lease, most).await? {
            roll_back(tx).await?;
            return Ok(hindrance);
        }
        leases::insert(&mut tx, lease).await?;
        commit(tx, &audit).await?;
        Ok(Begun::Recorded)
    }

    async fn update_lease(
        &self,
        from: u64,
        lease: &Lease,
        audit: AuditEvent,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        leases::update(&mut tx, from, lease).await?;
        commit(tx, &audit).await
    }

    async fn update_leases(&self, changes: &[LeaseChange]) -> Result<usize, StoreError> {
        let mut tx = self.begin().await?;
        let mut done = Vec::with_capacity(changes.len());
        for change in changes {
            match leases::update(&mut tx, change.from, &change.lease).await {
                Ok(()) => done.push(&change.audit),
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error),
            }
        }
        commit_all(tx, &done).await?;
        Ok(done.len())
    }

    async fn lease(&self, id: &LeaseId) -> Result<Option<Lease>, StoreError> {
        leases::get(&self.readers, id).await
    }

    async fn lease_of_request(
        &self,
        service: &Name,
        request: &RequestId,
    ) -> Result<Option<Lease>, StoreError> {
        let mut reader = self.readers.acquire().await.map_err(row::store_error)?;
        leases::of_request(&mut reader, service, request).await
    }

    async fn leases(&self, filter: &LeaseFilter, page: &Page) -> Result<Vec<Lease>, StoreError> {
        leases::list(&self.readers, filter, page).await
    }

    async fn users_due(&self, now: Timestamp, limit: usize) -> Result<Vec<Lease>, StoreError> {
        leases::due(&self.readers, true, now, limit).await
    }

    async fn sessions_due(&self, now: Timestamp, limit: usize) -> Result<Vec<Lease>, StoreError> {
        leases::due(&self.readers, false, now, limit).await
    }

    async fn live_users(&self) -> Result<Vec<Lease>, StoreError> {
        leases::live_users(&self.readers).await
    }

    async fn admin_key(&self) -> Result<Option<AdminKey>, StoreError> {
        admin_key::find(&self.readers).await
    }

    async fn replace_admin_key(
        &self,
        from: Option<u64>,
        key: &AdminKey,
        audit: AuditEvent,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        admin_key::replace(&mut tx, from, key).await?;
        commit(tx, &audit).await
    }

    async fn deployment(&self) -> Result<String, StoreError> {
        deployment::id(&self.readers).await
    }

    async fn account(&self) -> Result<Option<AccountId>, StoreError> {
        deployment::account(&self.readers).await
    }

    async fn bind_account(&self, account: &AccountId, audit: AuditEvent) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        deployment::bind_account(&mut tx, account).await?;
        commit(tx, &audit).await
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        row::counts(&self.readers).await
    }
}
