//! Whether the demonstration may use a broker: its node would take over everybody's orders there.

use std::time::Duration;

use expediter_nats::{Connection, Error, Registry, partitions, request};
use expediter_types::Partition;
use expediter_wire::control::{ControlRequest, encode_request};

use super::fleet::GROUP;

/// An owner answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// Refuses a broker with nodes, or with merchants that are not the demonstration's.
pub(super) async fn check(connection: &Connection, url: &str) -> anyhow::Result<()> {
    let partitions = match partitions(connection).await {
        Ok(partitions) => partitions,
        // Nobody has worked with it yet.
        Err(Error::NoStream { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let question = encode_request(&ControlRequest::PartitionStatus);
    for partition in (0..partitions).map(Partition) {
        let answer = request(connection, partition, question.clone(), PATIENCE).await;
        anyhow::ensure!(
            matches!(answer, Err(Error::NoOwner { .. })),
            "a node works at {url}: the demonstration would take over a part of its orders. Use \
             another server, or run without --nats"
        );
    }
    let merchants = Registry::new(connection).list().await?;
    let others = merchants.iter().filter_map(|entry| {
        let merchant = &entry.registration.merchant;
        (merchant.group != GROUP).then(|| merchant.id.to_string())
    });
    let others: Vec<_> = others.collect();
    if let Some(first) = others.first() {
        let more = match others.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        anyhow::bail!(
            "at {url} merchants are registered that are not the demonstration's ({first}{more}): \
             it would send their orders. Use another server, or run without --nats"
        );
    }
    Ok(())
}
