//! What operators and the CLI ask of running nodes, and decisions kept in the KV bucket CONTROL.
//!
//! A request goes to `expediter.ctl.partition.<p>` (the owner of a partition answers) or
//! `expediter.ctl.node.<name>`; the reply repeats its `op`, or is an `error`.

use bytes::Bytes;
use expediter_types::{AttemptRecord, ClosedBecause, MerchantId, NodeName, OrderId, Seq};
use serde::{Deserialize, Serialize};

use crate::explain::Explanation;
use crate::json::{self, V1, as_text};
use crate::nodes::NodeStatus;
use crate::records::AttemptJson;
use crate::{Rfc3339, WireError};

/// Merchants in one [`ControlReply::Merchants`]: with the longest texts below the broker's usual
/// 1 MiB.
pub const MAX_MERCHANTS: usize = 500;

/// Sequences in one [`ControlRequest::PartitionAccount`].
pub const MAX_ACCOUNT: usize = 20_000;

/// A question or an order to the owner of a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op")]
pub enum ControlRequest {
    /// Where an order is; answered by [`ControlReply::Order`].
    #[serde(rename = "order.show")]
    OrderShow {
        #[serde(with = "as_text")]
        merchant: MerchantId,
        #[serde(with = "as_text")]
        id: OrderId,
    },
    /// A person resolved an order that was parked: those behind it may go; answered by
    /// [`ControlReply::Resolve`]. Asking again changes nothing.
    #[serde(rename = "order.resolve")]
    OrderResolve {
        #[serde(with = "as_text")]
        merchant: MerchantId,
        #[serde(with = "as_text")]
        id: OrderId,
        /// The one that was parked.
        generation: u32,
    },
    /// Answered by [`ControlReply::Merchant`].
    #[serde(rename = "merchant.status")]
    MerchantStatus {
        #[serde(with = "as_text")]
        merchant: MerchantId,
    },
    /// Merchants with unfinished orders, by id; answered by [`ControlReply::Merchants`].
    #[serde(rename = "merchant.list")]
    MerchantList {
        /// Only ids above this one; empty: from the first.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        after: String,
    },
    /// How much is left before the merchant can be deleted; answered by [`ControlReply::Drain`].
    #[serde(rename = "merchant.drain")]
    MerchantDrain {
        #[serde(with = "as_text")]
        merchant: MerchantId,
    },
    /// All waiting orders of the merchant become dead letters; answered by
    /// [`ControlReply::DeadLetter`].
    #[serde(rename = "merchant.dead_letter")]
    MerchantDeadLetter {
        #[serde(with = "as_text")]
        merchant: MerchantId,
        reason: String,
        actor: String,
    },
    /// Takes an order back that was not sent; answered by [`ControlReply::Cancel`].
    #[serde(rename = "order.cancel")]
    OrderCancel {
        #[serde(with = "as_text")]
        merchant: MerchantId,
        #[serde(with = "as_text")]
        id: OrderId,
        reason: String,
        actor: String,
    },
    /// Why an order waits; answered by [`ControlReply::Explanation`].
    #[serde(rename = "order.explain")]
    OrderExplain {
        #[serde(with = "as_text")]
        merchant: MerchantId,
        #[serde(with = "as_text")]
        id: OrderId,
    },
    /// Why a merchant's orders wait; answered by [`ControlReply::Explanation`].
    #[serde(rename = "merchant.explain")]
    MerchantExplain {
        #[serde(with = "as_text")]
        merchant: MerchantId,
    },
    /// Answered by [`ControlReply::Partition`].
    #[serde(rename = "partition.status")]
    PartitionStatus,
    /// Which of these sequences the owner can say nothing about; answered by
    /// [`ControlReply::Account`].
    #[serde(rename = "partition.account")]
    PartitionAccount {
        /// At most [`MAX_ACCOUNT`].
        seqs: Vec<Seq>,
    },
    /// An operator lets a partition go on that is paused because its owners crashed; answered by
    /// [`ControlReply::Resumed`]. Asking again changes nothing.
    #[serde(rename = "partition.resume")]
    PartitionResume,
    /// Only to a node; answered by [`ControlReply::Node`].
    #[serde(rename = "node.status")]
    NodeStatus,
}

