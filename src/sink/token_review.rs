//! TokenReview: asks a Kubernetes cluster whether a token is still valid.
//! <https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/>

use std::{path::PathBuf, time::Duration};

use async_trait::async_trait;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use super::{Server, https_client::refused};
use crate::broker::ports::TokenReviewer;

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// Longest time of a review, since a caller waits for it.
const LIMIT: Duration = Duration::from_secs(3);

/// The API server of a cluster.
pub struct TokenReview {
    server: Server,
    token_file: PathBuf,
}

#[derive(Deserialize)]
struct ReviewResponse {
    status: Status,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    authenticated: bool,
    #[serde(default)]
    audiences: Vec<String>,
}

impl TokenReview {
    /// Creates a reviewer that asks this server with the token in a file. The file is read for each
    /// request, since the token may be renewed there.
    #[must_use]
    pub const fn new(server: Server, token_file: PathBuf) -> Self {
        Self { server, token_file }
    }

    async fn ask(&self, token: &str, audiences: &[String]) -> Result<Status, String> {
        let own = tokio::fs::read_to_string(&self.token_file).await;
        let own = own.map_err(|error| format!("{}: {error}", self.token_file.display()))?;
        let own = SecretString::from(own);
        let bearer = format!("Bearer {}", own.expose_secret().trim());
        let mut bearer = HeaderValue::try_from(bearer).map_err(|error| error.to_string())?;
        bearer.set_sensitive(true);
        let json = HeaderValue::from_static("application/json");
        let asked = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": audiences},
        });
        let headers = [(AUTHORIZATION, bearer), (CONTENT_TYPE, json)];
        let answer = self.server.post(PATH, &headers, asked.to_string()).await;
        let answer = answer.map_err(|error| error.to_string())?;
        if !answer.status().is_success() {
            return Err(refused(answer.status()).to_string());
        }
        let text = answer.text().await.map_err(|error| error.to_string())?;
        let answer: ReviewResponse =
            serde_json::from_str(&text).map_err(|error| error.to_string())?;
        Ok(answer.status)
    }
}

#[async_trait]
impl TokenReviewer for TokenReview {
    async fn stands_by(&self, token: &str, audiences: &[String]) -> Result<bool, String> {
        let asked = timeout(LIMIT, self.ask(token, audiences)).await;
        let status = asked.map_err(|_| "it does not answer".to_owned())??;
        // A server that does not know audiences returns none, and has not checked them.
        let is_ours = |audience: &String| audiences.contains(audience);
        Ok(status.authenticated && status.audiences.iter().any(is_ours))
    }
}
