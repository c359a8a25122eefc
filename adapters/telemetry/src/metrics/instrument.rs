//! The kinds of metrics. Each update is one or two relaxed atomic additions: no lock, no lookup.

use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use expediter_core::invariants::Promise;

use super::label::Label;

/// How Prometheus is to read a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only rises, from 0 at the start of the process.
    Counter,
    /// Goes both ways.
    Gauge,
    /// Counts observations by size.
    Histogram,
}

impl Kind {
    /// The word of the exposition format.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A label's name and what produces all of its values.
#[derive(Debug, Clone, Copy)]
pub struct LabelSet {
    pub name: &'static str,
    /// `None`: one value, the same for the process's whole life.
    pub values: Option<fn() -> Vec<&'static str>>,
}

/// Anything that the catalogue can hold.
pub(super) trait Instrument {
    const KIND: Kind;
    const LABEL: Option<LabelSet> = None;

    fn empty() -> Self;

    /// Appends the samples; `labels` is without braces and may be empty.
    fn render(&self, out: &mut String, name: &str, labels: &str);
}

fn sample(out: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    // Writing to a String cannot fail.
    let _ = if labels.is_empty() {
        writeln!(out, "{name} {value}")
    } else {
        writeln!(out, "{name}{{{labels}}} {value}")
    };
}

/// Only rises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn inc(&self) {
        self.add(1);
    }

    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// For counts that are kept elsewhere; a smaller value than before is ignored.
    pub fn raise_to(&self, total: u64) {
        self.0.fetch_max(total, Ordering::Relaxed);
    }

    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Instrument for Counter {
    const KIND: Kind = Kind::Counter;

    fn empty() -> Self {
        Self::default()
    }

    fn render(&self, out: &mut String, name: &str, labels: &str) {
        sample(out, name, labels, self.get());
    }
}

/// A number of things, now.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn add(&self, delta: i64) {
        self.0.fetch_add(delta, Ordering::Relaxed);
    }

    pub fn inc(&self) {
        self.add(1);
    }

    pub fn dec(&self) {
        self.add(-1);
    }

    #[must_use]
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Instrument for Gauge {
    const KIND: Kind = Kind::Gauge;

    fn empty() -> Self {
        Self::default()
    }

    fn render(&self, out: &mut String, name: &str, labels: &str) {
        sample(out, name, labels, self.get());
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a microsecond in 100 days is near enough"
)]
fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// A length of time, now; told in seconds.
#[derive(Debug, Default)]
pub struct DurationGauge(AtomicU64);

impl DurationGauge {
    pub fn set(&self, value: Duration) {
        self.0.store(nanos(value), Ordering::Relaxed);
    }

    #[must_use]
    pub fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

impl Instrument for DurationGauge {
    const KIND: Kind = Kind::Gauge;

    fn empty() -> Self {
        Self::default()
    }

    fn render(&self, out: &mut String, name: &str, labels: &str) {
        sample(out, name, labels, seconds(self.0.load(Ordering::Relaxed)));
    }
}

/// A part of a whole, now.
#[derive(Debug, Default)]
pub struct ShareGauge(AtomicU64);

impl ShareGauge {
    /// Below 0 counts as 0, above 1 as 1.
    pub fn set(&self, share: f64) {
        self.0
            .store(share.clamp(0.0, 1.0).to_bits(), Ordering::Relaxed);
    }

    #[must_use]
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

impl Instrument for ShareGauge {
    const KIND: Kind = Kind::Gauge;

    fn empty() -> Self {
        Self::default()
    }

    fn render(&self, out: &mut String, name: &str, labels: &str) {
        sample(out, name, labels, self.get());
    }
}

/// Upper bound of the smallest bucket, in nanoseconds; each next one is twice as wide.
const FIRST: u64 = 100_000;
/// 0.1 ms, 0.2 ms, … 56 min; longer ones are in `+Inf` alone.
const BUCKETS: usize = 26;

/// Lengths of time, by powers of two.
#[derive(Debug)]
pub struct Histogram {
    /// Not cumulative; the last is for what exceeds all bounds.
    buckets: [AtomicU64; BUCKETS + 1],
    /// Nanoseconds.
    sum: AtomicU64,
}

impl Histogram {
    pub fn observe(&self, duration: Duration) {
        let nanos = nanos(duration);
        let power = nanos
            .div_ceil(FIRST)
            .max(1)
            .next_power_of_two()
            .trailing_zeros() as usize;
        self.buckets[power.min(BUCKETS)].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Observations so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets
            .iter()
            .map(|bucket| bucket.load(Ordering::Relaxed))
            .sum()
    }
}

impl Instrument for Histogram {
    const KIND: Kind = Kind::Histogram;

