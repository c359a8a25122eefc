//! `expediter top`: what merchants do now, over the network, from all nodes.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use expediter_nats::Registry;
use expediter_types::{Merchant, MerchantId, UnixMillis, parse_duration};
use expediter_wire::control::{MerchantState, MerchantStatus};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::Line as Text;
use ratatui::widgets::{Cell, Row as TableRow, Table};
use ratatui::{DefaultTerminal, Frame};
use serde::Serialize;

use super::global::block_on;
use super::merchant::standing;
use super::out::Out;
use super::owners::{Busy, Owners};
use super::table::table;
use super::text::{clean, now, span};
use super::{Error, Global};
use crate::columns::{Column, fitting, widths};

/// The registry changes seldom: it is read again after so long.
const REGISTRY_EVERY: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
On a terminal it is refreshed each second; keys: b backlog, f in flight, r rate, p p99, o oldest,
m merchant choose what it is sorted by, arrows scroll, q ends. Without a terminal, or with --once or
--json, it prints what it sees and ends. Merchants without unfinished orders that nothing holds are
left out.

Examples:
  expediter top
  expediter top --group sandwiches --sort p99
  expediter top --json | jq 'select(.state == \"paused\").merchant'";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Only merchants of this group
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// What is first
    #[arg(long, value_enum, default_value_t = Sort::Oldest)]
    sort: Sort,
    /// Time between two looks, 200ms or more
    #[arg(long, value_parser = parse_duration, default_value = "1s", value_name = "DURATION")]
    interval: Duration,
    /// Print once and end
    #[arg(long)]
    once: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Sort {
    /// The longest waiting order
    Oldest,
    /// Unfinished orders
    Backlog,
    /// Attempts in flight
    InFlight,
    /// Orders that ended in the last minute
    Rate,
    /// 99th percentile of the latency
    P99,
    /// The id
    Merchant,
}

/// A merchant for machines.
#[derive(Debug, Clone, Serialize)]
struct Row {
    #[serde(flatten)]
    status: MerchantStatus,
    group: String,
    /// Orders a minute that its fastest rate allows; absent: unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_per_minute: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<String>,
    /// How long its oldest unfinished order waits, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_s: Option<u64>,
}

pub(crate) fn run(global: &Global, args: Args) -> Result<(), Error> {
    if args.interval < Duration::from_millis(200) {
        return Err(Error::Usage("--interval is 200ms or more".to_owned()));
    }
    block_on(async { Box::pin(show(global, args)).await })
}

