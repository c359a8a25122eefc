//! One partition's owner: takes orders from the log, gives them to the merchants' machines, keeps
//! what waits in the store, and writes outcomes under the fence (ARCHITECTURE.md, The
//! protocol of one partition).
//!
//! Constraints: pure. Inputs are methods; what is to be done comes out as [`Command`]s, store
//! batches and records. The caller carries them out in order: store batches and loads pass through
//! one queue, and one record is under way at a time. The same inputs give the same outputs, in the
//! same order: no iteration over a hash map may decide what comes first.

mod actors;
mod attempts;
mod backlog;
mod cancel;
mod doubt;
mod drain;
mod ending;
mod explain;
mod holds;
mod intake;
mod lanes;
mod loading;
mod merchants;
mod parked;
mod query;
mod spent;
mod writer;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use expediter_types::{
    AttemptCount, Hold, Merchant, MerchantId, Now, OrderId, Ordering, OutcomeKind, Partition, Seq,
    Stamp, UnixMillis,
};

use crate::merchant::{Closure, Ended, Offer, millis};
use crate::quota::Quotas;
use crate::recovery::Recovered;
use crate::repeats::{Repeats, Verdict};
use crate::store::{Gate, PartitionMeta, StoreBatch, StoreOp, StoredPartition};
use crate::{Order, Stored, key_hash, ledger::Ledger};

pub use backlog::{Load, Loaded};
pub use cancel::{Cancel, Cancelling};
pub use drain::Drained;
pub use explain::{Explained, OrderWait};
pub use holds::Held as HeldBy;
pub use merchants::Report;
pub use parked::Released;
pub use query::{Located, MerchantRow, MerchantState};
pub use writer::Acked;

use backlog::Backlog;
use merchants::Held;
use writer::Writer;

/// How a partition behaves; the defaults are the product's.
#[derive(Debug, Clone)]
pub struct PartitionConfig {
    /// An outcome waits so long for company, in microseconds; 10 ms.
    pub linger: u64,
    /// At most so many outcomes in one record; 256.
    pub group: usize,
    /// An order that is unfinished for so long is written to the store, in microseconds; 2 s.
    pub spill_after: u64,
    /// Between two marks, in microseconds; 3 s.
    pub mark_every: u64,
    /// Orders of unknown merchants wait so long, in milliseconds; 10 min.
    pub unknown_grace: u64,
    /// An actor without orders is let go after this, in microseconds; 30 s.
    pub idle_after: u64,
    /// Ids remembered to notice publishers' repeats.
    pub repeats: usize,
    /// So many panics within [`PartitionConfig::panic_window`] quarantine a merchant; 5.
    pub panics: usize,
    /// In microseconds; 60 s.
    pub panic_window: u64,
    /// Outcomes that may wait for their acknowledgement before no more attempts start; 10,000.
    pub unconfirmed: usize,
    /// While so many dead letters of a merchant wait for the log, nothing of it starts, and what is
    /// above its quota waits in the store to end: each holds its payload, and the others' wait behind
    /// them; 1,000.
    pub dead_letters: u32,
    /// Payloads of orders in mailboxes, in bytes; 32 MiB. Above it a merchant gets no more than a
    /// sixteenth of that; above four times as much, one order.
    pub window_bytes: usize,
    /// The log counts as pinned when the low water is so many sequences behind; 20,000.
    pub pinned: u64,
    /// A merchant's purge is worth its cost (4-5 ms of the broker) from so many finished orders
    /// on; 500.
    pub purge_worth: u64,
}

impl Default for PartitionConfig {
    fn default() -> Self {
        Self {
            linger: 10_000,
            group: 256,
            spill_after: 2_000_000,
            mark_every: 3_000_000,
            unknown_grace: 600_000,
            idle_after: 30_000_000,
            repeats: 312_500,
            panics: 5,
            panic_window: 60_000_000,
            unconfirmed: 10_000,
            dead_letters: 1_000,
            window_bytes: 32 << 20,
            pinned: 20_000,
            purge_worth: 500,
        }
    }
}

/// The registry as the partition sees it: complete before intake starts.
pub trait Directory {
    /// The merchant's current manifest.
    fn merchant(&self, id: &MerchantId) -> Option<Arc<Merchant>>;

    /// What operators decided about the merchant, or else about its group.
    fn hold(&self, _merchant: &Merchant) -> Option<Hold> {
        None
    }
}

