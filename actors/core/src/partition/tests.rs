use std::time::Duration;

use expediter_types::{DeadReason, HoldState, Idempotency, Incarnation, LimitScope, Lookup};

use super::intake::bare_envelope;
use super::merchants::Report;
use super::*;
use crate::merchant::{Accepting, Wait};
use crate::{IntakeSource, LogMessage};

/// The first owner of all, from that time on.
pub(super) fn machine(wall: UnixMillis) -> PartitionMachine {
    let incarnation = Incarnation {
        created: 1,
        counter: 1,
    };
    let recovered = Recovered {
        stamp: Stamp {
            token: 7,
            incarnation,
        },
        covers: 7,
        ..Recovered::default()
    };
    let stored = StoredPartition::default();
    PartitionMachine::start(
        Partition(3),
        recovered,
        stored,
        PartitionConfig::default(),
        Now { mono: 0, wall },
    )
}

pub(super) fn order(merchant: &str, seq: Seq) -> Arc<Order> {
    created(merchant, seq, 0)
}

fn created(merchant: &str, seq: Seq, created: UnixMillis) -> Arc<Order> {
    Arc::new(Order {
        seq,
        envelope: bare_envelope(
            OrderId::new(&format!("o{seq}")).unwrap(),
            MerchantId::new(merchant).unwrap(),
            created,
        ),
        payload: bytes::Bytes::from_static(b"{}"),
        payload_hash: seq,
    })
}

pub(super) fn letter() -> OutcomeKind {
    OutcomeKind::DeadLettered(DeadReason::BacklogFull)
}

/// Nobody is registered.
pub(super) struct Nobody;

impl Directory for Nobody {
    fn merchant(&self, _: &MerchantId) -> Option<Arc<Merchant>> {
        None
    }
}

/// One merchant, perhaps held.
struct One(Arc<Merchant>, Option<Hold>);

impl One {
    fn of(change: impl FnOnce(&mut Merchant)) -> Self {
        let id = MerchantId::new("luigis").unwrap();
        let mut merchant = Merchant::to(id, "http://merchant.example/");
        change(&mut merchant);
        Self(Arc::new(merchant), None)
    }

    fn held(self) -> Self {
        let hold = Hold {
            state: HoldState::Paused,
            scope: LimitScope::Merchant,
            reason: "a test".into(),
            actor: "ann".into(),
            at: 1,
        };
        Self(self.0, Some(hold))
    }
}

fn asked_after_seven_seconds() -> One {
    One::of(|merchant| {
        merchant.adapter.idempotency = Idempotency::Lookup;
        merchant.adapter.lookup = Some(Box::new(Lookup {
            url: "http://merchant.example/{id}".to_owned(),
            after: Some(Duration::from_secs(7)),
            rules: Vec::new(),
        }));
    })
}

impl Directory for One {
    fn merchant(&self, id: &MerchantId) -> Option<Arc<Merchant>> {
        (*id == self.0.id).then(|| Arc::clone(&self.0))
    }

    fn hold(&self, _: &Merchant) -> Option<Hold> {
        self.1.clone()
    }
}

impl PartitionMachine {
    pub(super) fn conclude_for_test(&mut self, order: Arc<Order>, kind: OutcomeKind, now: Now) {
        self.ledger.take(order.seq);
        let stored = Stored {
            deadline: u64::MAX,
            state: crate::OrderState::default(),
            order,
        };
        self.conclude(stored, false, kind, writer::Why::default(), now);
    }

    fn read(&mut self, order: Arc<Order>, directory: &dyn Directory, now: Now) {
        let message = LogMessage {
            seq: order.seq,
            at: order.envelope.created,
            order: Ok(order),
        };
        self.on_log(IntakeSource::Main, vec![message], None, directory, now);
    }

    fn ended(&mut self) -> usize {
        let dead =
            |command: &Command| matches!(command, Command::Event(Event::DeadLettered { .. }));
        self.take_commands().filter(dead).count()
    }

    fn started(&mut self, seq: Seq, now: Now, directory: &dyn Directory) {
        let merchant = self.window[&seq].stored.order.envelope.merchant.clone();
        let report = Report {
            incarnation: self.backlogs[&merchant].incarnation,
            merchant,
            starts: vec![(seq, 1)],
            effects: Vec::new(),
            accepting: Accepting::Open,
            waits: Wait::Nothing,
        };
        self.on_report(report, directory, now);
    }
}

fn at(millis: u64) -> Now {
    Now {
        mono: millis * 1_000,
        wall: millis,
    }
}

#[test]
fn a_quota_counts_when_an_order_comes_in_and_not_when_it_is_read_again() {
    let one = One::of(|merchant| merchant.limits.backlog = Some(2)).held();
    let mut machine = machine(10_000);
    machine.accepted_until = 10_000;
    let now = at(11_000);
    // A former owner had taken them.
    for seq in 1..=5 {
        machine.read(created("luigis", seq, 9_000), &one, now);
    }
    assert_eq!(machine.ended(), 0);
    machine.read(created("luigis", 6, 10_500), &one, now);
    assert_eq!(machine.ended(), 1, "it came when there was no place");
}

