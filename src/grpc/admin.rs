use std::{pin::Pin, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tonic::{
    Request, Response, Status,
    codegen::tokio_stream::{Stream, wrappers::ReceiverStream},
};

use super::{
    Api,
    convert::{Fields, parse, parse_role, to_duration, to_operator, to_time},
    pagination::{CreatedCursor, build_page, parse_page, part_of},
    revocation::to_sessions,
    status::status,
};
use crate::{
    broker::{self, StolenProgress},
    domain::{
        admin_key::Phase,
        approval::Approval,
        denial::{Denial, DenialState},
        name::Name,
        operator::Operator,
    },
    proto::{
        self, ApproveChangeRequest, CreateOperatorRequest, CreateOperatorResponse,
        DeleteOperatorRequest, DeleteOperatorResponse, GetAdminKeyRequest, GetStatusRequest,
        ImportAdminKeyRequest, ListApprovalsRequest, ListApprovalsResponse, ListOperatorsRequest,
        ListOperatorsResponse, OpenDenial, RejectChangeRequest, RejectChangeResponse,
        ReplaceStolenAdminKeyRequest, RotateAdminKeyRequest, StolenAdminKeyProgress,
        admin_service_server::AdminService,
        stolen_admin_key_progress::{Done, RevokedGrant, What},
    },
};

/// Progress of a replacement, as it happens.
type Replacing = Pin<Box<dyn Stream<Item = Result<StolenAdminKeyProgress, Status>> + Send>>;

/// Number of messages that wait for a slow reader.
const BUFFER: usize = 64;

/// Maximum number of open denials in an answer.
const OPEN_DENIALS_MAX: usize = 100;

#[tonic::async_trait]
impl AdminService for Api {
    async fn get_status(
        &self,
        request: Request<GetStatusRequest>,
    ) -> Result<Response<proto::Status>, Status> {
        self.call(request, async |broker, caller, _| {
            let status = broker.status(&caller).await?;
            let (admin_arn, aws_error) = match status.admin {
                Ok(arn) => (Some(arn), None),
                Err(failure) => (None, Some(failure.message)),
            };
            Ok(proto::Status {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                started_at: Some(to_time(status.started_at)),
                admin_arn,
                aws_error,
                region: status.region,
                services: status.counts.services,
                grants: status.counts.grants,
                live_leases: status.counts.live_leases,
                revoking_leases: status.counts.revoking_leases,
                audit_records: status.counts.audit_records,
                pending_leases: status.counts.pending_leases,
                quarantined_leases: status.counts.quarantined_leases,
                brokers: status.brokers,
                reconciliation: status.reconciliation.as_ref().map(to_reconciliation),
                denials: status.counts.open_denials + status.counts.refused_denials,
                open_denials: status
                    .open_denials
                    .iter()
                    .take(OPEN_DENIALS_MAX)
                    .map(to_open_denial)
                    .collect(),
                clock_uncertain: !status.clock_is_certain,
                unreadable_denials: status.unreadable_denials,
            })
        })
        .await
    }

    async fn create_operator(
        &self,
        request: Request<CreateOperatorRequest>,
    ) -> Result<Response<CreateOperatorResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let (name, role) = (parse("name", &message.name)?, parse_role(message.role)?);
            let new = broker.create_operator(&caller, name, role).await?;
            Ok(CreateOperatorResponse {
                operator: Some(to_operator(&new.operator)),
                token: new.token.text().expose_secret().to_owned(),
            })
        })
        .await
    }

    async fn list_operators(
        &self,
        request: Request<ListOperatorsRequest>,
    ) -> Result<Response<ListOperatorsResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let page = parse_page::<Name>(message.page_size, message.page_token)?;
            let key = |operator: &Operator| operator.name.clone();
            let operators = part_of(&page, broker.operators(&caller).await?, key);
            let (operators, next_page_token) = build_page(&page, &operators, 0, key, to_operator);
            Ok(ListOperatorsResponse {
                operators,
                next_page_token,
            })
        })
        .await
    }

    async fn delete_operator(
        &self,
        request: Request<DeleteOperatorRequest>,
    ) -> Result<Response<DeleteOperatorResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            broker
                .delete_operator(&caller, &parse("name", &message.name)?)
                .await?;
            Ok(DeleteOperatorResponse {})
        })
        .await
    }

    async fn get_admin_key(
        &self,
        request: Request<GetAdminKeyRequest>,
    ) -> Result<Response<proto::AdminKey>, Status> {
        self.call(request, async |broker, caller, _| {
            Ok(to_admin_key(&broker.admin_key_status(&caller).await?))
        })
        .await
    }

    async fn import_admin_key(
        &self,
        request: Request<ImportAdminKeyRequest>,
    ) -> Result<Response<proto::AdminKey>, Status> {
        self.call(request, async |broker, caller, message| {
            let secret = SecretString::from(message.secret_access_key);
            let mut fields = Fields::default();
            let id = fields.parse("access_key_id", &message.access_key_id);
            if !is_secret(secret.expose_secret()) {
                fields.add("secret_access_key", "a secret access key has 40 characters");
            }
            let id = fields.done(id)?;
            let imported = broker.import_admin_key(caller, id, secret).await?;
            Ok(to_admin_key(&imported))
        })
        .await
    }

    async fn list_approvals(
        &self,
        request: Request<ListApprovalsRequest>,
    ) -> Result<Response<ListApprovalsResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let page = parse_page::<CreatedCursor>(message.page_size, message.page_token)?;
            let key = |asked: &Approval| CreatedCursor::new(asked.requested_at, &asked.id);
            let approvals = part_of(&page, broker.approvals(&caller).await?, key);
            let (approvals, next_page_token) = build_page(&page, &approvals, 0, key, to_approval);
            Ok(ListApprovalsResponse {
                approvals,
                next_page_token,
            })
        })
        .await
    }

    async fn approve_change(
        &self,
        request: Request<ApproveChangeRequest>,
    ) -> Result<Response<proto::Approval>, Status> {
        self.call(request, async |broker, caller, message| {
            let id = parse("approval_id", &message.approval_id)?;
            Ok(to_approval(&broker.give_approval(&caller, &id).await?))
        })
        .await
    }

    async fn reject_change(
        &self,
        request: Request<RejectChangeRequest>,
    ) -> Result<Response<RejectChangeResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let id = parse("approval_id", &message.approval_id)?;
            broker.reject_approval(&caller, &id).await?;
            Ok(RejectChangeResponse {})
        })
        .await
    }

    async fn rotate_admin_key(
        &self,
        request: Request<RotateAdminKeyRequest>,
    ) -> Result<Response<proto::AdminKey>, Status> {
        self.call(request, async |broker, caller, _| {
            Ok(to_admin_key(&broker.rotate_admin_key(caller).await?))
        })
        .await
    }

    type ReplaceStolenAdminKeyStream = Replacing;

    async fn replace_stolen_admin_key(
        &self,
        request: Request<ReplaceStolenAdminKeyRequest>,
    ) -> Result<Response<Self::ReplaceStolenAdminKeyStream>, Status> {
        self.call(request, async |broker, caller, _| {
            let (sender, receiver) = mpsc::channel(BUFFER);
            tokio::spawn(async move {
                let (progress, happening) = mpsc::unbounded_channel();
                let work = broker.replace_stolen_admin_key(caller.clone(), progress);
                let (replaced, ()) = tokio::join!(work, forward(happening, &sender));
                let end = match broker.record_result(&caller, replaced).await {
                    Ok(replaced) => Ok(to_progress(What::Done(Done {
                        denied_before: Some(to_time(replaced.denied_before)),
                        confirmed: replaced.confirmed,
                        notice: replaced.notice.unwrap_or_default(),
                    }))),
                    Err(error) => Err(status(&error)),
                };
                // A reader that has left needs no end.
                let _ = sender.send(end).await;
            });
            let stream: Replacing = Box::pin(ReceiverStream::new(receiver));
            Ok(stream)
        })
        .await
    }
}

