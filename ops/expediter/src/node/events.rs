//! What happens in the platform and at the broker, as metrics and notifications.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use expediter_core::partition::Event;
use expediter_nats::NodeEvents;
use expediter_ports::StoreError;
use expediter_runtime::{Platform, PlatformEvents};
use expediter_telemetry::Metrics;
use expediter_telemetry::metrics::{Alarm, Stream};
use expediter_types::{OutcomeKind, Partition};
use tokio::sync::watch;

use crate::notify::Notices;

/// From here on operators are alarmed.
const ALARM_PERCENT: u128 = 80;
/// From here on the room is left for claims, marks and the outcomes of what already runs.
const STOP_PERCENT: u128 = 95;

/// How long our own fault keeps the node from being ready.
const LOCAL_FAULT: Duration = Duration::from_secs(5);

/// Feeds the metrics, and remembers what readiness asks for.
#[derive(Debug)]
pub(crate) struct Events {
    metrics: Arc<Metrics>,
    /// `None`: nobody is notified.
    notices: Option<Notices>,
    started: Instant,
    /// Milliseconds after `started` at which our own fault was last seen; 0: never.
    local_fault: std::sync::atomic::AtomicU64,
    outcomes_full: AtomicBool,
    /// Orders of the log that were not read, where there are any.
    unread: Mutex<BTreeMap<Partition, u64>>,
    /// Set once the platform runs.
    platform: std::sync::OnceLock<Platform>,
    failed: watch::Sender<Option<String>>,
}

impl Events {
    pub(crate) fn new(metrics: Arc<Metrics>, notices: Option<Notices>) -> Arc<Self> {
        Arc::new(Self {
            metrics,
            notices,
            started: Instant::now(),
            local_fault: std::sync::atomic::AtomicU64::new(0),
            outcomes_full: AtomicBool::new(false),
            unread: Mutex::default(),
            platform: std::sync::OnceLock::new(),
            failed: watch::Sender::new(None),
        })
    }

    /// Whose attempts are held when OUTCOMES is full.
    pub(crate) fn set_platform(&self, platform: Platform) {
        let _first = self.platform.set(platform).is_ok();
    }

    /// Resolves with the reason when the process cannot go on.
    pub(crate) async fn failed(&self) -> String {
        let mut failed = self.failed.subscribe();
        let reason = failed.wait_for(Option::is_some).await;
        reason
            .ok()
            .and_then(|reason| reason.clone())
            .unwrap_or_default()
    }

    pub(crate) fn has_failed(&self) -> Option<String> {
        self.failed.borrow().clone()
    }

    pub(crate) fn local_fault(&self) -> bool {
        let at = self.local_fault.load(Ordering::Relaxed);
        at != 0 && self.started.elapsed() < Duration::from_millis(at) + LOCAL_FAULT
    }

    /// Orders in the log that no partition of this node has read.
    pub(crate) fn unread_orders(&self) -> u64 {
        let unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        unread.values().sum()
    }

    pub(crate) fn outcomes_full(&self) -> bool {
        self.outcomes_full.load(Ordering::Relaxed)
    }

    fn stream_size(&self, stream: Stream, bytes: u64, most: i64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.metrics.stream_bytes.of(stream).set(bytes);
        self.metrics.stream_limit.of(stream).set(most.max(0));
    }
}

impl PlatformEvents for Events {
    fn event(&self, partition: Partition, event: &Event) {
        if let Some(notices) = &self.notices {
            notices.event(partition, event);
        }
        match event {
            Event::Taken(count) => self.metrics.orders_taken.add(*count),
            Event::Finished { kind } => {
                self.metrics.orders_finished.of(*kind).inc();
                match kind {
                    OutcomeKind::DeadLettered(reason) => {
                        self.metrics.orders_dead_lettered.of(*reason).inc();
                    }
                    OutcomeKind::Duplicate => self.metrics.duplicates.inc(),
                    _ => {}
                }
            }
            Event::LogLost { .. } => self.metrics.alarms.of(Alarm::LogLost).set(1),
            Event::OutcomesLost => self.metrics.alarms.of(Alarm::OutcomesLost).set(1),
            Event::FirstStart { .. }
            | Event::Closed { .. }
            | Event::Opened { .. }
            | Event::Quarantined { .. }
            | Event::DeadLettered { .. }
            | Event::Expired { .. }
            | Event::UnknownMerchant { .. } => {}
        }
    }

