//! Limits that merchants share, on one node; slices are leased by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use expediter_ports::{PartitionHost, RegistrySink, SharedLimit};
use expediter_runtime::{Clock, Options};
use expediter_types::{AttemptClass, LimitScope, Merchant, Rate, Scope, Slice};

use crate::world::{World, merchant};

const WHOLE: Slice = Slice {
    share: Slice::WHOLE,
    slots: 1_000,
};

fn of_account(id: &str) -> Merchant {
    let mut merchant = merchant(id);
    merchant.adapter.credential = Some("account".to_owned());
    merchant.limits.concurrency = 50;
    merchant
}

fn account(rate: Option<&str>, concurrency: Option<u32>) -> Arc<Scope> {
    Arc::new(Scope {
        kind: LimitScope::Credential,
        id: "account".to_owned(),
        rates: rate.iter().map(|rate| rate.parse().unwrap()).collect(),
        burst: 1,
        concurrency,
    })
}

fn limit() -> SharedLimit {
    (LimitScope::Credential, "account".to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_concurrency_holds_over_merchants_and_changes_at_once() {
    let running = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (now, peak) = (running.clone(), most.clone());
    let world = World::new(
        vec![of_account("a"), of_account("b"), merchant("free")],
        Options::default(),
        move |request| {
            if request.merchant.adapter.credential.is_some() {
                let count = now.fetch_add(1, Ordering::SeqCst) + 1;
                peak.fetch_max(count, Ordering::SeqCst);
                let now = now.clone();
                tokio::spawn(async move {
                    // Before the attempt ends, so that it is never counted too long.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    now.fetch_sub(1, Ordering::SeqCst);
                });
            }
            (AttemptClass::Delivered, Duration::from_millis(30))
        },
    )
    .await;
    world.directory.put_scope(account(None, Some(3)));
    world.publish("a", 30).await;
    world.publish("b", 30).await;
    world.publish("free", 30).await;
    // Nothing is leased yet: only those who share nothing go.
    world.finished(30).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(world.log.outcomes().len(), 30);
    let shared = world.platform.shared_limits().unwrap();
    assert_eq!(shared.wanted().await, limit());
    let want = shared.want(&limit()).unwrap();
    assert_eq!((want.wants.slots, want.whole), (3, 3));
    assert_eq!(world.platform.snapshot().shared_waiting, 2);
    shared.lease(&limit(), WHOLE, u64::MAX);
    world.finished(60).await;
    assert!(most.load(Ordering::SeqCst) <= 3, "{most:?}");
    let sent: Vec<_> = world.courier.sent.lock().unwrap().clone();
    let of_a = |sent: &&(expediter_types::MerchantId, u64, u32)| sent.0.as_str() == "a";
    let first = sent[30..].iter().take(20).filter(of_a).count();
    assert!((6..=14).contains(&first), "turns: {first} of 20 are of a");
    // A higher limit, then none.
    world.directory.put_scope(account(None, Some(6)));
    world.finished(75).await;
    world
        .directory
        .remove_scope(LimitScope::Credential, "account");
    world.finished(90).await;
    assert_eq!(world.platform.snapshot().shared_waiting, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rates_of_a_credential_and_the_node_hold_and_a_lease_ends() {
    let options = Options {
        rate: "100/s".parse::<Rate>().ok(),
        ..Options::default()
    };
    let merchants = vec![of_account("a"), of_account("b"), merchant("free")];
    let world = World::new(merchants, options, |_| {
        (AttemptClass::Delivered, Duration::ZERO)
    })
    .await;
    world.directory.put_scope(account(Some("40/s"), None));
    let shared = world.platform.shared_limits().unwrap();
    let begun = Instant::now();
    shared.lease(&limit(), WHOLE, Clock::now().mono + 1_000_000);
    world.publish("a", 100).await;
    world.publish("b", 100).await;
    world.publish("free", 100).await;
    world.finished(120).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    let sent: Vec<_> = world.courier.sent.lock().unwrap().clone();
    let shared_sent = sent.iter().filter(|sent| sent.0.as_str() != "free").count();
    // For the second of the lease.
    assert!((25..=41).contains(&shared_sent), "{shared_sent}");
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "small"
    )]
    let allowed = 10 + (begun.elapsed().as_secs_f64() * 100.0) as usize;
    assert!(sent.len() <= allowed, "{} of {allowed}", sent.len());
    // One place, too: after each attempt a time is waited for.
    world.directory.put_scope(account(Some("40/s"), Some(1)));
    shared.lease(&limit(), WHOLE, u64::MAX);
    shared.close(&limit(), Clock::now().wall + 500);
    let status = world.platform.shared_status(&of_account("a"));
    assert_eq!(status.len(), 2);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let count = |world: &World| {
        let sent = world.courier.sent.lock().unwrap();
        sent.iter().filter(|sent| sent.0.as_str() != "free").count()
    };
    assert!(count(&world) <= shared_sent + 1, "closed");
    let rest = Instant::now();
    world.finished(300).await;
    assert!(
        rest.elapsed() < Duration::from_secs(9),
        "the rate is not used"
    );
}
