//! Orders that wait for a person, and those that wait behind them (`retry.on_park = "hold"`).
//!
//! Constraints: what is held stays in the store, where nothing loads it, and is found again when its
//! key is looked at. The next generation of a parked order goes before what waits behind it. A
//! parked order is known from its dead letter until a mark without it is durable.

use std::collections::BTreeMap;

use expediter_types::{Merchant, MerchantId, Now, OrderId, Ordering, ParkedOrder, Seq, UnixMillis};

use super::{Command, Directory, Load, PartitionMachine};
use crate::repeats::id_hash;
use crate::{Order, Stored, key_hash};

/// What became of a request to let the orders behind a parked one go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Released {
    /// They were held until then.
    pub held: bool,
    /// A durable mark says so.
    pub saved: bool,
}

#[derive(Debug)]
struct Entry {
    order: ParkedOrder,
    again: Option<Again>,
}

/// The next generation of a parked order.
#[derive(Debug)]
struct Again {
    seq: Seq,
    /// In the store, until then; `None`: in its mailbox, or not stored at all.
    waits: Option<UnixMillis>,
    /// It is being loaded; true: it went to the store meanwhile, and what comes is out of date.
    loading: Option<bool>,
}

/// All parked orders of a partition that others may wait for.
#[derive(Debug, Default)]
pub(super) struct Parked {
    orders: BTreeMap<MerchantId, BTreeMap<Seq, Entry>>,
    /// Rises with each change, and the newest that a durable mark has.
    version: u64,
    saved: u64,
}

impl Parked {
    /// `is_open`: not finished as far as this owner knows; `find`: where the order of this hash stands.
    pub(super) fn recovered(
        orders: Vec<ParkedOrder>,
        is_open: impl Fn(Seq) -> bool,
        find: impl Fn(u64) -> Option<Seq>,
    ) -> Self {
        let mut parked = Self::default();
        for order in orders {
            let next = find(id_hash(&order.merchant, &order.id, order.generation + 1));
            // Its dead letter was not written after all, or its next generation has ended.
            if is_open(order.seq) || next.is_some_and(|seq| !is_open(seq)) {
                continue;
            }
            let again = next.map(|seq| Again {
                seq,
                waits: Some(0),
                loading: None,
            });
            let of_merchant = parked.orders.entry(order.merchant.clone()).or_default();
            of_merchant.insert(order.seq, Entry { order, again });
        }
        parked
    }

    fn entries(&self, merchant: &MerchantId) -> impl Iterator<Item = &Entry> {
        self.orders
            .get(merchant)
            .into_iter()
            .flat_map(BTreeMap::values)
    }

    fn agains(&mut self, merchant: &MerchantId) -> impl Iterator<Item = &mut Again> {
        let entries = self.orders.get_mut(merchant).into_iter();
        entries
            .flat_map(BTreeMap::values_mut)
            .filter_map(|entry| entry.again.as_mut())
    }

    /// The next generation of a parked order, which nothing holds back.
    pub(super) fn is_again(&self, merchant: &MerchantId, seq: Seq) -> bool {
        self.entries(merchant)
            .any(|entry| entry.again.as_ref().is_some_and(|again| again.seq == seq))
    }

    /// Everything of the merchant waits.
    pub(super) fn holds_all(&self, merchant: &Merchant) -> bool {
        merchant.holds_on_park()
            && merchant.limits.ordering == Ordering::Merchant
            && self.orders.contains_key(&merchant.id)
    }

    /// The order waits for one that is parked.
    pub(super) fn holds(&self, merchant: &Merchant, order: &Order) -> bool {
        if !merchant.holds_on_park() || self.is_again(&merchant.id, order.seq) {
            return false;
        }
        let key = order.envelope.key.as_deref().map(key_hash);
        let shares = |entry: &Entry| key.is_some() && entry.order.key == key;
        match merchant.limits.ordering {
            Ordering::Merchant => self.orders.contains_key(&merchant.id),
            Ordering::Order => self.entries(&merchant.id).any(shares),
            Ordering::None => false,
        }
    }

    /// An order ended as ambiguous; the generation before it is not waited for any more.
    pub(super) fn park(&mut self, order: &Order) {
        let envelope = &order.envelope;
        let (merchant, seq) = (&envelope.merchant, order.seq);
        let entries = self.orders.entry(merchant.clone()).or_default();
        entries.retain(|_, entry| entry.again.as_ref().is_none_or(|again| again.seq != seq));
        let parked = ParkedOrder {
            merchant: merchant.clone(),
            seq,
            id: envelope.id.clone(),
            generation: envelope.generation,
            key: envelope.key.as_deref().map(key_hash),
        };
        let again = None;
        entries.insert(
            seq,
            Entry {
                order: parked,
                again,
            },
        );
        self.version += 1;
    }

    /// A fresh order that may be the next generation of a parked one.
    pub(super) fn note(&mut self, order: &Order) {
        let envelope = &order.envelope;
        if envelope.generation == 1 {
            return;
        }
        for entry in self
            .orders
            .get_mut(&envelope.merchant)
            .into_iter()
            .flat_map(BTreeMap::values_mut)
        {
            let of_it = entry.order.id == envelope.id;
            if of_it && entry.order.generation < envelope.generation {
                entry.again = Some(Again {
                    seq: order.seq,
                    waits: None,
                    loading: None,
                });
            }
        }
    }

