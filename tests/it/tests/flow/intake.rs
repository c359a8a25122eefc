//! What is taken from the log: what is no order, what comes twice, what has its time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use async_nats::{HeaderMap, jetstream};
use expediter_fleet::merchants::Behaviour;
use expediter_harness::{NewOrder, World};
use expediter_types::{DeadReason, Ordering, OutcomeKind};

use super::{SOON, is, is_dead, outcome};

async fn publish(world: &World, subject: &str, headers: &[(&str, &str)]) -> Result<u64> {
    let context = jetstream::new(world.connection.client().clone());
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, *value);
    }
    let body = "the payload".into();
    let ack = context
        .publish_with_headers(subject.to_owned(), map, body)
        .await?;
    Ok(ack.await?.sequence)
}

/// What cannot be read as an order becomes a dead letter that says why; what is around it flows.
#[tokio::test(flavor = "multi_thread")]
async fn undecodable_orders_become_dead_letters() -> Result<()> {
    let world = World::start().await?;
    world.register(&world.merchant("luigis")).await?;
    let node = world.node("node").start().await?;
    let long = "x".repeat(1_100);
    let long_key = "k".repeat(257);
    let long_id = "i".repeat(129);
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);
    let cases: [Case<'_>; 12] = [
        (
            "orders.luigis",
            &[("Expediter-Deadline", "tomorrow")],
            "Expediter-Deadline",
        ),
        (
            "orders.luigis",
            &[("Expediter-Not-Before", "-5s")],
            "Expediter-Not-Before",
        ),
        (
            "orders.luigis",
            &[("Expediter-Key", &long_key)],
            "Expediter-Key",
        ),
        (
            "orders.luigis",
            &[("Expediter-Generation", "0")],
            "Expediter-Generation",
        ),
        (
            "orders.luigis",
            &[("Expediter-Test", "maybe")],
            "Expediter-Test",
        ),
        (
            "orders.luigis",
            &[("Expediter-Origin", "here")],
            "Expediter-Origin",
        ),
        ("orders.luigis", &[("ce-id", "with space")], "ce-id"),
        ("orders.luigis", &[("ce-id", &long_id)], "ce-id"),
        ("orders.luigis", &[("ce-type", &long)], "ce-type"),
        ("orders.luigis", &[("ce-id", "a"), ("CE-ID", "b")], "ce-id"),
        ("orders.luigi$", &[], "luigi$"),
        ("orders.lüigi", &[("ce-id", "7")], "lüigi"),
    ];
    let mut seqs = Vec::new();
    for (subject, headers, named) in cases {
        let seq = publish(&world, subject, headers).await;
        seqs.push((seq.with_context(|| format!("{subject} {named}"))?, named));
    }
    let fine = publish(&world, "orders.luigis", &[("traceparent", "nonsense")]).await?;
    is(&outcome(&world, fine, SOON).await?, OutcomeKind::Delivered)?;
    for (seq, named) in seqs {
        let recorded = outcome(&world, seq, SOON).await?;
        is_dead(&recorded, DeadReason::Undecodable)?;
        let detail = &recorded.outcome.detail;
        ensure!(detail.contains(named), "{named}: {detail:?}");
        let (payload, _) = recorded.dead.context("a dead letter")?;
        ensure!(payload == "the payload", "{payload:?}");
        ensure!(recorded.outcome.attempts.is_empty());
    }
    ensure!(world.fleet.stats().arrived == 1);
    node.check(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn publishers_repeats_are_noticed() -> Result<()> {
    let world = World::start().await?;
    world.register(&world.merchant("luigis")).await?;
    world.register(&world.merchant("marios")).await?;
    let node = world.node("node").start().await?;
    let order = |body: &str| {
        let body = body.to_owned();
        NewOrder::to("luigis").id("4711").body(body).repeatable()
    };
    let publisher = world.publisher();
    let first = publisher.send(order("one pizza")).await?;
    let again = publisher.send(order("one pizza")).await?;
    is(
        &outcome(&world, first.seq, SOON).await?,
        OutcomeKind::Delivered,
    )?;
    is(
        &outcome(&world, again.seq, SOON).await?,
        OutcomeKind::Duplicate,
    )?;
    // Long finished, it is still noticed.
    let late = publisher.send(order("one pizza")).await?;
    is(
        &outcome(&world, late.seq, SOON).await?,
        OutcomeKind::Duplicate,
    )?;
    let other = publisher.send(order("two pizzas")).await?;
    let conflict = outcome(&world, other.seq, SOON).await?;
    is_dead(&conflict, DeadReason::IdConflict)?;
    let (payload, _) = conflict.dead.context("a dead letter")?;
    ensure!(payload == "two pizzas", "{payload:?}");
    // The same id at another merchant is another order.
    let other = NewOrder::to("marios").id("4711").body("one pizza");
    let other = publisher.send(other).await?;
    is(
        &outcome(&world, other.seq, SOON).await?,
        OutcomeKind::Delivered,
    )?;
    // With a message id the broker itself takes a repeat only once.
    let named = || NewOrder::to("luigis").id("4712").body("three pizzas");
    let first = publisher.send(named()).await?;
    ensure!(publisher.send(named()).await?.seq == first.seq);
    is(
        &outcome(&world, first.seq, SOON).await?,
        OutcomeKind::Delivered,
    )?;
    ensure!(world.fleet.merchant_stats("luigis").arrived == 2);
    node.check(&[]).await
}

/// A repeat that comes while the first one waits does not go, either.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_of_a_waiting_order_is_noticed() -> Result<()> {
    let world = World::start().await?;
    let behaviour = Behaviour {
        latency: Duration::from_secs(2),
        ..Behaviour::default()
    };
    world.fleet.set("luigis", behaviour)?;
    let mut luigis = world.merchant("luigis");
    luigis.limits.concurrency = 1;
    world.register(&luigis).await?;
    let node = world.node("node").start().await?;
    let order = || NewOrder::to("luigis").id("1").body("x").repeatable();
    let publisher = world.publisher();
    let first = publisher.send(order()).await?;
    let again = publisher.send(order()).await?;
    is(
        &outcome(&world, again.seq, SOON).await?,
        OutcomeKind::Duplicate,
    )?;
    is(
        &outcome(&world, first.seq, SOON).await?,
        OutcomeKind::Delivered,
    )?;
    ensure!(world.fleet.merchant_stats("luigis").arrived == 1);
    node.check(&[]).await
}

