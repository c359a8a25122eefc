//! An ephemeral consumer that notices when it is not to be believed.
//!
//! Nothing is acknowledged and the server keeps no state worth having: whoever reads remembers the
//! last sequence taken, and after any doubt drops the reader and opens another behind it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::pull::{self, MessagesErrorKind};
use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy};
use async_nats::jetstream::message::Message;
use bytes::Bytes;
use expediter_types::{Seq, UnixMillis};
use futures::{FutureExt, StreamExt};
use tokio::time::Instant;

use crate::Error;
use crate::broker::Broker;
use crate::clock::{millis, unique};

/// A lost pull is repeated by the client only this and five seconds later; the heartbeat tells
/// sooner.
const EXPIRES: Duration = Duration::from_secs(2);
const HEARTBEAT: Duration = Duration::from_millis(500);
/// The server forgets an abandoned consumer after this.
const INACTIVE: Duration = Duration::from_secs(60);
const BATCH: usize = 1_000;
/// Who reads to the end gives up when nothing came for so long.
const SILENCE: Duration = Duration::from_secs(10);
/// How often a quiet reader asks the server what it delivered: the loss of the last messages shows
/// in no number of a later one.
const AUDIT: Duration = Duration::from_secs(5);

/// What to read, from where.
#[derive(Debug, Clone)]
pub(crate) struct ReaderOptions {
    pub(crate) stream: String,
    pub(crate) filters: Vec<String>,
    pub(crate) from: From,
    /// Begins the consumer's name, for people who list consumers.
    pub(crate) name: String,
}

/// Where a reader begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    /// The first message at or after it.
    Seq(Seq),
    /// The newest message of each subject, then what follows.
    Newest,
    /// The first message at or after this time.
    Time(UnixMillis),
}

/// A message as it was delivered.
#[derive(Debug)]
pub(crate) struct Delivered {
    pub(crate) subject: async_nats::Subject,
    pub(crate) headers: Option<HeaderMap>,
    pub(crate) payload: Bytes,
    pub(crate) seq: Seq,
    pub(crate) at: UnixMillis,
    /// So many more match, as the consumer's server knew when it sent this.
    pub(crate) pending: u64,
}

/// Why a reader must be dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The consumer's own numbering jumped: messages were lost on the way.
    Gap {
        expected: u64,
        got: u64,
    },
    MissedHeartbeat,
    ConsumerDeleted,
    Pull(String),
    NoResponders,
    Limit(String),
    Other(String),
    Ended,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gap { expected, got } => write!(f, "delivery {got} came instead of {expected}"),
            Self::MissedHeartbeat => f.write_str("no heartbeat"),
            Self::ConsumerDeleted => f.write_str("the consumer is gone"),
            Self::Pull(error) => write!(f, "a pull failed: {error}"),
            Self::NoResponders => f.write_str("nobody answers"),
            Self::Limit(error) => write!(f, "a pull was refused: {error}"),
            Self::Other(error) => f.write_str(error),
            Self::Ended => f.write_str("the delivery ended"),
        }
    }
}

/// One consumer and its delivery.
pub(crate) struct Reader {
    consumer: Consumer<pull::Config>,
    messages: pull::Stream,
    broker: Broker,
    /// Deliveries so far; the next one has the number after it.
    taken: u64,
    audited: Instant,
    /// What the server had delivered at the last audit; must have come by the next one.
    promised: u64,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("taken", &self.taken)
            .finish_non_exhaustive()
    }
}

impl Reader {
    pub(crate) async fn open(broker: &Broker, options: &ReaderOptions) -> Result<Self, Error> {
        Self::open_with(broker, options, false).await
    }

    /// Payloads are left out.
    pub(crate) async fn open_headers(
        broker: &Broker,
        options: &ReaderOptions,
    ) -> Result<Self, Error> {
        Self::open_with(broker, options, true).await
    }

