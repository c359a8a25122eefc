//! Which sequences of the partition are taken, finished and stored (ARCHITECTURE.md, The protocol of one partition).

use expediter_types::Seq;
use roaring::RoaringTreemap;

/// What a message of the log is to this owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Seen for the first time.
    New,
    /// Finished before, or already taken: ignore it.
    Known,
}

/// The partition's account: taken = finished + open.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    seen: Seq,
    /// Taken, without an acknowledged outcome.
    open: RoaringTreemap,
    /// Open and not handed to the store.
    unstored: RoaringTreemap,
    /// Finished, above the low water of the start.
    finished: RoaringTreemap,
    /// Everything at or below was finished when this epoch began.
    floor: Seq,
    /// For the balance: how many were taken and finished in this epoch.
    taken_count: u64,
    finished_count: u64,
}

impl Ledger {
    /// `stored`: open orders the store holds. `read_after`: where the main reader starts.
    #[must_use]
    pub fn new(
        low_water: Seq,
        finished: RoaringTreemap,
        stored: RoaringTreemap,
        read_after: Seq,
    ) -> Self {
        let taken_count = stored.len();
        Self {
            seen: read_after,
            open: stored,
            unstored: RoaringTreemap::new(),
            finished,
            floor: low_water,
            taken_count,
            finished_count: 0,
        }
    }

    /// The main reader passed this message.
    pub fn pass(&mut self, seq: Seq) {
        self.seen = self.seen.max(seq);
    }

    /// Everything of the partition up to here has been passed.
    #[must_use]
    pub fn seen(&self) -> Seq {
        self.seen
    }

    /// Takes a message, by either reader.
    pub fn take(&mut self, seq: Seq) -> Taken {
        if seq <= self.floor || self.finished.contains(seq) || !self.open.insert(seq) {
            return Taken::Known;
        }
        self.unstored.insert(seq);
        self.taken_count += 1;
        Taken::New
    }

    /// The store has been told to keep it.
    pub fn store(&mut self, seq: Seq) {
        self.unstored.remove(seq);
    }

    /// Its outcome is acknowledged. False when it was not open.
    pub fn finish(&mut self, seq: Seq) -> bool {
        if !self.open.remove(seq) {
            return false;
        }
        self.unstored.remove(seq);
        self.finished.insert(seq);
        self.finished_count += 1;
        true
    }

    /// Taken and not finished.
    #[must_use]
    pub fn is_open(&self, seq: Seq) -> bool {
        self.open.contains(seq)
    }

    /// The open ones.
    #[must_use]
    pub fn open_sequences(&self) -> &RoaringTreemap {
        &self.open
    }

    /// How many are open.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.open.len()
    }

    /// Every order at or below it is finished; at most `seen`.
    #[must_use]
    pub fn low_water(&self) -> Seq {
        self.open
            .min()
            .map_or(self.seen, |first| self.seen.min(first - 1))
    }

    /// Every order at or below it is finished or stored; at most `seen`.
    #[must_use]
    pub fn position(&self) -> Seq {
        self.unstored
            .min()
            .map_or(self.seen, |first| self.seen.min(first - 1))
    }

    /// Finished sequences above the low water, for a mark. Forgets those below. Up to `seen` it is
    /// everything that is not open: the other partitions' sequences lie between this one's, and
    /// nobody asks for them; with them it is a few long runs, however many orders are finished
    /// while one is stuck.
    pub fn finished(&mut self) -> RoaringTreemap {
        let low_water = self.low_water();
        self.finished.remove_range(..=low_water);
        if low_water < self.seen {
            self.finished.insert_range(low_water + 1..=self.seen);
            self.finished -= &self.open;
        }
        self.floor = self.floor.max(low_water);
        // As runs: each bitmap of its own would take 8 KiB.
        let runs = self.finished.bitmaps().map(|(high, bitmap)| {
            let mut bitmap = bitmap.clone();
            bitmap.optimize();
            (high, bitmap)
        });
        self.finished = RoaringTreemap::from_bitmaps(runs.collect::<Vec<_>>());
        self.finished.clone()
    }

    /// Orders taken minus finished minus open: must be 0.
    #[must_use]
    pub fn unaccounted(&self) -> i64 {
        let balance = i128::from(self.taken_count)
            - i128::from(self.finished_count)
            - i128::from(self.open.len());
        i64::try_from(balance).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_water_and_position_stop_at_what_is_open() {
        let mut ledger = Ledger::new(
            10,
            RoaringTreemap::from_iter([14]),
            RoaringTreemap::new(),
            10,
        );
        for seq in [10, 11, 12, 14, 20] {
            ledger.pass(seq);
            let expected = if matches!(seq, 10 | 14) {
                Taken::Known
            } else {
                Taken::New
            };
            assert_eq!(ledger.take(seq), expected, "{seq}");
        }
        assert_eq!((ledger.low_water(), ledger.position()), (10, 10));
        ledger.store(11);
        assert_eq!((ledger.low_water(), ledger.position()), (10, 11));
        assert!(ledger.finish(12) && !ledger.finish(12));
        assert!(ledger.finish(11));
        assert_eq!((ledger.low_water(), ledger.position()), (19, 19));
        assert_eq!(ledger.finished().len(), 0);
        assert!(ledger.finish(20));
        assert_eq!(ledger.low_water(), 20);
        assert_eq!(ledger.unaccounted(), 0);
    }

    #[test]
    fn one_stuck_order_of_a_sparse_partition_makes_no_large_mark() {
        let mut ledger = Ledger::new(0, RoaringTreemap::new(), RoaringTreemap::new(), 0);
        for seq in (16..1_600_000).step_by(16) {
            ledger.pass(seq);
            assert_eq!(ledger.take(seq), Taken::New);
            assert!(seq == 32 || ledger.finish(seq));
        }
        assert_eq!(ledger.take(1_600_016), Taken::New);
        assert!(ledger.finish(1_600_016));
        let finished = ledger.finished();
        assert!(
            finished.serialized_size() < 1_000,
            "{}",
            finished.serialized_size()
        );
        assert!(!finished.contains(32) && finished.contains(48) && finished.contains(1_600_016));
        assert!(!finished.contains(1_600_000));
        // What comes above is still new, what comes by again is known.
        assert_eq!(ledger.take(1_600_000), Taken::New);
        assert_eq!(ledger.take(48), Taken::Known);
        assert_eq!(ledger.unaccounted(), 0);
    }

    #[test]
    fn what_the_tail_reader_takes_does_not_move_seen() {
        let mut ledger = Ledger::new(0, RoaringTreemap::new(), RoaringTreemap::new(), 0);
        assert_eq!(ledger.take(100), Taken::New);
        assert!(ledger.finish(100));
        assert_eq!((ledger.seen(), ledger.low_water()), (0, 0));
        ledger.pass(100);
        assert_eq!(ledger.take(100), Taken::Known);
        assert_eq!(ledger.low_water(), 100);
    }
}