/// The answer to a [`ControlRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op")]
pub enum ControlReply {
    #[serde(rename = "order.show")]
    Order(OrderStatus),
    #[serde(rename = "order.resolve")]
    Resolve {
        /// Others had waited behind it until this request.
        held: bool,
        /// It would survive the owner's end; else ask again.
        saved: bool,
    },
    #[serde(rename = "merchant.status")]
    Merchant(MerchantStatus),
    #[serde(rename = "merchant.list")]
    Merchants {
        /// By id, at most [`MAX_MERCHANTS`].
        merchants: Vec<MerchantStatus>,
        /// There are more above the last one.
        more: bool,
    },
    #[serde(rename = "merchant.drain")]
    Drain {
        /// Unfinished orders.
        remaining: u64,
    },
    #[serde(rename = "merchant.dead_letter")]
    DeadLetter {
        /// Orders that this request ended.
        ended: u64,
        /// Unfinished orders that are left, such as those in flight; ask again.
        remaining: u64,
    },
    #[serde(rename = "order.cancel")]
    Cancel {
        result: CancelResult,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seq: Option<Seq>,
        /// The partition was read up to this sequence.
        seen: Seq,
    },
    #[serde(rename = "explain")]
    Explanation(Box<Explanation>),
    #[serde(rename = "partition.status")]
    Partition(PartitionStatus),
    #[serde(rename = "partition.resume")]
    Resumed {
        /// It was paused until this request.
        paused: bool,
    },
    #[serde(rename = "partition.account")]
    Account {
        /// Every message of the partition up to it was taken.
        seen: Seq,
        /// Of the named sequences up to `seen`, those that do not wait here: finished, or lost.
        closed: Vec<Seq>,
    },
    #[serde(rename = "node.status")]
    Node(NodeStatus),
    /// The request could not be answered; for people.
    #[serde(rename = "error")]
    Error { message: String },
}

/// What came of a request to cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelResult {
    /// Its outcome is written.
    Cancelled,
    /// An attempt runs, or an earlier one may have been received.
    TooLate,
    /// It had ended before.
    Ended,
    /// Its id was not seen up to `seen`.
    Unknown,
    /// It is being cancelled; its outcome is not acknowledged yet.
    Pending,
}

/// Where an order is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// An attempt runs.
    InFlight,
    Mailbox,
    Store,
    Finished,
    /// Its id was not seen up to `seen`.
    Unknown,
}

/// An order and what was tried so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderStatus {
    pub found: bool,
    #[serde(rename = "where")]
    pub place: Place,
    /// The partition was read up to this sequence.
    #[serde(default)]
    pub seen: Seq,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<Seq>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Rfc3339>,
    /// Waits for this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<Rfc3339>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Rfc3339>,
    /// The newest attempt may have been received.
    #[serde(default, skip_serializing_if = "json::is_false")]
    pub ambiguous: bool,
    /// Name of the outcome, when it is finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    #[serde(with = "attempt_records", default)]
    pub attempts: Vec<AttemptRecord>,
}

/// How a merchant stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MerchantState {
    /// Has no work, and so no actor.
    Idle,
    Active,
    /// Takes no orders for a while.
    Closed,
    /// Crashes its actor; waits for `merchant resume`.
    Quarantined,
    /// Has orders, but nobody registered it.
    Unknown,
    /// An operator paused it, or its group.
    Paused,
    /// An operator drains it, or its group.
    Draining,
    /// Outside its opening hours.
    OutsideHours,
}

/// An operator's decision that is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldStatus {
    /// `merchant` or `group`.
    pub scope: String,
    pub reason: String,
    pub actor: String,
    pub at: Rfc3339,
}

