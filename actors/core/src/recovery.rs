//! Reading OUTCOMES into what a new owner must know before its first attempt (ARCHITECTURE.md,
//! The protocol of one partition).
//!
//! [`Recovery`] is given the partition's records in the order of the stream and folds them. Whatever
//! a stale writer managed to leave there says nothing: a record counts only when its token is the
//! newest claim before it.

use std::collections::{BTreeMap, HashSet};

use expediter_types::{
    AttemptCount, AttemptMark, Claim, ClaimState, ClosedMerchant, Incarnation, Mark, MerchantId,
    OrderId, ParkedOrder, Seq, SpentQuota, Stamp, UnixMillis,
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
    /// It waits for a person.
    pub parked: Option<ParkedOrder>,
}

/// The state of a partition at its claim; by default of one that nobody has owned.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Recovered {
    pub stamp: Stamp,
    /// The claim that was replaced, and its epoch; `None` for the first claim of all.
    pub replaced: Option<Claim>,
    /// Too many owners crashed: no attempt starts until an operator says so.
    pub paused: bool,
    /// Highest sequence that survived into this incarnation of the log; what a store holds above
    /// it from an older incarnation must be published again.
    pub cut: Seq,
    /// Epoch whose store may be trusted; 0 for none.
    pub replaced_epoch: Seq,
    /// OUTCOMES came back without records that a store proves: what was sent is not known.
    pub outcomes_lost: bool,
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
    /// Orders that wait for a person, as far as nobody wrote down that one resolved them.
    pub parked: Vec<ParkedOrder>,
    pub spent: Vec<(MerchantId, Vec<SpentQuota>)>,
    /// What was sent then is in `spent` only of the merchants named there.
    pub unknown: Vec<(UnixMillis, UnixMillis)>,
    /// Time of the newest mark; 0 without one.
    pub marked_at: UnixMillis,
    /// Nothing was sent after it.
    pub marked_last: bool,
    /// Unrepeatable attempts that were in flight and have no outcome: ambiguous.
    pub in_flight: Vec<(MerchantId, Seq, OrderId)>,
    /// Released by its owner with these still running; not attempted before the time.
    pub running: Vec<Seq>,
    pub busy_until: UnixMillis,
}

/// Between two marks of an owner that has something to say, with room; milliseconds.
const MARKED_WITHIN: u64 = 10_000;

impl Recovered {
    /// Until when a former owner took orders in, by the broker's clock: what came after waited for
    /// this one.
    #[must_use]
    pub fn accepted_until(&self) -> UnixMillis {
        match &self.replaced {
            None => 0,
            Some(claim) if claim.state != ClaimState::Held => claim.at,
            Some(claim) => claim.at.max(self.marked_at).saturating_add(MARKED_WITHIN),
        }
    }
}

/// Why what was read is no state to begin work with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Incomplete {
    /// The own claim was not delivered yet.
    #[error("the claim {token} was not reached")]
    ClaimNotReached { token: Seq },
    /// Reading began above the beginning, and no valid mark covers what lies before: read all.
    #[error("no valid mark covers what lies before {from}")]
    NotCovered { from: Seq },
}

/// Folds the records of one partition up to the own claim.
#[derive(Debug)]
pub struct Recovery {
    token: Seq,
    claim: Claim,
    replaced: Option<Claim>,
    from: Seq,
    /// The newest claim so far; `None` until one is met.
    current: Option<Seq>,
    /// Met before the first claim: only that claim tells whose token was right there.
    undecided: Vec<Entry>,
    /// Newest attempt mark of each merchant, with its sequence.
    in_flight: BTreeMap<MerchantId, (Seq, Incarnation, AttemptMark)>,
    state: State,
    reached: bool,
}

#[derive(Debug, Default)]
struct State {
    incarnation: Incarnation,
    low_water: Seq,
    finished: RoaringTreemap,
    repeats: Vec<Repeat>,
    repeat_ids: HashSet<u64>,
    parked: BTreeMap<Seq, ParkedOrder>,
    /// The newest valid mark, and its own sequence.
    mark: Option<(Seq, Mark)>,
    running: Vec<Seq>,
    busy_until: UnixMillis,
}

