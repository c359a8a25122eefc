use std::borrow::Cow;

use bytes::Bytes;
use expediter_types::{
    AttemptClass, AttemptRecord, DeadReason, Envelope, MerchantId, OrderId, Outcome, OutcomeKind,
    Priority, Stamp,
};
use serde::{Deserialize, Serialize};

use crate::json::{self, Hex64, IncarnationJson, V1};
use crate::order::parse_origin;
use crate::{Rfc3339, WireError};

/// The largest outcome record, in bytes: below the broker's usual 1 MiB, with its headers.
pub const MAX_GROUP: usize = 960 << 10;

const WHAT: &str = "outcome record";

/// An outcome's text for people is cut to so many characters where it does not fit.
const SHORT_DETAIL: usize = 200;

/// How much of the attempts is left out so that a record fits a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    Nothing,
    /// What happened at each attempt, but not when and of which class.
    Details,
    /// All attempts but the newest, and long details.
    Attempts,
}

impl Cut {
    pub(super) const STEPS: [Self; 3] = [Self::Nothing, Self::Details, Self::Attempts];
}

#[derive(Serialize, Deserialize)]
struct GroupJson<'a> {
    v: V1,
    token: u64,
    incarnation: IncarnationJson,
    #[serde(borrow)]
    outcomes: Vec<OutcomeJson<'a>>,
}

/// One outcome; the fields from `deadline` on are written in dead letters only.
#[derive(Serialize, Deserialize)]
pub(super) struct OutcomeJson<'a> {
    seq: u64,
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    merchant: Cow<'a, str>,
    generation: u32,
    #[serde(borrow)]
    outcome: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    reason: Option<Cow<'a, str>>,
    at: Rfc3339,
    created: Rfc3339,
    #[serde(borrow, default)]
    attempts: Vec<AttemptJson<'a>>,
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
    detail: Cow<'a, str>,
    payload_hash: Hex64,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    key: Option<Cow<'a, str>>,
    /// Absent: normal.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    priority: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    traceparent: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
    #[serde(default, skip_serializing_if = "json::is_false")]
    test: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deadline: Option<Rfc3339>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    not_before: Option<Rfc3339>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    r#type: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    source: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    time: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    content_type: Option<Cow<'a, str>>,
}

/// One attempt.
#[derive(Serialize, Deserialize)]
pub(crate) struct AttemptJson<'a> {
    n: u32,
    at: Rfc3339,
    #[serde(borrow)]
    class: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    ms: u32,
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
    detail: Cow<'a, str>,
}

impl<'a> From<&'a AttemptRecord> for AttemptJson<'a> {
    fn from(from: &'a AttemptRecord) -> Self {
        Self {
            n: from.number,
            at: Rfc3339(from.at),
            class: from.class.as_str().into(),
            status: from.status,
            ms: from.took_ms,
            detail: from.detail.as_str().into(),
        }
    }
}

impl TryFrom<AttemptJson<'_>> for AttemptRecord {
    type Error = String;

    fn try_from(from: AttemptJson<'_>) -> Result<Self, String> {
        let class = AttemptClass::from_name(&from.class)
            .ok_or_else(|| format!("unknown attempt class {:?}", from.class))?;
        Ok(Self {
            number: from.n,
            at: from.at.0,
            class,
            status: from.status,
            took_ms: from.ms,
            detail: from.detail.into_owned(),
        })
    }
}

impl<'a> OutcomeJson<'a> {
    pub(super) fn new(outcome: &'a Outcome, cut: Cut) -> Self {
        let envelope = &outcome.envelope;
        let skipped = match cut {
            Cut::Attempts => outcome.attempts.len().saturating_sub(1),
            _ => 0,
        };
        let mut attempts: Vec<AttemptJson<'_>> = outcome
            .attempts
            .iter()
            .skip(skipped)
            .map(AttemptJson::from)
            .collect();
        if cut == Cut::Details {
            attempts
                .iter_mut()
                .for_each(|attempt| attempt.detail = "".into());
        }
        let short = |text: &'a str| match cut {
            Cut::Attempts => text.chars().take(SHORT_DETAIL).collect::<String>().into(),
            _ => text.into(),
        };
        attempts.iter_mut().for_each(|attempt| {
            if cut == Cut::Attempts {
                attempt.detail = attempt.detail.chars().take(SHORT_DETAIL).collect();
            }
        });
        Self {
            seq: outcome.seq,
            id: envelope.id.as_str().into(),
            merchant: envelope.merchant.as_str().into(),
            generation: envelope.generation,
            outcome: outcome.kind.as_str().into(),
            reason: match outcome.kind {
                OutcomeKind::DeadLettered(reason) => Some(reason.as_str().into()),
                _ => None,
            },
            at: Rfc3339(outcome.at),
            created: Rfc3339(envelope.created),
            attempts,
            detail: short(&outcome.detail),
            payload_hash: Hex64(outcome.payload_hash),
            key: envelope.key.as_deref().map(Cow::from),
            priority: (envelope.priority != Priority::Normal)
                .then(|| envelope.priority.as_str().into()),
            traceparent: envelope.traceparent.as_deref().map(Cow::from),
            origin: envelope.origin.as_ref().map(ToString::to_string),
            test: envelope.test,
            deadline: None,
            not_before: None,
            r#type: None,
            source: None,
            time: None,
            content_type: None,
        }
    }

    /// With everything of the envelope, so that the order can be published again from it.
    pub(super) fn complete(outcome: &'a Outcome, cut: Cut) -> Self {
        let envelope = &outcome.envelope;
        Self {
            deadline: envelope.deadline.map(Rfc3339),
            not_before: envelope.not_before.map(Rfc3339),
            r#type: envelope.event_type.as_deref().map(Cow::from),
            source: envelope.source.as_deref().map(Cow::from),
            time: envelope.time.as_deref().map(Cow::from),
            content_type: envelope.content_type.as_deref().map(Cow::from),
            ..Self::new(outcome, cut)
        }
    }
}

