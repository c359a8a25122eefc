//! The judge notices what it is there for: each test plants one bug into what a node finds or does.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream;
use expediter_fleet::merchants::{Behaviour, Ending};
use expediter_harness::{Accepted, NewOrder, Outcomes, eventually};
use expediter_load::{Evidence, Options, Report, Scenario, Stage};
use expediter_nats::Registry;
use expediter_types::{Idempotency, MerchantId, Ordering, Outcome, OutcomeKind, Partition, Stamp};
use expediter_wire::records;
use expediter_wire::subjects;

const SOON: Duration = Duration::from_secs(20);
/// Long enough for what is not lost.
const GRACE: Duration = Duration::from_secs(2);
const ALL: Partition = Partition(0);
/// Orders that a bug hits.
const HIT: usize = 20;

fn options() -> Options {
    Options {
        scenario: Scenario::All,
        minutes: 0.0,
        seed: 1,
        brokers: 1,
        nodes: 1,
        partitions: 1,
        rate: 0,
        faults: 0.0,
        takeover_within: None,
        no_sync: true,
    }
}

/// One partition, and the stamp of its first owner's records.
async fn stage() -> Result<(Stage, Stamp)> {
    let stage = Stage::open(&options()).await?;
    stage.world.publish("native-fast-0", 10).await?;
    let outcomes = stage.world.settled(SOON).await?;
    let stamp = outcomes.all().next().context("no outcome")?.stamp;
    Ok((stage, stamp))
}

/// Orders that are in the log and not answered; their node is dead.
async fn unanswered(stage: &mut Stage, merchant: &str) -> Result<Vec<Accepted>> {
    let hung = Behaviour {
        ending: Ending::Hang,
        ..Behaviour::default()
    };
    stage.world.fleet.set(merchant, hung)?;
    let mut orders = stage.world.publish(merchant, HIT).await?;
    orders.sort_unstable_by_key(|order| order.seq);
    stage.world.arrived(merchant, 10, SOON).await?;
    stage.kill_all();
    stage.world.fleet.set(merchant, Behaviour::default())?;
    Ok(orders)
}

async fn put(stage: &Stage, subject: String, payload: bytes::Bytes) -> Result<()> {
    let context = jetstream::new(stage.world.connection.client().clone());
    context.publish(subject, payload).await?.await?;
    Ok(())
}

