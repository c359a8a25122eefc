//! The table that notices publishers' repeats: a bounded window of the newest order ids.

use std::collections::HashMap;

use expediter_types::{MerchantId, OrderId, Seq};
use xxhash_rust::xxh3::Xxh3;

use crate::store::Repeat;

/// Entries of one stored chunk.
pub const CHUNK: usize = 1024;

/// Builds the entry of an order; its hashes are part of the store's format.
#[must_use]
pub fn entry(
    merchant: &MerchantId,
    id: &OrderId,
    generation: u32,
    payload: u64,
    seq: Seq,
) -> Repeat {
    Repeat {
        id: id_hash(merchant, id, generation),
        payload: payload as u32,
        seq,
    }
}

/// xxh3-64 of merchant, id and generation.
#[must_use]
pub fn id_hash(merchant: &MerchantId, id: &OrderId, generation: u32) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(merchant.as_str().as_bytes());
    hash.update(&[0]);
    hash.update(id.as_str().as_bytes());
    hash.update(&[0]);
    hash.update(&generation.to_be_bytes());
    hash.digest()
}

/// What the table says of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Not seen within the window, or the same message read again.
    New,
    /// The same id and payload stand at this other sequence.
    Repeat(Seq),
    /// The same id stands at this other sequence with another payload.
    Conflict(Seq),
}

impl Verdict {
    /// The same of the other order, whose id stands at this sequence.
    #[must_use]
    pub fn against(self, seq: Seq) -> Self {
        match self {
            Self::New => Self::New,
            Self::Repeat(_) => Self::Repeat(seq),
            Self::Conflict(_) => Self::Conflict(seq),
        }
    }
}

/// Two generations of ids: when the younger is full, the elder is forgotten. The effective window
/// is between half of the capacity and all of it.
#[derive(Debug)]
pub struct Repeats {
    young: HashMap<u64, (u32, Seq)>,
    old: HashMap<u64, (u32, Seq)>,
    capacity: usize,
    /// Entries of the chunk that is not full yet, and its number.
    chunk: Vec<Repeat>,
    chunk_number: u64,
    oldest_chunk: u64,
    unsaved: bool,
    full_chunks: Vec<(u64, Vec<Repeat>)>,
}

impl Repeats {
    /// Ids that it may remember.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Remembers at least the newest `capacity / 2` ids.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            capacity: capacity.max(2 * CHUNK),
            chunk: Vec::new(),
            chunk_number: 0,
            oldest_chunk: 0,
            unsaved: false,
            full_chunks: Vec::new(),
        }
    }

    /// Takes over the chunks a store kept, oldest first.
    pub fn load(&mut self, chunks: Vec<(u64, Vec<Repeat>)>) {
        if let Some((first, _)) = chunks.first() {
            self.oldest_chunk = *first;
        }
        for (number, entries) in chunks {
            self.chunk_number = number + 1;
            for entry in entries {
                self.remember(entry);
            }
        }
    }

    /// Judges an order and remembers it.
    pub fn check(&mut self, entry: Repeat) -> Verdict {
        let known = self
            .young
            .get(&entry.id)
            .or_else(|| self.old.get(&entry.id));
        match known {
            Some((_, seq)) if *seq == entry.seq => Verdict::New,
            Some((payload, seq)) if *payload == entry.payload => Verdict::Repeat(*seq),
            Some((_, seq)) => Verdict::Conflict(*seq),
            None => {
                self.insert(entry);
                Verdict::New
            }
        }
    }

    /// Adds what is known from elsewhere (a predecessor's outcomes); the first one counts.
    pub fn insert(&mut self, entry: Repeat) {
        if self.young.contains_key(&entry.id) || self.old.contains_key(&entry.id) {
            return;
        }
        self.replace(entry);
    }

    /// From now on this is where the id stands.
    pub fn replace(&mut self, entry: Repeat) {
        self.old.remove(&entry.id);
        self.remember(entry);
        self.unsaved = true;
        self.chunk.push(entry);
        if self.chunk.len() >= CHUNK {
            self.full_chunks
                .push((self.chunk_number, std::mem::take(&mut self.chunk)));
            self.chunk_number += 1;
        }
    }

    fn remember(&mut self, entry: Repeat) {
        if self.young.len() >= self.capacity / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(entry.id, (entry.payload, entry.seq));
    }

    /// Where the order with this id stands.
    #[must_use]
    pub fn find(&self, id: u64) -> Option<Seq> {
        self.young
            .get(&id)
            .or_else(|| self.old.get(&id))
            .map(|(_, seq)| *seq)
    }

    /// How many ids are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// None is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Chunks to write since the last call, and the number below which chunks can be forgotten.
    pub fn take_unsaved(&mut self) -> (Vec<(u64, Vec<Repeat>)>, Option<u64>) {
        if !std::mem::take(&mut self.unsaved) {
            return (Vec::new(), None);
        }
        let mut chunks = std::mem::take(&mut self.full_chunks);
        if !self.chunk.is_empty() {
            chunks.push((self.chunk_number, self.chunk.clone()));
        }
        let keep = (self.capacity / CHUNK) as u64 + 1;
        let below = self.chunk_number.saturating_sub(keep);
        let forget = (below > self.oldest_chunk).then_some(below);
        self.oldest_chunk = self.oldest_chunk.max(below);
        (chunks, forget)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(n: u64, payload: u32, seq: Seq) -> Repeat {
        Repeat {
            id: n,
            payload,
            seq,
        }
    }

    #[test]
    fn repeats_and_conflicts_are_told_apart() {
        let mut repeats = Repeats::new(10_000);
        assert_eq!(repeats.check(order(1, 7, 100)), Verdict::New);
        assert_eq!(
            repeats.check(order(1, 7, 100)),
            Verdict::New,
            "the same message again"
        );
        assert_eq!(repeats.check(order(1, 7, 101)), Verdict::Repeat(100));
        assert_eq!(repeats.check(order(1, 8, 102)), Verdict::Conflict(100));
    }

    #[test]
    fn the_window_is_bounded_and_survives_saving() {
        let mut repeats = Repeats::new(4 * CHUNK);
        let mut saved = std::collections::BTreeMap::new();
        for n in 0..20_000 {
            assert_eq!(repeats.check(order(n, 0, n + 1)), Verdict::New);
            if n % 700 == 0 || n == 19_999 {
                let (chunks, forget) = repeats.take_unsaved();
                saved.extend(chunks);
                saved.retain(|number, _| *number >= forget.unwrap_or(0));
            }
        }
        assert!(repeats.len() <= 4 * CHUNK, "{}", repeats.len());
        assert!(saved.len() <= 7, "{}", saved.len());
        let mut again = Repeats::new(4 * CHUNK);
        again.load(saved.into_iter().collect());
        for n in 20_000 - 2 * CHUNK as u64..20_000 {
            assert_eq!(
                again.check(order(n, 0, 99_999)),
                Verdict::Repeat(n + 1),
                "{n}"
            );
        }
    }
}
