//! An order's message: its headers; the body is opaque and never looked at.
//!
//! Constraints: reading is the hot path: one pass over the headers that are there, nothing copied
//! but what is kept. Reading the same message again gives the same envelope.

use std::borrow::Cow;
use std::sync::Arc;

use expediter_types::{
    Envelope, Incarnation, MerchantId, OrderId, Origin, Priority, Seq, UnixMillis, parse_duration,
};

use crate::time::{MAX_MILLIS, Rfc3339, parse_rfc3339};

/// The order's id; else [`NATS_MSG_ID`]; else `<created>.<counter>-<seq>` of the log.
pub const CE_ID: &str = "ce-id";
/// Passed on to the merchant.
pub const CE_TYPE: &str = "ce-type";
/// Passed on to the merchant.
pub const CE_SOURCE: &str = "ce-source";
/// Passed on to the merchant.
pub const CE_TIME: &str = "ce-time";
/// Passed on to the merchant.
pub const CONTENT_TYPE: &str = "content-type";
/// The broker deduplicates by it for two minutes.
pub const NATS_MSG_ID: &str = "Nats-Msg-Id";
/// W3C trace context; ignored where it is not valid.
pub const TRACEPARENT: &str = "traceparent";
/// RFC 3339, or a duration such as `10m` from the broker's timestamp.
pub const DEADLINE: &str = "Expediter-Deadline";
/// As [`DEADLINE`].
pub const NOT_BEFORE: &str = "Expediter-Not-Before";
/// Ordering key.
pub const KEY: &str = "Expediter-Key";
/// `high`, `normal` (the default) or `low`.
pub const PRIORITY: &str = "Expediter-Priority";
/// 1 (the default) or above: a replay.
pub const GENERATION: &str = "Expediter-Generation";
/// `true` or `1`: an order of `merchant test`.
pub const TEST: &str = "Expediter-Test";
/// `<created>.<counter>-<seq>`: published again by an owner because the broker lost it.
pub const ORIGIN: &str = "Expediter-Origin";
/// RFC 3339; the time of the first publish. Only together with [`ORIGIN`].
pub const CREATED: &str = "Expediter-Created";

/// The longest value of a header, in bytes.
pub const MAX_HEADER: usize = 1024;
/// The longest ordering key, in bytes.
pub const MAX_KEY: usize = 256;

pub(crate) const NAMES: [&str; 15] = [
    CE_ID,
    CE_TYPE,
    CE_SOURCE,
    CE_TIME,
    CONTENT_TYPE,
    NATS_MSG_ID,
    TRACEPARENT,
    DEADLINE,
    NOT_BEFORE,
    KEY,
    PRIORITY,
    GENERATION,
    TEST,
    ORIGIN,
    CREATED,
];

/// Why a message is no order; becomes the detail of its dead letter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct InvalidOrder {
    /// For people; names the header and quotes its value, at most 200 characters.
    pub reason: String,
}

impl InvalidOrder {
    fn new(header: &str, what: impl std::fmt::Display) -> Self {
        Self {
            reason: format!("header {header}: {what}")
                .chars()
                .take(200)
                .collect(),
        }
    }
}

/// Reads the envelope of an order from its headers, each given once with its value.
///
/// Names are compared without case. Values are trimmed, and an empty one counts as absent.
/// `at` is the broker's timestamp of the message, from which durations count.
///
/// # Errors
/// When a value is too long, contains control characters, is given twice or cannot be read. An
/// invalid `traceparent` is dropped instead: a broken tracer must not stop orders.
pub fn read_order<'a>(
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    merchant: &MerchantId,
    seq: Seq,
    at: UnixMillis,
    incarnation: Incarnation,
) -> Result<Envelope, InvalidOrder> {
    let found = Found::collect(headers)?;
    let id = match found.get(CE_ID).or(found.get(NATS_MSG_ID)) {
        Some((name, text)) => OrderId::new(text).map_err(|e| InvalidOrder::new(name, e)),
        None => OrderId::new(&Origin { incarnation, seq }.to_string())
            .map_err(|e| InvalidOrder::new(CE_ID, e)),
    }?;
    let origin = found.read(ORIGIN, |text| {
        parse_origin(text).ok_or("is not <created>.<counter>-<sequence>")
    })?;
    let created = match origin {
        Some(_) => found.read(CREATED, parse_rfc3339)?,
        None => None,
    };
    let moment = |text: &str| parse_moment(text, at);
    Ok(Envelope {
        id,
        merchant: merchant.clone(),
        generation: found.read(GENERATION, parse_generation)?.unwrap_or(1),
        created: created.unwrap_or(at),
        deadline: found.read(DEADLINE, moment)?,
        not_before: found.read(NOT_BEFORE, moment)?,
        key: found.text(KEY),
        priority: found.read(PRIORITY, parse_priority)?.unwrap_or_default(),
        event_type: found.text(CE_TYPE),
        source: found.text(CE_SOURCE),
        time: found.text(CE_TIME),
        content_type: found.text(CONTENT_TYPE),
        traceparent: found.text(TRACEPARENT).filter(|text| is_traceparent(text)),
        test: found.read(TEST, parse_flag)?.unwrap_or(false),
        origin,
    })
}