/// What the caller has to do, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Start the merchant's actor, or start it anew after a panic, with what it already holds.
    Activate {
        merchant: Arc<Merchant>,
        /// Reports of another incarnation are ignored.
        incarnation: u64,
        limits_since: u64,
        /// What was spent of its quotas.
        spent: Quotas,
        closure: Option<Closure>,
        /// Its orders, with the number of the attempt that runs.
        window: Vec<(Offer, Option<u32>)>,
    },
    /// Put an order into the actor's mailbox.
    Offer { merchant: MerchantId, offer: Offer },
    /// Tell the actor how an attempt ended.
    Answer {
        merchant: MerchantId,
        seq: Seq,
        number: u32,
        ended: Ended,
    },
    /// Tell the actor about another manifest.
    Change(Arc<Merchant>),
    /// Tell the actor to start nothing more.
    Halt(MerchantId),
    /// Ask the actor for an order back that it has not started.
    Withdraw { merchant: MerchantId, seq: Seq },
    /// Let the actor go.
    Release(MerchantId),
    /// Send a request now.
    Launch {
        merchant: Arc<Merchant>,
        order: Arc<Order>,
        number: u32,
        /// Nothing of it may leave from then on.
        gives_up: UnixMillis,
        /// Only when the merchant, asked first, says that it has not got the order.
        look_first: bool,
    },
    /// Read from the store, after everything it was told before.
    Load(Load),
    /// Ask the registry itself whether this merchant is registered.
    Confirm(MerchantId),
    /// Delete finished orders of this merchant below the sequence from the log.
    Purge { merchant: MerchantId, below: Seq },
    /// The merchant spoke of a limit that it shares: nothing of that scope goes before the time.
    CloseScope {
        kind: expediter_types::LimitScope,
        id: String,
        until: UnixMillis,
    },
    /// For logs and metrics.
    Event(Event),
}

/// Something that operators count or read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Taken(u64),
    /// Its outcome is acknowledged.
    Finished {
        kind: OutcomeKind,
    },
    /// From the broker's timestamp to the first start, in milliseconds.
    FirstStart {
        waited_ms: u64,
    },
    Closed {
        merchant: MerchantId,
        closure: Closure,
    },
    Opened {
        merchant: MerchantId,
    },
    Quarantined {
        merchant: MerchantId,
    },
    DeadLettered {
        merchant: MerchantId,
        id: expediter_types::OrderId,
        reason: expediter_types::DeadReason,
    },
    /// Its time was over before it could be delivered.
    Expired {
        merchant: MerchantId,
        id: expediter_types::OrderId,
    },
    UnknownMerchant {
        merchant: MerchantId,
    },
    /// OUTCOMES came back without what this partition's store knows of.
    OutcomesLost,
    /// The broker lost acknowledged orders; so many are published again.
    LogLost {
        republish: u64,
        parked: u64,
    },
}

/// A decided order whose outcome is not acknowledged yet.
#[derive(Debug)]
struct Finishing {
    merchant: MerchantId,
    in_store: bool,
    key: Option<u64>,
    kind: OutcomeKind,
    /// Of its payload, when it ends as a dead letter.
    dead_bytes: usize,
}

/// Why an order from before this epoch needs care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doubt {
    /// An unrepeatable attempt was in flight and nobody knows its answer.
    Unrepeatable,
    /// It was still running at a hand-over; may go again (with its key) after this time.
    Until(UnixMillis),
}

