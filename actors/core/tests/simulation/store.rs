//! A store in memory that keeps what the port promises (`actors/ports/src/store.rs`), with a queue
//! before it: what was queued and not committed is lost in a crash, from some batch on.

use std::collections::{BTreeMap, VecDeque};

use expediter_core::partition::{Load, Loaded};
use expediter_core::store::{
    Due, Gate, PartitionMeta, Ready, Repeat, StoreBatch, StoreOp, StoredMerchant, StoredPartition,
};
use expediter_core::{Stored, key_hash};
use expediter_types::{MerchantId, Seq, UnixMillis};

use crate::rng::Rng;

/// What the store's thread has to do, in order.
#[derive(Debug)]
pub(crate) enum Job {
    Commit {
        token: Seq,
        number: u64,
        batch: StoreBatch,
    },
    Load {
        token: Seq,
        load: Load,
    },
    /// Read all that is there, before a claim.
    Scan,
    Drop,
}

/// What became of a job, for whom it concerns.
#[derive(Debug)]
pub(crate) enum JobDone {
    Committed {
        token: Seq,
        number: u64,
    },
    Loaded {
        token: Seq,
        load: Load,
        loaded: Loaded,
    },
    Scanned(StoredPartition),
}

#[derive(Debug, Default)]
pub(crate) struct Store {
    meta: Option<PartitionMeta>,
    merchants: BTreeMap<MerchantId, BTreeMap<Seq, Stored>>,
    repeats: BTreeMap<u64, Vec<Repeat>>,
    queue: VecDeque<Job>,
    /// A ready read looks at so many orders beyond its limit.
    look: usize,
}

impl Store {
    pub(crate) fn new(look: usize) -> Self {
        Self {
            look,
            ..Self::default()
        }
    }

