//! What the partition's machine wants done, and the steps of its merchants' actors.

use super::*;

impl Owner {
    pub(super) fn carry_out(&mut self, command: Command, node: &mut Node<'_>, env: &mut Env) {
        match command {
            Command::Activate {
                merchant,
                incarnation,
                limits_since,
                spent,
                closure,
                window,
            } => {
                let id = merchant.id.clone();
                let actor = Actor::new(
                    merchant,
                    incarnation,
                    limits_since,
                    spent,
                    closure,
                    window,
                    env,
                );
                self.actors.insert(incarnation, actor);
                self.current.insert(id, incarnation);
            }
            Command::Offer { merchant, offer } => self.offer(&merchant, offer, env),
            Command::Answer {
                merchant,
                seq,
                number,
                ended,
            } => {
                let step = Step::Answer { seq, number, ended };
                self.tell(&merchant, step, env);
            }
            Command::Change(merchant) => {
                let id = merchant.id.clone();
                self.tell(&id, Step::Change(merchant), env);
            }
            Command::Halt(merchant) => self.tell(&merchant, Step::Halt, env),
            Command::Withdraw { merchant, seq } => self.tell(&merchant, Step::Withdraw(seq), env),
            Command::Release(merchant) => {
                if let Some(incarnation) = self.current.remove(&merchant)
                    && let Some(actor) = self.actors.get_mut(&incarnation)
                {
                    actor.mailbox.push_back(Step::Release);
                }
            }
            Command::Launch {
                merchant,
                order,
                number,
                gives_up,
                look_first,
            } => {
                let ways = (gives_up, look_first);
                self.launch(merchant, order, number, ways, node, env);
            }
            Command::CloseScope { .. } => {}
            Command::Load(load) => node.store.push(Job::Load {
                token: self.token,
                load,
            }),
            Command::Confirm(merchant) => {
                let known = env.registry.merchants.contains_key(&merchant);
                let answer = env.rng.chance(800).then_some(known);
                self.inbox.push_back(Input::Confirmed(merchant, answer));
            }
            Command::Purge { merchant, below } => {
                env.broker.late.push(Late::Purge { merchant, below });
            }
            Command::Event(event) => {
                if let Event::Quarantined { merchant } = event {
                    env.shadow.quarantined.insert((self.token, merchant));
                }
            }
        }
    }

    fn offer(&mut self, merchant: &MerchantId, offer: Offer, env: &mut Env) {
        self.tell(merchant, Step::Offer(offer), env);
    }

    /// A closed mailbox counts as a panic.
    fn tell(&mut self, merchant: &MerchantId, step: Step, env: &mut Env) {
        let Some(incarnation) = self.current.get(merchant).copied() else {
            return;
        };
        match self.actors.get_mut(&incarnation) {
            Some(actor) => actor.mailbox.push_back(step),
            None => self.on_panicked(merchant.clone(), incarnation, None, env),
        }
    }

    pub(super) fn on_panicked(
        &mut self,
        merchant: MerchantId,
        incarnation: u64,
        answering: Option<Seq>,
        env: &mut Env,
    ) {
        if self.current.get(&merchant) == Some(&incarnation) {
            self.current.remove(&merchant);
        }
        let now = env.now();
        if let Some(wait) = self
            .machine
            .on_panicked(&merchant, incarnation, answering, now)
        {
            self.rebuilds
                .push((now.mono + wait * 1_000, merchant, incarnation));
        }
    }