/// The owner of one partition, for one epoch.
#[derive(Debug)]
pub struct PartitionMachine {
    partition: Partition,
    stamp: Stamp,
    config: PartitionConfig,
    ledger: Ledger,
    backlogs: HashMap<MerchantId, Backlog>,
    /// Orders that are in a mailbox; the payload and the running attempt are here.
    window: BTreeMap<Seq, Held>,
    /// Of the payloads there.
    window_bytes: usize,
    /// Decided, and not acknowledged yet: whether the store has it, and whose it is.
    finishing: HashMap<Seq, Finishing>,
    writer: Writer,
    repeats: Repeats,
    parked: parked::Parked,
    doubts: HashMap<Seq, Doubt>,
    /// Orders of [`Doubt::Unrepeatable`] by id, with the time of the claim: a publisher's repeat from
    /// before it may stand elsewhere in the log.
    doubted: HashMap<(MerchantId, OrderId), UnixMillis>,
    /// Attempts of unfinished orders, for the mark; bounded.
    attempted: BTreeMap<Seq, AttemptCount>,
    /// Orders of the store that a younger one of the same id, which was sent before they were known,
    /// closes.
    superseded: HashMap<Seq, Verdict>,
    /// Highest sequence that the store had at the start. What it has of a fresh tail above
    /// [`Ledger::seen`] is not sent before the main reader came there: its ids may not have reached the
    /// table, and an older order of the same id may stand before it.
    stored_up_to: Seq,
    /// Such orders.
    unread: BTreeMap<Seq, loading::Place>,
    /// What the former owner knew about orders that this store does not have.
    inherited: HashMap<Seq, AttemptCount>,
    /// This owner began then.
    claimed_at: UnixMillis,
    /// What came before was in a former owner's backlog.
    accepted_until: UnixMillis,
    /// Orders from before the claim may have been sent by the former owner since this time.
    sent_since: Option<(UnixMillis, UnixMillis)>,
    /// OUTCOMES came back shorter: nobody knows which orders from before were sent.
    outcomes_lost_at: Option<UnixMillis>,
    unknown_since: BTreeMap<MerchantId, UnixMillis>,
    confirming: HashSet<MerchantId>,
    /// Orders that are to be cancelled, and what is said with it.
    cancelling: HashMap<Seq, Arc<str>>,
    /// The newest that were.
    cancelled: VecDeque<Seq>,
    /// When a merchant is to be looked at again, by the wall clock; stale entries are harmless.
    timers: BTreeSet<(UnixMillis, MerchantId)>,
    /// Ordered merchants that wait for the main reader to pass what is older.
    gated: BTreeSet<MerchantId>,
    gated_seen: Seq,
    ops: Vec<StoreOp>,
    batch_number: u64,
    committed: u64,
    written_meta: Option<PartitionMeta>,
    last_taken: (Seq, UnixMillis),
    commands: VecDeque<Command>,
    limits_since: u64,
    last_tick: u64,
    expiring: bool,
    /// More orders may have expired than were ended.
    expire_more: bool,
    /// Condemned merchants whose other orders wait for acknowledgements.
    ending: BTreeSet<MerchantId>,
    /// What the load of expired orders that is under way may say is out of date for these.
    parked_while_expiring: HashSet<Seq>,
    draining: bool,
    /// Too many owners crashed: no attempt starts.
    paused: bool,
    /// The epoch is over: nothing starts any more.
    closed: bool,
    unknown: spent::Unknown,
    running: u32,
    purges: purge::Purges,
    incarnations: u64,
}

mod purge;

