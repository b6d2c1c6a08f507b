//! A witness over HTTPS. <https://c2sp.org/tlog-witness>

use async_trait::async_trait;
use hyper::{StatusCode, header::CONTENT_TYPE};

use super::{Server, https_client::HttpResponse};
use crate::{
    audit::note::WitnessKey,
    broker::ports::{SinkError, Witness, WitnessAnswer},
};

/// A witness that is reached over HTTPS.
pub struct HttpsWitness {
    key: WitnessKey,
    server: Server,
    path: String,
}

impl HttpsWitness {
    /// Creates the witness of this key, with the submission prefix `prefix` on this server.
    #[must_use]
    pub fn new(key: WitnessKey, server: Server, prefix: &str) -> Self {
        let path = format!("{prefix}/add-checkpoint");
        Self { key, server, path }
    }
}

#[async_trait]
impl Witness for HttpsWitness {
    fn key(&self) -> &WitnessKey {
        &self.key
    }

    async fn add_checkpoint(&self, body: String) -> Result<WitnessAnswer, SinkError> {
        let answer = self.server.post(&self.path, &[], body).await?;
        Ok(match answer.status() {
            StatusCode::OK => WitnessAnswer::Cosigned(answer.text().await?),
            StatusCode::CONFLICT => WitnessAnswer::Conflict(size(answer).await?),
            StatusCode::UNPROCESSABLE_ENTITY => WitnessAnswer::Inconsistent,
            other => WitnessAnswer::Refused(other.as_u16()),
        })
    }
}

/// Returns the size in an answer, if the answer is valid: one number in its canonical form, and a
/// line feed.
async fn size(answer: HttpResponse) -> Result<Option<u64>, SinkError> {
    let kind = answer.headers().get(CONTENT_TYPE);
    if kind.is_none_or(|kind| kind.as_bytes() != b"text/x.tlog.size") {
        return Ok(None);
    }
    let text = answer.text().await?;
    let size = text.strip_suffix('\n').and_then(|text| text.parse().ok());
    Ok(size.filter(|size: &u64| format!("{size}\n") == text))
}
