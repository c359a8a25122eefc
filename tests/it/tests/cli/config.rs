//! Settings, and everything that works without a broker.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use expediter_harness::eventually;
use tempfile::TempDir;
use tokio::process::Command;

use super::{FAILED, OK, USAGE, run_in};

#[tokio::test]
async fn the_default_settings_are_printed_and_valid() -> Result<()> {
    let dir = TempDir::new()?;
    let printed = run_in(dir.path(), &["config", "default"], b"").await?;
    let printed = printed
        .exits(OK)?
        .says(&["[node]", "[nats]", "mark_every"])?;
    std::fs::write(dir.path().join("all.toml"), &printed.out)?;
    let checked = run_in(dir.path(), &["config", "check", "all.toml"], b"").await?;
    checked.exits(OK)?.says(&["all.toml: ok"])?;
    let json = ["config", "check", "all.toml", "--json"];
    let report = run_in(dir.path(), &json, b"").await?.exits(OK)?.object()?;
    ensure!(report["ok"] == true && report["problems"] == serde_json::json!([]));
    Ok(())
}

#[tokio::test]
async fn a_typo_is_found_with_its_place_and_a_suggestion() -> Result<()> {
    let dir = TempDir::new()?;
    let text = "[node]\nnmae = \"a\"\n\n[orders]\nmark_every = \"3 parsecs\"\n[http]\nretry_after_min = \"25h\"\n";
    std::fs::write(dir.path().join("c.toml"), text)?;
    let checked = run_in(dir.path(), &["config", "check", "c.toml"], b"").await?;
    let checked = checked.exits(USAGE)?.tells(&[
        "c.toml:2: node.nmae",
        "did you mean node.name?",
        "c.toml:5: orders.mark_every",
        "c.toml:7: http.retry_after_min",
        "0s to 1d",
    ])?;
    ensure!(checked.out.is_empty());
    let json = ["config", "check", "c.toml", "--json"];
    let report = run_in(dir.path(), &json, b"")
        .await?
        .exits(USAGE)?
        .object()?;
    ensure!(report["ok"] == false && report["problems"].as_array().is_some_and(|p| p.len() == 3));
    ensure!(report["problems"][0]["line"] == 2);
    // The node itself says the same, and does not start.
    let serve = ["serve", "--config", "c.toml"];
    let refused = run_in(dir.path(), &serve, b"").await?;
    refused.exits(USAGE)?.tells(&["did you mean node.name?"])?;
    let missing = run_in(dir.path(), &["serve", "--config", "none.toml"], b"").await?;
    missing.exits(USAGE)?.tells(&["none.toml"])?;
    Ok(())
}