impl PartitionMachine {
    /// Begins an epoch. `stored` is what the store holds of this partition, trusted or not; gives
    /// the machine and the orders that the broker lost and that must be published again.
    pub fn start(
        partition: Partition,
        recovered: Recovered,
        stored: StoredPartition,
        config: PartitionConfig,
        now: Now,
    ) -> Self {
        let unknown = spent::Unknown::of(&recovered, now);
        let accepted_until = recovered.accepted_until();
        let same_log = stored
            .meta
            .is_none_or(|m| m.incarnation == recovered.stamp.incarnation);
        let trusted = same_log
            && recovered.replaced_epoch != 0
            && stored
                .meta
                .is_some_and(|meta| meta.epoch == recovered.replaced_epoch);
        let mut repeats = Repeats::new(config.repeats);
        let mut open = roaring::RoaringTreemap::new();
        let mut position = 0;
        let mut ops = Vec::new();
        let mut backlogs = HashMap::new();
        if trusted {
            repeats.load(stored.repeats);
            position = stored.meta.map_or(0, |meta| meta.position);
            for mut entry in stored.merchants {
                // Finished by an outcome that was acknowledged before the store was told.
                let (kept, done): (Vec<Seq>, Vec<Seq>) = entry.orders.iter().partition(|seq| {
                    *seq > recovered.low_water && !recovered.finished.contains(*seq)
                });
                for seq in done {
                    entry.orders.remove(seq);
                    for lane in &mut entry.lanes {
                        lane.remove(seq);
                    }
                    ops.push(StoreOp::Remove {
                        merchant: entry.merchant.clone(),
                        seq,
                    });
                }
                open.extend(kept);
                backlogs.insert(entry.merchant.clone(), Backlog::of_stored(&entry));
            }
        }
        for entry in recovered.repeats {
            repeats.insert(entry);
        }
        let read_after = recovered.low_water.max(position);
        let crashed = recovered
            .replaced
            .as_ref()
            .is_some_and(|claim| matches!(claim.state, expediter_types::ClaimState::Held));
        let outcomes_lost = recovered.outcomes_lost;
        let mut doubts: HashMap<Seq, Doubt> = recovered
            .running
            .iter()
            .map(|seq| (*seq, Doubt::Until(recovered.busy_until)))
            .collect();
        let mut writer = Writer::new(recovered.covers, recovered.repeats_from, now);
        let mut doubted = HashMap::new();
        for (merchant, seq, id) in recovered.in_flight {
            doubts.insert(seq, Doubt::Unrepeatable);
            doubted.insert((merchant.clone(), id.clone()), now.wall);
            writer.attempts.inherit(merchant, seq, id);
        }
        let parked = parked::Parked::recovered(
            recovered.parked,
            |seq| seq > recovered.low_water && !recovered.finished.contains(seq),
            |id| repeats.find(id),
        );
        let stored_up_to = open.max().unwrap_or(0);
        let mut machine = Self {
            partition,
            stamp: recovered.stamp,
            ledger: Ledger::new(recovered.low_water, recovered.finished, open, read_after),
            backlogs,
            window: BTreeMap::new(),
            window_bytes: 0,
            finishing: HashMap::new(),
            writer,
            repeats,
            parked,
            doubts,
            doubted,
            attempted: BTreeMap::new(),
            superseded: HashMap::new(),
            stored_up_to,
            unread: BTreeMap::new(),
            inherited: if trusted {
                HashMap::new()
            } else {
                recovered
                    .attempts
                    .iter()
                    .map(|count| (count.seq, *count))
                    .collect()
            },
            claimed_at: now.wall,
            accepted_until,
            sent_since: crashed.then_some((recovered.marked_at, now.wall)),
            outcomes_lost_at: outcomes_lost.then_some(now.wall),
            unknown_since: recovered.unknown_since.into_iter().collect(),
            confirming: HashSet::new(),
            cancelling: HashMap::new(),
            cancelled: VecDeque::new(),
            timers: BTreeSet::new(),
            gated: BTreeSet::new(),
            gated_seen: 0,
            ops,
            batch_number: 0,
            committed: 0,
            written_meta: None,
            last_taken: stored
                .meta
                .filter(|_| trusted)
                .map_or((0, 0), |meta| (meta.last_taken, meta.last_taken_at)),
            commands: VecDeque::new(),
            limits_since: now.mono,
            last_tick: now.mono,
            expiring: false,
            expire_more: false,
            ending: BTreeSet::new(),
            parked_while_expiring: HashSet::new(),
            draining: false,
            paused: recovered.paused,
            closed: false,
            unknown,
            running: 0,
            purges: purge::Purges::default(),
            incarnations: 0,
            config,
        };
        for count in recovered.attempts {
            if trusted && machine.ledger.is_open(count.seq) {
                machine.attempted.insert(count.seq, count);
            }
        }
        for closed in recovered.closed {
            let closure = Closure {
                because: closed.because,
                until: closed.until,
                times: closed.times,
            };
            let backlog = machine
                .backlogs
                .entry(closed.merchant)
                .or_insert_with(Backlog::new);
            backlog.closure = Some(closure);
        }
        for (merchant, spent) in recovered.spent {
            let backlog = machine.backlog(&merchant);
            backlog.quotas.restore(&spent, now);
            backlog.restored = true;
        }
        if outcomes_lost {
            machine.event(Event::OutcomesLost);
        }
        machine.write_meta();
        machine
    }

    /// Looks at every merchant that has stored orders; call once after the start, and for orders
    /// whose merchant was not known at once.
    pub fn wake_all(&mut self, directory: &dyn Directory, now: Now) {
        let mut all: Vec<MerchantId> = self.backlogs.keys().cloned().collect();
        all.sort_unstable();
        for merchant in self.parked.merchants() {
            if let Some(manifest) = directory.merchant(&merchant) {
                self.parked_under(&merchant, Some(&manifest));
            }
        }
        for merchant in all {
            if let Some(manifest) = directory.merchant(&merchant) {
                self.charge(&manifest, now);
            }
            self.refill(&merchant, directory, now);
        }
    }

    /// What is to be done, in order.
    pub fn take_commands(&mut self) -> std::collections::vec_deque::IntoIter<Command> {
        std::mem::take(&mut self.commands).into_iter()
    }

    /// Changes for the store since the last call, and their number for
    /// [`PartitionMachine::on_committed`]. Must reach the store before any later load.
    pub fn take_batch(&mut self) -> Option<(u64, StoreBatch)> {
        if self.ops.is_empty() {
            return None;
        }
        self.batch_number += 1;
        let ops = std::mem::take(&mut self.ops);
        Some((
            self.batch_number,
            StoreBatch {
                partition: self.partition,
                ops,
            },
        ))
    }

