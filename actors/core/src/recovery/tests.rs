use expediter_types::{Crashes, NodeName};

use super::*;

const LOG: Incarnation = Incarnation {
    created: 1,
    counter: 1,
};
const LATER: Incarnation = Incarnation {
    created: 1,
    counter: 2,
};

fn claim(replaces: Seq, incarnation: Incarnation, cut: Seq) -> Claim {
    Claim {
        node: NodeName::new("a").unwrap(),
        instance: "i".into(),
        state: ClaimState::Held,
        replaces,
        incarnation,
        cut,
        at: 1,
        crashes: Crashes::default(),
    }
}

fn release(epoch: Seq, running: &[Seq]) -> Claim {
    Claim {
        state: ClaimState::Released {
            epoch,
            running: running.to_vec(),
            busy_until: 900,
        },
        ..claim(epoch, LOG, 0)
    }
}

fn merchant(name: &str) -> MerchantId {
    MerchantId::new(name).unwrap()
}

fn entry(seq: Seq, body: EntryBody) -> Entry {
    Entry { seq, body }
}

fn stamp(token: Seq, incarnation: Incarnation) -> Stamp {
    Stamp { token, incarnation }
}

fn outcomes(seq: Seq, stamp: Stamp, finished: &[Seq]) -> Entry {
    let finished = finished
        .iter()
        .map(|seq| Finished {
            seq: *seq,
            merchant: merchant("m"),
            repeat: Some(Repeat {
                id: 1_000 + seq,
                payload: 0,
                seq: *seq,
            }),
            parked: None,
        })
        .collect();
    entry(seq, EntryBody::Outcomes(stamp, finished))
}

fn attempts(seq: Seq, stamp: Stamp, name: &str, in_flight: &[Seq]) -> Entry {
    entry(
        seq,
        EntryBody::Attempts(stamp, attempt_mark(name, in_flight)),
    )
}

fn attempt_mark(name: &str, in_flight: &[Seq]) -> AttemptMark {
    let named = |seq: &Seq| (*seq, OrderId::new(&format!("o{seq}")).unwrap());
    AttemptMark {
        merchant: merchant(name),
        counter: 1,
        in_flight: in_flight.iter().map(named).collect(),
    }
}

fn mark(seq: Seq, stamp: Stamp, low_water: Seq, finished: &[Seq], covers: Seq) -> Entry {
    let mark = Mark {
        low_water,
        seen: low_water,
        finished: finished.iter().copied().collect(),
        covers,
        repeats_from: 1,
        attempts: vec![AttemptCount {
            seq: 30,
            attempts: 2,
            first: 5,
            ambiguous: true,
        }],
        closed: Vec::new(),
        unknown_since: Vec::new(),
        parked: Vec::new(),
        spent: Vec::new(),
        unknown: Vec::new(),
        last: false,
        at: 777,
    };
    entry(seq, EntryBody::Mark(stamp, Box::new(mark)))
}

fn fold(token: Seq, own: Claim, from: Seq, entries: Vec<Entry>) -> Result<Recovered, Incomplete> {
    let mut recovery = Recovery::new(token, own.clone(), None, from);
    for entry in entries {
        recovery.push(entry);
    }
    recovery.push(entry(token, EntryBody::Claim(own)));
    recovery.complete()
}

fn finished(recovered: &Recovered) -> Vec<Seq> {
    recovered.finished.iter().collect()
}

#[test]
fn the_first_claim_of_all_finds_nothing() {
    let recovered = fold(1, claim(0, LOG, 0), 1, Vec::new()).unwrap();
    assert_eq!(recovered.stamp, stamp(1, LOG));
    assert_eq!(
        (
            recovered.low_water,
            recovered.replaced_epoch,
            recovered.covers
        ),
        (0, 0, 1)
    );
    assert!(recovered.finished.is_empty() && recovered.repeats.is_empty());
}

