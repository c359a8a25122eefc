//! A process that may own the partition: claims it, recovers, reads the log, writes records, and
//! dies at any point.

use expediter_core::IntakeSource;
use expediter_core::partition::{Drained, PartitionMachine};
use expediter_core::store::StoredPartition;
use expediter_types::{Claim, ClaimState, Crashes, Incarnation, NodeName, Partition, Seq};

use crate::broker::{Late, Written};
use crate::env::{Change, Directory, Env, Plant};
use crate::owner::{Flow, Input, Node, Owner, planted};
use crate::shadow::broken;
use crate::store::{Job, JobDone, Store};

/// A node that was not heard for so long is dead, in microseconds.
pub(crate) const TTL: u64 = 3_000_000;
const MARGIN: u64 = 750_000;
const PARTITION: Partition = Partition(3);
const INCARNATION: Incarnation = Incarnation {
    created: 1,
    counter: 1,
};
/// Batches of messages that may be on their way to the store.
const CREDITS: usize = 4;

/// Where the process stands towards the partition.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there are three of them")]
pub(crate) enum Stage {
    Idle,
    Scanning,
    Scanned(StoredPartition),
    Claimed {
        token: Seq,
        claim: Claim,
        replaced: Option<Claim>,
        stored: StoredPartition,
    },
    Working(Box<Owner>),
    Releasing {
        token: Seq,
        drained: Drained,
    },
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) index: usize,
    pub(crate) name: NodeName,
    pub(crate) instance: u64,
    pub(crate) up: bool,
    pub(crate) paused: bool,
    pub(crate) stage: Stage,
    pub(crate) store: Store,
    directory: Directory,
    followed: usize,
    /// When its lease was renewed last.
    pub(crate) lease: u64,
}

impl Process {
    pub(crate) fn new(index: usize, look: usize) -> Self {
        Self {
            index,
            name: NodeName::new(&format!("n{index}")).expect("a valid name"),
            instance: 0,
            up: false,
            paused: false,
            stage: Stage::Idle,
            store: Store::new(look),
            directory: Directory::default(),
            followed: 0,
            lease: 0,
        }
    }

    pub(crate) fn start(&mut self, env: &Env) {
        env.trace(|| format!("p{} starts", self.index));
        (self.up, self.paused, self.instance) = (true, false, self.instance + 1);
        self.directory = Directory {
            merchants: env.registry.merchants.clone(),
            holds: env.registry.holds.clone(),
            deaf: env.plant == Some(Plant::IgnoreHolds),
        };
        self.followed = env.registry.changes.len();
        self.lease = env.mono;
    }

    pub(crate) fn crash(&mut self, env: &mut Env, wipe: bool) {
        env.trace(|| {
            format!(
                "p{} dies{}",
                self.index,
                if wipe { " with its disk" } else { "" }
            )
        });
        self.up = false;
        self.stage = Stage::Idle;
        self.store.crash(&mut env.rng);
        if wipe {
            self.store.wipe();
        }
    }

    pub(crate) fn runs(&self) -> bool {
        self.up && !self.paused
    }

    pub(crate) fn owner(&mut self) -> Option<&mut Owner> {
        match &mut self.stage {
            Stage::Working(owner) => Some(owner),
            _ => None,
        }
    }

    /// Renews the lease, and notices that the claim is gone: a lease that lapsed is not taken up
    /// again before the claim was looked at.
    pub(crate) fn heartbeat(&mut self, env: &mut Env) {
        if !self.runs() {
            return;
        }
        let standing = env.broker.standing();
        if let Stage::Working(owner) = &mut self.stage
            && owner.token != standing
        {
            if env.rng.chance(20) {
                owner.inbox.push_back(Input::Fenced);
            }
            return;
        }
        self.lease = env.mono;
    }

    fn node(&mut self, env: &Env) -> (Node<'_>, &mut Stage) {
        let node = Node {
            process: self.index,
            directory: &self.directory,
            fresh: env.mono - self.lease + MARGIN < TTL,
            store: &mut self.store,
        };
        (node, &mut self.stage)
    }

