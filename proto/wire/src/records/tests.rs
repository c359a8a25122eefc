use std::time::Duration;

use expediter_types::*;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use roaring::RoaringTreemap;

use super::*;
use crate::order::tests::envelopes;
use crate::time::MAX_MILLIS;

const P: Partition = Partition(3);

fn stamp() -> Stamp {
    Stamp {
        token: 77,
        incarnation: Incarnation {
            created: 1_760_000_000_000,
            counter: 2,
        },
    }
}

fn newer(bytes: &Bytes) -> Bytes {
    let text = String::from_utf8_lossy(bytes).replacen("\"v\":1", "\"v\":2", 1);
    text.replacen("\"seq\"", "\"sequence\"", 1)
        .into_bytes()
        .into()
}

prop_compose! {
    fn attempts()(
        number in any::<u32>(),
        at in 0..=MAX_MILLIS,
        class in 0..AttemptClass::ALL.len(),
        status in of(100..600_u16),
        took_ms in any::<u32>(),
        detail in ".{0,30}",
    ) -> AttemptRecord {
        AttemptRecord { number, at, class: AttemptClass::ALL[class], status, took_ms, detail }
    }
}

fn kinds() -> impl Strategy<Value = OutcomeKind> {
    prop_oneof![
        Just(OutcomeKind::Delivered),
        Just(OutcomeKind::Rejected),
        Just(OutcomeKind::Expired),
        Just(OutcomeKind::Cancelled),
        Just(OutcomeKind::Duplicate),
        (0..DeadReason::ALL.len()).prop_map(|n| OutcomeKind::DeadLettered(DeadReason::ALL[n])),
    ]
}

prop_compose! {
    fn outcomes_of()(
        seq in any::<u64>(),
        envelope in envelopes(),
        kind in kinds(),
        payload_hash in any::<u64>(),
        at in 0..=MAX_MILLIS,
        attempts in vec(attempts(), 0..4),
        detail in ".{0,40}",
    ) -> Outcome {
        Outcome { seq, envelope, kind, payload_hash, at, attempts, detail }
    }
}

/// What a group keeps of an envelope.
fn kept(mut outcome: Outcome) -> Outcome {
    let e = &mut outcome.envelope;
    (e.deadline, e.not_before) = (None, None);
    (e.event_type, e.source, e.time, e.content_type) = (None, None, None, None);
    outcome
}

fn finished(outcome: &Outcome) -> WireFinished {
    WireFinished {
        seq: outcome.seq,
        merchant: outcome.envelope.merchant.clone(),
        id: outcome.envelope.id.clone(),
        generation: outcome.envelope.generation,
        payload_hash: outcome.payload_hash,
        key: outcome.envelope.key.clone(),
        kind: Some(outcome.kind),
    }
}

prop_compose! {
    fn counts()(
        seq in any::<u64>(), attempts in any::<u32>(), first in 0..=MAX_MILLIS, ambiguous in any::<bool>(),
    ) -> AttemptCount {
        AttemptCount { seq, attempts, first, ambiguous }
    }
}

fn ids() -> impl Strategy<Value = MerchantId> {
    "[A-Za-z0-9_-]{1,64}".prop_map(|id| MerchantId::new(&id).unwrap())
}

prop_compose! {
    fn parked()(
        merchant in ids(),
        id in "[!-~]{1,128}",
        (seq, generation) in any::<(u64, u32)>(),
        key in of(any::<u64>()),
    ) -> ParkedOrder {
        ParkedOrder { merchant, seq, id: OrderId::new(&id).unwrap(), generation, key }
    }
}

