use expediter_core::Order;
use expediter_types::Merchant;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

const ORDER_ID: HeaderName = HeaderName::from_static("expediter-order-id");
const MERCHANT: HeaderName = HeaderName::from_static("expediter-merchant");
const ATTEMPT: HeaderName = HeaderName::from_static("expediter-attempt");
const GENERATION: HeaderName = HeaderName::from_static("expediter-generation");
const TEST: HeaderName = HeaderName::from_static("expediter-test");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const CE_ID: HeaderName = HeaderName::from_static("ce-id");
const CE_TYPE: HeaderName = HeaderName::from_static("ce-type");
const CE_SOURCE: HeaderName = HeaderName::from_static("ce-source");
const CE_TIME: HeaderName = HeaderName::from_static("ce-time");
const CE_SPECVERSION: HeaderName = HeaderName::from_static("ce-specversion");

/// Says which order is meant.
pub(crate) fn add_identity(headers: &mut HeaderMap, merchant: &Merchant, order: &Order) {
    for (name, text) in [
        (ORDER_ID, order.envelope.id.as_str()),
        (MERCHANT, merchant.id.as_str()),
    ] {
        if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
            headers.insert(name, value);
        }
    }
}

/// Adds what one attempt says of its order to the manifest's headers, which give way.
///
/// A publisher's value that is not legal in a header is left out: the payload still says what the
/// order is.
pub(crate) fn add_order(
    headers: &mut HeaderMap,
    merchant: &Merchant,
    order: &Order,
    number: u32,
    repeatable: bool,
) {
    add_identity(headers, merchant, order);
    let envelope = &order.envelope;
    let mut set = |name: HeaderName, text: &str| {
        if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
            headers.insert(name, value);
        }
    };
    let id = envelope.id.as_str();
    if repeatable {
        // The same for all attempts and generations of the order.
        set(IDEMPOTENCY_KEY, &format!("{}/{id}", merchant.id));
    }
    let (event_type, source, time) = (&envelope.event_type, &envelope.source, &envelope.time);
    if event_type.is_some() || source.is_some() || time.is_some() {
        set(CE_ID, id);
    }
    if event_type.is_some() && source.is_some() {
        set(CE_SPECVERSION, "1.0");
    }
    let optional = [
        (CE_TYPE, event_type),
        (CE_SOURCE, source),
        (CE_TIME, time),
        (CONTENT_TYPE, &envelope.content_type),
        (TRACEPARENT, &envelope.traceparent),
    ];
    for (name, text) in optional {
        if let Some(text) = text {
            set(name, text);
        }
    }
    headers.insert(ATTEMPT, number.into());
    if envelope.generation > 1 {
        headers.insert(GENERATION, envelope.generation.into());
    }
    if envelope.test {
        headers.insert(TEST, HeaderValue::from_static("true"));
    }
    if order.payload.is_empty() {
        // The client says nothing of an empty body, which some servers answer with 411.
        headers.insert(CONTENT_LENGTH, 0.into());
    }
    let json = HeaderValue::from_static("application/json");
    headers.entry(CONTENT_TYPE).or_insert(json);
}
