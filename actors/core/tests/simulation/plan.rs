//! What one seed tries: its own merchants, weights and faults, so that rare combinations occur.

use std::sync::Arc;
use std::time::Duration;

use expediter_core::partition::PartitionConfig;
use expediter_types::{
    Adapter, AttemptClass, Breaker, Hours, Idempotency, Limits, Merchant, MerchantId, OnPark,
    OpenRange, Ordering, Rate, Retry,
};

use crate::rng::Rng;

/// What can happen in a step, with how likely it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Partition,
    Actor,
    Store,
    Write,
    Read,
    ReadTail,
    Answer,
    Wait,
    Publish,
    Claim,
    Registry,
    Follow,
    Operate,
    Crash,
    Pause,
    HandOver,
    Late,
    Compact,
    Jump,
}

/// How a merchant's system behaves.
#[derive(Debug, Clone)]
pub(crate) struct Behaviour {
    /// Of [`AttemptClass::ALL`].
    pub(crate) classes: [u64; 10],
    /// Never answers, so often in a thousand.
    pub(crate) hangs: u64,
    /// Names a time to come back, so often in a thousand.
    pub(crate) asks_to_wait: u64,
    pub(crate) longest_wait: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) steps: u64,
    pub(crate) config: PartitionConfig,
    pub(crate) merchants: Vec<(Arc<Merchant>, Behaviour, Registered)>,
    pub(crate) processes: usize,
    pub(crate) weights: Vec<(Act, u64)>,
    /// Longest time between two steps, and longest wait, in microseconds.
    pub(crate) pace: u64,
    pub(crate) longest_wait: u64,
    /// In a thousand actor steps.
    pub(crate) panics: u64,
    /// In a thousand answers: the step panics on it whenever it is taken.
    pub(crate) poison: u64,
    /// In a thousand writes: acknowledgement lost, write lost, write late.
    pub(crate) undecided: [u64; 3],
    pub(crate) wipes: u64,
    pub(crate) repeats: u64,
    pub(crate) conflicts: u64,
    pub(crate) undecodable: u64,
    pub(crate) not_before: u64,
    pub(crate) deadlines: u64,
    /// Foreign messages between two of the partition, at most.
    pub(crate) gaps: u64,
    pub(crate) tail: bool,
    pub(crate) reads_again: bool,
    pub(crate) keys: u64,
    /// Orders that are not of normal priority, in a thousand.
    pub(crate) priorities: u64,
    pub(crate) jumps: bool,
    /// Merchants forget keys within the run.
    pub(crate) windows: bool,
    pub(crate) capacity: usize,
    pub(crate) look: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Registered {
    Already,
    Later,
    Never,
}

impl Plan {
    pub(crate) fn draw(rng: &mut Rng, steps: u64) -> Self {
        let jumps = rng.chance(150);
        let windows = !jumps && rng.chance(400);
        let count = rng.range(1, 6);
        let calm = rng.chance(250);
        let mut maybe = |likely: u64, high: u64| match rng.chance(likely) && !calm {
            true => rng.range(1, high),
            false => 0,
        };
        let weights = vec![
            (Act::Partition, 300),
            (Act::Actor, 300),
            (Act::Store, 160),
            (Act::Write, 160),
            (Act::Read, 60),
            (Act::ReadTail, 30),
            (Act::Answer, 160),
            (Act::Wait, 60),
            (Act::Publish, 60),
            (Act::Claim, 40),
            (Act::Registry, maybe(500, 12)),
            (Act::Follow, 30),
            (Act::Operate, maybe(500, 8)),
            (Act::Crash, maybe(700, 12)),
            (Act::Pause, maybe(500, 12)),
            (Act::HandOver, maybe(500, 10)),
            (Act::Late, 10),
            (Act::Compact, maybe(700, 20)),
            (Act::Jump, if jumps { 4 } else { 0 }),
        ];
        // Each seed favours some of it.
        let mut weights: Vec<(Act, u64)> = weights;
        for (_, weight) in &mut weights {
            if rng.chance(250) {
                *weight = (*weight * rng.range(1, 16)).div_ceil(4);
            }
        }
        let panics = if rng.chance(400) { rng.range(1, 60) } else { 0 };
        let poison = if rng.chance(150) { rng.range(1, 40) } else { 0 };
        let faulty = rng.chance(600) && !calm;
        let mut fault = |high| if faulty { rng.below(high) } else { 0 };
        let undecided = [fault(250), fault(250), fault(120)];
        Self {
            steps,
            config: config(rng),
            merchants: (0..count)
                .map(|n| merchant(rng, n, windows, calm))
                .collect(),
            processes: rng.range(1, 3) as usize,
            weights,
            pace: rng.skewed(4_000) + 1,
            longest_wait: *rng.pick(&[20_000, 500_000, 3_000_000, 20_000_000]),
            panics,
            poison,
            undecided,
            wipes: rng.below(600),
            repeats: rng.below(120),
            conflicts: rng.below(40),
            undecodable: rng.below(30),
            not_before: rng.below(150),
            deadlines: rng.below(300),
            gaps: *rng.pick(&[0, 3, 40, 4_000]),
            tail: rng.chance(500),
            reads_again: rng.chance(500),
            keys: rng.range(1, 5),
            priorities: if rng.chance(400) { rng.below(700) } else { 0 },
            jumps,
            windows,
            capacity: *rng.pick(&[10, 20, 1_000]),
            look: *rng.pick(&[0, 1, 4, 256]),
        }
    }
}

