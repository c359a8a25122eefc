//! Publishes orders with their acknowledgements, many at a time.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, Request};
use bytes::Bytes;
use expediter_types::{MerchantId, Seq};
use expediter_wire::subjects;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::broker::{ACK_TIMEOUT, NoAck, read_ack};
use crate::{Connection, Error};

/// An unanswered publish is repeated under the same `Nats-Msg-Id`, so often.
const TRIES: u32 = 6;

/// Publishes orders, with up to a window of unanswered ones.
#[derive(Debug, Clone)]
pub struct OrderPublisher {
    connection: Connection,
    window: Arc<Semaphore>,
    size: u32,
}

/// The broker took an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// In ORDERS.
    pub seq: Seq,
    /// The broker had this `Nats-Msg-Id` already; nothing was stored.
    pub duplicate: bool,
}

/// An order that was sent.
#[derive(Debug)]
pub struct PendingAck(oneshot::Receiver<Result<Published, Error>>);

impl PendingAck {
    /// Waits for the broker's word.
    ///
    /// # Errors
    /// Refused, or no answer to several tries: then it is unknown whether the order was taken, and
    /// the same `Nats-Msg-Id` makes a repeat harmless within two minutes.
    pub async fn wait(self) -> Result<Published, Error> {
        match self.0.await {
            Ok(result) => result,
            Err(_) => Err(Error::plain("the publisher was stopped")),
        }
    }
}

impl OrderPublisher {
    /// `window`: 1 to 65,536 unanswered orders.
    #[must_use]
    pub fn new(connection: &Connection, window: usize) -> Self {
        let size = u32::try_from(window.clamp(1, 65_536)).unwrap_or(65_536);
        let window = Arc::new(Semaphore::new(size as usize));
        Self {
            connection: connection.clone(),
            window,
            size,
        }
    }

    /// Sends an order when the window has a place. Headers without a `Nats-Msg-Id` make a repeat
    /// after a lost answer a second order.
    ///
    /// # Errors
    /// The publisher is stopped.
    pub async fn publish(
        &self,
        merchant: &MerchantId,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<PendingAck, Error> {
        let place = self.window.clone().acquire_owned().await;
        let place = place.map_err(Error::broker("the publisher is stopped"))?;
        let (answer, pending) = oneshot::channel();
        let subject = subjects::publish(merchant);
        let sending = send(self.connection.clone(), subject, headers, payload);
        // Ends by itself within its tries; whoever does not wait for it does not want to know.
        tokio::spawn(async move {
            let result = sending.await;
            drop(answer.send(result));
            drop::<OwnedSemaphorePermit>(place);
        });
        Ok(PendingAck(pending))
    }

    /// Waits until everything sent is answered.
    pub async fn flush(&self) {
        drop(self.window.acquire_many(self.size).await);
    }
}

async fn send(
    connection: Connection,
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
) -> Result<Published, Error> {
    let mut wait = Duration::from_millis(200);
    let named = headers.get(async_nats::header::NATS_MESSAGE_ID).is_some();
    let mut tries = 0;
    loop {
        tries += 1;
        let request = Request::new()
            .headers(headers.clone())
            .payload(payload.clone())
            .timeout(Some(ACK_TIMEOUT));
        let error = match connection
            .client()
            .send_request(subject.clone(), request)
            .await
        {
            Ok(reply) => match read_ack(&reply.payload) {
                Ok(ack) => {
                    return Ok(Published {
                        seq: ack.seq,
                        duplicate: ack.duplicate,
                    });
                }
                Err(error) => error,
            },
            Err(error) => match error.kind() {
                async_nats::RequestErrorKind::MaxPayloadExceeded => NoAck::Refused {
                    code: 10_054,
                    description: error.to_string(),
                },
                // Also while a replicated stream has no leader.
                _ => NoAck::Undecided(error.to_string()),
            },
        };
        let final_word = matches!(error, NoAck::Refused { .. }) || !named || tries >= TRIES;
        if final_word {
            return Err(Error::Publish {
                subject,
                reason: error.to_string(),
            });
        }
        tokio::time::sleep(wait).await;
        wait *= 2;
    }
}
