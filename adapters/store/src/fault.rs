use std::fmt::Write;
use std::{any, io};

/// Why a call of the store did not work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("the engine failed")]
    Engine(#[from] sled::Error),
    #[error("the file cannot be synced")]
    Sync(#[source] io::Error),
    #[error("{0}")]
    Broken(String),
    #[error("the format version {found} is newer than {known}")]
    Newer { found: u32, known: u32 },
    #[error("the engine panicked: {0}")]
    Panicked(String),
    #[error("a value of {0} bytes is too large")]
    TooLarge(usize),
    #[error("it failed before: {0}")]
    Before(String),
}

impl Fault {
    /// What is wrong, and at which key.
    pub(crate) fn broken(what: &str, key: &[u8]) -> Self {
        let mut text = format!("{what}, at key ");
        for byte in key.iter().take(96) {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        Self::Broken(text)
    }

    /// From what `catch_unwind` gives.
    pub(crate) fn panicked(payload: &(dyn any::Any + Send)) -> Self {
        let text = expediter_ports::panic_text(payload);
        Self::Panicked(text.chars().take(500).collect())
    }

    /// With its causes, on one line.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let _ = write!(text, ": {error}");
            cause = error.source();
        }
        text
    }
}