impl Recovery {
    /// `token` and `claim`: the own claim as it stands in OUTCOMES. `replaced`: what it replaced.
    /// `from`: the first sequence that is read; 1 for all.
    #[must_use]
    pub fn new(token: Seq, claim: Claim, replaced: Option<Claim>, from: Seq) -> Self {
        Self {
            token,
            claim,
            replaced,
            from,
            current: None,
            undecided: Vec::new(),
            in_flight: BTreeMap::new(),
            state: State::default(),
            reached: false,
        }
    }

    /// The newest attempt mark of a merchant, wherever it stands before the claim. Its writer
    /// cannot be checked when its claim was not read, so it counts: naming an attempt too many
    /// costs a look, naming one too few may cost a double delivery.
    pub fn newest_attempts(&mut self, seq: Seq, stamp: Stamp, mark: AttemptMark) {
        if seq < self.token && stamp.token < seq {
            self.keep_attempts(seq, stamp, mark);
        }
    }

    /// The next record of the partition. What stands at or after the own claim is ignored.
    pub fn push(&mut self, entry: Entry) {
        if self.reached || entry.seq > self.token {
            return;
        }
        if let EntryBody::Claim(claim) = &entry.body {
            if self.current.is_none() {
                self.current = Some(claim.replaces);
                for early in std::mem::take(&mut self.undecided) {
                    self.fold(early);
                }
            }
            // Nobody writes between a release and the next claim; no token is 0.
            let held = claim.state == ClaimState::Held;
            self.current = Some(if held { entry.seq } else { 0 });
            self.claimed(entry.seq, claim);
        } else if self.current.is_none() {
            self.undecided.push(entry);
        } else {
            self.fold(entry);
        }
    }

    fn claimed(&mut self, seq: Seq, claim: &Claim) {
        if seq == self.token {
            self.reached = true;
        } else if claim.state == ClaimState::Held
            && let Some((_, mark)) = &mut self.state.mark
        {
            // Whoever held it may have sent something.
            mark.last = false;
        }
        if claim.incarnation.counter > self.state.incarnation.counter {
            // Messages above the cut are others now: nothing said of them before counts.
            self.state.cut(claim.cut);
            self.state.incarnation = claim.incarnation;
            self.in_flight.retain(|_, (_, incarnation, mark)| {
                if incarnation.counter < claim.incarnation.counter {
                    mark.in_flight.retain(|(order, _)| *order <= claim.cut);
                }
                !mark.in_flight.is_empty()
            });
        }
        if let ClaimState::Released {
            running,
            busy_until,
            ..
        } = &claim.state
        {
            self.state.running.extend(running.iter().copied());
            self.state.busy_until = self.state.busy_until.max(*busy_until);
        }
    }

    fn fold(&mut self, entry: Entry) {
        let stamp = match &entry.body {
            EntryBody::Claim(_) => return,
            EntryBody::Outcomes(stamp, _)
            | EntryBody::Attempts(stamp, _)
            | EntryBody::Mark(stamp, _) => *stamp,
        };
        // An owner writes of its claim's own incarnation. Of an older one writes a former owner, whose
        // claim had the same number in an OUTCOMES that was lost.
        let older = stamp.incarnation.counter < self.state.incarnation.counter;
        if Some(stamp.token) != self.current || older {
            return;
        }
        if stamp.incarnation.counter > self.state.incarnation.counter {
            self.state.incarnation = stamp.incarnation;
        }
        match entry.body {
            EntryBody::Claim(_) => {}
            EntryBody::Outcomes(_, outcomes) => self.state.finish(outcomes),
            EntryBody::Attempts(_, mark) => self.keep_attempts(entry.seq, stamp, mark),
            EntryBody::Mark(_, mark) => self.state.marked(entry.seq, *mark),
        }
    }

    fn keep_attempts(&mut self, seq: Seq, stamp: Stamp, mark: AttemptMark) {
        let known = self
            .in_flight
            .get(&mark.merchant)
            .is_some_and(|(known, ..)| *known >= seq);
        if !known {
            self.in_flight
                .insert(mark.merchant.clone(), (seq, stamp.incarnation, mark));
        }
    }

