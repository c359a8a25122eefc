use std::time::Duration;

use clap::value_parser;
use expediter_types::{Idempotency, Merchant, MerchantId, Ordering, parse_duration};

use super::stage::Setup;
use super::stage_args::StageArgs;
use crate::cli::Error;

macro_rules! examples {
    () => {
        "\
Examples:
  expediter bench forward
  expediter bench forward --merchants 200 --latency 50ms --orders 100000 --json
  expediter bench forward --ordered --orders 50000
  expediter bench forward --rate 2000 --orders 60000      latencies without a backlog
  expediter bench forward --runs 5 --set node.shards=1
"
    };
}

/// Below `-h`.
pub(super) const EXAMPLES: &str = concat!(examples!(), "\n--help tells what the figures are.");

/// Below `--help`.
pub(super) const FIGURES: &str = concat!(
    examples!(),
    "
What runs:
  nats-server, a node (`expediter serve`) and the merchants, each a process of its own; this process
  publishes and watches. After the warm-up all of the measured orders are published as fast as the
  broker acknowledges them (up to 4,000 unacknowledged), or at --rate.

Figures:
  orders_per_s           different orders that arrived / time from the first publish to the last
                         arrival of the measured part
  arrivals_per_s_p10, arrivals_per_s_median
                         over the whole seconds of the wall clock between the first and the last
                         arrival; absent below three of them
  p50_ms … max_ms        from publish to the arrival of the whole body at the merchant. Without
                         --rate the backlog is in it; with --rate it counts from the moment that
                         the order was due, so that a late publisher flatters nothing
  *_cpu_s_per_1000       CPU time, user and system, from the first publish until every order has
                         its outcome in the broker; total: node, broker and publisher
  other_load_percent     of the machine's CPU time, what others used meanwhile, and the kernel for
                         no process; above 5 the other figures are worth less
  peak_rss_mib           the node's, over its whole life; broker_rss_mib: the broker's
  acked                  publishes that the broker acknowledged
  lost                   acknowledged and never arrived
  duplicated             arrivals of an order that had arrived before
  unfinished             acknowledged, but OUTCOMES holds no outcome
  not_delivered          outcomes other than delivered
  bad_bodies             arrivals with a body that was changed or cut
  out_of_order           arrivals after a later order of the same merchant; null without --ordered
  With --runs each figure is the median, but for counts of faults: these are the worst.

Exit code 0: every acknowledged order arrived once, whole, with an outcome, and with --ordered in
order; 1: not so, or something failed."
);

/// What `expediter bench forward` is told.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ForwardArgs {
    /// Merchants; the orders are spread over them evenly
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = value_parser!(u32).range(1..=100_000))]
    pub(super) merchants: u32,
    /// How long a merchant takes to answer an order
    #[arg(long, value_name = "DURATION", default_value = "50ms", value_parser = parse_duration)]
    pub(super) latency: Duration,
    /// Up to so much more, evenly spread
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    pub(super) jitter: Duration,
    /// Orders that are measured
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = value_parser!(u64).range(1..=50_000_000))]
    pub(super) orders: u64,
    /// Orders before them, which are not measured: connections open, memory is claimed
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = value_parser!(u64).range(0..=10_000_000))]
    pub(super) warmup: u64,
    /// Attempts that a merchant may have in flight [default: its share of --in-flight; 1 with
    /// --ordered]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=10_000))]
    pub(super) concurrency: Option<u32>,
    /// Publish so many orders a second [default: as fast as it goes]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub(super) rate: Option<u32>,
    /// Each merchant's orders in the order of their publishing
    #[arg(long)]
    pub(super) ordered: bool,
    /// Whether the merchants take an order twice without harm
    #[arg(long, default_value = "native")]
    pub(super) idempotency: Repeat,
    /// Measure so often, each time from nothing
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..=100))]
    pub(super) runs: u32,
    #[command(flatten)]
    pub(super) stage: StageArgs,
}

/// `--idempotency`
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Repeat {
    /// It does: it knows the order by its key
    Native,
    /// It does not: what may have arrived is never repeated
    None,
}

impl Repeat {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::None => "none",
        }
    }

    pub(super) fn idempotency(self) -> Idempotency {
        match self {
            Self::Native => Idempotency::Native,
            Self::None => Idempotency::None,
        }
    }
}

impl ForwardArgs {
    /// # Errors
    /// What single flags cannot tell: combinations that make no sense.
    pub(super) fn checked(self) -> Result<Self, Error> {
        let usage = |text: &str| Err(Error::Usage(text.to_owned()));
        if self.latency + self.jitter > Duration::from_secs(60) {
            return usage("--latency and --jitter are at most 60s together");
        }
        if self.ordered && self.concurrency.is_some_and(|most| most > 1) {
            return usage(
                "--ordered sends one order of a merchant at a time: leave out --concurrency",
            );
        }
        Ok(self)
    }

    /// Attempts that a merchant may have in flight.
    pub(super) fn concurrency(&self) -> u32 {
        match self.concurrency {
            Some(most) => most,
            None if self.ordered => 1,
            None => (self.stage.in_flight / self.merchants).clamp(1, 10_000),
        }
    }

    /// `bench-0` and so on.
    pub(super) fn setup(&self) -> anyhow::Result<Setup<'_>> {
        let mut merchants = Vec::new();
        for number in 0..self.merchants {
            let id = MerchantId::new(&format!("bench-{number}"))?;
            let mut merchant = Merchant::to(id, "");
            merchant.group = "bench".to_owned();
            merchant.adapter.idempotency = self.idempotency.idempotency();
            // The slowest answer is no failure.
            merchant.adapter.timeout += self.latency + self.jitter;
            merchant.limits.concurrency = self.concurrency();
            merchant.limits.mailbox = self.stage.mailbox;
            if self.ordered {
                merchant.limits.ordering = Ordering::Merchant;
            }
            merchants.push(merchant);
        }
        Ok(Setup {
            args: &self.stage,
            merchants,
            latency: self.latency,
            jitter: self.jitter,
        })
    }
}
