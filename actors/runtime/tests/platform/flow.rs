use std::collections::HashSet;
use std::time::{Duration, Instant};

use expediter_ports::{PartitionHost, Registered, RegistrySink, Stop};
use expediter_runtime::{Clock, Options};
use expediter_types::{
    AttemptClass, DeadReason, Idempotency, MerchantId, Ordering, OutcomeKind, Rate, Record,
};

use crate::world::{PARTITION, World, merchant};

const QUICK: Duration = Duration::from_millis(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_are_delivered_once_and_outcomes_say_so() {
    let world = World::new(
        vec![merchant("a"), merchant("b")],
        Options::default(),
        |_| (AttemptClass::Delivered, QUICK),
    )
    .await;
    world.publish("a", 500).await;
    world.publish("b", 500).await;
    world.finished(1_000).await;
    let outcomes = world.log.outcomes();
    assert!(
        outcomes
            .values()
            .all(|kind| *kind == OutcomeKind::Delivered)
    );
    let sent = world.courier.sent.lock().unwrap();
    let distinct: HashSet<_> = sent.iter().map(|(_, seq, _)| *seq).collect();
    assert_eq!((sent.len(), distinct.len()), (1_000, 1_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_is_kept_over_retries_and_overflow() {
    let mut ordered = merchant("a");
    ordered.limits.ordering = Ordering::Merchant;
    ordered.limits.mailbox = 8;
    let world = World::new(vec![ordered], Options::default(), |request| {
        // Every seventh order is refused twice.
        let refused = request.order.seq % 7 == 0 && request.number < 3;
        (
            if refused {
                AttemptClass::Retry
            } else {
                AttemptClass::Delivered
            },
            Duration::ZERO,
        )
    })
    .await;
    let seqs = world.publish("a", 200).await;
    world.finished(200).await;
    let sent = world.courier.sent.lock().unwrap();
    let mut firsts: Vec<u64> = Vec::new();
    for (_, seq, _) in sent.iter() {
        if firsts.last() != Some(seq) {
            firsts.push(*seq);
        }
    }
    assert_eq!(firsts, seqs, "ORD-4");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_repeated_is_marked_first_and_parked_when_in_doubt() {
    let mut none = merchant("a");
    none.adapter.idempotency = Idempotency::None;
    let world = World::new(vec![none], Options::default(), |request| {
        let doubtful = request.order.seq % 2 == 0;
        (
            if doubtful {
                AttemptClass::Ambiguous
            } else {
                AttemptClass::Delivered
            },
            QUICK,
        )
    })
    .await;
    world.publish("a", 10).await;
    world.finished(10).await;
    for (seq, kind) in world.log.outcomes() {
        let expected = match seq % 2 {
            0 => OutcomeKind::DeadLettered(DeadReason::Ambiguous),
            _ => OutcomeKind::Delivered,
        };
        assert_eq!(kind, expected);
    }
    assert_eq!(
        world.courier.sent.lock().unwrap().len(),
        10,
        "ORD-3: none was repeated"
    );
    let mut listed = HashSet::new();
    for record in world.log.records.lock().unwrap().iter() {
        match record {
            Record::Attempts(mark) => listed.extend(mark.in_flight.iter().map(|(seq, _)| *seq)),
            Record::Outcomes(group) => {
                assert!(group.iter().all(|outcome| listed.contains(&outcome.seq)));
            }
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_is_kept() {
    let mut limited = merchant("a");
    limited.limits.rates = Vec::from_iter(Rate::new(50, Duration::from_secs(1)));
    limited.limits.burst = 5;
    let world = World::new(vec![limited], Options::default(), |_| {
        (AttemptClass::Delivered, QUICK)
    })
    .await;
    let started = Instant::now();
    world.publish("a", 60).await;
    world.finished(60).await;
    // 60 orders less a burst of 5 at 50/s take at least 1.1 s.
    assert!(
        started.elapsed() >= Duration::from_millis(1_050),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_of_an_unknown_merchant_wait_for_its_registration() {
    let world = World::new(vec![], Options::default(), |_| {
        (AttemptClass::Delivered, QUICK)
    })
    .await;
    world.publish("late", 20).await;
    let waiting = world
        .platform
        .ask(PARTITION, |machine, _| machine.unfinished())
        .await;
    assert_eq!(waiting, Some(20));
    world.directory.put(Registered {
        merchant: merchant("late").shared(),
        revision: 2,
    });
    world.finished(20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_actors_are_let_go_and_come_back() {
    let mut options = Options::default();
    options.partition.idle_after = 100_000;
    let world = World::new(vec![merchant("a")], options, |_| {
        (AttemptClass::Delivered, QUICK)
    })
    .await;
    world.publish("a", 3).await;
    world.finished(3).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while world
        .platform
        .ask(PARTITION, |machine, _| machine.active_merchants())
        .await
        != Some(0)
    {
        assert!(Instant::now() < deadline, "the actor is not let go");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.publish("a", 3).await;
    world.finished(6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_over_lets_attempts_end_and_keeps_the_rest() {
    let mut slow = merchant("a");
    slow.limits.concurrency = 4;
    let world = World::new(vec![slow], Options::default(), |_| {
        (AttemptClass::Delivered, Duration::from_millis(300))
    })
    .await;
    world.publish("a", 40).await;
    world
        .until("4 in flight", |world| {
            world.courier.sent.lock().unwrap().len() == 4
        })
        .await;
    let stopped = world.platform.stop(PARTITION, Stop::HandOver).await;
    assert!(stopped.running.is_empty());
    assert_eq!(
        world.log.outcomes().len(),
        4,
        "what ran was finished, nothing more was started"
    );
    let last = world.log.records.lock().unwrap().last().cloned();
    assert!(
        matches!(last, Some(Record::Mark(mark)) if mark.seen == 40),
        "marked"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_over_gives_up_what_still_runs_at_the_deadline() {
    let options = Options {
        drain_deadline: Duration::from_millis(200),
        ..Options::default()
    };
    let world = World::new(vec![merchant("a")], options, |_| {
        (AttemptClass::Delivered, Duration::from_secs(60))
    })
    .await;
    let seqs = world.publish("a", 2).await;
    world
        .until("2 in flight", |world| {
            world.courier.sent.lock().unwrap().len() == 2
        })
        .await;
    let stopped = world.platform.stop(PARTITION, Stop::HandOver).await;
    assert_eq!(stopped.running, seqs);
    assert!(stopped.busy_until > Clock::now().wall);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_merchant_leaves_capacity_for_others() {
    let mut hung = merchant("hung");
    hung.limits.concurrency = 1_000;
    hung.limits.mailbox = 1_000;
    let options = Options {
        in_flight: 50,
        ..Options::default()
    };
    let world = World::new(vec![hung, merchant("fine")], options, |request| {
        let hangs = request.merchant.id.as_str() == "hung";
        (
            AttemptClass::Delivered,
            if hangs {
                Duration::from_secs(600)
            } else {
                QUICK
            },
        )
    })
    .await;
    world.publish("hung", 500).await;
    let hung = MerchantId::new("hung").unwrap();
    let sent = |world: &World| {
        world
            .courier
            .sent
            .lock()
            .unwrap()
            .iter()
            .filter(|s| s.0 == hung)
            .count()
    };
    world
        .until("the hung merchant has its share", |world| sent(world) >= 40)
        .await;
    world.publish("fine", 100).await;
    world.finished(100).await;
    assert_eq!(sent(&world), 40, "a fifth is reserved");
}

/// A disk that does not keep up holds the intake back, by the number of orders and by what they weigh,
/// and the node says so; when it goes on, so does the intake, and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_store_holds_the_intake_back() {
    for (credits, kib) in [(50, 65_536), (4_096, 1)] {
        let mut paused = merchant("a");
        // All of them go to the store.
        paused.limits.rates = vec![Rate::new(1, Duration::from_secs(3_600)).unwrap()];
        paused.limits.mailbox = 1;
        paused.limits.concurrency = 1;
        let options = Options {
            intake_credits: credits,
            intake_kib: kib,
            ..Options::default()
        };
        let world = World::new(vec![paused], options, |_| (AttemptClass::Delivered, QUICK)).await;
        world.store.stall(true);
        let publishing = async {
            for _ in 0..40 {
                world.publish("a", 50).await;
            }
        };
        tokio::pin!(publishing);
        let waits = tokio::time::timeout(Duration::from_secs(1), &mut publishing).await;
        assert!(waits.is_err(), "all of it was taken in");
        let taken = world.next.load(std::sync::atomic::Ordering::Relaxed) - 1;
        assert!(taken <= 400, "{taken} orders were taken in");
        let snapshot = world.platform.snapshot();
        assert!(snapshot.intake_waits >= 500_000, "{snapshot:?}");
        world.store.stall(false);
        publishing.await;
        world
            .until("all are stored", |world| {
                world.platform.snapshot().unfinished == 2_000
            })
            .await;
        assert_eq!(world.platform.snapshot().intake_waits, 0);
    }
}