    /// The partition's actor takes a step.
    pub(crate) fn partition_step(&mut self, env: &mut Env) -> bool {
        let (mut node, stage) = self.node(env);
        let Stage::Working(owner) = stage else {
            return false;
        };
        if !owner.is_busy(env.mono) {
            return false;
        }
        let token = owner.token;
        match owner.step(&mut node, env) {
            Flow::Goes => {}
            Flow::Fenced => {
                env.trace(|| format!("p{} is fenced", node.process));
                *stage = Stage::Idle;
            }
            Flow::HandedOver(drained) => {
                env.trace(|| format!("p{} hands over, {drained:?}", node.process));
                *stage = Stage::Releasing { token, drained };
            }
        }
        true
    }

    pub(crate) fn actor_step(&mut self, env: &mut Env) -> bool {
        let (node, stage) = self.node(env);
        match stage {
            Stage::Working(owner) => owner.actor_step(&node, env),
            _ => false,
        }
    }

    pub(crate) fn store_step(&mut self, env: &mut Env) -> bool {
        if self.store.is_idle() {
            return false;
        }
        let at_most = env.rng.range(1, 8) as usize;
        for done in self.store.work(at_most) {
            self.store_did(done);
        }
        true
    }

    fn store_did(&mut self, done: JobDone) {
        match (done, &mut self.stage) {
            (JobDone::Scanned(stored), stage @ Stage::Scanning) => *stage = Stage::Scanned(stored),
            (JobDone::Committed { token, number }, Stage::Working(owner))
                if owner.token == token =>
            {
                owner.inbox.push_back(Input::Committed(number));
            }
            (
                JobDone::Loaded {
                    token,
                    load,
                    loaded,
                },
                Stage::Working(owner),
            ) if owner.token == token => {
                owner.inbox.push_back(Input::Loaded(load, loaded));
            }
            _ => {}
        }
    }

    /// The record under way is sent (again).
    pub(crate) fn write_step(&mut self, env: &mut Env) -> bool {
        let Stage::Working(owner) = &mut self.stage else {
            return false;
        };
        let Some((write, at)) = &mut owner.sending else {
            return false;
        };
        if *at > env.mono {
            return false;
        }
        let mut write_now = write.clone();
        if planted(&mut write_now, env.plant) {
            let (number, seq) = (write.number, env.broker.last_outcome);
            owner.sending = None;
            owner.inbox.push_back(Input::Written { number, seq });
            return true;
        }
        let [no_ack, lost, late] = env.plan.undecided;
        let fate = env
            .rng
            .weighted(&[1_000 - no_ack - lost - late, no_ack, lost, late]);
        *at = env.mono + env.rng.range(50_000, 2_000_000);
        match fate {
            2 => {}
            3 => env.broker.late.push(Late::Write(Box::new(write_now))),
            fate => {
                let number = write.number;
                match (store(env, write_now), fate) {
                    (Written::Fenced, _) => {
                        owner.sending = None;
                        owner.inbox.push_back(Input::Fenced);
                    }
                    (Written::Stored(seq) | Written::Repeated(seq), 0) => {
                        owner.sending = None;
                        owner.inbox.push_back(Input::Written { number, seq });
                    }
                    (Written::Stored(_) | Written::Repeated(_), _) => {}
                }
            }
        }
        true
    }

    /// The main reader hands over what is next, or that nothing is.
    pub(crate) fn read_step(&mut self, env: &mut Env) -> bool {
        let Stage::Working(owner) = &mut self.stage else {
            return false;
        };
        if owner.logs_waiting >= CREDITS || owner.is_ending() {
            return false;
        }
        let again = env.plan.reads_again && env.rng.chance(30);
        let from = match again {
            true => owner.taken.saturating_sub(env.rng.below(20)),
            false => owner.taken,
        };
        let at_most = env.rng.range(1, 10) as usize;
        let next = env.broker.log.range(from + 1..).take(at_most);
        let messages: Vec<_> = next.map(|(_, message)| message.clone()).collect();
        let none_below = match messages.last() {
            None if env.broker.last <= owner.taken => return false,
            None => Some(env.broker.last),
            Some(_) => None,
        };
        owner.taken = owner
            .taken
            .max(messages.last().map_or(0, |message| message.seq));
        owner.taken = owner.taken.max(none_below.unwrap_or(0));
        owner.tail = owner.tail.filter(|tail| *tail > owner.taken);
        owner.logs_waiting += 1;
        let source = IntakeSource::Main;
        owner.inbox.push_back(Input::Log {
            source,
            messages,
            none_below,
        });
        true
    }

