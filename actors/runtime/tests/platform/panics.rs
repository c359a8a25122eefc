use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use expediter_runtime::{Options, Step};
use expediter_types::{AttemptClass, DeadReason, MerchantId, OutcomeKind};

use crate::world::{PARTITION, World, merchant};

fn with_hook(hook: impl Fn(&MerchantId, &Step) + Send + Sync + 'static) -> Options {
    Options {
        before_step: Some(Arc::new(hook)),
        ..Options::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_restarts_one_merchant_and_its_attempts_are_adopted() {
    let panics = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&panics);
    // The third answer of merchant "a" panics the step, once.
    let answers = AtomicU32::new(0);
    let options = with_hook(move |id, step| {
        if id.as_str() == "a"
            && matches!(step, Step::Answer { .. })
            && answers.fetch_add(1, Ordering::Relaxed) == 2
        {
            count.fetch_add(1, Ordering::Relaxed);
            panic!("provoked");
        }
    });
    let world = World::new(vec![merchant("a"), merchant("b")], options, |_| {
        (AttemptClass::Delivered, Duration::from_millis(30))
    })
    .await;
    world.publish("a", 50).await;
    world.publish("b", 50).await;
    world.finished(100).await;
    assert_eq!(panics.load(Ordering::Relaxed), 1);
    let mut sent: HashMap<u64, u32> = HashMap::new();
    for (_, seq, _) in world.courier.sent.lock().unwrap().iter() {
        *sent.entry(*seq).or_default() += 1;
    }
    assert_eq!(sent.len(), 100, "nothing is lost");
    assert!(
        sent.values().all(|times| *times == 1),
        "nothing is sent twice"
    );
}

/// Every 25th step of the actors panics, every fifth order is first refused for a moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_is_kept_over_panics_and_retries() {
    let steps = AtomicU32::new(0);
    let panics = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&panics);
    let mut options = with_hook(move |_, _| {
        if steps.fetch_add(1, Ordering::Relaxed) % 25 == 24 {
            count.fetch_add(1, Ordering::Relaxed);
            panic!("provoked");
        }
    });
    // Each counts alone: the next actor comes soon.
    options.partition.panic_window = 1_000;
    let (mut whole, mut keyed) = (merchant("whole"), merchant("keyed"));
    whole.limits.ordering = expediter_types::Ordering::Merchant;
    keyed.limits.ordering = expediter_types::Ordering::Order;
    let world = World::new(vec![whole, keyed], options, |request| {
        let refused = request.order.seq % 5 == 0 && request.number == 1;
        let class = if refused {
            AttemptClass::Retry
        } else {
            AttemptClass::Delivered
        };
        (class, Duration::from_millis(2))
    })
    .await;
    world.publish("whole", 60).await;
    let key = |seq| Some(format!("table {}", seq % 3));
    world.publish_keyed("keyed", 60, key).await;
    world.finished(120).await;
    assert!(panics.load(Ordering::Relaxed) > 5);

    let mut last: HashMap<(MerchantId, u64), (u64, u32)> = HashMap::new();
    for (id, seq, number) in world.courier.sent.lock().unwrap().iter() {
        let lane = if id.as_str() == "keyed" { seq % 3 } else { 0 };
        let before = last.insert((id.clone(), lane), (*seq, *number));
        // Each goes after the one before it, or is the same one again.
        assert!(
            before < Some((*seq, *number)),
            "{id} {seq} {number} after {before:?}"
        );
    }
    let outcomes = world.log.outcomes();
    assert!(
        outcomes
            .values()
            .all(|kind| *kind == OutcomeKind::Delivered)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_panics_twice_is_decided_by_its_class() {
    let poison = 5;
    let options = with_hook(move |_, step| {
        if matches!(step, Step::Answer { seq, .. } if *seq == poison) {
            panic!("provoked");
        }
    });
    let world = World::new(vec![merchant("a")], options, |_| {
        (AttemptClass::Delivered, Duration::from_millis(5))
    })
    .await;
    world.publish("a", 20).await;
    world.finished(20).await;
    assert_eq!(world.log.outcomes()[&poison], OutcomeKind::Delivered);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merchant_that_keeps_panicking_is_quarantined_until_resumed() {
    let broken = Arc::new(Mutex::new(true));
    let state = Arc::clone(&broken);
    let options = with_hook(move |id, _| {
        let broken = *state.lock().unwrap();
        if id.as_str() == "a" && broken {
            panic!("provoked");
        }
    });
    let world = World::new(vec![merchant("a"), merchant("b")], options, |_| {
        (AttemptClass::Delivered, Duration::from_millis(5))
    })
    .await;
    world.publish("a", 30).await;
    world.publish("b", 30).await;
    world.finished(30).await;
    let quarantined = || {
        world
            .platform
            .ask(PARTITION, |machine, _| machine.quarantined_merchants())
    };
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while quarantined().await != Some(1) {
        assert!(std::time::Instant::now() < deadline, "not quarantined");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    *broken.lock().unwrap() = false;
    expediter_ports::RegistrySink::resume(&*world.directory, &MerchantId::new("a").unwrap());
    world.finished(60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_the_adapter_costs_one_attempt() {
    let world = World::new(vec![merchant("a")], Options::default(), |request| {
        assert!(request.order.seq != 3 || request.number > 1, "provoked");
        (AttemptClass::Delivered, Duration::from_millis(5))
    })
    .await;
    world.publish("a", 10).await;
    world.finished(10).await;
    let outcomes = world.log.outcomes();
    assert!(
        outcomes.values().all(|kind| *kind == OutcomeKind::Delivered
            || *kind == OutcomeKind::DeadLettered(DeadReason::Ambiguous)),
        "{outcomes:?}"
    );
}
