//! What a person should know now reaches the operators' own system, signed; and the gauges that
//! alerts are made of move.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use expediter_fleet::merchants::Behaviour;
use expediter_harness::{NodeOptions, NodeProcess, World, eventually};
use expediter_types::{DeadReason, Idempotency, OutcomeKind, Secret, SecretRef};
use expediter_wire::notification::{Because, Happened, Notification, decode_notification};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::listener::{Answer, Listener, Request};
use super::{SOON, is_dead, outcome, send};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn notifying(world: &World, url: &str) -> NodeOptions {
    world
        .node("node")
        .env("HOOK", SECRET)
        .set("notify.url", url)
        .set("notify.secret", "env:HOOK")
        .set("notify.every", "2s")
        .set_toml("notify.allow", "[\"127.0.0.1\"]")
}

/// Verified by a library of the standard, which shares no code with the sender.
fn verified(request: &Request) -> Result<Notification> {
    let verifier = standardwebhooks::Webhook::new(SECRET)?;
    let mut headers = HeaderMap::new();
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        let value = request.header(name).context(name)?;
        headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value)?);
    }
    verifier.verify(&request.body, &headers)?;
    let mut forged = request.body.to_vec();
    forged.push(b' ');
    ensure!(verifier.verify(&forged, &headers).is_err());
    ensure!(request.method == "POST");
    ensure!(request.header("content-type") == Some("application/json"));
    Ok(decode_notification(&request.body)?)
}

/// Waits until what arrived says so often what happened to those merchants.
async fn told(
    receiver: &Listener,
    expected: &[(&str, Happened, u64)],
) -> Result<Vec<Notification>> {
    let all = || {
        // One whose answer was late comes again, with the same id.
        let mut ids = HashSet::new();
        let requests = receiver.requests().into_iter();
        let first =
            requests.filter(|request| ids.insert(request.header("webhook-id").map(str::to_owned)));
        first
            .map(|request| verified(&request))
            .collect::<Result<Vec<_>>>()
    };
    eventually("the notifications", 2 * SOON, || async {
        let mut counts = BTreeMap::new();
        let all = all()?;
        for told in &all {
            let key = (told.merchant.to_string(), told.happened);
            *counts.entry(key).or_insert(0) += told.count;
        }
        let count = |merchant: &str, happened| counts.get(&(merchant.to_owned(), happened));
        let complete = expected
            .iter()
            .all(|(merchant, happened, n)| count(merchant, *happened) == Some(n));
        ensure!(complete, "{counts:?}");
        Ok(Some(all))
    })
    .await
}

