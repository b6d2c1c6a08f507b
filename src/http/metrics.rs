//! `GET /metrics`, in Prometheus' text format. Anybody may ask: no label names a
//! service, a grant or a key.

use std::sync::OnceLock;

use axum::http::StatusCode;
use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::broker::{Broker, ports::Counts};

/// Bounds of the buckets of every histogram of seconds.
const SECONDS: [f64; 12] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0,
];

/// The recorder of this process: the first who asks installs it.
fn recorder() -> Option<&'static PrometheusHandle> {
    static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    let installed = RECORDER.get_or_init(|| {
        let suffix = Matcher::Suffix("_seconds".to_owned());
        let builder = PrometheusBuilder::new().set_buckets_for_metric(suffix, &SECONDS);
        let handle = builder.ok()?.install_recorder().ok()?;
        describe();
        Some(handle)
    });
    installed.as_ref()
}

/// Begins to count.
pub(super) fn install() {
    if recorder().is_none() {
        tracing::warn!("there are no metrics: another recorder is in place");
    }
}

/// Everything counted so far, and how much there is of what.
pub(super) async fn render(broker: &Broker) -> Result<String, StatusCode> {
    let recorder = recorder().ok_or(StatusCode::NOT_FOUND)?;
    let counts = broker.store().counts().await;
    set(&counts.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?);
    recorder.run_upkeep();
    Ok(recorder.render())
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn set(counts: &Counts) {
    let apart = counts.pending_leases + counts.revoking_leases + counts.quarantined_leases;
    for (state, leases) in [
        ("pending", counts.pending_leases),
        ("active", counts.live_leases.saturating_sub(apart)),
        ("revoking", counts.revoking_leases),
        ("quarantined", counts.quarantined_leases),
    ] {
        gauge!("credbroker_leases", "state" => state).set(leases as f64);
    }
    gauge!("credbroker_services").set(counts.services as f64);
    gauge!("credbroker_grants").set(counts.grants as f64);
    gauge!("credbroker_audit_records").set(counts.audit_records as f64);
}

fn describe() {
    describe_gauge!("credbroker_leases", "Leases that have not ended");
    describe_gauge!("credbroker_services", "Registered services");
    describe_gauge!("credbroker_grants", "Current grants");
    describe_gauge!("credbroker_audit_records", "Records in the audit log");
    describe_gauge!(
        "credbroker_stranger_users",
        "IAM users under the broker's path that do not bear its mark"
    );
    describe_gauge!(
        "credbroker_vanished_leases",
        "Live leases whose user or key somebody else has removed"
    );
    describe_counter!("credbroker_leases_issued_total", "Credentials handed out");
    describe_counter!("credbroker_aws_calls_total", "Calls to AWS");
    describe_counter!(
        "credbroker_aws_circuit_opened_total",
        "Times that issuing paused because AWS did not answer"
    );
    describe_counter!(
        "credbroker_orphans_removed_total",
        "IAM users removed because no live lease knew them"
    );
    describe_counter!(
        "credbroker_unknown_keys_removed_total",
        "Access keys removed because no lease knew them"
    );
    describe_histogram!(
        "credbroker_aws_call_seconds",
        Unit::Seconds,
        "How long AWS took to answer, repetitions included"
    );
    describe_histogram!(
        "credbroker_key_acceptance_seconds",
        Unit::Seconds,
        "How long AWS took to accept a new access key"
    );
}
