use super::*;
use proptest::option::of;
use proptest::prelude::*;

const AT: UnixMillis = 1_770_000_000_000;
const LOG: Incarnation = Incarnation {
    created: 1_760_000_000_000,
    counter: 2,
};

fn merchant() -> MerchantId {
    MerchantId::new("luigis").unwrap()
}

fn read(headers: &[(&str, &str)]) -> Result<Envelope, InvalidOrder> {
    read_order(headers.iter().copied(), &merchant(), 42, AT, LOG)
}

fn reason(headers: &[(&str, &str)]) -> String {
    read(headers).unwrap_err().reason
}

#[test]
fn an_order_without_headers_has_a_derived_id() {
    let envelope = read(&[]).unwrap();
    assert_eq!(envelope.id.as_str(), "1760000000000.2-42");
    assert_eq!(
        (envelope.created, envelope.generation, envelope.test),
        (AT, 1, false)
    );
    assert_eq!(envelope.deadline, None);
}

#[test]
fn the_id_is_the_events_else_the_messages() {
    let both = read(&[("Nats-Msg-Id", "luigis/7"), ("ce-id", "7")]).unwrap();
    assert_eq!(both.id.as_str(), "7");
    assert_eq!(
        read(&[("Nats-Msg-Id", "luigis/7")]).unwrap().id.as_str(),
        "luigis/7"
    );
    assert_eq!(read(&[("Ce-Id", "7")]).unwrap().id.as_str(), "7");
    assert_eq!(
        read(&[("ce-id", ""), ("Nats-Msg-Id", "8")])
            .unwrap()
            .id
            .as_str(),
        "8"
    );
}

#[test]
fn times_are_absolute_or_count_from_the_brokers_timestamp() {
    let envelope = read(&[
        ("Expediter-Deadline", "10m"),
        ("Expediter-Not-Before", "2026-02-02T00:00:00Z"),
    ])
    .unwrap();
    assert_eq!(envelope.deadline, Some(AT + 600_000));
    assert_eq!(envelope.not_before, Some(1_769_990_400_000));
}

#[test]
fn the_original_time_counts_only_with_an_origin() {
    let created = ("Expediter-Created", "2026-01-01T00:00:00Z");
    assert_eq!(read(&[created]).unwrap().created, AT);
    let again = read(&[created, ("Expediter-Origin", "1750000000000.1-9")]).unwrap();
    assert_eq!(again.created, 1_767_225_600_000);
    let incarnation = Incarnation {
        created: 1_750_000_000_000,
        counter: 1,
    };
    assert_eq!(
        again.origin,
        Some(Origin {
            incarnation,
            seq: 9
        })
    );
}

#[test]
fn invalid_headers_are_named() {
    let long = "x".repeat(1025);
    let key = "k".repeat(257);
    for (name, value, part) in [
        ("ce-id", "a b", "order id"),
        ("ce-type", long.as_str(), "1025 bytes, at most 1024"),
        ("ce-source", "a\u{1}b", "control characters"),
        ("Expediter-Key", key.as_str(), "257 bytes, at most 256"),
        (
            "Expediter-Deadline",
            "soon",
            "neither RFC 3339 nor a duration",
        ),
        (
            "Expediter-Not-Before",
            "2026-13-01T00:00:00Z",
            "neither RFC 3339 nor a duration",
        ),
        ("Expediter-Generation", "0", "from 1"),
        ("Expediter-Generation", "+1", "from 1"),
        ("Expediter-Test", "yes", "neither true nor false"),
        ("Expediter-Origin", "1-2", "<created>.<counter>-<sequence>"),
    ] {
        let reason = reason(&[(name, value)]);
        assert!(reason.contains(name) && reason.contains(part), "{reason}");
        assert!(reason.len() <= 200);
    }
    assert!(reason(&[("ce-id", "1"), ("CE-ID", "2")]).contains("given twice"));
}

