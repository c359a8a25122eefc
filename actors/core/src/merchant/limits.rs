//! All rates of a merchant at once: the shortest period paces, with the burst; each longer one is
//! a quota.

use expediter_types::{Limits, Rate};

use crate::limiter::Limiter;
use crate::quota::Quotas;

/// When the next order may go by the rates, and the rate that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// Microseconds of the monotonic clock; at or before now: it may go now.
    pub at: u64,
    /// `None`: nothing holds it.
    pub holds: Option<Rate>,
}

/// A merchant's rates.
#[derive(Debug, Clone)]
pub struct Rates {
    pace: Option<Rate>,
    limiter: Limiter,
    quotas: Quotas,
}

impl Rates {
    /// Begins without a burst, with what was spent of the quotas.
    #[must_use]
    pub fn begin(limits: &Limits, since: u64, spent: Quotas) -> Self {
        let pace = limits.rates.first().copied();
        let mut quotas = spent;
        quotas.change(&limits.rates);
        Self {
            pace,
            limiter: Limiter::empty_since(pace, limits.burst, since),
            quotas,
        }
    }

    /// Other limits, at once: what was spent stays spent.
    pub fn change(&mut self, limits: &Limits, now: u64) {
        self.pace = limits.rates.first().copied();
        self.limiter.change(self.pace, limits.burst, now);
        self.quotas.change(&limits.rates);
    }

    /// When the next order may go, and which rate holds it until then.
    #[must_use]
    pub fn ready_at(&self, now: u64) -> Ready {
        let paced = self.limiter.ready_at();
        match self.quotas.ready_at(now) {
            Some((at, rate)) if at > paced => Ready {
                at,
                holds: Some(rate),
            },
            _ => Ready {
                at: paced,
                holds: self.pace.filter(|_| paced > now),
            },
        }
    }

    /// An order goes at `now`, which is not before [`Rates::ready_at`].
    pub fn take(&mut self, now: u64) {
        self.limiter.take(now);
        self.quotas.take(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_and_the_quotas_hold_at_once() {
        let rates: Vec<Rate> = ["10/s", "25/min"].map(|r| r.parse().unwrap()).into();
        let limits = Limits {
            rates,
            burst: 5,
            ..Limits::default()
        };
        let mut rates = Rates::begin(&limits, 0, Quotas::default());
        let (mut now, mut went) = (0, Vec::new());
        while now < 61_000_000 {
            let ready = rates.ready_at(now);
            if ready.at > now {
                let text = ready.holds.map(|rate| rate.to_string());
                let quota = went.len() % 25 == 0 && !went.is_empty();
                assert_eq!(text.as_deref(), Some(if quota { "25/min" } else { "10/s" }));
                now = ready.at;
            } else {
                rates.take(now);
                went.push(now);
            }
        }
        assert_eq!(went[..3], [100_000, 200_000, 300_000]);
        assert_eq!(went.iter().filter(|at| **at < 60_000_000).count(), 25);
    }
}
