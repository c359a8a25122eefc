use std::time::Duration;

use expediter_types::{format_duration, parse_duration};

use super::document::{Entry, Node, Value};
use super::problem::Problem;

pub(super) const MERCHANT: &[&str] = &[
    "id", "name", "group", "adapter", "limits", "retry", "breaker", "hours", "job",
];
pub(super) const ADAPTER: &[&str] = &[
    "kind",
    "url",
    "method",
    "timeout",
    "headers",
    "credential",
    "rate_limit_scope",
    "idempotency",
    "idempotency_window",
    "lookup",
    "rejected",
    "classify",
];
pub(super) const CLASSIFY: &[&str] = &["status", "header", "json", "class"];
pub(super) const LOOKUP: &[&str] = &["url", "after", "rules"];
pub(super) const LOOKUP_RULE: &[&str] = &["status", "header", "json", "verdict"];
pub(super) const LIMITS: &[&str] = &[
    "rate",
    "burst",
    "concurrency",
    "min_concurrency",
    "ordering",
    "mailbox",
    "backlog",
];
pub(super) const RETRY: &[&str] = &[
    "initial",
    "max",
    "multiplier",
    "max_attempts",
    "deadline",
    "margin",
    "budget",
    "on_park",
];
pub(super) const BREAKER: &[&str] = &[
    "consecutive",
    "ratio",
    "min_samples",
    "window",
    "open",
    "max_open",
    "probes",
];
pub(super) const HOURS: &[&str] = &["timezone", "open"];
pub(super) const JOB: &[&str] = &[
    "name",
    "schedule",
    "timezone",
    "missed",
    "payload",
    "content_type",
    "deadline",
    "priority",
];
pub(super) const SCOPE: &[&str] = &["id", "rate", "burst", "concurrency"];

/// The sections of a merchant's manifest with their keys; `""` is the merchant itself. Under
/// `adapter.headers` any header's name is a key.
#[must_use]
pub fn known_keys() -> [(&'static str, &'static [&'static str]); 10] {
    [
        ("", MERCHANT),
        ("adapter", ADAPTER),
        ("adapter.classify", CLASSIFY),
        ("adapter.lookup", LOOKUP),
        ("adapter.lookup.rules", LOOKUP_RULE),
        ("limits", LIMITS),
        ("retry", RETRY),
        ("breaker", BREAKER),
        ("hours", HOURS),
        ("job", JOB),
    ]
}

/// The keys of `[[group]]` and `[[credential]]`.
#[must_use]
pub fn scope_keys() -> &'static [&'static str] {
    SCOPE
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

    /// One text or a list of them, each with its line and key.
    pub(super) fn texts<'n>(
        &mut self,
        fields: &Fields<'n, '_>,
        name: &str,
        (max, what): (usize, &str),
    ) -> Vec<(u32, String, &'n str)> {
        let Some(node) = fields.node(name) else {
            return Vec::new();
        };
        let key = fields.key(name);
        let list = match &node.value {
            Value::Text(text) => return vec![(node.line, key, text)],
            Value::List(list) => list,
            _ => {
                self.expected(node, &key, &format!("text or a list of {what}"));
                return Vec::new();
            }
        };
        if !(1..=max).contains(&list.len()) {
            let message = format!("has {} {what}, 1 to {max} are accepted", list.len());
            self.problem(node.line, &key, message);
            return Vec::new();
        }
        let mut found = Vec::new();
        for (n, node) in list.iter().enumerate() {
            let key = format!("{key}[{n}]");
            match &node.value {
                Value::Text(text) => found.push((node.line, key, text.as_ref())),
                _ => self.expected(node, &key, "text"),
            }
        }
        found
    }

    /// The tables of a list such as `[[merchant.job]]`, each with its place in it.
    pub(super) fn tables<'n, 'd>(
        &mut self,
        fields: &Fields<'n, 'd>,
        name: &str,
        (max, what): (usize, &str),
        known: &[&str],
    ) -> Vec<Fields<'n, 'd>> {
        let key = fields.key(name);
        let Some(node) = fields.node(name) else {
            return Vec::new();
        };
        let Value::List(list) = &node.value else {
            // As a file has it: without the numbers.
            let path = key.split('.').map(|step| step.split('[').next());
            let path: Vec<_> = path.flatten().collect();
            let what = format!("a list of {what}: write [[{}]]", path.join("."));
            self.expected(node, &key, &what);
            return Vec::new();
        };
        if list.len() > max {
            let message = format!("{} {what}, at most {max} are accepted", list.len());
            self.problem(node.line, &key, message);
            return Vec::new();
        }
        let tables = list.iter().enumerate();
        tables
            .filter_map(|(n, node)| self.fields(node, &format!("{key}[{n}]"), known))
            .collect()
    }

    /// Tells that a key is not there that must be.
    pub(super) fn missing(&mut self, fields: &Fields<'_, '_>, name: &str, why: &str) {
        if fields.node(name).is_none() {
            self.problem(fields.line, &fields.key(name), format!("is missing: {why}"));
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
                let what = format!("a number from {min:?} to {max:?}");
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
            format!("{number} is not from {min:?} to {max:?}"),
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