prop_compose! {
    fn marks()(
        (low_water, seen, covers, repeats_from) in any::<(u64, u64, u64, u64)>(),
        finished in vec((any::<u64>(), 1..3000_u64), 0..6),
        attempts in vec(counts(), 0..4),
        closed in vec((ids(), 0..4_usize, 0..=MAX_MILLIS, 0..3_u32), 0..3),
        spent in vec((ids(), vec((0..90_000_000_u64, vec((0..=MAX_MILLIS, any::<u64>()), 0..3)), 0..3)), 0..3),
        unknown in vec((0..=MAX_MILLIS, 0..=MAX_MILLIS), 0..3),
        last in any::<bool>(),
        unknown_since in vec((ids(), 0..=MAX_MILLIS), 0..3),
        parked in vec(parked(), 0..3),
        at in 0..=MAX_MILLIS,
    ) -> Mark {
        let closed = closed.into_iter().map(|(merchant, cause, until, times)| {
            ClosedMerchant { merchant, because: ClosedBecause::ALL[cause], until, times }
        });
        let quota = |(period, spent)| SpentQuota { period: Duration::from_millis(period), spent };
        let spent = spent.into_iter().map(|(merchant, quotas)| {
            (merchant, quotas.into_iter().map(quota).collect())
        });
        let mut set = RoaringTreemap::new();
        for (from, len) in finished {
            set.insert_range(from..=from.saturating_add(len));
        }
        Mark {
            low_water, seen, finished: set, covers, repeats_from, attempts,
            closed: closed.collect(), unknown_since, parked, spent: spent.collect(), unknown, last, at,
        }
    }
}

prop_compose! {
    fn claims()(
        node in "[A-Za-z0-9_-]{1,64}",
        instance in ".{0,40}",
        released in of((any::<u64>(), vec(any::<u64>(), 0..5), 0..=MAX_MILLIS)),
        (replaces, created, counter, cut) in any::<(u64, u64, u32, u64)>(),
        at in 0..=MAX_MILLIS,
        crashes in vec((0..=MAX_MILLIS, ".{0,20}"), 0..4),
        paused in any::<bool>(),
    ) -> Claim {
        let state = match released {
            Some((epoch, running, busy_until)) => ClaimState::Released { epoch, running, busy_until },
            None => ClaimState::Held,
        };
        Claim {
            node: NodeName::new(&node).unwrap(), instance, state, replaces,
            incarnation: Incarnation { created, counter }, cut, at,
            crashes: Crashes {
                of: crashes.into_iter().map(|(at, instance)| Crash { at, instance }).collect(),
                paused,
            },
        }
    }
}

