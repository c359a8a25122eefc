//! Every sequence of ORDERS is finished, or waits with an owner.

use std::collections::BTreeMap;

use expediter_nats::{Books, Connection, books};
use expediter_types::{Partition, Seq, UnixMillis};
use expediter_wire::control::MAX_ACCOUNT;
use indicatif::ProgressBar;

use super::Finding;
use crate::cli::Error;
use crate::cli::owners::Owners;
use crate::cli::text::{count, counted, when};

/// Sequences that are named.
const NAMED: usize = 1_000;
const ADVICE: &str = "keep ORDERS, OUTCOMES and the nodes' stores as they are, and see the runbook \
    orders-unaccounted";

pub(super) async fn run(
    connection: &Connection,
    owners: &Owners,
    since: UnixMillis,
    bar: &ProgressBar,
) -> Result<Vec<Finding>, Error> {
    bar.set_message("reading ORDERS and OUTCOMES");
    let read = |messages: u64| bar.set_message(format!("{} messages read", count(messages)));
    let found = books(connection, since, read).await?;
    let asked = ask(owners, &found).await;
    let mut lost = asked.lost;
    if !lost.is_empty() || !found.gone.is_empty() {
        // What was finished between the two looks has its outcome by now.
        bar.set_message("looking again");
        let again = books(connection, since, |_| {}).await?;
        lost.retain(|(seq, _)| !again.finished.contains(*seq));
        let gone = found
            .gone
            .iter()
            .filter(|seq| !again.finished.contains(*seq));
        return Ok(findings(
            &found,
            since,
            lost,
            gone.collect(),
            asked.waiting,
            &asked.silent,
        ));
    }
    Ok(findings(
        &found,
        since,
        lost,
        Vec::new(),
        asked.waiting,
        &asked.silent,
    ))
}

#[derive(Default)]
struct Asked {
    waiting: u64,
    /// The owner has passed them, and they do not wait with it.
    lost: Vec<(Seq, Partition)>,
    /// Nobody answers for these; so many of their sequences are not finished.
    silent: BTreeMap<Partition, u64>,
}

async fn ask(owners: &Owners, books: &Books) -> Asked {
    let mut by_partition = BTreeMap::<Partition, Vec<Seq>>::new();
    for (seq, partition) in &books.unfinished {
        by_partition.entry(*partition).or_default().push(*seq);
    }
    let mut asked = Asked::default();
    for (partition, seqs) in by_partition {
        for seqs in seqs.chunks(MAX_ACCOUNT) {
            match owners.account(partition, seqs).await {
                // What it has not read yet waits in the log.
                Ok((_, closed)) => {
                    asked.waiting += (seqs.len() - closed.len()) as u64;
                    asked
                        .lost
                        .extend(closed.into_iter().map(|seq| (seq, partition)));
                }
                Err(_) => *asked.silent.entry(partition).or_default() += seqs.len() as u64,
            }
        }
    }
    asked
}

fn findings(
    books: &Books,
    since: UnixMillis,
    lost: Vec<(Seq, Partition)>,
    gone: Vec<Seq>,
    waiting: u64,
    silent: &BTreeMap<Partition, u64>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (seq, partition) in lost.iter().take(NAMED) {
        findings.push(Finding::wrong(
            "accounts",
            format!("{seq} of partition {partition} stands in ORDERS, has no outcome, and its owner does not have it"),
            ADVICE,
        ));
    }
    for seq in gone.iter().take(NAMED) {
        findings.push(Finding::wrong(
            "accounts",
            format!("{seq} is not in ORDERS any more, and has no outcome"),
            ADVICE,
        ));
    }
    let unnamed = lost.len().saturating_sub(NAMED) + gone.len().saturating_sub(NAMED);
    if unnamed > 0 {
        findings.push(Finding::wrong(
            "accounts",
            format!("{} more sequences are unaccounted", count(unnamed as u64)),
            ADVICE,
        ));
    }
    for (partition, orders) in silent {
        findings.push(Finding::warning(
            "accounts",
            format!(
                "nobody answers for partition {partition}, in whose part of ORDERS {} not finished",
                match orders {
                    1 => "1 order is".to_owned(),
                    many => format!("{} orders are", count(*many)),
                }
            ),
            "start a node, and look again",
        ));
    }
    let all = (books.last + 1).saturating_sub(books.first);
    let unaccounted = (lost.len() + gone.len()) as u64;
    findings.push(match unaccounted {
        0 => Finding::ok(
            "accounts",
            format!(
                "{} since {}: {} finished, {} waiting, 0 unaccounted",
                counted(all, "sequence"),
                when(since),
                count(books.finished.len().min(all)),
                count(waiting)
            ),
        ),
        _ => Finding::wrong(
            "accounts",
            format!(
                "{} of {} since {} unaccounted",
                count(unaccounted),
                counted(all, "sequence"),
                when(since)
            ),
            ADVICE,
        ),
    });
    findings
}
