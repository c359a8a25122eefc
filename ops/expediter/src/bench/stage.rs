//! Broker, merchants and node of one run.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use expediter_fleet::merchants::RemoteFleet;
use expediter_fleet::nats_server::{self, NatsServer};
use expediter_nats::{ConnectOptions, Connection, Registry, Topology};
use expediter_types::{Merchant, MerchantId, format_duration};
use expediter_wire::registry::Registration;
use futures::{StreamExt as _, TryStreamExt as _};

use super::probe::{self, Metrics};
use super::process::{MachineTime, Process, cpu, machine_time};
use super::scratch::Scratch;
use super::stage_args::StageArgs;

/// From the start of a process until it says that it listens.
const START: Duration = Duration::from_secs(30);
/// From there until the node owns all partitions and knows all merchants.
const READY: Duration = Duration::from_secs(60);
/// Registrations that may be under way at once.
const REGISTERING: usize = 64;

/// What is to be measured.
pub(super) struct Setup<'a> {
    pub(super) args: &'a StageArgs,
    /// Their addresses are filled in.
    pub(super) merchants: Vec<Merchant>,
    /// How long each takes to answer, unless it is told otherwise later.
    pub(super) latency: Duration,
    /// Up to so much more.
    pub(super) jitter: Duration,
}

/// Everything that is measured, running. In the order in which it is to end.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) connection: Connection,
    pub(super) node: Process,
    node_at: SocketAddr,
    merchants: Process,
    pub(super) fleet: RemoteFleet,
    pub(super) broker: NatsServer,
    pub(super) ids: Vec<MerchantId>,
    pub(super) scratch: Scratch,
}

/// CPU time that each process has used since its start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cpu {
    pub(super) node: Duration,
    pub(super) broker: Duration,
    pub(super) publisher: Duration,
    pub(super) merchants: Duration,
    pub(super) machine: MachineTime,
}

impl Cpu {
    /// Share of the machine that was used by others, and by the kernel for no process, in percent.
    pub(super) fn others_percent(&self) -> Option<f64> {
        let ours = self.node + self.broker + self.publisher + self.merchants;
        let others = self.machine.busy.saturating_sub(ours);
        let all = self.machine.all;
        (!all.is_zero()).then(|| 100.0 * others.as_secs_f64() / all.as_secs_f64())
    }

    pub(super) fn since(self, before: Self) -> Self {
        Self {
            node: self.node.saturating_sub(before.node),
            broker: self.broker.saturating_sub(before.broker),
            publisher: self.publisher.saturating_sub(before.publisher),
            merchants: self.merchants.saturating_sub(before.merchants),
            machine: MachineTime {
                busy: self.machine.busy.saturating_sub(before.machine.busy),
                all: self.machine.all.saturating_sub(before.machine.all),
            },
        }
    }
}

impl Stage {
    /// Ready to take orders. `run` tells the directories of one call apart.
    pub(super) async fn open(setup: Setup<'_>, run: u32) -> anyhow::Result<Self> {
        let args = setup.args;
        let scratch = Scratch::new(&args.dir(), run, args.keep)?;
        let broker = NatsServer::start(nats_server::Options {
            binary: args.nats_server.clone(),
            search: vec![PathBuf::from(".tools/bin")],
            sync_always: args.sync_always,
            ..nats_server::Options::new(scratch.path().join("nats"))
        });
        let broker = broker.await?;
        let mut merchants = start_merchants(&setup, scratch.path())?;
        let fleet_at: SocketAddr = merchants.says("listen", START).await?.parse()?;
        let connect = ConnectOptions::to(&broker.url(), "expediter bench");
        let connection = Connection::open_once(&connect).await?;
        let partitions = expediter_nats::ensure(&connection, &Topology::default()).await?;
        // All merchants are behind one address here; each may keep what it would keep of its own.
        let idle = setup
            .merchants
            .iter()
            .map(|merchant| merchant.limits.concurrency)
            .fold(0, u32::saturating_add)
            .clamp(32, 10_000);
        let ids = register(setup.merchants, &connection, fleet_at).await?;
        let mut node = start_node(args, idle, &broker.url(), scratch.path())?;
        let node_at: SocketAddr = node.says("listen", START).await?.parse()?;
        let mut stage = Self {
            connection,
            node,
            node_at,
            merchants,
            fleet: RemoteFleet::new(fleet_at),
            broker,
            ids,
            scratch,
        };
        stage.wait_ready(u64::from(partitions)).await?;
        Ok(stage)
    }

