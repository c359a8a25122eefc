//! Reads a partition of the log and hands it to the partition's host, without a gap.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use expediter_core::{Order, payload_hash};
use expediter_ports::{IntakeBatch, IntakeSource, LogMessage, PartitionIntake, Undecodable};
use expediter_types::{Incarnation, MerchantId, Partition, Seq, UnixMillis};
use expediter_wire::{order, subjects};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::broker::{Broker, StreamState};
use crate::error::chain;
use crate::identity::{Identity, Witness, check};
use crate::log::LogView;
use crate::quiet::Quiet;
use crate::reader::{Broken, Delivered, From, Reader, ReaderOptions};
use crate::{Error, NodeEvents};

/// What is ready is handed over together, up to so many messages or bytes.
const BATCH_MESSAGES: usize = 256;
const BATCH_BYTES: usize = 4 << 20;
/// From so far behind, or after so long and still this far, the fresh tail is read beside.
const FAR_BEHIND: u64 = 5_000;
const BEHIND: u64 = 1_000;
const BEHIND_FOR: Duration = Duration::from_millis(500);
/// The main reader has caught up.
const NEAR: u64 = 256;
/// A claim that was not found so often, over some seconds, is lost.
pub(crate) const CLAIM_MISSING: u32 = 8;

/// Why a partition's intake ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Another claim stands, or (lower, or 0) OUTCOMES lost ours.
    ClaimGone(Seq),
    LogLost {
        cut: Seq,
        state: StreamState,
    },
    /// The host takes no more.
    Closed,
}

/// One partition's intake, for one epoch.
pub(crate) struct Intake {
    pub(crate) broker: Broker,
    pub(crate) partition: Partition,
    pub(crate) token: Seq,
    pub(crate) incarnation: Incarnation,
    pub(crate) host: Arc<dyn PartitionIntake>,
    pub(crate) events: Arc<dyn NodeEvents>,
    pub(crate) view: watch::Receiver<LogView>,
    /// Everything at or below it was handed over, or need not be.
    pub(crate) taken: Seq,
    pub(crate) witness: watch::Sender<Witness>,
    /// Where the first fresh tail begins; later ones begin at the log's end.
    pub(crate) fresh_since: Option<UnixMillis>,
    /// So often in turn the claim was not found.
    pub(crate) missing: u32,
}

/// What ends one reader.
enum Interrupted {
    End(End),
    Reader(String),
}

impl std::convert::From<Broken> for Interrupted {
    fn from(broken: Broken) -> Self {
        Self::Reader(broken.to_string())
    }
}

impl Intake {
    /// Reads until the epoch is over. May be dropped at any time.
    pub(crate) async fn run(mut self) -> End {
        let mut wait = Duration::from_millis(20);
        let mut first = true;
        loop {
            let before = self.taken;
            match self.read(first).await {
                Interrupted::End(end) => return end,
                Interrupted::Reader(why) => {
                    self.events.gap(self.partition);
                    let (partition, taken) = (self.partition, self.taken);
                    tracing::debug!(%partition, taken, why, "reading again behind what was taken");
                }
            }
            first = false;
            let moved = self.taken > before;
            wait = if moved {
                Duration::from_millis(20)
            } else {
                wait * 2
            };
            wait = wait.min(Duration::from_secs(1));
            tokio::time::sleep(wait).await;
        }
    }

    /// One reader's life.
    async fn read(&mut self, first: bool) -> Interrupted {
        let generation = self.view.borrow_and_update().generation;
        let reader = match self.begin(first).await {
            Ok(Ok(reader)) => reader,
            Ok(Err(end)) => return Interrupted::End(end),
            Err(error) => return Interrupted::Reader(chain(&error)),
        };
        match self.pump(reader, generation).await {
            Ok(never) => match never {},
            Err(interrupted) => interrupted,
        }
    }

    /// Checks that log and claim stand, and opens a reader.
    async fn begin(&mut self, first: bool) -> Result<Result<Reader, End>, Error> {
        // The claim was just taken, and the log looked at for it.
        if !first {
            let witness = *self.witness.borrow();
            if let Identity::Lost { cut, state } = check(&self.broker, &witness).await? {
                return Ok(Err(End::LogLost { cut, state }));
            }
            let subject = subjects::claim(self.partition);
            let claim = self.broker.last(subjects::OUTCOMES, &subject).await?;
            let stands = claim.map_or(0, |claim| claim.sequence);
            // A new leader may not have read all of its own log yet.
            self.missing = if stands < self.token {
                self.missing + 1
            } else {
                0
            };
            if stands > self.token || self.missing > CLAIM_MISSING {
                return Ok(Err(End::ClaimGone(stands)));
            }
            if stands < self.token {
                return Err(Error::plain("the claim is not there"));
            }
        }
        let (partition, token) = (self.partition, self.token);
        let options = ReaderOptions {
            stream: subjects::ORDERS.to_owned(),
            filters: vec![subjects::orders_filter(partition)],
            from: From::Seq(self.taken + 1),
            name: format!("p{partition}-{token}"),
        };
        Ok(Ok(Reader::open(&self.broker, &options).await?))
    }

