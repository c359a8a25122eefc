//! What the platform promises about an order's way, one promise a test, on the real binary and a
//! real broker.
//!
//! A test shares one world among its merchants; bounds are wide, because the machine may be busy.

mod answers;
mod closing;
mod delivery;
mod edges;
mod intake;
mod isolation;
mod jobs;
mod limits;
mod listener;
mod node;
mod notifications;
mod registry;
mod room;
mod scheduled;
mod secrets;
mod secure;
mod shared;
mod traces;
mod unknown;

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use async_nats::jetstream;
use async_nats::jetstream::stream::Stream;
use expediter_harness::{Accepted, NewOrder, NodeProcess, Outcomes, Recorded, World, eventually};
use expediter_types::{DeadReason, MerchantId, OutcomeKind};
use expediter_wire::control::{
    ControlReply, ControlRequest, MerchantState, MerchantStatus, decode_reply, encode_request,
};
use expediter_wire::subjects;

use listener::Listener;

/// For what should happen at once, on a machine that is busy.
const SOON: Duration = Duration::from_secs(10);

/// Publishes one order.
async fn send(world: &World, merchant: &str) -> Result<Accepted> {
    world.publisher().send(NewOrder::to(merchant)).await
}

/// Waits for the outcome of a sequence.
async fn outcome(world: &World, seq: u64, deadline: Duration) -> Result<Recorded> {
    let mut outcomes = Outcomes::default();
    let end = tokio::time::Instant::now() + deadline;
    loop {
        outcomes.advance(&world.connection).await?;
        if let Some(found) = outcomes.of(seq) {
            return Ok(found.clone());
        }
        ensure!(
            tokio::time::Instant::now() < end,
            "sequence {seq} has no outcome after {deadline:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether an order has no outcome so far.
async fn is_open(world: &World, order: &Accepted) -> Result<bool> {
    let outcomes = Outcomes::read(&world.connection).await?;
    Ok(outcomes.of(order.seq).is_none())
}

fn is(recorded: &Recorded, kind: OutcomeKind) -> Result<()> {
    let outcome = &recorded.outcome;
    ensure!(
        outcome.kind == kind,
        "{} of {} ended as {:?}, not {kind:?}: {:?}, attempts {:?}",
        outcome.envelope.id,
        outcome.envelope.merchant,
        outcome.kind,
        outcome.detail,
        outcome.attempts
    );
    Ok(())
}

fn is_dead(recorded: &Recorded, reason: DeadReason) -> Result<()> {
    is(recorded, OutcomeKind::DeadLettered(reason))
}

/// How a merchant stands, by the owner of its partition.
async fn status(world: &World, merchant: &str) -> Result<MerchantStatus> {
    let partitions = partitions(world).await?;
    let partition = subjects::partition_of(merchant, partitions);
    let request = ControlRequest::MerchantStatus {
        merchant: MerchantId::new(merchant)?,
    };
    let asked = world.connection.client().request(
        subjects::control_partition(partition),
        encode_request(&request),
    );
    match decode_reply(&asked.await?.payload)? {
        ControlReply::Merchant(status) => Ok(status),
        other => bail!("{other:?}"),
    }
}

/// Waits until a merchant stands as `holds` asks.
pub(crate) async fn stands(
    world: &World,
    merchant: &str,
    deadline: Duration,
    holds: impl Fn(&MerchantStatus) -> bool,
) -> Result<MerchantStatus> {
    let found = eventually(merchant, deadline, || async {
        Ok(Some(status(world, merchant).await?).filter(&holds))
    });
    match found.await {
        Ok(status) => Ok(status),
        Err(error) => {
            let now = status(world, merchant).await;
            Err(error.context(format!("it stands so: {now:?}")))
        }
    }
}

/// Waits until a gauge, which follows within a second, has that value.
async fn gauge(node: &NodeProcess, name: &str, value: f64) -> Result<()> {
    let follows = eventually(name, SOON, || async {
        let found = node.metric(name).await?;
        ensure!(found == value, "{name} is {found}, not {value}");
        Ok(Some(()))
    });
    follows.await
}

fn is_closed(status: &MerchantStatus) -> bool {
    status.state == MerchantState::Closed
}

async fn partitions(world: &World) -> Result<u16> {
    let stream = stream(world, subjects::ORDERS).await?;
    let config = stream.get_info().await?.config;
    let transform = config.subject_transform.context("ORDERS has a transform")?;
    let number = transform.destination.split(['(', ',']).nth(1);
    Ok(number.context("partition(n,1)")?.parse()?)
}

async fn stream(world: &World, name: &str) -> Result<Stream<()>> {
    let context = jetstream::new(world.connection.client().clone());
    Ok(context.get_stream_no_info(name).await?)
}