fn one(record: &Record) -> Message {
    let mut messages = encode_record(P, stamp(), record).unwrap();
    assert_eq!(messages.len(), 1);
    messages.remove(0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn outcomes_are_read_back(group in vec(outcomes_of(), 0..4)) {
        let message = one(&Record::Outcomes(group.clone()));
        let kept: Vec<_> = group.into_iter().map(kept).collect();
        prop_assert_eq!(decode_outcomes(&message.payload).unwrap(), (stamp(), kept.clone()));
        let entry = decode_entry(&message.subject, &message.payload).unwrap();
        prop_assert_eq!(entry, WireEntry::Outcomes(stamp(), kept.iter().map(finished).collect()));
        if !kept.is_empty() {
            let newer = decode_outcomes(&newer(&message.payload)).unwrap_err().to_string();
            prop_assert!(newer.contains("newer version"), "{}", newer);
        }
    }

    #[test]
    fn dead_letters_are_read_back_whole(
        outcome in outcomes_of(),
        payload in vec(any::<u8>(), 0..100),
        excerpt in prop_oneof![vec(any::<u8>(), 0..50), ".{0,50}".prop_map(String::into_bytes)],
    ) {
        let letter = DeadLetter { outcome, payload: payload.into(), excerpt: excerpt.into() };
        let message = one(&Record::Dead(Box::new(letter.clone())));
        prop_assert_eq!(decode_dead(&message.payload).unwrap(), (stamp(), letter.clone()));
        let entry = decode_entry(&message.subject, &message.payload).unwrap();
        prop_assert_eq!(entry, WireEntry::Outcomes(stamp(), vec![finished(&letter.outcome)]));
    }

    #[test]
    fn marks_are_read_back(mark in marks()) {
        let message = one(&Record::Mark(Box::new(mark.clone())));
        prop_assert_eq!(decode_mark(&message.payload, &[]).unwrap(), (stamp(), mark.clone()));
        let Ok(WireEntry::Mark(commit)) = decode_entry(&message.subject, &message.payload) else {
            panic!("no mark");
        };
        prop_assert_eq!(MarkReader::default().commit(&commit).unwrap(), (stamp(), mark));
    }

    /// Runs are another container in memory; what the owner does with the set must not notice.
    #[test]
    fn a_set_that_was_read_works_on(
        mark in marks(),
        inserted in vec((0..200_000_u64, 1..400_u64), 0..5),
        removed in vec((0..200_000_u64, 1..70_000_u64), 0..3),
    ) {
        let mut own = mark.finished.clone();
        own.insert_range(500..150_000);
        let encoded = encode_mark(stamp(), &Mark { finished: own.clone(), ..mark }).unwrap();
        let mut read = decode_mark(&encoded.commit, &encoded.parts).unwrap().1.finished;
        let mut more = RoaringTreemap::new();
        for (from, len) in inserted {
            own.insert(from);
            read.insert(from);
            more.insert_range(from..from + len);
        }
        own |= &more;
        read |= &more;
        for (from, len) in removed {
            own.remove_range(from..from + len);
            read.remove_range(from..from + len);
            prop_assert_eq!(own.rank(from), read.rank(from));
        }
        prop_assert_eq!(own.len(), read.len());
        prop_assert!(own.iter().eq(read.iter()));
    }

    #[test]
    fn claims_are_read_back(claim in claims()) {
        let bytes = encode_claim(&claim);
        prop_assert_eq!(decode_entry("claim.3", &bytes).unwrap(), WireEntry::Claim(claim));
        let newer = matches!(decode_claim(&newer(&bytes)), Err(WireError::Newer { v: 2, .. }));
        prop_assert!(newer);
    }

    #[test]
    fn attempt_marks_are_read_back(
        merchant in ids(), counter in any::<u64>(), listed in vec((any::<u64>(), "[!-~]{1,128}"), 0..4),
    ) {
        let in_flight = listed.into_iter().map(|(seq, id)| (seq, OrderId::new(&id).unwrap()));
        let mark = AttemptMark { merchant, counter, in_flight: in_flight.collect() };
        let message = one(&Record::Attempts(mark.clone()));
        let entry = decode_entry(&message.subject, &message.payload).unwrap();
        prop_assert_eq!(entry, WireEntry::Attempts(stamp(), mark));
    }

    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..300)) {
        let bytes = Bytes::from(bytes);
        for subject in ["claim.1", "outcomes.1", "dead.1.a", "mark.1", "mark.1.1", "attempt.1.a", "shift.1"] {
            let _ = decode_entry(subject, &bytes);
        }
        let _ = (decode_outcomes(&bytes), decode_dead(&bytes), decode_mark(&bytes, &[]));
    }

    #[test]
    fn no_damage_panics(mark in marks(), group in vec(outcomes_of(), 1..3), at in any::<usize>(), byte in any::<u8>()) {
        for record in [Record::Mark(Box::new(mark)), Record::Outcomes(group)] {
            let message = one(&record);
            let mut bytes = message.payload.to_vec();
            let place = at % bytes.len();
            bytes[place] = byte;
            let bytes = Bytes::from(bytes);
            let _ = (decode_entry(&message.subject, &bytes), decode_mark(&bytes, &[]), decode_outcomes(&bytes));
        }
    }

    #[test]
    fn no_bitmap_panics(bytes in vec(any::<u8>(), 0..200), cookie in any::<bool>()) {
        use base64::Engine as _;
        let mut bitmap = vec![1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bitmap.extend(if cookie { [0x3a, 0x30, 0, 0] } else { [0x3b, 0x30, 1, 0] });
        bitmap.extend(bytes);
        let bitmap = base64::engine::general_purpose::STANDARD.encode(bitmap);
        let json = format!(
            r#"{{"v":1,"token":1,"incarnation":{{"created":1,"counter":0}},"low_water":1,"seen":1,"covers":1,"repeats_from":1,"at":"2026-01-01T00:00:00Z","content":{{"finished":"{bitmap}","attempts":[],"closed":[],"unknown_since":[]}}}}"#
        );
        let _ = decode_mark(&json.into(), &[]);
    }
}