/// What is above a quota ends at the pace of the log, and keeps nobody else from starting.
#[test]
fn a_flood_above_a_quota_ends_as_fast_as_the_log_takes_it() {
    let one = One::of(|merchant| merchant.limits.backlog = Some(1)).held();
    let mut machine = machine(0);
    for seq in 1..=3_000 {
        machine.read(created("luigis", seq, 1), &one, at(2));
    }
    assert_eq!(machine.ended(), 1_000, "at once");
    assert_eq!(machine.unconfirmed(), 0, "others start");
    let (number, _) = machine.next_record(at(3)).expect("a dead letter");
    machine.on_acked(number, number, &one, at(4));
    let load = machine.take_commands().find_map(|command| match command {
        Command::Load(load @ Load::Ready { .. }) => Some(load),
        _ => None,
    });
    let Some(Load::Ready { also, limit: 0, .. }) = &load else {
        panic!("{load:?}");
    };
    assert_eq!(also.len(), 256, "the first that wait to end");
    let orders = also.iter().map(|seq| Stored {
        order: created("luigis", *seq, 1),
        state: crate::OrderState::default(),
        deadline: u64::MAX,
    });
    let loaded = Loaded::Ready(Default::default(), orders.collect());
    machine.on_loaded(load.unwrap(), loaded, &one, at(5));
    assert_eq!(machine.ended(), 256);
    assert_eq!(machine.stored_orders(), 1 + 3_000 - 1 - 1_000 - 256);
}

#[test]
fn nothing_leaves_for_an_order_that_gave_up_while_its_attempt_was_listed() {
    let one = One::of(|merchant| {
        merchant.adapter.idempotency = Idempotency::None;
        merchant.retry.deadline = Duration::from_secs(10);
    });
    let mut machine = machine(0);
    let launches = |machine: &mut PartitionMachine| {
        let commands = machine.take_commands();
        commands
            .filter(|c| matches!(c, Command::Launch { .. }))
            .count()
    };
    for (seq, acked, expected) in [(1, 8_000, 1), (2, 9_500, 0)] {
        machine.read(created("luigis", seq, 0), &one, at(1));
        machine.started(seq, at(2), &one);
        let (number, _) = machine.next_record(at(3)).expect("an attempt mark");
        machine.on_acked(number, number, &one, at(acked));
        assert_eq!(
            launches(&mut machine),
            expected,
            "acknowledged at {acked} ms"
        );
    }
}

#[test]
fn a_limit_that_is_shared_closes_also_when_nobody_runs_the_merchant() {
    let one = One::of(|merchant| merchant.adapter.rate_limit_scope = LimitScope::Group);
    let mut machine = machine(0);
    machine.read(created("luigis", 1, 0), &one, at(1));
    machine.started(1, at(2), &one);
    let (number, _) = machine.next_record(at(3)).expect("an attempt mark");
    machine.on_acked(number, number, &one, at(4));
    let id = one.0.id.clone();
    if let Some(backlog) = machine.backlogs.get_mut(&id) {
        backlog.active = None;
    }
    let answer = expediter_types::Answer {
        class: expediter_types::AttemptClass::RateLimited,
        status: Some(429),
        retry_after: Some(Duration::from_secs(5)),
        absent: false,
        detail: String::new(),
        excerpt: bytes::Bytes::new(),
        took: Duration::ZERO,
    };
    machine.on_answer(1, 1, answer, &one, at(10));
    let closes = machine.take_commands().find_map(|command| match command {
        Command::CloseScope { kind, id, until } => Some((kind, id, until)),
        _ => None,
    });
    let expected = (LimitScope::Group, "default".to_owned(), 5_010);
    assert_eq!(closes, Some(expected));
}

/// Orders whose time came, however many, take turns with those that never waited.
#[test]
fn retries_without_end_leave_room_for_fresh_orders() {
    let one = One::of(|merchant| merchant.adapter.idempotency = Idempotency::Native);
    let mut machine = machine(0);
    let id = one.0.id.clone();
    let mut backlog = Backlog::new();
    (backlog.unloaded, backlog.cursor, backlog.tail) = (1_000, 500, 900);
    backlog.next_due = Some(1);
    machine.backlogs.insert(id.clone(), backlog);
    let mut loads = Vec::new();
    for _ in 0..4 {
        machine.refill(&id, &one, at(2));
        for command in machine.take_commands() {
            if let Command::Load(load) = command {
                loads.push(matches!(load, Load::Due { .. }));
            }
        }
        machine.end_load(&id);
        machine.backlog(&id).next_due = Some(1);
    }
    assert_eq!(loads, [true, false, true, false]);
}

