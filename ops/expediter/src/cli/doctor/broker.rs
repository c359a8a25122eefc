//! The server, its settings, streams and who reads them.

use std::time::Duration;

use expediter_nats::{Connection, StreamFacts, StreamReport, consumers, inspect_streams};
use expediter_wire::subjects;
use serde::Deserialize;

use super::Finding;
use crate::cli::text::{count, counted, span};
use crate::cli::{Error, global::with_causes};

/// So much of a stream's size is a warning, so much is wrong: no attempts start above it.
const FILLING: f64 = 0.80;
const FULL: f64 = 0.95;

/// The server, its settings, streams and who reads them.
pub(super) async fn check(
    connection: &Connection,
    monitors: &[String],
) -> Result<Vec<Finding>, Error> {
    let mut findings = Vec::new();
    let server = connection.client().server_info();
    findings.push(version(&server.server_name, &server.version));
    findings.extend(sync(monitors).await);
    let streams = inspect_streams(connection).await?;
    findings.extend(unseen(monitors, &streams));
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

fn version(server: &str, found: &str) -> Finding {
    let numbers = found
        .split(['.', '-'])
        .map(|n| n.parse::<u32>().unwrap_or(0));
    let numbers: Vec<u32> = numbers.take(2).collect();
    let text = format!("nats-server {found} ({server})");
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
        let finding = match varz(monitor).await {
            Err(wrong) => Finding::wrong(
                "nats.sync_interval",
                format!("{monitor}: {wrong}"),
                "is that the server's `http` address, and can it be reached from here?",
            ),
            Ok(varz) => {
                findings.push(version(&varz.server_name, &varz.version));
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
        };
        findings.push(finding);
    }
    findings
}

/// Servers that hold streams and were not looked at.
fn unseen(monitors: &[String], streams: &[StreamReport]) -> Option<Finding> {
    let facts = streams.iter().filter_map(|report| report.found.as_ref());
    let servers = facts.map(|facts| facts.peers.len() + usize::from(facts.leader.is_some()));
    let servers = servers.max().unwrap_or(0);
    (!monitors.is_empty() && monitors.len() < servers).then(|| {
        Finding::warning(
            "nats.sync_interval",
            format!("{} of {servers} servers looked at", monitors.len()),
            "give --monitor http://HOST:8222 for each server",
        )
    })
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
