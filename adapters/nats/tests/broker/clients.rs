use async_nats::jetstream;
use expediter_nats::{
    ConnectOptions, Credentials, Registry, TailFrom, Topology, ensure, find_outcome, partitions,
    request, tail_outcomes,
};
use expediter_types::{LimitScope, Merchant, OrderId, Scope};
use expediter_wire::registry::{Registration, ScopeRegistration};

use super::*;

fn registration(id: &str, url: &str, actor: &str) -> Registration {
    let merchant = Merchant::to(merchant(id), url);
    Registration {
        merchant,
        actor: actor.into(),
        at: 1_770_000_000_000,
        rolled_back_from: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_other_settings_are_refused() {
    let server = Server::start().await;
    let connection = server.connect().await;
    let topology = Topology {
        partitions: Some(8),
        ..Topology::default()
    };
    assert_eq!(ensure(&connection, &topology).await.unwrap(), 8);
    assert_eq!(
        ensure(&connection, &topology).await.unwrap(),
        8,
        "again changes nothing"
    );
    assert_eq!(
        ensure(&connection, &Topology::default()).await.unwrap(),
        8,
        "the stream's own"
    );
    assert_eq!(partitions(&connection).await.unwrap(), 8);

    let other = Topology {
        partitions: Some(16),
        ..Topology::default()
    };
    let text = ensure(&connection, &other).await.unwrap_err().to_string();
    assert!(
        text.contains("stream ORDERS has other settings: subject_transform is"),
        "{text}"
    );
    assert!(
        text.contains("partition(8,1)") && text.contains("partition(16,1)"),
        "{text}"
    );

    let context = jetstream::new(connection.client().clone());
    let mut config = context
        .get_stream("OUTCOMES")
        .await
        .unwrap()
        .cached_info()
        .config
        .clone();
    config.max_age = Duration::from_secs(86_400);
    config.duplicate_window = Duration::from_secs(60);
    context.update_stream(config).await.unwrap();
    let text = ensure(&connection, &topology)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("OUTCOMES") && text.contains("max_age is 86400s, wanted 0ns"),
        "{text}"
    );
    assert!(
        text.contains("duplicate_window is 60s, wanted 120s"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_registry_is_followed_and_guarded() {
    let server = Server::start().await;
    let connection = server.connect().await;
    ensure(&connection, &Topology::default()).await.unwrap();
    let registry = Registry::new(&connection);
    let first = registry
        .put(&registration("a", "http://a/1", "ann"), 0)
        .await
        .unwrap();

    let (host, known) = (Host::default(), Known::default());
    let node = start_with(&server, "n", &host, &known).await.unwrap();
    until("loaded", || known.heard() == ["loaded"]).await;
    assert_eq!(known.urls()["a"], "http://a/1");
    registry
        .put(&registration("b", "http://b/1", "ann"), 0)
        .await
        .unwrap();
    let second = registry
        .put(&registration("a", "http://a/2", "bob"), first)
        .await
        .unwrap();
    until("followed", || {
        known.urls().get("a").is_some_and(|url| url == "http://a/2")
    })
    .await;

    let conflict = registry
        .put(&registration("a", "http://a/3", "cid"), first)
        .await
        .unwrap_err();
    match conflict {
        Error::Conflict {
            actor, revision, ..
        } => assert_eq!((actor.as_str(), revision), ("bob", second)),
        other => panic!("{other}"),
    }
    let exists = registry
        .put(&registration("a", "http://a/3", "cid"), 0)
        .await
        .unwrap_err();
    assert!(matches!(exists, Error::Conflict { .. }), "{exists}");

    registry
        .delete(&merchant("a"), "dan", second)
        .await
        .unwrap();
    until("deleted", || !known.urls().contains_key("a")).await;
    assert!(registry.get(&merchant("a")).await.unwrap().is_none());
    registry
        .put(&registration("a", "http://a/4", "eve"), 0)
        .await
        .unwrap();
    until("created again", || {
        known.urls().get("a").is_some_and(|url| url == "http://a/4")
    })
    .await;
    let history = registry.history(&merchant("a")).await.unwrap();
    let actors: Vec<_> = history.iter().map(|change| change.actor.as_str()).collect();
    assert_eq!(actors, ["ann", "bob", "dan", "eve"]);
    assert!(history[2].merchant.is_none());
    let listed = registry.list().await.unwrap();
    let ids: Vec<_> = listed
        .iter()
        .map(|entry| entry.registration.merchant.id.as_str())
        .collect();
    assert_eq!(ids, ["a", "b"]);

    registry
        .resume(&merchant("b"), "ann", "mended")
        .await
        .unwrap();
    until("resumed", || known.heard() == ["loaded", "resume"]).await;
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_that_merchants_share_are_followed_and_guarded() {
    let server = Server::start().await;
    let connection = server.connect().await;
    ensure(&connection, &Topology::default()).await.unwrap();
    let registry = Registry::new(&connection);
    let limits = |kind, burst, actor: &str| ScopeRegistration {
        scope: Scope {
            kind,
            id: "pizza".into(),
            rates: vec!["20/s".parse().unwrap()],
            burst,
            concurrency: Some(40),
        },
        actor: actor.into(),
        at: 1_770_000_000_000,
    };
    let (group, credential) = (LimitScope::Group, LimitScope::Credential);
    let first = registry
        .put_scope(&limits(group, 1, "ann"), 0)
        .await
        .unwrap();
    registry
        .put(&registration("pizza", "http://a/1", "ann"), 0)
        .await
        .unwrap();

    let (host, known) = (Host::default(), Known::default());
    let node = start_with(&server, "n", &host, &known).await.unwrap();
    until("loaded", || known.heard() == ["loaded"]).await;
    let of = |key: &str| known.urls().get(key).cloned();
    assert_eq!(of("group/pizza").as_deref(), Some("burst 1"));
    assert_eq!(
        of("pizza").as_deref(),
        Some("http://a/1"),
        "the names do not meet"
    );

    let second = registry
        .put_scope(&limits(group, 2, "bob"), first)
        .await
        .unwrap();
    registry
        .put_scope(&limits(credential, 7, "bob"), 0)
        .await
        .unwrap();
    until("followed", || {
        of("group/pizza").as_deref() == Some("burst 2")
            && of("credential/pizza").as_deref() == Some("burst 7")
    })
    .await;
    let conflict = registry
        .put_scope(&limits(group, 3, "cid"), first)
        .await
        .unwrap_err();
    match conflict {
        Error::Conflict {
            key,
            actor,
            revision,
            ..
        } => {
            assert_eq!(
                (key.as_str(), actor.as_str(), revision),
                ("group/pizza", "bob", second)
            );
        }
        other => panic!("{other}"),
    }
    let stored = registry.scope(group, "pizza").await.unwrap().unwrap();
    assert_eq!(
        (stored.registration, stored.revision),
        (limits(group, 2, "bob"), second)
    );
    let listed = registry.scopes().await.unwrap();
    let kinds: Vec<_> = listed
        .iter()
        .map(|entry| entry.registration.scope.kind)
        .collect();
    assert_eq!(kinds, [group, credential]);
    assert_eq!(registry.list().await.unwrap().len(), 1, "no merchants");

    registry
        .delete_scope(group, "pizza", "dan", second)
        .await
        .unwrap();
    until("deleted", || of("group/pizza").is_none()).await;
    assert!(registry.scope(group, "pizza").await.unwrap().is_none());
    assert_eq!(registry.scopes().await.unwrap().len(), 1);
    registry
        .put_scope(&limits(group, 4, "eve"), 0)
        .await
        .unwrap();
    until("created again", || {
        of("group/pizza").as_deref() == Some("burst 4")
    })
    .await;
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_answer_and_outcomes_are_found() {
    let server = Server::start().await;
    let connection = server.connect().await;
    ensure(&connection, &Topology::default()).await.unwrap();
    let p = Partition(3);
    let short = Duration::from_secs(5);
    let nobody = request(&connection, p, "hello".into(), short)
        .await
        .unwrap_err();
    assert_eq!(nobody.to_string(), "no node owns partition 3");

    let host = Host::default();
    let node = start(&server, "a", &host).await;
    ready(&node, 16).await;
    let deadline = Instant::now() + LONG;
    let answer = loop {
        match request(&connection, p, "hello".into(), short).await {
            Ok(answer) => break answer,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    assert_eq!(answer, "3:hello");

    let (sender, mut outcomes) = tokio::sync::mpsc::channel(16);
    let tail = {
        let connection = connection.clone();
        tokio::spawn(async move { tail_outcomes(&connection, TailFrom::After(0), sender).await })
    };
    let shop = merchants_of(p, 1).remove(0);
    let seq = publish(&connection, &shop, "o1").await;
    let again = OrderPublisher::new(&connection, 1);
    let again = again
        .publish(&shop, id_headers(&shop, "o1"), "{}".into())
        .await
        .unwrap();
    let again = again.wait().await.unwrap();
    assert!(again.duplicate && again.seq == seq);
    until("taken", || host.ids() == ["o1"]).await;
    host.finish(p, &["o1"]).await;
    let item = tokio::time::timeout(LONG, outcomes.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((item.partition, item.outcome.seq), (p, seq));
    drop(outcomes);
    tail.await.unwrap().unwrap();
    let id = OrderId::new("o1").unwrap();
    let found = find_outcome(&connection, &shop, &id).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].outcome.envelope.id, id);
    let other = OrderId::new("o2").unwrap();
    assert!(
        find_outcome(&connection, &shop, &other)
            .await
            .unwrap()
            .is_empty()
    );
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_is_waited_for_and_credentials_are_shown() {
    let mut server = Server::with(&["--auth", "sesame"]);
    let mut options = ConnectOptions::to(&server.url(), "test");
    assert!(matches!(
        Connection::open_once(&options).await,
        Err(Error::Connect { .. })
    ));
    options.credentials = Credentials::Token("sesame".into());
    let waiting = {
        let options = options.clone();
        tokio::spawn(async move { Connection::open(&options).await })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished(), "nobody is there yet");
    server.run().await;
    let connection = tokio::time::timeout(LONG, waiting)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(connection.connected());
    connection.close().await;

    options.credentials = Credentials::Token("wrong".into());
    let refused = tokio::time::timeout(LONG, Connection::open(&options))
        .await
        .unwrap();
    let refused = refused.unwrap_err();
    assert!(matches!(refused, Error::Connect { .. }), "{refused}");
    options.credentials = Credentials::CredsFile("/nowhere/node.creds".into());
    let missing = Connection::open(&options).await.unwrap_err();
    assert_eq!(missing.to_string(), "reading /nowhere/node.creds");
}
