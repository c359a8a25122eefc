//! A merchant's state machine: which of the orders in its mailbox goes next, and what an answer
//! means for the order and for the merchant.
//!
//! Constraints: it holds no payload and no attempt history (the partition does), so that it can be
//! rebuilt at any moment from the partition's window. Its orders are either ready, behind an older
//! order of their key, or running. What has to wait longer leaves it by an [`Effect`].

use std::time::Duration;

use expediter_types::{
    Answer, AttemptClass, ClosedBecause, DeadReason, Limits, Now, OutcomeKind, Priority, Rate, Seq,
    UnixMillis,
};

mod adaptive;
mod answer;
mod breaker;
mod budget;
mod closing;
pub mod limits;
mod machine;
mod promises;
mod schedule;
mod select;

pub use machine::MerchantMachine;

/// A merchant closed for longer than this gives its waiting orders back.
const SHORT_CLOSURE: Duration = Duration::from_secs(2);
/// A suspended or misconfigured merchant is probed with one order so often.
pub const PROBE_EVERY: Duration = Duration::from_secs(60);
/// How long our own fault holds a merchant's orders back.
const LOCAL_PAUSE: Duration = Duration::from_secs(1);
/// For a 429 without a Retry-After that the adapter filled in.
const DEFAULT_CLOSURE: Duration = Duration::from_secs(1);

/// An order as the machine sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    pub seq: Seq,
    /// Orders of one key go in sequence; the partition decides what the key is.
    pub key: Option<u64>,
    /// Nothing starts at or after it: the order gives up.
    pub deadline: UnixMillis,
    /// Which of the mailbox goes first.
    pub priority: Priority,
    /// Counted so far.
    pub attempts: u32,
    pub first_attempt: Option<UnixMillis>,
    /// An attempt may have been received.
    pub ambiguous: bool,
    /// How many orders this machine gave back ([`Effect::Defer`], [`Effect::Return`]) as far as
    /// the partition had heard when it offered this one.
    pub returns: u64,
}

/// What the partition has to do about an order, or has to know of the merchant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The order ended and left.
    Finish { seq: Seq, kind: OutcomeKind },
    /// The order left and waits for a time.
    Defer {
        seq: Seq,
        due: UnixMillis,
        counted: bool,
        ambiguous: bool,
    },
    /// The order left; it could go when the merchant can take it.
    Return { seq: Seq },
    /// The order stays, its attempt ended without counting.
    Again { seq: Seq },
    /// The order was asked back before it was sent, and left.
    Withdrawn { seq: Seq },
    /// The order that just ended is parked, and those that share its key wait for a person.
    Hold,
    /// The merchant closed or opened.
    Closure(Option<Closure>),
}

/// The merchant takes nothing for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closure {
    pub because: ClosedBecause,
    /// It opens (rate limited), or is probed, by the wall clock.
    pub until: UnixMillis,
    /// How often in a row the circuit breaker opened; 0 for other causes.
    pub times: u32,
}

impl Closure {
    /// It keeps the merchant's orders waiting; also while the probe after it is under way.
    #[must_use]
    pub fn is_in_force(&self, now: Now) -> bool {
        self.until > now.wall || self.because != ClosedBecause::RateLimited
    }
}

/// How an attempt ended, as far as its merchant's machine is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub class: AttemptClass,
    /// How long the merchant asks to wait.
    pub retry_after: Option<Duration>,
    /// See [`Answer::absent`].
    pub absent: bool,
    /// From the start of the attempt to its end.
    pub took: Duration,
}

impl Ended {
    /// What of an answer the machine is told.
    #[must_use]
    pub fn of(answer: &Answer) -> Self {
        Self {
            class: answer.class,
            retry_after: answer.retry_after,
            absent: answer.absent,
            took: answer.took,
        }
    }
}

/// What could happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// This order may start now.
    Start(Seq),
    /// Nothing before this time of the monotonic clock.
    At(u64),
    /// Nothing until an input.
    Idle,
}

/// How many more orders the merchant wants in its mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepting {
    /// Up to its mailbox.
    Open,
    /// Up to its mailbox, but only few that were tried before: the retry budget is low.
    Short,
    /// Up to its mailbox, but none that were tried before: enough of them wait for the budget.
    Fresh,
    /// None before this time of the wall clock.
    ClosedUntil(UnixMillis),
    /// One, to find out whether the merchant is back.
    Probe,
}

/// What keeps the orders of a mailbox waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Nothing waits.
    Nothing,
    /// The merchant is closed.
    Closed,
    /// All wait behind an order of their key that runs.
    Key,
    /// So many attempts run, which is the limit now.
    Concurrency(u32),
    Rate(Rate),
    /// Our own fault a moment ago.
    Local,
    /// All were tried before, and the retry budget is used up.
    Budget,
    /// Attempts in flight of the whole node.
    Capacity,
    /// A limit that merchants share.
    Shared,
    /// The owner gives the partition back, or the merchant is held.
    Halted,
}

/// How many orders in the mailbox may wait for the retry budget.
pub(crate) fn share_of_repeats(limits: &Limits) -> u32 {
    (limits.mailbox.max(limits.concurrency) / 4).max(1)
}

/// How an order ends whose time is over.
#[must_use]
pub fn expiry(ambiguous: bool) -> OutcomeKind {
    if ambiguous {
        OutcomeKind::DeadLettered(DeadReason::Ambiguous)
    } else {
        OutcomeKind::Expired
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
