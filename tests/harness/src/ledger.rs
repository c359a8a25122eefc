use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// An order whose publish the broker acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    pub merchant: String,
    pub id: String,
    /// Header `Expediter-Key`.
    pub key: Option<String>,
    /// In ORDERS.
    pub seq: u64,
    /// XXH3 (64 bits) of the body.
    pub hash: u64,
    pub body: Bytes,
}

/// All that was published: what was acknowledged, and what got no answer.
#[derive(Debug, Clone, Default)]
pub struct Ledger(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    accepted: BTreeMap<u64, Accepted>,
    /// Hashes of the bodies by merchant and id, from before the publish.
    sent: HashMap<(String, String), Vec<u64>>,
    unsure: Vec<(String, String)>,
    /// Their sequence was given again, to another order: the broker lost them.
    overwritten: Vec<Accepted>,
    numbers: HashMap<String, u64>,
}

impl Ledger {
    /// What was acknowledged, by sequence.
    #[must_use]
    pub fn accepted(&self) -> Vec<Accepted> {
        self.entries().accepted.values().cloned().collect()
    }

    /// How many sequences were acknowledged.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries().accepted.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Merchant and id of each publish without an answer: it may be in the log.
    #[must_use]
    pub fn unsure(&self) -> Vec<(String, String)> {
        self.entries().unsure.clone()
    }

    /// Acknowledged orders whose sequence was acknowledged again for another one.
    #[must_use]
    pub fn overwritten(&self) -> Vec<Accepted> {
        self.entries().overwritten.clone()
    }

    /// Forgets everything, as after a broker that lost everything.
    pub fn clear(&self) {
        *self.entries() = Entries::default();
    }

    /// Whether an order of that id and body was sent, acknowledged or not.
    pub(crate) fn was_sent(&self, merchant: &str, id: &str, hash: u64) -> bool {
        let entries = self.entries();
        let hashes = entries.sent.get(&(merchant.to_owned(), id.to_owned()));
        hashes.is_some_and(|hashes| hashes.contains(&hash))
    }

    pub(crate) fn missing(&self, has: impl Fn(u64) -> bool) -> Vec<Accepted> {
        let entries = self.entries();
        entries
            .accepted
            .values()
            .filter(|order| !has(order.seq))
            .cloned()
            .collect()
    }

    pub(crate) fn number(&self, merchant: &str) -> u64 {
        let mut entries = self.entries();
        let number = entries.numbers.entry(merchant.to_owned()).or_default();
        *number += 1;
        *number
    }

    pub(crate) fn sending(&self, merchant: &str, id: &str, hash: u64) {
        let key = (merchant.to_owned(), id.to_owned());
        self.entries().sent.entry(key).or_default().push(hash);
    }

    pub(crate) fn taken(&self, order: Accepted) {
        let mut entries = self.entries();
        let (merchant, id) = (order.merchant.clone(), order.id.clone());
        let before = entries.accepted.insert(order.seq, order);
        let lost = before.filter(|before| (&before.merchant, &before.id) != (&merchant, &id));
        entries.overwritten.extend(lost);
    }

    pub(crate) fn no_answer(&self, merchant: &str, id: &str) {
        self.entries()
            .unsure
            .push((merchant.to_owned(), id.to_owned()));
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
