//! A merchant's backlog: what of it is in the mailbox, what in the store, and when to load more.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use expediter_types::{
    AttemptClass, DeadReason, Idempotency, Merchant, MerchantId, Now, Ordering, OutcomeKind,
    Priority, Seq, UnixMillis,
};

use super::lanes::Lanes;
use super::merchants::{Held, Stage};
use super::writer::Why;
use super::{Command, Directory, Doubt, PartitionMachine};
use crate::merchant::{Accepting, Closure, Wait, expiry, millis, share_of_repeats};
use crate::quota::Quotas;
use crate::store::{Due, Gate, Ready, StoreOp, StoredMerchant};
use crate::{OrderState, Stored};

/// So many expired orders are taken from the store at once.
const EXPIRE_AT_ONCE: usize = 256;
/// So many orders of a condemned backlog are dead-lettered at once.
const CONDEMN_AT_ONCE: usize = 256;
/// No more orders of a backlog are ended while so many decisions are not acknowledged: the others'
/// outcomes wait behind them, and each dead letter holds its payload.
const ENDING_AT_ONCE: usize = 512;

/// A read from the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Load {
    Ready {
        merchant: MerchantId,
        from: Seq,
        up_to: Seq,
        limit: usize,
        gate: Gate,
        /// These too, besides.
        also: Vec<Seq>,
    },
    Due {
        merchant: MerchantId,
        until: UnixMillis,
        limit: usize,
        gate: Gate,
    },
    KeyHead {
        merchant: MerchantId,
        key: u64,
    },
    Expired {
        until: UnixMillis,
    },
    /// Any orders of the merchant, to end them.
    Condemned {
        merchant: MerchantId,
        from: Seq,
    },
    /// The lowest sequence stored of the merchant.
    First {
        merchant: MerchantId,
    },
    /// One order.
    One {
        merchant: MerchantId,
        seq: Seq,
    },
}

impl Load {
    /// How many orders a [`Load::Expired`] or [`Load::Condemned`] takes.
    #[must_use]
    pub fn limit(&self) -> usize {
        match self {
            Self::Ready { limit, .. } | Self::Due { limit, .. } => *limit,
            Self::KeyHead { .. } | Self::First { .. } | Self::One { .. } => 1,
            Self::Expired { .. } => EXPIRE_AT_ONCE,
            Self::Condemned { .. } => CONDEMN_AT_ONCE,
        }
    }
}

/// What a [`Load`] brought.
#[derive(Debug, Clone, PartialEq)]
pub enum Loaded {
    /// In sequence; and those that were asked for besides, as far as they are there.
    Ready(Ready, Vec<Stored>),
    Due(Due),
    KeyHead(Option<Stored>),
    Expired(Vec<Stored>),
    First(Option<Seq>),
    One(Option<Stored>),
}

/// Why a merchant's waiting orders end as dead letters.
#[derive(Debug, Clone)]
pub(super) struct Condemned {
    pub(super) reason: DeadReason,
    pub(super) detail: Arc<str>,
    /// Younger ones, by the broker's timestamp, still wait.
    pub(super) up_to: UnixMillis,
}

/// A merchant's unfinished orders, counted.
#[derive(Debug)]
pub(super) struct Backlog {
    /// Manifest the actor runs with; `None`: no actor.
    pub(super) active: Option<Arc<Merchant>>,
    pub(super) accepting: Accepting,
    /// What keeps the orders in its mailbox waiting.
    pub(super) waits: Wait,
    pub(super) closure: Option<Closure>,
    /// Orders in the mailbox.
    pub(super) offered: u32,
    pub(super) running: u32,
    /// Orders in the store that are neither in the mailbox nor finishing.
    pub(super) unloaded: u64,
    /// Everything ready in the store is in `cursor..=tail`; nothing when `cursor > tail`.
    pub(super) cursor: Seq,
    pub(super) tail: Seq,
    /// Lowest sequence that went to the store while a load was under way: what was loaded above
    /// it may have been loaded too early.
    lowered: Option<Seq>,
    /// Went to the store while a load was under way: what that load says of them is out of date.
    stale: HashSet<Seq>,
    loading: bool,
    /// What could go and is not of normal priority; not in `cursor..=tail`.
    pub(super) lanes: Lanes,
    /// Keys whose oldest stored order may go now.
    pub(super) key_heads: VecDeque<u64>,
    /// Decided orders that the store still has.
    pub(super) finishing: u32,
    pub(super) incarnation: u64,
    /// Orders that this incarnation gave back.
    pub(super) returns: u64,
    /// Earliest due time among the stored orders that wait for a time.
    pub(super) next_due: Option<UnixMillis>,
    /// Ordered: of those whose time has come, one stands above what was seen then.
    due_above: Option<Seq>,
    /// Wholly ordered: the head waits until then, and everything behind it.
    pub(super) head_due: Option<UnixMillis>,
    /// Lowest and highest sequence of those that went to the store to wait for a time: where all
    /// go in sequence they have their place in it, too.
    timed: Option<(Seq, Seq)>,
    /// All its orders end as dead letters.
    pub(super) condemned: Option<Condemned>,
    pub(super) quarantined: bool,
    /// An operator or its opening hours keep its orders waiting.
    pub(super) held: bool,
    pub(super) panics: VecDeque<u64>,
    pub(super) last_used: u64,
    /// Nothing of the rate was available then, by the monotonic clock.
    pub(super) limits_since: u64,
    /// What was spent of its quotas, by the starts that the partition heard of.
    pub(super) quotas: Quotas,
    /// What nobody knows from before this epoch is in `quotas`.
    pub(super) charged: bool,
    /// A mark knew what was spent.
    pub(super) restored: bool,
    pub(super) finished_since_purge: u64,
    pub(super) stats: super::query::Stats,
}