    async fn open_with(
        broker: &Broker,
        options: &ReaderOptions,
        headers_only: bool,
    ) -> Result<Self, Error> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (filter_subject, filter_subjects) = match options.filters.as_slice() {
            [one] => (one.clone(), Vec::new()),
            many => (String::new(), many.to_vec()),
        };
        let deliver_policy = match options.from {
            From::Seq(start_sequence) => DeliverPolicy::ByStartSequence {
                start_sequence: start_sequence.max(1),
            },
            From::Newest => DeliverPolicy::LastPerSubject,
            From::Time(at) => DeliverPolicy::ByStartTime {
                start_time: async_nats::datetime::from_nanos(i128::from(at) * 1_000_000)
                    .map_err(Error::broker("a time out of range"))?,
            },
        };
        let config = pull::Config {
            name: Some(format!("{}-{number}-{}", options.name, unique())),
            deliver_policy,
            ack_policy: AckPolicy::None,
            filter_subject,
            filter_subjects,
            inactive_threshold: INACTIVE,
            num_replicas: 1,
            memory_storage: true,
            headers_only,
            ..pull::Config::default()
        };
        let what = || format!("reading {} with {}", options.stream, options.name);
        let consumer = broker
            .context
            .create_consumer_on_stream(config, options.stream.as_str())
            .await
            .map_err(|error| Error::broker(what())(error))?;
        // Any single message must fit, else the delivery would stand still before it.
        let largest = broker.connection.client().max_payload();
        let messages = consumer
            .stream()
            .max_messages_per_batch(BATCH)
            .max_bytes_per_batch((4 << 20).max(largest + (128 << 10)))
            .expires(EXPIRES)
            .heartbeat(HEARTBEAT)
            .messages()
            .await
            .map_err(|error| Error::broker(what())(error))?;
        Ok(Self {
            consumer,
            messages,
            broker: broker.clone(),
            taken: 0,
            audited: Instant::now(),
            promised: 0,
        })
    }

    /// How many messages matched when the consumer was made.
    pub(crate) fn pending_at_start(&self) -> u64 {
        self.consumer.cached_info().num_pending
    }

    /// Takes what matched when the consumer was made, in order, and closes it.
    ///
    /// # Errors
    /// Nothing comes for [`SILENCE`] although there is something, or the reader breaks.
    pub(crate) async fn drain(mut self, mut take: impl FnMut(Delivered)) -> Result<(), Error> {
        let stream = self.consumer.cached_info().stream_name.clone();
        for _ in 0..self.pending_at_start() {
            match tokio::time::timeout(SILENCE, self.next()).await {
                Ok(Ok(message)) => take(message),
                Ok(Err(broken)) => {
                    return Err(Error::plain(format!("reading {stream}: {broken}")));
                }
                // What is purged while it is read does not come any more.
                Err(_) => match self.consumer.get_info().await {
                    Ok(info) if info.num_pending == 0 => break,
                    _ => return Err(Error::plain(format!("{stream} delivers nothing"))),
                },
            }
        }
        self.close().await;
        Ok(())
    }

    /// The next message. After an error the reader is to be dropped. May be dropped while it waits.
    pub(crate) async fn next(&mut self) -> Result<Delivered, Broken> {
        loop {
            let due = self.audited + AUDIT;
            tokio::select! {
                biased;
                next = self.messages.next() => return self.judge(next),
                () = tokio::time::sleep_until(due) => self.audit().await?,
            }
        }
    }

    async fn audit(&mut self) -> Result<(), Broken> {
        self.audited = Instant::now();
        if self.taken < self.promised {
            return Err(Broken::Gap {
                expected: self.taken + 1,
                got: self.promised + 1,
            });
        }
        let info = self.consumer.get_info().await;
        let info = info.map_err(|error| Broken::Other(crate::error::chain(&error)))?;
        self.promised = info.delivered.consumer_sequence;
        Ok(())
    }

    /// The next message if it is here already.
    pub(crate) fn next_now(&mut self) -> Option<Result<Delivered, Broken>> {
        let next = self.messages.next().now_or_never()?;
        Some(self.judge(next))
    }

    fn judge(
        &mut self,
        next: Option<Result<Message, async_nats::error::Error<MessagesErrorKind>>>,
    ) -> Result<Delivered, Broken> {
        let message = match next {
            None => return Err(Broken::Ended),
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(broken(&error)),
        };
        let info = message
            .info()
            .map_err(|error| Broken::Other(error.to_string()))?;
        let expected = self.taken + 1;
        if info.consumer_sequence != expected {
            return Err(Broken::Gap {
                expected,
                got: info.consumer_sequence,
            });
        }
        self.taken = expected;
        let (seq, at, pending) = (info.stream_sequence, millis(info.published), info.pending);
        let async_nats::Message {
            subject,
            headers,
            payload,
            ..
        } = message.message;
        Ok(Delivered {
            subject,
            headers,
            payload,
            seq,
            at,
            pending,
        })
    }

    /// Tells the server that the consumer is not needed; an unheard one ends by itself.
    pub(crate) async fn close(self) {
        let Self {
            consumer,
            messages,
            broker,
            ..
        } = self;
        drop(messages);
        if !broker.connection.connected() {
            return;
        }
        let info = consumer.cached_info();
        let delete = broker
            .context
            .delete_consumer_from_stream(info.name.as_str(), info.stream_name.as_str());
        drop(tokio::time::timeout(Duration::from_secs(1), delete).await);
    }
}

fn broken(error: &async_nats::error::Error<MessagesErrorKind>) -> Broken {
    match error.kind() {
        MessagesErrorKind::MissingHeartbeat => Broken::MissedHeartbeat,
        MessagesErrorKind::ConsumerDeleted => Broken::ConsumerDeleted,
        MessagesErrorKind::Pull => Broken::Pull(crate::error::chain(error)),
        MessagesErrorKind::NoResponders => Broken::NoResponders,
        MessagesErrorKind::RequestLimitExceeded => Broken::Limit(crate::error::chain(error)),
        MessagesErrorKind::PushBasedConsumer | MessagesErrorKind::Other => {
            Broken::Other(crate::error::chain(error))
        }
    }
}