#[test]
fn a_broken_traceparent_is_dropped() {
    let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    assert_eq!(
        read(&[("traceparent", good)])
            .unwrap()
            .traceparent
            .as_deref(),
        Some(good)
    );
    assert!(is_traceparent(&format!(
        "01{}-more",
        good.trim_start_matches("00")
    )));
    let zero_trace = format!("00-{}-b7ad6b7169203331-01", "0".repeat(32));
    let long = format!("{good}-x");
    let huge = "0".repeat(5000);
    for bad in [
        "",
        "00",
        &zero_trace,
        &long,
        &huge,
        &good.to_uppercase(),
        &good.replace("00-", "ff-"),
    ] {
        assert_eq!(
            read(&[("traceparent", bad)]).unwrap().traceparent,
            None,
            "{bad}"
        );
    }
    let twice = read(&[("traceparent", good), ("Traceparent", good)]).unwrap();
    assert_eq!(twice.traceparent, None);
}

#[test]
fn message_ids_name_merchant_generation_and_order() {
    let id = OrderId::new("o/1").unwrap();
    assert_eq!(msg_id(&merchant(), 1, &id), "luigis/o/1");
    assert_eq!(msg_id(&merchant(), 3, &id), "luigis/3/o/1");
    let mut envelope = read(&[("ce-id", "o/1")]).unwrap();
    assert_eq!(
        order_headers(&envelope)[0],
        (NATS_MSG_ID, "luigis/o/1".into())
    );
    envelope.origin = Some(Origin {
        incarnation: LOG,
        seq: 5,
    });
    assert_eq!(
        order_headers(&envelope)[0],
        (NATS_MSG_ID, "/1760000000000.2-5".into())
    );
}

fn text(max: usize) -> impl Strategy<Value = Option<Arc<str>>> {
    of(proptest::collection::vec("[!-~äé]", 1..max).prop_map(|c| c.concat().into()))
}

prop_compose! {
    fn origins()(created in any::<u64>(), counter in any::<u32>(), seq in any::<u64>()) -> Origin {
        Origin { incarnation: Incarnation { created, counter }, seq }
    }
}

prop_compose! {
    /// An envelope as it comes from a log.
    pub(crate) fn envelopes()(
        id in "[!-~]{1,128}",
        merchant in "[A-Za-z0-9_-]{1,64}",
        generation in 1..=u32::MAX,
        created in 0..=MAX_MILLIS,
        (deadline, not_before) in (of(0..=MAX_MILLIS), of(0..=MAX_MILLIS)),
        key in text(100),
        (event_type, source, time, content_type) in (text(300), text(40), text(40), text(40)),
        traceparent in of("00-[1-9a-f]{32}-[1-9a-f]{16}-[0-9a-f]{2}"),
        priority in prop_oneof![Just(Priority::High), Just(Priority::Normal), Just(Priority::Low)],
        test in any::<bool>(),
        origin in of(origins()),
    ) -> Envelope {
        Envelope {
            id: OrderId::new(&id).unwrap(),
            merchant: MerchantId::new(&merchant).unwrap(),
            generation, created, deadline, not_before, key, priority, event_type, source, time, content_type,
            traceparent: traceparent.map(Into::into), test, origin,
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(envelope in envelopes()) {
        let headers = order_headers(&envelope);
        let headers = headers.iter().map(|(name, value)| (*name, &**value));
        let read = read_order(headers, &envelope.merchant, 1, envelope.created, LOG);
        prop_assert_eq!(read, Ok(envelope));
    }

    #[test]
    fn origins_are_read_back(origin in origins()) {
        prop_assert_eq!(parse_origin(&origin.to_string()), Some(origin));
    }

    #[test]
    fn no_header_panics(values in proptest::collection::vec((0..NAMES.len(), any::<String>()), 0..6)) {
        let headers = values.iter().map(|(name, value)| (NAMES[*name], value.as_str()));
        let _ = read_order(headers, &merchant(), u64::MAX, u64::MAX, LOG);
    }

    #[test]
    fn nearly_valid_headers_do_not_panic(
        deadline in "[0-9T:.Z+-]{0,30}|[0-9]{1,25}(ms|s|m|h|d)",
        origin in "[0-9]{0,25}\\.?[0-9]{0,12}-?[0-9]{0,25}",
        trace in "[0-9a-f-]{50,60}",
    ) {
        let headers = [(DEADLINE, &*deadline), (ORIGIN, &*origin), (TRACEPARENT, &*trace)];
        let _ = read(&headers);
    }
}
