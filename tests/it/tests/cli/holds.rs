//! Pause, drain, resume, opening hours, cancel, quotas and priorities, through the CLI on a live node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use expediter_fleet::merchants::Behaviour;
use expediter_harness::{NewOrder, World, eventually};
use expediter_types::{DeadReason, Hours, OpenRange, OutcomeKind};

use super::{CONFLICT, FAILED, NOT_FOUND, OK, USAGE, run};

const SOON: Duration = Duration::from_secs(10);

/// A merchant that takes so long.
fn after(latency: Duration) -> Behaviour {
    Behaviour {
        latency,
        ..Behaviour::default()
    }
}

/// A paused merchant keeps what comes, over a kill of its node, and goes on when it is told to.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_keeps_the_backlog_over_a_kill() -> Result<()> {
    let world = World::start().await?;
    let mut node = world.node("node").start().await?;
    world.register(&world.merchant("luigis")).await?;
    world.register(&world.merchant("marios")).await?;
    world.publish("luigis", 5).await?;
    world.settled(SOON).await?;

    let pause = ["merchant", "pause", "luigis"];
    run(&world, &pause)
        .await?
        .exits(USAGE)?
        .tells(&["--reason"])?;
    let pause = [&pause[..], &["--reason", "kitchen fire", "--actor", "ann"]].concat();
    run(&world, &pause)
        .await?
        .exits(OK)?
        .says(&["paused", "luigis"])?;
    // Also of one that has never had an order.
    world.register(&world.merchant("new")).await?;
    let pause_new = ["merchant", "pause", "new", "--reason", "not ready yet"];
    run(&world, &pause_new).await?.exits(OK)?;
    for verb in ["show", "explain"] {
        let told = run(&world, &["merchant", verb, "new"]).await?.exits(OK)?;
        told.says(&["paused", "not ready yet"])?;
    }
    world.publish("luigis", 20).await?;
    world.publish("marios", 20).await?;
    world.arrived("marios", 20, SOON).await?;
    let shown = run(&world, &["merchant", "show", "luigis"])
        .await?
        .exits(OK)?;
    shown.says(&["paused", "ann", "kitchen fire"])?;

    node.kill9();
    node.restart().await?;
    world.publish("luigis", 5).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(
        world.fleet.arrivals("luigis").len() == 5,
        "sent while paused"
    );

    let resume = ["merchant", "resume", "luigis", "--reason", "it is out"];
    run(&world, &resume)
        .await?
        .exits(OK)?
        .says(&["resumed", "luigis"])?;
    world.settled(SOON).await?;
    let again = run(&world, &resume).await?.exits(OK)?;
    again.says(&["unchanged"])?.tells(&["nothing holds it"])?;
    let audit = run(&world, &["audit", "--merchant", "luigis", "--json"]).await?;
    let verbs: Vec<_> = audit.objects()?.iter().map(|r| r["verb"].clone()).collect();
    ensure!(verbs == ["merchant.pause", "merchant.resume"], "{verbs:?}");
    let verdict = world.oracle().after_crashes().judge().await?;
    ensure!(verdict.delivered == 50, "{verdict:?}");
    node.check(&[]).await
}