    /// What is new is read while the main reader catches up.
    pub(crate) fn tail_step(&mut self, env: &mut Env) -> bool {
        let Stage::Working(owner) = &mut self.stage else {
            return false;
        };
        let Some(tail) = owner.tail.filter(|_| owner.logs_waiting < CREDITS) else {
            return false;
        };
        let at_most = env.rng.range(1, 4) as usize;
        let next = env.broker.log.range(tail + 1..).take(at_most);
        let messages: Vec<_> = next.map(|(_, message)| message.clone()).collect();
        let Some(last) = messages.last().map(|message| message.seq) else {
            return false;
        };
        owner.tail = Some(last);
        owner.logs_waiting += 1;
        let source = IntakeSource::FreshTail;
        owner.inbox.push_back(Input::Log {
            source,
            messages,
            none_below: None,
        });
        true
    }

    /// Follows one change of the registry.
    pub(crate) fn follow_step(&mut self, env: &Env) -> bool {
        let Some((id, change)) = env.registry.changes.get(self.followed).cloned() else {
            return false;
        };
        self.followed += 1;
        match &change {
            Change::Manifest(Some(merchant)) => {
                self.directory
                    .merchants
                    .insert(id.clone(), merchant.clone());
            }
            Change::Manifest(None) => {
                self.directory.merchants.remove(&id);
            }
            Change::Hold(Some(hold)) => {
                self.directory.holds.insert(id.clone(), hold.clone());
            }
            Change::Hold(None) => drop(self.directory.holds.remove(&id)),
            Change::Resume => {}
        }
        if let Stage::Working(owner) = &mut self.stage {
            owner.inbox.push_back(Input::Registry(id, change));
        }
        true
    }

