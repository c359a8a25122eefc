//! What happened, and whether it may happen.

use std::collections::{BTreeMap, HashMap};

use expediter_fleet::merchants::Arrival;
use expediter_harness::{Claimed, Outcomes, Recorded, Verdict};
use expediter_types::{DeadReason, OutcomeKind, Partition};

use crate::fault::{Event, Fault, Target};
use crate::report::Report;
use crate::run::Options;
use crate::shop::{CONCURRENCY, Limit};
use crate::stage::Stage;

/// One second, in microseconds.
const SECOND: u64 = 1_000_000;
/// An attempt that was answered counts as in flight until its outcome stands in OUTCOMES.
const RECORDED: u64 = 2 * SECOND;
/// One that was not answered, until its timeout.
const UNANSWERED: u64 = 6 * SECOND;
/// What a dying process has written may still arrive.
const ON_THE_WIRE: u64 = SECOND / 2;
/// Nodes notice that the brokers are back, and record what they could not.
const AFTER_BROKERS: u64 = 12 * SECOND;
/// A broker's fault so near makes a take-over another one.
const NEAR: u64 = 10 * SECOND;
/// An arrival so late makes the next one look early, in seconds: the machine is full.
const LATE: f64 = 0.1;

/// All that the judge looks at.
#[derive(Debug)]
pub struct Evidence {
    verdict: Verdict,
    arrivals: Vec<Arrival>,
    claims: Vec<Claimed>,
    /// When each partition's orders ended, ascending, in microseconds since 1970.
    ends: HashMap<Partition, Vec<u64>>,
    parked: Vec<Parked>,
    events: Vec<Event>,
    partitions: HashMap<String, Partition>,
    limits: HashMap<String, Limit>,
    most_in_flight: BTreeMap<String, u32>,
    complaints: Vec<String>,
}

/// An order that waits for a person.
#[derive(Debug)]
struct Parked {
    merchant: String,
    id: String,
    created_us: u64,
    ended_us: u64,
}

impl Evidence {
    /// Of a stage that is quiet.
    #[must_use]
    pub fn collect(stage: &Stage, outcomes: Outcomes, complaints: Vec<String>) -> Self {
        let oracle = stage.world.oracle().after_crashes();
        let stats = stage.world.fleet.stats();
        let partitions = stage.shop.partitions();
        let mut ends = HashMap::<Partition, Vec<u64>>::new();
        let mut parked = Vec::new();
        for Recorded { outcome, .. } in outcomes.all() {
            let merchant = outcome.envelope.merchant.to_string();
            let ended_us = outcome.at * 1_000;
            if let Some(partition) = partitions.get(&merchant) {
                ends.entry(*partition).or_default().push(ended_us);
            }
            if outcome.kind == OutcomeKind::DeadLettered(DeadReason::Ambiguous) {
                parked.push(Parked {
                    merchant,
                    id: outcome.envelope.id.to_string(),
                    created_us: outcome.envelope.created * 1_000,
                    ended_us,
                });
            }
        }
        ends.values_mut().for_each(|times| times.sort_unstable());
        Self {
            ends,
            parked,
            verdict: oracle.examine(&outcomes),
            arrivals: stage.world.fleet.all_arrivals(),
            claims: outcomes.claims().to_vec(),
            events: stage.events().to_vec(),
            partitions,
            limits: stage.shop.limits(),
            most_in_flight: stats
                .merchants
                .into_iter()
                .map(|(id, stats)| (id, stats.max_in_flight))
                .collect(),
            complaints,
        }
    }

    /// Judges it.
    #[must_use]
    pub fn judge(self, options: &Options) -> Report {
        let mut violations = self.verdict.wrong.clone();
        violations.extend(self.complaints.iter().cloned());
        let (duplicated, unexplained) = self.duplicates(&mut violations);
        let limits_broken = self.limits(&mut violations);
        let parked_unexplained = self.parked(&mut violations);
        let takeovers = self.takeovers();
        let longest = |near: bool| {
            let of_kind = takeovers
                .iter()
                .filter(|(_, _, at_fault)| *at_fault == near);
            of_kind.map(|(_, took, _)| *took).max_by(f64::total_cmp)
        };
        let (calm, beside) = (longest(false), longest(true));
        if let (Some(took), Some(within)) = (calm, options.takeover_within)
            && took > within
        {
            violations.push(format!(
                "a take-over took {took:.1} s, {within} s are allowed"
            ));
        }
        let mut times: Vec<f64> = takeovers.iter().map(|(_, took, _)| *took).collect();
        times.sort_by(f64::total_cmp);
        let mut kinds = BTreeMap::new();
        for event in &self.events {
            *kinds.entry(event.fault.name()).or_default() += 1;
        }
        let kills = self.events.iter().filter(|event| event.fault.is_kill());
        Report {
            faults: self.events.len(),
            kill9: kills.count(),
            kinds,
            orders: self.verdict.accepted,
            lost: self.verdict.lost,
            out_of_order: self.verdict.out_of_order,
            duplicated,
            duplicated_unexplained: unexplained,
            parked: self.verdict.ambiguous,
            parked_unexplained,
            limits_broken,
            max_takeover_s: calm,
            max_takeover_broker_fault_s: beside,
            median_takeover_s: times.get(times.len() / 2).copied(),
            takeovers: times.len(),
            takeover_times: takeovers,
            seed: options.seed,
            brokers: options.brokers,
            violations,
        }
    }

