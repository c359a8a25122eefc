//! Unrepeatable attempts, listed in OUTCOMES before they leave and until their outcome is acknowledged:
//! a crash between the two still finds them.

use std::collections::{BTreeMap, HashSet, VecDeque};

use expediter_types::{AttemptMark, MerchantId, OrderId, Seq};

/// Unrepeatable attempts of a merchant that are listed, and so in flight, at a time: each takes less
/// than 512 bytes of a record, whatever its id.
pub(super) const LISTED: usize = 2_000;

/// The list of each merchant, and which of them have to be written.
#[derive(Debug, Default)]
pub(super) struct AttemptLists {
    all: BTreeMap<MerchantId, List>,
    dirty: VecDeque<MerchantId>,
    dirty_set: HashSet<MerchantId>,
}

#[derive(Debug, Default)]
struct List {
    counter: u64,
    in_flight: BTreeMap<Seq, OrderId>,
    /// Start when the list has room for them.
    waiting: BTreeMap<Seq, OrderId>,
}

impl List {
    /// Whether the next list differs.
    fn forget(&mut self, seq: Seq) -> bool {
        self.waiting.remove(&seq);
        self.in_flight.remove(&seq).is_some()
    }
}

impl AttemptLists {
    /// One of a former epoch.
    pub(super) fn inherit(&mut self, merchant: MerchantId, seq: Seq, id: OrderId) {
        let list = self.all.entry(merchant).or_default();
        list.in_flight.insert(seq, id);
    }

    /// One wants to start.
    pub(super) fn add(&mut self, merchant: &MerchantId, seq: Seq, id: OrderId) {
        let list = self.all.entry(merchant.clone()).or_default();
        if list.in_flight.contains_key(&seq) {
            // In doubt since an earlier attempt; the next mark lists it again.
            return self.write(merchant);
        }
        list.waiting.insert(seq, id);
        if list.in_flight.len() < LISTED {
            self.write(merchant);
        }
    }

    /// One ended and the order goes on: it is surely not at the merchant.
    pub(super) fn remove(&mut self, merchant: &MerchantId, seq: Seq) {
        if let Some(list) = self.all.get_mut(merchant)
            && list.forget(seq)
        {
            self.write(merchant);
        }
    }

    /// The order's outcome is acknowledged.
    pub(super) fn finished(&mut self, merchant: &MerchantId, seq: Seq) {
        let Some(list) = self.all.get_mut(merchant) else {
            return;
        };
        list.forget(seq);
        if !list.waiting.is_empty() {
            self.write(merchant);
        } else if list.in_flight.is_empty() && !self.dirty_set.contains(merchant) {
            // Nothing is in flight and everything listed is finished: no mark is needed.
            list.counter += 1;
        }
    }

    /// A list is about to be full.
    pub(super) fn are_crowded(&self) -> bool {
        let mut lists = self.all.values();
        lists.any(|list| list.in_flight.len() >= LISTED / 2)
    }

    /// These are in doubt, and a durable mark says so: none of them has to be listed until it is
    /// tried again, so that others can be.
    pub(super) fn unlist(&mut self, seqs: &[Seq]) {
        let mut changed = Vec::new();
        for (merchant, list) in &mut self.all {
            let before = list.in_flight.len();
            for seq in seqs {
                list.in_flight.remove(seq);
            }
            if list.in_flight.len() < before {
                changed.push(merchant.clone());
            }
        }
        for merchant in changed {
            self.write(&merchant);
        }
    }

    fn write(&mut self, merchant: &MerchantId) {
        if self.dirty_set.insert(merchant.clone()) {
            self.dirty.push_back(merchant.clone());
        }
    }

    /// None has to be.
    pub(super) fn are_written(&self) -> bool {
        self.dirty.is_empty()
    }

    /// The next one to write, with what waited for room.
    pub(super) fn next(&mut self) -> Option<AttemptMark> {
        let merchant = self.dirty.pop_front()?;
        self.dirty_set.remove(&merchant);
        let list = self.all.get_mut(&merchant)?;
        while list.in_flight.len() < LISTED
            && let Some((seq, id)) = list.waiting.pop_first()
        {
            list.in_flight.insert(seq, id);
        }
        list.counter += 1;
        let in_flight = list.in_flight.iter().map(|(seq, id)| (*seq, id.clone()));
        Some(AttemptMark {
            counter: list.counter,
            in_flight: in_flight.collect(),
            merchant,
        })
    }
}
