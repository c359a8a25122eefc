use std::collections::BTreeMap;
use std::time::Duration;

use expediter_nats::{Connection, StreamFacts, StreamReport, consumers, inspect_streams};
use expediter_types::UnixMillis;
use expediter_wire::control::{MerchantState, MerchantStatus, PartitionState};
use expediter_wire::subjects;
use serde::Deserialize;

use super::{Finding, Level};
use crate::cli::cluster::{Cluster, Node, existing, state};
use crate::cli::owners::Owners;
use crate::cli::text::{ago, clean, count, counted, now, span};
use crate::cli::{Error, global::with_causes};

/// Deadlines are counted from the broker's time and judged by the nodes'; a shared limit's slices
/// stand half a second.
const SKEW_MS: i64 = 250;
/// So much of a stream's size is a warning, so much is wrong: no attempts start above it.
const FILLING: f64 = 0.80;
const FULL: f64 = 0.95;
/// An owner that has not passed so many sequences is late.
const BEHIND: u64 = 10_000;
/// An owner's changes that wait for its store.
const STORE_BEHIND: u64 = 50_000;
/// Merchants that are named.
const NAMED: usize = 20;

/// The server, its settings, streams and who reads them.
pub(super) async fn broker(
    connection: &Connection,
    monitors: &[String],
) -> Result<Vec<Finding>, Error> {
    let mut findings = Vec::new();
    let server = connection.client().server_info();
    findings.push(version(&server.version));
    findings.extend(sync(monitors).await);
    let streams = inspect_streams(connection, &existing()).await?;
    let names = |of: fn(&StreamReport) -> bool| -> Vec<&str> {
        let of = streams.iter().filter(|report| of(report));
        of.map(|report| report.name.as_str()).collect()
    };
    let missing = names(|report| report.found.is_none());
    if !missing.is_empty() {
        findings.push(Finding::wrong(
            "streams.missing",
            missing.join(", "),
            "start a node: `expediter serve` makes them. If they were there before, the broker lost \
             them: see the runbook log-lost",
        ));
    }
    let mut alike = true;
    for report in &streams {
        for difference in &report.differences {
            alike = false;
            findings.push(Finding::wrong(
                "streams.settings",
                format!("{}: {difference}", report.name),
                "nodes refuse to work on it: set it back with `nats stream edit`",
            ));
        }
    }
    if alike && missing.is_empty() {
        findings.push(Finding::ok(
            "streams.settings",
            format!(
                "{} as nodes make them",
                counted(streams.len() as u64, "stream")
            ),
        ));
    }
    for report in &streams {
        if let Some(facts) = &report.found {
            findings.extend(room(&report.name, facts));
            findings.extend(copies(&report.name, facts));
        }
    }
    findings.extend(replicas(&streams));
    findings.extend(readers(connection, &streams).await?);
    Ok(findings)
}

fn version(found: &str) -> Finding {
    let numbers = found
        .split(['.', '-'])
        .map(|n| n.parse::<u32>().unwrap_or(0));
    let numbers: Vec<u32> = numbers.take(2).collect();
    let text = format!("nats-server {found}");
    match numbers.as_slice() {
        [major, minor] if (*major, *minor) >= (2, 15) => Finding::ok("nats.version", text),
        [major, minor] if (*major, *minor) >= (2, 14) => Finding::warning(
            "nats.version",
            text,
            "2.15 syncs replicated streams in groups, which is several times faster",
        ),
        _ => Finding::wrong("nats.version", text, "nodes need 2.14 or newer"),
    }
}

/// What a server's `/varz` says.
#[derive(Deserialize)]
struct Varz {
    version: String,
    server_name: String,
    jetstream: Option<JetStream>,
}

#[derive(Deserialize)]
struct JetStream {
    config: Option<JetStreamConfig>,
}

#[derive(Deserialize)]
struct JetStreamConfig {
    #[serde(default)]
    sync_always: bool,
    /// In nanoseconds.
    #[serde(default)]
    sync_interval: u64,
}

