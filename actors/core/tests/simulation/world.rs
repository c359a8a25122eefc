//! One run: steps chosen by weight, then the faults end and everything has to drain to zero.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use expediter_core::{LogMessage, Order, Undecodable, payload_hash};
use expediter_types::{
    ClaimState, Envelope, Hold, HoldState, LimitScope, Merchant, MerchantId, OrderId, Priority, Seq,
};

use crate::broker::{Broker, Late};
use crate::env::{Change, Env, Plant, Registry};
use crate::fleet::Fleet;
use crate::owner::Input;
use crate::plan::{Act, Plan, Registered, healthy, limits};
use crate::process::{Process, Stage, TTL, store};
use crate::rng::Rng;
use crate::shadow::{Shadow, Truth, broken};

/// With healthy merchants everything ends within this, in microseconds.
const DRAINS_WITHIN: u64 = 4 * 3_600_000_000;
/// The wall clock is wrong by at most so much, in milliseconds.
const FARTHEST: i64 = 1_800_000;
/// A hung merchant delays nobody else by more.
const OTHERS_WITHIN: u64 = 2 * 3_600_000_000;

#[derive(Debug)]
pub(crate) struct World {
    env: Env,
    processes: Vec<Process>,
    published: u64,
}

/// What a run did, so that a test can see that it did something.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Summary {
    pub(crate) published: u64,
    pub(crate) sent: u64,
    pub(crate) epochs: u64,
}

