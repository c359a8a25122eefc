//! Follows the registry and the operators' decisions into the node.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use expediter_ports::{DecisionSubject, Registered, RegistrySink};
use expediter_types::{Hold, HoldState, LimitScope, Merchant, MerchantId, NodeName, Scope};
use expediter_wire::control::{
    Decision, MerchantDecision, decode_decision, parse_decision_key, parse_group_decision_key,
};
use expediter_wire::registry::{
    Registration, ScopeRegistration, decode_registration, decode_scope, encode_registration,
    encode_scope, parse_scope_key, scope_key,
};
use expediter_wire::subjects;
use futures::StreamExt;
use tokio::sync::watch;

use crate::broker::{Broker, NoAck};
use crate::clock::wall;
use crate::error::chain;
use crate::follow::{Change, Follow, Op, Sink, follow};
use crate::jobs::{self, Timetable};
use crate::registry::subject;

/// Entries that are put back at the same time.
const WIDTH: usize = 256;

/// Follows MERCHANTS for ever; ends when its future is dropped.
pub(crate) async fn follow_merchants(
    broker: Broker,
    node: NodeName,
    sink: Arc<dyn RegistrySink>,
    loaded: watch::Sender<bool>,
    timetable: watch::Sender<Timetable>,
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
        timetable,
        known: HashMap::new(),
        scopes: HashMap::new(),
    };
    follow(&broker, what, directory).await;
}

/// Follows CONTROL for ever; ends when its future is dropped.
pub(crate) async fn follow_decisions(broker: Broker, sink: Arc<dyn RegistrySink>) {
    let decisions = Decisions {
        broker: broker.clone(),
        sink,
        synced: false,
        known: HashMap::new(),
    };
    let what = Follow {
        bucket: subjects::CONTROL,
        keys: ">",
        always_whole: false,
    };
    follow(&broker, what, decisions).await;
}

struct Directory {
    broker: Broker,
    node: NodeName,
    sink: Arc<dyn RegistrySink>,
    loaded: watch::Sender<bool>,
    timetable: watch::Sender<Timetable>,
    /// What would be put back if the broker lost it.
    known: HashMap<MerchantId, Arc<Merchant>>,
    scopes: HashMap<(LimitScope, String), Arc<Scope>>,
}

impl Directory {
    fn scope(&mut self, kind: LimitScope, id: &str, op: Op) {
        let Op::Put(value) = op else {
            if self.scopes.remove(&(kind, id.to_owned())).is_some() {
                self.sink.remove_scope(kind, id);
            }
            return;
        };
        match decode_scope(kind, &value) {
            Ok(ScopeRegistration { scope, .. }) if scope.id == id => {
                let scope = Arc::new(scope);
                self.scopes.insert((kind, id.to_owned()), scope.clone());
                self.sink.put_scope(scope);
            }
            Ok(ScopeRegistration { scope, .. }) => {
                let inside = scope.id;
                tracing::error!(key = scope_key(kind, id), %inside, "a registry entry is of another name");
            }
            // What was there before still holds.
            Err(error) => {
                let key = scope_key(kind, id);
                tracing::error!(key, error = chain(&error), "an entry is not readable");
            }
        }
    }
}

