use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use expediter_types::{DeadLetter, Stamp};
use serde::{Deserialize, Serialize};

use super::outcome::{Cut, OutcomeJson};
use crate::WireError;
use crate::json::{self, IncarnationJson, V1};

/// The longest line before the payload, in bytes: ORDERS takes messages that leave 64 KiB for the
/// line and the headers.
pub const MAX_LINE: usize = 60 << 10;

const WHAT: &str = "dead letter";

#[derive(Serialize, Deserialize)]
struct LineJson<'a> {
    v: V1,
    token: u64,
    incarnation: IncarnationJson,
    #[serde(borrow)]
    dead: OutcomeJson<'a>,
    /// Beginning of the merchant's answer, where it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    excerpt: Option<String>,
    /// Where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    excerpt_base64: Option<String>,
}

/// `dead.<p>.<merchant>`: one line of JSON, `\n`, the payload as it came.
///
/// A line above [`MAX_LINE`] is written with shorter attempts, then without the excerpt.
#[must_use]
pub fn encode_dead(stamp: Stamp, letter: &DeadLetter) -> Bytes {
    let text = std::str::from_utf8(&letter.excerpt);
    let mut line = LineJson {
        v: V1,
        token: stamp.token,
        incarnation: stamp.incarnation.into(),
        dead: OutcomeJson::complete(&letter.outcome, Cut::Nothing),
        excerpt: text.ok().filter(|text| !text.is_empty()).map(str::to_owned),
        excerpt_base64: text.is_err().then(|| BASE64.encode(&letter.excerpt)),
    };
    let capacity = 1024 + letter.excerpt.len() + letter.payload.len();
    let mut out = json::encode(&line, capacity);
    for cut in Cut::STEPS.into_iter().skip(1) {
        if out.len() > MAX_LINE {
            line.dead = OutcomeJson::complete(&letter.outcome, cut);
            out = json::encode(&line, capacity);
        }
    }
    if out.len() > MAX_LINE {
        (line.excerpt, line.excerpt_base64) = (None, None);
        out = json::encode(&line, capacity);
    }
    out.push(b'\n');
    out.extend_from_slice(&letter.payload);
    out.into()
}

/// Reads what [`encode_dead`] writes; the payload shares the message's memory.
pub fn decode_dead(message: &Bytes) -> Result<(Stamp, DeadLetter), WireError> {
    let (line, payload) = split_line(WHAT, message)?;
    let line: LineJson<'_> = json::decode(WHAT, &line)?;
    let excerpt = match (line.excerpt, line.excerpt_base64) {
        (Some(text), _) => text.into(),
        (None, Some(text)) => BASE64
            .decode(text)
            .map_err(|e| WireError::invalid(WHAT, e))?
            .into(),
        (None, None) => Bytes::new(),
    };
    let outcome = line
        .dead
        .try_into()
        .map_err(|e: String| WireError::invalid(WHAT, e))?;
    let stamp = json::stamp(line.token, line.incarnation);
    Ok((
        stamp,
        DeadLetter {
            outcome,
            payload,
            excerpt,
        },
    ))
}

/// The line before the first line feed, and what follows it. JSON in one line contains none.
pub(super) fn split_line(what: &'static str, message: &Bytes) -> Result<(Bytes, Bytes), WireError> {
    let end = message.iter().position(|byte| *byte == b'\n');
    let end = end.ok_or_else(|| WireError::invalid(what, "no line feed after the first line"))?;
    Ok((message.slice(..end), message.slice(end + 1..)))
}
