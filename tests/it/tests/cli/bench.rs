//! `expediter bench forward` counts what must not happen and says what it saw; whether its figures are
//! good is not a test's affair.

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use super::{FAILED, OK, command, finished, path_with_broker};

const SMALL: [&str; 12] = [
    "bench",
    "forward",
    "--json",
    "--merchants",
    "8",
    "--latency",
    "5ms",
    "--warmup",
    "200",
    "--orders",
    "2000",
    "--body-bytes=200",
];

#[tokio::test(flavor = "multi_thread")]
async fn forwarding_is_measured_and_every_order_counted() -> Result<()> {
    let dir = TempDir::new()?;
    for ordered in [false, true] {
        let mut bench = command(dir.path())?;
        bench.args(SMALL).env("PATH", path_with_broker()?);
        if ordered {
            bench.arg("--ordered");
        }
        let ran = finished(bench).await?.exits(OK)?;
        let figures = ran.object()?;
        let figure = |key: &str| {
            figures[key]
                .as_f64()
                .with_context(|| format!("{key}: {figures}"))
        };
        for key in [
            "orders_per_s",
            "p50_ms",
            "p99_ms",
            "max_ms",
            "node_cpu_s_per_1000",
            "total_cpu_s_per_1000",
            "peak_rss_mib",
        ] {
            ensure!(figure(key)? > 0.0, "{key}: {figures}");
        }
        ensure!(
            figure("total_cpu_s_per_1000")? > figure("node_cpu_s_per_1000")?,
            "{figures}"
        );
        ensure!(figure("p50_ms")? <= figure("p99_ms")?, "{figures}");
        ensure!(figure("p99_ms")? <= figure("max_ms")?, "{figures}");
        ensure!(figure("acked")? == 2_000.0, "{figures}");
        for key in [
            "lost",
            "duplicated",
            "unfinished",
            "not_delivered",
            "bad_bodies",
        ] {
            ensure!(figure(key)? == 0.0, "{key}: {figures}");
        }
        match ordered {
            true => ensure!(figure("out_of_order")? == 0.0, "{figures}"),
            false => ensure!(figures["out_of_order"].is_null(), "{figures}"),
        }
    }
    Ok(())
}

/// The judge can fail: a node that may not reach the merchants delivers nothing.
#[tokio::test(flavor = "multi_thread")]
async fn orders_that_do_not_arrive_are_told() -> Result<()> {
    let dir = TempDir::new()?;
    let mut bench = command(dir.path())?;
    bench.args(SMALL).env("PATH", path_with_broker()?);
    // Merchants of the bench are on loopback.
    bench.args(["--set", "egress.allow=[\"10.0.0.0/8\"]"]);
    let ran = finished(bench).await?.exits(FAILED)?;
    ensure!(ran.err.contains("error:"), "{ran:#?}");
    Ok(())
}
