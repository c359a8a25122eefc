use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde_json::Value;

/// A node's log: what it wrote to stderr over all its runs.
#[derive(Debug, Clone)]
pub struct NodeLog {
    lines: Vec<LogLine>,
    path: PathBuf,
}

/// One line.
#[derive(Debug, Clone)]
pub struct LogLine {
    pub text: String,
    /// `None` for what is no JSON: a panic's message, a refusal to start.
    pub json: Option<Value>,
}

impl LogLine {
    /// `ERROR`, `WARN`, …; empty for what is no JSON.
    #[must_use]
    pub fn level(&self) -> &str {
        self.json
            .as_ref()
            .and_then(|json| json["level"].as_str())
            .unwrap_or_default()
    }

    fn is_fault(&self) -> bool {
        let text = self.text.to_lowercase();
        // Under load a subscription may be full: what is lost by that is read again. An order may be
        // read before the registration that was written just before it.
        let expected = ["a subscription was full", "that is not registered"]
            .iter()
            .any(|part| text.contains(part));
        (matches!(self.level(), "ERROR" | "WARN") && !expected)
            || text.contains("panicked")
            || text.contains("a promise is broken")
    }
}

impl NodeLog {
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let line = |text: &str| {
            let json = serde_json::from_str::<Value>(text)
                .ok()
                .filter(Value::is_object);
            LogLine {
                text: text.to_owned(),
                json,
            }
        };
        Self {
            lines: text.lines().map(line).collect(),
            path: path.to_owned(),
        }
    }

    #[must_use]
    pub fn lines(&self) -> &[LogLine] {
        &self.lines
    }

    /// Lines that contain the text.
    #[must_use]
    pub fn find(&self, text: &str) -> Vec<&LogLine> {
        self.lines
            .iter()
            .filter(|line| line.text.contains(text))
            .collect()
    }

    /// ERROR and WARN lines, panics, violated invariants.
    #[must_use]
    pub fn faults(&self) -> Vec<&LogLine> {
        self.lines.iter().filter(|line| line.is_fault()).collect()
    }

    /// The last lines, for a message.
    #[must_use]
    pub fn tail(&self, count: usize) -> String {
        let lines = &self.lines[self.lines.len().saturating_sub(count)..];
        let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
        texts.join("\n")
    }

    /// No fault but those that contain one of `allowed`.
    ///
    /// # Errors
    /// Lists the others.
    pub fn check(&self, allowed: &[&str]) -> Result<()> {
        let mut faults = self.faults();
        faults.retain(|line| !allowed.iter().any(|part| line.text.contains(part)));
        if faults.is_empty() {
            return Ok(());
        }
        let shown: Vec<&str> = faults
            .iter()
            .take(10)
            .map(|line| line.text.as_str())
            .collect();
        bail!(
            "{} faults in {}:\n{}",
            faults.len(),
            self.path.display(),
            shown.join("\n")
        )
    }
}
