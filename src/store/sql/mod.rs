//! The store in SQL that SQLite and PostgreSQL both accept: written once and compiled for each,
//! with the differences in `dialect`. One connection writes, for all waiting changes at once; a few
//! connections read.

mod admin_key;
mod approvals;
mod batch;
mod bindings;
mod cache;
mod check;
mod denials;
mod deployment;
mod grants;
mod holdings;
mod identities;
mod leases;
mod log;
mod operators;
pub(super) mod row;
mod search;
mod services;
mod session_counter;
mod sinks;
mod tokens;
mod witness;
mod writer;

use std::{collections::BTreeSet, pin::Pin, sync::Arc};

use async_trait::async_trait;
use jiff::Timestamp;

use self::{batch::Beginning, cache::Caches, writer::Writer};
pub(super) use self::{holdings::held, row::store_error};
use super::dialect::{self, Connection, Guard, Pool};
use crate::{
    audit::{
        tile::{Tile, Tiles},
        tree::Frontier,
    },
    broker::ports::{
        AuditFilter, BeginOutcome, CosignedCheckpoint, Denials, KeptCheckpoint, KeyReach,
        LeaseFilter, LeaseTransition, LogCheck, LogHead, LogKey, PageRequest, Peers, Receipt,
        RevokeTarget, Revoked, Store, StoreCounts, StoreError,
    },
    domain::{
        admin_key::AdminKey,
        arn::AccountId,
        audit::{AuditEvent, AuditRecord},
        credential::KeyId,
        denial::{Denial, DenialSession},
        grant::Grant,
        lease::Lease,
        name::{GrantName, LeaseId, Name},
        request::RequestId,
        service::{Service, ServiceOverview, Suspension},
    },
};

/// Store in one SQL database.
#[derive(Debug)]
pub struct SqlStore {
    writer: Writer,
    pub(super) writing: Pool,
    pub(super) readers: Pool,
    registry: Arc<Caches>,
    guard: Guard,
}

impl SqlStore {
    /// Creates a store over tables of this version.
    pub(super) async fn over(
        writing: Pool,
        readers: Pool,
        guard: Guard,
    ) -> Result<Self, StoreError> {
        let mut connection = writing.acquire().await.map_err(row::store_error)?;
        let edge = log::stored_edge(&mut connection).await?;
        let registry = Arc::<Caches>::default();
        Ok(Self {
            writer: Writer::start(writing.clone(), edge, Arc::clone(&registry)),
            registry,
            writing,
            readers,
            guard,
        })
    }

    /// Returns the current edge of the log.
    async fn head(&self) -> Result<Frontier, StoreError> {
        let mut reader = self.readers.acquire().await.map_err(row::store_error)?;
        log::head(&mut reader, &self.writer.seen()).await
    }

    /// Makes a change whose record is `audit`.
    async fn change<T, W>(&self, audit: AuditEvent, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: for<'c> FnOnce(&'c mut Connection) -> Doing<'c, T> + Send + 'static,
    {
        let (value, _) = self.attested(audit, work).await?;
        Ok(value)
    }

    /// Makes a change whose record is `audit`, and returns the receipt of the record.
    async fn attested<T, W>(&self, audit: AuditEvent, work: W) -> Result<(T, Receipt), StoreError>
    where
        T: Send + 'static,
        W: for<'c> FnOnce(&'c mut Connection) -> Doing<'c, T> + Send + 'static,
    {
        self.writer
            .write(move |tx| Box::pin(async move { Ok((work(tx).await?, vec![audit])) }))
            .await
    }
}

/// The work of a change that always has a record.
type Doing<'c, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'c>>;

#[async_trait]
impl Store for SqlStore {
    fn peers(&self) -> Option<&dyn Peers> {
        dialect::peers(self)
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.end().await;
        self.guard.close().await;
        self.writing.close().await;
    }

    async fn record(&self, audit: AuditEvent) -> Result<Receipt, StoreError> {
        self.writer.record(audit).await
    }

    async fn audit(
        &self,
        filter: &AuditFilter,
        page: &PageRequest,
    ) -> Result<Vec<AuditRecord>, StoreError> {
        search::list(&self.readers, filter, page).await
    }