/// Waits until a figure is as it should be.
async fn figure(node: &NodeProcess, name: &str, holds: impl Fn(f64) -> bool) -> Result<()> {
    eventually(name, 3 * SOON, || async {
        let found = node.metric(name).await?;
        ensure!(holds(found), "{name} is {found}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_suspended_and_expired_are_notified() -> Result<()> {
    let world = World::start().await?;
    let receiver = Listener::start(|_, _| Answer::status(204)).await?;
    let node = notifying(&world, &receiver.url()).start().await?;

    world.fleet.set("suspended", Behaviour::status(401))?;
    let mut suspended = world.merchant("suspended");
    suspended.retry.deadline = Duration::from_secs(60);
    world.register(&suspended).await?;
    let mut misconfigured = world.merchant("misconfigured");
    let key = SecretRef::Env("NOBODY_SET_THIS".to_owned());
    let header = ("authorization".to_owned(), Secret::Reference(key));
    misconfigured.adapter.headers.push(header);
    misconfigured.retry.deadline = Duration::from_secs(60);
    world.register(&misconfigured).await?;
    world.fleet.set("parked", Behaviour::status(500))?;
    let mut parked = world.merchant("parked");
    parked.adapter.idempotency = Idempotency::None;
    world.register(&parked).await?;
    world.fleet.set("expired", Behaviour::status(503))?;
    let mut expired = world.merchant("expired");
    expired.retry.deadline = Duration::from_secs(2);
    world.register(&expired).await?;

    send(&world, "suspended").await?;
    send(&world, "misconfigured").await?;
    let orders = world.publish("parked", 20).await?;
    send(&world, "expired").await?;

    let all = told(
        &receiver,
        &[
            ("suspended", Happened::MerchantSuspended, 1),
            ("misconfigured", Happened::MerchantSuspended, 1),
            ("parked", Happened::OrderParked, 20),
            ("expired", Happened::OrderExpired, 1),
        ],
    )
    .await?;
    let of = |merchant: &str| {
        let merchant = merchant.to_owned();
        all.iter()
            .filter(move |told| told.merchant.as_str() == merchant)
    };
    ensure!(of("suspended").all(|told| told.because == Some(Because::Suspended)));
    ensure!(of("misconfigured").all(|told| told.because == Some(Because::Misconfigured)));
    ensure!(
        all.iter()
            .all(|told| told.node.as_str() == "node" && told.first <= told.last)
    );
    // Twenty in a moment: one at once, the others together.
    ensure!(of("parked").count() < 10, "{all:?}");
    let first = of("parked").next().context("parked")?;
    let ids: Vec<&str> = orders.iter().map(|order| order.id.as_str()).collect();
    ensure!(
        first.orders.iter().all(|id| ids.contains(&id.as_str())),
        "{first:?}"
    );
    let delivered = "expediter_notifications_total{result=\"delivered\"}";
    super::gauge(&node, delivered, receiver.requests().len() as f64).await?;
    super::gauge(
        &node,
        "expediter_notifications_total{result=\"given_up\"}",
        0.0,
    )
    .await?;

    // What alerts are made of: the suspended merchant's order waits towards its deadline.
    figure(&node, "expediter_deadline_used_ratio", |share| {
        share > 0.05 && share < 1.0
    })
    .await?;
    figure(&node, "expediter_oldest_order_age_seconds", |age| {
        age > 2.0 && age < 120.0
    })
    .await?;
    super::gauge(&node, "expediter_node_ready", 1.0).await?;
    super::gauge(&node, "expediter_partitions", 4.0).await?;
    // What the configuration gives the node, shared out among the stream's partitions.
    super::gauge(&node, "expediter_repeats_limit", 5_000_000.0).await?;
    for stream in ["orders", "outcomes"] {
        let limit = format!("expediter_stream_limit_bytes{{stream=\"{stream}\"}}");
        super::gauge(&node, &limit, f64::from(1 << 30)).await?;
        let bytes = format!("expediter_stream_bytes{{stream=\"{stream}\"}}");
        figure(&node, &bytes, |bytes| bytes > 0.0).await?;
    }
    let code = node.terminate(SOON).await?;
    ensure!(code == 0);
    node.check(&["closed", "suspended", "misconfigured"]).await
}

/// Nothing listens, then the receiver has a fault, then it works: the same message arrives.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_was_down_is_notified_after() -> Result<()> {
    let world = World::start().await?;
    let gone = Listener::start(|_, _| Answer::status(204)).await?;
    let url = gone.url();
    drop(gone);
    let port = url
        .rsplit(':')
        .next()
        .and_then(|rest| rest.split('/').next());
    let port = port.context("a port")?.parse()?;
    let node = notifying(&world, &url).start().await?;
    world.fleet.set("parked", Behaviour::status(500))?;
    let mut parked = world.merchant("parked");
    parked.adapter.idempotency = Idempotency::None;
    world.register(&parked).await?;
    world.publish("parked", 3).await?;
    let failed = "expediter_notifications_total{result=\"failed\"}";
    figure(&node, failed, |tries| tries >= 2.0).await?;

    let back = Listener::at(port, |_, number| match number {
        0 => Answer::status(500),
        _ => Answer::status(200),
    })
    .await?;
    let told = eventually("all three", 4 * SOON, || async {
        let requests = back.requests();
        let mut taken = BTreeMap::new();
        // The first was refused; a message that comes again has the same id and body.
        for request in requests.iter().skip(1) {
            let id = request.header("webhook-id").context("an id")?.to_owned();
            taken.insert(id, verified(request)?.count);
        }
        let count: u64 = taken.values().sum();
        ensure!(count == 3, "{taken:?}");
        Ok(Some((requests[0].clone(), taken)))
    });
    let (refused, taken) = told.await?;
    let id = refused.header("webhook-id").context("an id")?;
    ensure!(taken.contains_key(id), "{id} did not come again: {taken:?}");
    verified(&refused)?;
    // Orders did not wait for it.
    world.settled(SOON).await?;
    let ambiguous = OutcomeKind::DeadLettered(DeadReason::Ambiguous);
    world.oracle().allow("parked", ambiguous).judge().await?;
    node.check(&["it is tried again"]).await
}

/// What waits for its time is told when the node ends.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_is_notified_at_the_end() -> Result<()> {
    let world = World::start().await?;
    let receiver = Listener::start(|_, _| Answer::status(204)).await?;
    let node = notifying(&world, &receiver.url()).set("notify.every", "1h");
    let node = node
        .set_toml("notify.events", "[\"parked\"]")
        .start()
        .await?;
    world.fleet.set("suspended", Behaviour::status(401))?;
    world.register(&world.merchant("suspended")).await?;
    send(&world, "suspended").await?;
    world.fleet.set("parked", Behaviour::status(500))?;
    let mut parked = world.merchant("parked");
    parked.adapter.idempotency = Idempotency::None;
    world.register(&parked).await?;
    let first = send(&world, "parked").await?;
    is_dead(
        &outcome(&world, first.seq, SOON).await?,
        DeadReason::Ambiguous,
    )?;
    told(&receiver, &[("parked", Happened::OrderParked, 1)]).await?;
    for order in world.publish("parked", 2).await? {
        outcome(&world, order.seq, SOON).await?;
    }
    ensure!(receiver.requests().len() == 1);
    ensure!(node.terminate(2 * SOON).await? == 0);
    let all = told(&receiver, &[("parked", Happened::OrderParked, 3)]).await?;
    // The suspended merchant was not asked for.
    ensure!(all.len() == 2, "{all:?}");
    node.check(&["closed", "suspended"]).await
}