/// A merchant as the owner of its partition sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MerchantStatus {
    #[serde(with = "as_text")]
    pub merchant: MerchantId,
    pub state: MerchantState,
    /// Unfinished orders.
    pub backlog: u64,
    /// Of these, in memory.
    pub mailbox: u64,
    /// Of these, with an attempt running.
    pub in_flight: u64,
    #[serde(with = "cause", default, skip_serializing_if = "Option::is_none")]
    pub closed_because: Option<ClosedBecause>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_until: Option<Rfc3339>,
    /// Who paused or drains it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<HoldStatus>,
    /// Outside its hours: when it opens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opens: Option<Rfc3339>,
    /// When its oldest unfinished order was taken in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<Rfc3339>,
    /// Orders that end in a minute, as of late.
    #[serde(default)]
    pub per_minute: u64,
    /// From the publish to the delivery, over the newest deliveries, in milliseconds: median and
    /// 99th percentile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50_ms: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<u32>,
    /// What its newest failed attempt was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// How a partition stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartitionState {
    /// Not claimed yet.
    Waiting,
    Recovering,
    Running,
    HandingOver,
}

/// A partition as its owner sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionStatus {
    pub partition: u16,
    #[serde(with = "as_text")]
    pub node: NodeName,
    pub epoch: Seq,
    pub state: PartitionState,
    pub seen: Seq,
    pub low_water: Seq,
    /// Orders that are taken and not finished.
    pub unfinished: u64,
    pub in_flight: u64,
    /// Merchants with unfinished orders.
    pub merchants: u64,
    /// Revision of the newest decision in CONTROL that the owner follows.
    #[serde(default)]
    pub decided: u64,
    /// No attempt starts until an operator says so, because its owners crashed.
    #[serde(default, skip_serializing_if = "json::is_false")]
    pub paused: bool,
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    v: V1,
    #[serde(flatten)]
    body: T,
}

/// Writes a request.
#[must_use]
pub fn encode_request(request: &ControlRequest) -> Bytes {
    json::encode_bytes(&Versioned {
        v: V1,
        body: request,
    })
}

/// Reads what [`encode_request`] writes; an unknown `op` is an error.
pub fn decode_request(bytes: &[u8]) -> Result<ControlRequest, WireError> {
    json::decode::<Versioned<ControlRequest>>("control request", bytes).map(|value| value.body)
}

/// Writes a reply.
#[must_use]
pub fn encode_reply(reply: &ControlReply) -> Bytes {
    json::encode_bytes(&Versioned { v: V1, body: reply })
}

/// Reads what [`encode_reply`] writes.
pub fn decode_reply(bytes: &[u8]) -> Result<ControlReply, WireError> {
    json::decode::<Versioned<ControlReply>>("control reply", bytes).map(|value| value.body)
}

/// What was decided about a merchant or a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    Quarantined,
    /// Nothing holds it any more.
    Resumed,
    /// Takes orders into its backlog, starts none.
    Paused,
    /// As paused; an operator waits for the attempts in flight.
    Draining,
}

/// The newest decision about a merchant or a group, as CONTROL keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MerchantDecision {
    pub state: Decision,
    pub reason: String,
    /// A person, or the node that quarantined it.
    pub actor: String,
    pub at: Rfc3339,
}

/// The key of a merchant's decision in CONTROL: `merchant.<id>`.
#[must_use]
pub fn decision_key(merchant: &MerchantId) -> String {
    format!("merchant.{merchant}")
}

/// The key of a group's decision in CONTROL: `group.<name>`.
#[must_use]
pub fn group_decision_key(group: &str) -> String {
    format!("group.{group}")
}

/// The group of a key of CONTROL; `None` for keys of another kind.
#[must_use]
pub fn parse_group_decision_key(key: &str) -> Option<&str> {
    key.strip_prefix("group.")
}

/// The merchant of a key of CONTROL; `None` for keys of another kind.
#[must_use]
pub fn parse_decision_key(key: &str) -> Option<MerchantId> {
    MerchantId::new(key.strip_prefix("merchant.")?).ok()
}

