//! A short run of everything.

use anyhow::{Result, ensure};
use expediter_load::{Options, Scenario, run};

async fn broken(scenario: Scenario, brokers: usize) -> Result<()> {
    let options = Options {
        scenario,
        minutes: 0.5,
        seed: 3,
        brokers,
        nodes: 3,
        partitions: 8,
        rate: 100,
        faults: 20.0,
        // Four on an idle machine; the other tests run beside this one.
        takeover_within: Some(10.0),
        no_sync: false,
    };
    let report = run(&options, |line| println!("{line}")).await?;
    println!("{}", serde_json::to_string(&report)?);
    ensure!(report.is_clean(), "{:#?}", report.violations);
    ensure!(
        report.faults >= 5 && report.orders > 1_000,
        "too little happened"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_whatever_breaks() -> Result<()> {
    broken(Scenario::All, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_on_three_brokers() -> Result<()> {
    broken(Scenario::Brokers, 3).await
}