    /// The state at the claim.
    ///
    /// # Errors
    /// The claim was not reached, or reading began above what a valid mark covers.
    pub fn complete(self) -> Result<Recovered, Incomplete> {
        if !self.reached {
            return Err(Incomplete::ClaimNotReached { token: self.token });
        }
        let mut state = self.state;
        let covered = state.mark.as_ref().map_or(0, |(_, mark)| mark.covers);
        if self.from > covered + 1 {
            return Err(Incomplete::NotCovered { from: self.from });
        }
        let low_water = state.low_water;
        state.finished.remove_range(..=low_water);
        let finished = state.finished;
        let open = |seq: &Seq| *seq > low_water && !finished.contains(*seq);
        let in_flight = self
            .in_flight
            .into_values()
            .flat_map(|(_, incarnation, mark)| {
                // Marks from before the range may be of a log that is gone.
                let cut = match incarnation.counter < self.claim.incarnation.counter {
                    true => self.claim.cut,
                    false => Seq::MAX,
                };
                let merchant = mark.merchant;
                mark.in_flight
                    .into_iter()
                    .filter(move |(seq, _)| *seq <= cut)
                    .map(move |(seq, id)| (merchant.clone(), seq, id))
            })
            .filter(|(_, seq, _)| open(seq))
            .collect();
        let mut running: Vec<Seq> = state.running.into_iter().filter(open).collect();
        running.sort_unstable();
        running.dedup();
        let replaced_epoch = match &self.replaced {
            None => 0,
            Some(Claim {
                state: ClaimState::Released { epoch, .. },
                ..
            }) => *epoch,
            Some(_) => self.claim.replaces,
        };
        let marked_last = state.mark.as_ref().is_some_and(|(_, mark)| mark.last);
        let (spent, unknown) = match &mut state.mark {
            Some((_, mark)) => (
                std::mem::take(&mut mark.spent),
                std::mem::take(&mut mark.unknown),
            ),
            None => Default::default(),
        };
        let (marked_at, repeats_from, attempts, closed, unknown_since) = match state.mark {
            Some((_, mark)) => (
                mark.at,
                mark.repeats_from,
                mark.attempts
                    .into_iter()
                    .filter(|count| open(&count.seq))
                    .collect(),
                mark.closed,
                mark.unknown_since,
            ),
            None => (0, 1, Vec::new(), Vec::new(), Vec::new()),
        };
        Ok(Recovered {
            stamp: Stamp {
                token: self.token,
                incarnation: self.claim.incarnation,
            },
            cut: self.claim.cut,
            paused: self.claim.crashes.paused,
            replaced: self.replaced,
            replaced_epoch,
            outcomes_lost: false,
            low_water,
            finished,
            covers: self.token,
            repeats_from,
            repeats: state.repeats,
            attempts,
            closed,
            unknown_since,
            parked: state.parked.into_values().collect(),
            spent,
            unknown,
            marked_at,
            marked_last,
            in_flight,
            running,
            busy_until: state.busy_until,
        })
    }
}

impl State {
    fn finish(&mut self, outcomes: Vec<Finished>) {
        for outcome in outcomes {
            // The first record of a sequence is its outcome.
            if !self.finished.insert(outcome.seq) {
                continue;
            }
            if let Some(parked) = outcome.parked {
                self.parked.insert(parked.seq, parked);
            }
            if let Some(repeat) = outcome.repeat
                && self.repeat_ids.insert(repeat.id)
            {
                self.repeats.push(repeat);
            }
        }
    }

    fn marked(&mut self, seq: Seq, mut mark: Mark) {
        self.low_water = self.low_water.max(mark.low_water);
        self.finished |= std::mem::take(&mut mark.finished);
        // The marking owner knew what its predecessors left running.
        self.running.clear();
        self.busy_until = 0;
        let parked = mark.parked.iter().cloned();
        self.parked = parked.map(|parked| (parked.seq, parked)).collect();
        self.mark = Some((seq, mark));
    }

    fn cut(&mut self, cut: Seq) {
        self.low_water = self.low_water.min(cut);
        self.finished.remove_range(cut.saturating_add(1)..);
        self.repeats.retain(|repeat| repeat.seq <= cut);
        self.repeat_ids = self.repeats.iter().map(|repeat| repeat.id).collect();
        self.running.retain(|seq| *seq <= cut);
        self.parked.retain(|seq, _| *seq <= cut);
        if let Some((_, mark)) = &mut self.mark {
            mark.attempts.retain(|count| count.seq <= cut);
        }
    }
}

#[cfg(test)]
mod tests;
