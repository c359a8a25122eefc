//! What the demonstration shows.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use expediter_core::partition::{HeldBy, MerchantRow, MerchantState};
use expediter_types::{ClosedBecause, MerchantId};

use super::account::{Account, Verdict};
use super::fleet::MERCHANTS;
use crate::columns::{Column, fitting};
use crate::node::RunningNode;

/// Of the live table.
pub(super) const COLUMNS: [Column; 8] = [
    Column::new("merchant", 14, 0),
    Column::new("state", 13, 0),
    Column::new("backlog", 8, 0),
    Column::new("in flight", 9, 2),
    Column::new("deliv/s", 8, 1),
    Column::new("p50 ms", 7, 5),
    Column::new("p99 ms", 7, 3),
    Column::new("last error", 10, 4),
];

/// Of the table at the end, with the blanks around each; the last error may take several lines.
const SUMMARY: [Column; 7] = [
    Column::new("merchant", 14, 0),
    Column::new("state", 14, 0),
    Column::new("delivered", 10, 1),
    Column::new("backlog", 8, 0),
    Column::new("p50 ms", 7, 4),
    Column::new("p99 ms", 7, 2),
    Column::new("last error", 20, 3),
];

/// Rates are taken over this: long enough to be calm.
const WINDOW: Duration = Duration::from_secs(3);

/// One merchant's line.
#[derive(Debug, Clone, Default)]
pub(super) struct Line {
    pub(super) merchant: String,
    pub(super) state: String,
    pub(super) backlog: u64,
    pub(super) in_flight: u32,
    pub(super) per_second: f64,
    pub(super) p50: Option<u32>,
    pub(super) p99: Option<u32>,
    pub(super) last_error: String,
    pub(super) delivered: u64,
}

/// The rows of all merchants, in the fleet's order.
#[derive(Debug)]
pub(super) struct Table {
    account: Account,
    /// Of the broker, for the verbs that people try meanwhile.
    pub(super) url: String,
    pub(super) lines: Vec<Line>,
    pub(super) elapsed: Duration,
    pub(super) accepted: u64,
    pub(super) finished: u64,
    /// What was delivered when, over the newest [`WINDOW`].
    before: HashMap<String, VecDeque<(Instant, u64)>>,
}

impl Table {
    pub(super) fn new(account: Account, url: &str) -> Self {
        Self {
            account,
            url: url.to_owned(),
            lines: Vec::new(),
            elapsed: Duration::ZERO,
            accepted: 0,
            finished: 0,
            before: HashMap::new(),
        }
    }

    /// Asks the node.
    pub(super) async fn refresh(&mut self, node: &RunningNode, elapsed: Duration) {
        self.elapsed = elapsed;
        (self.accepted, self.finished) = self.account.so_far();
        let rows = node.rows().await;
        self.lines = MERCHANTS
            .iter()
            .map(|(id, _, _)| self.line(id, &rows))
            .collect();
    }

    fn line(&mut self, id: &str, rows: &HashMap<MerchantId, MerchantRow>) -> Line {
        let mut line = Line {
            merchant: id.to_owned(),
            state: "idle".to_owned(),
            ..Line::default()
        };
        let Some(row) = rows.get(id) else { return line };
        line.state = state(row.state.clone());
        line.backlog = row.backlog;
        line.in_flight = row.in_flight;
        line.last_error.clone_from(&row.last_error);
        line.delivered = row.delivered;
        let mut latencies = row.latencies.clone();
        latencies.sort_unstable();
        let at = |share: usize| latencies.get((latencies.len().saturating_sub(1)) * share / 100);
        (line.p50, line.p99) = (at(50).copied(), at(99).copied());
        let now = Instant::now();
        let samples = self.before.entry(id.to_owned()).or_default();
        samples.push_back((now, row.delivered));
        while samples.len() > 2 && now.duration_since(samples[1].0) >= WINDOW {
            samples.pop_front();
        }
        if let Some((since, count)) = samples.front().filter(|(since, _)| *since < now) {
            let seconds = now.duration_since(*since).as_secs_f64();
            line.per_second = row.delivered.saturating_sub(*count) as f64 / seconds;
        }
        line
    }

    /// One line, for places without a terminal.
    pub(super) fn plain(&self) -> String {
        let merchants: Vec<String> = self
            .lines
            .iter()
            .map(|line| {
                format!(
                    "{} {:.0}/s backlog {} in flight {}",
                    line.merchant, line.per_second, line.backlog, line.in_flight
                )
            })
            .collect();
        format!(
            "{:>4}s  accepted {}  finished {}  | {}",
            self.elapsed.as_secs(),
            self.accepted,
            self.finished,
            merchants.join(" | ")
        )
    }

    /// Printed at the end.
    pub(super) fn summary(&self, verdict: &Verdict, elapsed: Duration) -> String {
        let mut table = comfy_table::Table::new();
        table.load_preset(comfy_table::presets::NOTHING);
        let width = ratatui::crossterm::terminal::size().map_or(120, |(columns, _)| columns);
        table
            .set_content_arrangement(comfy_table::ContentArrangement::Dynamic)
            .set_width(width);
        let shown = fitting(&SUMMARY, width);
        table.set_header(shown.iter().map(|at| SUMMARY[*at].title));
        let figure = |value: Option<u32>| value.map_or_else(|| "-".to_owned(), |v| v.to_string());
        for line in &self.lines {
            let cells = [
                line.merchant.clone(),
                line.state.clone(),
                line.delivered.to_string(),
                line.backlog.to_string(),
                figure(line.p50),
                figure(line.p99),
                line.last_error.clone(),
            ];
            table.add_row(shown.iter().map(|at| &cells[*at]));
        }
        let Verdict {
            accepted,
            refused,
            delivered,
            finished,
            waiting,
            lost,
        } = verdict;
        let refused = match refused {
            0 => String::new(),
            count => format!(", {count} publishes failed"),
        };
        format!(
            "{table}\n{:.1} s: {accepted} orders accepted{refused}; {finished} finished ({delivered} \
             delivered), {waiting} waiting, {lost} lost",
            elapsed.as_secs_f64()
        )
    }
}

fn state(state: MerchantState) -> String {
    match state {
        MerchantState::Open => "open".to_owned(),
        MerchantState::Closed {
            because: ClosedBecause::RateLimited,
            ..
        } => "asked to wait".to_owned(),
        MerchantState::Closed { because, .. } => because.as_str().to_owned(),
        MerchantState::Quarantined => "quarantined".to_owned(),
        MerchantState::Unknown => "unknown".to_owned(),
        MerchantState::Held(HeldBy::ByOperator(hold)) => hold.state.to_string(),
        MerchantState::Held(HeldBy::OutsideHours { .. }) => "outside hours".to_owned(),
    }
}