impl Backlog {
    pub(super) fn new() -> Self {
        Self {
            active: None,
            accepting: Accepting::Open,
            waits: Wait::Nothing,
            closure: None,
            offered: 0,
            running: 0,
            unloaded: 0,
            cursor: Seq::MAX,
            tail: 0,
            lowered: None,
            stale: HashSet::new(),
            loading: false,
            lanes: Lanes::default(),
            key_heads: VecDeque::new(),
            finishing: 0,
            incarnation: 0,
            returns: 0,
            next_due: None,
            due_above: None,
            head_due: None,
            timed: None,
            condemned: None,
            quarantined: false,
            held: false,
            panics: VecDeque::new(),
            last_used: 0,
            limits_since: 0,
            quotas: Quotas::default(),
            charged: false,
            restored: false,
            finished_since_purge: 0,
            stats: super::query::Stats::default(),
        }
    }

    pub(super) fn of_stored(stored: &StoredMerchant) -> Self {
        Self {
            unloaded: stored.orders.len(),
            cursor: stored.orders.min().unwrap_or(Seq::MAX),
            tail: stored.orders.max().unwrap_or(0),
            lanes: Lanes::of_stored(&stored.lanes),
            next_due: stored.next_due,
            ..Self::new()
        }
    }

    /// An order of the store can be loaded.
    fn add_ready(&mut self, seq: Seq, priority: Priority) {
        if self.lanes.insert(priority, seq) {
            return;
        }
        self.cursor = self.cursor.min(seq);
        self.tail = self.tail.max(seq);
    }

    fn add_due(&mut self, due: UnixMillis) {
        self.next_due = Some(self.next_due.map_or(due, |next| next.min(due)));
    }

    /// An order of the store waits for a time.
    fn add_timed(&mut self, seq: Seq, due: UnixMillis) {
        self.add_due(due);
        let (low, high) = self.timed.unwrap_or((seq, seq));
        self.timed = Some((low.min(seq), high.max(seq)));
    }

    /// Gives those that wait for a time their place in the sequence.
    fn line_up(&mut self) {
        if let Some((low, high)) = self.timed.take() {
            if low <= self.cursor {
                self.head_due = None;
            }
            self.cursor = self.cursor.min(low);
            self.tail = self.tail.max(high);
        }
    }

    /// What may be loaded, and when, is to be found out anew; also by a load that is under way.
    pub(super) fn look_at_all(&mut self, now: Now) {
        self.head_due = None;
        if self.unloaded > 0 {
            self.cursor = 0;
            if let Some((_, high)) = self.lanes.dissolve() {
                self.tail = self.tail.max(high);
            }
            self.add_due(now.wall);
            self.note_lowered(0);
        }
    }

    fn note_lowered(&mut self, seq: Seq) {
        if self.loading {
            self.stale.insert(seq);
            self.lowered = Some(self.lowered.map_or(seq, |low| low.min(seq)));
        }
    }

    /// Unfinished orders whose end is not decided.
    pub(super) fn waiting(&self) -> u64 {
        self.unloaded + u64::from(self.offered)
    }

    /// Nothing is known of it that would be missed.
    pub(super) fn is_empty(&self) -> bool {
        self.offered == 0 && self.unloaded == 0 && self.finishing == 0 && !self.loading
    }

    /// Worth a read from the store: half of the mailbox is free, or the merchant could run dry.
    fn wants_load(&self, merchant: &Merchant) -> bool {
        let limits = &merchant.limits;
        let full = limits.mailbox.max(limits.concurrency);
        let spare = full.saturating_sub(limits.concurrency);
        match self.accepting {
            Accepting::Open | Accepting::Short | Accepting::Fresh if self.lanes.urgent() => {
                self.room(merchant) > 0
            }
            Accepting::Open | Accepting::Short | Accepting::Fresh => {
                self.room(merchant) >= (full / 2).min(spare).max(1)
            }
            Accepting::ClosedUntil(_) | Accepting::Probe => self.room(merchant) > 0,
        }
    }

    fn room(&self, merchant: &Merchant) -> u32 {
        let limits = &merchant.limits;
        let full = limits.mailbox.max(limits.concurrency);
        let room = match self.accepting {
            Accepting::Open | Accepting::Short | Accepting::Fresh => full,
            Accepting::ClosedUntil(_) => 0,
            Accepting::Probe => 1,
        };
        room.saturating_sub(self.offered)
    }
}

