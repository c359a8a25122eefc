//! `expediter dev`: the main job in one command, which leaves nothing behind.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use expediter_harness::{World, eventually};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::{FAILED, OK, PATIENCE, finished, signal};

/// `expediter dev` with the pinned broker, without a terminal.
fn dev(dir: &Path, args: &[&str]) -> Result<Command> {
    let mut command = super::command(dir)?;
    command.env("PATH", super::path_with_broker()?);
    command
        .args(["dev", "--data-dir"])
        .arg(dir.join("data"))
        .args(args);
    Ok(command)
}

/// Processes whose command line has the directory in it.
fn left(dir: &Path) -> Result<Vec<String>> {
    let dir = dir.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path().join("cmdline");
        let line = std::fs::read(path).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&dir) {
            found.push(line);
        }
    }
    Ok(found)
}

async fn nothing_is_left(dir: &Path) -> Result<()> {
    eventually(
        "all processes are gone",
        Duration::from_secs(10),
        || async {
            let left = left(dir)?;
            ensure!(left.is_empty(), "{left:?}");
            Ok(Some(()))
        },
    )
    .await
}

/// Starts it and waits until orders flow.
async fn started(dir: &Path) -> Result<(Child, Lines<BufReader<ChildStdout>>)> {
    let mut child = dev(dir, &[])?.stderr(Stdio::inherit()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
    let flows = async {
        while let Some(line) = lines.next_line().await? {
            if line.contains("accepted") && !line.contains("finished 0 ") {
                return Ok(());
            }
        }
        anyhow::bail!("it ended")
    };
    tokio::time::timeout(PATIENCE, flows)
        .await
        .context("nothing flows")??;
    ensure!(!left(dir)?.is_empty(), "no process has the directory");
    Ok((child, lines))
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_by_itself_with_a_summary() -> Result<()> {
    let dir = TempDir::new()?;
    let output = dev(dir.path(), &["--for", "5s"])?.output();
    let output = tokio::time::timeout(PATIENCE, output)
        .await
        .context("no end")??;
    let out = String::from_utf8(output.stdout)?;
    let err = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(0), "{out}\n{err}");
    let lines: Vec<&str> = out
        .lines()
        .filter(|line| line.contains("accepted"))
        .collect();
    ensure!(lines.len() >= 4, "a line a second: {out}\n{err}");
    for merchant in [
        "fast",
        "slow",
        "flaky",
        "rate-limiting",
        "hung",
        "rejecting",
    ] {
        ensure!(out.contains(merchant), "{merchant} is missing: {out}");
    }
    ensure!(
        out.contains("0 lost") || err.contains("0 lost"),
        "{out}\n{err}"
    );
    ensure!(!out.contains('\u{1b}'), "no colours without a terminal");
    nothing_is_left(dir.path()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_it_in_order() -> Result<()> {
    let dir = TempDir::new()?;
    let (mut child, mut lines) = started(dir.path()).await?;
    signal(&child, "-INT")?;
    let mut rest = String::new();
    let ended = async {
        while let Some(line) = lines.next_line().await? {
            rest.push_str(&line);
            rest.push('\n');
        }
        anyhow::Ok(child.wait().await?)
    };
    let status = tokio::time::timeout(PATIENCE, ended)
        .await
        .context("no end")??;
    ensure!(status.code() == Some(0), "{status}: {rest}");
    ensure!(rest.contains("0 lost"), "{rest}");
    nothing_is_left(dir.path()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn its_broker_dies_with_it() -> Result<()> {
    let dir = TempDir::new()?;
    let (mut child, _lines) = started(dir.path()).await?;
    child.kill().await?;
    nothing_is_left(dir.path()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_uses_a_running_server_that_nobody_else_uses() -> Result<()> {
    let world = World::bare().await?;
    let url = world.broker().url();
    let args = ["--nats", &url, "--json", "--for", "4s", "--rate", "200"];
    // Twice: its own merchants are there from the first time.
    for _ in 0..2 {
        let verdict = finished(dev(world.dir(), &args)?).await?.exits(OK)?;
        let verdict = verdict.objects()?.pop().context("no object")?;
        let figure = |key: &str| {
            verdict[key]
                .as_u64()
                .with_context(|| format!("{key}: {verdict}"))
        };
        ensure!(
            figure("lost")? == 0 && figure("accepted")? > 400,
            "{verdict}"
        );
        let (finished, delivered) = (figure("finished")?, figure("delivered")?);
        ensure!(
            finished + figure("waiting")? == figure("accepted")?,
            "{verdict}"
        );
        ensure!(delivered > 0 && delivered <= finished, "{verdict}");
    }
    world.register(&world.merchant("luigis")).await?;
    finished(dev(world.dir(), &args)?)
        .await?
        .exits(FAILED)?
        .tells(&["not the demonstration's (luigis)", "run without --nats"])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_refuses_a_server_with_a_node_and_one_that_is_not_there() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("kitchen-1").start().await?;
    let url = world.broker().url();
    finished(dev(world.dir(), &["--nats", &url])?)
        .await?
        .exits(FAILED)?
        .tells(&[&format!("a node works at {url}"), "run without --nats"])?;
    ensure!(node.terminate(PATIENCE).await? == 0);

    let absent = "nats://127.0.0.1:1";
    finished(dev(world.dir(), &["--nats", absent])?)
        .await?
        .exits(FAILED)?
        .tells(&["no connection to NATS", absent])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_another_server_do_not_concern_its_own_broker() -> Result<()> {
    let dir = TempDir::new()?;
    let mut command = dev(dir.path(), &["--for", "2s", "--json"])?;
    command.env("EXPEDITER_NATS_REPLICAS", "3");
    command.env("EXPEDITER_NATS_TLS_REQUIRED", "true");
    finished(command).await?.exits(OK)?.says(&["\"lost\":0"])?;
    nothing_is_left(dir.path()).await
}