fn a_mark(finished: RoaringTreemap) -> Mark {
    Mark {
        low_water: 10,
        seen: 90,
        finished,
        covers: 70,
        repeats_from: 60,
        attempts: Vec::new(),
        closed: Vec::new(),
        unknown_since: Vec::new(),
        parked: Vec::new(),
        spent: Vec::new(),
        unknown: Vec::new(),
        last: false,
        at: 1_770_000_000_000,
    }
}

/// One that no runs shorten.
fn large_mark() -> Mark {
    a_mark((0..700_000_u64).map(|n| n * 3 * 7 % 9_999_991).collect())
}

#[test]
fn a_large_mark_is_split_and_holds_only_when_it_is_complete() {
    let mark = large_mark();
    let messages = encode_record(P, stamp(), &Record::Mark(Box::new(mark.clone()))).unwrap();
    let subjects: Vec<_> = messages.iter().map(|m| m.subject.as_str()).collect();
    assert!(messages.len() >= 3, "{subjects:?}");
    assert_eq!((subjects[0], subjects[1]), ("mark.3.1", "mark.3.2"));
    assert_eq!(*subjects.last().unwrap(), "mark.3");
    assert!(messages.iter().all(|m| m.payload.len() <= PART_BYTES + 256));

    let mut reader = MarkReader::default();
    let mut feed = |message: &Message| match decode_entry(&message.subject, &message.payload) {
        Ok(WireEntry::MarkPart(part)) => {
            reader.part(part);
            None
        }
        Ok(WireEntry::Mark(commit)) => Some(reader.commit(&commit)),
        other => panic!("{other:?}"),
    };
    // A mark that was never committed does no harm to the next one.
    assert!(feed(&messages[1]).is_none());
    let mut last = None;
    messages.iter().for_each(|message| last = feed(message));
    assert_eq!(last.unwrap().unwrap(), (stamp(), mark));
    // Its parts were used up.
    assert!(feed(messages.last().unwrap()).unwrap().is_err());
}

#[test]
fn damaged_or_foreign_parts_are_noticed() {
    let MarkParts { parts, commit } = encode_mark(stamp(), &large_mark()).unwrap();
    assert!(decode_mark(&commit, &parts).is_ok());
    let mut damaged = parts.clone();
    let mut bytes = damaged[0].to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    damaged[0] = bytes.into();
    assert!(
        decode_mark(&commit, &damaged)
            .unwrap_err()
            .to_string()
            .contains("not those")
    );
    let other = Stamp {
        token: 78,
        ..stamp()
    };
    let foreign = encode_mark(other, &large_mark()).unwrap().parts;
    assert!(
        decode_mark(&commit, &foreign)
            .unwrap_err()
            .to_string()
            .contains("missing")
    );
    let swapped: Vec<_> = parts.iter().rev().cloned().collect();
    assert!(decode_mark(&commit, &swapped).is_err());
}

#[test]
fn a_million_finished_in_a_row_are_a_small_mark() {
    let mut finished = RoaringTreemap::new();
    finished.insert_range(20..1_000_020);
    let MarkParts { parts, commit } = encode_mark(stamp(), &a_mark(finished)).unwrap();
    assert!(parts.is_empty() && commit.len() < 1024, "{}", commit.len());
}

