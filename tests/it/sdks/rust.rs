//! SDK for Rust, in a process of its own: it reads its trust settings from the environment.

use std::io::{Write, stdin};

use serde_json::{Value, json};

/// Equivalent of the scripts in `tests/sdks`: for each line of standard input it calls AWS, and
/// prints the result.
#[tokio::test]
#[ignore = "the other tests start it in a process of its own"]
async fn rust_sdk_service_calls_aws_for_each_line() {
    let config = aws_config::load_from_env().await;
    let kms = aws_sdk_kms::Client::new(&config);
    let sts = aws_sdk_sts::Client::new(&config);
    for line in stdin().lines() {
        line.unwrap();
        let told = call(&kms, &sts).await;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{told}").unwrap();
    }
}

async fn call(kms: &aws_sdk_kms::Client, sts: &aws_sdk_sts::Client) -> Value {
    use aws_sdk_kms::error::DisplayErrorContext;
    if let Err(error) = kms.list_keys().send().await {
        return json!({"failed": DisplayErrorContext(error).to_string()});
    }
    let made = kms.create_key().send().await;
    let denied = made.map_or_else(
        |error| DisplayErrorContext(error).to_string(),
        |_| String::new(),
    );
    let identity = sts.get_caller_identity().send().await.unwrap();
    json!({"as": identity.arn, "denied": denied})
}
