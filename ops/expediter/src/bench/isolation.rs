//! `expediter bench isolation`: what merchants in trouble cost those that are well.
//!
//! Constraints: a pair is two phases, each from nothing: the same flow with all merchants well (calm)
//! and beside merchants in trouble (troubled). Which comes first alternates, so that a machine that
//! gets slower or faster favours neither. Only merchants that are never in trouble are compared. At the
//! end of a phase the trouble ends, and every order has to arrive.

mod args;
mod mix;
mod phase;
mod report;

use indicatif::ProgressBar;

use super::measure::progress_style;
use super::note;
use crate::cli::Error;
use crate::node::StopSignals;
use phase::Phase;
use report::{Pair, Report};

pub(crate) use args::{EXAMPLES, FIGURES, IsolationArgs};

/// All pairs; ends early, with everything it started, on SIGINT and SIGTERM.
pub(super) async fn run(args: IsolationArgs) -> Result<Report, Error> {
    let mut stop = StopSignals::new()?;
    let remarks = args.stage.remarks();
    remarks.iter().for_each(|remark| note(remark));
    let mut pairs = Vec::new();
    for number in 0..args.pairs {
        let calm_first = number % 2 == 0;
        let (mut calm, mut troubled) = (None, None);
        for in_trouble in [!calm_first, calm_first] {
            let progress = ProgressBar::no_length().with_style(progress_style());
            progress.set_prefix(format!("pair {} of {}: ", number + 1, args.pairs));
            let phase = Phase {
                args: &args,
                number: 2 * number + u32::from(in_trouble),
                troubled: in_trouble,
            };
            let measured = tokio::select! {
                measured = phase.run(&progress) => measured,
                signal = stop.next() => Err(anyhow::anyhow!("ended by {signal}")),
            };
            progress.finish_and_clear();
            let place = if in_trouble { &mut troubled } else { &mut calm };
            *place = Some(measured?);
        }
        if let Some((calm, troubled)) = calm.zip(troubled) {
            pairs.push(Pair {
                calm_first,
                calm,
                troubled,
            });
        }
    }
    Ok(Report::new(args, pairs, remarks))
}
