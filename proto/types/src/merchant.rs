use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::{AttemptClass, Hours, Job, MerchantId, Rate};

/// A destination as its manifest describes it; valid by construction of the manifest reader.
#[derive(Debug, Clone, PartialEq)]
pub struct Merchant {
    pub id: MerchantId,
    /// For people; the id by default.
    pub name: String,
    /// Merchants of one group share reports, a pause, and the group's limits ([`Scope`]); `default` by
    /// default.
    pub group: String,
    pub adapter: Adapter,
    pub limits: Limits,
    pub retry: Retry,
    pub breaker: Breaker,
    /// `None`: always open.
    pub hours: Option<Arc<Hours>>,
    /// Orders that are published on a schedule; at most 32, names differ.
    pub jobs: Vec<Job>,
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
    /// The account at the merchant's vendor; merchants of one credential share its limits
    /// ([`Scope`]). `None`: none is shared.
    pub credential: Option<String>,
    /// Whose limit the merchant's answers (429, Retry-After, RateLimit headers) speak of;
    /// the merchant's own by default.
    pub rate_limit_scope: LimitScope,
    pub idempotency: Idempotency,
    /// Asked before any repeat; there exactly with [`Idempotency::Lookup`].
    pub lookup: Option<Box<Lookup>>,
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
    /// It refuses an order reference that it has: a `classify` rule names that answer
    /// `already_done`. Repeated like [`Idempotency::Native`], without the header.
    UniqueRef,
    /// It can be asked whether it has an order ([`Adapter::lookup`]); an attempt that may have
    /// arrived is repeated only when it says no.
    Lookup,
    /// It does not: an attempt that may have arrived is never repeated.
    None,
}

impl Idempotency {
    /// Each attempt is listed in OUTCOMES before its request leaves: after a crash it must be known
    /// what may have arrived.
    #[must_use]
    pub fn is_marked(self) -> bool {
        matches!(self, Self::None | Self::Lookup)
    }

    /// The merchant itself notices a repeat, for as long as it remembers.
    #[must_use]
    pub fn deduplicates(self) -> bool {
        matches!(self, Self::Native | Self::UniqueRef)
    }
}

/// How to ask a merchant whether it has an order.
#[derive(Debug, Clone, PartialEq)]
pub struct Lookup {
    /// Asked with GET and the adapter's headers; `{id}` stands for the order's id (percent-encoded).
    pub url: String,
    /// An attempt that may have arrived is asked about no sooner, as the merchant may still be at
    /// work on it; 0 to 1 h; the adapter's timeout by default.
    pub after: Option<Duration>,
    /// The first whose predicates all hold decides; without one that does: 2xx is found, 404 and
    /// 410 are absent, anything else decides nothing.
    pub rules: Vec<LookupRule>,
}

/// One `[[merchant.adapter.lookup.rules]]` entry.
#[derive(Debug, Clone, PartialEq)]
pub struct LookupRule {
    pub when: Vec<Predicate>,
    pub verdict: LookupVerdict,
}

/// What a look-up said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupVerdict {
    /// The merchant has the order.
    Found,
    /// It has not: the order may be sent again.
    Absent,
}

/// Whose limit is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LimitScope {
    Merchant,
    Group,
    Credential,
}

impl LimitScope {
    /// The name used on wires, in manifests and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Merchant => "merchant",
            Self::Group => "group",
            Self::Credential => "credential",
        }
    }
}

