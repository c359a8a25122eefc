//! What is told of a run: names, units, and how several runs become one figure.

use super::args::ForwardArgs;
use super::measure::Measured;

/// One figure of the report.
#[derive(Debug)]
pub(super) struct Figure {
    pub(super) key: &'static str,
    pub(super) decimals: usize,
    kind: Kind,
    of: fn(&Measured, &ForwardArgs) -> Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Figure,
    /// Anything but 0 means that the platform, or the run, did not do what it should.
    Fault,
}

impl Figure {
    /// `None`: there is none in such a run.
    pub(super) fn of(&self, run: &Measured, args: &ForwardArgs) -> Option<f64> {
        Some(self.rounded((self.of)(run, args)?))
    }

    fn rounded(&self, value: f64) -> f64 {
        let scale = 10_f64.powi(i32::try_from(self.decimals).unwrap_or(0));
        (value * scale).round() / scale
    }

    pub(super) fn is_fault(&self) -> bool {
        self.kind == Kind::Fault
    }

    /// Of several runs: the median, and the worst of faults.
    pub(super) fn over(&self, runs: &[Measured], args: &ForwardArgs) -> Option<f64> {
        let mut values = self.sorted(runs, args)?;
        if self.is_fault() {
            return values.pop();
        }
        let middle = values.len() / 2;
        match values.len() % 2 {
            1 => Some(values[middle]),
            _ => Some(self.rounded(f64::midpoint(values[middle - 1], values[middle]))),
        }
    }

    /// The smallest and the greatest.
    pub(super) fn range(&self, runs: &[Measured], args: &ForwardArgs) -> Option<(f64, f64)> {
        let values = self.sorted(runs, args)?;
        Some((*values.first()?, *values.last()?))
    }

    /// `None` when a run has none.
    fn sorted(&self, runs: &[Measured], args: &ForwardArgs) -> Option<Vec<f64>> {
        let values = runs.iter().map(|run| self.of(run, args));
        let mut values: Vec<f64> = values.collect::<Option<_>>()?;
        values.sort_by(f64::total_cmp);
        (!values.is_empty()).then_some(values)
    }
}

macro_rules! figures {
    ($($kind:ident $key:literal $decimals:literal: |$run:pat_param, $args:pat_param| $value:expr;)*) => {
        &[$(Figure {
            key: $key,
            decimals: $decimals,
            kind: Kind::$kind,
            of: |$run, $args| $value,
        },)*]
    };
}

/// In the order of the report.
pub(super) const FIGURES: &[Figure] = figures! {
    Figure "orders_per_s" 1: |run, _| run.orders_per_s();
    Figure "arrivals_per_s_p10" 0: |run, _| run.whole_seconds().map(|all| all[all.len() / 10]);
    Figure "arrivals_per_s_median" 0: |run, _| run.whole_seconds().map(|all| all[all.len() / 2]);
    Figure "elapsed_s" 3: |run, _| Some(run.elapsed.as_secs_f64());
    Figure "p50_ms" 1: |run, _| Some(run.verdict.total.latency?.p50_ms);
    Figure "p90_ms" 1: |run, _| Some(run.verdict.total.latency?.p90_ms);
    Figure "p99_ms" 1: |run, _| Some(run.verdict.total.latency?.p99_ms);
    Figure "p999_ms" 1: |run, _| Some(run.verdict.total.latency?.p999_ms);
    Figure "max_ms" 1: |run, _| Some(run.verdict.total.latency?.max_ms);
    Figure "node_cpu_s_per_1000" 4: |run, _| run.per_1000(run.cpu.node);
    Figure "broker_cpu_s_per_1000" 4: |run, _| run.per_1000(run.cpu.broker);
    Figure "publisher_cpu_s_per_1000" 4: |run, _| run.per_1000(run.cpu.publisher);
    Figure "total_cpu_s_per_1000" 4:
        |run, _| run.per_1000(run.cpu.node + run.cpu.broker + run.cpu.publisher);
    Figure "merchants_cpu_s_per_1000" 4: |run, _| run.per_1000(run.cpu.merchants);
    Figure "other_load_percent" 1: |run, _| run.cpu.others_percent();
    Figure "peak_rss_mib" 1: |run, _| Some(run.node_peak_rss_mib);
    Figure "broker_rss_mib" 1: |run, _| Some(run.broker_peak_rss_mib);
    Figure "connections" 0: |run, _| Some(run.connections as f64);
    Figure "acked" 0: |run, _| Some(run.acked as f64);
    Fault "publish_errors" 0: |run, _| Some(run.publish_errors as f64);
    Fault "lost" 0: |run, _| Some(run.lost() as f64);
    Fault "duplicated" 0: |run, _| Some(run.duplicated() as f64);
    Fault "unfinished" 0: |run, _| Some(run.books.unfinished as f64);
    Fault "not_delivered" 0: |run, _| Some(run.books.not_delivered as f64);
    Fault "bad_bodies" 0: |run, _| Some(run.verdict.total.bad_body as f64);
    Fault "out_of_order" 0: |run, args| Some(run.out_of_order(args)? as f64);
};