    async fn audit_size(&self) -> Result<u64, StoreError> {
        Ok(self.head().await?.size())
    }

    async fn log_head(&self) -> Result<LogHead, StoreError> {
        Ok(LogHead::of(&self.head().await?))
    }

    async fn check_log(&self, sizes: &[u64]) -> Result<LogCheck, StoreError> {
        check::check(&self.readers, sizes, &self.writer.seen()).await
    }

    async fn log_leaves(&self, start: u64, limit: u64) -> Result<Vec<Vec<u8>>, StoreError> {
        log::leaves(&self.readers, start, limit).await
    }

    async fn log_start(&self) -> Result<u64, StoreError> {
        log::pruned(&self.readers).await
    }

    async fn count_log_older_than(&self, before: Timestamp) -> Result<u64, StoreError> {
        search::older(&self.readers, before).await
    }

    async fn prune_log(&self, count: u64, audit: AuditEvent) -> Result<(), StoreError> {
        self.change(audit, move |tx| {
            Box::pin(async move { log::prune(tx, count).await })
        })
        .await
    }

    async fn delete_pruned(&self, limit: u64) -> Result<u64, StoreError> {
        let deleting = self.writer.write(move |tx| {
            Box::pin(async move { Ok((log::delete_pruned(tx, limit).await?, Vec::new())) })
        });
        deleting.await.map(|(count, _)| count)
    }

    async fn log_tiles(&self, tiles: &BTreeSet<Tile>, size: u64) -> Result<Tiles, StoreError> {
        log::tiles(&self.readers, tiles, size).await
    }

    async fn log_keys(&self) -> Result<Vec<LogKey>, StoreError> {
        log::keys(&self.readers).await
    }

    async fn add_log_key(
        &self,
        number: u64,
        key: &LogKey,
        audit: AuditEvent,
    ) -> Result<(), StoreError> {
        let key = key.clone();
        self.change(audit, move |tx| {
            Box::pin(async move { log::add_key(tx, number, &key).await })
        })
        .await
    }

    async fn hand_over_log_key(&self, verifier: &str, note: &str) -> Result<(), StoreError> {
        let (verifier, note) = (verifier.to_owned(), note.to_owned());
        let handing = self.writer.write(move |tx| {
            Box::pin(async move {
                log::hand_over_key(tx, &verifier, &note).await?;
                Ok(((), Vec::new()))
            })
        });
        handing.await.map(drop)
    }

    async fn checkpoint(&self) -> Result<Option<KeptCheckpoint>, StoreError> {
        log::checkpoint(&self.readers).await
    }

    async fn save_checkpoint(&self, kept: &KeptCheckpoint, signer: &str) -> Result<(), StoreError> {
        let (kept, signer) = (kept.clone(), signer.to_owned());
        let keeping = self.writer.write(move |tx| {
            Box::pin(async move {
                log::keep_checkpoint(tx, &kept, &signer).await?;
                Ok(((), Vec::new()))
            })
        });
        keeping.await.map(drop)
    }

    async fn cosigned(&self) -> Result<Option<CosignedCheckpoint>, StoreError> {
        witness::cosigned(&self.readers).await
    }

    async fn save_cosigned(&self, cosigned: &CosignedCheckpoint) -> Result<(), StoreError> {
        let cosigned = cosigned.clone();
        let keeping = self.writer.write(move |tx| {
            Box::pin(async move {
                witness::keep_cosigned(tx, &cosigned).await?;
                Ok(((), Vec::new()))
            })
        });
        keeping.await.map(drop)
    }

    async fn sink_cursor(&self, name: &Name) -> Result<u64, StoreError> {
        sinks::cursor(&self.readers, name).await
    }

    async fn save_sink_cursor(&self, name: &Name, seq: u64) -> Result<(), StoreError> {
        let name = name.clone();
        let keeping = self.writer.write(move |tx| {
            Box::pin(async move {
                sinks::keep_cursor(tx, &name, seq).await?;
                Ok(((), Vec::new()))
            })
        });
        keeping.await.map(drop)
    }

    async fn create_service(&self, service: &Service, audit: AuditEvent) -> Result<(), StoreError> {
        let service = service.clone();
        self.change(audit, move |tx| {
            Box::pin(async move {
                services::insert(tx, &service).await?;
                denials::spare_new_sessions(tx, &service.name, service.created_at).await
            })
        })
        .await
    }