async fn sync(monitors: &[String]) -> Vec<Finding> {
    if monitors.is_empty() {
        return vec![Finding::warning(
            "nats.sync_interval",
            "not looked at",
            "give --monitor http://HOST:8222 for each server: without `sync_interval: always` what \
             was acknowledged can be lost with the power",
        )];
    }
    let mut findings = Vec::new();
    for monitor in monitors {
        findings.push(match varz(monitor).await {
            Err(wrong) => Finding::wrong(
                "nats.sync_interval",
                format!("{monitor}: {wrong}"),
                "is that the server's `http` address, and can it be reached from here?",
            ),
            Ok(varz) => {
                let name = format!("{} ({})", varz.server_name, varz.version);
                match varz.jetstream.and_then(|jetstream| jetstream.config) {
                    None => Finding::wrong(
                        "nats.sync_interval",
                        format!("{name} has no JetStream"),
                        "enable it, or name the servers that have it",
                    ),
                    Some(config) if config.sync_always => {
                        Finding::ok("nats.sync_interval", format!("{name} syncs always"))
                    }
                    Some(config) => Finding::wrong(
                        "nats.sync_interval",
                        format!(
                            "{name} syncs each {}",
                            span(Duration::from_nanos(config.sync_interval))
                        ),
                        "set `jetstream { sync_interval: always }` and restart the servers one by \
                         one: what was acknowledged since the last sync is lost with the power",
                    ),
                }
            }
        });
    }
    findings
}

async fn varz(monitor: &str) -> Result<Varz, String> {
    let told = |error: reqwest::Error| with_causes(&error.without_url());
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(5))
        .build()
        .map_err(told)?;
    let url = format!("{}/varz", monitor.trim_end_matches('/'));
    let answer = client.get(url).send().await.map_err(told)?;
    let page = answer
        .error_for_status()
        .map_err(told)?
        .bytes()
        .await
        .map_err(told)?;
    serde_json::from_slice(&page).map_err(|_| "that is no /varz of a nats-server".to_owned())
}

fn room(stream: &str, facts: &StreamFacts) -> Option<Finding> {
    if ![subjects::ORDERS, subjects::OUTCOMES].contains(&stream) {
        return None;
    }
    let Some(max) = facts.max_bytes.filter(|max| *max > 0) else {
        return Some(Finding::warning(
            "streams.room",
            format!("{stream} has no max_bytes"),
            "give it one below the server's disk: a full disk stops all streams",
        ));
    };
    let share = facts.bytes as f64 / max as f64;
    let text = format!(
        "{stream} is {:.0} % full ({} MiB, {} messages)",
        share * 100.0,
        count(facts.bytes >> 20),
        count(facts.messages)
    );
    let todo = "see the runbook stream-filling";
    Some(if share >= FULL {
        Finding::wrong("streams.room", text, todo)
    } else if share >= FILLING {
        Finding::warning("streams.room", text, todo)
    } else {
        Finding::ok("streams.room", text)
    })
}

/// Each copy of a replicated stream.
fn copies(stream: &str, facts: &StreamFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.replicas > 1 && facts.leader.is_none() {
        findings.push(Finding::wrong(
            "streams.copies",
            format!("{stream} has no leader"),
            "a majority of its servers must be up: `nats server report jetstream`",
        ));
    }
    for peer in &facts.peers {
        if peer.offline || !peer.current {
            let how = if peer.offline { "offline" } else { "behind" };
            findings.push(Finding::warning(
                "streams.copies",
                format!(
                    "{stream} on {} is {how}, heard {} ago",
                    peer.server,
                    span(peer.silent)
                ),
                "one more that fails stops the stream: bring that server back",
            ));
        }
    }
    findings
}

fn replicas(streams: &[StreamReport]) -> Option<Finding> {
    let orders = streams
        .iter()
        .find(|report| report.name == subjects::ORDERS)?;
    let replicas = orders.found.as_ref()?.replicas;
    let text = format!(
        "streams have {}",
        match replicas {
            1 => "1 copy".to_owned(),
            copies => format!("{copies} copies"),
        }
    );
    Some(match replicas {
        1 => Finding::warning(
            "streams.replicas",
            text,
            "a lost disk loses orders; three servers and `nats.replicas = 3` stand it",
        ),
        _ => Finding::ok("streams.replicas", text),
    })
}

