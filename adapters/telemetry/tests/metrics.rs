//! The rendered page against a reader of its format, and against Prometheus' conventions.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use expediter_telemetry::Metrics;
use expediter_telemetry::metrics::{Alarm, CATALOGUE, Kind, page};
use expediter_types::{AttemptClass, DeadReason, OutcomeKind};

#[derive(Debug, PartialEq)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// What one metric's block holds.
#[derive(Debug)]
struct Block {
    name: String,
    help: String,
    kind: String,
    samples: Vec<Sample>,
}

/// Reads Prometheus' text format 0.0.4; any line that it does not know fails the test.
fn read(text: &str) -> Vec<Block> {
    assert!(text.ends_with('\n'), "the last line must end");
    let mut blocks: Vec<Block> = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("help");
            let (name, help) = (name.to_owned(), help.to_owned());
            blocks.push(Block {
                name,
                help,
                kind: String::new(),
                samples: Vec::new(),
            });
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("type");
            let block = blocks.last_mut().expect("HELP before TYPE");
            assert_eq!(block.name, name);
            assert!(block.kind.is_empty(), "one TYPE");
            block.kind = kind.to_owned();
        } else {
            let sample = read_sample(line);
            let block = blocks.last_mut().expect("TYPE before samples");
            assert!(!block.kind.is_empty());
            let suffix = sample
                .name
                .strip_prefix(&block.name)
                .expect("samples of this metric");
            let allowed: &[&str] = if block.kind == "histogram" {
                &["_bucket", "_sum", "_count"]
            } else {
                &[""]
            };
            assert!(allowed.contains(&suffix), "{line}");
            block.samples.push(sample);
        }
    }
    blocks
}

fn read_sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').expect("a value");
    let value = value.parse().expect("a number");
    let Some((name, labels)) = series.split_once('{') else {
        return Sample {
            name: series.to_owned(),
            labels: BTreeMap::new(),
            value,
        };
    };
    let labels = labels.strip_suffix('}').expect("closing brace");
    let labels = labels
        .split(',')
        .map(|label| {
            let (key, value) = label.split_once("=\"").expect("a label");
            let value = value.strip_suffix('"').expect("closing quote");
            assert!(!value.contains(['"', '\\']), "{label}");
            (key.to_owned(), value.to_owned())
        })
        .collect();
    Sample {
        name: name.to_owned(),
        labels,
        value,
    }
}

fn value(blocks: &[Block], name: &str, label: Option<(&str, &str)>) -> f64 {
    let wanted: BTreeMap<_, _> = label
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
    let samples = blocks.iter().flat_map(|block| &block.samples);
    let mut found = samples.filter(|sample| sample.name == name && sample.labels == wanted);
    let sample = found.next().unwrap_or_else(|| panic!("{name} {label:?}"));
    assert!(found.next().is_none(), "{name} twice");
    sample.value
}

#[test]
fn every_metric_of_the_catalogue_is_rendered_with_all_its_series() {
    let blocks = read(&Metrics::new("1.2.3").render());
    assert_eq!(blocks.len(), CATALOGUE.len());
    for (block, metric) in blocks.iter().zip(CATALOGUE) {
        assert_eq!(block.name, metric.name);
        assert_eq!(block.kind, metric.kind.as_str());
        assert_eq!(block.help, metric.help);
        let expected = match (metric.kind, metric.label.and_then(|label| label.values)) {
            (Kind::Histogram, None) => 29,
            (Kind::Histogram, Some(_)) => panic!("say how many"),
            (_, Some(values)) => values().len(),
            (_, None) => 1,
        };
        assert_eq!(block.samples.len(), expected, "{}", metric.name);
    }
}

