//! Floods: ten thousand frames of one kind, from a peer that then stays connected.

use tokio::io::{AsyncWriteExt, WriteHalf};

use super::h2::{
    CONTINUATION, DATA, END_HEADERS, HEADERS, PING, RST_STREAM, Stream, WINDOW_UPDATE, call, frame,
};

/// Bytes of the frame with this number.
pub type Flood = fn(u32) -> Vec<u8>;

pub const FLOODS: [(&str, Flood); 10] = [
    ("rapid reset", |number| {
        [opened(number), frame(RST_STREAM, 0, odd(number), &CANCEL)].concat()
    }),
    // Each frame makes the broker reset the stream itself (RUSTSEC-2024-0003).
    ("resets of the broker's own", |number| {
        [
            opened(number),
            frame(WINDOW_UPDATE, 0, odd(number), &[0; 4]),
        ]
        .concat()
    }),
    ("continuation", |number| match number {
        0 => frame(HEADERS, 0, 1, &call("/livez")),
        _ => frame(CONTINUATION, 0, 1, &[0, 1, b'a', 1, b'b'].repeat(1000)),
    }),
    ("large header", |number| {
        // Ten kilobytes of one header.
        let large = [0x00, 0x01, b'x', 0x7f, 0x91, 0x4d];
        let headers = [&call("/livez"), &large[..], &[b'y'; 10_000]].concat();
        frame(HEADERS, END_HEADERS, odd(number), &headers)
    }),
    ("ten thousand streams", opened),
    ("unknown frames", |_| frame(0xbe, 0xff, 0, &[0xaa; 16_000])),
    ("pings", |_| frame(PING, 0, 0, &[0; 8])),
    ("pings beside a request", |number| match number {
        0 => opened(0),
        _ => frame(PING, 0, 0, &[0; 8]),
    }),
    ("frame over the limit", |number| match number {
        0 => opened(0),
        _ => frame(DATA, 0, 1, &[0; 17 * 1024]),
    }),
    ("empty frames", |number| match number {
        0 => opened(0),
        _ => frame(DATA, 0, 1, &[]),
    }),
];
/// RFC 9113 section 7.
const CANCEL: [u8; 4] = [0, 0, 0, 8];

fn odd(number: u32) -> u32 {
    2 * number + 1
}

/// A call without its message, which is still to come.
fn opened(number: u32) -> Vec<u8> {
    let headers = call("/grpc.health.v1.Health/Check");
    frame(HEADERS, END_HEADERS, odd(number), &headers)
}

/// Sends all ten thousand frames, or as many as the peer accepts.
pub async fn sent(mut writer: WriteHalf<Stream>, next: Flood) -> WriteHalf<Stream> {
    for number in 0..10_000 {
        if writer.write_all(&next(number)).await.is_err() {
            break;
        }
    }
    writer
}
