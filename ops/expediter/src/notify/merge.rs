//! What is to be told, merged: of one merchant and type at most one notification in a time.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use expediter_types::{MerchantId, OrderId, Partition, UnixMillis};
use expediter_wire::notification::{Because, Happened, Notification};

/// So many pairs of type and merchant are kept; events of further ones are given up.
const MOST: usize = 10_000;

type Key = (Happened, MerchantId);

/// Events of one type and merchant that nobody was told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) happened: Happened,
    pub(super) merchant: MerchantId,
    pub(super) count: u64,
    pub(super) first: UnixMillis,
    pub(super) last: UnixMillis,
    pub(super) last_at: Instant,
    pub(super) orders: Vec<OrderId>,
    pub(super) because: Option<Because>,
}

/// When something happened, by both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct At {
    pub(super) wall: UnixMillis,
    pub(super) mono: Instant,
}

/// Holds events back; bounded in memory whatever happens.
#[derive(Debug)]
pub(super) struct Merger {
    every: Duration,
    /// Every key has one entry in `due`; `None`: nothing happened since it was told.
    entries: HashMap<Key, Option<Told>>,
    due: BTreeMap<(Instant, u64), Key>,
    number: u64,
    /// Merchants that were told to be closed: each probe that fails closes them again.
    closed: HashMap<MerchantId, (Partition, Because)>,
    /// Events that found no room, since they were last asked for.
    lost: u64,
}

impl Merger {
    pub(super) fn new(every: Duration) -> Self {
        Self {
            every,
            entries: HashMap::new(),
            due: BTreeMap::new(),
            number: 0,
            closed: HashMap::new(),
            lost: 0,
        }
    }

    /// Something happened to an order. False when there is no room.
    pub(super) fn order(
        &mut self,
        happened: Happened,
        merchant: &MerchantId,
        id: &OrderId,
        at: At,
    ) -> bool {
        let Some(told) = self.add(happened, merchant, at) else {
            return false;
        };
        if told.orders.len() < Notification::ORDERS {
            told.orders.push(id.clone());
        }
        true
    }

    /// A merchant was closed, maybe once more. False when there is no room.
    pub(super) fn closed(
        &mut self,
        partition: Partition,
        merchant: &MerchantId,
        because: Because,
        at: At,
    ) -> bool {
        let before = self.closed.insert(merchant.clone(), (partition, because));
        if before.is_some_and(|(_, before)| before == because) {
            return true;
        }
        let kept = self.stopped(merchant, because, at);
        if !kept {
            // The next probe that fails may find room.
            self.closed.remove(merchant);
        }
        kept
    }

    /// A merchant was stopped. False when there is no room.
    pub(super) fn stopped(&mut self, merchant: &MerchantId, because: Because, at: At) -> bool {
        match self.add(Happened::MerchantSuspended, merchant, at) {
            Some(told) => {
                told.because = Some(because);
                true
            }
            None => false,
        }
    }

    /// It takes orders again; when it is closed once more, that is news.
    pub(super) fn opened(&mut self, merchant: &MerchantId) {
        self.closed.remove(merchant);
    }

    /// Another node may open and close its merchants from here on.
    pub(super) fn ended(&mut self, partition: Partition) {
        self.closed.retain(|_, (of, _)| *of != partition);
    }

    fn add(&mut self, happened: Happened, merchant: &MerchantId, at: At) -> Option<&mut Told> {
        let key = (happened, merchant.clone());
        if !self.entries.contains_key(&key) {
            if self.entries.len() >= MOST {
                self.lost += 1;
                return None;
            }
            self.schedule(at.mono, key.clone());
        }
        let told = self.entries.entry(key).or_default();
        let told = told.get_or_insert_with(|| Told {
            happened,
            merchant: merchant.clone(),
            count: 0,
            first: at.wall,
            last: at.wall,
            last_at: at.mono,
            orders: Vec::new(),
            because: None,
        });
        told.count += 1;
        (told.last, told.last_at) = (told.last.max(at.wall), at.mono);
        Some(told)
    }

    fn schedule(&mut self, at: Instant, key: Key) {
        self.number += 1;
        self.due.insert((at, self.number), key);
    }

    /// What may be told now, the oldest first.
    pub(super) fn take(&mut self, now: Instant) -> Option<Told> {
        while let Some(first) = self.due.first_entry().filter(|first| first.key().0 <= now) {
            let key = first.remove();
            match self.entries.get_mut(&key).and_then(Option::take) {
                Some(told) => {
                    self.schedule(now + self.every, key);
                    return Some(told);
                }
                None => {
                    self.entries.remove(&key);
                }
            }
        }
        None
    }

