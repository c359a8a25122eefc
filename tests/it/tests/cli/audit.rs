//! `expediter audit`: every verb that changes something leaves a record of who did it, and when.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use expediter_fleet::merchants::Behaviour;
use expediter_harness::{World, eventually};
use expediter_types::NodeName;
use expediter_wire::control::{ControlReply, ControlRequest, decode_reply, encode_request};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::time::Instant;

use super::merchants::{manifest, waiting};
use super::{FAILED, NOT_FOUND, OK, PATIENCE, command, feed, run};

const AUDIT: [&str; 2] = ["audit", "--json"];

async fn records(world: &World, more: &[&str]) -> Result<Vec<Value>> {
    let ran = run(world, &[&AUDIT[..], more].concat()).await?;
    ran.exits(OK)?.objects()
}

async fn apply(world: &World, text: &str, actor: &str) -> Result<()> {
    let apply = ["merchant", "apply", "-f", "-", "--actor", actor];
    feed(world, &apply, text).await?.exits(OK).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_verb_leaves_its_record() -> Result<()> {
    let world = World::start().await?;
    let begun = Instant::now();
    let both = manifest(&world, "luigis", "") + &manifest(&world, "marios", "");
    apply(&world, &both, "ann").await?;
    let slower = manifest(&world, "luigis", "[merchant.limits]\nrate = \"20/s\"");
    apply(&world, &slower, "bob").await?;
    // Nothing changes, nobody did anything.
    apply(&world, &slower, "cid").await?;
    let dry = [
        "merchant",
        "apply",
        "-f",
        "-",
        "--dry-run",
        "--actor",
        "cid",
    ];
    feed(&world, &dry, &both).await?.exits(OK)?;
    let rollback = ["merchant", "rollback", "luigis", "--actor", "dan"];
    run(&world, &rollback).await?.exits(OK)?;
    let resume = ["merchant", "resume", "luigis", "--reason", "a new key"];
    run(&world, &resume).await?.exits(OK)?;

    let node = world.node("node").start().await?;
    world.fleet.set("luigis", Behaviour::status(503))?;
    world.publish("luigis", 3).await?;
    waiting(&world, "luigis", 3).await?;
    let delete = ["merchant", "delete", "luigis", "--actor", "eve"];
    let refused = run(&world, &delete).await?.exits(FAILED)?;
    refused.tells(&["3 orders wait"])?;
    let dead = ["--dead-letter", "--reason", "closed for good"];
    run(&world, &[&delete[..], &dead].concat())
        .await?
        .exits(OK)?;
    run(&world, &["merchant", "delete", "marios", "--actor", "eve"])
        .await?
        .exits(OK)?;

    let all = records(&world, &[]).await?;
    let told = |record: &Value| {
        let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
        format!("{} {} {}", text("verb"), text("id"), text("result"))
    };
    let verbs: Vec<String> = all.iter().map(told).collect();
    ensure!(
        verbs[2..]
            == [
                "merchant.apply luigis ok",
                "merchant.rollback luigis ok",
                "merchant.resume luigis ok",
                "merchant.dead_letter luigis ok",
                "merchant.delete luigis ok",
                "merchant.delete marios ok",
            ],
        "{verbs:#?}"
    );
    let mut created = verbs[..2].to_vec();
    created.sort();
    ensure!(created == ["merchant.apply luigis ok", "merchant.apply marios ok"]);
    let actors: Vec<_> = all.iter().map(|record| &record["actor"]).collect();
    ensure!(actors[..4] == ["ann", "ann", "bob", "dan"], "{actors:?}");
    ensure!(
        actors[4].as_str().is_some_and(|name| name.contains('@')),
        "{actors:?}"
    );
    ensure!(actors[5..] == ["eve", "eve", "eve"], "{actors:?}");
    let changed = &all[2]["details"];
    ensure!(changed["changes"][0]["key"] == "limits.rate", "{changed}");
    ensure!(
        changed["before"].as_u64() < changed["revision"].as_u64(),
        "{changed}"
    );
    ensure!(all[3]["details"]["to"] == changed["before"], "{:?}", all[3]);
    ensure!(all[4]["reason"] == "a new key", "{:?}", all[4]);
    ensure!(all[5]["reason"] == "closed for good", "{:?}", all[5]);
    ensure!(all[5]["details"]["dead_lettered"] == 3, "{:?}", all[5]);
    let all_of_it = format!("{}s", begun.elapsed().as_secs() + 60);
    ensure!(records(&world, &["--since", &all_of_it]).await?.len() == all.len());
    ensure!(records(&world, &["--since", "1ms"]).await?.is_empty());

    let only = |more: &'static [&'static str]| {
        let world = &world;
        async move {
            let found = records(world, more).await?;
            anyhow::Ok(found.iter().map(told).collect::<Vec<_>>())
        }
    };
    let of_marios = only(&["--merchant", "marios"]).await?;
    ensure!(
        of_marios == ["merchant.apply marios ok", "merchant.delete marios ok"],
        "{of_marios:?}"
    );
    ensure!(only(&["--verb", "merchant.resume"]).await?.len() == 1);
    ensure!(only(&["--verb", "merchant"]).await?.len() == all.len());
    ensure!(only(&["--verb", "order"]).await?.is_empty());
    ensure!(only(&["--actor", "eve", "--actor", "bob"]).await?.len() == 4);
    ensure!(only(&["--limit", "1"]).await? == ["merchant.delete marios ok"]);
    ensure!(
        only(&[
            "--merchant",
            "luigis",
            "--merchant",
            "luigis",
            "--actor",
            "bob"
        ])
        .await?
        .len()
            == 1
    );

    let table = run(&world, &["audit", "--limit", "7"]).await?.exits(OK)?;
    let table = table.tells(&["1 older records are not shown"])?;
    table.says(&[
        "AT",
        "BY",
        "limits.rate: (absent) -> 20/s",
        "closed for good",
        "eve",
    ])?;
    let none = run(&world, &["audit", "--actor", "zoe"]).await?.exits(OK)?;
    ensure!(none.out.is_empty(), "{none:?}");
    node.check(&["an operator ends all waiting orders"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_followed() -> Result<()> {
    let world = World::start().await?;
    apply(&world, &manifest(&world, "luigis", ""), "ann").await?;
    let url = world.broker().url();
    let follow = [
        "audit", "--follow", "--since", "1h", "--limit", "2", "--json", "--nats", &url,
    ];
    let mut child = command(world.dir())?.args(follow).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
    let mut next = async || {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await??;
        let line = line.context("it ended")?;
        anyhow::Ok(serde_json::from_str::<Value>(&line)?["actor"].clone())
    };
    ensure!(next().await? == "ann");
    apply(&world, &manifest(&world, "marios", ""), "bob").await?;
    ensure!(next().await? == "bob");
    let ended = tokio::time::timeout(PATIENCE, child.wait()).await??;
    ensure!(ended.success(), "{ended}");
    Ok(())
}

/// The effect stands, and whoever asked for it hears that nobody else will.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_recorded_is_said() -> Result<()> {
    let world = World::start().await?;
    let context = async_nats::jetstream::new(world.connection.client().clone());
    let config = context
        .get_stream("AUDIT")
        .await?
        .cached_info()
        .config
        .clone();
    let sealed = async_nats::jetstream::stream::Config {
        sealed: true,
        ..config
    };
    context.update_stream(sealed).await?;
    let text = manifest(&world, "luigis", "");
    let apply = ["merchant", "apply", "-f", "-"];
    let applied = feed(&world, &apply, &text).await?.exits(FAILED)?;
    applied.says(&["created", "luigis"])?.tells(&[
        "merchant.apply luigis is done, but not recorded in AUDIT",
        "sealed",
    ])?;
    run(&world, &["merchant", "show", "luigis"])
        .await?
        .exits(OK)?;
    let resume = ["merchant", "resume", "luigis", "--json"];
    let resumed = run(&world, &resume).await?.exits(FAILED)?;
    let resumed = resumed.tells(&["merchant.resume luigis is done, but not recorded"])?;
    ensure!(resumed.object()?["action"] == "resumed");

    // Without any AUDIT nothing is changed.
    context.delete_stream("AUDIT").await?;
    let slower = manifest(&world, "luigis", "[merchant.limits]\nrate = \"20/s\"");
    let refused = feed(&world, &apply, &slower).await?.exits(FAILED)?;
    refused.tells(&["no AUDIT stream", "expediter serve"])?;
    let shown = run(&world, &["merchant", "show", "luigis", "--json"]).await?;
    ensure!(
        shown.object()?["manifest"]["limits"]["rate"].is_null(),
        "{shown:?}"
    );
    Ok(())
}

/// Ctrl-C ends a verb between its steps: what it did so far is recorded as what it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_verb_that_is_stopped_is_recorded() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    world.fleet.set("hung", Behaviour::hung())?;
    let mut merchant = world.merchant("hung");
    merchant.adapter.timeout = Duration::from_secs(60);
    world.register(&merchant).await?;
    world.publish("hung", 2).await?;
    waiting(&world, "hung", 2).await?;
    let url = world.broker().url();
    let delete = [
        "merchant",
        "delete",
        "hung",
        "--dead-letter",
        "--reason",
        "gone",
        "--actor",
        "ann",
        "--nats",
        &url,
    ];
    let mut child = command(world.dir())?.args(delete).spawn()?;
    // It waits for what is in flight.
    eventually("the request", PATIENCE, || async {
        let told = node.log();
        let told = told.find("an operator ends all waiting orders");
        Ok((!told.is_empty()).then_some(()))
    })
    .await?;
    let pid = child.id().context("a process")?.to_string();
    let told = tokio::process::Command::new("kill")
        .args(["-INT", &pid])
        .status()
        .await?;
    ensure!(told.success());
    let ended = tokio::time::timeout(PATIENCE, child.wait()).await??;
    ensure!(ended.code() == Some(FAILED), "{ended}");
    let all = records(&world, &[]).await?;
    ensure!(all.len() == 1, "{all:?}");
    ensure!(
        all[0]["verb"] == "merchant.dead_letter" && all[0]["result"] == "failed",
        "{all:?}"
    );
    let error = all[0]["error"].as_str().unwrap_or_default();
    ensure!(error.contains("stopped while it ran"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_owner_the_answer_comes_at_once() -> Result<()> {
    let world = World::start().await?;
    world.register(&world.merchant("luigis")).await?;
    for (verb, code) in [
        (
            &["order", "show", "4711", "--merchant", "luigis"][..],
            FAILED,
        ),
        (
            &["order", "explain", "4711", "--merchant", "luigis"],
            FAILED,
        ),
        (
            &["order", "cancel", "4711", "-m", "luigis", "--reason", "x"],
            FAILED,
        ),
        (&["merchant", "show", "luigis"], OK),
        (&["merchant", "explain", "luigis"], FAILED),
        (&["merchant", "delete", "luigis"], FAILED),
        (
            &[
                "order", "resolve", "4711", "-m", "luigis", "--as", "dead", "--reason", "x",
            ],
            NOT_FOUND,
        ),
    ] {
        let begun = Instant::now();
        let ran = run(&world, verb).await?.exits(code)?;
        ran.tells(&["no node works on partition", "expediter serve"])?;
        // A request that waits for an answer in vain takes 3 s.
        ensure!(
            begun.elapsed() < Duration::from_secs(10),
            "{:?}",
            begun.elapsed()
        );
    }
    // What operators decide about a merchant is kept, and holds from the moment that a node is there.
    for (decision, code) in [("pause", OK), ("drain", FAILED), ("resume", OK)] {
        let mut verb = vec!["merchant", decision, "luigis"];
        if decision != "resume" {
            verb.extend(["--reason", "x"]);
        }
        let ran = run(&world, &verb).await?.exits(code)?;
        ran.tells(&["in force as soon as one works on them"])?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_tells_how_it_stands() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("kitchen").start().await?;
    let name = NodeName::new("kitchen")?;
    let ask = async |request: &ControlRequest| {
        let request = encode_request(request);
        let within = Duration::from_secs(5);
        let asked = expediter_nats::request_node(&world.connection, &name, request, within);
        anyhow::Ok(decode_reply(&asked.await?)?)
    };
    let begun = Instant::now();
    let status = loop {
        // It answers for itself once it has started.
        match ask(&ControlRequest::NodeStatus).await {
            Ok(ControlReply::Node(status)) if status.ready => break status,
            other => ensure!(begun.elapsed() < Duration::from_secs(20), "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    ensure!(
        status.node == name && status.failing.is_empty(),
        "{status:?}"
    );
    ensure!(
        status.partitions.len() == 4 && status.live_nodes == 1,
        "{status:?}"
    );
    ensure!(status.version == env!("CARGO_PKG_VERSION") && !status.instance.is_empty());
    let wrong = ask(&ControlRequest::PartitionStatus).await?;
    ensure!(matches!(wrong, ControlReply::Error { .. }), "{wrong:?}");
    node.check(&[]).await
}