impl TryFrom<OutcomeJson<'_>> for Outcome {
    type Error = String;

    fn try_from(from: OutcomeJson<'_>) -> Result<Self, String> {
        let kind = kind(&from.outcome, from.reason.as_deref()).ok_or_else(|| {
            format!(
                "unknown outcome {:?} {}",
                from.outcome,
                from.reason.as_deref().unwrap_or("")
            )
        })?;
        let origin = match from.origin.as_deref() {
            Some(text) => {
                Some(parse_origin(text).ok_or_else(|| format!("origin {text:?} is not readable"))?)
            }
            None => None,
        };
        let attempts: Result<_, _> = from.attempts.into_iter().map(TryInto::try_into).collect();
        Ok(Self {
            seq: from.seq,
            envelope: Envelope {
                id: OrderId::new(&from.id).map_err(|e| e.to_string())?,
                merchant: MerchantId::new(&from.merchant).map_err(|e| e.to_string())?,
                generation: from.generation,
                created: from.created.0,
                deadline: from.deadline.map(|time| time.0),
                not_before: from.not_before.map(|time| time.0),
                key: from.key.map(Into::into),
                priority: match from.priority.as_deref() {
                    Some(name) => Priority::from_name(name)
                        .ok_or_else(|| format!("unknown priority {name:?}"))?,
                    None => Priority::Normal,
                },
                event_type: from.r#type.map(Into::into),
                source: from.source.map(Into::into),
                time: from.time.map(Into::into),
                content_type: from.content_type.map(Into::into),
                traceparent: from.traceparent.map(Into::into),
                test: from.test,
                origin,
            },
            kind,
            payload_hash: from.payload_hash.0,
            at: from.at.0,
            attempts: attempts?,
            detail: from.detail.into_owned(),
        })
    }
}

/// The outcome of that name and reason.
pub(super) fn kind(outcome: &str, reason: Option<&str>) -> Option<OutcomeKind> {
    match outcome {
        "delivered" => Some(OutcomeKind::Delivered),
        "rejected" => Some(OutcomeKind::Rejected),
        "expired" => Some(OutcomeKind::Expired),
        "cancelled" => Some(OutcomeKind::Cancelled),
        "duplicate" => Some(OutcomeKind::Duplicate),
        "dead_lettered" => reason
            .and_then(DeadReason::from_name)
            .map(OutcomeKind::DeadLettered),
        _ => None,
    }
}

/// `outcomes.<p>`: a group, in the order of decision.
///
/// A group that does not fit [`MAX_GROUP`] is written with shorter attempts.
///
/// # Errors
/// [`WireError::TooLarge`] when it does not fit even so (above some 500 outcomes).
pub fn encode_outcomes(stamp: Stamp, outcomes: &[Outcome]) -> Result<Bytes, WireError> {
    let mut len = 0;
    for cut in Cut::STEPS {
        let group = GroupJson {
            v: V1,
            token: stamp.token,
            incarnation: stamp.incarnation.into(),
            outcomes: outcomes
                .iter()
                .map(|outcome| OutcomeJson::new(outcome, cut))
                .collect(),
        };
        let bytes = json::encode(&group, 128 + 448 * outcomes.len());
        if bytes.len() <= MAX_GROUP {
            return Ok(bytes.into());
        }
        len = bytes.len();
    }
    Err(WireError::TooLarge {
        what: WHAT,
        len,
        max: MAX_GROUP,
    })
}

/// Reads what [`encode_outcomes`] writes. What it does not keep of an envelope is `None`.
pub fn decode_outcomes(bytes: &[u8]) -> Result<(Stamp, Vec<Outcome>), WireError> {
    let group: GroupJson<'_> = json::decode(WHAT, bytes)?;
    let outcomes: Result<_, String> = group.outcomes.into_iter().map(TryInto::try_into).collect();
    let outcomes = outcomes.map_err(|detail| WireError::invalid(WHAT, detail))?;
    Ok((json::stamp(group.token, group.incarnation), outcomes))
}
