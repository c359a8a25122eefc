//! What is printed.

use comfy_table::{CellAlignment, Table, presets};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::args::ForwardArgs;
use super::figures::{FIGURES, Figure};
use super::measure::Measured;
use crate::cli::Error;

/// All runs of one call.
#[derive(Debug)]
pub(super) struct Report {
    args: ForwardArgs,
    runs: Vec<Measured>,
    remarks: Vec<String>,
}

impl Report {
    /// At least one run.
    pub(super) fn new(args: ForwardArgs, runs: Vec<Measured>, remarks: Vec<String>) -> Self {
        Self {
            args,
            runs,
            remarks,
        }
    }

    /// One object in one line.
    pub(super) fn json(&self) -> Result<String, Error> {
        Ok(serde_json::to_string(self).map_err(anyhow::Error::from)?)
    }

    /// A table and the verdict.
    pub(super) fn text(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        if self.runs.len() > 1 {
            table.set_header(["", "median", "min", "max"]);
        }
        for figure in FIGURES {
            let Some(value) = figure.over(&self.runs, &self.args) else {
                continue;
            };
            let mut row = vec![figure.key.to_owned(), shown(figure, value)];
            if let (Some((least, most)), true) =
                (figure.range(&self.runs, &self.args), self.runs.len() > 1)
            {
                row.extend([shown(figure, least), shown(figure, most)]);
            }
            table.add_row(row);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let lines = table.lines().map(|line| line.trim_end().to_owned());
        let table = lines.collect::<Vec<_>>().join("\n");
        format!("{table}\n\n{}", self.verdict())
    }

    fn verdict(&self) -> String {
        let args = &self.args;
        let what = format!(
            "{} orders to {} merchants{}",
            args.orders,
            args.merchants,
            if args.runs > 1 {
                format!(", {} times", args.runs)
            } else {
                String::new()
            }
        );
        match self.faults() {
            Some(faults) => format!("not as it should be: {what}: {faults}"),
            None => {
                let ordered = if args.ordered { ", in order" } else { "" };
                format!(
                    "all is well: {what}, each arrived once, whole{ordered}, and is on the books"
                )
            }
        }
    }

    /// What went wrong; `None` when nothing did.
    pub(super) fn faults(&self) -> Option<String> {
        let faults = FIGURES
            .iter()
            .filter(|figure| figure.is_fault())
            .filter_map(|figure| {
                let worst = figure.over(&self.runs, &self.args)?;
                (worst > 0.0).then(|| format!("{} {worst}", figure.key))
            });
        let faults: Vec<String> = faults.collect();
        (!faults.is_empty()).then(|| faults.join(", "))
    }
}

fn shown(figure: &Figure, value: f64) -> String {
    format!("{value:.*}", figure.decimals)
}

/// Whole numbers without a point, as counts are.
fn entry<M: SerializeMap>(
    map: &mut M,
    figure: &Figure,
    value: Option<f64>,
) -> Result<(), M::Error> {
    match value {
        Some(value) if figure.decimals == 0 => map.serialize_entry(figure.key, &(value as u64)),
        value => map.serialize_entry(figure.key, &value),
    }
}

/// Settings, then figures; with several runs also each of them.
impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let args = &self.args;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("bench", "forward")?;
        map.serialize_entry("version", env!("CARGO_PKG_VERSION"))?;
        map.serialize_entry("release_build", &!cfg!(debug_assertions))?;
        let nats_server = self.runs.first().map(|run| run.nats_server.to_string());
        map.serialize_entry("nats_server", &nats_server)?;
        map.serialize_entry("orders", &args.orders)?;
        map.serialize_entry("warmup", &args.warmup)?;
        map.serialize_entry("merchants", &args.merchants)?;
        map.serialize_entry("in_flight", &args.in_flight)?;
        map.serialize_entry("concurrency", &args.concurrency())?;
        map.serialize_entry("mailbox", &args.mailbox)?;
        map.serialize_entry("latency_ms", &(args.latency.as_millis() as u64))?;
        map.serialize_entry("jitter_ms", &(args.jitter.as_millis() as u64))?;
        map.serialize_entry("body_bytes", &args.body_bytes)?;
        map.serialize_entry("rate", &args.rate)?;
        map.serialize_entry("ordered", &args.ordered)?;
        map.serialize_entry("idempotency", args.idempotency.as_str())?;
        map.serialize_entry("sync_always", &args.sync_always)?;
        map.serialize_entry("seed", &args.seed)?;
        let set: Vec<String> = args
            .set
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        map.serialize_entry("set", &set)?;
        map.serialize_entry("remarks", &self.remarks)?;
        for figure in FIGURES {
            entry(&mut map, figure, figure.over(&self.runs, args))?;
        }
        if self.runs.len() > 1 {
            let runs: Vec<Run<'_>> = self.runs.iter().map(|run| Run { run, args }).collect();
            map.serialize_entry("runs", &runs)?;
        }
        map.end()
    }
}

struct Run<'a> {
    run: &'a Measured,
    args: &'a ForwardArgs,
}

impl Serialize for Run<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(FIGURES.len()))?;
        for figure in FIGURES {
            entry(&mut map, figure, figure.of(self.run, self.args))?;
        }
        map.end()
    }
}