    fn record_written(&self, took: Duration) {
        self.metrics.outcome_records.inc();
        self.metrics.outcome_publish.observe(took);
    }

    fn refused(&self) {
        self.outcomes_full.store(true, Ordering::Relaxed);
    }

    fn ended(&self, partition: Partition) {
        if let Some(notices) = &self.notices {
            notices.ended(partition);
        }
    }

    fn panicked(&self) {
        self.metrics.actor_panics.inc();
    }

    fn local_fault(&self, _detail: &str) {
        let at = self.started.elapsed().as_millis().max(1);
        self.local_fault
            .store(u64::try_from(at).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn store_committed(&self, _ops: usize, took: Duration) {
        self.metrics.store_commit.observe(took);
        self.metrics.store_batches.inc();
    }

    fn store_failed(&self, error: StoreError) {
        let reason = format!("the store failed: {:#}", anyhow::Error::from(error));
        tracing::error!(%reason, "the node stops");
        self.failed.send_replace(Some(reason));
    }
}

impl NodeEvents for Events {
    fn claimed(&self, _partition: Partition) {
        self.metrics.claims.inc();
    }

    fn fenced(&self, _partition: Partition) {
        self.metrics.fenced.inc();
    }

    fn gap(&self, _partition: Partition) {
        self.metrics.intake_gaps.inc();
    }

    fn slow_consumer(&self) {
        self.metrics.slow_consumers.inc();
    }

    fn incarnation(&self, _partition: Partition) {
        self.metrics.log_incarnation_changes.inc();
        self.metrics.alarms.of(Alarm::LogLost).set(1);
    }

    fn purged(&self, messages: u64) {
        self.metrics.log_purged.add(messages);
    }

    fn unread(&self, partition: Partition, orders: u64) {
        let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        match orders {
            0 => unread.remove(&partition),
            more => unread.insert(partition, more),
        };
    }

    fn job_published(&self, late: Duration) {
        self.metrics.jobs_published.inc();
        self.metrics.job_late.set(late);
    }

    fn job_left_out(&self, runs: u64) {
        self.metrics.jobs_left_out.add(runs);
    }

    fn connected(&self, yes: bool) {
        self.metrics
            .alarms
            .of(Alarm::BrokerAway)
            .set(i64::from(!yes));
    }

    fn orders_size(&self, bytes: u64, most: i64) {
        self.stream_size(Stream::Orders, bytes, most);
    }

    fn outcomes_size(&self, bytes: u64, most: i64) {
        self.stream_size(Stream::Outcomes, bytes, most);
        let Some(most) = u64::try_from(most).ok().filter(|most| *most > 0) else {
            return;
        };
        let percent = u128::from(bytes) * 100 / u128::from(most);
        let stopped = percent >= STOP_PERCENT;
        self.metrics
            .alarms
            .of(Alarm::OutcomesFilling)
            .set(i64::from(percent >= ALARM_PERCENT));
        self.metrics
            .alarms
            .of(Alarm::OutcomesStopped)
            .set(i64::from(stopped));
        if self.outcomes_full.swap(stopped, Ordering::Relaxed) != stopped {
            if stopped {
                tracing::error!(
                    percent,
                    "OUTCOMES is nearly full: no attempts start until there is room"
                );
            } else {
                tracing::info!(percent, "OUTCOMES has room again");
            }
        }
        if let Some(platform) = self.platform.get() {
            platform.hold(stopped);
        }
    }
}
