//! From a file and the environment to a [`Config`], with everything that is wrong on the way.

use std::ffi::OsString;
use std::fmt;
use std::path::Path;

use expediter_http::{Egress, Webhook};
use toml::de::{DeTable, DeValue};

use super::Config;
use super::keys::{KEYS, Key, PREFIX};
use super::value::{Given, quoted};

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Variables with our prefix that are no settings; those that end with `_` stand for all that
/// begin so.
const NO_SETTINGS: [&str; 3] = ["EXPEDITER_CONFIG", "EXPEDITER_TEST_", "EXPEDITER_SIM_"];

/// Something wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Problem {
    /// The file, or the variable.
    pub(crate) place: String,
    /// From 1; `None` for a variable.
    pub(crate) line: Option<usize>,
    /// Such as `nats.replicas`; empty for the whole file.
    pub(crate) key: String,
    pub(crate) message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("reading {file}")]
    File {
        file: String,
        #[source]
        source: std::io::Error,
    },
    /// All that is wrong, in the order in which it was found.
    #[error("{}", Lines(.0))]
    Problems(Vec<Problem>),
}

struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            let separator = if n == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

/// The variables that begin with `EXPEDITER_`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment(Vec<(String, OsString)>);

impl Environment {
    /// Those of this process.
    pub(crate) fn of_process() -> Self {
        Self::new(std::env::vars_os())
    }

    fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let named = variables.into_iter().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let ours = name.starts_with(PREFIX) && !is_no_setting(&name);
            ours.then_some((name, value))
        });
        let mut named: Vec<_> = named.collect();
        named.sort();
        Self(named)
    }

    #[cfg(test)]
    pub(super) fn with(variables: &[(&str, &str)]) -> Self {
        Self::new(
            variables
                .iter()
                .map(|(name, value)| (name.into(), value.into())),
        )
    }
}

fn is_no_setting(name: &str) -> bool {
    NO_SETTINGS
        .iter()
        .any(|known| name == *known || known.ends_with('_') && name.starts_with(known))
}

pub(super) fn load(file: Option<&Path>, environment: &Environment) -> Result<Config, ConfigError> {
    let mut reader = Reader::default();
    if let Some(file) = file {
        let name = file.display().to_string();
        let text = read_file(file).map_err(|source| ConfigError::File {
            file: name.clone(),
            source,
        })?;
        reader.file(&name, &text);
    }
    reader.environment(environment);
    reader.finish()
}

/// The defaults with this text over them.
#[cfg(test)]
pub(super) fn parse(name: &str, text: &str) -> Result<Config, ConfigError> {
    let mut reader = Reader::default();
    reader.file(name, text);
    reader.finish()
}

fn read_file(file: &Path) -> std::io::Result<String> {
    let len = std::fs::metadata(file)?.len();
    if len > MAX_FILE {
        let message = format!("it has {len} bytes, at most {MAX_FILE} are read");
        return Err(std::io::Error::other(message));
    }
    std::fs::read_to_string(file)
}

/// Where a key was set last, for what is wrong between keys.
#[derive(Debug, Clone)]
struct Place {
    name: String,
    line: Option<usize>,
}

#[derive(Debug, Default)]
struct Reader {
    config: Config,
    problems: Vec<Problem>,
    set: Vec<(&'static str, Place)>,
}

impl Reader {
    fn problem(&mut self, place: &Place, key: &str, message: String) {
        self.problems.push(Problem {
            place: place.name.clone(),
            line: place.line,
            key: key.to_owned(),
            message,
        });
    }

    fn set(&mut self, key: &'static Key, given: &Given<'_>, place: Place) {
        match (key.set)(&mut self.config, given) {
            Ok(()) => self.set.push((key.name, place)),
            Err(message) => {
                let shown = if place.line.is_some() { key.name } else { "" };
                self.problem(&place, shown, message);
            }
        }
    }

    fn file(&mut self, name: &str, text: &str) {
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let line = error.span().map(|span| line_of(text, span.start));
            let place = Place {
                name: name.to_owned(),
                line,
            };
            self.problem(&place, "", error.message().to_owned());
        }
        if errors.is_empty() {
            self.table(name, text, "", table.get_ref());
        }
    }

