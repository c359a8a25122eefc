//! Judges a benchmark: was every order delivered, once, in order, how fast.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::{BenchMark, read_bench_body};

/// Higher sequence numbers count as bad bodies: a bitmap of this many bits has 16 MiB.
const MAX_SEQ: u64 = 1 << 27;
const HOUR_US: u64 = 3_600_000_000;

/// The judgement over all merchants.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Verdict {
    #[serde(flatten)]
    pub total: Tally,
    /// Arrivals in each second, from the second (of the wall clock) of the first arrival.
    pub arrivals_per_second: Vec<u64>,
    /// The same by group. A merchant's group is its id up to the last `-`: `healthy-17` and `healthy-18`
    /// are judged together, and apart from `slow-1`.
    pub groups: BTreeMap<String, Tally>,
}

/// The judgement over some merchants.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Orders with a good body, repeats included.
    pub arrived: u64,
    /// Different orders among them.
    pub unique: u64,
    /// Arrivals of orders that the merchant had taken (decided on 2xx) before.
    pub duplicated: u64,
    /// Arrivals of orders that it had seen, but refused each time: repeats without harm.
    pub repeated: u64,
    /// First arrivals with a lower number than an earlier first arrival at the same merchant.
    pub out_of_order: u64,
    /// The same, over the moments when the merchant first took an order.
    pub taken_out_of_order: u64,
    /// Numbers between a merchant's lowest and highest that have not arrived.
    pub missing: u64,
    /// Bodies that are not a publisher's, or were changed or cut.
    pub bad_body: u64,
    /// Publish to first arrival. `None` before the first arrival.
    pub latency: Option<Latency>,
    /// In microseconds since 1970.
    pub first_arrival_us: Option<u64>,
    /// In microseconds since 1970.
    pub last_arrival_us: Option<u64>,
}

/// In milliseconds, to three digits; beyond an hour counts as an hour.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// First arrivals that these are of.
    pub orders: u64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

/// What the judge remembers of one merchant: two bits for each order.
#[derive(Debug, Default)]
pub(super) struct Seen {
    seen: Bitmap,
    taken: Bitmap,
    lowest: Option<u64>,
    highest: Option<u64>,
    highest_taken: Option<u64>,
    tally: Tally,
}

/// What the judge remembers of the merchants of one group.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: String,
    times: Mutex<Times>,
}

#[derive(Debug)]
pub(super) struct Times {
    latency: Histogram<u64>,
    seconds: BTreeMap<u64, u64>,
    first_us: u64,
    last_us: u64,
}

impl Seen {
    /// Returns the mark, and whether it is the order's first arrival.
    pub(super) fn judge(&mut self, body: &[u8], taken: bool) -> Option<(BenchMark, bool)> {
        let mark = read_bench_body(body).filter(|mark| mark.seq < MAX_SEQ);
        let Some(mark) = mark else {
            self.tally.bad_body += 1;
            return None;
        };
        let seq = mark.seq;
        self.tally.arrived += 1;
        let first = self.seen.insert(seq);
        if first {
            self.tally.unique += 1;
            self.tally.out_of_order += u64::from(self.highest > Some(seq));
            self.highest = self.highest.max(Some(seq));
            self.lowest = Some(self.lowest.map_or(seq, |lowest| lowest.min(seq)));
        }
        if self.taken.contains(seq) {
            self.tally.duplicated += 1;
        } else {
            self.tally.repeated += u64::from(!first);
            if taken {
                self.taken.insert(seq);
                self.tally.taken_out_of_order += u64::from(self.highest_taken > Some(seq));
                self.highest_taken = self.highest_taken.max(Some(seq));
            }
        }
        Some((mark, first))
    }

    pub(super) fn tally(&self) -> Tally {
        let span = self
            .highest
            .zip(self.lowest)
            .map_or(0, |(high, low)| high - low + 1);
        Tally {
            missing: span - self.tally.unique,
            ..self.tally.clone()
        }
    }
}

impl Group {
    /// `None` only if the histogram's bounds were invalid, and they are constants.
    pub(super) fn new(name: &str) -> Option<Self> {
        let times = Mutex::new(Times::new()?);
        Some(Self {
            name: name.to_owned(),
            times,
        })
    }

    pub(super) fn arrived(&self, mark: BenchMark, first: bool, at_us: u64) {
        let mut times = self.times();
        if first {
            times
                .latency
                .saturating_record(at_us.saturating_sub(mark.sent_us).max(1));
        }
        *times.seconds.entry(at_us / 1_000_000).or_default() += 1;
        times.first_us = times.first_us.min(at_us);
        times.last_us = times.last_us.max(at_us);
    }

