//! Rates over long periods: at most so many orders in any window of the period.
//!
//! What was spent is remembered in slices of a 64th of the period; a slice counts until the
//! newest order in it is one period old. So never more than the quota goes in any window, and a
//! quota that is always wanted is used to at least 98 %.

use std::collections::VecDeque;

use expediter_types::{Rate, SpentQuota};

/// Slices of one period.
const SLICES: i64 = 64;

/// Orders that went close together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slice {
    first: i64,
    last: i64,
    count: u64,
}

/// One quota and what was spent of it. Times are microseconds of the monotonic clock, negative
/// for what was spent before the machine was switched on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Quota {
    rate: Rate,
    /// Oldest first.
    spent: VecDeque<Slice>,
}

impl Quota {
    fn period(&self) -> i64 {
        micros(self.rate.period())
    }

    /// Microseconds from which the next order may go.
    fn ready_at(&self, now: i64) -> i64 {
        let since = now.saturating_sub(self.period());
        let counts = self.spent.iter().filter(|slice| slice.last > since);
        let used: u64 = counts.clone().map(|slice| slice.count).sum();
        let mut over = (used + 1).saturating_sub(u64::from(self.rate.count()));
        for slice in counts {
            if over == 0 {
                break;
            }
            if over <= slice.count {
                return slice.last.saturating_add(self.period());
            }
            over -= slice.count;
        }
        now
    }

    fn forget(&mut self, now: i64) {
        let since = now.saturating_sub(self.period());
        while self.spent.front().is_some_and(|slice| slice.last <= since) {
            self.spent.pop_front();
        }
    }

    fn take(&mut self, now: i64) {
        self.forget(now);
        let width = self.period() / SLICES;
        match self.spent.back_mut() {
            Some(slice) if now < slice.first.saturating_add(width) => {
                slice.last = slice.last.max(now);
                slice.count += 1;
            }
            _ => self.spent.push_back(Slice {
                first: now,
                last: now,
                count: 1,
            }),
        }
    }

    /// Adds what went at these times, in any order, in no more slices than before.
    fn add(&mut self, slices: impl IntoIterator<Item = (i64, u64)>) {
        let slices = slices.into_iter().map(|(last, count)| Slice {
            first: last,
            last,
            count,
        });
        let mut all: Vec<Slice> = self.spent.drain(..).chain(slices).collect();
        all.sort_unstable_by_key(|slice| slice.last);
        let width = self.period() / SLICES;
        for next in all.into_iter().filter(|slice| slice.count > 0) {
            match self.spent.back_mut() {
                Some(slice) if next.last < slice.first.saturating_add(width) => {
                    slice.last = next.last;
                    slice.count += next.count;
                }
                _ => self.spent.push_back(next),
            }
        }
    }
}

/// All quotas of a merchant: every rate but the one with the shortest period.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Quotas(Vec<Quota>);

impl Quotas {
    /// The quotas among these rates, by period, with nothing spent.
    #[must_use]
    pub fn of(rates: &[Rate]) -> Self {
        let quotas = rates.iter().skip(1).map(|rate| Quota {
            rate: *rate,
            spent: VecDeque::new(),
        });
        Self(quotas.collect())
    }

    /// Other rates, at once: what was spent stays spent, as far back as anything here remembers.
    pub fn change(&mut self, rates: &[Rate]) {
        let old = std::mem::take(&mut self.0);
        *self = Self::of(rates);
        for quota in &mut self.0 {
            let same = old.iter().find(|o| o.rate.period() == quota.rate.period());
            // A longer memory serves a shorter period, and is the best there is for a longer one.
            let longer = old.iter().find(|o| o.rate.period() > quota.rate.period());
            if let Some(known) = same.or(longer).or(old.last()) {
                quota.add(known.spent.iter().map(|slice| (slice.last, slice.count)));
            }
        }
    }

    /// From when on the next order may go, and the quota that says so; `None`: now.
    #[must_use]
    pub fn ready_at(&self, now: u64) -> Option<(u64, Rate)> {
        let now = signed(now);
        let all = self.0.iter().map(|quota| (quota.ready_at(now), quota.rate));
        let (at, rate) = all.max_by_key(|(at, _)| *at)?;
        (at > now).then_some((u64::try_from(at).unwrap_or(0), rate))
    }

