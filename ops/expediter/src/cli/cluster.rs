//! `expediter cluster …`: nodes, and who works on what.

use std::collections::BTreeMap;

use clap::Subcommand;
use expediter_nats::{ClaimEntry, NodeEntry, broker_time, claims, inspect_streams, nodes};
use expediter_types::{Partition, Seq, UnixMillis};
use expediter_wire::Rfc3339;
use expediter_wire::audit::AuditTarget;
use expediter_wire::control::{PartitionState, PartitionStatus};
use expediter_wire::nodes::NodeStatus;
use expediter_wire::subjects;
use futures::StreamExt;
use serde::Serialize;

use super::global::block_on;
use super::operator::{self, Actor, Deed, Effect, Operator};
use super::out::Out;
use super::owners::Owners;
use super::table::table;
use super::text::{ago, clean, count, counted, now};
use super::{Error, Global};

const EXAMPLES: &str = "\
BEHIND is how many sequences of ORDERS, of whatever partition, an owner has not passed yet: a few are
usual while orders come. Ends with 1 when a partition has no owner or a node is not ready.

Examples:
  expediter cluster status
  expediter cluster status --json | jq '.partitions[] | select(.state != \"running\")'";

const RESUME_EXAMPLES: &str = "\
A partition is paused when the nodes that worked on it crashed three times within ten minutes
(node.crash_limit). Resume one after the other: the one that ends its node again is the one to look at.

Examples:
  expediter cluster resume 3 --reason 'it was the memory limit'
  expediter cluster resume 3 7 11 --reason 'node.data_dir was full'";

/// Partitions to let go on.
#[derive(Debug, clap::Args)]
pub(crate) struct ResumeArgs {
    /// Numbers of the partitions
    #[arg(required = true, value_name = "PARTITION")]
    partitions: Vec<u16>,
    /// Why, for those who look later
    #[arg(long, value_parser = operator::reason, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    actor: Actor,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Show nodes and partitions: who works on what, since when, how far
    #[command(after_help = EXAMPLES)]
    Status,
    /// Let partitions go on that are paused because their owners crashed
    #[command(after_help = RESUME_EXAMPLES)]
    Resume(ResumeArgs),
}

pub(crate) fn run(global: &Global, verb: Verb) -> Result<(), Error> {
    match verb {
        Verb::Status => block_on(async { Box::pin(status(global)).await }),
        Verb::Resume(args) => block_on(async { Box::pin(resume(global, args)).await }),
    }
}

/// The cluster as it is now.
#[derive(Debug, Serialize)]
pub(super) struct Cluster {
    pub(super) nodes: Vec<Node>,
    pub(super) partitions: Vec<Part>,
    /// The last sequence of ORDERS.
    pub(super) last: Seq,
}

#[derive(Debug, Serialize)]
pub(super) struct Node {
    pub(super) node: String,
    pub(super) instance: String,
    pub(super) version: String,
    pub(super) started: Rfc3339,
    /// It gives its partitions away.
    pub(super) leaving: bool,
    /// Partitions that it says in its lease to hold.
    pub(super) partitions: Vec<u16>,
    /// When it renewed its lease, by the broker's clock.
    pub(super) renewed: Rfc3339,
    /// What it says of itself; absent: it does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<NodeStatus>,
    /// Its clock less the broker's, in milliseconds, as far as the round trip tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) clock_ahead_ms: Option<i64>,
}

#[derive(Debug, Serialize)]
pub(super) struct Part {
    pub(super) partition: u16,
    /// Who works on it; absent: nobody answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<PartitionState>,
    /// Of the newest claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) claim: Option<Claim>,
    /// Sequences of ORDERS that it has not passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) behind: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<PartitionStatus>,
}

#[derive(Debug, Serialize)]
pub(super) struct Claim {
    pub(super) node: String,
    pub(super) held: bool,
    pub(super) epoch: Seq,
    pub(super) at: Rfc3339,
}

