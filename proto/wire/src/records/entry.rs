use std::borrow::Cow;

use bytes::Bytes;
use expediter_types::{
    AttemptMark, Claim, MerchantId, OrderId, OrderKey, OutcomeKind, Seq, ShiftRecord, Stamp,
};
use serde::Deserialize;

use super::dead::split_line;
use super::mark::{MarkCommit, MarkPart};
use super::outcome::kind;
use super::{decode_attempts, decode_claim, decode_shift};
use crate::WireError;
use crate::json::{self, Hex64, IncarnationJson, V1};
use crate::subjects::OutcomesSubject;

/// A record as a successor reads it.
#[derive(Debug, Clone, PartialEq)]
pub enum WireEntry {
    Claim(Claim),
    /// A group, or one dead letter.
    Outcomes(Stamp, Vec<WireFinished>),
    Attempts(Stamp, AttemptMark),
    /// Says nothing until a commit names it ([`super::MarkReader`]).
    MarkPart(MarkPart),
    Mark(MarkCommit),
    Shift(Stamp, ShiftRecord),
}

/// What a successor needs of an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireFinished {
    pub seq: Seq,
    pub merchant: MerchantId,
    pub id: OrderId,
    pub generation: u32,
    pub payload_hash: u64,
    /// Its ordering key.
    pub key: Option<OrderKey>,
    /// `None`: an outcome that a newer version knows; the sequence is finished all the same.
    pub kind: Option<OutcomeKind>,
}

#[derive(Deserialize)]
struct GroupJson<'a> {
    #[serde(rename = "v")]
    _v: V1,
    token: u64,
    incarnation: IncarnationJson,
    #[serde(borrow)]
    outcomes: Vec<FinishedJson<'a>>,
}

#[derive(Deserialize)]
struct LineJson<'a> {
    #[serde(rename = "v")]
    _v: V1,
    token: u64,
    incarnation: IncarnationJson,
    #[serde(borrow)]
    dead: FinishedJson<'a>,
}

#[derive(Deserialize)]
struct FinishedJson<'a> {
    seq: u64,
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    merchant: Cow<'a, str>,
    generation: u32,
    #[serde(borrow)]
    outcome: Cow<'a, str>,
    #[serde(borrow, default)]
    reason: Option<Cow<'a, str>>,
    payload_hash: Hex64,
    #[serde(borrow, default)]
    key: Option<Cow<'a, str>>,
}

/// Reads any record of OUTCOMES by its subject, and of outcomes only what recovery needs.
///
/// # Errors
/// For another subject, for what is not readable, and for what a newer version wrote.
pub fn decode_entry(subject: &str, payload: &Bytes) -> Result<WireEntry, WireError> {
    let parsed = OutcomesSubject::parse(subject).ok_or_else(|| WireError::Subject {
        subject: subject.chars().take(200).collect(),
    })?;
    Ok(match parsed {
        OutcomesSubject::Claim(_) => WireEntry::Claim(decode_claim(payload)?),
        OutcomesSubject::Outcomes(_) => {
            let group: GroupJson<'_> = json::decode("outcome record", payload)?;
            let finished: Result<_, _> = group.outcomes.into_iter().map(finished).collect();
            WireEntry::Outcomes(json::stamp(group.token, group.incarnation), finished?)
        }
        OutcomesSubject::Dead(..) => {
            let (line, _) = split_line("dead letter", payload)?;
            let line: LineJson<'_> = json::decode("dead letter", &line)?;
            let stamp = json::stamp(line.token, line.incarnation);
            WireEntry::Outcomes(stamp, vec![finished(line.dead)?])
        }
        OutcomesSubject::Attempt(..) => {
            let (stamp, mark) = decode_attempts(payload)?;
            WireEntry::Attempts(stamp, mark)
        }
        OutcomesSubject::MarkPart(_, number) => {
            WireEntry::MarkPart(MarkPart::read(number, payload)?)
        }
        OutcomesSubject::Mark(_) => WireEntry::Mark(MarkCommit::read(payload)?),
        OutcomesSubject::Shift(_) => {
            let (stamp, shift) = decode_shift(payload)?;
            WireEntry::Shift(stamp, shift)
        }
    })
}

fn finished(from: FinishedJson<'_>) -> Result<WireFinished, WireError> {
    let invalid = |e| WireError::invalid("outcome record", e);
    Ok(WireFinished {
        seq: from.seq,
        merchant: MerchantId::new(&from.merchant).map_err(invalid)?,
        id: OrderId::new(&from.id).map_err(invalid)?,
        generation: from.generation,
        payload_hash: from.payload_hash.0,
        key: from.key.as_deref().map(OrderKey::from),
        kind: kind(&from.outcome, from.reason.as_deref()),
    })
}
