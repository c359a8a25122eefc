use std::fmt;

/// Something wrong, or unwise, in a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub file: String,
    /// From 1; 0 where no line can be named.
    pub line: u32,
    /// Such as `merchant[2].limits.rate`; empty for the whole document.
    pub key: String,
    /// What was found and what is allowed.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Why manifests were refused: everything that is wrong with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestError {
    /// In the order of the files and, within one, as they were found.
    pub problems: Vec<Problem>,
}

/// So many problems are printed; the rest is counted.
const SHOWN: usize = 100;

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().take(SHOWN).enumerate() {
            let separator = if n == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        match self.problems.len().checked_sub(SHOWN) {
            Some(more) if more > 0 => write!(f, "\nand {more} more"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for ManifestError {}