/// Writes a decision.
#[must_use]
pub fn encode_decision(decision: &MerchantDecision) -> Bytes {
    json::encode_bytes(&Versioned {
        v: V1,
        body: decision,
    })
}

/// Reads what [`encode_decision`] writes.
pub fn decode_decision(bytes: &[u8]) -> Result<MerchantDecision, WireError> {
    json::decode::<Versioned<MerchantDecision>>("decision", bytes).map(|value| value.body)
}

mod attempt_records {
    use super::{AttemptJson, AttemptRecord};
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    pub(super) fn serialize<S: Serializer>(
        records: &[AttemptRecord],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(records.iter().map(AttemptJson::from))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<AttemptRecord>, D::Error> {
        let records = Vec::<AttemptJson<'de>>::deserialize(deserializer)?;
        records
            .into_iter()
            .map(|record| record.try_into().map_err(D::Error::custom))
            .collect()
    }
}

mod cause {
    use super::ClosedBecause;
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::{Serialize, Serializer};

    #[expect(clippy::ref_option, reason = "serde calls it with a reference")]
    pub(super) fn serialize<S: Serializer>(
        cause: &Option<ClosedBecause>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        cause.map(ClosedBecause::as_str).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<ClosedBecause>, D::Error> {
        match Option::<String>::deserialize(deserializer)? {
            Some(name) => match ClosedBecause::from_name(&name) {
                None => Err(D::Error::custom(format_args!("unknown cause {name:?}"))),
                known => Ok(known),
            },
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::{FailingCheck, NodePartition};
    use expediter_types::AttemptClass;

    fn merchant() -> MerchantId {
        MerchantId::new("luigis").unwrap()
    }

    #[test]
    fn requests_are_read_back() {
        let id = OrderId::new("o/1").unwrap();
        let (reason, actor) = ("closed for good".to_owned(), "ann".to_owned());
        for (request, json) in [
            (
                ControlRequest::OrderShow {
                    merchant: merchant(),
                    id,
                },
                r#"{"v":1,"op":"order.show","merchant":"luigis","id":"o/1"}"#,
            ),
            (
                ControlRequest::OrderResolve {
                    merchant: merchant(),
                    id: OrderId::new("4711").unwrap(),
                    generation: 2,
                },
                r#"{"v":1,"op":"order.resolve","merchant":"luigis","id":"4711","generation":2}"#,
            ),
            (
                ControlRequest::MerchantStatus {
                    merchant: merchant(),
                },
                r#"{"v":1,"op":"merchant.status","merchant":"luigis"}"#,
            ),
            (
                ControlRequest::MerchantDrain {
                    merchant: merchant(),
                },
                r#"{"v":1,"op":"merchant.drain","merchant":"luigis"}"#,
            ),
            (
                ControlRequest::MerchantDeadLetter {
                    merchant: merchant(),
                    reason,
                    actor,
                },
                r#"{"v":1,"op":"merchant.dead_letter","merchant":"luigis","reason":"closed for good","actor":"ann"}"#,
            ),
            (
                ControlRequest::MerchantList {
                    after: "luigis".into(),
                },
                r#"{"v":1,"op":"merchant.list","after":"luigis"}"#,
            ),
            (
                ControlRequest::PartitionStatus,
                r#"{"v":1,"op":"partition.status"}"#,
            ),
            (
                ControlRequest::PartitionResume,
                r#"{"v":1,"op":"partition.resume"}"#,
            ),
            (
                ControlRequest::PartitionAccount { seqs: vec![3, 9] },
                r#"{"v":1,"op":"partition.account","seqs":[3,9]}"#,
            ),
            (ControlRequest::NodeStatus, r#"{"v":1,"op":"node.status"}"#),
        ] {
            assert_eq!(encode_request(&request), json);
            assert_eq!(decode_request(json.as_bytes()).unwrap(), request);
        }
        assert!(decode_request(br#"{"v":1,"op":"order.fry"}"#).is_err());
        assert!(decode_request(br#"{"v":1,"op":"merchant.drain","merchant":"a b"}"#).is_err());
        let newer = decode_request(br#"{"v":2,"op":"partition.status"}"#);
        assert!(matches!(newer, Err(WireError::Newer { v: 2, .. })));
    }

    #[test]
    fn replies_are_read_back() {
        let attempt = AttemptRecord {
            number: 1,
            at: 1_770_000_000_000,
            class: AttemptClass::RateLimited,
            status: Some(429),
            took_ms: 12,
            detail: "429".into(),
        };
        let order = OrderStatus {
            found: true,
            place: Place::InFlight,
            seen: u64::MAX,
            seq: Some(7),
            generation: Some(1),
            created: Some(Rfc3339(1)),
            due: None,
            deadline: Some(Rfc3339(2)),
            ambiguous: true,
            outcome: None,
            attempts: vec![attempt],
        };
        let merchant = MerchantStatus {
            merchant: merchant(),
            state: MerchantState::Closed,
            backlog: 3,
            mailbox: 2,
            in_flight: 1,
            closed_because: Some(ClosedBecause::Suspended),
            closed_until: Some(Rfc3339(5)),
            hold: None,
            opens: None,
            per_minute: 0,
            p50_ms: None,
            p99_ms: None,
            oldest: None,
            last_error: Some("401".into()),
        };
        let partition = PartitionStatus {
            partition: 3,
            node: NodeName::new("n").unwrap(),
            epoch: 1,
            state: PartitionState::HandingOver,
            seen: 2,
            low_water: 1,
            unfinished: 1,
            in_flight: 0,
            merchants: 1,
            decided: 3,
            paused: true,
        };
        let node = NodeStatus {
            node: NodeName::new("n").unwrap(),
            instance: "a-1-b".into(),
            version: "0.1.0".into(),
            partitions: vec![NodePartition {
                partition: 3,
                state: PartitionState::Waiting,
            }],
            live_nodes: 2,
            in_flight: 1,
            capacity: 5_000,
            ready: false,
            failing: vec![FailingCheck {
                check: "partitions".into(),
                reason: "1 partitions are not running yet".into(),
            }],
            at: Some(Rfc3339(1_770_000_000_000)),
            unaccounted: -1,
            store_waiting: 7,
            store_bytes: 1 << 20,
        };
        for reply in [
            ControlReply::Order(order),
            ControlReply::Merchants {
                merchants: vec![merchant.clone()],
                more: true,
            },
            ControlReply::Merchant(merchant),
            ControlReply::Drain { remaining: 4 },
            ControlReply::DeadLetter {
                ended: 3,
                remaining: 1,
            },
            ControlReply::Partition(partition),
            ControlReply::Resumed { paused: true },
            ControlReply::Account {
                seen: 9,
                closed: vec![3, 8],
            },
            ControlReply::Node(node),
            ControlReply::Error {
                message: "not the owner".into(),
            },
        ] {
            assert_eq!(decode_reply(&encode_reply(&reply)).unwrap(), reply);
        }
        let shown = br#"{"v":1,"op":"order.show","found":false,"where":"unknown","more":1}"#;
        let Ok(ControlReply::Order(order)) = decode_reply(shown) else {
            panic!("no order")
        };
        assert_eq!((order.found, order.place), (false, Place::Unknown));
    }

    #[test]
    fn decisions_are_read_back() {
        let decision = MerchantDecision {
            state: Decision::Quarantined,
            reason: "5 restarts in a minute".into(),
            actor: "node kitchen-1".into(),
            at: Rfc3339(1_770_000_000_000),
        };
        assert_eq!(
            decode_decision(&encode_decision(&decision)).unwrap(),
            decision
        );
        assert_eq!(
            parse_decision_key(&decision_key(&merchant())),
            Some(merchant())
        );
        assert_eq!(parse_decision_key("partition.3"), None);
    }
}
