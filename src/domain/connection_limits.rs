//! Bounds on the use of the listener by its peers, in number and in time.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

/// Bounds that apply to every peer. The defaults suit a broker of some hundred services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections in total.
    pub connections: usize,
    /// Connections from one address, or from one /64 of IPv6.
    pub connections_per_address: usize,
    /// Connections of one service.
    pub connections_per_service: usize,
    /// TLS handshakes in progress at a time.
    pub handshakes: usize,
    /// Calls of services in progress at a time. Operators have slots of their own.
    pub calls: usize,
    /// Calls of one service in progress at a time.
    pub calls_per_service: usize,
    /// Calls over one connection in progress at a time.
    pub calls_per_connection: usize,
    /// HTTP/2 streams of one connection.
    pub streams: u32,
    /// Streams that the broker may reset because of a peer's errors (RUSTSEC-2024-0003).
    pub resets: usize,
    /// Streams that a peer may reset before the broker has accepted them (CVE-2023-44487).
    pub pending_resets: usize,
    /// Largest frame that the broker accepts, bytes; at least 16,384 (RFC 9113 section 4.2).
    pub frame_bytes: u32,
    /// Bytes that a peer may send on a stream before the broker has read them; at least 65,535, the
    /// initial window of HTTP/2 (RFC 9113 section 6.9.2).
    pub stream_window_bytes: u32,
    /// Bytes that a peer may send on a connection before the broker has read them, with the same
    /// minimum as [`stream_window_bytes`](Self::stream_window_bytes).
    pub connection_window_bytes: u32,
    /// Size of a request's headers, bytes.
    pub header_bytes: u32,
    /// Size of a request's message, bytes. The largest field is a policy document.
    pub message_bytes: usize,
    /// Time from the connection to the end of the TLS handshake.
    pub handshake_timeout: Duration,
    /// Time from the TLS handshake until the first request has arrived with all its headers.
    pub first_request_timeout: Duration,
    /// Time from a request's headers until the whole request has arrived.
    pub body_timeout: Duration,
    /// Time for a call. A call that waits until AWS enforces a change has 30 seconds more.
    pub call_timeout: Duration,
    /// Time that each message of a response may wait until the peer reads it.
    pub answer_timeout: Duration,
    /// Interval of the keepalive pings on a silent connection.
    pub keepalive_interval: Duration,
    /// Time for the answer to a keepalive ping.
    pub keepalive_timeout: Duration,
    /// Age at which a connection ends, plus or minus a tenth, so that clients spread over replicas.
    pub connection_age: Duration,
    /// Time for running calls to end on a connection that has reached its age.
    pub age_grace: Duration,
    /// Time that a broker still serves after the signal to stop. It reports that it is unready, so
    /// that no new clients are sent to it.
    pub shutdown_delay: Duration,
    /// Time for running calls to end after that delay.
    pub drain_timeout: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_address: 64,
            connections_per_service: 32,
            handshakes: 256,
            calls: 1024,
            calls_per_service: 128,
            calls_per_connection: 32,
            streams: 64,
            resets: 128,
            pending_resets: 20,
            frame_bytes: 16 * 1024,
            stream_window_bytes: 64 * 1024,
            connection_window_bytes: 256 * 1024,
            header_bytes: 8 * 1024,
            message_bytes: 64 * 1024,
            handshake_timeout: Duration::from_secs(5),
            first_request_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(8),
            call_timeout: Duration::from_secs(20),
            answer_timeout: Duration::from_secs(8),
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(10),
            connection_age: Duration::from_mins(30),
            age_grace: Duration::from_secs(30),
            shutdown_delay: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(20),
        }
    }
}

/// Returns the address that bounds on a peer apply to: the address itself, or its /64 for IPv6,
/// because one machine has a whole /64 (RFC 4291 section 2.5.4).
#[must_use]
pub fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_64_is_one_site() {
        let site = |text: &str| site(text.parse().unwrap());
        assert_eq!(site("2001:db8:1:2::3"), site("2001:db8:1:2:ffff::9"));
        assert_ne!(site("2001:db8:1:2::3"), site("2001:db8:1:3::3"));
        assert_eq!(site("::ffff:192.0.2.1"), site("192.0.2.1"));
        assert_ne!(site("192.0.2.1"), site("192.0.2.2"));
    }
}
