use std::time::Duration;

use reqwest::Response;
use tokio::time::{Instant, timeout_at};

/// Bodies that nobody needs are read so far, because the connection can be used again only after
/// the end of the body; a longer one costs more than a new connection.
const DRAIN_BYTES: usize = 64 << 10;
/// And waited for so long: the status has decided already.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// What a response's body is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Only so that the connection can be used again.
    Nothing,
    /// For people.
    Excerpt,
    /// A rule looks into it.
    Whole,
}

/// What was read of it.
#[derive(Debug, Default)]
pub(crate) struct BodyRead {
    pub(crate) bytes: Vec<u8>,
    /// It went on, or broke off.
    pub(crate) cut: bool,
}

/// Reads at most `max` bytes and not past the deadline; what is left goes with the response, and
/// the connection with it.
pub(crate) async fn read(
    response: &mut Response,
    need: Need,
    max: usize,
    deadline: Instant,
) -> BodyRead {
    let (max, deadline) = match need {
        Need::Nothing => (DRAIN_BYTES, deadline.min(Instant::now() + DRAIN_TIME)),
        Need::Excerpt => (DRAIN_BYTES.min(max), deadline),
        Need::Whole => (max, deadline),
    };
    let mut body = BodyRead {
        bytes: Vec::new(),
        cut: true,
    };
    let announced = response.content_length();
    if need == Need::Nothing && announced.is_some_and(|length| length > max as u64) {
        return body;
    }
    let mut read = 0_usize;
    // A broken or stalled body says nothing that the status has not said.
    while let Ok(Ok(chunk)) = timeout_at(deadline, response.chunk()).await {
        let Some(chunk) = chunk else {
            body.cut = false;
            break;
        };
        let fits = chunk.len().min(max - read);
        if need != Need::Nothing {
            body.bytes.extend_from_slice(&chunk[..fits]);
        }
        read += fits;
        // Bytes without end in chunks without content would pass for progress, too.
        if fits < chunk.len() || read >= max {
            break;
        }
    }
    body
}
