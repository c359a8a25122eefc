//! What an owner writes to OUTCOMES, as values; their bytes are `wire`'s business.

use std::time::Duration;

use bytes::Bytes;
use roaring::RoaringTreemap;

use crate::{Incarnation, MerchantId, NodeName, OrderId, Outcome, Seq, UnixMillis};

/// On every record: who wrote it. Readers ignore a record whose token is not the newest claim
/// before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    /// OUTCOMES sequence of the writer's claim: the epoch.
    pub token: Seq,
    /// The log its sequences refer to.
    pub incarnation: Incarnation,
}

/// `claim.<p>`: the right to work on a partition. Its own sequence is the epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub node: NodeName,
    /// Differs for each start of the process.
    pub instance: String,
    pub state: ClaimState,
    /// Sequence of the claim record this one replaces; 0 for the first.
    pub replaces: Seq,
    pub incarnation: Incarnation,
    /// Highest ORDERS sequence that survived into this incarnation; records of an older
    /// incarnation say nothing about sequences above it.
    pub cut: Seq,
    pub at: UnixMillis,
    pub crashes: Crashes,
}

/// How often a partition's owners ended without giving it back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Crashes {
    /// Of the last ten minutes before the claim, oldest first.
    pub of: Vec<Crash>,
    /// They were too many: no attempt starts until an operator says so.
    pub paused: bool,
}

/// An owner that ended without giving its partition back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crash {
    /// When its successor noticed.
    pub at: UnixMillis,
    /// The process: one that turns out to live did not crash.
    pub instance: String,
}

/// Held, or given back by its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimState {
    Held,
    Released {
        /// The owner's epoch: a store of that epoch is still trusted.
        epoch: Seq,
        /// Orders whose attempts still ran at the drain deadline: ambiguous, and not attempted
        /// again before `busy_until`.
        running: Vec<Seq>,
        busy_until: UnixMillis,
    },
}

/// `mark.<p>`: what is finished, so that ORDERS can be compacted and OUTCOMES need not be read
/// from its beginning.
#[derive(Debug, Clone, PartialEq)]
pub struct Mark {
    /// Every order at or below it is finished.
    pub low_water: Seq,
    /// Every message at or below it reached this owner.
    pub seen: Seq,
    /// Finished sequences above `low_water`.
    pub finished: RoaringTreemap,
    /// Outcomes up to this OUTCOMES sequence are in `low_water` and `finished`.
    pub covers: Seq,
    /// OUTCOMES sequence from which a successor without this owner's store reads ids to notice
    /// publishers' repeats; at most `covers`.
    pub repeats_from: Seq,
    /// Unfinished orders that were attempted.
    pub attempts: Vec<AttemptCount>,
    /// Merchants that asked to wait or refused us.
    pub closed: Vec<ClosedMerchant>,
    /// Unfinished orders of merchants that nobody registered, and since when an owner with a
    /// current registry knows that.
    pub unknown_since: Vec<(MerchantId, UnixMillis)>,
    /// Orders that ended as `ambiguous` and that those behind them wait for; by merchant and sequence.
    pub parked: Vec<ParkedOrder>,
    /// What merchants were sent that still counts for their quotas.
    pub spent: Vec<(MerchantId, Vec<SpentQuota>)>,
    /// From when to when nobody knows what was sent: for merchants that `spent` does not name.
    pub unknown: Vec<(UnixMillis, UnixMillis)>,
    /// No attempt started after it in this epoch.
    pub last: bool,
    pub at: UnixMillis,
}

/// An order that ended as `ambiguous`, to be resolved by a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkedOrder {
    pub merchant: MerchantId,
    pub seq: Seq,
    pub id: OrderId,
    pub generation: u32,
    /// Hash of its ordering key.
    pub key: Option<u64>,
}

/// What was spent of a rate with a long period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpentQuota {
    pub period: Duration,
    /// So many orders, none later than the time; oldest first.
    pub spent: Vec<(UnixMillis, u64)>,
}

/// Attempts of one unfinished order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttemptCount {
    pub seq: Seq,
    pub attempts: u32,
    pub first: UnixMillis,
    /// The newest may have been received.
    pub ambiguous: bool,
}

/// Why a merchant takes no orders for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClosedBecause {
    /// It asked to wait (429, Retry-After).
    RateLimited,
    /// It refuses our credentials.
    Suspended,
    /// Its endpoint is wrong.
    Misconfigured,
    /// It fails: the circuit breaker is open.
    Breaker,
}

impl ClosedBecause {
    /// All causes, in the order of their discriminants.
    pub const ALL: [Self; 4] = [
        Self::RateLimited,
        Self::Suspended,
        Self::Misconfigured,
        Self::Breaker,
    ];

    /// The name used on wires and in tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RateLimited => "rate_limited",
            Self::Suspended => "suspended",
            Self::Misconfigured => "misconfigured",
            Self::Breaker => "breaker",
        }
    }

    /// The cause of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.as_str() == name)
    }
}

/// A merchant's closure, as it survives restarts and hand-overs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedMerchant {
    pub merchant: MerchantId,
    pub because: ClosedBecause,
    /// Opens again (rate limited) or is probed (else).
    pub until: UnixMillis,
    /// How often in a row the circuit breaker opened; 0 for other causes.
    pub times: u32,
}

/// `attempt.<p>.<merchant>`: the unrepeatable attempts in flight, written before they leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptMark {
    pub merchant: MerchantId,
    /// Rises with each mark of this merchant within an epoch.
    pub counter: u64,
    /// All in flight; empty when none is.
    pub in_flight: Vec<(Seq, OrderId)>,
}

/// `shift.<p>`: from which sequence a plan revision holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShiftRecord {
    pub revision: u64,
    pub from: Seq,
}

/// One message to OUTCOMES, fenced by the owner's claim.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// A group, in the order of decision; no dead letters.
    Outcomes(Vec<Outcome>),
    /// A dead letter with its payload.
    Dead(Box<DeadLetter>),
    Attempts(AttemptMark),
    Mark(Box<Mark>),
}

/// An order that ended `dead_lettered`, complete, so that it survives any disk.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    pub outcome: Outcome,
    pub payload: Bytes,
    /// Beginning of the merchant's last answer; empty when there was none.
    pub excerpt: Bytes,
}
