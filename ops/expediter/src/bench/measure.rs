//! One run: warm up, measure, judge.

use std::cell::Cell;
use std::fmt;
use std::time::{Duration, Instant};

use expediter_fleet::merchants::Verdict;
use expediter_fleet::nats_server::Version;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::args::ForwardArgs;
use super::outcomes::{self, Books};
use super::process::peak_rss_mib;
use super::publisher::{Publisher, Sent};
use super::stage::{Cpu, Stage};

/// The wait for outcomes is given up when none came for this time, besides the merchants' latency.
const STALL: Duration = Duration::from_secs(30);
/// How often the node is asked what is finished.
const ASK: Duration = Duration::from_millis(100);

/// What one run gave.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) nats_server: Version,
    pub(super) published: u64,
    pub(super) acked: u64,
    pub(super) publish_errors: u64,
    pub(super) first_publish_us: u64,
    /// From the first publish until the last outcome was seen.
    pub(super) elapsed: Duration,
    pub(super) cpu: Cpu,
    pub(super) node_peak_rss_mib: f64,
    pub(super) broker_peak_rss_mib: f64,
    /// Connections that the merchants accepted over the whole run.
    pub(super) connections: u64,
    pub(super) books: Books,
    pub(super) verdict: Verdict,
}

pub(super) fn progress_style() -> ProgressStyle {
    let template = "{prefix}{msg} {bar:30} {human_pos} of {human_len} ({rate})";
    let rate = |state: &ProgressState, out: &mut dyn fmt::Write| {
        // A bar that cannot be written is not worth a word.
        let _unwritten = write!(out, "{:.0}/s", state.per_sec()).is_err();
    };
    ProgressStyle::with_template(template)
        .map(|style| style.with_key("rate", rate))
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Starts everything, measures, and ends everything.
pub(super) async fn run(
    args: &ForwardArgs,
    number: u32,
    progress: &ProgressBar,
) -> anyhow::Result<Measured> {
    progress.set_message("starting");
    let mut stage = Stage::open(args.setup()?, number).await?;
    let measured = run_on(&mut stage, args, progress).await;
    let faulty = measured
        .as_ref()
        .map_or(true, |measured| !measured.is_faultless(args));
    if faulty {
        let (complaints, first) = stage.node.complaints();
        if let Some(first) = first {
            super::note(&format!(
                "the node complained {complaints} times, first: {first}"
            ));
        }
        let kept = stage.keep();
        super::note(&format!("data and logs are kept in {}", kept.display()));
    } else if args.stage.keep {
        super::note(&format!(
            "data and logs are in {}",
            stage.scratch.path().display()
        ));
    }
    measured
}

async fn run_on(
    stage: &mut Stage,
    args: &ForwardArgs,
    progress: &ProgressBar,
) -> anyhow::Result<Measured> {
    let body_bytes = args.stage.body_bytes as usize;
    let mut publisher = Publisher::new(&stage.connection, &stage.ids, body_bytes, args.stage.seed);
    if args.warmup > 0 {
        progress.set_message("warm-up");
        let sent = deliver(stage, &mut publisher, args, args.warmup, None, progress).await?;
        let arrived = stage.fleet.verdict().await?.total.unique;
        anyhow::ensure!(
            sent.errors == 0 && arrived == args.warmup,
            "of {} orders of the warm-up {} were acknowledged and {arrived} arrived: {}",
            args.warmup,
            sent.acked,
            sent.first_error
                .unwrap_or_else(|| "the others never arrived".to_owned())
        );
        stage.fleet.clear().await?;
    }
    progress.set_message("forwarding");
    let (before, started) = (stage.cpu()?, Instant::now());
    let sent = deliver(
        stage,
        &mut publisher,
        args,
        args.orders,
        args.rate,
        progress,
    )
    .await?;
    let (after, elapsed) = (stage.cpu()?, started.elapsed());
    progress.set_message("checking");
    if let Some(error) = &sent.first_error {
        super::note(&format!(
            "{} publishes failed, the first with: {error}",
            sent.errors
        ));
    }
    let books = outcomes::read(&stage.connection, &sent.sequences).await?;
    Ok(Measured {
        nats_server: stage.broker.version(),
        published: sent.published,
        acked: sent.acked,
        publish_errors: sent.errors,
        first_publish_us: sent.first_us,
        elapsed,
        cpu: after.since(before),
        node_peak_rss_mib: peak_rss_mib(stage.node.pid())?,
        broker_peak_rss_mib: peak_rss_mib(stage.broker_pid()?)?,
        connections: stage.fleet.stats().await?.accepted,
        books,
        // After the outcomes, so that a late repeat is seen.
        verdict: stage.fleet.verdict().await?,
    })
}

/// Publishes, and waits until as many orders are finished as were acknowledged, or no more come.
async fn deliver(
    stage: &mut Stage,
    publisher: &mut Publisher,
    args: &ForwardArgs,
    orders: u64,
    rate: Option<u32>,
    progress: &ProgressBar,
) -> anyhow::Result<Sent> {
    let before = stage.finished().await?;
    let stall = STALL + args.latency + args.jitter;
    progress.set_length(orders);
    progress.set_position(0);
    progress.reset_eta();
    let acked = Cell::new(None);
    let publish = async {
        let sent = publisher.publish(orders, rate).await?;
        acked.set(Some(sent.acked));
        Ok::<_, anyhow::Error>(sent)
    };
    let watch = async {
        let (mut finished, mut since) = (0, Instant::now());
        loop {
            tokio::time::sleep(ASK).await;
            stage.check()?;
            let now = stage.finished().await? - before;
            progress.set_position(now);
            if now > finished {
                (finished, since) = (now, Instant::now());
            }
            match acked.get() {
                Some(acked) if finished >= acked => return Ok(()),
                Some(_) if since.elapsed() > stall => return Ok(()),
                None if since.elapsed() > stall => {
                    anyhow::bail!("no order was finished for {} s", stall.as_secs());
                }
                _ => {}
            }
        }
    };
    match futures::try_join!(publish, watch) {
        Ok((sent, ())) => Ok(sent),
        Err(error) => {
            // A process that died says more than the connection that it left behind.
            tokio::time::sleep(ASK).await;
            stage.check()?;
            Err(error.context("forwarding"))
        }
    }
}

impl Measured {
    /// Different orders that arrived.
    pub(super) fn forwarded(&self) -> u64 {
        self.verdict.total.unique
    }

    /// Over the time from the first publish to the last arrival.
    pub(super) fn orders_per_s(&self) -> Option<f64> {
        let last_us = self.verdict.total.last_arrival_us?;
        let took = Duration::from_micros(last_us.checked_sub(self.first_publish_us)?);
        (!took.is_zero()).then(|| self.forwarded() as f64 / took.as_secs_f64())
    }

    /// Arrivals in each whole second of the wall clock, fewest first; `None` below three of them.
    pub(super) fn whole_seconds(&self) -> Option<Vec<f64>> {
        let all = &self.verdict.arrivals_per_second;
        // The first and the last second are not whole.
        let whole = all.get(1..all.len().checked_sub(1)?)?;
        let mut whole: Vec<f64> = whole.iter().map(|arrivals| *arrivals as f64).collect();
        whole.sort_by(f64::total_cmp);
        (whole.len() >= 3).then_some(whole)
    }

    /// CPU seconds for each 1,000 orders that arrived.
    pub(super) fn per_1000(&self, cpu: Duration) -> Option<f64> {
        let arrived = self.forwarded();
        (arrived > 0).then(|| cpu.as_secs_f64() * 1_000.0 / arrived as f64)
    }

    pub(super) fn lost(&self) -> u64 {
        self.acked.saturating_sub(self.forwarded())
    }

    /// Second arrivals, those of the warm-up's orders included.
    pub(super) fn duplicated(&self) -> u64 {
        let total = &self.verdict.total;
        total.arrived - total.unique + total.unique.saturating_sub(self.published)
    }

    /// In a merchant's order of publishing; `None` when nobody asked for it.
    pub(super) fn out_of_order(&self, args: &ForwardArgs) -> Option<u64> {
        args.ordered.then_some(self.verdict.total.out_of_order)
    }

    pub(super) fn is_faultless(&self, args: &ForwardArgs) -> bool {
        super::figures::FIGURES
            .iter()
            .filter(|figure| figure.is_fault())
            .all(|figure| figure.of(self, args).unwrap_or(0.0) == 0.0)
    }
}
