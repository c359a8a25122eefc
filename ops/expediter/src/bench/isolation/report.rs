//! What is printed.

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value, json};

use super::args::IsolationArgs;
use super::phase::Measured;
use crate::cli::Error;

/// A calm and a troubled phase.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) calm_first: bool,
    pub(super) calm: Measured,
    pub(super) troubled: Measured,
}

/// All pairs of one call.
#[derive(Debug)]
pub(crate) struct Report {
    args: IsolationArgs,
    pairs: Vec<Pair>,
    remarks: Vec<String>,
}

struct Figure {
    key: &'static str,
    decimals: usize,
    /// How several pairs become one figure.
    over: Over,
    of: fn(&Pair) -> f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    Median,
    Worst,
    /// The worst; anything but 0 means that the platform, or the run, did not do what it should.
    Fault,
}

macro_rules! figures {
    ($($over:ident $key:literal $decimals:literal: $of:expr;)*) => {
        &[$(Figure { key: $key, decimals: $decimals, over: Over::$over, of: $of },)*]
    };
}

/// In the order of the report.
const FIGURES: &[Figure] = figures! {
    Median "p99_ratio" 3: |pair| pair.troubled.latency.p99_ms / pair.calm.latency.p99_ms;
    Median "throughput_ratio" 3: |pair| pair.troubled.healthy_per_s / pair.calm.healthy_per_s;
    Median "healthy_p99_ms" 2: |pair| pair.troubled.latency.p99_ms;
    Median "healthy_p50_ms" 2: |pair| pair.troubled.latency.p50_ms;
    Median "calm_p99_ms" 2: |pair| pair.calm.latency.p99_ms;
    Median "calm_p50_ms" 2: |pair| pair.calm.latency.p50_ms;
    Median "healthy_per_s" 1: |pair| pair.troubled.healthy_per_s;
    Median "backlog" 0: |pair| pair.troubled.backlog as f64;
    Worst "peak_rss_mib" 1: |pair| pair.troubled.peak_rss_mib;
    Median "node_cpu_percent" 1: |pair| node_cpu_percent(&pair.troubled);
    Median "calm_cpu_percent" 1: |pair| node_cpu_percent(&pair.calm);
    Worst "other_load_percent" 1: |pair| other_load(&pair.calm).max(other_load(&pair.troubled));
    Fault "publish_errors" 0: |pair| sum(pair, |phase| phase.publish_errors);
    Fault "lost" 0: |pair| sum(pair, Measured::lost);
    Fault "unfinished" 0: |pair| sum(pair, |phase| phase.books.unfinished);
    Fault "not_delivered" 0: |pair| sum(pair, |phase| phase.books.not_delivered);
};

fn node_cpu_percent(phase: &Measured) -> f64 {
    100.0 * phase.cpu.node.as_secs_f64() / phase.elapsed.as_secs_f64()
}

fn other_load(phase: &Measured) -> f64 {
    phase.cpu.others_percent().unwrap_or(0.0)
}

fn sum(pair: &Pair, of: impl Fn(&Measured) -> u64) -> f64 {
    (of(&pair.calm) + of(&pair.troubled)) as f64
}

impl Figure {
    fn sorted(&self, pairs: &[Pair]) -> Vec<f64> {
        let mut values: Vec<f64> = pairs.iter().map(self.of).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    /// Of at least one pair.
    fn over(&self, pairs: &[Pair]) -> f64 {
        let values = self.sorted(pairs);
        let middle = values.len() / 2;
        match self.over {
            Over::Worst | Over::Fault => values[values.len() - 1],
            Over::Median if values.len() % 2 == 1 => values[middle],
            Over::Median => f64::midpoint(values[middle - 1], values[middle]),
        }
    }

    fn shown(&self, value: f64) -> String {
        format!("{value:.*}", self.decimals)
    }

    /// Whole numbers without a point, as counts are.
    fn json(&self, value: f64) -> Value {
        let scale = 10_f64.powi(i32::try_from(self.decimals).unwrap_or(0));
        match self.decimals {
            0 => json!(value as u64),
            _ => json!((value * scale).round() / scale),
        }
    }
}

impl Report {
    /// At least one pair.
    pub(super) fn new(args: IsolationArgs, pairs: Vec<Pair>, remarks: Vec<String>) -> Self {
        Self {
            args,
            pairs,
            remarks,
        }
    }

