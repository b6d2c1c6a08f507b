//! Clients of S3, SQS and DynamoDB for tests: the few calls that the tests make, signed, without an
//! SDK for each service. Such SDKs would take longer to build than all tests of them take to run.
//!
//! Signature:
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>.
//! Protocols: <https://smithy.io/2.0/aws/protocols/aws-json-1_0-protocol.html> and
//! <https://smithy.io/2.0/aws/protocols/aws-restxml-protocol.html>.

use std::time::{Duration, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{PayloadChecksumKind, SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4::SigningParams,
};
use axum::{
    body::{Body, to_bytes},
    http::Request,
};
use credbroker::domain::clock::wall_time;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::{Value, json};

use super::{Key, aws::REGION, emulator::emulator};

/// The output of a call, or the code of AWS's error.
pub type Answer = Result<Value, String>;

/// One HTTP request to a service.
struct Call<'a> {
    /// Name in a signature.
    service: &'static str,
    method: &'static str,
    path: String,
    headers: &'a [(&'static str, &'static str)],
    body: Vec<u8>,
}

impl Key {
    pub async fn create_bucket(&self, bucket: &str) -> Answer {
        self.s3("PUT", format!("/{bucket}"), b"").await
    }

    /// Reads the object `k`.
    pub async fn get_object(&self, bucket: &str) -> Answer {
        self.s3("GET", format!("/{bucket}/k"), b"").await
    }

    /// Writes the object `k`.
    pub async fn put_object(&self, bucket: &str, body: &[u8]) -> Answer {
        self.s3("PUT", format!("/{bucket}/k"), body).await
    }

    pub async fn list_queues(&self) -> Answer {
        self.sqs("AmazonSQS.ListQueues", &json!({})).await
    }

    /// Returns the queue's URL.
    pub async fn create_queue(&self, name: &str) -> Result<String, String> {
        let queue = json!({"QueueName": name});
        let made = self.sqs("AmazonSQS.CreateQueue", &queue).await?;
        Ok(made["QueueUrl"].as_str().unwrap().to_owned())
    }

    pub async fn send_message(&self, queue_url: &str) -> Answer {
        let message = json!({"QueueUrl": queue_url, "MessageBody": "m"});
        self.sqs("AmazonSQS.SendMessage", &message).await
    }

    pub async fn receive_message(&self, queue_url: &str) -> Answer {
        let queue = json!({"QueueUrl": queue_url});
        self.sqs("AmazonSQS.ReceiveMessage", &queue).await
    }

    /// Makes a table with the key `id`, a string.
    pub async fn create_table(&self, name: &str) -> Answer {
        let table = json!({
            "TableName": name, "BillingMode": "PAY_PER_REQUEST",
            "AttributeDefinitions": [{"AttributeName": "id", "AttributeType": "S"}],
            "KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}],
        });
        let target = "DynamoDB_20120810.CreateTable";
        self.dynamodb(target, &table).await
    }

    pub async fn get_item(&self, table: &str) -> Answer {
        let item = json!({"TableName": table, "Key": {"id": {"S": "1"}}});
        self.dynamodb("DynamoDB_20120810.GetItem", &item).await
    }

    pub async fn put_item(&self, table: &str) -> Answer {
        let item = json!({"TableName": table, "Item": {"id": {"S": "1"}}});
        self.dynamodb("DynamoDB_20120810.PutItem", &item).await
    }

    async fn s3(&self, method: &'static str, path: String, body: &[u8]) -> Answer {
        let call = Call {
            service: "s3",
            method,
            path,
            headers: &[],
            body: body.to_vec(),
        };
        call.send(self).await
    }

    async fn sqs(&self, target: &'static str, input: &Value) -> Answer {
        self.json("sqs", target, input).await
    }

    async fn dynamodb(&self, target: &'static str, input: &Value) -> Answer {
        self.json("dynamodb", target, input).await
    }

    async fn json(&self, service: &'static str, target: &'static str, input: &Value) -> Answer {
        let call = Call {
            service,
            method: "POST",
            path: "/".to_owned(),
            headers: &[
                ("content-type", "application/x-amz-json-1.0"),
                ("x-amz-target", target),
            ],
            body: input.to_string().into_bytes(),
        };
        call.send(self).await
    }
}

impl Call<'_> {
    async fn send(self, key: &Key) -> Answer {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let response = client.request(self.signed(key)).await.unwrap();
        let status = response.status();
        let body = Body::new(response.into_body());
        let body = to_bytes(body, usize::MAX).await.unwrap();
        if status.is_success() {
            return Ok(serde_json::from_slice(&body).unwrap_or_default());
        }
        Err(code(&String::from_utf8_lossy(&body)))
    }

    fn signed(&self, key: &Key) -> Request<Body> {
        let url = format!("{}{}", emulator().endpoint, self.path);
        let token = key.token.clone();
        let identity = Credentials::new(&key.id, &key.secret, token, None, "test").into();
        let now = Duration::from_secs(wall_time().as_second().unsigned_abs());
        let mut settings = SigningSettings::default();
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let params = SigningParams::builder()
            .identity(&identity)
            .region(REGION)
            .name(self.service)
            .time(UNIX_EPOCH + now)
            .settings(settings)
            .build()
            .unwrap()
            .into();
        let (headers, body) = (
            self.headers.iter().copied(),
            SignableBody::Bytes(&self.body),
        );
        let signable = SignableRequest::new(self.method, &url, headers, body).unwrap();
        let (signed, _) = sign(signable, &params).unwrap().into_parts();
        let mut request = Request::builder().method(self.method).uri(&url);
        for (name, value) in self.headers.iter().copied().chain(signed.headers()) {
            request = request.header(name, value);
        }
        request.body(Body::from(self.body.clone())).unwrap()
    }
}

/// The error code in a body of JSON or XML.
fn code(body: &str) -> String {
    if let Ok(error) = serde_json::from_str::<Value>(body)
        && let Some(code) = error["__type"].as_str()
    {
        return code.rsplit('#').next().unwrap_or_default().to_owned();
    }
    let code = body
        .split_once("<Code>")
        .and_then(|(_, rest)| rest.split_once("</Code>"));
    code.map_or_else(
        || format!("no error of AWS's: {body}"),
        |(code, _)| code.to_owned(),
    )
}
