//! The store is lost or damaged while the node is down.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use expediter_fleet::merchants::Behaviour;
use expediter_harness::{NewOrder, World, eventually};
use expediter_types::{DeadReason, OutcomeKind};

use super::shop;

const DRAIN: Duration = Duration::from_secs(30);
const INVALID: OutcomeKind = OutcomeKind::DeadLettered(DeadReason::Invalid);

/// Everything in the data directory can be rebuilt, and dead letters were never there alone.
#[tokio::test(flavor = "multi_thread")]
async fn wiped_while_down() -> Result<()> {
    let world = World::start().await?;
    shop::open(&world).await?;
    world.fleet.set("rejecting", Behaviour::rejecting())?;
    world.register(&world.merchant("rejecting")).await?;
    let mut node = world.node("node").start().await?;
    let rejected = world.publish("rejecting", 5).await?;
    let load = shop::rush(&world, 200);
    for _ in 0..2 {
        let before = world.fleet.stats().arrived;
        let flows = world
            .fleet
            .wait_until(DRAIN, |stats| stats.arrived > before + 300)
            .await;
        ensure!(flows, "nothing arrives");
        node.kill9();
        node.wipe_data()?;
        node.restart().await?;
    }
    load.stop().await;
    let outcomes = world.settled(DRAIN).await?;
    println!(
        "{:?}",
        world
            .oracle()
            .after_crashes()
            .allow("rejecting", INVALID)
            .judge_with(&outcomes)?
    );
    for order in rejected {
        let letter = outcomes.of(order.seq).context("an outcome")?;
        let (payload, answer) = letter.dead.as_ref().context("a dead letter")?;
        ensure!(*payload == order.body, "another payload");
        ensure!(
            answer.starts_with(b"{\"error\""),
            "not the merchant's answer: {answer:?}"
        );
    }
    node.check(&[]).await
}

/// A store that cannot be read is moved aside and built anew from the log.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_while_down() -> Result<()> {
    let world = World::start().await?;
    shop::open(&world).await?;
    world.fleet.set("closed", Behaviour::status(503))?;
    let mut closed = world.merchant("closed");
    // Long enough for all of them to wait at the same time: those in the mailbox do not count.
    closed.retry.initial = Duration::from_secs(5);
    closed.retry.max = Duration::from_secs(5);
    world.register(&closed).await?;
    let mut node = world.node("node").start().await?;
    for _ in 0..200 {
        world
            .publisher()
            .offer(NewOrder::to("closed").body(vec![b'x'; 2_000]))
            .await?;
    }
    let load = shop::rush(&world, 200);
    eventually("orders are in the store", DRAIN, async || {
        Ok((node.metric("expediter_orders_stored").await? >= 150.0).then_some(()))
    })
    .await?;
    node.kill9();
    let store = node.data_dir().join("store");
    damage(&store)?;
    node.restart().await?;
    world.fleet.set("closed", Behaviour::fast())?;
    load.stop().await;
    world.settled(DRAIN).await?;
    println!("{:?}", world.oracle().after_crashes().judge().await?);
    ensure!(
        !node.log().find("the store was broken").is_empty(),
        "it says nothing"
    );
    let aside = fs::read_dir(node.data_dir())?
        .filter_map(Result::ok)
        .filter(|entry| {
            entry.file_name().to_string_lossy().starts_with("store") && entry.path() != store
        });
    ensure!(aside.count() > 0, "nothing was moved aside");
    node.check(&["the store was broken", "sled"]).await
}

/// The disk of the store fills up in the middle of the work: the node ends and says why, and another
/// one has everything.
#[tokio::test(flavor = "multi_thread")]
async fn full_in_the_middle_of_a_batch() -> Result<()> {
    let namespaces = Command::new("unshare").args(["-Urm", "true"]).status();
    if !namespaces.is_ok_and(|status| status.success()) {
        eprintln!("not run: no user namespaces here, and so no small disk");
        return Ok(());
    }
    let world = World::start().await?;
    world.fleet.set("closed", Behaviour::status(503))?;
    let mut closed = world.merchant("closed");
    closed.retry.initial = Duration::from_secs(5);
    closed.retry.max = Duration::from_secs(5);
    world.register(&closed).await?;
    let small = world.node("small").disk_mib(16).start().await?;
    for _ in 0..1_000 {
        let order = NewOrder::to("closed").body(vec![b'x'; 20_000]);
        world.publisher().offer(order).await?;
    }
    world.publisher().flush().await;
    let code = small.wait_exit(DRAIN).await?;
    ensure!(code == 1, "exit code {code}");
    let said = small.log().tail(5);
    ensure!(
        said.contains("cannot write to the store in") && said.contains("No space left on device"),
        "unclear: {said}"
    );
    // It goes by the same name on a larger disk.
    world.fleet.set("closed", Behaviour::fast())?;
    let node = world.node("small").files("large").start().await?;
    world.settled(DRAIN).await?;
    println!("{:?}", world.oracle().after_crashes().judge().await?);
    node.check(&[]).await
}

/// Flips bytes all over the largest files.
fn damage(dir: &Path) -> Result<()> {
    let mut files: Vec<PathBuf> = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    let mut damaged = 0;
    for file in files {
        let mut bytes = fs::read(&file)?;
        if bytes.len() < 4_096 {
            continue;
        }
        for place in (64..bytes.len()).step_by(701) {
            bytes[place] ^= 0x5a;
        }
        fs::write(&file, bytes)?;
        damaged += 1;
    }
    ensure!(damaged > 0, "nothing to damage in {}", dir.display());
    Ok(())
}

/// What a node must not touch or cannot use ends it with a reason, and is left as it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_used_ends_the_node() -> Result<()> {
    let world = World::start().await?;
    let mut node = world.node("node").start().await?;
    ensure!(node.terminate(DRAIN).await? == 0);
    let conf = node.data_dir().join("store").join("conf");
    let whole = fs::read(&conf)?;
    // As a later engine would write it: the checksum is of the settings.
    let settings = String::from_utf8(whole[..whole.len() - 4].to_vec())?;
    let newer = settings.replace("version: 0.34", "version: 0.35");
    ensure!(
        newer != settings,
        "the engine has another version: {settings}"
    );
    let crc = crc32fast::hash(newer.as_bytes()).to_le_bytes();
    fs::write(&conf, [newer.as_bytes(), &crc].concat())?;
    let written = fs::read(&conf)?;
    node.spawn_again()?;
    let code = node.wait_exit(DRAIN).await?;
    ensure!(code > 0, "it ends with {code}");
    ensure!(
        node.log().tail(5).contains("store"),
        "unclear: {}",
        node.log().tail(5)
    );
    ensure!(fs::read(&conf)? == written, "it was changed");

    // A file where the directory should be.
    node.wipe_data()?;
    fs::create_dir_all(node.data_dir())?;
    fs::write(node.data_dir().join("store"), b"mine")?;
    node.spawn_again()?;
    let code = node.wait_exit(DRAIN).await?;
    ensure!(code > 0, "it ends with {code}");
    ensure!(fs::read(node.data_dir().join("store"))? == b"mine");
    Ok(())
}
