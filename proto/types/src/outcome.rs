use std::fmt;

use crate::{AttemptRecord, Envelope, Seq, UnixMillis};

/// Why an order became a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeadReason {
    /// May have been received by a merchant that cannot deduplicate.
    Ambiguous,
    /// `retry.max_attempts` were used up.
    AttemptsExhausted,
    /// The merchant answered that the order is wrong.
    Invalid,
    /// The message could not be read as an order.
    Undecodable,
    /// No such merchant within the grace.
    UnknownMerchant,
    /// The id was used before with another payload.
    IdConflict,
    /// The merchant was deleted with its orders on purpose.
    MerchantDeleted,
    /// Its steps crash the merchant's actor.
    Poisoned,
    /// The merchant's `limits.backlog` was reached.
    BacklogFull,
}

impl DeadReason {
    /// All reasons, for tables and tests.
    pub const ALL: [Self; 9] = [
        Self::Ambiguous,
        Self::AttemptsExhausted,
        Self::Invalid,
        Self::Undecodable,
        Self::UnknownMerchant,
        Self::IdConflict,
        Self::MerchantDeleted,
        Self::Poisoned,
        Self::BacklogFull,
    ];

    /// The name used on wires and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ambiguous => "ambiguous",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::Invalid => "invalid",
            Self::Undecodable => "undecodable",
            Self::UnknownMerchant => "unknown_merchant",
            Self::IdConflict => "id_conflict",
            Self::MerchantDeleted => "merchant_deleted",
            Self::Poisoned => "poisoned",
            Self::BacklogFull => "backlog_full",
        }
    }

    /// The reason of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }
}

impl fmt::Display for DeadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The terminal state of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutcomeKind {
    Delivered,
    Rejected,
    Expired,
    DeadLettered(DeadReason),
    /// An operator or the publisher took it back before it was sent.
    Cancelled,
    /// A publisher's repeat: closes its sequence, is no second outcome of the order.
    Duplicate,
}

impl OutcomeKind {
    /// The name used on wires and metrics; a dead letter's reason is apart.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::DeadLettered(_) => "dead_lettered",
            Self::Cancelled => "cancelled",
            Self::Duplicate => "duplicate",
        }
    }
}

/// How an order ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Its sequence in the log.
    pub seq: Seq,
    pub envelope: Envelope,
    pub kind: OutcomeKind,
    /// xxh3-64 of the payload: tells a publisher's repeat from a conflict of ids.
    pub payload_hash: u64,
    /// When it was decided.
    pub at: UnixMillis,
    /// What was tried, oldest first; long histories keep the first and the newest.
    pub attempts: Vec<AttemptRecord>,
    /// For people: why, where it is not plain from the kind. Empty for deliveries.
    pub detail: String,
}
