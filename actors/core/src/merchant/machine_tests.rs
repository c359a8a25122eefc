use std::time::Duration;

use expediter_types::{AttemptClass, Idempotency, MerchantId, Priority};

use super::*;
use crate::merchant::Ended;

const WALL: UnixMillis = 1_700_000_000_000;

fn at(seconds: u64) -> Now {
    Now {
        mono: seconds * 1_000_000,
        wall: WALL + seconds * 1_000,
    }
}

fn spec() -> Merchant {
    let id = MerchantId::new("luigis").expect("a valid id");
    let mut spec = Merchant::to(id, "http://merchant.example/");
    spec.adapter.idempotency = Idempotency::Native;
    spec.limits.concurrency = 100;
    spec
}

fn machine(spec: Merchant, orders: u64) -> MerchantMachine {
    let mut machine = MerchantMachine::new(spec.shared(), 0, Quotas::default(), None);
    (1..=orders).for_each(|seq| machine.offer(offer(seq)));
    machine
}

fn offer(seq: Seq) -> Offer {
    Offer {
        seq,
        key: None,
        deadline: WALL + 86_400_000,
        priority: Priority::Normal,
        attempts: 0,
        first_attempt: None,
        ambiguous: false,
        returns: 0,
    }
}

fn start(machine: &mut MerchantMachine, now: Now) -> Option<(Seq, u32)> {
    match machine.next(now) {
        Next::Start(seq) => Some((seq, machine.start(seq, now)?)),
        _ => None,
    }
}

fn end(machine: &mut MerchantMachine, (seq, number): (Seq, u32), class: AttemptClass, now: Now) {
    let ended = Ended {
        class,
        retry_after: None,
        absent: false,
        took: Duration::from_millis(100),
    };
    machine.answer(seq, number, ended, now, 0);
}

#[test]
fn an_open_breaker_keeps_the_backlog_and_probes_one_at_a_time() {
    let mut spec = spec();
    spec.breaker.probes = 2;
    let mut machine = machine(spec, 40);
    let begun: Vec<_> = (0..20).map_while(|_| start(&mut machine, at(1))).collect();
    for order in &begun[..12] {
        end(&mut machine, *order, AttemptClass::Retry, at(1));
    }
    let closure = machine.closure().expect("ten failures in a row");
    assert_eq!(
        (closure.because, closure.times),
        (ClosedBecause::Breaker, 1)
    );
    assert_eq!(start(&mut machine, at(2)), None);
    let effects = machine.take_effects();
    let returned = effects
        .iter()
        .filter(|e| matches!(e, Effect::Return { .. }));
    assert_eq!(returned.count(), 20, "the backlog goes back to the store");
    assert!(!effects.iter().any(|e| matches!(e, Effect::Finish { .. })));
    // Late answers of attempts from before say nothing new.
    for order in &begun[12..] {
        end(&mut machine, *order, AttemptClass::Ambiguous, at(3));
    }
    assert_eq!(machine.closure(), Some(closure));
    (100..110).for_each(|seq| machine.offer(offer(seq)));
    let probe = start(&mut machine, at(10)).expect("a probe");
    assert_eq!(start(&mut machine, at(10)), None, "one at a time");
    end(&mut machine, probe, AttemptClass::Retry, at(10));
    let again = machine.closure().expect("the probe failed");
    assert_eq!((again.times, again.until), (2, at(20).wall));
    machine.take_effects();
    (200..210).for_each(|seq| {
        machine.offer(Offer {
            returns: machine.returns(),
            ..offer(seq)
        })
    });
    for n in 0..2 {
        assert!(machine.closure().is_some(), "two have to succeed");
        let probe = start(&mut machine, at(30 + n)).expect("a probe");
        end(&mut machine, probe, AttemptClass::Rejected, at(30 + n));
    }
    assert_eq!(machine.closure(), None);
    assert!(start(&mut machine, at(33)).is_some() && start(&mut machine, at(33)).is_some());
}

#[test]
fn repeats_wait_for_their_budget_and_fresh_orders_go() {
    let mut spec = spec();
    (spec.breaker.consecutive, spec.breaker.min_samples) = (0, 0);
    (spec.limits.concurrency, spec.retry.budget) = (1_000, 0.0);
    let mut machine = machine(spec, 0);
    for seq in 1..=1_000 {
        machine.offer(Offer {
            attempts: 1,
            ..offer(seq)
        });
    }
    let now = at(0);
    let repeats = (0..1_000).map_while(|_| start(&mut machine, now)).count();
    assert_eq!(repeats, 100, "what was saved up");
    assert_eq!(machine.accepting(now), Accepting::Fresh);
    machine.offer(offer(5_000));
    assert_eq!(start(&mut machine, now), Some((5_000, 1)));
    let later = (0..1_000)
        .map_while(|_| start(&mut machine, at(10)))
        .count();
    assert_eq!(later, 50, "five a second");
}

#[test]
fn an_order_ends_as_soon_as_no_attempt_fits() {
    let mut machine = machine(spec(), 0);
    for (seq, deadline) in [(1, 90_000), (2, 1_050), (3, 1_050)] {
        machine.offer(Offer {
            deadline: WALL + deadline,
            ..offer(seq)
        });
    }
    let begun: Vec<_> = (0..3).map_while(|_| start(&mut machine, at(1))).collect();
    // An attempt takes 100 ms, and 50 are left.
    end(&mut machine, begun[0], AttemptClass::Delivered, at(1));
    machine.take_effects();
    end(&mut machine, begun[1], AttemptClass::Retry, at(1));
    end(&mut machine, begun[2], AttemptClass::Ambiguous, at(1));
    let finish = |seq, kind| Effect::Finish { seq, kind };
    let dead = OutcomeKind::DeadLettered(DeadReason::Ambiguous);
    let ends = [finish(2, OutcomeKind::Expired), finish(3, dead)];
    assert_eq!(machine.take_effects(), ends);
}

/// "Absent" means little while the merchant may still be at work on the attempt before.
#[test]
fn a_look_up_waits_until_the_attempt_before_can_be_over() {
    let mut spec = spec();
    spec.adapter.idempotency = Idempotency::Lookup;
    let mut machine = machine(spec, 1);
    let started = start(&mut machine, at(1)).expect("a start");
    end(&mut machine, started, AttemptClass::Ambiguous, at(2));
    let due = machine
        .take_effects()
        .into_iter()
        .find_map(|effect| match effect {
            Effect::Defer { due, .. } => Some(due),
            _ => None,
        });
    assert_eq!(due, Some(at(2).wall + 30_000), "the timeout by default");
}

#[test]
fn many_forgotten_orders_end_one_after_the_other() {
    let mut spec = spec();
    spec.adapter.idempotency = Idempotency::None;
    let mut machine = machine(spec, 0);
    for seq in 1..=200_000 {
        machine.offer(Offer {
            ambiguous: true,
            ..offer(seq)
        });
    }
    assert_eq!(machine.next(at(1)), Next::At(at(86_400).mono));
    assert_eq!(machine.take_effects().len(), 200_000);
}