    /// The store has this order, until its time comes.
    pub(super) fn stored(&mut self, merchant: &MerchantId, seq: Seq, due: Option<UnixMillis>) {
        for again in self.agains(merchant).filter(|again| again.seq == seq) {
            again.waits = Some(due.unwrap_or(0));
            again.loading = again.loading.map(|_| true);
        }
    }

    /// The next generation of a parked order that is in the store and asked for by nobody, with its
    /// time.
    fn waiting(&mut self, merchant: &MerchantId) -> Option<(Seq, UnixMillis)> {
        let waiting = self
            .agains(merchant)
            .filter(|again| again.loading.is_none());
        waiting
            .filter_map(|again| Some((again.seq, again.waits?)))
            .min_by_key(|(_, due)| *due)
    }

    fn remove(&mut self, merchant: &MerchantId, is_it: impl Fn(&Entry) -> bool) -> bool {
        let Some(entries) = self.orders.get_mut(merchant) else {
            return false;
        };
        let before = entries.len();
        entries.retain(|_, entry| !is_it(entry));
        let removed = entries.len() < before;
        if entries.is_empty() {
            self.orders.remove(merchant);
        }
        self.version += u64::from(removed);
        removed
    }

    pub(super) fn merchants(&self) -> Vec<MerchantId> {
        self.orders.keys().cloned().collect()
    }

    /// For a mark.
    pub(super) fn all(&self) -> Vec<ParkedOrder> {
        let entries = self.orders.values().flat_map(BTreeMap::values);
        entries.map(|entry| entry.order.clone()).collect()
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// A mark with this version is durable.
    pub(super) fn saved(&mut self, version: u64) {
        self.saved = self.saved.max(version);
    }
}

impl PartitionMachine {
    /// A person resolved a parked order: those behind it go on. Asking again changes nothing.
    pub fn release_parked(
        &mut self,
        merchant: &MerchantId,
        id: &OrderId,
        generation: u32,
        directory: &dyn Directory,
        now: Now,
    ) -> Released {
        let is_it = |entry: &Entry| entry.order.id == *id && entry.order.generation == generation;
        let held = self.parked.remove(merchant, is_it);
        if held {
            self.look_again(merchant, directory, now);
        }
        let saved = self.parked.saved >= self.parked.version;
        if !saved {
            self.writer.hurry_mark();
            self.plan_mark(now);
        }
        Released { held, saved }
    }

    /// An order is finished: what waited for it may go.
    pub(super) fn parked_finished(
        &mut self,
        merchant: &MerchantId,
        seq: Seq,
        directory: &dyn Directory,
        now: Now,
    ) {
        let manifest = directory.merchant(merchant);
        if manifest.is_some_and(|manifest| !manifest.holds_on_park()) {
            // Nobody waits for what it parks.
            self.parked.remove(merchant, |_| true);
            return;
        }
        let is_it = |entry: &Entry| entry.again.as_ref().is_some_and(|again| again.seq == seq);
        if self.parked.remove(merchant, is_it) {
            self.look_again(merchant, directory, now);
        }
    }

    /// The manifest changed, or is gone.
    pub(super) fn parked_under(&mut self, merchant: &MerchantId, manifest: Option<&Merchant>) {
        if !manifest.is_some_and(Merchant::holds_on_park) {
            self.parked.remove(merchant, |_| true);
        }
    }

    fn look_again(&mut self, merchant: &MerchantId, directory: &dyn Directory, now: Now) {
        if let Some(backlog) = self.backlogs.get_mut(merchant) {
            backlog.look_at_all(now);
        }
        self.refill(merchant, directory, now);
    }

    /// Asks the store for the next generation of a parked order, when its time has come.
    pub(super) fn load_again(&mut self, merchant: &MerchantId, now: Now) {
        let Some((seq, due)) = self.parked.waiting(merchant) else {
            return;
        };
        if self.window.contains_key(&seq)
            || self.finishing.contains_key(&seq)
            || seq > self.ledger.seen()
        {
            return;
        }
        if due > now.wall {
            self.timers.insert((due, merchant.clone()));
            return;
        }
        for again in self
            .parked
            .agains(merchant)
            .filter(|again| again.seq == seq)
        {
            again.loading = Some(false);
        }
        let merchant = merchant.clone();
        self.commands
            .push_back(Command::Load(Load::One { merchant, seq }));
    }

    /// One order came from the store; true when it was asked for here.
    pub(super) fn on_again(
        &mut self,
        merchant: &MerchantId,
        seq: Seq,
        stored: Option<&Stored>,
        directory: &dyn Directory,
        now: Now,
    ) -> bool {
        let mut asked = None;
        for again in self
            .parked
            .agains(merchant)
            .filter(|again| again.seq == seq)
        {
            asked = again.loading.take();
            if stored.is_none() {
                again.waits = None;
            }
        }
        match (asked, stored) {
            (None, _) => return false,
            (Some(false), Some(stored)) => self.admit(stored.clone(), directory, now),
            // Newer than what came; or it is not there yet.
            (Some(true), _) | (Some(false), None) => {}
        }
        self.refill(merchant, directory, now);
        true
    }
}
