//! The files under `schema/` say what the code does.

use std::collections::BTreeSet;

use expediter_types::*;
use serde_json::Value;

use crate::audit::AuditTarget;
use crate::golden_tests::vector;
use crate::notification::{Because, Happened};
use crate::{manifest, order, subjects};

fn file(name: &str) -> Value {
    let text = match name {
        "merchant.schema.json" => include_str!("../schema/merchant.schema.json"),
        "notification.schema.json" => include_str!("../schema/notification.schema.json"),
        "records.schema.json" => include_str!("../schema/records.schema.json"),
        "asyncapi.json" => include_str!("../schema/asyncapi.json"),
        other => panic!("no schema {other}"),
    };
    serde_json::from_str(text).unwrap()
}

fn names<'a>(names: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

fn keys(object: &Value) -> BTreeSet<String> {
    object.as_object().unwrap().keys().cloned().collect()
}

fn texts(list: &Value) -> BTreeSet<String> {
    names(
        list.as_array()
            .unwrap()
            .iter()
            .map(|text| text.as_str().unwrap()),
    )
}

/// Where the schema of a section of the manifest stands.
fn section(path: &str) -> &'static str {
    match path {
        "" => "/properties",
        "adapter" => "/properties/adapter/properties",
        "adapter.classify" => "/properties/adapter/properties/classify/items/properties",
        "adapter.lookup" => "/properties/adapter/properties/lookup/properties",
        "adapter.lookup.rules" => {
            "/properties/adapter/properties/lookup/properties/rules/items/properties"
        }
        "limits" => "/properties/limits/properties",
        "retry" => "/properties/retry/properties",
        "breaker" => "/properties/breaker/properties",
        "hours" => "/properties/hours/properties",
        "job" => "/properties/job/items/properties",
        other => panic!("section {other}"),
    }
}

#[test]
fn the_manifests_keys_are_those_of_the_reader() {
    let schema = file("merchant.schema.json");
    for (path, known) in manifest::known_keys() {
        let properties = schema.pointer(section(path)).unwrap();
        assert_eq!(keys(properties), names(known.iter().copied()), "{path}");
    }
    let scope = schema.pointer("/$defs/scope/properties").unwrap();
    assert_eq!(keys(scope), names(manifest::scope_keys().iter().copied()));
}

#[test]
fn the_manifests_defaults_are_those_of_the_types() {
    let schema = file("merchant.schema.json");
    let merchant = Merchant::to(MerchantId::new("a").unwrap(), "http://a/");
    let written: Value = serde_json::from_str(&manifest::to_json(&merchant)).unwrap();
    for (path, known) in manifest::known_keys() {
        // Without these there is nothing that could have defaults.
        let is_there = !path.starts_with("adapter.") && path != "hours" && path != "job";
        for key in known.iter().filter(|_| is_there) {
            let default = schema.pointer(&format!("{}/{key}/default", section(path)));
            let values = if path.is_empty() {
                Some(&written)
            } else {
                written.get(path)
            };
            let value = values.and_then(|v| v.get(key));
            match default {
                Some(Value::Array(none)) if none.is_empty() => assert_eq!(value, None, "{key}"),
                Some(default) => assert_eq!(Some(default), value, "{path}.{key}"),
                // The name is the id, and the sections have defaults of their own.
                None => assert!(
                    value.is_none()
                        || ["id", "name", "url", "adapter", "limits", "retry", "breaker"]
                            .contains(key),
                    "{path}.{key}"
                ),
            }
        }
    }
}

