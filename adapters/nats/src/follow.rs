//! Follows a bucket: the newest value of every key first, then each change.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use expediter_types::{Seq, UnixMillis};

use crate::Error;
use crate::broker::Broker;
use crate::error::chain;
use crate::reader::{Broken, Delivered, From, Reader, ReaderOptions};
use crate::streams::bucket_stream;

/// A change of one key.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) key: String,
    pub(crate) revision: Seq,
    pub(crate) op: Op,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Put(Bytes),
    /// Somebody deleted it.
    Delete,
    /// Its time to live passed.
    Expire,
}

/// Takes what a follower reads, in order.
pub(crate) trait Sink: Send {
    fn change(&mut self, change: Change);

    /// The state is complete as of when the follower began to read it. Called again after each
    /// fresh start, after the changes that bring it up to date.
    fn synced(&mut self);

    /// The bucket is another one than before (the broker lost it). Called before it is read.
    fn recreated(&mut self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// How to follow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Follow {
    pub(crate) bucket: &'static str,
    /// Keys to follow, such as `>` or `n.*`.
    pub(crate) keys: &'static str,
    /// After an interruption compare everything: needed where markers of deletion vanish.
    pub(crate) always_whole: bool,
}

/// Between two tries.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);

/// Follows for ever; ends when its future is dropped.
pub(crate) async fn follow<S: Sink>(broker: &Broker, follow: Follow, mut sink: S) {
    let mut state = Following {
        created: 0,
        last: 0,
        keys: HashSet::new(),
    };
    let mut wait = SHORTEST;
    loop {
        let before = state.last;
        let Err(error) = once(broker, follow, &mut state, &mut sink).await;
        tracing::debug!(bucket = follow.bucket, error, "following is interrupted");
        wait = if state.last > before {
            SHORTEST
        } else {
            longer(wait)
        };
        tokio::time::sleep(wait).await;
    }
}

/// The pause after this one; an outage may last for days.
fn longer(pause: Duration) -> Duration {
    (pause * 2).min(LONGEST)
}

struct Following {
    created: UnixMillis,
    last: Seq,
    keys: HashSet<String>,
}

async fn once<S: Sink>(
    broker: &Broker,
    options: Follow,
    following: &mut Following,
    sink: &mut S,
) -> Result<std::convert::Infallible, String> {
    let text = |error: Error| chain(&error);
    let stream = bucket_stream(options.bucket);
    let state = broker.state(&stream).await.map_err(text)?;
    let another = following.created != state.created || state.last < following.last;
    if another && following.created != 0 {
        sink.recreated().await;
    }
    let whole = another || options.always_whole;
    let from = if whole {
        From::Newest
    } else {
        From::Seq(following.last + 1)
    };
    let filter = format!("$KV.{}.{}", options.bucket, options.keys);
    let prefix = format!("$KV.{}.", options.bucket);
    let mut reader = Reader::open(
        broker,
        &ReaderOptions {
            stream: stream.clone(),
            filters: vec![filter.clone()],
            from,
            name: format!("follow-{}", options.bucket),
        },
    )
    .await
    .map_err(text)?;
    if whole {
        let mut left = reader.pending_at_start();
        let mut seen = HashSet::new();
        let mut last = 0;
        loop {
            while left > 0 {
                let message = next(&mut reader, Some(Duration::from_secs(5))).await?;
                left -= 1;
                last = message.seq;
                if let Some(change) = change(message, &prefix) {
                    if matches!(change.op, Op::Put(_)) {
                        seen.insert(change.key.clone());
                    }
                    apply(following, sink, change);
                }
            }
            // The consumer may sit on a replica that lags behind the leader.
            match broker
                .next(&stream, &filter, last + 1)
                .await
                .map_err(text)?
            {
                Some(_) => left = 1,
                None => break,
            }
        }
        let gone: Vec<String> = following.keys.difference(&seen).cloned().collect();
        for key in gone {
            // How it went cannot be told any more.
            let op = Op::Expire;
            apply(
                following,
                sink,
                Change {
                    key,
                    revision: last,
                    op,
                },
            );
        }
        (following.created, following.last) = (state.created, last.max(state.last));
        sink.synced();
    }
    loop {
        let message = next(&mut reader, None).await?;
        following.last = message.seq;
        if let Some(change) = change(message, &prefix) {
            apply(following, sink, change);
        }
    }
}

fn apply<S: Sink>(following: &mut Following, sink: &mut S, change: Change) {
    match change.op {
        Op::Put(_) => following.keys.insert(change.key.clone()),
        Op::Delete | Op::Expire => following.keys.remove(&change.key),
    };
    sink.change(change);
}

async fn next(reader: &mut Reader, within: Option<Duration>) -> Result<Delivered, String> {
    let text = |broken: Broken| broken.to_string();
    match within {
        None => reader.next().await.map_err(text),
        Some(within) => tokio::time::timeout(within, reader.next())
            .await
            .map_err(|_| "the state does not come".to_owned())?
            .map_err(text),
    }
}

fn change(message: Delivered, prefix: &str) -> Option<Change> {
    let key = message.subject.as_str().strip_prefix(prefix)?.to_owned();
    let header = |name: &str| {
        message
            .headers
            .as_ref()
            .and_then(|headers| headers.get(name))
    };
    let op = match (header("KV-Operation"), header("Nats-Marker-Reason")) {
        (_, Some(reason)) if reason.as_str() == "MaxAge" => Op::Expire,
        (_, Some(_)) => Op::Delete,
        (Some(_), None) => Op::Delete,
        (None, None) => Op::Put(message.payload),
    };
    Some(Change {
        key,
        revision: message.seq,
        op,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_stays_bounded_over_a_long_outage() {
        let pauses = std::iter::successors(Some(SHORTEST), |pause| Some(longer(*pause)));
        let days = pauses.take(1_000_000).max();
        assert_eq!(days, Some(LONGEST));
    }
}
