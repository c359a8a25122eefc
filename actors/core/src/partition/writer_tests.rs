use expediter_types::OrderId;

use super::super::attempts::LISTED;
use super::super::tests::{letter, machine, order};
use super::*;

fn listed(record: Option<(u64, Record)>) -> usize {
    match record {
        Some((_, Record::Attempts(mark))) => mark.in_flight.len(),
        other => panic!("not an attempt mark: {other:?}"),
    }
}

#[test]
fn a_mark_has_its_turn_among_attempts_without_end() {
    let mut machine = machine(0);
    let merchant = MerchantId::new("luigis").unwrap();
    machine.writer.mark_after = Some(0);
    let marked = (1..=3).any(|seq| {
        let id = OrderId::new(&format!("o{seq}")).unwrap();
        machine.writer.attempts.add(&merchant, seq, id);
        let record = machine.next_record(Now { mono: 0, wall: 0 });
        machine.writer.under_way = None;
        matches!(record, Some((_, Record::Mark(_))))
    });
    assert!(marked, "low water is never written");
}

#[test]
fn attempts_above_what_one_record_lists_wait() {
    let mut machine = machine(0);
    let merchant = MerchantId::new("luigis").unwrap();
    let all = LISTED as u64 + 10;
    for seq in 1..=all {
        let id = OrderId::new(&format!("{seq:\"<128}")).unwrap();
        machine.writer.attempts.add(&merchant, seq, id);
    }
    let now = Now { mono: 0, wall: 0 };
    assert_eq!(listed(machine.next_record(now)), LISTED);
    machine.writer.under_way = None;
    assert!(machine.next_record(now).is_none(), "no room");
    for seq in 1..=20 {
        machine.writer.attempts.remove(&merchant, seq);
    }
    assert_eq!(listed(machine.next_record(now)), LISTED - 10);
}

/// A flood of one merchant's dead letters, each in a record of its own, keeps nobody waiting.
#[test]
fn outcomes_do_not_wait_behind_dead_letters() {
    let mut machine = machine(0);
    let now = Now {
        mono: 20_000,
        wall: 20,
    };
    for seq in 1..=500 {
        machine.conclude_for_test(order("flood", seq), letter(), now);
    }
    machine.conclude_for_test(order("luigis", 501), OutcomeKind::Delivered, now);
    let later = Now {
        mono: 40_000,
        wall: 40,
    };
    let first_two = [(); 2].map(|()| {
        let record = machine.next_record(later);
        machine.writer.under_way = None;
        record.expect("a record").1
    });
    assert!(
        matches!(&first_two, [Record::Outcomes(_), Record::Dead(_)]),
        "{first_two:?}"
    );
}

/// What waits in doubt for its next attempt keeps no other order from being sent.
#[test]
fn a_list_full_of_doubt_has_room_after_a_mark() {
    let mut machine = machine(0);
    let merchant = MerchantId::new("luigis").unwrap();
    let last = LISTED as u64;
    for seq in 1..=last {
        machine.ledger.take(seq);
        machine.ledger.pass(seq);
        machine.attempted.insert(
            seq,
            expediter_types::AttemptCount {
                seq,
                attempts: 1,
                first: 1_000,
                ambiguous: true,
            },
        );
        let id = OrderId::new(&format!("o{seq}")).unwrap();
        machine.writer.attempts.inherit(merchant.clone(), seq, id);
    }
    let id = OrderId::new("fresh").unwrap();
    machine.writer.attempts.add(&merchant, last + 1, id);
    let mut now = Now {
        mono: 2_000_000,
        wall: 2_000,
    };
    assert!(machine.next_record(now).is_none(), "no room");
    let mark = |machine: &mut PartitionMachine, now: Now| {
        machine.writer.mark_after = Some(0);
        let (number, record) = machine.next_record(now).expect("a mark");
        assert!(matches!(record, Record::Mark(_)), "{record:?}");
        machine.on_acked(number, number, &super::super::tests::Nobody, now);
    };
    mark(&mut machine, now);
    assert!(machine.next_record(now).is_none(), "older ones may end yet");
    now.wall += 70_000;
    mark(&mut machine, now);
    assert_eq!(listed(machine.next_record(now)), 1, "the fresh one");
}
