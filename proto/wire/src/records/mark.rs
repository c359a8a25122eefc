use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use expediter_types::{
    AttemptCount, ClosedBecause, ClosedMerchant, Mark, MerchantId, OrderId, ParkedOrder,
    SpentQuota, Stamp,
};
use roaring::RoaringTreemap;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::dead::split_line;
use crate::json::{self, Hex64, IncarnationJson, V1};
use crate::{Rfc3339, WireError};

/// The largest message of a mark, in bytes, but for some 200 bytes around a part.
pub const PART_BYTES: usize = 512 << 10;

/// The most parts that a mark is split into, and that are kept while reading.
pub const MAX_PARTS: u32 = 4096;

const WHAT: &str = "mark";

/// What a mark is published as: the parts first, each as `mark.<p>.<n>` with `n` from 1, then the
/// commit as `mark.<p>`. Only the commit makes the mark hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkParts {
    /// Empty when the commit carries all.
    pub parts: Vec<Bytes>,
    pub commit: Bytes,
}

/// A part as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkPart {
    /// From 1.
    pub number: u32,
    pub stamp: Stamp,
    data: Bytes,
}

/// A commit as it was read; the mark itself may be in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkCommit {
    pub stamp: Stamp,
    /// Parts that it needs; 0 when it carries all.
    pub parts: u32,
    message: Bytes,
}

#[derive(Serialize, Deserialize)]
struct MarkJson<'a> {
    v: V1,
    token: u64,
    incarnation: IncarnationJson,
    low_water: u64,
    seen: u64,
    covers: u64,
    repeats_from: u64,
    at: Rfc3339,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    content: Option<&'a RawValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parts: Option<PartsJson>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct PartsJson {
    count: u32,
    bytes: u64,
    crc32: u32,
}

#[derive(Serialize, Deserialize)]
struct PartJson {
    v: V1,
    token: u64,
    incarnation: IncarnationJson,
    part: u32,
}

/// What grows with the backlog, and so may need parts.
#[derive(Serialize, Deserialize)]
struct ContentJson<'a> {
    /// Portable 64-bit roaring format in base64.
    #[serde(borrow)]
    finished: Cow<'a, str>,
    attempts: Vec<CountJson>,
    #[serde(borrow)]
    closed: Vec<ClosedJson<'a>>,
    #[serde(borrow)]
    unknown_since: Vec<UnknownJson<'a>>,
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    parked: Vec<ParkedJson<'a>>,
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    spent: Vec<SpentJson<'a>>,
    /// Milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unknown: Vec<(u64, u64)>,
    #[serde(default, skip_serializing_if = "json::is_false")]
    last: bool,
}

#[derive(Serialize, Deserialize)]
struct CountJson {
    seq: u64,
    attempts: u32,
    first: Rfc3339,
    #[serde(default, skip_serializing_if = "json::is_false")]
    ambiguous: bool,
}

#[derive(Serialize, Deserialize)]
struct ClosedJson<'a> {
    #[serde(borrow)]
    merchant: Cow<'a, str>,
    #[serde(borrow)]
    because: Cow<'a, str>,
    until: Rfc3339,
    #[serde(default, skip_serializing_if = "is_zero")]
    times: u32,
}

#[derive(Serialize, Deserialize)]
struct SpentJson<'a> {
    #[serde(borrow)]
    merchant: Cow<'a, str>,
    quotas: Vec<QuotaJson>,
}

#[derive(Serialize, Deserialize)]
struct QuotaJson {
    period_ms: u64,
    /// Milliseconds since 1970, and how many orders went until then since the entry before.
    spent: Vec<(u64, u64)>,
}

#[derive(Serialize, Deserialize)]
struct UnknownJson<'a> {
    #[serde(borrow)]
    merchant: Cow<'a, str>,
    since: Rfc3339,
}

