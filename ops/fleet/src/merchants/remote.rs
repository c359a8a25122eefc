use std::net::SocketAddr;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Arrival, Behaviour, Stats, Verdict};
use crate::Error;

/// Steers and reads a fleet in another process, over its control interface.
///
/// One connection for each call; a call without an answer for 30 s fails.
#[derive(Debug, Clone, Copy)]
pub struct RemoteFleet {
    addr: SocketAddr,
}

const TIMEOUT: Duration = Duration::from_secs(30);

impl RemoteFleet {
    /// Of the fleet that listens there; nothing is sent yet.
    #[must_use]
    pub fn new(addr: SocketAddr) -> Self {
        Self { addr }
    }

    /// As [`super::FleetHandle::set`].
    pub async fn set(&self, merchant: &str, behaviour: &Behaviour) -> Result<(), Error> {
        let json = self.readable(serde_json::to_string(behaviour))?;
        self.call("PUT", &format!("/control/{merchant}"), &json)
            .await
            .map(drop)
    }

    /// As [`super::FleetHandle::set_default`].
    pub async fn set_default(&self, behaviour: &Behaviour) -> Result<(), Error> {
        let json = self.readable(serde_json::to_string(behaviour))?;
        self.call("PUT", "/control", &json).await.map(drop)
    }

    /// As [`super::FleetHandle::stats`].
    pub async fn stats(&self) -> Result<Stats, Error> {
        self.get("/control/stats").await
    }

    /// As [`super::FleetHandle::verdict`].
    pub async fn verdict(&self) -> Result<Verdict, Error> {
        self.get("/control/verdict").await
    }

    /// As [`super::FleetHandle::all_arrivals`].
    pub async fn all_arrivals(&self) -> Result<Vec<Arrival>, Error> {
        let lines = self.call("GET", "/control/arrivals", "").await?;
        let arrivals = serde_json::Deserializer::from_slice(&lines)
            .into_iter()
            .collect();
        self.readable(arrivals)
    }

    /// As [`super::FleetHandle::clear`].
    pub async fn clear(&self) -> Result<(), Error> {
        self.call("DELETE", "/control/records", "").await.map(drop)
    }

    /// As [`super::FleetHandle::clear_times`].
    pub async fn clear_times(&self) -> Result<(), Error> {
        self.call("DELETE", "/control/times", "").await.map(drop)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let json = self.call("GET", path, "").await?;
        self.readable(serde_json::from_slice(&json))
    }

    async fn call(&self, method: &str, path: &str, body: &str) -> Result<Vec<u8>, Error> {
        let exchange = tokio::time::timeout(TIMEOUT, self.exchange(method, path, body));
        let answer = match exchange.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(self.failed(error)),
            Err(_) => return Err(self.failed("no answer in time")),
        };
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        let Some(end) = end else {
            return Err(self.failed("the answer was cut"));
        };
        let (head, body) = (
            String::from_utf8_lossy(&answer[..end]),
            answer[end + 4..].to_vec(),
        );
        match head.split(' ').nth(1) {
            Some("200") => Ok(body),
            _ => {
                let status = head.lines().next().unwrap_or_default();
                Err(self.failed(format!(
                    "{status}: {}",
                    String::from_utf8_lossy(&body).trim()
                )))
            }
        }
    }

    /// In HTTP/1.0, so that the answer's body is all up to the end of the connection.
    async fn exchange(&self, method: &str, path: &str, body: &str) -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(self.addr).await?;
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.0\r\ncontent-length: {length}\r\n\r\n{body}");
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(answer)
    }

    fn readable<T>(&self, result: serde_json::Result<T>) -> Result<T, Error> {
        result.map_err(|error| self.failed(error))
    }

    fn failed(&self, what: impl ToString) -> Error {
        Error::Control {
            addr: self.addr,
            what: what.to_string(),
        }
    }
}
