//! Names to addresses by the system's resolver, one look-up of a name at a time.
//!
//! The system's call blocks for as long as it likes, so each look-up has a thread of its own: a
//! name that nobody answers for holds one thread, whatever number of attempts wait for it, and
//! none of the threads that others need.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use dns_lookup::{AddrInfoHints, LookupErrorKind, SockType, getaddrinfo};
use futures::FutureExt;
use futures::future::Shared;
use tokio::sync::oneshot;

/// At most so many names are looked up at the same time.
const MAX_RUNNING: usize = 256;

/// Why a name has no addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LookupFailure {
    #[error("no such host")]
    NotFound,
    /// The resolver is down, or nobody answers for this name: the system does not tell which.
    #[error("no answer")]
    NoAnswer,
    #[error("{0}")]
    Refused(String),
    /// This machine could not even ask.
    #[error("{0}")]
    Local(String),
}

pub(crate) type Found = Result<Arc<[IpAddr]>, LookupFailure>;

/// The system's resolver, or a test's.
pub(crate) trait Names: Send + Sync + 'static {
    /// Blocks.
    fn addresses(&self, host: &str) -> Found;
}

/// getaddrinfo(3): `/etc/hosts`, DNS and what else the system is configured for.
#[derive(Debug)]
pub(crate) struct SystemNames;

impl Names for SystemNames {
    fn addresses(&self, host: &str) -> Found {
        let hints = AddrInfoHints {
            socktype: SockType::Stream.into(),
            ..AddrInfoHints::default()
        };
        match getaddrinfo(Some(host), None, Some(hints)) {
            Ok(found) => Ok(found
                .filter_map(Result::ok)
                .map(|info| info.sockaddr.ip())
                .collect()),
            Err(error) => Err(match error.kind() {
                LookupErrorKind::NoName | LookupErrorKind::NoData => LookupFailure::NotFound,
                LookupErrorKind::Again => LookupFailure::NoAnswer,
                LookupErrorKind::Memory | LookupErrorKind::System => {
                    LookupFailure::Local(std::io::Error::from(error).to_string())
                }
                _ => LookupFailure::Refused(std::io::Error::from(error).to_string()),
            }),
        }
    }
}

/// A look-up that is under way; may be awaited by many.
pub(crate) type Running = Shared<oneshot::Receiver<Found>>;

type Table = Arc<Mutex<HashMap<Arc<str>, Running>>>;

/// All look-ups under way.
#[derive(Clone)]
pub(crate) struct Lookups {
    names: Arc<dyn Names>,
    running: Table,
}

impl Lookups {
    pub(crate) fn new(names: Arc<dyn Names>) -> Self {
        Self {
            names,
            running: Table::default(),
        }
    }

    /// Joins the look-up of this name, or begins one.
    pub(crate) fn begin(&self, host: &str) -> Result<Running, LookupFailure> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = running.get(host) {
            return Ok(running.clone());
        }
        if running.len() >= MAX_RUNNING {
            let reason = format!("{MAX_RUNNING} look-ups are under way");
            return Err(LookupFailure::Local(reason));
        }
        let (answer, found) = oneshot::channel();
        let found = found.shared();
        let host: Arc<str> = host.into();
        running.insert(Arc::clone(&host), found.clone());
        drop(running);
        let entry = Entry {
            host,
            table: Arc::clone(&self.running),
        };
        let names = Arc::clone(&self.names);
        std::thread::Builder::new()
            .name("look-up".to_owned())
            .spawn(move || {
                let found = names.addresses(&entry.host);
                drop(entry);
                // Nobody waits any more: the answer is of no use.
                let _ = answer.send(found);
            })
            .map_err(|error| LookupFailure::Local(format!("no thread: {error}")))?;
        Ok(found)
    }
}

/// Leaves the table when the look-up ends, also by a panic.
struct Entry {
    host: Arc<str>,
    table: Table,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.host);
    }
}

/// Waits for it.
pub(crate) async fn finish(running: &mut Running) -> Found {
    match running.await {
        Ok(found) => found,
        Err(_) => Err(LookupFailure::Refused("the look-up died".to_owned())),
    }
}