#[tokio::test]
async fn the_environment_is_checked_like_the_file() -> Result<()> {
    let dir = TempDir::new()?;
    let mut command = super::command(dir.path())?;
    let refused = command
        .args(["merchant", "list"])
        .env("EXPEDITER_NODE_NMAE", "x")
        .output()
        .await?;
    let err = String::from_utf8(refused.stderr)?;
    ensure!(refused.status.code() == Some(USAGE), "{err}");
    ensure!(
        err.contains("EXPEDITER_NODE_NMAE") && err.contains("EXPEDITER_NODE_NAME"),
        "{err}"
    );
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_down_is_said_to_be() -> Result<()> {
    let dir = TempDir::new()?;
    std::fs::write(dir.path().join("m.toml"), MERCHANT)?;
    let verbs: [&[&str]; 6] = [
        &["merchant", "list"],
        &["merchant", "show", "luigis"],
        &["merchant", "apply", "-f", "m.toml"],
        &["order", "publish", "luigis", "-f", "m.toml"],
        &["order", "show", "1", "--merchant", "luigis"],
        &["outcome", "tail"],
    ];
    for verb in verbs {
        let args: Vec<&str> = verb
            .iter()
            .copied()
            .chain(["--nats", "127.0.0.1:1"])
            .collect();
        let failed = run_in(dir.path(), &args, b"").await?.exits(FAILED)?;
        let failed = failed.tells(&["127.0.0.1:1", "nats-server", "--nats"])?;
        ensure!(
            failed.out.is_empty() && !failed.err.contains("panicked"),
            "{failed:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_broker_without_a_platform_is_told_apart() -> Result<()> {
    let world = expediter_harness::World::bare().await?;
    for verb in [
        ["merchant", "list"].as_slice(),
        &["merchant", "show", "luigis"],
        &["order", "publish", "luigis", "-f", "-"],
        &["order", "show", "1", "--merchant", "luigis"],
        &["outcome", "tail"],
    ] {
        let failed = super::run(&world, verb).await?.exits(FAILED)?;
        failed.tells(&["expediter serve"])?;
    }
    Ok(())
}

#[tokio::test]
async fn help_version_and_completion_are_there() -> Result<()> {
    let dir = TempDir::new()?;
    let help = run_in(dir.path(), &["--help"], b"").await?.exits(OK)?;
    let help = help.says(&[
        "serve",
        "dev",
        "merchant",
        "order",
        "outcome",
        "config",
        "Exit codes",
    ])?;
    ensure!(help.err.is_empty());
    run_in(dir.path(), &["version"], b"")
        .await?
        .exits(OK)?
        .says(&["expediter 0."])?;
    let json = run_in(dir.path(), &["version", "--json"], b"")
        .await?
        .exits(OK)?;
    ensure!(json.object()?["version"].is_string());
    let script = run_in(dir.path(), &["completion", "bash"], b"")
        .await?
        .exits(OK)?;
    ensure!(script.out.contains("complete"));
    run_in(dir.path(), &["merchnat"], b"")
        .await?
        .exits(USAGE)?
        .tells(&["merchant"])?;
    run_in(dir.path(), &[], b"")
        .await?
        .exits(USAGE)?
        .tells(&["Usage"])?;
    Ok(())
}

const MERCHANT: &str = "[[merchant]]\nid = \"luigis\"\nadapter = { url = \"https://a.example\" }\n";

/// `expediter serve` under these limits of open files, with these settings.
fn serve_with_files(
    dir: &Path,
    soft: u32,
    hard: u32,
    settings: &[(&str, &str)],
) -> Result<Command> {
    let command = super::command(dir)?;
    let binary = command.as_std().get_program().to_owned();
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg(format!(
            "ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" serve"
        ))
        .arg(binary)
        .current_dir(dir)
        .env("EXPEDITER_NODE_DATA_DIR", dir.join("data"))
        .env("EXPEDITER_NODE_LISTEN", "127.0.0.1:0")
        .env("EXPEDITER_NATS_SERVERS", "nats://127.0.0.1:1")
        .envs(settings.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    Ok(shell)
}

#[tokio::test]
async fn more_attempts_than_open_files_are_refused() -> Result<()> {
    let dir = TempDir::new()?;
    for (settings, told) in [
        (
            &[("EXPEDITER_NODE_IN_FLIGHT", "5000")][..],
            "node.in_flight = 5000 needs 5256 open files, but the limit is 1000: lower \
             node.in_flight to 744",
        ),
        (
            &[
                ("EXPEDITER_NODE_IN_FLIGHT", "500"),
                ("EXPEDITER_NODE_OPEN_FILES", "600"),
            ],
            "node.in_flight = 500 needs 756 open files, but the limit is 600",
        ),
    ] {
        let refused = serve_with_files(dir.path(), 300, 1_000, settings)?.output();
        let refused = tokio::time::timeout(super::PATIENCE, refused).await??;
        let err = String::from_utf8(refused.stderr)?;
        ensure!(refused.status.code() == Some(FAILED), "{err}");
        ensure!(err.contains(told), "{told:?} is missing: {err}");
    }
    Ok(())
}

#[tokio::test]
async fn the_limit_of_open_files_is_raised_as_far_as_asked() -> Result<()> {
    let dir = TempDir::new()?;
    for (wanted, raised) in [("0", "1000"), ("700", "700")] {
        let settings = [
            ("EXPEDITER_NODE_IN_FLIGHT", "400"),
            ("EXPEDITER_NODE_OPEN_FILES", wanted),
        ];
        let mut node = serve_with_files(dir.path(), 300, 1_000, &settings)?.spawn()?;
        let limits = format!("/proc/{}/limits", node.id().context("it runs")?);
        eventually("the limit is raised", super::PATIENCE, || async {
            let limits = std::fs::read_to_string(&limits)?;
            let line = limits
                .lines()
                .find(|line| line.starts_with("Max open files"));
            let soft = line.and_then(|line| line.split_whitespace().nth(3));
            Ok((soft == Some(raised)).then_some(()))
        })
        .await?;
        node.kill().await?;
    }
    Ok(())
}
