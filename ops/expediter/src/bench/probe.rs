//! What the node's probes say.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const TIMEOUT: Duration = Duration::from_secs(10);

/// One scrape of `/metrics`.
#[derive(Debug)]
pub(super) struct Metrics(String);

impl Metrics {
    pub(super) async fn of(node: SocketAddr) -> anyhow::Result<Self> {
        let answer = tokio::time::timeout(TIMEOUT, get(node, "/metrics"));
        let (status, body) = answer.await.context("the node's metrics took too long")??;
        anyhow::ensure!(status == 200, "the node's metrics answered {status}");
        Ok(Self(body))
    }

    /// The sum over all labels; 0 when there is none of this name.
    pub(super) fn sum(&self, name: &str) -> u64 {
        let values = self.0.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let value = match rest.strip_prefix('{') {
                Some(labelled) => labelled.rsplit_once("} ")?.1,
                None => rest.strip_prefix(' ')?,
            };
            value.trim().parse::<f64>().ok()
        });
        // Counts: far below the integers that a float cannot hold.
        values.sum::<f64>().max(0.0) as u64
    }
}

/// Whether `/readyz` says that all is well.
pub(super) async fn is_ready(node: SocketAddr) -> bool {
    let answer = tokio::time::timeout(TIMEOUT, get(node, "/readyz")).await;
    matches!(answer, Ok(Ok((200, _))))
}

/// In HTTP/1.0, so that the body is all up to the end of the connection.
async fn get(addr: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(addr).await?;
    let head = format!("GET {path} HTTP/1.0\r\nhost: {addr}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let cut = || io::Error::new(io::ErrorKind::InvalidData, "the answer was cut");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(cut)?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Ok((status.ok_or_else(cut)?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_all_labels_are_added_and_longer_names_left_out() {
        let page = "# TYPE finished counter\n\
            finished{outcome=\"delivered\"} 41\nfinished{outcome=\"with } and space\"} 1\n\
            finished_total 7\nplain 3.0\nbad x\n";
        let metrics = Metrics(page.to_owned());
        assert_eq!(metrics.sum("finished"), 42);
        assert_eq!(metrics.sum("plain"), 3);
        assert_eq!(metrics.sum("bad"), 0);
        assert_eq!(metrics.sum("absent"), 0);
    }
}
