//! `expediter doctor`: looks at everything, and says what to do.

mod broker;
mod cluster;
mod merchants;
mod reconcile;

use std::io::IsTerminal as _;

use expediter_types::UnixMillis;
use indicatif::ProgressBar;
use serde::Serialize;

use super::global::block_on;
use super::out::Out;
use super::owners::Owners;
use super::text::{clean, counted, past};
use super::{Error, Global};

const EXAMPLES: &str = "\
Looks at the NATS server, at streams and their readers, at nodes, their clocks and stores, at partitions,
and at merchants; says what is wrong and what to do. Changes nothing. Whether the broker syncs what it
acknowledges only its monitoring port tells: --monitor, once for each server.

--reconcile reads every sequence of ORDERS since --since, and names each that has neither an outcome nor
an owner with whom it waits. It reads as many messages as were published since then.

Ends with 1 when something is wrong; warnings alone do not make it fail, unless --strict.

Examples:
  expediter doctor
  expediter doctor --monitor http://127.0.0.1:8222
  expediter doctor --reconcile --since 1h
  expediter doctor --json | jq 'select(.level == \"wrong\")'";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Monitoring address of a NATS server, such as http://127.0.0.1:8222; can be repeated
    #[arg(long, value_parser = monitor, value_name = "URL")]
    monitor: Vec<String>,
    /// Account for every sequence of ORDERS
    #[arg(long)]
    reconcile: bool,
    /// For --reconcile: what was published since then, so long ago, such as 1h, or RFC 3339
    #[arg(long, value_parser = past, value_name = "WHEN", requires = "reconcile", default_value = "1h")]
    since: UnixMillis,
    /// Fail for warnings, too
    #[arg(long)]
    strict: bool,
}

fn monitor(text: &str) -> Result<String, String> {
    match reqwest::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(text.to_owned()),
        _ => Err("is no address such as http://127.0.0.1:8222".to_owned()),
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    Ok,
    Warning,
    Wrong,
}

/// What a check found.
#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    /// What was looked at, such as `nats.version`.
    check: &'static str,
    /// What is so.
    found: String,
    /// What to do; empty where all is well.
    #[serde(skip_serializing_if = "str::is_empty")]
    todo: String,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(Level::Ok, check, found, "")
    }

    fn warning(check: &'static str, found: impl Into<String>, todo: impl Into<String>) -> Self {
        Self::new(Level::Warning, check, found, todo)
    }

    fn wrong(check: &'static str, found: impl Into<String>, todo: impl Into<String>) -> Self {
        Self::new(Level::Wrong, check, found, todo)
    }

    fn new(
        level: Level,
        check: &'static str,
        found: impl Into<String>,
        todo: impl Into<String>,
    ) -> Self {
        let (found, todo) = (found.into(), todo.into());
        Self {
            level,
            check,
            found,
            todo,
        }
    }
}

pub(crate) fn run(global: &Global, args: Args) -> Result<(), Error> {
    block_on(async { Box::pin(look(global, args)).await })
}

async fn look(global: &Global, args: Args) -> Result<(), Error> {
    let connection = global.connect().await?;
    let mut findings = broker::check(&connection, &args.monitor).await?;
    match Owners::of(&connection).await {
        Ok(owners) => {
            findings.extend(cluster::check(&connection, &owners).await?);
            findings.extend(merchants::check(&connection, &owners).await?);
            if args.reconcile {
                let bar = match std::io::stderr().is_terminal() && !global.json {
                    true => ProgressBar::new_spinner(),
                    false => ProgressBar::hidden(),
                };
                findings.extend(reconcile::run(&connection, &owners, args.since, &bar).await?);
                bar.finish_and_clear();
            }
        }
        // The streams' own findings say so.
        Err(_) if findings.iter().any(|finding| finding.level == Level::Wrong) => {}
        Err(error) => return Err(error),
    }
    let mut out = Out::stdout();
    for finding in &findings {
        match global.json {
            true => out.buffer_json(finding)?,
            false => out.buffer(&line(finding))?,
        }
    }
    out.flush()?;
    let of = |level| findings.iter().filter(|f| f.level == level).count() as u64;
    let (wrong, warnings) = (of(Level::Wrong), of(Level::Warning));
    if wrong > 0 || (args.strict && warnings > 0) {
        return Err(Error::failed(format!(
            "{} wrong, {}",
            counted(wrong, "thing"),
            counted(warnings, "warning")
        )));
    }
    Ok(())
}

fn line(finding: &Finding) -> String {
    let colourful = Out::is_colourful();
    let (word, colour) = match finding.level {
        Level::Ok => ("ok", "32"),
        Level::Warning => ("warning", "33"),
        Level::Wrong => ("WRONG", "31;1"),
    };
    let padded = format!("{word:<8}");
    let word = match colourful {
        true => format!("\u{1b}[{colour}m{padded}\u{1b}[0m"),
        false => padded,
    };
    let mut text = format!("{word} {:<18} {}", finding.check, clean(&finding.found));
    if !finding.todo.is_empty() {
        text.push_str(&format!("\n{:28}-> {}", "", clean(&finding.todo)));
    }
    text
}
