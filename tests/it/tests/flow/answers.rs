//! What a merchant answers decides what becomes of its order.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use expediter_fleet::merchants::{Behaviour, Ending, Step};
use expediter_harness::{Recorded, World};
use expediter_types::{
    AttemptClass, ClassifyRule, DeadReason, Idempotency, Merchant, OutcomeKind, Predicate,
};

use super::listener::Answer;
use super::{Listener, SOON, is, is_dead, outcome, send};

fn native(world: &World, id: &str) -> Merchant {
    let mut merchant = world.merchant(id);
    merchant.adapter.timeout = Duration::from_secs(1);
    merchant
}

fn never(world: &World, id: &str) -> Merchant {
    let mut merchant = native(world, id);
    merchant.adapter.idempotency = Idempotency::None;
    merchant
}

/// Sends one order to a merchant that behaves so, and waits for its end.
async fn one(world: &World, merchant: Merchant, behaviour: Behaviour) -> Result<Recorded> {
    let id = merchant.id.to_string();
    world.fleet.set(&id, behaviour)?;
    world.register(&merchant).await?;
    let order = send(world, &id).await?;
    outcome(world, order.seq, Duration::from_secs(12))
        .await
        .with_context(|| format!("merchant {id}"))
}

fn classes(recorded: &Recorded) -> Vec<AttemptClass> {
    let attempts = &recorded.outcome.attempts;
    attempts.iter().map(|attempt| attempt.class).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundreds_are_delivered() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    for status in [200, 201, 202, 204, 206, 299] {
        let merchant = never(&world, &format!("s{status}"));
        let recorded = one(&world, merchant, Behaviour::status(status)).await?;
        is(&recorded, OutcomeKind::Delivered)?;
        ensure!(recorded.outcome.attempts[0].status == Some(status));
        ensure!(recorded.outcome.detail.is_empty());
    }
    world.oracle().judge().await?;
    node.check(&[]).await
}

/// 425 and 503 say that the order was not taken: every merchant gets it again.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_for_now_are_repeated() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let script = vec![Step::status(503), Step::status(425), Step::status(503)];
    for merchant in [native(&world, "native"), never(&world, "never")] {
        let id = merchant.id.to_string();
        let behaviour = Behaviour::default().scripted(script.clone());
        let recorded = one(&world, merchant, behaviour).await?;
        is(&recorded, OutcomeKind::Delivered)?;
        let mut expected = vec![AttemptClass::Retry; 3];
        expected.push(AttemptClass::Delivered);
        ensure!(classes(&recorded) == expected, "{recorded:?}");
        let arrivals = world.fleet.arrivals(&id);
        let attempts: Vec<u32> = arrivals.iter().map(|arrival| arrival.attempt).collect();
        ensure!(attempts == [1, 2, 3, 4], "{arrivals:?}");
    }
    let mut tired = native(&world, "tired");
    tired.retry.max_attempts = 3;
    let recorded = one(&world, tired, Behaviour::status(503)).await?;
    is_dead(&recorded, DeadReason::AttemptsExhausted)?;
    ensure!(classes(&recorded) == [AttemptClass::Retry; 3]);
    ensure!(world.fleet.merchant_stats("tired").arrived == 3);
    node.check(&[]).await
}

/// Nothing listens: the order cannot have arrived, so that it goes again, to any merchant.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connection_is_repeated() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let gone = Listener::start(|_, _| Answer::status(200)).await?;
    let url = gone.url();
    drop(gone);
    let mut merchant = never(&world, "late");
    merchant.adapter.url.clone_from(&url);
    world.register(&merchant).await?;
    let order = send(&world, "late").await?;
    super::stands(&world, "late", SOON, |status| status.last_error.is_some()).await?;
    let port = url
        .rsplit(':')
        .next()
        .and_then(|rest| rest.split('/').next());
    let port = port.context("a port")?.parse()?;
    let back = Listener::at(port, |_, _| Answer::status(200)).await?;
    let recorded = outcome(&world, order.seq, SOON).await?;
    is(&recorded, OutcomeKind::Delivered)?;
    ensure!(classes(&recorded)[0] == AttemptClass::Retry, "{recorded:?}");
    ensure!(back.requests().len() == 1);
    node.check(&[]).await
}

/// May have arrived: a merchant that deduplicates gets it again under the same key.
#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_answers_are_repeated_under_the_same_key() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let script = vec![
        Step::status(500),
        Step::status(502),
        Step::status(504),
        Step::status(408),
        Step::ending(Ending::Reset),
        Step::ending(Ending::Close),
        Step::ending(Ending::Hang),
    ];
    let behaviour = Behaviour::default().scripted(script);
    let recorded = one(&world, native(&world, "shaky"), behaviour).await?;
    is(&recorded, OutcomeKind::Delivered)?;
    let mut expected = vec![AttemptClass::Ambiguous; 7];
    expected.push(AttemptClass::Delivered);
    ensure!(classes(&recorded) == expected, "{recorded:?}");
    let arrivals = world.fleet.arrivals("shaky");
    ensure!(arrivals.len() == 8, "{arrivals:?}");
    let key = Some("shaky/shaky-1".to_owned());
    ensure!(
        arrivals
            .iter()
            .all(|arrival| arrival.idempotency_key == key),
        "{arrivals:?}"
    );
    world.oracle().allow_repeats("shaky").judge().await?;

    // Until it has had enough.
    let mut tired = native(&world, "tired");
    tired.retry.max_attempts = 2;
    let recorded = one(&world, tired, Behaviour::status(500)).await?;
    is_dead(&recorded, DeadReason::Ambiguous)?;
    // Or until the merchant may have forgotten the key.
    let mut forgetful = native(&world, "forgetful");
    forgetful.adapter.idempotency_window = Duration::from_secs(1);
    let recorded = one(&world, forgetful, Behaviour::status(500)).await?;
    is_dead(&recorded, DeadReason::Ambiguous)?;
    let arrivals = world.fleet.arrivals("forgetful");
    let (first, last) = (arrivals[0].at_us, arrivals[arrivals.len() - 1].at_us);
    ensure!(last - first < 1_300_000, "{arrivals:?}");
    node.check(&[]).await
}

