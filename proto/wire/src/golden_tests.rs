//! Every format against the bytes under `vectors/`. They are frozen: a change here is a new `v`.

use std::time::Duration;

use bytes::Bytes;
use expediter_types::*;
use serde_json::Value;

use crate::audit::{AuditRecord, AuditResult, AuditTarget, decode_audit, encode_audit};
use crate::control::{
    ControlReply, ControlRequest, Decision, MerchantDecision, OrderStatus, Place, decode_decision,
    decode_reply, decode_request, encode_decision, encode_reply, encode_request,
};
use crate::job::{JobState, decode_job, encode_job};
use crate::nodes::{NodeRecord, decode_node, encode_node};
use crate::notification::{
    Because, Happened, Notification, decode_notification, encode_notification,
};
use crate::records::*;
use crate::registry::{
    Registration, ScopeRegistration, decode_registration, decode_scope, encode_registration,
    encode_scope,
};
use crate::{Rfc3339, manifest, order};

macro_rules! vector {
    ($name:literal) => {
        bytes::Bytes::from_static(include_bytes!(concat!("../vectors/", $name)))
    };
}
pub(crate) use vector;

const AT: UnixMillis = 1_770_000_000_123;

fn stamp() -> Stamp {
    Stamp {
        token: 41,
        incarnation: Incarnation {
            created: 1_769_000_000_000,
            counter: 1,
        },
    }
}

fn merchant() -> MerchantId {
    MerchantId::new("luigis").unwrap()
}

fn id(text: &str) -> OrderId {
    OrderId::new(text).unwrap()
}

#[track_caller]
fn same(actual: &Bytes, expected: &Bytes) {
    let texts = (
        String::from_utf8_lossy(actual),
        String::from_utf8_lossy(expected),
    );
    assert_eq!(texts.0, texts.1);
    assert_eq!(actual, expected);
}

/// The JSON (or the JSON line before the payload) with fields that nobody knows, in every object,
/// and in another order.
pub(crate) fn with_unknown_fields(message: &Bytes) -> Bytes {
    let end = message
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(message.len());
    let mut value: Value = serde_json::from_slice(&message[..end]).unwrap();
    add_unknown(&mut value);
    let mut out = serde_json::to_vec(&value).unwrap();
    out.extend_from_slice(&message[end..]);
    out.into()
}

fn add_unknown(value: &mut Value) {
    match value {
        Value::Object(map) => {
            // Any name is a header's name, or a detail's.
            map.iter_mut()
                .filter(|(name, _)| !["headers", "details"].contains(&name.as_str()))
                .for_each(|(_, v)| add_unknown(v));
            map.insert(
                "a_new_field".into(),
                serde_json::json!({"x": [1, null, "y"]}),
            );
            map.insert("zz_another".into(), serde_json::json!(true));
        }
        Value::Array(list) => list.iter_mut().for_each(add_unknown),
        _ => {}
    }
}

fn attempts() -> Vec<AttemptRecord> {
    let detail = "503 \"busy\"".to_owned();
    let attempt = |number, at, class, status, took_ms, detail| AttemptRecord {
        number,
        at,
        class,
        status,
        took_ms,
        detail,
    };
    vec![
        attempt(1, AT - 900, AttemptClass::Retry, Some(503), 35, detail),
        attempt(
            2,
            AT - 50,
            AttemptClass::Delivered,
            Some(201),
            50,
            String::new(),
        ),
    ]
}

fn envelope() -> Envelope {
    Envelope {
        id: id("A-17"),
        merchant: merchant(),
        generation: 1,
        created: AT - 1000,
        deadline: Some(AT + 600_000),
        not_before: Some(AT - 950),
        key: Some("table 4".into()),
        priority: expediter_types::Priority::Normal,
        event_type: Some("shop.order.placed".into()),
        source: Some("/shop/7".into()),
        time: Some("2026-02-02T02:39:59+00:00".into()),
        content_type: Some("application/json".into()),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        test: false,
        origin: None,
    }
}

fn outcome(seq: Seq, order: &str, kind: OutcomeKind) -> Outcome {
    let created = AT - 1000;
    Outcome {
        seq,
        envelope: order::read_order(
            [("ce-id", order)],
            &merchant(),
            seq,
            created,
            stamp().incarnation,
        )
        .unwrap(),
        kind,
        payload_hash: 0x0123_4567_89ab_cdef,
        at: AT,
        attempts: Vec::new(),
        detail: String::new(),
    }
}

