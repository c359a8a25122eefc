//! A client so plain that it shows what is on the wire.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .next()
    }
}

/// A keep-alive connection.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub(super) async fn new(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.expect("the fleet listens");
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    pub(super) async fn order(&mut self, merchant: &str, id: &str) -> io::Result<Answer> {
        let headers = format!(
            "expediter-order-id: {id}\r\nidempotency-key: \"k-{id}\"\r\nexpediter-attempt: 2\r\n"
        );
        self.send("POST", &format!("/m/{merchant}/orders"), &headers, b"{}")
            .await
    }

    pub(super) async fn bench(&mut self, merchant: &str, body: &[u8]) -> io::Result<Answer> {
        self.send("POST", &format!("/m/{merchant}/orders"), "", body)
            .await
    }

    pub(super) async fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: &[u8],
    ) -> io::Result<Answer> {
        self.write(method, path, headers, body).await?;
        self.answer().await
    }

    pub(super) async fn write(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: &[u8],
    ) -> io::Result<()> {
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: fleet\r\ncontent-length: {length}\r\n{headers}\r\n"
        );
        self.stream
            .write_all(&[head.as_bytes(), body].concat())
            .await
    }

    pub(super) async fn answer(&mut self) -> io::Result<Answer> {
        let head = loop {
            if let Some(end) = self
                .buffer
                .windows(4)
                .position(|bytes| bytes == b"\r\n\r\n")
            {
                let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
                break String::from_utf8(head).expect("a head in ASCII");
            }
            self.more().await?;
        };
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let status = status.expect("a status");
        let mut answer = Answer {
            status,
            head,
            body: String::new(),
        };
        let length = answer
            .header("content-length")
            .and_then(|length| length.parse().ok());
        let length: usize = length.unwrap_or(0);
        while self.buffer.len() < length {
            self.more().await?;
        }
        let body: Vec<u8> = self.buffer.drain(..length).collect();
        answer.body = String::from_utf8(body).expect("a body in UTF-8");
        Ok(answer)
    }

    async fn more(&mut self) -> io::Result<()> {
        let mut part = [0; 4096];
        match self.stream.read(&mut part).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.buffer.extend_from_slice(&part[..read]);
                Ok(())
            }
        }
    }
}
