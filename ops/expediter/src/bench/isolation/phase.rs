//! One phase: publish, let the trouble grow, measure, end the trouble, see that everything arrives.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use expediter_fleet::merchants::{Behaviour, Latency};
use expediter_fleet::nats_server::Version;
use expediter_nats::{ConnectOptions, Connection};
use expediter_types::MerchantId;
use indicatif::ProgressBar;
use tokio::sync::oneshot;

use super::super::outcomes::{self, Books};
use super::super::process::peak_rss_mib;
use super::super::publisher::{Publisher, Sent};
use super::super::stage::{Cpu, Setup, Stage};
use super::args::{Cast, HEALTHY, IsolationArgs};
use super::mix::Orders;

/// Nothing new arrived or finished for this time, besides the timeout: it is given up.
const STALL: Duration = Duration::from_secs(30);
/// How often the processes are looked at.
const ASK: Duration = Duration::from_millis(500);
/// The flow runs so much longer than the timeout before it is measured.
const SETTLE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy)]
pub(super) struct Phase<'a> {
    pub(super) args: &'a IsolationArgs,
    pub(super) number: u32,
    pub(super) troubled: bool,
}

/// What one phase gave.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) nats_server: Version,
    /// Of the healthy merchants, while it was measured.
    pub(super) latency: Latency,
    pub(super) healthy_per_s: f64,
    /// Of the measured time.
    pub(super) elapsed: Duration,
    pub(super) cpu: Cpu,
    /// Acknowledged orders that had not arrived when the trouble ended.
    pub(super) backlog: u64,
    pub(super) acked: u64,
    pub(super) arrived: u64,
    pub(super) publish_errors: u64,
    pub(super) peak_rss_mib: f64,
    pub(super) books: Books,
}

impl Measured {
    pub(super) fn lost(&self) -> u64 {
        self.acked.saturating_sub(self.arrived)
    }
}

/// What is published besides the flow, from a thread and a connection of its own: however much it
/// is, the flow is published in time.
struct Flood(Option<oneshot::Receiver<anyhow::Result<Sent>>>);

impl Phase<'_> {
    /// Starts everything, measures, and ends everything.
    pub(super) async fn run(self, progress: &ProgressBar) -> anyhow::Result<Measured> {
        progress.set_message("starting");
        let Cast {
            merchants,
            sharing,
            healthy,
            troubles,
        } = self.args.cast()?;
        let setup = Setup {
            args: &self.args.stage,
            merchants,
            latency: self.args.latency,
            jitter: Duration::ZERO,
        };
        let mut stage = Stage::open(setup, self.number).await?;
        if self.troubled {
            for trouble in &troubles {
                for number in 0..trouble.merchants {
                    let id = format!("{}-{number}", trouble.name);
                    stage.fleet.set(&id, &trouble.behaviour).await?;
                }
            }
        }
        let measured = self.measure(&mut stage, sharing, healthy, progress).await;
        let faulty = measured.as_ref().map_or(true, |measured| {
            measured.lost() + measured.books.unfinished + measured.books.not_delivered > 0
        });
        if faulty {
            let kept = stage.keep();
            super::note(&format!("data and logs are kept in {}", kept.display()));
        } else if self.args.stage.keep {
            let kept = stage.scratch.path().display();
            super::note(&format!("data and logs are in {kept}"));
        }
        measured
    }

    async fn measure(
        self,
        stage: &mut Stage,
        sharing: u32,
        healthy: u32,
        progress: &ProgressBar,
    ) -> anyhow::Result<Measured> {
        let args = self.args;
        let lead = args.timeout + SETTLE;
        let whole = lead + Duration::from_secs(args.seconds.into());
        let sharing = usize::try_from(sharing)?;
        let mut publisher = Publisher::new(
            &stage.connection,
            &stage.ids[..sharing],
            args.stage.body_bytes as usize,
            args.stage.seed,
        );
        // Each merchant gets the same.
        let rounds = whole.as_secs_f64() * f64::from(args.rate) / sharing as f64;
        let rounds = rounds.ceil() as u64;
        let flood = if self.troubled {
            Flood::start(args, stage.broker.url(), whole)?
        } else {
            Flood(None)
        };
        progress.set_message(if self.troubled { "troubled" } else { "calm" });
        progress.set_length(rounds * sharing as u64);
        let publish = publisher.publish(rounds * sharing as u64, Some(args.rate));
        let fleet = stage.fleet;
        let (mut before, mut started) = (stage.cpu()?, Instant::now());
        let watch = async {
            tokio::time::sleep(lead).await;
            fleet.clear_times().await?;
            (before, started) = (stage.cpu()?, Instant::now());
            loop {
                stage.check()?;
                progress.set_position(stage.finished().await?);
                tokio::time::sleep(ASK).await;
            }
        };
        let watch = async {
            let ended: anyhow::Result<std::convert::Infallible> = watch.await;
            match ended {
                Err(error) => error,
            }
        };
        let mut sent = tokio::select! {
            sent = publish => sent?,
            error = watch => return Err(error.context("while orders were published")),
        };
        let expected = rounds * u64::from(healthy);
        let patience = STALL + args.timeout;
        let (after, elapsed) = (stage.cpu()?, started.elapsed());
        let latency = healthy_arrived(stage, expected, patience).await?;
        let (latency, span) = latency.context("no order was measured: --seconds is too short")?;
        if let Some(flood) = flood.0 {
            sent.add(flood.await.context("the flood's thread ended")??);
        }
        let arrived = stage.fleet.verdict().await?.total.unique;
        let backlog = sent.acked.saturating_sub(arrived);
        progress.set_message("the trouble ends");
        self.recover(stage, sent.acked, patience, progress).await?;
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
            latency,
            healthy_per_s: latency.orders as f64 / span.as_secs_f64().max(f64::MIN_POSITIVE),
            elapsed,
            cpu: after.since(before),
            backlog,
            acked: sent.acked,
            arrived: stage.fleet.verdict().await?.total.unique,
            publish_errors: sent.errors,
            peak_rss_mib: peak_rss_mib(stage.node.pid())?,
            books,
        })
    }

    /// All merchants are well, until everything is finished or nothing moves any more.
    async fn recover(
        self,
        stage: &mut Stage,
        acked: u64,
        patience: Duration,
        progress: &ProgressBar,
    ) -> anyhow::Result<()> {
        for id in &stage.ids {
            if self.troubled && !id.as_str().starts_with(HEALTHY) {
                stage.fleet.set(id.as_str(), &Behaviour::default()).await?;
            }
        }
        progress.set_length(acked);
        let (mut finished, mut since) = (0, Instant::now());
        loop {
            stage.check()?;
            let now = stage.finished().await?;
            progress.set_position(now);
            if now > finished {
                (finished, since) = (now, Instant::now());
            }
            if finished >= acked || since.elapsed() > patience {
                return Ok(());
            }
            tokio::time::sleep(ASK).await;
        }
    }
}