fn config(rng: &mut Rng) -> PartitionConfig {
    PartitionConfig {
        dead_letters: *rng.pick(&[1, 3, 1_000]),
        // A few orders, or all of them.
        window_bytes: *rng.pick(&[100, 1 << 20]),
        linger: *rng.pick(&[0, 1_000, 10_000]),
        group: *rng.pick(&[1, 4, 256]),
        spill_after: *rng.pick(&[100_000, 2_000_000]),
        mark_every: *rng.pick(&[500_000, 3_000_000]),
        unknown_grace: 20_000,
        idle_after: *rng.pick(&[1_000_000, 30_000_000]),
        repeats: 100_000,
        panics: rng.range(2, 5) as usize,
        panic_window: 60_000_000,
        unconfirmed: *rng.pick(&[3, 20, 10_000]),
        pinned: *rng.pick(&[5, 50, 20_000]),
        purge_worth: *rng.pick(&[1, 5, 500]),
    }
}

fn merchant(
    rng: &mut Rng,
    number: u64,
    windows: bool,
    calm: bool,
) -> (Arc<Merchant>, Behaviour, Registered) {
    let id = MerchantId::new(&format!("m{number}")).expect("a valid id");
    let mut spec = Merchant::to(id, "http://merchant.example/orders");
    spec.limits = limits(rng);
    let initial = *rng.pick(&[100, 500, 3_000]);
    spec.retry = Retry {
        initial: Duration::from_millis(initial),
        max: Duration::from_millis(initial * rng.range(1, 20)),
        multiplier: *rng.pick(&[1.0, 2.0, 4.0]),
        max_attempts: rng.range(1, 8) as u32,
        deadline: Duration::from_secs(*rng.pick(&[20, 600, 86_400])),
        margin: Duration::from_millis(*rng.pick(&[0, 1_000, 30_000])),
        budget: *rng.pick(&[0.0, 0.2, 10.0]),
        on_park: *rng.pick(&[OnPark::Continue, OnPark::Hold]),
    };
    spec.breaker = breaker(rng);
    spec.adapter = Adapter {
        timeout: Duration::from_secs(rng.range(1, 20)),
        idempotency: *rng.pick(&[
            Idempotency::Native,
            Idempotency::UniqueRef,
            Idempotency::Lookup,
            Idempotency::None,
        ]),
        idempotency_window: Duration::from_secs(match windows {
            true => *rng.pick(&[20, 60, 600]),
            false => 30 * 86_400,
        }),
        ..spec.adapter
    };
    if rng.chance(100) {
        spec.hours = Some(Arc::new(every_second_quarter()));
    }
    let mut classes = [0; 10];
    classes[0] = 40;
    if !calm {
        for class in &mut classes[1..] {
            *class = if rng.chance(400) { rng.below(12) } else { 0 };
        }
    }
    let behaviour = Behaviour {
        classes,
        hangs: if rng.chance(200) { rng.below(300) } else { 0 },
        asks_to_wait: if rng.chance(300) { rng.below(100) } else { 0 },
        longest_wait: *rng.pick(&[500, 5_000, 60_000]),
    };
    let registered = match rng.below(12) {
        0 => Registered::Later,
        1 => Registered::Never,
        _ => Registered::Already,
    };
    (spec.shared(), behaviour, registered)
}

/// None, one that paces, and up to two quotas besides.
fn rates(rng: &mut Rng) -> Vec<Rate> {
    if rng.chance(500) {
        return Vec::new();
    }
    let seconds = *rng.pick(&[1, 10]);
    let rate = |count: u64, seconds| Rate::new(count as u32, Duration::from_secs(seconds));
    let mut rates = Vec::from_iter(rate(rng.range(4, 60), seconds));
    for period in [30, 120] {
        if rng.chance(400) {
            rates.extend(rate(rng.range(16, 60), period));
        }
    }
    rates
}

fn breaker(rng: &mut Rng) -> Breaker {
    let open = *rng.pick(&[100, 1_000, 5_000]);
    Breaker {
        consecutive: *rng.pick(&[0, 2, 10]),
        ratio: *rng.pick(&[0.3, 0.7, 1.0]),
        min_samples: *rng.pick(&[0, 4, 20]),
        window: Duration::from_secs(*rng.pick(&[1, 60])),
        open: Duration::from_millis(open),
        max_open: Duration::from_millis(open * rng.range(1, 12)),
        probes: rng.range(1, 3) as u32,
    }
}

pub(crate) fn limits(rng: &mut Rng) -> Limits {
    let concurrency = rng.skewed(8) as u32 + 1;
    Limits {
        rates: rates(rng),
        burst: rng.skewed(8) as u32 + 1,
        concurrency,
        min_concurrency: rng
            .chance(300)
            .then(|| rng.range(1, u64::from(concurrency)) as u32),
        ordering: *rng.pick(&[Ordering::None, Ordering::Order, Ordering::Merchant]),
        mailbox: rng.skewed(12) as u32 + 1,
        backlog: rng.chance(100).then(|| rng.range(3, 60)),
    }
}

/// Open for a quarter of an hour, closed for the next.
fn every_second_quarter() -> Hours {
    let open = (0..48).map(|n| OpenRange {
        days: 0b111_1111,
        from: n * 30,
        to: n * 30 + 15,
    });
    Hours {
        zone_name: "UTC".into(),
        zone: jiff::tz::TimeZone::UTC,
        open: open.collect(),
    }
}

/// What every merchant says once the faults have ended.
pub(crate) fn healthy() -> Behaviour {
    let mut classes = [0; 10];
    classes[0] = 1;
    Behaviour {
        classes,
        hangs: 0,
        asks_to_wait: 0,
        longest_wait: 0,
    }
}

/// Surely not received.
pub(crate) fn surely_not(class: AttemptClass) -> bool {
    matches!(
        class,
        AttemptClass::Retry
            | AttemptClass::RateLimited
            | AttemptClass::Suspended
            | AttemptClass::Misconfigured
            | AttemptClass::Local
    )
}
