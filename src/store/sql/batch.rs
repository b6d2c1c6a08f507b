//! Batches: changes that waited at the same time, made in one transaction. Most are changes of
//! leases, which one statement writes for many. Any other change has a savepoint of its own, so
//! that a refused change is rolled back alone.

use std::{collections::BTreeSet, future::Future, pin::Pin, sync::Arc};

use async_trait::async_trait;
use tokio::sync::oneshot;

use super::{
    cache::Caches, dialect::Connection, leases, log::Log, session_counter::SessionUpperBound,
    writer::Tx,
};
use crate::{
    broker::ports::{BeginOutcome, LeaseTransition, LogHead, Receipt, StoreError},
    domain::{audit::AuditEvent, lease::Lease},
};

/// Result of a change: its value and its records. A change that changed nothing has no records.
pub(super) type Outcome<T> = Result<(T, Vec<AuditEvent>), StoreError>;

/// The work of a change, on the connection that writes.
pub(super) type Working<'c, T> = Pin<Box<dyn Future<Output = Outcome<T>> + Send + 'c>>;

/// Answer to the caller of a change.
pub(super) type Answer<T> = Result<(T, Receipt), StoreError>;

/// A change.
pub(super) enum Change {
    /// A record and nothing else.
    Record(Asked<Box<AuditEvent>, ()>),
    /// A lease that begins.
    Begin(Asked<Box<Beginning>, BeginOutcome>),
    /// Leases that change. The value is the number of leases that were changed.
    Replace(Asked<Vec<LeaseTransition>, usize>),
    /// Any other change.
    Other(Box<dyn Other>),
}

/// A lease that begins unless its service has `most` live leases already, and its record.
pub(super) struct Beginning {
    pub(super) lease: Lease,
    pub(super) most: u64,
    pub(super) audit: AuditEvent,
}

/// A change, and the channel for its answer.
pub(super) struct Asked<W, T> {
    work: W,
    /// Value of the change, and size of the log after it.
    came_to: Result<(T, u64), StoreError>,
    answer: oneshot::Sender<Answer<T>>,
}

impl<W, T> Asked<W, T> {
    /// Creates a change whose result goes to `answer`.
    pub(super) const fn new(work: W, answer: oneshot::Sender<Answer<T>>) -> Self {
        Self {
            work,
            came_to: Err(StoreError::Conflict),
            answer,
        }
    }

    fn tell(self, committed: &Result<LogHead, StoreError>) {
        let came_to = committed.clone().and_then(|head| {
            let (value, seq) = self.came_to?;
            let LogHead { size, root } = head;
            Ok((value, Receipt { seq, size, root }))
        });
        // The caller may have gone.
        let _ = self.answer.send(came_to);
    }
}

impl Change {
    /// Creates a change that has a savepoint of its own.
    pub(super) fn other<T, W>(work: W, answer: oneshot::Sender<Answer<T>>) -> Self
    where
        T: Send + 'static,
        W: for<'c> FnOnce(&'c mut Connection) -> Working<'c, T> + Send + 'static,
    {
        Self::Other(Box::new(Asked::new(Some(work), answer)))
    }

    /// Creates the change of a lease that begins once the live leases of its service were counted.
    fn counting(
        asked: Asked<Box<Beginning>, BeginOutcome>,
        sessions: Arc<SessionUpperBound>,
    ) -> Self {
        let Asked { work, answer, .. } = asked;
        Self::other(
            move |tx| Box::pin(begin_counted(tx, work, sessions)),
            answer,
        )
    }
}

async fn begin_counted(
    tx: &mut Connection,
    beginning: Box<Beginning>,
    sessions: Arc<SessionUpperBound>,
) -> Outcome<BeginOutcome> {
    let Beginning { lease, most, audit } = *beginning;
    if let Some(hindrance) = leases::hindrance(tx, &lease, most, &sessions).await? {
        return Ok((hindrance, Vec::new()));
    }
    if leases::insert_all(tx, &[&lease]).await?.is_empty() {
        return Err(StoreError::Conflict);
    }
    Ok((BeginOutcome::Recorded, vec![audit]))
}

/// A change that has a savepoint of its own.
#[async_trait]
pub(super) trait Other: Send {
    /// Does the work, and returns whether it must be rolled back. An error of the change itself is
    /// stored for the caller.
    async fn work(&mut self, tx: &mut Connection, log: &mut Log) -> Result<Made, StoreError>;
    /// Sends the result to the caller.
    fn tell(self: Box<Self>, committed: &Result<LogHead, StoreError>);
}

/// Outcome of a change: made, or refused and to be rolled back.
pub(super) enum Made {
    Whole,
    Refused,
}

#[async_trait]
impl<T, W> Other for Asked<Option<W>, T>
where
    T: Send,
    W: for<'c> FnOnce(&'c mut Connection) -> Working<'c, T> + Send,
{
    async fn work(&mut self, tx: &mut Connection, log: &mut Log) -> Result<Made, StoreError> {
        let Some(work) = self.work.take() else {
            return Ok(Made::Refused);
        };
        match work(tx).await {
            Ok((value, records)) => {
                log.append(records)?;
                self.came_to = Ok((value, log.edge.size()));
                Ok(Made::Whole)
            }
            Err(error) => {
                self.came_to = Err(error);
                Ok(Made::Refused)
            }
        }
    }

    fn tell(self: Box<Self>, committed: &Result<LogHead, StoreError>) {
        (*self).tell(committed);
    }
}

