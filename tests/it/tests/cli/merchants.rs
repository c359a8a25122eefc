//! `expediter merchant …`: apply, list, show, rollback, test, resume.

use anyhow::{Context as _, Result, ensure};
use expediter_fleet::merchants::Behaviour;
use expediter_harness::{NewOrder, World, eventually};
use serde_json::Value;

use super::{CONFLICT, FAILED, NOT_FOUND, OK, USAGE, feed, run};

pub(super) fn manifest(world: &World, id: &str, more: &str) -> String {
    let url = world.fleet.url(id);
    format!("[[merchant]]\nid = \"{id}\"\n[merchant.adapter]\nurl = \"{url}\"\n{more}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_creates_changes_and_leaves() -> Result<()> {
    let world = World::start().await?;
    let file = |name: &str, text: String| std::fs::write(world.dir().join(name), text);
    file(
        "a.toml",
        manifest(&world, "luigis", "") + &manifest(&world, "marios", ""),
    )?;
    let apply = ["merchant", "apply", "-f", "a.toml", "--actor", "ann"];
    let dry = run(&world, &[&apply[..], &["--dry-run"]].concat()).await?;
    dry.exits(OK)?.says(&["would create", "luigis", "marios"])?;
    let none = run(&world, &["merchant", "list", "--json"])
        .await?
        .exits(OK)?;
    ensure!(none.objects()?.is_empty(), "a dry run changed something");

    let first = run(&world, &apply).await?.exits(OK)?;
    first.says(&["created", "luigis"])?.tells(&["2 created"])?;
    let again = run(&world, &apply).await?.exits(OK)?;
    again.says(&["unchanged"])?.tells(&["2 unchanged"])?;
    let limits = "[merchant.limits]\nrate = \"20/s\"";
    file(
        "a.toml",
        manifest(&world, "luigis", limits) + &manifest(&world, "marios", ""),
    )?;
    let changed = run(&world, &[&apply[..], &["--json"]].concat())
        .await?
        .exits(OK)?;
    let changed = changed.objects()?;
    ensure!(changed[0]["action"] == "changed" && changed[1]["action"] == "unchanged");
    ensure!(
        changed[0]["changes"][0]["key"] == "limits.rate",
        "{changed:?}"
    );
    ensure!(changed[0]["changes"][0]["to"] == "20/s", "{changed:?}");

    // JSON, stdin, a directory; one that is shown can be applied.
    let json = run(&world, &["merchant", "show", "luigis", "--json"])
        .await?
        .exits(OK)?;
    let shown = json.object()?;
    ensure!(shown["manifest"]["limits"]["rate"] == "20/s" && shown["actor"] == "ann");
    let stdin = ["merchant", "apply", "-f", "-"];
    let same = feed(&world, &stdin, &shown["manifest"].to_string()).await?;
    same.exits(OK)?.says(&["unchanged"])?;
    let text = run(&world, &["merchant", "show", "luigis"])
        .await?
        .exits(OK)?;
    feed(&world, &stdin, &text.out)
        .await?
        .exits(OK)?
        .says(&["unchanged"])?;
    std::fs::create_dir(world.dir().join("all"))?;
    file("all/b.toml", manifest(&world, "pizza", ""))?;
    let url = world.fleet.url("pasta");
    file(
        "all/c.json",
        format!("{{\"merchant\":[{{\"id\":\"pasta\",\"adapter\":{{\"url\":\"{url}\"}}}}]}}"),
    )?;
    file("all/README.md", "no manifest".to_owned())?;
    let dir = run(&world, &["merchant", "apply", "-f", "all", "-f", "a.toml"]).await?;
    dir.exits(OK)?.tells(&["2 created", "2 unchanged"])?;

    let list = run(&world, &["merchant", "list"]).await?.exits(OK)?;
    list.says(&["luigis", "marios", "pasta", "pizza", "20/s"])?
        .tells(&["4 merchants"])?;
    let list = run(&world, &["merchant", "list", "--json"])
        .await?
        .exits(OK)?
        .objects()?;
    let ids: Vec<&str> = list.iter().filter_map(|row| row["id"].as_str()).collect();
    ensure!(ids == ["luigis", "marios", "pasta", "pizza"]);
    // No node runs: nobody knows how they stand, and that is said.
    ensure!(list[0]["state"].is_null(), "{list:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_manifests_change_nothing() -> Result<()> {
    let world = World::start().await?;
    let file = |name: &str, text: &str| std::fs::write(world.dir().join(name), text);
    let good = manifest(&world, "good", "");
    file("good.toml", &good)?;
    let bad = "[[merchant]]\nid = \"lui gis\"\n[merchant.adapter]\nurl = \"ftp://x\"\ntimout = \"3s\"\n\
               [merchant.limits]\nconcurrency = 0\nrate = \"20/x\"\n[merchant.retry]\nmax_attempts = 1001\n";
    file("bad.toml", bad)?;
    let apply = ["merchant", "apply", "-f", "good.toml", "-f", "bad.toml"];
    let refused = run(&world, &apply).await?.exits(USAGE)?.tells(&[
        "bad.toml:2",
        "lui gis",
        "bad.toml:4",
        "http://",
        "bad.toml:5",
        "did you mean timeout?",
        "bad.toml:7",
        "1 to 10000",
        "bad.toml:8",
        "20/s",
        "bad.toml:10",
        "1 to 1000",
        "nothing was changed",
    ])?;
    ensure!(refused.out.is_empty(), "{refused:?}");
    // The same id twice, a file that is no TOML, a file that is not there, an address in disguise.
    file("again.toml", &good)?;
    let twice = ["merchant", "apply", "-f", "good.toml", "-f", "again.toml"];
    run(&world, &twice)
        .await?
        .exits(USAGE)?
        .tells(&["again.toml:1", "good.toml:1"])?;
    file("broken.toml", "[[merchant]\n")?;
    let broken = run(&world, &["merchant", "apply", "-f", "broken.toml"]).await?;
    broken.exits(USAGE)?.tells(&["broken.toml:1"])?;
    let missing = run(&world, &["merchant", "apply", "-f", "missing.toml"]).await?;
    missing.exits(USAGE)?.tells(&["missing.toml"])?;
    let empty = feed(&world, &["merchant", "apply", "-f", "-"], "").await?;
    empty.exits(USAGE)?.tells(&["-:1: no merchant here"])?;
    let disguised = "[[merchant]]\nid = \"x\"\nadapter = { url = \"http://2130706433/\" }\n";
    feed(&world, &["merchant", "apply", "-f", "-"], disguised)
        .await?
        .exits(USAGE)?;
    let list = run(&world, &["merchant", "list", "--json"])
        .await?
        .exits(OK)?;
    ensure!(list.objects()?.is_empty(), "{list:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_operators_cannot_overwrite_each_other() -> Result<()> {
    let world = World::start().await?;
    let mut applies = Vec::new();
    for n in 0..8 {
        let more = format!("[merchant.limits]\nconcurrency = {}", n + 1);
        applies.push(manifest(&world, "contested", &more));
    }
    let args = ["merchant", "apply", "-f", "-"];
    let applies = applies.iter().map(|text| feed(&world, &args, text));
    let ran = futures::future::try_join_all(applies).await?;
    let (mut done, mut refused) = (0, 0);
    for one in &ran {
        ensure!([OK, CONFLICT].contains(&one.code), "{one:#?}");
        match one.code {
            OK => done += 1,
            _ => {
                refused += 1;
                ensure!(one.err.contains("changed meanwhile by"), "{one:#?}");
            }
        }
    }
    ensure!(done >= 1 && done + refused == 8);
    let show = ["merchant", "show", "contested", "--history", "--json"];
    let history = run(&world, &show).await?.exits(OK)?.objects()?;
    ensure!(history.len() == done, "{done} succeeded: {history:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn revisions_can_be_seen_and_rolled_back() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let args = ["merchant", "apply", "-f", "-", "--actor", "ann"];
    for burst in [1, 2, 3] {
        let more = format!("[merchant.limits]\nburst = {burst}");
        feed(&world, &args, &manifest(&world, "luigis", &more))
            .await?
            .exits(OK)?;
    }
    let history = ["merchant", "show", "luigis", "--history"];
    run(&world, &history)
        .await?
        .exits(OK)?
        .says(&["ann", "limits.burst: 1 -> 2", "created"])?;
    let json = run(&world, &[&history[..], &["--json"]].concat())
        .await?
        .exits(OK)?
        .objects()?;
    let first = json[0]["revision"]
        .as_u64()
        .context("a revision")?
        .to_string();
    let burst = || async {
        let show = run(&world, &["merchant", "show", "luigis", "--json"]).await?;
        anyhow::Ok(show.exits(OK)?.object()?["manifest"]["limits"]["burst"].as_u64())
    };
    run(&world, &["merchant", "rollback", "luigis"])
        .await?
        .exits(OK)?
        .says(&["3 -> 2"])?;
    ensure!(burst().await? == Some(2));
    let to = ["merchant", "rollback", "luigis", "--to", &first, "--json"];
    run(&world, &to).await?.exits(OK)?.object()?;
    ensure!(burst().await? == Some(1));
    let to = ["merchant", "rollback", "luigis", "--to", "99999"];
    run(&world, &to).await?.exits(NOT_FOUND)?;
    // A deleted one comes back, too.
    run(&world, &["merchant", "delete", "luigis"])
        .await?
        .exits(OK)?;
    run(&world, &["merchant", "show", "luigis"])
        .await?
        .exits(NOT_FOUND)?
        .tells(&["luigis"])?;
    run(&world, &["merchant", "rollback", "luigis"])
        .await?
        .exits(OK)?;
    ensure!(burst().await? == Some(1));
    for verb in ["show", "rollback", "delete", "test", "resume"] {
        let missing = run(&world, &["merchant", verb, "nobody"]).await?;
        missing.exits(NOT_FOUND)?.tells(&["nobody"])?;
    }
    node.check(&[]).await
}

/// What a change would do to the orders that wait is told before.
#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_what_becomes_of_the_backlog() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    world.fleet.set("busy", Behaviour::status(503))?;
    world.register(&world.merchant("busy")).await?;
    world.publish("busy", 120).await?;
    waiting(&world, "busy", 120).await?;
    let apply = ["merchant", "apply", "-f", "-", "--dry-run"];
    let text = manifest(&world, "busy", "[merchant.limits]\nrate = \"1/s\"");
    let dry = feed(&world, &apply, &text).await?.exits(OK)?;
    dry.says(&["would change", "limits.rate", "120", "min"])?;
    let json = feed(&world, &[&apply[..], &["--json"]].concat(), &text)
        .await?
        .exits(OK)?;
    let effects = json.object()?["effects"].clone();
    ensure!(
        effects.as_array().is_some_and(|e| !e.is_empty()),
        "{json:?}"
    );
    let list = run(&world, &["merchant", "list", "--waiting", "--json"])
        .await?
        .exits(OK)?;
    let row = list.object()?;
    ensure!(
        row["backlog"] == 120 && row["last_error"].is_string(),
        "{row}"
    );
    node.check(&[]).await
}

/// Waits until `merchant list` counts so many.
pub(super) async fn waiting(world: &World, id: &str, backlog: u64) -> Result<()> {
    let counted = eventually("the backlog", super::PATIENCE, || async {
        let show = run(world, &["merchant", "show", id, "--json"])
            .await?
            .exits(OK)?;
        let found = show.object()?["status"]["backlog"].as_u64();
        ensure!(found == Some(backlog), "{found:?} wait");
        Ok(Some(()))
    });
    counted.await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_order_shows_the_exchange_without_secrets() -> Result<()> {
    let world = World::start().await?;
    let secret = "hush-0123456789";
    std::fs::write(world.dir().join("key"), secret)?;
    let key = world.dir().join("key");
    let headers = format!(
        "headers = {{ x-api-key = \"file:{}\", x-plain = \"seen\" }}",
        key.display()
    );
    let text = manifest(&world, "luigis", &headers);
    feed(&world, &["merchant", "apply", "-f", "-"], &text)
        .await?
        .exits(OK)?;
    let echo = Behaviour {
        body: format!("{{\"got\":\"{secret}\"}}"),
        headers: vec![("x-echo".into(), secret.into())],
        ..Behaviour::default()
    };
    world.fleet.set("luigis", echo)?;
    let test = ["merchant", "test", "luigis", "--allow", "127.0.0.0/8"];
    let ran = run(&world, &test).await?.exits(OK)?;
    let ran = ran.says(&[
        "POST",
        "x-plain: seen",
        "x-api-key: ***",
        "expediter-test: true",
        "200",
        "delivered",
    ])?;
    ensure!(
        !ran.out.contains("hush") && !ran.err.contains("hush"),
        "{ran:#?}"
    );
    let json = run(&world, &[&test[..], &["--json", "--id", "t-1"]].concat())
        .await?
        .exits(OK)?;
    ensure!(!json.out.contains("hush"), "{json:#?}");
    let exchange = json.object()?;
    ensure!(
        exchange["class"] == "delivered" && exchange["order"] == "t-1",
        "{exchange}"
    );
    ensure!(world.fleet.arrivals("luigis")[1].order_id == "t-1");
    // Refused by the merchant, and refused by us.
    world.fleet.set("luigis", Behaviour::rejecting())?;
    run(&world, &test)
        .await?
        .exits(FAILED)?
        .says(&["422", "item_unavailable"])?;
    let inside = run(&world, &test[..3]).await?.exits(FAILED)?;
    ensure!(
        (inside.out.clone() + &inside.err).contains("egress.allow"),
        "{inside:#?}"
    );
    for verb in [
        ["merchant", "show", "luigis"].as_slice(),
        &["merchant", "list", "--json"],
    ] {
        let shown = run(&world, verb).await?.exits(OK)?;
        ensure!(!shown.out.contains("hush"), "{shown:#?}");
    }
    run(&world, &["merchant", "show", "luigis"])
        .await?
        .says(&["file:"])?;
    Ok(())
}

/// A closed merchant is opened by a person.
#[tokio::test(flavor = "multi_thread")]
async fn resume_opens_a_closed_merchant() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    world.fleet.set("closed", Behaviour::status(401))?;
    world.register(&world.merchant("closed")).await?;
    world.publisher().send(NewOrder::to("closed")).await?;
    let show = || async {
        let shown = run(&world, &["merchant", "show", "closed", "--json"])
            .await?
            .exits(OK)?;
        anyhow::Ok(shown.object()?["status"].clone())
    };
    let state = |name: &'static str| async move {
        eventually(name, super::PATIENCE, || async {
            let status = show().await?;
            Ok((status["state"] == name).then_some(status))
        })
        .await
    };
    let status: Value = state("closed").await?;
    ensure!(status["closed_because"] == "suspended", "{status}");
    let list = run(&world, &["merchant", "list"]).await?.exits(OK)?;
    list.says(&["closed: suspended"])?;
    world.fleet.set("closed", Behaviour::fast())?;
    let resume = [
        "merchant",
        "resume",
        "closed",
        "--reason",
        "a new key",
        "--json",
    ];
    run(&world, &resume).await?.exits(OK)?.object()?;
    world.settled(super::PATIENCE).await?;
    world.oracle().judge().await?;
    node.check(&["closed", "suspended"]).await
}
