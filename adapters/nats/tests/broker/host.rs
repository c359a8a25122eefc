use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use expediter_core::recovery::Recovered;
use expediter_core::store::PartitionMeta;
use expediter_nats::{ControlHandler, NodeEvents};
use expediter_ports::{
    BoxFuture, DecisionSubject, IntakeBatch, IntakeClosed, IntakeSource, LogMessage, LogState,
    Opened, PartitionHost, PartitionIntake, PartitionLog, Registered, RegistrySink, StartPartition,
    Stop, Stopped,
};
use expediter_types::{
    AttemptMark, Hold, LimitScope, Mark, MerchantId, OrderId, Outcome, OutcomeKind, Partition,
    Record, Scope, Seq,
};

/// A host that only writes down what it is told, and keeps a store's meta record.
#[derive(Clone, Default)]
pub(crate) struct Host(Arc<Mutex<State>>);

#[derive(Default)]
pub(crate) struct State {
    pub(crate) partitions: BTreeMap<Partition, Work>,
    /// Starts and stops of all partitions, in order.
    pub(crate) story: Vec<(Partition, &'static str)>,
    pub(crate) fenced: u64,
    pub(crate) purged: u64,
    pub(crate) incarnations: u64,
    /// How long a delivery takes.
    pub(crate) slow: Duration,
    /// The next delivery panics.
    pub(crate) panics: bool,
}

#[derive(Default)]
pub(crate) struct Work {
    pub(crate) running: bool,
    pub(crate) starts: Vec<Recovered>,
    pub(crate) log: Option<Arc<dyn PartitionLog>>,
    pub(crate) taken: Vec<LogMessage>,
    pub(crate) fresh: Vec<Seq>,
    pub(crate) seen: Seq,
    pub(crate) lost: Vec<LogState>,
    pub(crate) meta: Option<PartitionMeta>,
    next_record: u64,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Host")
    }
}

impl Host {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(crate) fn running(&self) -> Vec<Partition> {
        let state = self.state();
        state
            .partitions
            .iter()
            .filter(|(_, work)| work.running)
            .map(|(p, _)| *p)
            .collect()
    }

    /// Ids of all orders taken, of all partitions.
    pub(crate) fn ids(&self) -> Vec<String> {
        let state = self.state();
        let taken = state.partitions.values().flat_map(|work| &work.taken);
        let orders = taken.filter_map(|message| message.order.as_ref().ok());
        orders.map(|order| order.envelope.id.to_string()).collect()
    }

    pub(crate) fn last_start(&self, partition: Partition) -> Recovered {
        self.state().partitions[&partition]
            .starts
            .last()
            .unwrap()
            .clone()
    }

    pub(crate) async fn publish(
        &self,
        partition: Partition,
        record: Record,
    ) -> Result<Seq, expediter_ports::PublishFailure> {
        let (log, number) = {
            let mut state = self.state();
            let work = state.partitions.get_mut(&partition).unwrap();
            work.next_record += 1;
            (work.log.clone().unwrap(), work.next_record)
        };
        log.publish(number, record).await
    }

