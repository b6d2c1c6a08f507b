//! `[listen]` and `[bounds]`: addresses to listen on, and limits of clients.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use super::{Lifetime, Reader};
use crate::domain::connection_limits::ConnectionLimits;

/// Smallest frame size limit that HTTP/2 allows, bytes: RFC 9113 section 4.2.
const FRAME_LEAST: u32 = 16_384;
/// Smallest flow-control window, bytes. RFC 9113 section 6.9.2: a client may send this much before
/// it has read any setting.
const WINDOW_LEAST: u32 = 65_535;

/// Addresses to listen on, and limits of connections and calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Address and port.
    pub address: SocketAddr,
    /// Address for operators, who are then served only there; `None` to serve them at `address`.
    pub admin_address: Option<SocketAddr>,
    /// Certificate chain, PEM, the server's first.
    pub tls_cert_file: PathBuf,
    /// Private key of the certificate, PEM.
    pub tls_key_file: PathBuf,
    /// Limits of connections and calls.
    pub bounds: ConnectionLimits,
}

pub(super) fn read(reader: &mut Reader) -> Option<Listen> {
    let address = reader.required("listen", "address");
    let admin_address = reader.optional("listen", "admin_address");
    let tls_cert_file = reader.required("listen", "tls_cert_file");
    let tls_key_file = reader.required("listen", "tls_key_file");
    let bounds = bounds(reader);
    Some(Listen {
        address: address?,
        admin_address,
        tls_cert_file: tls_cert_file?,
        tls_key_file: tls_key_file?,
        bounds,
    })
}

fn bounds(reader: &mut Reader) -> ConnectionLimits {
    let mut bounds = ConnectionLimits::default();
    for (key, bound) in [
        ("connections", &mut bounds.connections),
        (
            "connections_per_address",
            &mut bounds.connections_per_address,
        ),
        (
            "connections_per_service",
            &mut bounds.connections_per_service,
        ),
        ("handshakes", &mut bounds.handshakes),
        ("calls", &mut bounds.calls),
        ("calls_per_service", &mut bounds.calls_per_service),
        ("calls_per_connection", &mut bounds.calls_per_connection),
        ("resets", &mut bounds.resets),
        ("pending_resets", &mut bounds.pending_resets),
        ("message_bytes", &mut bounds.message_bytes),
    ] {
        let number = reader.number("bounds", key);
        *bound = number
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(*bound);
    }
    for (key, least, bound) in [
        ("streams", 1, &mut bounds.streams),
        ("header_bytes", 1, &mut bounds.header_bytes),
        ("frame_bytes", FRAME_LEAST, &mut bounds.frame_bytes),
        (
            "stream_window_bytes",
            WINDOW_LEAST,
            &mut bounds.stream_window_bytes,
        ),
        (
            "connection_window_bytes",
            WINDOW_LEAST,
            &mut bounds.connection_window_bytes,
        ),
    ] {
        *bound = reader.number("bounds", key).unwrap_or(*bound);
        if *bound < least {
            let message = format!("must be {least} or more: HTTP/2 allows no less");
            reader.wrong(&format!("bounds.{key}"), &message);
        }
    }
    for (key, bound) in [
        ("handshake_timeout", &mut bounds.handshake_timeout),
        ("first_request_timeout", &mut bounds.first_request_timeout),
        ("body_timeout", &mut bounds.body_timeout),
        ("call_timeout", &mut bounds.call_timeout),
        ("answer_timeout", &mut bounds.answer_timeout),
        ("keepalive_interval", &mut bounds.keepalive_interval),
        ("keepalive_timeout", &mut bounds.keepalive_timeout),
        ("connection_age", &mut bounds.connection_age),
        ("age_grace", &mut bounds.age_grace),
        ("drain_timeout", &mut bounds.drain_timeout),
    ] {
        *bound = time(reader, key).unwrap_or(*bound);
        if bound.is_zero() {
            reader.wrong(&format!("bounds.{key}"), "must be a second or more");
        }
    }
    bounds.shutdown_delay = time(reader, "shutdown_delay").unwrap_or(bounds.shutdown_delay);
    bounds
}

fn time(reader: &mut Reader, key: &str) -> Option<Duration> {
    let time: Option<Lifetime> = reader.optional("bounds", key);
    time.map(|Lifetime(time)| time)
}
