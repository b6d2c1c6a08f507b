use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tonic::{
    Request, Response, Status,
    codegen::tokio_stream::{Stream, wrappers::ReceiverStream},
};

use super::{
    Api,
    convert::{next_page, parse_page, parse_time, to_record},
    status::status,
};
use crate::{
    broker::{
        Broker, Error,
        ports::{AuditFilter, Page},
    },
    domain::grant::check::Violation,
    proto::{
        AuditRecord, ListAuditRecordsRequest, ListAuditRecordsResponse, TailAuditRecordsRequest,
        audit_service_server::AuditService,
    },
};

/// How often a follower looks for new records; the question costs one indexed read.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const LINES_MAX: i32 = 1000;
/// How many records wait for a slow follower.
const BUFFER: usize = 64;

#[tonic::async_trait]
impl AuditService for Api {
    async fn list_audit_records(
        &self,
        request: Request<ListAuditRecordsRequest>,
    ) -> Result<Response<ListAuditRecordsResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let filled = |text: String| (!text.is_empty()).then_some(text);
            let filter = AuditFilter {
                since: parse_time("since", message.since.as_ref())?,
                until: parse_time("until", message.until.as_ref())?,
                service: filled(message.service),
                grant: filled(message.grant),
                lease_id: filled(message.lease_id),
                access_key_id: filled(message.access_key_id),
                actor: filled(message.actor),
                event: filled(message.event),
                outcome: filled(message.outcome),
            };
            let page = parse_page(message.page_size, message.page_token)?;
            let records = broker.audit(&caller, &filter, &page).await?;
            Ok(ListAuditRecordsResponse {
                next_page_token: next_page(&page, &records, |record| record.seq.to_string()),
                records: records.iter().map(to_record).collect(),
            })
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
            let after = broker.audit_tail(&caller, lines).await?;
            let (sender, receiver) = mpsc::channel(BUFFER);
            tokio::spawn(send_records(broker, after, message.follow, sender));
            let stream: Self::TailAuditRecordsStream = Box::pin(ReceiverStream::new(receiver));
            Ok(stream)
        })
        .await
    }
}

type Sender = mpsc::Sender<Result<AuditRecord, Status>>;

/// Sends what is there, then, for a follower, what comes, until the follower leaves.
async fn send_records(broker: Arc<Broker>, mut after: u64, follow: bool, sender: Sender) {
    loop {
        let page = Page {
            after: Some(after.to_string()),
            limit: 1000,
        };
        let records = match broker.store().audit(&AuditFilter::default(), &page).await {
            Ok(records) => records,
            Err(error) => {
                let _ = sender.send(Err(status(&error.into()))).await;
                return;
            }
        };
        let caught_up = records.is_empty();
        for record in records {
            after = record.seq;
            if sender.send(Ok(to_record(&record))).await.is_err() {
                return;
            }
        }
        if caught_up && !follow {
            return;
        }
        if caught_up {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = sender.closed() => return,
            }
        }
    }
}
