//! The task that sends, one message after the other.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use expediter_telemetry::metrics::Notified;
use expediter_wire::notification::{Notification, encode_notification};

use super::Shared;
use super::merge::Told;

/// Between two tries of a message, and after a failure before any other: twice as long each time.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// At most one line about lost events in this time.
const QUIET: Duration = Duration::from_secs(60);
/// For what is left when the node ends.
const LAST: Duration = Duration::from_secs(3);

/// A message that is as it is: whoever has it knows it by its id.
#[derive(Debug)]
struct Message {
    id: String,
    body: Bytes,
    told: Told,
    tries: u32,
    /// Not before.
    next: Instant,
}

/// Runs until it is told to stop.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut sender = Sender {
        shared,
        waiting: VecDeque::new(),
        failures: 0,
        pause: Instant::now(),
        warned: None,
    };
    loop {
        let stop = Arc::clone(&sender.shared);
        tokio::select! {
            () = sender.step() => {}
            () = stop.stop.notified() => break,
        }
    }
    sender.end().await;
}

struct Sender {
    shared: Arc<Shared>,
    /// Tried, and not taken.
    waiting: VecDeque<Message>,
    /// In a row, of any message.
    failures: u32,
    /// No try before.
    pause: Instant,
    /// When it was last told that events found no room.
    warned: Option<Instant>,
}

impl Sender {
    /// Sends a message, or waits until there may be one.
    async fn step(&mut self) {
        let now = Instant::now();
        if self.pause > now {
            return tokio::time::sleep_until(self.pause.into()).await;
        }
        self.forget(now);
        let again = self.waiting.iter().position(|message| message.next <= now);
        let fresh = || self.shared.merger().take(now);
        if let Some(index) = again {
            // Stays in its place while it is tried: a stop may come meanwhile.
            self.send(index).await;
        } else if let Some(told) = fresh() {
            if now.duration_since(told.last_at) > self.shared.options.give_up_after {
                return self.give_up(&told);
            }
            let message = self.message(told);
            self.waiting.push_back(message);
            self.send(self.waiting.len() - 1).await;
        } else {
            let later = self.waiting.iter().map(|message| message.next);
            let next = later.chain(self.shared.merger().next()).min();
            let news = self.shared.news.notified();
            match next {
                Some(next) => {
                    // Nothing was there: what is due now is only to be forgotten.
                    let _news = tokio::time::timeout_at(next.into(), news).await.is_ok();
                }
                None => news.await,
            }
        }
    }

    fn message(&self, told: Told) -> Message {
        let notification = Notification {
            happened: told.happened,
            node: self.shared.options.node.clone(),
            merchant: told.merchant.clone(),
            count: told.count,
            first: told.first,
            last: told.last,
            orders: told.orders.clone(),
            because: told.because,
        };
        Message {
            id: new_id(),
            body: encode_notification(&notification),
            told,
            tries: 0,
            next: Instant::now(),
        }
    }

    async fn send(&mut self, index: usize) {
        let webhook = &self.shared.options.webhook;
        let Some(message) = self.waiting.get(index) else {
            return;
        };
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let sent = webhook.post(&message.id, since.as_secs(), message.body.clone());
        let counted = &self.shared.metrics.notifications;
        match sent.await {
            Ok(()) => {
                counted.of(Notified::Delivered).inc();
                self.waiting.remove(index);
                if self.failures > 0 {
                    tracing::info!(receiver = webhook.place(), "notifications are taken again");
                }
                self.failures = 0;
            }
            Err(error) => {
                counted.of(Notified::Failed).inc();
                if self.failures == 0 {
                    let receiver = webhook.place();
                    tracing::warn!(receiver, %error, "a notification was not taken; it is tried again");
                } else {
                    tracing::debug!(%error, "a notification was not taken");
                }
                self.failures = self.failures.saturating_add(1);
                let now = Instant::now();
                self.pause = now + wait(self.failures);
                if let Some(message) = self.waiting.get_mut(index) {
                    message.tries += 1;
                    message.next = now + wait(message.tries);
                }
            }
        }
    }

    /// Gives up what is too old to be of use, and tells of what found no room.
    fn forget(&mut self, now: Instant) {
        if self.warned.is_none_or(|at| now.duration_since(at) > QUIET) {
            let lost = self.shared.merger().take_lost();
            if lost > 0 {
                self.warned = Some(now);
                tracing::warn!(lost, "too many notifications wait: events are given up");
            }
        }
        let most = self.shared.options.give_up_after;
        let old = |message: &Message| now.duration_since(message.told.last_at) > most;
        while let Some(index) = self.waiting.iter().position(old) {
            if let Some(message) = self.waiting.remove(index) {
                self.give_up(&message.told);
            }
        }
    }

    fn give_up(&self, told: &Told) {
        let counted = &self.shared.metrics.notifications;
        counted.of(Notified::GivenUp).inc();
        tracing::warn!(
            kind = told.happened.as_str(), merchant = %told.merchant, count = told.count,
            "a notification is given up"
        );
    }

    /// Once more everything that is left, whatever it waits for.
    async fn end(mut self) {
        let left = self.shared.merger().drain();
        for told in left {
            let message = self.message(told);
            self.waiting.push_back(message);
        }
        let end = tokio::time::Instant::now() + LAST;
        let mut left = self.waiting.len();
        while left > 0 {
            // What was taken is gone, what was not moves to the end.
            if tokio::time::timeout_at(end, self.send(0)).await.is_err() {
                break;
            }
            left -= 1;
            if self.failures > 0 {
                self.waiting.rotate_left(1);
            }
        }
        for message in &self.waiting {
            self.give_up(&message.told);
        }
    }
}

fn wait(failures: u32) -> Duration {
    let doubled = FIRST_WAIT.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(LONGEST_WAIT)
}

/// Unlike any other, of this process or another.
fn new_id() -> String {
    let half = || RandomState::new().hash_one(std::process::id());
    format!("msg_{:016x}{:016x}", half(), half())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_half_a_minute() {
        let waits = [1, 2, 5, 6, 40, u32::MAX].map(|failures| wait(failures).as_secs());
        assert_eq!(waits, [1, 2, 16, 30, 30, 30]);
    }

    #[test]
    fn ids_differ() {
        let ids: std::collections::BTreeSet<_> = (0..1_000).map(|_| new_id()).collect();
        assert_eq!(ids.len(), 1_000);
    }
}
