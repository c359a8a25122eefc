use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use expediter_core::recovery::Recovered;
use expediter_core::{Order, payload_hash};
use expediter_ports::fakes::MemoryStore;
use expediter_ports::{
    AttemptRequest, BoxFuture, Courier, IntakeBatch, IntakeSource, LogMessage, MerchantStore,
    PartitionHost, PartitionIntake, PartitionLog, PublishFailure, Purge, Registered, RegistrySink,
    StartPartition, StoreError,
};
use expediter_runtime::{Clock, MerchantDirectory, Options, Platform, PlatformEvents};
use expediter_types::{
    Answer, AttemptClass, Envelope, Idempotency, Incarnation, Merchant, MerchantId, OrderId,
    OutcomeKind, Partition, Record, Seq, Stamp,
};

pub(crate) const PARTITION: Partition = Partition(3);

/// OUTCOMES in memory.
#[derive(Debug, Default)]
pub(crate) struct Log {
    seq: AtomicU64,
    pub(crate) records: Mutex<Vec<Record>>,
}

impl Log {
    pub(crate) fn outcomes(&self) -> HashMap<Seq, OutcomeKind> {
        let mut all = HashMap::new();
        for record in self.records.lock().unwrap().iter() {
            let outcomes = match record {
                Record::Outcomes(group) => group.clone(),
                Record::Dead(letter) => vec![letter.outcome.clone()],
                _ => continue,
            };
            for outcome in outcomes {
                let again = all.insert(outcome.seq, outcome.kind);
                assert!(again.is_none(), "ORD-1: {} has two outcomes", outcome.seq);
            }
        }
        all
    }
}

impl PartitionLog for Log {
    fn publish(&self, _: u64, record: Record) -> BoxFuture<'static, Result<Seq, PublishFailure>> {
        self.records.lock().unwrap().push(record);
        let seq = 1_000 + self.seq.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move { Ok(seq) })
    }
    fn purge(&self, _: Purge) -> BoxFuture<'static, Result<(), PublishFailure>> {
        Box::pin(async { Ok(()) })
    }
    fn marked(&self, _: Seq, _: Seq, _: u64) {}
    fn republish(&self, _: Vec<Arc<Order>>) -> BoxFuture<'static, Result<(), PublishFailure>> {
        Box::pin(async { Ok(()) })
    }
    fn lease_fresh(&self) -> bool {
        true
    }
    fn registered(&self, _: &MerchantId) -> BoxFuture<'static, Option<bool>> {
        Box::pin(async { Some(false) })
    }
}

type Script = dyn Fn(&AttemptRequest) -> (AttemptClass, Duration) + Send + Sync;

/// Answers by a function, and remembers what was sent.
pub(crate) struct Scripted {
    script: Box<Script>,
    pub(crate) sent: Mutex<Vec<(MerchantId, Seq, u32)>>,
}

impl Scripted {
    pub(crate) fn new(
        script: impl Fn(&AttemptRequest) -> (AttemptClass, Duration) + Send + Sync + 'static,
    ) -> Self {
        Self {
            script: Box::new(script),
            sent: Mutex::default(),
        }
    }
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scripted")
    }
}

impl Courier for Scripted {
    fn attempt(&self, request: AttemptRequest) -> BoxFuture<'static, Answer> {
        let sent = (
            request.merchant.id.clone(),
            request.order.seq,
            request.number,
        );
        self.sent.lock().unwrap().push(sent);
        let (class, took) = (self.script)(&request);
        Box::pin(async move {
            tokio::time::sleep(took).await;
            Answer {
                class,
                status: None,
                retry_after: None,
                absent: false,
                detail: class.to_string(),
                excerpt: Bytes::new(),
                took,
            }
        })
    }
}

#[derive(Debug)]
pub(crate) struct Quiet;
impl PlatformEvents for Quiet {
    fn store_failed(&self, error: StoreError) {
        panic!("{error}");
    }
}