async fn show(global: &Global, args: Args) -> Result<(), Error> {
    let connection = global.connect().await?;
    let owners = Owners::of(&connection).await?;
    let registry = Registry::new(&connection);
    let mut known = merchants(&registry).await?;
    let live = !args.once && !global.json && std::io::stdout().is_terminal();
    if !live {
        let busy = owners.busy().await;
        let rows = rows(&busy, &known, &args, args.sort, now());
        print(global, &rows, &busy)?;
        return match busy.silent.as_slice() {
            [] => Ok(()),
            [partition, ..] => Err(Error::failed(format!(
                "no node answers for {} of the partitions, {partition} among them: start one with \
                 `expediter serve`, or wait until another has taken over",
                busy.silent.len()
            ))),
        };
    }
    let mut terminal = ratatui::try_init()?;
    let shown = async {
        let (mut read_at, mut view) = (Instant::now(), View::new(args.sort));
        loop {
            if read_at.elapsed() >= REGISTRY_EVERY {
                // A broker that is away for a moment ends nothing.
                known = merchants(&registry).await.unwrap_or(known);
                read_at = Instant::now();
            }
            let busy = owners.busy().await;
            let until = Instant::now() + args.interval;
            loop {
                let rows = rows(&busy, &known, &args, view.sort, now());
                view.draw(&mut terminal, &rows, &busy)?;
                if Instant::now() >= until {
                    break;
                }
                if view.keys()? {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    let shown: Result<(), Error> = shown.await;
    ratatui::try_restore()?;
    shown
}

async fn merchants(registry: &Registry) -> Result<HashMap<MerchantId, Merchant>, Error> {
    let entries = registry.list().await?;
    let merchants = entries.into_iter().map(|entry| entry.registration.merchant);
    Ok(merchants.map(|m| (m.id.clone(), m)).collect())
}

fn rows(
    busy: &Busy,
    known: &HashMap<MerchantId, Merchant>,
    args: &Args,
    sort: Sort,
    now: UnixMillis,
) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for status in busy.merchants.values() {
        let merchant = known.get(&status.merchant);
        let group = merchant.map_or_else(|| "-".to_owned(), |merchant| merchant.group.clone());
        if args.group.as_ref().is_some_and(|wanted| *wanted != group) {
            continue;
        }
        let rate = merchant.and_then(|merchant| merchant.limits.rates.first());
        rows.push(Row {
            group,
            limit_per_minute: rate
                .and_then(|rate| 60_000_000_000_u64.checked_div(rate.interval_ns())),
            limit: rate.map(ToString::to_string),
            oldest_s: status.oldest.map(|at| now.saturating_sub(at.0) / 1_000),
            status: status.clone(),
        });
    }
    let largest = |row: &Row| match sort {
        Sort::Oldest => row.oldest_s.unwrap_or(0),
        Sort::Backlog => row.status.backlog,
        Sort::InFlight => row.status.in_flight,
        Sort::Rate => row.status.per_minute,
        Sort::P99 => u64::from(row.status.p99_ms.unwrap_or(0)),
        Sort::Merchant => 0,
    };
    rows.sort_by(|a, b| {
        largest(b)
            .cmp(&largest(a))
            .then_with(|| a.status.merchant.cmp(&b.status.merchant))
    });
    rows
}

const COLUMNS: [Column; 10] = [
    Column::new("MERCHANT", 16, 0),
    Column::new("GROUP", 12, 7),
    Column::new("STATE", 22, 0),
    Column::new(">BACKLOG", 8, 0),
    Column::new(">FLIGHT", 7, 3),
    Column::new(">PER MIN", 12, 4),
    Column::new(">P50 MS", 7, 8),
    Column::new(">P99 MS", 7, 5),
    Column::new(">OLDEST", 12, 2),
    Column::new("LAST ERROR", 10, 6),
];

fn cells(row: &Row) -> [String; 10] {
    let status = &row.status;
    let figure = |value: Option<u32>| value.map_or_else(|| "-".to_owned(), |v| v.to_string());
    let limit = row
        .limit_per_minute
        .map_or_else(String::new, |limit| format!("/{limit}"));
    let oldest = row
        .oldest_s
        .map_or_else(|| "-".to_owned(), |s| span(Duration::from_secs(s)));
    [
        status.merchant.to_string(),
        row.group.clone(),
        standing(status),
        status.backlog.to_string(),
        status.in_flight.to_string(),
        format!("{}{limit}", status.per_minute),
        figure(status.p50_ms),
        figure(status.p99_ms),
        oldest,
        status.last_error.as_deref().map_or_else(String::new, clean),
    ]
}

fn silent(busy: &Busy) -> String {
    match busy.silent.len() {
        0 => String::new(),
        count => format!("   nobody answers for {count} partitions"),
    }
}

fn print(global: &Global, rows: &[Row], busy: &Busy) -> Result<(), Error> {
    let mut out = Out::stdout();
    if global.json {
        for row in rows {
            out.buffer_json(row)?;
        }
        return out.flush();
    }
    let titles = COLUMNS.map(|column| column.title);
    out.text(&table(&titles, rows.iter().map(|row| cells(row).to_vec())))?;
    out.line(format_args!("{} merchants{}", rows.len(), silent(busy)))
}

/// What the person at the terminal chose.
struct View {
    sort: Sort,
    first: usize,
}

impl View {
    fn new(sort: Sort) -> Self {
        Self { sort, first: 0 }
    }

    /// Handles the keys that wait; true: the end.
    fn keys(&mut self) -> std::io::Result<bool> {
        while event::poll(Duration::ZERO)? {
            if let Event::Key(key) = event::read()?
                && self.key(key)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// True: the end.
    fn key(&mut self, key: KeyEvent) -> bool {
        // In raw mode Ctrl-C is a key.
        let control_c =
            key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            _ if control_c => return true,
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Char('b') => self.sort = Sort::Backlog,
            KeyCode::Char('f') => self.sort = Sort::InFlight,
            KeyCode::Char('r') => self.sort = Sort::Rate,
            KeyCode::Char('p') => self.sort = Sort::P99,
            KeyCode::Char('o') => self.sort = Sort::Oldest,
            KeyCode::Char('m') => self.sort = Sort::Merchant,
            KeyCode::Down => self.first += 1,
            KeyCode::Up => self.first = self.first.saturating_sub(1),
            KeyCode::PageDown => self.first += 20,
            KeyCode::PageUp => self.first = self.first.saturating_sub(20),
            KeyCode::Home => self.first = 0,
            _ => {}
        }
        false
    }

    fn draw(
        &mut self,
        terminal: &mut DefaultTerminal,
        rows: &[Row],
        busy: &Busy,
    ) -> std::io::Result<()> {
        terminal.draw(|frame| self.render(frame, rows, busy))?;
        Ok(())
    }

    fn render(&mut self, frame: &mut Frame<'_>, rows: &[Row], busy: &Busy) {
        self.first = self.first.min(rows.len().saturating_sub(1));
        let sort = self.sort.to_possible_value();
        let sort = sort.map_or_else(String::new, |value| value.get_name().to_owned());
        let backlog: u64 = rows.iter().map(|row| row.status.backlog).sum();
        let in_flight: u64 = rows.iter().map(|row| row.status.in_flight).sum();
        let title = format!(
            "Expediter  {} merchants   {backlog} unfinished   {in_flight} in flight{}",
            rows.len(),
            silent(busy)
        );
        let [head, body, foot] = Layout::vertical([
            Constraint::Length(2),
            Constraint::Min(3),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(Text::from(title.as_str()).bold(), head);
        let shown = fitting(&COLUMNS, body.width);
        let header = shown.iter().map(|at| {
            let title = COLUMNS[*at].title.trim_start_matches('>');
            Cell::from(title).dim()
        });
        let header = TableRow::new(header);
        let lines = rows.iter().skip(self.first).map(|row| {
            let color = match row.status.state {
                MerchantState::Active => Color::Green,
                MerchantState::Idle => Color::DarkGray,
                _ => Color::Yellow,
            };
            let mut cells = cells(row).map(Cell::from);
            cells[2] = cells[2].clone().style(Style::new().fg(color));
            TableRow::new(shown.iter().map(|at| cells[*at].clone()))
        });
        frame.render_widget(
            Table::new(lines, widths(&COLUMNS, &shown)).header(header),
            body,
        );
        let keys = format!("by {sort}: b f r p o m choose, arrows scroll, q ends");
        frame.render_widget(Text::from(keys).dim(), foot);
    }
}

#[cfg(test)]
mod tests {
    use expediter_wire::Rfc3339;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    const NOW: UnixMillis = 1_763_690_000_000;

    fn busy() -> Busy {
        let status = |id: &str, state, backlog, in_flight, waits: Option<u64>, p99_ms| {
            let merchant = MerchantId::new(id).unwrap();
            let status = MerchantStatus {
                merchant: merchant.clone(),
                state,
                backlog,
                mailbox: 0,
                in_flight,
                closed_because: None,
                closed_until: None,
                hold: None,
                opens: None,
                oldest: waits.map(|s| Rfc3339(NOW - s * 1_000)),
                per_minute: 90,
                p50_ms: Some(20),
                p99_ms,
                last_error: None,
            };
            (merchant, status)
        };
        Busy {
            merchants: HashMap::from([
                status("luigis", MerchantState::Active, 900, 2, Some(75), Some(300)),
                status("marios", MerchantState::Active, 3, 8, Some(3), Some(900)),
                status("toads", MerchantState::Idle, 0, 0, None, None),
            ]),
            silent: Vec::new(),
        }
    }

    fn known() -> HashMap<MerchantId, Merchant> {
        let merchants = [("luigis", "pizza"), ("marios", "pizza"), ("toads", "soup")];
        let merchants = merchants.map(|(id, group)| {
            let mut merchant = Merchant::to(MerchantId::new(id).unwrap(), "http://127.0.0.1/");
            merchant.group = group.to_owned();
            merchant.limits.rates = vec!["20/s".parse().unwrap()];
            (merchant.id.clone(), merchant)
        });
        HashMap::from(merchants)
    }

    fn args(group: Option<&str>) -> Args {
        Args {
            group: group.map(str::to_owned),
            sort: Sort::Oldest,
            interval: Duration::from_secs(1),
            once: false,
        }
    }

    fn ids(group: Option<&str>, sort: Sort) -> Vec<String> {
        let rows = rows(&busy(), &known(), &args(group), sort, NOW);
        rows.iter()
            .map(|row| row.status.merchant.to_string())
            .collect()
    }

    #[test]
    fn what_is_asked_for_is_first() {
        assert_eq!(ids(None, Sort::Oldest), ["luigis", "marios", "toads"]);
        assert_eq!(ids(None, Sort::Backlog), ["luigis", "marios", "toads"]);
        assert_eq!(ids(None, Sort::InFlight), ["marios", "luigis", "toads"]);
        assert_eq!(ids(None, Sort::P99), ["marios", "luigis", "toads"]);
        assert_eq!(ids(Some("soup"), Sort::Merchant), ["toads"]);
        assert!(ids(Some("bread"), Sort::Merchant).is_empty());
    }

    #[test]
    fn the_screen_shows_them_and_follows_the_keys() {
        let mut view = View::new(Sort::Oldest);
        let mut terminal = Terminal::new(TestBackend::new(120, 8)).unwrap();
        let mut screen = |view: &mut View| {
            let rows = rows(&busy(), &known(), &args(None), view.sort, NOW);
            terminal
                .draw(|frame| view.render(frame, &rows, &busy()))
                .unwrap();
            terminal.backend().to_string()
        };
        let first = screen(&mut view);
        let line = first.lines().find(|line| line.contains("luigis")).unwrap();
        for text in ["pizza", "900", "90/1200", "20", "300", "1 min 15 s"] {
            assert!(line.contains(text), "{text} is missing: {line}");
        }
        assert!(
            first.contains("3 merchants   903 unfinished   10 in flight"),
            "{first}"
        );
        assert!(first.find("luigis") < first.find("marios"));
        assert!(!view.key(KeyCode::Char('f').into()));
        let second = screen(&mut view);
        assert!(second.contains("by in_flight"), "{second}");
        assert!(second.find("marios") < second.find("luigis"), "{second}");
        assert!(!view.key(KeyCode::Down.into()));
        let scrolled = screen(&mut view);
        assert!(
            !scrolled.contains("marios") && scrolled.contains("luigis"),
            "{scrolled}"
        );
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert!(view.key(control_c) && view.key(KeyCode::Char('q').into()));
    }
}
