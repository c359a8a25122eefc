use std::time::Duration;

use expediter_types::{format_duration, parse_duration};

use super::document::{Entry, Node, Value};
use super::problem::Problem;

pub(super) const MERCHANT: &[&str] = &["id", "name", "group", "adapter", "limits", "retry"];
pub(super) const ADAPTER: &[&str] = &[
    "kind",
    "url",
    "method",
    "timeout",
    "headers",
    "idempotency",
    "idempotency_window",
    "rejected",
    "classify",
];
pub(super) const CLASSIFY: &[&str] = &["status", "header", "json", "class"];
pub(super) const LIMITS: &[&str] = &["rate", "burst", "concurrency", "ordering", "mailbox"];
pub(super) const RETRY: &[&str] = &["initial", "max", "multiplier", "max_attempts", "deadline"];

/// The sections of a manifest with their keys: `""` (the merchant itself), `adapter`,
/// `adapter.classify`, `limits`, `retry`. Under `adapter.headers` any header's name is a key.
#[must_use]
pub fn known_keys() -> [(&'static str, &'static [&'static str]); 5] {
    [
        ("", MERCHANT),
        ("adapter", ADAPTER),
        ("adapter.classify", CLASSIFY),
        ("limits", LIMITS),
        ("retry", RETRY),
    ]
}

/// More keys than any section has, unknown ones included.
const MAX_KEYS: usize = 64;

/// Reads values and collects what is wrong with them.
#[derive(Debug)]
pub(super) struct Reader<'f> {
    pub(super) file: &'f str,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
    lenient: bool,
}

/// The entries of a table whose keys were checked.
#[derive(Debug)]
pub(super) struct Fields<'n, 'd> {
    pub(super) path: String,
    pub(super) line: u32,
    entries: &'n [Entry<'d>],
}

impl<'n, 'd> Fields<'n, 'd> {
    pub(super) fn node(&self, name: &str) -> Option<&'n Node<'d>> {
        self.entries
            .iter()
            .find(|entry| entry.name == name)
            .map(|entry| &entry.node)
    }

    pub(super) fn key(&self, name: &str) -> String {
        join(&self.path, name)
    }
}

impl<'f> Reader<'f> {
    pub(super) fn new(file: &'f str) -> Self {
        Self {
            file,
            problems: Vec::new(),
            warnings: Vec::new(),
            lenient: false,
        }
    }

    /// Ignores unknown keys.
    pub(super) fn lenient(file: &'f str) -> Self {
        Self {
            lenient: true,
            ..Self::new(file)
        }
    }

    pub(super) fn problem(&mut self, line: u32, key: &str, message: impl Into<String>) {
        self.problems.push(self.note(line, key, message.into()));
    }

    pub(super) fn warning(&mut self, line: u32, key: &str, message: impl Into<String>) {
        self.warnings.push(self.note(line, key, message.into()));
    }

    fn note(&self, line: u32, key: &str, message: String) -> Problem {
        Problem {
            file: self.file.to_owned(),
            line,
            key: key.to_owned(),
            message,
        }
    }

    pub(super) fn expected(&mut self, node: &Node<'_>, key: &str, what: &str) {
        self.problem(
            node.line,
            key,
            format!("expected {what}, found {}", node.value.kind()),
        );
    }

    /// The entries of a table, with problems for keys that are unknown or given twice.
    pub(super) fn fields<'n, 'd>(
        &mut self,
        node: &'n Node<'d>,
        path: &str,
        known: &[&str],
    ) -> Option<Fields<'n, 'd>> {
        let Value::Table(entries) = &node.value else {
            self.expected(node, path, "a table");
            return None;
        };
        if entries.len() > MAX_KEYS {
            let message = format!("has {} keys, at most {MAX_KEYS} are read", entries.len());
            self.problem(node.line, path, message);
            return None;
        }
        for (n, entry) in entries.iter().enumerate() {
            let key = || join(path, &shown(&entry.name));
            if entries.iter().take(n).any(|other| other.name == entry.name) {
                self.problem(entry.line, &key(), "is given twice");
            }
            if !self.lenient && !known.is_empty() && !known.contains(&&*entry.name) {
                self.problem(entry.line, &key(), unknown(&entry.name, known));
            }
        }
        Some(Fields {
            path: path.to_owned(),
            line: node.line,
            entries,
        })
    }

    /// A section of a table; absent is as good as empty.
    pub(super) fn section<'n, 'd>(
        &mut self,
        fields: &Fields<'n, 'd>,
        name: &str,
        known: &[&str],
    ) -> Option<Fields<'n, 'd>> {
        let key = fields.key(name);
        fields
            .node(name)
            .and_then(|node| self.fields(node, &key, known))
    }