    /// The store made everything up to this batch durable.
    pub fn on_committed(&mut self, number: u64) {
        self.committed = self.committed.max(number);
    }

    /// Time passed. Call at [`PartitionMachine::wake_at`] at the latest.
    pub fn tick(&mut self, directory: &dyn Directory, now: Now) {
        while let Some((at, merchant)) = self.timers.first().cloned() {
            if at > now.wall {
                break;
            }
            self.timers.pop_first();
            self.refill(&merchant, directory, now);
        }
        if now.mono.saturating_sub(self.last_tick) < 900_000 {
            return;
        }
        self.last_tick = now.mono;
        self.spill(now);
        self.poke_gated(directory, now);
        self.look_at_unknown(directory, now);
        if !self.expiring && self.stored_orders() > 0 {
            self.expire_more = true;
        }
        self.end_more(directory, now);
        self.release_idle(now);
        self.plan_mark(now);
        self.plan_purges();
    }

    /// When [`PartitionMachine::tick`] wants to be called again, by the monotonic clock.
    #[must_use]
    pub fn wake_at(&self, now: Now) -> u64 {
        let mut at = self.last_tick + 1_000_000;
        if let Some((due, _)) = self.timers.first() {
            at = at.min(now.mono + due.saturating_sub(now.wall).saturating_mul(1_000));
        }
        if let Some(flush) = self.writer.flush_at(&self.config) {
            at = at.min(flush);
        }
        at.max(now.mono)
    }

    /// Every message of the partition up to here was taken.
    #[must_use]
    pub fn seen(&self) -> Seq {
        self.ledger.seen()
    }

    /// It was taken and is not finished.
    #[must_use]
    pub fn is_open(&self, seq: Seq) -> bool {
        self.ledger.is_open(seq)
    }

    /// The owner's stamp.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Taken minus finished minus open.
    #[must_use]
    pub fn unaccounted(&self) -> i64 {
        self.ledger.unaccounted()
    }

    /// Says how far the store can be relied on. The ids of everything at or below the position go
    /// with it: a successor does not read those orders again, and must still notice their repeats.
    fn write_meta(&mut self) {
        let (chunks, forget) = self.repeats.take_unsaved();
        for (chunk, entries) in chunks {
            self.ops.push(StoreOp::Repeats { chunk, entries });
        }
        if let Some(below) = forget {
            self.ops.push(StoreOp::ForgetRepeats { below });
        }
        let meta = PartitionMeta {
            epoch: self.stamp.token,
            incarnation: self.stamp.incarnation,
            position: self.ledger.position(),
            last_taken: self.last_taken.0,
            last_taken_at: self.last_taken.1,
        };
        if self.written_meta != Some(meta) {
            self.written_meta = Some(meta);
            self.ops.push(StoreOp::Meta(meta));
        }
    }

    fn event(&mut self, event: Event) {
        self.commands.push_back(Command::Event(event));
    }

    /// When the order gives up: so long before its deadline (its own, or the merchant's policy)
    /// that its publisher can act. Short deadlines keep three quarters of their time.
    fn deadline(order: &Order, merchant: Option<&Merchant>) -> UnixMillis {
        let unknown = expediter_types::Retry::default;
        let retry = merchant.map_or_else(unknown, |merchant| merchant.retry.clone());
        let envelope = &order.envelope;
        let policy = envelope.created.saturating_add(millis(retry.deadline));
        let deadline = envelope.deadline.unwrap_or(policy);
        let quarter = deadline.saturating_sub(envelope.created) / 4;
        deadline - quarter.min(millis(retry.margin))
    }

    fn key(order: &Order, merchant: &Merchant) -> Option<u64> {
        match merchant.limits.ordering {
            Ordering::None => None,
            Ordering::Merchant => Some(0),
            Ordering::Order => order.envelope.key.as_deref().map(key_hash),
        }
    }

    fn gate(merchant: &Merchant) -> Gate {
        match merchant.limits.ordering {
            Ordering::None => Gate::Ready,
            Ordering::Merchant => Gate::Fifo,
            Ordering::Order => Gate::HeadOfKey,
        }
    }

    fn offer_of(stored: &Stored, merchant: &Merchant) -> Offer {
        Offer {
            seq: stored.order.seq,
            key: Self::key(&stored.order, merchant),
            deadline: Self::deadline(&stored.order, Some(merchant)),
            priority: stored.order.envelope.priority,
            attempts: stored.state.attempts,
            first_attempt: stored.state.first_attempt,
            ambiguous: stored.state.ambiguous,
            returns: 0,
        }
    }
}

#[cfg(test)]
mod tests;
