use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use expediter_core::store::{
    Due, Gate, PartitionMeta, Ready, Repeat, StoreBatch, StoreOp, StoredMerchant, StoredPartition,
};
use expediter_core::{Stored, key_hash};
use expediter_types::{MerchantId, Partition, Seq, UnixMillis};

use crate::store::{MerchantStore, StoreError, StoreUsage, looked_at};

/// A [`MerchantStore`] in memory: the same answers, nothing survives the value.
#[derive(Debug, Default)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
    /// Commits wait.
    stalled: Mutex<bool>,
    goes_on: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    partitions: BTreeMap<Partition, Content>,
    failed: Option<String>,
}

#[derive(Debug, Default)]
struct Content {
    meta: Option<PartitionMeta>,
    orders: BTreeMap<(MerchantId, Seq), Stored>,
    due: BTreeSet<(MerchantId, UnixMillis, Seq)>,
    deadlines: BTreeSet<(UnixMillis, Seq, MerchantId)>,
    keys: BTreeSet<(MerchantId, u64, Seq)>,
    repeats: BTreeMap<u64, Vec<Repeat>>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on every call answers with an error, as after a full or broken disk.
    pub fn fail(&self, why: &str) {
        self.lock().failed = Some(why.to_owned());
    }

    /// From now on commits wait, as for a slow disk, or go on.
    pub fn stall(&self, stalled: bool) {
        *self.stalled.lock().unwrap_or_else(PoisonError::into_inner) = stalled;
        self.goes_on.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T: Default>(
        &self,
        partition: Partition,
        read: impl FnOnce(&Content) -> T,
    ) -> Result<T, StoreError> {
        let inner = self.lock();
        inner.check()?;
        Ok(inner
            .partitions
            .get(&partition)
            .map(read)
            .unwrap_or_default())
    }
}

impl Inner {
    fn check(&self) -> Result<(), StoreError> {
        match &self.failed {
            Some(why) => Err(StoreError {
                what: why.clone(),
                source: None,
            }),
            None => Ok(()),
        }
    }
}

impl Content {
    fn apply(&mut self, op: &StoreOp) {
        match op {
            StoreOp::Put(stored) => {
                let (merchant, seq) = (&stored.order.envelope.merchant, stored.order.seq);
                self.remove(merchant, seq);
                self.insert(stored.clone());
            }
            StoreOp::SetState {
                merchant,
                seq,
                state,
            } => {
                if let Some(mut stored) = self.remove(merchant, *seq) {
                    stored.state = state.clone();
                    self.insert(stored);
                }
            }
            StoreOp::Remove { merchant, seq } => {
                self.remove(merchant, *seq);
            }
            StoreOp::Meta(meta) => self.meta = Some(*meta),
            StoreOp::Repeats { chunk, entries } => {
                self.repeats.insert(*chunk, entries.clone());
            }
            StoreOp::ForgetRepeats { below } => self.repeats = self.repeats.split_off(below),
        }
    }

    fn insert(&mut self, stored: Stored) {
        let (merchant, seq) = (stored.order.envelope.merchant.clone(), stored.order.seq);
        if let Some(key) = &stored.order.envelope.key {
            self.keys.insert((merchant.clone(), key_hash(key), seq));
        }
        if let Some(due) = stored.state.due {
            self.due.insert((merchant.clone(), due, seq));
        }
        self.deadlines
            .insert((stored.deadline, seq, merchant.clone()));
        self.orders.insert((merchant, seq), stored);
    }

    fn remove(&mut self, merchant: &MerchantId, seq: Seq) -> Option<Stored> {
        let stored = self.orders.remove(&(merchant.clone(), seq))?;
        if let Some(key) = &stored.order.envelope.key {
            self.keys.remove(&(merchant.clone(), key_hash(key), seq));
        }
        if let Some(due) = stored.state.due {
            self.due.remove(&(merchant.clone(), due, seq));
        }
        self.deadlines
            .remove(&(stored.deadline, seq, merchant.clone()));
        Some(stored)
    }

    fn range<'a>(
        &'a self,
        merchant: &MerchantId,
        from: Seq,
        up_to: Seq,
    ) -> Box<dyn Iterator<Item = &'a Stored> + 'a> {
        if from > up_to {
            return Box::new(std::iter::empty());
        }
        let range = (merchant.clone(), from)..=(merchant.clone(), up_to);
        Box::new(self.orders.range(range).map(|(_, stored)| stored))
    }

    fn head_of(&self, merchant: &MerchantId, key: u64) -> Option<Seq> {
        let range = (merchant.clone(), key, 0)..=(merchant.clone(), key, Seq::MAX);
        self.keys.range(range).next().map(|(_, _, seq)| *seq)
    }

    fn is_head(&self, stored: &Stored) -> bool {
        let envelope = &stored.order.envelope;
        let Some(key) = &envelope.key else {
            return true;
        };
        self.head_of(&envelope.merchant, key_hash(key)) == Some(stored.order.seq)
    }

    fn get(&self, merchant: &MerchantId, seq: Seq) -> Option<Stored> {
        self.orders.get(&(merchant.clone(), seq)).cloned()
    }

