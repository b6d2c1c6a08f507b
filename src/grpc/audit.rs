use std::{collections::BTreeSet, ops::Range, pin::Pin, sync::Arc, time::Duration};

use prost::Message;
use tokio::sync::mpsc;
use tonic::{
    Request, Response, Status,
    codegen::tokio_stream::{Stream, wrappers::ReceiverStream},
};

use super::{
    Api,
    audit_convert::{parse_audit_filter, to_checkpoint, to_proof, to_record},
    convert::{parse, parse_time},
    pagination::{build_page, parse_page},
    status::status,
};
use crate::{
    audit::tile::Tile,
    broker::{
        Broker, Error, Staying,
        ports::{AuditFilter, PageRequest},
    },
    domain::{audit::Subject, grant::validate::Violation},
    proto::{
        AuditRecord, Checkpoint, EntryBundle, ExportEntriesRequest, GetCheckpointRequest,
        ListAuditRecordsRequest, ListAuditRecordsResponse, ProveLeaseRequest, ProveLeaseResponse,
        PruneRecordsRequest, PruneRecordsResponse, RotateLogKeyRequest, TailAuditRecordsRequest,
        audit_service_server::AuditService,
    },
};

/// Interval at which a follower looks for new records; each look costs one indexed read.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const LINES_MAX: i32 = 1000;
/// Number of entries in a bundle, and of bundles that wait for a slow reader.
const BUNDLE: u64 = 256;
const BUNDLES: usize = 4;
/// Number of records that wait for a slow follower.
const BUFFER: usize = 64;

#[tonic::async_trait]
impl AuditService for Api {
    async fn list_audit_records(
        &self,
        request: Request<ListAuditRecordsRequest>,
    ) -> Result<Response<ListAuditRecordsResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let filter = parse_audit_filter(&message)?;
            let page = parse_page::<u64>(message.page_size, message.page_token)?;
            let records = broker.audit(&caller, &filter, &page).await?;
            let (records, next_page_token) =
                build_page(&page, &records, 0, |record| record.seq, to_record);
            Ok(ListAuditRecordsResponse {
                records,
                next_page_token,
            })
        })
        .await
    }

    async fn get_checkpoint(
        &self,
        request: Request<GetCheckpointRequest>,
    ) -> Result<Response<Checkpoint>, Status> {
        self.call(request, async |broker, caller, _| {
            Ok(to_checkpoint(broker.checkpoint(caller).await?))
        })
        .await
    }

    async fn rotate_log_key(
        &self,
        request: Request<RotateLogKeyRequest>,
    ) -> Result<Response<Checkpoint>, Status> {
        self.call(request, async |broker, caller, _| {
            Ok(to_checkpoint(broker.rotate_log_key(caller).await?))
        })
        .await
    }

    async fn prune_records(
        &self,
        request: Request<PruneRecordsRequest>,
    ) -> Result<Response<PruneRecordsResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let before = parse_time("before", message.before.as_ref())?;
            let before = before.ok_or_else(|| {
                Error::Invalid(vec![Violation::new("before", "a point in time is needed")])
            })?;
            let start = broker.prune_log(&caller, before, &message.checkpoint);
            Ok(PruneRecordsResponse {
                start: start.await?,
            })
        })
        .await
    }

    async fn prove_lease(
        &self,
        request: Request<ProveLeaseRequest>,
    ) -> Result<Response<ProveLeaseResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let lease = parse("lease_id", &message.lease_id)?;
            let page = parse_page::<u64>(message.page_size, message.page_token)?;
            let (signed, proofs) = broker.prove(caller, &lease, &page).await?;
            let checkpoint = to_checkpoint(signed);
            let other = checkpoint.encoded_len();
            let (proofs, next_page_token) =
                build_page(&page, &proofs, other, |proof| proof.index + 1, to_proof);
            Ok(ProveLeaseResponse {
                checkpoint: Some(checkpoint),
                proofs,
                next_page_token,
            })
        })
        .await
    }

    type ExportEntriesStream = Pin<Box<dyn Stream<Item = Result<EntryBundle, Status>> + Send>>;

    async fn export_entries(
        &self,
        request: Request<ExportEntriesRequest>,
    ) -> Result<Response<Self::ExportEntriesStream>, Status> {
        self.call(request, async |broker, caller, message| {
            let (start, end) = (message.start, message.end);
            broker.audit_export(&caller, start, end).await?;
            let (sender, receiver) = mpsc::channel(BUNDLES);
            tokio::spawn(async move {
                if let Err(error) = export(&broker, Staying::new(caller), start..end, &sender).await
                {
                    // A reader that has left needs no error.
                    let _ = sender.send(Err(status(&error))).await;
                }
            });
            let stream: Self::ExportEntriesStream = Box::pin(ReceiverStream::new(receiver));
            Ok(stream)
        })
        .await
    }

    type TailAuditRecordsStream = Pin<Box<dyn Stream<Item = Result<AuditRecord, Status>> + Send>>;

    async fn tail_audit_records(
        &self,
        request: Request<TailAuditRecordsRequest>,
    ) -> Result<Response<Self::TailAuditRecordsStream>, Status> {
        self.call(request, async |broker, caller, message| {
            if !(0..=LINES_MAX).contains(&message.lines) {
                let wrong = Violation::new("lines", format!("0 to {LINES_MAX} records"));
                return Err(Error::Invalid(vec![wrong]));
            }
            let lines = u64::try_from(message.lines).unwrap_or(0);
            let (after, last) = broker.audit_tail(&caller, lines).await?;
            let (sender, receiver) = mpsc::channel(BUFFER);
            let mut tail = Tail {
                broker,
                staying: Staying::new(caller),
                sender,
            };
            let last = (!message.follow).then_some(last);
            tokio::spawn(async move { tail.send(after, last).await });
            let stream: Self::TailAuditRecordsStream = Box::pin(ReceiverStream::new(receiver));
            Ok(stream)
        })
        .await
    }
}

