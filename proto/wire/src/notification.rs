//! What a node tells the operators' own system by webhook: the body of the request.
//!
//! It follows Standard Webhooks (`type`, `timestamp`, `data`); the headers are the sender's. No
//! payload and no answer of a merchant is in it: who wants more asks with the ids.

use bytes::Bytes;
use expediter_types::{MerchantId, NodeName, OrderId, UnixMillis};
use serde::{Deserialize, Serialize};

use crate::json::{self, V1, as_text};
use crate::{Rfc3339, WireError};

const WHAT: &str = "notification";

/// What happened.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub enum Happened {
    /// Orders became dead letters (`ambiguous`): a person must decide.
    #[serde(rename = "order.parked")]
    OrderParked,
    /// Orders reached their deadline undelivered.
    #[serde(rename = "order.expired")]
    OrderExpired,
    /// A merchant takes no orders; they wait.
    #[serde(rename = "merchant.suspended")]
    MerchantSuspended,
}

impl Happened {
    /// All types.
    pub const ALL: [Self; 3] = [
        Self::OrderParked,
        Self::OrderExpired,
        Self::MerchantSuspended,
    ];

    /// As `type` says it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OrderParked => "order.parked",
            Self::OrderExpired => "order.expired",
            Self::MerchantSuspended => "merchant.suspended",
        }
    }
}

/// Why a merchant takes no orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Because {
    /// It refuses our credentials.
    Suspended,
    /// Its manifest does not lead to it.
    Misconfigured,
    /// Its actor keeps panicking.
    Quarantined,
}

impl Because {
    /// All causes.
    pub const ALL: [Self; 3] = [Self::Suspended, Self::Misconfigured, Self::Quarantined];

    /// As `because` says it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Suspended => "suspended",
            Self::Misconfigured => "misconfigured",
            Self::Quarantined => "quarantined",
        }
    }
}

/// One or more events of one type and merchant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    pub happened: Happened,
    /// Who tells.
    pub node: NodeName,
    pub merchant: MerchantId,
    /// Events that are told of at once, 1 or more.
    pub count: u64,
    pub first: UnixMillis,
    pub last: UnixMillis,
    /// The first orders among them, at most [`Notification::ORDERS`]; empty for a merchant's event.
    pub orders: Vec<OrderId>,
    /// For [`Happened::MerchantSuspended`], of the last event.
    pub because: Option<Because>,
}

impl Notification {
    /// Ids of orders in one notification.
    pub const ORDERS: usize = 10;
}

#[derive(Serialize, Deserialize)]
struct NotificationJson {
    v: V1,
    #[serde(rename = "type")]
    happened: Happened,
    /// Of the last event.
    timestamp: Rfc3339,
    data: DataJson,
}

#[derive(Serialize, Deserialize)]
struct DataJson {
    #[serde(with = "as_text")]
    node: NodeName,
    #[serde(with = "as_text")]
    merchant: MerchantId,
    count: u64,
    first: Rfc3339,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    orders: Vec<OrderIdJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    because: Option<Because>,
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct OrderIdJson(#[serde(with = "as_text")] OrderId);

/// Writes the body.
#[must_use]
pub fn encode_notification(notification: &Notification) -> Bytes {
    json::encode_bytes(&NotificationJson {
        v: V1,
        happened: notification.happened,
        timestamp: Rfc3339(notification.last),
        data: DataJson {
            node: notification.node.clone(),
            merchant: notification.merchant.clone(),
            count: notification.count,
            first: Rfc3339(notification.first),
            orders: notification
                .orders
                .iter()
                .cloned()
                .map(OrderIdJson)
                .collect(),
            because: notification.because,
        },
    })
}

/// Reads what [`encode_notification`] writes.
///
/// # Errors
/// It is none, or of a newer version.
pub fn decode_notification(bytes: &[u8]) -> Result<Notification, WireError> {
    let read: NotificationJson = json::decode(WHAT, bytes)?;
    let data = read.data;
    Ok(Notification {
        happened: read.happened,
        node: data.node,
        merchant: data.merchant,
        count: data.count,
        first: data.first.0,
        last: read.timestamp.0,
        orders: data.orders.into_iter().map(|id| id.0).collect(),
        because: data.because,
    })
}
