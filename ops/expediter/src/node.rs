//! A node: the platform, its adapters, and the process around them.

mod events;
mod gauges;
mod health;
mod limits;

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use expediter_core::partition::MerchantRow;
use expediter_gateway::{Gateway, Handle};
use expediter_http::HttpCourier;
use expediter_nats::Node;
use expediter_runtime::{Clock, MerchantDirectory, Platform};
use expediter_telemetry::{Metrics, TracedCourier, Tracing};
use expediter_types::MerchantId;
use roaring::RoaringTreemap;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli;
use crate::config::Config;
use crate::control::Control;
use crate::notify::Notifier;
use events::Events;
use gauges::Gauges;
pub(crate) use health::NodeHealth;

/// Everything of a node that runs in this process.
#[derive(Debug)]
pub(crate) struct RunningNode {
    pub(crate) platform: Platform,
    pub(crate) node: Arc<Node>,
    events: Arc<Events>,
    gateway: Handle,
    notifier: Option<Notifier>,
    gauges: tokio::task::JoinHandle<()>,
}

impl RunningNode {
    /// Opens the store, serves the probes, waits for NATS, and works on its partitions from then.
    pub(crate) async fn start(config: &Config, tracing: Tracing) -> anyhow::Result<Self> {
        limits::raise_open_files(config.node.open_files, config.node.in_flight)?;
        let metrics = Arc::new(Metrics::new(env!("CARGO_PKG_VERSION")));
        let notifier = config
            .notify_options()?
            .map(|options| Notifier::start(options, Arc::clone(&metrics)));
        let notices = notifier.as_ref().map(Notifier::notices);
        let events = Events::new(Arc::clone(&metrics), notices);
        let opened = expediter_store::open(&config.store_options()).context("the store")?;
        if let Some(aside) = &opened.aside {
            tracing::error!(%aside, "the store was broken; it is built anew from the log");
        }
        let store = Arc::new(opened.store);
        let courier = HttpCourier::new(config.http_options()?)?;
        let courier = TracedCourier::new(Arc::new(courier), Arc::clone(&metrics), tracing);
        let directory = MerchantDirectory::new();
        let platform = Platform::start(
            config.runtime_options(),
            Arc::clone(&store) as _,
            Arc::new(courier),
            Arc::clone(&directory),
            Arc::clone(&events) as _,
        )?;
        events.set_platform(platform.clone());
        let node = Arc::new(OnceLock::new());
        let health = Arc::new(NodeHealth {
            name: config.node_name(),
            events: Arc::clone(&events),
            platform: platform.clone(),
            store: Arc::clone(&store),
            node: Arc::clone(&node),
        });
        let page = Arc::clone(&metrics);
        let gateway = Gateway::start(
            &config.gateway_options(),
            Arc::clone(&health) as _,
            Arc::new(move || page.render()),
        )?;
        let started = Node::start(
            nats_options(config)?,
            Arc::new(platform.clone()),
            Arc::clone(&directory) as _,
            Arc::new(Control::new(
                platform.clone(),
                config.node_name(),
                Arc::clone(&health),
            )),
            Arc::clone(&events) as _,
        );
        let started = Arc::new(started.await?);
        let _first = node.set(Arc::clone(&started)).is_ok();
        let gauges = Gauges {
            metrics,
            platform: platform.clone(),
            directory,
            store,
            node: Arc::clone(&started),
            health,
        };
        let gauges = tokio::spawn(gauges.keep());
        Ok(Self {
            platform,
            node: started,
            events,
            gateway,
            notifier,
            gauges,
        })
    }

    /// Where the probes are served.
    pub(crate) fn listen(&self) -> std::net::SocketAddr {
        self.gateway.addr()
    }

    /// Rows of all merchants that have something here.
    pub(crate) async fn rows(&self) -> HashMap<MerchantId, MerchantRow> {
        let mut all = HashMap::new();
        for partition in self.platform.partitions() {
            let rows = self.platform.ask(partition, |machine, directory| {
                machine.rows(None, directory, Clock::now())
            });
            let rows = rows.await.unwrap_or_default();
            all.extend(rows.into_iter().map(|row| (row.merchant.clone(), row)));
        }
        all
    }

