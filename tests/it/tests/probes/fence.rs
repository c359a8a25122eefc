//! The fence: what the broker does with a write that is checked against a claim.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Result, ensure};
use futures::future::join_all;

use super::{
    Broker, WRONG_LAST_SEQUENCE, WRONG_LAST_SEQUENCE_CONSTANT, at_one_and_three_replicas, body,
    claim, context_with_timeout, fenced, publish, refusal, refused, step_down,
};

at_one_and_three_replicas!(
    a_write_is_compared_with_the_claim,
    one_write_at_a_time_is_never_refused,
    writes_in_flight_together,
    partitions_do_not_hinder_each_other,
    one_claimer_wins,
);

/// A write succeeds while the claim's sequence is the token. After another claim it is refused
/// with 10071 and the actual sequence in the text, whatever its subject.
async fn a_write_is_compared_with_the_claim(replicas: usize) -> Result<()> {
    let broker = Broker::start(replicas).await?;
    let js = &broker.js;
    let mut stream = broker.outcomes().await?;

    // An absent claim counts as sequence 0.
    let before = publish(js, "outcomes.3", fenced(3, 0, "nobody claimed")).await?;
    assert_eq!(before.sequence, 1);

    let first = claim(js, 3, 0).await?;
    for subject in [
        "outcomes.3",
        "mark.3",
        "attempt.3.m",
        "dead.3.m",
        "shift.3",
        "mark.3.1",
    ] {
        publish(js, subject, fenced(3, first, "mine")).await?;
    }
    // Writes about other claims and plain ones do not move the fence.
    let other = claim(js, 4, 0).await?;
    publish(js, "outcomes.4", fenced(4, other, "theirs")).await?;
    publish(js, "outcomes.3", body("plain")).await?;
    publish(js, "outcomes.3", fenced(3, first, "mine")).await?;

    let second = claim(js, 3, first).await?;
    let stored = stream.info().await?.state.messages;
    for subject in ["outcomes.3", "mark.3", "attempt.3.m"] {
        let (code, text) = refused(publish(js, subject, fenced(3, first, "stale")).await)?;
        assert_eq!(code, WRONG_LAST_SEQUENCE);
        assert!(
            text.contains(&format!("wrong last sequence: {second}")),
            "{text}"
        );
    }
    // A token of the future is as wrong as one of the past.
    let (code, _) = refused(publish(js, "mark.3", fenced(3, second + 1, "no")).await)?;
    assert_eq!(code, WRONG_LAST_SEQUENCE);
    assert_eq!(stream.info().await?.state.messages, stored);
    publish(js, "outcomes.3", fenced(3, second, "mine")).await?;
    Ok(())
}

/// The answer to a write comes after the broker is ready for the next one.
async fn one_write_at_a_time_is_never_refused(replicas: usize) -> Result<()> {
    let broker = Broker::start(replicas).await?;
    broker.outcomes().await?;
    let token = claim(&broker.js, 3, 0).await?;
    for i in 0..300 {
        publish(&broker.js, "outcomes.3", fenced(3, token, format!("{i}"))).await?;
    }
    Ok(())
}

/// With one replica all writes in flight together are taken, in order. With three the first is
/// taken, and others are refused with 10164 as long as it is under way; never with 10071. A plain
/// write to the claim's subject that is under way has the same effect.
async fn writes_in_flight_together(replicas: usize) -> Result<()> {
    let broker = Broker::start(replicas).await?;
    broker.outcomes().await?;
    let token = claim(&broker.js, 3, 0).await?;

    let mut answers = BTreeMap::<u64, usize>::new();
    let mut futures = Vec::new();
    for i in 0..100 {
        let message = fenced(3, token, format!("{i}"));
        futures.push(broker.js.send_publish("outcomes.3", message).await?);
    }
    let acks = join_all(futures.into_iter().map(IntoFuture::into_future)).await;
    let first = acks.first().map(Result::is_ok);
    for ack in acks {
        let code = match ack {
            Ok(_) => 0,
            Err(error) => refusal(&error).map_or(u64::MAX, |(code, _)| code),
        };
        *answers.entry(code).or_default() += 1;
    }
    println!("{replicas} replicas, 100 fenced writes at once, answers by code: {answers:?}");
    assert_eq!(first, Some(true));
    if replicas == 1 {
        assert_eq!(answers, BTreeMap::from([(0, 100)]));
    } else {
        let constant = answers
            .get(&WRONG_LAST_SEQUENCE_CONSTANT)
            .copied()
            .unwrap_or(0);
        assert_eq!(constant + answers[&0], 100, "{answers:?}");
        assert!(
            constant > 0,
            "two fenced writes at once are taken: {answers:?}"
        );
    }
    Ok(())
}

