use std::time::Duration;

use expediter_types::{
    Adapter, AttemptClass, ClassifyRule, Idempotency, Predicate, Secret, SecretRef,
};

use super::document::{Node, Value};
use super::reader::{ADAPTER, CLASSIFY, Fields, Reader, join, shown};
use super::url;

/// Headers in a manifest, at most.
const MAX_HEADERS: usize = 32;
/// Bytes of a header's value, at most.
const MAX_VALUE: usize = 4096;
/// Entries of `classify`, at most.
const MAX_RULES: usize = 100;

pub(super) const IDEMPOTENCIES: [(&str, Idempotency); 2] =
    [("native", Idempotency::Native), ("none", Idempotency::None)];

/// Reads the adapter of a merchant; `None` when it is missing or not a table.
pub(super) fn read(reader: &mut Reader<'_>, merchant: &Fields<'_, '_>) -> Option<Adapter> {
    const SECOND: Duration = Duration::from_secs(1);
    let Some(node) = merchant.node("adapter") else {
        let key = merchant.key("adapter.url");
        reader.problem(merchant.line, &key, "is missing: every merchant has a url");
        return None;
    };
    let fields = reader.fields(node, &merchant.key("adapter"), ADAPTER)?;
    reader.choice(&fields, "kind", &[("http", ())]);
    if fields.node("url").is_none() {
        let key = fields.key("url");
        reader.problem(fields.line, &key, "is missing: every merchant has a url");
    }
    let url = reader.parsed(&fields, "url", |text| {
        url::check(text).map(|()| text.to_owned())
    });
    let default = Adapter::to(&url.unwrap_or_default());
    let methods = [("POST", "POST"), ("PUT", "PUT"), ("PATCH", "PATCH")];
    let method = reader
        .choice(&fields, "method", &methods)
        .map(str::to_owned);
    let window = (SECOND, Duration::from_secs(30 * 86_400));
    Some(Adapter {
        method: method.unwrap_or(default.method),
        timeout: reader
            .duration(&fields, "timeout", (SECOND, Duration::from_secs(600)))
            .unwrap_or(default.timeout),
        headers: headers(reader, &fields),
        idempotency: reader
            .choice(&fields, "idempotency", &IDEMPOTENCIES)
            .unwrap_or(default.idempotency),
        idempotency_window: reader
            .duration(&fields, "idempotency_window", window)
            .unwrap_or(default.idempotency_window),
        rejected: rejected(reader, &fields),
        classify: classify(reader, &fields),
        credential: None,
        rate_limit_scope: default.rate_limit_scope,
        lookup: None,
        url: default.url,
    })
}

fn headers(reader: &mut Reader<'_>, adapter: &Fields<'_, '_>) -> Vec<(String, Secret)> {
    let mut found: Vec<(String, Secret)> = Vec::new();
    let key = adapter.key("headers");
    let Some(node) = adapter.node("headers") else {
        return found;
    };
    let Value::Table(entries) = &node.value else {
        reader.expected(node, &key, "a table of header names and values");
        return found;
    };
    if entries.len() > MAX_HEADERS {
        let message = format!(
            "{} headers, at most {MAX_HEADERS} are accepted",
            entries.len()
        );
        reader.problem(node.line, &key, message);
        return found;
    }
    for entry in entries {
        let key = join(&key, &shown(&entry.name));
        let name = entry.name.to_ascii_lowercase();
        if let Err(message) = header_name(&name) {
            reader.problem(entry.line, &key, message);
            continue;
        }
        if found.iter().any(|(other, _)| *other == name) {
            reader.problem(entry.line, &key, "is given twice (case does not count)");
            continue;
        }
        let Value::Text(text) = &entry.node.value else {
            reader.expected(&entry.node, &key, "text, or env:NAME or file:PATH");
            continue;
        };
        match secret(text) {
            Ok(secret) => {
                if matches!(secret, Secret::Plain(_)) && looks_secret(&name) {
                    let message = "looks like a secret in plain text: \
                                   write env:NAME or file:PATH, and it is kept nowhere else";
                    reader.warning(entry.line, &key, message);
                }
                found.push((name, secret));
            }
            Err(message) => reader.problem(entry.line, &key, message),
        }
    }
    // One form for one meaning: names in lower case, sorted.
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// Whether a header of that name usually carries a secret.
pub(super) fn looks_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let marks = [
        "authorization",
        "key",
        "token",
        "secret",
        "password",
        "passwd",
        "credential",
        "cookie",
    ];
    marks.iter().any(|mark| name.contains(mark))
}