#[test]
fn a_mark_and_the_outcomes_after_it_are_the_finished_set() {
    let entries = vec![
        entry(1, EntryBody::Claim(claim(0, LOG, 0))),
        outcomes(2, stamp(1, LOG), &[3, 5]),
        mark(3, stamp(1, LOG), 4, &[5, 9], 2),
        outcomes(4, stamp(1, LOG), &[7, 5]),
    ];
    let recovered = fold(9, claim(1, LOG, 0), 1, entries.clone()).unwrap();
    assert_eq!(recovered.low_water, 4);
    assert_eq!(finished(&recovered), [5, 7, 9]);
    assert_eq!(recovered.attempts.len(), 1);
    assert_eq!(recovered.marked_at, 777);
    let repeats: Vec<_> = recovered.repeats.iter().map(|repeat| repeat.seq).collect();
    assert_eq!(repeats, [3, 5, 7], "the first record of a sequence counts");

    let recovered = fold(9, claim(1, LOG, 0), 3, entries[2..].to_vec()).unwrap();
    assert_eq!(
        finished(&recovered),
        [5, 7, 9],
        "reading after what the mark covers is enough"
    );
}

#[test]
fn a_stale_writer_says_nothing() {
    let entries = vec![
        entry(1, EntryBody::Claim(claim(0, LOG, 0))),
        outcomes(2, stamp(1, LOG), &[3]),
        entry(5, EntryBody::Claim(claim(1, LOG, 0))),
        outcomes(6, stamp(1, LOG), &[4]),
        mark(7, stamp(1, LOG), 100, &[], 6),
        attempts(8, stamp(1, LOG), "m", &[9]),
        outcomes(9, stamp(5, LOG), &[6]),
    ];
    let recovered = fold(12, claim(5, LOG, 0), 1, entries).unwrap();
    assert_eq!(finished(&recovered), [3, 6]);
    assert_eq!(recovered.low_water, 0);
    assert!(recovered.in_flight.is_empty());
}

#[test]
fn records_before_the_first_claim_read_belong_to_the_claim_it_replaced() {
    let entries = vec![
        mark(40, stamp(20, LOG), 4, &[], 39),
        outcomes(41, stamp(20, LOG), &[8]),
        outcomes(42, stamp(11, LOG), &[9]),
    ];
    let recovered = fold(50, claim(20, LOG, 0), 40, entries).unwrap();
    assert_eq!(finished(&recovered), [8]);
}

#[test]
fn nothing_is_written_after_a_release() {
    let entries = vec![
        entry(1, EntryBody::Claim(claim(0, LOG, 0))),
        outcomes(2, stamp(1, LOG), &[3]),
        entry(3, EntryBody::Claim(release(1, &[3, 30, 31]))),
        outcomes(4, stamp(1, LOG), &[4]),
        outcomes(5, stamp(3, LOG), &[5]),
    ];
    let mut recovery = Recovery::new(9, claim(3, LOG, 0), Some(release(1, &[])), 1);
    entries.into_iter().for_each(|entry| recovery.push(entry));
    recovery.push(entry(9, EntryBody::Claim(claim(3, LOG, 0))));
    let recovered = recovery.complete().unwrap();
    assert_eq!(finished(&recovered), [3]);
    assert_eq!(
        recovered.replaced_epoch, 1,
        "a store of the released epoch is trusted"
    );
    assert_eq!(
        recovered.running,
        [30, 31],
        "what has an outcome runs no more"
    );
    assert_eq!(recovered.busy_until, 900);
}

