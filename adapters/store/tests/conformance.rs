//! One suite for every store: random changes, and after each commit every question is answered as a
//! plain list of orders would answer it.

mod samples;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use expediter_core::store::{
    Due, Gate, PartitionMeta, Ready, Repeat, StoreBatch, StoreOp, StoredMerchant, StoredPartition,
};
use expediter_core::{OrderState, Stored, key_hash};
use expediter_ports::fakes::MemoryStore;
use expediter_ports::{MerchantStore, looked_at};
use expediter_types::{Partition, Seq};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use samples::{batch, merchant, meta, opened, order, puts, repeats, with_due, with_key};

/// Ids that are each other's prefixes and sort differently by length.
const MERCHANTS: [&str; 3] = ["a", "ab", "b"];
const KEYS: [&str; 2] = ["k", "l"];
const PARTITIONS: [u16; 2] = [3, u16::MAX];
const SEQS: u64 = 8;

#[derive(Debug, Default)]
struct Model {
    orders: Vec<(u16, Stored)>,
    meta: BTreeMap<u16, PartitionMeta>,
    repeats: BTreeMap<(u16, u64), Vec<Repeat>>,
}

fn is(stored: &Stored, id: &str) -> bool {
    stored.order.envelope.merchant.as_str() == id
}

impl Model {
    fn commit(&mut self, batches: &[StoreBatch]) {
        for StoreBatch {
            partition: Partition(p),
            ops,
        } in batches
        {
            for op in ops {
                self.apply(*p, op);
            }
        }
        self.orders.sort_by_key(|(_, stored)| stored.order.seq);
    }

    fn apply(&mut self, p: u16, op: &StoreOp) {
        match op {
            StoreOp::Put(stored) => {
                let (id, seq) = (stored.order.envelope.merchant.as_str(), stored.order.seq);
                self.orders
                    .retain(|(q, old)| *q != p || !is(old, id) || old.order.seq != seq);
                self.orders.push((p, stored.clone()));
            }
            StoreOp::SetState {
                merchant,
                seq,
                state,
            } => {
                for (q, old) in &mut self.orders {
                    if *q == p && is(old, merchant.as_str()) && old.order.seq == *seq {
                        old.state = state.clone();
                    }
                }
            }
            StoreOp::Remove { merchant, seq } => self
                .orders
                .retain(|(q, old)| *q != p || !is(old, merchant.as_str()) || old.order.seq != *seq),
            StoreOp::Meta(meta) => {
                self.meta.insert(p, *meta);
            }
            StoreOp::Repeats { chunk, entries } => {
                self.repeats.insert((p, *chunk), entries.clone());
            }
            StoreOp::ForgetRepeats { below } => {
                self.repeats
                    .retain(|(q, chunk), _| *q != p || chunk >= below);
            }
        }
    }

    fn drop_partition(&mut self, p: u16) {
        self.orders.retain(|(q, _)| *q != p);
        self.meta.remove(&p);
        self.repeats.retain(|(q, _), _| *q != p);
    }

    fn of(&self, p: u16, id: &str) -> Vec<&Stored> {
        let all = self.orders.iter();
        all.filter(|(q, stored)| *q == p && is(stored, id))
            .map(|(_, stored)| stored)
            .collect()
    }

    fn passes(&self, p: u16, stored: &Stored, gate: Gate) -> bool {
        let envelope = &stored.order.envelope;
        gate != Gate::HeadOfKey
            || envelope.key.is_none()
            || self
                .of(p, envelope.merchant.as_str())
                .iter()
                .all(|o| o.order.envelope.key != envelope.key || o.order.seq >= stored.order.seq)
    }

