//! Dead letters and why orders wait, through the CLI on a live node.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use expediter_fleet::merchants::Behaviour;
use expediter_harness::{NewOrder, World};
use expediter_types::OutcomeKind;

use super::{CONFLICT, FAILED, NOT_FOUND, OK, USAGE, command, run, signal};

const SOON: Duration = Duration::from_secs(10);

/// Found, counted, shown, discarded; and sent again at a rate, behind what is fresh.
#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_and_sent_again() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let refusing = Behaviour {
        body: "no such dish".to_owned(),
        ..Behaviour::status(422)
    };
    world.fleet.set("picky", refusing)?;
    let mut picky = world.merchant("picky");
    picky.group = "pizza".to_owned();
    world.register(&picky).await?;
    world.register(&world.merchant("other")).await?;
    let orders = world.publish("picky", 30).await?;
    let publisher = world.publisher();
    let soon_over = NewOrder::to("picky").header("Expediter-Deadline", "3s");
    publisher.send(soon_over.id("soon-over")).await?;
    world.settled(SOON).await?;

    let listed = run(
        &world,
        &["deadletter", "list", "--group", "pizza", "--json"],
    )
    .await?;
    let listed = listed.exits(OK)?.objects()?;
    ensure!(listed.len() == 31, "{} listed", listed.len());
    ensure!(listed[0]["reason"] == "invalid" && listed[0]["state"] == "open");
    let counted = run(&world, &["deadletter", "list", "--count"])
        .await?
        .exits(OK)?;
    counted.says(&["picky", "invalid", "31"])?;
    for (choice, found) in [
        (["--reason", "ambiguous"], 0),
        (["--since", "1h"], 31),
        (["--until", "1h"], 0),
        (["--until", "2100-01-01T00:00:00Z"], 31),
    ] {
        let list = [&["deadletter", "list", "--json"], &choice[..]].concat();
        let listed = run(&world, &list).await?.exits(OK)?.objects()?;
        ensure!(listed.len() == found, "{choice:?}: {} listed", listed.len());
    }
    let wrong = ["deadletter", "list", "--since", "yesterday"];
    run(&world, &wrong)
        .await?
        .exits(USAGE)?
        .tells(&["yesterday", "2h", "RFC 3339"])?;
    let first = orders[0].id.as_str();
    let show = ["deadletter", "show", first, "--merchant", "picky"];
    let shown = run(&world, &show).await?.exits(OK)?;
    shown.says(&[
        "dead_lettered (invalid), open",
        "Entity: no such dish",
        "payload",
    ])?;

    let discard = ["deadletter", "discard", first, "--merchant", "picky"];
    run(&world, &discard)
        .await?
        .exits(USAGE)?
        .tells(&["--reason"])?;
    let discard = [&discard[..], &["--reason", "by phone", "--actor", "ann"]].concat();
    run(&world, &discard)
        .await?
        .exits(OK)?
        .says(&["discarded 1"])?;
    run(&world, &discard).await?.exits(NOT_FOUND)?;
    let shown = run(&world, &show).await?.exits(OK)?;
    shown.says(&["discarded", "ann", "by phone"])?;
    let many = [
        "deadletter",
        "discard",
        "--merchant",
        "picky",
        "--reason",
        "x",
    ];
    run(&world, &many)
        .await?
        .exits(USAGE)?
        .tells(&["30", "--yes", "--dry-run"])?;

    tokio::time::sleep(Duration::from_secs(3)).await;
    let replay = ["deadletter", "replay", "--merchant", "picky"];
    let plan = run(&world, &[&replay[..], &["--dry-run"]].concat())
        .await?
        .exits(OK)?;
    plan.says(&["left out: 1 past its deadline", "would replay 29"])?;
    world.fleet.set("picky", Behaviour::fast())?;
    let begun = Instant::now();
    let reason = ["--rate", "20/s", "--reason", "mended", "--json"];
    let limited = [&replay[..], &reason, &["--limit", "9"]].concat();
    let done = run(&world, &limited).await?.exits(OK)?.object()?;
    ensure!(done["replayed"] == 9, "{done}");
    let done = run(&world, &[&replay[..], &reason].concat())
        .await?
        .exits(OK)?
        .object()?;
    ensure!(done["replayed"] == 20 && done["already"] == 0, "{done}");
    ensure!(
        begun.elapsed() > Duration::from_millis(1_300),
        "{:?}",
        begun.elapsed()
    );
    let again = [&replay[..], &reason].concat();
    let again = run(&world, &again).await?.exits(OK)?.object()?;
    ensure!(again["replayed"] == 0, "{again}");
    let taken = || {
        world
            .fleet
            .arrivals("picky")
            .iter()
            .filter(|a| a.is_taken())
            .count()
    };
    let until = Instant::now() + SOON;
    while taken() < 29 {
        ensure!(Instant::now() < until, "{} of 29 arrived", taken());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let listed = ["deadletter", "list", "--state", "replayed", "--json"];
    let listed = run(&world, &listed).await?.exits(OK)?.objects()?;
    ensure!(listed.len() == 29, "{} replayed", listed.len());
    ensure!(listed[0]["done"]["reason"] == "mended", "{}", listed[0]);
    node.check(&["order dead-lettered"]).await
}

