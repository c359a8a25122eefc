use std::fmt;
use std::sync::Arc;

use crate::{Incarnation, MerchantId, OrderId, Seq, UnixMillis};

/// Orders with the same key are sent in publish order where the merchant asks for it.
pub type OrderKey = Arc<str>;

/// Which of a merchant's waiting orders go first, where the merchant asks for no order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Priority {
    High,
    #[default]
    Normal,
    /// Replays of dead letters, for example.
    Low,
}

impl Priority {
    /// All classes, the first to go first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// The name used in headers, records and manifests.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }

    /// The class of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_str() == name)
    }
}

/// What the platform knows of an order besides its payload, which is opaque.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    pub id: OrderId,
    pub merchant: MerchantId,
    /// 1 for the first publish; a replay is the next one.
    pub generation: u32,
    /// When the broker took the order in.
    pub created: UnixMillis,
    /// The order's own deadline; without one the merchant's `retry.deadline` counts from `created`.
    pub deadline: Option<UnixMillis>,
    /// Not sent before this.
    pub not_before: Option<UnixMillis>,
    /// `Expediter-Key`.
    pub key: Option<OrderKey>,
    /// `Expediter-Priority`.
    pub priority: Priority,
    /// `ce-type`, `ce-source`, `ce-time` as they came; passed on to the merchant.
    pub event_type: Option<Arc<str>>,
    pub source: Option<Arc<str>>,
    pub time: Option<Arc<str>>,
    pub content_type: Option<Arc<str>>,
    /// W3C trace context of the publisher.
    pub traceparent: Option<Arc<str>>,
    /// A marked order of `merchant test`.
    pub test: bool,
    /// Set when an owner published the order again because the broker had lost it.
    pub origin: Option<Origin>,
}

/// Where a re-published order stood in the log that lost it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    pub incarnation: Incarnation,
    pub seq: Seq,
}

/// `<created>.<counter>-<seq>`: the form in headers and records, and of derived order ids.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Incarnation { created, counter } = self.incarnation;
        write!(f, "{created}.{counter}-{}", self.seq)
    }
}
