//! The judge: what was acknowledged, against what merchants saw and what OUTCOMES says.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::{Result, bail};
use expediter_fleet::merchants::Arrival;
use expediter_types::{DeadReason, Idempotency, Merchant, Ordering, OutcomeKind};
use xxhash_rust::xxh3::xxh3_64;

use crate::{Accepted, Outcomes, Recorded, World};

/// So many violations are shown.
const SHOWN: usize = 20;

/// Judges a [`World`] that is settled. Without more, every order has to be delivered, once.
#[derive(Debug)]
pub struct Oracle<'a> {
    world: &'a World,
    merchants: HashMap<String, Merchant>,
    crashes: bool,
    allowed: HashMap<String, Vec<OutcomeKind>>,
    repeats: HashSet<String>,
}

/// What the judge counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Sequences that were acknowledged.
    pub accepted: usize,
    /// Those without an outcome, or that are called delivered and were not.
    pub lost: usize,
    /// Orders that overtook the one before.
    pub out_of_order: usize,
    pub delivered: usize,
    /// Dead letters `ambiguous`.
    pub ambiguous: usize,
    /// Other outcomes.
    pub others: usize,
    /// Orders that a merchant took more than once.
    pub repeated: usize,
    /// What must not be, in words.
    pub wrong: Vec<String>,
}

/// One order's arrivals, by their place among the merchant's.
type Places<'a> = BTreeMap<usize, &'a Arrival>;

impl<'a> Oracle<'a> {
    pub(crate) fn new(world: &'a World, merchants: HashMap<String, Merchant>) -> Self {
        Self {
            world,
            merchants,
            crashes: false,
            allowed: HashMap::new(),
            repeats: HashSet::new(),
        }
    }

    /// Processes died or were cut off: a merchant with native idempotency may get an order again
    /// under the same key, and an order of another merchant may be parked as ambiguous.
    #[must_use]
    pub fn after_crashes(mut self) -> Self {
        self.crashes = true;
        self
    }

    /// This merchant's orders may end so, besides being delivered.
    #[must_use]
    pub fn allow(mut self, merchant: &str, kind: OutcomeKind) -> Self {
        self.allowed
            .entry(merchant.to_owned())
            .or_default()
            .push(kind);
        self
    }

    /// This merchant gives reason to repeat what it has taken, as by not answering.
    #[must_use]
    pub fn allow_repeats(mut self, merchant: &str) -> Self {
        self.repeats.insert(merchant.to_owned());
        self
    }

    /// Compares everything.
    ///
    /// # Errors
    /// Something was lost, repeated, reordered or made up: tells what.
    pub async fn judge(&self) -> Result<Verdict> {
        let outcomes = Outcomes::read(&self.world.connection).await?;
        self.judge_with(&outcomes)
    }

    /// The same with outcomes that were read.
    ///
    /// # Errors
    /// As [`Oracle::judge`].
    pub fn judge_with(&self, outcomes: &Outcomes) -> Result<Verdict> {
        let verdict = self.examine(outcomes);
        let wrong = &verdict.wrong;
        if wrong.is_empty() {
            return Ok(verdict);
        }
        let shown = wrong[..wrong.len().min(SHOWN)].join("\n");
        bail!("{} violations:\n{shown}", wrong.len())
    }

    /// The same, whatever it finds.
    #[must_use]
    pub fn examine(&self, outcomes: &Outcomes) -> Verdict {
        let accepted = self.world.ledger.accepted();
        let arrivals = self.world.fleet.all_arrivals();
        let mut court = Court {
            oracle: self,
            outcomes,
            verdict: Verdict {
                accepted: accepted.len(),
                wrong: outcomes.wrong().to_vec(),
                ..Verdict::default()
            },
            orders: HashMap::new(),
        };
        for (place, arrival) in arrivals.iter().enumerate() {
            court.arrival(place, arrival);
        }
        court.repeats();
        for order in &accepted {
            court.accepted(order);
        }
        for Accepted { id, seq, .. } in self.world.ledger.overwritten() {
            court.verdict.lost += 1;
            court.wrong(format!(
                "{id} was acknowledged as {seq}, and then another one was"
            ));
        }
        court.outcomes(&accepted);
        court.unanswered(&accepted);
        court.order(&accepted);
        court.verdict
    }
}

struct Court<'a> {
    oracle: &'a Oracle<'a>,
    outcomes: &'a Outcomes,
    verdict: Verdict,
    orders: HashMap<(&'a str, &'a str), Places<'a>>,
}

impl<'a> Court<'a> {
    fn wrong(&mut self, text: String) {
        self.verdict.wrong.push(text);
    }