    async fn pump(
        &mut self,
        mut reader: Reader,
        generation: u64,
    ) -> Result<std::convert::Infallible, Interrupted> {
        let pending = Arc::new(AtomicU64::new(reader.pending_at_start()));
        // Ends with this reader.
        let mut fresh = JoinSet::new();
        let opened = Instant::now();
        let mut link = self.broker.connection.watch();
        let connects = link.borrow_and_update().connects;
        // `None`: something was delivered since the last look.
        let mut quiet = Some(Quiet::default());
        if reader.pending_at_start() > FAR_BEHIND {
            fresh.spawn(self.fresh_tail(pending.clone()).await?);
        }
        loop {
            tokio::select! {
                biased;
                delivered = reader.next() => {
                    let (batch, broken) = self.gather(&mut reader, delivered?, &pending);
                    self.events.unread(self.partition, pending.load(Ordering::Relaxed));
                    // First of all: what was gathered counts as taken, and nothing may drop it.
                    self.hand_over(batch).await?;
                    quiet = None;
                    let behind = pending.load(Ordering::Relaxed) > BEHIND;
                    if behind && fresh.is_empty() && opened.elapsed() > BEHIND_FOR {
                        fresh.spawn(self.fresh_tail(pending.clone()).await?);
                    }
                    if let Some(broken) = broken {
                        return Err(broken.into());
                    }
                }
                _ = fresh.join_next(), if !fresh.is_empty() => {}
                changed = link.changed() => {
                    if changed.is_err() || link.borrow_and_update().connects != connects {
                        return Err(Interrupted::Reader("the connection is another".into()));
                    }
                }
                changed = self.view.changed() => {
                    if changed.is_err() {
                        return Err(Interrupted::Reader("the node ends".into()));
                    }
                    let view = *self.view.borrow_and_update();
                    if view.generation != generation {
                        return Err(Interrupted::Reader("the log may be another".into()));
                    }
                    match &mut quiet {
                        Some(quiet) => self.idle(view, quiet).await?,
                        None => quiet = Some(Quiet::default()),
                    }
                }
            }
        }
    }

    /// Takes what else is ready.
    fn gather(
        &mut self,
        reader: &mut Reader,
        first: Delivered,
        pending: &AtomicU64,
    ) -> (IntakeBatch, Option<Broken>) {
        let mut bytes = 0;
        let mut messages = Vec::new();
        let mut broken = None;
        let mut next = Some(first);
        while let Some(delivered) = next {
            bytes += delivered.payload.len();
            pending.store(delivered.pending, Ordering::Relaxed);
            if delivered.seq > self.taken {
                self.taken = delivered.seq;
                messages.push(decode(delivered, self.incarnation));
            }
            if messages.len() >= BATCH_MESSAGES || bytes >= BATCH_BYTES {
                break;
            }
            next = match reader.next_now() {
                None => None,
                Some(Ok(delivered)) => Some(delivered),
                Some(Err(error)) => {
                    broken = Some(error);
                    None
                }
            };
        }
        let source = IntakeSource::Main;
        (
            IntakeBatch {
                source,
                messages,
                pending_none_below: None,
            },
            broken,
        )
    }

    async fn hand_over(&mut self, batch: IntakeBatch) -> Result<(), Interrupted> {
        let newest = batch
            .messages
            .last()
            .map(|message| (message.seq, message.at));
        self.host
            .deliver(batch)
            .await
            .map_err(|_| Interrupted::End(End::Closed))?;
        if let Some((seq, at)) = newest {
            self.witness.send_modify(|witness| witness.advance(seq, at));
        }
        Ok(())
    }

    /// Nothing came since the last look: asks the stream's leader whether anything is there. The
    /// consumer's own count says nothing, it may sit on a replica that lags behind.
    async fn idle(&mut self, view: LogView, quiet: &mut Quiet) -> Result<(), Interrupted> {
        let state = view.state;
        if state.created != self.incarnation.created {
            return Ok(());
        }
        if let Some(before) = quiet.confirmed(&view) {
            self.witness
                .send_modify(|witness| witness.advance(before.last, before.last_at));
            self.pass(before.last).await?;
        }
        if state.last <= self.taken || quiet.awaits() {
            return Ok(());
        }
        let filter = subjects::orders_filter(self.partition);
        let next = self
            .broker
            .next(subjects::ORDERS, &filter, self.taken + 1)
            .await;
        match next.map_err(|error| Interrupted::Reader(chain(&error)))? {
            None => quiet.nothing(view, Instant::now()),
            Some(message) => {
                if quiet.undelivered(message.sequence) {
                    return Err(Interrupted::Reader("the reader stands still".into()));
                }
                // What came after the look is not judged by it.
                self.pass((message.sequence - 1).min(state.last)).await?;
            }
        }
        Ok(())
    }

