//! Purging: the only way in which a message leaves ORDERS and OUTCOMES.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use async_nats::jetstream::{
    context::CreateStreamErrorKind,
    stream::{DeleteMessageErrorKind, Stream},
};
use expediter_wire::subjects::partition_of;

use super::{Broker, at_one_and_three_replicas, body, publish};

at_one_and_three_replicas!(
    by_merchant_and_sequence,
    whole_log_up_to_a_sequence,
    beyond_the_last_sequence,
    single_messages_cannot_be_deleted,
);

/// Subject and timestamp of every message by sequence.
type Content = BTreeMap<u64, (String, i128)>;

/// 40 orders of merchants `a` and `b` in turn.
async fn filled(broker: &Broker) -> Result<(Stream, Content)> {
    let stream = broker.orders().await?;
    for i in 0..40 {
        let merchant = if i % 2 == 0 { "a" } else { "b" };
        publish(
            &broker.js,
            format!("orders.{merchant}"),
            body(format!("{i}")),
        )
        .await?;
    }
    let content = content(&stream).await?;
    assert_eq!(
        content.keys().copied().collect::<Vec<_>>(),
        (1..=40).collect::<Vec<_>>()
    );
    Ok((stream, content))
}

async fn content(stream: &Stream) -> Result<Content> {
    let mut content = Content::new();
    let state = stream.get_info().await?.state;
    for sequence in state.first_sequence..=state.last_sequence {
        if let Ok(message) = stream.get_raw_message(sequence).await {
            let stored = (
                message.subject.to_string(),
                message.time.unix_timestamp_nanos(),
            );
            content.insert(sequence, stored);
        }
    }
    assert_eq!(content.len() as u64, state.messages);
    Ok(content)
}

fn stored_subject(merchant: &str) -> String {
    format!("orders.{}.{merchant}", partition_of(merchant, 16))
}

/// The merchant's messages below the sequence go; that sequence, everything above and everybody
/// else's stay as they were. The publisher's form of the subject purges nothing.
async fn by_merchant_and_sequence(replicas: usize) -> Result<()> {
    let broker = Broker::start(replicas).await?;
    let (stream, before) = filled(&broker).await?;
    // Odd sequences are of merchant `a`.
    let purged = stream.purge().filter("orders.a").sequence(21).await?;
    assert_eq!(purged.purged, 0);
    let purged = stream
        .purge()
        .filter(stored_subject("a"))
        .sequence(21)
        .await?;
    assert_eq!((purged.success, purged.purged), (true, 10));

    let mut expected = before;
    expected.retain(|sequence, _| sequence % 2 == 0 || *sequence >= 21);
    assert_eq!(content(&stream).await?, expected);
    let state = stream.get_info().await?.state;
    assert_eq!((state.first_sequence, state.last_sequence), (2, 40));
    assert_eq!(state.deleted_count, Some(9));

    // Repeated it finds nothing.
    let again = stream
        .purge()
        .filter(stored_subject("a"))
        .sequence(21)
        .await?;
    assert_eq!(again.purged, 0);
    // Up to a sequence beyond the last it takes all of the merchant's and moves nothing else.
    let all = stream
        .purge()
        .filter(stored_subject("b"))
        .sequence(1000)
        .await?;
    assert_eq!(all.purged, 20);
    let state = stream.get_info().await?.state;
    assert_eq!((state.first_sequence, state.last_sequence), (21, 40));
    assert_eq!(
        publish(&broker.js, "orders.b", body("next"))
            .await?
            .sequence,
        41
    );
    Ok(())
}

/// Everything below the sequence goes, the sequence stays; the next message gets the next number.
async fn whole_log_up_to_a_sequence(replicas: usize) -> Result<()> {
    let broker = Broker::start(replicas).await?;
    let (stream, before) = filled(&broker).await?;
    let purged = stream.purge().sequence(31).await?;
    assert_eq!((purged.success, purged.purged), (true, 30));
    let mut expected = before;
    expected.retain(|sequence, _| *sequence >= 31);
    assert_eq!(content(&stream).await?, expected);
    let state = stream.get_info().await?.state;
    assert_eq!((state.first_sequence, state.last_sequence), (31, 40));

    // A lower sequence afterwards is harmless.
    assert_eq!(stream.purge().sequence(5).await?.purged, 0);
    assert_eq!(content(&stream).await?, expected);

    // Down to the last message, which keeps the log's identity.
    assert_eq!(stream.purge().sequence(40).await?.purged, 9);
    expected.retain(|sequence, _| *sequence == 40);
    assert_eq!(content(&stream).await?, expected);
    assert_eq!(
        publish(&broker.js, "orders.a", body("next"))
            .await?
            .sequence,
        41
    );
    Ok(())
}

/// A purge without a filter up to a sequence that the log has not reached is obeyed: the log jumps
/// there, and numbers in between are never given. So no purge may come from another log's sequences.
async fn beyond_the_last_sequence(replicas: usize) -> Result<()> {
    let broker = Broker::start(replicas).await?;
    let (stream, _) = filled(&broker).await?;
    let purged = stream.purge().sequence(100).await?;
    assert_eq!((purged.success, purged.purged), (true, 40));
    let state = stream.get_info().await?.state;
    assert_eq!(
        (state.messages, state.first_sequence, state.last_sequence),
        (0, 100, 99)
    );
    assert_eq!(
        publish(&broker.js, "orders.a", body("next"))
            .await?
            .sequence,
        100
    );
    Ok(())
}

/// `deny_delete` refuses to delete single messages (10057), leaves purging alone, and cannot be
/// taken back (10052).
async fn single_messages_cannot_be_deleted(replicas: usize) -> Result<()> {
    let broker = Broker::start(replicas).await?;
    let (stream, before) = filled(&broker).await?;
    let error = stream
        .delete_message(3)
        .await
        .expect_err("deletion is denied");
    let DeleteMessageErrorKind::JetStream(error) = error.kind() else {
        bail!("{error}")
    };
    assert_eq!(error.error_code().0, 10057);
    assert_eq!(content(&stream).await?, before);

    let mut config = stream.get_info().await?.config;
    config.deny_delete = false;
    let error = broker
        .js
        .update_stream(config)
        .await
        .expect_err("it cannot be taken back");
    let CreateStreamErrorKind::JetStream(error) = error.kind() else {
        bail!("{error}")
    };
    assert_eq!(error.error_code().0, 10052);
    assert_eq!(stream.purge().sequence(2).await?.purged, 1);
    Ok(())
}
