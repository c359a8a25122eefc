use std::time::Duration;

use clap::value_parser;
use expediter_types::{Idempotency, Merchant, MerchantId, parse_duration};

use super::super::stage_args::StageArgs;
use super::mix::{Mix, Orders, Trouble};

macro_rules! examples {
    () => {
        "\
Examples:
  expediter bench isolation
  expediter bench isolation --pairs 9 --seconds 30 --json
  expediter bench isolation --mix hung-flood
  expediter bench isolation --mix hung-capacity --in-flight 1000
"
    };
}

/// Below `-h`.
pub(crate) const EXAMPLES: &str = concat!(examples!(), "\n--help tells what the figures are.");

/// Below `--help`.
pub(crate) const FIGURES: &str = concat!(
    examples!(),
    "
What runs:
  As with `expediter bench forward`: nats-server, a node and the merchants, each a process of its own,
  and this process publishes. A pair is two phases, each from nothing: calm, and troubled. Which of
  them comes first alternates. A phase publishes at --rate for the longest timeout and two seconds
  more, so that backlogs and timeouts are there, then --seconds are measured. Then the trouble ends,
  and all that waited has to arrive.

Figures:
  of the merchants that are never in trouble, in both phases
  p99_ratio              the healthy merchants' p99, troubled / calm
  throughput_ratio       their arrivals a second, troubled / calm
  healthy_p99_ms         their p99 in the troubled phase, from the moment that an order was due to be
                         published to the arrival of its whole body
  healthy_p50_ms         likewise
  calm_p99_ms            their p99 in the calm phase
  healthy_per_s          their arrivals a second in the troubled phase
  backlog                orders of the merchants in trouble that waited when the trouble ended
  peak_rss_mib           the node's, over the whole troubled phase, its recovery included
  node_cpu_percent       of one core, troubled
  calm_cpu_percent       of one core, calm
  other_load_percent     of the machine's CPU time, what others used meanwhile; above 5 the other
                         figures are worth less
  publish_errors         publishes that failed
  lost                   acknowledged and never arrived, of all merchants, after the trouble ended
  unfinished             acknowledged, but OUTCOMES holds no outcome
  not_delivered          outcomes other than delivered
  Each is the median of the pairs, but for peak_rss_mib and counts of faults: these are the worst.

Exit code 0: nothing was lost; 1: something was, or failed. The ratios are for you to judge."
);

/// What `expediter bench isolation` is told.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct IsolationArgs {
    /// The kind of trouble
    #[arg(long, value_name = "NAME", default_value = "mixed")]
    pub(super) mix: Mix,
    /// Pairs of a calm and a troubled phase
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = value_parser!(u32).range(1..=100))]
    pub(super) pairs: u32,
    /// How long a phase is measured
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = value_parser!(u32).range(1..=3_600))]
    pub(super) seconds: u32,
    /// Merchants that share the flow evenly
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = value_parser!(u32).range(20..=10_000))]
    pub(super) merchants: u32,
    /// Orders a second, to all of them together
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub(super) rate: u32,
    /// How long a merchant that is well takes to answer an order
    #[arg(long, value_name = "DURATION", default_value = "50ms", value_parser = parse_duration)]
    pub(super) latency: Duration,
    /// How long a merchant that hangs is waited for, 1s to 10m
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub(super) timeout: Duration,
    /// Attempts that a merchant may have in flight
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = value_parser!(u32).range(1..=10_000))]
    pub(super) concurrency: u32,
    #[command(flatten)]
    pub(super) stage: StageArgs,
}

/// The merchants of a phase.
#[derive(Debug)]
pub(super) struct Cast {
    pub(super) troubles: Vec<Trouble>,
    /// Merchants that are never in trouble; the first of [`Cast::merchants`].
    pub(super) healthy: u32,
    /// Those that share the flow, after the healthy ones those that will be in trouble.
    pub(super) sharing: u32,
    pub(super) merchants: Vec<Merchant>,
}

/// The name of those that are never in trouble.
pub(super) const HEALTHY: &str = "healthy";

impl IsolationArgs {
    /// Who takes part, without their addresses.
    pub(super) fn cast(&self) -> anyhow::Result<Cast> {
        let troubles = self.mix.troubles(self.merchants, self.stage.in_flight);
        let shares = |trouble: &&Trouble| trouble.orders == Orders::Share;
        let sharing: u32 = troubles.iter().filter(shares).map(|t| t.merchants).sum();
        let healthy = self.merchants - sharing;
        let mut merchants = Vec::new();
        for number in 0..healthy {
            merchants.push(self.merchant(HEALTHY, number, None)?);
        }
        for trouble in &troubles {
            for number in 0..trouble.merchants {
                merchants.push(self.merchant(trouble.name, number, trouble.concurrency)?);
            }
        }
        Ok(Cast {
            troubles,
            healthy,
            sharing: self.merchants,
            merchants,
        })
    }

    fn merchant(
        &self,
        name: &str,
        number: u32,
        concurrency: Option<u32>,
    ) -> anyhow::Result<Merchant> {
        let id = MerchantId::new(&format!("{name}-{number}"))?;
        let mut merchant = Merchant::to(id, "");
        merchant.group = name.to_owned();
        merchant.adapter.idempotency = Idempotency::Native;
        merchant.adapter.timeout = self.timeout;
        merchant.limits.concurrency = concurrency.unwrap_or(self.concurrency);
        merchant.limits.mailbox = self.stage.mailbox;
        // So that all arrive soon after the trouble ended, and none is given up before.
        merchant.retry.max = Duration::from_secs(10);
        merchant.retry.max_attempts = 1_000;
        Ok(merchant)
    }
}
