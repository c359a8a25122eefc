//! The end of a run: no more faults, and nothing may be left.

use super::*;

impl World {
    /// First one merchant stays hung and delays nobody else; then all are well.
    pub(super) fn drain(&mut self) {
        self.env.trace(|| "the faults end".into());
        self.calm();
        let hung = self.env.rng.pick(&self.env.plan.merchants).0.id.clone();
        for (id, behaviour) in &mut self.env.fleet.behaviours {
            *behaviour = healthy();
            behaviour.hangs = if *id == hung { 1_000 } else { 0 };
        }
        let others = |world: &Self| {
            let open = world.env.shadow.open.iter();
            open.filter(|seq| world.env.shadow.truth[seq].merchant != hung)
                .count()
        };
        self.settle("ISO-1", OTHERS_WITHIN, |world| others(world) == 0);
        for behaviour in self.env.fleet.behaviours.values_mut() {
            *behaviour = healthy();
        }
        for attempt in &mut self.env.fleet.wire {
            attempt.hangs = false;
        }
        self.settle("ORD-1", DRAINS_WITHIN, |world| {
            world.env.shadow.open.is_empty()
        });
        // The last marks, removals and readings.
        let until = self.env.mono + 30_000_000;
        self.settle("ORD-1", DRAINS_WITHIN, |world| world.env.mono > until);
        self.env.shadow.all_over();
        for process in &mut self.processes {
            process.judge_end(&self.env);
        }
    }

    fn calm(&mut self) {
        let env = &mut self.env;
        env.plan.undecided = [0; 3];
        env.plan.panics = 0;
        env.plan.reads_again = false;
        env.shadow.cured();
        while !self.env.broker.late.is_empty() {
            self.land_late();
        }
        for (spec, _, registered) in self.env.plan.merchants.clone() {
            let known = self.env.registry.merchants.contains_key(&spec.id);
            if !known && registered != Registered::Never {
                self.env.shadow.registered(&spec);
                self.env.registry.put(spec);
            }
        }
        for (spec, ..) in &self.env.plan.merchants {
            self.env.registry.hold(spec.id.clone(), None);
        }
        for process in &mut self.processes {
            process.paused = false;
            if !process.up {
                process.start(&self.env);
            }
        }
    }

    /// Everything is done that can be done, then time passes to the next moment that matters.
    fn settle(&mut self, promise: &str, within: u64, done: impl Fn(&Self) -> bool) {
        let until = self.env.mono + within;
        let (mut looked, mut resolved) = (self.env.mono, 0);
        while !done(self) {
            if self.env.mono > until {
                let open: Vec<_> = self.env.shadow.open.iter().take(5).collect();
                panic!("{promise}: orders {open:?} are not over after {within}us");
            }
            self.work_off();
            if self.env.mono >= looked + 60_000_000 {
                looked = self.env.mono;
                let all: Vec<_> = self
                    .env
                    .plan
                    .merchants
                    .iter()
                    .map(|m| m.0.id.clone())
                    .collect();
                let resumed = all.into_iter().map(|id| (id, Change::Resume));
                self.env.registry.changes.extend(resumed);
            }
            // Once is not enough: an owner may have died before that was in a mark.
            if self.env.mono >= resolved + 5_000_000 {
                resolved = self.env.mono;
                let parked: Vec<Seq> = self.env.shadow.parked.keys().copied().collect();
                for at in 0..self.processes.len() {
                    for seq in &parked {
                        self.release(at, *seq);
                    }
                }
            }
            let next = self.next_moment();
            self.env.mono = next.clamp(self.env.mono + 1, self.env.mono + 1_000_000);
            self.pass(0);
        }
    }

    /// Until nobody has anything to do at this moment.
    fn work_off(&mut self) {
        const ALL: [Act; 9] = [
            Act::Store,
            Act::Partition,
            Act::Actor,
            Act::Write,
            Act::Read,
            Act::ReadTail,
            Act::Follow,
            Act::Claim,
            Act::Late,
        ];
        let mut rounds = 0;
        loop {
            let mut idle = true;
            for at in 0..self.processes.len() {
                for act in ALL {
                    idle &= !self.act_of(act, at);
                }
            }
            while self.answer() {
                idle = false;
            }
            if idle {
                return;
            }
            rounds += 1;
            if rounds > 100_000 {
                broken!("ISO-1", "the machines do not come to rest");
            }
        }
    }

    fn act_of(&mut self, act: Act, at: usize) -> bool {
        let may = act == Act::Claim && self.may_replace(at) && !self.is_owned();
        let (env, process) = (&mut self.env, &mut self.processes[at]);
        match act {
            Act::Store => process.store_step(env),
            Act::Partition => process.partition_step(env),
            Act::Actor => process.actor_step(env),
            Act::Write => process.write_step(env),
            Act::Read => process.read_step(env),
            Act::ReadTail => process.tail_step(env),
            Act::Follow => process.follow_step(env),
            Act::Claim => process.claim_step(env, may),
            Act::Late => !env.broker.late.is_empty() && self.land_late(),
            _ => false,
        }
    }

    /// Somebody works under the claim that stands, or is about to.
    fn is_owned(&self) -> bool {
        let standing = self.env.broker.standing();
        self.processes.iter().any(|process| match &process.stage {
            Stage::Working(owner) => owner.token == standing,
            Stage::Claimed { token, .. } | Stage::Releasing { token, .. } => *token == standing,
            Stage::Idle | Stage::Scanning | Stage::Scanned(_) => false,
        })
    }

    fn next_moment(&mut self) -> u64 {
        let mono = self.env.mono;
        let mut next = u64::MAX;
        for process in &mut self.processes {
            let Some(owner) = process.owner() else {
                continue;
            };
            next = next.min(owner.armed);
            next = owner
                .rebuilds
                .iter()
                .map(|(at, ..)| *at)
                .min()
                .unwrap_or(next)
                .min(next);
            next = owner
                .sending
                .iter()
                .map(|(_, at)| *at)
                .min()
                .unwrap_or(next)
                .min(next);
            let timers = owner.actors.values().filter_map(|actor| actor.timer);
            next = timers.min().unwrap_or(next).min(next);
        }
        let ends = self.env.fleet.wire.iter().map(crate::fleet::Attempt::ends);
        next.min(ends.min().unwrap_or(next)).max(mono + 1)
    }
}