/// The headers of an order's message: [`read_order`] reads the same envelope from them.
///
/// They include [`NATS_MSG_ID`] ([`msg_id`], or one of its own for an order that the broker lost).
/// Texts go out as they are; who takes them from people checks them with [`read_order`] first.
#[must_use]
pub fn order_headers(envelope: &Envelope) -> Vec<(&'static str, Cow<'_, str>)> {
    let Envelope {
        id,
        merchant,
        generation,
        ..
    } = envelope;
    let mut headers: Vec<(&'static str, Cow<'_, str>)> = Vec::with_capacity(8);
    let message = match &envelope.origin {
        // No merchant has an empty id: no publisher's id is the same.
        Some(origin) => format!("/{origin}"),
        None => msg_id(merchant, *generation, id),
    };
    headers.push((NATS_MSG_ID, message.into()));
    headers.push((CE_ID, id.as_str().into()));
    if *generation != 1 {
        headers.push((GENERATION, generation.to_string().into()));
    }
    let texts = [
        (CE_TYPE, &envelope.event_type),
        (CE_SOURCE, &envelope.source),
        (CE_TIME, &envelope.time),
        (CONTENT_TYPE, &envelope.content_type),
        (KEY, &envelope.key),
        (TRACEPARENT, &envelope.traceparent),
    ];
    let texts = texts
        .into_iter()
        .filter_map(|(name, text)| Some((name, text.as_deref()?.into())));
    headers.extend(texts);
    let times = [
        (DEADLINE, envelope.deadline),
        (NOT_BEFORE, envelope.not_before),
    ];
    let times = times
        .into_iter()
        .filter_map(|(name, time)| Some((name, Rfc3339(time?))));
    headers.extend(times.map(|(name, time)| (name, time.to_string().into())));
    if envelope.priority != Priority::Normal {
        headers.push((PRIORITY, envelope.priority.as_str().into()));
    }
    if envelope.test {
        headers.push((TEST, "true".into()));
    }
    if let Some(origin) = &envelope.origin {
        headers.push((ORIGIN, origin.to_string().into()));
        headers.push((CREATED, Rfc3339(envelope.created).to_string().into()));
    }
    headers
}

/// `Nats-Msg-Id` of a publish: `<merchant>/<id>`, and `<merchant>/<generation>/<id>` of a replay.
#[must_use]
pub fn msg_id(merchant: &MerchantId, generation: u32, id: &OrderId) -> String {
    match generation {
        1 => format!("{merchant}/{id}"),
        _ => format!("{merchant}/{generation}/{id}"),
    }
}

/// Reads what `Origin` writes: `<created>.<counter>-<seq>`.
#[must_use]
pub fn parse_origin(text: &str) -> Option<Origin> {
    let (incarnation, seq) = text.split_once('-')?;
    let (created, counter) = incarnation.split_once('.')?;
    let incarnation = Incarnation {
        created: decimal(created)?,
        counter: decimal(counter)?.try_into().ok()?,
    };
    Some(Origin {
        incarnation,
        seq: decimal(seq)?,
    })
}

