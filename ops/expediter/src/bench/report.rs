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
        map.serialize_entry("in_flight", &args.stage.in_flight)?;
        map.serialize_entry("concurrency", &args.concurrency())?;
        map.serialize_entry("mailbox", &args.stage.mailbox)?;
        map.serialize_entry("latency_ms", &(args.latency.as_millis() as u64))?;
        map.serialize_entry("jitter_ms", &(args.jitter.as_millis() as u64))?;
        map.serialize_entry("body_bytes", &args.stage.body_bytes)?;
        map.serialize_entry("rate", &args.rate)?;
        map.serialize_entry("ordered", &args.ordered)?;
        map.serialize_entry("idempotency", args.idempotency.as_str())?;
        map.serialize_entry("sync_always", &args.stage.sync_always)?;
        map.serialize_entry("seed", &args.stage.seed)?;
        let set: Vec<String> = args
            .stage
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;
    use expediter_fleet::merchants::{Tally, Verdict};
    use expediter_fleet::nats_server::MIN_VERSION;
    use serde_json::{Value, json};

    use super::super::outcomes::Books;
    use super::super::process::MachineTime;
    use super::super::stage::Cpu;
    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ForwardArgs,
    }

    fn args(flags: &[&str]) -> ForwardArgs {
        Line::parse_from([&["bench"], flags].concat()).args
    }

    /// 1,000 orders, all of them well, in so many seconds.
    fn run(seconds: u64) -> Measured {
        let total = Tally {
            arrived: 1_000,
            unique: 1_000,
            last_arrival_us: Some(1_000_000 + seconds * 1_000_000),
            ..Tally::default()
        };
        let arrivals_per_second = vec![7, 500, 100, 300, 9];
        Measured {
            nats_server: MIN_VERSION,
            published: 1_000,
            acked: 1_000,
            publish_errors: 0,
            first_publish_us: 1_000_000,
            elapsed: Duration::from_secs(seconds),
            cpu: Cpu {
                node: Duration::from_millis(100),
                broker: Duration::from_millis(20),
                publisher: Duration::from_millis(10),
                merchants: Duration::from_millis(70),
                machine: MachineTime {
                    busy: Duration::from_millis(300),
                    all: Duration::from_millis(2_000),
                },
            },
            node_peak_rss_mib: 50.0,
            broker_peak_rss_mib: 40.0,
            connections: 3,
            books: Books {
                unfinished: 0,
                not_delivered: 0,
            },
            verdict: Verdict {
                total,
                arrivals_per_second,
                ..Verdict::default()
            },
        }
    }

    fn report(flags: &[&str], runs: Vec<Measured>) -> (Report, Value) {
        let report = Report::new(args(flags), runs, Vec::new());
        let json = serde_json::from_str(&report.json().unwrap()).unwrap();
        (report, json)
    }

    #[test]
    fn one_run_is_told_flat() {
        let (report, json) = report(&[], vec![run(2)]);
        assert_eq!(json["orders_per_s"], 500.0);
        assert_eq!(json["arrivals_per_s_p10"], 100);
        assert_eq!(json["arrivals_per_s_median"], 300);
        assert_eq!(json["node_cpu_s_per_1000"], 0.1);
        assert_eq!(json["total_cpu_s_per_1000"], 0.13);
        assert_eq!(json["other_load_percent"], 5.0);
        assert_eq!(json["lost"], 0);
        // Asked for and not there are told apart from 0.
        assert_eq!(json["p50_ms"], Value::Null);
        assert_eq!(json["out_of_order"], Value::Null);
        assert!(json.get("runs").is_none());
        assert_eq!(report.faults(), None);
        assert!(report.text().contains("all is well"), "{}", report.text());
    }

    #[test]
    fn several_runs_give_the_median_and_the_worst_fault() {
        let mut bad = run(1);
        bad.verdict.total.unique = 997;
        bad.verdict.total.out_of_order = 2;
        let (report, json) = report(&["--runs", "3", "--ordered"], vec![run(4), bad, run(2)]);
        assert_eq!(json["orders_per_s"], 500.0);
        assert_eq!((&json["lost"], &json["duplicated"]), (&json!(3), &json!(3)));
        assert_eq!(json["out_of_order"], 2);
        assert_eq!(json["runs"][1]["lost"], 3);
        assert_eq!(json["runs"][2]["lost"], 0);
        let faults = report.faults().unwrap();
        assert_eq!(faults, "lost 3, duplicated 3, out_of_order 2");
        assert!(report.text().contains(&faults), "{}", report.text());
    }

    #[test]
    fn late_orders_of_the_warm_up_are_duplicates_and_nothing_makes_up_for_lost_ones() {
        let mut strange = run(1);
        strange.verdict.total.unique = 1_001;
        strange.verdict.total.arrived = 1_001;
        assert_eq!((strange.lost(), strange.duplicated()), (0, 1));
        assert!(!strange.is_faultless(&args(&[])));
    }
}