impl World {
    pub(crate) fn new(seed: u64, steps: u64, plant: Option<Plant>, traced: bool) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(&mut rng, steps);
        let processes = (0..plan.processes)
            .map(|n| Process::new(n, plan.look))
            .collect();
        let mut env = Env {
            rng,
            mono: 1_000_000,
            offset: 0,
            broker: Broker::default(),
            fleet: Fleet::default(),
            registry: Registry::default(),
            shadow: Shadow::new(plan.windows, plan.jumps),
            plant,
            traced,
            plan,
        };
        env.trace(|| format!("{:#?}", env.plan));
        for (merchant, behaviour, registered) in env.plan.merchants.clone() {
            env.shadow.registered(&merchant);
            env.fleet.behaviours.insert(merchant.id.clone(), behaviour);
            match registered {
                Registered::Already => env.registry.put(merchant),
                Registered::Later | Registered::Never => {
                    env.shadow.strangers.insert(merchant.id.clone());
                }
            }
        }
        Self {
            env,
            processes,
            published: 0,
        }
    }

    pub(crate) fn run(mut self) -> Summary {
        for process in &mut self.processes {
            process.start(&self.env);
        }
        for _ in 0..self.env.plan.steps {
            self.pass(self.env.plan.pace);
            let weights: Vec<u64> = self.env.plan.weights.iter().map(|(_, w)| *w).collect();
            for _ in 0..4 {
                let act = self.env.plan.weights[self.env.rng.weighted(&weights)].0;
                if self.act(act) {
                    break;
                }
            }
        }
        self.drain();
        let epochs = self.env.broker.standing();
        Summary {
            published: self.published,
            sent: self.env.shadow.launched,
            epochs,
        }
    }

    /// Time passes by at most so much.
    fn pass(&mut self, most: u64) {
        self.env.mono += self.env.rng.below(most + 1);
        for process in &mut self.processes {
            process.heartbeat(&mut self.env);
        }
    }

    fn process(&mut self) -> Option<usize> {
        let at = self.env.rng.index(self.processes.len());
        self.processes[at].runs().then_some(at)
    }

    /// Tries to do it; false when there is nothing to do.
    fn act(&mut self, act: Act) -> bool {
        let at = self.env.rng.index(self.processes.len());
        let runs = self.processes[at].runs();
        let (env, process) = (&mut self.env, &mut self.processes[at]);
        match act {
            Act::Partition => runs && process.partition_step(env),
            Act::Actor => runs && process.actor_step(env),
            Act::Store => runs && process.store_step(env),
            Act::Write => runs && process.write_step(env),
            Act::Read => runs && process.read_step(env),
            Act::ReadTail => runs && process.tail_step(env),
            Act::Follow => runs && process.follow_step(env),
            Act::Answer => self.answer(),
            Act::Wait => {
                self.pass(self.env.plan.longest_wait);
                true
            }
            Act::Publish => {
                for _ in 0..=self.env.rng.skewed(8) {
                    self.publish();
                }
                true
            }
            Act::Claim => {
                let may = self.may_replace(at);
                runs && self.processes[at].claim_step(&mut self.env, may)
            }
            Act::Registry => self.change_registry(),
            Act::Operate => self.operate(),
            Act::Crash => self.crash_or_start(at),
            Act::Pause => {
                process.paused = process.up && !process.paused;
                let paused = process.paused;
                env.trace(|| format!("p{at} paused: {paused}"));
                true
            }
            Act::HandOver => {
                let patience = env.rng.pick(&[0, 200_000, 20_000_000]);
                match process.owner().filter(|owner| runs && !owner.is_ending()) {
                    Some(owner) => {
                        owner.inbox.push_back(Input::HandOver {
                            patience: *patience,
                        });
                        true
                    }
                    None => false,
                }
            }
            Act::Late => self.land_late(),
            Act::Compact => self.compact(),
            Act::Jump => {
                let by = env.rng.range(1, 600_000) as i64;
                let by = if env.rng.chance(500) { by } else { -by };
                // Set back for hours, what waits for a time would outlast the end of the run.
                let far = (env.offset + by).abs() > FARTHEST;
                env.offset += if far { -by } else { by };
                true
            }
        }
    }

    /// A live owner's claim is replaced only after its release, or when its lease has ended.
    fn may_replace(&self, by: usize) -> bool {
        let Some((_, claim)) = &self.env.broker.claim else {
            return true;
        };
        let holder = self
            .processes
            .iter()
            .find(|process| process.name == claim.node);
        let holder = holder.expect("claims are made by processes");
        if claim.state != ClaimState::Held || holder.index == by {
            return true;
        }
        self.env.mono - holder.lease > TTL
    }

    fn crash_or_start(&mut self, at: usize) -> bool {
        let (env, process) = (&mut self.env, &mut self.processes[at]);
        if process.up {
            let wipe = env.rng.chance(env.plan.wipes);
            process.crash(env, wipe);
        } else {
            process.start(env);
        }
        true
    }

    fn answer(&mut self) -> bool {
        let Some((attempt, answer)) = self.env.fleet.answer(self.env.mono, &mut self.env.rng)
        else {
            return false;
        };
        let (seq, number) = (attempt.order.seq, attempt.number);
        self.env.trace(|| {
            let (merchant, class) = (&attempt.merchant.id, answer.class);
            format!(
                "{merchant} answers {seq} ({number}): {class} {:?}",
                answer.retry_after
            )
        });
        let twice = !self.env.fleet.receive(&attempt, answer.class);
        if twice && attempt.merchant.adapter.idempotency.is_marked() && !self.env.plan.jumps {
            broken!("ORD-3", "{} gets order {seq} twice", attempt.merchant.id);
        }
        self.env
            .shadow
            .answered(&attempt.order, attempt.token, answer.class);
        let process = &mut self.processes[attempt.process];
        if let Some(owner) = process.owner().filter(|owner| owner.token == attempt.token) {
            owner.inbox.push_back(Input::Answer {
                seq,
                number,
                answer,
            });
        }
        true
    }

    fn publish(&mut self) {
        let env = &mut self.env;
        let gap = match env.plan.gaps {
            0 => 0,
            gaps => env.rng.skewed(gaps),
        };
        env.broker.last += 1 + gap;
        let (seq, at) = (env.broker.last, env.now().wall);
        let merchant = env.rng.pick(&env.plan.merchants).0.id.clone();
        if env.rng.chance(env.plan.undecodable) {
            let payload = Bytes::from_static(b"?");
            let bad = Undecodable {
                merchant: merchant.clone(),
                reason: "no".into(),
                payload,
            };
            let truth = Truth {
                merchant,
                order: Err(bad.clone()),
            };
            env.shadow.published(seq, truth, false);
            env.broker.log.insert(
                seq,
                LogMessage {
                    seq,
                    at,
                    order: Err(Box::new(bad)),
                },
            );
            return;
        }
        let order = match self.former() {
            Some(former) => Order { seq, ..former },
            None => self.fresh(seq, merchant),
        };
        let env = &mut self.env;
        let mut order = order;
        order.envelope.created = at;
        let order = Arc::new(order);
        let truth = Truth {
            merchant: order.envelope.merchant.clone(),
            order: Ok(Arc::clone(&order)),
        };
        let poison = env.rng.chance(env.plan.poison);
        env.trace(|| format!("published {seq} {} {:?}", order.envelope.id, order.envelope));
        env.shadow.published(seq, truth, poison);
        env.broker.log.insert(
            seq,
            LogMessage {
                seq,
                at,
                order: Ok(order),
            },
        );
        self.published += 1;
    }

    /// A publisher says something again, or means something else by it.
    fn former(&mut self) -> Option<Order> {
        let (repeats, conflicts) = (self.env.plan.repeats, self.env.plan.conflicts);
        let kind = self.env.rng.below(1_000);
        if kind >= repeats + conflicts || self.env.shadow.truth.is_empty() {
            return None;
        }
        let back = self.env.rng.skewed(self.env.shadow.truth.len() as u64 - 1);
        let (_, truth) = self.env.shadow.truth.iter().rev().nth(back as usize)?;
        let mut order = Order::clone(truth.order.as_ref().ok()?);
        if kind >= repeats {
            order.payload = Bytes::from(format!("other {}", self.env.rng.next()));
            order.payload_hash = payload_hash(&order.payload);
        }
        Some(order)
    }

    fn fresh(&mut self, seq: Seq, merchant: MerchantId) -> Order {
        let env = &mut self.env;
        let wall = env.now().wall;
        let deadline = env.rng.chance(env.plan.deadlines).then(|| {
            let within = *env.rng.pick(&[500, 5_000, 60_000]);
            wall + env.rng.range(0, within)
        });
        let not_before = env
            .rng
            .chance(env.plan.not_before)
            .then(|| wall + env.rng.skewed(60_000));
        let key = env
            .rng
            .chance(800)
            .then(|| format!("k{}", env.rng.below(env.plan.keys)).into());
        let priority = match env.rng.chance(env.plan.priorities) {
            true => *env.rng.pick(&[Priority::High, Priority::Low]),
            false => Priority::Normal,
        };
        let payload = Bytes::from(format!("order {}", env.rng.next()));
        Order {
            seq,
            envelope: Envelope {
                id: OrderId::new(&format!("o{seq}")).expect("a valid id"),
                merchant,
                generation: 1,
                created: wall,
                deadline,
                not_before,
                key,
                priority,
                event_type: None,
                source: None,
                time: None,
                content_type: None,
                traceparent: None,
                test: false,
                origin: None,
            },
            payload_hash: payload_hash(&payload),
            payload,
        }
    }

    fn any_merchant(&mut self) -> Arc<Merchant> {
        let (merchant, ..) = self.env.rng.pick(&self.env.plan.merchants);
        let registered = self.env.registry.merchants.get(&merchant.id);
        Arc::clone(registered.unwrap_or(merchant))
    }

    fn change_registry(&mut self) -> bool {
        let mut merchant = self.any_merchant();
        let known = self.env.registry.merchants.contains_key(&merchant.id);
        let never = self.env.plan.merchants.iter().any(|(spec, _, registered)| {
            spec.id == merchant.id && *registered == Registered::Never
        });
        if never {
            return false;
        }
        if known && self.env.rng.chance(200) {
            self.env.shadow.strangers.insert(merchant.id.clone());
            self.env.registry.remove(&merchant.id);
            return true;
        }
        let spec = Arc::make_mut(&mut merchant);
        let former = spec.limits.clone();
        spec.limits = limits(&mut self.env.rng);
        if self.env.rng.chance(600) {
            spec.limits.ordering = former.ordering;
        }
        if self.env.rng.chance(200) {
            spec.retry.deadline = Duration::from_secs(self.env.rng.range(5, 86_400));
        }
        self.env.trace(|| format!("registered {merchant:?}"));
        self.env.shadow.registered(&merchant);
        self.env.registry.put(merchant);
        true
    }

    fn operate(&mut self) -> bool {
        let merchant = self.any_merchant().id.clone();
        let kind = self.env.rng.below(13);
        if kind < 3 {
            self.env.registry.changes.push((merchant, Change::Resume));
            return true;
        }
        if kind < 6 {
            let hold = self.env.rng.chance(500).then(|| self.hold());
            self.env.registry.hold(merchant, hold);
            return true;
        }
        if kind < 9 {
            return self.cancel();
        }
        if kind < 12 {
            let parked: Vec<Seq> = self.env.shadow.parked.keys().copied().collect();
            let Some(at) = self.process().filter(|_| !parked.is_empty()) else {
                return false;
            };
            let seq = *self.env.rng.pick(&parked);
            return self.release(at, seq);
        }
        let at = self.process();
        let Some(owner) = at.and_then(|at| self.processes[at].owner()) else {
            return false;
        };
        self.env
            .trace(|| format!("an operator ends the orders of {merchant}"));
        owner.inbox.push_back(Input::Condemn(merchant));
        true
    }

    /// A person resolves what may have arrived.
    fn release(&mut self, at: usize, seq: Seq) -> bool {
        let Some(owner) = self.processes[at].owner() else {
            return false;
        };
        owner.inbox.push_back(Input::Release(seq));
        true
    }

    fn hold(&self) -> Hold {
        Hold {
            state: HoldState::Paused,
            scope: LimitScope::Merchant,
            reason: "a fire".into(),
            actor: "ann".into(),
            at: self.env.now().wall,
        }
    }

    /// Somebody wants a recent order back.
    fn cancel(&mut self) -> bool {
        let open: Vec<Seq> = self.env.shadow.open.iter().copied().collect();
        let Some(at) = self.process().filter(|_| !open.is_empty()) else {
            return false;
        };
        let seq = *self.env.rng.pick(&open);
        let Ok(order) = self.env.shadow.truth[&seq].order.clone() else {
            return false;
        };
        let Some(owner) = self.processes[at].owner() else {
            return false;
        };
        let envelope = &order.envelope;
        let cancel = Input::Cancel(envelope.merchant.clone(), envelope.id.clone());
        owner.inbox.push_back(cancel);
        true
    }

    fn land_late(&mut self) -> bool {
        let env = &mut self.env;
        if env.broker.late.is_empty() {
            return false;
        }
        let at = env.rng.index(env.broker.late.len());
        let late = env.broker.late.swap_remove(at);
        env.trace(|| format!("arrives late: {late:?}"));
        match late {
            Late::Write(write) => {
                store(env, *write);
            }
            Late::Claim { expected, claim } => {
                env.broker.claim(expected, claim, 0);
            }
            Late::Purge { merchant, below } => {
                let gone = env.broker.purge(Some(&merchant), below);
                env.shadow.purged(&gone);
            }
        }
        true
    }

    fn compact(&mut self) -> bool {
        let env = &mut self.env;
        if env.rng.chance(300) {
            env.broker.clean();
            return true;
        }
        let Some((_, _, mark)) = env.broker.mark_before(Seq::MAX) else {
            return false;
        };
        // Other partitions may be behind.
        let below = mark
            .low_water
            .min(mark.seen)
            .saturating_sub(env.rng.skewed(30));
        let gone = env.broker.purge(None, below);
        env.trace(|| format!("purged below {below}: {gone:?}"));
        env.shadow.purged(&gone);
        true
    }
}

mod drain;
