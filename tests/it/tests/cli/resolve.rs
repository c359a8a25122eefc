//! Orders of which nobody knows whether they arrived: a person, or the merchant itself, decides.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use expediter_fleet::merchants::{Behaviour, Ending, Step};
use expediter_harness::{NewOrder, World, eventually};
use expediter_types::{Idempotency, Lookup, Merchant, OnPark, Ordering};

use super::{CONFLICT, FAILED, NOT_FOUND, OK, USAGE, run};

const SOON: Duration = Duration::from_secs(15);

/// Gives up on an answer after a second.
fn merchant(world: &World, id: &str, idempotency: Idempotency) -> Merchant {
    let mut merchant = world.merchant(id);
    merchant.adapter.timeout = Duration::from_secs(1);
    merchant.adapter.idempotency = idempotency;
    merchant
}

fn hangs_once() -> Behaviour {
    Behaviour::default().scripted(vec![Step::ending(Ending::Hang)])
}

/// It can be asked for an order, soon after an attempt.
fn asked(world: &World) -> Merchant {
    let mut asked = merchant(world, "asked", Idempotency::Lookup);
    asked.adapter.lookup = Some(Box::new(Lookup {
        url: format!("{}/{{id}}", asked.adapter.url),
        after: Some(Duration::from_millis(200)),
        rules: Vec::new(),
    }));
    asked
}

