//! Secrets reach the merchant and nobody else; requests go only where they may.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream;
use expediter_harness::World;
use expediter_types::{ClosedBecause, DeadReason, Secret, SecretRef};

use super::listener::Answer;
use super::{Listener, SOON, is_closed, is_dead, is_open, outcome, send, stands, stream};

const FROM_ENV: &str = "hush-0123456789abcdef-env";
const FROM_FILE: &str = "hush-0123456789abcdef-file";

/// Every message of a stream, subjects and headers included.
async fn dump(world: &World, name: &str) -> Result<String> {
    let stream = stream(world, name).await?;
    let mut text = String::new();
    for sequence in 1..=stream.get_info().await?.state.last_sequence {
        let Ok(message) = stream.get_raw_message(sequence).await else {
            continue;
        };
        text.push_str(&format!("{:?} {:?}\n", message.subject, message.headers));
        text.push_str(&String::from_utf8_lossy(&message.payload));
    }
    Ok(text)
}

/// All files below a directory.
fn files(dir: &Path, text: &mut Vec<u8>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files(&path, text)?;
        } else {
            text.extend(std::fs::read(path)?);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_reach_the_merchant_and_nothing_else() -> Result<()> {
    let world = World::start().await?;
    // It says what it got, in every way there is.
    let tactless = Listener::start(|request, _| {
        let key = request.header("x-api-key").unwrap_or_default();
        let token = request.header("authorization").unwrap_or_default();
        let body = format!("{{\"key\":\"{key}\",\"token\":\"{token}\"}}");
        Answer::status(400).header("x-echo", key).body(body)
    })
    .await?;
    let file = world.dir().join("token");
    std::fs::write(&file, format!("Bearer {FROM_FILE}\n"))?;
    let reference = |reference| Secret::Reference(reference);
    let mut merchant = world.merchant("tactless");
    merchant.adapter.url = tactless.url();
    merchant.adapter.headers = vec![
        (
            "authorization".to_owned(),
            reference(SecretRef::File(file.display().to_string())),
        ),
        (
            "x-api-key".to_owned(),
            reference(SecretRef::Env("TACTLESS_KEY".to_owned())),
        ),
        ("x-plain".to_owned(), Secret::Plain("for all".to_owned())),
    ];
    world.register(&merchant).await?;
    let node = world
        .node("node")
        .env("TACTLESS_KEY", FROM_ENV)
        .set("log.filter", "trace")
        .start()
        .await?;
    let order = send(&world, "tactless").await?;
    let recorded = outcome(&world, order.seq, SOON).await?;
    is_dead(&recorded, DeadReason::Invalid)?;
    let request = tactless.requests().pop().context("a request")?;
    ensure!(request.header("x-api-key") == Some(FROM_ENV));
    let bearer = format!("Bearer {FROM_FILE}");
    ensure!(request.header("authorization") == Some(bearer.as_str()));
    ensure!(request.header("x-plain") == Some("for all"));

    let (_, excerpt) = recorded.dead.context("a dead letter")?;
    ensure!(
        std::str::from_utf8(&excerpt)?.contains("***"),
        "{excerpt:?}"
    );
    let context = jetstream::new(world.connection.client().clone());
    let mut names: Vec<String> = Vec::new();
    let mut listed = context.stream_names();
    while let Some(name) = futures::StreamExt::next(&mut listed).await {
        names.push(name?);
    }
    ensure!(names.len() >= 5, "{names:?}");
    let mut places = Vec::new();
    for name in names {
        places.push((name.clone(), dump(&world, &name).await?));
    }
    let lines: String = node
        .log()
        .lines()
        .iter()
        .map(|l| l.text.clone() + "\n")
        .collect();
    places.push(("the log".to_owned(), lines));
    for page in ["/metrics", "/readyz"] {
        places.push((page.to_owned(), node.get(page).await?.1));
    }
    let mut stored = Vec::new();
    files(node.data_dir(), &mut stored)?;
    places.push((
        "the store".to_owned(),
        String::from_utf8_lossy(&stored).into_owned(),
    ));
    for (place, text) in places {
        ensure!(!text.contains("hush-"), "{place} has a secret");
    }
    node.check(&[]).await
}

/// A reference that leads nowhere is a fault of the manifest: nothing is sent, nothing is lost, and a
/// mended one is followed.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_secret_closes_the_merchant() -> Result<()> {
    let world = World::start().await?;
    let file = world.dir().join("token");
    let mut merchant = world.merchant("locked");
    let reference = SecretRef::File(file.display().to_string());
    merchant.adapter.headers = vec![("x-key".to_owned(), Secret::Reference(reference))];
    world.register(&merchant).await?;
    let node = world.node("node").start().await?;
    let order = send(&world, "locked").await?;
    let status = stands(&world, "locked", SOON, is_closed).await?;
    let error = status.last_error.unwrap_or_default();
    ensure!(error.contains("token"), "{error}");
    ensure!(world.fleet.stats().arrived == 0 && is_open(&world, &order).await?);
    std::fs::write(&file, "found")?;
    merchant.group = "mended".to_owned();
    world.register(&merchant).await?;
    world.settled(SOON).await?;
    world.oracle().judge().await?;
    node.check(&["closed", "misconfigured"]).await
}

/// Without `egress.allow` nothing goes to this machine or its neighbours, by whatever name.
#[tokio::test(flavor = "multi_thread")]
async fn private_addresses_are_refused_unless_allowed() -> Result<()> {
    let world = World::start().await?;
    let local = Listener::start(|_, _| Answer::status(200)).await?;
    let port = local.url();
    let port = port.split(['/', ':']).nth(4).context("a port")?;
    let node = world
        .node("node")
        .set_toml("egress.allow", "[]")
        .start()
        .await?;
    let hosts = [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "0.0.0.0",
        "127.1.2.3",
        "[::ffff:127.0.0.1]",
        "10.0.0.1",
        "169.254.169.254",
        "[fe80::1]",
    ];
    for (n, host) in hosts.into_iter().enumerate() {
        let id = format!("inside-{n}");
        let mut merchant = world.merchant(&id);
        merchant.adapter.url = format!("http://{host}:{port}/orders");
        world.register(&merchant).await?;
        let order = send(&world, &id).await?;
        let status = stands(&world, &id, SOON, is_closed).await;
        let status = status.with_context(|| host.to_owned())?;
        ensure!(
            status.closed_because == Some(ClosedBecause::Misconfigured),
            "{host}: {status:?}"
        );
        ensure!(is_open(&world, &order).await?, "{host}");
    }
    ensure!(local.requests().is_empty());
    node.check(&["closed", "misconfigured"]).await
}