    async fn names_like(&self, head: &str) -> Result<Vec<Name>, StoreError> {
        services::names_like(&self.readers, head).await
    }

    async fn service(&self, name: &Name) -> Result<Option<ServiceOverview>, StoreError> {
        services::get(&self.readers, name).await
    }

    async fn services(&self, page: &PageRequest) -> Result<Vec<ServiceOverview>, StoreError> {
        services::list(&self.readers, page).await
    }

    async fn suspend_service(
        &self,
        name: &Name,
        suspension: &Suspension,
        audit: AuditEvent,
    ) -> Result<(), StoreError> {
        let (name, suspension) = (name.clone(), suspension.clone());
        self.change(audit, move |tx| {
            Box::pin(async move { services::suspend(tx, &name, &suspension).await })
        })
        .await
    }

    async fn reinstate_service(&self, name: &Name, audit: AuditEvent) -> Result<(), StoreError> {
        let (name, now) = (name.clone(), audit.time);
        self.change(audit, move |tx| {
            Box::pin(async move {
                services::reinstate(tx, &name).await?;
                denials::spare_new_sessions(tx, &name, now).await
            })
        })
        .await
    }

    async fn delete_service(&self, name: &Name, audit: AuditEvent) -> Result<(), StoreError> {
        let (name, ending) = (name.clone(), audit.clone());
        self.change(audit, move |tx| {
            Box::pin(async move {
                services::delete(tx, &name).await?;
                grants::delete_all(tx, &name, &ending).await?;
                denials::spare_new_sessions(tx, &name, ending.time).await
            })
        })
        .await
    }

    async fn revoke(
        &self,
        target: &RevokeTarget,
        suspension: &Suspension,
        audit: AuditEvent,
    ) -> Result<(Revoked, Receipt), StoreError> {
        let (target, suspension) = (target.clone(), suspension.clone());
        self.attested(audit, move |tx| {
            Box::pin(async move { denials::revoke(tx, &target, suspension).await })
        })
        .await
    }

    async fn revoke_lease(
        &self,
        from: u64,
        lease: &Lease,
        audit: AuditEvent,
    ) -> Result<(Vec<Denial>, Receipt), StoreError> {
        let lease = lease.clone();
        self.attested(audit, move |tx| {
            Box::pin(async move {
                leases::update(tx, from, &lease).await?;
                denials::ask_for_lease(tx, lease).await
            })
        })
        .await
    }

    async fn denials(&self) -> Result<Denials, StoreError> {
        denials::all(&self.readers).await
    }

    async fn denials_due(&self, now: Timestamp, limit: usize) -> Result<Vec<Denial>, StoreError> {
        denials::due(&self.readers, now, limit).await
    }

    async fn denials_of(&self, service: &Name) -> Result<Vec<Denial>, StoreError> {
        let reading = async {
            let mut reader = self.readers.acquire().await.map_err(row::store_error)?;
            denials::of_service(&mut reader, service).await.map(Some)
        };
        let denials = self.registry.denials.get(service, reading).await?;
        Ok(denials.unwrap_or_default())
    }

    async fn change_denials(
        &self,
        put: &[Denial],
        remove: &[Denial],
        audit: Vec<AuditEvent>,
    ) -> Result<(), StoreError> {
        let (put, remove) = (put.to_vec(), remove.to_vec());
        let changing = self.writer.write(move |tx| {
            Box::pin(async move {
                denials::change(tx, &put, &remove).await?;
                Ok(((), audit))
            })
        });
        changing.await.map(drop)
    }

    async fn live_leases(
        &self,
        service: &Name,
        grant: Option<&Name>,
    ) -> Result<Vec<Lease>, StoreError> {
        let mut reader = self.readers.acquire().await.map_err(row::store_error)?;
        leases::live(&mut reader, service, grant).await
    }

    async fn last_sessions(
        &self,
        service: &Name,
        grant: Option<&Name>,
    ) -> Result<Vec<DenialSession>, StoreError> {
        let mut reader = self.readers.acquire().await.map_err(row::store_error)?;
        let last = leases::last_sessions(&mut reader, service, grant).await?;
        Ok(last.sessions)
    }