pub(crate) struct World {
    pub(crate) platform: Platform,
    pub(crate) directory: Arc<MerchantDirectory>,
    pub(crate) log: Arc<Log>,
    pub(crate) courier: Arc<Scripted>,
    pub(crate) intake: Arc<dyn PartitionIntake>,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) next: AtomicU64,
}

impl World {
    pub(crate) async fn new(
        merchants: Vec<Merchant>,
        options: Options,
        script: impl Fn(&AttemptRequest) -> (AttemptClass, Duration) + Send + Sync + 'static,
    ) -> Self {
        let directory = MerchantDirectory::new();
        for merchant in merchants {
            directory.put(Registered {
                merchant: Arc::new(merchant),
                revision: 1,
            });
        }
        directory.loaded();
        directory.decisions_loaded();
        let store = Arc::new(MemoryStore::default());
        let courier = Arc::new(Scripted::new(script));
        let platform = Platform::start(
            options,
            Arc::clone(&store) as Arc<dyn MerchantStore>,
            Arc::clone(&courier) as _,
            Arc::clone(&directory),
            Arc::new(Quiet),
        )
        .unwrap();
        let log = Arc::new(Log::default());
        let stamp = Stamp {
            token: 7,
            incarnation: Incarnation {
                created: 1,
                counter: 0,
            },
        };
        let recovered = Recovered {
            stamp,
            covers: 7,
            ..Recovered::default()
        };
        let start = StartPartition {
            partition: PARTITION,
            partitions: 1,
            recovered,
            log: Arc::clone(&log) as _,
        };
        let opened = platform.start(start).await.unwrap();
        let intake = opened.intake;
        Self {
            platform,
            directory,
            log,
            courier,
            intake,
            store,
            next: AtomicU64::new(1),
        }
    }

    /// Puts orders into the log.
    pub(crate) async fn publish(&self, merchant: &str, count: u64) -> Vec<Seq> {
        self.publish_keyed(merchant, count, |_| None).await
    }

    /// Puts orders into the log, with keys by their sequences.
    pub(crate) async fn publish_keyed(
        &self,
        merchant: &str,
        count: u64,
        key: impl Fn(Seq) -> Option<String>,
    ) -> Vec<Seq> {
        let now = Clock::now().wall;
        let mut messages = Vec::new();
        for _ in 0..count {
            let seq = self.next.fetch_add(1, Ordering::Relaxed);
            let payload = Bytes::from(format!("{{\"n\":{seq}}}"));
            let envelope = Envelope {
                id: OrderId::new(&format!("o{seq}")).unwrap(),
                merchant: MerchantId::new(merchant).unwrap(),
                generation: 1,
                created: now,
                deadline: None,
                not_before: None,
                key: key(seq).map(Arc::from),
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
            let order = Ok(Arc::new(Order {
                seq,
                envelope,
                payload,
                payload_hash,
            }));
            messages.push(LogMessage {
                seq,
                at: now,
                order,
            });
        }
        let seqs = messages.iter().map(|message| message.seq).collect();
        let source = IntakeSource::Main;
        let batch = IntakeBatch {
            source,
            messages,
            pending_none_below: None,
        };
        self.intake.deliver(batch).await.unwrap();
        seqs
    }

    /// Waits until the condition holds.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds(self) {
            assert!(Instant::now() < deadline, "not in time: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn finished(&self, count: usize) {
        self.until(&format!("{count} outcomes"), |world| {
            world.log.outcomes().len() >= count
        })
        .await;
    }
}

pub(crate) fn merchant(id: &str) -> Merchant {
    let mut merchant = Merchant::to(MerchantId::new(id).unwrap(), "http://127.0.0.1/");
    merchant.adapter.idempotency = Idempotency::Native;
    merchant.retry.initial = Duration::from_millis(10);
    merchant.retry.max = Duration::from_millis(50);
    merchant
}
