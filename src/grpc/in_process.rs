//! Calls from within the process, for use without a listener. They are authenticated and admitted
//! like any other call.

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use tonic::{Request, Status};

use super::{Api, revocation::Happening, status::status};
use crate::{
    broker::Broker,
    domain::{
        access::Surface,
        principal::{Origin, PresentedCredentials},
    },
    proto::{StreamRevocationRequest, revocation_service_server::RevocationService},
};

/// A broker in this process, called with a bearer token.
pub struct InProcess {
    api: Api,
    token: SecretString,
}

impl InProcess {
    /// Creates the caller, without a call yet.
    #[must_use]
    pub fn new(broker: &Arc<Broker>, token: SecretString) -> Self {
        let api = Api {
            broker: Arc::clone(broker),
        };
        Self { api, token }
    }

    /// Calls `credbroker.v1.RevocationService/StreamRevocation`.
    ///
    /// # Errors
    /// The status that the same call over a connection would get.
    pub async fn stream_revocation(
        &self,
        message: StreamRevocationRequest,
    ) -> Result<Happening, Status> {
        let origin = Origin {
            peer: None,
            method: "credbroker.v1.RevocationService/StreamRevocation".to_owned(),
        };
        let header = SecretString::from(format!("Bearer {}", self.token.expose_secret()));
        let shown = PresentedCredentials {
            authorization: Some(header),
            ..PresentedCredentials::default()
        };
        let broker = &self.api.broker;
        let caller = async {
            let principal = broker.login(origin, &Arc::new(shown)).await?;
            broker.admit(principal, Surface::Whole).await
        };
        let caller = caller.await.map_err(|error| status(&error))?;
        let mut request = Request::new(message);
        request.extensions_mut().insert(caller);
        let answer = self.api.stream_revocation(request).await?;
        Ok(answer.into_inner())
    }
}
