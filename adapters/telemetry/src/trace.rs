//! A trace per order: each attempt is a span under the publisher's `traceparent`.
//!
//! Orders that come without one get a trace id that follows from merchant, id and generation, so
//! that all attempts of an order are in one trace and are sampled alike, on whichever node and after
//! whichever restart they run. Spans are made with OpenTelemetry's own interface and not through
//! `tracing`: when traces are off an attempt costs one comparison, and no other library's spans (and
//! what they may hold) can reach the collector.

use std::cell::Cell;
use std::time::SystemTime;

use expediter_ports::AttemptRequest;
use expediter_types::{Answer, AttemptClass, Envelope};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanId, SpanKind, Status, TraceFlags, TraceId, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    IdGenerator, RandomIdGenerator, Sampler, SdkTracer, SdkTracerProvider, Span,
    TracerProviderBuilder,
};
use xxhash_rust::xxh3::Xxh3;

/// Low-cardinality by the conventions: the template of the subject, not the merchant.
const SPAN_NAME: &str = "forward orders.{merchant}";

/// Makes spans, or nothing at all. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Tracing {
    tracer: Option<SdkTracer>,
}

impl Tracing {
    /// Makes no spans.
    #[must_use]
    pub fn off() -> Self {
        Self::default()
    }

    pub(crate) fn of(provider: &SdkTracerProvider) -> Self {
        Self {
            tracer: Some(provider.tracer("expediter")),
        }
    }

    /// Whether spans are made and exported.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.tracer.is_some()
    }

    /// Begins the span of an attempt; `None` when traces are off or this order's is not sampled.
    #[must_use]
    pub fn attempt(&self, request: &AttemptRequest) -> Option<AttemptSpan> {
        let tracer = self.tracer.as_ref()?;
        let envelope = &request.order.envelope;
        let parent = match &envelope.traceparent {
            Some(header) => {
                TraceContextPropagator::new().extract_with_context(&Context::new(), &Header(header))
            }
            None => Context::new(),
        };
        let builder = SpanBuilder::from_name(SPAN_NAME).with_kind(SpanKind::Client);
        NEXT_TRACE.set(Some(trace_id(envelope)));
        let mut span = tracer.build_with_context(builder, &parent);
        NEXT_TRACE.set(None);
        if !span.is_recording() {
            return None;
        }
        span.set_attributes(attributes(request));
        Some(AttemptSpan { span: Some(span) })
    }
}

/// The span of one running attempt. Dropped before [`AttemptSpan::finish`], it ends as an error.
#[derive(Debug)]
pub struct AttemptSpan {
    span: Option<Span>,
}

impl AttemptSpan {
    /// The `traceparent` under which the merchant's own spans belong.
    #[must_use]
    pub fn outgoing(&self) -> Option<String> {
        let context = self.span.as_ref()?.span_context();
        let flags = context.trace_flags() & TraceFlags::SAMPLED;
        Some(format!(
            "00-{}-{}-{flags:02x}",
            context.trace_id(),
            context.span_id()
        ))
    }

    /// Ends the span with what came of the attempt. The answer's texts stay out: they may quote
    /// the merchant.
    pub fn finish(mut self, answer: &Answer) {
        let Some(mut span) = self.span.take() else {
            return;
        };
        span.set_attribute(KeyValue::new(
            "expediter.attempt.class",
            answer.class.as_str(),
        ));
        if let Some(status) = answer.status {
            span.set_attribute(KeyValue::new(
                "http.response.status_code",
                i64::from(status),
            ));
        }
        if !matches!(
            answer.class,
            AttemptClass::Delivered | AttemptClass::AlreadyDone
        ) {
            let failed = answer.status.filter(|status| !(200..300).contains(status));
            span.set_attribute(match failed {
                Some(status) => KeyValue::new("error.type", status.to_string()),
                None => KeyValue::new("error.type", answer.class.as_str()),
            });
            span.set_status(Status::error(answer.class.as_str()));
        }
        span.end_with_timestamp(SystemTime::now());
    }
}

impl Drop for AttemptSpan {
    fn drop(&mut self) {
        if let Some(mut span) = self.span.take() {
            span.set_attribute(KeyValue::new("error.type", "abandoned"));
            span.set_status(Status::error("abandoned"));
            span.end_with_timestamp(SystemTime::now());
        }
    }
}

