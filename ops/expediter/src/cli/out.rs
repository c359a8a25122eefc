use std::fmt;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use serde::Serialize;

use super::Error;

/// Data for stdout. Only [`Out::flush`] tells whether what is buffered was written.
#[derive(Debug)]
pub(super) struct Out {
    writer: BufWriter<Stdout>,
}

impl Out {
    pub(super) fn stdout() -> Self {
        Self {
            writer: BufWriter::with_capacity(64 << 10, io::stdout()),
        }
    }

    /// Whether people read along, and want colours.
    pub(super) fn is_colourful() -> bool {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        wanted && io::stdout().is_terminal()
    }

    /// One line of text, at once.
    pub(super) fn line(&mut self, line: impl fmt::Display) -> Result<(), Error> {
        writeln!(self.writer, "{line}")?;
        self.flush()
    }

    /// One line of text, with others.
    pub(super) fn buffer(&mut self, line: &str) -> Result<(), Error> {
        Ok(writeln!(self.writer, "{line}")?)
    }

    /// Text as it is, at once.
    pub(super) fn text(&mut self, text: &str) -> Result<(), Error> {
        self.writer.write_all(text.as_bytes())?;
        self.flush()
    }

    /// As they are, nothing added.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.writer.write_all(bytes)?;
        self.flush()
    }

    /// One line of JSON, at once.
    pub(super) fn json(&mut self, value: &impl Serialize) -> Result<(), Error> {
        self.buffer_json(value)?;
        self.flush()
    }

    /// One line of JSON, with others.
    pub(super) fn buffer_json(&mut self, value: &impl Serialize) -> Result<(), Error> {
        let line = serde_json::to_string(value).map_err(anyhow::Error::from)?;
        self.buffer(&line)
    }

    pub(super) fn flush(&mut self) -> Result<(), Error> {
        Ok(self.writer.flush()?)
    }
}
