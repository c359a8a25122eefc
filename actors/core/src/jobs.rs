//! Which runs of a recurring job are to be published now.
//!
//! Runs are decided in order, and a run that was decided is never decided again, wherever the clock
//! goes: set back, the job rests until the clock has caught up; set forward, what it jumped over is
//! missed.

use expediter_types::{Missed, UnixMillis};

/// A run that is late by less, in milliseconds, is no missed run: a hand-over or a busy node takes
/// its time.
pub const ON_TIME: u64 = 60_000;
/// Missed runs that are made up for, at most.
pub const MAX_MADE_UP: usize = 100;
/// Runs that one decision counts as left out, at most.
pub const MAX_COUNTED: usize = 1_000;

/// What a job is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// To be published, the oldest first.
    pub runs: Vec<UnixMillis>,
    /// Missed, and not made up for; counted up to [`MAX_COUNTED`].
    pub left_out: usize,
    /// All runs up to it are decided, besides those in `runs`.
    pub settled: UnixMillis,
    /// The next run; `None`: there is none.
    pub next: Option<UnixMillis>,
}

/// Decides about the runs after `settled`, up to which all were decided before.
///
/// `next_after` gives the first run after a moment.
#[must_use]
pub fn due(
    settled: UnixMillis,
    now: UnixMillis,
    missed: Missed,
    next_after: impl Fn(UnixMillis) -> Option<UnixMillis>,
) -> Due {
    let timetable = Timetable(next_after);
    // What is late by a minute or more is missed.
    let border = settled.max(now.saturating_sub(ON_TIME));
    let mut runs = match missed {
        Missed::Skip => Vec::new(),
        Missed::Once => timetable.newest(settled, border, 1),
        Missed::All => timetable.newest(settled, border, MAX_MADE_UP),
    };
    let left_out = timetable.between(settled, border).take(MAX_COUNTED);
    let left_out = match runs.first() {
        Some(first) => left_out.take_while(|run| run < first).count(),
        None => left_out.count(),
    };
    runs.extend(timetable.between(border, now));
    Due {
        runs,
        left_out,
        settled: border,
        next: (timetable.0)(now.max(settled)),
    }
}

/// Gives the first run after a moment.
struct Timetable<F>(F);