    fn ready(&self, p: u16, id: &str, from: Seq, up_to: Seq, limit: usize, gate: Gate) -> Ready {
        let mut orders = Vec::new();
        let of = self.of(p, id);
        let within = of
            .iter()
            .filter(|o| from <= o.order.seq && o.order.seq <= up_to);
        for (looked, stored) in within.enumerate() {
            if orders.len() == limit || looked == looked_at(limit) {
                return Ready {
                    orders,
                    next: stored.order.seq,
                    exhausted: false,
                };
            }
            let open = gate == Gate::Fifo || stored.state.due.is_none();
            if open && self.passes(p, stored, gate) {
                orders.push((*stored).clone());
            }
        }
        Ready {
            orders,
            next: from.max(up_to.saturating_add(1)),
            exhausted: true,
        }
    }

    fn due(&self, p: u16, id: &str, until: u64, limit: usize, gate: Gate) -> Due {
        let mut waiting = self.of(p, id);
        waiting.retain(|o| {
            o.state
                .due
                .is_some_and(|due| due > until || self.passes(p, o, gate))
        });
        waiting.sort_by_key(|o| (o.state.due, o.order.seq));
        let now = waiting
            .iter()
            .filter(|o| o.state.due <= Some(until))
            .count()
            .min(limit);
        Due {
            orders: waiting[..now].iter().map(|o| (*o).clone()).collect(),
            next: waiting.get(now).and_then(|o| o.state.due),
        }
    }

    fn expired(&self, p: u16, until: u64, limit: usize) -> Vec<Stored> {
        let all = self.orders.iter();
        let mut late: Vec<_> = all
            .filter(|(q, o)| *q == p && o.deadline <= until)
            .map(|(_, stored)| stored.clone())
            .collect();
        late.sort_by_key(|o| (o.deadline, o.order.seq, o.order.envelope.merchant.clone()));
        late.truncate(limit);
        late
    }

    fn partition(&self, p: u16) -> StoredPartition {
        let mut found = StoredPartition::default();
        for id in MERCHANTS {
            let of = self.of(p, id);
            if !of.is_empty() {
                found.merchants.push(StoredMerchant {
                    merchant: merchant(id),
                    orders: of.iter().map(|o| o.order.seq).collect(),
                    lanes: StoredMerchant::lanes_of(of.iter().copied()),
                    next_due: of.iter().filter_map(|o| o.state.due).min(),
                });
            }
        }
        found.meta = self.meta.get(&p).copied();
        let repeats = self.repeats.iter().filter(|((q, _), _)| *q == p);
        found.repeats = repeats
            .map(|((_, chunk), all)| (*chunk, all.clone()))
            .collect();
        found
    }
}

/// Asks a store everything and compares.
fn agree(store: &dyn MerchantStore, model: &Model) {
    for p in PARTITIONS {
        let partition = Partition(p);
        assert_eq!(store.partition(partition).unwrap(), model.partition(p));
        for (until, limit) in [(0, 9), (2, 1), (3, 2), (u64::MAX, 50)] {
            let late = store.expired(partition, until, limit).unwrap();
            assert_eq!(late, model.expired(p, until, limit));
        }
        for id in MERCHANTS {
            let of = model.of(p, id);
            let id_ = merchant(id);
            let first = of.first().map(|o| o.order.seq);
            assert_eq!(store.first(partition, &id_).unwrap(), first);
            for seq in 0..=SEQS {
                let one = of.iter().find(|o| o.order.seq == seq).map(|o| (*o).clone());
                assert_eq!(store.get(partition, &id_, seq).unwrap(), one);
            }
            for key in KEYS {
                let key_is = |o: &&&Stored| o.order.envelope.key.as_deref() == Some(key);
                let head = of.iter().find(key_is).map(|o| (*o).clone());
                assert_eq!(
                    store.key_head(partition, &id_, key_hash(key)).unwrap(),
                    head
                );
            }
            for gate in [Gate::Ready, Gate::HeadOfKey, Gate::Fifo] {
                let ranges = [
                    (0, u64::MAX, 50),
                    (0, 5, 1),
                    (2, 6, 2),
                    (3, 3, 1),
                    (5, 2, 1),
                ];
                for (from, up_to, limit) in ranges.into_iter().chain([(0, 8, 0)]) {
                    let ready = store
                        .ready(partition, &id_, from, up_to, limit, gate)
                        .unwrap();
                    assert_eq!(ready, model.ready(p, id, from, up_to, limit, gate));
                }
                for (until, limit) in [(0, 9), (1, 1), (2, 2), (2, 0), (u64::MAX, 50)] {
                    let due = store.due(partition, &id_, until, limit, gate).unwrap();
                    assert_eq!(due, model.due(p, id, until, limit, gate));
                }
            }
        }
    }
}

