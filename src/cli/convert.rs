//! Conversions between values of the command line and of the proto.

use std::time::Duration;

use jiff::Timestamp;
use prost_types::{Duration as ProtoDuration, Timestamp as ProtoTimestamp};

pub(super) fn proto_duration(duration: Duration) -> ProtoDuration {
    ProtoDuration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: 0,
    }
}

/// Returns `None` if the value is no point in time.
pub(super) fn time(proto: ProtoTimestamp) -> Option<Timestamp> {
    Timestamp::new(proto.seconds, proto.nanos).ok()
}

pub(super) fn proto_time(time: Timestamp) -> ProtoTimestamp {
    ProtoTimestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    }
}

pub(super) fn http_url(text: &str) -> Result<String, &'static str> {
    let web = text.starts_with("http://") || text.starts_with("https://");
    web.then(|| text.to_owned())
        .ok_or("write it like http://127.0.0.1:4566")
}