/// What `promtool check metrics` asks for.
#[test]
fn names_units_and_help_follow_the_conventions() {
    let mut seen = HashSet::new();
    for metric in CATALOGUE {
        let name = metric.name;
        assert!(seen.insert(name), "{name} twice");
        assert!(name.starts_with("expediter_"), "{name}");
        assert!(
            name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
            "{name}"
        );
        assert!(!name.contains("__") && !name.ends_with('_'), "{name}");
        assert_eq!(
            name.ends_with("_total"),
            metric.kind == Kind::Counter,
            "{name}"
        );
        for reserved in ["_count", "_sum", "_bucket", "_created"] {
            assert!(!name.ends_with(reserved), "{name}");
        }
        for kind in ["counter", "gauge", "histogram", "summary"] {
            assert!(
                !name.split('_').any(|word| word == kind),
                "{name} names its kind"
            );
        }
        for word in ["milliseconds", "ms", "minutes", "kilobytes", "percent"] {
            assert!(
                !name.split('_').any(|part| part == word),
                "{name} has no base unit"
            );
        }
        for unit in ["seconds", "bytes"] {
            let named = name
                .trim_end_matches("_total")
                .ends_with(&format!("_{unit}"));
            assert_eq!(named, metric.unit == unit, "{name}");
        }
        let help = metric.help;
        assert!(help.len() > 10 && help.ends_with('.') && !help.contains(['\\', '\n', '|']));
        if let Some(label) = metric.label {
            assert!(
                label.name.bytes().all(|b| b.is_ascii_lowercase()),
                "{}",
                label.name
            );
            assert!(!["le", "quantile", "job", "instance"].contains(&label.name));
            assert!(label.name != "merchant", "as many series as merchants");
            let values = label.values.map(|values| values()).unwrap_or_default();
            assert_eq!(
                values.iter().collect::<HashSet<_>>().len(),
                values.len(),
                "{name}"
            );
        }
    }
}

#[test]
fn what_was_counted_is_what_is_told() {
    let metrics = Metrics::new("1.2.3");
    metrics.orders_taken.add(5);
    metrics.attempts.of(AttemptClass::RateLimited).inc();
    metrics
        .orders_finished
        .of(OutcomeKind::DeadLettered(DeadReason::Invalid))
        .add(2);
    metrics.orders_dead_lettered.of(DeadReason::Invalid).add(2);
    metrics.orders_unaccounted.set(-1);
    metrics.alarms.of(Alarm::OrdersUnaccounted).set(1);
    metrics.mark_age.set(Duration::from_millis(1500));
    let blocks = read(&metrics.render());
    assert_eq!(value(&blocks, "expediter_orders_taken_total", None), 5.0);
    let class = |class| value(&blocks, "expediter_attempts_total", Some(("class", class)));
    assert_eq!((class("rate_limited"), class("delivered")), (1.0, 0.0));
    let dead = Some(("outcome", "dead_lettered"));
    assert_eq!(value(&blocks, "expediter_orders_finished_total", dead), 2.0);
    assert_eq!(value(&blocks, "expediter_orders_unaccounted", None), -1.0);
    let kind = Some(("kind", "orders_unaccounted"));
    assert_eq!(value(&blocks, "expediter_alarms", kind), 1.0);
    assert_eq!(value(&blocks, "expediter_mark_age_seconds", None), 1.5);
    assert_eq!(
        value(&blocks, "expediter_build_info", Some(("version", "1.2.3"))),
        1.0
    );
}

#[test]
fn a_histogram_is_cumulative_and_complete() {
    let metrics = Metrics::new("");
    for millis in [0, 1, 1, 50, 10_000_000] {
        metrics
            .attempt_duration
            .observe(Duration::from_millis(millis));
    }
    let blocks = read(&metrics.render());
    let name = "expediter_attempt_duration_seconds";
    let block = blocks.iter().find(|block| block.name == name).unwrap();
    let buckets: Vec<_> = block
        .samples
        .iter()
        .filter(|sample| sample.name.ends_with("_bucket"))
        .collect();
    let bounds: Vec<f64> = buckets
        .iter()
        .map(|b| b.labels["le"].parse().unwrap())
        .collect();
    assert!(bounds.is_sorted() && bounds[0] == 0.0001 && *bounds.last().unwrap() == f64::INFINITY);
    assert!(buckets.iter().map(|bucket| bucket.value).is_sorted());
    let at = |bound: f64| buckets[bounds.iter().position(|&b| b == bound).unwrap()].value;
    assert_eq!(
        (at(0.0001), at(0.0016), at(0.0512), at(3355.4432)),
        (1.0, 3.0, 4.0, 4.0)
    );
    assert_eq!(at(f64::INFINITY), 5.0);
    assert_eq!(value(&blocks, &format!("{name}_count"), None), 5.0);
    assert_eq!(value(&blocks, &format!("{name}_sum"), None), 10_000.052);
}

#[test]
fn the_reference_page_is_up_to_date() {
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/../../ops/docs/metrics.md");
    let kept = std::fs::read_to_string(kept).unwrap_or_default();
    assert!(
        kept == page(),
        "run: cargo run -p expediter-telemetry --example metrics_page > ops/docs/metrics.md"
    );
}