/// A whole group, with another deadline and in another turn; and a whole group is discarded.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_s_dead_letters_are_settled_together() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    for (id, group) in [("luigis", "pizza"), ("marios", "pizza"), ("other", "sushi")] {
        world.fleet.set(id, Behaviour::status(422))?;
        let mut merchant = world.merchant(id);
        merchant.group = group.to_owned();
        world.register(&merchant).await?;
        let over = NewOrder::to(id).id("over");
        let over = over.header("Expediter-Deadline", "2s");
        world.publisher().send(over).await?;
    }
    world.settled(SOON).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    for id in ["luigis", "marios"] {
        world.fleet.set(id, Behaviour::fast())?;
    }
    let replay = ["deadletter", "replay", "--group", "pizza", "--json"];
    let replay = [&replay[..], &["--reason", "mended"]].concat();
    let left = run(&world, &replay).await?.exits(OK)?.object()?;
    ensure!(left["replayed"] == 0, "{left}");
    let anew = ["--deadline", "30m", "--priority", "high"];
    let done = run(&world, &[&replay[..], &anew].concat()).await?;
    let done = done.exits(OK)?.object()?;
    ensure!(done["replayed"] == 2, "{done}");
    world.settled(SOON).await?;
    for id in ["luigis", "marios"] {
        let show = ["order", "show", "over", "-m", id, "--json"];
        let shown = run(&world, &show).await?.exits(OK)?.object()?;
        ensure!(shown["outcome"] == "delivered", "{shown}");
        ensure!(shown["generation"] == 2, "{shown}");
        let seq = shown["seq"].as_u64().context("a sequence")?;
        let context = async_nats::jetstream::new(world.connection.client().clone());
        let orders = context.get_stream_no_info("ORDERS").await?;
        let headers = orders.get_raw_message(seq).await?.headers;
        let said = |name: &str| headers.get(name).map(|value| value.as_str());
        ensure!(said("Expediter-Priority") == Some("high"), "{headers:?}");
        ensure!(said("Expediter-Deadline").is_some(), "{headers:?}");
    }
    ensure!(world.fleet.arrivals("other").len() == 1);

    let discard = ["deadletter", "discard", "--group", "sushi", "--reason", "x"];
    run(&world, &[&discard[..], &["--yes"]].concat())
        .await?
        .exits(OK)?
        .says(&["discarded 1"])?;
    let listed = ["deadletter", "list", "--json"];
    let listed = run(&world, &listed).await?.exits(OK)?.objects()?;
    ensure!(listed.is_empty(), "{listed:?}");
    node.check(&["order dead-lettered"]).await
}

