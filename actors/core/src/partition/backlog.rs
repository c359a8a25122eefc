//! A merchant's backlog: what of it is in the mailbox, what in the store, and when to load more.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use expediter_types::{
    AttemptClass, DeadReason, Merchant, MerchantId, Now, Ordering, OutcomeKind, Priority, Seq,
    UnixMillis,
};

use roaring::RoaringTreemap;

use super::lanes::Lanes;
use super::merchants::{Held, Stage};
use super::{Command, Directory, PartitionConfig, PartitionMachine};
use crate::merchant::{Accepting, Closure, Wait};
use crate::quota::Quotas;
use crate::store::{Due, Gate, Ready, StoreOp, StoredMerchant};
use crate::{OrderState, Stored};

/// So many expired orders are taken from the store at once.
pub(super) const EXPIRE_AT_ONCE: usize = 256;
/// So many orders of a condemned backlog are dead-lettered at once.
const CONDEMN_AT_ONCE: usize = 256;
/// As [`super::PartitionConfig::dead_letters`], for their payloads, in bytes.
const DEAD_BYTES: usize = 8 << 20;
/// So many orders above a quota are ended at once.
const OVERFLOW_AT_ONCE: usize = 256;

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
    pub(super) lowered: Option<Seq>,
    /// Went to the store while a load was under way: what that load says of them is out of date.
    pub(super) stale: HashSet<Seq>,
    pub(super) loading: bool,
    /// What could go and is not of normal priority; not in `cursor..=tail`.
    pub(super) lanes: Lanes,
    /// Keys whose oldest stored order may go now.
    pub(super) key_heads: VecDeque<u64>,
    /// Decided orders that the store still has.
    pub(super) finishing: u32,
    /// Of `finishing`, those that end as dead letters.
    pub(super) dead: u32,
    /// Their payloads.
    pub(super) dead_bytes: usize,
    /// Orders of the store that are above the quota and end when the log has room for their dead
    /// letters. A successor does not know of them and takes them for accepted.
    pub(super) overflow: RoaringTreemap,
    /// Payloads in the mailbox, in bytes.
    pub(super) window_bytes: usize,
    pub(super) incarnation: u64,
    /// Orders that this incarnation gave back.
    pub(super) returns: u64,
    /// Earliest due time among the stored orders that wait for a time.
    pub(super) next_due: Option<UnixMillis>,
    /// Those whose time has come were loaded last: it is the others' turn.
    pub(super) due_went: bool,
    /// Of those whose time has come, one stands above what was seen then, and has to wait for the main
    /// reader.
    pub(super) due_above: Option<Seq>,
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
            dead: 0,
            dead_bytes: 0,
            overflow: RoaringTreemap::new(),
            window_bytes: 0,
            incarnation: 0,
            returns: 0,
            next_due: None,
            due_went: false,
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
    pub(super) fn add_ready(&mut self, seq: Seq, priority: Priority) {
        if self.lanes.insert(priority, seq) {
            return;
        }
        self.cursor = self.cursor.min(seq);
        self.tail = self.tail.max(seq);
    }

    pub(super) fn add_due(&mut self, due: UnixMillis) {
        self.next_due = Some(self.next_due.map_or(due, |next| next.min(due)));
    }

    /// An order of the store waits for a time.
    pub(super) fn add_timed(&mut self, seq: Seq, due: UnixMillis) {
        self.add_due(due);
        let (low, high) = self.timed.unwrap_or((seq, seq));
        self.timed = Some((low.min(seq), high.max(seq)));
    }

    /// Gives those that wait for a time their place in the sequence.
    pub(super) fn line_up(&mut self) {
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

    pub(super) fn note_lowered(&mut self, seq: Seq) {
        if self.loading {
            self.stale.insert(seq);
            self.lowered = Some(self.lowered.map_or(seq, |low| low.min(seq)));
        }
    }

    /// Unfinished orders whose end is not decided.
    pub(super) fn waiting(&self) -> u64 {
        self.unloaded + u64::from(self.offered)
    }

    /// Orders up to there that wait for no time may be in the store.
    pub(super) fn can_load(&self, up_to: Seq) -> bool {
        !self.lanes.is_empty() || self.cursor <= self.tail.min(up_to)
    }

    /// So many of its orders end as dead letters that no more may.
    pub(super) fn ends_enough(&self, config: &PartitionConfig) -> bool {
        self.dead >= config.dead_letters || self.dead_bytes >= DEAD_BYTES
    }

    /// The next orders that end because of the quota, if they may now.
    pub(super) fn overflowing(&self, config: &PartitionConfig) -> Vec<Seq> {
        match self.ends_enough(config) {
            true => Vec::new(),
            false => self.overflow.iter().take(OVERFLOW_AT_ONCE).collect(),
        }
    }

    /// Nothing is known of it that would be missed.
    pub(super) fn is_empty(&self) -> bool {
        self.offered == 0 && self.unloaded == 0 && self.finishing == 0 && !self.loading
    }

    /// Worth a read from the store: half of the mailbox is free, or the merchant could run dry.
    pub(super) fn wants_load(&self, merchant: &Merchant) -> bool {
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

    pub(super) fn room(&self, merchant: &Merchant) -> u32 {
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
            && !backlog.ends_enough(&self.config)
            && !backlog.quarantined
            && !backlog.held
            && !self.draining
            && !self.paused
            && backlog.condemned.is_none()
            && stored.state.due.is_none_or(|due| due <= now.wall)
            && self.writer.unconfirmed() < self.config.unconfirmed
            && backlog.room(merchant) > 0
            && !self.has_its_share(backlog)
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
        let bytes = stored.order.payload.len();
        backlog.window_bytes += bytes;
        self.window_bytes += bytes;
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

    pub(super) fn take_unloaded(&mut self, merchant: &MerchantId) {
        if let Some(backlog) = self.backlogs.get_mut(merchant) {
            backlog.unloaded = backlog.unloaded.saturating_sub(1);
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