    /// Who had the partition then.
    fn owner(&self, partition: Partition, at_us: u64) -> Option<&str> {
        let until = self.claims.iter().take_while(|claim| claim.at_us <= at_us);
        let last = until.filter(|claim| claim.partition == partition).last()?;
        last.held.then(|| last.node.as_str())
    }

    fn duplicates(&self, violations: &mut Vec<String>) -> (usize, usize) {
        let mut taken = HashMap::<(&str, &str), Vec<&Arrival>>::new();
        for arrival in self.arrivals.iter().filter(|arrival| arrival.is_taken()) {
            let order = (arrival.merchant.as_str(), arrival.order_id.as_str());
            taken.entry(order).or_default().push(arrival);
        }
        let (mut duplicated, mut unexplained) = (0, 0);
        for ((merchant, id), mut arrivals) in taken {
            if arrivals.len() < 2 {
                continue;
            }
            duplicated += 1;
            arrivals.sort_by_key(|arrival| arrival.at_us);
            let repeated = &arrivals[..arrivals.len() - 1];
            if let Some(arrival) = repeated.iter().find(|arrival| !self.is_explained(arrival)) {
                unexplained += 1;
                violations.push(format!(
                    "{merchant} took {id} again without a fault: {arrivals:?}, the first \
                     unexplained at {} us, then owned by {:?}",
                    arrival.at_us,
                    self.partitions
                        .get(merchant)
                        .and_then(|partition| self.owner(*partition, arrival.at_us))
                ));
            }
        }
        (duplicated, unexplained)
    }

    /// What is parked was in flight when something broke; or it never left, because its owner or the
    /// brokers stopped when it was about to.
    fn parked(&self, violations: &mut Vec<String>) -> usize {
        let mut newest = HashMap::<(&str, &str), &Arrival>::new();
        for arrival in &self.arrivals {
            let order = (arrival.merchant.as_str(), arrival.order_id.as_str());
            let known = newest.entry(order).or_insert(arrival);
            if known.at_us < arrival.at_us {
                *known = arrival;
            }
        }
        let mut unexplained = 0;
        for parked in &self.parked {
            let Parked {
                merchant,
                id,
                created_us,
                ended_us,
            } = parked;
            let explained = match newest.get(&(merchant, id)) {
                Some(arrival) => self.is_explained(arrival),
                None => self.events.iter().any(|event| {
                    !matches!(event.fault, Fault::Merchants(..) | Fault::Registration)
                        && event.begun_us <= *ended_us
                        && event.ended_us + AFTER_BROKERS >= *created_us
                }),
            };
            if !explained {
                unexplained += 1;
                let arrival = newest.get(&(merchant, id));
                violations.push(format!(
                    "{id} of {merchant} is parked without a fault: {parked:?}, {arrival:?}"
                ));
            }
        }
        unexplained
    }

    /// From when on the owner of a partition had put the brokers' fault behind it.
    fn behind(&self, merchant: &str, ended_us: u64) -> u64 {
        let partition = self.partitions.get(merchant);
        let ends = partition.and_then(|partition| self.ends.get(partition));
        let next = ends.and_then(|ends| {
            let after = ends.partition_point(|at| *at <= ended_us);
            ends.get(after)
        });
        let latest = ended_us + AFTER_BROKERS;
        next.map_or(latest, |at| (at + RECORDED).min(latest))
    }

