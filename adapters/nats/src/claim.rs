//! The right to work on a partition.

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use expediter_core::store::PartitionMeta;
use expediter_ports::Stopped;
use expediter_types::{
    Claim, ClaimState, Crash, Crashes, Incarnation, NodeName, Partition, Seq, Stamp, UnixMillis,
};
use expediter_wire::{records, subjects};
use tokio::sync::watch;

use crate::Error;
use crate::broker::{Broker, NoAck};
use crate::clock::{millis, wall};
use crate::error::chain;
use crate::identity::{Identity, Witness, check, check_by_mark};
use crate::lease::lease_of;
use crate::members::Members;
use crate::recovery::{Claimed, MarkHead};

/// How often a claim that may not be replaced yet is looked at.
const LOOK: Duration = Duration::from_millis(150);

/// Crashes of a partition's owners count so long, in milliseconds.
const CRASH_WINDOW: u64 = 600_000;
/// They are none of the partition's within this time after the broker was away.
const BLAMELESS: Duration = Duration::from_secs(30);
/// So many are remembered.
const MOST_CRASHES: usize = 20;

/// What this process remembers of a partition's log, and which incarnation that was.
pub(crate) type Remembered = (Incarnation, Witness);

/// Who claims, and what it knows of the others.
#[derive(Debug, Clone)]
pub(crate) struct Claimant {
    pub(crate) broker: Broker,
    pub(crate) node: NodeName,
    pub(crate) instance: String,
    pub(crate) members: watch::Receiver<Arc<Members>>,
    /// A live owner that does not let go is replaced so long after the map changed.
    pub(crate) patience: Duration,
    /// After so many crashes of its owners within [`CRASH_WINDOW`] a partition starts paused; 0: never.
    pub(crate) crash_limit: usize,
}

/// Whether a claim may be replaced.
enum Replaceable {
    No,
    Yes,
    /// If the broker, too, says that this process has no lease.
    IfDead(NodeName, String),
}

/// The newest claim record of a partition.
#[derive(Debug, Clone)]
struct Last {
    seq: Seq,
    claim: Option<Claim>,
}