impl PartitionMachine {
    /// An order that was just taken may go to the mailbox without passing the store.
    pub(super) fn goes_direct(
        &self,
        stored: &Stored,
        merchant: &Merchant,
        backlog: &Backlog,
        now: Now,
    ) -> bool {
        let priority = stored.order.envelope.priority;
        let nothing_before = match merchant.limits.ordering {
            Ordering::None => {
                let normal_waits = backlog.cursor <= backlog.tail;
                !backlog.lanes.waits_before(priority)
                    && (!normal_waits || priority == Priority::High)
            }
            Ordering::Order | Ordering::Merchant => {
                backlog.unloaded == 0 || self.parked.is_again(&merchant.id, stored.order.seq)
            }
        };
        let closed =
            backlog.active.is_none() && backlog.closure.is_some_and(|c| c.until > now.wall);
        nothing_before
            && !self.parked.holds(merchant, &stored.order)
            && !closed
            && !backlog.loading
            && !backlog.quarantined
            && !backlog.held
            && !self.draining
            && backlog.condemned.is_none()
            && stored.state.due.is_none_or(|due| due <= now.wall)
            && self.writer.unconfirmed() < self.config.unconfirmed
            && backlog.room(merchant) > 0
    }

    /// Puts an order into the mailbox of its merchant, starting the actor when there is none.
    pub(super) fn offer(
        &mut self,
        stored: Stored,
        in_store: bool,
        merchant: &Arc<Merchant>,
        now: Now,
    ) {
        let mut offer = Self::offer_of(&stored, merchant);
        let inactive = self
            .backlogs
            .get(&merchant.id)
            .is_some_and(|b| b.active.is_none());
        if inactive {
            self.activate(merchant, now);
        }
        let Some(backlog) = self.backlogs.get_mut(&merchant.id) else {
            return;
        };
        backlog.offered += 1;
        backlog.last_used = now.mono;
        offer.returns = backlog.returns;
        self.window.insert(
            offer.seq,
            Held {
                stored,
                in_store,
                stage: Stage::Offered,
                since: now.mono,
                answer_panics: 0,
            },
        );
        self.commands.push_back(Command::Offer {
            merchant: merchant.id.clone(),
            offer,
        });
    }

    /// Hands an order to the store; it is not in a mailbox.
    pub(super) fn park(&mut self, stored: Stored) {
        let merchant = stored.order.envelope.merchant.clone();
        let seq = stored.order.seq;
        let (due, priority) = (stored.state.due, stored.order.envelope.priority);
        self.ledger.store(seq);
        self.ops.push(StoreOp::Put(stored));
        self.note_parked(&merchant, seq, due, priority);
    }

    /// The store has an order that is not in a mailbox any more.
    pub(super) fn note_parked(
        &mut self,
        merchant: &MerchantId,
        seq: Seq,
        due: Option<UnixMillis>,
        priority: Priority,
    ) {
        let backlog = self
            .backlogs
            .entry(merchant.clone())
            .or_insert_with(Backlog::new);
        backlog.unloaded += 1;
        backlog.note_lowered(seq);
        if self.expiring {
            self.parked_while_expiring.insert(seq);
        }
        let fifo = backlog
            .active
            .as_ref()
            .is_some_and(|merchant| merchant.limits.ordering == Ordering::Merchant);
        match due {
            Some(due) => {
                backlog.add_timed(seq, due);
                if fifo {
                    backlog.line_up();
                    if backlog.cursor == seq {
                        backlog.head_due = Some(due);
                    }
                }
                self.timers.insert((due, merchant.clone()));
            }
            None => {
                // Whatever the head waits for, it is not the head any more.
                if seq < backlog.cursor {
                    backlog.head_due = None;
                }
                backlog.add_ready(seq, priority);
            }
        }
        self.parked.stored(merchant, seq, due);
        self.cancel_parked(merchant, seq);
    }

