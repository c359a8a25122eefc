//! The alert rules against the catalogue of metrics, and against the pages for those whom they
//! wake.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use expediter_telemetry::metrics::{CATALOGUE, Kind};
use promql_parser::label::{MatchOp, Matcher};
use promql_parser::parser::{self, Expr, LabelModifier, VectorSelector, token};
use yaml_rust2::{Yaml, YamlLoader};

const RULES: &str = "ops/alerts/expediter.rules.yml";
const RUNBOOKS: &str = "ops/docs/runbooks";
const SEVERITIES: [&str; 2] = ["page", "ticket"];
/// Each page answers these, in this order.
const QUESTIONS: [&str; 4] = [
    "## What it means",
    "## How to look",
    "## What to do",
    "## What not to do",
];
/// What Prometheus adds to each series.
const ADDED: [&str; 2] = ["instance", "job"];
/// Functions that are wrong for anything but a counter.
const OF_COUNTERS: [&str; 5] = ["rate", "irate", "increase", "resets", NEW];
/// Stands for the operator that tells whether a series was there before.
const NEW: &str = "unless";

fn path(of: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(of)
}

fn read(of: &str) -> String {
    fs::read_to_string(path(of)).unwrap_or_else(|error| panic!("{of}: {error}"))
}

/// What is wrong with one rules file; `page` gives a runbook's text.
fn lint(text: &str, page: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let documents = match YamlLoader::load_from_str(text) {
        Ok(documents) => documents,
        Err(error) => return vec![format!("no YAML: {error}")],
    };
    let mut lint = Lint::default();
    let [document] = documents.as_slice() else {
        return vec!["not one document".to_owned()];
    };
    lint.keys("the file", document, &["groups"]);
    for group in list(&document["groups"]) {
        let name = group["name"].as_str().unwrap_or_default();
        lint.keys(name, group, &["name", "rules"]);
        lint.unique(name);
        for rule in list(&group["rules"]) {
            lint.rule(rule, &page);
        }
    }
    if lint.names.is_empty() {
        lint.problem("the file", "has no rules");
    }
    lint.problems
}

fn list(yaml: &Yaml) -> &[Yaml] {
    yaml.as_vec().map_or(&[], Vec::as_slice)
}

#[derive(Default)]
struct Lint {
    names: BTreeSet<String>,
    problems: Vec<String>,
}

impl Lint {
    fn problem(&mut self, place: &str, what: impl AsRef<str>) {
        self.problems.push(format!("{place}: {}", what.as_ref()));
    }

    /// A misspelt key is ignored by nobody.
    fn keys(&mut self, place: &str, yaml: &Yaml, known: &[&str]) {
        let Some(table) = yaml.as_hash() else {
            return self.problem(place, "is no mapping");
        };
        for key in table.keys() {
            let key = key.as_str().unwrap_or_default();
            if !known.contains(&key) {
                self.problem(place, format!("unknown key {key:?}"));
            }
        }
    }

    fn unique(&mut self, name: &str) {
        if name.is_empty() || !self.names.insert(name.to_owned()) {
            self.problem(name, "no name, or one that is taken");
        }
    }

    fn rule(&mut self, rule: &Yaml, page: &impl Fn(&str) -> Option<String>) {
        let name = rule["alert"].as_str().unwrap_or_default();
        self.keys(
            name,
            rule,
            &["alert", "expr", "for", "labels", "annotations"],
        );
        self.unique(name);
        if !name.starts_with("Expediter") {
            self.problem(name, "does not begin with Expediter");
        }
        if let Some(wait) = rule["for"].as_str() {
            let (number, unit) = wait.split_at(wait.len() - 1);
            if number.parse::<u32>().is_err() || !["s", "m", "h"].contains(&unit) {
                self.problem(name, format!("for: {wait:?} is no duration"));
            }
        }
        let labels = &rule["labels"];
        self.keys(name, labels, &["severity"]);
        let severity = labels["severity"].as_str().unwrap_or_default();
        if !SEVERITIES.contains(&severity) {
            self.problem(name, format!("severity {severity:?}"));
        }
        let annotations = &rule["annotations"];
        self.keys(name, annotations, &["summary", "runbook_url"]);
        let summary = annotations["summary"].as_str().unwrap_or_default();
        if summary.len() < 20 || !summary.ends_with('.') {
            self.problem(name, "summary is no sentence");
        }
        if summary.matches("{{").count() != summary.matches("}}").count() {
            self.problem(name, "summary has a broken template");
        }
        self.expr(name, rule["expr"].as_str().unwrap_or_default(), summary);
        self.page(name, &annotations["runbook_url"], page);
    }

