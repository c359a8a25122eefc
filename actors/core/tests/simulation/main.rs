//! The seeded simulation: the machines of the product, run by a simulated runtime against a
//! simulated broker, store, registry and merchants, under faults, and judged by a shadow model.
//!
//! Everything follows from the seed. A failure prints the seed and how to replay it:
//! `EXPEDITER_SIM_SEED=<seed> cargo test -p expediter-core --test simulation promises -- --nocapture`
//! traces that one run; `EXPEDITER_SIM_SEEDS=<count>` tries more seeds than the default.

mod actor;
mod broker;
mod env;
mod fleet;
mod machine;
mod owner;
mod plan;
mod process;
mod records;
mod rng;
mod shadow;
mod store;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use env::Plant;
use world::{Summary, World};

/// Seeds of the default run, and steps of each.
const SEEDS: u64 = 128;
const STEPS: u64 = 2_500;
/// A planted fault is noticed within so many seeds.
const SEEDS_OF_A_PLANT: u64 = 1_024;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// What a run says when it fails.
fn outcome(seed: u64, plant: Option<Plant>, traced: bool) -> Result<Summary, String> {
    let steps = number("EXPEDITER_SIM_STEPS").unwrap_or(STEPS);
    let run = || World::new(seed, steps, plant, traced).run();
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "a panic without a text".to_owned())
    })
}

/// Runs these seeds on all cores until the first that `stops`.
fn search(
    seeds: std::ops::Range<u64>,
    plant: Option<Plant>,
    stops: impl Fn(&Result<Summary, String>) -> bool + Sync,
) -> (Summary, Vec<(u64, String)>) {
    let next = AtomicU64::new(seeds.start);
    let found: Mutex<(Summary, Vec<(u64, String)>)> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = outcome(seed, plant, false);
                    let mut found = found.lock().expect("no panic while it is held");
                    if stops(&outcome) {
                        next.store(seeds.end, Ordering::Relaxed);
                    }
                    match outcome {
                        Ok(summary) => {
                            found.0.published += summary.published;
                            found.0.sent += summary.sent;
                            found.0.epochs += summary.epochs;
                        }
                        Err(why) => found.1.push((seed, why)),
                    }
                }
            });
        }
    });
    found.into_inner().expect("no panic while it was held")
}

/// All promises, under every fault.
#[test]
fn promises_hold() {
    if let Some(seed) = number("EXPEDITER_SIM_SEED") {
        match outcome(seed, None, true) {
            Ok(summary) => return eprintln!("seed {seed}: {summary:?}"),
            Err(why) => panic!("seed {seed}: {why}"),
        }
    }
    let from = number("EXPEDITER_SIM_FROM").unwrap_or(0);
    let count = number("EXPEDITER_SIM_SEEDS").unwrap_or(SEEDS);
    let (summary, failures) = search(from..from + count, None, |_| false);
    for (seed, why) in &failures {
        eprintln!(
            "seed {seed}: {why}\n  replay: EXPEDITER_SIM_SEED={seed} cargo test -p expediter-core \
             --test simulation promises -- --nocapture"
        );
    }
    assert!(
        failures.is_empty(),
        "{} of {count} seeds failed",
        failures.len()
    );
    eprintln!("{count} seeds: {summary:?}");
    assert!(
        summary.sent > count && summary.published > count,
        "the runs did nothing: {summary:?}"
    );
}

/// A judge that says yes to everything proves nothing.
#[test]
fn planted_faults_are_noticed() {
    let plants = [
        (Plant::MarkAhead, "ORD-1"),
        (Plant::AnswerEarly, "ORD-1"),
        (Plant::SkipAttemptMarks, "ORD-3"),
        (Plant::ForgetKeys, "ORD-4"),
        (Plant::LosePuts, "ORD-1"),
        (Plant::IgnoreLease, "OWN-1"),
        (Plant::ForgetLimits, "RATE-1"),
        (Plant::ForgetSpent, "RATE-1"),
        (Plant::ForgetFinished, "ORD-1"),
        (Plant::LaunchTwice, "ORD-2"),
        (Plant::IgnoreHolds, "DUR-1"),
    ];
    for (plant, promise) in plants {
        let named = |outcome: &Result<Summary, String>| {
            outcome.as_ref().is_err_and(|why| why.starts_with(promise))
        };
        let (_, failures) = search(0..SEEDS_OF_A_PLANT, Some(plant), named);
        let noticed = failures.iter().any(|(_, why)| why.starts_with(promise));
        assert!(
            noticed,
            "{plant:?} is not noticed as {promise}: {failures:?}"
        );
    }
}