    /// Sequences that this node took and that are not finished.
    pub(crate) async fn unfinished(&self) -> RoaringTreemap {
        let mut all = RoaringTreemap::new();
        for partition in self.platform.partitions() {
            let open = self
                .platform
                .ask(partition, |machine, _| machine.open_sequences())
                .await;
            all |= open.unwrap_or_default();
        }
        all
    }

    /// Resolves when the process cannot go on.
    pub(crate) async fn failed(&self) -> anyhow::Error {
        tokio::select! {
            reason = self.events.failed() => anyhow::anyhow!(reason),
            error = self.node.failed() => error.into(),
        }
    }

    /// Stops in order: intake and new attempts first, then running attempts end or meet the drain
    /// deadline, outcomes are published, marks written, claims released, the store flushed.
    pub(crate) async fn stop(self) {
        self.node.leave().await;
        self.platform.shut_down().await;
        self.gauges.abort();
        if let Some(notifier) = self.notifier {
            notifier.stop().await;
        }
        self.gateway.stop().await;
    }
}

/// Below `expediter serve --help`.
pub(crate) const EXAMPLES: &str = "\
Runs until SIGTERM or Ctrl-C, then hands its partitions over in order.

Examples:
  expediter config default > expediter.toml
  expediter serve --config expediter.toml
  EXPEDITER_NODE_NAME=kitchen-1 expediter serve --nats nats://10.0.0.5:4222";

/// `expediter serve`: runs until SIGTERM or SIGINT.
pub(crate) fn run(config: Config) -> Result<(), cli::Error> {
    block_on(serve(config))??;
    Ok(())
}

/// Runs on the process's own runtime, with the one TLS provider.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    // A second call finds the same provider in place.
    let _installed = rustls::crypto::ring::default_provider()
        .install_default()
        .is_ok();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("expediter")
        .build()
        .context("cannot start the runtime")?;
    Ok(runtime.block_on(future))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let guard = expediter_telemetry::logs::init(&config.log_options())?;
    log_panics();
    let result = work(&config, guard.tracing()).await;
    if let Err(error) = &result
        && !std::io::stderr().is_terminal()
    {
        // Whoever collects the log is to find why the node ended, too.
        tracing::error!(error = format!("{error:#}"), "the node ends");
    }
    let flushed = tokio::task::spawn_blocking(move || guard.shutdown(Duration::from_secs(5)));
    flushed.await.context("flushing the telemetry")?;
    result
}

/// A panic as a line of the log like any other, instead of text between them.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let why = expediter_ports::panic_text(panic.payload());
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or_default();
        tracing::error!(place, thread, why, "panicked");
    }));
}

async fn work(config: &Config, tracing: Tracing) -> anyhow::Result<()> {
    let mut stop = StopSignals::new()?;
    let node = tokio::select! {
        node = RunningNode::start(config, tracing) => node?,
        // There is nothing to hand over yet.
        signal = stop.next() => {
            tracing::info!(signal, "stopped before the node ran");
            return Ok(());
        }
    };
    tracing::info!(
        node = %config.node_name(), listen = %node.listen(), partitions = node.node.partitions(),
        "the node runs"
    );
    tokio::select! {
        signal = stop.next() => {
            tracing::info!(signal, "stopping: attempts in flight may end first");
            node.stop().await;
            tracing::info!("stopped");
            Ok(())
        }
        // What failed cannot be relied on to stop in order; the log has every order.
        error = node.failed() => Err(error),
    }
}

/// SIGTERM and SIGINT.
pub(crate) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Resolves with the name of the one that came.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// No merchant's timeout may be longer; a former owner's attempts end within it.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(600);

fn nats_options(config: &Config) -> anyhow::Result<expediter_nats::Options> {
    let name = config.node_name();
    Ok(expediter_nats::Options {
        connect: config.connect_options(name.as_str())?,
        topology: config.topology(),
        drain_deadline: config.node.drain_deadline,
        attempt_timeout: LONGEST_ATTEMPT,
        crash_limit: config.node.crash_limit,
        outcomes_retention: config.nats.outcomes_retention,
        dead_retention: config.nats.dead_letter_retention,
        node: name,
    })
}
