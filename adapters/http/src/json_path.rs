use serde_json::Value;

/// The value at `$.a.b[0]`; `None` when there is none or the path is not of that form.
pub(crate) fn lookup<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    let mut rest = path.strip_prefix('$')?;
    let mut at = value;
    while !rest.is_empty() {
        if let Some(name) = rest.strip_prefix('.') {
            let end = name.find(['.', '[']).unwrap_or(name.len());
            let (name, tail) = name.split_at(end);
            at = at.as_object()?.get(name)?;
            rest = tail;
        } else {
            let (index, tail) = rest.strip_prefix('[')?.split_once(']')?;
            if !index.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            at = at.as_array()?.get(index.parse::<usize>().ok()?)?;
            rest = tail;
        }
    }
    Some(at)
}

/// Strings compare by their content, the other scalars by their JSON text; arrays and objects
/// equal no text.
pub(crate) fn equals(value: &Value, text: &str) -> bool {
    match value {
        Value::String(string) => string == text,
        Value::Number(_) | Value::Bool(_) | Value::Null => {
            let json = value.to_string();
            json == text
        }
        Value::Array(_) | Value::Object(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_find_values() {
        let value = serde_json::json!({"a": {"b": [1, {"c": "x"}], "d e": true}, "n": null});
        for (path, text) in [
            ("$.a.b[0]", "1"),
            ("$.a.b[1].c", "x"),
            ("$.a.d e", "true"),
            ("$.n", "null"),
        ] {
            assert!(
                lookup(&value, path).is_some_and(|found| equals(found, text)),
                "{path}"
            );
        }
        for absent in [
            "",
            "a",
            "$.x",
            "$.a.b[2]",
            "$.a.b[-1]",
            "$.a.b[+1]",
            "$[0]",
            "$.a.b[0",
            "$a",
            "$.a..b",
        ] {
            assert_eq!(lookup(&value, absent), None, "{absent}");
        }
        assert_eq!(lookup(&value, "$"), Some(&value));
        assert!(!equals(&value, "{}"));
    }
}
