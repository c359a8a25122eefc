//! What is sent again, and how fast.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use expediter_nats::{Connection, Registry};
use expediter_types::{
    DeadReason, Idempotency, Merchant, MerchantId, Ordering, Priority, Rate, UnixMillis,
};

use super::Summary;
use crate::cli::Error;
use crate::cli::dead::{self, Next};
use crate::cli::deadletter::select::Letter;
use crate::cli::error::note;
use crate::cli::owners::Owners;
use crate::cli::text::now;

/// Owners are asked about so many orders at a time.
const ASKED: usize = 32;
/// Replayed orders that one merchant has at the same time, at most.
const AT_ONCE: u64 = 16;

const AGAIN: &str = "published again already";
const DOUBTFUL: &str = "the merchant may have it and would not know it again (one by its id, or \
    --reason-is ambiguous, is meant)";

/// Without those of which an owner knows a later generation: one that was published by hand, or by
/// a replay that died before it could record it.
pub(super) async fn not_again(
    connection: &Connection,
    letters: Vec<Letter>,
    summary: &mut Summary,
) -> Result<Vec<Letter>, Error> {
    let owners = Owners::of(connection).await?;
    let mut silent = HashSet::new();
    let mut again = Vec::with_capacity(letters.len());
    for asked in letters.chunks(ASKED) {
        let known = asked.iter().map(|letter| {
            let envelope = &letter.item.outcome.envelope;
            let partition = owners.partition(&envelope.merchant);
            let ask = !silent.contains(&partition);
            let owners = &owners;
            async move {
                match ask {
                    true => owners.order(&envelope.merchant, &envelope.id).await,
                    false => Err(Error::failed("nobody answers")),
                }
                .map_err(|_| partition)
            }
        });
        let known = futures::future::join_all(known).await;
        for (letter, known) in asked.iter().zip(known) {
            again.push(match known {
                Ok(status) => status.seq.is_some_and(|seq| seq > letter.item.outcome.seq),
                Err(partition) => {
                    silent.insert(partition);
                    false
                }
            });
        }
    }
    if !silent.is_empty() {
        note(
            "no node could be asked about some orders; one that was published again by hand ends as \
             a duplicate, and is not sent twice",
        );
    }
    let mut left = Vec::new();
    for (letter, again) in letters.into_iter().zip(again) {
        match again {
            true => summary.leave_out(AGAIN),
            false => left.push(letter),
        }
    }
    Ok(left)
}

