//! The live table on a terminal, or a plain line a second.

use std::io::Write as _;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::Line as Text;
use ratatui::widgets::{Cell, Row, Table as Widget};

use super::table::{COLUMNS, Line, Table};
use crate::columns::{fitting, widths};

/// Where the table goes: a live terminal, or a plain line each time.
pub(super) struct Screen {
    terminal: Option<Box<DefaultTerminal>>,
    /// JSON has the summary only.
    silent: bool,
}

impl Screen {
    pub(super) fn open(interactive: bool, silent: bool) -> std::io::Result<Self> {
        let terminal = match interactive {
            true => Some(Box::new(ratatui::try_init()?)),
            false => None,
        };
        Ok(Self { terminal, silent })
    }

    /// Shows the table; true: the user asked to end.
    pub(super) fn show(&mut self, table: &Table) -> std::io::Result<bool> {
        if let Some(terminal) = &mut self.terminal {
            terminal.draw(|frame| draw(frame, table))?;
            return asked_to_end();
        }
        if !self.silent {
            // Nobody reads any more: that is no reason to fail.
            let _reader_gone = writeln!(std::io::stdout(), "{}", table.plain()).is_err();
        }
        Ok(false)
    }

    pub(super) fn close(&mut self) -> std::io::Result<()> {
        match self.terminal.take() {
            Some(_) => ratatui::try_restore(),
            None => Ok(()),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _restored = self.close().is_ok();
    }
}

/// In raw mode Ctrl-C is a key.
fn asked_to_end() -> std::io::Result<bool> {
    while event::poll(std::time::Duration::ZERO)? {
        if let Event::Key(key) = event::read()? {
            let control_c =
                key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn draw(frame: &mut ratatui::Frame<'_>, table: &Table) {
    let [head, body, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let title = format!(
        "Expediter  {} s   accepted {}   finished {}",
        table.elapsed.as_secs(),
        table.accepted,
        table.finished
    );
    frame.render_widget(Text::from(title).bold(), head);
    let shown = fitting(&COLUMNS, body.width);
    let header = Row::new(shown.iter().map(|at| Cell::from(COLUMNS[*at].title).dim()));
    let rows = table.lines.iter().map(|line| row(line, &shown));
    frame.render_widget(
        Widget::new(rows, widths(&COLUMNS, &shown)).header(header),
        body,
    );
    let foot_text = format!("NATS at {}   q or Ctrl-C ends", table.url);
    frame.render_widget(Text::from(foot_text).dim(), foot);
}

fn row<'a>(line: &'a Line, shown: &[usize]) -> Row<'a> {
    let figure = |value: Option<u32>| value.map_or_else(|| "-".to_owned(), |v| v.to_string());
    let color = match line.state.as_str() {
        "open" => Color::Green,
        "idle" => Color::DarkGray,
        _ => Color::Yellow,
    };
    let cells = [
        Cell::from(line.merchant.as_str()),
        Cell::from(line.state.as_str()).style(Style::new().fg(color)),
        Cell::from(line.backlog.to_string()),
        Cell::from(line.in_flight.to_string()),
        Cell::from(format!("{:.1}", line.per_second)),
        Cell::from(figure(line.p50)),
        Cell::from(figure(line.p99)),
        Cell::from(line.last_error.as_str()),
    ];
    Row::new(shown.iter().map(|at| cells[*at].clone()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::dev::account::Account;

    #[test]
    fn the_table_has_a_line_for_each_merchant() {
        let mut table = Table::new(Account::default(), "nats://127.0.0.1:4222");
        table.elapsed = Duration::from_secs(12);
        (table.accepted, table.finished) = (700, 650);
        table.lines = vec![
            Line {
                merchant: "fast".to_owned(),
                state: "open".to_owned(),
                per_second: 30.04,
                p50: Some(7),
                p99: Some(12),
                ..Line::default()
            },
            Line {
                merchant: "hung".to_owned(),
                state: "breaker".to_owned(),
                backlog: 40,
                in_flight: 1,
                last_error: "timeout: no answer".to_owned(),
                ..Line::default()
            },
        ];
        let mut terminal = Terminal::new(TestBackend::new(100, 10)).unwrap();
        terminal.draw(|frame| draw(frame, &table)).unwrap();
        let screen = terminal.backend().to_string();
        for text in [
            "Expediter  12 s   accepted 700   finished 650",
            "merchant       state         backlog  in flight deliv/s  p50 ms  p99 ms  last error",
            "fast           open          0        0         30.0     7       12",
            "hung           breaker       40       1         0.0      -       -       timeout: no answer",
            "NATS at nats://127.0.0.1:4222   q or Ctrl-C ends",
        ] {
            assert!(screen.contains(text), "{text:?} is missing:\n{screen}");
        }

        // What does not fit is left out instead of being cut.
        let mut terminal = Terminal::new(TestBackend::new(48, 10)).unwrap();
        terminal.draw(|frame| draw(frame, &table)).unwrap();
        let screen = terminal.backend().to_string();
        for text in [
            "merchant       state         backlog  deliv/s",
            "hung           breaker       40       0.0",
        ] {
            assert!(screen.contains(text), "{text:?} is missing:\n{screen}");
        }
    }
}
