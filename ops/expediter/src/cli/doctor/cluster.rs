//! Nodes, their clocks, stores and partitions.

use std::collections::BTreeMap;

use expediter_nats::Connection;
use expediter_wire::control::PartitionState;

use super::Finding;
use crate::cli::Error;
use crate::cli::cluster::{Cluster, Node, state};
use crate::cli::owners::Owners;
use crate::cli::text::{clean, count, counted};

/// Deadlines are counted from the broker's time and judged by the nodes'; a shared limit's slices
/// stand half a second.
const SKEW_MS: i64 = 250;
/// An owner that has not passed so many sequences is late.
const BEHIND: u64 = 10_000;
/// An owner's changes that wait for its store.
const STORE_BEHIND: u64 = 50_000;

/// Nodes, their clocks, stores and partitions.
pub(super) async fn check(connection: &Connection, owners: &Owners) -> Result<Vec<Finding>, Error> {
    let cluster = Cluster::look(connection, owners).await?;
    let mut findings = Vec::new();
    if cluster.nodes.is_empty() {
        findings.push(Finding::wrong(
            "nodes",
            "no node lives",
            "start one with `expediter serve`",
        ));
    }
    for node in &cluster.nodes {
        findings.push(ready(node));
        findings.extend(clock(node));
        findings.extend(store(node));
    }
    findings.extend(versions(&cluster.nodes));
    findings.extend(same_view(&cluster.nodes));
    let silent = cluster.partitions.iter().filter(|p| p.status.is_none());
    let silent: Vec<String> = silent.map(|part| part.partition.to_string()).collect();
    if !silent.is_empty() {
        findings.push(Finding::wrong(
            "partitions",
            format!("nobody works on partitions {}", silent.join(", ")),
            "their orders wait: start a node, or wait until another has taken over",
        ));
    }
    let mut running = 0;
    for part in &cluster.partitions {
        let number = part.partition;
        let Some(status) = &part.status else {
            continue;
        };
        if status.paused {
            findings.push(Finding::wrong(
                "partitions",
                format!(
                    "partition {number} is paused at {}: its owners crashed",
                    status.node
                ),
                "see the runbook partition-paused; `expediter cluster resume` lets it go on",
            ));
            continue;
        }
        if status.state != PartitionState::Running {
            findings.push(Finding::warning(
                "partitions",
                format!(
                    "partition {number} is {} at {}",
                    state(status.state),
                    status.node
                ),
                "usual for seconds after a node came or went; look again",
            ));
            continue;
        }
        match part.behind {
            Some(behind) if behind > BEHIND => findings.push(Finding::warning(
                "partitions.behind",
                format!("partition {number} is {} sequences behind", count(behind)),
                "the node cannot keep up, or NATS delivers nothing: `expediter cluster status` shows \
                 whether it shrinks",
            )),
            _ => running += 1,
        }
    }
    if running == cluster.partitions.len() {
        let text = format!("all {} run", counted(running as u64, "partition"));
        findings.push(Finding::ok("partitions", text));
    }
    Ok(findings)
}

fn ready(node: &Node) -> Finding {
    let name = &node.node;
    let Some(status) = &node.status else {
        return Finding::wrong(
            "nodes.ready",
            format!("{name} has a lease and does not answer"),
            "is it stopped or stuck? Look at its log; its partitions move when its lease ends",
        );
    };
    let reasons: Vec<String> = status
        .failing
        .iter()
        .map(|check| format!("{}: {}", check.check, check.reason))
        .collect();
    match status.ready {
        true => Finding::ok("nodes.ready", format!("{name} is ready")),
        false => Finding::wrong(
            "nodes.ready",
            format!("{name} is not ready ({})", reasons.join("; ")),
            "see the runbook node-not-ready",
        ),
    }
}

fn clock(node: &Node) -> Option<Finding> {
    let ahead = node.clock_ahead_ms?;
    let side = if ahead < 0 { "behind" } else { "ahead of" };
    let text = format!("{} is {} ms {side} the broker", node.node, ahead.abs());
    Some(match ahead.abs() {
        skew if skew > SKEW_MS => Finding::wrong(
            "nodes.clock",
            text,
            "let NTP set the clocks of nodes and brokers: deadlines and not-before are judged by them",
        ),
        _ => Finding::ok("nodes.clock", text),
    })
}

fn store(node: &Node) -> Vec<Finding> {
    let Some(status) = &node.status else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    if status.unaccounted != 0 {
        findings.push(Finding::wrong(
            "nodes.accounts",
            format!(
                "{} has {} orders unaccounted",
                node.node, status.unaccounted
            ),
            "see the runbook orders-unaccounted; `expediter doctor --reconcile` names them",
        ));
    }
    let text = format!(
        "the store of {} has {} MiB and {} changes to write",
        node.node,
        count(status.store_bytes >> 20),
        count(status.store_waiting)
    );
    findings.push(match status.store_waiting {
        waiting if waiting > STORE_BEHIND => Finding::wrong(
            "nodes.store",
            text,
            "its disk is too slow for what waits: move node.data_dir to a faster one, or add a node",
        ),
        _ => Finding::ok("nodes.store", text),
    });
    findings
}

fn versions(nodes: &[Node]) -> Option<Finding> {
    let mut versions = BTreeMap::<&str, u64>::new();
    for node in nodes {
        *versions.entry(&node.version).or_default() += 1;
    }
    let text: Vec<String> = versions
        .iter()
        .map(|(version, nodes)| format!("{} of {}", counted(*nodes, "node"), clean(version)))
        .collect();
    (versions.len() > 1).then(|| {
        Finding::warning(
            "nodes.version",
            text.join(", "),
            "usual during an upgrade; finish it",
        )
    })
}

/// Everybody sees everybody.
fn same_view(nodes: &[Node]) -> Vec<Finding> {
    let live = nodes.len() as u64;
    let other = |node: &&Node| {
        let status = node.status.as_ref();
        status.is_some_and(|status| status.live_nodes != live)
    };
    let differs = nodes.iter().filter(other).map(|node| {
        let seen = node.status.as_ref().map_or(0, |status| status.live_nodes);
        Finding::warning(
            "nodes.view",
            format!("{} sees {}, {live} live", node.node, counted(seen, "node")),
            "usual for seconds after one came or went; else its connection to NATS is at fault",
        )
    });
    differs.collect()
}
