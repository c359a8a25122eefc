//! The merchants' systems, and the requests that are on the wire to them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use expediter_core::Order;
use expediter_types::{Answer, AttemptClass, Idempotency, Merchant, MerchantId, Seq};

use crate::plan::Behaviour;
use crate::rng::Rng;

/// A request on the wire.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) process: usize,
    pub(crate) token: Seq,
    pub(crate) number: u32,
    pub(crate) merchant: Arc<Merchant>,
    pub(crate) order: Arc<Order>,
    /// By the monotonic clock.
    pub(crate) launched: u64,
    pub(crate) hangs: bool,
}

impl Attempt {
    /// The courier gives up then.
    pub(crate) fn ends(&self) -> u64 {
        self.launched + self.merchant.adapter.timeout.as_micros() as u64
    }
}

#[derive(Debug, Default)]
pub(crate) struct Fleet {
    pub(crate) wire: Vec<Attempt>,
    pub(crate) behaviours: BTreeMap<MerchantId, Behaviour>,
}

impl Fleet {
    pub(crate) fn launch(&mut self, mut attempt: Attempt, rng: &mut Rng) {
        let behaviour = &self.behaviours[&attempt.merchant.id];
        attempt.hangs = rng.chance(behaviour.hangs);
        self.wire.push(attempt);
    }

    /// Of one owner, to one merchant.
    pub(crate) fn in_flight(&self, token: Seq, merchant: &MerchantId) -> usize {
        let of = |a: &&Attempt| a.token == token && a.merchant.id == *merchant;
        self.wire.iter().filter(of).count()
    }

    pub(crate) fn of_owner(&self, token: Seq) -> usize {
        self.wire
            .iter()
            .filter(|attempt| attempt.token == token)
            .count()
    }

    /// A merchant answers, or the courier gives up.
    pub(crate) fn answer(&mut self, mono: u64, rng: &mut Rng) -> Option<(Attempt, Answer)> {
        let over = self.wire.iter().position(|attempt| attempt.ends() <= mono);
        let at = match over {
            Some(at) => at,
            None if self.wire.is_empty() => return None,
            None => {
                let at = rng.index(self.wire.len());
                if self.wire[at].hangs {
                    return None;
                }
                at
            }
        };
        let attempt = self.wire.swap_remove(at);
        let behaviour = &self.behaviours[&attempt.merchant.id];
        let class = match over {
            Some(_) => AttemptClass::Ambiguous,
            None => AttemptClass::ALL[rng.weighted(&behaviour.classes)],
        };
        let class = match class {
            // Who does not deduplicate cannot know.
            AttemptClass::AlreadyDone
                if attempt.merchant.adapter.idempotency == Idempotency::None =>
            {
                AttemptClass::Delivered
            }
            class => class,
        };
        let names_a_time = class == AttemptClass::RateLimited && rng.chance(700);
        let retry_after = (names_a_time || rng.chance(behaviour.asks_to_wait))
            .then(|| Duration::from_millis(rng.range(1, behaviour.longest_wait.max(1))));
        let answer = Answer {
            class,
            status: None,
            retry_after,
            detail: String::new(),
            excerpt: Default::default(),
            took: Duration::from_micros(mono - attempt.launched),
        };
        Some((attempt, answer))
    }
}
