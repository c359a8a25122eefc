//! The verbs of the real binary, as people and scripts use them: data on stdout, the rest on stderr,
//! exit codes that mean something.

mod audit;
mod bench;
mod config;
mod deadletters;
mod demo;
mod deploy;
mod doctor;
mod holds;
mod jobs;
mod just;
mod merchants;
mod orders;
mod removal;
mod resolve;
mod runbooks;
mod scopes;
mod top;

use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use expediter_harness::World;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// No verb of these tests takes longer, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

const OK: i32 = 0;
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const NOT_FOUND: i32 = 3;
const CONFLICT: i32 = 4;

/// What a verb did.
#[derive(Debug)]
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    /// The exit code was this.
    fn exits(self, code: i32) -> Result<Self> {
        ensure!(
            self.code == code,
            "exit code {code} was expected: {self:#?}"
        );
        Ok(self)
    }

    /// Each of the texts is in stdout.
    fn says(self, texts: &[&str]) -> Result<Self> {
        for text in texts {
            ensure!(self.out.contains(text), "{text:?} is missing: {self:#?}");
        }
        Ok(self)
    }

    /// Each of the texts is in stderr.
    fn tells(self, texts: &[&str]) -> Result<Self> {
        for text in texts {
            ensure!(self.err.contains(text), "{text:?} is missing: {self:#?}");
        }
        Ok(self)
    }

    /// Stdout has JSON objects, one a line, and nothing else.
    fn objects(&self) -> Result<Vec<Value>> {
        let read = |line: &str| {
            let value: Value = serde_json::from_str(line)?;
            ensure!(value.is_object(), "no object: {line}");
            Ok(value)
        };
        let read = |line| read(line).with_context(|| format!("not JSON: {self:#?}"));
        self.out.lines().map(read).collect()
    }

    /// The only one.
    fn object(&self) -> Result<Value> {
        let mut objects = self.objects()?;
        ensure!(objects.len() == 1, "{self:#?}");
        Ok(objects.remove(0))
    }
}

/// The binary, without the environment's own settings.
fn command(dir: &Path) -> Result<Command> {
    let mut command = Command::new(expediter_harness::binary()?);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("EXPEDITER_") {
            command.env_remove(name);
        }
    }
    command
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    Ok(command)
}

/// With the broker for verbs that start one.
fn path_with_broker() -> Result<OsString> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/bin");
    let mut path = vec![tools];
    if let Some(server) = std::env::var_os("EXPEDITER_TEST_NATS_SERVER") {
        path.extend(Path::new(&server).parent().map(Path::to_owned));
    }
    path.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    Ok(std::env::join_paths(path)?)
}

/// Runs a command to its end.
async fn finished(mut command: Command) -> Result<Ran> {
    let output = tokio::time::timeout(PATIENCE, command.output());
    let output = output.await.context("no end")??;
    Ok(Ran {
        code: output.status.code().context("killed")?,
        out: String::from_utf8(output.stdout)?,
        err: String::from_utf8(output.stderr)?,
    })
}

/// Runs a verb in a directory; `input` goes to stdin.
async fn run_in(dir: &Path, args: &[&str], input: &[u8]) -> Result<Ran> {
    let mut command = command(dir)?;
    let mut child = command.args(args).stdin(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("stdin")?;
    // A verb that fails early does not read it.
    let written = stdin.write_all(input).await;
    drop((stdin, written));
    let done = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let done = done.with_context(|| format!("{args:?} does not end"))??;
    Ok(Ran {
        code: done.status.code().unwrap_or(-1),
        out: String::from_utf8(done.stdout)?,
        err: String::from_utf8(done.stderr)?,
    })
}

/// Runs a verb against the world's broker.
async fn run(world: &World, args: &[&str]) -> Result<Ran> {
    feed(world, args, "").await
}

/// The same with stdin.
async fn feed(world: &World, args: &[&str], input: &str) -> Result<Ran> {
    let url = world.broker().url();
    let args: Vec<&str> = args.iter().copied().chain(["--nats", &url]).collect();
    run_in(world.dir(), &args, input.as_bytes()).await
}

/// Sends a signal, such as `-INT`, to a process that runs.
fn signal(child: &tokio::process::Child, name: &str) -> Result<()> {
    let pid = child.id().context("it runs")?.to_string();
    let sent = std::process::Command::new("kill")
        .args([name, &pid])
        .status()?;
    ensure!(sent.success());
    Ok(())
}
