//! Streams that notify callers: of revocations, and of their next credentials.

use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc::{Sender, channel},
    time::interval,
};
use tonic::{
    Status,
    codegen::tokio_stream::{Stream, wrappers::ReceiverStream},
};

use super::{convert::parse, credentials::to_issued, status::status};
use crate::{
    broker::{Broker, CredentialUpdate, Error, Staying, Subscription, Watch},
    domain::{access::Caller, denial::Scope, grant::validate::Violation, name::LeaseId},
    proto::{
        RevocationNotice, WatchCredentialsResponse, revocation_notice::What,
        watch_credentials_response,
    },
};

/// Maximum number of leases that a caller may ask about when it begins to watch.
const HELD_MAX: usize = 1000;
/// Interval at which a watcher's permission is checked.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Number of messages that wait for a slow reader.
const BUFFER: usize = 64;

/// A stream of messages.
pub(super) type NoticeStream<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

pub(super) fn parse_leases(ids: &[String]) -> Result<Vec<LeaseId>, Error> {
    if ids.len() > HELD_MAX {
        let wrong = Violation::new("lease_ids", format!("up to {HELD_MAX} of them"));
        return Err(Error::Invalid(vec![wrong]));
    }
    ids.iter().map(|id| parse("lease_ids", id)).collect()
}

/// Returns the stream that notifies a service of its revocations.
pub(super) fn notices(
    broker: Arc<Broker>,
    caller: Caller,
    watch: Watch,
) -> NoticeStream<RevocationNotice> {
    stream_of(async move |sender| notify(&broker, Staying::new(caller), watch, &sender).await)
}

/// Returns the stream that sends a service its next credentials of a grant, and their revocation.
pub(super) fn follow(
    broker: Arc<Broker>,
    mut following: Subscription,
) -> NoticeStream<WatchCredentialsResponse> {
    stream_of(async move |sender| {
        loop {
            let followed = tokio::select! {
                () = sender.closed() => return Ok(()),
                followed = broker.next_update(&mut following) => followed?,
            };
            let Some(followed) = followed else {
                return Ok(());
            };
            if sender.send(Ok(to_followed(&followed))).await.is_err() {
                return Ok(());
            }
        }
    })
}

/// Returns the stream of the messages that `tell` sends, and of the error that it ends with.
fn stream_of<M, F>(tell: impl FnOnce(Sender<Result<M, Status>>) -> F) -> NoticeStream<M>
where
    M: Send + 'static,
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    let (sender, receiver) = channel(BUFFER);
    let telling = tell(sender.clone());
    tokio::spawn(async move {
        if let Err(error) = telling.await {
            // A reader that has left needs no error.
            let _ = sender.send(Err(status(&error))).await;
        }
    });
    Box::pin(ReceiverStream::new(receiver))
}

/// Notifies a service of its revocations until the service leaves or loses its permission.
async fn notify(
    broker: &Broker,
    mut staying: Staying,
    mut watch: Watch,
    sender: &Sender<Result<RevocationNotice, Status>>,
) -> Result<(), Error> {
    for id in std::mem::take(&mut watch.over) {
        if sender
            .send(Ok(to_notice(What::LeaseId(id.to_string()))))
            .await
            .is_err()
        {
            return Ok(());
        }
    }
    let mut looks = interval(LOOK_EVERY);
    loop {
        let ended = tokio::select! {
            () = sender.closed() => return Ok(()),
            () = broker.until_stopped() => return Ok(()),
            _ = looks.tick() => {
                broker.look(&mut staying).await?;
                continue;
            }
            ended = watch.news.recv() => ended.map_err(|_| Error::watcher_too_slow())?,
        };
        if ended.service != watch.service {
            continue;
        }
        let what = match &ended.scope {
            Scope::Everyone | Scope::Service => What::Everything(true),
            Scope::Grant(grant) => What::Grant(format!("{}/{grant}", ended.service)),
            Scope::Lease(id) => What::LeaseId(id.to_string()),
        };
        if sender.send(Ok(to_notice(what))).await.is_err() {
            return Ok(());
        }
        broker.look(&mut staying).await?;
    }
}

const fn to_notice(what: What) -> RevocationNotice {
    RevocationNotice { what: Some(what) }
}

fn to_followed(followed: &CredentialUpdate) -> WatchCredentialsResponse {
    use watch_credentials_response::What;
    let what = match followed {
        CredentialUpdate::Issued(issued) => What::Issued(to_issued(issued)),
        CredentialUpdate::Revoked => What::Revoked(true),
    };
    WatchCredentialsResponse { what: Some(what) }
}
