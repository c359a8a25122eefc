use std::fmt;
use std::path::PathBuf;

use expediter_types::{NodeName, Partition, Seq, UnixMillis};

pub(crate) type Source = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong with the broker, or with what it holds.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No server answered, or none let us in.
    #[error("no connection to NATS at {servers}")]
    Connect {
        servers: String,
        #[source]
        source: Source,
    },
    /// A file of credentials or certificates.
    #[error("reading {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The protocol needs features of this version.
    #[error("nats-server {found} is too old: 2.14 or newer is needed")]
    ServerTooOld { found: String },
    /// An existing stream or bucket is not what the platform needs; it is left alone.
    #[error("stream {stream} has other settings: {}", List(differences))]
    StreamDiffers {
        stream: String,
        differences: Vec<Difference>,
    },
    /// A stream or bucket is missing.
    #[error("stream {stream} does not exist; a node creates it")]
    NoStream { stream: String },
    /// A live process already goes by this name.
    #[error("node name {name} is in use by instance {instance}")]
    NameInUse { name: NodeName, instance: String },
    /// A part of the node that runs until the node ends has panicked, which is a bug.
    #[error("the node's task {task} has failed: {why}")]
    TaskFailed { task: &'static str, why: String },
    /// Another claim took the partition.
    #[error("claim {current} of partition {partition} stands")]
    Fenced { partition: Partition, current: Seq },
    /// Nobody listens for the partition's control requests.
    #[error("no node owns partition {partition}")]
    NoOwner { partition: Partition },
    /// Nobody listens for the node's control requests.
    #[error("there is no node {node}")]
    NoNode { node: NodeName },
    /// Somebody changed the entry since it was read.
    #[error("{key} was changed by {actor} (revision {revision}, time {at})")]
    Conflict {
        /// A merchant's id, `group/<name>` or `credential/<name>`.
        key: String,
        actor: String,
        at: UnixMillis,
        revision: u64,
    },
    /// Somebody decided something else since the newest decision was read.
    #[error("{subject} was decided about by {actor} meanwhile")]
    Decided { subject: String, actor: String },
    /// What stands in the broker cannot be read.
    #[error("{what} cannot be read")]
    Format {
        what: String,
        #[source]
        source: expediter_wire::WireError,
    },
    /// The broker did not do what it was asked.
    #[error("{what}")]
    Broker {
        what: String,
        #[source]
        source: Option<Source>,
    },
    /// The message was not taken.
    #[error("publishing to {subject}: {reason}")]
    Publish { subject: String, reason: String },
    /// The partition's host refused to begin.
    #[error("partition {partition} cannot start: {reason}")]
    Host {
        partition: Partition,
        reason: String,
    },
}

impl Error {
    /// For `map_err`: what was tried, with the cause kept.
    pub(crate) fn broker<E: Into<Source>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::Broker {
            what,
            source: Some(source.into()),
        }
    }

    /// Without a cause of its own.
    pub(crate) fn plain(what: impl Into<String>) -> Self {
        Self::Broker {
            what: what.into(),
            source: None,
        }
    }

    pub(crate) fn format(
        what: impl Into<String>,
    ) -> impl FnOnce(expediter_wire::WireError) -> Self {
        let what = what.into();
        move |source| Self::Format { what, source }
    }
}

/// One setting of a stream that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub setting: &'static str,
    pub wanted: String,
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is {}, wanted {}",
            self.setting, self.found, self.wanted
        )
    }
}

struct List<'a>(&'a [Difference]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, difference) in self.0.iter().enumerate() {
            let separator = if n == 0 { "" } else { "; " };
            write!(f, "{separator}{difference}")?;
        }
        Ok(())
    }
}

/// The whole chain in one line, for logs.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let cause = source.to_string();
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        next = source.source();
    }
    text
}