    fn launch(
        &mut self,
        merchant: Arc<Merchant>,
        order: Arc<Order>,
        number: u32,
        (gives_up, look_first): (expediter_types::UnixMillis, bool),
        node: &mut Node<'_>,
        env: &mut Env,
    ) {
        let seq = order.seq;
        let now = env.now();
        let Some(begun) = self.begun.remove(&seq) else {
            broken!(
                "ORD-2",
                "order {seq} is launched and its machine did not start it"
            );
        };
        let mut say = |class| {
            let answer = Answer {
                class,
                status: None,
                retry_after: None,
                absent: false,
                detail: String::new(),
                excerpt: Default::default(),
                took: Default::default(),
            };
            self.inbox.push_back(Input::Answer {
                seq,
                number,
                answer,
            });
        };
        if env.plant == Some(Plant::AnswerEarly) && env.rng.chance(20) {
            return say(AttemptClass::Delivered);
        }
        if now.wall >= gives_up {
            return say(AttemptClass::Local);
        }
        if !node.fresh && env.plant != Some(Plant::IgnoreLease) {
            return say(AttemptClass::Local);
        }
        let mut absent = false;
        if look_first {
            let looked = env.fleet.look(&order, now.mono, &mut env.rng);
            env.trace(|| {
                format!(
                    "p{} asks {} for {seq}: {looked:?}",
                    node.process, merchant.id
                )
            });
            env.shadow.looked(&order, looked);
            match looked {
                Looked::Found => return say(AttemptClass::AlreadyDone),
                Looked::Undecided(class) => return say(class),
                Looked::Absent => absent = true,
            }
        }
        env.trace(|| {
            format!(
                "p{} sends {seq} to {} ({number})",
                node.process, merchant.id
            )
        });
        let twice = env.plant == Some(Plant::LaunchTwice) && env.rng.chance(20);
        for _ in 0..=u8::from(twice) {
            let launching = Launching {
                token: self.token,
                standing: env.broker.standing(),
                merchant: &merchant,
                order: &order,
                begun: &begun,
                now,
                in_flight: env.fleet.in_flight(self.token, &merchant.id),
                absent,
                on_wire: env.fleet.on_wire(&order, now.mono),
            };
            env.shadow
                .launch(&launching, |seq| self.machine.is_finishing(seq));
        }
        let attempt = Attempt {
            process: node.process,
            token: self.token,
            number,
            merchant,
            order,
            launched: now.mono,
            hangs: false,
            arrives: false,
            absent,
        };
        env.fleet.launch(attempt, &mut env.rng);
    }

    /// One actor takes a step; false when none has anything to do.
    pub(crate) fn actor_step(&mut self, node: &Node<'_>, env: &mut Env) -> bool {
        let busy = self.actors.values().filter(|actor| actor.is_busy(env.mono));
        let busy: Vec<u64> = busy.map(|actor| actor.incarnation).collect();
        if busy.is_empty() {
            return false;
        }
        let incarnation = *env.rng.pick(&busy);
        let used = self.places_used(env);
        let places = Places {
            used,
            limit: env.plan.capacity,
        };
        let Some(actor) = self.actors.get_mut(&incarnation) else {
            return false;
        };
        let merchant = actor.merchant.id.clone();
        env.trace(|| {
            format!(
                "p{} {merchant}#{incarnation} {:?}",
                node.process,
                actor.mailbox.front()
            )
        });
        let stepped = actor.step(env, places);
        for small in std::mem::take(&mut actor.asks) {
            self.waiting[usize::from(small)].push_back(incarnation);
        }
        match stepped {
            Stepped::Quiet => {}
            Stepped::Report(reported) => {
                env.trace(|| format!("p{} {merchant}#{incarnation} -> {reported:?}", node.process));
                self.in_reports += reported.begun.len();
                self.inbox.push_back(Input::Report(reported));
            }
            Stepped::Panicked { answering } => {
                env.trace(|| format!("p{} {merchant}#{incarnation} panics", node.process));
                self.actors.remove(&incarnation);
                self.inbox.push_back(Input::Panicked {
                    merchant,
                    incarnation,
                    answering,
                });
            }
            Stepped::Ended => {
                self.actors.remove(&incarnation);
            }
        }
        true
    }

    fn places_used(&self, env: &Env) -> usize {
        self.in_reports + self.begun.len() + env.fleet.of_owner(self.token)
    }

    /// Those who wait for a place are told, those who hold little first.
    pub(crate) fn wake_waiting(&mut self, _node: &Node<'_>, env: &Env) {
        let mut free = env.plan.capacity.saturating_sub(self.places_used(env));
        while free > 0 {
            let small = !self.waiting[1].is_empty();
            let Some(incarnation) = self.waiting[usize::from(small)].pop_front() else {
                return;
            };
            if let Some(actor) = self.actors.get_mut(&incarnation) {
                actor.mailbox.push_back(Step::Capacity { small });
                free -= 1;
            }
        }
    }
}
