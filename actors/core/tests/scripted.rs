//! Scripted merchants, one a file in `tests/adaptive`: the adaptive limit has to end up in a band.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use expediter_core::merchant::{Ended, MerchantMachine, Next, Offer};
use expediter_core::quota::Quotas;
use expediter_types::{AttemptClass, Breaker, Idempotency, Merchant, MerchantId, Now, Priority};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Script {
    min: u32,
    max: u32,
    seconds: u64,
    latency_ms: f64,
    knee: Option<f64>,
    twice_at: Option<f64>,
    refuses_above: Option<usize>,
    fails_above: Option<usize>,
    #[serde(default)]
    slow_from_s: u64,
    #[serde(default)]
    slow_until_s: u64,
    #[serde(default = "ten")]
    slow_times: f64,
    /// Latencies are spread as waits for chance events are, around `latency_ms`.
    #[serde(default)]
    erratic: bool,
    band: Band,
}

fn ten() -> f64 {
    10.0
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Band {
    low: f64,
    high: f64,
    /// Share of the best throughput inside the merchant's limits.
    used: f64,
}

impl Script {
    fn latency(&self, in_flight: usize, now: u64) -> f64 {
        let load = in_flight as f64;
        let slow = (self.slow_from_s..self.slow_until_s).contains(&(now / 1_000_000));
        let knee = self.knee.map_or(1.0, |knee| (load / knee).max(1.0));
        let grows = self.twice_at.map_or(1.0, |twice| 1.0 + load / twice);
        self.latency_ms * knee * grows * if slow { self.slow_times } else { 1.0 }
    }

    fn best_a_second(&self) -> f64 {
        let most = self.knee.unwrap_or(f64::from(self.max));
        let bound = self.refuses_above.or(self.fails_above);
        bound.map_or(most, |bound| bound as f64) * 1_000.0 / self.latency_ms
    }
}

/// What the second half of a run was like.
struct Seen {
    in_flight: f64,
    delivered_a_second: f64,
}

fn run(script: &Script) -> Seen {
    let mut spec = Merchant::to(MerchantId::new("m").unwrap(), "http://m.example/");
    spec.limits.concurrency = script.max;
    spec.limits.min_concurrency = Some(script.min);
    spec.limits.mailbox = 10_000;
    spec.adapter.idempotency = Idempotency::Native;
    spec.breaker = Breaker {
        consecutive: 0,
        min_samples: 0,
        ..Breaker::default()
    };
    let mut machine = MerchantMachine::new(spec.shared(), 0, Quotas::default(), None);
    let mut now = Now {
        mono: 0,
        wall: 1_700_000_000_000,
    };
    let (mut seq, mut random) = (0, 7_u64);
    // When it ends, which order, since when, how.
    let mut wire: BTreeSet<(u64, u64, u64, bool)> = BTreeSet::new();
    let half = script.seconds * 500_000;
    let (mut area, mut delivered) = (0.0, 0);
    while now.mono < script.seconds * 1_000_000 {
        while machine.len() < machine.concurrency() as usize + 20 {
            seq += 1;
            machine.offer(Offer {
                seq,
                key: None,
                deadline: now.wall + 86_400_000,
                priority: Priority::Normal,
                attempts: 0,
                first_attempt: None,
                ambiguous: false,
                returns: machine.returns(),
            });
        }
        let mut wake = u64::MAX;
        loop {
            match machine.next(now) {
                Next::Start(seq) => {
                    machine.start(seq, now).unwrap();
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    let uniform = (random >> 40) as f64 / f64::from(1 << 24);
                    let noise = match script.erratic {
                        true => -(1.0 - uniform).ln(),
                        false => 0.9 + uniform * 0.2,
                    };
                    let load = wire.len() + 1;
                    let refused = script.refuses_above.is_some_and(|most| load > most);
                    let fails =
                        script.fails_above.is_some_and(|most| load > most) && random >> 63 == 1;
                    let latency = if refused {
                        1.0
                    } else {
                        script.latency(load, now.mono) * noise
                    };
                    let ends = now.mono + (latency * 1_000.0) as u64;
                    wire.insert((ends, seq, now.mono, !refused && !fails));
                }
                Next::At(at) => {
                    wake = at;
                    break;
                }
                Next::Idle => break,
            }
        }
        let answered = wire.first().map_or(u64::MAX, |(ends, ..)| *ends);
        let next = wake.min(answered).max(now.mono + 1);
        if now.mono >= half {
            area += wire.len() as f64 * (next - now.mono) as f64;
        }
        now = Now {
            mono: next,
            wall: 1_700_000_000_000 + next / 1_000,
        };
        while let Some((_, seq, since, good)) = wire.first().copied().filter(|w| w.0 <= now.mono) {
            wire.pop_first();
            let refused = !good && script.refuses_above.is_some();
            let class = match good {
                true => AttemptClass::Delivered,
                false if refused => AttemptClass::RateLimited,
                false => AttemptClass::Retry,
            };
            let retry_after = refused.then_some(Duration::from_millis(5));
            let took = Duration::from_micros(now.mono - since);
            machine.answer(
                seq,
                1,
                Ended {
                    class,
                    retry_after,
                    absent: false,
                    took,
                },
                now,
                random,
            );
            delivered += u32::from(good && now.mono >= half);
        }
        machine.take_effects();
        machine.check();
    }
    let seconds = (now.mono - half) as f64 / 1_000_000.0;
    Seen {
        in_flight: area / seconds / 1_000_000.0,
        delivered_a_second: f64::from(delivered) / seconds,
    }
}

#[test]
fn the_limit_ends_up_where_the_merchant_can_bear_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/adaptive");
    let mut scripts = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let script: Script = toml::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let seen = run(&script);
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let used = seen.delivered_a_second / script.best_a_second();
        eprintln!(
            "{name}: {:.1} in flight, {:.0} % used",
            seen.in_flight,
            used * 100.0
        );
        let Band {
            low,
            high,
            used: least,
        } = script.band;
        assert!(
            (low..=high).contains(&seen.in_flight),
            "{name}: {:.1} in flight",
            seen.in_flight
        );
        assert!(used >= least, "{name}: {:.0} % of the best", used * 100.0);
        scripts += 1;
    }
    assert!(scripts >= 8, "only {scripts} scripts were found");
}
