//! What operators ask.

use std::collections::{HashMap, VecDeque};

use expediter_types::{
    Answer, AttemptClass, ClosedBecause, MerchantId, Now, OrderId, OutcomeKind, Seq, UnixMillis,
};

use super::backlog::Backlog;
use super::merchants::Stage;
use super::{Directory, HeldBy, PartitionMachine};
use crate::Stored;
use crate::repeats::id_hash;

/// Latencies kept per active merchant.
const SAMPLES: usize = 128;

/// What a merchant's row says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MerchantState {
    Open,
    Closed {
        because: ClosedBecause,
        until: UnixMillis,
    },
    Quarantined,
    Unknown,
    /// Operators or its opening hours keep its orders waiting.
    Held(HeldBy),
}

/// One merchant with unfinished orders or a live actor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MerchantRow {
    pub merchant: MerchantId,
    pub state: MerchantState,
    /// Unfinished orders: in the mailbox, in the store, or decided and not acknowledged.
    pub backlog: u64,
    pub in_flight: u32,
    pub mailbox: u32,
    pub delivered: u64,
    /// From the broker's timestamp to the delivery, over the newest deliveries; milliseconds.
    pub latencies: Vec<u32>,
    pub last_error: String,
    /// Orders that end in a minute by being sent, as of late.
    pub per_minute: u64,
    /// When the oldest order in its mailbox was taken in by the broker.
    pub oldest: Option<UnixMillis>,
}

/// Where an order is.
#[derive(Debug, Clone, PartialEq)]
pub enum Located {
    /// In a mailbox; `running`: number of the attempt in flight.
    Mailbox {
        stored: Box<Stored>,
        running: Option<u32>,
    },
    /// In the store, or known to be finished by then.
    Store {
        merchant: MerchantId,
        seq: Seq,
    },
    /// Decided; its outcome is being written.
    Finishing {
        seq: Seq,
    },
    /// Finished within this owner's memory.
    Finished {
        seq: Seq,
    },
    Unknown,
}

#[derive(Debug, Default)]
pub(super) struct Stats {
    delivered: u64,
    /// The minute that is counted now, and how many ended in it and in the one before.
    minute: (u64, u64, u64),
    latencies: VecDeque<u32>,
    last_error: String,
}

impl Stats {
    /// Brings the minutes up to date.
    fn turn(&mut self, now: Now) {
        let minute = now.mono / 60_000_000;
        self.minute = match minute.saturating_sub(self.minute.0) {
            0 => self.minute,
            1 => (minute, 0, self.minute.1),
            _ => (minute, 0, 0),
        };
    }

    /// Orders that end in a minute, as of late.
    pub(super) fn pace(&self, now: Now) -> u64 {
        let mut minutes = Self {
            minute: self.minute,
            ..Self::default()
        };
        minutes.turn(now);
        let (_, current, before) = minutes.minute;
        let passed = now.mono % 60_000_000;
        // What is left of the minute counts as the one before was.
        let left = u128::from(before) * u128::from(60_000_000 - passed) / 60_000_000;
        current + u64::try_from(left).unwrap_or(u64::MAX)
    }

    pub(super) fn answered(&mut self, answer: &Answer, _now: Now) {
        if !matches!(
            answer.class,
            AttemptClass::Delivered | AttemptClass::AlreadyDone
        ) {
            self.last_error.clone_from(&answer.detail);
        }
    }

    /// `sent`: it was tried. Others end without taking their turn, and say nothing of the pace.
    pub(super) fn finished(
        &mut self,
        kind: &OutcomeKind,
        sent: bool,
        detail: &str,
        created: u64,
        now: Now,
    ) {
        self.turn(now);
        self.minute.1 += u64::from(sent);
        match kind {
            OutcomeKind::Delivered => {
                self.delivered += 1;
                if self.latencies.len() >= SAMPLES {
                    self.latencies.pop_front();
                }
                let took = now.wall.saturating_sub(created);
                self.latencies
                    .push_back(u32::try_from(took).unwrap_or(u32::MAX));
            }
            OutcomeKind::Duplicate | OutcomeKind::Cancelled => {}
            OutcomeKind::Rejected | OutcomeKind::Expired | OutcomeKind::DeadLettered(_) => {
                if !detail.is_empty() {
                    detail.clone_into(&mut self.last_error);
                }
            }
        }
    }
}

impl PartitionMachine {
    /// All merchants that have something here, or the one asked for.
    #[must_use]
    pub fn rows(
        &self,
        only: Option<&MerchantId>,
        directory: &dyn Directory,
        now: Now,
    ) -> Vec<MerchantRow> {
        let mut oldest: HashMap<&MerchantId, UnixMillis> = HashMap::new();
        for held in self.window.values() {
            let envelope = &held.stored.order.envelope;
            let entry = oldest.entry(&envelope.merchant).or_insert(UnixMillis::MAX);
            *entry = envelope.created.min(*entry);
        }
        let backlogs = self
            .backlogs
            .iter()
            .filter(|(id, _)| only.is_none_or(|only| *id == only));
        let rows = backlogs.map(|(id, backlog)| MerchantRow {
            merchant: id.clone(),
            state: Self::state(id, backlog, directory, now),
            backlog: backlog.unloaded + u64::from(backlog.offered) + u64::from(backlog.finishing),
            in_flight: backlog.running,
            mailbox: backlog.offered,
            delivered: backlog.stats.delivered,
            latencies: backlog.stats.latencies.iter().copied().collect(),
            last_error: backlog.stats.last_error.clone(),
            per_minute: backlog.stats.pace(now),
            oldest: oldest.get(id).copied(),
        });
        let mut rows: Vec<_> = rows.collect();
        if let Some(id) = only.filter(|_| rows.is_empty()) {
            rows.extend(Self::held_row(id, directory, now));
        }
        rows
    }