#[derive(Serialize, Deserialize)]
struct ParkedJson<'a> {
    #[serde(borrow)]
    merchant: Cow<'a, str>,
    seq: u64,
    #[serde(borrow)]
    id: Cow<'a, str>,
    generation: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<Hex64>,
}

/// Writes a mark, in parts when it does not fit [`PART_BYTES`].
///
/// # Errors
/// [`WireError::TooLarge`] above [`MAX_PARTS`] parts (2 GiB).
pub fn encode_mark(stamp: Stamp, mark: &Mark) -> Result<MarkParts, WireError> {
    encode_within(stamp, mark, PART_BYTES)
}

/// As [`encode_mark`], with parts of so many bytes.
pub(crate) fn encode_within(
    stamp: Stamp,
    mark: &Mark,
    part_bytes: usize,
) -> Result<MarkParts, WireError> {
    let content = encode_content(mark);
    let mut commit = MarkJson {
        v: V1,
        token: stamp.token,
        incarnation: stamp.incarnation.into(),
        low_water: mark.low_water,
        seen: mark.seen,
        covers: mark.covers,
        repeats_from: mark.repeats_from,
        at: Rfc3339(mark.at),
        content: None,
        parts: None,
    };
    if content.get().len() <= part_bytes.saturating_sub(1024) {
        commit.content = Some(&content);
        return Ok(MarkParts {
            parts: Vec::new(),
            commit: json::encode_bytes(&commit),
        });
    }
    let bytes = content.get().as_bytes();
    let count = bytes.len().div_ceil(part_bytes);
    let too_large = WireError::TooLarge {
        what: WHAT,
        len: bytes.len(),
        max: part_bytes * MAX_PARTS as usize,
    };
    let count = u32::try_from(count)
        .ok()
        .filter(|n| *n <= MAX_PARTS)
        .ok_or(too_large)?;
    let crc32 = crc32fast::hash(bytes);
    commit.parts = Some(PartsJson {
        count,
        bytes: bytes.len() as u64,
        crc32,
    });
    let parts = (1..).zip(bytes.chunks(part_bytes)).map(|(part, chunk)| {
        let (token, incarnation) = (stamp.token, stamp.incarnation.into());
        let line = PartJson {
            v: V1,
            token,
            incarnation,
            part,
        };
        let mut out = json::encode(&line, chunk.len() + 256);
        out.push(b'\n');
        out.extend_from_slice(chunk);
        out.into()
    });
    Ok(MarkParts {
        parts: parts.collect(),
        commit: json::encode_bytes(&commit),
    })
}

fn encode_content(mark: &Mark) -> Box<RawValue> {
    // Runs are how finished sequences mostly lie; without them a million takes 128 KiB.
    let runs = mark.finished.bitmaps().map(|(high, bitmap)| {
        let mut bitmap = bitmap.clone();
        bitmap.optimize();
        (high, bitmap)
    });
    let finished = RoaringTreemap::from_bitmaps(runs);
    let mut bytes = Vec::with_capacity(finished.serialized_size());
    finished
        .serialize_into(&mut bytes)
        .expect("writing to memory cannot fail");
    let content = ContentJson {
        finished: BASE64.encode(bytes).into(),
        attempts: mark.attempts.iter().map(CountJson::from).collect(),
        closed: mark.closed.iter().map(ClosedJson::from).collect(),
        unknown_since: mark
            .unknown_since
            .iter()
            .map(|(id, since)| UnknownJson {
                merchant: id.as_str().into(),
                since: Rfc3339(*since),
            })
            .collect(),
        parked: mark.parked.iter().map(ParkedJson::from).collect(),
        spent: mark.spent.iter().map(SpentJson::from).collect(),
        unknown: mark.unknown.clone(),
        last: mark.last,
    };
    serde_json::value::to_raw_value(&content)
        .expect("writing to memory cannot fail, and no value here has keys that are not strings")
}

