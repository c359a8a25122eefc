//! `expediter dev`: the main job on one machine, to watch.
//!
//! A real broker as a child, a node, a simulated merchant fleet, and a steady flow of orders. The
//! orders are accounted for at the end: every acknowledged one is finished or still waits.

mod account;
mod fleet;
mod publisher;
mod screen;
mod table;

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use expediter_fleet::nats_server::{self, NatsServer};
use expediter_nats::Connection;

use crate::cli;
use crate::config::Config;
use crate::node::{self, RunningNode, StopSignals};
use account::Account;
use screen::Screen;
use table::Table;

/// What `expediter dev` is told.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  expediter dev                            watch until Ctrl-C
  expediter dev --for 20s                  end by itself, with a summary
  expediter dev --rate 500 --for 1m        a faster flow
  expediter dev --nats nats://127.0.0.1:4222   against a running server

Exit code 0: every acknowledged order is accounted for; 1: one was lost, or something failed.")]
pub(crate) struct Args {
    /// End after this time, such as 20s or 5m.
    #[arg(long = "for", value_name = "DURATION", value_parser = expediter_types::parse_duration)]
    for_: Option<Duration>,
    /// Orders a second, over all merchants.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rate: u32,
    /// Where the broker's and the node's data are.
    #[arg(long, value_name = "DIR", default_value = "data/dev")]
    data_dir: PathBuf,
    /// Keep what an earlier run left in the data directory instead of starting afresh.
    #[arg(long)]
    keep: bool,
    /// One plain line a second, also on a terminal.
    #[arg(long)]
    plain: bool,
}

/// Runs the demonstration, with a broker of its own unless `nats` names one. An order that was lost
/// is an error.
pub(crate) fn run(
    args: Args,
    nats: Option<&str>,
    settings: &Config,
    json: bool,
) -> Result<(), cli::Error> {
    let lost = node::block_on(demonstrate(&args, nats, settings, json))??;
    match lost {
        0 => Ok(()),
        1 => Err(cli::Error::failed("1 order was lost")),
        lost => Err(cli::Error::failed(format!("{lost} orders were lost"))),
    }
}

/// Gives the number of lost orders.
async fn demonstrate(
    args: &Args,
    nats: Option<&str>,
    settings: &Config,
    json: bool,
) -> anyhow::Result<u64> {
    let mut stop = StopSignals::new()?;
    let interactive = std::io::stdout().is_terminal() && !args.plain && !json;
    std::fs::create_dir_all(&args.data_dir)
        .with_context(|| format!("cannot make the data directory {}", args.data_dir.display()))?;
    let _lock = lock(&args.data_dir)?;
    if !args.keep {
        clear(&args.data_dir)?;
    }
    let mut config = config(args)?;
    // Credentials and TLS of a server that is used instead of a child.
    config.nats = settings.nats.clone();
    let guard = expediter_telemetry::logs::init(&log_options(&config, interactive)?)?;

    let broker = match nats {
        Some(_) => None,
        None => {
            let options = nats_server::Options {
                search: tools(),
                ..nats_server::Options::new(args.data_dir.join("nats"))
            };
            Some(NatsServer::start(options).await?)
        }
    };
    let url = match (nats, &broker) {
        (Some(url), _) => url.to_owned(),
        (None, Some(broker)) => broker.url(),
        (None, None) => unreachable!("a broker is started when no URL is given"),
    };
    eprintln!("NATS at {url}, data in {}", args.data_dir.display());
    config.set_servers(&url).map_err(anyhow::Error::msg)?;

    let fleet = fleet::start()?;
    let node = tokio::select! {
        node = RunningNode::start(&config, guard.tracing()) => node?,
        _ = stop.next() => return Ok(0),
    };
    let connection = Connection::open_once(&config.connect_options("expediter dev")?).await?;
    fleet::register(&connection, &fleet).await?;
    let account = Account::follow(&connection).await?;
    let publisher = publisher::start(connection.clone(), account.clone(), args.rate);

    let started = Instant::now();
    let mut table = Table::new(account.clone(), &url);
    let mut screen = Screen::open(interactive, json)?;
    let mut every =
        tokio::time::interval(Duration::from_millis(if interactive { 250 } else { 1_000 }));
    every.tick().await;
    let failure = loop {
        tokio::select! {
            _ = every.tick() => {
                table.refresh(&node, started.elapsed()).await;
                if screen.show(&table)? {
                    break None;
                }
                if args.for_.is_some_and(|limit| started.elapsed() >= limit) {
                    break None;
                }
            }
            _ = stop.next() => break None,
            error = node.failed() => break Some(error),
        }
    };
    screen.close()?;
    publisher.stop().await;
    if let Some(error) = failure {
        return Err(error);
    }
    let verdict = account.settle(&node).await;
    table.refresh(&node, started.elapsed()).await;
    let summary = match json {
        true => serde_json::to_string(&verdict)?,
        false => table.summary(&verdict, started.elapsed()),
    };
    // Nobody may be reading any more; the verdict is in the exit code as well.
    let _reader_gone = writeln!(std::io::stdout(), "{summary}").is_err();
    eprintln!("stopping");
    node.stop().await;
    connection.close().await;
    drop(fleet);
    if let Some(broker) = broker {
        broker.terminate().await;
    }
    let _flushed =
        tokio::task::spawn_blocking(move || guard.shutdown(Duration::from_secs(2))).await;
    Ok(verdict.lost)
}

fn config(args: &Args) -> anyhow::Result<Config> {
    let mut config = Config::default();
    config.node.name = Some("dev".parse()?);
    config.node.data_dir.clone_from(&args.data_dir);
    config.node.listen = "127.0.0.1:0".parse()?;
    config.node.drain_deadline = Duration::from_secs(3);
    config.egress.allow = vec!["127.0.0.0/8".to_owned()];
    Ok(config)
}

/// Where `ops/just` puts nats-server: below the working directory, or below the checkout that this
/// binary was built in (`target/<profile>/expediter`).
fn tools() -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from(".tools/bin")];
    if let Ok(binary) = std::env::current_exe()
        && let Some(checkout) = binary.ancestors().nth(3)
    {
        places.push(checkout.join(".tools/bin"));
    }
    places
}

/// On the live screen, log lines would tear the table: they go to a file.
fn log_options(
    config: &Config,
    interactive: bool,
) -> anyhow::Result<expediter_telemetry::logs::Options> {
    let mut options = config.log_options();
    if interactive {
        options.filter = "off".to_owned();
    } else {
        options.filter =
            "warn,expediter=error,expediter_runtime=error,expediter_nats=error".to_owned();
    }
    Ok(options)
}

/// Held while the command runs: another one must not remove what this one works with.
fn lock(dir: &std::path::Path) -> anyhow::Result<std::fs::File> {
    let path = dir.join("dev.lock");
    let file = std::fs::File::options()
        .create(true)
        .append(true)
        .open(&path);
    let file = file.with_context(|| format!("cannot write {}", path.display()))?;
    let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    if rustix::fs::flock(&file, exclusive).is_err() {
        anyhow::bail!(
            "another `expediter dev` uses {}: end it, or choose another --data-dir",
            dir.display()
        );
    }
    Ok(file)
}

/// Removes what an earlier run left; only what this command makes.
fn clear(dir: &std::path::Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name == "nats"
            || name == "store"
            || name.starts_with("nats.")
            || name.starts_with("store.")
        {
            let path = entry.path();
            let removed = match entry.file_type()?.is_dir() {
                true => std::fs::remove_dir_all(&path),
                false => std::fs::remove_file(&path),
            };
            removed.with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}
