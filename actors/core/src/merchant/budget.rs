//! The retry budget: how many repeats a merchant is sent besides fresh orders.
//!
//! A merchant that fails would else be sent each waiting order again and again. Fresh orders pay
//! for a share of repeats, deliveries for one each, and a trickle lets them always make progress.

/// Thousandths of a repeat.
const REPEAT: u64 = 1_000;
/// Repeats that may be saved up.
const MOST: u64 = 100 * REPEAT;
/// Microseconds in which one repeat comes in, whatever happens: 5 a second.
const TRICKLE: u64 = 200_000;

/// What is left for repeats.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    left: u64,
    /// The trickle is counted up to here; microseconds of the monotonic clock.
    at: u64,
}

impl Budget {
    /// All that can be saved up is there.
    pub(super) fn full(at: u64) -> Self {
        Self { left: MOST, at }
    }

    fn earn(&mut self, thousandths: u64) {
        self.left = (self.left + thousandths).min(MOST);
    }

    fn trickle(&mut self, now: u64) {
        let each = TRICKLE / REPEAT;
        let came = now.saturating_sub(self.at) / each;
        self.earn(came.min(MOST));
        self.at += came * each;
    }

    /// When the next repeat may go; at or before `now`: now.
    pub(super) fn ready_at(&self, now: u64) -> u64 {
        let each = TRICKLE / REPEAT;
        let there = self.left + now.saturating_sub(self.at) / each;
        match REPEAT.saturating_sub(there) {
            0 => now,
            _ => self.at + (REPEAT - self.left) * each,
        }
    }

    /// More is there than a mailbox of repeats needs at once.
    pub(super) fn is_ample(&self, now: u64) -> bool {
        self.left + now.saturating_sub(self.at) / (TRICKLE / REPEAT) >= MOST / 2
    }

    /// A first attempt pays for `share` of a repeat.
    pub(super) fn first(&mut self, share: f64) {
        // 0.0 to 10.0 by the manifest.
        self.earn((share.clamp(0.0, 10.0) * 1_000.0) as u64);
    }

    /// The merchant takes orders.
    pub(super) fn delivered(&mut self) {
        self.earn(REPEAT);
    }

    /// A repeat goes at `now`, which is not before [`Budget::ready_at`].
    pub(super) fn take(&mut self, now: u64) {
        self.trickle(now);
        self.left = self.left.saturating_sub(REPEAT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Repeats in ten seconds with nothing saved up, when so much else happens each second.
    fn repeats(first: u32, share: f64, delivered: u32) -> u32 {
        let (mut budget, mut went) = (Budget { left: 0, at: 0 }, 0);
        for second in 0..10_u64 {
            (0..first).for_each(|_| budget.first(share));
            (0..delivered).for_each(|_| budget.delivered());
            for now in (0..1_000).map(|n| second * 1_000_000 + n * 1_000) {
                while budget.ready_at(now) <= now {
                    budget.take(now);
                    went += 1;
                }
            }
        }
        went
    }

    #[test]
    fn repeats_are_paid_for() {
        assert!((49..=50).contains(&repeats(0, 0.2, 0)));
        assert!((69..=70).contains(&repeats(10, 0.2, 0)));
        assert!((149..=150).contains(&repeats(0, 0.0, 10)));
        assert_eq!(Budget { left: 0, at: 7 }.ready_at(8), 200_007);
    }

    #[test]
    fn what_is_saved_up_is_bounded() {
        let mut budget = Budget::full(0);
        let now = 3_600_000_000;
        (0..1_000).for_each(|_| budget.delivered());
        let went = (0..1_000)
            .take_while(|_| {
                let goes = budget.ready_at(now) <= now;
                budget.take(now);
                goes
            })
            .count();
        assert_eq!(went, 100);
    }
}
