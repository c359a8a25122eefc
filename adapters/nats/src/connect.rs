//! Connections, and what is known of their state.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{Client, ConnectErrorKind, Event};
use tokio::sync::watch;

use crate::Error;
use crate::error::chain;

/// How to reach NATS and who we are.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// `nats://host:port`, `tls://host:port`; one of them is enough, the others are discovered.
    pub servers: Vec<String>,
    pub credentials: Credentials,
    pub tls: Tls,
    /// Shown in the server's list of connections.
    pub name: String,
}

impl ConnectOptions {
    /// Without credentials, to servers separated by commas.
    #[must_use]
    pub fn to(servers: &str, name: &str) -> Self {
        Self {
            servers: servers
                .split(',')
                .map(|server| server.trim().to_owned())
                .collect(),
            credentials: Credentials::None,
            tls: Tls::default(),
            name: name.to_owned(),
        }
    }
}

/// What the server is shown.
#[derive(Clone)]
pub enum Credentials {
    None,
    /// A `.creds` file: JWT and seed.
    CredsFile(PathBuf),
    UserPassword {
        user: String,
        password: String,
    },
    Token(String),
    /// A file with an NKey seed.
    NkeyFile(PathBuf),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::CredsFile(_) => "CredsFile",
            Self::UserPassword { .. } => "UserPassword",
            Self::Token(_) => "Token",
            Self::NkeyFile(_) => "NkeyFile",
        })
    }
}

/// Encryption of the connection (rustls with ring).
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Refuse servers that do not encrypt; `tls://` URLs do so anyway.
    pub required: bool,
    /// Begin with the handshake, before the server's INFO.
    pub first: bool,
    /// PEM certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM certificate and key of this client.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// What the connection is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionState {
    pub connected: bool,
    /// Rises with each connection that is made: 1 for the first.
    pub connects: u64,
    /// Messages were dropped because a subscription was full, so many times.
    pub slow_consumers: u64,
    /// When it was lost the last time.
    pub lost_at: Option<Instant>,
}

/// A connection that comes back by itself for ever; clones share it.
#[derive(Debug, Clone)]
pub struct Connection {
    client: Client,
    servers: Arc<str>,
    state: watch::Receiver<ConnectionState>,
}

impl Connection {
    /// Waits until a server lets us in, with a log line for each try.
    ///
    /// # Errors
    /// Unreadable files, addresses that are none, refused credentials.
    pub async fn open(options: &ConnectOptions) -> Result<Self, Error> {
        let mut wait = Duration::from_millis(250);
        loop {
            match Self::open_once(options).await {
                Ok(connection) => return Ok(connection),
                Err(Error::Connect { servers, source }) if may_pass(&*source) => {
                    let error = chain(&*source);
                    tracing::info!(%servers, error, "waiting for NATS at {servers}");
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(5));
        }
    }

    /// One try.
    ///
    /// # Errors
    /// As [`Connection::open`], and no server answered.
    pub async fn open_once(options: &ConnectOptions) -> Result<Self, Error> {
        let (sender, state) = watch::channel(ConnectionState {
            connected: false,
            connects: 0,
            slow_consumers: 0,
            lost_at: None,
        });
        let sender = Arc::new(sender);
        let servers = options.servers.join(",");
        let connect = with_credentials(options)
            .await?
            .event_callback(move |event| {
                note(&sender, &event);
                std::future::ready(())
            });
        let client = connect
            .connect(options.servers.as_slice())
            .await
            .map_err(|source| Error::Connect {
                servers: servers.clone(),
                source: source.into(),
            })?;
        Ok(Self {
            client,
            servers: servers.into(),
            state,
        })
    }

    /// A server is there now.
    #[must_use]
    pub fn connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// It is down, or was within this time; the time before the first connection is none.
    #[must_use]
    pub(crate) fn disturbed_within(&self, time: Duration) -> bool {
        let state = self.state.borrow();
        !state.connected || state.lost_at.is_some_and(|at| at.elapsed() < time)
    }

    /// Follows the state.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<ConnectionState> {
        self.state.clone()
    }