fn millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

/// By the publisher's header or the merchant's policy; after it nothing is attempted.
#[tokio::test(flavor = "multi_thread")]
async fn deadlines_end_orders() -> Result<()> {
    let world = World::start().await?;
    for id in ["by-header", "by-date", "by-policy"] {
        world.fleet.set(id, Behaviour::status(503))?;
        let mut merchant = world.merchant(id);
        merchant.retry.max = Duration::from_millis(100);
        if id == "by-policy" {
            merchant.retry.deadline = Duration::from_secs(2);
        }
        world.register(&merchant).await?;
    }
    let node = world.node("node").start().await?;
    let publisher = world.publisher();
    let (start, from) = (Instant::now(), millis());
    let date = expediter_wire::Rfc3339(from + 2_000).to_string();
    let orders = [
        NewOrder::to("by-header").header("Expediter-Deadline", "2s"),
        NewOrder::to("by-date").header("Expediter-Deadline", date),
        NewOrder::to("by-policy"),
    ];
    let sends = orders.map(|order| publisher.send(order));
    for accepted in futures::future::try_join_all(sends).await? {
        let merchant = accepted.merchant;
        let recorded = outcome(&world, accepted.seq, SOON).await?;
        is(&recorded, OutcomeKind::Expired)?;
        let end = recorded.outcome.at;
        // An attempt needs some time: an order ends a quarter of its two seconds before its deadline.
        ensure!(end >= from + 1_400, "{merchant} ended early");
        let arrivals = world.fleet.arrivals(&merchant);
        ensure!(arrivals.len() > 2, "{merchant}: {arrivals:?}");
        ensure!(arrivals.iter().all(|a| a.at_us / 1_000 <= end + 50));
        ensure!(recorded.outcome.attempts.len() <= 16);
    }
    ensure!(start.elapsed() < SOON);
    // One that is over when it is published is never tried.
    let over = NewOrder::to("by-header").header("Expediter-Deadline", "2020-01-01T00:00:00Z");
    let before = world.fleet.stats().arrived;
    let over = publisher.send(over).await?;
    is(
        &outcome(&world, over.seq, SOON).await?,
        OutcomeKind::Expired,
    )?;
    ensure!(world.fleet.stats().arrived == before);
    node.check(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_wait_for_their_time() -> Result<()> {
    let world = World::start().await?;
    for id in ["later", "ordered", "keyed", "head", "too-late"] {
        let mut merchant = world.merchant(id);
        merchant.limits.ordering = match id {
            "ordered" | "head" => Ordering::Merchant,
            "keyed" => Ordering::Order,
            _ => Ordering::None,
        };
        world.register(&merchant).await?;
    }
    let node = world.node("node").start().await?;
    let publisher = world.publisher();
    let start = Instant::now();
    let date = expediter_wire::Rfc3339(millis() + 3_000).to_string();
    let not_before = "Expediter-Not-Before";
    for id in ["later", "ordered", "keyed"] {
        let order = |name: &str| NewOrder::to(id).id(format!("{id}-{name}")).key("table 1");
        let by_date = order("b").header(not_before, date.as_str());
        publisher.send(order("a").header(not_before, "2s")).await?;
        publisher.send(by_date).await?;
        publisher.send(order("c")).await?;
        publisher.send(order("x").key("table 2")).await?;
    }
    let too_late = NewOrder::to("too-late")
        .header(not_before, "20s")
        .header("Expediter-Deadline", "2s");
    let too_late = publisher.send(too_late).await?;
    world.arrived("later", 1, SOON).await?;
    ensure!(
        start.elapsed() < Duration::from_millis(1_900),
        "c waits for the others"
    );
    let recorded = outcome(&world, too_late.seq, SOON).await?;
    is(&recorded, OutcomeKind::Expired)?;
    // Who is ordered waits for those ahead, and no longer than they are there.
    let head = NewOrder::to("head").header(not_before, "20s");
    publisher
        .send(head.header("Expediter-Deadline", "2s"))
        .await?;
    let behind = publisher.send(NewOrder::to("head")).await?;
    let recorded = outcome(&world, behind.seq, Duration::from_secs(5)).await?;
    is(&recorded, OutcomeKind::Delivered)?;
    ensure!(recorded.outcome.at >= recorded.outcome.envelope.created + 1_900);
    world.settled(SOON).await?;
    let ids = |merchant: &str| -> Vec<(String, u64)> {
        let arrivals = world.fleet.arrivals(merchant);
        let id = |id: &str| id.rsplit('-').next().unwrap_or_default().to_owned();
        arrivals
            .iter()
            .map(|a| (id(&a.order_id), a.at_us / 1_000))
            .collect()
    };
    let (later, ordered, keyed) = (ids("later"), ids("ordered"), ids("keyed"));
    let order = |list: &[(String, u64)]| list.iter().map(|(id, _)| id.clone()).collect::<String>();
    ensure!(
        ["cxab", "xcab"].contains(&order(&later).as_str()),
        "{later:?}"
    );
    ensure!(order(&ordered) == "abcx", "{ordered:?}");
    ensure!(order(&keyed) == "xabc", "{keyed:?}");
    ensure!(later[2].1 - later[1].1 >= 1_800, "{later:?}");
    ensure!(later[3].1 - later[2].1 >= 500, "{later:?}");
    ensure!(world.fleet.merchant_stats("too-late").arrived == 0);
    node.check(&[]).await
}
