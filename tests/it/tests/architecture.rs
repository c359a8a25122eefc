//! The arrows between the crates, and what no crate may do: ARCHITECTURE.md says them, this
//! enforces them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Who may depend on whom, within the workspace. Test-only crates may use everything.
const ALLOWED: [(&str, &[&str]); 15] = [
    ("types", &[]),
    ("wire", &["types"]),
    ("core", &["types"]),
    ("ports", &["types", "core"]),
    ("runtime", &["types", "core", "ports"]),
    ("nats", &["types", "wire", "core", "ports"]),
    ("store", &["types", "core", "ports"]),
    ("http", &["types", "core", "ports"]),
    ("telemetry", &["types", "core", "ports"]),
    ("fleet", &["types"]),
    ("gateway", &[]),
    (
        "expediter",
        &[
            "types",
            "wire",
            "core",
            "ports",
            "runtime",
            "nats",
            "store",
            "http",
            "telemetry",
            "fleet",
            "gateway",
        ],
    ),
    ("harness", &["types", "wire", "nats", "fleet", "expediter"]),
    (
        "it",
        &[
            "types",
            "wire",
            "core",
            "nats",
            "fleet",
            "ports",
            "harness",
            "expediter",
        ],
    ),
    ("load", &["types", "wire", "nats", "fleet", "harness"]),
];

/// Each of these is named in one crate only (besides tests).
const ONLY_IN: [(&str, &[&str]); 7] = [
    ("actix", &["runtime"]),
    ("sled", &["store"]),
    ("reqwest", &["http", "telemetry", "expediter"]),
    ("actix-web", &["gateway"]),
    ("opentelemetry", &["telemetry"]),
    ("hyper", &["fleet", "http"]),
    ("cronexpr", &["wire"]),
];

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors()
        .nth(2)
        .expect("tests/it is two levels deep")
        .to_owned()
}

fn manifests() -> BTreeMap<String, (PathBuf, toml::Table)> {
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let workspace: toml::Table = workspace.parse().unwrap();
    let members = workspace["workspace"]["members"].as_array().unwrap();
    let read = |member: &toml::Value| {
        let dir = root().join(member.as_str().unwrap());
        let manifest = fs::read_to_string(dir.join("Cargo.toml")).unwrap();
        let manifest: toml::Table = manifest.parse().unwrap();
        let name = manifest["package"]["name"].as_str().unwrap();
        (
            name.trim_start_matches("expediter-").to_owned(),
            (dir, manifest),
        )
    };
    members.iter().map(read).collect()
}

fn dependencies(manifest: &toml::Table, table: &str) -> BTreeSet<String> {
    let table = manifest.get(table).and_then(toml::Value::as_table);
    table
        .into_iter()
        .flat_map(|table| table.keys().cloned())
        .collect()
}

#[test]
fn the_arrows_between_the_crates_hold() {
    let manifests = manifests();
    let known: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
    let found: BTreeSet<&str> = manifests.keys().map(String::as_str).collect();
    assert_eq!(
        found, known,
        "a crate came or went: say what it may depend on"
    );
    for (name, allowed) in ALLOWED {
        for dependency in dependencies(&manifests[name].1, "dependencies") {
            let Some(short) = dependency.strip_prefix("expediter-") else {
                continue;
            };
            assert!(
                allowed.contains(&short),
                "{name} must not depend on {short}"
            );
        }
    }
    for (vendor, crates) in ONLY_IN {
        for (name, (_, manifest)) in &manifests {
            let named = dependencies(manifest, "dependencies").contains(vendor);
            assert!(
                !named || crates.contains(&name.as_str()),
                "{name} must not name {vendor}"
            );
        }
    }
}

#[test]
fn every_crate_takes_the_lints_and_versions_of_the_workspace() {
    for (name, (_, manifest)) in manifests() {
        let lints = manifest
            .get("lints")
            .and_then(|lints| lints.get("workspace"));
        assert_eq!(
            lints,
            Some(&toml::Value::Boolean(true)),
            "{name}: [lints] workspace = true"
        );
        for table in ["dependencies", "dev-dependencies"] {
            let Some(table) = manifest.get(table).and_then(toml::Value::as_table) else {
                continue;
            };
            for (dependency, value) in table {
                let inherited = value.get("workspace") == Some(&toml::Value::Boolean(true));
                assert!(
                    inherited,
                    "{name}: the version of {dependency} belongs in the workspace"
                );
            }
        }
    }
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Clock, randomness, async and I/O stay out of what decides.
#[test]
fn the_core_is_pure() {
    let banned = [
        "std::time::Instant",
        "SystemTime",
        "tokio",
        "async fn",
        "std::fs",
        "std::env",
        "std::net",
        "std::thread",
        "rand::",
        "println!",
    ];
    for (name, (dir, _)) in manifests() {
        if !["types", "core"].contains(&name.as_str()) {
            continue;
        }
        let mut files = Vec::new();
        sources(&dir.join("src"), &mut files);
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            for word in banned {
                assert!(!text.contains(word), "{} names {word}", file.display());
            }
        }
    }
}

/// The environment belongs to the process, not to its parts.
#[test]
fn only_the_binary_reads_the_environment() {
    for (name, (dir, _)) in manifests() {
        if ["expediter", "harness", "it"].contains(&name.as_str()) {
            continue;
        }
        let mut files = Vec::new();
        sources(&dir.join("src"), &mut files);
        for file in files {
            let is_test = file
                .file_name()
                .is_some_and(|name| name.to_string_lossy().contains("test"));
            let text = fs::read_to_string(&file).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            let reads = code.contains("env::var(") || code.contains("env::vars(");
            assert!(
                is_test || !reads,
                "{} reads the environment",
                file.display()
            );
        }
    }
}