/// Sends the entries of `range`, bundle by bundle, until the reader leaves or loses its permission.
async fn export(
    broker: &Broker,
    mut staying: Staying,
    range: Range<u64>,
    sender: &mpsc::Sender<Result<EntryBundle, Status>>,
) -> Result<(), Error> {
    let mut start = range.start;
    while start < range.end {
        broker.look(&mut staying).await?;
        let bundle = if start < broker.store().log_start().await? {
            let roots = pruned_roots(broker, start, range.end).await?;
            start += roots.len() as u64 * BUNDLE;
            EntryBundle {
                entries: Vec::new(),
                pruned_roots: roots,
            }
        } else {
            let limit = (range.end - start).min(BUNDLE);
            let entries = broker.store().log_leaves(start, limit).await?;
            if entries.len() as u64 != limit {
                return Err(pruned_meanwhile());
            }
            start += limit;
            EntryBundle {
                entries,
                pruned_roots: Vec::new(),
            }
        };
        if sender.send(Ok(bundle)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn pruned_meanwhile() -> Error {
    Error::WrongState {
        subject: Subject::AuditLog,
        reason: "PRUNED_MEANWHILE",
        message: "records were pruned during the export".to_owned(),
        next: "export again, into an empty directory".to_owned(),
    }
}

/// Returns the roots of the pruned bundles from record `start` on, as far as one tile has them.
async fn pruned_roots(broker: &Broker, start: u64, size: u64) -> Result<Vec<Vec<u8>>, Error> {
    let (first, end) = (start / BUNDLE, broker.store().log_start().await? / BUNDLE);
    let tile = Tile {
        level: 1,
        index: first / BUNDLE,
    };
    let mut tiles = broker
        .store()
        .log_tiles(&BTreeSet::from([tile]), size)
        .await?;
    let roots = tiles.remove(&tile).unwrap_or_default().into_iter();
    let skipped = usize::try_from(first % BUNDLE).unwrap_or(usize::MAX);
    let count = usize::try_from(end - first).unwrap_or(usize::MAX);
    let roots: Vec<_> = roots
        .skip(skipped)
        .take(count)
        .map(|root| root.to_vec())
        .collect();
    if roots.is_empty() {
        return Err(Error::Internal(
            "the roots of pruned records are missing".to_owned(),
        ));
    }
    Ok(roots)
}

/// One reader that follows the end of the log.
struct Tail {
    broker: Arc<Broker>,
    staying: Staying,
    sender: mpsc::Sender<Result<AuditRecord, Status>>,
}

impl Tail {
    /// Sends the records after `after`, up to `last`; without `last`, also new records as they
    /// come. Stops when the reader leaves or loses its permission, or when the broker ends.
    async fn send(&mut self, mut after: u64, last: Option<u64>) {
        while last.is_none_or(|last| after < last) {
            match self.send_page(after, last).await {
                Ok(Some(seq)) => after = seq,
                Ok(None) => match self.wait().await {
                    Some(()) => {}
                    None => return,
                },
                Err(error) => {
                    // A reader that has left needs no error.
                    let _ = self.sender.send(Err(status(&error))).await;
                    return;
                }
            }
        }
    }

    /// Sends a page of records. Returns the last sequence number sent, if any.
    async fn send_page(&mut self, after: u64, last: Option<u64>) -> Result<Option<u64>, Error> {
        self.broker.look(&mut self.staying).await?;
        let page = PageRequest {
            after: Some(after.to_string()),
            limit: 1000,
        };
        let filter = AuditFilter::default();
        let records = self.broker.store().audit(&filter, &page).await?;
        let mut sent = None;
        for record in records {
            if last.is_some_and(|last| record.seq > last) {
                break;
            }
            sent = Some(record.seq);
            if self.sender.send(Ok(to_record(&record))).await.is_err() {
                break;
            }
        }
        Ok(sent)
    }

    /// Waits until the next look; `None` if the reader has left or the broker ends.
    async fn wait(&self) -> Option<()> {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => Some(()),
            () = self.sender.closed() => None,
            () = self.broker.until_stopped() => {
                let ending = Status::unavailable("the broker is ending");
                self.sender.send(Err(ending)).await.err().and(None)
            }
        }
    }
}
