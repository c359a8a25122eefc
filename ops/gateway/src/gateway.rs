use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::rt::System;
use actix_web::{App, HttpServer};
use tokio::sync::oneshot;

use crate::routes::{Health, RenderMetrics, configure};

/// Probes and scrapers are few; what is above waits in the backlog of the listener (128).
const MAX_CONNECTIONS: usize = 256;
/// For the whole head of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(75);
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Seconds that running requests get at the end.
const GRACE_S: u64 = 2;

/// Where and how the gateway listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Port 0: any free one, see [`Handle::addr`].
    pub listen: SocketAddr,
    /// Threads that answer; 1 to 64, 1 by default.
    pub workers: usize,
}

impl Options {
    /// One worker at this address.
    #[must_use]
    pub fn at(listen: SocketAddr) -> Self {
        Self { listen, workers: 1 }
    }
}

/// Why the gateway does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has the port, it is not ours to take, or the address is not this machine's.
    #[error("cannot listen on {listen}")]
    Listen {
        listen: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the gateway's thread cannot be started")]
    Thread(#[source] io::Error),
    #[error("gateway workers must be 1 to 64, not {0}")]
    Workers(usize),
}

/// The HTTP server.
#[derive(Debug)]
pub struct Gateway;

impl Gateway {
    /// Listens when it returns. Needs no async runtime around it: the server has its own.
    pub fn start(
        options: &Options,
        health: Arc<dyn Health>,
        metrics: RenderMetrics,
    ) -> Result<Handle, Error> {
        if !(1..=64).contains(&options.workers) {
            return Err(Error::Workers(options.workers));
        }
        let listen = options.listen;
        let at = |source| Error::Listen { listen, source };
        // Here and not on the server's thread, so that a taken port is this call's error.
        let listener = TcpListener::bind(listen).map_err(at)?;
        let addr = listener.local_addr().map_err(at)?;
        let (server_is, server_was) = std::sync::mpsc::sync_channel(1);
        let (ended, end) = oneshot::channel();
        let workers = options.workers;
        std::thread::Builder::new()
            .name("gateway".to_owned())
            .spawn(move || {
                let result = System::new().block_on(async move {
                    let server = HttpServer::new(move || {
                        App::new().configure(|app| configure(app, health.clone(), metrics.clone()))
                    })
                    .workers(workers)
                    .max_connections(MAX_CONNECTIONS)
                    .keep_alive(KEEP_ALIVE)
                    .client_request_timeout(REQUEST_TIMEOUT)
                    .client_disconnect_timeout(DISCONNECT_TIMEOUT)
                    .shutdown_timeout(GRACE_S)
                    // The node's own shutdown decides when.
                    .disable_signals()
                    .listen(listener)?
                    .run();
                    let _ = server_is.send(server.handle());
                    server.await
                });
                if let Err(error) = &result {
                    tracing::error!(%error, "gateway ended");
                }
                // Nobody may be waiting.
                let _ = ended.send(());
            })
            .map_err(Error::Thread)?;
        // Without a handle the thread ended before the server ran.
        let server = server_was
            .recv()
            .map_err(|_| at(io::Error::other("the server did not come up")))?;
        tracing::info!(%addr, "gateway listens");
        Ok(Handle {
            addr,
            server,
            end: Some(end),
        })
    }
}

/// A running gateway; dropped, it stops without waiting.
#[derive(Debug)]
pub struct Handle {
    addr: SocketAddr,
    server: ServerHandle,
    /// Taken when it is stopped.
    end: Option<oneshot::Receiver<()>>,
}

impl Handle {
    /// Where it listens; the real port.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Takes no more connections, lets running requests end (for at most 2 s), and returns when the
    /// port is free. Works on any async runtime.
    pub async fn stop(mut self) {
        let Some(end) = self.end.take() else { return };
        self.server.stop(true).await;
        // An error means that the thread is gone, which is what is waited for.
        let _ = end.await;
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.end.is_some() {
            // The command is sent by the call; only its completion is a future.
            drop(self.server.stop(false));
        }
    }
}