fn header_name(name: &str) -> Result<(), String> {
    const OURS: [&str; 15] = [
        "host",
        "content-length",
        "connection",
        "transfer-encoding",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
        "expect",
        "idempotency-key",
        "traceparent",
        "tracestate",
    ];
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || name.len() > 128 || !name.bytes().all(legal) {
        return Err("is no header name: 1 to 128 letters, digits and !#$%&'*+-.^_`|~".into());
    }
    if OURS.contains(&name) || name.starts_with("expediter-") || name.starts_with("ce-") {
        return Err("is set by the platform or by HTTP itself".into());
    }
    Ok(())
}

/// Reads a header's value. Its problems never quote it.
fn secret(text: &str) -> Result<Secret, String> {
    if text.len() > MAX_VALUE {
        return Err(format!(
            "{} bytes, at most {MAX_VALUE} are accepted",
            text.len()
        ));
    }
    if let Some(name) = text.strip_prefix("env:") {
        let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let legal = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !starts || !legal || name.len() > 128 {
            return Err("after env: comes the name of a variable, 1-128 of A-Z a-z 0-9 _".into());
        }
        return Ok(Secret::Reference(SecretRef::Env(name.to_owned())));
    }
    if let Some(path) = text.strip_prefix("file:") {
        if path.is_empty() || path.len() > 1024 || path.chars().any(char::is_control) {
            return Err("after file: comes a path of 1 to 1024 bytes".into());
        }
        return Ok(Secret::Reference(SecretRef::File(path.to_owned())));
    }
    if text.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) && text.trim() == text {
        return Ok(Secret::Plain(text.to_owned()));
    }
    Err("must be printable ASCII without spaces around it".into())
}

fn rejected(reader: &mut Reader<'_>, adapter: &Fields<'_, '_>) -> Vec<u16> {
    const WHAT: &str = "a list of statuses from 400 to 499";
    let key = adapter.key("rejected");
    let Some(node) = adapter.node("rejected") else {
        return Vec::new();
    };
    let Value::List(list) = &node.value else {
        reader.expected(node, &key, WHAT);
        return Vec::new();
    };
    let mut found = Vec::new();
    for (n, node) in list.iter().enumerate() {
        let status = match node.value {
            Value::Integer(status) => u16::try_from(status).ok(),
            _ => None,
        };
        match status.filter(|status| (400..=499).contains(status)) {
            Some(status) => found.push(status),
            None => reader.problem(
                node.line,
                &format!("{key}[{n}]"),
                format!("expected {WHAT}"),
            ),
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn classify(reader: &mut Reader<'_>, adapter: &Fields<'_, '_>) -> Vec<ClassifyRule> {
    let key = adapter.key("classify");
    let Some(node) = adapter.node("classify") else {
        return Vec::new();
    };
    let Value::List(list) = &node.value else {
        reader.expected(
            node,
            &key,
            "a list of rules: write [[merchant.adapter.classify]]",
        );
        return Vec::new();
    };
    if list.len() > MAX_RULES {
        let message = format!("{} rules, at most {MAX_RULES} are accepted", list.len());
        reader.problem(node.line, &key, message);
        return Vec::new();
    }
    let rules = list.iter().enumerate().filter_map(|(n, node)| {
        let fields = reader.fields(node, &format!("{key}[{n}]"), CLASSIFY)?;
        rule(reader, &fields)
    });
    rules.collect()
}

fn rule(reader: &mut Reader<'_>, fields: &Fields<'_, '_>) -> Option<ClassifyRule> {
    // `local` is a fault of the node, which no answer can tell.
    let classes = AttemptClass::ALL
        .into_iter()
        .filter(|class| *class != AttemptClass::Local);
    let classes: Vec<_> = classes.map(|class| (class.as_str(), class)).collect();
    let class = reader.choice(fields, "class", &classes);
    if fields.node("class").is_none() {
        reader.problem(
            fields.line,
            &fields.key("class"),
            "is missing: a rule names a class",
        );
    }
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
    class.map(|class| ClassifyRule { when, class })
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