#[test]
fn what_a_release_left_running_is_known_until_the_next_mark() {
    let start = vec![
        entry(1, EntryBody::Claim(claim(0, LOG, 0))),
        entry(3, EntryBody::Claim(release(1, &[30]))),
        entry(4, EntryBody::Claim(claim(3, LOG, 0))),
    ];
    let crashed_at_once = fold(9, claim(4, LOG, 0), 1, start.clone()).unwrap();
    assert_eq!(crashed_at_once.running, [30]);
    let mut marked = start;
    marked.push(mark(5, stamp(4, LOG), 4, &[], 4));
    let recovered = fold(9, claim(4, LOG, 0), 1, marked).unwrap();
    assert!(recovered.running.is_empty());
    assert!(recovered.attempts[0].ambiguous, "the mark knows it instead");
}

#[test]
fn attempts_without_an_outcome_are_in_flight() {
    let entries = vec![
        entry(1, EntryBody::Claim(claim(0, LOG, 0))),
        attempts(2, stamp(1, LOG), "m", &[5]),
        attempts(3, stamp(1, LOG), "m", &[6, 7]),
        outcomes(4, stamp(1, LOG), &[6]),
    ];
    let mut recovery = Recovery::new(9, claim(1, LOG, 0), None, 1);
    recovery.newest_attempts(3, stamp(1, LOG), attempt_mark("m", &[6, 7]));
    recovery.newest_attempts(2, stamp(1, LOG), attempt_mark("n", &[2]));
    recovery.newest_attempts(10, stamp(9, LOG), attempt_mark("late", &[4]));
    entries.into_iter().for_each(|entry| recovery.push(entry));
    recovery.push(entry(9, EntryBody::Claim(claim(1, LOG, 0))));
    let in_flight = recovery.complete().unwrap().in_flight;
    let named: Vec<_> = in_flight
        .iter()
        .map(|(m, seq, id)| (m.as_str(), *seq, id.as_str()))
        .collect();
    assert_eq!(named, [("m", 7, "o7"), ("n", 2, "o2")]);
}

#[test]
fn an_older_incarnation_says_nothing_above_the_cut() {
    let entries = vec![
        entry(1, EntryBody::Claim(claim(0, LOG, 0))),
        outcomes(2, stamp(1, LOG), &[3, 12]),
        mark(3, stamp(1, LOG), 10, &[12], 2),
        attempts(4, stamp(1, LOG), "m", &[7, 30]),
        entry(5, EntryBody::Claim(claim(1, LATER, 8))),
        outcomes(6, stamp(5, LATER), &[9]),
    ];
    let recovered = fold(9, claim(5, LATER, 8), 1, entries).unwrap();
    assert_eq!(recovered.low_water, 8);
    assert_eq!(finished(&recovered), [9]);
    assert_eq!(recovered.cut, 8);
    assert!(recovered.attempts.is_empty() && recovered.in_flight.is_empty());
    assert!(recovered.repeats.iter().all(|repeat| repeat.seq <= 9));
}

#[test]
fn a_former_owner_whose_claim_had_the_same_number_says_nothing() {
    let entries = vec![
        entry(1, EntryBody::Claim(claim(0, LATER, 8))),
        outcomes(2, stamp(1, LATER), &[9]),
        mark(3, stamp(1, LOG), 7, &[10], 134),
        outcomes(4, stamp(1, LOG), &[11]),
    ];
    let recovered = fold(9, claim(1, LATER, 8), 1, entries).unwrap();
    assert_eq!(recovered.low_water, 0);
    assert_eq!(finished(&recovered), [9]);
    assert!(recovered.attempts.is_empty());
}

#[test]
fn reading_that_is_not_complete_is_refused() {
    let mut recovery = Recovery::new(9, claim(1, LOG, 0), None, 1);
    recovery.push(entry(1, EntryBody::Claim(claim(0, LOG, 0))));
    assert_eq!(
        recovery.complete().unwrap_err(),
        Incomplete::ClaimNotReached { token: 9 }
    );

    let stale_mark = vec![mark(7, stamp(3, LOG), 4, &[], 6)];
    let refused = fold(9, claim(5, LOG, 0), 7, stale_mark).unwrap_err();
    assert_eq!(refused, Incomplete::NotCovered { from: 7 });
}