    /// The client behind it.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The configured servers, for messages.
    #[must_use]
    pub fn servers(&self) -> &str {
        &self.servers
    }

    /// Sends what is buffered; later calls on any clone fail.
    pub async fn close(&self) {
        let flushed = tokio::time::timeout(Duration::from_secs(2), self.client.flush()).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::debug!("the connection was closed without a flush");
        }
        drop(self.client.drain().await);
    }
}

/// Refused credentials and broken addresses do not mend themselves.
fn may_pass(source: &(dyn std::error::Error + 'static)) -> bool {
    let kind = source
        .downcast_ref::<async_nats::ConnectError>()
        .map(async_nats::ConnectError::kind);
    !matches!(
        kind,
        Some(
            ConnectErrorKind::ServerParse
                | ConnectErrorKind::Authentication
                | ConnectErrorKind::AuthorizationViolation
        )
    )
}

async fn with_credentials(options: &ConnectOptions) -> Result<async_nats::ConnectOptions, Error> {
    let mut connect = async_nats::ConnectOptions::new()
        .name(&options.name)
        // A dead link is noticed after two of these.
        .ping_interval(Duration::from_secs(5))
        .connection_timeout(Duration::from_secs(5))
        .request_timeout(Some(Duration::from_secs(5)))
        .client_capacity(65_536)
        .max_reconnects(None)
        .reconnect_delay_callback(|attempts| {
            let doubled = 10_u64 << attempts.min(7);
            Duration::from_millis(if attempts <= 1 { 0 } else { doubled.min(1_000) })
        });
    connect = match &options.credentials {
        Credentials::None => connect,
        Credentials::UserPassword { user, password } => {
            connect.user_and_password(user.clone(), password.clone())
        }
        Credentials::Token(token) => connect.token(token.clone()),
        Credentials::CredsFile(path) => {
            let text = read(path).await?;
            connect.credentials(&text).map_err(|source| Error::File {
                path: path.clone(),
                source,
            })?
        }
        Credentials::NkeyFile(path) => connect.nkey(read(path).await?.trim().to_owned()),
    };
    if options.tls.required {
        connect = connect.require_tls(true);
    }
    if options.tls.first {
        connect = connect.tls_first();
    }
    if let Some(path) = &options.tls.ca_file {
        read(path).await?;
        connect = connect.add_root_certificates(path.clone());
    }
    if let Some((certificate, key)) = &options.tls.client {
        read(certificate).await?;
        read(key).await?;
        connect = connect.add_client_certificate(certificate.clone(), key.clone());
    }
    Ok(connect)
}

async fn read(path: &Path) -> Result<String, Error> {
    tokio::fs::read_to_string(path)
        .await
        .map_err(|source| Error::File {
            path: path.to_owned(),
            source,
        })
}

fn note(state: &watch::Sender<ConnectionState>, event: &Event) {
    match event {
        Event::Connected => {
            state.send_modify(|state| {
                state.connected = true;
                state.connects += 1;
            });
            tracing::info!("connected to NATS");
        }
        Event::Disconnected => {
            state.send_modify(|state| {
                state.connected = false;
                state.lost_at = Some(Instant::now());
            });
            tracing::warn!("the connection to NATS is lost");
        }
        Event::Closed => state.send_modify(|state| state.connected = false),
        Event::SlowConsumer(subscription) => {
            state.send_modify(|state| state.slow_consumers += 1);
            tracing::warn!(
                subscription,
                "a subscription was full and dropped a message"
            );
        }
        Event::LameDuckMode => tracing::info!("the NATS server is about to stop"),
        Event::Draining => {}
        Event::ServerError(error) => tracing::warn!(%error, "the NATS server reports an error"),
        Event::ClientError(error) => tracing::debug!(%error, "the NATS client reports an error"),
    }
}
