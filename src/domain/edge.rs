//! What a peer may hold of the listener, and for how long.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

/// Bounds on peers, whoever they are. The defaults suit a broker of some hundred services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Connections, in all.
    pub connections: usize,
    /// Connections from one address; of IPv6, from one /64.
    pub connections_per_address: usize,
    /// Connections of one service.
    pub connections_per_service: usize,
    /// TLS handshakes that go on at a time.
    pub handshakes: usize,
    /// Calls of services that are worked on at a time. Operators have slots of their own.
    pub calls: usize,
    /// Calls of one service that are worked on at a time.
    pub calls_per_service: usize,
    /// Calls over one connection that are worked on at a time.
    pub calls_per_connection: usize,
    /// HTTP/2 streams of one connection.
    pub streams: u32,
    /// Streams that the broker may have to reset for a peer's mistakes (RUSTSEC-2024-0003).
    pub resets: usize,
    /// Streams that a peer has reset before the broker looked at them (CVE-2023-44487).
    pub pending_resets: usize,
    /// The largest frame that the broker takes, bytes; 16,384 at least (RFC 9113 section 4.2).
    pub frame_bytes: u32,
    /// What a peer may send on a stream, and on a connection, before the broker has taken it,
    /// bytes; 65,535 at least, where HTTP/2 begins (RFC 9113 section 6.9.2).
    pub stream_window_bytes: u32,
    /// See [`stream_window_bytes`](Self::stream_window_bytes).
    pub connection_window_bytes: u32,
    /// The headers of a request, bytes.
    pub header_bytes: u32,
    /// The message of a request, bytes. The largest field is a policy document.
    pub message_bytes: usize,
    /// From the connection to the end of the TLS handshake.
    pub handshake_timeout: Duration,
    /// From there until the first request has arrived with all its headers.
    pub first_request_timeout: Duration,
    /// From its headers until a request is there whole.
    pub body_timeout: Duration,
    /// How long a call is worked on. A revocation may take half a minute more, for its proof.
    pub call_timeout: Duration,
    /// How long each message of an answer may wait for the peer to take it.
    pub answer_timeout: Duration,
    /// How often a connection is tried that is silent.
    pub keepalive_interval: Duration,
    /// How long the answer to that may take.
    pub keepalive_timeout: Duration,
    /// How old a connection grows, a tenth more or less, so that clients spread over brokers.
    pub connection_age: Duration,
    /// What is running may take so long to end then.
    pub age_grace: Duration,
    /// How long the broker goes on when it is to end, known to be unready, so that nobody is
    /// sent to it any more.
    pub shutdown_delay: Duration,
    /// How long running calls may take to end after that.
    pub drain_timeout: Duration,
}

impl Default for Bounds {
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

/// Site of an address, for bounds on a peer: the address itself, or of IPv6 its /64, since one
/// machine has a whole /64 (RFC 4291 section 2.5.4).
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
