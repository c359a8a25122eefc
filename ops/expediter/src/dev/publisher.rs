//! A steady flow of sample orders, each publish acknowledged by the broker.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::HeaderMap;
use bytes::Bytes;
use expediter_nats::{Connection, OrderPublisher};
use expediter_types::MerchantId;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::account::Account;
use super::fleet::MERCHANTS;

/// Publishes that may wait for their acknowledgement.
const WINDOW: usize = 256;

/// The running flow.
pub(super) struct Publisher {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Publisher {
    /// Stops and waits until every publish is acknowledged or failed.
    pub(super) async fn stop(self) {
        let _ended = self.stop.send(()).is_err();
        let _joined = self.task.await.is_ok();
    }
}

pub(super) fn start(connection: Connection, account: Account, rate: u32) -> Publisher {
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(run(connection, account, rate, stopped));
    Publisher { stop, task }
}

async fn run(
    connection: Connection,
    account: Account,
    rate: u32,
    mut stopped: oneshot::Receiver<()>,
) {
    let publisher = OrderPublisher::new(&connection, WINDOW);
    let mut acks = tokio::task::JoinSet::new();
    // Several orders a tick keep the timer's work small at high rates.
    let per_tick = rate.div_ceil(100);
    let period = Duration::from_secs_f64(f64::from(per_tick) / f64::from(rate));
    let mut every = tokio::time::interval(period);
    let run = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let mut number: u64 = 0;
    loop {
        tokio::select! {
            _ = every.tick() => {}
            _ = &mut stopped => break,
        }
        for _ in 0..per_tick {
            number += 1;
            let Ok(merchant) = MerchantId::new(pick(number)) else {
                continue;
            };
            let id = format!("{run}-{number}");
            let mut headers = HeaderMap::new();
            headers.insert("ce-id", id.as_str());
            headers.insert("ce-type", "order.created");
            headers.insert("content-type", "application/json");
            headers.insert("Nats-Msg-Id", format!("{merchant}/{id}").as_str());
            match publisher
                .publish(&merchant, headers, sample(&id, number))
                .await
            {
                Ok(ack) => {
                    let account = account.clone();
                    acks.spawn(async move {
                        match ack.wait().await {
                            Ok(published) => account.accepted(published.seq),
                            Err(_) => account.refused(),
                        }
                    });
                }
                Err(_) => account.refused(),
            }
        }
        while acks.try_join_next().is_some() {}
    }
    publisher.flush().await;
    while acks.join_next().await.is_some() {}
}

/// Spreads the orders over the merchants by their shares, evenly in time.
fn pick(number: u64) -> &'static str {
    // 37 and 100 have no common factor: every residue comes once in a hundred.
    let mut place = u32::try_from(number.wrapping_mul(37) % 100).unwrap_or(0);
    for (id, _, share) in MERCHANTS {
        if place < share {
            return id;
        }
        place -= share;
    }
    MERCHANTS[0].0
}

fn sample(id: &str, number: u64) -> Bytes {
    const DISHES: [&str; 5] = ["panino", "pho", "maki", "margherita", "caesar salad"];
    let dish = DISHES[usize::try_from(number % 5).unwrap_or(0)];
    let table = number % 40 + 1;
    let order = serde_json::json!({
        "order": id, "table": table,
        "items": [{ "dish": dish, "quantity": number % 3 + 1, "price_cents": 900 + number % 7 * 50 }],
        "note": "please ring twice",
    });
    Bytes::from(order.to_string())
}
