//! The sealing key, if KMS protects it.
//! <https://docs.aws.amazon.com/kms/latest/APIReference/API_Decrypt.html>

use aws_config::{BehaviorVersion, Region};
use aws_smithy_types::Blob;
use secrecy::SecretSlice;

use super::error::{failure, incomplete, on};
use crate::broker::ports::AwsFailure;

/// Encryption context that a ciphertext must have.
const CONTEXT: (&str, &str) = ("purpose", "credbroker-sealing-key");

/// Decrypts `ciphertext` by KMS in `region`, with the credentials of the standard AWS chain.
///
/// # Errors
/// AWS does not answer, or refuses.
pub async fn decrypt(region: &str, ciphertext: Vec<u8>) -> Result<SecretSlice<u8>, AwsFailure> {
    let region = Region::new(region.to_owned());
    let loader = aws_config::defaults(BehaviorVersion::latest()).region(region.clone());
    let kms = aws_sdk_kms::Client::new(&loader.load().await);
    let call = kms
        .decrypt()
        .ciphertext_blob(Blob::new(ciphertext))
        .encryption_context(CONTEXT.0, CONTEXT.1);
    let answer = Box::pin(call.send()).await;
    let answer = answer.map_err(|error| failure(&on("kms:Decrypt", region.as_ref()), &error))?;
    let plain = answer.plaintext.map(Blob::into_inner);
    plain
        .map(SecretSlice::from)
        .ok_or_else(|| incomplete("KMS answered without a plaintext"))
}
