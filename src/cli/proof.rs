//! `credbroker audit prove`, and the check of its files without a broker.

use std::{fs, path::PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::{
    checkpoint::unusable,
    error::CliError,
    output::{Format, Output},
};
use crate::{
    audit::{leaf, note::Verifier, proof::InclusionProof},
    client::Client,
    proto::{self, ProveLeaseRequest},
};

#[derive(Args, Debug)]
pub(super) struct Prove {
    /// Id of the lease whose records are proven.
    lease_id: String,
    /// Directory for the files: LEASE.SEQ.tlog-proof for each record.
    #[arg(default_value = ".")]
    dir: PathBuf,
}

impl Prove {
    pub(super) async fn run(self, client: &Client, out: &mut Output) -> Result<(), CliError> {
        fs::create_dir_all(&self.dir).map_err(|error| unusable(&self.dir, &error))?;
        let mut page_token = String::new();
        loop {
            page_token = self.page(client, page_token, out).await?;
            if page_token.is_empty() {
                return Ok(());
            }
        }
    }

    /// Writes a page of proofs. Returns the token of the next page.
    async fn page(
        &self,
        client: &Client,
        page_token: String,
        out: &mut Output,
    ) -> Result<String, CliError> {
        let request = ProveLeaseRequest {
            lease_id: self.lease_id.clone(),
            page_size: 0,
            page_token,
        };
        let proven = client.audit().prove_lease(request).await?.into_inner();
        let signed = proven.checkpoint.unwrap_or_default();
        let key: Verifier = signed.verifier_key.parse().map_err(|error| {
            CliError::unexpected(format!("the broker's key of the log: {error}"))
        })?;
        for proof in proven.proofs {
            let proof = taken(proof, &signed.note)?;
            let checked = proof.verify(std::slice::from_ref(&key));
            checked.map_err(|error| CliError::verification(error.to_string()))?;
            let name = format!("{}.{}.tlog-proof", self.lease_id, proof.index + 1);
            let path = self.dir.join(name);
            fs::write(&path, proof.text()).map_err(|error| unusable(&path, &error))?;
            out.entry(&json!({ "file": path }), &path.display().to_string())?;
        }
        Ok(proven.next_page_token)
    }
}

fn taken(proof: proto::InclusionProof, note: &str) -> Result<InclusionProof, CliError> {
    let hashes = proof.hashes.into_iter().map(TryInto::try_into);
    let hashes: Result<Vec<_>, _> = hashes.collect();
    Ok(InclusionProof {
        leaf: proof.leaf,
        index: proof.index,
        hashes: hashes.map_err(|_| CliError::unexpected("the broker sent a proof that is none"))?,
        checkpoint: note.to_owned(),
    })
}

/// Checks a proof and shows its record.
pub(super) fn verify(text: &str, key: &Verifier, out: &mut Output) -> Result<(), CliError> {
    let failed = |what: String| CliError::verification(what);
    let proof = InclusionProof::parse(text).map_err(|error| failed(error.to_string()))?;
    let checkpoint = proof
        .verify(std::slice::from_ref(key))
        .map_err(|error| failed(error.to_string()))?;
    let record = leaf::decode(&proof.leaf).map_err(|error| failed(error.to_string()))?;
    if checkpoint.origin != key.name() || record.seq != proof.index + 1 {
        return Err(failed("the proof is of another log".to_owned()));
    }
    let record: Value = serde_json::from_slice(&proof.leaf)
        .map_err(|error| CliError::unexpected(error.to_string()))?;
    if out.format() == Format::Json {
        let size = checkpoint.size;
        return Ok(out.show(&json!({ "record": record, "size": size, "log": key.name() }))?);
    }
    out.line(&record.to_string())?;
    let (number, size) = (proof.index + 1, checkpoint.size);
    Ok(out.line(&format!(
        "record {number} of {size}, as signed by {}",
        key.name()
    ))?)
}