    /// An order goes.
    pub fn take(&mut self, now: u64) {
        for quota in &mut self.0 {
            quota.take(signed(now));
        }
    }

    /// Nothing counts any more: forgetting it forgets nothing.
    #[must_use]
    pub fn is_unspent(&self, now: u64) -> bool {
        let counts = |quota: &Quota| {
            let since = signed(now).saturating_sub(quota.period());
            quota.spent.back().is_some_and(|slice| slice.last > since)
        };
        !self.0.iter().any(counts)
    }

    /// Nobody knows what went between `since` and `until`: counts as much as `rates` allow with
    /// the pace of the shortest period and `burst`, as late as possible.
    pub fn charge(&mut self, rates: &[Rate], burst: u32, since: i64, until: i64) {
        let Some(pace) = rates.first() else { return };
        let interval = pace.interval_ns();
        let length = u64::try_from(until.saturating_sub(since)).unwrap_or(0);
        for quota in &mut self.0 {
            let most = u64::from(quota.rate.count());
            let width = u64::try_from(quota.period() / SLICES).unwrap_or(0).max(1);
            let mut charged = 0;
            let mut slices = Vec::new();
            // Back from the end: the burst first, then at the pace.
            for n in 0..=SLICES.unsigned_abs() {
                let back = n * width;
                if charged >= most || back > length {
                    break;
                }
                let gone = length.min(back + width).saturating_mul(1_000) / interval;
                let total = (u64::from(burst) + gone).min(most);
                slices.push((until - signed(back), total - charged));
                charged = total;
            }
            quota.add(slices);
        }
    }

    /// What was spent, for a mark that is written at `wall`: at most so many entries a quota.
    pub fn spent(
        &self,
        now: expediter_types::Now,
        entries: usize,
    ) -> impl Iterator<Item = SpentQuota> + '_ {
        self.0.iter().filter_map(move |quota| {
            let mut quota = quota.clone();
            quota.forget(signed(now.mono));
            let at_once = quota.spent.len().div_ceil(entries.max(1)).max(1);
            let slices: Vec<Slice> = quota.spent.iter().copied().collect();
            let spent = slices.chunks(at_once).filter_map(|some| {
                let age = signed(now.mono).saturating_sub(some.last()?.last).max(0) / 1_000;
                let count = some.iter().map(|slice| slice.count).sum();
                // Whole milliseconds lose some of the last one: rather too late than too early.
                let at = now
                    .wall
                    .saturating_sub(age.unsigned_abs())
                    .saturating_add(1);
                Some((at, count))
            });
            let spent: Vec<(u64, u64)> = spent.collect();
            (!spent.is_empty()).then_some(SpentQuota {
                period: quota.rate.period(),
                spent,
            })
        })
    }

    /// Takes over what a mark says. The quotas are those it names, until
    /// [`Quotas::change`] tells the ones in force.
    pub fn restore(&mut self, all: &[SpentQuota], now: expediter_types::Now) {
        for SpentQuota { period, spent } in all {
            let Some(rate) = Rate::new(1, *period) else {
                continue;
            };
            let mut quota = Quota {
                rate,
                spent: VecDeque::new(),
            };
            let ages = spent.iter().map(|(wall, count)| {
                let age = now.wall.saturating_sub(*wall).saturating_mul(1_000);
                (signed(now.mono).saturating_sub(signed(age)), *count)
            });
            quota.add(ages);
            self.0.push(quota);
        }
        self.0.sort_by_key(|quota| quota.rate.period());
    }

    /// The most slices that any quota keeps: for tests of the bound.
    #[cfg(test)]
    fn slices(&self) -> usize {
        self.0
            .iter()
            .map(|quota| quota.spent.len())
            .max()
            .unwrap_or(0)
    }
}

fn signed(time: u64) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

