//! Two nodes: one joins, one leaves, one sleeps and wakes up, one has the wrong name.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use expediter_fleet::merchants::{Behaviour, RateLimit};
use expediter_harness::{Load, NewOrder, Outcomes, World, eventually};
use expediter_types::{DeadReason, OutcomeKind};
use expediter_wire::subjects::partition_of;

use super::shop;

const DRAIN: Duration = Duration::from_secs(30);
const PARTITIONS: u16 = 8;

async fn more_arrive(world: &World, more: u64) -> Result<()> {
    let before = world.fleet.stats().arrived;
    let flows = world
        .fleet
        .wait_until(DRAIN, |stats| stats.arrived >= before + more)
        .await;
    ensure!(flows, "no {more} orders arrive");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_joins_and_one_leaves() -> Result<()> {
    let all = f64::from(PARTITIONS);
    let world = World::with(PARTITIONS).await?;
    shop::open(&world).await?;
    let first = world.node("first").start().await?;
    let load = shop::rush(&world, 200);
    more_arrive(&world, 100).await?;
    let second = world.node("second").start().await?;
    let moved = second.owns(DRAIN, |owned| owned > 0.0).await?;
    first.owns(DRAIN, |owned| owned == all - moved).await?;
    more_arrive(&world, 200).await?;
    let code = first.terminate(Duration::from_secs(6)).await?;
    ensure!(code == 0, "exit code {code}");
    second.owns(DRAIN, |owned| owned == all).await?;
    more_arrive(&world, 200).await?;
    load.stop().await;
    world.settled(DRAIN).await?;
    // Planned: no repeats, nothing parked.
    println!("{:?}", world.oracle().judge().await?);
    first.check(&[]).await?;
    second.check(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_used_once() -> Result<()> {
    let world = World::start().await?;
    shop::open(&world).await?;
    let node = world.node("kitchen").start().await?;
    let load = shop::rush(&world, 100);
    more_arrive(&world, 50).await?;
    let double = world.node("kitchen").files("double").spawn()?;
    let code = double.wait_exit(DRAIN).await?;
    ensure!(code != 0, "the second kitchen ends as if all were well");
    let said = double.log();
    ensure!(
        !said.find("node name kitchen is in use").is_empty(),
        "unclear: {}",
        said.tail(5)
    );
    more_arrive(&world, 50).await?;
    load.stop().await;
    world.settled(DRAIN).await?;
    println!("{:?}", world.oracle().judge().await?);
    node.check(&[]).await
}

/// A node that was stopped longer than its lease is no owner any more, and learns it at its first
/// write.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_owner_wakes_up() -> Result<()> {
    let all = f64::from(PARTITIONS);
    let world = World::with(PARTITIONS).await?;
    shop::open(&world).await?;
    let sleeper = world.node("sleeper").start().await?;
    let other = world.node("other").start().await?;
    other.owns(DRAIN, |owned| owned > 0.0).await?;
    let had = sleeper
        .owns(DRAIN, |owned| owned > 0.0 && owned < all)
        .await?;
    let load = shop::rush(&world, 200);
    more_arrive(&world, 200).await?;
    sleeper.pause()?;
    other.owns(DRAIN, |owned| owned == all).await?;
    more_arrive(&world, 300).await?;
    // What the other has delivered for it.
    let done: HashSet<(String, String)> = world
        .fleet
        .all_arrivals()
        .into_iter()
        .filter(|arrival| arrival.is_answered_2xx())
        .map(|arrival| (arrival.merchant, arrival.order_id))
        .collect();
    let woke = world.fleet.all_arrivals().len();
    sleeper.resume()?;
    eventually("the sleeper is refused", DRAIN, async || {
        let fenced = sleeper.metric("expediter_fenced_total").await?;
        Ok((fenced >= 1.0).then_some(()))
    })
    .await?;
    // It comes back in order, and both share the work again.
    sleeper.owns(DRAIN, |owned| owned == had).await?;
    other.owns(DRAIN, |owned| owned == all - had).await?;
    more_arrive(&world, 200).await?;
    load.stop().await;
    world.settled(DRAIN).await?;
    println!("{:?}", world.oracle().after_crashes().judge().await?);
    let mut arrivals = world.fleet.all_arrivals();
    arrivals.sort_by_key(|arrival| arrival.at_us);
    let again = arrivals[woke..]
        .iter()
        .filter(|a| done.contains(&(a.merchant.clone(), a.order_id.clone())));
    let again: Vec<_> = again.collect();
    ensure!(again.is_empty(), "sent by who woke up: {again:?}");
    ensure!(sleeper.is_running() && other.is_running(), "a node ended");
    sleeper.check(&["claim stands"]).await?;
    other.check(&["lease ended"]).await
}

/// While partitions move to a node that joins, the others go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebalance_stops_nobody_else() -> Result<()> {
    /// Longer than any pause between two orders of a partition that stays, on a busy machine.
    const PAUSE: u64 = 1_500_000;
    let world = World::with(PARTITIONS).await?;
    // One for each partition.
    let mut steady = BTreeMap::new();
    for n in 0.. {
        let id = format!("steady-{n}");
        steady.entry(partition_of(&id, PARTITIONS)).or_insert(id);
        if steady.len() == usize::from(PARTITIONS) {
            break;
        }
    }
    for id in steady.values() {
        world.register(&world.merchant(id)).await?;
    }
    let _first = world.node("first").start().await?;
    let second = world.node("second").start().await?;
    second.owns(DRAIN, |owned| owned > 0.0).await?;
    let ids: Vec<String> = steady.values().cloned().collect();
    let load = Load::start(&world.publisher(), 160, move |n| {
        NewOrder::to(&ids[usize::try_from(n).unwrap_or(0) % ids.len()])
    });
    more_arrive(&world, 100).await?;
    let before = Outcomes::read(&world.connection).await?.claims().len();
    let third = world.node("third").start().await?;
    let moved = third.owns(DRAIN, |owned| owned > 0.0).await?;
    more_arrive(&world, 200).await?;
    load.stop().await;
    let outcomes = world.settled(DRAIN).await?;
    let taken: BTreeSet<_> = outcomes.claims()[before..]
        .iter()
        .map(|claim| claim.partition)
        .collect();
    ensure!(moved > 0.0 && taken.len() < steady.len(), "{taken:?} moved");
    for (partition, id) in steady.iter().filter(|(p, _)| !taken.contains(p)) {
        let mut times: Vec<u64> = world.fleet.arrivals(id).iter().map(|a| a.at_us).collect();
        times.sort_unstable();
        let longest = times.windows(2).map(|pair| pair[1] - pair[0]).max();
        ensure!(
            longest.is_some_and(|longest| longest < PAUSE),
            "partition {partition} stays, and paused for {longest:?} us"
        );
    }
    world.oracle().judge().await?;
    Ok(())
}

/// Another node, with nothing of the dead one's disk, knows how often orders were tried and which
/// merchants are closed until when.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_tried_and_closed_outlives_a_node_and_its_disk() -> Result<()> {
    const TRIES: u32 = 12;
    let world = World::with(1).await?;
    world.fleet.set("failing", Behaviour::status(503))?;
    let mut merchant = world.merchant("failing");
    merchant.retry.max_attempts = TRIES;
    merchant.retry.initial = Duration::from_millis(800);
    merchant.retry.max = Duration::from_millis(800);
    merchant.breaker.consecutive = 0;
    merchant.breaker.min_samples = 0;
    world.register(&merchant).await?;
    let limit = RateLimit {
        per_second: 0.001,
        retry_after: Duration::from_secs(600),
    };
    let away = Behaviour {
        rate_limit: Some(limit),
        ..Behaviour::fast()
    };
    world.fleet.set("away", away)?;
    let mut away = world.merchant("away");
    away.limits.concurrency = 1;
    world.register(&away).await?;
    let first = world.node("first").start().await?;
    let second = world.node("second").start().await?;
    let (owner, heir) = match first.owns(DRAIN, |owned| owned >= 0.0).await? > 0.0 {
        true => (first, second),
        false => (second, first),
    };
    world.publish("away", 3).await?;
    let failing = world.publish("failing", 1).await?;
    // A mark says so every three seconds.
    world.arrived("failing", 8, DRAIN).await?;
    owner.kill9();
    owner.wipe_data()?;
    let before = world.fleet.merchant_stats("failing").arrived;
    heir.owns(DRAIN, |owned| owned == 1.0).await?;
    let ended = eventually("it is given up", DRAIN, async || {
        let outcomes = expediter_harness::Outcomes::read(&world.connection).await?;
        Ok(outcomes.of(failing[0].seq).cloned())
    });
    let ended = ended.await?;
    let exhausted = OutcomeKind::DeadLettered(DeadReason::AttemptsExhausted);
    ensure!(ended.outcome.kind == exhausted, "{ended:?}");
    let all = world.fleet.merchant_stats("failing").arrived;
    // What was tried since the newest mark is tried again.
    let most = u64::from(TRIES) + 8;
    ensure!(
        before >= 8 && all <= most,
        "{all} attempts, {before} before"
    );
    ensure!(
        all - before < u64::from(TRIES),
        "the heir counted from its own beginning: {before}, then {all}"
    );
    let asked = world.fleet.merchant_stats("away");
    ensure!(asked.too_early == 0, "it asked for ten minutes: {asked:?}");
    heir.check(&["lease ended", "order dead-lettered"]).await
}

/// A process that lives did not crash, however often its lease ended: the partition is not paused.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_comes_back_did_not_crash() -> Result<()> {
    let world = World::with(1).await?;
    world.register(&world.merchant("luigis")).await?;
    let careful = |name: &str| world.node(name).set_toml("node.crash_limit", "2");
    let first = careful("first").start().await?;
    let second = careful("second").start().await?;
    for round in 0..3 {
        let (owner, heir) = match first.owns(DRAIN, |owned| owned >= 0.0).await? > 0.0 {
            true => (&first, &second),
            false => (&second, &first),
        };
        owner.pause()?;
        heir.owns(DRAIN, |owned| owned == 1.0).await?;
        owner.resume()?;
        // By rendezvous it goes back to its first owner, or stays.
        owner
            .wait_ready(DRAIN)
            .await
            .with_context(|| format!("round {round}"))?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    world.publish("luigis", 5).await?;
    world.settled(DRAIN).await?;
    for node in [&first, &second] {
        let said = node.log().find("the partition starts paused").len();
        ensure!(said == 0, "{} paused it", node.name());
    }
    Ok(())
}
