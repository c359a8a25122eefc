use anyhow::{Context as _, Result};
use async_nats::HeaderMap;
use bytes::Bytes;
use expediter_nats::{Connection, OrderPublisher};
use expediter_types::MerchantId;
use xxhash_rust::xxh3::xxh3_64;

use crate::{Accepted, Ledger};

/// Orders whose acknowledgement may be awaited at the same time.
const WINDOW: usize = 256;

/// An order to publish.
#[derive(Debug, Clone)]
pub struct NewOrder {
    merchant: String,
    id: Option<String>,
    key: Option<String>,
    headers: Vec<(String, String)>,
    body: Option<Bytes>,
    msg_id: bool,
}

impl NewOrder {
    /// With the id `<merchant>-<number>` and a small JSON body that has the id.
    #[must_use]
    pub fn to(merchant: &str) -> Self {
        Self {
            merchant: merchant.to_owned(),
            id: None,
            key: None,
            headers: Vec::new(),
            body: None,
            msg_id: true,
        }
    }

    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// The ordering key.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// Without a `Nats-Msg-Id`, so that the stream takes a repeat.
    #[must_use]
    pub fn repeatable(mut self) -> Self {
        self.msg_id = false;
        self
    }
}

/// Publishes orders and keeps the ledger.
#[derive(Debug, Clone)]
pub struct Publisher {
    publisher: OrderPublisher,
    ledger: Ledger,
}

impl Publisher {
    pub(crate) fn new(connection: &Connection, ledger: Ledger) -> Self {
        Self {
            publisher: OrderPublisher::new(connection, WINDOW),
            ledger,
        }
    }

    /// Publishes and waits for the acknowledgement.
    ///
    /// # Errors
    /// Refused or not answered.
    pub async fn send(&self, order: NewOrder) -> Result<Accepted> {
        self.start(order).await?.await?
    }

    /// Publishes when the window has a place; the acknowledgement goes into the ledger when it comes.
    ///
    /// # Errors
    /// The order is none.
    pub async fn offer(&self, order: NewOrder) -> Result<()> {
        drop(self.start(order).await?);
        Ok(())
    }

    /// Waits until everything sent is answered, or given up.
    pub async fn flush(&self) {
        self.publisher.flush().await;
    }

    async fn start(&self, order: NewOrder) -> Result<tokio::task::JoinHandle<Result<Accepted>>> {
        let NewOrder {
            merchant,
            id,
            key,
            headers: more,
            body,
            msg_id,
        } = order;
        let number = self.ledger.number(&merchant);
        let id = id.unwrap_or_else(|| format!("{merchant}-{number}"));
        let body = body.unwrap_or_else(|| {
            Bytes::from(serde_json::json!({ "order": id, "number": number }).to_string())
        });
        let hash = xxh3_64(&body);
        let mut headers = HeaderMap::new();
        headers.insert("ce-id", id.as_str());
        headers.insert("content-type", "application/json");
        if msg_id {
            headers.insert("Nats-Msg-Id", format!("{merchant}/{id}").as_str());
        }
        if let Some(key) = &key {
            headers.insert("Expediter-Key", key.as_str());
        }
        for (name, value) in &more {
            headers.insert(name.as_str(), value.as_str());
        }
        self.ledger.sending(&merchant, &id, hash);
        let to: MerchantId = merchant.parse()?;
        let pending = self.publisher.publish(&to, headers, body.clone()).await?;
        let ledger = self.ledger.clone();
        Ok(tokio::spawn(async move {
            match pending.wait().await {
                Ok(published) => {
                    let order = Accepted {
                        merchant,
                        id,
                        key,
                        seq: published.seq,
                        hash,
                        body,
                    };
                    ledger.taken(order.clone());
                    Ok(order)
                }
                Err(error) => {
                    ledger.no_answer(&merchant, &id);
                    Err(error).with_context(|| format!("publishing {id} to {merchant}"))
                }
            }
        }))
    }
}
