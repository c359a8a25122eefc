use std::sync::Arc;
use std::time::{Duration, SystemTime};

use expediter_core::Order;
use expediter_ports::{AttemptRequest, BoxFuture, Courier};
use expediter_types::{Answer, Envelope, UnixMillis};

use crate::{Metrics, Tracing};

/// Counts and traces the attempts of another courier.
///
/// While traces are on, the merchant gets the `traceparent` of the attempt's span; otherwise the
/// publisher's passes through untouched.
#[derive(Debug)]
pub struct TracedCourier {
    inner: Arc<dyn Courier>,
    metrics: Arc<Metrics>,
    tracing: Tracing,
}

impl TracedCourier {
    /// Wraps `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Courier>, metrics: Arc<Metrics>, tracing: Tracing) -> Self {
        Self {
            inner,
            metrics,
            tracing,
        }
    }
}

impl Courier for TracedCourier {
    fn attempt(&self, mut request: AttemptRequest) -> BoxFuture<'static, Answer> {
        if request.number == 1 {
            self.metrics
                .publish_to_start
                .observe(since(request.order.envelope.created));
        }
        let span = self.tracing.attempt(&request);
        if let Some(traceparent) = span.as_ref().and_then(|span| span.outgoing()) {
            request.order = Arc::new(under(&request.order, traceparent));
        }
        let attempt = self.inner.attempt(request);
        let metrics = self.metrics.clone();
        Box::pin(async move {
            let answer = attempt.await;
            metrics.attempts.of(answer.class).inc();
            metrics.attempt_duration.observe(answer.took);
            if let Some(span) = span {
                span.finish(&answer);
            }
            answer
        })
    }
}

/// The order as the merchant is to see it; the payload is shared, not copied.
fn under(order: &Order, traceparent: String) -> Order {
    Order {
        envelope: Envelope {
            traceparent: Some(traceparent.into()),
            ..order.envelope.clone()
        },
        payload: order.payload.clone(),
        ..*order
    }
}

/// Zero when the broker's clock is ahead of ours.
fn since(wall: UnixMillis) -> Duration {
    let then = SystemTime::UNIX_EPOCH + Duration::from_millis(wall);
    SystemTime::now().duration_since(then).unwrap_or_default()
}