    async fn wait_ready(&mut self, partitions: u64) -> anyhow::Result<()> {
        let end = Instant::now() + READY;
        loop {
            self.check()?;
            if probe::is_ready(self.node_at).await {
                let metrics = Metrics::of(self.node_at).await?;
                let owned = metrics.sum("expediter_partitions_owned");
                let registered = metrics.sum("expediter_merchants_registered");
                if owned == partitions && registered == self.ids.len() as u64 {
                    return Ok(());
                }
            }
            anyhow::ensure!(
                Instant::now() < end,
                "the node was not ready in {} s; see {}",
                READY.as_secs(),
                self.keep().display()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Orders whose outcome the broker confirmed to the node, since its start.
    pub(super) async fn finished(&self) -> anyhow::Result<u64> {
        Ok(Metrics::of(self.node_at)
            .await?
            .sum("expediter_orders_finished_total"))
    }

    /// # Errors
    /// A process has ended.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        self.node.check()?;
        self.merchants.check()?;
        anyhow::ensure!(self.broker.is_running(), "nats-server ended");
        Ok(())
    }

    pub(super) fn broker_pid(&self) -> anyhow::Result<u32> {
        self.broker.pid().context("nats-server ended")
    }

    pub(super) fn cpu(&self) -> anyhow::Result<Cpu> {
        Ok(Cpu {
            node: cpu(self.node.pid())?,
            broker: cpu(self.broker_pid()?)?,
            publisher: cpu(std::process::id())?,
            merchants: cpu(self.merchants.pid())?,
            machine: machine_time()?,
        })
    }

    /// Leaves the data and logs for somebody to look at, and says where.
    pub(super) fn keep(&mut self) -> PathBuf {
        self.scratch.keep();
        self.scratch.path().to_owned()
    }
}

fn this_program() -> anyhow::Result<Command> {
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new(program);
    // What is set for a real node must not change what is measured.
    for (name, _) in std::env::vars_os() {
        let ours = name.as_encoded_bytes();
        if ours.starts_with(b"EXPEDITER_") || ours.starts_with(b"OTEL_") {
            command.env_remove(name);
        }
    }
    Ok(command)
}

fn start_merchants(setup: &Setup<'_>, dir: &Path) -> anyhow::Result<Process> {
    let mut command = this_program()?;
    command.args(["bench", "fleet", "--judge"]);
    command.args(["--latency", &format_duration(setup.latency)]);
    command.args(["--jitter", &format_duration(setup.jitter)]);
    Process::start("merchants", command, dir.join("merchants.log"))
}

fn start_node(args: &StageArgs, idle: u32, nats: &str, dir: &Path) -> anyhow::Result<Process> {
    let file = dir.join("node.toml");
    let text = node_config(args, idle, nats, &dir.join("node"))?;
    std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    let mut command = this_program()?;
    for (key, value) in &args.set {
        let variable = format!("EXPEDITER_{}", key.replace('.', "_").to_ascii_uppercase());
        command.env(variable, value);
    }
    command.arg("serve").arg("--config").arg(file);
    Process::start("node", command, dir.join("node.log"))
}

fn node_config(args: &StageArgs, idle: u32, nats: &str, data: &Path) -> anyhow::Result<String> {
    let config = serde_json::json!({
        "node": {
            "name": "bench",
            "data_dir": data,
            "listen": "127.0.0.1:0",
            "in_flight": args.in_flight,
        },
        "nats": { "servers": [nats] },
        "http": { "pool_idle_per_host": idle },
        "egress": { "allow": ["127.0.0.0/8"] },
        "log": { "format": "json" },
    });
    toml::to_string(&config).context("writing the node's settings")
}

/// Registers them, as `expediter merchant apply` would, each at its place in the fleet.
async fn register(
    merchants: Vec<Merchant>,
    connection: &Connection,
    fleet: SocketAddr,
) -> anyhow::Result<Vec<MerchantId>> {
    let registry = Registry::new(connection);
    let ids = merchants
        .iter()
        .map(|merchant| merchant.id.clone())
        .collect();
    let at = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis();
    let put = |mut merchant: Merchant| {
        merchant.adapter.url = format!("http://{fleet}/m/{}/orders", merchant.id);
        let registration = Registration {
            merchant,
            actor: "expediter bench".to_owned(),
            at: u64::try_from(at).unwrap_or(0),
            rolled_back_from: None,
        };
        let registry = &registry;
        async move { registry.put(&registration, 0).await }
    };
    futures::stream::iter(merchants)
        .map(put)
        .buffer_unordered(REGISTERING)
        .try_for_each(|_revision| std::future::ready(Ok(())))
        .await?;
    Ok(ids)
}
