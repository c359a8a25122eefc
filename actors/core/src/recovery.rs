//! Reading OUTCOMES into what a new owner must know before its first attempt (PROTOCOL, Recovering).

use expediter_types::{
    AttemptCount, AttemptMark, Claim, ClosedMerchant, Mark, MerchantId, OrderId, Seq, Stamp,
    UnixMillis,
};
use roaring::RoaringTreemap;

use crate::store::Repeat;

/// One record of the partition as it stands in OUTCOMES.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its OUTCOMES sequence.
    pub seq: Seq,
    pub body: EntryBody,
}

/// What a successor needs of each record.
#[derive(Debug, Clone, PartialEq)]
pub enum EntryBody {
    Claim(Claim),
    /// Outcomes or one dead letter.
    Outcomes(Stamp, Vec<Finished>),
    Attempts(Stamp, AttemptMark),
    Mark(Stamp, Box<Mark>),
}

/// What an outcome says about its sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    pub seq: Seq,
    pub merchant: MerchantId,
    /// How publishers' repeats of it are noticed; `None` for an outcome that only closes a
    /// sequence (`duplicate`, `id_conflict`): the order with that id is another one.
    pub repeat: Option<Repeat>,
}

/// The state of a partition at its claim.
#[derive(Debug, Clone, PartialEq)]
pub struct Recovered {
    pub stamp: Stamp,
    /// The claim that was replaced, and its epoch; `None` for the first claim of all.
    pub replaced: Option<Claim>,
    /// Highest sequence that survived into this incarnation of the log; what a store holds above
    /// it from an older incarnation must be published again.
    pub cut: Seq,
    /// Epoch whose store may be trusted; 0 for none.
    pub replaced_epoch: Seq,
    pub low_water: Seq,
    /// Above `low_water`.
    pub finished: RoaringTreemap,
    /// OUTCOMES sequence up to which all was read: the claim's own.
    pub covers: Seq,
    pub repeats_from: Seq,
    pub repeats: Vec<Repeat>,
    pub attempts: Vec<AttemptCount>,
    pub closed: Vec<ClosedMerchant>,
    pub unknown_since: Vec<(MerchantId, UnixMillis)>,
    /// Time of the newest mark; 0 without one.
    pub marked_at: UnixMillis,
    /// Unrepeatable attempts that were in flight and have no outcome: ambiguous.
    pub in_flight: Vec<(MerchantId, Seq, OrderId)>,
    /// Released by its owner with these still running; not attempted before the time.
    pub running: Vec<Seq>,
    pub busy_until: UnixMillis,
}