/// A group is drained: what is in flight ends, nothing more is sent, no other group is touched.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_drained() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    world
        .fleet
        .set("slow", after(Duration::from_millis(1_500)))?;
    for id in ["slow", "twin", "other"] {
        let mut merchant = world.merchant(id);
        if id != "other" {
            merchant.group = "sandwiches".to_owned();
        }
        world.register(&merchant).await?;
    }
    world.publish("slow", 10).await?;
    world.arrived("slow", 10, SOON).await?;
    let drain = [
        "merchant",
        "drain",
        "--group",
        "sandwiches",
        "--reason",
        "an upgrade",
    ];
    let drained = run(&world, &drain).await?.exits(OK)?;
    drained.says(&["drained", "group sandwiches"])?;
    let answered = world.fleet.arrivals("slow");
    ensure!(
        answered.iter().all(|a| a.answered.is_some()),
        "{answered:?}"
    );
    for id in ["slow", "twin", "other"] {
        world.publish(id, 10).await?;
    }
    world.arrived("other", 10, SOON).await?;
    ensure!(
        world.fleet.arrivals("twin").is_empty(),
        "a drained group is sent orders"
    );
    let unknown = ["merchant", "pause", "--group", "pizza", "--reason", "x"];
    run(&world, &unknown)
        .await?
        .exits(NOT_FOUND)?
        .tells(&["pizza"])?;
    let shown = run(&world, &["merchant", "show", "twin"])
        .await?
        .exits(OK)?;
    shown.says(&["draining", "group", "an upgrade"])?;
    run(&world, &["merchant", "resume", "--group", "sandwiches"])
        .await?
        .exits(OK)?;
    world.settled(SOON).await?;
    let verdict = world.oracle().judge().await?;
    ensure!(verdict.delivered == 40, "{verdict:?}");
    node.check(&[]).await
}

/// Outside its hours a merchant gets nothing; when they open it, it gets everything.
#[tokio::test(flavor = "multi_thread")]
async fn orders_wait_for_the_opening_hours() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let mut merchant = world.merchant("lunch");
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    let minute = u16::try_from(now.hour())? * 60 + u16::try_from(now.minute())?;
    let later = (minute + 120) % 1_440;
    let today = OpenRange {
        days: 0b111_1111,
        from: later,
        to: (later + 60) % 1_440,
    };
    merchant.hours = Some(Arc::new(Hours {
        zone_name: "UTC".to_owned(),
        zone: jiff::tz::TimeZone::UTC,
        open: vec![today],
    }));
    world.register(&merchant).await?;
    world.publish("lunch", 10).await?;
    super::merchants::waiting(&world, "lunch", 10).await?;
    let shown = run(&world, &["merchant", "show", "lunch"])
        .await?
        .exits(OK)?;
    shown.says(&["outside its hours, opens"])?;
    ensure!(world.fleet.arrivals("lunch").is_empty());
    merchant.hours = None;
    world.register(&merchant).await?;
    world.settled(SOON).await?;
    let verdict = world.oracle().judge().await?;
    ensure!(verdict.delivered == 10, "{verdict:?}");
    node.check(&[]).await
}

/// It opens by itself when its clock, not ours, says so.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: just test-long"]
async fn long_a_merchant_opens_by_its_clock() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let mut merchant = world.merchant("thali");
    let zone = jiff::tz::TimeZone::get("Asia/Kolkata")?;
    let now = jiff::Timestamp::now().to_zoned(zone.clone());
    let minute = u16::try_from(now.hour())? * 60 + u16::try_from(now.minute())?;
    let opens = (minute + 2) % 1_440;
    merchant.hours = Some(Arc::new(Hours {
        zone_name: "Asia/Kolkata".to_owned(),
        zone,
        open: vec![OpenRange {
            days: 0b111_1111,
            from: opens,
            to: (opens + 60) % 1_440,
        }],
    }));
    world.register(&merchant).await?;
    world.publish("thali", 10).await?;
    let left = 120 - now.second() - 5;
    tokio::time::sleep(Duration::from_secs(u64::try_from(left)?)).await;
    ensure!(world.fleet.arrivals("thali").is_empty(), "before it opens");
    world.arrived("thali", 10, SOON).await?;
    node.check(&[]).await
}

