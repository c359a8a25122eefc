//! Orders to put into stores.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use expediter_core::store::{PartitionMeta, Repeat, StoreBatch, StoreOp};
use expediter_core::{Order, OrderState, Stored, payload_hash};
use expediter_store::{Opened, Options, SledStore, open};
use expediter_types::{
    AttemptClass, AttemptRecord, Envelope, Incarnation, MerchantId, OrderId, Origin, Partition, Seq,
};

pub(crate) fn merchant(id: &str) -> MerchantId {
    MerchantId::new(id).unwrap()
}

/// A plain order, with a payload that says which one it is.
pub(crate) fn order(id: &str, seq: Seq) -> Stored {
    with_payload(
        id,
        seq,
        format!("{{\"order\":{seq},\"of\":\"{id}\"}}").into(),
    )
}

pub(crate) fn with_payload(id: &str, seq: Seq, payload: Bytes) -> Stored {
    Stored {
        order: Arc::new(Order {
            seq,
            envelope: Envelope {
                id: OrderId::new(&format!("o-{seq}")).unwrap(),
                merchant: merchant(id),
                generation: 1,
                created: 1_700_000_000_000 + seq,
                deadline: None,
                not_before: None,
                key: None,
                priority: expediter_types::Priority::Normal,
                event_type: None,
                source: None,
                time: None,
                content_type: None,
                traceparent: None,
                test: false,
                origin: None,
            },
            payload_hash: payload_hash(&payload),
            payload,
        }),
        state: OrderState::default(),
        deadline: 1_700_086_400_000 + seq,
    }
}

pub(crate) fn with_key(mut stored: Stored, key: &str) -> Stored {
    let order = Arc::make_mut(&mut stored.order);
    order.envelope.key = Some(key.into());
    stored
}

pub(crate) fn with_due(mut stored: Stored, due: u64) -> Stored {
    stored.state.due = Some(due);
    stored
}

/// An order with everything that an order can have.
pub(crate) fn full(id: &str, seq: Seq) -> Stored {
    let mut stored = order(id, seq);
    stored.state = state();
    let envelope = &mut Arc::make_mut(&mut stored.order).envelope;
    envelope.generation = 3;
    envelope.deadline = Some(1_700_000_600_000);
    envelope.not_before = Some(1_700_000_300_000);
    envelope.key = Some("table-7".into());
    envelope.event_type = Some("order.placed".into());
    envelope.source = Some("/shop/ü".into());
    envelope.time = Some("2023-11-14T22:13:20Z".into());
    envelope.content_type = Some("application/json".into());
    envelope.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    envelope.test = true;
    let incarnation = Incarnation {
        created: 1_690_000_000_000,
        counter: 2,
    };
    envelope.origin = Some(Origin {
        incarnation,
        seq: 99,
    });
    stored
}

/// A state with an attempt of each class.
pub(crate) fn state() -> OrderState {
    let attempt = |(number, class)| AttemptRecord {
        number,
        at: 1_700_000_000_000 + u64::from(number),
        class,
        status: (number % 2 == 0).then_some(500 + number as u16),
        took_ms: 40 + number,
        detail: if number == 1 {
            String::new()
        } else {
            format!("attempt {number}: ü")
        },
    };
    OrderState {
        attempts: 10,
        first_attempt: Some(1_700_000_000_001),
        due: Some(1_700_000_900_000),
        ambiguous: true,
        history: (1..).zip(AttemptClass::ALL).map(attempt).collect(),
    }
}

pub(crate) fn meta(position: Seq) -> PartitionMeta {
    PartitionMeta {
        epoch: 77,
        incarnation: Incarnation {
            created: 1_690_000_000_000,
            counter: 1,
        },
        position,
        last_taken: position + 1,
        last_taken_at: 1_700_000_000_000,
    }
}

pub(crate) fn repeats(from: u64, count: u64) -> Vec<Repeat> {
    let entry = |n: u64| Repeat {
        id: n.wrapping_mul(0x9E37_79B9_7F4A_7C15),
        payload: 7,
        seq: n,
    };
    (from..from + count).map(entry).collect()
}

pub(crate) fn batch(partition: u16, ops: Vec<StoreOp>) -> StoreBatch {
    StoreBatch {
        partition: Partition(partition),
        ops,
    }
}

pub(crate) fn puts(orders: impl IntoIterator<Item = Stored>) -> Vec<StoreOp> {
    orders.into_iter().map(StoreOp::Put).collect()
}

/// Opens a store that must not be broken.
pub(crate) fn opened(dir: &Path) -> SledStore {
    let Opened { store, aside } = open(&Options {
        dir: dir.to_owned(),
        cache_bytes: 32 << 20,
    })
    .unwrap();
    assert_eq!(aside, None);
    store
}

/// Opens the engine without the store. One that was just closed lets go of its lock a little later.
pub(crate) fn raw(dir: &Path) -> sled::Db {
    let config = sled::Config::new().path(dir).flush_every_ms(None);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match config.open() {
            Ok(db) => return db,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::yield_now();
    }
}