    fn expr(&mut self, name: &str, text: &str, summary: &str) {
        let expr = match parser::parse(text) {
            Ok(expr) => expr,
            Err(error) => return self.problem(name, format!("expr: {error}")),
        };
        let mut found = Vec::new();
        selectors(&expr, None, &mut found);
        if found.is_empty() {
            self.problem(name, "expr names no metric");
        }
        for used in summary.split("$labels.").skip(1) {
            let label: String = used.chars().take_while(char::is_ascii_lowercase).collect();
            if !keeps(&expr, &label) {
                self.problem(
                    name,
                    format!("summary: expr does not keep the label {label}"),
                );
            }
        }
        for (selector, function) in found {
            if let Err(what) = selects(selector, function) {
                self.problem(name, format!("expr: {what}"));
            }
        }
    }

    fn page(&mut self, name: &str, url: &Yaml, page: &impl Fn(&str) -> Option<String>) {
        let url = url.as_str().unwrap_or_default();
        let file = url
            .strip_prefix(RUNBOOKS)
            .and_then(|rest| rest.strip_prefix('/'));
        let Some(file) = file else {
            return self.problem(name, format!("runbook_url {url:?} is not below {RUNBOOKS}"));
        };
        let Some(text) = page(file) else {
            return self.problem(name, format!("there is no page {url}"));
        };
        if !text.contains(&format!("`{name}`")) {
            self.problem(name, format!("{url} does not name the alert"));
        }
        let mut rest = text.as_str();
        for question in QUESTIONS {
            match rest.split_once(&format!("\n{question}\n")) {
                Some((_, after)) => rest = after,
                None => self.problem(name, format!("{url} has no {question:?} in its place")),
            }
        }
    }
}

/// Whether a label of the series is still there in the result.
fn keeps(expr: &Expr, label: &str) -> bool {
    match expr {
        Expr::Aggregate(aggregate) => match &aggregate.modifier {
            Some(LabelModifier::Include(labels)) => labels.labels.iter().any(|kept| kept == label),
            Some(LabelModifier::Exclude(labels)) => labels.labels.iter().all(|gone| gone != label),
            None => false,
        },
        Expr::Binary(binary) => keeps(&binary.lhs, label) || keeps(&binary.rhs, label),
        Expr::Unary(unary) => keeps(&unary.expr, label),
        Expr::Paren(paren) => keeps(&paren.expr, label),
        Expr::Call(call) => {
            call.func.name != "absent" && call.args.args.iter().any(|e| keeps(e, label))
        }
        Expr::VectorSelector(_) | Expr::MatrixSelector(_) | Expr::Subquery(_) => true,
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) | Expr::Extension(_) => false,
    }
}

/// Every selector of an expression, with the innermost function that is called on it.
fn selectors<'e>(
    expr: &'e Expr,
    function: Option<&'static str>,
    found: &mut Vec<(&'e VectorSelector, Option<&'static str>)>,
) {
    match expr {
        Expr::VectorSelector(selector) => found.push((selector, function)),
        Expr::MatrixSelector(matrix) => found.push((&matrix.vs, function)),
        Expr::Call(call) => {
            for argument in &call.args.args {
                selectors(argument, Some(call.func.name), found);
            }
        }
        Expr::Aggregate(aggregate) => selectors(&aggregate.expr, function, found),
        Expr::Unary(unary) => selectors(&unary.expr, function, found),
        Expr::Paren(paren) => selectors(&paren.expr, function, found),
        Expr::Subquery(subquery) => selectors(&subquery.expr, function, found),
        Expr::Binary(binary) => {
            let new = binary.op.id() == token::T_LUNLESS;
            let function = if new { Some(NEW) } else { function };
            selectors(&binary.lhs, function, found);
            selectors(&binary.rhs, function, found);
        }
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) => {}
        Expr::Extension(_) => unreachable!("the parser makes none"),
    }
}

/// Whether the catalogue has what is selected.
fn selects(selector: &VectorSelector, function: Option<&str>) -> Result<(), String> {
    let name = selector.name.as_deref().ok_or("a selector has no name")?;
    if !name.starts_with("expediter_") {
        return Err(format!("{name} is not ours"));
    }
    let suffixes = ["_bucket", "_sum", "_count"];
    let (base, suffix) = suffixes
        .iter()
        .find_map(|suffix| Some((name.strip_suffix(suffix)?, *suffix)))
        .unwrap_or((name, ""));
    let metric = CATALOGUE
        .iter()
        .find(|metric| match metric.kind {
            Kind::Histogram => metric.name == base && !suffix.is_empty(),
            Kind::Counter | Kind::Gauge => metric.name == name,
        })
        .ok_or_else(|| format!("the catalogue has no series {name}"))?;
    let rises = metric.kind != Kind::Gauge;
    if function.is_some_and(|function| OF_COUNTERS.contains(&function)) != rises
        && function != Some("absent")
    {
        return Err(format!(
            "{function:?} of {name}, a {}",
            metric.kind.as_str()
        ));
    }
    if !selector.matchers.or_matchers.is_empty() {
        return Err(format!("{name}: `or` between matchers"));
    }
    for matcher in &selector.matchers.matchers {
        if ADDED.contains(&matcher.name.as_str()) || (suffix == "_bucket" && matcher.name == "le") {
            continue;
        }
        let label = metric.label.filter(|label| label.name == matcher.name);
        let Some(label) = label else {
            return Err(format!("{name} has no label {}", matcher.name));
        };
        let values = label.values.map(|values| values()).unwrap_or_default();
        for value in told(matcher) {
            if !values.contains(&value) {
                return Err(format!(
                    "{}=\"{value}\" is no value of {name}",
                    matcher.name
                ));
            }
        }
    }
    Ok(())
}