    /// Loads more of a merchant's stored orders if it wants more.
    pub(super) fn refill(&mut self, id: &MerchantId, directory: &dyn Directory, now: Now) {
        let held = self.keep_hold(id, directory, now);
        let ledger_seen = self.ledger.seen();
        let unconfirmed = self.writer.unconfirmed() >= self.config.unconfirmed;
        let enough = self.ends_enough();
        let Some(backlog) = self.backlogs.get_mut(id) else {
            return;
        };
        if backlog.loading || backlog.unloaded == 0 {
            return;
        }
        if backlog.condemned.is_some() {
            if enough {
                self.ending.insert(id.clone());
                return;
            }
            backlog.loading = true;
            let load = Load::Condemned {
                merchant: id.clone(),
                from: 0,
            };
            self.commands.push_back(Command::Load(load));
            return;
        }
        if backlog.quarantined || held || self.draining || unconfirmed {
            return;
        }
        let Some(merchant) = directory.merchant(id) else {
            self.unknown_since.entry(id.clone()).or_insert(now.wall);
            return;
        };
        if backlog.active.is_none() {
            // What the machine would say if it existed.
            backlog.accepting = match backlog.closure {
                Some(c) if c.until > now.wall => Accepting::ClosedUntil(c.until),
                _ => Accepting::Open,
            };
        }
        match backlog.accepting {
            Accepting::ClosedUntil(until) if until > now.wall => {
                self.timers.insert((until, id.clone()));
                return;
            }
            Accepting::ClosedUntil(_) => {
                let probing = backlog
                    .closure
                    .is_some_and(|c| c.because != expediter_types::ClosedBecause::RateLimited);
                backlog.accepting = if probing {
                    Accepting::Probe
                } else {
                    Accepting::Open
                };
            }
            Accepting::Open | Accepting::Short | Accepting::Fresh | Accepting::Probe => {}
        }
        if !backlog.wants_load(&merchant) {
            return;
        }
        if merchant.holds_on_park() {
            let all = self.parked.holds_all(&merchant);
            self.load_again(id, now);
            if all {
                return;
            }
        }
        let Some(backlog) = self.backlogs.get_mut(id) else {
            return;
        };
        let room = backlog.room(&merchant) as usize;
        let gate = Self::gate(&merchant);
        if gate != Gate::Ready
            && let Some((low, high)) = backlog.lanes.dissolve()
        {
            backlog.cursor = backlog.cursor.min(low);
            backlog.tail = backlog.tail.max(high);
        }
        let ordered = merchant.limits.ordering != Ordering::None;
        let up_to = if ordered { ledger_seen } else { Seq::MAX };
        if gate != Gate::HeadOfKey {
            // From before the merchant's ordering changed.
            backlog.key_heads.clear();
        }
        if let Some(key) = backlog.key_heads.pop_front() {
            backlog.loading = true;
            let load = Load::KeyHead {
                merchant: id.clone(),
                key,
            };
            self.commands.push_back(Command::Load(load));
            return;
        }
        if gate == Gate::Fifo {
            backlog.line_up();
            if let Some(due) = backlog.head_due.filter(|due| *due > now.wall) {
                self.timers.insert((due, id.clone()));
                return;
            }
        } else if let Some(due) = backlog.next_due
            // Those that were tried before wait in the store when the mailbox has enough of them.
            && (backlog.accepting != Accepting::Fresh || due > now.wall)
        {
            if due <= now.wall && ordered && backlog.due_above == Some(ledger_seen) {
                self.gated.insert(id.clone());
            } else if due <= now.wall {
                backlog.loading = true;
                backlog.next_due = None;
                backlog.due_above = None;
                // Orders in the mailbox may come back from the index; they are skipped.
                let room = match backlog.accepting {
                    Accepting::Short => room.min(share_of_repeats(&merchant.limits) as usize),
                    _ => room,
                };
                let limit = room + (backlog.offered + backlog.finishing) as usize;
                let load = Load::Due {
                    merchant: id.clone(),
                    until: now.wall,
                    limit,
                    gate,
                };
                self.commands.push_back(Command::Load(load));
                return;
            } else {
                self.timers.insert((due, id.clone()));
            }
        }
        if !backlog.lanes.is_empty() {
            let normal_waits = backlog.cursor <= backlog.tail;
            let (also, limit) = backlog.lanes.take(room, normal_waits);
            backlog.loading = true;
            let load = Load::Ready {
                merchant: id.clone(),
                from: backlog.cursor,
                // Without a place for them nothing of normal priority is read.
                up_to: if limit > 0 { up_to } else { 0 },
                limit,
                gate,
                also,
            };
            self.commands.push_back(Command::Load(load));
        } else if backlog.cursor <= backlog.tail {
            if backlog.cursor > up_to {
                self.gated.insert(id.clone());
                return;
            }
            backlog.loading = true;
            let from = backlog.cursor;
            let load = Load::Ready {
                merchant: id.clone(),
                from,
                up_to,
                limit: room,
                gate,
                also: Vec::new(),
            };
            self.commands.push_back(Command::Load(load));
        }
    }