impl Sink for Directory {
    fn change(&mut self, change: Change) {
        if let Some((kind, id)) = parse_scope_key(&change.key) {
            return self.scope(kind, id, change.op);
        }
        let Ok(id) = MerchantId::new(&change.key) else {
            tracing::warn!(key = change.key, "a key of MERCHANTS names nothing known");
            return;
        };
        let Op::Put(value) = change.op else {
            jobs::list(&self.timetable, &id, None);
            if self.known.remove(&id).is_some() {
                self.sink.remove(&id);
            }
            return;
        };
        match decode_registration(&value) {
            Ok(Registration { merchant, .. }) if merchant.id == id => {
                let merchant = merchant.shared();
                jobs::list(&self.timetable, &id, Some(&merchant));
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
        let count = self.known.len() + self.scopes.len();
        tracing::error!(
            count,
            "the broker has lost the registry: putting back what is known"
        );
        let actor = format!("node {}, after the broker lost it", self.node);
        let scopes = self.scopes.values().cloned().map(Kept::Scope);
        let merchants = self.known.values().cloned().map(Kept::Merchant);
        let restore = scopes.chain(merchants).map(|kept| {
            let (broker, actor) = (&self.broker, &actor);
            async move {
                let (key, value) = kept.entry(actor);
                restore(broker, subject(&key), value).await;
            }
        });
        let restored = futures::stream::iter(restore).buffer_unordered(WIDTH);
        restored.for_each(|()| std::future::ready(())).await;
    }
}

/// What was registered.
enum Kept {
    Merchant(Arc<Merchant>),
    Scope(Arc<Scope>),
}

impl Kept {
    /// Key and value.
    fn entry(self, actor: &str) -> (String, Bytes) {
        let (actor, at) = (actor.to_owned(), wall());
        match self {
            Self::Merchant(merchant) => {
                let registration = Registration {
                    merchant: Merchant::clone(&merchant),
                    actor,
                    at,
                    rolled_back_from: None,
                };
                (merchant.id.to_string(), encode_registration(&registration))
            }
            Self::Scope(scope) => {
                let registration = ScopeRegistration {
                    scope: Scope::clone(&scope),
                    actor,
                    at,
                };
                let key = scope_key(scope.kind, &scope.id);
                (key, encode_scope(&registration))
            }
        }
    }
}

/// Creates only: another node, or a person, may have been faster.
async fn restore(broker: &Broker, subject: String, value: Bytes) {
    for _ in 0..5 {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
        match broker
            .publish(subject.clone(), headers, value.clone())
            .await
        {
            Ok(_) | Err(NoAck::WrongLast { .. }) => return,
            Err(error) => {
                tracing::warn!(subject, %error, "was not put back; trying again");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

fn hold(decision: MerchantDecision, subject: &DecisionSubject) -> Option<Hold> {
    let state = match decision.state {
        Decision::Paused => HoldState::Paused,
        Decision::Draining => HoldState::Draining,
        Decision::Quarantined | Decision::Resumed => return None,
    };
    Some(Hold {
        state,
        scope: match subject {
            DecisionSubject::Merchant(_) => LimitScope::Merchant,
            DecisionSubject::Group(_) => LimitScope::Group,
        },
        reason: decision.reason.into(),
        actor: decision.actor.into(),
        at: decision.at.0,
    })
}

struct Decisions {
    broker: Broker,
    sink: Arc<dyn RegistrySink>,
    /// Decisions from before this node's start concern nothing that runs here.
    synced: bool,
    /// What would be put back if the broker lost it: the decisions that hold something, by key.
    known: HashMap<String, Bytes>,
}

impl Sink for Decisions {
    fn change(&mut self, change: Change) {
        let merchant = parse_decision_key(&change.key);
        let subject = match &merchant {
            Some(merchant) => DecisionSubject::Merchant(merchant.clone()),
            None => match parse_group_decision_key(&change.key) {
                Some(group) => DecisionSubject::Group(group.to_owned()),
                None => return,
            },
        };
        let Op::Put(value) = &change.op else {
            self.known.remove(&change.key);
            return self.sink.decided(subject, None, change.revision);
        };
        match decode_decision(value) {
            Ok(decision) => {
                let resumed = decision.state == Decision::Resumed;
                let hold = hold(decision, &subject);
                match hold.is_some() {
                    true => drop(self.known.insert(change.key.clone(), value.clone())),
                    false => drop(self.known.remove(&change.key)),
                }
                self.sink.decided(subject, hold, change.revision);
                if let Some(merchant) = merchant.filter(|_| resumed && self.synced) {
                    self.sink.resume(&merchant);
                }
            }
            // What was decided before still holds.
            Err(error) => {
                let key = change.key;
                tracing::error!(key, error = chain(&error), "a decision is not readable");
            }
        }
    }

    fn synced(&mut self) {
        self.synced = true;
        self.sink.decisions_loaded();
    }

    /// As they were: who decided, why and when do not change.
    async fn recreated(&mut self) {
        let count = self.known.len();
        tracing::error!(
            count,
            "the broker has lost the operators' decisions: putting back what is known"
        );
        let entries = self.known.clone().into_iter().map(|(key, value)| {
            let (broker, subject) = (
                self.broker.clone(),
                format!("$KV.{}.{key}", subjects::CONTROL),
            );
            async move { restore(&broker, subject, value).await }
        });
        let restored = futures::stream::iter(entries).buffer_unordered(WIDTH);
        restored.for_each(|()| std::future::ready(())).await;
        self.sink.decisions_renumbered();
    }
}
