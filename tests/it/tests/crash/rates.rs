//! A rate, measured at the merchant over a minute in which its owner is killed twice.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use expediter_harness::{NodeProcess, World, eventually};

const RATE: f64 = 50.0;
const BURST: u32 = 5;
/// An attempt that was late on its way makes the next one look early, in seconds.
const LATE: f64 = 0.05;
const SOON: Duration = Duration::from_secs(15);

/// When orders arrived, in seconds.
fn arrivals(world: &World) -> Vec<f64> {
    let arrivals = world.fleet.arrivals("luigis");
    let mut times: Vec<f64> = arrivals.iter().map(|a| a.at_us as f64 / 1e6).collect();
    times.sort_by(f64::total_cmp);
    times
}

fn now() -> Result<f64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(now.as_secs_f64())
}

/// From the first arrival after `begin` to `end` at least 97 % of the rate is used.
fn used(times: &[f64], begin: f64, end: f64) -> Result<()> {
    let within: Vec<f64> = times
        .iter()
        .copied()
        .filter(|at| (begin..end).contains(at))
        .collect();
    let first = within.first().context("nothing arrived")?;
    let share = within.len() as f64 / (RATE * (end - first));
    println!(
        "{:.2} s after the start; then {:.1} % of the rate over {:.1} s",
        first - begin,
        share * 100.0,
        end - first
    );
    ensure!(share >= 0.97, "only {share:.3} of the rate was used");
    Ok(())
}

/// In no window there are more than the burst and the rate allow.
fn holds(times: &[f64]) -> Result<()> {
    let mut most = f64::MIN;
    for (first, start) in times.iter().enumerate() {
        for (count, end) in times[first..].iter().enumerate() {
            most = most.max((count + 1) as f64 - RATE * (end - start));
        }
    }
    println!("at most {most:.1} more than the rate, {BURST} are allowed");
    ensure!(
        most <= f64::from(BURST) + RATE * LATE,
        "{most:.1} more than the rate allows"
    );
    Ok(())
}

async fn owns(node: &NodeProcess) -> Result<bool> {
    Ok(node.metric("expediter_partitions_owned").await? > 0.0)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: just test-long"]
async fn long_a_rate_holds_over_a_kill_and_a_takeover() -> Result<()> {
    let world = World::with(1).await?;
    let mut first = world.node("first").start().await?;
    let mut merchant = world.merchant("luigis");
    merchant.limits.rates = vec!["50/s".parse().map_err(anyhow::Error::msg)?];
    merchant.limits.burst = BURST;
    world.register(&merchant).await?;
    let begun = now()?;
    world.publish("luigis", 5_000).await?;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let killed = now()?;
    first.kill9();
    // What was under way when it died may still arrive.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let restarted = now()?;
    first.restart().await?;
    tokio::time::sleep(Duration::from_secs(20)).await;

    let second = world.node("second").start().await?;
    // It may be handed over to the second one.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let nodes = [first, second];
    let owner = eventually("one of them owns it", SOON, async || {
        let owners = [owns(&nodes[0]).await?, owns(&nodes[1]).await?];
        Ok(match owners {
            [true, false] => Some(0),
            [false, true] => Some(1),
            _ => None,
        })
    })
    .await?;
    let killed_again = now()?;
    nodes[owner].kill9();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let taken = now()?;
    tokio::time::sleep(Duration::from_secs(25)).await;
    let end = now()?;

    let times = arrivals(&world);
    ensure!(times.len() < 5_000, "the backlog was not long enough");
    holds(&times)?;
    used(&times, begun, killed)?;
    used(&times, restarted, killed_again.min(restarted + 20.0))?;
    used(&times, taken, end)?;
    merchant.limits.rates.clear();
    world.register(&merchant).await?;
    world.settled(SOON).await?;
    world.oracle().after_crashes().judge().await?;
    nodes[1 - owner].check(&["lease"]).await
}