/// A merchant is asked about an order only when the attempt before can be over there.
#[test]
fn what_a_former_owner_left_in_doubt_is_asked_about_when_it_can_be_over() {
    let one = asked_after_seven_seconds();
    let mut machine = machine(10_000);
    machine.inherited.insert(
        1,
        AttemptCount {
            seq: 1,
            attempts: 1,
            first: 9_500,
            ambiguous: true,
        },
    );
    machine.read(created("luigis", 1, 9_000), &one, at(10_100));
    assert_eq!(machine.backlogs[&one.0.id].next_due, Some(17_000));
    assert!(machine.window.is_empty());
}

/// Mailboxes are bounded by what is in them, too: large orders wait in the store.
#[test]
fn large_orders_of_many_do_not_fill_the_memory() {
    let one = One::of(|merchant| merchant.adapter.idempotency = Idempotency::Native);
    let mut machine = machine(0);
    machine.config.window_bytes = 10;
    for seq in 1..=50 {
        machine.read(created("luigis", seq, 0), &one, at(1));
    }
    assert_eq!(machine.window.len(), 5, "two bytes each");
    assert_eq!(machine.stored_orders(), 45);
}

/// A shorter deadline holds at once for what is in the mailbox.
#[test]
fn a_shorter_deadline_ends_what_waits_in_the_mailbox() {
    let long = One::of(|merchant| merchant.adapter.idempotency = Idempotency::Native);
    let mut machine = machine(0);
    machine.read(created("luigis", 1, 0), &long, at(1));
    machine.take_commands();
    let short = One::of(|merchant| {
        merchant.adapter.idempotency = Idempotency::Native;
        merchant.retry.deadline = Duration::from_secs(1);
    });
    machine.on_registry(&short.0.id, &short, at(5_000));
    let commands: Vec<_> = machine.take_commands().collect();
    let begins_again = commands.iter().any(|c| matches!(c, Command::Release(_)));
    assert!(begins_again, "{commands:?}");
}

/// While it is probed a merchant is closed for whoever asks, and for a successor.
#[test]
fn a_closure_is_in_force_while_it_is_probed() {
    let one = One::of(|merchant| merchant.adapter.idempotency = Idempotency::Native);
    let mut machine = machine(0);
    machine.read(created("luigis", 1, 0), &one, at(1));
    let id = one.0.id.clone();
    machine.backlog(&id).closure = Some(Closure {
        because: expediter_types::ClosedBecause::Breaker,
        until: 100,
        times: 3,
    });
    let now = at(5_000);
    assert_eq!(machine.closed_merchants(now).count(), 1);
    let row = machine.explain(&id, &one, now).row.expect("a row");
    assert!(matches!(row.state, MerchantState::Closed { .. }), "{row:?}");
    machine.backlog(&id).closure = Some(Closure {
        because: expediter_types::ClosedBecause::RateLimited,
        until: 100,
        times: 0,
    });
    assert_eq!(machine.closed_merchants(now).count(), 0);
}

/// One merchant's large orders leave the others their room.
#[test]
fn who_holds_little_is_not_held_back_by_large_orders_of_others() {
    let mut machine = machine(0);
    machine.config.window_bytes = 32;
    machine.window_bytes = 40;
    let mut large = Backlog::new();
    (large.offered, large.window_bytes) = (5, 30);
    let mut small = Backlog::new();
    (small.offered, small.window_bytes) = (5, 1);
    assert!(machine.has_its_share(&large) && !machine.has_its_share(&small));
    machine.window_bytes = 128;
    assert!(machine.has_its_share(&small), "four times the bound");
    assert!(!machine.has_its_share(&Backlog::new()), "one order each");
}

/// Orders that end without a place in the store hold the intake back when they come too fast.
#[test]
fn what_nobody_can_read_is_bounded_too() {
    let mut machine = machine(0);
    let payload = bytes::Bytes::from(vec![b'x'; 1 << 20]);
    for seq in 1..=64 {
        assert!(!machine.is_full());
        let bad = crate::Undecodable {
            merchant: MerchantId::new("luigis").unwrap(),
            reason: "no id".to_owned(),
            payload: payload.clone(),
        };
        let message = LogMessage {
            seq,
            at: 1,
            order: Err(Box::new(bad)),
        };
        machine.on_log(IntakeSource::Main, vec![message], None, &Nobody, at(2));
    }
    assert!(machine.is_full());
    assert_eq!(machine.unconfirmed(), 0, "others start");
    let (number, _) = machine.next_record(at(3)).expect("a dead letter");
    machine.on_acked(number, number, &Nobody, at(4));
    assert!(!machine.is_full());
}

/// The one before may have been sent a moment ago.
#[test]
fn a_next_generation_is_asked_about_when_the_one_before_can_be_over() {
    let one = asked_after_seven_seconds();
    let mut machine = machine(10_000);
    let mut next = (*created("luigis", 1, 60_000)).clone();
    next.envelope.generation = 2;
    machine.read(Arc::new(next), &one, at(60_100));
    assert_eq!(machine.backlogs[&one.0.id].next_due, Some(67_000));
}
