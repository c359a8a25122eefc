use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// What the server sends stays on the way.
    Held,
    Cut,
}

/// The network between a client and a server on this machine. Dropping it cuts it.
#[derive(Debug)]
pub struct Link {
    port: u16,
    state: watch::Sender<State>,
    _task: JoinSet<()>,
}

impl Link {
    /// To the server at that port.
    ///
    /// # Errors
    /// No port is free.
    pub async fn to(server: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let (state, states) = watch::channel(State::Open);
        let mut task = JoinSet::new();
        task.spawn(serve(
            listener,
            (Ipv4Addr::LOCALHOST, server).into(),
            states,
        ));
        Ok(Self {
            port,
            state,
            _task: task,
        })
    }

    /// `nats://127.0.0.1:<port>`
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// What the server sends does not arrive any more; what the client sends does.
    pub fn hold(&self) {
        self.state.send_replace(State::Held);
    }

    /// Ends all connections and lets none be made; what was on the way is gone.
    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    /// As it was.
    pub fn heal(&self) {
        self.state.send_replace(State::Open);
    }
}

async fn serve(listener: TcpListener, server: SocketAddr, states: watch::Receiver<State>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        if *states.borrow() == State::Cut {
            continue;
        }
        while connections.try_join_next().is_some() {}
        connections.spawn(carry(client, server, states.clone()));
    }
}

async fn carry(client: TcpStream, server: SocketAddr, mut states: watch::Receiver<State>) {
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let held = states.clone();
    tokio::select! {
        _ = copy(from_client, to_server, None) => {}
        _ = copy(from_server, to_client, Some(held)) => {}
        _ = states.wait_for(|state| *state == State::Cut) => {}
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut held: Option<watch::Receiver<State>>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        if let Some(held) = &mut held {
            // An error means that the link is gone.
            drop(held.wait_for(|state| *state == State::Open).await);
        }
        to.write_all(&buffer[..read]).await?;
    }
}
