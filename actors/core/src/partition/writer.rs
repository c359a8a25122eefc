//! The one writer of a partition: what goes to OUTCOMES, in order, one record at a time.

use std::collections::VecDeque;

use bytes::Bytes;
use expediter_types::{
    ClosedMerchant, DeadLetter, DeadReason, Mark, MerchantId, Now, Outcome, OutcomeKind, Record,
    Seq, UnixMillis,
};

use super::attempts::AttemptLists;
use super::{Directory, Event, Finishing, PartitionConfig, PartitionMachine};
use crate::merchant::Closure;
use crate::store::StoreOp;
use crate::{Stored, check_invariant, key_hash};

/// A group of outcomes stays below this, by estimate; records must fit a message of 1 MiB.
const GROUP_BYTES: usize = 512 * 1024;
/// What a mark says of an order in doubt stands for its place in that list after this.
const UNLISTED_AFTER_MS: u64 = 60_000;
/// Dead letters of all merchants, and their payloads in bytes, that may wait for the log.
const DEAD_LETTERS: usize = 20_000;
const DEAD_LETTER_BYTES: usize = 64 << 20;
/// A successor without this owner's store notices repeats of at least this age.
const REPEATS_WINDOW_MS: u64 = 600_000;
/// Nor more than so many records of OUTCOMES, of whatever partition: about half a second of a
/// take-over, of which nothing may be sent before they are read.
const REPEATS_RECORDS: Seq = 50_000;

/// What is said with a decision, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Why {
    pub(super) detail: String,
    /// Beginning of the merchant's answer.
    pub(super) excerpt: Bytes,
}

impl<T: Into<String>> From<T> for Why {
    fn from(detail: T) -> Self {
        Self {
            detail: detail.into(),
            excerpt: Bytes::new(),
        }
    }
}

/// What the acknowledged record was, for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acked {
    Outcomes,
    Attempts,
    /// The log may be compacted below.
    Mark {
        low_water: Seq,
        last_taken: Seq,
        last_taken_at: UnixMillis,
    },
}

/// What takes turns in the log.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Attempts,
    Outcomes,
    DeadLetters,
    Mark,
}

#[derive(Debug)]
enum UnderWay {
    Outcomes(Vec<Seq>),
    Attempts(Vec<Seq>),
    Mark {
        low_water: Seq,
        last_taken: (Seq, UnixMillis),
        purge: Option<(MerchantId, Seq)>,
        /// Of the parked orders in it.
        parked: u64,
        /// Orders in doubt that it names, when a list of attempts is about to be full.
        doubtful: Vec<Seq>,
    },
}

/// Queue of records.
#[derive(Debug)]
pub(super) struct Writer {
    /// Since when they wait for company.
    decided: VecDeque<(u64, Outcome)>,
    /// Each goes in a record of its own, beside `decided`: a flood of one merchant's must not keep
    /// the others' outcomes waiting.
    dead: VecDeque<Box<DeadLetter>>,
    pub(super) attempts: AttemptLists,
    under_way: Option<(u64, UnderWay)>,
    /// Decisions but dead letters.
    unacknowledged: usize,
    /// Payloads of dead letters that are not acknowledged.
    dead_bytes: usize,
    next_number: u64,
    /// The kind of record whose turn it is.
    turn: usize,
    covers: Seq,
    repeats_from: VecDeque<(UnixMillis, Seq)>,
    last_mark: u64,
    hurry: bool,
    /// A mark is wanted once the store has this batch.
    mark_after: Option<u64>,
    /// The store has the ids of all orders that records up to here have finished, when it has that.
    saved_covers: Seq,
    marked: Option<(Seq, Seq, u64)>,
    finished: u64,
    pub(super) purge_candidate: Option<(MerchantId, Seq)>,
}

impl Writer {
    pub(super) fn new(covers: Seq, repeats_from: Seq, now: Now) -> Self {
        Self {
            decided: VecDeque::new(),
            dead: VecDeque::new(),
            attempts: AttemptLists::default(),
            under_way: None,
            unacknowledged: 0,
            dead_bytes: 0,
            next_number: 1,
            turn: 0,
            covers,
            repeats_from: VecDeque::from([(now.wall, repeats_from)]),
            last_mark: now.mono,
            // The first mark says that this epoch knows what the former one did.
            hurry: true,
            mark_after: None,
            saved_covers: covers,
            marked: None,
            finished: 0,
            purge_candidate: None,
        }
    }

    pub(super) fn hurry_mark(&mut self) {
        self.hurry = true;
    }

    /// Decisions without an acknowledgement, but dead letters.
    pub(super) fn unconfirmed(&self) -> usize {
        self.unacknowledged
    }