/// Changes of one transaction, by kind.
#[derive(Default)]
pub(super) struct Batch {
    records: Vec<Asked<Box<AuditEvent>, ()>>,
    begins: Vec<Asked<Box<Beginning>, BeginOutcome>>,
    replaces: Vec<Asked<Vec<LeaseTransition>, usize>>,
    others: Vec<Box<dyn Other>>,
}

impl Batch {
    /// Adds a change. The callers of all these changes are still waiting, so any order is right.
    pub(super) fn push(&mut self, change: Change, sessions: &Arc<SessionUpperBound>) {
        match change {
            Change::Record(asked) => self.records.push(asked),
            Change::Replace(asked) => self.replaces.push(asked),
            Change::Other(asked) => self.others.push(asked),
            Change::Begin(asked) if sessions.try_reserve(&asked.work.lease, asked.work.most) => {
                self.begins.push(asked);
            }
            // Made after the leases that need no count, and counts them, too.
            Change::Begin(asked) => {
                self.push(Change::counting(asked, Arc::clone(sessions)), sessions);
            }
        }
    }

    /// Makes all changes.
    ///
    /// # Errors
    /// The store's error; no change can be made.
    pub(super) async fn make(&mut self, tx: &mut Tx, log: &mut Log) -> Result<(), StoreError> {
        begin_all(&mut tx.connection, log, &mut self.begins).await?;
        replace_all(&mut tx.connection, log, &mut self.replaces).await?;
        for asked in &mut self.records {
            log.append([asked.work.as_ref().clone()])?;
            asked.came_to = Ok(((), log.edge.size()));
        }
        for other in &mut self.others {
            make_alone(tx, log, other.as_mut()).await?;
        }
        Ok(())
    }

    /// Removes from the cache what the changes, committed with the records of `log`, may have
    /// changed.
    pub(super) fn forget_changed(&self, registry: &Caches, log: &Log) {
        registry.follow(log.events());
        // Some of these changes have no record.
        if !self.others.is_empty() {
            registry.denials.forget();
        }
    }

    /// Sends the results to all callers.
    pub(super) fn tell(self, committed: &Result<LogHead, StoreError>) {
        for asked in self.records {
            asked.tell(committed);
        }
        for asked in self.begins {
            asked.tell(committed);
        }
        for asked in self.replaces {
            asked.tell(committed);
        }
        for other in self.others {
            other.tell(committed);
        }
    }
}

async fn begin_all(
    tx: &mut Connection,
    log: &mut Log,
    begins: &mut [Asked<Box<Beginning>, BeginOutcome>],
) -> Result<(), StoreError> {
    let all: Vec<&Lease> = begins.iter().map(|asked| &asked.work.lease).collect();
    let begun = leases::insert_all(tx, &all).await?;
    for asked in begins {
        let Beginning { lease, audit, .. } = asked.work.as_ref();
        let begins = if begun.contains(lease.binding.lease_id.as_str()) {
            log.append([audit.clone()])?;
            Ok(BeginOutcome::Recorded)
        } else {
            match leases::known(tx, lease).await {
                // The database may have rolled back the whole transaction.
                Err(error @ StoreError::Unavailable(_)) => return Err(error),
                known => known.and_then(|known| known.ok_or(StoreError::Conflict)),
            }
        };
        asked.came_to = begins.map(|begun| (begun, log.edge.size()));
    }
    Ok(())
}

async fn replace_all(
    tx: &mut Connection,
    log: &mut Log,
    mut rest: &mut [Asked<Vec<LeaseTransition>, usize>],
) -> Result<(), StoreError> {
    while !rest.is_empty() {
        let (group, later) = rest.split_at_mut(unlike(rest));
        let all: Vec<_> = group.iter().flat_map(|asked| &asked.work).collect();
        let all: Vec<_> = all
            .iter()
            .map(|change| (change.from, &change.lease))
            .collect();
        let replaced = leases::update_all(tx, &all).await?;
        for asked in group {
            let mut count = 0;
            for change in &asked.work {
                if replaced.contains(change.lease.binding.lease_id.as_str()) {
                    log.append([change.audit.clone()])?;
                    count += 1;
                }
            }
            asked.came_to = Ok((count, log.edge.size()));
        }
        rest = later;
    }
    Ok(())
}

/// Returns the number of leading changes that have no lease in common, at least 1: one statement
/// changes a lease once.
fn unlike(asked: &[Asked<Vec<LeaseTransition>, usize>]) -> usize {
    let (mut seen, mut count) = (BTreeSet::new(), 0);
    for asked in asked {
        let mut leases = asked
            .work
            .iter()
            .map(|change| &change.lease.binding.lease_id);
        if !leases.all(|lease| seen.insert(lease)) {
            break;
        }
        count += 1;
    }
    count.max(1)
}

/// Makes a change in a savepoint of its own.
async fn make_alone(tx: &mut Tx, log: &mut Log, other: &mut dyn Other) -> Result<(), StoreError> {
    tx.run("SAVEPOINT change").await?;
    if let Made::Refused = other.work(&mut tx.connection, log).await? {
        // After a disk error there is no savepoint: this statement fails, and the batch with it.
        tx.run("ROLLBACK TO change").await?;
    }
    tx.run("RELEASE change").await
}
