//! Merchant manifests: TOML or JSON that people write, into valid [`Merchant`]s, and back.
//!
//! Constraints: nothing is guessed and nothing unknown is skipped; every problem of a file is found
//! in one run and names file, line, key and what is allowed. Secrets appear in no message.

mod adapter;
mod diff;
mod document;
mod document_json;
mod merchant;
mod problem;
mod reader;
mod url;
mod write;

use std::collections::HashMap;

use expediter_types::{Merchant, MerchantId};

use document::{Node, Value};
use reader::Reader;

pub use diff::{Change, diff};
pub use problem::{ManifestError, Problem};
pub use reader::known_keys;
pub use write::{to_json, to_toml};

/// The largest text that is read, in bytes.
pub const MAX_TEXT: usize = 64 << 20;

/// What was read from one or more files.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Manifest {
    pub merchants: Vec<Sourced>,
    /// Valid, but better otherwise.
    pub warnings: Vec<Problem>,
}

/// A merchant and where it is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Sourced {
    pub merchant: Merchant,
    pub file: String,
    /// From 1.
    pub line: u32,
}

/// Reads one file. `file` is shown in problems; its ending tells TOML from JSON (`.toml`,
/// `.json`), for any other name the text does.
///
/// # Errors
/// All problems of the file, not only the first.
pub fn read(file: &str, text: &str) -> Result<Manifest, ManifestError> {
    read_all([(file, text)])
}

/// Reads several files (name, text) as one set: an id may appear in it only once.
///
/// # Errors
/// All problems of all files.
pub fn read_all<'a>(
    files: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Manifest, ManifestError> {
    let mut manifest = Manifest::default();
    let mut problems = Vec::new();
    for (file, text) in files {
        let mut reader = Reader::new(file);
        read_file(&mut reader, text, &mut manifest.merchants);
        manifest.warnings.append(&mut reader.warnings);
        problems.append(&mut reader.problems);
    }
    problems.extend(duplicates(&manifest.merchants));
    if problems.is_empty() {
        Ok(manifest)
    } else {
        Err(ManifestError { problems })
    }
}

/// Reads a merchant as the registry keeps it: keys that a newer version added are ignored.
pub(crate) fn read_stored(text: &str) -> Result<Merchant, ManifestError> {
    let mut reader = Reader::lenient("registry");
    let merchant = match document_json::parse(text) {
        Ok(node) => merchant::read(&mut reader, &node, "merchant"),
        Err(problem) => {
            reader.problem(problem.line, "", problem.message);
            None
        }
    };
    merchant.ok_or(ManifestError {
        problems: reader.problems,
    })
}

fn read_file(reader: &mut Reader<'_>, text: &str, merchants: &mut Vec<Sourced>) {
    if text.len() > MAX_TEXT {
        reader.problem(
            0,
            "",
            format!("{} bytes, at most {MAX_TEXT} are read", text.len()),
        );
        return;
    }
    let json = is_json(reader.file, text);
    let parsed = if json {
        document_json::parse(text).map_err(|problem| vec![problem])
    } else {
        document::parse_toml(text)
    };
    let root = match parsed {
        Ok(root) => root,
        Err(found) => {
            found
                .into_iter()
                .for_each(|p| reader.problem(p.line, "", p.message));
            return;
        }
    };
    for (path, node) in entries(reader, &root, json) {
        if let Some(merchant) = merchant::read(reader, node, &path) {
            merchants.push(Sourced {
                merchant,
                file: reader.file.to_owned(),
                line: node.line,
            });
        }
    }
}

/// The merchants of a document, each with its path.
fn entries<'a, 'd>(
    reader: &mut Reader<'_>,
    root: &'a Node<'d>,
    json: bool,
) -> Vec<(String, &'a Node<'d>)> {
    const KEY: &str = "merchant";
    let one_or_many = |node: &'a Node<'d>| match &node.value {
        Value::List(list) => list
            .iter()
            .enumerate()
            .map(|(n, node)| (format!("{KEY}[{n}]"), node))
            .collect(),
        _ => vec![(KEY.to_owned(), node)],
    };
    let found = match &root.value {
        Value::List(_) => one_or_many(root),
        Value::Table(table) if json && !table.iter().any(|entry| entry.name == KEY) => {
            vec![(KEY.to_owned(), root)]
        }
        Value::Table(_) => match reader.fields(root, "", &[KEY]).and_then(|f| f.node(KEY)) {
            Some(node) => one_or_many(node),
            None => Vec::new(),
        },
        other => {
            let kind = other.kind();
            reader.problem(root.line, "", format!("expected merchants, found {kind}"));
            return Vec::new();
        }
    };
    if found.is_empty() && reader.problems.is_empty() {
        reader.problem(root.line, "", "no merchant here: write [[merchant]]");
    }
    found
}

fn is_json(file: &str, text: &str) -> bool {
    let has = |ending: &str| {
        let ending_at = file.len().checked_sub(ending.len());
        ending_at
            .and_then(|at| file.get(at..))
            .is_some_and(|e| e.eq_ignore_ascii_case(ending))
    };
    if has(".json") || has(".toml") {
        return has(".json");
    }
    let mut chars = text.chars().filter(|c| !c.is_whitespace());
    match chars.next() {
        Some('{') => true,
        // `[[merchant]]` and `[merchant]` are TOML; no list of merchants starts like them.
        Some('[') => matches!(chars.next(), Some('{' | ']')),
        _ => false,
    }
}

fn duplicates(merchants: &[Sourced]) -> Vec<Problem> {
    let mut first: HashMap<&MerchantId, &Sourced> = HashMap::with_capacity(merchants.len());
    let mut problems = Vec::new();
    for sourced in merchants {
        let id = &sourced.merchant.id;
        if let Some(other) = first.get(id) {
            problems.push(Problem {
                file: sourced.file.clone(),
                line: sourced.line,
                key: "merchant.id".to_owned(),
                message: format!(
                    "{id:?} is given twice, first at {}:{}",
                    other.file, other.line
                ),
            });
        } else {
            first.insert(id, sourced);
        }
    }
    problems
}

#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod tests;