    fn ready(
        &self,
        merchant: &MerchantId,
        from: Seq,
        up_to: Seq,
        limit: usize,
        gate: Gate,
    ) -> Ready {
        let mut orders = Vec::new();
        for (looked, stored) in self.range(merchant, from, up_to).enumerate() {
            if orders.len() == limit || looked == looked_at(limit) {
                return Ready {
                    orders,
                    next: stored.order.seq,
                    exhausted: false,
                };
            }
            let waits = stored.state.due.is_some();
            let passes = match gate {
                Gate::Ready => !waits,
                Gate::HeadOfKey => !waits && self.is_head(stored),
                Gate::Fifo => true,
            };
            if passes {
                orders.push(stored.clone());
            }
        }
        Ready {
            orders,
            next: from.max(up_to.saturating_add(1)),
            exhausted: true,
        }
    }

    fn due(&self, merchant: &MerchantId, until: UnixMillis, limit: usize, gate: Gate) -> Due {
        let mut found = Due::default();
        let range = (merchant.clone(), 0, 0)..=(merchant.clone(), UnixMillis::MAX, Seq::MAX);
        for (_, due, seq) in self.due.range(range) {
            if *due > until {
                found.next = Some(*due);
                break;
            }
            let Some(stored) = self.orders.get(&(merchant.clone(), *seq)) else {
                continue;
            };
            if gate == Gate::HeadOfKey && !self.is_head(stored) {
                continue;
            }
            if found.orders.len() == limit {
                found.next = Some(*due);
                break;
            }
            found.orders.push(stored.clone());
        }
        found
    }

    fn summary(&self) -> StoredPartition {
        let mut summary = StoredPartition {
            meta: self.meta,
            ..StoredPartition::default()
        };
        for ((merchant, seq), stored) in &self.orders {
            if summary
                .merchants
                .last()
                .is_none_or(|last| last.merchant != *merchant)
            {
                summary.merchants.push(StoredMerchant {
                    merchant: merchant.clone(),
                    orders: Default::default(),
                    lanes: Default::default(),
                    next_due: None,
                });
            }
            if let Some(last) = summary.merchants.last_mut() {
                last.orders.insert(*seq);
                for (all, one) in last
                    .lanes
                    .iter_mut()
                    .zip(StoredMerchant::lanes_of([stored]))
                {
                    *all |= one;
                }
                last.next_due = last.next_due.into_iter().chain(stored.state.due).min();
            }
        }
        summary.repeats = self
            .repeats
            .iter()
            .map(|(chunk, all)| (*chunk, all.clone()))
            .collect();
        summary
    }
}

impl MerchantStore for MemoryStore {
    fn commit(&self, batches: &[StoreBatch]) -> Result<(), StoreError> {
        let stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = self.goes_on.wait_while(stalled, |stalled| *stalled);
        drop(waiting.unwrap_or_else(PoisonError::into_inner));
        let mut inner = self.lock();
        inner.check()?;
        for batch in batches {
            let content = inner.partitions.entry(batch.partition).or_default();
            for op in &batch.ops {
                content.apply(op);
            }
        }
        Ok(())
    }

    fn partition(&self, partition: Partition) -> Result<StoredPartition, StoreError> {
        self.read(partition, Content::summary)
    }

    fn drop_partition(&self, partition: Partition) -> Result<(), StoreError> {
        let mut inner = self.lock();
        inner.check()?;
        inner.partitions.remove(&partition);
        Ok(())
    }

    fn ready(
        &self,
        partition: Partition,
        merchant: &MerchantId,
        from: Seq,
        up_to: Seq,
        limit: usize,
        gate: Gate,
    ) -> Result<Ready, StoreError> {
        let mut inner = self.lock();
        inner.check()?;
        let content = inner.partitions.entry(partition).or_default();
        Ok(content.ready(merchant, from, up_to, limit, gate))
    }

    fn due(
        &self,
        partition: Partition,
        merchant: &MerchantId,
        until: UnixMillis,
        limit: usize,
        gate: Gate,
    ) -> Result<Due, StoreError> {
        self.read(partition, |content| {
            content.due(merchant, until, limit, gate)
        })
    }

    fn key_head(
        &self,
        partition: Partition,
        merchant: &MerchantId,
        key: u64,
    ) -> Result<Option<Stored>, StoreError> {
        self.read(partition, |content| {
            content
                .head_of(merchant, key)
                .and_then(|seq| content.get(merchant, seq))
        })
    }

    fn expired(
        &self,
        partition: Partition,
        until: UnixMillis,
        limit: usize,
    ) -> Result<Vec<Stored>, StoreError> {
        self.read(partition, |content| {
            let due = content
                .deadlines
                .iter()
                .take_while(|(deadline, _, _)| *deadline <= until);
            due.take(limit)
                .filter_map(|(_, seq, merchant)| content.get(merchant, *seq))
                .collect()
        })
    }

    fn get(
        &self,
        partition: Partition,
        merchant: &MerchantId,
        seq: Seq,
    ) -> Result<Option<Stored>, StoreError> {
        self.read(partition, |content| content.get(merchant, seq))
    }

    fn first(
        &self,
        partition: Partition,
        merchant: &MerchantId,
    ) -> Result<Option<Seq>, StoreError> {
        self.read(partition, |content| {
            content
                .range(merchant, 0, Seq::MAX)
                .next()
                .map(|stored| stored.order.seq)
        })
    }

    fn below(
        &self,
        partition: Partition,
        merchant: &MerchantId,
        seq: Seq,
        most: usize,
    ) -> Result<usize, StoreError> {
        self.read(partition, |content| {
            let all = content.range(merchant, 0, seq);
            all.filter(|stored| stored.order.seq < seq)
                .take(most)
                .count()
        })
    }

    fn usage(&self) -> StoreUsage {
        StoreUsage::default()
    }
}