/// The values that a matcher names; those of a regex are alternatives without wildcards.
fn told(matcher: &Matcher) -> Vec<&str> {
    match matcher.op {
        MatchOp::Equal | MatchOp::NotEqual => vec![&matcher.value],
        MatchOp::Re(_) | MatchOp::NotRe(_) => matcher.value.split('|').collect(),
    }
}

fn page_of_repository(file: &str) -> Option<String> {
    fs::read_to_string(path(RUNBOOKS).join(file)).ok()
}

#[test]
fn the_rules_are_sound() {
    let problems = lint(&read(RULES), page_of_repository);
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn every_page_belongs_to_an_alert() {
    let rules = read(RULES);
    for entry in fs::read_dir(path(RUNBOOKS)).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            rules.contains(&format!("runbook_url: {RUNBOOKS}/{name}\n")),
            "no alert leads to {name}"
        );
        let page = page_of_repository(&name).unwrap();
        let named = page.lines().find(|line| line.starts_with("Alerts: "));
        for alert in named.unwrap_or_default().split('`').skip(1).step_by(2) {
            assert!(
                rules.contains(&format!("- alert: {alert}\n")),
                "{name} names {alert}, which is no alert"
            );
        }
        let words = page.split(|c: char| !c.is_ascii_lowercase() && c != '_');
        for word in words.filter(|word| word.starts_with("expediter_")) {
            let known = CATALOGUE.iter().any(|metric| metric.name == word);
            assert!(known, "{name} names {word}, which is no metric");
        }
        // Links between pages.
        for link in page.split("](").skip(1) {
            let target = link.split(')').next().unwrap_or_default();
            assert!(page_of_repository(target).is_some(), "{name}: {target}");
        }
    }
}

/// A check that cannot fail is none: each of these mistakes is found.
#[test]
fn planted_mistakes_are_found() {
    let good = read(RULES);
    let plants = [
        // A metric that is not there, alone and beside one that is.
        (
            "expediter_orders_unaccounted != 0",
            "expediter_orders_unacounted != 0",
            "no series",
        ),
        (
            "max(expediter_partitions)",
            "max(expediter_partitions_total)",
            "no series",
        ),
        ("expediter_mark_age_seconds)", "node_load1)", "is not ours"),
        // Wrong for the kind.
        (
            "max by (instance) (expediter_mark_age_seconds)",
            "max by (instance) (rate(expediter_mark_age_seconds[5m]))",
            "a gauge",
        ),
        (
            "increase(expediter_invariant_violations_total[15m])",
            "expediter_invariant_violations_total",
            "a counter",
        ),
        (
            "max by (instance) (expediter_mark_age_seconds)",
            "max by (instance) (rate(expediter_outcome_publish_seconds[5m]))",
            "no series",
        ),
        // Labels.
        (
            "{because=\"suspended\"}",
            "{because=\"suspendet\"}",
            "no value",
        ),
        (
            "{because=\"suspended\"}",
            "{cause=\"suspended\"}",
            "no label",
        ),
        (
            "{kind=~\"log_lost|outcomes_lost\"}",
            "{kind=~\"log_lost|oops\"}",
            "no value",
        ),
        // Syntax, and what people read.
        (
            "max by (instance) (expediter_mark_age",
            "max(expediter_mark_age",
            "does not keep",
        ),
        (
            "expediter_node_ready == 0",
            "expediter_node_ready = 0",
            "expr:",
        ),
        ("        for: 30s\n", "        for: soon\n", "no duration"),
        ("severity: page", "severity: urgent", "severity"),
        (
            "          summary: OUTCOMES is",
            "          sumary: OUTCOMES is",
            "unknown key",
        ),
        (
            "runbooks/local-fault.md",
            "runbooks/local-faults.md",
            "no page",
        ),
        (
            "runbooks/local-fault.md",
            "runbooks/mark-old.md",
            "does not name",
        ),
        ("ExpediterLocalFault", "ExpediterMarkOld", "taken"),
    ];
    for (from, to, expected) in plants {
        assert!(good.contains(from), "the rules have no {from}");
        let problems = lint(&good.replace(from, to), page_of_repository);
        assert!(
            problems.iter().any(|problem| problem.contains(expected)),
            "{to}: {problems:#?}"
        );
    }
    let shortened = lint(&good, |file| {
        page_of_repository(file).map(|page| page.replace("## What not to do", "## Never"))
    });
    assert!(!shortened.is_empty());
}