#[test]
fn enumerations_are_complete() {
    let records = file("records.schema.json");
    let enumeration = |pointer: &str| texts(records.pointer(pointer).unwrap());
    let classes = names(AttemptClass::ALL.iter().map(|class| class.as_str()));
    assert_eq!(enumeration("/$defs/attempt/properties/class/enum"), classes);
    let reasons = names(DeadReason::ALL.iter().map(|reason| reason.as_str()));
    assert_eq!(
        enumeration("/$defs/outcome/properties/reason/enum"),
        reasons
    );
    let outcomes = [
        OutcomeKind::Delivered,
        OutcomeKind::Rejected,
        OutcomeKind::Expired,
        OutcomeKind::DeadLettered(DeadReason::Invalid),
        OutcomeKind::Cancelled,
        OutcomeKind::Duplicate,
    ];
    let outcomes = names(outcomes.iter().map(|outcome| outcome.as_str()));
    assert_eq!(
        enumeration("/$defs/outcome/properties/outcome/enum"),
        outcomes
    );

    let closed = names(ClosedBecause::ALL.iter().map(|cause| cause.as_str()));
    let because = "/$defs/mark_content/properties/closed/items/properties/because/enum";
    assert_eq!(enumeration(because), closed);
    let priorities = names(Priority::ALL.iter().map(|class| class.as_str()));
    let api = file("asyncapi.json");
    let header = "/components/messages/order/headers/properties/Expediter-Priority/enum";
    assert_eq!(texts(api.pointer(header).unwrap()), priorities);

    let manifest = file("merchant.schema.json");
    let job = format!("{}/priority/enum", section("job"));
    assert_eq!(texts(manifest.pointer(&job).unwrap()), priorities);
    let rules = format!("{}/class/enum", section("adapter.classify"));
    let mut in_rules = classes;
    in_rules.remove("local");
    assert_eq!(texts(manifest.pointer(&rules).unwrap()), in_rules);
}

#[test]
fn what_notifications_say_is_enumerated() {
    let schema = file("notification.schema.json");
    let enumeration = |pointer: &str| texts(schema.pointer(pointer).unwrap());
    assert_eq!(
        enumeration("/properties/type/enum"),
        names(Happened::ALL.map(Happened::as_str))
    );
    assert_eq!(
        enumeration("/properties/data/properties/because/enum"),
        names(Because::ALL.map(Because::as_str))
    );
}

#[test]
fn subjects_and_headers_are_those_of_the_code() {
    let api = file("asyncapi.json");
    let (p, m) = (Partition(0), MerchantId::new("m").unwrap());
    let node = NodeName::new("n").unwrap();
    let expected = [
        subjects::publish(&m),
        subjects::orders(p, &m),
        subjects::outcomes(p),
        subjects::dead(p, &m),
        subjects::claim(p),
        subjects::mark(p),
        subjects::mark_part(p, 1),
        subjects::attempt(p, &m),
        subjects::shift(p),
        subjects::audit(&AuditTarget::alone("k", "i")),
        subjects::audit(&AuditTarget::of_merchant("k", "i", &m)),
        subjects::control_partition(p),
        subjects::control_node(&node),
    ];
    let addresses = api["channels"]
        .as_object()
        .unwrap()
        .values()
        .map(|channel| {
            let address = channel["address"].as_str().unwrap();
            let address = address.replace("{p}", "0").replace("{merchant}", "m");
            let address = address.replace("{node}", "n").replace("{n}", "1");
            address.replace("{kind}", "k").replace("{id}", "i")
        });
    assert_eq!(
        addresses.collect::<BTreeSet<_>>(),
        expected.into_iter().collect()
    );
    let headers = &api["components"]["messages"]["order"]["headers"]["properties"];
    assert_eq!(keys(headers), names(order::NAMES));
}

#[test]
fn every_reference_leads_somewhere() {
    for name in [
        "merchant.schema.json",
        "notification.schema.json",
        "records.schema.json",
        "asyncapi.json",
    ] {
        let mut found = 0;
        visit(&file(name), &mut |value| {
            if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
                resolve(name, reference);
                found += 1;
            }
        });
        assert!(found > 3, "{name}");
    }
}

fn visit(value: &Value, each: &mut impl FnMut(&Value)) {
    each(value);
    match value {
        Value::Object(map) => map.values().for_each(|value| visit(value, each)),
        Value::Array(list) => list.iter().for_each(|value| visit(value, each)),
        _ => {}
    }
}

