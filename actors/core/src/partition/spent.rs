//! What merchants were sent that still counts for their quotas: carried from owner to owner by the
//! marks, and to a merchant's next machine by its backlog.

use expediter_types::{ClaimState, Merchant, MerchantId, Now, SpentQuota, UnixMillis};

use super::PartitionMachine;
use super::backlog::Backlog;
use crate::recovery::Recovered;

/// Entries of all quotas in a mark, while there are fewer merchants with one.
const ENTRIES: usize = 16_384;
/// Entries of one quota in a mark, at most: after a crash its period counts in so many steps.
const PRECISION: usize = 32;
/// The longest period of a rate, in milliseconds.
const LONGEST: u64 = 86_400_000;
/// What an actor starts reaches its partition within this, in milliseconds: a mark may lack it.
const REPORTED_WITHIN: u64 = 1_000;
/// Unknown times that a mark carries; two that are older count as one.
const CARRIED: usize = 8;

/// Times of which nobody knows what was sent: owners died after their newest mark.
#[derive(Debug, Default)]
pub(super) struct Unknown {
    /// From the mark of the replaced owner to the claim.
    own: Option<(UnixMillis, UnixMillis)>,
    /// Of former owners: only those know it that had charged a merchant in time.
    carried: Vec<(UnixMillis, UnixMillis)>,
}

impl Unknown {
    pub(super) fn of(recovered: &Recovered, now: Now) -> Self {
        let since = match &recovered.replaced {
            None if !recovered.outcomes_lost => None,
            _ if recovered.marked_last => None,
            // The first owner of all died before its first mark.
            Some(claim) if recovered.marked_at == 0 && claim.replaces == 0 => Some(claim.at),
            _ => Some(recovered.marked_at.saturating_sub(REPORTED_WITHIN)),
        };
        let released = recovered.replaced.as_ref();
        let released = released.filter(|claim| claim.state != ClaimState::Held);
        let until = released.map_or(now.wall, |claim| claim.at.min(now.wall));
        Self {
            own: since.map(|since| (since.min(until), until)),
            carried: recovered.unknown.clone(),
        }
    }

    /// An order that was taken in before it may have been sent by an owner of which nobody knows.
    pub(super) fn ends(&self) -> UnixMillis {
        let all = self.carried.iter().chain(&self.own);
        all.map(|(_, until)| *until).max().unwrap_or(0)
    }

    /// For the next mark.
    pub(super) fn all(&self, now: Now) -> Vec<(UnixMillis, UnixMillis)> {
        let all = self.carried.iter().copied().chain(self.own);
        let mut all: Vec<_> = all
            .filter(|(_, until)| until.saturating_add(LONGEST) > now.wall)
            .collect();
        while all.len() > CARRIED {
            let (since, _) = all.remove(0);
            all[0].0 = all[0].0.min(since);
        }
        all
    }
}

impl PartitionMachine {
    /// Makes a merchant's quotas those in force, and charges what nobody knows of, once.
    pub(super) fn charge(&mut self, merchant: &Merchant, now: Now) {
        let Some(backlog) = self.backlogs.get_mut(&merchant.id) else {
            return;
        };
        let (limits, quotas) = (&merchant.limits, &mut backlog.quotas);
        quotas.change(&limits.rates);
        if std::mem::replace(&mut backlog.charged, true) {
            return;
        }
        let carried = self.unknown.carried.iter().filter(|_| !backlog.restored);
        for (since, until) in self.unknown.own.iter().chain(carried) {
            let ago = |wall: u64| {
                let micros = now.wall.saturating_sub(wall).saturating_mul(1_000);
                let micros = i64::try_from(micros).unwrap_or(i64::MAX);
                i64::try_from(now.mono)
                    .unwrap_or(i64::MAX)
                    .saturating_sub(micros)
            };
            quotas.charge(&limits.rates, limits.burst, ago(*since), ago(*until));
        }
    }

    /// What counts for quotas, in so few entries that marks stay small.
    pub(super) fn spent(&self, now: Now) -> Vec<(MerchantId, Vec<SpentQuota>)> {
        let counts = |(_, backlog): &(&MerchantId, &Backlog)| !backlog.quotas.is_unspent(now.mono);
        let mut spent: Vec<_> = self.backlogs.iter().filter(counts).collect();
        spent.sort_unstable_by_key(|(merchant, _)| *merchant);
        let entries = (ENTRIES / spent.len().max(1)).clamp(1, PRECISION);
        let named = spent.into_iter().map(|(merchant, backlog)| {
            let quotas = backlog.quotas.spent(now, entries);
            (merchant.clone(), quotas.collect())
        });
        named.collect()
    }
}
