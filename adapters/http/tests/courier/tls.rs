use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use expediter_http::HttpCourier;
use expediter_types::AttemptClass;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpStream;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::support::*;

/// A server's certificate, also as the authority that a client may trust.
struct Identity {
    config: ServerConfig,
    pem: Vec<u8>,
}

fn identity(protocol: &str, wants_client_certificate: bool) -> Identity {
    options();
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
    let builder = ServerConfig::builder();
    let builder = if wants_client_certificate {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        builder
            .with_client_cert_verifier(WebPkiClientVerifier::builder(roots.into()).build().unwrap())
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    Identity {
        config,
        pem: cert.pem().into_bytes(),
    }
}

async fn server<F>(
    config: ServerConfig,
    serve: impl Fn(TlsStream<TcpStream>) -> F + Clone + Send + Sync + 'static,
) -> Server
where
    F: Future<Output = ()> + Send + 'static,
{
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Server::start(move |stream, _| {
        let (acceptor, serve) = (acceptor.clone(), serve.clone());
        async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                serve(stream).await;
            }
        }
    })
    .await
}

fn trusting(pem: Vec<u8>) -> HttpCourier {
    let mut options = options();
    options.extra_roots = vec![pem];
    HttpCourier::new(options).unwrap()
}

fn https(server: &Server) -> String {
    server.url().replace("http:", "https:")
}

async fn http1(mut stream: TlsStream<TcpStream>) {
    while read_request(&mut stream).await.is_some() {
        write(&mut stream, &response(200, &[], "")).await;
    }
}

#[tokio::test]
async fn certificates_must_convince() {
    let Identity { config, pem } = identity("http/1.1", false);
    let server = server(config, http1).await;
    let answer = once(merchant(&https(&server))).await;
    assert_eq!(answer.class, AttemptClass::Misconfigured, "{answer:?}");
    assert!(
        answer.detail.contains("invalid peer certificate"),
        "{}",
        answer.detail
    );
    // Of that authority, but for another name.
    let courier = trusting(pem);
    let named = https(&server).replace("127.0.0.1", "localhost");
    let answer = attempt(&courier, &merchant(&named).shared(), "o").await;
    assert_eq!(answer.class, AttemptClass::Misconfigured, "{answer:?}");
    let answer = attempt(&courier, &merchant(&https(&server)).shared(), "o").await;
    assert_eq!(answer.class, AttemptClass::Delivered, "{answer:?}");
}

#[tokio::test]
async fn a_missing_client_certificate_concerns_the_merchant() {
    let Identity { config, pem } = identity("http/1.1", true);
    let server = server(config, http1).await;
    let answer = attempt(&trusting(pem), &merchant(&https(&server)).shared(), "o").await;
    assert_eq!(answer.class, AttemptClass::Misconfigured, "{answer:?}");
}

#[tokio::test]
async fn no_handshake_is_before_the_request() {
    let plain = Server::start(|mut stream, _| async move {
        write(&mut stream, &response(400, &[], "speak HTTP")).await;
        sleep(Duration::from_secs(5)).await;
    })
    .await;
    let answer = once(merchant(&https(&plain))).await;
    assert_eq!(answer.class, AttemptClass::Retry, "{answer:?}");
    assert!(
        answer.detail.contains("before the request was sent"),
        "{}",
        answer.detail
    );

    let closing = Server::start(|stream, _| async move { drop(stream) }).await;
    assert_eq!(
        once(merchant(&https(&closing))).await.class,
        AttemptClass::Retry
    );

    let silent = Server::start(|stream, _| async move {
        sleep(Duration::from_secs(5)).await;
        drop(stream);
    })
    .await;
    let mut options = options();
    options.connect_timeout = Duration::from_millis(300);
    let courier = HttpCourier::new(options).unwrap();
    let answer = attempt(&courier, &merchant(&https(&silent)).shared(), "o").await;
    assert_eq!(answer.class, AttemptClass::Retry, "{answer:?}");
    assert!(answer.took < Duration::from_secs(1));
}

/// HTTP/2: what becomes of a stream.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Answer,
    Reset(h2::Reason),
    /// The connection ends orderly without having looked at the request.
    GoAway,
    Drop,
}

async fn http2(fate: Fate, stream: TlsStream<TcpStream>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    while let Some(Ok((mut request, mut respond))) = connection.accept().await {
        match fate {
            Fate::Answer => {
                while let Some(Ok(data)) = request.body_mut().data().await {
                    let _ = request
                        .body_mut()
                        .flow_control()
                        .release_capacity(data.len());
                }
                let mut sending = respond.send_response(Default::default(), false).unwrap();
                sending.send_data(Bytes::from_static(b"ok"), true).unwrap();
            }
            Fate::Reset(reason) => respond.send_reset(reason),
            Fate::GoAway => {
                connection.graceful_shutdown();
                respond.send_reset(h2::Reason::REFUSED_STREAM);
            }
            Fate::Drop => return,
        }
    }
}

#[tokio::test]
async fn streams_of_http2_are_judged_too() {
    for (fate, class) in [
        (Fate::Answer, AttemptClass::Delivered),
        (Fate::Reset(h2::Reason::REFUSED_STREAM), AttemptClass::Retry),
        (
            Fate::Reset(h2::Reason::INTERNAL_ERROR),
            AttemptClass::Ambiguous,
        ),
        (Fate::GoAway, AttemptClass::Retry),
        (Fate::Drop, AttemptClass::Ambiguous),
    ] {
        let Identity { config, pem } = identity("h2", false);
        let server = server(config, move |stream| http2(fate, stream)).await;
        let courier = trusting(pem);
        let merchant = native(&https(&server)).shared();
        let answer = attempt(&courier, &merchant, "o").await;
        assert_eq!(answer.class, class, "{fate:?}: {answer:?}");
        if matches!(fate, Fate::Answer) {
            let exchange = courier
                .test_exchange(merchant, order_of(envelope("o"), b"{}"))
                .await;
            assert_eq!(
                (exchange.version.as_str(), &exchange.body[..]),
                ("HTTP/2.0", &b"ok"[..])
            );
            assert_eq!(server.connections(), 1);
        }
    }
}