/// Sends the progress to the reader, until the reader leaves.
async fn forward(
    mut happening: UnboundedReceiver<StolenProgress>,
    sender: &mpsc::Sender<Result<StolenAdminKeyProgress, Status>>,
) {
    while let Some(progress) = happening.recv().await {
        let what = match progress {
            StolenProgress::Replaced(key) => What::Replaced(to_admin_key(&key)),
            StolenProgress::Denied(denied) => What::Sessions(to_sessions(&denied)),
            StolenProgress::Grant {
                grant,
                leases,
                confirmed,
            } => What::Grant(RevokedGrant {
                grant: grant.to_string(),
                leases: leases as u64,
                confirmed,
            }),
        };
        if sender.send(Ok(to_progress(what))).await.is_err() {
            return;
        }
    }
}

const fn to_progress(what: What) -> StolenAdminKeyProgress {
    StolenAdminKeyProgress { what: Some(what) }
}

fn to_approval(approval: &Approval) -> proto::Approval {
    let by = approval.approved_by.as_ref();
    proto::Approval {
        approval_id: approval.id.to_string(),
        summary: approval.change.to_string(),
        change: approval.change.to_json(),
        requested_by: approval.requested_by.name.to_string(),
        requested_at: Some(to_time(approval.requested_at)),
        expires_at: Some(to_time(approval.expires_at)),
        approved_by: by.map(|by| by.name.to_string()).unwrap_or_default(),
    }
}