    /// Nothing of the partition lies above what was taken up to there.
    async fn pass(&mut self, none_below: Seq) -> Result<(), Interrupted> {
        if none_below <= self.taken {
            return Ok(());
        }
        self.taken = none_below;
        self.hand_over(IntakeBatch {
            source: IntakeSource::Main,
            messages: Vec::new(),
            pending_none_below: Some(none_below),
        })
        .await
    }

    /// Reads what is new while the main reader is far behind.
    async fn fresh_tail(
        &mut self,
        behind: Arc<AtomicU64>,
    ) -> Result<impl Future<Output = ()> + Send + 'static + use<>, Interrupted> {
        let from = match self.fresh_since.take() {
            Some(since) => From::Time(since),
            None => {
                let state = self.broker.state(subjects::ORDERS).await;
                let state = state.map_err(|error| Interrupted::Reader(chain(&error)))?;
                From::Seq(state.last + 1)
            }
        };
        let tail = FreshTail {
            broker: self.broker.clone(),
            partition: self.partition,
            incarnation: self.incarnation,
            host: self.host.clone(),
            behind,
            from,
        };
        Ok(tail.run())
    }
}

struct FreshTail {
    broker: Broker,
    partition: Partition,
    incarnation: Incarnation,
    host: Arc<dyn PartitionIntake>,
    /// How far the main reader is behind.
    behind: Arc<AtomicU64>,
    from: From,
}

impl FreshTail {
    async fn run(mut self) {
        while self.needed() {
            if let Err(why) = self.read().await {
                tracing::debug!(partition = %self.partition, why, "the fresh tail is interrupted");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }

    fn needed(&self) -> bool {
        self.behind.load(Ordering::Relaxed) > NEAR
    }

    async fn read(&mut self) -> Result<(), String> {
        let options = ReaderOptions {
            stream: subjects::ORDERS.to_owned(),
            filters: vec![subjects::orders_filter(self.partition)],
            from: self.from,
            name: format!("p{}-fresh", self.partition),
        };
        let reader = Reader::open(&self.broker, &options).await;
        let mut reader = reader.map_err(|error| chain(&error))?;
        while self.needed() {
            let next = tokio::time::timeout(Duration::from_millis(250), reader.next()).await;
            let Ok(next) = next else { continue };
            let mut messages = vec![self.take(next.map_err(|broken| broken.to_string())?)];
            while let Some(Ok(delivered)) = (messages.len() < BATCH_MESSAGES)
                .then(|| reader.next_now())
                .flatten()
            {
                messages.push(self.take(delivered));
            }
            let source = IntakeSource::FreshTail;
            let batch = IntakeBatch {
                source,
                messages,
                pending_none_below: None,
            };
            if self.host.deliver(batch).await.is_err() {
                // The main reader notices it and ends the partition.
                self.behind.store(0, Ordering::Relaxed);
            }
        }
        reader.close().await;
        Ok(())
    }

    fn take(&mut self, delivered: Delivered) -> LogMessage {
        self.from = From::Seq(delivered.seq + 1);
        decode(delivered, self.incarnation)
    }
}

/// Never fails: what is no order is handed over as such and becomes a dead letter.
fn decode(delivered: Delivered, incarnation: Incarnation) -> LogMessage {
    let Delivered {
        subject,
        headers,
        payload,
        seq,
        at,
        ..
    } = delivered;
    let token = subjects::parse_orders(&subject).map_or("", |(_, token)| token);
    let merchant = match MerchantId::new(token) {
        Ok(merchant) => merchant,
        Err(invalid) => {
            let merchant = MerchantId::new(subjects::INVALID_MERCHANT)
                .expect("the name for invalid merchants is a valid id");
            let undecodable = Undecodable {
                merchant,
                reason: invalid.to_string(),
                payload,
            };
            return LogMessage {
                seq,
                at,
                order: Err(Box::new(undecodable)),
            };
        }
    };
    let headers = headers.unwrap_or_default();
    let pairs = headers.iter().flat_map(|(name, values)| {
        let name: &str = name.as_ref();
        values.iter().map(move |value| (name, value.as_str()))
    });
    let order = match order::read_order(pairs, &merchant, seq, at, incarnation) {
        Ok(envelope) => {
            let payload_hash = payload_hash(&payload);
            Ok(Arc::new(Order {
                seq,
                envelope,
                payload,
                payload_hash,
            }))
        }
        Err(invalid) => Err(Box::new(Undecodable {
            merchant,
            reason: invalid.reason,
            payload,
        })),
    };
    LogMessage { seq, at, order }
}
