use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::{AttemptClass, MerchantId, Rate};

/// A destination as its manifest describes it; valid by construction of the manifest reader.
#[derive(Debug, Clone, PartialEq)]
pub struct Merchant {
    pub id: MerchantId,
    /// For people; the id by default.
    pub name: String,
    /// Merchants of one group share reports; `default` by default.
    pub group: String,
    pub adapter: Adapter,
    pub limits: Limits,
    pub retry: Retry,
}

/// How to reach a merchant over HTTP.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// http or https.
    pub url: String,
    /// POST by default; PUT or PATCH.
    pub method: String,
    /// Whole attempt; 1 s to 10 min, 30 s by default.
    pub timeout: Duration,
    /// Sent with every order; secrets only by reference.
    pub headers: Vec<(String, Secret)>,
    pub idempotency: Idempotency,
    /// How long the merchant remembers an idempotency key; 24 h by default.
    pub idempotency_window: Duration,
    /// Statuses that mean `rejected` instead of `invalid`.
    pub rejected: Vec<u16>,
    /// First match wins, before the built-in table.
    pub classify: Vec<ClassifyRule>,
}

/// A header's value: in the manifest, or only named there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    Plain(String),
    Reference(SecretRef),
}

/// Where a secret is kept: resolved at each attempt, never echoed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretRef {
    /// `env:NAME`
    Env(String),
    /// `file:PATH`; a trailing newline is cut.
    File(String),
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{path}"),
        }
    }
}

/// Whether the merchant can be sent the same order twice without harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idempotency {
    /// It honours the `Idempotency-Key` header.
    Native,
    /// It does not: an attempt that may have arrived is never repeated.
    None,
}

/// One `[[merchant.adapter.classify]]` entry: all its predicates hold → the class.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassifyRule {
    pub when: Vec<Predicate>,
    pub class: AttemptClass,
}

/// A condition on a response.
#[derive(Debug, Clone, PartialEq)]
pub enum Predicate {
    /// Inclusive range: `409` or `500-599`.
    Status(u16, u16),
    /// Header of that name (lower case) is present, and equal when a value is given.
    Header(String, Option<String>),
    /// `$.a.b[0]` in a JSON body exists, and equals the text when one is given (numbers and
    /// booleans are compared by their JSON text).
    Json(String, Option<String>),
}

/// In which order a merchant's orders are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ordering {
    /// Any.
    None,
    /// Orders that share their `Expediter-Key` go in publish order.
    Order,
    /// All go in publish order.
    Merchant,
}

/// What a merchant can bear.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// `None`: unlimited.
    pub rate: Option<Rate>,
    /// Orders that may go at once after a pause; 1 to 10,000; 1 by default.
    pub burst: u32,
    /// Attempts in flight; 1 to 10,000; 8 by default.
    pub concurrency: u32,
    pub ordering: Ordering,
    /// Orders in memory; 1 to 10,000; 64 by default, at least the concurrency is used.
    pub mailbox: u32,
}

/// When and how often an order is tried again.
#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    /// Upper bound of the first wait; 10 ms to 1 h; 500 ms by default.
    pub initial: Duration,
    /// Upper bound of every wait; `initial` to 24 h; 5 min by default.
    pub max: Duration,
    /// 1.0 to 10.0; 2.0 by default.
    pub multiplier: f64,
    /// 1 to 1,000; 12 by default.
    pub max_attempts: u32,
    /// From `created`, for orders that bring none; 1 s to 30 d; 24 h by default.
    pub deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rate: None,
            burst: 1,
            concurrency: 8,
            ordering: Ordering::None,
            mailbox: 64,
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            initial: Duration::from_millis(500),
            max: Duration::from_secs(300),
            multiplier: 2.0,
            max_attempts: 12,
            deadline: Duration::from_secs(86_400),
        }
    }
}

impl Adapter {
    /// All defaults, for that URL.
    #[must_use]
    pub fn to(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            method: "POST".to_owned(),
            timeout: Duration::from_secs(30),
            headers: Vec::new(),
            idempotency: Idempotency::None,
            idempotency_window: Duration::from_secs(86_400),
            rejected: Vec::new(),
            classify: Vec::new(),
        }
    }
}

impl Merchant {
    /// All defaults, for that URL.
    #[must_use]
    pub fn to(id: MerchantId, url: &str) -> Self {
        Self {
            name: id.to_string(),
            group: "default".to_owned(),
            adapter: Adapter::to(url),
            limits: Limits::default(),
            retry: Retry::default(),
            id,
        }
    }

    /// Shared by everything that handles this merchant.
    #[must_use]
    pub fn shared(self) -> Arc<Self> {
        Arc::new(self)
    }
}
