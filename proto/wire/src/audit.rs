//! Who did what to the platform, in the stream AUDIT: one record for each thing that a verb changed.

use bytes::Bytes;
use expediter_types::{MerchantId, NodeName, OrderId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::json::{self, V1, as_text};
use crate::{Rfc3339, WireError};

/// The longest text of a record, in characters; a longer one is cut.
pub const MAX_TEXT: usize = 1_000;
/// The largest details, in bytes of JSON; larger ones are replaced by `{"omitted_bytes": n}`.
pub const MAX_DETAILS: usize = 64 << 10;

/// Counts, revisions and differences; for people and scripts, without secrets.
pub type AuditDetails = Map<String, Value>;

/// One thing that an operator did, or tried to.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditRecord {
    /// When it ended.
    pub at: Rfc3339,
    /// A person, a host, a program.
    pub actor: String,
    /// As it is typed, with a dot: `merchant.apply`.
    pub verb: String,
    pub target: AuditTarget,
    /// In the operator's words; empty when none was given.
    pub reason: String,
    pub result: AuditResult,
    pub details: AuditDetails,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditResult {
    Ok,
    /// Nothing, or not all of it, was done; for people.
    Failed(String),
}

/// What it was done to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditTarget {
    /// Readers take kinds that they do not know.
    pub kind: String,
    pub id: String,
    /// The merchant that it is, or that it belongs to.
    #[serde(
        with = "optional_merchant",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub merchant: Option<MerchantId>,
}

impl AuditTarget {
    /// A merchant.
    #[must_use]
    pub fn merchant(id: &MerchantId) -> Self {
        Self::of_merchant("merchant", id.as_str(), id)
    }

    /// A merchant's order, dead letters included.
    #[must_use]
    pub fn order(merchant: &MerchantId, id: &OrderId) -> Self {
        Self::of_merchant("order", id.as_str(), merchant)
    }

    /// A merchant's recurring job.
    #[must_use]
    pub fn job(merchant: &MerchantId, id: &str) -> Self {
        Self::of_merchant("job", id, merchant)
    }

    /// A group of merchants.
    #[must_use]
    pub fn group(name: &str) -> Self {
        Self::alone("group", name)
    }

    /// An account that several merchants share.
    #[must_use]
    pub fn credential(name: &str) -> Self {
        Self::alone("credential", name)
    }

    /// A node.
    #[must_use]
    pub fn node(name: &NodeName) -> Self {
        Self::alone("node", name.as_str())
    }

    /// Of another kind, `a-z` and `_`, and of no one merchant.
    #[must_use]
    pub fn alone(kind: &str, id: &str) -> Self {
        let (kind, id) = (kind.to_owned(), id.to_owned());
        let merchant = None;
        Self { kind, id, merchant }
    }

    /// Of another kind, `a-z` and `_`, and of that merchant.
    #[must_use]
    pub fn of_merchant(kind: &str, id: &str, merchant: &MerchantId) -> Self {
        let merchant = Some(merchant.clone());
        Self {
            merchant,
            ..Self::alone(kind, id)
        }
    }
}