    async fn reach_of_key(&self) -> Result<KeyReach, StoreError> {
        denials::reach_of_key(&self.readers).await
    }

    async fn revoking_sessions(
        &self,
        service: &Name,
        page: &PageRequest,
    ) -> Result<Vec<Lease>, StoreError> {
        leases::revoking_sessions(&self.readers, service, page).await
    }

    async fn put_grant(&self, grant: &Grant, audit: AuditEvent) -> Result<(), StoreError> {
        let grant = grant.clone();
        self.change(audit, move |tx| {
            Box::pin(async move { grants::insert(tx, &grant).await })
        })
        .await
    }

    async fn grant(&self, name: &GrantName) -> Result<Option<Arc<Grant>>, StoreError> {
        let reading = async { Ok(grants::get(&self.readers, name).await?.map(Arc::new)) };
        self.registry.grants.get(name, reading).await
    }

    async fn grant_version(
        &self,
        name: &GrantName,
        version: u64,
    ) -> Result<Option<Grant>, StoreError> {
        let mut reader = self.readers.acquire().await.map_err(row::store_error)?;
        grants::version(&mut reader, name, version).await
    }

    async fn newest_grant_version(&self, name: &GrantName) -> Result<u64, StoreError> {
        grants::newest_version(&self.readers, name).await
    }

    async fn grants(
        &self,
        service: Option<&Name>,
        page: &PageRequest,
    ) -> Result<Vec<Grant>, StoreError> {
        grants::list(&self.readers, service, page).await
    }

    async fn delete_grant(
        &self,
        name: &GrantName,
        at: Timestamp,
        by: &Name,
        audit: AuditEvent,
    ) -> Result<(), StoreError> {
        let (name, by) = (name.clone(), by.clone());
        self.change(audit, move |tx| {
            Box::pin(async move { grants::delete(tx, &name, at, &by).await })
        })
        .await
    }

    async fn begin_lease(
        &self,
        lease: &Lease,
        most: u64,
        audit: AuditEvent,
    ) -> Result<BeginOutcome, StoreError> {
        let lease = lease.clone();
        self.writer.begin(Beginning { lease, most, audit }).await
    }

    async fn update_lease(
        &self,
        from: u64,
        lease: &Lease,
        audit: AuditEvent,
    ) -> Result<Receipt, StoreError> {
        let lease = lease.clone();
        let replacing = self
            .writer
            .replace(vec![LeaseTransition { from, lease, audit }]);
        match replacing.await? {
            (1, receipt) => Ok(receipt),
            _ => Err(StoreError::Conflict),
        }
    }

    async fn update_leases(&self, changes: &[LeaseTransition]) -> Result<usize, StoreError> {
        let replacing = self.writer.replace(changes.to_vec());
        replacing.await.map(|(replaced, _)| replaced)
    }

    async fn is_active(&self, id: &LeaseId) -> Result<bool, StoreError> {
        let reading = leases::active(&self.readers, id);
        let active = self.registry.active.get(id, reading).await?;
        Ok(active.is_some())
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

    async fn lease_of_key(&self, key: &KeyId) -> Result<Option<Lease>, StoreError> {
        leases::of_key(&self.readers, key).await
    }

    async fn leases(
        &self,
        filter: &LeaseFilter,
        page: &PageRequest,
    ) -> Result<Vec<Lease>, StoreError> {
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
        let key = key.clone();
        self.change(audit, move |tx| {
            Box::pin(async move { admin_key::replace(tx, from, &key).await })
        })
        .await
    }

    async fn deployment(&self) -> Result<String, StoreError> {
        deployment::id(&self.readers).await
    }

    async fn account(&self) -> Result<Option<AccountId>, StoreError> {
        deployment::account(&self.readers).await
    }

    async fn bind_account(&self, account: &AccountId, audit: AuditEvent) -> Result<(), StoreError> {
        let account = account.clone();
        self.change(audit, move |tx| {
            Box::pin(async move { deployment::bind_account(tx, &account).await })
        })
        .await
    }

    async fn counts(&self) -> Result<StoreCounts, StoreError> {
        row::counts(&self.readers).await
    }
}