fn long_outcome(attempts: usize) -> Outcome {
    let id = MerchantId::new("luigis").unwrap();
    let headers = [("ce-id", "7")];
    let attempt = AttemptRecord {
        number: 1,
        at: 0,
        class: AttemptClass::Retry,
        status: None,
        took_ms: 1,
        detail: "\u{1}".repeat(200),
    };
    Outcome {
        seq: 7,
        envelope: crate::order::read_order(headers, &id, 7, 0, Incarnation::default()).unwrap(),
        kind: OutcomeKind::DeadLettered(DeadReason::AttemptsExhausted),
        payload_hash: 0,
        at: 0,
        attempts: vec![attempt; attempts],
        detail: "x".repeat(300),
    }
}

#[test]
fn a_group_that_does_not_fit_is_cut() {
    let group = vec![long_outcome(16); 500];
    let bytes = encode_outcomes(stamp(), &group).unwrap();
    assert!(bytes.len() <= MAX_GROUP);
    assert_eq!(decode_outcomes(&bytes).unwrap().1.len(), 500);
    let huge = vec![long_outcome(16); 5000];
    assert!(matches!(
        encode_outcomes(stamp(), &huge),
        Err(WireError::TooLarge { .. })
    ));
}

#[test]
fn a_dead_letters_line_is_cut() {
    let letter = DeadLetter {
        outcome: long_outcome(100),
        payload: Bytes::from_static(b"{}\n{}"),
        excerpt: Bytes::from_static(&[1; MAX_EXCERPT]),
    };
    let bytes = encode_dead(stamp(), &letter);
    assert!(bytes.len() <= MAX_LINE + 6);
    let (_, read) = decode_dead(&bytes).unwrap();
    assert_eq!(
        (&read.payload, &read.excerpt),
        (&letter.payload, &letter.excerpt)
    );
    assert_eq!(read.outcome.attempts.len(), 100);
    assert_eq!(read.outcome.attempts[0].detail, "");

    let absurd = DeadLetter {
        excerpt: vec![1; 100_000].into(),
        ..letter
    };
    assert!(encode_dead(stamp(), &absurd).len() <= MAX_LINE + 6);
}

#[test]
fn an_outcome_of_a_newer_version_still_finishes_its_sequence() {
    let bytes = encode_outcomes(stamp(), &[long_outcome(0)]).unwrap();
    let text = String::from_utf8(bytes.to_vec())
        .unwrap()
        .replace("dead_lettered", "teleported");
    let Ok(WireEntry::Outcomes(_, finished)) = decode_entry("outcomes.3", &text.clone().into())
    else {
        panic!("no outcomes");
    };
    assert_eq!((finished[0].seq, finished[0].kind), (7, None));
    assert!(decode_outcomes(text.as_bytes()).is_err());
}

#[test]
fn shifts_are_read_back() {
    let shift = ShiftRecord {
        revision: 4,
        from: 100,
    };
    let entry = decode_entry("shift.3", &encode_shift(stamp(), &shift)).unwrap();
    assert_eq!(entry, WireEntry::Shift(stamp(), shift));
    assert!(matches!(
        decode_entry("orders.3", &Bytes::new()),
        Err(WireError::Subject { .. })
    ));
}

proptest! {
    /// Older versions wrote when owners crashed, and not which process it was.
    #[test]
    fn crashes_of_an_older_version_are_read(claim in claims()) {
        let mut record: serde_json::Value = serde_json::from_slice(&encode_claim(&claim)).unwrap();
        record.as_object_mut().unwrap().remove("crashed");
        let read = decode_claim(&serde_json::to_vec(&record).unwrap()).unwrap();
        let times = |claim: &Claim| claim.crashes.of.iter().map(|c| c.at).collect::<Vec<_>>();
        prop_assert_eq!(times(&read), times(&claim));
        prop_assert!(read.crashes.of.iter().all(|crash| crash.instance.is_empty()));
    }
}