    /// The attempt was in flight when something broke.
    fn is_explained(&self, arrival: &Arrival) -> bool {
        let Arrival {
            merchant, at_us, ..
        } = arrival;
        let unfinished = match arrival.answered {
            Some(_) => RECORDED,
            None => UNANSWERED,
        };
        let within = |from: u64, to: u64| (from.saturating_sub(unfinished)..=to).contains(at_us);
        self.events
            .iter()
            .any(|event| match (&event.fault, &event.target) {
                (fault, _) if fault.is_of_brokers() => {
                    within(event.begun_us, self.behind(merchant, event.ended_us))
                }
                (Fault::KillNode { .. } | Fault::PauseNode(_), Target::Node(node)) => {
                    let partition = self.partitions.get(merchant);
                    let owner = partition.and_then(|p| self.owner(*p, event.begun_us));
                    within(event.begun_us, event.begun_us + ON_THE_WIRE)
                        && owner.is_some_and(|owner| owner == node)
                }
                // A planned hand-over ends attempts that do not end by themselves.
                (Fault::RestartNode | Fault::RemoveNode | Fault::AddNode, _) => {
                    arrival.answered.is_none()
                        && within(event.begun_us, event.ended_us + UNANSWERED)
                }
                // It took the order and did not say so.
                (Fault::Merchants(..), Target::Merchants(hit)) => {
                    arrival.answered.is_none()
                        && hit.iter().any(|id| id == merchant)
                        && within(event.begun_us, event.ended_us + SECOND)
                }
                _ => false,
            })
    }

    /// No merchant gets more than its rate and burst allow in any window, nor more at the same time.
    fn limits(&self, violations: &mut Vec<String>) -> usize {
        let mut times = HashMap::<&str, Vec<u64>>::new();
        for arrival in &self.arrivals {
            if self.limits.contains_key(&arrival.merchant) {
                times
                    .entry(&arrival.merchant)
                    .or_default()
                    .push(arrival.at_us);
            }
        }
        let mut broken = 0;
        for (merchant, mut times) in times {
            let limit = self.limits[merchant];
            times.sort_unstable();
            // How much more than the rate arrived since the window that had most of it began.
            let (mut above, mut most, mut before) = (0.0_f64, 0.0_f64, None);
            for at in times {
                let passed = before.map_or(0, |before| at - before) as f64 / SECOND as f64;
                above = (above - passed * limit.rate).max(0.0) + 1.0;
                most = most.max(above);
                before = Some(at);
            }
            if most > limit.burst + limit.rate * LATE {
                broken += 1;
                violations.push(format!(
                    "{merchant} got {most:.1} more than {}/s at once, {} are allowed",
                    limit.rate, limit.burst
                ));
            }
        }
        for (merchant, most) in &self.most_in_flight {
            if *most > CONCURRENCY {
                broken += 1;
                violations.push(format!(
                    "{merchant} had {most} orders at the same time, {CONCURRENCY} are allowed"
                ));
            }
        }
        broken
    }

    /// For each partition of a killed node the seconds until another owner's first request, and
    /// whether a fault of a broker was near.
    fn takeovers(&self) -> Vec<(f64, f64, bool)> {
        let mut arrivals = HashMap::<Partition, Vec<u64>>::new();
        for arrival in &self.arrivals {
            if let Some(partition) = self.partitions.get(&arrival.merchant) {
                arrivals.entry(*partition).or_default().push(arrival.at_us);
            }
        }
        for times in arrivals.values_mut() {
            times.sort_unstable();
        }
        let first_fault = self.events.first().map_or(0, |event| event.begun_us);
        let mut takeovers = Vec::new();
        for event in &self.events {
            let (Fault::KillNode { .. }, Target::Node(node)) = (&event.fault, &event.target) else {
                continue;
            };
            for (partition, times) in &arrivals {
                if self.owner(*partition, event.begun_us) != Some(node) {
                    continue;
                }
                let after = |claim: &&Claimed| {
                    claim.partition == *partition && claim.held && claim.at_us > event.begun_us
                };
                let heir = self.claims.iter().find(after);
                // Its own next process may be back before others miss it.
                let Some(claim) = heir.filter(|claim| claim.node.as_str() != node) else {
                    continue;
                };
                let first = times.partition_point(|at| *at <= claim.at_us);
                let Some(arrived) = times.get(first) else {
                    continue;
                };
                let of_heir = |other: &Event| {
                    other.target == Target::Node(claim.node.to_string())
                        && (event.begun_us + 1..=*arrived).contains(&other.begun_us)
                };
                // The heir was hit too: that is two take-overs, of which the second is measured.
                if self.events.iter().any(of_heir) {
                    continue;
                }
                let near = self.events.iter().any(|other| {
                    other.fault.is_of_brokers()
                        && other.begun_us < arrived + NEAR
                        && other.ended_us + NEAR > event.begun_us
                });
                let took = (arrived - event.begun_us) as f64 / SECOND as f64;
                let since = event.begun_us.saturating_sub(first_fault) as f64 / SECOND as f64;
                takeovers.push((since, took, near));
            }
        }
        takeovers
    }
}