impl Claimant {
    /// Waits until the partition may be taken and takes it. `None` when `given_up` comes first; it is
    /// never left open whether a claim was published.
    ///
    /// # Errors
    /// A claim that only a newer version can read.
    pub(crate) async fn claim(
        &self,
        partition: Partition,
        meta: Option<PartitionMeta>,
        remembered: Option<Remembered>,
        given_up: impl Fn() -> bool,
    ) -> Result<Option<Claimed>, Error> {
        loop {
            if given_up() {
                return Ok(None);
            }
            match self.try_claim(partition, meta, remembered).await {
                Ok(Some(claimed)) => return Ok(Some(claimed)),
                Ok(None) => {}
                Err(error @ Error::Format { .. }) => return Err(error),
                Err(error) => {
                    tracing::info!(%partition, error = chain(&error), "claiming is tried again");
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn try_claim(
        &self,
        partition: Partition,
        meta: Option<PartitionMeta>,
        remembered: Option<Remembered>,
    ) -> Result<Option<Claimed>, Error> {
        let last = self.last(partition).await?;
        match self.may_replace(last.claim.as_ref()) {
            Replaceable::No => return Ok(None),
            Replaceable::Yes => {}
            // What is known of the others may be old: this process may just have been woken up.
            Replaceable::IfDead(node, instance) => {
                if lease_of(&self.broker, &node).await?.as_ref() == Some(&instance) {
                    return Ok(None);
                }
            }
        }
        let (incarnation, cut) = self
            .incarnation(partition, last.claim.as_ref(), meta, remembered)
            .await?;
        let claim = Claim {
            node: self.node.clone(),
            instance: self.instance.clone(),
            state: ClaimState::Held,
            replaces: last.seq,
            incarnation,
            cut,
            at: wall(),
            crashes: self.crashes(last.claim.as_ref()),
        };
        if claim.crashes.paused {
            tracing::error!(
                %partition,
                crashes = claim.crashes.of.len(),
                "the partition starts paused, because its owners crashed: see `expediter cluster resume`"
            );
        }
        let token = match publish_claim(&self.broker, partition, &claim).await {
            Ok(seq) => seq,
            Err(error) => {
                // It may be stored all the same, and then meets itself.
                let stands = self.last(partition).await?;
                if stands.claim.as_ref() != Some(&claim) {
                    tracing::debug!(%partition, %error, "the claim was not taken");
                    return Ok(None);
                }
                stands.seq
            }
        };
        Ok(Some(Claimed {
            partition,
            token,
            claim,
            replaced: last.claim,
            meta,
        }))
    }

    async fn last(&self, partition: Partition) -> Result<Last, Error> {
        let subject = subjects::claim(partition);
        let Some(message) = self.broker.last(subjects::OUTCOMES, &subject).await? else {
            return Ok(Last {
                seq: 0,
                claim: None,
            });
        };
        let claim = records::decode_claim(&message.payload).map_err(Error::format(subject))?;
        Ok(Last {
            seq: message.sequence,
            claim: Some(claim),
        })
    }

    /// A live owner's claim is replaced only after its release, after its lease has ended, or when
    /// it had time enough to hand over.
    fn may_replace(&self, claim: Option<&Claim>) -> Replaceable {
        let members = self.members.borrow();
        if !members.synced {
            return Replaceable::No;
        }
        let Some(claim) = claim else {
            return Replaceable::Yes;
        };
        let released = claim.state != ClaimState::Held;
        let ours = claim.node == self.node;
        let lives = members
            .live
            .get(&claim.node)
            .is_some_and(|m| m.instance == claim.instance);
        if released || ours || members.changed.elapsed() > self.patience {
            Replaceable::Yes
        } else if lives {
            Replaceable::No
        } else {
            Replaceable::IfDead(claim.node.clone(), claim.instance.clone())
        }
    }

    /// What the partition did to its owners. A broker that was away is to blame for what ended about
    /// then, and a process that lives did not end.
    fn crashes(&self, replaced: Option<&Claim>) -> Crashes {
        let Some(former) = replaced else {
            return Crashes::default();
        };
        let mut crashes = former.crashes.clone();
        let now = wall();
        let recent = now.saturating_sub(CRASH_WINDOW);
        let members = self.members.borrow();
        let lives = |instance: &str| {
            instance == self.instance || members.live.values().any(|m| m.instance == instance)
        };
        let paused = crashes.paused;
        crashes
            .of
            .retain(|crash| paused || (crash.at >= recent && !lives(&crash.instance)));
        let ended = former.state == ClaimState::Held && former.instance != self.instance;
        let blameless = self.broker.connection.disturbed_within(BLAMELESS);
        if ended && !blameless {
            let excess = (crashes.of.len() + 1).saturating_sub(MOST_CRASHES);
            crashes.of.drain(..excess);
            let instance = former.instance.clone();
            crashes.of.push(Crash { at: now, instance });
            let limit = self.crash_limit;
            crashes.paused |= limit > 0 && crashes.of.len() >= limit;
        }
        crashes
    }

    /// Which log this is, and how much of the former one survived.
    async fn incarnation(
        &self,
        partition: Partition,
        replaced: Option<&Claim>,
        meta: Option<PartitionMeta>,
        remembered: Option<Remembered>,
    ) -> Result<(Incarnation, Seq), Error> {
        let state = self.broker.state(subjects::ORDERS).await?;
        // The newest that anybody knows.
        let known = replaced.map(|claim| (claim.incarnation, claim.cut));
        let stored = meta.map(|meta| (meta.incarnation, 0));
        let newest = [known, stored]
            .into_iter()
            .flatten()
            .max_by_key(|(i, _)| i.counter);
        let Some((former, former_cut)) = newest else {
            return Ok((
                Incarnation {
                    created: state.created,
                    counter: 1,
                },
                0,
            ));
        };
        let mut witnesses = Vec::new();
        let same_log = remembered.filter(|(incarnation, _)| *incarnation == former);
        witnesses.extend(same_log.map(|(_, witness)| witness));
        if let Some(meta) = meta.filter(|meta| meta.incarnation == former) {
            let (seq, at) = (meta.last_taken, meta.last_taken_at);
            witnesses.push(Witness {
                created: former.created,
                seq,
                at,
            });
        }
        witnesses.push(Witness {
            created: former.created,
            seq: 0,
            at: 0,
        });
        let mut cut: Option<Seq> = None;
        for witness in witnesses {
            if let Identity::Lost { cut: survived, .. } = check(&self.broker, &witness).await? {
                cut = Some(cut.map_or(survived, |least| least.min(survived)));
            }
        }
        if cut.is_none()
            && let Some((seen, marked_at)) = self.newest_mark(partition, former).await?
            && let Identity::Lost { cut: survived, .. } =
                check_by_mark(&self.broker, seen, marked_at).await?
        {
            cut = Some(survived);
        }
        let Some(cut) = cut else {
            return Ok((former, former_cut));
        };
        let incarnation = Incarnation {
            created: state.created,
            counter: former.counter + 1,
        };
        tracing::error!(
            %partition,
            former = former.counter,
            incarnation = incarnation.counter,
            cut,
            last = state.last,
            "the broker has lost acknowledged orders above the cut"
        );
        Ok((incarnation, cut))
    }

    /// What the newest mark of this log had seen, and when it was stored.
    async fn newest_mark(
        &self,
        partition: Partition,
        former: Incarnation,
    ) -> Result<Option<(Seq, UnixMillis)>, Error> {
        let subject = subjects::mark(partition);
        let Some(message) = self.broker.last(subjects::OUTCOMES, &subject).await? else {
            return Ok(None);
        };
        let head: Option<MarkHead> = serde_json::from_slice(&message.payload).ok();
        let commit = records::decode_entry(&subject, &message.payload);
        let of_this_log = matches!(
            commit,
            Ok(records::WireEntry::Mark(commit)) if commit.stamp.incarnation == former
        );
        let head = head.filter(|_| of_this_log);
        Ok(head.map(|head| (head.seen, millis(message.time))))
    }
}

/// Gives a claim back: the next owner need not wait.
pub(crate) async fn release(
    broker: &Broker,
    claimed: &Claim,
    partition: Partition,
    stamp: Stamp,
    stopped: Stopped,
) -> Result<(), Error> {
    // An operator let it go on: it starts anew.
    let resumed = claimed.crashes.paused && !stopped.paused;
    let claim = Claim {
        crashes: match resumed {
            true => Crashes::default(),
            false => claimed.crashes.clone(),
        },
        state: ClaimState::Released {
            epoch: stamp.token,
            running: stopped.running,
            busy_until: stopped.busy_until,
        },
        replaces: stamp.token,
        at: wall(),
        ..claimed.clone()
    };
    let mut wait = Duration::from_millis(50);
    for _ in 0..8 {
        match publish_claim(broker, partition, &claim).await {
            Ok(_) => return Ok(()),
            // Another claim, or this very release after a lost answer.
            Err(NoAck::WrongLast { current }) if current != stamp.token => return Ok(()),
            Err(error) => tracing::debug!(%partition, %error, "the release is tried again"),
        }
        tokio::time::sleep(wait).await;
        wait *= 2;
    }
    Err(Error::plain(format!(
        "the claim of partition {partition} was not released"
    )))
}

async fn publish_claim(broker: &Broker, partition: Partition, claim: &Claim) -> Result<Seq, NoAck> {
    let mut headers = HeaderMap::new();
    let replaces = claim.replaces.to_string();
    headers.insert("Nats-Expected-Last-Subject-Sequence", replaces.as_str());
    let payload = records::encode_claim(claim);
    broker
        .publish(subjects::claim(partition), headers, payload)
        .await
        .map(|ack| ack.seq)
}
