//! The vocabulary of the platform: ids, time, limits, envelopes, attempt classes and outcomes.
//!
//! Constraints: no I/O, no clock, no serialisation format. Every value that exists is valid: the
//! constructors check, so nobody downstream has to.

mod attempt;
mod duration;
mod envelope;
mod hold;
mod hours;
mod ids;
mod job;
mod merchant;
mod outcome;
mod rate;
mod record;
mod slices;
mod time;

pub use attempt::{Answer, AttemptClass, AttemptRecord, MAX_DETAIL, MAX_EXCERPT};
pub use duration::{InvalidDuration, format_duration, parse_duration};
pub use envelope::{Envelope, OrderKey, Origin, Priority};
pub use hold::{Hold, HoldState};
pub use hours::{Hours, OpenRange, OpenState};
pub use ids::{InvalidId, MerchantId, NodeName, OrderId, Partition, Seq};
pub use job::{Job, Missed};
pub use merchant::{
    Adapter, Breaker, ClassifyRule, Idempotency, LimitScope, Limits, Lookup, LookupRule,
    LookupVerdict, Merchant, OnPark, Ordering, Predicate, Retry, Scope, Secret, SecretRef,
};
pub use outcome::{DeadReason, Outcome, OutcomeKind};
pub use rate::{InvalidRate, Rate};
pub use record::{
    AttemptCount, AttemptMark, Claim, ClaimState, ClosedBecause, ClosedMerchant, Crash, Crashes,
    DeadLetter, Mark, ParkedOrder, Record, ShiftRecord, SpentQuota, Stamp,
};
pub use slices::{Slice, SliceEntry, SliceTable};
pub use time::{Incarnation, Now, UnixMillis};