    /// So many dead letters wait that no more orders are taken in: each holds its payload.
    pub(super) fn dead_letters_full(&self) -> bool {
        self.dead.len() >= DEAD_LETTERS || self.dead_bytes >= DEAD_LETTER_BYTES
    }

    /// When a group that waits for company has waited enough.
    pub(super) fn flush_at(&self, config: &PartitionConfig) -> Option<u64> {
        if self.under_way.is_some() {
            return None;
        }
        self.decided.front().map(|(at, _)| at + config.linger)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.under_way.is_none()
            && self.decided.is_empty()
            && self.dead.is_empty()
            && self.attempts.are_written()
            && self.mark_after.is_none()
    }
}

impl PartitionMachine {
    /// A terminal decision. The order is finished when its record is acknowledged.
    pub(super) fn conclude(
        &mut self,
        stored: Stored,
        in_store: bool,
        kind: OutcomeKind,
        why: Why,
        now: Now,
    ) {
        let Stored { order, state, .. } = stored;
        let seq = order.seq;
        let closes_a_repeat = matches!(
            kind,
            OutcomeKind::Duplicate | OutcomeKind::DeadLettered(DeadReason::IdConflict)
        );
        if in_store && !closes_a_repeat {
            // It may have been stored by an epoch whose table of ids was lost.
            self.repeats.insert(super::intake::repeat_of(&order));
        }
        let envelope = order.envelope.clone();
        let merchant = envelope.merchant.clone();
        check_invariant!(
            Ord1,
            self.ledger.is_open(seq) && !self.finishing.contains_key(&seq),
            "order {seq} ends a second time as {kind:?}"
        );
        let key = envelope.key.as_deref().map(key_hash);
        let dead = matches!(kind, OutcomeKind::DeadLettered(_));
        let dead_bytes = if dead { order.payload.len() } else { 0 };
        let finishing = Finishing {
            merchant: merchant.clone(),
            in_store,
            key,
            kind,
            dead_bytes,
        };
        self.finishing.insert(seq, finishing);
        if kind == OutcomeKind::DeadLettered(DeadReason::Ambiguous) {
            self.parked.park(&order);
        }
        self.cancelling.remove(&seq);
        self.superseded.remove(&seq);
        let sent = kind == OutcomeKind::Delivered || !state.history.is_empty();
        if let Some(backlog) = self.backlogs.get_mut(&merchant) {
            backlog.finishing += 1;
            backlog.dead += u32::from(dead);
            backlog.dead_bytes += dead_bytes;
            if in_store {
                backlog.lanes.remove(seq);
                backlog.overflow.remove(seq);
            }
            backlog
                .stats
                .finished(&kind, sent, &why.detail, envelope.created, now);
        }
        let outcome = Outcome {
            seq,
            kind,
            payload_hash: order.payload_hash,
            at: now.wall,
            attempts: state.history,
            detail: why.detail,
            envelope,
        };
        if let OutcomeKind::DeadLettered(reason) = kind {
            let id = outcome.envelope.id.clone();
            self.event(Event::DeadLettered {
                merchant,
                id,
                reason,
            });
            self.writer.dead_bytes += dead_bytes;
            self.writer.dead.push_back(Box::new(DeadLetter {
                outcome,
                payload: order.payload.clone(),
                excerpt: why.excerpt,
            }));
            return;
        }
        if kind == OutcomeKind::Expired {
            let id = outcome.envelope.id.clone();
            self.event(Event::Expired { merchant, id });
        }
        self.writer.unacknowledged += 1;
        self.writer.decided.push_back((now.mono, outcome));
    }

    /// The next record, if one is to be written now. Its number goes into
    /// [`PartitionMachine::on_acked`]; until then no other is given.
    pub fn next_record(&mut self, now: Now) -> Option<(u64, Record)> {
        if self.writer.under_way.is_some() {
            return None;
        }
        // Each kind has its turn after the one written last: none can keep another from the log,
        // however long an acknowledgement takes.
        let mut kinds = [
            Kind::Attempts,
            Kind::Outcomes,
            Kind::DeadLetters,
            Kind::Mark,
        ];
        kinds.rotate_left(self.writer.turn);
        let (kind, (record, under_way)) = kinds.into_iter().find_map(|kind| {
            let record = match kind {
                Kind::Attempts => self.attempt_mark(),
                Kind::Outcomes => self.outcomes(now),
                Kind::DeadLetters => self.dead_letter(),
                Kind::Mark => self.mark(now),
            };
            record.map(|record| (kind, record))
        })?;
        self.writer.turn = (kind as usize + 1) % kinds.len();
        let number = self.writer.next_number;
        self.writer.next_number += 1;
        self.writer.under_way = Some((number, under_way));
        Some((number, record))
    }

