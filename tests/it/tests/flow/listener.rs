//! A merchant that writes down whole requests and answers whatever a test says.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use expediter_harness::eventually;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A request with its whole body.
#[derive(Debug, Clone)]
pub(super) struct Request {
    /// `POST`
    pub(super) method: String,
    pub(super) path: String,
    /// Names in lower case, in the order of arrival.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Bytes,
    pub(super) at: Instant,
}

impl Request {
    /// The value of a header that is there once.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(known, _)| known == name);
        let value = found.next().map(|(_, value)| value.as_str());
        value.filter(|_| found.next().is_none())
    }
}

/// An answer: status, headers, body.
#[derive(Debug, Clone)]
pub(super) struct Answer(u16, Vec<(String, String)>, Bytes);

impl Answer {
    pub(super) fn status(status: u16) -> Self {
        Self(status, Vec::new(), Bytes::from_static(b"{}"))
    }

    pub(super) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.1.push((name.to_owned(), value.into()));
        self
    }

    pub(super) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.2 = body.into();
        self
    }

    fn head(&self) -> String {
        let Self(status, headers, body) = self;
        let headers: String = headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        format!(
            "HTTP/1.1 {status} Whatever\r\ncontent-length: {}\r\n{headers}\r\n",
            body.len()
        )
    }
}

type Requests = Arc<Mutex<Vec<Request>>>;

/// Serves until it is dropped.
#[derive(Debug)]
pub(super) struct Listener {
    addr: SocketAddr,
    requests: Requests,
    task: JoinHandle<()>,
}

impl Listener {
    /// On a free port; `answer` gets each request and its number, from 0.
    pub(super) async fn start(
        answer: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::at(0, answer).await
    }

    /// On that port.
    pub(super) async fn at(
        port: u16,
        answer: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let addr = listener.local_addr()?;
        let requests = Requests::default();
        let (seen, answer) = (Arc::clone(&requests), Arc::new(answer));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                connections.spawn(async move {
                    // A client that goes away ends the connection.
                    let _gone = serve(stream, &seen, &*answer).await.is_err();
                });
            }
        });
        Ok(Self {
            addr,
            requests,
            task,
        })
    }

    /// `http://127.0.0.1:<port>/orders`
    pub(super) fn url(&self) -> String {
        format!("http://{}/orders", self.addr)
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits for so many requests.
    pub(super) async fn arrived(&self, count: usize, deadline: Duration) -> Result<Vec<Request>> {
        let what = format!("{count} requests");
        eventually(&what, deadline, || async {
            let requests = self.requests();
            Ok((requests.len() >= count).then_some(requests))
        })
        .await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    seen: &Requests,
    answer: &(dyn Fn(&Request, usize) -> Answer + Send + Sync),
) -> Result<()> {
    let mut buffer = Vec::new();
    loop {
        let request = read(&mut stream, &mut buffer).await?;
        let answer = {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.push(request);
            let number = seen.len() - 1;
            answer(&seen[number], number)
        };
        stream.write_all(answer.head().as_bytes()).await?;
        stream.write_all(&answer.2).await?;
    }
}

async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<Request> {
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|part| part == b"\r\n\r\n") {
            break end;
        }
        more(stream, buffer).await?;
    };
    let head = String::from_utf8(buffer[..end].to_vec())?;
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (method, path) = first.next().zip(first.next()).context("no request line")?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length: usize = length.map_or(Ok(0), |(_, text)| text.parse())?;
    while buffer.len() < end + 4 + length {
        more(stream, buffer).await?;
    }
    let body = Bytes::copy_from_slice(&buffer[end + 4..end + 4 + length]);
    buffer.drain(..end + 4 + length);
    Ok(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        headers,
        body,
        at: Instant::now(),
    })
}

async fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<()> {
    let before = buffer.len();
    buffer.resize(before + 64 * 1024, 0);
    let read = stream.read(&mut buffer[before..]).await?;
    buffer.truncate(before + read);
    if read == 0 {
        bail!("the client is gone");
    }
    Ok(())
}