    /// Delivered, as far as the records are concerned.
    pub(crate) async fn finish(&self, partition: Partition, ids: &[&str]) -> Seq {
        let outcomes = {
            let state = self.state();
            let taken = &state.partitions[&partition].taken;
            let orders = taken
                .iter()
                .filter_map(|message| message.order.as_ref().ok());
            let wanted = orders.filter(|order| ids.contains(&order.envelope.id.as_str()));
            wanted
                .map(|order| Outcome {
                    seq: order.seq,
                    envelope: order.envelope.clone(),
                    kind: OutcomeKind::Delivered,
                    payload_hash: order.payload_hash,
                    at: 1,
                    attempts: Vec::new(),
                    detail: String::new(),
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(outcomes.len(), ids.len());
        self.publish(partition, Record::Outcomes(outcomes))
            .await
            .unwrap()
    }

    pub(crate) async fn mark(
        &self,
        partition: Partition,
        low_water: Seq,
        finished: &[Seq],
        covers: Seq,
    ) {
        let seen = self.state().partitions[&partition].seen.max(low_water);
        let mark = Mark {
            low_water,
            seen,
            finished: finished.iter().copied().collect(),
            covers,
            repeats_from: 1,
            attempts: Vec::new(),
            closed: Vec::new(),
            unknown_since: Vec::new(),
            parked: Vec::new(),
            spent: Vec::new(),
            unknown: Vec::new(),
            last: false,
            at: 7,
        };
        self.publish(partition, Record::Mark(Box::new(mark)))
            .await
            .unwrap();
        let log = self.state().partitions[&partition].log.clone().unwrap();
        log.marked(low_water, 0, 0);
    }

    pub(crate) async fn attempts(&self, partition: Partition, merchant: &MerchantId, seq: Seq) {
        let mark = AttemptMark {
            merchant: merchant.clone(),
            counter: 1,
            in_flight: vec![(seq, OrderId::new("flying").unwrap())],
        };
        self.publish(partition, Record::Attempts(mark))
            .await
            .unwrap();
    }
}

impl PartitionHost for Host {
    fn meta(&self, partition: Partition) -> BoxFuture<'static, Option<PartitionMeta>> {
        let meta = self
            .state()
            .partitions
            .get(&partition)
            .and_then(|work| work.meta);
        Box::pin(std::future::ready(meta))
    }

    fn start(&self, start: StartPartition) -> BoxFuture<'static, Result<Opened, String>> {
        let StartPartition {
            partition,
            partitions: _,
            recovered,
            log,
        } = start;
        let mut state = self.state();
        state.story.push((partition, "start"));
        let work = state.partitions.entry(partition).or_default();
        assert!(!work.running, "a partition is started once");
        let trusted = work
            .meta
            .filter(|meta| meta.epoch == recovered.replaced_epoch);
        let position = trusted.map_or(0, |meta| {
            match meta.incarnation == recovered.stamp.incarnation {
                true => meta.position,
                false => meta.position.min(recovered.cut),
            }
        });
        let read_after = position.max(recovered.low_water);
        work.running = true;
        work.seen = read_after;
        work.next_record = 0;
        work.log = Some(log);
        work.meta = Some(PartitionMeta {
            epoch: recovered.stamp.token,
            incarnation: recovered.stamp.incarnation,
            position: read_after,
            last_taken: trusted.map_or(0, |meta| meta.last_taken),
            last_taken_at: trusted.map_or(0, |meta| meta.last_taken_at),
        });
        if trusted.is_some_and(|meta| meta.incarnation != recovered.stamp.incarnation) {
            let meta = work.meta.as_mut().unwrap();
            (meta.last_taken, meta.last_taken_at) = (0, 0);
        }
        work.starts.push(recovered);
        let intake = Arc::new(Intake {
            host: self.clone(),
            partition,
        });
        Box::pin(std::future::ready(Ok(Opened { intake, read_after })))
    }

    fn stop(&self, partition: Partition, how: Stop) -> BoxFuture<'static, Stopped> {
        let mut state = self.state();
        let what = if how == Stop::HandOver {
            "hand over"
        } else {
            "fenced"
        };
        state.story.push((partition, what));
        if let Some(work) = state.partitions.get_mut(&partition) {
            work.running = false;
        }
        Box::pin(std::future::ready(Stopped::default()))
    }
}

struct Intake {
    host: Host,
    partition: Partition,
}

impl fmt::Debug for Intake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Intake")
    }
}

