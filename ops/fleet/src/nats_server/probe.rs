//! Asks a server whether it is ready, in the plain text protocol: no client library is needed for it.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;

/// A server that is still starting may take the connection and not answer: ask again soon.
const TIMEOUT: Duration = Duration::from_secs(1);

/// What "ready" means to the caller.
#[derive(Debug, Clone, Copy)]
pub(super) enum Need {
    /// It answers a ping.
    Answer,
    /// Its JetStream answers (in a cluster: there is a leader).
    JetStream,
    /// A stream with so many replicas can be made.
    Replicas(usize),
}

/// One try. The error says what was missing.
pub(super) async fn ask(port: u16, server_name: &str, need: Need) -> Result<(), String> {
    match tokio::time::timeout(TIMEOUT, answer(port, server_name, need)).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer to {need:?} in {TIMEOUT:?}")),
    }
}

async fn answer(port: u16, server_name: &str, need: Need) -> Result<(), String> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .await
        .map_err(text)?;
    let mut session = Session {
        stream: BufStream::new(stream),
    };
    let greeting = session.line().await?;
    let info = greeting
        .strip_prefix("INFO ")
        .ok_or_else(|| format!("it greets {greeting:?}"))?;
    let info: Value = serde_json::from_str(info).map_err(text)?;
    if info["server_name"] != server_name {
        return Err(format!(
            "another server has the port: {}",
            info["server_name"]
        ));
    }
    // Extra configuration may ask for credentials, which are the caller's: up is all that can be seen.
    if info["auth_required"] == true || info["tls_required"] == true {
        return Ok(());
    }
    session.ping().await?;
    match need {
        Need::Answer => Ok(()),
        Need::JetStream => session.request("$JS.API.INFO", "").await,
        Need::Replicas(count) => session.try_stream(count).await,
    }
}

struct Session {
    stream: BufStream<TcpStream>,
}

impl Session {
    async fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).await.map_err(text)?;
        if read == 0 {
            return Err("it closed the connection".into());
        }
        Ok(line.trim_end().to_owned())
    }

    async fn send(&mut self, command: &str) -> Result<(), String> {
        self.stream
            .write_all(command.as_bytes())
            .await
            .map_err(text)?;
        self.stream.flush().await.map_err(text)
    }

    async fn ping(&mut self) -> Result<(), String> {
        self.send("CONNECT {\"verbose\":false,\"pedantic\":false}\r\nPING\r\n")
            .await?;
        loop {
            match self.line().await?.as_str() {
                "PONG" => return Ok(()),
                error if error.starts_with("-ERR") => return Err(error.to_owned()),
                _ => {}
            }
        }
    }

    /// An error in the answer is an error here.
    async fn request(&mut self, subject: &str, body: &str) -> Result<(), String> {
        static INBOX: AtomicU64 = AtomicU64::new(0);
        let number = INBOX.fetch_add(1, Ordering::Relaxed);
        let inbox = format!("_INBOX.ready.{}.{number}", std::process::id());
        let length = body.len();
        let command =
            format!("SUB {inbox} {number}\r\nPUB {subject} {inbox} {length}\r\n{body}\r\n");
        self.send(&command).await?;
        loop {
            let line = self.line().await?;
            if line.starts_with("-ERR") {
                return Err(line);
            }
            if line == "PING" {
                self.send("PONG\r\n").await?;
            }
            let Some(head) = line.strip_prefix("MSG ") else {
                continue;
            };
            let length = head
                .rsplit(' ')
                .next()
                .and_then(|n| n.parse::<usize>().ok());
            let length = length.ok_or_else(|| format!("not understood: {line:?}"))?;
            let mut payload = vec![0; length + 2];
            self.stream.read_exact(&mut payload).await.map_err(text)?;
            let answer: Value = serde_json::from_slice(&payload[..length]).map_err(text)?;
            return match answer.get("error") {
                Some(error) => Err(format!("{subject}: {error}")),
                None => Ok(()),
            };
        }
    }

    /// Only making one proves that a stream can be made: a leader alone does not place replicas.
    async fn try_stream(&mut self, replicas: usize) -> Result<(), String> {
        let name = format!("READY_{}", std::process::id());
        let config = json!({
            "name": name, "subjects": [format!("_ready.{name}")], "retention": "limits",
            "storage": "memory", "num_replicas": replicas, "max_msgs": 1,
        });
        self.request(
            &format!("$JS.API.STREAM.CREATE.{name}"),
            &config.to_string(),
        )
        .await?;
        self.request(&format!("$JS.API.STREAM.DELETE.{name}"), "")
            .await
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