    fn empty() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS + 1],
            sum: AtomicU64::new(0),
        }
    }

    fn render(&self, out: &mut String, name: &str, labels: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        let bucket = format!("{name}_bucket");
        let mut total = 0;
        // `count` comes from the same reads, so that it agrees with the buckets under load.
        for (power, count) in self.buckets.iter().enumerate() {
            total += count.load(Ordering::Relaxed);
            let le = if power == BUCKETS {
                format!("{labels}{comma}le=\"+Inf\"")
            } else {
                format!("{labels}{comma}le=\"{}\"", seconds(FIRST << power))
            };
            sample(out, &bucket, &le, total);
        }
        let sum = seconds(self.sum.load(Ordering::Relaxed));
        sample(out, &format!("{name}_sum"), labels, sum);
        sample(out, &format!("{name}_count"), labels, total);
    }
}

/// One metric for each value of a label.
#[derive(Debug)]
pub struct Family<M, L> {
    members: Box<[(&'static str, M)]>,
    label: std::marker::PhantomData<fn(L)>,
}

impl<M, L: Label> Family<M, L> {
    /// The metric of that label value.
    #[must_use]
    pub fn of(&self, label: L) -> &M {
        &self.members[label.index()].1
    }
}

impl<M: Instrument, L: Label> Instrument for Family<M, L> {
    const KIND: Kind = M::KIND;
    const LABEL: Option<LabelSet> = Some(LabelSet {
        name: L::NAME,
        values: Some(L::values),
    });

    fn empty() -> Self {
        let members = L::values()
            .into_iter()
            .map(|value| (value, M::empty()))
            .collect();
        Self {
            members,
            label: std::marker::PhantomData,
        }
    }

    fn render(&self, out: &mut String, name: &str, labels: &str) {
        debug_assert!(labels.is_empty(), "families are not nested");
        for (value, member) in &self.members {
            member.render(out, name, &format!("{}=\"{value}\"", L::NAME));
        }
    }
}

/// Always 1; its label says which build runs.
#[derive(Debug)]
pub struct BuildInfo(String);

impl BuildInfo {
    pub(super) fn of(version: &str) -> Self {
        let clean = version
            .chars()
            .filter(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\\'));
        Self(clean.take(64).collect())
    }
}

impl Instrument for BuildInfo {
    const KIND: Kind = Kind::Gauge;
    const LABEL: Option<LabelSet> = Some(LabelSet {
        name: "version",
        values: None,
    });

    fn empty() -> Self {
        Self::of("")
    }

    fn render(&self, out: &mut String, name: &str, _labels: &str) {
        sample(out, name, &format!("version=\"{}\"", self.0), 1);
    }
}

/// Broken promises, as `expediter_core` counts them.
#[derive(Debug)]
pub struct Violations;

impl Instrument for Violations {
    const KIND: Kind = Kind::Counter;
    const LABEL: Option<LabelSet> = <Family<Counter, Promise> as Instrument>::LABEL;

    fn empty() -> Self {
        Self
    }

    fn render(&self, out: &mut String, name: &str, _labels: &str) {
        for promise in Promise::ALL {
            let labels = format!("{}=\"{}\"", Promise::NAME, promise.as_str());
            sample(
                out,
                name,
                &labels,
                expediter_core::invariants::violations(promise),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets_of(duration: Duration) -> Vec<u64> {
        let histogram = Histogram::empty();
        histogram.observe(duration);
        histogram
            .buckets
            .iter()
            .map(|bucket| bucket.load(Ordering::Relaxed))
            .collect()
    }

    #[test]
    fn an_observation_is_in_the_first_bucket_that_holds_it() {
        let cases = [
            (Duration::ZERO, 0),
            (Duration::from_nanos(FIRST), 0),
            (Duration::from_nanos(FIRST + 1), 1),
            (Duration::from_nanos(2 * FIRST), 1),
            (Duration::from_nanos(2 * FIRST + 1), 2),
            (Duration::from_nanos(FIRST << 25), 25),
            (Duration::from_nanos((FIRST << 25) + 1), BUCKETS),
            (Duration::MAX, BUCKETS),
        ];
        for (duration, bucket) in cases {
            let found = buckets_of(duration).iter().position(|&n| n == 1);
            assert_eq!(found, Some(bucket), "{duration:?}");
        }
    }

    #[test]
    fn a_counter_never_falls() {
        let counter = Counter::default();
        counter.raise_to(7);
        counter.raise_to(3);
        counter.inc();
        assert_eq!(counter.get(), 8);
    }

    #[test]
    fn a_version_cannot_break_the_format() {
        let mut out = String::new();
        BuildInfo::of("1.0\"\n\\x").render(&mut out, "b", "");
        assert_eq!(out, "b{version=\"1.0x\"} 1\n");
    }
}
