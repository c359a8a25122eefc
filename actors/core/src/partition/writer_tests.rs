use expediter_types::{Incarnation, Partition, Stamp};

use super::*;
use crate::recovery::Recovered;
use crate::store::StoredPartition;

fn machine() -> PartitionMachine {
    let incarnation = Incarnation {
        created: 1,
        counter: 1,
    };
    let recovered = Recovered {
        paused: false,
        stamp: Stamp {
            token: 7,
            incarnation,
        },
        replaced: None,
        cut: 0,
        replaced_epoch: 0,
        outcomes_lost: false,
        low_water: 0,
        finished: Default::default(),
        covers: 7,
        repeats_from: 0,
        repeats: Vec::new(),
        attempts: Vec::new(),
        closed: Vec::new(),
        unknown_since: Vec::new(),
        parked: Vec::new(),
        spent: Vec::new(),
        unknown: Vec::new(),
        marked_at: 0,
        marked_last: false,
        in_flight: Vec::new(),
        running: Vec::new(),
        busy_until: 0,
    };
    let stored = StoredPartition::default();
    PartitionMachine::start(
        Partition(3),
        recovered,
        stored,
        PartitionConfig::default(),
        Now { mono: 0, wall: 0 },
    )
}

fn listed(record: Option<(u64, Record)>) -> usize {
    match record {
        Some((_, Record::Attempts(mark))) => mark.in_flight.len(),
        other => panic!("not an attempt mark: {other:?}"),
    }
}

#[test]
fn a_mark_has_its_turn_among_attempts_without_end() {
    let mut machine = machine();
    let merchant = MerchantId::new("luigis").unwrap();
    machine.writer.mark_after = Some(0);
    let marked = (1..=3).any(|seq| {
        let id = OrderId::new(&format!("o{seq}")).unwrap();
        machine.writer.mark_attempt(&merchant, seq, id);
        let record = machine.next_record(Now { mono: 0, wall: 0 });
        machine.writer.under_way = None;
        matches!(record, Some((_, Record::Mark(_))))
    });
    assert!(marked, "low water is never written");
}

#[test]
fn attempts_above_what_one_record_lists_wait() {
    let mut machine = machine();
    let merchant = MerchantId::new("luigis").unwrap();
    let all = LISTED as u64 + 10;
    for seq in 1..=all {
        let id = OrderId::new(&format!("{seq:\"<128}")).unwrap();
        machine.writer.mark_attempt(&merchant, seq, id);
    }
    let now = Now { mono: 0, wall: 0 };
    assert_eq!(listed(machine.next_record(now)), LISTED);
    machine.writer.under_way = None;
    assert!(machine.next_record(now).is_none(), "no room");
    for seq in 1..=20 {
        machine.writer.unmark_attempt(&merchant, seq);
    }
    assert_eq!(listed(machine.next_record(now)), LISTED - 10);
}