pub(super) type Counts = BTreeMap<(MerchantId, &'static str), usize>;

/// What can be sent again, how much of each kind, and the pace that no merchant minds.
pub(super) struct Plan {
    /// For all, instead of the one they had.
    deadline: Option<UnixMillis>,
    priority: Priority,
    /// Also those that a merchant may have, and would not know again.
    doubtful: bool,
    pub(super) letters: Vec<(Letter, Next)>,
    pub(super) counts: Counts,
    pub(super) pace: Rate,
    /// How many orders each merchant may have unfinished.
    pub(super) most: BTreeMap<MerchantId, u64>,
}

impl Plan {
    pub(super) fn new(
        deadline: Option<UnixMillis>,
        priority: Priority,
        doubtful: bool,
    ) -> Result<Self, Error> {
        let most = Rate::new(10, Duration::from_secs(1));
        Ok(Self {
            deadline,
            priority,
            doubtful,
            letters: Vec::new(),
            counts: Counts::new(),
            most: BTreeMap::new(),
            pace: most.ok_or_else(|| Error::failed("10/s is a rate"))?,
        })
    }

    pub(super) async fn fill(
        &mut self,
        connection: &Connection,
        letters: Vec<Letter>,
        limit: Option<usize>,
        summary: &mut Summary,
    ) -> Result<(), Error> {
        let registry = Registry::new(connection);
        let mut known: HashMap<MerchantId, Option<Merchant>> = HashMap::new();
        for letter in letters {
            let envelope = &letter.item.outcome.envelope;
            let id = &envelope.merchant;
            if !known.contains_key(id) {
                let entry = registry.get(id).await?;
                known.insert(id.clone(), entry.map(|entry| entry.registration.merchant));
            }
            let Some(merchant) = known.get(id).and_then(Option::as_ref) else {
                summary.leave_out("the merchant is not registered");
                continue;
            };
            if is_doubtful(&letter, merchant, now()) && !self.doubtful {
                summary.leave_out(DOUBTFUL);
                continue;
            }
            let next = Next {
                deadline: Some(self.deadline.or(envelope.deadline).unwrap_or_else(|| {
                    let usual = merchant.retry.deadline.as_millis();
                    let usual = u64::try_from(usual).unwrap_or(u64::MAX);
                    envelope.created.saturating_add(usual)
                })),
                priority: Some(self.priority),
            };
            if let Err(why) = dead::next_generation(&letter.item, next, now()) {
                summary.refused(why);
                continue;
            }
            if limit.is_some_and(|limit| self.letters.len() >= limit) {
                summary.leave_out("above --limit");
                continue;
            }
            if !self.most.contains_key(id) {
                // In order each waits for all before it.
                let most = match merchant.limits.ordering {
                    Ordering::None => u64::from(merchant.limits.concurrency).clamp(1, AT_ONCE),
                    Ordering::Order | Ordering::Merchant => 1,
                };
                self.most.insert(id.clone(), most);
                let shared = registry.scopes_of(merchant).await?;
                let shared = shared
                    .iter()
                    .flat_map(|entry| &entry.registration.scope.rates);
                self.slow_down(half_of(merchant.limits.rates.iter().chain(shared)));
            }
            *self
                .counts
                .entry((id.clone(), letter.reason.as_str()))
                .or_default() += 1;
            self.letters.push((letter, next));
        }
        Ok(())
    }

    fn slow_down(&mut self, to: Option<Rate>) {
        if let Some(rate) = to.filter(|rate| rate.interval_ns() > self.pace.interval_ns()) {
            self.pace = rate;
        }
    }
}

/// The merchant may have it and would not know it again: it cannot tell repeats, or could only for a
/// while. With `lookup` it is asked before.
fn is_doubtful(letter: &Letter, merchant: &Merchant, now: UnixMillis) -> bool {
    if letter.reason != DeadReason::Ambiguous {
        return false;
    }
    let adapter = &merchant.adapter;
    match adapter.idempotency {
        Idempotency::None => true,
        Idempotency::Lookup => false,
        Idempotency::Native | Idempotency::UniqueRef => {
            let outcome = &letter.item.outcome;
            let first = outcome.attempts.first().map(|attempt| attempt.at);
            let window = u64::try_from(adapter.idempotency_window.as_millis()).unwrap_or(u64::MAX);
            first
                .unwrap_or(outcome.envelope.created)
                .saturating_add(window)
                <= now
        }
    }
}

/// Half of what these limits allow in the long run; `None`: no limit.
fn half_of<'a>(rates: impl Iterator<Item = &'a Rate>) -> Option<Rate> {
    let slowest = rates.max_by_key(|rate| rate.interval_ns())?;
    let (count, period) = (slowest.count(), slowest.period());
    Rate::new(count, period * 2).or_else(|| Rate::new((count / 2).max(1), period))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_half_of_the_limit_that_takes_longest() {
        let mut merchant = Merchant::to(MerchantId::new("luigis").unwrap(), "https://a.example/");
        let mut half = |rates: &[&str]| {
            merchant.limits.rates = rates.iter().map(|rate| rate.parse().unwrap()).collect();
            half_of(merchant.limits.rates.iter()).map(|rate| rate.to_string())
        };
        assert_eq!(half(&[]), None);
        assert_eq!(half(&["3/s"]).as_deref(), Some("3/2s"));
        assert_eq!(half(&["20/s", "900/15min"]).as_deref(), Some("900/30min"));
        // There is no period of two days.
        assert_eq!(half(&["1001/24h"]).as_deref(), Some("500/d"));
    }
}
