//! Why orders wait: the owner's answer to `order explain` and `merchant explain`.

use serde::{Deserialize, Serialize};

use crate::Rfc3339;
use crate::control::{HoldStatus, MerchantStatus, OrderStatus};

/// What keeps the orders of a merchant, or one of them, waiting. The first reason is the one that
/// counts now; those after it would hold, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    pub merchant: MerchantStatus,
    /// Absent: the whole merchant was asked about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<OrderStatus>,
    /// Empty: nothing holds it.
    pub reasons: Vec<Reason>,
    /// Older unfinished orders of the merchant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<u64>,
    /// There are more: counting stopped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ahead_or_more: bool,
    /// Orders of the merchant that end in a minute, as of late.
    pub per_minute: u64,
    /// When it goes at that pace, once nothing else holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goes: Option<Rfc3339>,
}

/// One cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Reason {
    /// An attempt is under way.
    InFlight,
    /// Its attempt is listed in OUTCOMES before it leaves.
    Marking,
    NotRegistered,
    Quarantined,
    /// An operator paused or drains the merchant or its group.
    Held {
        state: String,
        #[serde(flatten)]
        by: HoldStatus,
    },
    OutsideHours {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        opens: Option<Rfc3339>,
    },
    /// `because`: rate_limited, suspended, misconfigured or breaker.
    Closed {
        because: String,
        until: Rfc3339,
    },
    /// The owner gives the partition to another node.
    HandsOver,
    /// The partition is paused, because its owners crashed.
    PartitionPaused,
    /// Too many outcomes wait for the broker.
    OutcomesWait,
    /// Too many of the merchant's dead letters do.
    DeadLettersWait,
    /// The orders in memory are too large for more of this merchant.
    MemoryFull,
    /// An older order of its key was parked: `order resolve`.
    ParkedKey,
    /// Not before this time.
    NotBefore {
        until: Rfc3339,
    },
    /// It was tried, and is tried again then.
    Retry {
        at: Rfc3339,
        attempts: u32,
    },
    /// An order of its key, or of its merchant, runs.
    BehindItsKey,
    /// So many attempts run, which is the limit.
    Concurrency {
        limit: u32,
    },
    /// The merchant's own rate.
    Rate {
        limit: String,
    },
    /// A limit that merchants share. `scope`: group, credential or node; `held`: rate, concurrency,
    /// closed (a merchant asked to wait) or no_slice (other nodes have all of it). An older node
    /// does not say which.
    SharedLimit {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scope: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        held: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Rfc3339>,
    },
    /// The attempts in flight of the node.
    Capacity,
    /// Orders that were tried before wait for the retry budget.
    RetryBudget,
    /// The node's own fault: descriptors, ports, resolver, lease.
    Local,
    /// Older orders go first.
    OlderFirst,
}
