//! Deduplication by `Nats-Msg-Id`, and what it does to a write that is checked against a claim.

use std::collections::BTreeMap;

use anyhow::Result;
use futures::future::join_all;

use super::{
    Broker, WRONG_LAST_SEQUENCE, at_one_and_three_replicas, body, claim, fenced, publish, refusal,
    refused,
};

at_one_and_three_replicas!(
    a_repeat_and_the_fence,
    a_repeat_while_the_first_is_under_way,
    a_repeated_claim,
);

/// A repeat in the same epoch is acknowledged as a duplicate with the first one's sequence, and
/// not stored. After another claim it depends: with one replica the fence comes first (10071), with
/// three the deduplication does (a duplicate's acknowledgement to a fenced owner).
async fn a_repeat_and_the_fence(replicas: usize) -> Result<()> {
    let broker = Broker::start(replicas).await?;
    let js = &broker.js;
    let mut stream = broker.outcomes().await?;
    let first = claim(js, 3, 0).await?;
    let record = || fenced(3, first, "record").message_id(format!("3/{first}/1"));

    let ack = publish(js, "outcomes.3", record()).await?;
    assert!(!ack.duplicate);
    let again = publish(js, "outcomes.3", record()).await?;
    assert!(again.duplicate);
    assert_eq!(again.sequence, ack.sequence);
    assert_eq!(stream.info().await?.state.last_sequence, ack.sequence);

    // The same id on another subject is a duplicate as well: ids count over the whole stream.
    let elsewhere = publish(js, "mark.3", record()).await?;
    assert!(elsewhere.duplicate);
    assert_eq!(elsewhere.sequence, ack.sequence);

    let second = claim(js, 3, first).await?;
    let late = publish(js, "outcomes.3", record()).await;
    if replicas == 1 {
        let (code, text) = refused(late)?;
        assert_eq!(code, WRONG_LAST_SEQUENCE);
        assert!(text.contains(&second.to_string()), "{text}");
    } else {
        let late = late?;
        assert!(late.duplicate);
        assert_eq!(late.sequence, ack.sequence);
    }
    assert_eq!(stream.info().await?.state.last_sequence, second);

    // A record that was never stored is refused in both.
    let new = fenced(3, first, "new").message_id(format!("3/{first}/2"));
    assert_eq!(
        refused(publish(js, "outcomes.3", new).await)?.0,
        WRONG_LAST_SEQUENCE
    );
    // The id of a refused write is not remembered.
    let same_id = body("plain").message_id(format!("3/{first}/2"));
    assert!(!publish(js, "outcomes.3", same_id).await?.duplicate);
    Ok(())
}

/// A record repeated while the first is under way: with one replica a duplicate, with three refused
/// with 10158 or a duplicate. It is stored once.
async fn a_repeat_while_the_first_is_under_way(replicas: usize) -> Result<()> {
    let broker = Broker::start(replicas).await?;
    let js = &broker.js;
    let stream = broker.outcomes().await?;
    let token = claim(js, 3, 0).await?;
    let mut answers = BTreeMap::<String, usize>::new();
    for record in 0..20 {
        let message = fenced(3, token, "").message_id(format!("3/{token}/{record}"));
        let mut copies = Vec::new();
        for _ in 0..3 {
            copies.push(js.send_publish("outcomes.3", message.clone()).await?);
        }
        let copies = join_all(copies.into_iter().map(IntoFuture::into_future)).await;
        for copy in copies {
            let answer = match copy {
                Ok(ack) if ack.duplicate => "duplicate".to_owned(),
                Ok(_) => "stored".to_owned(),
                Err(error) => {
                    refusal(&error).map_or_else(String::new, |(code, _)| code.to_string())
                }
            };
            *answers.entry(answer).or_default() += 1;
        }
    }
    println!("{replicas} replicas, 20 records, three copies at once: {answers:?}");
    assert_eq!(answers["stored"], 20);
    assert_eq!(stream.get_info().await?.state.last_sequence, token + 20);
    Ok(())
}

/// A claim whose answer was lost is repeated: with one replica it meets itself (10071 with its own
/// sequence), with three it is acknowledged as a duplicate. So a claimer that is refused reads who
/// holds the claim.
async fn a_repeated_claim(replicas: usize) -> Result<()> {
    let broker = Broker::start(replicas).await?;
    let js = &broker.js;
    broker.outcomes().await?;
    let attempt = || {
        body("claim of a")
            .expected_last_subject_sequence(0)
            .message_id("3/a/1")
    };
    let first = publish(js, "claim.3", attempt()).await?;
    let again = publish(js, "claim.3", attempt()).await;
    if replicas == 1 {
        let (code, text) = refused(again)?;
        assert_eq!(code, WRONG_LAST_SEQUENCE);
        assert!(text.contains(&first.sequence.to_string()), "{text}");
    } else {
        let again = again?;
        assert!(again.duplicate);
        assert_eq!(again.sequence, first.sequence);
    }
    Ok(())
}
