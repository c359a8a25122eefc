//! What a partition to which nothing is delivered may conclude from the leader's answers.
//!
//! That a message is there proves itself: a server has all that lies before it. That none is there
//! does not say who says so: a former leader, or a new one that has not read all of its log. Such an
//! answer counts only when the leader that gave the stream's last sequence before it leads still in
//! a look that began after it.

use expediter_types::Seq;
use tokio::time::Instant;

use crate::broker::StreamState;
use crate::log::LogView;

/// A message that the leader has and the reader does not deliver for so many looks.
const STALLED: u32 = 3;

/// The answers since the last delivery.
#[derive(Debug, Default)]
pub(crate) struct Quiet {
    nothing: Option<Nothing>,
    /// The next message, and in how many looks it was.
    undelivered: Option<(Seq, u32)>,
}

/// An answer that nothing follows what was taken.
#[derive(Debug)]
struct Nothing {
    /// The look before it.
    view: LogView,
    answered: Instant,
}

impl Quiet {
    /// Nothing of the partition lies above what was taken, by an answer to the question that
    /// followed the look.
    pub(crate) fn nothing(&mut self, view: LogView, answered: Instant) {
        self.undelivered = None;
        self.nothing = Some(Nothing { view, answered });
    }

    /// The stream up to whose end nothing follows what was taken, once a look confirms it.
    pub(crate) fn confirmed(&mut self, view: &LogView) -> Option<StreamState> {
        let nothing = self
            .nothing
            .take_if(|nothing| view.asked >= nothing.answered)?;
        (view.leadership == nothing.view.leadership).then_some(nothing.view.state)
    }

    /// An answer waits for its confirmation.
    pub(crate) fn awaits(&self) -> bool {
        self.nothing.is_some()
    }

    /// The leader has that message; tells whether the reader stands still.
    pub(crate) fn undelivered(&mut self, seq: Seq) -> bool {
        let looks = match self.undelivered {
            Some((before, looks)) if before == seq => looks + 1,
            _ => 1,
        };
        self.undelivered = Some((seq, looks));
        looks >= STALLED
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A look at so many seconds, at a stream that ends there.
    fn look(start: Instant, second: u64, last: Seq, leadership: u64) -> LogView {
        LogView {
            state: StreamState {
                last,
                ..StreamState::default()
            },
            generation: 0,
            leadership,
            asked: start + Duration::from_secs(second),
        }
    }

    #[test]
    fn an_answer_counts_when_the_same_leader_leads_after_it() {
        let start = Instant::now();
        let mut quiet = Quiet::default();
        quiet.nothing(look(start, 0, 7, 1), start + Duration::from_millis(5));
        let confirmed = quiet.confirmed(&look(start, 1, 9, 1));
        // What came after the question is not judged by its answer.
        assert_eq!(confirmed.map(|state| state.last), Some(7));
        assert_eq!(quiet.confirmed(&look(start, 2, 9, 1)), None, "once");
    }

    #[test]
    fn an_answer_from_a_change_of_leaders_is_forgotten() {
        let start = Instant::now();
        let mut quiet = Quiet::default();
        quiet.nothing(look(start, 0, 7, 1), start + Duration::from_millis(5));
        assert_eq!(quiet.confirmed(&look(start, 1, 7, 2)), None);
        assert!(!quiet.awaits());
        assert_eq!(quiet.confirmed(&look(start, 2, 7, 2)), None);
    }

    #[test]
    fn a_look_that_began_before_the_answer_confirms_nothing() {
        let start = Instant::now();
        let mut quiet = Quiet::default();
        quiet.nothing(look(start, 0, 7, 1), start + Duration::from_millis(2_500));
        assert_eq!(quiet.confirmed(&look(start, 1, 7, 1)), None);
        assert_eq!(quiet.confirmed(&look(start, 2, 7, 1)), None);
        assert!(quiet.awaits());
        let confirmed = quiet.confirmed(&look(start, 3, 7, 1));
        assert_eq!(confirmed.map(|state| state.last), Some(7));
    }

    #[test]
    fn a_message_that_is_never_delivered_stops_the_reader() {
        let mut quiet = Quiet::default();
        assert!(!quiet.undelivered(5));
        assert!(!quiet.undelivered(5));
        assert!(!quiet.undelivered(6));
        assert!(!quiet.undelivered(6));
        assert!(quiet.undelivered(6));
    }
}
