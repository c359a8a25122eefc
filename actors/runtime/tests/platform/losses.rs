use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use expediter_core::recovery::Recovered;
use expediter_core::store::{PartitionMeta, StoreBatch, StoreOp};
use expediter_core::{Order, OrderState, Stored, payload_hash};
use expediter_ports::fakes::MemoryStore;
use expediter_ports::{
    BoxFuture, MerchantStore, PartitionHost, PartitionLog, PublishFailure, Purge, RegistrySink,
    StartPartition,
};
use expediter_runtime::{MerchantDirectory, Options, Platform};
use expediter_types::{
    AttemptClass, Claim, ClaimState, Envelope, Incarnation, MerchantId, NodeName, OrderId, Record,
    Seq, Stamp,
};

use crate::world::{PARTITION, Quiet, Scripted};

/// Takes orders again only while it works.
#[derive(Debug, Default)]
struct Flaky {
    works: AtomicBool,
    published: AtomicUsize,
}

impl PartitionLog for Flaky {
    fn publish(&self, _: u64, _: Record) -> BoxFuture<'static, Result<Seq, PublishFailure>> {
        Box::pin(std::future::pending())
    }
    fn purge(&self, _: Purge) -> BoxFuture<'static, Result<(), PublishFailure>> {
        Box::pin(async { Ok(()) })
    }
    fn marked(&self, _: Seq, _: Seq, _: u64) {}
    fn republish(&self, orders: Vec<Arc<Order>>) -> BoxFuture<'static, Result<(), PublishFailure>> {
        let works = self.works.load(Ordering::Relaxed);
        if works {
            self.published.fetch_add(orders.len(), Ordering::Relaxed);
        }
        Box::pin(async move {
            works
                .then_some(())
                .ok_or(PublishFailure::Undecided("gone".into()))
        })
    }
    fn lease_fresh(&self) -> bool {
        true
    }
    fn registered(&self, _: &MerchantId) -> BoxFuture<'static, Option<bool>> {
        Box::pin(async { Some(false) })
    }
}

fn order() -> Stored {
    let payload = Bytes::from_static(b"{}");
    let envelope = Envelope {
        id: OrderId::new("o9").unwrap(),
        merchant: MerchantId::new("luigis").unwrap(),
        generation: 1,
        created: 1,
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
    };
    let payload_hash = payload_hash(&payload);
    Stored {
        order: Arc::new(Order {
            seq: 9,
            envelope,
            payload,
            payload_hash,
        }),
        state: OrderState::default(),
        deadline: u64::MAX,
    }
}

fn log_number(counter: u32) -> Incarnation {
    Incarnation {
        created: 1,
        counter,
    }
}

/// A claim of the log that lost everything.
fn claimed(token: Seq, replaces: Seq, before: Seq) -> Recovered {
    let incarnation = log_number(2);
    let replaced = Claim {
        node: NodeName::new("a").unwrap(),
        instance: "i".into(),
        state: ClaimState::Held,
        replaces: before,
        incarnation: log_number(if before == 0 { 1 } else { 2 }),
        cut: 0,
        at: 1,
        crashes: Default::default(),
    };
    Recovered {
        stamp: Stamp { token, incarnation },
        replaced: Some(replaced),
        replaced_epoch: replaces,
        covers: token,
        ..Recovered::default()
    }
}

async fn republished(claims: Vec<(Recovered, bool)>) -> usize {
    let store = Arc::new(MemoryStore::default());
    let meta = PartitionMeta {
        epoch: 5,
        incarnation: log_number(1),
        position: 9,
        last_taken: 9,
        last_taken_at: 1,
    };
    let batch = StoreBatch {
        partition: PARTITION,
        ops: vec![StoreOp::Put(order()), StoreOp::Meta(meta)],
    };
    store.commit(&[batch]).unwrap();
    let directory = MerchantDirectory::new();
    directory.loaded();
    directory.decisions_loaded();
    let courier = Arc::new(Scripted::new(|_| {
        (AttemptClass::Delivered, std::time::Duration::ZERO)
    }));
    let options = Options::default();
    let platform = Platform::start(options, store, courier, directory, Arc::new(Quiet)).unwrap();
    let log = Arc::new(Flaky::default());
    for (recovered, works) in claims {
        log.works.store(works, Ordering::Relaxed);
        let start = StartPartition {
            partition: PARTITION,
            partitions: 1,
            recovered,
            log: Arc::clone(&log) as _,
        };
        assert_eq!(platform.start(start).await.is_ok(), works);
    }
    platform.shut_down().await;
    log.published.load(Ordering::Relaxed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_published_again_stays_over_failed_starts() {
    let claims = vec![
        (claimed(6, 5, 0), false),
        (claimed(7, 6, 5), false),
        (claimed(8, 7, 6), true),
    ];
    assert_eq!(republished(claims).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_between_the_claim_and_the_start_drops_nothing() {
    assert_eq!(republished(vec![(claimed(7, 6, 5), true)]).await, 1);
}