/// Ctrl-C stops between two, at once; the same command goes on, and nothing is sent twice. What has
/// no next generation of its own, or has it already, is left out.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_stops_and_goes_on() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    world.fleet.set("picky", Behaviour::status(422))?;
    world.register(&world.merchant("picky")).await?;
    let publisher = world.publisher();
    let order = |id: &str| NewOrder::to("picky").id(id).body("first");
    for id in ["a", "b", "c", "d"] {
        publisher.send(order(id)).await?;
    }
    publisher
        .send(order("a").body("another").repeatable())
        .await?;
    world.settled(SOON).await?;
    world.fleet.set("picky", Behaviour::fast())?;
    let by_hand = order("b").header("Expediter-Generation", "2");
    publisher.send(by_hand.repeatable()).await?;
    world.settled(SOON).await?;

    let url = world.broker().url();
    let replay = ["deadletter", "replay", "--merchant", "picky", "--json"];
    let slowly = [&replay[..], &["--rate", "1/min", "--reason", "mended"]].concat();
    let mut child = command(world.dir())?;
    let child = child.args(&slowly).args(["--nats", &url]).spawn()?;
    let taken = |id: &str| {
        let arrivals = world.fleet.arrivals("picky");
        let taken = arrivals.iter().filter(|a| a.order_id == id && a.is_taken());
        taken.count()
    };
    let until = Instant::now() + SOON;
    // Which one is the first depends on which ended first.
    while ["a", "c", "d"].into_iter().all(|id| taken(id) == 0) {
        ensure!(Instant::now() < until, "the first does not arrive");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    signal(&child, "-INT")?;
    let begun = Instant::now();
    let done = tokio::time::timeout(SOON, child.wait_with_output()).await??;
    ensure!(
        begun.elapsed() < Duration::from_secs(3),
        "it stopped in {:?}",
        begun.elapsed()
    );
    ensure!(done.status.code() == Some(FAILED), "{done:?}");
    let told = String::from_utf8(done.stdout)?;
    let told: serde_json::Value = serde_json::from_str(&told)?;
    ensure!(told["replayed"] == 1 && told["left"] == 2, "{told}");
    ensure!(
        told["left_out"]["its id is another order's"] == 1
            && told["left_out"]["published again already"] == 1,
        "{told}"
    );

    let on = [&replay[..], &["--reason", "mended"]].concat();
    let done = run(&world, &on).await?.exits(OK)?.object()?;
    ensure!(done["replayed"] == 2 && done["left"] == 0, "{done}");
    world.settled(SOON).await?;
    for id in ["a", "b", "c", "d"] {
        ensure!(taken(id) == 1, "{id} was taken {} times", taken(id));
    }
    node.check(&["order dead-lettered"]).await
}

/// A large replay keeps to its rate, and what is fresh goes before it.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_does_not_delay_fresh_orders() -> Result<()> {
    const LETTERS: usize = 200;
    const PER_SECOND: f64 = 40.0;
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    world.fleet.set("back", Behaviour::status(422))?;
    let mut merchant = world.merchant("back");
    merchant.limits.concurrency = 1;
    world.register(&merchant).await?;
    let letters = world.publish("back", LETTERS).await?;
    world.settled(SOON).await?;
    let letters: HashSet<_> = letters.iter().map(|order| order.id.to_string()).collect();
    // Slower than the replay: what is replayed waits in line.
    let latency = Duration::from_millis(40);
    world.fleet.set(
        "back",
        Behaviour {
            latency,
            ..Behaviour::default()
        },
    )?;
    let replay = ["deadletter", "replay", "--merchant", "back", "--json"];
    let replay = [&replay[..], &["--rate", "40/s", "--reason", "mended"]].concat();
    let fresh = async {
        let mut took = Vec::new();
        for n in 0..20 {
            let id = format!("fresh-{n}");
            let arrived = || {
                world
                    .fleet
                    .arrivals("back")
                    .iter()
                    .any(|a| a.order_id == id)
            };
            let begun = Instant::now();
            world.publisher().send(NewOrder::to("back").id(&id)).await?;
            while !arrived() {
                ensure!(begun.elapsed() < SOON, "{id} does not arrive");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            took.push(begun.elapsed());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        took.sort_unstable();
        // The longest may be a disk that was written back just then: the broker syncs each order.
        Ok((took[18], took[19]))
    };
    let replaying = async {
        let begun = Instant::now();
        let done = run(&world, &replay).await?;
        Ok::<_, anyhow::Error>((done, begun.elapsed().as_secs_f64()))
    };
    let (replayed, longest) = futures::join!(replaying, fresh);
    let ((done, took), longest) = (replayed?, longest?);
    let done = done.exits(OK)?.object()?;
    ensure!(done["replayed"] == LETTERS, "{done}");
    println!("{took:.1} s for {LETTERS}; fresh ones took at most {longest:?}");
    let least = (LETTERS - 1) as f64 / PER_SECOND;
    ensure!(took >= 0.95 * least, "{took:.1} s is faster than the rate");
    let all = u64::try_from(2 * LETTERS + 20)?;
    world.arrived("back", all, Duration::from_secs(30)).await?;
    let arrivals = world.fleet.arrivals("back");
    let again = arrivals
        .iter()
        .filter(|a| letters.contains(&a.order_id) && a.is_taken());
    let again = again.count();
    ensure!(again == LETTERS, "{again} arrived again");
    // One is on its way, and one of its own: a second is a busy machine's.
    ensure!(longest.0 < Duration::from_secs(1), "{longest:?}");
    node.check(&["order dead-lettered"]).await
}

fn json_of<'a>(verb: &[&'a str]) -> Vec<&'a str> {
    [verb, &["--json"]].concat()
}

