//! Every metric of the node, in one table.
//!
//! A row makes the field that the code updates, the entry of [`CATALOGUE`], the rendered samples and
//! the line of the reference page, so none of them can be missing. Own code rather than a library,
//! because the table is the point, and because an update must be an atomic addition: no hash of a
//! label, no lock.

mod instrument;
mod label;
mod page;

pub use instrument::{
    BuildInfo, Counter, DurationGauge, Family, Gauge, Histogram, Kind, LabelSet, ShareGauge,
    Violations,
};
pub use label::{Alarm, Label, Notified, Stream};
pub use page::page;

use expediter_types::{AttemptClass, ClosedBecause, DeadReason, OutcomeKind};
use instrument::Instrument;

/// Of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Definition {
    pub name: &'static str,
    pub kind: Kind,
    /// What is counted; `seconds` and `bytes` are also in the name.
    pub unit: &'static str,
    pub help: &'static str,
    pub label: Option<LabelSet>,
}

macro_rules! catalogue {
    ($($field:ident: $instrument:ty, $name:literal, $unit:literal, $help:literal;)*) => {
        /// All metrics, in the order in which they are rendered.
        pub const CATALOGUE: &[Definition] = &[$(Definition {
            name: $name,
            kind: <$instrument as Instrument>::KIND,
            unit: $unit,
            help: $help,
            label: <$instrument as Instrument>::LABEL,
        }),*];

        /// The node's metrics; shared by an `Arc`, updated from any thread.
        #[derive(Debug)]
        pub struct Metrics {
            $(#[doc = $help] pub $field: $instrument,)*
        }

        impl Metrics {
            /// All at zero. `version` goes to `expediter_build_info`.
            #[must_use]
            pub fn new(version: &str) -> Self {
                let empty = Self { $($field: <$instrument as Instrument>::empty(),)* };
                Self { build_info: BuildInfo::of(version), ..empty }
            }

            /// Prometheus' text format 0.0.4 ([`CONTENT_TYPE`]).
            #[must_use]
            pub fn render(&self) -> String {
                // About what a node's page takes.
                let mut out = String::with_capacity(24 * 1024);
                $(
                    out.push_str(concat!("# HELP ", $name, " ", $help, "\n# TYPE ", $name, " "));
                    out.push_str(<$instrument as Instrument>::KIND.as_str());
                    out.push('\n');
                    self.$field.render(&mut out, $name, "");
                )*
                out
            }
        }
    };
}

catalogue! {
    orders_taken: Counter, "expediter_orders_taken_total", "orders",
        "Orders read from the log, repeats and undecodable ones included.";
    orders_finished: Family<Counter, OutcomeKind>, "expediter_orders_finished_total", "orders",
        "Orders whose outcome the broker confirmed.";
    orders_dead_lettered: Family<Counter, DeadReason>, "expediter_orders_dead_lettered_total", "orders",
        "Orders that became dead letters, by reason.";
    attempts: Family<Counter, AttemptClass>, "expediter_attempts_total", "attempts",
        "Attempts that ended, by class.";
    attempt_duration: Histogram, "expediter_attempt_duration_seconds", "seconds",
        "From the start of an attempt to its end.";
    publish_to_start: Histogram, "expediter_publish_to_start_seconds", "seconds",
        "From the broker's timestamp of an order to the start of its attempt number 1.";
    orders_waiting: Gauge, "expediter_orders_waiting", "orders",
        "Orders taken and not finished, in memory or in the store, those in flight included.";
    orders_in_flight: Gauge, "expediter_orders_in_flight", "orders",
        "Orders with a running attempt.";
    orders_stored: Gauge, "expediter_orders_stored", "orders",
        "Orders in the store.";
    orders_unaccounted: Gauge, "expediter_orders_unaccounted", "orders",
        "Orders taken that are neither finished nor waiting; anything but 0 is a fault.";
    oldest_order_age: DurationGauge, "expediter_oldest_order_age_seconds", "seconds",
        "Age of the oldest unfinished order of this node, scheduled ones included; 0 without any.";
    deadline_used: ShareGauge, "expediter_deadline_used_ratio", "share",
        "Share of its time, 0 to 1, that the most pressed of the waiting orders which expire next has used.";
    duplicates: Counter, "expediter_duplicates_total", "orders",
        "Publishers' repeats that were closed without an attempt.";
    repeats_window: Gauge, "expediter_repeats_window", "orders",
        "Order ids among which a publisher's repeat is noticed.";
    repeats_limit: Gauge, "expediter_repeats_limit", "orders",
        "Order ids that the partitions of this node may remember; beyond it the oldest are forgotten.";
    merchants_registered: Gauge, "expediter_merchants_registered", "merchants",
        "Merchants in the registry.";
    merchants_active: Gauge, "expediter_merchants_active", "merchants",
        "Merchants that have an actor.";
    merchants_closed: Family<Gauge, ClosedBecause>, "expediter_merchants_closed", "merchants",
        "Merchants that take no orders for a while, by cause.";
    merchants_quarantined: Gauge, "expediter_merchants_quarantined", "merchants",
        "Merchants stopped because their actor panicked too often.";
    actor_panics: Counter, "expediter_actor_panics_total", "panics",
        "Panics of a merchant's step or attempt.";
    invariant_violations: Violations, "expediter_invariant_violations_total", "violations",
        "Promises (ARCHITECTURE.md) that were seen broken.";
    node_ready: Gauge, "expediter_node_ready", "nodes",
        "1 while /readyz says 200, else 0.";
    partitions: Gauge, "expediter_partitions", "partitions",
        "Partitions of the streams, over all nodes.";
    partitions_owned: Gauge, "expediter_partitions_owned", "partitions",
        "Partitions this node works on.";
    claims: Counter, "expediter_claims_total", "claims",
        "Partitions claimed by this node.";
    fenced: Counter, "expediter_fenced_total", "partitions",
        "Partitions stopped because another claim stands.";
    intake_gaps: Counter, "expediter_intake_gaps_total", "gaps",
        "Times a reader was made anew because messages were missing or late.";
    slow_consumers: Counter, "expediter_nats_slow_consumers_total", "drops",
        "Times a subscription was full and messages were dropped; what reads the log notices and reads again.";
    outcome_records: Counter, "expediter_outcome_records_total", "records",
        "Records confirmed by OUTCOMES; one holds a group of outcomes.";
    outcome_publish: Histogram, "expediter_outcome_publish_seconds", "seconds",
        "From the first publish of a record to its confirmation.";
    mark_age: DurationGauge, "expediter_mark_age_seconds", "seconds",
        "How long something of this node's partitions has waited to be in a mark; 0: all is.";
    jobs_published: Counter, "expediter_job_runs_published_total", "runs",
        "Runs of recurring jobs that the broker confirmed as orders.";
    jobs_left_out: Counter, "expediter_job_runs_left_out_total", "runs",
        "Missed runs of recurring jobs that were left out, as the job's missed policy says.";
    job_late: DurationGauge, "expediter_job_late_seconds", "seconds",
        "From the time of the newest published run of a recurring job to its publish.";
    stream_bytes: Family<Gauge, Stream>, "expediter_stream_bytes", "bytes",
        "Size of a stream, as the broker says.";
    stream_limit: Family<Gauge, Stream>, "expediter_stream_limit_bytes", "bytes",
        "Size above which the broker refuses what is published to the stream; 0: unlimited.";
    log_purged: Counter, "expediter_log_purged_total", "orders",
        "Finished orders purged from the log by this node.";
    log_incarnation_changes: Counter, "expediter_log_incarnation_changes_total", "changes",
        "Times the log was found to be another or shorter than before.";
    store_commit: Histogram, "expediter_store_commit_seconds", "seconds",
        "Duration of a group commit of the store, sync included.";
    store_batches: Counter, "expediter_store_batches_total", "batches",
        "Batches committed to the store; a group commit holds several.";
    store_disk: Gauge, "expediter_store_disk_bytes", "bytes",
        "Size of the store on disk.";
    shared_waiting: Gauge, "expediter_shared_limits_waiting", "merchants",
        "Merchants whose next order waits for a limit of their group, credential or node.";
    slice_writes: Counter, "expediter_slice_writes_total", "writes",
        "Writes of this node's slices of shared limits to SCOPES.";
    capacity_in_flight: Gauge, "expediter_capacity_in_flight", "attempts",
        "Attempts that hold a share of the node's capacity.";
    capacity_limit: Gauge, "expediter_capacity_limit", "attempts",
        "Attempts that the node may have in flight.";
    capacity_denied: Counter, "expediter_capacity_denied_total", "attempts",
        "Attempts that had to wait for capacity.";
    orders_held_by_node: Gauge, "expediter_orders_held_by_node", "orders",
        "Orders that could go now but for the node: those of the log that it has not read, and the next one of each merchant that waits for its capacity.";
    notifications: Family<Counter, Notified>, "expediter_notifications_total", "notifications",
        "Notifications by webhook, by what became of them; a failed try is made again until it is given up.";
    alarms: Family<Gauge, Alarm>, "expediter_alarms", "alarms",
        "What a person should look at now, by kind.";
    build_info: BuildInfo, "expediter_build_info", "info",
        "Always 1; the label says which version runs.";
}