impl From<&AttemptCount> for CountJson {
    fn from(from: &AttemptCount) -> Self {
        Self {
            seq: from.seq,
            attempts: from.attempts,
            first: Rfc3339(from.first),
            ambiguous: from.ambiguous,
        }
    }
}

impl<'a> From<&'a ClosedMerchant> for ClosedJson<'a> {
    fn from(from: &'a ClosedMerchant) -> Self {
        Self {
            merchant: from.merchant.as_str().into(),
            because: from.because.as_str().into(),
            until: Rfc3339(from.until),
            times: from.times,
        }
    }
}

impl<'a> From<&'a ParkedOrder> for ParkedJson<'a> {
    fn from(from: &'a ParkedOrder) -> Self {
        Self {
            merchant: from.merchant.as_str().into(),
            seq: from.seq,
            id: from.id.as_str().into(),
            generation: from.generation,
            key: from.key.map(Hex64),
        }
    }
}

impl<'a> From<&'a (MerchantId, Vec<SpentQuota>)> for SpentJson<'a> {
    fn from((merchant, quotas): &'a (MerchantId, Vec<SpentQuota>)) -> Self {
        let quotas = quotas.iter().map(|quota| QuotaJson {
            period_ms: u64::try_from(quota.period.as_millis()).unwrap_or(u64::MAX),
            spent: quota.spent.clone(),
        });
        Self {
            merchant: merchant.as_str().into(),
            quotas: quotas.collect(),
        }
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl MarkPart {
    pub(super) fn read(number: u32, message: &Bytes) -> Result<Self, WireError> {
        let (line, data) = split_line(WHAT, message)?;
        let line: PartJson = json::decode(WHAT, &line)?;
        if line.part != number || !(1..=MAX_PARTS).contains(&number) {
            let detail = format_args!("part {} published as {number}", line.part);
            return Err(WireError::invalid(WHAT, detail));
        }
        Ok(Self {
            number,
            stamp: json::stamp(line.token, line.incarnation),
            data,
        })
    }
}

impl MarkCommit {
    pub(super) fn read(message: &Bytes) -> Result<Self, WireError> {
        let commit: MarkJson<'_> = json::decode(WHAT, message)?;
        let parts = match (commit.content, commit.parts) {
            (Some(_), _) => 0,
            (None, Some(parts)) if (1..=MAX_PARTS).contains(&parts.count) => parts.count,
            _ => return Err(WireError::invalid(WHAT, "neither content nor parts")),
        };
        let stamp = json::stamp(commit.token, commit.incarnation);
        Ok(Self {
            stamp,
            parts,
            message: message.clone(),
        })
    }
}

/// Collects the parts of marks as they are read in sequence, until a commit names them.
#[derive(Debug, Default)]
pub struct MarkReader {
    parts: BTreeMap<u32, MarkPart>,
}

impl MarkReader {
    /// Keeps a part; it replaces an older one of the same number.
    pub fn part(&mut self, part: MarkPart) {
        self.parts.insert(part.number, part);
    }

    /// The mark that a commit completes. Forgets all parts, whether they were good or not.
    ///
    /// # Errors
    /// When a part is missing or is another's: the mark before it still holds.
    pub fn commit(&mut self, commit: &MarkCommit) -> Result<(Stamp, Mark), WireError> {
        let parts = std::mem::take(&mut self.parts);
        let record: MarkJson<'_> = json::decode(WHAT, &commit.message)?;
        let content = match (record.content, record.parts) {
            (Some(content), _) => read_content(content.get().as_bytes(), &record)?,
            (None, Some(named)) => read_content(&join(parts, commit, named)?, &record)?,
            (None, None) => return Err(WireError::invalid(WHAT, "neither content nor parts")),
        };
        Ok((commit.stamp, content))
    }
}

/// Reads what [`encode_mark`] writes.
pub fn decode_mark(commit: &Bytes, parts: &[Bytes]) -> Result<(Stamp, Mark), WireError> {
    let mut reader = MarkReader::default();
    for (number, part) in (1..).zip(parts) {
        reader.part(MarkPart::read(number, part)?);
    }
    reader.commit(&MarkCommit::read(commit)?)
}

fn join(
    parts: BTreeMap<u32, MarkPart>,
    commit: &MarkCommit,
    named: PartsJson,
) -> Result<Vec<u8>, WireError> {
    let mut content = Vec::new();
    for number in 1..=named.count {
        let part = parts.get(&number).filter(|part| part.stamp == commit.stamp);
        let part =
            part.ok_or_else(|| WireError::invalid(WHAT, format_args!("part {number} is missing")))?;
        content.extend_from_slice(&part.data);
    }
    if content.len() as u64 != named.bytes || crc32fast::hash(&content) != named.crc32 {
        return Err(WireError::invalid(
            WHAT,
            "its parts are not those of the commit",
        ));
    }
    Ok(content)
}

fn read_content(bytes: &[u8], record: &MarkJson<'_>) -> Result<Mark, WireError> {
    // Bounded by the parts, not by a message.
    let content: ContentJson<'_> =
        serde_json::from_slice(bytes).map_err(|source| WireError::Json { what: WHAT, source })?;
    let closed = content.closed.iter().map(|entry| {
        let because = ClosedBecause::from_name(&entry.because)
            .ok_or_else(|| format!("unknown cause {:?}", entry.because))?;
        Ok(ClosedMerchant {
            merchant: merchant(&entry.merchant)?,
            because,
            until: entry.until.0,
            times: entry.times,
        })
    });
    let spent = content.spent.iter().map(|entry| {
        let quotas = entry.quotas.iter().map(|quota| SpentQuota {
            period: Duration::from_millis(quota.period_ms),
            spent: quota.spent.clone(),
        });
        Ok((merchant(&entry.merchant)?, quotas.collect()))
    });
    let unknown = content
        .unknown_since
        .iter()
        .map(|entry| Ok((merchant(&entry.merchant)?, entry.since.0)));
    let parked = content.parked.iter().map(|entry| {
        Ok(ParkedOrder {
            merchant: merchant(&entry.merchant)?,
            seq: entry.seq,
            id: OrderId::new(&entry.id).map_err(|e| e.to_string())?,
            generation: entry.generation,
            key: entry.key.map(|key| key.0),
        })
    });
    let invalid = |detail: String| WireError::invalid(WHAT, detail);
    Ok(Mark {
        low_water: record.low_water,
        seen: record.seen,
        finished: read_finished(&content.finished).map_err(invalid)?,
        covers: record.covers,
        repeats_from: record.repeats_from,
        attempts: content.attempts.iter().map(AttemptCount::from).collect(),
        closed: closed.collect::<Result<_, _>>().map_err(invalid)?,
        unknown_since: unknown.collect::<Result<_, _>>().map_err(invalid)?,
        parked: parked.collect::<Result<_, _>>().map_err(invalid)?,
        spent: spent.collect::<Result<_, _>>().map_err(invalid)?,
        unknown: content.unknown,
        last: content.last,
        at: record.at.0,
    })
}

impl From<&CountJson> for AttemptCount {
    fn from(from: &CountJson) -> Self {
        Self {
            seq: from.seq,
            attempts: from.attempts,
            first: from.first.0,
            ambiguous: from.ambiguous,
        }
    }
}

fn merchant(id: &str) -> Result<MerchantId, String> {
    MerchantId::new(id).map_err(|e| e.to_string())
}

fn read_finished(text: &str) -> Result<RoaringTreemap, String> {
    let bytes = BASE64.decode(text).map_err(|e| e.to_string())?;
    let mut rest = &bytes[..];
    let finished = RoaringTreemap::deserialize_from(&mut rest).map_err(|e| e.to_string())?;
    match rest.len() {
        0 => Ok(finished),
        more => Err(format!("{more} bytes after the bitmap")),
    }
}