/// Why it waits, who said so, how many are ahead.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_explained() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let mut slow = world.merchant("slow");
    slow.limits.rates = vec!["6/min".parse()?];
    slow.limits.mailbox = 8;
    world.register(&slow).await?;
    let orders = world.publish("slow", 40).await?;
    super::merchants::waiting(&world, "slow", 40).await?;
    let last = orders.iter().max_by_key(|order| order.seq);
    let last = last.map_or("", |order| order.id.as_str());
    let explain = ["order", "explain", last, "--merchant", "slow"];
    let told = run(&world, &explain).await?.exits(OK)?;
    told.says(&[
        "waits in the store",
        "the rate limit 6/min",
        "set by a test",
        "39 orders of the merchant",
    ])?;
    let json = [&explain[..], &["--json"]].concat();
    let json = run(&world, &json).await?.exits(OK)?.object()?;
    ensure!(
        json["reasons"][0]["what"] == "rate" && json["ahead"] == 39,
        "{json}"
    );
    let told = run(&world, &["merchant", "explain", "slow"])
        .await?
        .exits(OK)?;
    told.says(&["40 orders of slow unfinished", "the rate limit 6/min"])?;

    // One that is to go later says so, and is not promised earlier.
    let later = NewOrder::to("slow")
        .id("later")
        .header("Expediter-Not-Before", "2h");
    let publisher = world.publisher();
    publisher.send(later).await?;
    super::merchants::waiting(&world, "slow", 41).await?;
    let explain_later = ["order", "explain", "later", "--merchant", "slow", "--json"];
    let told = run(&world, &explain_later).await?.exits(OK)?.object()?;
    ensure!(told["reasons"][0]["what"] == "not_before", "{told}");
    let (goes, until) = (told["goes"].as_str(), told["reasons"][0]["until"].as_str());
    ensure!(goes.is_none() || goes >= until, "{told}");
    // An urgent one has only those before it that are in the mailbox.
    let urgent = NewOrder::to("slow")
        .id("urgent")
        .header("Expediter-Priority", "high");
    publisher.send(urgent).await?;
    super::merchants::waiting(&world, "slow", 42).await?;
    let explain_urgent = ["order", "explain", "urgent", "--merchant", "slow", "--json"];
    let told = run(&world, &explain_urgent).await?.exits(OK)?.object()?;
    ensure!(
        told["ahead"].as_u64().is_some_and(|ahead| ahead <= 16),
        "{told}"
    );

    let pause = [
        "merchant", "pause", "slow", "--reason", "a flood", "--actor", "ann",
    ];
    run(&world, &pause).await?.exits(OK)?;
    let told = run(&world, &explain).await?.exits(OK)?;
    told.says(&["why", "paused by ann", "a flood", "merchant resume slow"])?;
    let told = run(&world, &json_of(&explain)).await?.exits(OK)?.object()?;
    ensure!(told.get("goes").is_none(), "nobody knows when: {told}");
    let nobody = ["order", "explain", "nobody", "--merchant", "slow"];
    run(&world, &nobody)
        .await?
        .exits(NOT_FOUND)?
        .tells(&["nobody"])?;
    let cancel = [
        "order",
        "cancel",
        last,
        "--merchant",
        "slow",
        "--reason",
        "gone",
    ];
    run(&world, &cancel).await?.exits(OK)?;
    let told = run(&world, &explain).await?.exits(OK)?;
    told.says(&["has ended"])?;
    run(&world, &cancel).await?.exits(CONFLICT)?;
    slow.limits.rates = Vec::new();
    world.register(&slow).await?;
    let later = [
        "order",
        "cancel",
        "later",
        "--merchant",
        "slow",
        "--reason",
        "gone",
    ];
    run(&world, &later).await?.exits(OK)?;
    run(&world, &["merchant", "resume", "slow"])
        .await?
        .exits(OK)?;
    world.settled(SOON).await?;
    let kind = OutcomeKind::Cancelled;
    let verdict = world.oracle().allow("slow", kind).judge().await?;
    ensure!(verdict.delivered == 40, "{verdict:?}");
    node.check(&[]).await
}
