use std::collections::BTreeMap;

use serde::Serialize;

/// What the judge found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Faults that happened.
    pub faults: usize,
    /// Those that were a SIGKILL, of a node, a broker or all of them.
    pub kill9: usize,
    /// Faults by kind.
    pub kinds: BTreeMap<&'static str, usize>,
    /// Orders whose publish was acknowledged.
    pub orders: usize,
    /// Those without an outcome, or that are called delivered and were not.
    pub lost: usize,
    /// Orders that overtook the one before of their key.
    pub out_of_order: usize,
    /// Orders that a merchant took more than once, all with the same idempotency key.
    pub duplicated: usize,
    /// Those of which no attempt was in flight at a fault.
    pub duplicated_unexplained: usize,
    /// Dead letters `ambiguous`.
    pub parked: usize,
    /// Those of which no attempt was in flight at a fault.
    pub parked_unexplained: usize,
    /// Times that a merchant got more than its limits allow.
    pub limits_broken: usize,
    /// From SIGKILL of a node to the first request of the new owner of one of its partitions, the
    /// longest, where no fault of a broker was near; seconds.
    pub max_takeover_s: Option<f64>,
    /// The same within 10 s of a fault of a broker.
    pub max_takeover_broker_fault_s: Option<f64>,
    /// The take-overs that were measured, in seconds: of half of them it was less.
    pub median_takeover_s: Option<f64>,
    pub takeovers: usize,
    /// All of them: seconds since the first fault, seconds that it took, and whether a broker's fault
    /// was near.
    pub takeover_times: Vec<(f64, f64, bool)>,
    pub seed: u64,
    pub brokers: usize,
    /// What must not be, in words.
    pub violations: Vec<String>,
}

impl Report {
    /// Nothing was lost, made up, reordered, repeated without a reason or sent too fast.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }
}