impl PartitionIntake for Intake {
    fn deliver(&self, batch: IntakeBatch) -> BoxFuture<'_, Result<(), IntakeClosed>> {
        Box::pin(async move {
            let slow = self.host.state().slow;
            if batch.source == IntakeSource::Main && !slow.is_zero() {
                tokio::time::sleep(slow).await;
            }
            let panics = std::mem::take(&mut self.host.state().panics);
            assert!(!panics, "provoked");
            let mut state = self.host.state();
            let work = state.partitions.get_mut(&self.partition).unwrap();
            if !work.running {
                return Err(IntakeClosed);
            }
            match batch.source {
                IntakeSource::FreshTail => {
                    work.fresh
                        .extend(batch.messages.iter().map(|message| message.seq));
                }
                IntakeSource::Main => {
                    for message in batch.messages {
                        assert!(message.seq > work.seen, "in sequence");
                        work.seen = message.seq;
                        let meta = work.meta.as_mut().unwrap();
                        meta.position = message.seq;
                        (meta.last_taken, meta.last_taken_at) = (message.seq, message.at);
                        work.taken.push(message);
                    }
                    if let Some(seq) = batch.pending_none_below {
                        assert!(seq >= work.seen, "never back");
                        work.seen = seq;
                    }
                }
            }
            Ok(())
        })
    }

    fn seen(&self) -> Seq {
        self.host.state().partitions[&self.partition].seen
    }

    fn log_lost(&self, lost: LogState) {
        self.host
            .state()
            .partitions
            .get_mut(&self.partition)
            .unwrap()
            .lost
            .push(lost);
    }
}

impl NodeEvents for Host {
    fn fenced(&self, _: Partition) {
        self.state().fenced += 1;
    }

    fn purged(&self, messages: u64) {
        self.state().purged += messages;
    }

    fn incarnation(&self, _: Partition) {
        self.state().incarnations += 1;
    }
}

impl ControlHandler for Host {
    fn handle(&self, partition: Partition, request: Bytes) -> BoxFuture<'static, Bytes> {
        let text = format!("{partition}:{}", String::from_utf8_lossy(&request));
        Box::pin(std::future::ready(text.into()))
    }

    fn handle_node(&self, request: Bytes) -> BoxFuture<'static, Bytes> {
        Box::pin(std::future::ready(request))
    }
}

/// What the registry told.
#[derive(Clone, Default)]
pub(crate) struct Known(
    pub(crate) Arc<Mutex<BTreeMap<String, String>>>,
    pub(crate) Arc<Mutex<Vec<&'static str>>>,
);

impl RegistrySink for Known {
    fn put(&self, entry: Registered) {
        let merchant = entry.merchant;
        assert!(merchant.id.as_str() != "poison", "provoked");
        self.0
            .lock()
            .unwrap()
            .insert(merchant.id.to_string(), merchant.adapter.url.clone());
    }

    fn remove(&self, merchant: &MerchantId) {
        self.0.lock().unwrap().remove(merchant.as_str());
    }

    fn put_scope(&self, scope: Arc<Scope>) {
        let key = format!("{}/{}", scope.kind.as_str(), scope.id);
        let burst = format!("burst {}", scope.burst);
        self.0.lock().unwrap().insert(key, burst);
    }

    fn remove_scope(&self, kind: LimitScope, id: &str) {
        let key = format!("{}/{id}", kind.as_str());
        self.0.lock().unwrap().remove(&key);
    }

    fn loaded(&self) {
        self.1.lock().unwrap().push("loaded");
    }

    fn decided(&self, subject: DecisionSubject, hold: Option<Hold>, _: u64) {
        let key = format!("{subject:?}");
        match hold {
            Some(hold) => {
                let text = format!("{} by {}: {}", hold.state, hold.actor, hold.reason);
                self.0.lock().unwrap().insert(key, text);
            }
            None => drop(self.0.lock().unwrap().remove(&key)),
        }
    }

    fn decisions_loaded(&self) {}

    fn resume(&self, _: &MerchantId) {
        self.1.lock().unwrap().push("resume");
    }
}

impl Known {
    pub(crate) fn urls(&self) -> BTreeMap<String, String> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn heard(&self) -> Vec<&'static str> {
        self.1.lock().unwrap().clone()
    }
}