    /// Of a merchant that has nothing here, and takes nothing either.
    fn held_row(id: &MerchantId, directory: &dyn Directory, now: Now) -> Option<MerchantRow> {
        let merchant = directory.merchant(id)?;
        let held = HeldBy::of(&merchant, directory, now)?;
        Some(MerchantRow {
            merchant: id.clone(),
            state: MerchantState::Held(held),
            backlog: 0,
            in_flight: 0,
            mailbox: 0,
            delivered: 0,
            latencies: Vec::new(),
            last_error: String::new(),
            per_minute: 0,
            oldest: None,
        })
    }

    fn state(
        id: &MerchantId,
        backlog: &Backlog,
        directory: &dyn Directory,
        now: Now,
    ) -> MerchantState {
        if backlog.quarantined {
            return MerchantState::Quarantined;
        }
        let Some(merchant) = directory.merchant(id) else {
            return MerchantState::Unknown;
        };
        if let Some(held) = HeldBy::of(&merchant, directory, now) {
            return MerchantState::Held(held);
        }
        match backlog.closure.filter(|closure| closure.is_in_force(now)) {
            Some(closure) => MerchantState::Closed {
                because: closure.because,
                until: closure.until,
            },
            None => MerchantState::Open,
        }
    }

    /// Finds an order by its id; the newest generation that this owner remembers.
    #[must_use]
    pub fn locate(&self, merchant: &MerchantId, id: &OrderId) -> Located {
        // The older ones may be forgotten: a gap of a few is not the end.
        let (mut found, mut newest) = (None, 0);
        for generation in 1.. {
            match self.repeats.find(id_hash(merchant, id, generation)) {
                Some(seq) => (found, newest) = (Some(seq), generation),
                None if generation >= newest.saturating_add(8) => break,
                None => {}
            }
        }
        let Some(seq) = found else {
            return Located::Unknown;
        };
        if let Some(held) = self.window.get(&seq) {
            let running = match held.stage {
                Stage::Running { number, .. } => Some(number),
                _ => None,
            };
            return Located::Mailbox {
                stored: Box::new(held.stored.clone()),
                running,
            };
        }
        if self.finishing.contains_key(&seq) {
            return Located::Finishing { seq };
        }
        if self.ledger.is_open(seq) {
            return Located::Store {
                merchant: merchant.clone(),
                seq,
            };
        }
        Located::Finished { seq }
    }

    /// How it ends is decided, and its outcome is not acknowledged yet.
    #[must_use]
    pub fn is_finishing(&self, seq: Seq) -> bool {
        self.finishing.contains_key(&seq)
    }

    /// Its attempt was started and the request has not left.
    #[must_use]
    pub fn is_starting(&self, seq: Seq) -> bool {
        self.window
            .get(&seq)
            .is_some_and(|held| matches!(held.stage, Stage::Marking { .. }))
    }

    /// Attempts in flight.
    #[must_use]
    pub fn running(&self) -> u32 {
        self.running
    }

    /// Every order at or below it is finished.
    #[must_use]
    pub fn low_water(&self) -> Seq {
        self.ledger.low_water()
    }

    /// The oldest order that was taken and is not finished.
    #[must_use]
    pub fn oldest_open(&self) -> Option<Seq> {
        self.ledger.open_sequences().min()
    }

    /// Taken and not finished.
    #[must_use]
    pub fn unfinished(&self) -> u64 {
        self.ledger.open()
    }

    /// Sequences that were taken and are not finished.
    #[must_use]
    pub fn open_sequences(&self) -> roaring::RoaringTreemap {
        self.ledger.open_sequences().clone()
    }

    /// In the store and not in a mailbox.
    #[must_use]
    pub fn waiting_in_store(&self) -> u64 {
        self.stored_orders()
    }

    /// Actors that are alive.
    #[must_use]
    pub fn active_merchants(&self) -> usize {
        self.backlogs
            .values()
            .filter(|backlog| backlog.active.is_some())
            .count()
    }

    /// Merchants that nobody may send to until an operator says so.
    #[must_use]
    pub fn quarantined_merchants(&self) -> usize {
        self.backlogs
            .values()
            .filter(|backlog| backlog.quarantined)
            .count()
    }

    /// Merchants that are closed now, and why.
    pub fn closed_merchants(&self, now: Now) -> impl Iterator<Item = ClosedBecause> + '_ {
        let closures = self.backlogs.values().filter_map(|backlog| backlog.closure);
        closures
            .filter(move |closure| closure.is_in_force(now))
            .map(|closure| closure.because)
    }

    /// Merchants that have orders and are not registered.
    #[must_use]
    pub fn unknown_merchants(&self) -> usize {
        self.unknown_since.len()
    }

    /// Ids remembered to notice repeats.
    #[must_use]
    pub fn repeats_window(&self) -> usize {
        self.repeats.len()
    }

    /// Ids that may be remembered to notice repeats; beyond it the oldest are forgotten.
    #[must_use]
    pub fn repeats_limit(&self) -> usize {
        self.repeats.capacity()
    }

    /// Decisions without an acknowledgement.
    #[must_use]
    pub fn unconfirmed(&self) -> usize {
        self.writer.unconfirmed()
    }
}