    pub(super) fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Times {
    pub(super) fn new() -> Option<Self> {
        let latency = Histogram::new_with_bounds(1, HOUR_US, 3).ok()?;
        Some(Self {
            latency,
            seconds: BTreeMap::new(),
            first_us: u64::MAX,
            last_us: 0,
        })
    }

    pub(super) fn clear(&mut self) {
        self.latency.reset();
        self.seconds.clear();
        (self.first_us, self.last_us) = (u64::MAX, 0);
    }

    pub(super) fn add(&mut self, other: &Self) {
        // Both have the same bounds, so that every value fits.
        let _ = self.latency.add(&other.latency);
        for (second, count) in &other.seconds {
            *self.seconds.entry(*second).or_default() += count;
        }
        self.first_us = self.first_us.min(other.first_us);
        self.last_us = self.last_us.max(other.last_us);
    }

    pub(super) fn fill(&self, tally: &mut Tally) {
        if self.seconds.is_empty() {
            return;
        }
        let ms = |us: u64| us as f64 / 1000.0;
        let at = |quantile| ms(self.latency.value_at_quantile(quantile));
        tally.latency = Some(Latency {
            orders: self.latency.len(),
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: ms(self.latency.max()),
        });
        tally.first_arrival_us = Some(self.first_us);
        tally.last_arrival_us = Some(self.last_us);
    }

    pub(super) fn per_second(&self) -> Vec<u64> {
        let (Some((first, _)), Some((last, _))) = (
            self.seconds.first_key_value(),
            self.seconds.last_key_value(),
        ) else {
            return Vec::new();
        };
        // A clock that was set back or forward must not fill the memory.
        let last = (*last).min(first + 86_400);
        (*first..=last)
            .map(|second| self.seconds.get(&second).copied().unwrap_or(0))
            .collect()
    }
}

impl Tally {
    /// Adds the counts; times are the group's.
    pub(super) fn add(&mut self, other: &Self) {
        self.arrived += other.arrived;
        self.unique += other.unique;
        self.duplicated += other.duplicated;
        self.repeated += other.repeated;
        self.out_of_order += other.out_of_order;
        self.taken_out_of_order += other.taken_out_of_order;
        self.missing += other.missing;
        self.bad_body += other.bad_body;
    }
}

#[derive(Debug, Default)]
struct Bitmap(Vec<u64>);

impl Bitmap {
    /// True when it was not in yet.
    fn insert(&mut self, bit: u64) -> bool {
        let (word, mask) = Self::place(bit);
        if word >= self.0.len() {
            self.0.resize((word + 1).next_power_of_two(), 0);
        }
        let new = self.0[word] & mask == 0;
        self.0[word] |= mask;
        new
    }

    fn contains(&self, bit: u64) -> bool {
        let (word, mask) = Self::place(bit);
        self.0.get(word).is_some_and(|bits| bits & mask != 0)
    }

    fn place(bit: u64) -> (usize, u64) {
        ((bit / 64) as usize, 1 << (bit % 64))
    }
}

#[cfg(test)]
mod tests {
    use super::super::bench_body;
    use super::*;

    fn judged(arrivals: &[(u64, bool)]) -> Tally {
        let mut seen = Seen::default();
        for (seq, taken) in arrivals {
            assert!(seen.judge(&bench_body(*seq, 1, 100), *taken).is_some());
        }
        seen.tally()
    }

    #[test]
    fn all_once_and_in_order() {
        let orders: Vec<_> = (1..=1000).map(|seq| (seq, true)).collect();
        let expected = Tally {
            arrived: 1000,
            unique: 1000,
            ..Tally::default()
        };
        assert_eq!(judged(&orders), expected);
    }

    #[test]
    fn duplicates_are_told_from_repeats() {
        let tally = judged(&[(0, false), (0, false), (0, true), (0, true), (0, false)]);
        let expected = Tally {
            arrived: 5,
            unique: 1,
            repeated: 2,
            duplicated: 2,
            ..Tally::default()
        };
        assert_eq!(tally, expected);
    }

    #[test]
    fn order_is_judged_by_arriving_and_by_taking() {
        let taken = |seq| (seq, true);
        let tally = judged(&[taken(0), taken(3), taken(1), taken(2), taken(4), taken(1)]);
        assert_eq!((tally.out_of_order, tally.taken_out_of_order), (2, 2));
        // 1 was refused, overtaken by 2, and taken at its second arrival.
        let tally = judged(&[taken(0), (1, false), taken(2), taken(1)]);
        assert_eq!((tally.out_of_order, tally.taken_out_of_order), (0, 1));
    }

    #[test]
    fn gaps_and_bad_bodies_are_counted() {
        assert_eq!(judged(&[(10, true), (14, true), (11, true)]).missing, 2);
        let mut seen = Seen::default();
        assert!(seen.judge(b"{}", true).is_none());
        assert!(seen.judge(&bench_body(MAX_SEQ, 1, 100), true).is_none());
        assert_eq!(
            seen.tally(),
            Tally {
                bad_body: 2,
                ..Tally::default()
            }
        );
    }

    #[test]
    fn times_of_groups_add_up() {
        let (a, b) = (Group::new("a").unwrap(), Group::new("b").unwrap());
        for at in 0..1000 {
            let mark = BenchMark {
                seq: at,
                sent_us: 10_000_000,
            };
            a.arrived(mark, true, 10_001_000);
            b.arrived(mark, at < 500, 12_000_000);
        }
        let mut sum = Times::new().unwrap();
        sum.add(&a.times());
        sum.add(&b.times());
        assert_eq!(sum.per_second(), [1000, 0, 1000]);
        let mut tally = Tally::default();
        sum.fill(&mut tally);
        let latency = tally.latency.unwrap();
        assert_eq!(latency.orders, 1500);
        assert!((latency.p50_ms - 1.0).abs() < 0.01, "{latency:?}");
        assert!((latency.p90_ms - 2000.0).abs() < 2.0, "{latency:?}");
        assert_eq!(
            (tally.first_arrival_us, tally.last_arrival_us),
            (Some(10_001_000), Some(12_000_000))
        );
    }
}