async fn judged(stage: &Stage, delivered_next: &str) -> Result<Report> {
    // What comes after is not lost: the node works.
    let publisher = stage.world.publisher();
    let next = publisher.send(NewOrder::to(delivered_next)).await?;
    eventually("the next one has its outcome", SOON, async || {
        let outcomes = Outcomes::read(&stage.world.connection).await?;
        Ok(outcomes.of(next.seq).map(drop))
    })
    .await?;
    tokio::time::sleep(GRACE).await;
    let outcomes = Outcomes::read(&stage.world.connection).await?;
    Ok(Evidence::collect(stage, outcomes, Vec::new()).judge(&options()))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_wrong_without_a_bug() -> Result<()> {
    let (mut stage, _) = stage().await?;
    unanswered(&mut stage, "native-fast-0").await?;
    stage.start_over(true).await?;
    stage.world.settled(SOON).await?;
    let report = judged(&stage, "native-fast-0").await?;
    // They hung, and nobody told the judge: all that is unexplained is that they came twice.
    ensure!(report.lost == 0 && report.out_of_order == 0, "{report:?}");
    ensure!(
        report.duplicated_unexplained == report.violations.len(),
        "{report:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_runs_ahead_loses_orders() -> Result<()> {
    let (mut stage, stamp) = stage().await?;
    let context = jetstream::new(stage.world.connection.client().clone());
    let log = context.get_stream(subjects::OUTCOMES).await?;
    let subject = subjects::mark(ALL);
    let newest = async || Ok(log.get_last_raw_message_by_subject(&subject).await.ok());
    eventually("the first mark", SOON, newest).await?;
    let orders = unanswered(&mut stage, "native-fast-0").await?;
    let newest = newest().await?.context("no mark")?;
    let (_, mut mark) = records::decode_mark(&newest.payload, &[])?;
    mark.low_water = orders.last().context("no order")?.seq;
    mark.seen = mark.low_water;
    mark.attempts.clear();
    put(&stage, subject, records::encode_mark(stamp, &mark)?.commit).await?;
    stage.start_over(true).await?;
    let report = judged(&stage, "native-fast-0").await?;
    ensure!(report.lost == HIT, "{report:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_before_the_answer_loses_orders() -> Result<()> {
    let (mut stage, stamp) = stage().await?;
    let example = Outcomes::read(&stage.world.connection).await?;
    let example = example.all().next().context("no outcome")?.outcome.clone();
    stage
        .world
        .fleet
        .set("native-fast-0", Behaviour::status(503))?;
    let orders = stage.world.publish("native-fast-0", HIT).await?;
    stage.kill_all();
    let premature = orders.iter().map(|order| {
        let mut envelope = example.envelope.clone();
        envelope.id = order.id.parse()?;
        Ok(Outcome {
            seq: order.seq,
            envelope,
            kind: OutcomeKind::Delivered,
            payload_hash: order.hash,
            ..example.clone()
        })
    });
    let premature: Vec<Outcome> = premature.collect::<Result<_>>()?;
    put(
        &stage,
        subjects::outcomes(ALL),
        records::encode_outcomes(stamp, &premature)?,
    )
    .await?;
    stage
        .world
        .fleet
        .set("native-fast-0", Behaviour::default())?;
    stage.start_over(true).await?;
    let report = judged(&stage, "native-fast-0").await?;
    ensure!(report.lost == HIT, "{report:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skipped_record_loses_an_order() -> Result<()> {
    let (mut stage, _) = stage().await?;
    let orders = unanswered(&mut stage, "native-fast-0").await?;
    let context = jetstream::new(stage.world.connection.client().clone());
    let log = context.get_stream(subjects::ORDERS).await?;
    let merchant = MerchantId::new("native-fast-0")?;
    log.purge()
        .filter(subjects::orders(ALL, &merchant))
        .sequence(orders[1].seq)
        .await?;
    stage.start_over(true).await?;
    let report = judged(&stage, "native-fast-0").await?;
    ensure!(report.lost == 1, "{report:?}");
    Ok(())
}

/// Changes a merchant without the judge's knowing.
async fn change(
    stage: &Stage,
    id: &str,
    how: impl FnOnce(&mut expediter_types::Merchant),
) -> Result<()> {
    let registry = Registry::new(&stage.world.connection);
    let entry = registry
        .get(&MerchantId::new(id)?)
        .await?
        .context("no such merchant")?;
    let mut registration = entry.registration;
    how(&mut registration.merchant);
    let revision = registry.put(&registration, entry.revision).await?;
    ensure!(revision > entry.revision);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swapped_order_is_out_of_order() -> Result<()> {
    let (stage, _) = stage().await?;
    change(&stage, "native-queue-flaky-0", |merchant| {
        merchant.limits.ordering = Ordering::None
    })
    .await?;
    tokio::time::sleep(GRACE).await;
    stage.world.publish("native-queue-flaky-0", HIT).await?;
    stage.world.settled(SOON).await?;
    let report = judged(&stage, "native-queue-flaky-0").await?;
    ensure!(report.out_of_order > 0 && report.lost == 0, "{report:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blind_repeat_is_noticed() -> Result<()> {
    let (mut stage, _) = stage().await?;
    change(&stage, "none-fast-0", |merchant| {
        merchant.adapter.idempotency = Idempotency::Native;
    })
    .await?;
    tokio::time::sleep(GRACE).await;
    unanswered(&mut stage, "none-fast-0").await?;
    stage.start_over(false).await?;
    stage.world.settled(SOON).await?;
    let report = judged(&stage, "native-fast-0").await?;
    let repeats = |text: &&String| text.contains("cannot tell repeats and got");
    ensure!(
        report.violations.iter().filter(repeats).count() > 0,
        "{report:?}"
    );
    ensure!(report.duplicated_unexplained > 0, "{report:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_is_not_kept_is_noticed() -> Result<()> {
    let (stage, _) = stage().await?;
    change(&stage, "limited-0", |merchant| {
        merchant.limits.rates.clear()
    })
    .await?;
    tokio::time::sleep(GRACE).await;
    stage.world.publish("limited-0", 5 * HIT).await?;
    stage.world.settled(SOON).await?;
    let report = judged(&stage, "native-fast-0").await?;
    ensure!(report.limits_broken == 1, "{report:?}");
    Ok(())
}
