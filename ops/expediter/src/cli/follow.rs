//! What verbs share that print items as they come.

use std::future::Future;
use std::ops::ControlFlow;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use tokio::sync::mpsc;

use super::Error;
use super::out::Out;

/// Items that wait to be printed.
pub(super) const BUFFERED: usize = 1_024;
/// How often it is looked whether somebody still reads.
const LOOK: Duration = Duration::from_secs(1);

/// Prints what `following` sends until Ctrl-C, until nobody reads the output any more, or until
/// `print` breaks. `print` is also told whether nothing more waits.
pub(super) async fn follow<T>(
    following: impl Future<Output = Result<(), expediter_nats::Error>>,
    mut items: mpsc::Receiver<T>,
    mut print: impl FnMut(T, bool) -> Result<ControlFlow<()>, Error>,
) -> Result<(), Error> {
    let printing = async {
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                item = items.recv() => match item {
                    Some(item) => {
                        if print(item, items.is_empty())?.is_break() {
                            return Ok(());
                        }
                    }
                    None => return Ok(()),
                },
                _ = look.tick() => if is_reader_gone() {
                    return Err(Error::ReaderGone);
                },
            }
        }
    };
    tokio::select! {
        ended = following => Ok(ended?),
        printed = printing => printed,
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}

/// A pipe whose other end is closed tells so without a write.
fn is_reader_gone() -> bool {
    let stdout = std::io::stdout();
    let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let polled = poll(&mut watched, Some(&at_once));
    polled.is_ok_and(|count| count > 0) && watched[0].revents().contains(PollFlags::ERR)
}

/// Prints a line for each item, for people or as JSON, up to a number of them.
#[derive(Debug)]
pub(super) struct Printer {
    out: Out,
    json: bool,
    colourful: bool,
    left: Option<u64>,
}

impl Printer {
    pub(super) fn new(json: bool, limit: Option<u64>) -> Self {
        Self {
            out: Out::stdout(),
            json,
            colourful: !json && Out::is_colourful(),
            left: limit,
        }
    }

    /// `None`: an item that is not wanted. `line` is also told whether to use colours. Breaks when it
    /// was the last one; `flush`: nothing more waits.
    pub(super) fn print<T: Serialize>(
        &mut self,
        item: Option<T>,
        line: impl FnOnce(&T, bool) -> String,
        flush: bool,
    ) -> Result<ControlFlow<()>, Error> {
        if let Some(item) = item
            && self.left != Some(0)
        {
            match self.json {
                true => self.out.buffer_json(&item)?,
                false => self.out.buffer(&line(&item, self.colourful))?,
            }
            self.left = self.left.map(|left| left - 1);
        }
        let last = self.left == Some(0);
        if flush || last {
            self.out.flush()?;
        }
        Ok(if last {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    }
}