/// Nodes read without acknowledgements, and leave nothing behind.
async fn readers(connection: &Connection, streams: &[StreamReport]) -> Result<Vec<Finding>, Error> {
    let mut findings = Vec::new();
    for stream in [subjects::ORDERS, subjects::OUTCOMES] {
        if !streams
            .iter()
            .any(|s| s.name == stream && s.found.is_some())
        {
            continue;
        }
        let all = consumers(connection, stream).await?;
        let strange: Vec<_> = all.iter().filter(|c| c.durable || c.acknowledges).collect();
        for consumer in &strange {
            findings.push(Finding::warning(
                "streams.consumers",
                format!(
                    "{stream} has the consumer {}, which is no node's, with {} pending",
                    consumer.name,
                    count(consumer.pending)
                ),
                "whose is it? What it reads it cannot keep: nodes purge what is finished. \
                 `nats consumer rm` when nobody needs it",
            ));
        }
        if strange.is_empty() {
            let text = format!("{stream} has {}", counted(all.len() as u64, "reader"));
            findings.push(Finding::ok("streams.consumers", text));
        }
    }
    Ok(findings)
}

/// Nodes, their clocks, stores and partitions.
pub(super) async fn cluster(
    connection: &Connection,
    owners: &Owners,
) -> Result<Vec<Finding>, Error> {
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
    let text = format!("{} is {ahead} ms ahead of the broker", node.node);
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

/// Merchants with problems.
pub(super) async fn merchants(
    connection: &Connection,
    owners: &Owners,
) -> Result<Vec<Finding>, Error> {
    let registered = expediter_nats::Registry::new(connection)
        .list()
        .await?
        .len();
    let busy = owners.busy().await;
    let mut troubled: Vec<&MerchantStatus> = busy
        .merchants
        .values()
        .filter(|status| trouble(status).is_some())
        .collect();
    troubled.sort_by_key(|status| std::cmp::Reverse(status.backlog));
    let at = now();
    let mut findings: Vec<Finding> = troubled
        .iter()
        .take(NAMED)
        .filter_map(|status| {
            let (level, what) = trouble(status)?;
            let merchant = &status.merchant;
            let error = status.last_error.as_deref().map_or(String::new(), |error| {
                format!(", last error: {}", clean(error))
            });
            let waits = oldest(status, at);
            Some(Finding::new(
                level,
                "merchants",
                format!(
                    "{merchant} {what}, {} wait{waits}{error}",
                    counted(status.backlog, "order")
                ),
                format!("expediter merchant explain {merchant}"),
            ))
        })
        .collect();
    if troubled.len() > NAMED {
        findings.push(Finding::warning(
            "merchants",
            format!(
                "{} more have problems",
                count((troubled.len() - NAMED) as u64)
            ),
            "expediter merchant list --waiting",
        ));
    }
    if troubled.is_empty() {
        findings.push(Finding::ok(
            "merchants",
            format!(
                "{}, none with a problem",
                counted(registered as u64, "merchant")
            ),
        ));
    }
    Ok(findings)
}

fn oldest(status: &MerchantStatus, now: UnixMillis) -> String {
    let oldest = status.oldest.as_ref();
    oldest.map_or(String::new(), |at| {
        format!(", the oldest {}", ago(at.0, now))
    })
}

fn trouble(status: &MerchantStatus) -> Option<(Level, &'static str)> {
    use expediter_types::ClosedBecause;
    Some(match (status.state, status.closed_because) {
        (MerchantState::Quarantined, _) => {
            (Level::Wrong, "is quarantined: its actor keeps crashing")
        }
        (MerchantState::Unknown, _) => (Level::Wrong, "is not registered"),
        (MerchantState::Closed, Some(ClosedBecause::Suspended)) => {
            (Level::Wrong, "refuses our credentials")
        }
        (MerchantState::Closed, Some(ClosedBecause::Misconfigured)) => {
            (Level::Wrong, "is misconfigured")
        }
        (MerchantState::Closed, _) => (Level::Warning, "is closed for a while"),
        (MerchantState::Paused, _) => (Level::Warning, "is paused"),
        (MerchantState::Draining, _) => (Level::Warning, "is being drained"),
        (MerchantState::Idle | MerchantState::Active | MerchantState::OutsideHours, _) => {
            return None;
        }
    })
}
