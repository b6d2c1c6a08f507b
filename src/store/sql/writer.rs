//! The writer: takes all waiting changes from a queue and makes them in one transaction, so that
//! one wait for the disk serves them all. A refused change is rolled back alone. If the disk
//! refuses, none is made.

use std::{
    future::Future,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use sqlx::pool::PoolConnection;
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    batch::{Answer, Asked, Batch, Beginning, Change, Working},
    cache::Caches,
    dialect::{self, Connection, Db, Pool},
    log::{self, Log},
    row::store_error,
    session_counter::SessionUpperBound,
};
use crate::{
    audit::tree::Frontier,
    broker::ports::{BeginOutcome, LeaseTransition, LogHead, Receipt, StoreError},
    domain::audit::AuditEvent,
};

/// Most changes in one transaction.
const BATCH: usize = 512;

/// Entry of the queue.
enum Next {
    Change(Change),
    /// End of the queue: no entry follows.
    End,
}

/// Queue of changes, served by one task.
#[derive(Debug)]
pub(super) struct Writer {
    queue: mpsc::Sender<Next>,
    task: Mutex<JoinHandle<()>>,
    head: Head,
}

/// The edge of the log as it was last committed.
type Head = Arc<RwLock<Frontier>>;

impl Writer {
    /// Starts a writer that removes from `registry` what its changes affect.
    pub(super) fn start(pool: Pool, edge: Frontier, registry: Arc<Caches>) -> Self {
        let ((queue, changes), head) = (mpsc::channel(BATCH), Arc::new(RwLock::new(edge)));
        let writing = Writing {
            pool,
            head: Arc::clone(&head),
            registry,
            sessions: Arc::default(),
        };
        let task = Mutex::new(tokio::spawn(writing.write_all(changes)));
        Self { queue, task, head }
    }

    /// Returns the edge of the log as this broker last committed or read it.
    pub(super) fn seen(&self) -> Frontier {
        let head = self.head.read().unwrap_or_else(PoisonError::into_inner);
        head.clone()
    }

    /// Does `work` and makes it durable with its records, even if the caller goes away meanwhile.
    /// The receipt is of the last record.
    pub(super) async fn write<T, W>(&self, work: W) -> Answer<T>
    where
        T: Send + 'static,
        W: for<'c> FnOnce(&'c mut Connection) -> Working<'c, T> + Send + 'static,
    {
        self.ask(|answer| Change::other(work, answer)).await
    }

    /// Makes a record durable that belongs to no change.
    pub(super) async fn record(&self, audit: AuditEvent) -> Result<Receipt, StoreError> {
        let record = |answer| Change::Record(Asked::new(Box::new(audit), answer));
        let ((), receipt) = self.ask(record).await?;
        Ok(receipt)
    }

    /// Begins a lease, or returns what prevents it.
    pub(super) async fn begin(&self, beginning: Beginning) -> Result<BeginOutcome, StoreError> {
        let begin = |answer| Change::Begin(Asked::new(Box::new(beginning), answer));
        self.ask(begin).await.map(|(begun, _)| begun)
    }

    /// Replaces the leases that are still of the expected revision; returns how many.
    pub(super) async fn replace(&self, changes: Vec<LeaseTransition>) -> Answer<usize> {
        self.ask(|answer| Change::Replace(Asked::new(changes, answer)))
            .await
    }

    async fn ask<T>(&self, change: impl FnOnce(oneshot::Sender<Answer<T>>) -> Change) -> Answer<T> {
        let (answer, answered) = oneshot::channel();
        let queued = self.queue.send(Next::Change(change(answer))).await;
        queued.map_err(|_| closed())?;
        answered.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Waits until all queued changes are done, and ends the task.
    pub(super) async fn end(&self) {
        // The task may have ended already.
        let _ = self.queue.send(Next::End).await;
        let mut task = self.task.lock().await;
        if !task.is_finished() {
            let _ = (&mut *task).await;
        }
    }
}

fn closed() -> StoreError {
    StoreError::Unavailable("it is closed".to_owned())
}

/// State of the task.
struct Writing {
    pool: Pool,
    head: Head,
    registry: Arc<Caches>,
    sessions: Arc<SessionUpperBound>,
}

