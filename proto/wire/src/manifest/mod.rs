//! Merchant manifests: TOML or JSON that people write, into valid [`Merchant`]s, and back.
//!
//! Constraints: nothing is guessed and nothing unknown is skipped; every problem of a file is found
//! in one run and names file, line, key and what is allowed. Secrets appear in no message.

mod adapter;
mod diff;
mod document;
mod document_json;
mod hours;
mod job;
mod limits;
mod merchant;
mod problem;
mod reader;
mod rules;
mod url;
mod write;

use std::collections::HashMap;

use expediter_types::{LimitScope, Merchant, Scope};

use document::{Node, Value};
use reader::Reader;

pub use diff::{Change, diff, diff_scopes};
pub use problem::{ManifestError, Problem};
pub use reader::{known_keys, scope_keys};
pub use write::{scope_to_json, scope_to_toml, to_json, to_toml};

/// The largest text that is read, in bytes.
pub const MAX_TEXT: usize = 64 << 20;

/// What was read from one or more files.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Manifest {
    pub merchants: Vec<Sourced>,
    /// What merchants share.
    pub scopes: Vec<SourcedScope>,
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

/// A group's or credential's limits and where they are written.
#[derive(Debug, Clone, PartialEq)]
pub struct SourcedScope {
    pub scope: Scope,
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
        read_file(&mut reader, text, &mut manifest);
        manifest.warnings.append(&mut reader.warnings);
        problems.append(&mut reader.problems);
    }
    let merchants = manifest.merchants.iter();
    problems.extend(duplicates(
        "merchant",
        merchants.map(|sourced| {
            (
                sourced.merchant.id.as_str(),
                sourced.file.as_str(),
                sourced.line,
            )
        }),
    ));
    for kind in [LimitScope::Group, LimitScope::Credential] {
        let scopes = manifest
            .scopes
            .iter()
            .filter(|sourced| sourced.scope.kind == kind);
        problems.extend(duplicates(
            kind.as_str(),
            scopes.map(|sourced| {
                (
                    sourced.scope.id.as_str(),
                    sourced.file.as_str(),
                    sourced.line,
                )
            }),
        ));
    }
    if problems.is_empty() {
        Ok(manifest)
    } else {
        Err(ManifestError { problems })
    }
}

/// Reads a merchant as the registry keeps it: keys that a newer version added are ignored.
pub(crate) fn read_stored(text: &str) -> Result<Merchant, ManifestError> {
    stored(text, |reader, node| {
        merchant::read(reader, node, "merchant")
    })
}

/// Reads a group's or credential's limits as the registry keeps them.
pub(crate) fn read_stored_scope(text: &str, kind: LimitScope) -> Result<Scope, ManifestError> {
    stored(text, |reader, node| {
        limits::scope(reader, node, kind.as_str(), kind)
    })
}

fn stored<T>(
    text: &str,
    read: impl FnOnce(&mut Reader<'_>, &Node<'_>) -> Option<T>,
) -> Result<T, ManifestError> {
    let mut reader = Reader::lenient("registry");
    let value = match document_json::parse(text) {
        Ok(node) => read(&mut reader, &node),
        Err(problem) => {
            reader.problem(problem.line, "", problem.message);
            None
        }
    };
    value.ok_or(ManifestError {
        problems: reader.problems,
    })
}

fn read_file(reader: &mut Reader<'_>, text: &str, manifest: &mut Manifest) {
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
    for (kind, path, node) in entries(reader, &root, json) {
        let file = reader.file.to_owned();
        let line = node.line;
        match kind {
            LimitScope::Merchant => {
                manifest
                    .merchants
                    .extend(merchant::read(reader, node, &path).map(|merchant| Sourced {
                        merchant,
                        file,
                        line,
                    }))
            }
            LimitScope::Group | LimitScope::Credential => manifest.scopes.extend(
                limits::scope(reader, node, &path, kind).map(|scope| SourcedScope {
                    scope,
                    file,
                    line,
                }),
            ),
        }
    }
}

/// What a document has, each with its path.
fn entries<'a, 'd>(
    reader: &mut Reader<'_>,
    root: &'a Node<'d>,
    json: bool,
) -> Vec<(LimitScope, String, &'a Node<'d>)> {
    const KINDS: [LimitScope; 3] = [
        LimitScope::Merchant,
        LimitScope::Group,
        LimitScope::Credential,
    ];
    let one_or_many = |kind: LimitScope, node: &'a Node<'d>| match &node.value {
        Value::List(list) => list
            .iter()
            .enumerate()
            .map(|(n, node)| (kind, format!("{}[{n}]", kind.as_str()), node))
            .collect(),
        _ => vec![(kind, kind.as_str().to_owned(), node)],
    };
    // A merchant of its own has a group too, as text.
    let is_file = |entry: &document::Entry<'_>| {
        KINDS.iter().any(|kind| kind.as_str() == entry.name)
            && !matches!(entry.node.value, Value::Text(_))
    };
    let found = match &root.value {
        Value::List(_) => one_or_many(LimitScope::Merchant, root),
        Value::Table(table) if json && !table.iter().any(is_file) => {
            vec![(LimitScope::Merchant, "merchant".to_owned(), root)]
        }
        Value::Table(_) => {
            let fields = reader.fields(root, "", &KINDS.map(LimitScope::as_str));
            let found = KINDS.into_iter().filter_map(|kind| {
                let node = fields.as_ref()?.node(kind.as_str())?;
                Some(one_or_many(kind, node))
            });
            found.flatten().collect()
        }
        other => {
            let kind = other.kind();
            reader.problem(root.line, "", format!("expected merchants, found {kind}"));
            return Vec::new();
        }
    };
    if found.is_empty() && reader.problems.is_empty() {
        let message = "no merchant here: write [[merchant]] ([[group]], [[credential]] for limits \
                       that merchants share)";
        reader.problem(root.line, "", message);
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

/// Ids that appear a second time, of (id, file, line).
fn duplicates<'m>(kind: &str, all: impl Iterator<Item = (&'m str, &'m str, u32)>) -> Vec<Problem> {
    let mut first: HashMap<&str, (&str, u32)> = HashMap::new();
    let mut problems = Vec::new();
    for (id, file, line) in all {
        if let Some((other, other_line)) = first.get(id) {
            problems.push(Problem {
                file: file.to_owned(),
                line,
                key: format!("{kind}.id"),
                message: format!("{id:?} is given twice, first at {other}:{other_line}"),
            });
        } else {
            first.insert(id, (file, line));
        }
    }
    problems
}

#[cfg(test)]
mod flow_tests;
#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod tests;
