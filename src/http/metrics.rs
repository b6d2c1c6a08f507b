//! Endpoint `GET /metrics`, in the Prometheus text format, without login. Labels name no service,
//! grant or key; they do name the sinks of the audit log.

use std::{sync::OnceLock, time::Duration};

use axum::http::StatusCode;
use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::time::interval;

use crate::{
    broker::{
        Broker,
        ports::{StoreCounts, StoreError},
    },
    domain::admin_key::AdminKey,
};

/// Bucket bounds of every histogram in seconds.
const SECONDS: [f64; 12] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0,
];

/// Interval at which the gauges of the store are updated.
const EVERY: Duration = Duration::from_secs(5);

/// Returns the recorder of this process. The first call installs it.
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

/// Installs the recorder of this process.
pub fn install() {
    if recorder().is_none() {
        tracing::warn!("there are no metrics: another recorder is in place");
    }
}

/// Returns all metrics as text. Does not read the store, however often it is called.
pub(super) async fn render() -> Result<String, StatusCode> {
    let recorder = recorder().ok_or(StatusCode::NOT_FOUND)?;
    Ok(recorder.render())
}

/// Updates the gauges of the store and keeps the recorder's memory bounded, until cancelled.
pub async fn run_store_metrics(broker: &Broker) {
    let mut ticks = interval(EVERY);
    loop {
        ticks.tick().await;
        if let Err(error) = look(broker).await {
            tracing::warn!(%error, "the metrics of the store stay as they were");
        }
        if let Some(recorder) = recorder() {
            recorder.run_upkeep();
        }
    }
}

async fn look(broker: &Broker) -> Result<(), StoreError> {
    set(&broker.store().counts().await?);
    if let Some(key) = broker.store().admin_key().await? {
        set_admin_key(&key, broker);
    }
    Ok(())
}

fn set_admin_key(key: &AdminKey, broker: &Broker) {
    let age = broker.now().duration_since(key.current.since);
    gauge!("credbroker_admin_key_age_seconds").set(age.as_secs_f64());
    let failing = if key.failure.is_some() { 1.0 } else { 0.0 };
    gauge!("credbroker_admin_key_failing").set(failing);
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn set(counts: &StoreCounts) {
    let apart = counts.pending_leases + counts.revoking_leases + counts.quarantined_leases;
    for (state, leases) in [
        ("pending", counts.pending_leases),
        ("active", counts.live_leases.saturating_sub(apart)),
        ("revoking", counts.revoking_leases),
        ("quarantined", counts.quarantined_leases),
    ] {
        gauge!("credbroker_leases", "state" => state).set(leases as f64);
    }
    gauge!("credbroker_denials", "state" => "open").set(counts.open_denials as f64);
    gauge!("credbroker_denials", "state" => "refused").set(counts.refused_denials as f64);
    gauge!("credbroker_services").set(counts.services as f64);
    gauge!("credbroker_grants").set(counts.grants as f64);
    gauge!("credbroker_audit_records").set(counts.audit_records as f64);
}

fn describe() {
    describe_gauge!("credbroker_leases", "Leases that have not ended");
    describe_gauge!("credbroker_denials", "Denials of revoked sessions");
    describe_gauge!(
        "credbroker_clock_uncertain",
        "1 while AWS's answers do not agree on the time: nothing is issued"
    );
    describe_gauge!(
        "credbroker_tls_certificate_expires_at_seconds",
        Unit::Seconds,
        "When the certificate that the broker shows expires, Unix time"
    );
    describe_gauge!("credbroker_services", "Registered services");
    describe_gauge!("credbroker_grants", "Current grants");
    describe_gauge!("credbroker_audit_records", "Records in the audit log");
    describe_gauge!(
        "credbroker_admin_key_age_seconds",
        Unit::Seconds,
        "Age of the kept admin key"
    );
    describe_gauge!(
        "credbroker_admin_key_failing",
        "1 while the kept admin key's replacement fails, or cannot begin"
    );
    describe_gauge!(
        "credbroker_stranger_users",
        "IAM users under the broker's path that do not bear its mark"
    );
    describe_gauge!(
        "credbroker_vanished_leases",
        "Live leases whose user or key was removed by hand"
    );
    describe_gauge!(
        "credbroker_reconciliation_failures",
        "Users and leases that the last reconciliation could not put in order"
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
    describe_counter!(
        "credbroker_connections_refused_total",
        "Connections that were refused for their number"
    );
    describe_counter!(
        "credbroker_connections_offending_total",
        "Connections that were ended because of what their peers sent"
    );
    describe_counter!(
        "credbroker_calls_shed_total",
        "Calls that were refused since as many were worked on as may be"
    );
    describe_counter!(
        "credbroker_records_aggregated_total",
        "Refusals and reads that one audit record a minute counts"
    );
    describe_counter!(
        "credbroker_accept_errors_total",
        "Connections that could not be accepted"
    );
    describe_sinks();
    describe_witness();
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

fn describe_sinks() {
    describe_gauge!(
        "credbroker_audit_sink_lag_records",
        "Audit records that a sink has not taken yet"
    );
    describe_counter!(
        "credbroker_audit_sink_delivered_total",
        "Audit records that a sink has taken"
    );
    describe_counter!(
        "credbroker_audit_sink_failures_total",
        "Times that a sink did not take audit records, or that this could not be kept"
    );
}

fn describe_witness() {
    describe_gauge!(
        "credbroker_audit_witnessed_size",
        "Audit records that the witness has cosigned"
    );
    describe_counter!(
        "credbroker_audit_witness_failures_total",
        "Times that the witness did not cosign the audit log, or that this could not be kept"
    );
}
