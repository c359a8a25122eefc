//! `cluster status` and `doctor`: on a cluster that is well, and on one that is not.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream;
use expediter_fleet::merchants::Behaviour;
use expediter_harness::{World, eventually};
use expediter_types::{MerchantId, Partition};
use expediter_wire::subjects;

use super::{FAILED, NOT_FOUND, OK, USAGE, run};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_well() -> Result<()> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let world = World::configured(&format!("http: \"{port}\"\n")).await?;
    // Sizes and retention are the operators' to choose.
    let node = |name: &str| {
        let node = world.node(name).set_toml("nats.partitions", "4");
        node.set("nats.audit_retention", "120d")
    };
    let first = node("first").start().await?;
    let second = node("second").start().await?;
    world.register(&world.merchant("luigis")).await?;
    world.publish("luigis", 50).await?;
    world.settled(SOON).await?;
    let share = |owned: f64| 0.0 < owned && owned < 4.0;
    let owned = second.owns(SOON, share).await?;
    first.owns(SOON, |others| others + owned == 4.0).await?;

    let status = run(&world, &["cluster", "status"]).await?.exits(OK)?;
    status.says(&["first", "second", "ready", "running", "PARTITION"])?;
    let status = run(&world, &["cluster", "status", "--json"]).await?;
    let status = status.exits(OK)?.objects()?.pop().context("no object")?;
    let partitions = status["partitions"].as_array().context("no partitions")?;
    ensure!(partitions.len() == 4 && partitions.iter().all(|p| p["state"] == "running"));
    ensure!(status["nodes"][0]["node"] == "first" && status["last"] == 50);

    let monitor = format!("http://{port}");
    let well = ["doctor", "--monitor", &monitor, "--reconcile"];
    let well = run(&world, &well).await?.exits(OK)?;
    well.says(&[
        "syncs always",
        "8 streams as nodes make them",
        "first is ready",
        "second is ready",
        "nodes.clock",
        "all 4 partitions run",
        "1 merchant, none with a problem",
        "50 sequences",
        "50 finished, 0 waiting, 0 unaccounted",
    ])?;
    // One copy of the streams is a warning.
    let strict = ["doctor", "--monitor", &monitor, "--strict", "--json"];
    let strict = run(&world, &strict).await?.exits(FAILED)?;
    let warnings: Vec<_> = strict.objects()?;
    let warnings = warnings.iter().filter(|finding| finding["level"] != "ok");
    let checks: Vec<_> = warnings.map(|finding| finding["check"].clone()).collect();
    ensure!(checks == ["streams.replicas"], "{checks:?}");
    run(&world, &["doctor", "--monitor", "nats-1:8222"])
        .await?
        .exits(USAGE)?
        .tells(&["--monitor", "http://127.0.0.1:8222"])?;
    run(&world, &["doctor", "--since", "1h"])
        .await?
        .exits(USAGE)?
        .tells(&["--reconcile"])?;
    first.check(&[]).await?;
    second.check(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_named() -> Result<()> {
    let world = World::bare().await?;
    let nothing = run(&world, &["doctor"]).await?.exits(FAILED)?;
    nothing.says(&["streams.missing", "expediter serve"])?;

    world.make_streams(1).await?;
    let mut node = world.node("node").start().await?;
    world.fleet.set("luigis", Behaviour::status(401))?;
    world.register(&world.merchant("luigis")).await?;
    world.fleet.set("hung", Behaviour::hung())?;
    world.register(&world.merchant("hung")).await?;
    world.publish("luigis", 1).await?;
    let mut waiting = world.publish("hung", 3).await?;
    waiting.sort_by_key(|order| order.seq);
    eventually("the refusal is noticed", SOON, async || {
        let doctor = run(&world, &["doctor"]).await?;
        Ok(doctor
            .says(&["luigis refuses our credentials"])
            .ok()
            .map(drop))
    })
    .await?;
    let doctor = run(&world, &["doctor", "--reconcile"])
        .await?
        .exits(FAILED)?;
    doctor.says(&["merchant explain luigis", "4 waiting, 0 unaccounted"])?;

    // Somebody's own consumer, and an order that somebody purged.
    let context = jetstream::new(world.connection.client().clone());
    let orders = context.get_stream(subjects::ORDERS).await?;
    let strange = jetstream::consumer::pull::Config {
        durable_name: Some("reports".to_owned()),
        ..Default::default()
    };
    orders.create_consumer(strange).await?;
    node.kill9();
    let hung = subjects::orders(Partition(0), &MerchantId::new("hung")?);
    orders.purge().filter(hung).sequence(waiting[1].seq).await?;
    let silent = run(&world, &["doctor", "--reconcile"])
        .await?
        .exits(FAILED)?;
    silent.says(&[
        "nobody works on partitions 0",
        "nobody answers for partition 0",
    ])?;
    run(&world, &["cluster", "status"])
        .await?
        .exits(FAILED)?
        .tells(&["nobody works on 1 partition"])?;
    node.wipe_data()?;
    node.restart().await?;
    let lost = run(&world, &["doctor", "--reconcile"])
        .await?
        .exits(FAILED)?;
    lost.says(&[
        "the consumer reports, which is no node's",
        &format!("{} is not in ORDERS any more", waiting[0].seq),
        "1 of ",
    ])?;
    Ok(())
}

/// A partition whose owners crash three times takes orders and sends none, whoever works on it, until
/// an operator lets it go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_ends_its_owners_is_paused() -> Result<()> {
    let world = World::with(1).await?;
    let careful = |name: &str| world.node(name).set_toml("node.crash_limit", "3");
    let mut node = careful("first").start().await?;
    world.register(&world.merchant("luigis")).await?;
    world.publish("luigis", 1).await?;
    world.settled(SOON).await?;
    for _ in 0..2 {
        node.kill9();
        node.restart().await?;
    }
    world.publish("luigis", 1).await?;
    world.settled(SOON).await?;
    node.kill9();
    node.restart().await?;

    let late = world.publish("luigis", 1).await?;
    let status = run(&world, &["cluster", "status"]).await?.exits(OK)?;
    status.says(&["paused"])?;
    let doctor = run(&world, &["doctor"]).await?.exits(FAILED)?;
    doctor.says(&["partition 0 is paused at first", "cluster resume"])?;
    eventually("the alarm", SOON, async || {
        let alarm = node.metric("expediter_alarms{kind=\"partition_paused\"}");
        Ok((alarm.await? == 1.0).then_some(()))
    })
    .await?;
    let explain = ["order", "explain", &late[0].id, "--merchant", "luigis"];
    let explained = run(&world, &explain).await?.exits(OK)?;
    explained.says(&["its partition is paused", "cluster resume"])?;

    // A planned hand-over changes nothing about it.
    let second = careful("second").start().await?;
    node.terminate(SOON).await?;
    second.owns(SOON, |owned| owned == 1.0).await?;
    let arrived = world.fleet.merchant_stats("luigis").arrived;
    ensure!(arrived == 2, "{arrived} arrived");
    run(&world, &["cluster", "status"])
        .await?
        .says(&["second", "paused"])?;

    let resume = ["cluster", "resume", "0"];
    run(&world, &resume).await?.exits(USAGE)?;
    let none = ["cluster", "resume", "7", "--reason", "x"];
    run(&world, &none)
        .await?
        .exits(NOT_FOUND)?
        .tells(&["there is no partition 7"])?;
    let resume = [&resume[..], &["--reason", "memory", "--actor", "ann"]].concat();
    let resumed = run(&world, &resume).await?.exits(OK)?;
    resumed.says(&["partition 0 goes on"])?;
    world.settled(SOON).await?;
    let again = run(&world, &resume).await?.exits(OK)?;
    again.says(&["was not paused"])?;
    run(&world, &["audit", "--verb", "cluster.resume"])
        .await?
        .says(&["ann", "memory", "partition"])?;

    // What was let go on starts anew with the next owner.
    let third = careful("third").start().await?;
    second.terminate(SOON).await?;
    world.publish("luigis", 1).await?;
    world.settled(SOON).await?;
    third
        .check(&["the partition starts paused", "lease ended"])
        .await
}
