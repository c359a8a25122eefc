use std::time::Duration;

use expediter_types::{
    Adapter, AttemptClass, Idempotency, LimitScope, MerchantId, Secret, SecretRef,
};

use super::document::Value;
use super::reader::{ADAPTER, Fields, Reader, join, shown};
use super::{rules, url};

/// Headers in a manifest, at most.
const MAX_HEADERS: usize = 32;
/// Bytes of a header's value, at most.
const MAX_VALUE: usize = 4096;

pub(super) const IDEMPOTENCIES: [(&str, Idempotency); 4] = [
    ("native", Idempotency::Native),
    ("unique_ref", Idempotency::UniqueRef),
    ("lookup", Idempotency::Lookup),
    ("none", Idempotency::None),
];

const SCOPES: [(&str, LimitScope); 3] = [
    ("merchant", LimitScope::Merchant),
    ("group", LimitScope::Group),
    ("credential", LimitScope::Credential),
];

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
    let adapter = Adapter {
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
        classify: rules::classify(reader, &fields),
        credential: reader.parsed(&fields, "credential", label),
        rate_limit_scope: reader
            .choice(&fields, "rate_limit_scope", &SCOPES)
            .unwrap_or(default.rate_limit_scope),
        lookup: rules::lookup(reader, &fields).map(Box::new),
        url: default.url,
    };
    agree(reader, &fields, &adapter);
    Some(adapter)
}

/// Keys that ask for each other.
fn agree(reader: &mut Reader<'_>, fields: &Fields<'_, '_>, adapter: &Adapter) {
    let line = |name: &str| fields.node(name).map_or(fields.line, |node| node.line);
    let (idempotency, scope) = ("idempotency", "rate_limit_scope");
    if adapter.rate_limit_scope == LimitScope::Credential && fields.node("credential").is_none() {
        let message = "credential asks for adapter.credential, the account that is meant";
        reader.problem(line(scope), &fields.key(scope), message);
    }
    let names_repeats = |adapter: &Adapter| {
        let mut classes = adapter.classify.iter().map(|rule| rule.class);
        classes.any(|class| class == AttemptClass::AlreadyDone)
    };
    match adapter.idempotency {
        Idempotency::UniqueRef if !names_repeats(adapter) => {
            let message = "unique_ref asks for a classify rule with class already_done: \
                           the answer by which the merchant refuses a repeat";
            reader.problem(line(idempotency), &fields.key(idempotency), message);
        }
        Idempotency::Lookup if fields.node("lookup").is_none() => {
            let message = "lookup asks for [merchant.adapter.lookup] with a url";
            reader.problem(line(idempotency), &fields.key(idempotency), message);
        }
        Idempotency::Lookup => {}
        _ if fields.node("lookup").is_some() => {
            let message = "is only used with idempotency = \"lookup\"";
            reader.problem(line("lookup"), &fields.key("lookup"), message);
        }
        _ => {}
    }
}

/// The alphabet of ids: such a name is a key of the registry and a label of metrics.
pub(super) fn label(text: &str) -> Result<String, String> {
    match MerchantId::new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!("{:?} must be 1-64 of A-Z a-z 0-9 _ -", shown(text))),
    }
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