fn micros(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use expediter_types::Now;
    use proptest::prelude::*;

    use super::*;

    fn rates(texts: &[&str]) -> Vec<Rate> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// Takes all that goes until `until`; gives when each went.
    fn run(quotas: &mut Quotas, mut now: u64, until: u64, step: u64) -> Vec<u64> {
        let mut went = Vec::new();
        while now < until {
            match quotas.ready_at(now) {
                Some((at, _)) => now = at,
                None => {
                    quotas.take(now);
                    went.push(now);
                    now += step;
                }
            }
        }
        went.retain(|at| *at < until);
        went
    }

    fn most_in_a_window(went: &[u64], period: u64) -> usize {
        let from = |at: u64| went.partition_point(|other| *other + period <= at);
        (went.iter().enumerate())
            .map(|(n, at)| n + 1 - from(*at))
            .max()
            .unwrap_or(0)
    }

    proptest! {
        #[test]
        fn no_window_sees_more_also_when_it_is_carried_over(
            count in 1_u32..300, period_ms in 200_u64..20_000,
            gaps in proptest::collection::vec(0_u64..800_000, 1..400), carry_at in 0_usize..400,
        ) {
            let period = Duration::from_millis(period_ms);
            let rates = [Rate::new(1_000, Duration::from_millis(100)).unwrap(), Rate::new(count, period).unwrap()];
            let mut quotas = Quotas::of(&rates);
            let (mut now, mut went) = (1_000_000, Vec::new());
            for (n, gap) in gaps.into_iter().enumerate() {
                now += gap;
                if n == carry_at {
                    let at = Now { mono: now, wall: 1_700_000_000_000 };
                    let spent: Vec<_> = quotas.spent(at, 16).collect();
                    let mut next = Quotas::default();
                    next.restore(&spent, at);
                    next.change(&rates);
                    quotas = next;
                }
                while quotas.ready_at(now).is_none() {
                    quotas.take(now);
                    went.push(now);
                }
            }
            prop_assert!(most_in_a_window(&went, period_ms * 1_000) <= count as usize);
            prop_assert!(quotas.slices() <= 66);
        }
    }

    #[test]
    fn a_quota_that_is_always_wanted_is_used() {
        for step in [1, 3_000, 17_000] {
            let mut quotas = Quotas::of(&rates(&["1000/s", "1000/min"]));
            let went = run(&mut quotas, 0, 20 * 60_000_000, step);
            assert!(went.len() >= 19_600, "{} of 20000 with {step}", went.len());
            assert!(most_in_a_window(&went, 60_000_000) <= 1_000);
        }
    }

    #[test]
    fn what_was_spent_stays_spent_and_a_change_acts_at_once() {
        let mut quotas = Quotas::of(&rates(&["100/s", "10/min", "100/h"]));
        assert_eq!(run(&mut quotas, 0, 30_000_000, 1_000).len(), 10);
        let (at, rate) = quotas.ready_at(30_000_000).unwrap();
        assert_eq!((at, rate.to_string().as_str()), (60_009_000, "10/min"));
        quotas.change(&rates(&["100/s", "15/min"]));
        assert_eq!(run(&mut quotas, 30_000_000, 50_000_000, 1_000).len(), 5);
        // A quota that is new counts what the longest memory knows.
        quotas.change(&rates(&["100/s", "20/10min"]));
        assert_eq!(run(&mut quotas, 50_000_000, 300_000_000, 1_000).len(), 5);
        quotas.change(&rates(&["100/s"]));
        assert_eq!(quotas.ready_at(300_000_000), None);
    }

    #[test]
    fn an_unknown_time_counts_as_much_as_the_pace_allows() {
        let all = rates(&["10/s", "600/min"]);
        let mut quotas = Quotas::of(&all);
        // Five seconds at 10/s and a burst of 20: 70 of the 600.
        quotas.charge(&all, 20, 55_000_000, 60_000_000);
        let went = run(&mut quotas, 60_000_000, 100_000_000, 100);
        assert_eq!(went.len(), 530);
        // Much longer than the period: everything, and it comes back as it would have gone.
        let mut quotas = Quotas::of(&all);
        quotas.charge(&all, 20, -600_000_000, 60_000_000);
        assert!(quotas.ready_at(60_000_000).is_some());
        let went = run(&mut quotas, 60_000_000, 119_000_000, 100).len();
        assert!((560..=590).contains(&went), "{went}");
        assert!(quotas.slices() <= 66);
    }

    #[test]
    fn it_is_forgotten_only_when_nothing_counts() {
        let mut quotas = Quotas::of(&rates(&["10/s", "600/min"]));
        assert!(quotas.is_unspent(0));
        quotas.take(1_000_000);
        assert!(!quotas.is_unspent(60_999_999));
        assert!(quotas.is_unspent(61_000_000));
    }
}