    /// A load came back.
    pub fn on_loaded(&mut self, load: Load, loaded: Loaded, directory: &dyn Directory, now: Now) {
        match (load, loaded) {
            (
                Load::Ready {
                    merchant,
                    from,
                    up_to,
                    limit,
                    gate,
                    ..
                },
                Loaded::Ready(ready, also),
            ) => {
                if limit > 0 {
                    self.on_ready(&merchant, from, up_to, gate, ready, directory, now);
                } else {
                    self.end_load(&merchant);
                }
                self.on_lanes(&merchant, gate, also, directory, now);
            }
            (Load::Due { merchant, gate, .. }, Loaded::Due(due)) => {
                let Some((lowered, stale)) = self.end_load(&merchant) else {
                    return;
                };
                let changed = directory
                    .merchant(&merchant)
                    .is_some_and(|manifest| Self::gate(&manifest) != gate);
                let orders = due.orders.iter().map(|stored| stored.order.seq);
                let early = changed
                    || (gate != Gate::Ready && orders.max().is_some_and(|last| last > lowered));
                if let Some(backlog) = self.backlogs.get_mut(&merchant) {
                    if early {
                        backlog.add_due(now.wall);
                    } else if let Some(next) = due.next {
                        backlog.add_due(next);
                    }
                }
                if !early {
                    for stored in due.orders {
                        if stale.contains(&stored.order.seq) {
                            continue;
                        }
                        self.admit(stored, directory, now);
                    }
                }
                self.refill(&merchant, directory, now);
            }
            (Load::KeyHead { merchant, key }, Loaded::KeyHead(stored)) => {
                let Some((lowered, stale)) = self.end_load(&merchant) else {
                    return;
                };
                // Keys mean nothing any more when the ordering changed: all is looked at again then.
                let manifest = directory.merchant(&merchant);
                let by_key = manifest.is_some_and(|m| Self::gate(&m) == Gate::HeadOfKey);
                if let Some(stored) = stored.filter(|_| by_key) {
                    let seq = stored.order.seq;
                    let waits = stored.state.due.filter(|due| *due > now.wall);
                    if let Some(backlog) = self.backlogs.get_mut(&merchant) {
                        if seq > lowered || stale.contains(&seq) {
                            backlog.key_heads.push_back(key);
                        } else if let Some(due) = waits {
                            // Its time had come once while it was behind, and was not waited for;
                            // then the wall clock was set back.
                            backlog.add_timed(seq, due);
                        } else if seq < backlog.cursor || stored.state.due.is_some() {
                            // The cursor passed it, or does not look at what waited for a time.
                            self.admit(stored, directory, now);
                        }
                    }
                }
                self.refill(&merchant, directory, now);
            }
            (Load::Expired { .. }, Loaded::Expired(orders)) => {
                self.on_expired(orders, directory, now);
            }
            (Load::Condemned { merchant, .. }, Loaded::Ready(ready, _)) => {
                self.on_condemned(&merchant, ready, directory, now);
            }
            (Load::First { merchant }, Loaded::First(first)) => self.on_first(merchant, first),
            (Load::One { merchant, seq }, Loaded::One(stored)) => {
                self.on_one(&merchant, seq, stored, directory, now);
            }
            _ => debug_assert!(false, "a load was answered with another kind"),
        }
    }