async fn ends(world: &World, merchant: &str, id: &str, outcome: &str) -> Result<serde_json::Value> {
    eventually("the order ends", SOON, || async {
        let show = run(world, &["order", "show", id, "-m", merchant, "--json"]).await?;
        let shown = show.object()?;
        ensure!(shown["outcome"] == outcome, "{shown}");
        Ok(Some(shown))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_resolves_what_may_have_arrived() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    world
        .register(&merchant(&world, "luigis", Idempotency::None))
        .await?;
    let resolve = |id: &'static str, what: &'static str| {
        let verb = ["order", "resolve", id, "-m", "luigis", "--as", what];
        [
            &verb[..],
            &["--reason", "asked them", "--actor", "ann", "--json"],
        ]
        .concat()
    };
    for id in ["1", "2", "3"] {
        world.fleet.set("luigis", hangs_once())?;
        let order = NewOrder::to("luigis").id(id);
        world.publisher().send(order).await?;
        let parked = ends(&world, "luigis", id, "dead_lettered").await?;
        ensure!(parked["reason"] == "ambiguous", "{parked}");
    }
    for (id, what) in [("1", "delivered"), ("2", "dead")] {
        let done = run(&world, &resolve(id, what)).await?.exits(OK)?.object()?;
        ensure!(done["as"] == what && done["generation"] == 1, "{done}");
        run(&world, &resolve(id, "retry"))
            .await?
            .exits(CONFLICT)?
            .tells(&["resolved as", what, "ann", "asked them"])?;
    }
    let done = run(&world, &resolve("3", "retry"))
        .await?
        .exits(OK)?
        .object()?;
    ensure!(done["next"]["generation"] == 2, "{done}");
    let shown = ends(&world, "luigis", "3", "delivered").await?;
    ensure!(shown["generation"] == 2, "{shown}");
    run(&world, &resolve("3", "delivered"))
        .await?
        .exits(FAILED)?;
    run(&world, &resolve("4", "dead")).await?.exits(NOT_FOUND)?;
    let mut silent = resolve("1", "dead");
    silent[8] = " ";
    run(&world, &silent).await?.exits(USAGE)?;
    let records = run(&world, &["audit", "--verb", "order.resolve", "--json"]).await?;
    let records = records.exits(OK)?.objects()?;
    ensure!(records.len() == 3, "{records:?}");
    ensure!(records[2]["details"]["as"] == "retry", "{records:?}");
    ensure!(records[2]["details"]["record"].is_u64(), "{records:?}");
    node.check(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_look_up_finds_counts_as_delivered() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let asked = asked(&world);
    world.register(&asked).await?;
    // It takes the order, and its answer is lost.
    world.fleet.set("asked", hangs_once())?;
    let order = NewOrder::to("asked").id("1");
    world.publisher().send(order).await?;
    let shown = ends(&world, "asked", "1", "delivered").await?;
    let classes: Vec<_> = shown["attempts"]
        .as_array()
        .context("attempts")?
        .iter()
        .map(|attempt| attempt["class"].clone())
        .collect();
    ensure!(classes == ["ambiguous", "already_done"], "{shown}");
    ensure!(world.fleet.merchant_stats("asked").arrived == 1);
    node.check(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_behind_a_parked_one_wait_for_its_resolution() -> Result<()> {
    let world = World::start().await?;
    let mut node = world.node("node").start().await?;
    let mut ordered = merchant(&world, "ordered", Idempotency::None);
    ordered.limits.ordering = Ordering::Order;
    ordered.retry.on_park = OnPark::Hold;
    world.register(&ordered).await?;
    world.fleet.set("ordered", hangs_once())?;
    let publisher = world.publisher();
    for (id, key) in [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b")] {
        publisher
            .send(NewOrder::to("ordered").id(id).key(key))
            .await?;
    }
    ends(&world, "ordered", "a1", "dead_lettered").await?;
    ends(&world, "ordered", "b1", "delivered").await?;
    let arrived = || {
        let arrivals = world.fleet.arrivals("ordered");
        let ids = arrivals.into_iter().map(|arrival| arrival.order_id);
        ids.filter(|id| id.starts_with('a'))
            .collect::<Vec<String>>()
    };
    // Also over a crash.
    node.kill9();
    node.restart().await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(arrived() == ["a1"], "{:?}", arrived());
    let resolve = ["order", "resolve", "a1", "-m", "ordered", "--reason", "why"];
    run(&world, &[&resolve[..], &["--as", "retry"]].concat())
        .await?
        .exits(OK)?
        .says(&["generation 2"])?;
    ends(&world, "ordered", "a3", "delivered").await?;
    ensure!(arrived() == ["a1", "a1", "a2", "a3"], "{:?}", arrived());

    world.fleet.set("ordered", hangs_once())?;
    for id in ["a4", "a5"] {
        publisher
            .send(NewOrder::to("ordered").id(id).key("a"))
            .await?;
    }
    ends(&world, "ordered", "a4", "dead_lettered").await?;
    let resolve = ["order", "resolve", "a4", "-m", "ordered", "--reason", "why"];
    run(&world, &[&resolve[..], &["--as", "delivered"]].concat())
        .await?
        .exits(OK)?
        .says(&["the orders behind it go on"])?;
    ends(&world, "ordered", "a5", "delivered").await?;

    // Discarded is resolved as well.
    world.fleet.set("ordered", hangs_once())?;
    for id in ["a6", "a7"] {
        publisher
            .send(NewOrder::to("ordered").id(id).key("a"))
            .await?;
    }
    ends(&world, "ordered", "a6", "dead_lettered").await?;
    let discard = [
        "deadletter",
        "discard",
        "a6",
        "-m",
        "ordered",
        "--reason",
        "why",
    ];
    run(&world, &discard).await?.exits(OK)?;
    ends(&world, "ordered", "a7", "delivered").await?;
    let audit = ["audit", "--verb", "deadletter.discard", "--json"];
    let record = run(&world, &audit).await?.exits(OK)?.object()?;
    ensure!(record["details"]["released"] == true, "{record}");
    node.check(&[]).await
}

/// Without idempotency a merchant would make an order twice: nobody replays such by the way.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_arrived_is_not_replayed_by_the_way() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    world
        .register(&merchant(&world, "luigis", Idempotency::None))
        .await?;
    world.fleet.set("luigis", hangs_once())?;
    let publisher = world.publisher();
    publisher.send(NewOrder::to("luigis").id("1")).await?;
    ends(&world, "luigis", "1", "dead_lettered").await?;
    let replay = [
        "deadletter",
        "replay",
        "--json",
        "--reason",
        "they are back",
    ];
    let all = [&replay[..], &["--merchant", "luigis"]].concat();
    let left = run(&world, &all).await?.exits(OK)?.object()?;
    ensure!(left["replayed"] == 0, "{left}");
    ensure!(
        left["left_out"].to_string().contains("may have it"),
        "{left}"
    );
    let meant = [&all[..], &["--reason-is", "ambiguous"]].concat();
    let sent = run(&world, &meant).await?.exits(OK)?.object()?;
    ensure!(sent["replayed"] == 1, "{sent}");
    ends(&world, "luigis", "1", "delivered").await?;
    node.check(&[]).await
}

/// A merchant that can be asked is asked before an order goes to it again; one that has forgotten the
/// key since gets no replay by the way.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_goes_by_what_the_merchant_can_tell() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let mut asked = asked(&world);
    let mut forgets = merchant(&world, "forgets", Idempotency::Native);
    forgets.adapter.idempotency_window = Duration::from_secs(1);
    for merchant in [&mut asked, &mut forgets] {
        merchant.retry.max_attempts = 1;
        world.register(merchant).await?;
    }
    // Both may have it: neither answers.
    world.fleet.set("asked", hangs_once())?;
    world.fleet.set("forgets", hangs_once())?;
    let publisher = world.publisher();
    for id in ["asked", "forgets"] {
        publisher.send(NewOrder::to(id).id("1")).await?;
        ends(&world, id, "1", "dead_lettered").await?;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let replay = ["deadletter", "replay", "--json", "--reason", "why"];
    let all = [&replay[..], &["-m", "asked", "-m", "forgets"]].concat();
    let done = run(&world, &all).await?.exits(OK)?.object()?;
    ensure!(done["replayed"] == 1, "{done}");
    ensure!(
        done["left_out"].to_string().contains("may have it"),
        "{done}"
    );
    let shown = ends(&world, "asked", "1", "delivered").await?;
    ensure!(
        shown["attempts"][0]["class"] == "already_done",
        "it had the order: {shown}"
    );
    ensure!(world.fleet.merchant_stats("asked").arrived == 1);
    ensure!(world.fleet.merchant_stats("forgets").arrived == 1);
    node.check(&["order dead-lettered"]).await
}

/// Another order under the same id does not hide the one that it belongs to.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_was_used_twice_names_the_first() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    world.fleet.set("picky", Behaviour::status(422))?;
    world.register(&world.merchant("picky")).await?;
    let publisher = world.publisher();
    let order = |body: &'static str| NewOrder::to("picky").id("4711").body(body);
    publisher.send(order("{\"pizza\":1}")).await?;
    ends(&world, "picky", "4711", "dead_lettered").await?;
    let second = publisher.send(order("{\"pizza\":2}").repeatable()).await?;
    let name = format!("4711@{}", second.seq);
    eventually("the second one ends", SOON, || async {
        let list = ["deadletter", "list", "--merchant", "picky"];
        let list = run(&world, &list).await?.exits(OK)?;
        Ok(list.out.contains(&name).then_some(()))
    })
    .await?;
    let show = |id: &str| {
        let verb = ["deadletter", "show", id, "-m", "picky"];
        verb.map(str::to_owned)
    };
    for (id, payload, reason) in [
        ("4711", "\"pizza\": 1", "invalid"),
        (&name, "\"pizza\": 2", "id_conflict"),
    ] {
        let verb = show(id);
        let verb: Vec<&str> = verb.iter().map(String::as_str).collect();
        run(&world, &verb)
            .await?
            .exits(OK)?
            .says(&[payload, reason])?;
    }
    let discard = ["deadletter", "discard", "-m", "picky", "--reason", "why"];
    run(&world, &[&discard[..], &["4711"]].concat())
        .await?
        .exits(OK)?
        .says(&["discarded 1"])?;
    run(&world, &[&discard[..], &[name.as_str()]].concat())
        .await?
        .exits(OK)?
        .says(&["discarded 1"])?;
    node.check(&[]).await
}
