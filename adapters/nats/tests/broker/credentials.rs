//! A server that lets in only who shows a JWT of its operator's account.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use expediter_nats::{ConnectOptions, Credentials};
use nkeys::KeyPair;
use serde_json::{Value, json};

use super::*;

/// A JWT about `subject`, signed by `issuer`.
fn jwt(issuer: &KeyPair, subject: &KeyPair, nats: Value) -> String {
    let encode = |value: &Value| BASE64.encode(value.to_string());
    let head = encode(&json!({ "typ": "JWT", "alg": "ed25519-nkey" }));
    let (issuer_key, subject_key) = (issuer.public_key(), subject.public_key());
    let body = encode(&json!({
        "jti": "a test", "iat": 1_770_000_000, "name": "a test",
        "iss": issuer_key, "sub": subject_key, "nats": nats,
    }));
    let text = format!("{head}.{body}");
    let signature = BASE64.encode(issuer.sign(text.as_bytes()).unwrap());
    format!("{text}.{signature}")
}

fn account(storage: i64) -> Value {
    json!({
        "limits": {
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1,
            "wildcards": true, "conn": -1, "leaf": -1,
            "mem_storage": storage, "disk_storage": storage, "streams": storage, "consumer": storage,
        },
        "type": "account", "version": 2,
    })
}

/// Writes the `.creds` file of a new user.
fn user(account: &KeyPair, dir: &Path, name: &str) -> PathBuf {
    let user = KeyPair::new_user();
    let unlimited = json!({ "subs": -1, "data": -1, "payload": -1, "type": "user", "version": 2 });
    let token = jwt(account, &user, unlimited);
    let seed = user.seed().unwrap();
    let file = dir.join(name);
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    std::fs::write(&file, text).unwrap();
    file
}

fn with(server: &Server, file: PathBuf) -> ConnectOptions {
    ConnectOptions {
        credentials: Credentials::CredsFile(file),
        ..ConnectOptions::to(&server.url(), "test")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creds_file_opens_the_account() {
    let dir = tempfile::tempdir().unwrap();
    let (operator, system, orders) = (
        KeyPair::new_operator(),
        KeyPair::new_account(),
        KeyPair::new_account(),
    );
    let about_itself = json!({ "type": "operator", "version": 2 });
    let config = dir.path().join("operator.conf");
    let text = format!(
        "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {}, {}: {} }}\n",
        jwt(&operator, &operator, about_itself),
        system.public_key(),
        system.public_key(),
        jwt(&operator, &system, account(0)),
        orders.public_key(),
        jwt(&operator, &orders, account(-1)),
    );
    std::fs::write(&config, text).unwrap();
    let mut server = Server::with(&["-c", config.to_str().unwrap()]);
    server.run().await;

    // Strangers are told so at once: no waiting mends that.
    let stranger = user(&KeyPair::new_account(), dir.path(), "stranger.creds");
    for options in [
        ConnectOptions::to(&server.url(), "test"),
        with(&server, stranger),
    ] {
        let opened = tokio::time::timeout(LONG, Connection::open(&options)).await;
        let refused = opened.expect("an answer").unwrap_err();
        assert!(matches!(refused, Error::Connect { .. }), "{refused}");
    }

    let host = Host::default();
    let file = user(&orders, dir.path(), "node.creds");
    let mut options = Options::new(NodeName::new("a").unwrap(), &server.url());
    options.connect.credentials = Credentials::CredsFile(file.clone());
    let shared = Arc::new(host.clone());
    let known = Arc::new(Known::default());
    let node = Node::start(options, shared.clone(), known, shared.clone(), shared)
        .await
        .unwrap();
    ready(&node, 16).await;
    let connection = Connection::open(&with(&server, file)).await.unwrap();
    publish(&connection, &merchant("luigis"), "o1").await;
    until("taken", || host.ids() == ["o1"]).await;
    node.leave().await;
}