#[test]
fn orders() {
    let origin = Origin {
        incarnation: Incarnation {
            created: 1_768_000_000_000,
            counter: 0,
        },
        seq: 900,
    };
    let republished = Envelope {
        generation: 2,
        test: true,
        origin: Some(origin),
        ..envelope()
    };
    let bare = Envelope {
        id: id("1769000000000.1-1001"),
        created: AT,
        deadline: None,
        not_before: None,
        key: None,
        priority: expediter_types::Priority::Normal,
        event_type: None,
        source: None,
        time: None,
        content_type: None,
        traceparent: None,
        ..envelope()
    };
    for (bytes, envelope, at, written) in [
        (vector!("order.json"), envelope(), AT - 1000, true),
        (vector!("order-republished.json"), republished, AT, true),
        // What another client may send: no header of ours, others that mean nothing here.
        (vector!("order-bare.json"), bare, AT, false),
    ] {
        let message: Value = serde_json::from_slice(&bytes).unwrap();
        let headers: Vec<(&str, &str)> = message["headers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|pair| (pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
            .collect();
        if written {
            let actual = order::order_headers(&envelope);
            assert_eq!(
                actual.iter().map(|(n, v)| (*n, &**v)).collect::<Vec<_>>(),
                headers
            );
        }
        assert_eq!(message["subject"], crate::subjects::publish(&merchant()));
        let read = order::read_order(headers, &merchant(), 1001, at, stamp().incarnation);
        assert_eq!(read, Ok(envelope));
    }
}

#[test]
fn outcome_group() {
    let mut delivered = outcome(1001, "A-17", OutcomeKind::Delivered);
    delivered.attempts = attempts();
    delivered.envelope.key = envelope().key;
    delivered.envelope.traceparent = envelope().traceparent;
    let mut rejected = outcome(1002, "A-18", OutcomeKind::Rejected);
    rejected.detail = "409: \"sold out\"".into();
    rejected.envelope.generation = 2;
    let mut expired = outcome(1003, "A-19", OutcomeKind::Expired);
    expired.envelope.test = true;
    let mut duplicate = outcome(1004, "A-17", OutcomeKind::Duplicate);
    duplicate.envelope.origin = Some(Origin {
        incarnation: Incarnation {
            created: 1_768_000_000_000,
            counter: 0,
        },
        seq: 900,
    });
    let group = vec![delivered, rejected, expired, duplicate];
    let expected = vector!("outcomes.json");
    same(&encode_outcomes(stamp(), &group).unwrap(), &expected);
    for bytes in [expected.clone(), with_unknown_fields(&expected)] {
        assert_eq!(decode_outcomes(&bytes).unwrap(), (stamp(), group.clone()));
        let Ok(WireEntry::Outcomes(read, finished)) = decode_entry("outcomes.3", &bytes) else {
            panic!("no outcomes");
        };
        assert_eq!((read, finished.len(), finished[3].seq), (stamp(), 4, 1004));
    }
}

fn dead_letter(excerpt: &'static [u8]) -> DeadLetter {
    let kind = OutcomeKind::DeadLettered(DeadReason::Ambiguous);
    let mut attempts = attempts();
    attempts[1].class = AttemptClass::Ambiguous;
    attempts[1].status = None;
    attempts[1].detail = "no answer within 35s".into();
    let outcome = Outcome {
        envelope: envelope(),
        attempts,
        detail: "may have arrived".into(),
        ..outcome(1005, "A-20", kind)
    };
    DeadLetter {
        outcome,
        payload: Bytes::from_static(b"{\"pizza\":\n1}\n\xff\x00"),
        excerpt: Bytes::from_static(excerpt),
    }
}

#[test]
fn dead_letters() {
    for (expected, letter) in [
        (vector!("dead.bin"), dead_letter("größer\n".as_bytes())),
        (
            vector!("dead-binary-excerpt.bin"),
            dead_letter(b"\x1f\x8b\xff"),
        ),
    ] {
        same(&encode_dead(stamp(), &letter), &expected);
        for bytes in [expected.clone(), with_unknown_fields(&expected)] {
            assert_eq!(decode_dead(&bytes).unwrap(), (stamp(), letter.clone()));
            let Ok(WireEntry::Outcomes(_, finished)) = decode_entry("dead.3.luigis", &bytes) else {
                panic!("no outcomes");
            };
            assert_eq!(finished[0].kind, Some(letter.outcome.kind));
        }
    }
}

#[test]
fn claims() {
    let held = Claim {
        node: NodeName::new("kitchen-1").unwrap(),
        instance: "f3a9".into(),
        state: ClaimState::Held,
        replaces: 0,
        incarnation: stamp().incarnation,
        cut: 12,
        at: AT,
        crashes: Crashes::default(),
    };
    let state = ClaimState::Released {
        epoch: 41,
        running: vec![1001, 1007],
        busy_until: AT + 35_000,
    };
    let released = Claim {
        state,
        replaces: 41,
        ..held.clone()
    };
    for (expected, claim) in [
        (vector!("claim-held.json"), held),
        (vector!("claim-released.json"), released),
    ] {
        same(&encode_claim(&claim), &expected);
        for bytes in [expected.clone(), with_unknown_fields(&expected)] {
            assert_eq!(decode_claim(&bytes).unwrap(), claim);
        }
    }
}

fn mark() -> Mark {
    let mut finished: roaring::RoaringTreemap = [1003, 1004, 1009, 1 << 33].into_iter().collect();
    finished.insert_range(2000..3000);
    let count = |seq, attempts, first, ambiguous| AttemptCount {
        seq,
        attempts,
        first,
        ambiguous,
    };
    let closed = |name: &str, because| ClosedMerchant {
        merchant: MerchantId::new(name).unwrap(),
        because,
        until: AT + 1000,
        times: 0,
    };
    Mark {
        low_water: 1001,
        seen: 3005,
        finished,
        covers: 57,
        repeats_from: 44,
        attempts: vec![
            count(1002, 3, AT - 500, true),
            count(1005, 1, AT - 100, false),
        ],
        closed: vec![
            closed("luigis", ClosedBecause::RateLimited),
            closed("marios", ClosedBecause::Suspended),
            closed("peachs", ClosedBecause::Misconfigured),
        ],
        unknown_since: vec![(MerchantId::new("bowsers").unwrap(), AT - 2000)],
        parked: Vec::new(),
        spent: Vec::new(),
        unknown: Vec::new(),
        last: false,
        at: AT,
    }
}

#[test]
fn marks() {
    let expected = vector!("mark.json");
    let whole = encode_mark(stamp(), &mark()).unwrap();
    assert!(whole.parts.is_empty());
    same(&whole.commit, &expected);
    for bytes in [expected.clone(), with_unknown_fields(&expected)] {
        assert_eq!(decode_mark(&bytes, &[]).unwrap(), (stamp(), mark()));
    }
}

/// Written only where orders wait behind one that is parked.
#[test]
fn marks_with_parked_orders() {
    let parked = |seq, id: &str, key| ParkedOrder {
        merchant: merchant(),
        seq,
        id: OrderId::new(id).unwrap(),
        generation: 2,
        key,
    };
    let mark = Mark {
        parked: vec![
            parked(1003, "A-18", Some(0x0123_4567_89ab_cdef)),
            parked(1004, "A-19", None),
        ],
        ..mark()
    };
    let expected = vector!("mark-parked.json");
    same(&encode_mark(stamp(), &mark).unwrap().commit, &expected);
    for bytes in [expected.clone(), with_unknown_fields(&expected)] {
        assert_eq!(decode_mark(&bytes, &[]).unwrap(), (stamp(), mark.clone()));
    }
}

#[test]
fn marks_with_quotas_and_an_open_breaker() {
    let merchant = MerchantId::new("luigis").unwrap();
    let spent = |period_s, spent: &[(UnixMillis, u64)]| SpentQuota {
        period: Duration::from_secs(period_s),
        spent: spent.to_vec(),
    };
    let quotas = vec![
        spent(60, &[(AT - 20_000, 7), (AT, 1)]),
        spent(900, &[(AT, 812)]),
    ];
    let mut mark = Mark {
        finished: roaring::RoaringTreemap::new(),
        attempts: Vec::new(),
        unknown_since: Vec::new(),
        spent: vec![(merchant, quotas)],
        unknown: vec![(AT - 90_000, AT - 80_000)],
        last: true,
        ..mark()
    };
    mark.closed.truncate(1);
    mark.closed[0].because = ClosedBecause::Breaker;
    mark.closed[0].times = 3;
    let expected = vector!("mark-quotas.json");
    let whole = encode_mark(stamp(), &mark).unwrap();
    same(&whole.commit, &expected);
    for bytes in [expected.clone(), with_unknown_fields(&expected)] {
        assert_eq!(decode_mark(&bytes, &[]).unwrap(), (stamp(), mark.clone()));
    }
}

#[test]
fn split_marks() {
    // Parts are as large in earnest as these are small; nothing else differs.
    let split = encode_within(stamp(), &mark(), 320).unwrap();
    let parts = [vector!("mark-split.1.bin"), vector!("mark-split.2.bin")];
    let commit = vector!("mark-split.json");
    assert_eq!(split.parts.len(), 2);
    same(&split.parts[0], &parts[0]);
    same(&split.parts[1], &parts[1]);
    same(&split.commit, &commit);
    assert_eq!(decode_mark(&commit, &parts).unwrap(), (stamp(), mark()));
    let newer: Vec<_> = parts.iter().map(with_unknown_fields).collect();
    assert_eq!(
        decode_mark(&with_unknown_fields(&commit), &newer).unwrap(),
        (stamp(), mark())
    );
}

#[test]
fn attempt_marks_and_shifts() {
    let in_flight = vec![(1001, id("A-17")), (1006, id("A/22"))];
    let mark = AttemptMark {
        merchant: merchant(),
        counter: 9,
        in_flight,
    };
    let none = AttemptMark {
        counter: 10,
        in_flight: Vec::new(),
        ..mark.clone()
    };
    for (expected, mark) in [
        (vector!("attempt.json"), mark),
        (vector!("attempt-none.json"), none),
    ] {
        same(&encode_attempts(stamp(), &mark), &expected);
        for bytes in [expected.clone(), with_unknown_fields(&expected)] {
            assert_eq!(decode_attempts(&bytes).unwrap(), (stamp(), mark.clone()));
        }
    }
    let (shift, expected) = (
        ShiftRecord {
            revision: 3,
            from: 1010,
        },
        vector!("shift.json"),
    );
    same(&encode_shift(stamp(), &shift), &expected);
    for bytes in [expected.clone(), with_unknown_fields(&expected)] {
        assert_eq!(decode_shift(&bytes).unwrap(), (stamp(), shift.clone()));
    }
}

fn registered(name: &str, text: &Bytes) -> (String, Registration) {
    let text = String::from_utf8(text.to_vec()).unwrap();
    let merchant = manifest::read(name, &text)
        .unwrap()
        .merchants
        .remove(0)
        .merchant;
    let registration = Registration {
        merchant,
        actor: "ann@kitchen".into(),
        at: AT,
        rolled_back_from: Some(6),
    };
    (text, registration)
}

#[test]
fn registrations() {
    let (text, registration) = registered("flow.toml", &vector!("merchant-flow.toml"));
    assert_eq!(manifest::to_toml(&registration.merchant), text);
    let expected = vector!("registration-flow.json");
    same(&encode_registration(&registration), &expected);
    for bytes in [expected.clone(), with_unknown_fields(&expected)] {
        assert_eq!(decode_registration(&bytes).unwrap(), registration);
    }
}

/// Written before there were flow control's keys: all of them have their defaults.
#[test]
fn registrations_without_flow_control() {
    let (_, registration) = registered("merchant.toml", &vector!("merchant.toml"));
    assert_eq!(registration.merchant.breaker, Breaker::default());
    let retry = Retry {
        max_attempts: 12,
        ..Retry::default()
    };
    assert_eq!(registration.merchant.retry, retry);
    let old = vector!("registration.json");
    for bytes in [old.clone(), with_unknown_fields(&old)] {
        assert_eq!(decode_registration(&bytes).unwrap(), registration);
    }
}

#[test]
fn scopes() {
    let text = String::from_utf8(vector!("scope.toml").to_vec()).unwrap();
    let scope = manifest::read("scope.toml", &text)
        .unwrap()
        .scopes
        .remove(0)
        .scope;
    assert_eq!(manifest::scope_to_toml(&scope), text);
    let registration = ScopeRegistration {
        scope,
        actor: "ann@kitchen".into(),
        at: AT,
    };
    let expected = vector!("scope.json");
    same(&encode_scope(&registration), &expected);
    for bytes in [expected.clone(), with_unknown_fields(&expected)] {
        assert_eq!(
            decode_scope(LimitScope::Group, &bytes).unwrap(),
            registration
        );
    }
}

#[test]
fn nodes() {
    let node = NodeRecord {
        node: NodeName::new("kitchen-1").unwrap(),
        instance: "f3a9".into(),
        version: "0.1.0".into(),
        started: AT,
        partitions: vec![Partition(0), Partition(3)],
        leaving: false,
    };
    let expected = vector!("node.json");
    same(&encode_node(&node), &expected);
    for bytes in [expected.clone(), with_unknown_fields(&expected)] {
        assert_eq!(decode_node(&bytes).unwrap(), node);
    }
}

#[test]
fn audit() {
    let details = serde_json::json!({
        "ended": 3, "changes": [{"key": "limits.rate", "from": "20/s", "to": "5/s"}]
    });
    let record = AuditRecord {
        at: Rfc3339(AT),
        actor: "ann@kitchen".into(),
        verb: "order.cancel".into(),
        target: AuditTarget::order(&merchant(), &id("A-17")),
        reason: "the guest left".into(),
        result: AuditResult::Failed("it is in flight".into()),
        details: details.as_object().cloned().unwrap(),
    };
    let expected = vector!("audit.json");
    same(&encode_audit(&record), &expected);
    for bytes in [expected.clone(), with_unknown_fields(&expected)] {
        assert_eq!(decode_audit(&bytes).unwrap(), record);
    }
}

#[test]
fn job() {
    let state = JobState {
        schedule: "30 9 * * mon-fri".into(),
        timezone: "Europe/Rome".into(),
        settled: Rfc3339(1_770_021_000_000),
        scheduled: Some(Rfc3339(1_770_021_000_000)),
        at: Rfc3339(1_770_021_000_012),
        node: NodeName::new("kitchen-1").unwrap(),
    };
    let expected = vector!("job.json");
    same(&encode_job(&state), &expected);
    let read = decode_job(&with_unknown_fields(&expected)).unwrap();
    assert_eq!(read, state);
}

#[test]
fn control() {
    let decision = MerchantDecision {
        state: Decision::Quarantined,
        reason: "its actor crashed 5 times in a minute".into(),
        actor: "node kitchen-1".into(),
        at: Rfc3339(AT),
    };
    let expected = vector!("decision.json");
    same(&encode_decision(&decision), &expected);
    assert_eq!(
        decode_decision(&with_unknown_fields(&expected)).unwrap(),
        decision
    );

    let request = ControlRequest::OrderShow {
        merchant: merchant(),
        id: id("A-17"),
    };
    let expected = vector!("control-request.json");
    same(&encode_request(&request), &expected);
    assert_eq!(
        decode_request(&with_unknown_fields(&expected)).unwrap(),
        request
    );

    let reply = ControlReply::Order(OrderStatus {
        found: true,
        place: Place::Store,
        seen: 3005,
        seq: Some(1002),
        generation: Some(1),
        created: Some(Rfc3339(AT - 1000)),
        due: Some(Rfc3339(AT + 4000)),
        deadline: Some(Rfc3339(AT + 600_000)),
        ambiguous: false,
        outcome: None,
        attempts: attempts(),
    });
    let expected = vector!("control-reply.json");
    same(&encode_reply(&reply), &expected);
    assert_eq!(
        decode_reply(&with_unknown_fields(&expected)).unwrap(),
        reply
    );
}

#[test]
fn notifications() {
    let orders = Notification {
        happened: Happened::OrderParked,
        node: NodeName::new("kitchen-1").unwrap(),
        merchant: merchant(),
        count: 12,
        first: AT - 40_000,
        last: AT,
        orders: vec![id("A-17"), id("A-18")],
        because: None,
    };
    let closed = Notification {
        happened: Happened::MerchantSuspended,
        count: 1,
        first: AT,
        orders: Vec::new(),
        because: Some(Because::Misconfigured),
        ..orders.clone()
    };
    for (notification, expected) in [
        (orders, vector!("notification-orders.json")),
        (closed, vector!("notification-merchant.json")),
    ] {
        same(&encode_notification(&notification), &expected);
        for bytes in [expected.clone(), with_unknown_fields(&expected)] {
            assert_eq!(decode_notification(&bytes).unwrap(), notification);
        }
    }
}