/// Waits until so many orders arrived at healthy merchants; gives their latencies, and the time from
/// the first arrival to the last. Both since the judge's times were cleared.
async fn healthy_arrived(
    stage: &mut Stage,
    expected: u64,
    patience: Duration,
) -> anyhow::Result<Option<(Latency, Duration)>> {
    let end = Instant::now() + patience;
    loop {
        stage.check()?;
        let verdict = stage.fleet.verdict().await?;
        let tally = verdict.groups.get(HEALTHY);
        if let Some(tally) = tally
            && (tally.unique >= expected || Instant::now() >= end)
        {
            let span = tally.last_arrival_us.zip(tally.first_arrival_us);
            let span = span.map(|(last, first)| Duration::from_micros(last - first));
            return Ok(tally.latency.zip(span));
        }
        anyhow::ensure!(Instant::now() < end, "nothing arrived");
        tokio::time::sleep(ASK).await;
    }
}

impl Flood {
    /// Until the flow ends.
    fn start(args: &IsolationArgs, nats: String, whole: Duration) -> anyhow::Result<Self> {
        let troubles = args.mix.troubles(args.merchants, args.stage.in_flight);
        let flooded = troubles.iter().find_map(|trouble| {
            let (count, rate) = match trouble.orders {
                Orders::Share => return None,
                Orders::PerSecond(rate) => (u64::from(rate) * whole.as_secs(), Some(rate)),
                Orders::AtOnce(count) => (u64::from(count), None),
            };
            Some((trouble, count, rate))
        });
        let Some((trouble, count, rate)) = flooded else {
            return Ok(Self(None));
        };
        let ids = (0..trouble.merchants).map(|n| MerchantId::new(&format!("{}-{n}", trouble.name)));
        let ids: Vec<MerchantId> = ids.collect::<Result<_, _>>()?;
        let (body_bytes, seed) = (args.stage.body_bytes as usize, args.stage.seed);
        let (reply, sent) = oneshot::channel();
        let publish = async move {
            let connect = ConnectOptions::to(&nats, "expediter bench flood");
            let connection = Connection::open_once(&connect).await?;
            let mut publisher = Publisher::new(&connection, &ids, body_bytes, seed);
            publisher.publish(count, rate).await
        };
        let thread = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let sent = match runtime {
                Ok(runtime) => runtime.block_on(publish),
                Err(error) => Err(error.into()),
            };
            let _phase_ended = reply.send(sent).is_err();
        };
        // It ends by itself or with the process: nobody waits for it when the bench is ended early.
        std::thread::Builder::new()
            .name("flood".to_owned())
            .spawn(thread)
            .context("starting the flood's thread")?;
        Ok(Self(Some(sent)))
    }
}