fn states() -> impl Strategy<Value = OrderState> {
    let due = option::of(0..4_u64);
    (due, any::<bool>(), option::of(0..9_u64), 0..20_usize).prop_map(
        |(due, ambiguous, first_attempt, kept)| {
            let mut state = OrderState {
                due,
                ambiguous,
                first_attempt,
                ..OrderState::default()
            };
            // Up to a state of several parts.
            let long = samples::state().history.remove(1);
            state.history = vec![
                expediter_types::AttemptRecord {
                    detail: "x".repeat(kept * 20),
                    ..long
                };
                kept
            ];
            state
        },
    )
}

fn orders() -> impl Strategy<Value = Stored> {
    // Around the bounds of parts.
    let sizes = prop_oneof![8 => 0..200_usize, 1 => 3_800..4_200_usize, 1 => 7_800..12_100_usize];
    let of = (
        0..MERCHANTS.len(),
        1..=SEQS,
        option::of(0..KEYS.len()),
        sizes,
    );
    let state = prop_oneof![Just(OrderState::default()), states()];
    (of, 0..4_u64, state).prop_map(|((m, seq, key, size), deadline, state)| {
        let mut payload = vec![b'0' + seq as u8; size];
        payload.push(size as u8);
        let mut stored = samples::with_payload(MERCHANTS[m], seq, Bytes::from(payload));
        stored.deadline = deadline;
        stored.state = state;
        match key {
            Some(key) => with_key(stored, KEYS[key]),
            None => stored,
        }
    })
}

fn ops() -> impl Strategy<Value = StoreOp> {
    let address = || (0..MERCHANTS.len(), 1..=SEQS);
    prop_oneof![
        8 => orders().prop_map(StoreOp::Put),
        4 => (address(), prop_oneof![Just(OrderState::default()), states()]).prop_map(
            |((m, seq), state)| StoreOp::SetState { merchant: merchant(MERCHANTS[m]), seq, state }
        ),
        4 => address().prop_map(
            |(m, seq)| StoreOp::Remove { merchant: merchant(MERCHANTS[m]), seq }
        ),
        1 => (0..9_u64).prop_map(|position| StoreOp::Meta(meta(position))),
        1 => (0..4_u64, prop_oneof![0..3_u64, 190..210_u64, 390..410_u64]).prop_map(
            |(chunk, count)| StoreOp::Repeats { chunk, entries: repeats(chunk, count) }
        ),
        1 => (0..5_u64).prop_map(|below| StoreOp::ForgetRepeats { below }),
    ]
}

/// Batches that are committed together; or a partition that is dropped.
#[derive(Debug, Clone)]
enum Step {
    Commit(Vec<StoreBatch>),
    Drop(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let of = (0..PARTITIONS.len(), vec(ops(), 1..8));
    let batch = of.prop_map(|(p, ops)| batch(PARTITIONS[p], ops));
    let step = prop_oneof![
        12 => vec(batch, 1..4).prop_map(Step::Commit),
        1 => (0..PARTITIONS.len()).prop_map(|p| Step::Drop(PARTITIONS[p])),
    ];
    vec(step, 1..10)
}

fn take(store: &dyn MerchantStore, model: &mut Model, steps: &[Step]) {
    for step in steps {
        match step {
            Step::Commit(batches) => {
                store.commit(batches).unwrap();
                model.commit(batches);
            }
            Step::Drop(p) => {
                store.drop_partition(Partition(*p)).unwrap();
                model.drop_partition(*p);
            }
        }
        agree(store, model);
    }
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(96))]
    #[test]
    fn the_memory_store_answers_as_a_list_would(steps in steps()) {
        take(&MemoryStore::new(), &mut Model::default(), &steps);
    }
}