fn resolve(from: &str, reference: &str) -> (String, Value) {
    let (name, pointer) = reference.split_once('#').unwrap_or((reference, ""));
    let name = if name.is_empty() { from } else { name };
    let target = file(name).pointer(pointer).cloned();
    (
        name.to_owned(),
        target.unwrap_or_else(|| panic!("{from}: {reference}")),
    )
}

#[test]
fn golden_vectors_are_as_described() {
    for (definition, bytes) in [
        ("outcome_group", vector!("outcomes.json")),
        ("dead_letter", vector!("dead.bin")),
        ("dead_letter", vector!("dead-binary-excerpt.bin")),
        ("claim", vector!("claim-held.json")),
        ("claim", vector!("claim-released.json")),
        ("mark", vector!("mark.json")),
        ("mark", vector!("mark-split.json")),
        ("mark_part", vector!("mark-split.1.bin")),
        ("attempt_mark", vector!("attempt.json")),
        ("shift", vector!("shift.json")),
        ("registration", vector!("registration.json")),
        ("registration", vector!("registration-flow.json")),
        ("scope_registration", vector!("scope.json")),
        ("node", vector!("node.json")),
        ("decision", vector!("decision.json")),
        ("job", vector!("job.json")),
        ("audit", vector!("audit.json")),
        ("control_request", vector!("control-request.json")),
        ("control_reply", vector!("control-reply.json")),
    ] {
        let line = bytes.split(|byte| *byte == b'\n').next().unwrap();
        let value: Value = serde_json::from_slice(line).unwrap();
        let (name, schema) = resolve("records.schema.json", &format!("#/$defs/{definition}"));
        check(&name, &schema, &value, definition);
    }
    for bytes in [
        vector!("notification-orders.json"),
        vector!("notification-merchant.json"),
    ] {
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        let name = "notification.schema.json";
        check(name, &file(name), &value, "notification");
    }
}

/// The part of JSON Schema that these files need, and: no key that is not described.
fn check(file: &str, schema: &Value, value: &Value, path: &str) {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let (file, schema) = resolve(file, reference);
        return check(&file, &schema, value, path);
    }
    if let Some(types) = schema.get("type") {
        let types = types
            .as_array()
            .cloned()
            .unwrap_or_else(|| vec![types.clone()]);
        let kind = match value {
            Value::Object(_) => "object",
            Value::Array(_) => "array",
            Value::String(_) => "string",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::Null => "null",
        };
        assert!(types.iter().any(|t| t == kind), "{path} is {kind}");
    }
    if let Some(choices) = schema.get("enum") {
        assert!(
            choices.as_array().unwrap().contains(value),
            "{path}: {value}"
        );
    }
    if let Some(constant) = schema.get("const") {
        assert_eq!(constant, value, "{path}");
    }
    if let (Some(items), Value::Array(list)) = (schema.get("items"), value) {
        list.iter()
            .for_each(|value| check(file, items, value, &format!("{path}[]")));
    }
    let Value::Object(object) = value else { return };
    let (mut properties, mut required) = (serde_json::Map::new(), BTreeSet::new());
    collect(file, schema, &mut properties, &mut required);
    for name in required {
        assert!(object.contains_key(&name), "{path}: {name} is missing");
    }
    for (name, value) in object {
        let any = schema
            .get("additionalProperties")
            .filter(|any| any.is_object());
        let property = properties.get(name).or(any);
        let property = property.unwrap_or_else(|| panic!("{path}.{name} is not described"));
        check(file, property, value, &format!("{path}.{name}"));
    }
}

fn collect(
    file: &str,
    schema: &Value,
    properties: &mut serde_json::Map<String, Value>,
    required: &mut BTreeSet<String>,
) {
    for part in schema
        .get("allOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let (file, part) = resolve(file, part["$ref"].as_str().unwrap());
        collect(&file, &part, properties, required);
    }
    if let Some(Value::Object(own)) = schema.get("properties") {
        properties.extend(own.clone());
    }
    required.extend(schema.get("required").map(texts).unwrap_or_default());
}
