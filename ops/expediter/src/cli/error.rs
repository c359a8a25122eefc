use std::io::{self, Write};
use std::process::ExitCode;

use super::global::with_causes;
use super::text::{ago, clean, now};

/// Shown below `expediter --help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed: NATS cannot be reached, a node refuses, something was not done or not recorded
  2  wrong usage or invalid input; nothing was changed
  3  there is no such merchant, order or revision
  4  somebody else changed it meanwhile; nothing was changed

Examples:
  expediter config default > expediter.toml
  expediter merchant apply -f merchants/
  expediter order publish luigis -f order.json --id 4711
  expediter order show 4711 --merchant luigis
  expediter outcome tail --kind dead_lettered
  expediter audit --since 1d";

/// Why a verb did not do what it was asked; decides the exit code.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Exit code 1.
    #[error("{0:#}")]
    Failed(anyhow::Error),
    /// Exit code 2: what was typed or given is wrong.
    #[error("{0}")]
    Usage(String),
    /// Exit code 3.
    #[error("{0}")]
    NotFound(String),
    /// Exit code 4.
    #[error("{0}")]
    Conflict(String),
    /// Whoever read our output has enough: exit code 0, without a word.
    #[error("the reader of the output is gone")]
    ReaderGone,
}

impl Error {
    /// Exit code 1, with a message for people.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::Failed(anyhow::Error::msg(message.into()))
    }

    fn code(&self) -> u8 {
        match self {
            Self::ReaderGone => 0,
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::NotFound(_) => 3,
            Self::Conflict(_) => 4,
        }
    }
}

/// What people can do about it.
impl From<expediter_nats::Error> for Error {
    fn from(error: expediter_nats::Error) -> Self {
        use expediter_nats::Error as Nats;
        let told = with_causes(&error);
        match error {
            Nats::Connect { .. } => Self::failed(format!(
                "{told}\nIs nats-server running there, and are the credentials right? Other servers: \
                 --nats URL or EXPEDITER_NATS_SERVERS; credentials: [nats] of --config FILE"
            )),
            Nats::File { .. } => Self::Usage(told),
            Nats::NoStream { stream } => Self::failed(format!(
                "no {} in this NATS: start a node with `expediter serve` first, it makes them",
                match stream.strip_prefix("KV_") {
                    Some(bucket) => format!("{bucket} bucket"),
                    None => format!("{stream} stream"),
                }
            )),
            Nats::NoOwner { partition } => Self::failed(format!(
                "no node works on partition {partition}: start one with `expediter serve`, or wait \
                 a few seconds if one has just started or stopped"
            )),
            Nats::Conflict {
                key,
                actor,
                at,
                revision,
            } => {
                let (what, look) = if key.contains('/') {
                    (key, "expediter merchant scope list".to_owned())
                } else {
                    let look = format!("expediter merchant show {key} --history");
                    (format!("merchant {key}"), look)
                };
                Self::Conflict(match at {
                    0 => format!("{what} was changed meanwhile by {actor}"),
                    at => format!(
                        "{what} was changed meanwhile by {} {}, to revision {revision}\n\
                         Look at `{look}`, then repeat",
                        clean(&actor),
                        ago(at, now())
                    ),
                })
            }
            Nats::Decided { subject, actor } => Self::Conflict(format!(
                "{} decided about {subject} meanwhile; look at it, then repeat",
                clean(&actor)
            )),
            _ => Self::failed(told),
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ReaderGone,
            _ => Self::Failed(error.into()),
        }
    }
}

impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// Says what went wrong, once, and gives the process's exit code.
pub(crate) fn exit_code(result: Result<(), Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !matches!(error, Error::ReaderGone) {
                note(&format!("error: {error}"));
            }
            ExitCode::from(error.code())
        }
    }
}

/// A line for people, to stderr; one that nobody can read is no failure.
pub(crate) fn note(line: &str) {
    let _unread = writeln!(io::stderr().lock(), "{line}").is_err();
}
