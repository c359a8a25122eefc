use std::collections::{BTreeMap, BTreeSet};

use expediter_types::{Merchant, Scope, Secret};
use serde_json::Value;

use super::adapter::looks_secret;
use super::reader::join;
use super::write::{MerchantOut, ScopeOut};

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

/// What differs, by key. A plain value of a header that looks like a secret is shown as `(hidden)`, and
/// so is the query of a URL, where systems of merchants take keys.
#[must_use]
pub fn diff(old: &Merchant, new: &Merchant) -> Vec<Change> {
    compare(
        &flat(MerchantOut::from(old)),
        &flat(MerchantOut::from(new)),
        |is_new, key, value| shown(if is_new { new } else { old }, key, value),
    )
}

/// What differs between two limits of one group or credential, by key.
#[must_use]
pub fn diff_scopes(old: &Scope, new: &Scope) -> Vec<Change> {
    let (old, new) = (flat(ScopeOut::from(old)), flat(ScopeOut::from(new)));
    compare(&old, &new, |_, _, value| value.to_owned())
}

fn compare(
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
    shown: impl Fn(bool, &str, &str) -> String,
) -> Vec<Change> {
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let changed = keys
        .into_iter()
        .filter(|key| before.get(*key) != after.get(*key));
    changed
        .map(|key| Change {
            from: before.get(key).map(|value| shown(false, key, value)),
            to: after.get(key).map(|value| shown(true, key, value)),
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
    let is_url = matches!(key, "adapter.url" | "adapter.lookup.url");
    match value.split_once('?') {
        _ if hidden => HIDDEN.to_owned(),
        Some((url, _)) if is_url => format!("{url}?{HIDDEN}"),
        _ => value.to_owned(),
    }
}

fn flat(out: impl serde::Serialize) -> BTreeMap<String, String> {
    let mut flat = BTreeMap::new();
    let value = serde_json::to_value(out).unwrap_or_default();
    flatten(String::new(), value, &mut flat);
    flat
}

fn flatten(path: String, value: Value, out: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                flatten(join(&path, &name), value, out);
            }
        }
        // Jobs go by their names, so that a new one is no change of those after it.
        Value::Array(list) if !list.is_empty() && list.iter().all(|one| name(one).is_some()) => {
            for value in list {
                let path = join(&path, name(&value).unwrap_or_default());
                flatten(path, value, out);
            }
        }
        Value::String(text) => drop(out.insert(path, text)),
        other => drop(out.insert(path, other.to_string())),
    }
}

fn name(value: &Value) -> Option<&str> {
    value.get("name")?.as_str()
}