/// The slot is one for each claim: writes checked against different claims go together.
async fn partitions_do_not_hinder_each_other(replicas: usize) -> Result<()> {
    let broker = Broker::start(replicas).await?;
    let js = &broker.js;
    broker.outcomes().await?;
    let mut tokens = Vec::new();
    for p in 0..16 {
        tokens.push((p, claim(js, p, 0).await?));
    }
    for _ in 0..20 {
        let writes = tokens
            .iter()
            .map(|(p, token)| publish(js, format!("outcomes.{p}"), fenced(*p, *token, "")));
        for ack in join_all(writes).await {
            ack?;
        }
    }
    Ok(())
}

/// One record at a time, repeated with its id until it is acknowledged, while the stream's leader
/// changes: each is stored once, in order. What the broker answers meanwhile decides nothing.
#[tokio::test]
async fn leaders_change_between_records() -> Result<()> {
    let broker = Broker::start(3).await?;
    let js = context_with_timeout(broker.client.clone(), Duration::from_millis(500));
    let stream = broker.outcomes().await?;
    let token = claim(&js, 3, 0).await?;
    let mut records = 0;
    let mut answers = BTreeMap::<String, usize>::new();
    let done = AtomicBool::new(false);
    let changes = async {
        for _ in 0..4 {
            step_down(&broker.client, "OUTCOMES").await?;
        }
        done.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let writer = async {
        while !done.load(Ordering::Relaxed) {
            let record = records;
            let message =
                fenced(3, token, format!("{record}")).message_id(format!("3/{token}/{record}"));
            while let Err(error) = publish(&js, "outcomes.3", message.clone()).await {
                let code = refusal(&error).map(|(code, _)| code);
                ensure!(
                    code != Some(WRONG_LAST_SEQUENCE),
                    "fenced by nobody: {error}"
                );
                let answer = code.map_or_else(|| error.to_string(), |code| code.to_string());
                *answers.entry(answer).or_default() += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            records += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(changes, writer)?;
    println!("4 changes of the leader, {records} records, refusals: {answers:?}");

    let state = stream.get_info().await?.state;
    assert_eq!(
        (state.first_sequence, state.last_sequence),
        (token, token + records)
    );
    for record in 0..records {
        let stored = stream.get_raw_message(token + 1 + record).await?;
        assert_eq!(stored.payload, format!("{record}"));
    }
    Ok(())
}

/// Of claimers with the same idea of the claim before, one wins. The others' code is 10071, or
/// with three replicas 10164 while the winner's claim is under way.
async fn one_claimer_wins(replicas: usize) -> Result<()> {
    let broker = Broker::start(replicas).await?;
    broker.outcomes().await?;
    let mut losers = BTreeMap::<u64, usize>::new();
    let mut previous = 0;
    for _ in 0..20 {
        let claims = join_all((0..4).map(|_| claim(&broker.js, 3, previous))).await;
        let mut winners = Vec::new();
        for claim in claims {
            match claim {
                Ok(token) => winners.push(token),
                Err(error) => {
                    let code = refusal(&error).map_or(u64::MAX, |(code, _)| code);
                    *losers.entry(code).or_default() += 1;
                }
            }
        }
        assert_eq!(winners.len(), 1);
        previous = winners[0];
    }
    println!("{replicas} replicas, claims lost by code: {losers:?}");
    let compared = losers.remove(&WRONG_LAST_SEQUENCE).unwrap_or(0);
    let constant = losers.remove(&WRONG_LAST_SEQUENCE_CONSTANT).unwrap_or(0);
    assert!(losers.is_empty(), "{losers:?}");
    if replicas == 1 {
        assert_eq!((compared, constant), (60, 0));
    }
    // One by one the comparison is always made.
    let (code, _) = refused(claim(&broker.js, 3, previous - 1).await)?;
    assert_eq!(code, WRONG_LAST_SEQUENCE);
    Ok(())
}
