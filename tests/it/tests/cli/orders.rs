//! `expediter order …` and `expediter outcome tail`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use expediter_fleet::merchants::Behaviour;
use expediter_harness::{World, eventually};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::{FAILED, NOT_FOUND, OK, USAGE, command, feed, run};

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_published_from_files_stdin_and_lines() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    world.register(&world.merchant("luigis")).await?;
    std::fs::write(world.dir().join("order.json"), "{\"pizza\":1}")?;
    let publish = ["order", "publish", "luigis", "-f"];
    let file = [&publish[..], &["order.json", "--id", "4711"]].concat();
    run(&world, &file)
        .await?
        .exits(OK)?
        .says(&["published", "luigis", "4711", "sequence 1"])?;
    run(&world, &file)
        .await?
        .exits(OK)?
        .says(&["4711", "had it already"])?;
    let json = run(&world, &[&file[..], &["--json"]].concat())
        .await?
        .exits(OK)?
        .object()?;
    ensure!(json["duplicate"] == true && json["seq"] == 1, "{json}");
    let stdin = [
        &publish[..],
        &["-", "--key", "table 7", "--type", "order.placed", "--json"],
    ]
    .concat();
    let json = feed(&world, &stdin, "{\"pizza\":2}")
        .await?
        .exits(OK)?
        .object()?;
    let made_up = json["id"].as_str().context("an id")?.to_owned();
    let lines: String = (0..500)
        .map(|n| format!("{{\"number\":{n},\"table\":\"t{}\"}}\n", n % 5))
        .collect();
    let ndjson = [
        "-",
        "--ndjson",
        "--id-field",
        "number",
        "--key-field",
        "table",
    ];
    let ndjson = [&publish[..], &ndjson].concat();
    feed(&world, &ndjson, &lines)
        .await?
        .exits(OK)?
        .says(&["published 500 orders"])?;
    let more = lines + "no json\n{\"table\":1}\n{\"number\":501}\n";
    let again = feed(&world, &[&ndjson[..], &["--json"]].concat(), &more)
        .await?
        .exits(FAILED)?;
    let sum = again.object()?;
    ensure!(sum["duplicates"] == 500 && sum["failed"] == 3, "{sum}");
    ensure!(sum["failures"][0]["place"] == "-:501", "{sum}");
    let arrived = world
        .fleet
        .wait_arrived("luigis", 502, Duration::from_secs(20))
        .await;
    ensure!(arrived, "{:?}", world.fleet.merchant_stats("luigis"));
    let arrivals = world.fleet.arrivals("luigis");
    for id in ["4711", made_up.as_str(), "0", "499"] {
        ensure!(arrivals.iter().any(|a| a.order_id == id), "{id}");
    }
    node.check(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_would_refuse_is_refused_before() -> Result<()> {
    let world = World::start().await?;
    let publish = ["order", "publish", "luigis", "-f", "-"];
    let cases: [&[&str]; 6] = [
        &["--deadline", "tomorrow"],
        &["--not-before", "-3s"],
        &["--id", "with space"],
        &["--header", "novalue"],
        &["--header", "Nats-Msg-Id=1"],
        &["--id", "1", "--ndjson"],
    ];
    for case in cases {
        let refused = feed(&world, &[&publish[..], case].concat(), "{}").await?;
        refused.exits(USAGE)?;
    }
    run(&world, &["order", "publish", "not a merchant", "-f", "-"])
        .await?
        .exits(USAGE)?;
    run(&world, &["order", "publish", "luigis", "-f", "missing"])
        .await?
        .exits(USAGE)?
        .tells(&["missing"])?;
    // ORDERS leaves 64 KiB of the broker's 1 MiB for what a dead letter adds.
    let large = "x".repeat(990_000);
    feed(&world, &publish, &large)
        .await?
        .exits(FAILED)?
        .tells(&["larger than the 978944 bytes"])?;
    let fits = "x".repeat(978_944);
    feed(&world, &publish, &fits).await?.exits(OK)?;
    // Nobody registered it: that is worth a word, and no reason to refuse.
    let fine = feed(&world, &publish, "{}").await?.exits(OK)?;
    fine.tells(&["warning", "luigis"])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_found_wherever_it_is() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    world.fleet.set("refusing", Behaviour::rejecting())?;
    world.fleet.set("slow", Behaviour::hung())?;
    world.fleet.set("flaky", Behaviour::status(503))?;
    for id in ["luigis", "refusing", "slow", "flaky"] {
        let mut merchant = world.merchant(id);
        merchant.adapter.timeout = Duration::from_secs(60);
        merchant.retry.initial = Duration::from_secs(3600);
        merchant.retry.max = Duration::from_secs(3600);
        world.register(&merchant).await?;
        let publish = ["order", "publish", id, "-f", "-", "--id", "1"];
        feed(&world, &publish, "{}").await?.exits(OK)?;
    }
    let show = |merchant: &'static str, wanted: &'static str| {
        let world = &world;
        async move {
            eventually(merchant, super::PATIENCE, || async {
                let args = ["order", "show", "1", "--merchant", merchant, "--json"];
                let order = run(world, &args).await?.exits(OK)?.object()?;
                ensure!(order["where"] == wanted && order["id"] == "1", "{order}");
                let tried = order["attempts"].as_array().is_some_and(|a| !a.is_empty());
                Ok((tried || wanted == "in_flight").then_some(order))
            })
            .await
        }
    };
    let delivered = show("luigis", "finished").await?;
    ensure!(delivered["outcome"] == "delivered", "{delivered}");
    ensure!(delivered["attempts"][0]["status"] == 200, "{delivered}");
    let dead = show("refusing", "finished").await?;
    ensure!(
        dead["outcome"] == "dead_lettered" && dead["reason"] == "invalid",
        "{dead}"
    );
    ensure!(
        dead["excerpt"].to_string().contains("item_unavailable"),
        "{dead}"
    );
    show("slow", "in_flight").await?;
    let waits = show("flaky", "store").await?;
    ensure!(
        waits["due"].is_string() && waits["outcome"].is_null(),
        "{waits}"
    );
    ensure!(waits["attempts"][0]["class"] == "retry", "{waits}");
    let text = run(&world, &["order", "show", "1", "-m", "flaky"])
        .await?
        .exits(OK)?;
    text.says(&["waits", "next try", "503"])?;
    let text = run(&world, &["order", "show", "1", "-m", "refusing"])
        .await?
        .exits(OK)?;
    text.says(&["dead_lettered (invalid)", "422"])?;
    for merchant in ["luigis", "nobody"] {
        let unknown = ["order", "show", "2", "--merchant", merchant];
        run(&world, &unknown)
            .await?
            .exits(NOT_FOUND)?
            .tells(&["no order 2"])?;
        let json = run(&world, &[&unknown[..], &["--json"]].concat())
            .await?
            .exits(NOT_FOUND)?;
        ensure!(json.out.is_empty() || json.object().is_ok());
    }
    // What is finished is found without a node, too; what is not, is not made up.
    node.terminate(Duration::from_secs(15)).await?;
    let args = ["order", "show", "1", "--merchant", "luigis", "--json"];
    let order = run(&world, &args).await?.exits(OK)?.object()?;
    ensure!(order["outcome"] == "delivered", "{order}");
    let args = ["order", "show", "1", "--merchant", "flaky"];
    let unknown = run(&world, &args).await?;
    ensure!(
        unknown.code == FAILED && unknown.err.contains("no node"),
        "{unknown:#?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_are_followed() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    world.fleet.set("refusing", Behaviour::rejecting())?;
    for id in ["luigis", "refusing"] {
        world.register(&world.merchant(id)).await?;
        world.publish(id, 5).await?;
    }
    world.settled(Duration::from_secs(10)).await?;
    let tail = ["outcome", "tail", "--from-start", "-n"];
    let all = run(&world, &[&tail[..], &["10", "--json"]].concat())
        .await?
        .exits(OK)?;
    ensure!(all.objects()?.len() == 10, "{all:?}");
    let some = [
        "5",
        "--kind",
        "dead_lettered",
        "--merchant",
        "refusing",
        "--json",
    ];
    let some = run(&world, &[&tail[..], &some].concat())
        .await?
        .exits(OK)?
        .objects()?;
    ensure!(
        some.iter()
            .all(|o| o["reason"] == "invalid" && o["merchant"] == "refusing"),
        "{some:?}"
    );
    let text = run(&world, &[&tail[..], &["10"]].concat())
        .await?
        .exits(OK)?;
    text.says(&["luigis-1", "delivered", "dead_lettered (invalid)"])?;
    run(&world, &["outcome", "tail", "--kind", "lost"])
        .await?
        .exits(USAGE)?
        .tells(&["delivered"])?;

    // From now on: only what ends from now on.
    let mut command = command(world.dir())?;
    let mut child = command
        .args([
            "outcome",
            "tail",
            "--json",
            "-n",
            "1",
            "--nats",
            &world.broker().url(),
        ])
        .spawn()?;
    let stdout = child.stdout.take().context("stdout")?;
    let mut line = String::new();
    let mut reader = BufReader::new(stdout);
    let mut read = Box::pin(reader.read_line(&mut line));
    let mut sent = 0;
    loop {
        tokio::select! {
            done = &mut read => { done?; break; }
            // It is not known when it has begun to listen.
            () = tokio::time::sleep(Duration::from_millis(300)) => {
                ensure!(sent < 50, "nothing is told");
                sent += 1;
                world.publish("luigis", 1).await?;
            }
        }
    }
    drop(read);
    let told: serde_json::Value = serde_json::from_str(&line)?;
    let id = told["id"].as_str().and_then(|id| id.rsplit('-').next());
    ensure!(
        id.is_some_and(|n| n.parse::<u32>().is_ok_and(|n| n > 5)),
        "{told}"
    );
    ensure!(child.wait().await?.success());
    node.check(&[]).await
}