/// Returns whether the text is one word of 16 to 256 characters. AWS's secrets have 40 today, but
/// AWS does not promise a length.
fn is_secret(text: &str) -> bool {
    (16..=256).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn to_admin_key(status: &broker::AdminKeyStatus) -> proto::AdminKey {
    let (arn, aws_error) = match &status.identity {
        Ok(arn) => (Some(arn.clone()), None),
        Err(failure) => (None, Some(failure.message.clone())),
    };
    let told = proto::AdminKey {
        arn,
        aws_error,
        rotates_at: status.rotates_at.map(to_time),
        ..proto::AdminKey::default()
    };
    let Some(kept) = &status.kept else {
        return told;
    };
    let phase = match kept.phase {
        Phase::Steady => proto::AdminKeyPhase::Steady,
        Phase::Creating => proto::AdminKeyPhase::Creating,
        Phase::Proving { .. } => proto::AdminKeyPhase::Proving,
        Phase::Grace { .. } => proto::AdminKeyPhase::Grace,
        Phase::Retiring { .. } => proto::AdminKeyPhase::Retiring,
    };
    let age = status.now.duration_since(kept.current.since);
    let others = kept.phase.others().iter();
    proto::AdminKey {
        phase: phase.into(),
        access_key_id: Some(kept.current.id.as_str().to_owned()),
        since: Some(to_time(kept.current.since)),
        phase_since: Some(to_time(kept.phase_since)),
        next_step_at: kept
            .due_at
            .filter(|_| kept.phase != Phase::Steady)
            .map(to_time),
        other_access_key_ids: others.map(|id| id.as_str().to_owned()).collect(),
        attempts: kept.attempts,
        failure: kept.failure.clone(),
        age: Some(to_duration(Duration::from_secs(
            u64::try_from(age.as_secs()).unwrap_or(0),
        ))),
        ..told
    }
}

/// Maximum number of names of one kind in an answer.
const TOLD_MAX: usize = 100;

fn to_reconciliation(found: &broker::Reconciliation) -> proto::Reconciliation {
    let told = |ids: &mut dyn Iterator<Item = String>| ids.take(TOLD_MAX).collect();
    proto::Reconciliation {
        time: Some(to_time(found.at)),
        users: found.users as u64,
        orphans_removed: found.orphans_removed as u64,
        keys_removed: found.keys_removed as u64,
        strangers: told(&mut found.strangers.iter().cloned()),
        failed: found.failed as u64,
        vanished_leases: told(&mut found.vanished.iter().map(ToString::to_string)),
    }
}

fn to_open_denial(denial: &Denial) -> OpenDenial {
    let failure = match &denial.state {
        DenialState::Open(attempts) => attempts.failure.clone(),
        DenialState::Refused { .. } => None,
    };
    OpenDenial {
        holder: denial.against.holder.to_string(),
        against: denial.against.to_string(),
        asked_at: Some(to_time(denial.asked_at)),
        failure: failure.unwrap_or_default(),
    }
}