    fn table(&mut self, name: &str, text: &str, section: &str, table: &DeTable<'_>) {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let line = Some(line_of(text, key.span().start));
            let place = Place {
                name: name.to_owned(),
                line,
            };
            let path = match section {
                "" => key.get_ref().to_string(),
                section => format!("{section}.{}", key.get_ref()),
            };
            if let Some(known) = KEYS.iter().find(|known| known.name == path) {
                self.set(known, &Given::File(value.get_ref()), place);
            } else if !is_section(&path) {
                let shown: String = path.chars().take(100).collect();
                self.problem(&place, &shown, unknown_key(section, &path));
            } else if let DeValue::Table(table) = value.get_ref() {
                self.table(name, text, &path, table);
            } else {
                self.problem(&place, &path, format!("is a section: write [{path}]"));
            }
        }
    }

    fn environment(&mut self, environment: &Environment) {
        for (name, value) in &environment.0 {
            let place = Place {
                name: name.clone(),
                line: None,
            };
            let Some(known) = KEYS.iter().find(|known| known.variable() == *name) else {
                let names: Vec<String> = KEYS.iter().map(Key::variable).collect();
                let hint = nearest(name, names.iter().map(String::as_str));
                let hint = hint
                    .map(|near| format!("; did you mean {near}?"))
                    .unwrap_or_default();
                self.problem(&place, "", format!("no such setting{hint}"));
                continue;
            };
            match value.to_str() {
                Some(text) => self.set(known, &Given::Variable(text), place),
                None => self.problem(&place, "", "is not UTF-8".to_owned()),
            }
        }
    }

    /// What is wrong between keys that are right by themselves.
    fn finish(mut self) -> Result<Config, ConfigError> {
        let (nats, http, notify) = (&self.config.nats, &self.config.http, &self.config.notify);
        let ways = [
            ("nats.creds_file", nats.creds_file.is_some()),
            ("nats.user", nats.user.is_some()),
            ("nats.token", nats.token.is_some()),
            ("nats.nkey_file", nats.nkey_file.is_some()),
        ];
        let used: Vec<&str> = ways
            .iter()
            .filter(|(_, used)| *used)
            .map(|(key, _)| *key)
            .collect();
        let mut wrong: Vec<(&str, String)> = Vec::new();
        if let [first, second, ..] = used.as_slice() {
            wrong.push((
                second,
                format!("is given besides {first}: one way to log in at most"),
            ));
        }
        if nats.user.is_some() && nats.password.is_none() {
            wrong.push(("nats.user", "needs nats.password".to_owned()));
        }
        if nats.password.is_some() && nats.user.is_none() {
            wrong.push(("nats.password", "needs nats.user".to_owned()));
        }
        if nats.tls.cert_file.is_some() && nats.tls.key_file.is_none() {
            wrong.push(("nats.tls.cert_file", "needs nats.tls.key_file".to_owned()));
        }
        if nats.tls.key_file.is_some() && nats.tls.cert_file.is_none() {
            wrong.push(("nats.tls.key_file", "needs nats.tls.cert_file".to_owned()));
        }
        if nats.audit_retention < nats.dead_letter_retention {
            let key = self.newest("nats.audit_retention", "nats.dead_letter_retention");
            wrong.push((
                key,
                "nats.audit_retention is below nats.dead_letter_retention: what was done about a dead \
                 letter would be forgotten before it"
                    .to_owned(),
            ));
        }
        if http.retry_after_min > http.retry_after_max {
            let key = self.newest("http.retry_after_min", "http.retry_after_max");
            wrong.push((
                key,
                "http.retry_after_min is above http.retry_after_max".to_owned(),
            ));
        }
        if let Some(url) = &notify.url {
            if notify.secret.is_none() {
                wrong.push(("notify.url", "needs notify.secret".to_owned()));
            }
            // What is wrong with the list is told with its key.
            let allow = Egress::new(&notify.allow).unwrap_or_default();
            if let Err(error) = Webhook::check_url(url, &allow) {
                wrong.push(("notify.url", error.to_string()));
            }
        }
        for (key, message) in wrong {
            let place = self.place(key);
            self.problem(&place, key, message);
        }
        match self.problems.is_empty() {
            true => Ok(self.config),
            false => Err(ConfigError::Problems(self.problems)),
        }
    }

    /// The one of both that was set last: where a contradiction is mended.
    fn newest(&self, one: &'static str, other: &'static str) -> &'static str {
        let last = self
            .set
            .iter()
            .rev()
            .find(|(key, _)| *key == one || *key == other);
        last.map_or(one, |(key, _)| key)
    }

    fn place(&self, key: &str) -> Place {
        let found = self.set.iter().rev().find(|(set, _)| *set == key);
        let default = || Place {
            name: "default".to_owned(),
            line: None,
        };
        found.map_or_else(default, |(_, place)| place.clone())
    }
}

/// Some key lies below it.
fn is_section(path: &str) -> bool {
    KEYS.iter().any(|known| {
        known
            .name
            .strip_prefix(path)
            .is_some_and(|rest| rest.starts_with('.'))
    })
}

fn unknown_key(section: &str, path: &str) -> String {
    let last = path.rsplit('.').next().unwrap_or(path);
    // The right name in the wrong section is the commonest mistake.
    let elsewhere = KEYS
        .iter()
        .find(|known| known.name.rsplit('.').next() == Some(last));
    let near = match elsewhere {
        Some(known) => Some(known.name),
        None => nearest(path, KEYS.iter().map(|known| known.name)),
    };
    if let Some(near) = near {
        return format!("unknown key; did you mean {near}?");
    }
    if section.is_empty() {
        let mut sections: Vec<&str> = KEYS
            .iter()
            .filter_map(|k| k.name.split('.').next())
            .collect();
        sections.dedup();
        return match nearest(path, sections.iter().copied()) {
            Some(near) => format!("unknown section; did you mean [{near}]?"),
            None => format!("unknown section; there are {}", sections.join(", ")),
        };
    }
    let inside = KEYS
        .iter()
        .filter_map(|k| k.name.strip_prefix(section)?.strip_prefix('.'));
    let names: Vec<&str> = inside.filter(|name| !name.contains('.')).collect();
    format!("unknown key; [{section}] has {}", names.join(", "))
}

/// The nearest name, if it is near.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > 100 {
        return None;
    }
    let scored = known.map(|known| (strsim::damerau_levenshtein(name, known), known));
    let best = scored.min_by_key(|(distance, _)| *distance);
    best.filter(|(distance, known)| *distance <= 1 + known.len() / 6)
        .map(|(_, known)| known)
}

/// The line of a byte, from 1.
fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

impl ConfigError {
    /// All that is wrong, also where it is only that the file cannot be read.
    pub(crate) fn into_problems(self) -> Vec<Problem> {
        match self {
            Self::Problems(problems) => problems,
            Self::File { file, source } => vec![Problem {
                place: file,
                line: None,
                key: String::new(),
                message: format!("cannot be read: {}", quoted(&source.to_string())),
            }],
        }
    }
}
