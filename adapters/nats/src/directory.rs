//! Follows the registry and the operators' decisions into the node.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use expediter_ports::{Registered, RegistrySink};
use expediter_types::{Merchant, MerchantId, NodeName};
use expediter_wire::control::{Decision, decode_decision, parse_decision_key};
use expediter_wire::registry::{Registration, decode_registration, encode_registration};
use expediter_wire::subjects;
use futures::StreamExt;
use tokio::sync::watch;

use crate::broker::{Broker, NoAck};
use crate::clock::wall;
use crate::error::chain;
use crate::follow::{Change, Follow, Op, Sink, follow};
use crate::registry::subject;

/// Entries that are put back at the same time.
const WIDTH: usize = 256;

/// Follows MERCHANTS for ever; ends when its future is dropped.
pub(crate) async fn follow_merchants(
    broker: Broker,
    node: NodeName,
    sink: Arc<dyn RegistrySink>,
    loaded: watch::Sender<bool>,
) {
    let what = Follow {
        bucket: subjects::MERCHANTS,
        keys: ">",
        always_whole: false,
    };
    let directory = Directory {
        broker: broker.clone(),
        node,
        sink,
        loaded,
        known: HashMap::new(),
    };
    follow(&broker, what, directory).await;
}

/// Follows CONTROL for ever; ends when its future is dropped.
pub(crate) async fn follow_decisions(broker: Broker, sink: Arc<dyn RegistrySink>) {
    let what = Follow {
        bucket: subjects::CONTROL,
        keys: "merchant.*",
        always_whole: false,
    };
    follow(
        &broker,
        what,
        Decisions {
            sink,
            synced: false,
        },
    )
    .await;
}

struct Directory {
    broker: Broker,
    node: NodeName,
    sink: Arc<dyn RegistrySink>,
    loaded: watch::Sender<bool>,
    /// What would be put back if the broker lost it.
    known: HashMap<MerchantId, Arc<Merchant>>,
}

impl Sink for Directory {
    fn change(&mut self, change: Change) {
        let Ok(id) = MerchantId::new(&change.key) else {
            tracing::warn!(key = change.key, "a key of MERCHANTS names no merchant");
            return;
        };
        let Op::Put(value) = change.op else {
            if self.known.remove(&id).is_some() {
                self.sink.remove(&id);
            }
            return;
        };
        match decode_registration(&value) {
            Ok(Registration { merchant, .. }) if merchant.id == id => {
                let merchant = merchant.shared();
                self.known.insert(id, merchant.clone());
                self.sink.put(Registered {
                    merchant,
                    revision: change.revision,
                });
            }
            Ok(Registration { merchant, .. }) => {
                let inside = merchant.id;
                tracing::error!(key = %id, %inside, "a registry entry is of another merchant");
            }
            // What was there before still holds.
            Err(error) => {
                tracing::error!(merchant = %id, error = chain(&error), "an entry is not readable");
            }
        }
    }

    fn synced(&mut self) {
        if !self.loaded.send_replace(true) {
            tracing::info!(merchants = self.known.len(), "the registry is loaded");
            self.sink.loaded();
        }
    }

    async fn recreated(&mut self) {
        let count = self.known.len();
        tracing::error!(
            count,
            "the broker has lost the registry: putting back what is known"
        );
        let restore = self.known.values().cloned().map(|merchant| {
            let (broker, node) = (&self.broker, &self.node);
            async move { restore(broker, node, &merchant).await }
        });
        let restored = futures::stream::iter(restore).buffer_unordered(WIDTH);
        restored.for_each(|()| std::future::ready(())).await;
    }
}

/// Creates only: another node, or a person, may have been faster.
async fn restore(broker: &Broker, node: &NodeName, merchant: &Merchant) {
    let registration = Registration {
        merchant: merchant.clone(),
        actor: format!("node {node}, after the broker lost it"),
        at: wall(),
        rolled_back_from: None,
    };
    let value = encode_registration(&registration);
    for _ in 0..5 {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
        match broker
            .publish(subject(&merchant.id), headers, value.clone())
            .await
        {
            Ok(_) | Err(NoAck::WrongLast { .. }) => return,
            Err(error) => {
                tracing::warn!(merchant = %merchant.id, %error, "was not put back; trying again");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

struct Decisions {
    sink: Arc<dyn RegistrySink>,
    /// Decisions from before this node's start concern nothing that runs here.
    synced: bool,
}

impl Sink for Decisions {
    fn change(&mut self, change: Change) {
        let Op::Put(value) = &change.op else { return };
        let Some(merchant) = parse_decision_key(&change.key) else {
            return;
        };
        match decode_decision(value) {
            Ok(decision) if decision.state == Decision::Resumed && self.synced => {
                self.sink.resume(&merchant);
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%merchant, error = chain(&error), "a decision is not readable");
            }
        }
    }

    fn synced(&mut self) {
        self.synced = true;
    }
}
