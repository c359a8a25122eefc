//! What the processes share: the clocks, the broker, the merchants, the registry, the judge.

use std::collections::BTreeMap;
use std::sync::Arc;

use expediter_core::partition;
use expediter_types::{Hold, Merchant, MerchantId, Now};

use crate::broker::Broker;
use crate::fleet::Fleet;
use crate::plan::Plan;
use crate::rng::Rng;
use crate::shadow::Shadow;

/// A fault planted into the simulated runtime, to see whether the judge notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plant {
    /// The mark's low water runs ahead of what is finished.
    MarkAhead,
    /// An order counts as delivered before anybody answered.
    AnswerEarly,
    /// Attempt marks are not written, only said to be.
    SkipAttemptMarks,
    /// The merchant's machine is not told the ordering keys.
    ForgetKeys,
    /// The store loses an order now and then.
    LosePuts,
    /// Requests leave without a look at the lease.
    IgnoreLease,
    /// Limiters begin full.
    ForgetLimits,
    /// The new owner does not know what was spent of the quotas.
    ForgetSpent,
    /// The new owner does not read what its predecessor finished.
    ForgetFinished,
    /// A running attempt is started a second time.
    LaunchTwice,
    /// The partition does not hear what operators hold back.
    IgnoreHolds,
}

/// The registry, as it is.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    pub(crate) merchants: BTreeMap<MerchantId, Arc<Merchant>>,
    pub(crate) holds: BTreeMap<MerchantId, Hold>,
    /// For the followers, in order.
    pub(crate) changes: Vec<(MerchantId, Change)>,
}

#[derive(Debug, Clone)]
pub(crate) enum Change {
    Manifest(Option<Arc<Merchant>>),
    Resume,
    /// An operator pauses the merchant, or lets it go on.
    Hold(Option<Hold>),
}

impl Registry {
    pub(crate) fn put(&mut self, merchant: Arc<Merchant>) {
        let id = merchant.id.clone();
        self.merchants.insert(id.clone(), Arc::clone(&merchant));
        self.changes.push((id, Change::Manifest(Some(merchant))));
    }

    pub(crate) fn hold(&mut self, id: MerchantId, hold: Option<Hold>) {
        match &hold {
            Some(hold) => drop(self.holds.insert(id.clone(), hold.clone())),
            None => drop(self.holds.remove(&id)),
        }
        self.changes.push((id, Change::Hold(hold)));
    }

    pub(crate) fn remove(&mut self, id: &MerchantId) {
        if self.merchants.remove(id).is_some() {
            self.changes.push((id.clone(), Change::Manifest(None)));
        }
    }
}

/// The registry and the operators' decisions, as a process knows them.
#[derive(Debug, Default, Clone)]
pub(crate) struct Directory {
    pub(crate) merchants: BTreeMap<MerchantId, Arc<Merchant>>,
    pub(crate) holds: BTreeMap<MerchantId, Hold>,
    /// It does not tell what is held.
    pub(crate) deaf: bool,
}

impl partition::Directory for Directory {
    fn merchant(&self, id: &MerchantId) -> Option<Arc<Merchant>> {
        self.merchants.get(id).cloned()
    }

    fn hold(&self, merchant: &Merchant) -> Option<Hold> {
        let hold = self.holds.get(&merchant.id).cloned();
        hold.filter(|_| !self.deaf)
    }
}

#[derive(Debug)]
pub(crate) struct Env {
    pub(crate) plan: Plan,
    pub(crate) rng: Rng,
    pub(crate) mono: u64,
    /// What jumps have added to the wall clock, in milliseconds.
    pub(crate) offset: i64,
    pub(crate) broker: Broker,
    pub(crate) fleet: Fleet,
    pub(crate) registry: Registry,
    pub(crate) shadow: Shadow,
    pub(crate) plant: Option<Plant>,
    pub(crate) traced: bool,
}

/// The wall clock begins here.
const BEGINNING: i64 = 1_700_000_000_000;

impl Env {
    pub(crate) fn now(&self) -> Now {
        let wall = BEGINNING + (self.mono / 1_000) as i64 + self.offset;
        Now {
            mono: self.mono,
            wall: wall as u64,
        }
    }

    pub(crate) fn trace(&self, what: impl FnOnce() -> String) {
        if self.traced {
            eprintln!("{:>12.3}ms {}", self.mono as f64 / 1_000.0, what());
        }
    }
}