/// A limit that merchants share, over all nodes: `[[group]]` and `[[credential]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Scope {
    /// [`LimitScope::Group`] or [`LimitScope::Credential`].
    pub kind: LimitScope,
    /// As a merchant's id.
    pub id: String,
    /// All hold at once; at most 4; empty: unlimited.
    pub rates: Vec<Rate>,
    /// Orders that may go at once after a pause; 1 to 10,000; 1 by default.
    pub burst: u32,
    /// Attempts in flight of all its merchants; 1 to 100,000; `None`: unlimited.
    pub concurrency: Option<u32>,
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
    /// All hold at once; at most 4, by period, no period twice; empty: unlimited. The one with the
    /// shortest period paces the orders, with `burst`; each longer one is a quota: at most so many
    /// in any window of its period.
    pub rates: Vec<Rate>,
    /// Orders that may go at once after a pause; 1 to 10,000; 1 by default.
    pub burst: u32,
    /// Attempts in flight; 1 to 10,000; 8 by default.
    pub concurrency: u32,
    /// The limit in force moves between this and `concurrency` with what the merchant bears; 1 to
    /// `concurrency`; `None`: `concurrency` is always in force.
    pub min_concurrency: Option<u32>,
    pub ordering: Ordering,
    /// Orders in memory; 1 to 10,000; 64 by default, at least the concurrency is used.
    pub mailbox: u32,
    /// Unfinished orders; one beyond ends at once as a dead letter (`backlog_full`). 1 to
    /// 100,000,000; `None`: unlimited.
    pub backlog: Option<u64>,
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
    /// 1 to 1,000; 1,000 by default: the deadline ends an order, not this.
    pub max_attempts: u32,
    /// From `created`, for orders that bring none; 1 s to 30 d; 24 h by default.
    pub deadline: Duration,
    /// An order expires so long before its deadline, so that its publisher can act; at most a
    /// quarter of its time is used. 0 to 1 h; 1 s by default.
    pub margin: Duration,
    /// Retries for each first attempt and each delivery, besides some each second; 0.0 to 10.0; 0.2
    /// by default. So a merchant that fails is not hammered by a large backlog.
    pub budget: f64,
    /// What becomes of later orders that share the key of one that was parked as `ambiguous`;
    /// for merchants with an ordering.
    pub on_park: OnPark,
}

/// What a parked order means for those behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnPark {
    /// They go on.
    Continue,
    /// They wait until a person resolves it.
    Hold,
}

/// When a merchant counts as failing, so that its backlog waits instead of being tried.
#[derive(Debug, Clone, PartialEq)]
pub struct Breaker {
    /// Failed attempts in a row that open it; 0 (off) to 10,000; 10 by default. Failed: `retry` and
    /// `ambiguous`.
    pub consecutive: u32,
    /// Share of failed attempts in `window` that opens it; 0.01 to 1.0; 0.7 by default.
    pub ratio: f64,
    /// Attempts in the window before `ratio` counts; 0 (off) to 100,000; 20 by default.
    pub min_samples: u32,
    /// 1 s to 1 h; 60 s by default.
    pub window: Duration,
    /// How long it stays open before a probe, doubled after each failed one; 100 ms to 1 h; 5 s by
    /// default.
    pub open: Duration,
    /// Upper bound of that; `open` to 24 h; 60 s by default.
    pub max_open: Duration,
    /// Probes that have to succeed in a row to close it; 1 to 100; 1 by default. One runs at a time.
    pub probes: u32,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            consecutive: 10,
            ratio: 0.7,
            min_samples: 20,
            window: Duration::from_secs(60),
            open: Duration::from_secs(5),
            max_open: Duration::from_secs(60),
            probes: 1,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rates: Vec::new(),
            burst: 1,
            concurrency: 8,
            min_concurrency: None,
            ordering: Ordering::None,
            mailbox: 64,
            backlog: None,
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            initial: Duration::from_millis(500),
            max: Duration::from_secs(300),
            multiplier: 2.0,
            max_attempts: 1_000,
            deadline: Duration::from_secs(86_400),
            margin: Duration::from_secs(1),
            budget: 0.2,
            on_park: OnPark::Continue,
        }
    }
}

impl Adapter {
    /// So long after an attempt whose answer was lost, a look-up tells whether it arrived.
    #[must_use]
    pub fn settles_after(&self) -> Duration {
        let lookup = self.lookup.as_ref();
        lookup
            .and_then(|lookup| lookup.after)
            .unwrap_or(self.timeout)
    }

    /// All defaults, for that URL.
    #[must_use]
    pub fn to(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            method: "POST".to_owned(),
            timeout: Duration::from_secs(30),
            headers: Vec::new(),
            credential: None,
            rate_limit_scope: LimitScope::Merchant,
            idempotency: Idempotency::None,
            lookup: None,
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
            breaker: Breaker::default(),
            hours: None,
            jobs: Vec::new(),
            id,
        }
    }

    /// The orders behind one that is parked as `ambiguous` wait until a person resolves it.
    #[must_use]
    pub fn holds_on_park(&self) -> bool {
        self.retry.on_park == OnPark::Hold && self.limits.ordering != Ordering::None
    }

    /// Shared by everything that handles this merchant.
    #[must_use]
    pub fn shared(self) -> Arc<Self> {
        Arc::new(self)
    }
}
