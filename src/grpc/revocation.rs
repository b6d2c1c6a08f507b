use std::{pin::Pin, time::Duration};

use prost::Message;
use prost_types::Duration as ProtoDuration;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tonic::{
    Request, Response, Status,
    codegen::tokio_stream::{self, Stream, wrappers::ReceiverStream},
};

use super::{
    Api,
    audit_convert::to_receipt,
    convert::{parse, parse_reason, to_kind, to_state, to_time},
    pagination::SizeBudget,
    status::status,
};
use crate::{
    broker::{
        self, Broker, DenialOutcome, Error, Progress, Revocation, SeenEnd, ports::RevokeTarget,
    },
    domain::{access::Caller, grant::validate::Violation},
    proto::{
        RevocationProgress, RevokeGrantRequest, RevokeGrantResponse, RevokeServiceRequest,
        RevokeServiceResponse, RevokedLease, RevokedSessions, StreamRevocationRequest,
        revocation_progress::{Begun, Done, What},
        revocation_service_server::RevocationService,
        stream_revocation_request,
    },
};

/// Progress of a revocation, as it happens; the last message is the result.
pub(super) type Happening = Pin<Box<dyn Stream<Item = Result<RevocationProgress, Status>> + Send>>;

/// Number of messages that wait for a slow reader.
const BUFFER: usize = 64;
/// Longest time a stream stays open to wait for AWS to refuse the revoked credentials.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// Bytes of an answer that are reserved for the two counts of omitted entries.
const COUNTS_BYTES: usize = 32;

#[tonic::async_trait]
impl RevocationService for Api {
    async fn revoke_service(
        &self,
        request: Request<RevokeServiceRequest>,
    ) -> Result<Response<RevokeServiceResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let target = RevokeTarget::Service(parse("service", &message.service)?);
            let reason = parse_reason(&message.reason)?;
            let revocation = broker.revoke(caller, target, reason, None).await?;
            let answer = RevokeServiceResponse {
                service: message.service,
                suspended_at: Some(to_time(revocation.suspension.at)),
                confirmed: revocation.confirmed(),
                receipt: revocation.receipt.as_ref().map(to_receipt),
                notice: revocation.notice.clone().unwrap_or_default(),
                ..RevokeServiceResponse::default()
            };
            let told = ReportedRevocation::beside(&answer, &revocation);
            Ok(RevokeServiceResponse {
                leases: told.leases,
                sessions: told.sessions,
                omitted_leases: told.omitted_leases,
                omitted_sessions: told.omitted_sessions,
                ..answer
            })
        })
        .await
    }

    async fn revoke_grant(
        &self,
        request: Request<RevokeGrantRequest>,
    ) -> Result<Response<RevokeGrantResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let target = RevokeTarget::Grant(parse("grant", &message.grant)?);
            let reason = parse_reason(&message.reason)?;
            let revocation = broker.revoke(caller, target, reason, None).await?;
            let answer = RevokeGrantResponse {
                grant: message.grant,
                revoked_at: Some(to_time(revocation.suspension.at)),
                confirmed: revocation.confirmed(),
                receipt: revocation.receipt.as_ref().map(to_receipt),
                notice: revocation.notice.clone().unwrap_or_default(),
                ..RevokeGrantResponse::default()
            };
            let told = ReportedRevocation::beside(&answer, &revocation);
            Ok(RevokeGrantResponse {
                leases: told.leases,
                sessions: told.sessions,
                omitted_leases: told.omitted_leases,
                omitted_sessions: told.omitted_sessions,
                ..answer
            })
        })
        .await
    }

    type StreamRevocationStream = Happening;

    async fn stream_revocation(
        &self,
        request: Request<StreamRevocationRequest>,
    ) -> Result<Response<Self::StreamRevocationStream>, Status> {
        self.call(request, async |broker, caller, message| {
            if message.dry_run {
                return preview(&broker, &caller, message).await;
            }
            let target = parse_target(message.target)?;
            let reason = parse_reason(&message.reason)?;
            let wait = parse_wait(message.wait.as_ref())?;
            let (sender, receiver) = mpsc::channel(BUFFER);
            tokio::spawn(async move {
                let (progress, happening) = mpsc::unbounded_channel();
                let work = async {
                    let watcher = Some(progress.clone());
                    let revoking = broker.revoke(caller.clone(), target.clone(), reason, watcher);
                    let revocation = revoking.await?;
                    let waiting = broker.wait_until_refused(&target, revocation, wait, &progress);
                    let revocation = waiting.await;
                    drop(progress);
                    Ok::<_, Error>(revocation)
                };
                let (revocation, ()) = tokio::join!(work, forward(happening, &sender));
                let end = match broker.record_result(&caller, revocation).await {
                    Ok(revocation) => Ok(to_progress(to_done(&revocation))),
                    Err(error) => Err(status(&error)),
                };
                // A reader that has left needs no end.
                let _ = sender.send(end).await;
            });
            let stream: Happening = Box::pin(ReceiverStream::new(receiver));
            Ok(stream)
        })
        .await
    }
}

