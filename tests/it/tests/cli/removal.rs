//! `expediter merchant delete`: orders that wait are not forgotten by mistake.

use std::time::Duration;

use anyhow::{Result, ensure};
use expediter_fleet::merchants::Behaviour;
use expediter_harness::World;
use expediter_types::{DeadReason, OutcomeKind};

use super::merchants::waiting;
use super::{FAILED, NOT_FOUND, OK, USAGE, run};

#[tokio::test(flavor = "multi_thread")]
async fn a_merchant_with_orders_is_not_deleted_by_mistake() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    world.fleet.set("busy", Behaviour::status(503))?;
    world.register(&world.merchant("busy")).await?;
    world.publish("busy", 40).await?;
    waiting(&world, "busy", 40).await?;
    let delete = ["merchant", "delete", "busy"];
    let refused = run(&world, &delete).await?.exits(FAILED)?;
    refused.tells(&["40 orders wait", "--drain", "--dead-letter"])?;
    let short = [&delete[..], &["--drain", "--timeout", "1s"]].concat();
    run(&world, &short).await?.exits(FAILED)?.tells(&["40"])?;
    let unreasoned = [&delete[..], &["--dead-letter"]].concat();
    run(&world, &unreasoned)
        .await?
        .exits(USAGE)?
        .tells(&["--reason"])?;
    run(&world, &["merchant", "show", "busy"])
        .await?
        .exits(OK)?;
    // It is there, and works.
    world.fleet.set("busy", Behaviour::fast())?;
    let drain = [&delete[..], &["--drain"]].concat();
    run(&world, &drain)
        .await?
        .exits(OK)?
        .says(&["deleted", "busy"])?;
    run(&world, &["merchant", "show", "busy"])
        .await?
        .exits(NOT_FOUND)?;
    world.settled(Duration::from_secs(5)).await?;
    let verdict = world.oracle().judge().await?;
    ensure!(verdict.delivered == 40, "{verdict:?}");
    node.check(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_end_as_dead_letters_on_purpose() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    world.fleet.set("gone", Behaviour::status(503))?;
    let mut merchant = world.merchant("gone");
    merchant.limits.mailbox = 16;
    world.register(&merchant).await?;
    world.publish("gone", 600).await?;
    waiting(&world, "gone", 600).await?;
    let reason = "closed for good";
    let delete = [
        "merchant",
        "delete",
        "gone",
        "--dead-letter",
        "--reason",
        reason,
        "--json",
        "--actor",
        "ann",
    ];
    let deleted = run(&world, &delete).await?.exits(OK)?.object()?;
    ensure!(deleted["action"] == "deleted", "{deleted}");
    let outcomes = world.settled(Duration::from_secs(10)).await?;
    for recorded in outcomes.all() {
        let outcome = &recorded.outcome;
        let kind = OutcomeKind::DeadLettered(DeadReason::MerchantDeleted);
        ensure!(outcome.kind == kind, "{outcome:?}");
        ensure!(
            outcome.detail.contains(reason) && outcome.detail.contains("ann"),
            "{outcome:?}"
        );
        ensure!(
            recorded
                .dead
                .as_ref()
                .is_some_and(|(payload, _)| !payload.is_empty())
        );
    }
    ensure!(
        deleted["dead_lettered"].as_u64().is_some_and(|n| n > 550),
        "{deleted}"
    );
    run(&world, &["merchant", "show", "gone"])
        .await?
        .exits(NOT_FOUND)?;
    node.check(&["an operator ends all waiting orders"]).await
}

/// Without a node nobody knows what waits: nothing is deleted.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_deleted_while_no_node_answers() -> Result<()> {
    let world = World::start().await?;
    world.register(&world.merchant("luigis")).await?;
    let refused = run(&world, &["merchant", "delete", "luigis"])
        .await?
        .exits(FAILED)?;
    refused.tells(&["no node", "expediter serve"])?;
    let show = run(&world, &["merchant", "show", "luigis"])
        .await?
        .exits(OK)?;
    show.says(&["luigis"])?.tells(&["no node"])?;
    Ok(())
}
