//! `expediter dev`: the main job on one machine, to watch.
//!
//! A real broker as a child, a node, a simulated merchant fleet, and a steady flow of orders. The
//! orders are accounted for at the end: every acknowledged one is finished or still waits.

mod account;
mod alone;
mod data_dir;
mod fleet;
mod publisher;
mod screen;
mod table;

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use expediter_fleet::merchants::FleetHandle;
use expediter_fleet::nats_server::{self, NatsServer};
use expediter_nats::Connection;
use expediter_telemetry::Tracing;

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
  expediter dev --nats nats://127.0.0.1:4222
                                           against a running server that nobody else uses

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
    let _lock = data_dir::take(&args.data_dir, args.keep)?;
    let mut config = config(args)?;
    let guard = expediter_telemetry::logs::init(&log_options(&config, interactive))?;
    let (broker, url) = match nats {
        Some(url) => {
            // Credentials and TLS; the child needs neither.
            config.nats = settings.nats.clone();
            (None, url.to_owned())
        }
        None => {
            let options = nats_server::Options {
                search: tools(),
                ..nats_server::Options::new(args.data_dir.join("nats"))
            };
            let broker = NatsServer::start(options).await?;
            let url = broker.url();
            (Some(broker), url)
        }
    };
    config.set_servers(&url).map_err(anyhow::Error::msg)?;
    eprintln!("NATS at {url}, data in {}", args.data_dir.display());
    let stage = Stage {
        args,
        config,
        interactive,
        json,
    };
    let shown = stage.show(&url, guard.tracing(), &mut stop).await;
    if let Some(broker) = broker {
        broker.terminate().await;
    }
    let _flushed =
        tokio::task::spawn_blocking(move || guard.shutdown(Duration::from_secs(2))).await;
    shown
}

/// What is settled before anything runs.
struct Stage<'a> {
    args: &'a Args,
    config: Config,
    interactive: bool,
    json: bool,
}

impl Stage<'_> {
    /// With the broker there: starts the rest, shows it until the end, stops it in order.
    async fn show(
        &self,
        url: &str,
        tracing: Tracing,
        stop: &mut StopSignals,
    ) -> anyhow::Result<u64> {
        let fleet = fleet::start()?;
        let (connection, node) = tokio::select! {
            started = self.start(tracing) => started?,
            _ = stop.next() => return Ok(0),
        };
        let played = tokio::select! {
            account = prepare(&connection, &fleet) => match account {
                Ok(account) => self.play(&node, &connection, &account, url, stop).await,
                Err(error) => Err(error),
            },
            _ = stop.next() => Ok(0),
        };
        eprintln!("stopping");
        node.stop().await;
        connection.close().await;
        played
    }

    /// With its own broker, or one that nobody else works with: a node takes every merchant's orders.
    async fn start(&self, tracing: Tracing) -> anyhow::Result<(Connection, RunningNode)> {
        let options = self.config.connect_options("expediter dev")?;
        let connection = Connection::open_once(&options).await?;
        alone::check(&connection, &self.config.nats.servers.join(",")).await?;
        let node = RunningNode::start(&self.config, tracing).await?;
        Ok((connection, node))
    }

    /// Publishes and shows until the end, then closes the books.
    async fn play(
        &self,
        node: &RunningNode,
        connection: &Connection,
        account: &Account,
        url: &str,
        stop: &mut StopSignals,
    ) -> anyhow::Result<u64> {
        let publisher = publisher::start(connection.clone(), account.clone(), self.args.rate);
        let started = Instant::now();
        let mut table = Table::new(account.clone(), url);
        let watched = self.watch(node, &mut table, started, stop).await;
        publisher.stop().await;
        watched?;
        let verdict = account.settle(node).await;
        let nodes = node.node.status().live_nodes;
        anyhow::ensure!(
            nodes <= 1,
            "another node has joined at {url}: what it holds cannot be accounted for here"
        );
        table.refresh(node, started.elapsed()).await;
        let summary = match self.json {
            true => serde_json::to_string(&verdict)?,
            false => table.summary(&verdict, started.elapsed()),
        };
        // Nobody may be reading any more; the verdict is in the exit code as well.
        let _reader_gone = writeln!(std::io::stdout(), "{summary}").is_err();
        Ok(verdict.lost)
    }

    async fn watch(
        &self,
        node: &RunningNode,
        table: &mut Table,
        started: Instant,
        stop: &mut StopSignals,
    ) -> anyhow::Result<()> {
        let mut screen = Screen::open(self.interactive, self.json)?;
        let period = Duration::from_millis(if self.interactive { 250 } else { 1_000 });
        let mut every = tokio::time::interval(period);
        every.tick().await;
        loop {
            tokio::select! {
                _ = every.tick() => {
                    table.refresh(node, started.elapsed()).await;
                    let over = self.args.for_.is_some_and(|limit| started.elapsed() >= limit);
                    if screen.show(table)? || over {
                        break;
                    }
                }
                _ = stop.next() => break,
                error = node.failed() => return Err(error),
            }
        }
        Ok(screen.close()?)
    }
}

async fn prepare(connection: &Connection, fleet: &FleetHandle) -> anyhow::Result<Account> {
    fleet::register(connection, fleet).await?;
    Account::follow(connection).await
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
fn log_options(config: &Config, interactive: bool) -> expediter_telemetry::logs::Options {
    let mut options = config.log_options();
    if interactive {
        options.file = Some(config.node.data_dir.join("dev.log"));
    } else {
        options.filter =
            "warn,expediter=error,expediter_runtime=error,expediter_nats=error".to_owned();
    }
    options
}
