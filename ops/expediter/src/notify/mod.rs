//! Tells the operators' own system by webhook what a person should know now.
//!
//! Constraints: best effort beside the outcomes, which are the truth. Whoever reports an event only
//! takes a short lock: a receiver that is slow, down or flooded costs bounded memory and nobody's
//! time. What is given up is logged and counted.

mod merge;
mod send;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use expediter_core::partition::Event;
use expediter_http::Webhook;
use expediter_runtime::Clock;
use expediter_telemetry::Metrics;
use expediter_telemetry::metrics::Notified;
use expediter_types::{ClosedBecause, DeadReason, NodeName, Partition};
use expediter_wire::notification::{Because, Happened};
use tokio::sync::Notify;

use merge::{At, Merger};

/// What is told, to whom.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) webhook: Webhook,
    pub(crate) node: NodeName,
    pub(crate) events: Vec<Happened>,
    /// At most one notification of a merchant and type in this time.
    pub(crate) every: Duration,
    /// From an event to the last try.
    pub(crate) give_up_after: Duration,
}

/// Takes events of the platform. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Notices(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    options: Options,
    metrics: Arc<Metrics>,
    merger: Mutex<Merger>,
    /// There may be something to tell.
    news: Notify,
    stop: Notify,
}

/// The task that sends.
#[derive(Debug)]
pub(crate) struct Notifier {
    notices: Notices,
    task: tokio::task::JoinHandle<()>,
}

impl Notifier {
    /// Sends from now on.
    pub(crate) fn start(options: Options, metrics: Arc<Metrics>) -> Self {
        let merger = Mutex::new(Merger::new(options.every));
        let notices = Notices(Arc::new(Shared {
            options,
            metrics,
            merger,
            news: Notify::new(),
            stop: Notify::new(),
        }));
        let task = tokio::spawn(send::run(Arc::clone(&notices.0)));
        Self { notices, task }
    }

    pub(crate) fn notices(&self) -> Notices {
        self.notices.clone()
    }

    /// Tries what is left once more, for a few seconds at most.
    pub(crate) async fn stop(self) {
        self.notices.0.stop.notify_one();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the task that notifies has failed");
        }
    }
}

impl Notices {
    /// Something happened in a partition.
    pub(crate) fn event(&self, partition: Partition, event: &Event) {
        let shared = &self.0;
        // Most events are of no concern here: no clock is read for them.
        let at = || At {
            wall: Clock::now().wall,
            mono: Instant::now(),
        };
        let kept = match event {
            Event::Opened { merchant } => return shared.merger().opened(merchant),
            Event::DeadLettered {
                merchant,
                id,
                reason: DeadReason::Ambiguous,
            } if shared.tells(Happened::OrderParked) => {
                let mut merger = shared.merger();
                merger.order(Happened::OrderParked, merchant, id, at())
            }
            Event::Expired { merchant, id } if shared.tells(Happened::OrderExpired) => {
                let mut merger = shared.merger();
                merger.order(Happened::OrderExpired, merchant, id, at())
            }
            Event::Closed { merchant, closure } if shared.tells(Happened::MerchantSuspended) => {
                let because = match closure.because {
                    ClosedBecause::Suspended => Because::Suspended,
                    ClosedBecause::Misconfigured => Because::Misconfigured,
                    // Its credentials and its address are right after all.
                    ClosedBecause::RateLimited | ClosedBecause::Breaker => {
                        return shared.merger().opened(merchant);
                    }
                };
                let mut merger = shared.merger();
                merger.closed(partition, merchant, because, at())
            }
            Event::Quarantined { merchant } if shared.tells(Happened::MerchantSuspended) => {
                let mut merger = shared.merger();
                merger.stopped(merchant, Because::Quarantined, at())
            }
            _ => return,
        };
        if !kept {
            shared.metrics.notifications.of(Notified::GivenUp).inc();
        }
        shared.news.notify_one();
    }

    /// A partition's work ended in this process.
    pub(crate) fn ended(&self, partition: Partition) {
        self.0.merger().ended(partition);
    }
}

impl Shared {
    fn tells(&self, happened: Happened) -> bool {
        self.options.events.contains(&happened)
    }

    fn merger(&self) -> MutexGuard<'_, Merger> {
        self.merger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
