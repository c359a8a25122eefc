use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::process::{Resource, Rlimit};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

use super::fleet::Shared;
use super::service::Connection;
use crate::Error;

/// How many connections may wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 16_384;

/// The serving threads; dropping it stops them and waits for their end.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) addr: SocketAddr,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

pub(super) fn start(
    listen: SocketAddr,
    threads: usize,
    shared: &Arc<Shared>,
) -> Result<Running, Error> {
    raise_open_files();
    let failed = |source| Error::Listen {
        addr: listen,
        source,
    };
    let listener = TcpListener::bind(listen).map_err(failed)?;
    // Listening once more raises the backlog of 128 that the standard library asks for.
    rustix::net::listen(&listener, BACKLOG).map_err(|errno| failed(errno.into()))?;
    listener.set_nonblocking(true).map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    let (stop, stopped) = watch::channel(false);
    let mut running = Running {
        addr,
        stop,
        threads: Vec::new(),
    };
    let mut workers = Vec::new();
    for number in 1..threads.max(1) {
        #[expect(
            clippy::disallowed_methods,
            reason = "what waits are accepted connections: open files bound them"
        )]
        let (send, receive) = mpsc::unbounded_channel();
        workers.push(send);
        let serve = serve_given(receive, Arc::clone(shared), stopped.clone());
        running.threads.push(thread(number, serve)?);
    }
    let serve = accept(listener, workers, Arc::clone(shared), stopped);
    running.threads.push(thread(0, serve)?);
    Ok(running)
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the merchant fleet panicked");
            }
        }
    }
}

/// A runtime for each thread: connections never move, and nothing is stolen between cores. When `serve`
/// ends, the runtime is dropped and all its connections with it.
fn thread(
    number: usize,
    serve: impl Future<Output = ()> + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    let failed = |source| Error::Process {
        what: "starting a thread for the merchants",
        source,
    };
    let runtime: Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let name = format!("merchants-{number}");
    std::thread::Builder::new()
        .name(name)
        .spawn(move || runtime.block_on(serve))
        .map_err(failed)
}

/// Accepts for all threads and deals the connections out in turn.
async fn accept(
    listener: TcpListener,
    workers: Vec<mpsc::UnboundedSender<std::net::TcpStream>>,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the merchant fleet cannot listen");
            return;
        }
    };
    let mut turn = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stop| *stop) => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, mostly: at once would spin until one is free.
                tracing::warn!(%error, "the merchant fleet could not accept a connection");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        turn = (turn + 1) % (workers.len() + 1);
        match workers.get(turn) {
            None => spawn(stream, &shared),
            Some(worker) => {
                if let Ok(stream) = stream.into_std() {
                    let _ = worker.send(stream);
                }
            }
        }
    }
}

async fn serve_given(
    mut streams: mpsc::UnboundedReceiver<std::net::TcpStream>,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            Some(stream) = streams.recv() => match TcpStream::from_std(stream) {
                Ok(stream) => spawn(stream, &shared),
                Err(error) => tracing::warn!(%error, "the merchant fleet lost a connection"),
            },
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

/// The task ends with its connection, at the latest with its thread's runtime; its errors are the
/// client's (it went away) or wanted (the merchant hung up).
fn spawn(stream: TcpStream, shared: &Arc<Shared>) {
    tokio::spawn(serve(stream, Arc::clone(shared)));
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let _open = Open::new(&shared);
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let reset = AtomicBool::new(false);
    let connection = Arc::new(Connection {
        shared: Arc::clone(&shared),
        reset,
    });
    let service = service_fn(|request| {
        let connection = Arc::clone(&connection);
        async move { connection.answer(request).await }
    });
    let mut http = http1::Builder::new();
    // Not `pipeline_flush`: with it hyper buffers a body without a bound, and `Endless` has none.
    http.header_read_timeout(None);
    let mut served = http.serve_connection(TokioIo::new(stream), service);
    if (&mut served).await.is_err() && connection.reset.load(Ordering::Relaxed) {
        // With a linger time of zero, closing sends RST instead of FIN.
        let _ = served.into_parts().io.inner().set_zero_linger();
    }
}

/// Counts a connection as open as long as it lives.
struct Open<'a>(&'a Shared);

impl<'a> Open<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.connections.fetch_add(1, Ordering::Relaxed);
        Self(shared)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Ten thousand connections need as many descriptors, and the usual soft limit is 1,024.
fn raise_open_files() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays at {:?}", limit.current);
    }
}