    fn attempt_mark(&mut self) -> Option<(Record, UnderWay)> {
        let mark = self.writer.attempts.next()?;
        let seqs = mark.in_flight.iter().map(|(seq, _)| *seq).collect();
        Some((Record::Attempts(mark), UnderWay::Attempts(seqs)))
    }

    fn outcomes(&mut self, now: Now) -> Option<(Record, UnderWay)> {
        let decided = &mut self.writer.decided;
        let (at, _) = decided.front()?;
        let patient = decided.len() < self.config.group && !self.draining;
        if patient && now.mono < at + self.config.linger {
            return None;
        }
        let (mut group, mut bytes) = (Vec::new(), 0);
        while group.len() < self.config.group
            && bytes < GROUP_BYTES
            && let Some((_, outcome)) = decided.pop_front()
        {
            bytes += estimate(&outcome);
            group.push(outcome);
        }
        let seqs = group.iter().map(|outcome: &Outcome| outcome.seq).collect();
        Some((Record::Outcomes(group), UnderWay::Outcomes(seqs)))
    }

    fn dead_letter(&mut self) -> Option<(Record, UnderWay)> {
        let letter = self.writer.dead.pop_front()?;
        let seq = letter.outcome.seq;
        Some((Record::Dead(letter), UnderWay::Outcomes(vec![seq])))
    }

    fn mark(&mut self, now: Now) -> Option<(Record, UnderWay)> {
        if self
            .writer
            .mark_after
            .is_none_or(|batch| batch > self.committed)
        {
            return None;
        }
        self.writer.mark_after = None;
        self.writer.last_mark = now.mono;
        let low_water = self.ledger.low_water();
        let seen = self.ledger.seen();
        check_invariant!(
            Ord1,
            low_water <= seen,
            "low water {low_water} passed seen {seen}"
        );
        // What was finished since by other orders is read again.
        let covers = self.writer.saved_covers;
        let history = &mut self.writer.repeats_from;
        history.push_back((now.wall, covers));
        while history
            .get(1)
            .is_some_and(|(at, _)| *at + REPEATS_WINDOW_MS <= now.wall)
        {
            history.pop_front();
        }
        // Owners that follow each other soon never see the window pass.
        let oldest = covers.saturating_sub(REPEATS_RECORDS);
        let repeats_from = history.front().map_or(0, |(_, seq)| *seq).max(oldest);
        let closed = self.backlogs.iter().filter_map(|(merchant, backlog)| {
            let closure = backlog.closure.filter(|closure| closure.is_in_force(now))?;
            let Closure {
                because,
                until,
                times,
            } = closure;
            Some(ClosedMerchant {
                merchant: merchant.clone(),
                because,
                until,
                times,
            })
        });
        let mut closed: Vec<ClosedMerchant> = closed.collect();
        closed.sort_unstable_by(|a, b| a.merchant.cmp(&b.merchant));
        let mark = Mark {
            low_water,
            seen,
            closed,
            finished: self.ledger.finished(),
            covers,
            repeats_from,
            attempts: self.attempted.values().copied().collect(),
            unknown_since: self.unknown_since.clone().into_iter().collect(),
            parked: self.parked.all(),
            spent: self.spent(now),
            unknown: self.unknown.all(now),
            last: self.closed,
            at: now.wall,
        };
        let purge = self.purge_at_mark(seen);
        let under_way = UnderWay::Mark {
            low_water,
            last_taken: self.last_taken,
            purge,
            parked: self.parked.version(),
            doubtful: match self.writer.attempts.are_crowded() {
                true => self.doubtful(now),
                false => Vec::new(),
            },
        };
        Some((Record::Mark(Box::new(mark)), under_way))
    }

    /// Orders that may be at their merchant and wait for another attempt: for so long that any older
    /// one with the same id has ended for them.
    fn doubtful(&self, now: Now) -> Vec<Seq> {
        let tried = self.attempted.range(..=self.ledger.seen());
        let doubtful = tried.filter(|(seq, count)| {
            let old = count.first.saturating_add(UNLISTED_AFTER_MS) <= now.wall;
            old && count.ambiguous && !self.window.contains_key(seq)
        });
        doubtful.map(|(seq, _)| *seq).collect()
    }

