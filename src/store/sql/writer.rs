//! All that writes: changes from a queue, as many as wait, in one transaction each time,
//! so that one wait for the disk serves them all. A change that is refused is undone
//! alone; when the disk refuses, none has happened.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use async_trait::async_trait;
use sqlx::pool::PoolConnection;
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    dialect::{self, Connection, Db, Pool},
    known::Registry,
    log::{self, Log},
    row::store_error,
};
use crate::{
    audit::tree::Edge,
    broker::ports::{LogHead, Receipt, StoreError},
    domain::audit::AuditEvent,
};

/// Most changes in one transaction.
const BATCH: usize = 512;

/// What a change comes to, and its records; none for one that has changed nothing.
pub(super) type Outcome<T> = Result<(T, Vec<AuditEvent>), StoreError>;

/// The work of a change, on the connection that writes.
pub(super) type Working<'c, T> = Pin<Box<dyn Future<Output = Outcome<T>> + Send + 'c>>;

#[async_trait]
trait Change: Send {
    /// Whether it comes to a record and nothing else, so that nothing could be undone.
    fn is_record_alone(&self) -> bool;
    /// Does the work. Returns its records, or why there are none.
    async fn work(&mut self, tx: &mut Connection) -> Result<Vec<AuditEvent>, StoreError>;
    /// Tells whoever waits what has come of it.
    fn tell(self: Box<Self>, committed: Result<Receipt, StoreError>);
}

struct Asked<T, W> {
    is_record_alone: bool,
    work: Option<W>,
    result: Result<T, StoreError>,
    answer: oneshot::Sender<Result<(T, Receipt), StoreError>>,
}

#[async_trait]
impl<T, W> Change for Asked<T, W>
where
    T: Send,
    W: for<'c> FnOnce(&'c mut Connection) -> Working<'c, T> + Send,
{
    fn is_record_alone(&self) -> bool {
        self.is_record_alone
    }

    async fn work(&mut self, tx: &mut Connection) -> Result<Vec<AuditEvent>, StoreError> {
        let Some(work) = self.work.take() else {
            return Ok(Vec::new());
        };
        match work(tx).await {
            Ok((value, records)) => {
                self.result = Ok(value);
                Ok(records)
            }
            Err(error) => {
                self.result = Err(error.clone());
                Err(error)
            }
        }
    }

    fn tell(self: Box<Self>, committed: Result<Receipt, StoreError>) {
        let Self { result, answer, .. } = *self;
        // Whoever asked may have gone.
        let _ = answer.send(committed.and_then(|receipt| Ok((result?, receipt))));
    }
}

/// What is in the queue.
enum Next {
    Change(Box<dyn Change>),
    /// Nothing comes any more.
    End,
}

/// The queue. One task takes from it.
#[derive(Debug)]
pub(super) struct Writer {
    queue: mpsc::Sender<Next>,
    task: Mutex<JoinHandle<()>>,
    head: Head,
}

/// The edge of the log as it was last committed.
type Head = Arc<RwLock<Edge>>;

impl Writer {
    /// One that tells `registry` what is committed.
    pub(super) fn start(pool: Pool, edge: Edge, registry: Arc<Registry>) -> Self {
        let ((queue, changes), head) = (mpsc::channel(BATCH), Arc::new(RwLock::new(edge)));
        let writing = write_all(pool, changes, Arc::clone(&head), registry);
        let task = Mutex::new(tokio::spawn(writing));
        Self { queue, task, head }
    }

    /// The edge of the log as this broker has last committed or read it.
    pub(super) fn seen(&self) -> Edge {
        let head = self.head.read().unwrap_or_else(PoisonError::into_inner);
        head.clone()
    }

