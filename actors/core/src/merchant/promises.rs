//! What a machine looks at before each request.

use expediter_types::{Now, Seq};

use super::MerchantMachine;
use crate::check_invariant;

impl MerchantMachine {
    /// The last look at the promises before a request leaves, apart from how it was chosen.
    pub(super) fn check_start(&self, seq: Seq, now: Now) {
        check_invariant!(
            Ord3,
            !self.forgotten(seq, now),
            "order {seq} is sent again, and merchant {} would not know it again",
            self.merchant.id
        );
        let concurrency = self.concurrency();
        check_invariant!(
            Rate1,
            self.running < concurrency,
            "order {seq} starts beside {} of {concurrency} attempts at merchant {}",
            self.running,
            self.merchant.id
        );
        check_invariant!(
            Rate1,
            self.rates.ready_at(now.mono).at <= now.mono,
            "order {seq} starts before the rate of merchant {} lets it go",
            self.merchant.id
        );
        let key = self.slots.get(&seq).and_then(|slot| slot.offer.key);
        if let Some(queue) = key.and_then(|key| self.keys.get(&key)) {
            let waits = |seq: &Seq| self.slots.get(seq).is_some_and(|s| s.running.is_none());
            check_invariant!(
                Ord4,
                queue.front() == Some(&seq) && (self.running == 0 || queue.iter().all(waits)),
                "order {seq} starts before an older one of its key at merchant {}",
                self.merchant.id
            );
        }
    }
}