    pub(super) fn text<'n>(
        &mut self,
        fields: &Fields<'n, '_>,
        name: &str,
    ) -> Option<(u32, &'n str)> {
        let node = fields.node(name)?;
        match &node.value {
            Value::Text(text) => Some((node.line, text)),
            _ => {
                self.expected(node, &fields.key(name), "text");
                None
            }
        }
    }

    /// Reads a text, with the message of the error as the problem.
    pub(super) fn parsed<T, E: ToString>(
        &mut self,
        fields: &Fields<'_, '_>,
        name: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let (line, text) = self.text(fields, name)?;
        match read(text) {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(line, &fields.key(name), error.to_string());
                None
            }
        }
    }

    pub(super) fn choice<T: Copy>(
        &mut self,
        fields: &Fields<'_, '_>,
        name: &str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        self.parsed(fields, name, |text| {
            let found = choices.iter().find(|(choice, _)| *choice == text);
            found.map(|(_, value)| *value).ok_or_else(|| {
                let names: Vec<_> = choices.iter().map(|(choice, _)| *choice).collect();
                format!(
                    "{:?} is not one of {}{}",
                    shown(text),
                    names.join(", "),
                    meant(text, &names)
                )
            })
        })
    }

    pub(super) fn whole(
        &mut self,
        fields: &Fields<'_, '_>,
        name: &str,
        (min, max): (u32, u32),
    ) -> Option<u32> {
        let node = fields.node(name)?;
        let key = fields.key(name);
        let Value::Integer(number) = node.value else {
            self.expected(node, &key, &format!("a whole number from {min} to {max}"));
            return None;
        };
        let found = u32::try_from(number)
            .ok()
            .filter(|n| (min..=max).contains(n));
        if found.is_none() {
            self.problem(
                node.line,
                &key,
                format!("{number} is not from {min} to {max}"),
            );
        }
        found
    }

    pub(super) fn number(
        &mut self,
        fields: &Fields<'_, '_>,
        name: &str,
        (min, max): (f64, f64),
    ) -> Option<f64> {
        let node = fields.node(name)?;
        let number = match node.value {
            Value::Float(number) => number,
            // Exact in the range of any key; what is beyond is refused below.
            #[expect(clippy::cast_precision_loss, reason = "see above")]
            Value::Integer(number) => number as f64,
            _ => {
                let what = format!("a number from {min:.1} to {max:.1}");
                self.expected(node, &fields.key(name), &what);
                return None;
            }
        };
        if (min..=max).contains(&number) {
            return Some(number);
        }
        self.problem(
            node.line,
            &fields.key(name),
            format!("{number} is not from {min:.1} to {max:.1}"),
        );
        None
    }

    pub(super) fn duration(
        &mut self,
        fields: &Fields<'_, '_>,
        name: &str,
        (min, max): (Duration, Duration),
    ) -> Option<Duration> {
        let range = || format!("{} to {}", format_duration(min), format_duration(max));
        self.parsed(fields, name, |text| match parse_duration(text) {
            Err(error) => Err(format!("{error}, from {}", range())),
            Ok(duration) if (min..=max).contains(&duration) => Ok(duration),
            Ok(_) => Err(format!("{text} is not from {}", range())),
        })
    }
}

pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// A text of the manifest as it may appear in a message.
pub(super) fn shown(text: &str) -> String {
    let cut: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().nth(60).is_some() {
        cut + "…"
    } else {
        cut
    }
}

fn unknown(name: &str, known: &[&str]) -> String {
    let elsewhere = known_keys()
        .into_iter()
        .find(|(_, keys)| keys.contains(&name));
    match elsewhere {
        Some(("", _)) => "unknown key here; it belongs to the merchant itself".to_owned(),
        Some((section, _)) => format!("unknown key here; it belongs under {section}"),
        None => match meant(name, known) {
            near if near.is_empty() => format!("unknown key; known are {}", known.join(", ")),
            near => format!("unknown key{near}"),
        },
    }
}

/// The nearest known name, when it is near.
fn meant(name: &str, known: &[&str]) -> String {
    if name.len() > 64 {
        return String::new();
    }
    let name = name.to_lowercase().replace('-', "_");
    let near = known
        .iter()
        .map(|k| (strsim::damerau_levenshtein(&name, k), k))
        .min();
    match near {
        Some((distance, known)) if distance <= 1 + known.len() / 4 => {
            format!("; did you mean {known}?")
        }
        _ => String::new(),
    }
}
