//! Changes that waited at the same time, made in one transaction. What becomes of leases is
//! most of them: it is written by one statement for many. Anything else has a savepoint of its
//! own, so that what is refused is undone alone.

use std::{collections::BTreeSet, future::Future, pin::Pin, sync::Arc};

use async_trait::async_trait;
use tokio::sync::oneshot;

use super::{dialect::Connection, known::Registry, leases, log::Log, sessions::AtMost, writer::Tx};
use crate::{
    broker::ports::{Begun, LeaseChange, LogHead, Receipt, StoreError},
    domain::{audit::AuditEvent, lease::Lease},
};

/// What a change comes to, and its records; none for one that has changed nothing.
pub(super) type Outcome<T> = Result<(T, Vec<AuditEvent>), StoreError>;

/// The work of a change, on the connection that writes.
pub(super) type Working<'c, T> = Pin<Box<dyn Future<Output = Outcome<T>> + Send + 'c>>;

/// What somebody waits for.
pub(super) type Answer<T> = Result<(T, Receipt), StoreError>;

/// A change.
pub(super) enum Change {
    /// A record and nothing else.
    Record(Asked<Box<AuditEvent>, ()>),
    /// A lease that begins.
    Begin(Asked<Box<Beginning>, Begun>),
    /// Leases that change. Comes to how many did.
    Replace(Asked<Vec<LeaseChange>, usize>),
    /// Anything else.
    Other(Box<dyn Other>),
}

/// A lease that is to begin unless its service has `most` already, and its record.
pub(super) struct Beginning {
    pub(super) lease: Lease,
    pub(super) most: u64,
    pub(super) audit: AuditEvent,
}

/// A change that somebody waits for.
pub(super) struct Asked<W, T> {
    work: W,
    /// And the size of the log then.
    came_to: Result<(T, u64), StoreError>,
    answer: oneshot::Sender<Answer<T>>,
}

impl<W, T> Asked<W, T> {
    /// `answer` is told what comes of `work`.
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
        // Whoever asked may have gone.
        let _ = self.answer.send(came_to);
    }
}

impl Change {
    /// What has a savepoint of its own.
    pub(super) fn other<T, W>(work: W, answer: oneshot::Sender<Answer<T>>) -> Self
    where
        T: Send + 'static,
        W: for<'c> FnOnce(&'c mut Connection) -> Working<'c, T> + Send + 'static,
    {
        Self::Other(Box::new(Asked::new(Some(work), answer)))
    }

    /// The live leases of its service are counted before it begins.
    fn counting(asked: Asked<Box<Beginning>, Begun>, sessions: Arc<AtMost>) -> Self {
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
    sessions: Arc<AtMost>,
) -> Outcome<Begun> {
    let Beginning { lease, most, audit } = *beginning;
    if let Some(hindrance) = leases::hindrance(tx, &lease, most, &sessions).await? {
        return Ok((hindrance, Vec::new()));
    }
    if leases::insert_all(tx, &[&lease]).await?.is_empty() {
        return Err(StoreError::Conflict);
    }
    Ok((Begun::Recorded, vec![audit]))
}

/// A change that is made alone.
#[async_trait]
pub(super) trait Other: Send {
    /// Does the work. An error of its own is kept for whoever waits; returned is whether it
    /// is to be undone.
    async fn work(&mut self, tx: &mut Connection, log: &mut Log) -> Result<Made, StoreError>;
    /// Tells whoever waits what has come of it.
    fn tell(self: Box<Self>, committed: &Result<LogHead, StoreError>);
}

/// Whether a change was made.
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

/// All of them, by what they are.
#[derive(Default)]
pub(super) struct Batch {
    records: Vec<Asked<Box<AuditEvent>, ()>>,
    begins: Vec<Asked<Box<Beginning>, Begun>>,
    replaces: Vec<Asked<Vec<LeaseChange>, usize>>,
    others: Vec<Box<dyn Other>>,
}

impl Batch {
    /// Nobody waits for the one to be done before the other, so that any order is right.
    pub(super) fn push(&mut self, change: Change, sessions: &Arc<AtMost>) {
        match change {
            Change::Record(asked) => self.records.push(asked),
            Change::Replace(asked) => self.replaces.push(asked),
            Change::Other(asked) => self.others.push(asked),
            Change::Begin(asked) if sessions.takes_one_more(&asked.work.lease, asked.work.most) => {
                self.begins.push(asked);
            }
            // Counted together with those that were not.
            Change::Begin(asked) => {
                self.push(Change::counting(asked, Arc::clone(sessions)), sessions);
            }
        }
    }

    /// Makes them.
    ///
    /// # Errors
    /// None can be made.
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

    /// It is committed with the records of `log`: what it may have changed is read anew.
    pub(super) fn forget_changed(&self, registry: &Registry, log: &Log) {
        registry.follow(log.events());
        // Some of these have no record.
        if !self.others.is_empty() {
            registry.denials.forget();
        }
    }

    /// Tells all who wait.
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
    begins: &mut [Asked<Box<Beginning>, Begun>],
) -> Result<(), StoreError> {
    let all: Vec<&Lease> = begins.iter().map(|asked| &asked.work.lease).collect();
    let begun = leases::insert_all(tx, &all).await?;
    for asked in begins {
        let Beginning { lease, audit, .. } = asked.work.as_ref();
        let begins = if begun.contains(lease.binding.lease_id.as_str()) {
            log.append([audit.clone()])?;
            Ok(Begun::Recorded)
        } else {
            match leases::known(tx, lease).await {
                // The database may have undone all of it.
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
    mut rest: &mut [Asked<Vec<LeaseChange>, usize>],
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

/// How many of the first change leases that are not each other's. One alone is not like another.
fn unlike(asked: &[Asked<Vec<LeaseChange>, usize>]) -> usize {
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

/// In a savepoint of its own.
async fn make_alone(tx: &mut Tx, log: &mut Log, other: &mut dyn Other) -> Result<(), StoreError> {
    tx.run("SAVEPOINT change").await?;
    if let Made::Refused = other.work(&mut tx.connection, log).await? {
        // When the disk has refused, there is no savepoint to go back to.
        tx.run("ROLLBACK TO change").await?;
    }
    tx.run("RELEASE change").await
}
