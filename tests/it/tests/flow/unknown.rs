//! Orders of merchants that nobody registered.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use expediter_harness::{World, eventually};
use expediter_types::{DeadReason, OutcomeKind};
use expediter_wire::control::MerchantState;

use super::{SOON, is, is_dead, is_open, outcome, send, stands};

#[tokio::test(flavor = "multi_thread")]
async fn unknown_merchants_orders_wait_their_grace() -> Result<()> {
    let world = World::start().await?;
    let node = world
        .node("node")
        .set("orders.unknown_merchant_grace", "4s")
        .start()
        .await?;
    let start = Instant::now();
    let lost = send(&world, "nobody").await?;
    let saved = send(&world, "somebody").await?;
    let waits = |s: &expediter_wire::control::MerchantStatus| {
        s.state == MerchantState::Unknown && s.backlog == 1
    };
    stands(&world, "nobody", SOON, waits).await?;
    stands(&world, "somebody", SOON, waits).await?;
    ensure!(is_open(&world, &lost).await?);
    world.register(&world.merchant("somebody")).await?;
    let recorded = outcome(&world, saved.seq, SOON).await?;
    is(&recorded, OutcomeKind::Delivered)?;
    ensure!(
        start.elapsed() < Duration::from_secs(4),
        "it waited for nothing"
    );
    let recorded = outcome(&world, lost.seq, Duration::from_secs(12)).await?;
    is_dead(&recorded, DeadReason::UnknownMerchant)?;
    ensure!(start.elapsed() > Duration::from_millis(3_900));
    let (payload, _) = recorded.dead.context("a dead letter")?;
    ensure!(payload == lost.body);
    node.check(&["not registered"]).await
}

/// The grace begins when an owner had the whole registry, not when the node started: a registry that
/// cannot be read makes no merchant unknown.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_ends_while_the_registry_cannot_be_read() -> Result<()> {
    // The node may do everything but look into the bucket.
    let denied = r#""$JS.API.CONSUMER.*.KV_MERCHANTS", "$JS.API.CONSUMER.*.KV_MERCHANTS.>""#;
    let world = World::configured(&users(denied)).await?;
    world.make_streams(4).await?;
    world.register(&world.merchant("luigis")).await?;
    let early = send(&world, "luigis").await?;
    let node = world
        .node("node")
        .set("orders.unknown_merchant_grace", "1s")
        .set("nats.user", "node")
        .set("nats.password", "env:NATS_PASSWORD")
        .env("NATS_PASSWORD", "n")
        .spawn()?;
    eventually("the node is up", SOON, || async {
        let (status, page) = node.get("/readyz").await?;
        Ok((status == 503 && page.contains("registry is not loaded")).then_some(()))
    })
    .await?;
    let late = send(&world, "luigis").await?;
    // Three graces, for something that must not happen.
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(is_open(&world, &early).await? && is_open(&world, &late).await?);
    ensure!(world.fleet.stats().arrived == 0);
    allow_everything(&world).await?;
    node.wait_ready(Duration::from_secs(20)).await?;
    world.settled(SOON).await?;
    world.oracle().judge().await?;
    node.check(&["Permissions Violation", "not registered"])
        .await
}

fn users(denied: &str) -> String {
    format!(
        "authorization {{ users: [ {{user: test, password: t}}, {{user: node, password: n, \
         permissions: {{ publish: {{ deny: [{denied}] }} }} }} ] }}\nno_auth_user: test\n"
    )
}

/// Writes the broker's configuration anew and lets it read it.
async fn allow_everything(world: &World) -> Result<()> {
    let config = world.broker().store_dir().with_extension("conf");
    let text = std::fs::read_to_string(&config)?;
    let base = text.split("authorization").next().unwrap_or_default();
    std::fs::write(&config, format!("{base}{}", users("")))?;
    let pid = world.broker().pid().context("the broker runs")?;
    let hung_up = std::process::Command::new("kill")
        .args(["-HUP", &pid.to_string()])
        .status()?;
    ensure!(hung_up.success());
    world.reconnected(SOON).await
}
