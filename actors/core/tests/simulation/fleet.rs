//! The merchants' systems, and the requests that are on the wire to them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use expediter_core::Order;
use expediter_types::{Answer, AttemptClass, Merchant, MerchantId, OrderId, Seq};

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
    /// The merchant gets the order also where nobody hears so.
    pub(crate) arrives: bool,
    /// A look-up just before said that the merchant has not got it.
    pub(crate) absent: bool,
}

/// What a merchant says to who asks for an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Looked {
    Found,
    Absent,
    /// It cannot say; nothing is sent.
    Undecided(AttemptClass),
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
    /// What the merchants have.
    received: BTreeSet<(MerchantId, OrderId)>,
}

fn id_of(order: &Order) -> (MerchantId, OrderId) {
    (order.envelope.merchant.clone(), order.envelope.id.clone())
}

impl Fleet {
    pub(crate) fn launch(&mut self, mut attempt: Attempt, rng: &mut Rng) {
        let behaviour = &self.behaviours[&attempt.merchant.id];
        attempt.hangs = rng.chance(behaviour.hangs);
        attempt.arrives = rng.chance(500);
        self.wire.push(attempt);
    }

    /// The truth, or no answer.
    pub(crate) fn look(&self, order: &Order, mono: u64, rng: &mut Rng) -> Looked {
        if rng.chance(150) {
            return Looked::Undecided(*rng.pick(&[
                AttemptClass::Retry,
                AttemptClass::RateLimited,
                AttemptClass::Suspended,
                AttemptClass::Misconfigured,
                AttemptClass::Local,
            ]));
        }
        let id = id_of(order);
        // Nobody has collected their ends yet.
        let ended = |a: &Attempt| a.ends() <= mono && a.arrives && id_of(&a.order) == id;
        match self.received.contains(&id) || self.wire.iter().any(ended) {
            true => Looked::Found,
            false => Looked::Absent,
        }
    }

    /// An attempt of the order may still reach its merchant.
    pub(crate) fn on_wire(&self, order: &Order, mono: u64) -> bool {
        let id = id_of(order);
        let of = |a: &Attempt| a.ends() > mono && id_of(&a.order) == id;
        self.wire.iter().any(of)
    }

    /// False: the merchant has the order already.
    pub(crate) fn receive(&mut self, attempt: &Attempt, class: AttemptClass) -> bool {
        let got = match class {
            AttemptClass::Delivered => true,
            AttemptClass::Ambiguous => attempt.arrives,
            _ => false,
        };
        !got || self.received.insert(id_of(&attempt.order))
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
            AttemptClass::AlreadyDone if !attempt.merchant.adapter.idempotency.deduplicates() => {
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
            absent: attempt.absent,
            detail: String::new(),
            excerpt: Default::default(),
            took: Duration::from_micros(mono - attempt.launched),
        };
        Some((attempt, answer))
    }
}