/// Whether a text is a W3C `traceparent`; of versions above 00 only the known part is looked at.
#[must_use]
pub fn is_traceparent(text: &str) -> bool {
    let bytes = text.as_bytes();
    let hex = |range: std::ops::Range<usize>| {
        let part = bytes.get(range).unwrap_or_default();
        let valid = part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        (valid && !part.is_empty(), part.iter().any(|b| *b != b'0'))
    };
    let dashes = [2, 35, 52]
        .into_iter()
        .all(|at| bytes.get(at) == Some(&b'-'));
    let longer = bytes.len() > 55;
    dashes
        && bytes.len() >= 55
        && (!longer || (!bytes.starts_with(b"00") && bytes.get(55) == Some(&b'-')))
        && hex(0..2).0
        && !bytes.starts_with(b"ff")
        && hex(3..35) == (true, true)
        && hex(36..52) == (true, true)
        && hex(53..55).0
}

/// The values that were there, in the order of [`NAMES`].
struct Found<'a>([Option<&'a str>; NAMES.len()]);

impl<'a> Found<'a> {
    fn collect(
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, InvalidOrder> {
        let mut found = [None; NAMES.len()];
        for (name, value) in headers {
            let Some(place) = NAMES
                .iter()
                .position(|known| known.eq_ignore_ascii_case(name))
            else {
                continue;
            };
            let (known, value) = (NAMES[place], value.trim());
            if known == TRACEPARENT {
                // Whatever is wrong with it makes it invalid, and so absent.
                found[place] = Some(if found[place].is_some() { "" } else { value });
                continue;
            }
            let max = if known == KEY { MAX_KEY } else { MAX_HEADER };
            if value.len() > max {
                let what = format_args!("has {} bytes, at most {max} are accepted", value.len());
                return Err(InvalidOrder::new(known, what));
            }
            if value.bytes().any(|b| b.is_ascii_control()) {
                return Err(InvalidOrder::new(known, "contains control characters"));
            }
            // Which one would count depends on the client's map: the same message must always
            // read the same.
            if found[place].replace(value).is_some() {
                return Err(InvalidOrder::new(known, "is given twice"));
            }
        }
        Ok(Self(found))
    }

    fn get(&self, name: &'static str) -> Option<(&'static str, &'a str)> {
        let place = NAMES.iter().position(|known| *known == name)?;
        self.0[place]
            .filter(|value| !value.is_empty())
            .map(|value| (name, value))
    }

    fn text(&self, name: &'static str) -> Option<Arc<str>> {
        self.get(name).map(|(_, value)| value.into())
    }

    fn read<T, E: std::fmt::Display>(
        &self,
        name: &'static str,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Option<T>, InvalidOrder> {
        match self.get(name) {
            Some((_, value)) => read(value).map(Some).map_err(|e| {
                let shown: String = value.chars().take(60).collect();
                InvalidOrder::new(name, format_args!("{shown:?}: {e}"))
            }),
            None => Ok(None),
        }
    }
}

/// Reads a time as [`DEADLINE`] and [`NOT_BEFORE`] have it; durations count from `at`.
///
/// # Errors
/// It is neither; for people.
pub fn parse_moment(text: &str, at: UnixMillis) -> Result<UnixMillis, &'static str> {
    const NEITHER: &str = "is neither RFC 3339 nor a duration such as 10m";
    if text.as_bytes().get(4) == Some(&b'-') {
        return parse_rfc3339(text).map_err(|_| NEITHER);
    }
    let duration = parse_duration(text).map_err(|_| NEITHER)?;
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Ok(at.saturating_add(millis).min(MAX_MILLIS))
}

fn parse_generation(text: &str) -> Result<u32, &'static str> {
    let number = decimal(text).and_then(|n| u32::try_from(n).ok());
    number
        .filter(|n| *n >= 1)
        .ok_or("is not a number from 1 to 4294967295")
}

fn parse_priority(text: &str) -> Result<Priority, &'static str> {
    Priority::from_name(text).ok_or("is not high, normal or low")
}

fn parse_flag(text: &str) -> Result<bool, &'static str> {
    match text {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err("is neither true nor false"),
    }
}

/// Digits only: `parse` alone would take a sign.
fn decimal(text: &str) -> Option<u64> {
    text.parse()
        .ok()
        .filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
#[path = "order_tests.rs"]
pub(crate) mod tests;
