//! AUDIT on a real broker.

use expediter_nats::{Audit, AuditFilter, AuditItem, TailFrom, Topology, ensure};
use expediter_types::OrderId;
use expediter_wire::Rfc3339;
use expediter_wire::audit::{AuditRecord, AuditResult, AuditTarget};
use tokio::sync::mpsc;

use super::*;

fn record(verb: &str, target: AuditTarget, actor: &str) -> AuditRecord {
    AuditRecord {
        at: Rfc3339(1_770_000_000_000),
        actor: actor.into(),
        verb: verb.into(),
        target,
        reason: "a test".into(),
        result: AuditResult::Ok,
        details: Default::default(),
    }
}

async fn read(audit: &Audit, filter: &AuditFilter) -> Vec<String> {
    let (sink, mut items) = mpsc::channel::<AuditItem>(64);
    audit.read(filter, TailFrom::After(0), &sink).await.unwrap();
    drop(sink);
    let mut ids = Vec::new();
    while let Some(item) = items.recv().await {
        ids.push(format!("{} {}", item.record.verb, item.record.target.id));
    }
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_kept_and_selected() {
    let server = Server::start().await;
    let connection = server.connect().await;
    let missing = Audit::open(&connection).await.unwrap_err();
    assert!(matches!(missing, Error::NoStream { .. }), "{missing}");
    ensure(&connection, &Topology::default()).await.unwrap();
    let audit = Audit::open(&connection).await.unwrap();
    assert_eq!(
        read(&audit, &AuditFilter::default()).await,
        Vec::<String>::new()
    );

    let (a, b) = (merchant("a"), merchant("b"));
    let order = AuditTarget::order(&a, &OrderId::new("x.*>/1").unwrap());
    for (verb, target, actor) in [
        ("merchant.apply", AuditTarget::merchant(&a), "ann"),
        ("merchant.apply", AuditTarget::merchant(&b), "bob"),
        ("order.cancel", order, "bob"),
        ("group.pause", AuditTarget::group("soups & more"), "ann"),
    ] {
        audit.record(&record(verb, target, actor)).await.unwrap();
    }
    let all = AuditFilter::default();
    assert_eq!(
        read(&audit, &all).await,
        [
            "merchant.apply a",
            "merchant.apply b",
            "order.cancel x.*>/1",
            "group.pause soups & more"
        ]
    );
    let of_a = AuditFilter {
        merchants: vec![a.clone(), a.clone()],
        ..all.clone()
    };
    assert_eq!(
        read(&audit, &of_a).await,
        ["merchant.apply a", "order.cancel x.*>/1"]
    );
    let by_bob = AuditFilter {
        verbs: vec!["merchant".into()],
        actors: vec!["bob".into()],
        ..all.clone()
    };
    assert_eq!(read(&audit, &by_bob).await, ["merchant.apply b"]);

    let (sink, mut items) = mpsc::channel(4);
    let following = {
        let audit = audit.clone();
        tokio::spawn(async move { audit.follow(&all, TailFrom::After(3), &sink).await })
    };
    let mut next = async || {
        let item = tokio::time::timeout(LONG, items.recv()).await;
        item.unwrap().unwrap().record.verb
    };
    assert_eq!(next().await, "group.pause");
    let late = record("merchant.delete", AuditTarget::merchant(&b), "cid");
    audit.record(&late).await.unwrap();
    assert_eq!(next().await, "merchant.delete");
    drop(items);
    tokio::time::timeout(LONG, following)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_forgets_by_age_only_and_says_when_a_record_is_not_kept() {
    let server = Server::start().await;
    let connection = server.connect().await;
    ensure(&connection, &Topology::default()).await.unwrap();
    let context = async_nats::jetstream::new(connection.client().clone());
    let config = context
        .get_stream("AUDIT")
        .await
        .unwrap()
        .cached_info()
        .config
        .clone();
    assert_eq!(config.max_age, Duration::from_secs(90 * 86_400));
    assert!(config.deny_delete && config.max_bytes > 0);

    let other = Topology {
        audit_retention: Duration::from_secs(86_400),
        ..Topology::default()
    };
    let differs = ensure(&connection, &other).await.unwrap_err().to_string();
    assert!(
        differs.contains("stream AUDIT has other settings: max_age is"),
        "{differs}"
    );

    let audit = Audit::open(&connection).await.unwrap();
    let sealed = async_nats::jetstream::stream::Config {
        sealed: true,
        ..config
    };
    context.update_stream(sealed).await.unwrap();
    let target = AuditTarget::merchant(&merchant("a"));
    let error = audit.record(&record("merchant.apply", target, "ann")).await;
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("audit.merchant.a") && error.contains("sealed"),
        "{error}"
    );
}

/// A platform whose broker's room is given to ORDERS and OUTCOMES already has an AUDIT all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_without_room_to_set_aside_keeps_records() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("nats.conf");
    std::fs::write(&file, "jetstream { max_file_store: 450MB }").unwrap();
    let mut server = Server::with(&["-c", file.to_str().unwrap()]);
    server.run().await;
    let connection = server.connect().await;
    ensure(&connection, &Topology::default()).await.unwrap();
    let context = async_nats::jetstream::new(connection.client().clone());
    let stream = context.get_stream("AUDIT").await.unwrap();
    assert_eq!(stream.cached_info().config.max_bytes, -1);
    let audit = Audit::open(&connection).await.unwrap();
    let target = AuditTarget::merchant(&merchant("a"));
    audit
        .record(&record("merchant.apply", target, "ann"))
        .await
        .unwrap();
}