/// May have arrived, and a repeat would do harm: parked for a person, with the payload.
#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_answers_park_the_order_without_idempotency() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let with = |ending: Ending| Behaviour {
        ending,
        ..Behaviour::default()
    };
    let cases = [
        ("never-500", Behaviour::status(500)),
        ("never-502", Behaviour::status(502)),
        ("never-504", Behaviour::status(504)),
        ("never-408", Behaviour::status(408)),
        ("never-507", Behaviour::status(507)),
        ("reset", with(Ending::Reset)),
        ("close", with(Ending::Close)),
        ("hang", with(Ending::Hang)),
    ];
    let cases = cases.map(|(id, behaviour)| {
        let world = &world;
        async move {
            let recorded = one(world, never(world, id), behaviour).await?;
            is_dead(&recorded, DeadReason::Ambiguous)?;
            let (payload, _) = recorded.dead.as_ref().context("a dead letter")?;
            let text = std::str::from_utf8(payload)?;
            ensure!(text.contains(&format!("\"{id}-1\"")), "{text}");
            ensure!(classes(&recorded) == [AttemptClass::Ambiguous]);
            ensure!(!recorded.outcome.attempts[0].detail.is_empty());
            ensure!(world.fleet.merchant_stats(id).arrived == 1, "{id}");
            Ok(())
        }
    });
    futures::future::try_join_all(cases).await?;
    node.check(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_retry_mends_is_a_dead_letter_with_the_answer() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let long = format!("{{\"error\":\"{}\"}}", "no cheese ".repeat(500));
    for status in [400, 402, 406, 409, 413, 418, 422, 451] {
        let id = format!("invalid-{status}");
        let behaviour = Behaviour {
            body: long.clone(),
            ..Behaviour::status(status)
        };
        let recorded = one(&world, native(&world, &id), behaviour).await?;
        is_dead(&recorded, DeadReason::Invalid)?;
        ensure!(recorded.outcome.attempts[0].status == Some(status));
        let (payload, excerpt) = recorded.dead.as_ref().context("a dead letter")?;
        ensure!(!payload.is_empty());
        ensure!(excerpt.len() == 2048 && long.as_bytes().starts_with(excerpt));
        ensure!(world.fleet.merchant_stats(&id).arrived == 1, "{id}");
    }
    let mut choosy = native(&world, "choosy");
    choosy.adapter.rejected = vec![409, 422];
    let recorded = one(&world, choosy, Behaviour::rejecting()).await?;
    is(&recorded, OutcomeKind::Rejected)?;
    ensure!(recorded.dead.is_none() && classes(&recorded) == [AttemptClass::Rejected]);
    ensure!(recorded.outcome.detail.contains("422"), "{recorded:?}");
    node.check(&[]).await
}

/// The manifest's own rules come before the table, the first that matches wins.
#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_classifies_as_it_likes() -> Result<()> {
    let world = World::start().await?;
    let node = world.node("node").start().await?;
    let rule = |class, when: Vec<Predicate>| ClassifyRule { when, class };
    let json =
        |path: &str, text: Option<&str>| Predicate::Json(path.to_owned(), text.map(str::to_owned));
    let rules = vec![
        rule(
            AttemptClass::AlreadyDone,
            vec![
                Predicate::Status(409, 409),
                json("$.error.code", Some("exists")),
            ],
        ),
        rule(
            AttemptClass::Rejected,
            vec![Predicate::Header("x-closed".into(), Some("yes".into()))],
        ),
        rule(
            AttemptClass::Retry,
            vec![json("$.errors[0].retry", Some("true"))],
        ),
        rule(AttemptClass::Invalid, vec![Predicate::Status(500, 599)]),
    ];
    let cases = [
        (
            "exists",
            Behaviour {
                body: r#"{"error":{"code":"exists"}}"#.into(),
                ..Behaviour::status(409)
            },
            OutcomeKind::Delivered,
            1,
        ),
        (
            "conflict",
            Behaviour::status(409),
            OutcomeKind::DeadLettered(DeadReason::Invalid),
            1,
        ),
        (
            "closed",
            Behaviour {
                headers: vec![("X-Closed".into(), "yes".into())],
                ..Behaviour::status(200)
            },
            OutcomeKind::Rejected,
            1,
        ),
        (
            "again",
            Behaviour::default().scripted(vec![Step {
                body: r#"{"errors":[{"retry":true}]}"#.into(),
                ..Step::status(200)
            }]),
            OutcomeKind::Delivered,
            2,
        ),
        (
            "broken",
            Behaviour::status(503),
            OutcomeKind::DeadLettered(DeadReason::Invalid),
            1,
        ),
        ("fine", Behaviour::default(), OutcomeKind::Delivered, 1),
    ];
    for (id, behaviour, kind, arrived) in cases {
        let mut merchant = never(&world, id);
        merchant.adapter.classify.clone_from(&rules);
        let recorded = one(&world, merchant, behaviour).await?;
        is(&recorded, kind)?;
        let stats = world.fleet.merchant_stats(id);
        ensure!(stats.arrived == arrived, "{id}: {stats:?}");
    }
    node.check(&[]).await
}