/// An order is taken back from the store and from a mailbox; one in flight is not.
#[tokio::test(flavor = "multi_thread")]
async fn orders_are_cancelled_until_they_are_sent() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    world.fleet.set("slow", after(Duration::from_secs(2)))?;
    let mut slow = world.merchant("slow");
    slow.limits.concurrency = 1;
    slow.limits.mailbox = 4;
    world.register(&slow).await?;
    let mut orders = world.publish("slow", 30).await?;
    // Published at once, they are sent as the log has them.
    orders.sort_unstable_by_key(|order| order.seq);
    world.arrived("slow", 1, SOON).await?;
    let cancel = async |id: &str| {
        let args = [
            "order",
            "cancel",
            id,
            "--merchant",
            "slow",
            "--reason",
            "guest left",
        ];
        run(&world, &args).await
    };
    cancel(&orders[0].id)
        .await?
        .exits(CONFLICT)?
        .tells(&["too late"])?;
    for place in [2, 20, 29] {
        let id = &orders[place].id;
        cancel(id).await?.exits(OK)?.says(&["cancelled", id])?;
        cancel(id)
            .await?
            .exits(CONFLICT)?
            .tells(&["ended before"])?;
    }
    cancel("nobody")
        .await?
        .exits(NOT_FOUND)?
        .tells(&["nobody"])?;
    let shown = run(
        &world,
        &["order", "show", &orders[20].id, "--merchant", "slow"],
    )
    .await?;
    shown.exits(OK)?.says(&["cancelled", "guest left"])?;
    world.fleet.set("slow", Behaviour::fast())?;
    world.settled(Duration::from_secs(20)).await?;
    let verdict = world
        .oracle()
        .allow("slow", OutcomeKind::Cancelled)
        .judge()
        .await?;
    ensure!(verdict.delivered == 27, "{verdict:?}");
    node.check(&[]).await
}

/// Beyond its quota a merchant's orders end at once, and nobody else's do.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_backlog_ends_what_comes_on_top() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let mut full = world.merchant("full");
    full.limits.backlog = Some(50);
    world.register(&full).await?;
    world.register(&world.merchant("other")).await?;
    let pause = ["merchant", "pause", "full", "--reason", "a test"];
    run(&world, &pause).await?.exits(OK)?;
    world.publish("full", 70).await?;
    world.publish("other", 70).await?;
    world.arrived("other", 70, SOON).await?;
    run(&world, &["merchant", "resume", "full"])
        .await?
        .exits(OK)?;
    let outcomes = world.settled(SOON).await?;
    let kind = OutcomeKind::DeadLettered(DeadReason::BacklogFull);
    let dead = outcomes.dead().count();
    ensure!(dead == 20, "{dead} dead letters");
    let verdict = world.oracle().allow("full", kind).judge().await?;
    ensure!(verdict.delivered == 120, "{verdict:?}");
    node.check(&["order dead-lettered"]).await
}

