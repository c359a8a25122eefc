//! Calls to JetStream with the error codes that matter to the protocol.

use std::time::Duration;

use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{self, LastRawMessageErrorKind, Stream};
use async_nats::jetstream::{self, Context};
use async_nats::{HeaderMap, Request};
use bytes::Bytes;
use expediter_types::{Seq, UnixMillis};
use serde::Deserialize;

use crate::clock::millis;
use crate::{Connection, Error};

/// A PubAck that takes longer decides nothing.
pub(crate) const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// At most so much of ORDERS is taken from the largest message, for a dead letter's envelope.
pub(crate) const ENVELOPE_ROOM: usize = 64 * 1024;

/// JetStream over one connection.
#[derive(Debug, Clone)]
pub(crate) struct Broker {
    pub(crate) connection: Connection,
    pub(crate) context: Context,
}

/// The broker stored it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) seq: Seq,
    pub(crate) duplicate: bool,
}

/// Why there is no acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoAck {
    /// 10071: compared, and another message is the subject's last.
    #[error("sequence {current} is the last")]
    WrongLast { current: Seq },
    /// The broker says that it will not take it.
    #[error("{description} ({code})")]
    Refused { code: u64, description: String },
    /// Nothing is known: it may be stored.
    #[error("{0}")]
    Undecided(String),
}

#[derive(Deserialize)]
struct AckReply {
    #[serde(default)]
    seq: Seq,
    #[serde(default)]
    duplicate: bool,
    error: Option<AckError>,
}

#[derive(Deserialize)]
struct AckError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// What a stream is at, as its leader says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct StreamState {
    pub(crate) created: UnixMillis,
    pub(crate) first: Seq,
    pub(crate) last: Seq,
    /// Timestamp of the last message.
    pub(crate) last_at: UnixMillis,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    /// So many bytes may it hold; `u64::MAX` without a bound.
    pub(crate) room: u64,
}

impl From<&stream::Info> for StreamState {
    fn from(info: &stream::Info) -> Self {
        Self {
            created: millis(info.created),
            first: info.state.first_sequence,
            last: info.state.last_sequence,
            last_at: millis(info.state.last_timestamp),
            messages: info.state.messages,
            bytes: info.state.bytes,
            room: u64::try_from(info.config.max_bytes).unwrap_or(u64::MAX),
        }
    }
}

impl Broker {
    pub(crate) fn new(connection: &Connection) -> Self {
        let context = ContextBuilder::new()
            .timeout(ACK_TIMEOUT)
            .build(connection.client().clone());
        Self {
            connection: connection.clone(),
            context,
        }
    }

    /// A handle; asks nothing.
    pub(crate) async fn stream(&self, name: &str) -> Result<Stream<()>, Error> {
        self.context
            .get_stream_no_info(name)
            .await
            .map_err(Error::broker(format!("naming stream {name}")))
    }

    /// The stream as it is; `None` when there is none.
    pub(crate) async fn info(&self, name: &str) -> Result<Option<stream::Info>, Error> {
        let stream = self.stream(name).await?;
        match stream.get_info().await {
            Ok(info) => Ok(Some(info)),
            Err(error) => match error.kind() {
                jetstream::context::RequestErrorKind::NoResponders => Err(Error::plain(
                    "JetStream does not answer: is it enabled on the NATS server?",
                )),
                _ if api_code(&error) == Some(10_059) => Ok(None),
                _ => Err(Error::broker(format!("asking for stream {name}"))(error)),
            },
        }
    }

    pub(crate) async fn state(&self, name: &str) -> Result<StreamState, Error> {
        let info = self.info(name).await?;
        info.as_ref()
            .map(StreamState::from)
            .ok_or_else(|| Error::NoStream {
                stream: name.to_owned(),
            })
    }

    /// The message at a sequence, read from the stream's leader.
    pub(crate) async fn message(
        &self,
        stream: &str,
        seq: Seq,
    ) -> Result<Option<StreamMessage>, Error> {
        let found = self.stream(stream).await?.get_raw_message(seq).await;
        none_when_missing(found, || format!("reading message {seq} of {stream}"))
    }

    /// The newest message of a subject, read from the stream's leader.
    pub(crate) async fn last(
        &self,
        stream: &str,
        subject: &str,
    ) -> Result<Option<StreamMessage>, Error> {
        let found = self
            .stream(stream)
            .await?
            .get_last_raw_message_by_subject(subject)
            .await;
        none_when_missing(found, || format!("reading the last of {subject}"))
    }

