//! What is looked at from time to time rather than counted where it happens.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use expediter_gateway::Health as _;
use expediter_nats::Node;
use expediter_ports::MerchantStore;
use expediter_runtime::{Clock, MerchantDirectory, Platform};
use expediter_telemetry::Metrics;
use expediter_telemetry::metrics::Alarm;
use expediter_types::{ClosedBecause, Seq, UnixMillis};

use super::health::NodeHealth;

const OFTEN: Duration = Duration::from_secs(1);
/// For what the store or the broker has to be asked.
const SELDOM: Duration = Duration::from_secs(10);
/// So many of a partition's next orders to expire are looked at. They differ in how long they had,
/// so that the first is not always the most pressed.
const PRESSED: usize = 4;

/// Keeps the gauges of a node.
pub(super) struct Gauges<S> {
    pub(super) metrics: Arc<Metrics>,
    pub(super) platform: Platform,
    pub(super) directory: Arc<MerchantDirectory>,
    pub(super) store: Arc<S>,
    pub(super) node: Arc<Node>,
    pub(super) health: Arc<NodeHealth>,
}

impl<S: MerchantStore> Gauges<S> {
    /// For ever.
    pub(super) async fn keep(self) {
        tokio::join!(self.often(), self.seldom());
    }

    async fn often(&self) {
        let mut every = tokio::time::interval(OFTEN);
        loop {
            every.tick().await;
            self.refresh();
            for (promise, what) in expediter_core::invariants::take_seen() {
                tracing::error!(promise = promise.as_str(), "a promise is broken: {what}");
            }
        }
    }

    /// May wait for the store or the broker: the others do not wait with it.
    async fn seldom(&self) {
        let mut every = tokio::time::interval(SELDOM);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut oldest = None;
        loop {
            every.tick().await;
            self.look_at_deadlines().await;
            self.look_at_oldest(&mut oldest).await;
        }
    }

    async fn look_at_deadlines(&self) {
        let now = Clock::now().wall;
        let next = self.platform.next_to_expire(PRESSED).await;
        let used = next.iter().map(|order| order.time_used(now));
        self.metrics.deadline_used.set(used.fold(0.0, f64::max));
    }

    /// Sequences of all partitions are of one log: the lowest is the oldest, and the log has it.
    async fn look_at_oldest(&self, known: &mut Option<(Seq, UnixMillis)>) {
        let oldest = self.platform.snapshot().oldest_open;
        if known.map(|(seq, _)| seq) != oldest {
            *known = match oldest {
                None => None,
                Some(seq) => match self.node.published_at(seq).await {
                    Ok(Some(at)) => Some((seq, at)),
                    // It was finished meanwhile.
                    Ok(None) => None,
                    // What was the oldest before is not older than this one.
                    Err(_) => *known,
                },
            };
        }
        let age = known.map(|(_, at)| {
            let at = UNIX_EPOCH + Duration::from_millis(at);
            SystemTime::now().duration_since(at).unwrap_or_default()
        });
        self.metrics.oldest_order_age.set(age.unwrap_or_default());
    }

    fn refresh(&self) {
        let metrics = &self.metrics;
        let figure = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        let wide = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let now = self.platform.snapshot();
        metrics.store_disk.set(wide(self.store.usage().disk_bytes));
        metrics.orders_waiting.set(wide(now.unfinished));
        metrics.orders_in_flight.set(wide(now.in_flight));
        metrics.orders_stored.set(wide(now.stored));
        metrics.orders_unaccounted.set(now.unaccounted);
        metrics.repeats_window.set(figure(now.repeats_window));
        metrics.repeats_limit.set(figure(now.repeats_limit));
        metrics
            .merchants_registered
            .set(figure(self.directory.len()));
        metrics.merchants_active.set(figure(now.active_merchants));
        metrics.merchants_quarantined.set(figure(now.quarantined));
        for (because, count) in ClosedBecause::ALL.into_iter().zip(now.closed) {
            metrics.merchants_closed.of(because).set(figure(count));
        }
        let ready = self.health.ready().iter().all(|check| check.result.is_ok());
        metrics.node_ready.set(i64::from(ready));
        metrics.partitions.set(i64::from(self.node.partitions()));
        metrics.partitions_owned.set(figure(now.partitions));
        metrics.mark_age.set(Duration::from_micros(now.mark_age));
        metrics.capacity_in_flight.set(figure(now.capacity_used));
        metrics.shared_waiting.set(figure(now.shared_waiting));
        metrics.slice_writes.raise_to(now.slice_writes);
        metrics.capacity_limit.set(figure(now.capacity));
        let unread = self.health.events.unread_orders();
        let held = unread.saturating_add(now.capacity_waiting as u64);
        metrics.orders_held_by_node.set(wide(held));
        metrics.capacity_denied.raise_to(now.capacity_denied as u64);
        let alarm = |kind: Alarm, count: usize| metrics.alarms.of(kind).set(figure(count));
        alarm(Alarm::OrdersUnaccounted, usize::from(now.unaccounted != 0));
        alarm(Alarm::PartitionPaused, now.paused);
        alarm(Alarm::MerchantQuarantined, now.quarantined);
        alarm(Alarm::MerchantSuspended, now.closed[1]);
        alarm(Alarm::MerchantMisconfigured, now.closed[2]);
        alarm(Alarm::MerchantUnknown, now.unknown);
        let events = &self.health.events;
        alarm(Alarm::LocalFault, usize::from(events.local_fault()));
    }
}
