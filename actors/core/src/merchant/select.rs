//! Which of the orders that could start goes next.

use std::collections::BTreeSet;

use expediter_types::{Priority, Seq};

/// What a class pays when one of its orders goes: the classes share as 16 : 4 : 1.
const PRICE: [u64; CLASSES] = [1, 4, 16];
const CLASSES: usize = Priority::ALL.len();

/// How an order competes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rank {
    pub(super) priority: Priority,
    /// It was tried before: the retry budget pays for it.
    pub(super) repeat: bool,
}

/// Orders that could start, by class; within a class the oldest goes first.
#[derive(Debug, Clone, Default)]
pub(super) struct Contest {
    fresh: [BTreeSet<Seq>; CLASSES],
    repeats: [BTreeSet<Seq>; CLASSES],
    /// What each class has paid. Who waits falls behind and goes before long; who has nothing
    /// waiting saves nothing up.
    paid: [u64; CLASSES],
}

impl Contest {
    pub(super) fn insert(&mut self, seq: Seq, rank: Rank) {
        self.set(rank).insert(seq);
    }

    pub(super) fn remove(&mut self, seq: Seq, rank: Rank) -> bool {
        self.set(rank).remove(&seq)
    }

    fn set(&mut self, rank: Rank) -> &mut BTreeSet<Seq> {
        let class = rank.priority as usize;
        match rank.repeat {
            true => &mut self.repeats[class],
            false => &mut self.fresh[class],
        }
    }

    /// Who goes next, with or without those that were tried before.
    pub(super) fn next(&self, repeats: bool) -> Option<Seq> {
        let of_class = |class: usize| {
            let fresh = self.fresh[class].first();
            let repeat = self.repeats[class].first().filter(|_| repeats);
            fresh.into_iter().chain(repeat).min().copied()
        };
        let classes = (0..CLASSES).filter_map(|class| Some((class, of_class(class)?)));
        let next = classes.min_by_key(|(class, _)| (self.paid[*class], *class));
        next.map(|(_, seq)| seq)
    }

    /// It went, and is in the contest no more.
    pub(super) fn went(&mut self, priority: Priority) {
        let class = priority as usize;
        let reached = self.paid[class];
        self.paid[class] += PRICE[class];
        for other in 0..CLASSES {
            let waits = !self.fresh[other].is_empty() || !self.repeats[other].is_empty();
            if !waits && other != class {
                self.paid[other] = self.paid[other].max(reached);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn len(&self) -> usize {
        let sets = self.fresh.iter().chain(&self.repeats);
        sets.map(BTreeSet::len).sum()
    }

    /// Those that were tried before.
    pub(super) fn repeats(&self) -> usize {
        self.repeats.iter().map(BTreeSet::len).sum()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Seq> {
        self.fresh.iter().chain(&self.repeats).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(priority: Priority) -> Rank {
        Rank {
            priority,
            repeat: false,
        }
    }

    fn go(contest: &mut Contest) -> Option<Seq> {
        let seq = contest.next(true)?;
        // The thousands are the class.
        let class = Priority::ALL[(seq / 1_000) as usize];
        assert!(contest.remove(seq, rank(class)));
        contest.went(class);
        Some(seq)
    }

    fn full(count: u64) -> Contest {
        let mut contest = Contest::default();
        for class in 0..3 {
            for n in 0..count {
                contest.insert(class * 1_000 + n, rank(Priority::ALL[class as usize]));
            }
        }
        contest
    }

    #[test]
    fn classes_share_and_nobody_starves() {
        let mut contest = full(500);
        let went: Vec<Seq> = (0..210).filter_map(|_| go(&mut contest)).collect();
        let of = |class| went.iter().filter(|seq| **seq / 1_000 == class).count();
        assert_eq!((of(0), of(1), of(2)), (160, 40, 10));
        for class in 0..3 {
            let own: Vec<_> = went.iter().filter(|seq| **seq / 1_000 == class).collect();
            assert!(own.is_sorted(), "the oldest of a class goes first");
        }
    }

    #[test]
    fn who_was_away_has_saved_nothing_up() {
        let mut contest = Contest::default();
        for n in 0..900 {
            contest.insert(n, rank(Priority::High));
        }
        (0..600).for_each(|_| assert!(go(&mut contest).is_some()));
        for n in 2_000..2_100 {
            contest.insert(n, rank(Priority::Low));
        }
        let went: Vec<Seq> = (0..170).filter_map(|_| go(&mut contest)).collect();
        let low = went.iter().filter(|seq| **seq >= 2_000).count();
        assert!((10..=11).contains(&low), "{low}");
    }

    #[test]
    fn repeats_wait_without_a_budget() {
        let mut contest = Contest::default();
        let repeat = Rank {
            priority: Priority::High,
            repeat: true,
        };
        contest.insert(1, repeat);
        contest.insert(2, rank(Priority::Low));
        assert_eq!(contest.next(true), Some(1));
        assert_eq!(contest.next(false), Some(2));
        contest.remove(2, rank(Priority::Low));
        assert_eq!((contest.next(false), contest.repeats()), (None, 1));
    }
}