#[derive(Serialize, Deserialize)]
struct AuditJson {
    v: V1,
    at: Rfc3339,
    actor: String,
    verb: String,
    #[serde(flatten)]
    target: AuditTarget,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    reason: String,
    result: ResultJson,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    details: AuditDetails,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ResultJson {
    Ok,
    Failed,
}

/// Writes a record. Texts are cut to [`MAX_TEXT`] and lose control characters but line breaks, so
/// that it fits a message whatever people typed.
#[must_use]
pub fn encode_audit(record: &AuditRecord) -> Bytes {
    let (result, error) = match &record.result {
        AuditResult::Ok => (ResultJson::Ok, None),
        AuditResult::Failed(error) => (ResultJson::Failed, Some(cut(error))),
    };
    let size = json::encode(&record.details, 256).len();
    let details = if size <= MAX_DETAILS {
        record.details.clone()
    } else {
        Map::from_iter([("omitted_bytes".to_owned(), Value::from(size))])
    };
    json::encode_bytes(&AuditJson {
        v: V1,
        at: record.at,
        actor: cut(&record.actor),
        verb: cut(&record.verb),
        target: record.target.clone(),
        reason: cut(&record.reason),
        result,
        error,
        details,
    })
}

/// Reads what [`encode_audit`] writes.
pub fn decode_audit(bytes: &[u8]) -> Result<AuditRecord, WireError> {
    let value: AuditJson = json::decode("audit record", bytes)?;
    Ok(AuditRecord {
        at: value.at,
        actor: value.actor,
        verb: value.verb,
        target: value.target,
        reason: value.reason,
        result: match value.result {
            ResultJson::Ok => AuditResult::Ok,
            ResultJson::Failed => AuditResult::Failed(value.error.unwrap_or_default()),
        },
        details: value.details,
    })
}

fn cut(text: &str) -> String {
    let kept = text.chars().filter(|c| !c.is_control() || *c == '\n');
    kept.take(MAX_TEXT).collect()
}

mod optional_merchant {
    use super::{MerchantId, as_text};
    use serde::de::{Deserialize, Deserializer};
    use serde::ser::Serializer;

    #[expect(clippy::ref_option, reason = "serde calls it with a reference")]
    pub(super) fn serialize<S: Serializer>(
        merchant: &Option<MerchantId>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match merchant {
            Some(merchant) => as_text::serialize(merchant, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<MerchantId>, D::Error> {
        #[derive(serde::Deserialize)]
        struct Text(#[serde(with = "as_text")] MerchantId);
        Ok(Option::<Text>::deserialize(deserializer)?.map(|text| text.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> AuditRecord {
        AuditRecord {
            at: Rfc3339(1_770_000_000_000),
            actor: "ann@kitchen".into(),
            verb: "merchant.apply".into(),
            target: AuditTarget::merchant(&MerchantId::new("luigis").unwrap()),
            reason: String::new(),
            result: AuditResult::Ok,
            details: Map::new(),
        }
    }

    #[test]
    fn what_is_empty_is_left_out() {
        let json = r#"{"v":1,"at":"2026-02-02T02:40:00.000Z","actor":"ann@kitchen","verb":"merchant.apply","kind":"merchant","id":"luigis","merchant":"luigis","result":"ok"}"#;
        assert_eq!(encode_audit(&record()), json);
        assert_eq!(decode_audit(json.as_bytes()).unwrap(), record());
    }

    #[test]
    fn the_largest_record_fits_a_message() {
        let long = "\u{1f35d}\u{7}".repeat(1 << 20);
        let mut record = AuditRecord {
            reason: long.clone(),
            result: AuditResult::Failed(long.clone()),
            ..record()
        };
        record.details.insert("changes".into(), Value::from(long));
        let bytes = encode_audit(&record);
        assert!(bytes.len() < 128 << 10, "{}", bytes.len());
        let read = decode_audit(&bytes).unwrap();
        assert_eq!(read.reason.chars().count(), MAX_TEXT);
        assert!(read.details["omitted_bytes"].as_u64() > Some(1 << 20));
    }

    #[test]
    fn kinds_and_results_are_read_as_far_as_they_are_known() {
        let text = String::from_utf8(encode_audit(&record()).to_vec()).unwrap();
        let other = text.replace("\"kind\":\"merchant\"", "\"kind\":\"menu\"");
        assert_eq!(decode_audit(other.as_bytes()).unwrap().target.kind, "menu");
        for broken in [
            text.replace("\"ok\"", "\"perhaps\""),
            text.replace("luigis", "a b"),
        ] {
            assert!(decode_audit(broken.as_bytes()).is_err(), "{broken}");
        }
        let newer = decode_audit(text.replace("\"v\":1", "\"v\":2").as_bytes());
        assert!(matches!(newer, Err(WireError::Newer { v: 2, .. })));
    }
}