    fn idempotency(&self, merchant: &str) -> Idempotency {
        let merchant = self.oracle.merchants.get(merchant);
        merchant.map_or(Idempotency::Native, |merchant| merchant.adapter.idempotency)
    }

    fn arrivals<'b>(&'b self, merchant: &'b str, id: &'b str) -> Option<&'b Places<'b>> {
        self.orders.get(&(merchant, id))
    }

    fn arrival(&mut self, place: usize, arrival: &'a Arrival) {
        let Arrival {
            merchant,
            order_id: id,
            body_hash,
            ..
        } = arrival;
        if !self.oracle.world.ledger.was_sent(merchant, id, *body_hash) {
            self.wrong(format!(
                "{merchant} got {id}, which nobody published with this body"
            ));
        }
        let key = match self.idempotency(merchant) {
            Idempotency::Native => Some(format!("{merchant}/{id}")),
            Idempotency::UniqueRef | Idempotency::Lookup | Idempotency::None => None,
        };
        if arrival.idempotency_key != key {
            let got = &arrival.idempotency_key;
            self.wrong(format!(
                "{merchant} got {id} with the idempotency key {got:?}"
            ));
        }
        self.orders
            .entry((merchant, id))
            .or_default()
            .insert(place, arrival);
    }

    fn repeats(&mut self) {
        for ((merchant, id), places) in &self.orders {
            let taken = places.values().filter(|arrival| arrival.is_taken()).count();
            if taken > 1 {
                self.verdict.repeated += 1;
            }
            if self.idempotency(merchant) == Idempotency::None {
                // Once it may have been received it must not come again.
                let last = places.len() - 1;
                let mut earlier = places.values().take(last);
                if earlier.any(|arrival| arrival.is_taken() || arrival.answered.is_none()) {
                    let text = format!("{merchant} cannot tell repeats and got {id} again");
                    self.verdict
                        .wrong
                        .push(format!("{text}: {}", story(places)));
                }
            } else if taken > 1 && !self.oracle.crashes && !self.oracle.repeats.contains(*merchant)
            {
                let text = format!("{merchant} took {id} {taken} times without a crash");
                self.verdict
                    .wrong
                    .push(format!("{text}: {}", story(places)));
            }
        }
    }

    fn accepted(&mut self, order: &Accepted) {
        let Accepted {
            merchant, id, seq, ..
        } = order;
        let Some(recorded) = self.outcomes.of(*seq) else {
            self.verdict.lost += 1;
            self.wrong(format!("{id} ({seq}) has no outcome"));
            return;
        };
        let outcome = &recorded.outcome;
        let envelope = &outcome.envelope;
        let same = envelope.merchant.as_str() == merchant && envelope.id.as_str() == id;
        if !same || outcome.payload_hash != order.hash {
            self.wrong(format!(
                "the outcome of {id} ({seq}) is of another order: {outcome:?}"
            ));
        }
        if let Some((payload, _)) = &recorded.dead
            && xxh3_64(payload) != order.hash
        {
            self.wrong(format!(
                "the dead letter of {id} ({seq}) has another payload"
            ));
        }
        let places = self.arrivals(merchant, id);
        let any = |is: fn(&Arrival) -> bool| {
            places.is_some_and(|places| places.values().any(|arrival| is(arrival)))
        };
        let (taken, answered) = (any(Arrival::is_taken), any(Arrival::is_answered_2xx));
        let kind = outcome.kind;
        match kind {
            OutcomeKind::Delivered => self.verdict.delivered += 1,
            OutcomeKind::DeadLettered(DeadReason::Ambiguous) => self.verdict.ambiguous += 1,
            _ => self.verdict.others += 1,
        }
        let allowed = self
            .oracle
            .allowed
            .get(merchant)
            .is_some_and(|kinds| kinds.contains(&kind));
        match kind {
            OutcomeKind::Delivered if !answered => {
                self.verdict.lost += 1;
                self.wrong(format!("{id} ({seq}) is called delivered and was not"));
            }
            OutcomeKind::Delivered | OutcomeKind::Duplicate => {}
            OutcomeKind::DeadLettered(DeadReason::Ambiguous) => {
                let parked = self.idempotency(merchant) == Idempotency::None && self.oracle.crashes;
                if !parked && !allowed {
                    self.wrong(format!("{id} ({seq}) of {merchant} is parked: {outcome:?}"));
                }
            }
            _ => {
                if taken {
                    self.wrong(format!("{id} ({seq}) was taken and is called {kind:?}"));
                }
                if !allowed {
                    self.wrong(format!("{id} ({seq}) ended as {outcome:?}"));
                }
            }
        }
    }

    /// Outcomes of sequences that were not acknowledged: only of publishes without an answer.
    fn outcomes(&mut self, accepted: &[Accepted]) {
        let known: HashSet<u64> = accepted.iter().map(|order| order.seq).collect();
        let ledger = &self.oracle.world.ledger;
        let mut closed = HashMap::<(&str, &str), usize>::new();
        for Recorded { outcome, .. } in self.outcomes.all() {
            if outcome.kind != OutcomeKind::Duplicate {
                let envelope = &outcome.envelope;
                let order = (envelope.merchant.as_str(), envelope.id.as_str());
                *closed.entry(order).or_default() += 1;
            }
        }
        for recorded in self.outcomes.all() {
            let outcome = &recorded.outcome;
            let (merchant, id) = (
                outcome.envelope.merchant.as_str(),
                outcome.envelope.id.as_str(),
            );
            if !known.contains(&outcome.seq) && !ledger.was_sent(merchant, id, outcome.payload_hash)
            {
                self.wrong(format!("an outcome of what nobody published: {outcome:?}"));
            }
            if outcome.kind == OutcomeKind::Duplicate && closed.get(&(merchant, id)) != Some(&1) {
                self.wrong(format!("{id} is only a repeat, of nothing: {outcome:?}"));
            }
        }
    }

    /// Whatever a merchant took has an outcome, also where its publish got no answer.
    fn unanswered(&mut self, accepted: &[Accepted]) {
        let name = |merchant: &str, id: &str| (merchant.to_owned(), id.to_owned());
        let mut known: HashSet<_> = accepted.iter().map(|o| name(&o.merchant, &o.id)).collect();
        known.extend(self.outcomes.all().map(|recorded| {
            let envelope = &recorded.outcome.envelope;
            name(envelope.merchant.as_str(), envelope.id.as_str())
        }));
        let taken = self.orders.iter().filter(|((merchant, id), places)| {
            !known.contains(&name(merchant, id)) && places.values().any(|a| a.is_taken())
        });
        let wrong =
            taken.map(|((merchant, id), _)| format!("{merchant} took {id}, which has no outcome"));
        let wrong: Vec<String> = wrong.collect();
        self.verdict.wrong.extend(wrong);
    }

    /// What shares a key goes in publish order, the next one after the one before is done.
    fn order(&mut self, accepted: &[Accepted]) {
        // By merchant and key: sequence, first arrival, and when it was first taken.
        let mut newest = HashMap::<(&str, Option<&str>), (&Accepted, usize, Option<usize>)>::new();
        let mut wrong = Vec::new();
        for order in accepted {
            let merchant = self.oracle.merchants.get(&order.merchant);
            let ordering = merchant.map_or(Ordering::None, |merchant| merchant.limits.ordering);
            let key = match (ordering, &order.key) {
                (Ordering::None, _) | (Ordering::Order, None) => continue,
                (Ordering::Order, Some(key)) => Some(key.as_str()),
                (Ordering::Merchant, _) => None,
            };
            let Some(places) = self.arrivals(&order.merchant, &order.id) else {
                continue;
            };
            let Some(first) = places.keys().next().copied() else {
                continue;
            };
            let taken = places
                .iter()
                .find(|(_, arrival)| arrival.is_taken())
                .map(|(at, _)| *at);
            let before = newest.insert((&order.merchant, key), (order, first, taken));
            let Some((before, first_before, taken_before)) = before else {
                continue;
            };
            if first < first_before || taken_before.is_some_and(|taken| first < taken) {
                let seen = |order: &Accepted| {
                    let places = self.arrivals(&order.merchant, &order.id);
                    places.map(story).unwrap_or_default()
                };
                wrong.push(format!(
                    "{} ({}) reached {} before {} ({}) was done: {} after {}",
                    order.id,
                    order.seq,
                    order.merchant,
                    before.id,
                    before.seq,
                    seen(order),
                    seen(before)
                ));
            }
        }
        self.verdict.out_of_order += wrong.len();
        self.verdict.wrong.append(&mut wrong);
    }
}

/// An order's arrivals for people: place, time in ms, attempt, what was decided and answered.
fn story(places: &Places<'_>) -> String {
    let arrivals = places.iter().map(|(place, arrival)| {
        let Arrival {
            at_us,
            attempt,
            decided,
            answered,
            ..
        } = arrival;
        let answered = answered.map_or("not answered".to_owned(), |status| status.to_string());
        format!(
            "[#{place} at {} ms, attempt {attempt}: {decided}, {answered}]",
            at_us / 1_000
        )
    });
    arrivals.collect()
}
