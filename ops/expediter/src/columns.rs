//! Tables on terminals of any width: a column that does not fit is left out, for a figure that is cut
//! is another figure.

use ratatui::layout::Constraint;

/// A column of a live table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    pub(crate) title: &'static str,
    /// What it needs; the last one takes what is left.
    pub(crate) width: u16,
    /// The higher, the sooner it is left out; 0: never.
    pub(crate) dispensable: u8,
}

impl Column {
    pub(crate) const fn new(title: &'static str, width: u16, dispensable: u8) -> Self {
        Self {
            title,
            width,
            dispensable,
        }
    }
}

/// The places of those that fit beside each other, one blank between two.
pub(crate) fn fitting(columns: &[Column], room: u16) -> Vec<usize> {
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    let needed = |shown: &[usize]| -> u16 { shown.iter().map(|at| columns[*at].width + 1).sum() };
    while needed(&shown) > room + 1 {
        let most = shown
            .iter()
            .copied()
            .max_by_key(|at| columns[*at].dispensable);
        match most.filter(|at| columns[*at].dispensable > 0) {
            Some(least_needed) => shown.retain(|at| *at != least_needed),
            None => break,
        }
    }
    shown
}

/// For the table widget.
pub(crate) fn widths(columns: &[Column], shown: &[usize]) -> Vec<Constraint> {
    let last = shown.last().copied();
    let width = |at: &usize| match Some(*at) == last {
        true => Constraint::Min(columns[*at].width),
        false => Constraint::Length(columns[*at].width),
    };
    shown.iter().map(width).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_needed_go_first_and_none_is_cut() {
        let columns = [
            Column::new("merchant", 10, 0),
            Column::new("p50", 5, 2),
            Column::new("backlog", 7, 0),
            Column::new("error", 20, 1),
        ];
        assert_eq!(fitting(&columns, 45), [0, 1, 2, 3]);
        assert_eq!(fitting(&columns, 44), [0, 2, 3]);
        assert_eq!(fitting(&columns, 38), [0, 2]);
        assert_eq!(fitting(&columns, 3), [0, 2]);
        assert_eq!(
            widths(&columns, &[0, 2]),
            [Constraint::Length(10), Constraint::Min(7)]
        );
    }
}