impl Writing {
    async fn write_all(self, mut queue: mpsc::Receiver<Next>) {
        let (mut taken, mut ended) = (Vec::new(), false);
        while !ended && queue.recv_many(&mut taken, BATCH).await > 0 {
            let mut batch = Batch::default();
            for next in taken.drain(..) {
                match next {
                    Next::Change(change) => batch.push(change, &self.sessions),
                    Next::End => ended = true,
                }
            }
            let committed = self.commit(&mut batch).await;
            if committed.is_err() {
                self.sessions.forget();
            }
            batch.tell(&committed);
        }
    }

    /// Makes all changes of a batch durable.
    async fn commit(&self, batch: &mut Batch) -> Result<LogHead, StoreError> {
        let (tx, log) = in_time(self.prepare(batch)).await?;
        death::may_come("before", &log);
        if let Err(error) = in_time(tx.end("COMMIT")).await {
            self.registry.forget();
            if !has_happened(&self.pool, &log).await {
                return Err(error);
            }
        }
        batch.forget_changed(&self.registry, &log);
        let committed = LogHead::of(&log.edge);
        *self.head.write().unwrap_or_else(PoisonError::into_inner) = log.edge.clone();
        death::may_come("after", &log);
        Ok(committed)
    }

    /// Makes all changes of a batch, up to the commit.
    async fn prepare(&self, batch: &mut Batch) -> Result<(Tx, Log), StoreError> {
        let mut tx = Tx::begin(&self.pool).await?;
        let seen = self
            .head
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut log = Log::new(log::lock(&mut tx.connection, &seen).await?);
        batch.make(&mut tx, &mut log).await?;
        log.close(&mut tx.connection).await?;
        Ok((tx, log))
    }
}

/// Limits the time of `work`, so that a silent database does not block the callers. A transaction
/// that exceeds the limit has its connection closed.
async fn in_time<T>(work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let Some(limit) = dialect::ANSWER_LIMIT else {
        return work.await;
    };
    let silent = |_| StoreError::Unavailable("the database does not answer".to_owned());
    timeout(limit, work)
        .await
        .unwrap_or_else(|late| Err(silent(late)))
}

/// Longest time in which the store is asked for the outcome of a commit.
const OUTCOME_LIMIT: Duration = Duration::from_secs(8);
const OUTCOME_EVERY: Duration = Duration::from_millis(200);

/// Returns whether a commit whose answer was lost has happened, by what is stored once the
/// transaction has ended.
async fn has_happened(pool: &Pool, log: &Log) -> bool {
    if dialect::ALONE {
        return false;
    }
    let look = async || {
        let mut tx = Tx::begin(pool).await?;
        log.stands(&mut tx.connection).await
    };
    let looked = timeout(OUTCOME_LIMIT, async {
        loop {
            match look().await {
                Ok(stands) => return stands,
                Err(error) => tracing::debug!(%error, "what a commit came to is not known yet"),
            }
            sleep(OUTCOME_EVERY).await;
        }
    });
    looked.await.unwrap_or(false)
}

/// A write transaction. If it is dropped before its end, it closes its connection. This rolls the
/// transaction back, whatever state a full or failing disk has left it in; the pool opens another
/// connection.
pub(super) struct Tx {
    pub(super) connection: PoolConnection<Db>,
    ended: bool,
}

impl Tx {
    async fn begin(pool: &Pool) -> Result<Self, StoreError> {
        let mut tx = Self {
            connection: pool.acquire().await.map_err(store_error)?,
            ended: false,
        };
        tx.run(dialect::BEGIN).await?;
        Ok(tx)
    }

    pub(super) async fn run(&mut self, statement: &'static str) -> Result<(), StoreError> {
        let done = sqlx::query(statement).execute(&mut *self.connection).await;
        done.map(drop).map_err(store_error)
    }

    async fn end(mut self, statement: &'static str) -> Result<(), StoreError> {
        self.run(statement).await?;
        self.ended = true;
        Ok(())
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        if !self.ended {
            self.connection.close_on_drop();
        }
    }
}

/// Test hook in builds with debug assertions: the process aborts before or after the commit of a
/// record, e.g. by `CREDBROKER_TEST_DEATH=before:lease.issued`.
mod death {
    use super::Log;

    #[cfg(debug_assertions)]
    pub(super) fn may_come(moment: &str, log: &Log) {
        let told = std::env::var("CREDBROKER_TEST_DEATH").ok();
        let told = told.as_deref().and_then(|told| told.split_once(':'));
        if log
            .events()
            .any(|event| told == Some((moment, event.event.as_str())))
        {
            std::process::abort();
        }
    }

    #[cfg(not(debug_assertions))]
    pub(super) const fn may_come(_: &str, _: &Log) {}
}
