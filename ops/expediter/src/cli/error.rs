use std::io::{self, Write};
use std::process::ExitCode;

/// Shown below `expediter --help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed: NATS cannot be reached, a node refuses, something was not done
  2  wrong usage or invalid input; nothing was changed
  3  there is no such merchant, order or revision
  4  somebody else changed it meanwhile; nothing was changed

Examples:
  expediter config default > expediter.toml
  expediter merchant apply -f merchants/
  expediter order publish luigis -f order.json --id 4711
  expediter order show 4711 --merchant luigis
  expediter outcome tail --kind dead_lettered";

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
