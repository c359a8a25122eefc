//! Servers that behave as badly as a test wants, and what talks to them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use bytes::Bytes;
use expediter_core::{Order, payload_hash};
use expediter_http::{Egress, HttpCourier, Options, SecretSource, Unresolved};
use expediter_ports::{AttemptRequest, Courier};
use expediter_types::{Answer, Envelope, Idempotency, Merchant, MerchantId, OrderId, SecretRef};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Secrets by `env:NAME` or `file:PATH`.
#[derive(Debug, Default)]
pub(crate) struct Secrets(pub(crate) Mutex<HashMap<String, String>>);

impl Secrets {
    pub(crate) fn with(entries: &[(&str, &str)]) -> Arc<Self> {
        let entries = entries
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Arc::new(Self(Mutex::new(entries.collect())))
    }
}

impl SecretSource for Secrets {
    fn resolve(&self, reference: &SecretRef) -> Result<String, Unresolved> {
        let secrets = self.0.lock().unwrap();
        secrets
            .get(&reference.to_string())
            .cloned()
            .ok_or(Unresolved::Missing)
    }
}

/// Loopback allowed, everything else by default.
pub(crate) fn options() -> Options {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        rustls::crypto::ring::default_provider()
            .install_default()
            .unwrap();
    });
    let mut options = Options::new(Secrets::with(&[]));
    options.egress = Egress::new(&["127.0.0.0/8", "::1"]).unwrap();
    options
}

pub(crate) fn courier() -> HttpCourier {
    HttpCourier::new(options()).unwrap()
}

/// A merchant there, unrepeatable, with 2 s for an attempt.
pub(crate) fn merchant(url: &str) -> Merchant {
    let mut merchant = Merchant::to(MerchantId::new("luigis").unwrap(), url);
    merchant.adapter.timeout = Duration::from_secs(2);
    merchant
}

pub(crate) fn native(url: &str) -> Merchant {
    let mut merchant = merchant(url);
    merchant.adapter.idempotency = Idempotency::Native;
    merchant
}

pub(crate) fn envelope(id: &str) -> Envelope {
    Envelope {
        id: OrderId::new(id).unwrap(),
        merchant: MerchantId::new("luigis").unwrap(),
        generation: 1,
        created: 0,
        deadline: None,
        not_before: None,
        key: None,
        priority: expediter_types::Priority::Normal,
        event_type: None,
        source: None,
        time: None,
        content_type: None,
        traceparent: None,
        test: false,
        origin: None,
    }
}

pub(crate) fn order_of(envelope: Envelope, payload: &'static [u8]) -> Arc<Order> {
    let payload_hash = payload_hash(payload);
    Arc::new(Order {
        seq: 1,
        envelope,
        payload: Bytes::from_static(payload),
        payload_hash,
    })
}

pub(crate) async fn attempt(courier: &HttpCourier, merchant: &Arc<Merchant>, id: &str) -> Answer {
    let order = order_of(envelope(id), br#"{"sandwich":"tuna"}"#);
    courier
        .attempt(AttemptRequest {
            merchant: Arc::clone(merchant),
            order,
            number: 1,
            look_first: false,
            may_leave: expediter_ports::MayLeave::always(),
        })
        .await
}

/// One attempt of a new courier.
pub(crate) async fn once(merchant: Merchant) -> Answer {
    attempt(&courier(), &merchant.shared(), "o-1").await
}

/// A request as it came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Got {
    pub(crate) line: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Got {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Reads one request; `None` when the client closes before its end.
pub(crate) async fn read_request<S: AsyncRead + Unpin>(stream: &mut S) -> Option<Got> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.lines();
    let line = lines.next()?.to_owned();
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let mut got = Got {
        line,
        headers,
        body: Vec::new(),
    };
    let length = got
        .header("content-length")
        .map_or(0, |text| text.parse().unwrap());
    got.body.resize(length, 0);
    stream.read_exact(&mut got.body).await.ok()?;
    Some(got)
}

pub(crate) async fn write<S: AsyncWrite + Unpin>(stream: &mut S, text: &str) {
    // The client may be gone by then: that is what some tests are about.
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.flush().await;
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) connections: Arc<AtomicUsize>,
    pub(crate) requests: Arc<Mutex<Vec<Got>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// `serve` gets each connection.
    pub(crate) async fn start<F>(
        serve: impl Fn(TcpStream, Arc<Mutex<Vec<Got>>>) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (count, got) = (Arc::clone(&connections), Arc::clone(&requests));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, Arc::clone(&got)));
            }
        });
        Self {
            address,
            connections,
            requests,
            task,
        }
    }

    /// Reads a request, writes `response`, keeps the connection, again and again.
    pub(crate) async fn answering(response: impl Into<String>) -> Self {
        let response: Arc<str> = response.into().into();
        Self::start(move |mut stream, got| {
            let response = Arc::clone(&response);
            async move {
                while let Some(request) = read_request(&mut stream).await {
                    got.lock().unwrap().push(request);
                    write(&mut stream, &response).await;
                }
            }
        })
        .await
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/orders", self.address)
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> Vec<Got> {
        self.requests.lock().unwrap().clone()
    }
}

/// A response with that status and body, and further header lines.
pub(crate) fn response(status: u16, headers: &[&str], body: &str) -> String {
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    format!(
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}