    /// Moves on towards owning the partition, or towards giving it back.
    pub(crate) fn claim_step(&mut self, env: &mut Env, may_replace: bool) -> bool {
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Idle if may_replace => {
                self.store.push(Job::Scan);
                self.stage = Stage::Scanning;
            }
            Stage::Scanned(stored) if may_replace => self.claim(env, stored),
            Stage::Claimed {
                token,
                claim,
                replaced,
                stored,
            } => {
                if env.broker.standing() == token {
                    self.recover(env, token, &claim, replaced.as_ref(), stored);
                }
            }
            Stage::Releasing { token, drained } => self.release(env, token, drained),
            other => {
                self.stage = other;
                return false;
            }
        }
        true
    }

    fn claim(&mut self, env: &mut Env, stored: StoredPartition) {
        let replaced = env.broker.claim.clone();
        let expected = env.broker.standing();
        // As if too many owners had crashed; so it stays until somebody says otherwise.
        let carried = replaced.as_ref().is_some_and(|(_, c)| c.crashes.paused);
        let crashes = Crashes {
            of: Vec::new(),
            paused: carried || env.rng.chance(30),
        };
        let claim = Claim {
            node: self.name.clone(),
            instance: self.instance.to_string(),
            state: ClaimState::Held,
            replaces: expected,
            incarnation: INCARNATION,
            cut: 0,
            at: env.now().wall,
            crashes,
        };
        if env.rng.chance(env.plan.undecided[2] / 4) {
            env.broker.late.push(Late::Claim { expected, claim });
            return;
        }
        let gap = env.rng.below(3);
        // Without an answer the claim is looked for; it meets itself when it was stored.
        if let Some(token) = env.broker.claim(expected, claim.clone(), gap) {
            env.trace(|| format!("p{} claims: {token} replaces {expected}", self.index));
            let replaced = replaced.map(|(_, claim)| claim);
            self.stage = Stage::Claimed {
                token,
                claim,
                replaced,
                stored,
            };
        }
    }

    fn recover(
        &mut self,
        env: &mut Env,
        token: Seq,
        claim: &Claim,
        replaced: Option<&Claim>,
        mut stored: StoredPartition,
    ) {
        let mut recovered = env.broker.recover(token, claim, replaced, stored.meta);
        if claim.crashes.paused {
            env.shadow.paused.insert(token);
        }
        for merchant in self.directory.holds.keys() {
            env.shadow.holds(token, merchant, true, env.now());
        }
        if env.plant == Some(Plant::ForgetFinished) {
            let half = recovered.finished.max().unwrap_or(0) / 2;
            recovered.finished.remove_range(half..);
        }
        if env.plant == Some(Plant::ForgetSpent) {
            recovered.spent.clear();
            (recovered.marked_last, recovered.unknown) = (true, Vec::new());
        }
        if let Some(meta) = stored.meta {
            assert!(
                meta.epoch <= recovered.replaced_epoch,
                "a store from the future"
            );
            if meta.epoch != recovered.replaced_epoch {
                self.store.push(Job::Drop);
                while !self.store.is_idle() {
                    self.store.work(8);
                }
                stored = StoredPartition::default();
            }
        }
        let found = (recovered.low_water, recovered.finished.len(), stored.meta);
        env.trace(|| format!("p{} recovers {recovered:?} with {:?}", self.index, found));
        let config = env.plan.config.clone();
        let now = env.now();
        let mut machine = PartitionMachine::start(PARTITION, recovered, stored, config, now);
        let behind = machine.seen() < env.broker.last;
        let tail = (env.plan.tail && behind).then_some(env.broker.last);
        machine.wake_all(&self.directory, now);
        self.stage = Stage::Working(Box::new(Owner::new(machine, tail)));
        let (mut node, stage) = self.node(env);
        if let Stage::Working(owner) = stage {
            owner.pump(&mut node, env);
        }
    }

    fn release(&mut self, env: &mut Env, token: Seq, drained: Drained) {
        // What it told the store is durable before.
        while !self.store.is_idle() {
            self.store.work(8);
        }
        let Drained {
            running,
            busy_until,
        } = drained;
        let state = ClaimState::Released {
            epoch: token,
            running: running.clone(),
            busy_until,
        };
        let claim = Claim {
            node: self.name.clone(),
            instance: self.instance.to_string(),
            state,
            replaces: token,
            incarnation: INCARNATION,
            cut: 0,
            at: env.now().wall,
            crashes: Crashes {
                of: Vec::new(),
                paused: env.shadow.paused.contains(&token),
            },
        };
        if env.rng.chance(env.plan.undecided[1]) {
            // Nothing came back; it tries again.
            self.stage = Stage::Releasing {
                token,
                drained: Drained {
                    running,
                    busy_until,
                },
            };
            return;
        }
        let gap = env.rng.below(3);
        env.shadow.released(&claim.state);
        if env.broker.claim(token, claim, gap).is_some() {
            env.trace(|| format!("p{} released {token}", self.index));
        }
    }

    /// At the end of a run: nothing is left to do here.
    pub(crate) fn judge_end(&mut self, env: &Env) {
        let orders = self.store.orders();
        let Some(owner) = self.owner() else { return };
        if orders > 0 {
            broken!("DUR-1", "{orders} finished orders are left in the store");
        }
        let (seen, low_water) = (owner.machine.seen(), owner.machine.low_water());
        if (seen, low_water) != (env.broker.last, env.broker.last) {
            broken!(
                "ORD-1",
                "seen {seen}, low water {low_water} of {}",
                env.broker.last
            );
        }
        if owner.machine.unfinished() + owner.machine.waiting_in_store() > 0 {
            broken!("ORD-1", "the owner still counts unfinished orders");
        }
    }
}

/// A write reaches the broker.
pub(crate) fn store(env: &mut Env, write: crate::broker::Write) -> Written {
    let gap = env.rng.below(3);
    let written = env.broker.write(write.clone(), env.mono, gap);
    if let Written::Stored(seq) = written {
        env.shadow.stored(seq, &write);
    }
    written
}
