//! Priorities of what waits in the store: orders that are not of normal priority have lanes of their
//! own beside the sequence, so that a high one does not wait behind a million others.
//!
//! Only for merchants without ordering; where there is one, all keep their place in the sequence.

use expediter_types::{Priority, Seq};
use roaring::RoaringTreemap;

use crate::store::StoredMerchant;

/// How many of so many places each priority gets while all wait: high, normal, low.
const WEIGHTS: [i64; 3] = [16, 4, 1];

/// Stored orders that could go now and are of high or low priority.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    /// High and low.
    waiting: [RoaringTreemap; 2],
    /// What each priority has to its credit from places that others got.
    credit: [i64; 3],
}

impl Lanes {
    pub(super) fn of_stored(lanes: &[RoaringTreemap; 2]) -> Self {
        Self {
            waiting: lanes.clone(),
            credit: [0; 3],
        }
    }

    /// False for an order of normal priority, which has none.
    pub(super) fn insert(&mut self, priority: Priority, seq: Seq) -> bool {
        StoredMerchant::lane(priority)
            .map(|lane| self.waiting[lane].insert(seq))
            .is_some()
    }

    pub(super) fn remove(&mut self, seq: Seq) {
        for lane in &mut self.waiting {
            lane.remove(seq);
        }
    }

    pub(super) fn contains(&self, seq: Seq) -> bool {
        self.waiting.iter().any(|lane| lane.contains(seq))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.iter().all(RoaringTreemap::is_empty)
    }

    /// Something of this priority, or one that goes before it, waits here.
    pub(super) fn waits_before(&self, priority: Priority) -> bool {
        let [high, low] = &self.waiting;
        !high.is_empty() || (priority == Priority::Low && !low.is_empty())
    }

    /// So many of high and of low priority wait, and so many of them are older.
    pub(super) fn around(&self, seq: Seq) -> ([u64; 2], [u64; 2]) {
        let [high, low] = &self.waiting;
        let older = |lane: &RoaringTreemap| seq.checked_sub(1).map_or(0, |last| lane.rank(last));
        ([high.len(), low.len()], [older(high), older(low)])
    }

    /// A high order waits.
    pub(super) fn urgent(&self) -> bool {
        !self.waiting[0].is_empty()
    }

    /// Empties the lanes: the merchant's orders keep their sequence now. Gives its bounds.
    pub(super) fn dissolve(&mut self) -> Option<(Seq, Seq)> {
        let lanes = std::mem::take(&mut self.waiting);
        let low = lanes.iter().filter_map(RoaringTreemap::min).min()?;
        let high = lanes.iter().filter_map(RoaringTreemap::max).max()?;
        Some((low, high))
    }

    /// Takes the next orders for `room` places, oldest first, and says how many places are left for
    /// those of normal priority. Each priority that waits gets its share, over several calls too, and
    /// what the others do not need.
    pub(super) fn take(&mut self, room: usize, normal_waits: bool) -> (Vec<Seq>, usize) {
        let mut waiting = [
            self.waiting[0].len(),
            if normal_waits { u64::MAX } else { 0 },
            self.waiting[1].len(),
        ];
        let mut places = [0; 3];
        for _ in 0..room {
            let classes = (0..3).filter(|class| waiting[*class] > 0);
            let mut total = 0;
            for class in classes.clone() {
                self.credit[class] += WEIGHTS[class];
                total += WEIGHTS[class];
            }
            // The first of those with the most.
            let Some(next) = classes.rev().max_by_key(|class| self.credit[*class]) else {
                break;
            };
            self.credit[next] -= total;
            waiting[next] -= 1;
            places[next] += 1;
            if waiting[next] == 0 {
                // Who has nothing waiting saves nothing up.
                self.credit[next] = 0;
            }
        }
        let mut taken: Vec<Seq> = Vec::new();
        for (lane, count) in self.waiting.iter_mut().zip([places[0], places[2]]) {
            let next: Vec<Seq> = lane.iter().take(count).collect();
            for seq in &next {
                lane.remove(*seq);
            }
            taken.extend(next);
        }
        (taken, places[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(high: std::ops::Range<u64>, low: std::ops::Range<u64>) -> Lanes {
        Lanes::of_stored(&[high.collect(), low.collect()])
    }

    #[test]
    fn each_priority_gets_its_share_and_what_others_leave() {
        let (taken, normal) = lanes(0..100, 100..200).take(21, true);
        assert_eq!((taken.len(), normal), (17, 4));
        assert_eq!(taken, (0..16).chain(100..101).collect::<Vec<_>>());

        // Place by place, too.
        let (mut one, mut places) = (lanes(0..100, 100..200), [0; 3]);
        for _ in 0..42 {
            let (taken, normal) = one.take(1, true);
            places[1] += normal;
            taken
                .iter()
                .for_each(|seq| places[if *seq < 100 { 0 } else { 2 }] += 1);
        }
        assert_eq!(places, [32, 8, 2]);

        let (taken, normal) = lanes(0..2, 0..0).take(10, true);
        assert_eq!((taken, normal), (vec![0, 1], 8));

        let (taken, normal) = lanes(0..0, 5..50).take(10, false);
        assert_eq!((taken.len(), normal), (10, 0));

        let (taken, normal) = lanes(0..9, 20..30).take(1, true);
        assert_eq!((taken, normal), (vec![0], 0), "one place goes to the first");
        assert_eq!(lanes(0..0, 20..30).take(1, true), (vec![], 1));
    }

    #[test]
    fn dissolved_lanes_name_their_bounds() {
        let mut both = lanes(7..9, 3..4);
        assert!(both.waits_before(Priority::Normal) && both.contains(3));
        assert_eq!(both.dissolve(), Some((3, 8)));
        assert!(both.is_empty() && both.dissolve().is_none());
    }
}
