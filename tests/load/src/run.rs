use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::fault::Scenario;
use crate::judge::Evidence;
use crate::report::Report;
use crate::stage::Stage;

/// Every acknowledged order has its outcome so soon after the last fault is over.
const QUIET: Duration = Duration::from_secs(600);
/// Before the first fault and after the last one.
const CALM: Duration = Duration::from_secs(3);

/// How to break things.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Which faults there are
    #[arg(long, value_enum, default_value = "all")]
    pub scenario: Scenario,
    /// How long orders flow and faults come
    #[arg(long, default_value_t = 2.0, value_name = "N")]
    pub minutes: f64,
    /// The same seed gives the same faults; when exactly they hit depends on the machine
    #[arg(long, default_value_t = 1, value_name = "S")]
    pub seed: u64,
    /// Brokers: 1, or 3 that replicate
    #[arg(long, default_value_t = 1, value_name = "COUNT", value_parser = brokers)]
    pub brokers: usize,
    /// Nodes at the start; up to 4 while nodes come and go
    #[arg(long, default_value_t = 3, value_name = "COUNT")]
    pub nodes: usize,
    /// Partitions
    #[arg(long, default_value_t = 8, value_name = "COUNT")]
    pub partitions: u16,
    /// Orders a second, over all merchants
    #[arg(long, default_value_t = 300, value_name = "RATE")]
    pub rate: u32,
    /// Faults a minute, on average
    #[arg(long, default_value_t = 8.0, value_name = "RATE")]
    pub faults: f64,
    /// Judge a take-over that takes longer, without a broker's fault near it, as broken
    #[arg(long, value_name = "SECONDS")]
    pub takeover_within: Option<f64>,
    /// The brokers do not sync each message: more orders, and no promise about power cuts
    #[arg(long)]
    pub no_sync: bool,
}

fn brokers(text: &str) -> Result<usize, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("is neither 1 nor 3".to_owned()),
    }
}

/// Runs it to the end; `tell` hears of each fault.
///
/// # Errors
/// A process does not start or come back, or orders have no outcome long after the last fault. What
/// the judge finds is no error but part of the report.
pub async fn run(options: &Options, mut tell: impl FnMut(&str)) -> Result<Report> {
    let mut stage = Stage::open(options).await.context("starting")?;
    let load = stage.shop.rush(&stage.world.publisher(), options.rate);
    tokio::time::sleep(CALM).await;
    let begun = Instant::now();
    let end = begun + Duration::from_secs_f64(options.minutes * 60.0);
    let mean = 60.0 / options.faults.max(0.001);
    let mut next = begun;
    loop {
        let wake = stage
            .next_recovery()
            .map_or(next, |at| at.min(next))
            .min(end);
        tokio::time::sleep_until(wake.into()).await;
        stage.look().await;
        stage.recover(false).await.context("ending a fault")?;
        if Instant::now() >= end {
            break;
        }
        if Instant::now() < next {
            continue;
        }
        let fault = options.scenario.draw(stage.rng());
        let shown = format!("{fault:?}");
        match stage.hit(fault).await.with_context(|| shown.clone())? {
            Some(event) => {
                let event = &stage.events()[event];
                let seconds = begun.elapsed().as_secs();
                let orders = stage.world.ledger.len();
                tell(&format!(
                    "{:>4}:{:02} {} {:?} ({orders} orders)",
                    seconds / 60,
                    seconds % 60,
                    event.fault.name(),
                    event.target
                ));
                let apart = 0.5 + stage.rng().f64();
                next = Instant::now() + Duration::from_secs_f64(mean * apart);
            }
            // It could hit nothing: another one is drawn at once.
            None => next = Instant::now() + Duration::from_millis(50),
        }
    }
    tell("no more faults");
    stage.calm().await.context("after the last fault")?;
    tokio::time::sleep(CALM).await;
    load.stop().await;
    tell("waiting for the outcomes");
    let missing = stage.world.settled(QUIET).await;
    let outcomes = match missing {
        Ok(outcomes) => outcomes,
        // Lost ones are the judge's.
        Err(error) => {
            tell(&format!("{error:#}"));
            expediter_harness::Outcomes::read(&stage.world.connection).await?
        }
    };
    let complaints = stage.complaints().await?;
    tell("judging");
    let evidence = Evidence::collect(&stage, outcomes, complaints);
    Ok(evidence.judge(options))
}