    /// Does `work` and makes it durable with its records. It is done even when nobody
    /// waits for it any more. The receipt is of the last record.
    pub(super) async fn write<T, W>(&self, work: W) -> Result<(T, Receipt), StoreError>
    where
        T: Send + 'static,
        W: for<'c> FnOnce(&'c mut Connection) -> Working<'c, T> + Send + 'static,
    {
        self.ask(work, false).await
    }

    /// Makes a record durable that belongs to no change.
    pub(super) async fn record(&self, audit: AuditEvent) -> Result<Receipt, StoreError> {
        let alone = self.ask(
            move |_| Box::pin(async move { Ok(((), vec![audit])) }),
            true,
        );
        let ((), receipt) = alone.await?;
        Ok(receipt)
    }

    async fn ask<T, W>(&self, work: W, is_record_alone: bool) -> Result<(T, Receipt), StoreError>
    where
        T: Send + 'static,
        W: for<'c> FnOnce(&'c mut Connection) -> Working<'c, T> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let asked = Asked {
            is_record_alone,
            work: Some(work),
            result: Err(closed()),
            answer,
        };
        let queued = self.queue.send(Next::Change(Box::new(asked))).await;
        queued.map_err(|_| closed())?;
        answered.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Ends when everything that waits has been done.
    pub(super) async fn end(&self) {
        // It may have ended already.
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

async fn write_all(
    pool: Pool,
    mut queue: mpsc::Receiver<Next>,
    head: Head,
    registry: Arc<Registry>,
) {
    let (mut taken, mut ended) = (Vec::new(), false);
    while !ended && queue.recv_many(&mut taken, BATCH).await > 0 {
        let mut batch = Vec::with_capacity(taken.len());
        for next in taken.drain(..) {
            match next {
                Next::Change(change) => batch.push(change),
                Next::End => ended = true,
            }
        }
        match commit(&pool, &head, &registry, &mut batch).await {
            Ok(receipts) => {
                for (change, receipt) in batch.into_iter().zip(receipts) {
                    change.tell(Ok(receipt));
                }
            }
            Err(error) => {
                for change in batch {
                    change.tell(Err(error.clone()));
                }
            }
        }
    }
}

/// Makes all that waits durable. Returns a receipt for each.
async fn commit(
    pool: &Pool,
    head: &Head,
    registry: &Registry,
    batch: &mut [Box<dyn Change>],
) -> Result<Vec<Receipt>, StoreError> {
    let Ready {
        tx,
        log,
        written,
        sizes,
    } = in_time(prepare(pool, head, batch)).await?;
    death::may_come("before", &written);
    if let Err(error) = in_time(tx.end("COMMIT")).await {
        registry.forget();
        if !has_happened(pool, &log).await {
            return Err(error);
        }
    }
    registry.follow(&written);
    let committed = LogHead::of(&log.edge);
    *head.write().unwrap_or_else(PoisonError::into_inner) = log.edge;
    death::may_come("after", &written);
    let receipt = |seq| Receipt {
        seq,
        size: committed.size,
        root: committed.root,
    };
    Ok(sizes.into_iter().map(receipt).collect())
}

/// All that waits, before its commit.
struct Ready {
    tx: Tx,
    log: Log,
    written: Vec<AuditEvent>,
    /// Of the log after each change.
    sizes: Vec<u64>,
}

async fn prepare(
    pool: &Pool,
    head: &Head,
    batch: &mut [Box<dyn Change>],
) -> Result<Ready, StoreError> {
    let mut tx = Tx::begin(pool).await?;
    let seen = head.read().unwrap_or_else(PoisonError::into_inner).clone();
    let mut log = Log::new(log::lock(&mut tx.connection, &seen).await?);
    let (mut written, mut sizes) = (Vec::new(), Vec::with_capacity(batch.len()));
    for change in batch {
        if let Some(records) = apply(&mut tx, &mut log, change.as_mut()).await? {
            written.extend(records);
        }
        sizes.push(log.edge.size());
    }
    log.close(&mut tx.connection).await?;
    Ok(Ready {
        tx,
        log,
        written,
        sizes,
    })
}

/// A database that has fallen silent holds up nobody for longer than it would take to say so.
/// What is cut off has its connection closed.
async fn in_time<T>(work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let Some(limit) = dialect::ANSWER_LIMIT else {
        return work.await;
    };
    let silent = |_| StoreError::Unavailable("the database does not answer".to_owned());
    timeout(limit, work)
        .await
        .unwrap_or_else(|late| Err(silent(late)))
}

/// How long a store is asked what has become of a commit.
const OUTCOME_LIMIT: Duration = Duration::from_secs(8);
const OUTCOME_EVERY: Duration = Duration::from_millis(200);

/// What a commit came to whose answer was lost, by what is there once the transaction has
/// ended.
async fn has_happened(pool: &Pool, log: &Log) -> bool {
    if dialect::LOCK_EDGE.is_none() {
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

/// One change in a savepoint of its own.
async fn apply(
    tx: &mut Tx,
    log: &mut Log,
    change: &mut dyn Change,
) -> Result<Option<Vec<AuditEvent>>, StoreError> {
    if change.is_record_alone() {
        let records = change.work(&mut tx.connection).await?;
        log.append(&records)?;
        return Ok(Some(records));
    }
    tx.run("SAVEPOINT change").await?;
    let Ok(records) = change.work(&mut tx.connection).await else {
        // When the disk has refused, there is no savepoint to go back to.
        tx.run("ROLLBACK TO change").await?;
        tx.run("RELEASE change").await?;
        return Ok(None);
    };
    log.append(&records)?;
    tx.run("RELEASE change").await?;
    Ok(Some(records))
}

/// A write transaction. Dropped before its end it closes its connection, which rolls it
/// back whatever state a full or failing disk has left it in; the pool opens another.
struct Tx {
    connection: PoolConnection<Db>,
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

    async fn run(&mut self, statement: &'static str) -> Result<(), StoreError> {
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

/// In builds with debug assertions, as the tests use, the process can be told to die
/// before or after the commit of a record: `CREDBROKER_TEST_DEATH=before:lease.issued`.
mod death {
    use crate::domain::audit::AuditEvent;

    #[cfg(debug_assertions)]
    pub(super) fn may_come(moment: &str, events: &[AuditEvent]) {
        let told = std::env::var("CREDBROKER_TEST_DEATH").ok();
        let told = told.as_deref().and_then(|told| told.split_once(':'));
        let is_told = |event: &AuditEvent| told == Some((moment, event.event.as_str()));
        if events.iter().any(is_told) {
            std::process::abort();
        }
    }

    #[cfg(not(debug_assertions))]
    pub(super) const fn may_come(_: &str, _: &[AuditEvent]) {}
}
