//! `expediter job …`, and the jobs in `merchant show`.

use anyhow::{Result, ensure};
use async_nats::jetstream;
use expediter_harness::{Outcomes, World, eventually};
use expediter_types::OutcomeKind;
use expediter_wire::subjects;

use super::merchants::manifest;
use super::{NOT_FOUND, OK, PATIENCE, USAGE, feed, run};

const JOB: &str = "[[merchant.job]]
name = \"menu\"
schedule = \"30 9 * * mon-fri\"
timezone = \"Europe/Rome\"
payload = { kind = \"menu\" }
deadline = \"30m\"";

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_shown_and_run_by_hand() -> Result<()> {
    let world = World::start().await?;
    let both = manifest(&world, "luigis", JOB) + &manifest(&world, "marios", "");
    feed(&world, &["merchant", "apply", "-f", "-"], &both)
        .await?
        .exits(OK)?;
    let listed = run(&world, &["job", "list", "--json"])
        .await?
        .exits(OK)?
        .object()?;
    ensure!(
        listed["merchant"] == "luigis" && listed["name"] == "menu",
        "{listed}"
    );
    ensure!(listed["schedule"] == "30 9 * * mon-fri", "{listed}");
    ensure!(listed.get("last").is_none(), "{listed}");
    let next = listed["next"].as_str().unwrap_or_default();
    ensure!(
        next.ends_with("T08:30:00.000Z") || next.ends_with("T07:30:00.000Z"),
        "{listed}"
    );
    let none = run(&world, &["job", "list", "--merchant", "marios", "--json"]).await?;
    ensure!(none.exits(OK)?.objects()?.is_empty());
    run(&world, &["job", "list", "--merchant", "nobody"])
        .await?
        .exits(NOT_FOUND)?;
    let shown = run(&world, &["merchant", "show", "luigis"])
        .await?
        .exits(OK)?;
    shown.says(&["# job menu (30 9 * * mon-fri, Europe/Rome): last run never, next 20"])?;

    let by_hand = ["job", "run", "menu", "--merchant", "luigis", "--json"];
    let why = ["--reason", "the menu was wrong", "--actor", "ann"];
    run(&world, &by_hand).await?.exits(USAGE)?;
    let ran = run(&world, &[&by_hand[..], &why].concat())
        .await?
        .exits(OK)?
        .object()?;
    let id = ran["id"].as_str().unwrap_or_default().to_owned();
    ensure!(
        id.starts_with("menu@20") && ran["merchant"] == "luigis",
        "{ran}"
    );
    let seq = ran["seq"].as_u64().unwrap_or_default();
    let orders = jetstream::new(world.connection.client().clone())
        .get_stream_no_info(subjects::ORDERS)
        .await?;
    let message = orders.get_raw_message(seq).await?;
    let header = |name: &str| message.headers.get(name).map(|value| value.as_str());
    ensure!(message.payload == "{\"kind\":\"menu\"}", "{message:?}");
    ensure!(header("ce-id") == Some(&*id), "{message:?}");
    ensure!(header("ce-source") == Some("job/menu"), "{message:?}");
    ensure!(header("Expediter-Deadline").is_some(), "{message:?}");
    let node = world.node("node").start().await?;
    let ended = eventually("it is delivered", PATIENCE, async || {
        Ok(Outcomes::read(&world.connection).await?.of(seq).cloned())
    });
    let outcome = ended.await?.outcome;
    ensure!(outcome.kind == OutcomeKind::Delivered, "{outcome:?}");
    let record = run(&world, &["audit", "--verb", "job.run", "--json"])
        .await?
        .exits(OK)?
        .object()?;
    ensure!(
        record["actor"] == "ann" && record["reason"] == "the menu was wrong",
        "{record}"
    );
    ensure!(
        record["kind"] == "job" && record["id"] == "menu",
        "{record}"
    );
    ensure!(record["details"]["order"] == id, "{record}");
    let unknown = [
        "job",
        "run",
        "menus",
        "--merchant",
        "luigis",
        "--reason",
        "x",
    ];
    run(&world, &unknown)
        .await?
        .exits(NOT_FOUND)?
        .tells(&["no job menus of luigis: it has menu"])?;
    node.check(&[]).await
}