impl<F: Fn(UnixMillis) -> Option<UnixMillis>> Timetable<F> {
    /// The runs after `after`, up to `until`.
    fn between(
        &self,
        after: UnixMillis,
        until: UnixMillis,
    ) -> impl Iterator<Item = UnixMillis> + '_ {
        let mut run = after;
        std::iter::from_fn(move || {
            run = (self.0)(run).filter(|next| *next <= until)?;
            Some(run)
        })
    }

    /// The newest of these, at most so many. A year of minutes is not walked through: where they
    /// begin is found by halving the time.
    fn newest(&self, after: UnixMillis, until: UnixMillis, most: usize) -> Vec<UnixMillis> {
        let fit = |from| self.between(from, until).take(most + 1).count() <= most;
        let (mut too_many, mut from) = (after, until.max(after));
        if fit(after) {
            from = after;
        }
        while from > too_many + 1 {
            let middle = too_many + (from - too_many) / 2;
            if fit(middle) {
                from = middle;
            } else {
                too_many = middle;
            }
        }
        self.between(from, until).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const MINUTE: u64 = 60_000;
    const POLICIES: [Missed; 3] = [Missed::Skip, Missed::Once, Missed::All];

    fn each(period: u64) -> impl Fn(UnixMillis) -> Option<UnixMillis> {
        move |moment| Some((moment / period + 1) * period)
    }

    fn at(runs: &BTreeSet<UnixMillis>) -> impl Fn(UnixMillis) -> Option<UnixMillis> + '_ {
        |moment| runs.range(moment + 1..).next().copied()
    }

    #[test]
    fn a_run_on_time_is_published_whatever_the_policy() {
        for missed in POLICIES {
            let hours = each(60 * MINUTE);
            let run = 60 * MINUTE;
            let early = due(0, run - 1, missed, &hours);
            assert_eq!((early.runs, early.next), (vec![], Some(run)));
            for late in [0, ON_TIME - 1] {
                let found = due(0, run + late, missed, &hours);
                assert_eq!((found.runs, found.left_out), (vec![run], 0));
                assert_eq!(found.next, Some(2 * run));
            }
            assert_eq!(due(run, run + 1, missed, &hours).runs, []);
        }
    }

    #[test]
    fn missed_runs_go_by_their_policy() {
        let now = 1_000 * MINUTE + 30_000;
        let found = POLICIES.map(|missed| due(0, now, missed, each(MINUTE)));
        let counts = found.each_ref().map(|due| (due.runs.len(), due.left_out));
        // The one of this minute is on time.
        assert_eq!(counts, [(1, 999), (2, 998), (101, 899)]);
        assert_eq!(found[1].runs, [999 * MINUTE, 1_000 * MINUTE]);
        assert_eq!(found[2].runs[0], 900 * MINUTE);
        // One that is exactly a minute late is missed.
        let late = due(0, 2 * MINUTE, Missed::Skip, each(MINUTE));
        assert_eq!((late.runs, late.left_out), (vec![2 * MINUTE], 1));
    }

    #[test]
    fn years_are_not_walked_through() {
        let asked = std::cell::Cell::new(0);
        let minutes = |moment| {
            asked.set(asked.get() + 1);
            each(MINUTE)(moment)
        };
        let found = due(0, 50 * 365 * 1_440 * MINUTE, Missed::All, minutes);
        assert_eq!((found.runs.len(), found.left_out), (101, MAX_COUNTED));
        assert!(asked.get() < 10_000, "{}", asked.get());
    }

    #[test]
    fn no_run_ever_comes_is_no_fault() {
        for missed in POLICIES {
            let found = due(5, 1 << 40, missed, |_| None);
            assert_eq!((found.runs, found.left_out, found.next), (vec![], 0, None));
        }
    }

    proptest! {
        /// Against what is plain to see when all runs are in a list.
        #[test]
        fn decisions_are_those_of_a_list(
            runs in prop::collection::btree_set(0_u64..1_000_000, 0..300),
            settled in 0_u64..1_100_000,
            now in 0_u64..1_100_000,
            missed in prop::sample::select(POLICIES.to_vec()),
        ) {
            let found = due(settled, now, missed, at(&runs));
            let open: Vec<u64> = runs.iter().copied().filter(|run| *run > settled && *run <= now).collect();
            let (on_time, late): (Vec<u64>, Vec<u64>) =
                open.into_iter().partition(|run| now - run < ON_TIME);
            let most = match missed {
                Missed::Skip => 0,
                Missed::Once => 1,
                Missed::All => MAX_MADE_UP,
            };
            let cut = late.len().saturating_sub(most);
            prop_assert_eq!(found.left_out, cut);
            prop_assert_eq!(found.runs, [&late[cut..], &on_time[..]].concat());
            prop_assert_eq!(found.next, at(&runs)(now.max(settled)));
        }

        /// The clock jumps, the owner changes in the middle of what it publishes.
        #[test]
        fn nothing_is_published_twice_and_with_all_nothing_is_missed(
            runs in prop::collection::btree_set(0_u64..20_000_000, 0..90),
            looks in prop::collection::vec((-3_000_000_i64..3_000_000, 0_usize..8, any::<bool>()), 1..60),
            missed in prop::sample::select(POLICIES.to_vec()),
        ) {
            let (mut settled, mut now, mut farthest) = (0_u64, 0_u64, 0_u64);
            let mut published = Vec::new();
            for (jump, done, cut_off) in looks {
                now = now.saturating_add_signed(jump);
                let found = due(settled, now, missed, at(&runs));
                prop_assert!(found.runs.iter().all(|run| *run <= now));
                let done = if cut_off { done } else { found.runs.len() };
                for run in found.runs.iter().take(done) {
                    published.push(*run);
                    settled = *run;
                }
                if found.runs.is_empty() {
                    settled = settled.max(found.settled);
                }
                if !cut_off {
                    farthest = farthest.max(now);
                }
            }
            prop_assert!(published.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", published);
            if missed == Missed::All {
                let past = |run: &u64| (1..=farthest).contains(run);
                let all: Vec<u64> = runs.iter().copied().filter(past).collect();
                prop_assert!(published.starts_with(&all), "{:?} {:?}", published, all);
            }
        }
    }
}