    /// When [`Merger::take`] may have something, or something to forget.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.keys().next().map(|(at, _)| *at)
    }

    /// How many events found no room since the last call.
    pub(super) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// Everything, whether its time has come or not.
    pub(super) fn drain(&mut self) -> Vec<Told> {
        let keys = std::mem::take(&mut self.due).into_values();
        keys.filter_map(|key| self.entries.remove(&key).flatten())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn merchant(id: &str) -> MerchantId {
        MerchantId::new(id).unwrap()
    }

    fn order(id: u64) -> OrderId {
        OrderId::new(&id.to_string()).unwrap()
    }

    #[test]
    fn a_flood_is_told_at_once_and_then_once_a_minute() {
        let start = Instant::now();
        let mut merger = Merger::new(MINUTE);
        let (luigis, marios) = (merchant("luigis"), merchant("marios"));
        let at = |seconds: u64| At {
            wall: 1_000 * seconds,
            mono: start + Duration::from_secs(seconds),
        };
        assert!(merger.order(Happened::OrderExpired, &luigis, &order(0), at(0)));
        let first = merger.take(at(0).mono).unwrap();
        assert_eq!((first.count, first.orders), (1, vec![order(0)]));
        for n in 1..50 {
            assert!(merger.order(Happened::OrderExpired, &luigis, &order(n), at(n)));
        }
        assert_eq!(merger.take(at(59).mono), None);
        // Another merchant, and another type, do not wait for it.
        assert!(merger.order(Happened::OrderExpired, &marios, &order(1), at(59)));
        assert!(merger.order(Happened::OrderParked, &luigis, &order(1), at(59)));
        assert_eq!(merger.take(at(59).mono).unwrap().merchant, marios);
        let parked = merger.take(at(59).mono).unwrap();
        assert_eq!(parked.happened, Happened::OrderParked);
        assert_eq!(merger.take(at(59).mono), None);
        assert_eq!(merger.next(), Some(at(60).mono));
        let merged = merger.take(at(60).mono).unwrap();
        assert_eq!(
            (merged.count, merged.first, merged.last),
            (49, 1_000, 49_000)
        );
        assert_eq!(merged.orders.len(), Notification::ORDERS);
        // Nothing is kept of what has calmed down.
        assert_eq!(merger.take(at(200).mono), None);
        assert!(merger.entries.is_empty() && merger.due.is_empty());
    }

    #[test]
    fn a_merchant_that_stays_closed_is_told_once() {
        let mut merger = Merger::new(MINUTE);
        let (shop, p) = (merchant("shop"), Partition(3));
        let start = Instant::now();
        let at = |minutes: u32| At {
            wall: u64::from(minutes),
            mono: start + minutes * MINUTE,
        };
        let told = |merger: &mut Merger, minutes| merger.take(at(minutes).mono);
        for minutes in 0..5 {
            assert!(merger.closed(p, &shop, Because::Suspended, at(minutes)));
            let found = told(&mut merger, minutes);
            assert_eq!(found.is_some(), minutes == 0, "{minutes}");
        }
        // Another cause is news; so is a closure after it was open or elsewhere.
        merger.closed(p, &shop, Because::Misconfigured, at(10));
        let found = told(&mut merger, 10).unwrap();
        assert_eq!(found.because, Some(Because::Misconfigured));
        merger.opened(&shop);
        merger.closed(p, &shop, Because::Misconfigured, at(20));
        assert!(told(&mut merger, 20).is_some());
        merger.ended(Partition(4));
        merger.closed(p, &shop, Because::Misconfigured, at(30));
        assert!(told(&mut merger, 30).is_none());
        merger.ended(p);
        merger.closed(p, &shop, Because::Misconfigured, at(40));
        assert!(told(&mut merger, 40).is_some());
        merger.stopped(&shop, Because::Quarantined, at(50));
        assert_eq!(merger.drain().len(), 1);
    }

    #[test]
    fn memory_is_bounded() {
        let mut merger = Merger::new(MINUTE);
        let at = At {
            wall: 0,
            mono: Instant::now(),
        };
        for n in 0..MOST as u64 {
            let merchant = merchant(&n.to_string());
            assert!(merger.order(Happened::OrderExpired, &merchant, &order(n), at));
        }
        let one_more = merchant("one-more");
        assert!(!merger.order(Happened::OrderExpired, &one_more, &order(1), at));
        assert_eq!((merger.take_lost(), merger.take_lost()), (1, 0));
        // Those that are there go on.
        let first = merchant("0");
        assert!(merger.order(Happened::OrderExpired, &first, &order(2), at));
        assert_eq!(merger.take(at.mono).unwrap().count, 2);
        assert_eq!(merger.drain().len(), MOST - 1);
    }
}
