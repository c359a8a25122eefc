//! Which nodes live, as every node sees it in NODES.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use expediter_types::{NodeName, Partition};
use expediter_wire::{nodes::decode_node, subjects};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::broker::Broker;
use crate::follow::{Change, Follow, Op, Sink, follow};
use crate::lease::{Freshness, TTL};
use crate::map;

/// Expiries nearer to each other than this are taken for one cause.
const TOGETHER: Duration = Duration::from_secs(1);
/// An own lease this old means that the broker does not take renewals.
const LATE: Duration = Duration::from_millis(1_800);

/// A node that lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) instance: String,
    pub(crate) leaving: bool,
}

/// The live nodes at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Members {
    /// Complete: before that nobody is known to be absent.
    pub(crate) synced: bool,
    pub(crate) live: BTreeMap<NodeName, Member>,
    /// When the set, or who is leaving, changed last.
    pub(crate) changed: Instant,
}

impl Members {
    fn none() -> Self {
        Self {
            synced: false,
            live: BTreeMap::new(),
            changed: Instant::now(),
        }
    }

    /// The node that should work on a partition.
    pub(crate) fn owner(&self, partition: Partition) -> Option<&NodeName> {
        let staying = self.live.iter().filter(|(_, member)| !member.leaving);
        map::owner(partition, staying.map(|(name, _)| name))
    }
}

/// Follows NODES into a watch; ends when its future is dropped.
pub(crate) async fn watch_members(
    broker: Broker,
    freshness: Arc<Freshness>,
    own: NodeName,
    members: watch::Sender<Arc<Members>>,
) {
    let (changes, mut incoming) = tokio::sync::mpsc::unbounded_channel();
    let what = Follow {
        bucket: subjects::NODES,
        keys: "n.*",
        always_whole: true,
    };
    let following = follow(&broker, what, Forward(changes));
    let judging = async {
        let mut judge = Judge::new(own, freshness);
        loop {
            let step = tokio::time::timeout_at(judge.next_end(), incoming.recv()).await;
            let now = Instant::now();
            match step {
                Ok(Some(Event::Change(change))) => judge.change(change, now),
                Ok(Some(Event::Synced)) => judge.synced(now),
                Ok(None) => return,
                Err(_) => judge.end_suspects(now),
            }
            if let Some(new) = judge.take_change() {
                members.send_replace(Arc::new(new));
            }
        }
    };
    tokio::select! {
        () = following => {}
        () = judging => {}
    }
}

pub(crate) fn channel() -> (watch::Sender<Arc<Members>>, watch::Receiver<Arc<Members>>) {
    watch::channel(Arc::new(Members::none()))
}

enum Event {
    Change(Change),
    Synced,
}

struct Forward(tokio::sync::mpsc::UnboundedSender<Event>);

impl Sink for Forward {
    fn change(&mut self, change: Change) {
        drop(self.0.send(Event::Change(change)));
    }

    fn synced(&mut self) {
        drop(self.0.send(Event::Synced));
    }
}

/// Tells the death of a node from the silence of the broker: several that expire together, or while
/// one's own renewals fail, get another term before they are given up.
struct Judge {
    own: NodeName,
    freshness: Arc<Freshness>,
    members: Members,
    suspects: BTreeMap<NodeName, Instant>,
    last_expiry: Option<(Instant, NodeName)>,
    dirty: bool,
}

impl Judge {
    fn new(own: NodeName, freshness: Arc<Freshness>) -> Self {
        let members = Members::none();
        Self {
            own,
            freshness,
            members,
            suspects: BTreeMap::new(),
            last_expiry: None,
            dirty: false,
        }
    }

    fn change(&mut self, change: Change, now: Instant) {
        let name = change
            .key
            .strip_prefix("n.")
            .and_then(|name| NodeName::new(name).ok());
        let Some(name) = name else { return };
        match change.op {
            Op::Put(payload) => {
                let Ok(record) = decode_node(&payload) else {
                    return;
                };
                self.suspects.remove(&name);
                let member = Member {
                    instance: record.instance,
                    leaving: record.leaving,
                };
                if self.members.live.get(&name) != Some(&member) {
                    self.members.live.insert(name, member);
                    self.changed(now);
                }
            }
            Op::Delete => self.remove(&name, now),
            Op::Expire => self.expire(name, now),
        }
    }

    fn expire(&mut self, name: NodeName, now: Instant) {
        // The own key is put back by the next renewal; nobody else's business.
        if name == self.own || !self.members.live.contains_key(&name) {
            return;
        }
        let together = self
            .last_expiry
            .take()
            .filter(|(at, other)| now.duration_since(*at) < TOGETHER && *other != name);
        let outage = together.is_some() || self.freshness.age() > LATE;
        self.last_expiry = Some((now, name.clone()));
        if outage {
            tracing::warn!(node = %name, "a lease ended while the broker seems to be at fault");
            self.suspects.insert(name, now + TTL);
        } else {
            tracing::warn!(node = %name, "a node's lease ended");
            self.remove(&name, now);
        }
    }

    fn remove(&mut self, name: &NodeName, now: Instant) {
        self.suspects.remove(name);
        if *name != self.own && self.members.live.remove(name).is_some() {
            self.changed(now);
        }
    }

    fn synced(&mut self, now: Instant) {
        if !self.members.synced {
            self.members.synced = true;
            self.changed(now);
        }
    }

    fn next_end(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(3_600);
        self.suspects.values().min().copied().unwrap_or(far)
    }

    fn end_suspects(&mut self, now: Instant) {
        let ended: Vec<_> = self
            .suspects
            .iter()
            .filter(|(_, end)| **end <= now)
            .map(|(n, _)| n.clone())
            .collect();
        for name in ended {
            // While our own renewals fail nobody can be judged.
            if self.freshness.age() > LATE {
                self.suspects.insert(name, now + TTL);
            } else {
                self.remove(&name, now);
            }
        }
    }

    fn changed(&mut self, now: Instant) {
        self.members.changed = now;
        self.dirty = true;
    }

    fn take_change(&mut self) -> Option<Members> {
        std::mem::take(&mut self.dirty).then(|| self.members.clone())
    }
}