    pub(crate) fn push(&mut self, job: Job) {
        self.queue.push_back(job);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    pub(crate) fn orders(&self) -> usize {
        self.merchants.values().map(BTreeMap::len).sum()
    }

    /// The process died: of what was queued only a beginning became durable.
    pub(crate) fn crash(&mut self, rng: &mut Rng) {
        let kept = rng.index(self.queue.len() + 1);
        for job in std::mem::take(&mut self.queue).into_iter().take(kept) {
            match job {
                Job::Commit { batch, .. } => self.apply(&batch),
                Job::Drop => self.wipe(),
                Job::Load { .. } | Job::Scan => {}
            }
        }
    }

    /// The disk is gone.
    pub(crate) fn wipe(&mut self) {
        self.meta = None;
        self.merchants.clear();
        self.repeats.clear();
    }

    /// Takes a few jobs: their batches are committed as one, then their reads are answered, which
    /// may so see changes that were queued behind them.
    pub(crate) fn work(&mut self, at_most: usize) -> Vec<JobDone> {
        let (mut done, mut reads) = (Vec::new(), Vec::new());
        for _ in 0..at_most {
            match self.queue.pop_front() {
                None => break,
                Some(Job::Commit {
                    token,
                    number,
                    batch,
                }) => {
                    self.apply(&batch);
                    done.push(JobDone::Committed { token, number });
                }
                Some(read) => {
                    // Between a drop and what follows it nothing may slip.
                    let last = matches!(read, Job::Drop | Job::Scan);
                    reads.push(read);
                    if last {
                        break;
                    }
                }
            }
        }
        for read in reads {
            match read {
                Job::Load { token, load } => {
                    let loaded = self.load(&load);
                    done.push(JobDone::Loaded {
                        token,
                        load,
                        loaded,
                    });
                }
                Job::Scan => done.push(JobDone::Scanned(self.summary())),
                Job::Drop => self.wipe(),
                Job::Commit { .. } => {}
            }
        }
        done
    }

    fn apply(&mut self, batch: &StoreBatch) {
        for op in &batch.ops {
            match op {
                StoreOp::Put(stored) => {
                    let merchant = stored.order.envelope.merchant.clone();
                    let orders = self.merchants.entry(merchant).or_default();
                    orders.insert(stored.order.seq, stored.clone());
                }
                StoreOp::SetState {
                    merchant,
                    seq,
                    state,
                } => {
                    let orders = self.merchants.entry(merchant.clone()).or_default();
                    if let Some(stored) = orders.get_mut(seq) {
                        stored.state = state.clone();
                    }
                }
                StoreOp::Remove { merchant, seq } => {
                    if let Some(orders) = self.merchants.get_mut(merchant) {
                        orders.remove(seq);
                    }
                }
                StoreOp::Meta(meta) => self.meta = Some(*meta),
                StoreOp::Repeats { chunk, entries } => {
                    self.repeats.insert(*chunk, entries.clone());
                }
                StoreOp::ForgetRepeats { below } => self.repeats = self.repeats.split_off(below),
            }
        }
    }

    fn summary(&self) -> StoredPartition {
        let merchants = self
            .merchants
            .iter()
            .filter(|(_, orders)| !orders.is_empty());
        StoredPartition {
            meta: self.meta,
            merchants: merchants
                .map(|(merchant, orders)| StoredMerchant {
                    merchant: merchant.clone(),
                    orders: orders.keys().copied().collect(),
                    lanes: StoredMerchant::lanes_of(orders.values()),
                    next_due: orders.values().filter_map(|stored| stored.state.due).min(),
                })
                .collect(),
            repeats: self
                .repeats
                .iter()
                .map(|(n, all)| (*n, all.clone()))
                .collect(),
        }
    }

    fn load(&self, load: &Load) -> Loaded {
        match load {
            Load::Ready {
                merchant,
                from,
                up_to,
                limit,
                gate,
                also,
            } => {
                let orders = self.merchants.get(merchant);
                let also = also.iter().filter_map(|seq| orders?.get(seq).cloned());
                let ready = self.ready(merchant, *from, *up_to, *limit, *gate);
                Loaded::Ready(ready, also.collect())
            }
            Load::Condemned { merchant, from } => {
                let all = self.ready(merchant, *from, Seq::MAX, load.limit(), Gate::Fifo);
                Loaded::Ready(all, Vec::new())
            }
            Load::Due {
                merchant,
                until,
                limit,
                gate,
            } => Loaded::Due(self.due(merchant, *until, *limit, *gate)),
            Load::KeyHead { merchant, key } => {
                let orders = self
                    .merchants
                    .get(merchant)
                    .into_iter()
                    .flat_map(BTreeMap::values);
                let mut of_key = orders.filter(|stored| key_of(stored) == Some(*key));
                Loaded::KeyHead(of_key.next().cloned())
            }
            Load::Expired { until } => {
                let all = self.merchants.values().flat_map(BTreeMap::values);
                let mut over: Vec<&Stored> = all.filter(|s| s.deadline <= *until).collect();
                over.sort_by_key(|stored| (stored.deadline, stored.order.seq));
                Loaded::Expired(over.into_iter().take(load.limit()).cloned().collect())
            }
            Load::One { merchant, seq } => {
                let orders = self.merchants.get(merchant);
                Loaded::One(orders.and_then(|orders| orders.get(seq).cloned()))
            }
            Load::First { merchant } => {
                let orders = self.merchants.get(merchant);
                Loaded::First(orders.and_then(|orders| orders.keys().next().copied()))
            }
        }
    }

    fn is_head(&self, stored: &Stored) -> bool {
        let Some(key) = key_of(stored) else {
            return true;
        };
        let orders = &self.merchants[&stored.order.envelope.merchant];
        let older = orders.range(..stored.order.seq);
        older
            .into_iter()
            .all(|(_, other)| key_of(other) != Some(key))
    }

    fn ready(
        &self,
        merchant: &MerchantId,
        from: Seq,
        up_to: Seq,
        limit: usize,
        gate: Gate,
    ) -> Ready {
        let mut found = Vec::new();
        let all = self.merchants.get(merchant).filter(|_| from <= up_to);
        let range = all
            .into_iter()
            .flat_map(|orders| orders.range(from..=up_to));
        for (looked, (seq, stored)) in range.enumerate() {
            if found.len() == limit || looked == limit + self.look {
                return Ready {
                    orders: found,
                    next: *seq,
                    exhausted: false,
                };
            }
            let passes = match gate {
                Gate::Ready => stored.state.due.is_none(),
                Gate::HeadOfKey => stored.state.due.is_none() && self.is_head(stored),
                Gate::Fifo => true,
            };
            if passes {
                found.push(stored.clone());
            }
        }
        Ready {
            orders: found,
            next: from.max(up_to.saturating_add(1)),
            exhausted: true,
        }
    }

    fn due(&self, merchant: &MerchantId, until: UnixMillis, limit: usize, gate: Gate) -> Due {
        let orders = self
            .merchants
            .get(merchant)
            .into_iter()
            .flat_map(BTreeMap::values);
        let mut waiting: Vec<(UnixMillis, &Stored)> = orders
            .filter_map(|stored| Some((stored.state.due?, stored)))
            .collect();
        waiting.sort_by_key(|(due, stored)| (*due, stored.order.seq));
        let mut found = Due::default();
        for (due, stored) in waiting {
            if due > until {
                found.next = Some(due);
                break;
            }
            if gate == Gate::HeadOfKey && !self.is_head(stored) {
                continue;
            }
            if found.orders.len() == limit {
                found.next = Some(due);
                break;
            }
            found.orders.push(stored.clone());
        }
        found
    }
}

fn key_of(stored: &Stored) -> Option<u64> {
    stored.order.envelope.key.as_deref().map(key_hash)
}
