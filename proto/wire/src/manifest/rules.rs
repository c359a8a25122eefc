//! What a merchant's answers mean: `classify` and `lookup`.

use std::time::Duration;

use expediter_types::{AttemptClass, ClassifyRule, Lookup, LookupRule, LookupVerdict, Predicate};

use super::document::{Node, Value};
use super::reader::{CLASSIFY, Fields, LOOKUP, LOOKUP_RULE, Reader, shown};
use super::url;

/// Entries of `classify`, and of a look-up's `rules`, at most.
const MAX_RULES: (usize, &str) = (100, "rules");

pub(super) const VERDICTS: [(&str, LookupVerdict); 2] = [
    ("found", LookupVerdict::Found),
    ("absent", LookupVerdict::Absent),
];

pub(super) fn classify(reader: &mut Reader<'_>, adapter: &Fields<'_, '_>) -> Vec<ClassifyRule> {
    // `local` is a fault of the node, which no answer can tell.
    let classes = AttemptClass::ALL
        .into_iter()
        .filter(|class| *class != AttemptClass::Local);
    let classes: Vec<_> = classes.map(|class| (class.as_str(), class)).collect();
    let tables = reader.tables(adapter, "classify", MAX_RULES, CLASSIFY);
    let rules = tables.iter().filter_map(|fields| {
        reader.missing(fields, "class", "a rule names a class");
        let class = reader.choice(fields, "class", &classes);
        let when = predicates(reader, fields);
        class.map(|class| ClassifyRule { when, class })
    });
    rules.collect()
}

pub(super) fn lookup(reader: &mut Reader<'_>, adapter: &Fields<'_, '_>) -> Option<Lookup> {
    let fields = reader.section(adapter, "lookup", LOOKUP)?;
    reader.missing(&fields, "url", "the address that is asked, with {id} in it");
    let url = reader.parsed(&fields, "url", lookup_url);
    let hour = Duration::from_secs(3_600);
    let after = reader.duration(&fields, "after", (Duration::ZERO, hour));
    let tables = reader.tables(&fields, "rules", MAX_RULES, LOOKUP_RULE);
    let rules = tables.iter().filter_map(|fields| {
        reader.missing(fields, "verdict", "found or absent");
        let verdict = reader.choice(fields, "verdict", &VERDICTS);
        let when = predicates(reader, fields);
        verdict.map(|verdict| LookupRule { when, verdict })
    });
    let rules = rules.collect();
    url.map(|url| Lookup { url, after, rules })
}

fn lookup_url(text: &str) -> Result<String, String> {
    let host_end = text
        .find("://")
        .and_then(|at| text.get(at + 3..))
        .map(|rest| rest.find(['/', '?']).unwrap_or(rest.len()))
        .map_or(0, |at| text.find("://").unwrap_or(0) + 3 + at);
    let (host, rest) = text.split_at_checked(host_end).unwrap_or((text, ""));
    if host.contains("{id}") || !rest.contains("{id}") {
        return Err("must contain {id} after the host, in place of the order's id".into());
    }
    url::check(&text.replace("{id}", "id")).map(|()| text.to_owned())
}

/// The conditions of a rule; at least one.
fn predicates(reader: &mut Reader<'_>, fields: &Fields<'_, '_>) -> Vec<Predicate> {
    let mut when = Vec::new();
    if let Some(node) = fields.node("status") {
        match status(node) {
            Some((from, to)) => when.push(Predicate::Status(from, to)),
            None => {
                let what = "expected a status such as 409 or a range such as \"500-599\", \
                            from 100 to 599";
                reader.problem(node.line, &fields.key("status"), what);
            }
        }
    }
    when.extend(reader.parsed(fields, "header", header_predicate));
    when.extend(reader.parsed(fields, "json", json_predicate));
    if ["status", "header", "json"]
        .iter()
        .all(|name| fields.node(name).is_none())
    {
        let message = "a rule has at least one of status, header and json";
        reader.problem(fields.line, &fields.path, message);
    }
    when
}

fn status(node: &Node<'_>) -> Option<(u16, u16)> {
    let one = |text: &str| {
        text.trim()
            .parse::<u16>()
            .ok()
            .filter(|s| (100..=599).contains(s))
    };
    let (from, to) = match &node.value {
        Value::Integer(status) => {
            let status = one(&status.to_string())?;
            (status, status)
        }
        Value::Text(text) => match text.split_once('-') {
            Some((from, to)) => (one(from)?, one(to)?),
            None => (one(text)?, one(text)?),
        },
        _ => return None,
    };
    (from <= to).then_some((from, to))
}

/// A name, and the value after the first `=`.
fn split(text: &str) -> Result<(&str, Option<String>), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    match &value {
        Some(value) if value.len() > 1024 => Err("the value has more than 1024 bytes".into()),
        _ => Ok((name, value)),
    }
}

fn header_predicate(text: &str) -> Result<Predicate, String> {
    let (name, value) = split(text)?;
    let name = name.to_ascii_lowercase();
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || name.len() > 128 || !name.bytes().all(legal) {
        return Err(format!(
            "{:?} is not a header such as x-foo or x-foo=bar",
            shown(text)
        ));
    }
    Ok(Predicate::Header(name, value))
}

fn json_predicate(text: &str) -> Result<Predicate, String> {
    let (path, value) = split(text)?;
    if path.len() <= 256 && is_json_path(path) {
        return Ok(Predicate::Json(path.to_owned(), value));
    }
    let form = "$.error.code, $.errors[0].code or $.error.code=TEXT";
    Err(format!("{:?} is not a path such as {form}", shown(text)))
}

/// `$`, then at least one of `.name` and `[index]`.
fn is_json_path(path: &str) -> bool {
    let Some(mut rest) = path.strip_prefix('$') else {
        return false;
    };
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let (step, index) = match (rest.strip_prefix('.'), rest.strip_prefix('[')) {
            (Some(step), _) => (step, false),
            (_, Some(step)) => (step, true),
            _ => return false,
        };
        let in_step = |b: &u8| match index {
            true => b.is_ascii_digit(),
            false => !matches!(b, b'.' | b'[' | b']') && !b.is_ascii_control(),
        };
        let len = step.bytes().take_while(in_step).count();
        // Every byte that ends a step is ASCII, so this is no cut within a character.
        let (taken, after) = step.split_at(len);
        let after = if index {
            after.strip_prefix(']')
        } else {
            Some(after)
        };
        match after {
            Some(after) if !taken.is_empty() && (!index || taken.len() <= 9) => rest = after,
            _ => return false,
        }
    }
    true
}
