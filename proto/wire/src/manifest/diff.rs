use std::collections::BTreeMap;

use expediter_types::{Merchant, Secret};
use serde_json::Value;

use super::adapter::looks_secret;
use super::write::MerchantOut;

/// One key that differs between two manifests of a merchant.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    /// Such as `limits.rate`.
    pub key: String,
    /// `None`: was not there.
    pub from: Option<String>,
    /// `None`: is no longer there.
    pub to: Option<String>,
}

/// Stands for a plain value that looks like a secret.
const HIDDEN: &str = "(hidden)";

/// What differs, by key. A plain value of a header that looks like a secret is shown as `(hidden)`.
#[must_use]
pub fn diff(old: &Merchant, new: &Merchant) -> Vec<Change> {
    let (before, after) = (flat(old), flat(new));
    let keys: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let changed = keys
        .into_iter()
        .filter(|key| before.get(*key) != after.get(*key));
    changed
        .map(|key| Change {
            from: before.get(key).map(|value| shown(old, key, value)),
            to: after.get(key).map(|value| shown(new, key, value)),
            key: key.clone(),
        })
        .collect()
}

fn shown(merchant: &Merchant, key: &str, value: &str) -> String {
    let hidden = key.strip_prefix("adapter.headers.").is_some_and(|name| {
        let found = merchant
            .adapter
            .headers
            .iter()
            .find(|(header, _)| header == name);
        looks_secret(name) && matches!(found, Some((_, Secret::Plain(_))))
    });
    if hidden {
        HIDDEN.to_owned()
    } else {
        value.to_owned()
    }
}

fn flat(merchant: &Merchant) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let value = serde_json::to_value(MerchantOut::from(merchant)).unwrap_or_default();
    flatten(String::new(), value, &mut out);
    out
}

fn flatten(path: String, value: Value, out: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                flatten(super::reader::join(&path, &name), value, out);
            }
        }
        Value::String(text) => drop(out.insert(path, text)),
        other => drop(out.insert(path, other.to_string())),
    }
}
