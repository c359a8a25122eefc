//! The flow of orders that is measured.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::{ContextBuilder, PublishAckFuture};
use async_nats::{HeaderMap, Subject};
use expediter_fleet::merchants::bench_body;
use expediter_nats::Connection;
use expediter_types::MerchantId;
use expediter_wire::{order, subjects};

/// Publishes that may wait for their acknowledgement.
const WINDOW: usize = 4_000;
/// A publish that is not acknowledged in this time has failed.
const ACK: Duration = Duration::from_secs(30);

/// Publishes numbered orders to all merchants in turn. Each merchant's numbers rise by one over the
/// publisher's whole life.
pub(super) struct Publisher {
    jetstream: Context,
    merchants: Vec<Receiver>,
    /// The order of the merchants in this round.
    round: Vec<usize>,
    at: usize,
    random: u64,
    body_bytes: usize,
    /// Part of every order's id: no two publishers share ids.
    life: u64,
}

struct Receiver {
    id: MerchantId,
    subject: Subject,
    next: u64,
}

/// What became of the publishes of one call.
#[derive(Debug, Default)]
pub(super) struct Sent {
    pub(super) published: u64,
    pub(super) acked: u64,
    /// By sequence in the log, whether the publish of that message was acknowledged.
    pub(super) sequences: Vec<bool>,
    pub(super) errors: u64,
    pub(super) first_error: Option<String>,
    /// Of the first publish, in microseconds since 1970.
    pub(super) first_us: u64,
}

impl Sent {
    /// What another publisher sent meanwhile.
    pub(super) fn add(&mut self, other: Self) {
        self.published += other.published;
        self.acked += other.acked;
        let length = self.sequences.len().max(other.sequences.len());
        self.sequences.resize(length, false);
        for (acked, others) in self.sequences.iter_mut().zip(other.sequences) {
            *acked |= others;
        }
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.first_us = self.first_us.min(other.first_us);
    }
}

impl Publisher {
    pub(super) fn new(
        connection: &Connection,
        merchants: &[MerchantId],
        body_bytes: usize,
        seed: u64,
    ) -> Self {
        let jetstream = ContextBuilder::new()
            .timeout(ACK)
            .max_ack_inflight(2 * WINDOW)
            .build(connection.client().clone());
        let receiver = |id: &MerchantId| Receiver {
            id: id.clone(),
            subject: subjects::publish(id).into(),
            next: 0,
        };
        Self {
            jetstream,
            merchants: merchants.iter().map(receiver).collect(),
            round: (0..merchants.len()).collect(),
            at: merchants.len(),
            random: seed,
            body_bytes,
            life: now_us(),
        }
    }

    /// Publishes `count` orders, `rate` a second or as fast as they are acknowledged, and waits for
    /// the last acknowledgement.
    pub(super) async fn publish(&mut self, count: u64, rate: Option<u32>) -> anyhow::Result<Sent> {
        let mut sent = Sent::default();
        let mut waiting = VecDeque::with_capacity(WINDOW);
        let (start, start_us) = (Instant::now(), now_us());
        sent.first_us = start_us;
        for number in 0..count {
            while waiting.len() >= WINDOW {
                settle(&mut waiting, &mut sent).await;
            }
            let due_us = match rate {
                Some(rate) => {
                    let due = Duration::from_secs_f64(number as f64 / f64::from(rate));
                    if due > start.elapsed() {
                        tokio::time::sleep_until((start + due).into()).await;
                    }
                    start_us + u64::try_from(due.as_micros()).unwrap_or(u64::MAX)
                }
                None => now_us(),
            };
            waiting.push_back(self.publish_one(due_us).await?);
            sent.published += 1;
        }
        while !waiting.is_empty() {
            settle(&mut waiting, &mut sent).await;
        }
        Ok(sent)
    }

    async fn publish_one(&mut self, due_us: u64) -> anyhow::Result<PublishAckFuture> {
        let place = self.next_merchant();
        let merchant = &mut self.merchants[place];
        let number = merchant.next;
        merchant.next += 1;
        let id = format!("{:x}-{place}-{number}", self.life);
        let mut headers = HeaderMap::new();
        headers.insert(order::NATS_MSG_ID, format!("{}/{id}", merchant.id));
        headers.insert(order::CE_ID, id);
        headers.insert(order::CE_TYPE, "order.created");
        headers.insert(order::CONTENT_TYPE, "application/json");
        let body = bench_body(number, due_us, self.body_bytes);
        let ack = self
            .jetstream
            .publish_with_headers(merchant.subject.clone(), headers, body);
        ack.await.context("publishing an order")
    }

    /// Each merchant once in a round, in another order each round, so that no merchant's neighbour
    /// is always the same.
    fn next_merchant(&mut self) -> usize {
        if self.at >= self.round.len() {
            self.at = 0;
            for place in (1..self.round.len()).rev() {
                let other = self.random() % (place as u64 + 1);
                self.round.swap(place, other as usize);
            }
        }
        self.at += 1;
        self.round[self.at - 1]
    }

    /// splitmix64
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Waits for the oldest acknowledgement.
async fn settle(waiting: &mut VecDeque<PublishAckFuture>, sent: &mut Sent) {
    let Some(oldest) = waiting.pop_front() else {
        return;
    };
    let error = match oldest.await {
        Ok(ack) if !ack.duplicate => {
            sent.acked += 1;
            let place = usize::try_from(ack.sequence).unwrap_or(usize::MAX);
            if place >= sent.sequences.len() {
                sent.sequences.resize(place + 1, false);
            }
            sent.sequences[place] = true;
            return;
        }
        Ok(_) => "the broker took it for a repeat".to_owned(),
        Err(error) => error.to_string(),
    };
    sent.errors += 1;
    sent.first_error.get_or_insert(error);
}

fn now_us() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}
