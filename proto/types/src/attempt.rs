use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::UnixMillis;

/// At most so much of a merchant's answer is kept, in bytes.
pub const MAX_EXCERPT: usize = 2048;

/// What is said of an attempt has at most so many characters.
pub const MAX_DETAIL: usize = 200;

/// What an answer (or its absence) means for the order and for its merchant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttemptClass {
    /// The merchant has it.
    Delivered,
    /// The merchant says that it had it before; counts as delivered.
    AlreadyDone,
    /// Surely not received; try again later.
    Retry,
    /// May have been received: repeated only where the merchant deduplicates.
    Ambiguous,
    /// The merchant asks to wait; uses up no attempt and closes the merchant.
    RateLimited,
    /// The merchant says no to this order.
    Rejected,
    /// This order cannot be taken as it is; no retry mends it.
    Invalid,
    /// Credentials are refused: concerns the whole merchant.
    Suspended,
    /// The endpoint is wrong: concerns the whole merchant.
    Misconfigured,
    /// Our own fault (no descriptors, no ports, no resolver): uses up no attempt.
    Local,
}

impl AttemptClass {
    /// All classes, for tables and tests.
    pub const ALL: [Self; 10] = [
        Self::Delivered,
        Self::AlreadyDone,
        Self::Retry,
        Self::Ambiguous,
        Self::RateLimited,
        Self::Rejected,
        Self::Invalid,
        Self::Suspended,
        Self::Misconfigured,
        Self::Local,
    ];

    /// The name used on wires, in manifests, metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::AlreadyDone => "already_done",
            Self::Retry => "retry",
            Self::Ambiguous => "ambiguous",
            Self::RateLimited => "rate_limited",
            Self::Rejected => "rejected",
            Self::Invalid => "invalid",
            Self::Suspended => "suspended",
            Self::Misconfigured => "misconfigured",
            Self::Local => "local",
        }
    }

    /// The class of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_str() == name)
    }
}

impl fmt::Display for AttemptClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How one attempt ended, as the adapter saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub class: AttemptClass,
    /// HTTP status, when there was one.
    pub status: Option<u16>,
    /// How long the merchant asks to wait, already clamped; closes the merchant.
    pub retry_after: Option<Duration>,
    /// A look-up before the request said that the merchant has not got the order: what former
    /// attempts left in doubt is settled, and this one's class alone counts.
    pub absent: bool,
    /// One line for people: what happened. No secrets, at most [`MAX_DETAIL`] characters.
    pub detail: String,
    /// Beginning of the response body, at most [`MAX_EXCERPT`] bytes; empty for deliveries.
    pub excerpt: Bytes,
    /// From the start of the attempt to its end.
    pub took: Duration,
}

/// What is kept of an attempt with its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRecord {
    /// 1 for the first.
    pub number: u32,
    /// When it was started.
    pub at: UnixMillis,
    pub class: AttemptClass,
    pub status: Option<u16>,
    pub took_ms: u32,
    /// One line for people: what happened and how the answer begins, without secrets, at most
    /// [`MAX_DETAIL`] characters. Empty for deliveries.
    pub detail: String,
}
