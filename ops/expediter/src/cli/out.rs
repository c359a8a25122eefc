use std::fmt;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use serde::Serialize;

use super::Error;

/// Data for stdout; what is written is flushed at the end of its life, or by [`Out::flush`].
#[derive(Debug)]
pub(super) struct Out {
    writer: BufWriter<Stdout>,
}

impl Out {
    pub(super) fn stdout() -> Self {
        Self {
            writer: BufWriter::new(io::stdout()),
        }
    }

    /// Whether people read along.
    pub(super) fn is_terminal(&self) -> bool {
        self.writer.get_ref().is_terminal()
    }

    /// One line of text.
    pub(super) fn line(&mut self, line: impl fmt::Display) -> Result<(), Error> {
        writeln!(self.writer, "{line}")?;
        Ok(self.writer.flush()?)
    }

    /// Text as it is.
    pub(super) fn text(&mut self, text: &str) -> Result<(), Error> {
        self.writer.write_all(text.as_bytes())?;
        Ok(self.writer.flush()?)
    }

    /// One line of JSON.
    pub(super) fn json(&mut self, value: &impl Serialize) -> Result<(), Error> {
        let line = serde_json::to_string(value).map_err(anyhow::Error::from)?;
        self.line(line)
    }
}