/// Returns what a revocation would affect, without revoking.
async fn preview(
    broker: &Broker,
    caller: &Caller,
    message: StreamRevocationRequest,
) -> Result<Happening, Error> {
    if !message.reason.is_empty() || message.wait.is_some() {
        let words = "takes neither reason nor wait";
        return Err(Error::Invalid(vec![Violation::new("dry_run", words)]));
    }
    let target = parse_target(message.target)?;
    let preview = broker.preview_revocation(caller, &target).await?;
    let begun = What::Begun(Begun {
        at: Some(to_time(preview.at)),
        leases: preview.leases.len() as u64,
    });
    let done = What::Done(Done {
        at: Some(to_time(preview.at)),
        ..Done::default()
    });
    let sessions = preview.denials.into_iter().map(|denial| {
        What::Sessions(to_sessions(&DenialOutcome {
            denial,
            refused_after_seconds: None,
            seen_by: None,
            notice: None,
        }))
    });
    let leases = preview.leases.into_iter().map(|lease| {
        What::Lease(to_revoked(&broker::RevokedLease {
            lease,
            seen: None,
            notice: None,
        }))
    });
    let all = std::iter::once(begun).chain(sessions).chain(leases);
    let all: Vec<_> = all
        .chain([done])
        .map(|what| Ok(to_progress(what)))
        .collect();
    Ok(Box::pin(tokio_stream::iter(all)))
}

fn parse_wait(wait: Option<&ProtoDuration>) -> Result<Duration, Error> {
    let Some(wait) = wait else {
        return Ok(Duration::ZERO);
    };
    let seconds = u64::try_from(wait.seconds).ok().filter(|_| wait.nanos == 0);
    let wait = seconds.map(Duration::from_secs);
    wait.filter(|wait| *wait <= LONGEST_WAIT).ok_or_else(|| {
        let words = "is a whole number of seconds, up to an hour";
        Error::Invalid(vec![Violation::new("wait", words)])
    })
}

fn parse_target(target: Option<stream_revocation_request::Target>) -> Result<RevokeTarget, Error> {
    match target {
        Some(stream_revocation_request::Target::Service(name)) => {
            parse("service", &name).map(RevokeTarget::Service)
        }
        Some(stream_revocation_request::Target::Grant(name)) => {
            parse("grant", &name).map(RevokeTarget::Grant)
        }
        None => {
            let message = "name a service or a grant";
            Err(Error::Invalid(vec![Violation::new("target", message)]))
        }
    }
}

/// Sends the progress to the reader, until the reader leaves.
async fn forward(
    mut happening: UnboundedReceiver<Progress>,
    sender: &mpsc::Sender<Result<RevocationProgress, Status>>,
) {
    while let Some(progress) = happening.recv().await {
        let what = match progress {
            Progress::Begun { suspension, leases } => What::Begun(Begun {
                at: Some(to_time(suspension.at)),
                leases: u64::try_from(leases).unwrap_or(u64::MAX),
            }),
            Progress::Written(denial) => What::Written(denial.against.holder.to_string()),
            Progress::Denied(denied) => What::Sessions(to_sessions(&denied)),
            Progress::Lease(lease) => What::Lease(to_revoked(&lease)),
        };
        if sender.send(Ok(to_progress(what))).await.is_err() {
            return;
        }
    }
}

const fn to_progress(what: What) -> RevocationProgress {
    RevocationProgress { what: Some(what) }
}

fn to_done(revocation: &Revocation) -> What {
    What::Done(Done {
        at: Some(to_time(revocation.suspension.at)),
        confirmed: revocation.confirmed(),
        receipt: revocation.receipt.as_ref().map(to_receipt),
        notice: revocation.notice.clone().unwrap_or_default(),
    })
}

/// Details of a revocation, as many as fit in one answer.
struct ReportedRevocation {
    leases: Vec<RevokedLease>,
    sessions: Vec<RevokedSessions>,
    omitted_leases: u64,
    omitted_sessions: u64,
}

impl ReportedRevocation {
    /// Selects the details that fit beside the rest of an answer. Leases without proof that AWS
    /// refuses them come first.
    fn beside(answer: &impl Message, revocation: &Revocation) -> Self {
        let mut room = SizeBudget::beside(answer.encoded_len() + COUNTS_BYTES);
        let all = revocation.denials.iter().map(to_sessions);
        let sessions: Vec<_> = all.take_while(|one| room.try_reserve(one)).collect();
        let all = &revocation.leases;
        let (refused, open): (Vec<_>, Vec<_>) = all.iter().partition(|lease| lease.seen.is_some());
        let leases = open.into_iter().chain(refused).map(to_revoked);
        let leases: Vec<_> = leases.take_while(|one| room.try_reserve(one)).collect();
        Self {
            omitted_leases: (all.len() - leases.len()) as u64,
            omitted_sessions: (revocation.denials.len() - sessions.len()) as u64,
            leases,
            sessions,
        }
    }
}

pub(super) fn to_sessions(denied: &DenialOutcome) -> RevokedSessions {
    RevokedSessions {
        holder: denied.denial.against.holder.to_string(),
        refused_after_seconds: denied.refused_after_seconds,
        notice: denied.notice.clone().unwrap_or_default(),
        denied_until: Some(to_time(denied.denial.lasts_until)),
        seen_by: denied.seen_by.clone().unwrap_or_default(),
    }
}

fn to_revoked(revoked: &broker::RevokedLease) -> RevokedLease {
    let binding = &revoked.lease.binding;
    RevokedLease {
        lease_id: binding.lease_id.to_string(),
        kind: to_kind(binding.kind).into(),
        state: to_state(&revoked.lease.state).into(),
        refused_after_seconds: revoked.seen.and_then(SeenEnd::refused_after_seconds),
        gone_after_seconds: revoked.seen.and_then(SeenEnd::gone_after_seconds),
        notice: revoked.notice.clone().unwrap_or_default(),
        expires_at: revoked
            .lease
            .issued()
            .map(|issued| to_time(issued.expires_at)),
    }
}