fn attributes(request: &AttemptRequest) -> Vec<KeyValue> {
    let envelope = &request.order.envelope;
    let adapter = &request.merchant.adapter;
    let merchant = envelope.merchant.to_string();
    let mut attributes = vec![
        KeyValue::new("messaging.system", "nats"),
        KeyValue::new("messaging.operation.name", "forward"),
        KeyValue::new("messaging.operation.type", "process"),
        KeyValue::new("messaging.destination.name", format!("orders.{merchant}")),
        KeyValue::new("messaging.destination.template", "orders.{merchant}"),
        KeyValue::new("messaging.message.id", envelope.id.to_string()),
        KeyValue::new("http.request.method", adapter.method.clone()),
        KeyValue::new("expediter.order.id", envelope.id.to_string()),
        KeyValue::new("expediter.order.generation", i64::from(envelope.generation)),
        KeyValue::new("expediter.merchant.id", merchant),
        KeyValue::new("expediter.attempt.number", i64::from(request.number)),
    ];
    if request.number > 1 {
        let resent = i64::from(request.number - 1);
        attributes.push(KeyValue::new("http.request.resend_count", resent));
    }
    if let Some(server) = Server::of(&adapter.url) {
        attributes.push(KeyValue::new("url.scheme", server.scheme));
        attributes.push(KeyValue::new("server.address", server.host.to_owned()));
        if let Some(port) = server.port {
            attributes.push(KeyValue::new("server.port", i64::from(port)));
        }
    }
    attributes
}

/// The part of an http(s) URL that may be told: path, query and user info can hold secrets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Server<'a> {
    pub(crate) scheme: &'static str,
    pub(crate) host: &'a str,
    pub(crate) port: Option<u16>,
}

impl<'a> Server<'a> {
    pub(crate) fn of(url: &'a str) -> Option<Self> {
        let (scheme, rest, usual) = if let Some(rest) = strip_ignoring_case(url, "https://") {
            ("https", rest, 443)
        } else {
            ("http", strip_ignoring_case(url, "http://")?, 80)
        };
        let authority = rest.split(['/', '?', '#']).next()?;
        let address = authority.rsplit('@').next()?;
        let (host, port) = match address.strip_prefix('[') {
            Some(v6) => {
                let (host, port) = v6.split_once(']')?;
                (host, port.strip_prefix(':'))
            }
            None => match address.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (address, None),
            },
        };
        let port = match port {
            Some(port) => port.parse().ok(),
            None => Some(usual),
        };
        (!host.is_empty()).then_some(Self { scheme, host, port })
    }
}

fn strip_ignoring_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

struct Header<'a>(&'a str);

impl Extractor for Header<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == "traceparent").then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent"]
    }
}

thread_local! {
    /// The trace id for a span that is begun on this thread now and has no parent.
    static NEXT_TRACE: Cell<Option<TraceId>> = const { Cell::new(None) };
}

/// Trace ids from the order, span ids at random.
#[derive(Debug, Default)]
struct OrderIds(RandomIdGenerator);

impl IdGenerator for OrderIds {
    fn new_trace_id(&self) -> TraceId {
        NEXT_TRACE.take().unwrap_or_else(|| self.0.new_trace_id())
    }

    fn new_span_id(&self) -> SpanId {
        self.0.new_span_id()
    }
}

fn trace_id(envelope: &Envelope) -> TraceId {
    let mut hash = Xxh3::new();
    hash.update(envelope.merchant.as_str().as_bytes());
    // In neither id's alphabet, so that no two orders hash the same bytes.
    hash.update(b"\n");
    hash.update(envelope.id.as_str().as_bytes());
    hash.update(b"\n");
    hash.update(&envelope.generation.to_be_bytes());
    // 0 is no trace id.
    TraceId::from(hash.digest128().max(1))
}

/// A provider whose spans continue their publisher's decision, or else are sampled by `ratio`.
pub(crate) fn provider(ratio: f64) -> TracerProviderBuilder {
    let root = Sampler::TraceIdRatioBased(ratio);
    SdkTracerProvider::builder()
        .with_id_generator(OrderIds::default())
        .with_sampler(Sampler::ParentBased(Box::new(root)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_scheme_host_and_port_of_a_url_are_told() {
        let server = |url| Server::of(url).map(|s| (s.scheme, s.host, s.port));
        assert_eq!(
            server("https://pos.example/a?key=x"),
            Some(("https", "pos.example", Some(443)))
        );
        assert_eq!(
            server("http://u:p@pos.example:81"),
            Some(("http", "pos.example", Some(81)))
        );
        assert_eq!(
            server("HTTP://[::1]:8080/x@y"),
            Some(("http", "::1", Some(8080)))
        );
        assert_eq!(server("http://[::1]"), Some(("http", "::1", Some(80))));
        for bad in [
            "ftp://x",
            "http://",
            "http:///x",
            "pos.example",
            "http://[::1",
            "é",
            "",
        ] {
            assert_eq!(server(bad), None, "{bad}");
        }
    }
}