impl From<ClaimEntry> for Claim {
    fn from(from: ClaimEntry) -> Self {
        Self {
            node: from.node.to_string(),
            held: from.held,
            epoch: from.epoch,
            at: Rfc3339(from.at),
        }
    }
}

impl Cluster {
    /// Asks everybody.
    pub(super) async fn look(
        connection: &expediter_nats::Connection,
        owners: &Owners,
    ) -> Result<Self, Error> {
        let streams = inspect_streams(connection).await?;
        let orders = streams.into_iter().find(|s| s.name == subjects::ORDERS);
        let last = orders.and_then(|s| s.found).map_or(0, |facts| facts.last);
        let mut taken: BTreeMap<Partition, ClaimEntry> = claims(connection)
            .await?
            .into_iter()
            .map(|claim| (claim.partition, claim))
            .collect();
        let entries = nodes(connection).await?.into_iter();
        let asked = entries.map(|entry| node(connection, owners, entry));
        let mut nodes: Vec<Node> = futures::stream::iter(asked)
            .buffer_unordered(16)
            .collect()
            .await;
        nodes.sort_by(|a, b| a.node.cmp(&b.node));
        let asked = owners.partitions().map(|partition| async move {
            (partition, owners.partition_status(partition).await.ok())
        });
        let mut answers: Vec<_> = futures::stream::iter(asked)
            .buffer_unordered(16)
            .collect()
            .await;
        answers.sort_by_key(|(partition, _)| *partition);
        let partitions = answers.into_iter().map(|(partition, status)| Part {
            partition: partition.0,
            node: status.as_ref().map(|status| status.node.to_string()),
            state: status.as_ref().map(|status| status.state),
            claim: taken.remove(&partition).map(Claim::from),
            behind: status
                .as_ref()
                .map(|status| last.saturating_sub(status.seen)),
            status,
        });
        let partitions = partitions.collect();
        Ok(Self {
            nodes,
            partitions,
            last,
        })
    }
}

async fn node(connection: &expediter_nats::Connection, owners: &Owners, entry: NodeEntry) -> Node {
    let before = now();
    let status = owners.node_status(&entry.record.node).await.ok();
    let asked = now();
    let broker = broker_time(connection).await.ok();
    let after = now();
    let at = status.as_ref().and_then(|status| status.at);
    let clock_ahead_ms = at.zip(broker).map(|(node, broker)| {
        // Against the middle of each round trip by this machine's clock.
        let own = |from: UnixMillis, to: UnixMillis| signed(from + (to - from) / 2);
        (signed(node.0) - own(before, asked)) - (signed(broker) - own(asked, after))
    });
    let record = entry.record;
    Node {
        node: record.node.to_string(),
        instance: record.instance,
        version: record.version,
        started: Rfc3339(record.started),
        leaving: record.leaving,
        partitions: record.partitions.iter().map(|p| p.0).collect(),
        renewed: Rfc3339(entry.renewed),
        status,
        clock_ahead_ms,
    }
}

fn signed(at: UnixMillis) -> i64 {
    i64::try_from(at).unwrap_or(i64::MAX)
}

pub(super) fn state(state: PartitionState) -> &'static str {
    match state {
        PartitionState::Waiting => "waiting",
        PartitionState::Recovering => "recovering",
        PartitionState::Running => "running",
        PartitionState::HandingOver => "handing over",
    }
}

async fn status(global: &Global) -> Result<(), Error> {
    let connection = global.connect().await?;
    let owners = Owners::of(&connection).await?;
    let cluster = Cluster::look(&connection, &owners).await?;
    let mut out = Out::stdout();
    match global.json {
        true => out.json(&cluster)?,
        false => out.text(&text(&cluster, now()))?,
    }
    let silent = cluster.partitions.iter().filter(|p| p.status.is_none());
    let silent = silent.count() as u64;
    let unready: Vec<&str> = cluster
        .nodes
        .iter()
        .filter(|node| !node.status.as_ref().is_some_and(|status| status.ready))
        .map(|node| node.node.as_str())
        .collect();
    match (silent, unready.as_slice()) {
        (0, []) => Ok(()),
        (0, unready) => Err(Error::failed(format!("not ready: {}", unready.join(", ")))),
        (silent, _) => Err(Error::failed(format!(
            "nobody works on {}: start a node with `expediter serve`, or wait until another has \
             taken over",
            counted(silent, "partition")
        ))),
    }
}

