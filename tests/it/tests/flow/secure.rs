//! The node's connection to NATS: encrypted, with certificates and an NKey.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use expediter_harness::{NodeOptions, World, eventually, get};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::SOON;

/// An NKey of a user and its seed, from the documentation of NATS.
const NKEY: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";
const SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";

/// PEM files of an authority, and of certificates that it signed.
struct Authority {
    dir: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new(dir: &Path) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::create_dir_all(dir)?;
        fs::write(dir.join("ca.pem"), issuer.pem())?;
        let dir = dir.to_owned();
        Ok(Self { dir, issuer })
    }

    fn sign(&self, name: &str) -> Result<()> {
        let params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        fs::write(self.file(name, "pem"), certificate.pem())?;
        fs::write(self.file(name, "key"), key.serialize_pem())?;
        Ok(())
    }

    fn file(&self, name: &str, kind: &str) -> String {
        self.dir
            .join(format!("{name}.{kind}"))
            .display()
            .to_string()
    }
}

fn secured(world: &World, name: &str, authority: &Authority) -> NodeOptions {
    world
        .node(name)
        .set("nats.tls.ca_file", &authority.file("ca", "pem"))
        .set("nats.tls.cert_file", &authority.file("node", "pem"))
        .set("nats.tls.key_file", &authority.file("node", "key"))
        .set("nats.nkey_file", &authority.file("node", "nk"))
        .set_toml("nats.tls.required", "true")
}

/// The broker takes certificates of its authority only, and gives the right to work to an NKey. The
/// test's own connection is plain.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_talks_tls_and_shows_who_it_is() -> Result<()> {
    let files = tempfile::tempdir()?;
    let ours = Authority::new(&files.path().join("ours"))?;
    let theirs = Authority::new(&files.path().join("theirs"))?;
    ours.sign("server")?;
    for authority in [&ours, &theirs] {
        authority.sign("node")?;
        fs::write(authority.file("node", "nk"), format!("{SEED}\n"))?;
    }
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port();
    let world = World::configured(&format!(
        r#"
http: "127.0.0.1:{port}"
tls {{ cert_file: "{}", key_file: "{}", ca_file: "{}", verify: true }}
allow_non_tls: true
authorization {{ users: [ {{ user: test, password: test }}, {{ nkey: {NKEY} }} ] }}
no_auth_user: test
"#,
        ours.file("server", "pem"),
        ours.file("server", "key"),
        ours.file("ca", "pem"),
    ))
    .await?;
    world.make_streams(4).await?;
    world.register(&world.merchant("luigis")).await?;

    // Whom the node does not trust it does not talk to, nor the broker to strangers.
    let distrusting = secured(&world, "distrusting", &ours)
        .set("nats.tls.ca_file", &theirs.file("ca", "pem"))
        .spawn()?;
    let stranger = secured(&world, "stranger", &theirs)
        .set("nats.tls.ca_file", &ours.file("ca", "pem"))
        .spawn()?;
    let node = secured(&world, "node", &ours).start().await?;
    for outside in [&distrusting, &stranger] {
        eventually("waits outside", SOON, || async {
            let waits = outside.log().tail(50).contains("waiting for NATS");
            Ok(waits.then_some(()))
        })
        .await?;
        let (status, _) = outside.get("/readyz").await?;
        ensure!(status == 503, "{} was let in", outside.name());
    }

    world.publish("luigis", 20).await?;
    world.settled(Duration::from_secs(30)).await?;
    world.oracle().judge().await?;
    let (_, connections) = get(port, "/connz?auth=1").await?;
    let connections: serde_json::Value = serde_json::from_str(&connections)?;
    let connections = connections["connections"].as_array().context("a list")?;
    let of_node: Vec<_> = connections
        .iter()
        .filter(|connection| {
            connection["name"]
                .as_str()
                .is_some_and(|name| name == "node")
        })
        .collect();
    ensure!(!of_node.is_empty(), "{connections:?}");
    for connection in of_node {
        ensure!(connection["tls_version"].is_string(), "plain: {connection}");
        ensure!(connection["authorized_user"] == NKEY, "{connection}");
    }
    node.check(&[]).await
}