    /// The caller takes no more orders in until it says otherwise.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.writer.dead_letters_full()
    }

    fn to_mark(&self) -> (Seq, Seq, u64) {
        let (low_water, seen) = (self.ledger.low_water(), self.ledger.seen());
        (low_water, seen, self.writer.finished)
    }

    /// Something is not in a durable mark yet.
    #[must_use]
    pub fn owes_mark(&self) -> bool {
        let writing = matches!(&self.writer.under_way, Some((_, UnderWay::Mark { .. })));
        writing || self.writer.mark_after.is_some() || self.writer.marked != Some(self.to_mark())
    }

    /// Asks for a mark when there is something new to say and the time has come.
    pub(super) fn plan_mark(&mut self, now: Now) {
        let state = self.to_mark();
        let due = now.mono.saturating_sub(self.writer.last_mark) >= self.config.mark_every;
        let news = self.writer.marked != Some(state);
        if self.writer.mark_after.is_some() || !(self.writer.hurry || (due && news)) {
            return;
        }
        self.writer.hurry = false;
        self.writer.marked = Some(state);
        self.request_mark();
    }

    /// The ids taken so far go to the store first: a mark tells a successor with this store that
    /// it need not read older outcomes.
    pub(super) fn request_mark(&mut self) {
        self.write_meta();
        self.writer.saved_covers = self.writer.covers;
        let pending = u64::from(!self.ops.is_empty());
        self.writer.mark_after = Some(self.batch_number + pending);
    }

    /// The record with this number is durable at this sequence of OUTCOMES.
    pub fn on_acked(
        &mut self,
        number: u64,
        seq: Seq,
        directory: &dyn Directory,
        now: Now,
    ) -> Option<Acked> {
        if self
            .writer
            .under_way
            .as_ref()
            .is_none_or(|(current, _)| *current != number)
        {
            return None;
        }
        let (_, under_way) = self.writer.under_way.take()?;
        self.writer.covers = self.writer.covers.max(seq);
        Some(match under_way {
            UnderWay::Outcomes(seqs) => {
                let full = self.writer.unacknowledged >= self.config.unconfirmed;
                for seq in seqs {
                    self.on_finished(seq, directory, now);
                }
                if full && self.writer.unacknowledged < self.config.unconfirmed {
                    self.wake_all(directory, now);
                }
                self.end_more(directory, now);
                Acked::Outcomes
            }
            UnderWay::Attempts(seqs) => {
                self.launch_marked(&seqs, directory, now);
                Acked::Attempts
            }
            UnderWay::Mark {
                low_water,
                last_taken,
                purge,
                parked,
                mut doubtful,
            } => {
                // What was started again since is listed for that.
                doubtful.retain(|seq| !self.window.contains_key(seq));
                self.writer.attempts.unlist(&doubtful);
                self.parked.saved(parked);
                if let Some((merchant, below)) = purge {
                    self.commands
                        .push_back(super::Command::Purge { merchant, below });
                }
                Acked::Mark {
                    low_water,
                    last_taken: last_taken.0,
                    last_taken_at: last_taken.1,
                }
            }
        })
    }

    fn on_finished(&mut self, seq: Seq, directory: &dyn Directory, now: Now) {
        self.writer.finished += 1;
        let was_open = self.ledger.finish(seq);
        check_invariant!(Ord1, was_open, "order {seq} was finished twice");
        self.attempted.remove(&seq);
        let Some(Finishing {
            merchant,
            in_store,
            key,
            kind,
            dead_bytes,
        }) = self.finishing.remove(&seq)
        else {
            return;
        };
        let dead = matches!(kind, OutcomeKind::DeadLettered(_));
        if dead {
            self.writer.dead_bytes = self.writer.dead_bytes.saturating_sub(dead_bytes);
        } else {
            self.writer.unacknowledged = self.writer.unacknowledged.saturating_sub(1);
        }
        self.event(Event::Finished { kind });
        self.writer.attempts.finished(&merchant, seq);
        let mut goes_on = false;
        if let Some(backlog) = self.backlogs.get_mut(&merchant) {
            backlog.finishing = backlog.finishing.saturating_sub(1);
            backlog.finished_since_purge += 1;
            if dead {
                let enough = backlog.ends_enough(&self.config);
                backlog.dead = backlog.dead.saturating_sub(1);
                backlog.dead_bytes = backlog.dead_bytes.saturating_sub(dead_bytes);
                goes_on = enough && !backlog.ends_enough(&self.config);
            }
        }
        self.parked_finished(&merchant, seq, directory, now);
        if in_store {
            self.ops.push(StoreOp::Remove {
                merchant: merchant.clone(),
                seq,
            });
            self.after_key(&merchant, key, directory, now);
        }
        if goes_on {
            self.refill(&merchant, directory, now);
        }
    }
}

/// Roughly the bytes of an outcome in its record.
fn estimate(outcome: &Outcome) -> usize {
    let attempts: usize = outcome
        .attempts
        .iter()
        .map(|a| 120 + a.detail.len() * 2)
        .sum();
    400 + outcome.detail.len() * 2 + attempts
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