    /// The load is over; the lowest sequence that was parked meanwhile, `Seq::MAX` for none.
    fn end_load(&mut self, merchant: &MerchantId) -> Option<(Seq, HashSet<Seq>)> {
        let backlog = self.backlogs.get_mut(merchant)?;
        backlog.loading = false;
        let lowered = backlog.lowered.take().unwrap_or(Seq::MAX);
        Some((lowered, std::mem::take(&mut backlog.stale)))
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one load and its answer"
    )]
    fn on_ready(
        &mut self,
        merchant: &MerchantId,
        from: Seq,
        up_to: Seq,
        gate: Gate,
        ready: Ready,
        directory: &dyn Directory,
        now: Now,
    ) {
        let Some((lowered, stale)) = self.end_load(merchant) else {
            return;
        };
        let Some(backlog) = self.backlogs.get_mut(merchant) else {
            return;
        };
        let last = ready.orders.last().map_or(0, |stored| stored.order.seq);
        let manifest = directory.merchant(merchant);
        let changed = manifest.is_some_and(|manifest| Self::gate(&manifest) != gate);
        if changed || (gate != Gate::Ready && last > lowered) {
            // An older order of the same key may have come back to the store meanwhile.
            backlog.cursor = from.min(backlog.cursor).min(lowered);
            return self.refill(merchant, directory, now);
        }
        backlog.cursor = ready.next.min(lowered);
        if gate == Gate::Fifo {
            backlog.head_due = None;
        }
        let mut stopped_at = None;
        for stored in ready.orders {
            let seq = stored.order.seq;
            let in_lane = |backlog: &Backlog| backlog.lanes.contains(seq);
            if stale.contains(&seq) || self.backlogs.get(merchant).is_some_and(in_lane) {
                continue;
            }
            let skip = self.window.contains_key(&seq) || self.finishing.contains_key(&seq);
            if gate == Gate::Fifo && !skip {
                if let Some(due) = stored.state.due.filter(|due| *due > now.wall) {
                    stopped_at = Some((seq, Some(due)));
                    break;
                }
                let full = self
                    .backlogs
                    .get(merchant)
                    .zip(directory.merchant(merchant));
                if full.is_some_and(|(backlog, spec)| backlog.room(&spec) == 0) {
                    stopped_at = Some((seq, None));
                    break;
                }
            }
            self.admit(stored, directory, now);
            let taken = self.window.contains_key(&seq) || !self.ledger.is_open(seq);
            if gate == Gate::Fifo && !taken && !self.finishing.contains_key(&seq) {
                // It was put back: nothing behind it may go.
                stopped_at = Some((seq, None));
                break;
            }
        }
        let Some(backlog) = self.backlogs.get_mut(merchant) else {
            return;
        };
        if let Some((seq, due)) = stopped_at {
            backlog.cursor = backlog.cursor.min(seq);
            backlog.head_due = due;
            if let Some(due) = due {
                self.timers.insert((due, merchant.clone()));
            }
            return;
        }
        if ready.exhausted && backlog.cursor > up_to && backlog.cursor <= backlog.tail {
            self.gated.insert(merchant.clone());
            return;
        }
        self.refill(merchant, directory, now);
    }

    /// Orders of high and low priority came from the store.
    fn on_lanes(
        &mut self,
        merchant: &MerchantId,
        gate: Gate,
        orders: Vec<Stored>,
        directory: &dyn Directory,
        now: Now,
    ) {
        if orders.is_empty() {
            return;
        }
        let manifest = directory.merchant(merchant);
        if manifest.is_none_or(|manifest| Self::gate(&manifest) == gate) {
            for stored in orders {
                self.admit(stored, directory, now);
            }
        }
        // Otherwise they keep their sequence now, and are looked at from the beginning.
        self.refill(merchant, directory, now);
    }

    /// A stored order comes back towards its mailbox.
    pub(super) fn admit(&mut self, mut stored: Stored, directory: &dyn Directory, now: Now) {
        let seq = stored.order.seq;
        let id = stored.order.envelope.merchant.clone();
        if self.window.contains_key(&seq)
            || self.finishing.contains_key(&seq)
            || !self.ledger.is_open(seq)
        {
            return;
        }
        if let Some(backlog) = self.backlogs.get_mut(&id)
            && backlog.closure.is_none()
            && backlog.active.is_none()
        {
            backlog.accepting = Accepting::Open;
        }
        let Some(merchant) = directory.merchant(&id) else {
            return self.put_back(&stored);
        };
        let seen = self.ledger.seen();
        if merchant.limits.ordering != Ordering::None && seq > seen {
            // Something older may be in the log and not taken yet.
            if stored.state.due.is_some()
                && let Some(backlog) = self.backlogs.get_mut(&id)
            {
                backlog.due_above = Some(seen);
            }
            self.gated.insert(id.clone());
            return self.put_back(&stored);
        }
        if self.parked.holds(&merchant, &stored.order) {
            // It stays in the store, and is looked for when the one before it is resolved; without
            // its time, or it would be read again and again until then.
            if stored.state.due.is_some_and(|due| due <= now.wall) {
                stored.state.due = None;
                let state = stored.state;
                self.ops.push(StoreOp::SetState {
                    merchant: id,
                    seq,
                    state,
                });
            }
            return;
        }
        if self.settle_doubt(&mut stored, &merchant, now) {
            let in_store = true;
            self.take_unloaded(&id);
            self.conclude(
                stored,
                in_store,
                OutcomeKind::DeadLettered(DeadReason::Ambiguous),
                Why::from("the node stopped while the attempt was running"),
                now,
            );
            return;
        }
        if stored.state.due.is_some_and(|due| due > now.wall) {
            let state = stored.state.clone();
            self.ops.push(StoreOp::SetState {
                merchant: id.clone(),
                seq,
                state,
            });
            return self.put_back(&stored);
        }
        let blocked = self.draining
            || self.backlogs.get(&id).is_none_or(|b| {
                b.quarantined || b.held || b.condemned.is_some() || b.room(&merchant) == 0
            });
        if blocked {
            return self.put_back(&stored);
        }
        self.take_unloaded(&id);
        self.offer(stored, true, &merchant, now);
    }

    /// It stays in the store after all.
    fn put_back(&mut self, stored: &Stored) {
        let (seq, envelope) = (stored.order.seq, &stored.order.envelope);
        self.parked
            .stored(&envelope.merchant, seq, stored.state.due);
        if let Some(backlog) = self.backlogs.get_mut(&envelope.merchant) {
            match stored.state.due {
                Some(due) => {
                    backlog.add_timed(seq, due);
                    self.timers.insert((due, envelope.merchant.clone()));
                }
                None => backlog.add_ready(seq, envelope.priority),
            }
        }
    }

    pub(super) fn take_unloaded(&mut self, merchant: &MerchantId) {
        if let Some(backlog) = self.backlogs.get_mut(merchant) {
            backlog.unloaded = backlog.unloaded.saturating_sub(1);
        }
    }

    /// Applies what is doubtful about an order from before this epoch. True: it cannot be
    /// repeated and has to be parked.
    pub(super) fn settle_doubt(
        &mut self,
        stored: &mut Stored,
        merchant: &Merchant,
        now: Now,
    ) -> bool {
        let Some(doubt) = self.doubts.remove(&stored.order.seq) else {
            return self.settle_possibly_sent(stored, merchant, now);
        };
        stored.state.ambiguous = true;
        stored.state.first_attempt.get_or_insert(now.wall);
        match (doubt, merchant.adapter.idempotency) {
            (_, Idempotency::Lookup) => {
                self.look_later(stored, merchant, now);
                false
            }
            (Doubt::Unrepeatable, _) | (Doubt::Until(_), Idempotency::None) => true,
            (Doubt::Until(busy_until), _) => {
                if busy_until > now.wall {
                    stored.state.due = Some(busy_until);
                }
                false
            }
        }
    }

    /// The merchant is asked before the order is sent. What it says is believed only when nothing of
    /// a former owner can be on the wire any more.
    pub(super) fn look_later(&self, stored: &mut Stored, merchant: &Merchant, now: Now) {
        let state = &mut stored.state;
        state.ambiguous = true;
        let from = self
            .claimed_at
            .saturating_add(millis(merchant.adapter.timeout));
        if from > now.wall {
            state.due = Some(state.due.unwrap_or(0).max(from));
        }
    }

    /// The former owner may have sent this order since its newest mark, which does not list it. True:
    /// the merchant may have it and does not remember it any more.
    fn settle_possibly_sent(&mut self, stored: &mut Stored, merchant: &Merchant, now: Now) -> bool {
        let adapter = &merchant.adapter;
        let created = stored.order.envelope.created;
        if adapter.idempotency == Idempotency::Lookup {
            // Its attempts are listed: without a list every order may have been sent.
            let lost = self.outcomes_lost_at.is_some_and(|at| created < at);
            if lost && stored.state.first_attempt.is_none() {
                self.look_later(stored, merchant, now);
            }
            return false;
        }
        let unrepeatable = adapter.idempotency == Idempotency::None;
        let envelope = &stored.order.envelope;
        let id = (envelope.merchant.clone(), envelope.id.clone());
        if unrepeatable && self.doubted.get(&id).is_some_and(|at| created < *at) {
            stored.state.ambiguous = true;
            return true;
        }
        if unrepeatable && self.outcomes_lost_at.is_some_and(|at| created < at) {
            stored.state.ambiguous = true;
            return true;
        }
        let Some((since, claimed)) = self.sent_since else {
            return false;
        };
        if unrepeatable || stored.state.first_attempt.is_some() || created >= claimed {
            return false;
        }
        // An owner between the one that sent it and this one may have known better.
        let known = self.attempted.get(&stored.order.seq);
        let first = known.map_or(since.max(created), |count| count.first);
        stored.state.first_attempt = Some(first);
        // The next owner must not count from its own beginning.
        self.remember_attempts(stored);
        let forgotten = first.saturating_add(millis(adapter.idempotency_window)) <= now.wall;
        stored.state.ambiguous |= forgotten;
        forgotten
    }

    fn on_expired(&mut self, orders: Vec<Stored>, directory: &dyn Directory, now: Now) {
        self.expiring = false;
        let stale = std::mem::take(&mut self.parked_while_expiring);
        let full = orders.len() >= EXPIRE_AT_ONCE;
        let mut progress = false;
        for mut stored in orders {
            let seq = stored.order.seq;
            let id = stored.order.envelope.merchant.clone();
            // The machine of a merchant judges what is in its mailbox.
            if stale.contains(&seq)
                || self.window.contains_key(&seq)
                || self.finishing.contains_key(&seq)
                || !self.ledger.is_open(seq)
            {
                continue;
            }
            progress = true;
            let merchant = directory.merchant(&id);
            let deadline = Self::deadline(&stored.order, merchant.as_deref());
            if deadline > now.wall {
                // The merchant's policy became longer.
                stored.deadline = deadline;
                self.ops.push(StoreOp::Put(stored));
                continue;
            }
            let doubtful = self.doubts.remove(&seq).is_some() || stored.state.ambiguous;
            self.take_unloaded(&id);
            self.conclude(stored, true, expiry(doubtful), Why::default(), now);
            if let Some(backlog) = self.backlogs.get_mut(&id) {
                backlog.head_due = None;
            }
            self.refill(&id, directory, now);
        }
        if full && progress {
            self.expire_more = true;
            self.end_more(directory, now);
        }
    }

    /// So many decisions wait for their acknowledgement that no more orders are ended.
    fn ends_enough(&self) -> bool {
        self.writer.unconfirmed() >= ENDING_AT_ONCE.min(self.config.unconfirmed)
    }

    /// Goes on ending orders when enough of those before are acknowledged.
    pub(super) fn end_more(&mut self, directory: &dyn Directory, now: Now) {
        if self.ends_enough() {
            return;
        }
        if std::mem::take(&mut self.expire_more) && !self.expiring {
            self.expiring = true;
            self.commands
                .push_back(Command::Load(Load::Expired { until: now.wall }));
        }
        for merchant in std::mem::take(&mut self.ending) {
            self.refill(&merchant, directory, now);
        }
    }

    fn on_condemned(
        &mut self,
        merchant: &MerchantId,
        ready: Ready,
        directory: &dyn Directory,
        now: Now,
    ) {
        let Some((_, stale)) = self.end_load(merchant) else {
            return;
        };
        let Some(backlog) = self.backlogs.get_mut(merchant) else {
            return;
        };
        let Some(condemned) = backlog.condemned.clone() else {
            backlog.cursor = 0;
            return self.refill(merchant, directory, now);
        };
        let (mut last, mut ended) = (0, 0);
        let mut younger = None;
        for stored in ready.orders {
            last = stored.order.seq;
            if stale.contains(&last)
                || self.window.contains_key(&last)
                || self.finishing.contains_key(&last)
                || !self.ledger.is_open(last)
            {
                continue;
            }
            let created = stored.order.envelope.created;
            if created > condemned.up_to {
                younger = Some((last, created));
                break;
            }
            ended += 1;
            self.take_unloaded(merchant);
            let doubtful = self.doubts.remove(&last).is_some() || stored.state.ambiguous;
            let reason = if doubtful {
                DeadReason::Ambiguous
            } else {
                condemned.reason
            };
            let kind = OutcomeKind::DeadLettered(reason);
            self.conclude(stored, true, kind, Why::from(&*condemned.detail), now);
        }
        let enough = self.ends_enough();
        let Some(backlog) = self.backlogs.get_mut(merchant) else {
            return;
        };
        if let Some((seq, created)) = younger {
            // Their own grace is not over.
            backlog.condemned = None;
            backlog.cursor = seq;
            self.unknown_since.insert(merchant.clone(), created);
        } else if backlog.unloaded > 0 && !(ready.exhausted && ended == 0 && stale.is_empty()) {
            if enough {
                self.ending.insert(merchant.clone());
                return;
            }
            backlog.loading = true;
            let from = if ready.exhausted { 0 } else { last + 1 };
            let load = Load::Condemned {
                merchant: merchant.clone(),
                from,
            };
            self.commands.push_back(Command::Load(load));
        } else {
            backlog.condemned = None;
            backlog.cursor = if backlog.unloaded > 0 { 0 } else { Seq::MAX };
            backlog.next_due = None;
            if backlog.unloaded == 0 {
                backlog.tail = 0;
            }
        }
    }

    /// Ends everything this merchant has waiting as dead letters. Attempts in flight end by
    /// themselves.
    pub fn condemn(
        &mut self,
        merchant: &MerchantId,
        reason: DeadReason,
        detail: &str,
        directory: &dyn Directory,
        now: Now,
    ) {
        self.condemn_up_to(merchant, reason, detail, UnixMillis::MAX, directory, now);
    }

    fn condemn_up_to(
        &mut self,
        merchant: &MerchantId,
        reason: DeadReason,
        detail: &str,
        up_to: UnixMillis,
        directory: &dyn Directory,
        now: Now,
    ) {
        if let Some(backlog) = self.backlogs.get_mut(merchant)
            && (backlog.unloaded > 0 || backlog.offered > 0)
        {
            let detail = detail.into();
            backlog.condemned = Some(Condemned {
                reason,
                detail,
                up_to,
            });
            self.let_go(merchant, now);
            self.refill(merchant, directory, now);
        }
    }

    /// Orders of unknown merchants: after the grace the registry itself is asked.
    pub(super) fn look_at_unknown(&mut self, directory: &dyn Directory, now: Now) {
        let known: Vec<MerchantId> = self
            .unknown_since
            .keys()
            .filter(|id| {
                directory.merchant(id).is_some()
                    || self.backlogs.get(*id).is_none_or(|b| b.unloaded == 0)
            })
            .cloned()
            .collect();
        for id in known {
            self.unknown_since.remove(&id);
            self.refill(&id, directory, now);
        }
        let over: Vec<MerchantId> = self
            .unknown_since
            .iter()
            .filter(|(id, since)| {
                since.saturating_add(self.config.unknown_grace) <= now.wall
                    && !self.confirming.contains(*id)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in over {
            self.confirming.insert(id.clone());
            self.commands.push_back(Command::Confirm(id));
        }
    }

    /// The registry itself answered: `Some(false)`: this merchant is not registered; `None`: it
    /// could not be asked.
    pub fn on_confirmed(
        &mut self,
        merchant: &MerchantId,
        registered: Option<bool>,
        directory: &dyn Directory,
        now: Now,
    ) {
        self.confirming.remove(merchant);
        if registered == Some(false) && directory.merchant(merchant).is_none() {
            self.unknown_since.remove(merchant);
            let detail = "no merchant of this id is registered";
            let reason = DeadReason::UnknownMerchant;
            let up_to = now.wall.saturating_sub(self.config.unknown_grace);
            self.condemn_up_to(merchant, reason, detail, up_to, directory, now);
        }
    }

    /// An order of a key is gone from the store: the next one of that key may go.
    pub(super) fn after_key(
        &mut self,
        id: &MerchantId,
        key: Option<u64>,
        directory: &dyn Directory,
        now: Now,
    ) {
        let Some(merchant) = directory.merchant(id) else {
            return;
        };
        if let Some(key) = key
            && merchant.limits.ordering == Ordering::Order
            && let Some(backlog) = self.backlogs.get_mut(id).filter(|b| b.unloaded > 0)
        {
            backlog.key_heads.push_back(key);
            self.refill(id, directory, now);
        }
    }

    pub(super) fn poke_gated(&mut self, directory: &dyn Directory, now: Now) {
        if self.ledger.seen() == self.gated_seen {
            return;
        }
        self.gated_seen = self.ledger.seen();
        for id in std::mem::take(&mut self.gated) {
            self.refill(&id, directory, now);
        }
    }

    /// Orders in the store that are not in a mailbox.
    pub(super) fn stored_orders(&self) -> u64 {
        self.backlogs.values().map(|backlog| backlog.unloaded).sum()
    }

    /// What a class alone says about an order whose machine cannot be asked.
    pub(super) fn kind_of_class(class: AttemptClass, state: &OrderState) -> Option<OutcomeKind> {
        match class {
            AttemptClass::Delivered | AttemptClass::AlreadyDone => Some(OutcomeKind::Delivered),
            AttemptClass::Rejected => Some(OutcomeKind::Rejected),
            AttemptClass::Invalid => Some(OutcomeKind::DeadLettered(DeadReason::Invalid)),
            AttemptClass::Ambiguous => Some(OutcomeKind::DeadLettered(DeadReason::Ambiguous)),
            _ if state.ambiguous => Some(OutcomeKind::DeadLettered(DeadReason::Ambiguous)),
            _ => None,
        }
    }
}
