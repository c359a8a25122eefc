//! Which nodes live, as every node sees it in NODES.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
/// How often it is looked whether a suspect's further term is over.
const SUSPICION: Duration = Duration::from_millis(100);

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
    let what = Follow {
        bucket: subjects::NODES,
        keys: "n.*",
        always_whole: true,
    };
    let judge = Arc::new(Mutex::new(Judge::new(own, freshness, members)));
    let ending = async {
        loop {
            tokio::time::sleep(SUSPICION).await;
            lock(&judge).end_suspects(Instant::now());
        }
    };
    tokio::select! {
        () = follow(&broker, what, Follower(judge.clone())) => {}
        () = ending => {}
    }
}

pub(crate) fn channel() -> (watch::Sender<Arc<Members>>, watch::Receiver<Arc<Members>>) {
    watch::channel(Arc::new(Members::none()))
}

struct Follower(Arc<Mutex<Judge>>);

impl Sink for Follower {
    fn change(&mut self, change: Change) {
        lock(&self.0).change(change, Instant::now());
    }

    fn synced(&mut self) {
        lock(&self.0).synced(Instant::now());
    }
}

fn lock(judge: &Mutex<Judge>) -> MutexGuard<'_, Judge> {
    judge.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells the death of a node from the silence of the broker: several that expire together, or while
/// one's own renewals fail, get another term before they are given up.
struct Judge {
    own: NodeName,
    freshness: Arc<Freshness>,
    members: Members,
    suspects: BTreeMap<NodeName, Instant>,
    last_expiry: Option<(Instant, NodeName)>,
    told: watch::Sender<Arc<Members>>,
}

impl Judge {
    fn new(own: NodeName, freshness: Arc<Freshness>, told: watch::Sender<Arc<Members>>) -> Self {
        let (members, suspects) = (Members::none(), BTreeMap::new());
        Self {
            own,
            freshness,
            members,
            suspects,
            last_expiry: None,
            told,
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
        self.told.send_replace(Arc::new(self.members.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NodeName {
        NodeName::new(text).unwrap()
    }

    fn judge() -> (Judge, watch::Receiver<Arc<Members>>) {
        let (told, members) = channel();
        let freshness = Arc::new(Freshness::default());
        freshness.renewed_at(crate::clock::boot());
        let mut judge = Judge::new(name("own"), freshness, told);
        for node in ["own", "a", "b", "c"] {
            judge.members.live.insert(
                name(node),
                Member {
                    instance: "i".into(),
                    leaving: false,
                },
            );
        }
        judge.synced(Instant::now());
        (judge, members)
    }

    fn live(members: &watch::Receiver<Arc<Members>>) -> Vec<String> {
        members
            .borrow()
            .live
            .keys()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn one_death_is_believed() {
        let (mut judge, members) = judge();
        judge.expire(name("a"), Instant::now());
        assert_eq!(live(&members), ["b", "c", "own"]);
        judge.expire(name("own"), Instant::now());
        assert_eq!(live(&members), ["b", "c", "own"], "the own key comes back");
    }

    #[test]
    fn deaths_together_get_another_term() {
        let (mut judge, members) = judge();
        let now = Instant::now();
        judge.expire(name("a"), now);
        judge.expire(name("b"), now + Duration::from_millis(200));
        judge.expire(name("c"), now + Duration::from_millis(400));
        assert_eq!(live(&members), ["b", "c", "own"]);
        judge.end_suspects(now + TTL);
        assert_eq!(live(&members), ["b", "c", "own"], "not yet");
        judge.end_suspects(now + TTL + Duration::from_millis(300));
        assert_eq!(live(&members), ["c", "own"]);
    }

    #[test]
    fn nobody_is_judged_while_the_own_lease_is_late() {
        let (mut judge, members) = judge();
        let late = crate::clock::boot().saturating_sub(Duration::from_millis(2_500));
        judge.freshness.renewed_at(late);
        let now = Instant::now();
        judge.expire(name("a"), now);
        judge.end_suspects(now + TTL);
        assert_eq!(live(&members).len(), 4);
        judge.freshness.renewed_at(crate::clock::boot());
        judge.end_suspects(now + TTL + TTL);
        assert_eq!(live(&members).len(), 3);
    }
}