async fn resume(global: &Global, args: ResumeArgs) -> Result<(), Error> {
    #[derive(Serialize)]
    struct Resumed {
        partition: u16,
        /// It was paused until then.
        was_paused: bool,
    }
    let connection = global.connect().await?;
    let owners = Owners::of(&connection).await?;
    let count = owners.partitions().count();
    if let Some(none) = args.partitions.iter().find(|p| usize::from(**p) >= count) {
        return Err(Error::NotFound(format!(
            "there is no partition {none}: they are 0 to {}",
            count.saturating_sub(1)
        )));
    }
    let operator = Operator::new(&connection, &args.actor).await?;
    let mut out = Out::stdout();
    for partition in args.partitions {
        let target = AuditTarget::alone("partition", &partition.to_string());
        let deed = Deed::new("cluster.resume", target).because(&args.reason);
        let resuming = async {
            let paused = owners.resume(Partition(partition)).await?;
            Ok(Effect::new(paused).detail("was_paused", paused))
        };
        let (was_paused, recorded) = operator.step(deed, resuming).await?;
        match (global.json, was_paused) {
            (true, _) => out.json(&Resumed {
                partition,
                was_paused,
            })?,
            (false, true) => out.line(format_args!("partition {partition} goes on"))?,
            (false, false) => out.line(format_args!("partition {partition} was not paused"))?,
        }
        recorded?;
    }
    Ok(())
}

fn text(cluster: &Cluster, now: UnixMillis) -> String {
    let rows = cluster.nodes.iter().map(|node| {
        let status = node.status.as_ref();
        let standing = match status {
            None => "does not answer".to_owned(),
            Some(_) if node.leaving => "leaving".to_owned(),
            Some(status) if status.ready => "ready".to_owned(),
            Some(status) => {
                let reasons = status.failing.iter().map(|check| clean(&check.reason));
                format!("not ready: {}", reasons.collect::<Vec<_>>().join(", "))
            }
        };
        vec![
            node.node.clone(),
            clean(&node.version),
            ago(node.started.0, now),
            node.partitions.len().to_string(),
            status.map_or(String::new(), |status| {
                format!("{}/{}", count(status.in_flight), count(status.capacity))
            }),
            standing,
        ]
    });
    let header = [
        "NODE",
        "VERSION",
        "STARTED",
        ">PARTITIONS",
        ">IN FLIGHT",
        "STATE",
    ];
    let mut text = table(&header, rows);
    text.push('\n');
    let rows = cluster.partitions.iter().map(|part| {
        let status = part.status.as_ref();
        let figure = |of: fn(&PartitionStatus) -> u64| {
            status.map_or(String::new(), |status| count(of(status)))
        };
        let claimed = part.claim.as_ref();
        vec![
            part.partition.to_string(),
            match (&part.node, claimed) {
                (Some(node), _) => node.clone(),
                (None, Some(claim)) if claim.held => format!("nobody ({} had it)", claim.node),
                (None, _) => "nobody".to_owned(),
            },
            match status {
                Some(status) if status.paused => "paused".to_owned(),
                Some(status) => state(status.state).to_owned(),
                None => "does not answer".to_owned(),
            },
            claimed.map_or(String::new(), |claim| count(claim.epoch)),
            claimed.map_or(String::new(), |claim| ago(claim.at.0, now)),
            figure(|status| status.unfinished),
            figure(|status| status.in_flight),
            figure(|status| status.low_water),
            part.behind.map_or(String::new(), count),
        ]
    });
    let header = [
        ">PARTITION",
        "NODE",
        "STATE",
        ">EPOCH",
        "CLAIMED",
        ">UNFINISHED",
        ">IN FLIGHT",
        ">LOW WATER",
        ">BEHIND",
    ];
    text.push_str(&table(&header, rows));
    text
}
