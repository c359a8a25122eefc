//! Figures for status pages and metrics.

use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

use expediter_core::partition::PartitionMachine;
use expediter_types::{ClosedBecause, Seq};

use crate::clock::Clock;

/// A partition's figures, refreshed once a second.
#[derive(Debug, Default)]
pub(crate) struct PartitionGauges {
    pub(crate) unfinished: AtomicU64,
    pub(crate) in_flight: AtomicU64,
    pub(crate) stored: AtomicU64,
    pub(crate) active_merchants: AtomicUsize,
    pub(crate) quarantined: AtomicUsize,
    /// 1: no attempt starts, because too many owners crashed.
    pub(crate) paused: AtomicUsize,
    /// Closed merchants, by [`ClosedBecause`].
    pub(crate) closed: [AtomicUsize; ClosedBecause::ALL.len()],
    /// Merchants that have orders and are not registered.
    pub(crate) unknown: AtomicUsize,
    pub(crate) unaccounted: AtomicI64,
    pub(crate) repeats_window: AtomicUsize,
    pub(crate) repeats_limit: AtomicUsize,
    pub(crate) unconfirmed: AtomicUsize,
    /// 0: none.
    pub(crate) oldest_open: AtomicU64,
    /// Moved with every batch.
    pub(crate) seen: AtomicU64,
    /// Monotonic microseconds since when something is not in an acknowledged mark; 0: all is.
    pub(crate) unmarked_since: AtomicU64,
    /// Monotonic microseconds since when the intake waits for the store; 0: it does not.
    pub(crate) intake_waits_since: AtomicU64,
}

impl PartitionGauges {
    /// The intake begins to wait, or goes on.
    pub(crate) fn intake_waits(&self, waits: bool) {
        let since = if waits { Clock::now().mono.max(1) } else { 0 };
        self.intake_waits_since.store(since, Ordering::Relaxed);
    }

    /// As the machine is now; but what moves with every batch.
    pub(crate) fn refresh(&self, machine: &PartitionMachine) {
        self.unfinished
            .store(machine.unfinished(), Ordering::Relaxed);
        self.in_flight
            .store(u64::from(machine.running()), Ordering::Relaxed);
        self.stored
            .store(machine.waiting_in_store(), Ordering::Relaxed);
        self.active_merchants
            .store(machine.active_merchants(), Ordering::Relaxed);
        self.quarantined
            .store(machine.quarantined_merchants(), Ordering::Relaxed);
        self.paused
            .store(usize::from(machine.is_paused()), Ordering::Relaxed);
        self.unknown
            .store(machine.unknown_merchants(), Ordering::Relaxed);
        self.unaccounted
            .store(machine.unaccounted(), Ordering::Relaxed);
        self.repeats_window
            .store(machine.repeats_window(), Ordering::Relaxed);
        self.repeats_limit
            .store(machine.repeats_limit(), Ordering::Relaxed);
        self.unconfirmed
            .store(machine.unconfirmed(), Ordering::Relaxed);
        self.oldest_open
            .store(machine.oldest_open().unwrap_or(0), Ordering::Relaxed);
        let mut closed = [0; ClosedBecause::ALL.len()];
        for because in machine.closed_merchants(Clock::now()) {
            closed[because as usize] += 1;
        }
        for (gauge, count) in self.closed.iter().zip(closed) {
            gauge.store(count, Ordering::Relaxed);
        }
    }
}

/// Figures of the whole process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub partitions: usize,
    pub unfinished: u64,
    pub in_flight: u64,
    pub stored: u64,
    pub active_merchants: usize,
    pub quarantined: usize,
    /// Partitions that are paused because too many owners crashed.
    pub paused: usize,
    /// Closed merchants, by [`ClosedBecause`].
    pub closed: [usize; ClosedBecause::ALL.len()],
    /// Merchants that have orders and are not registered.
    pub unknown: usize,
    pub unaccounted: i64,
    pub repeats_window: usize,
    pub repeats_limit: usize,
    pub unconfirmed: usize,
    /// ORDERS sequence of the oldest unfinished order; `None` without any.
    pub oldest_open: Option<Seq>,
    /// How long something waits for being in a mark, in microseconds; 0: all is.
    pub mark_age: u64,
    pub capacity: usize,
    pub capacity_used: usize,
    pub capacity_denied: usize,
    /// Merchants whose next order could go now but for the node's capacity.
    pub capacity_waiting: usize,
    /// Merchants with a start that waits for a shared limit.
    pub shared_waiting: usize,
    /// Writes of slices of shared limits, since the start.
    pub slice_writes: u64,
    /// Changes that wait for the store.
    pub store_waiting: usize,
    /// How long an intake has been waiting for the store, the longest, in microseconds; 0: none does.
    pub intake_waits: u64,
}

impl Snapshot {
    /// One partition more; `now` in microseconds of the monotonic clock.
    pub(crate) fn add(&mut self, gauges: &PartitionGauges, now: u64) {
        self.partitions += 1;
        self.unfinished += gauges.unfinished.load(Ordering::Relaxed);
        self.in_flight += gauges.in_flight.load(Ordering::Relaxed);
        self.stored += gauges.stored.load(Ordering::Relaxed);
        self.active_merchants += gauges.active_merchants.load(Ordering::Relaxed);
        self.quarantined += gauges.quarantined.load(Ordering::Relaxed);
        self.paused += gauges.paused.load(Ordering::Relaxed);
        for (sum, gauge) in self.closed.iter_mut().zip(&gauges.closed) {
            *sum += gauge.load(Ordering::Relaxed);
        }
        self.unknown += gauges.unknown.load(Ordering::Relaxed);
        self.unaccounted += gauges.unaccounted.load(Ordering::Relaxed);
        self.repeats_window += gauges.repeats_window.load(Ordering::Relaxed);
        self.repeats_limit += gauges.repeats_limit.load(Ordering::Relaxed);
        self.unconfirmed += gauges.unconfirmed.load(Ordering::Relaxed);
        let oldest = gauges.oldest_open.load(Ordering::Relaxed);
        if oldest != 0 {
            self.oldest_open = Some(self.oldest_open.map_or(oldest, |seq| seq.min(oldest)));
        }
        let unmarked = gauges.unmarked_since.load(Ordering::Relaxed);
        if unmarked != 0 {
            self.mark_age = self.mark_age.max(now.saturating_sub(unmarked));
        }
        let waits = gauges.intake_waits_since.load(Ordering::Relaxed);
        if waits != 0 {
            self.intake_waits = self.intake_waits.max(now.saturating_sub(waits));
        }
    }
}