/// An urgent order goes before a backlog that is there; low ones get their share all the same.
#[tokio::test(flavor = "multi_thread")]
async fn urgent_orders_pass_a_backlog() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let mut merchant = world.merchant("busy");
    merchant.limits.rates = vec!["50/s".parse()?];
    merchant.limits.mailbox = 16;
    world.register(&merchant).await?;
    world.publish("busy", 400).await?;
    let publisher = world.publisher();
    let low = NewOrder::to("busy").header("Expediter-Priority", "low");
    publisher.send(low.id("low-1")).await?;
    let high = NewOrder::to("busy").header("Expediter-Priority", "high");
    let begun = Instant::now();
    publisher.send(high.id("high-1")).await?;
    let came = |id: &str| {
        world
            .fleet
            .arrivals("busy")
            .iter()
            .any(|a| a.order_id == id)
    };
    while !came("high-1") {
        ensure!(
            begun.elapsed() < Duration::from_secs(3),
            "the urgent order waits"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.settled(Duration::from_secs(20)).await?;
    let arrivals = world.fleet.arrivals("busy");
    let place = |id: &str| arrivals.iter().position(|a| a.order_id == id);
    ensure!(place("high-1") < Some(150), "{:?}", place("high-1"));
    ensure!(
        place("low-1") < Some(400),
        "low orders starve: {:?}",
        place("low-1")
    );
    node.check(&[]).await
}

/// A drain of one merchant waits for what is in flight, until it is told to stop.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_can_be_stopped_and_goes_on() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    world.fleet.set("hung", Behaviour::hung())?;
    let mut merchant = world.merchant("hung");
    merchant.adapter.timeout = Duration::from_secs(8);
    merchant.limits.concurrency = 2;
    world.register(&merchant).await?;
    world.publish("hung", 5).await?;
    world.arrived("hung", 2, SOON).await?;
    let url = world.broker().url();
    let drain = [
        "merchant", "drain", "hung", "--reason", "why", "--nats", &url,
    ];
    let mut stopped = super::command(world.dir())?;
    let child = stopped.args(drain).spawn()?;
    // Its record is written when the decision is in force; what follows is only waited for.
    eventually("the drain is recorded", SOON, async || {
        let audit = run(&world, &["audit", "--merchant", "hung", "--json"]).await?;
        Ok((!audit.exits(OK)?.objects()?.is_empty()).then_some(()))
    })
    .await?;
    super::signal(&child, "-INT")?;
    let output = tokio::time::timeout(Duration::from_secs(3), child.wait_with_output());
    let output = output.await.context("it goes on waiting")??;
    let told = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(FAILED), "{told}");
    ensure!(told.contains("it stays draining"), "{told}");
    let shown = run(&world, &["merchant", "show", "hung", "--json"]).await?;
    let shown = shown.exits(OK)?.object()?;
    ensure!(shown["status"]["state"] == "draining", "{shown}");

    run(&world, &["merchant", "drain", "hung", "--reason", "again"])
        .await?
        .exits(OK)?
        .says(&["drained", "hung"])?;
    let arrivals = world.fleet.arrivals("hung");
    ensure!(arrivals.len() == 2, "{arrivals:?}");
    let audit = run(&world, &["audit", "--merchant", "hung", "--json"]).await?;
    let verbs: Vec<_> = audit.objects()?.iter().map(|r| r["verb"].clone()).collect();
    ensure!(verbs == ["merchant.drain", "merchant.drain"], "{verbs:?}");
    node.check(&[]).await
}

/// What the platform has stopped by itself goes on too, of a group at once; what is held by another
/// decision does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_closed_merchants_is_resumed() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    for id in ["one", "two", "well"] {
        let refusing = if id == "well" { 201 } else { 401 };
        world.fleet.set(id, Behaviour::status(refusing))?;
        let mut merchant = world.merchant(id);
        merchant.group = "vendor".to_owned();
        world.register(&merchant).await?;
        world.publish(id, 3).await?;
    }
    let closed = |id: &'static str| {
        let world = &world;
        eventually("it is suspended", SOON, async move || {
            let shown = run(world, &["merchant", "explain", id]).await?.exits(OK)?;
            Ok(shown
                .out
                .contains("it refuses our credentials")
                .then_some(()))
        })
    };
    closed("one").await?;
    closed("two").await?;
    for id in ["one", "two"] {
        world.fleet.set(id, Behaviour::fast())?;
    }
    let resume = ["merchant", "resume", "--group", "vendor", "--json"];
    let resumed = run(&world, &resume).await?.exits(OK)?.object()?;
    ensure!(resumed["action"] == "resumed", "{resumed}");
    ensure!(
        resumed["merchants"] == serde_json::json!(["one", "two"]),
        "{resumed}"
    );
    world.settled(SOON).await?;
    let again = run(&world, &resume).await?.exits(OK)?.object()?;
    ensure!(again["action"] == "unchanged", "{again}");

    // A merchant's own resume does not end its group's pause, and does not say so.
    let pause = [
        "merchant",
        "pause",
        "--group",
        "vendor",
        "--reason",
        "an upgrade",
    ];
    run(&world, &pause).await?.exits(OK)?;
    world.publish("one", 1).await?;
    run(&world, &["merchant", "resume", "one"])
        .await?
        .exits(OK)?
        .says(&["unchanged"])?
        .tells(&["its group is held", "an upgrade"])?;
    run(&world, &["merchant", "explain", "one"])
        .await?
        .exits(OK)?
        .says(&["its group is paused", "merchant resume --group vendor"])?;
    run(&world, &["merchant", "resume", "--group", "vendor"])
        .await?
        .exits(OK)?;
    world.settled(SOON).await?;
    node.check(&["suspended"]).await
}