    /// One object in one line: settings, figures, then those of each pair.
    pub(crate) fn json(&self) -> Result<String, Error> {
        let args = &self.args;
        let set = args.stage.set.iter();
        let mut map = Map::new();
        for (key, value) in [
            ("bench", json!("isolation")),
            ("version", json!(env!("CARGO_PKG_VERSION"))),
            ("release_build", json!(!cfg!(debug_assertions))),
            (
                "nats_server",
                json!(self.pairs.first().map(|p| p.calm.nats_server.to_string())),
            ),
            ("mix", json!(args.mix.as_str())),
            ("seconds", json!(args.seconds)),
            ("merchants", json!(args.merchants)),
            ("rate", json!(args.rate)),
            ("latency_ms", json!(args.latency.as_millis() as u64)),
            ("timeout_ms", json!(args.timeout.as_millis() as u64)),
            ("concurrency", json!(args.concurrency)),
            ("in_flight", json!(args.stage.in_flight)),
            ("mailbox", json!(args.stage.mailbox)),
            ("body_bytes", json!(args.stage.body_bytes)),
            ("sync_always", json!(args.stage.sync_always)),
            ("seed", json!(args.stage.seed)),
            (
                "set",
                json!(set.map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>()),
            ),
            ("remarks", json!(self.remarks)),
        ] {
            map.insert(key.to_owned(), value);
        }
        for figure in FIGURES {
            let value = figure.json(figure.over(&self.pairs));
            map.insert(figure.key.to_owned(), value);
        }
        let pairs = self.pairs.iter().map(|pair| {
            let mut map = Map::new();
            let first = if pair.calm_first { "calm" } else { "troubled" };
            map.insert("first".to_owned(), json!(first));
            for figure in FIGURES {
                map.insert(figure.key.to_owned(), figure.json((figure.of)(pair)));
            }
            Value::Object(map)
        });
        map.insert("pairs".to_owned(), pairs.collect());
        Ok(serde_json::to_string(&map).map_err(anyhow::Error::from)?)
    }

    /// A table and the verdict.
    pub(crate) fn text(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        let several = self.pairs.len() > 1;
        if several {
            table.set_header(["", "of all", "min", "max"]);
        }
        for figure in FIGURES {
            let sorted = figure.sorted(&self.pairs);
            let mut row = vec![
                figure.key.to_owned(),
                figure.shown(figure.over(&self.pairs)),
            ];
            if let ([least, .., most], true) = (&sorted[..], several) {
                row.extend([figure.shown(*least), figure.shown(*most)]);
            }
            table.add_row(row);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let lines = table.lines().map(|line| line.trim_end().to_owned());
        let table = lines.collect::<Vec<_>>().join("\n");
        let what = format!(
            "{}, {} pair{} of {} s",
            self.args.mix.as_str(),
            self.pairs.len(),
            if several { "s" } else { "" },
            self.args.seconds
        );
        let verdict = match self.faults() {
            Some(faults) => format!("not as it should be: {what}: {faults}"),
            None => format!("nothing was lost: {what}"),
        };
        format!("{table}\n\n{verdict}")
    }

    /// What went wrong; `None` when nothing did.
    pub(crate) fn faults(&self) -> Option<String> {
        let faults = FIGURES
            .iter()
            .filter(|figure| figure.over == Over::Fault)
            .map(|figure| (figure.key, figure.over(&self.pairs)))
            .filter(|(_, worst)| *worst > 0.0)
            .map(|(key, worst)| format!("{key} {worst}"));
        let faults: Vec<String> = faults.collect();
        (!faults.is_empty()).then(|| faults.join(", "))
    }
}