    /// The first message at or after `from` that matches, read from the stream's leader.
    pub(crate) async fn next(
        &self,
        stream: &str,
        filter: &str,
        from: Seq,
    ) -> Result<Option<StreamMessage>, Error> {
        let handle = self.stream(stream).await?;
        let found = handle
            .raw_message_builder()
            .sequence(from)
            .next_by_subject(filter)
            .send()
            .await;
        none_when_missing(found, || format!("reading {filter} from {from}"))
    }

    /// Deletes a stream's messages below a sequence, all or those of a subject; keeps the one at it.
    /// Gives how many went. Nothing is below 1; to the server 0 would mean everything.
    pub(crate) async fn purge(
        &self,
        stream: &str,
        filter: Option<&str>,
        below: Seq,
    ) -> Result<u64, Error> {
        if below <= 1 {
            return Ok(0);
        }
        let purge = self.stream(stream).await?.purge().sequence(below);
        let purge = match filter {
            Some(filter) => purge.filter(filter),
            None => purge,
        };
        let what = format!(
            "purging {} of {stream} below {below}",
            filter.unwrap_or("all")
        );
        Ok(purge.await.map_err(Error::broker(what))?.purged)
    }

    /// Publishes and waits for the acknowledgement, [`ACK_TIMEOUT`] at most.
    pub(crate) async fn publish(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<Ack, NoAck> {
        self.publish_within(subject, headers, payload, ACK_TIMEOUT)
            .await
    }

    pub(crate) async fn publish_within(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Ack, NoAck> {
        let request = Request::new()
            .headers(headers)
            .payload(payload)
            .timeout(Some(timeout));
        let reply = self
            .connection
            .client()
            .send_request(subject, request)
            .await;
        let reply = reply.map_err(|error| match error.kind() {
            async_nats::RequestErrorKind::MaxPayloadExceeded => NoAck::Refused {
                code: 10_054,
                description: error.to_string(),
            },
            _ => NoAck::Undecided(error.to_string()),
        })?;
        read_ack(&reply.payload)
    }
}

pub(crate) fn read_ack(payload: &[u8]) -> Result<Ack, NoAck> {
    let reply: AckReply = serde_json::from_slice(payload)
        .map_err(|error| NoAck::Undecided(format!("an unreadable acknowledgement: {error}")))?;
    let Some(error) = reply.error else {
        return Ok(Ack {
            seq: reply.seq,
            duplicate: reply.duplicate,
        });
    };
    let AckError {
        err_code: code,
        description,
    } = error;
    match code {
        10_071 => {
            let number = description
                .rsplit(' ')
                .next()
                .and_then(|text| text.parse().ok());
            match number {
                Some(current) => Err(NoAck::WrongLast { current }),
                None => Err(NoAck::Undecided(description)),
            }
        }
        // Message too large, maximum messages, bytes, or messages per subject exceeded, store
        // full, stream sealed, headers or ttl not allowed. Whatever else says nothing for ever.
        10_054 | 10_077 | 10_122 | 10_023 | 10_047 | 10_109 => {
            Err(NoAck::Refused { code, description })
        }
        _ => Err(NoAck::Undecided(format!("{description} ({code})"))),
    }
}

/// The JetStream error code somewhere in a chain of errors.
fn api_code(error: &(dyn std::error::Error + 'static)) -> Option<u64> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(api) = error.downcast_ref::<jetstream::Error>() {
            return Some(api.error_code().0);
        }
        next = error.source();
    }
    None
}

fn none_when_missing(
    found: Result<StreamMessage, async_nats::error::Error<LastRawMessageErrorKind>>,
    what: impl FnOnce() -> String,
) -> Result<Option<StreamMessage>, Error> {
    match found {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(Error::broker(what())(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_are_told_apart() {
        assert_eq!(
            read_ack(br#"{"stream":"S","seq":7,"duplicate":true}"#),
            Ok(Ack {
                seq: 7,
                duplicate: true
            })
        );
        let wrong =
            br#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 12"}}"#;
        assert_eq!(read_ack(wrong), Err(NoAck::WrongLast { current: 12 }));
        let busy =
            br#"{"error":{"code":400,"err_code":10164,"description":"wrong last sequence"}}"#;
        assert!(matches!(read_ack(busy), Err(NoAck::Undecided(_))));
        let full =
            br#"{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"}}"#;
        assert!(matches!(
            read_ack(full),
            Err(NoAck::Refused { code: 10077, .. })
        ));
        assert!(matches!(read_ack(b"nonsense"), Err(NoAck::Undecided(_))));
    }
}
