//! Reads OUTCOMES as the protocol says it has to be read, and notices what must not be in it.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::{self, Message};
use bytes::Bytes;
use expediter_nats::Connection;
use expediter_types::{ClaimState, NodeName, Outcome, Partition, Stamp};
use expediter_wire::records;
use expediter_wire::subjects::{self, OutcomesSubject};
use futures::StreamExt as _;

/// An outcome, and the record it stands in.
#[derive(Debug, Clone)]
pub struct Recorded {
    pub outcome: Outcome,
    /// Payload and the merchant's last answer, of a dead letter.
    pub dead: Option<(Bytes, Bytes)>,
    /// Sequence of the record in OUTCOMES.
    pub record: u64,
    pub stamp: Stamp,
}

/// A claim that was taken or given back.
#[derive(Debug, Clone)]
pub struct Claimed {
    pub partition: Partition,
    pub node: NodeName,
    /// False: it was given back.
    pub held: bool,
    /// When the broker took it, in microseconds since 1970.
    pub at_us: u64,
}

/// What OUTCOMES says so far.
#[derive(Debug, Clone, Default)]
pub struct Outcomes {
    /// The first outcome of each sequence.
    all: BTreeMap<u64, Recorded>,
    /// The newest claim of each partition; 0 when it was released.
    claims: HashMap<Partition, u64>,
    /// Tokens of records before the first claim that is kept, and which record it was.
    early: HashMap<Partition, Vec<(u64, String)>>,
    history: Vec<Claimed>,
    wrong: Vec<String>,
    last: u64,
}

impl Outcomes {
    /// Reads everything.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn read(connection: &Connection) -> Result<Self> {
        let mut outcomes = Self::default();
        outcomes.advance(connection).await?;
        Ok(outcomes)
    }

    /// Reads what is new.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn advance(&mut self, connection: &Connection) -> Result<()> {
        let context = jetstream::new(connection.client().clone());
        let stream = context.get_stream_no_info(subjects::OUTCOMES).await?;
        let filters = ["claim.*", "outcomes.*", "dead.*.*"];
        let consumer = stream
            .create_consumer(pull::Config {
                filter_subjects: filters.map(str::to_owned).to_vec(),
                deliver_policy: DeliverPolicy::ByStartSequence {
                    start_sequence: self.last + 1,
                },
                ack_policy: AckPolicy::None,
                inactive_threshold: Duration::from_secs(10),
                memory_storage: true,
                ..Default::default()
            })
            .await?;
        let mut left = consumer.cached_info().num_pending;
        while left > 0 {
            let size = usize::try_from(left.min(5_000))?;
            let batch = consumer
                .fetch()
                .max_messages(size)
                .expires(Duration::from_secs(5));
            let mut batch = batch.messages().await?;
            let mut got = 0;
            while let Some(message) = batch.next().await {
                let message = message.map_err(anyhow::Error::from_boxed)?;
                self.take(&message)?;
                got += 1;
            }
            if got == 0 {
                bail!("OUTCOMES delivers nothing, {left} are pending");
            }
            left = left.saturating_sub(got);
        }
        for (token, what) in self.early.drain().flat_map(|(_, all)| all) {
            self.wrong
                .push(format!("{what} has token {token} and there is no claim"));
        }
        let name = consumer.cached_info().name.clone();
        stream.delete_consumer(&name).await?;
        Ok(())
    }

    fn take(&mut self, message: &Message) -> Result<()> {
        let info = message.info().map_err(anyhow::Error::from_boxed)?;
        let record = info.stream_sequence;
        if record <= self.last {
            return Ok(());
        }
        self.last = record;
        let read = || format!("record {record} on {}", message.subject);
        match OutcomesSubject::parse(&message.subject).with_context(read)? {
            OutcomesSubject::Claim(partition) => {
                let claim = records::decode_claim(&message.payload).with_context(read)?;
                let held = if claim.state == ClaimState::Held {
                    record
                } else {
                    0
                };
                self.claims.insert(partition, held);
                // Those of claims that are not kept any more are older than what the first one replaced.
                for (token, what) in self.early.remove(&partition).into_iter().flatten() {
                    if token > claim.replaces {
                        let replaced = claim.replaces;
                        self.wrong.push(format!(
                            "{what} has token {token} before the claim that replaced {replaced}"
                        ));
                    }
                }
                let at_us = info.published.unix_timestamp_nanos() / 1_000;
                self.history.push(Claimed {
                    partition,
                    node: claim.node,
                    held: held != 0,
                    at_us: u64::try_from(at_us).unwrap_or(0),
                });
            }
            OutcomesSubject::Outcomes(partition) => {
                let (stamp, group) =
                    records::decode_outcomes(&message.payload).with_context(read)?;
                for outcome in group {
                    self.put(
                        partition,
                        Recorded {
                            outcome,
                            dead: None,
                            record,
                            stamp,
                        },
                    );
                }
            }
            OutcomesSubject::Dead(partition, _) => {
                let (stamp, letter) = records::decode_dead(&message.payload).with_context(read)?;
                let dead = Some((letter.payload, letter.excerpt));
                self.put(
                    partition,
                    Recorded {
                        outcome: letter.outcome,
                        dead,
                        record,
                        stamp,
                    },
                );
            }
            _ => {}
        }
        Ok(())
    }

    fn put(&mut self, partition: Partition, recorded: Recorded) {
        let claim = self.claims.get(&partition).copied();
        let Recorded {
            outcome,
            record,
            stamp,
            ..
        } = &recorded;
        let (seq, id) = (outcome.seq, &outcome.envelope.id);
        let what = format!("record {record} for {id} ({seq})");
        match claim {
            Some(claim) if claim == stamp.token => {}
            Some(claim) => self.wrong.push(format!(
                "{what} has token {} while the claim is {claim}",
                stamp.token
            )),
            None => {
                let early = self.early.entry(partition).or_default();
                early.push((stamp.token, what));
            }
        }
        if let Some(first) = self.all.get(&seq) {
            self.wrong.push(format!(
                "{id} ({seq}) has a second outcome: {:?} in record {}, {:?} in record {record}",
                first.outcome.kind, first.record, outcome.kind
            ));
            return;
        }
        self.all.insert(seq, recorded);
    }

    /// What became of the order of that sequence in ORDERS.
    #[must_use]
    pub fn of(&self, seq: u64) -> Option<&Recorded> {
        self.all.get(&seq)
    }

    /// By sequence in ORDERS.
    pub fn all(&self) -> impl Iterator<Item = &Recorded> {
        self.all.values()
    }

    /// Dead letters.
    pub fn dead(&self) -> impl Iterator<Item = &Recorded> {
        self.all().filter(|recorded| recorded.dead.is_some())
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// All claims, in order.
    #[must_use]
    pub fn claims(&self) -> &[Claimed] {
        &self.history
    }

    /// Second outcomes of a sequence, and records that the fence should have refused.
    #[must_use]
    pub fn wrong(&self) -> &[String] {
        &self.wrong
    }
}