proptest! {
    #![proptest_config(cases(32))]
    #[test]
    fn the_sled_store_answers_as_a_list_would_also_after_a_restart(
        before in steps(),
        after in steps(),
    ) {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("store");
        let mut model = Model::default();
        let store = opened(&dir);
        take(&store, &mut model, &before);
        drop(store);
        let store = opened(&dir);
        agree(&store, &model);
        take(&store, &mut model, &after);
    }
}

/// Both stores, for what random steps do not reach.
fn both(test: impl Fn(&dyn MerchantStore)) {
    test(&MemoryStore::new());
    let home = tempfile::tempdir().unwrap();
    test(&opened(&home.path().join("store")));
}

#[test]
fn a_long_waiting_backlog_is_looked_at_in_pieces() {
    both(|store| {
        let p = Partition(0);
        let waiting = (1..=700).map(|seq| with_due(order("a", seq), 9));
        store
            .commit(&[batch(0, puts(waiting.chain([order("a", 701)])))])
            .unwrap();
        let (mut from, mut loads) = (0, 0);
        let found = loop {
            let ready = store
                .ready(p, &merchant("a"), from, u64::MAX, 1, Gate::Ready)
                .unwrap();
            loads += 1;
            assert!(ready.next > from);
            from = ready.next;
            if ready.exhausted {
                break ready.orders;
            }
        };
        assert_eq!(found, [order("a", 701)]);
        assert_eq!(loads, 3);
    });
}

#[test]
fn changes_of_one_commit_see_each_other() {
    both(|store| {
        let a = merchant("a");
        let state = OrderState {
            due: Some(5),
            ..OrderState::default()
        };
        let set = StoreOp::SetState {
            merchant: a.clone(),
            seq: 1,
            state,
        };
        let gone = StoreOp::Remove {
            merchant: a.clone(),
            seq: 1,
        };
        let put = StoreOp::Put(with_key(order("a", 1), "k"));
        store
            .commit(&[
                batch(0, vec![put.clone(), set.clone(), gone]),
                batch(0, vec![set]),
            ])
            .unwrap();
        assert_eq!(
            store.partition(Partition(0)).unwrap(),
            StoredPartition::default()
        );
        store.commit(&[batch(0, vec![put])]).unwrap();
        let due = store
            .due(Partition(0), &a, u64::MAX, 9, Gate::Ready)
            .unwrap();
        assert_eq!(due, Due::default());
    });
}

#[test]
fn reads_beside_commits_see_them_whole() {
    both(|store| {
        let a = merchant("a");
        // Several values each, so that a torn read would be noticed.
        let order = |seq, round: u8| {
            let payload = Bytes::from(vec![round; 9_000]);
            with_due(with_key(samples::with_payload("a", seq, payload), "k"), 1)
        };
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                for round in 0..60_u8 {
                    let ops = puts((1..=4).map(|seq| order(seq, round)));
                    store.commit(&[batch(0, ops)]).unwrap();
                    let gone = |seq| StoreOp::Remove {
                        merchant: a.clone(),
                        seq,
                    };
                    store
                        .commit(&[batch(0, (1..=4).map(gone).collect())])
                        .unwrap();
                }
            });
            while !writing.is_finished() {
                let due = store
                    .due(Partition(0), &a, 1, 9, Gate::Ready)
                    .unwrap()
                    .orders;
                let ready = store
                    .ready(Partition(0), &a, 0, 9, 9, Gate::Fifo)
                    .unwrap()
                    .orders;
                for orders in [due, ready] {
                    assert!(orders.is_empty() || orders.len() == 4);
                    let same = |o: &Stored| o.order.payload == orders[0].order.payload;
                    assert!(orders.iter().all(same));
                }
                store.partition(Partition(0)).unwrap();
            }
        });
    });
}

#[test]
fn stores_are_shared_between_threads() {
    fn shared(_: Arc<dyn MerchantStore>) {}
    shared(Arc::new(MemoryStore::new()));
}
