//! Recurring jobs: each run is one order, whoever publishes it and however often.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream;
use expediter_harness::{NewOrder, NodeProcess, Outcomes, World, eventually};
use expediter_nats::Jobs;
use expediter_types::{Job, Merchant, MerchantId, Missed, NodeName, OutcomeKind, Priority};
use expediter_wire::Rfc3339;
use expediter_wire::job::{JobState, encode_job, job_key};
use expediter_wire::schedule::Schedule;

use super::SOON;

const HOUR: u64 = 3_600_000;
const PAYLOAD: &str = "{\"kind\":\"menu\"}";

fn now() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(u64::try_from(now.as_millis())?)
}

/// Once an hour, half an hour from any run now.
fn hourly() -> Result<String> {
    let minute = now()? / 60_000 % 60;
    Ok(format!("{} * * * *", (minute + 30) % 60))
}

fn job(name: &str, schedule: &str, missed: Missed) -> Job {
    Job {
        name: name.to_owned(),
        schedule: schedule.to_owned(),
        timezone: "UTC".to_owned(),
        missed,
        payload: PAYLOAD.to_owned(),
        content_type: "application/json".to_owned(),
        deadline: None,
        priority: Priority::Normal,
    }
}

fn merchant(world: &World, id: &str, jobs: Vec<Job>) -> Merchant {
    Merchant {
        jobs,
        ..world.merchant(id)
    }
}

/// Writes how far a job is, as a former owner left it.
async fn left_at(world: &World, id: &str, job: &Job, settled: u64) -> Result<()> {
    let state = JobState {
        schedule: job.schedule.clone(),
        timezone: job.timezone.clone(),
        settled: Rfc3339(settled),
        scheduled: Some(Rfc3339(settled)),
        at: Rfc3339(settled),
        node: NodeName::new("former")?,
    };
    let context = jetstream::new(world.connection.client().clone());
    let subject = format!("$KV.CONTROL.{}", job_key(&MerchantId::new(id)?, &job.name));
    let sent = context.publish(subject, encode_job(&state)).await?;
    sent.await?;
    Ok(())
}

/// How far a job is; `None`: no owner has seen it.
async fn state(world: &World, id: &str, name: &str) -> Result<Option<JobState>> {
    let id = MerchantId::new(id)?;
    let entries = Jobs::new(&world.connection).list(Some(&id)).await?;
    let found = entries.into_iter().find(|entry| entry.name == name);
    Ok(found.map(|entry| entry.state))
}

/// The times of the newest runs before now.
fn runs(job: &Job, since: u64) -> Result<Vec<u64>> {
    let schedule = Schedule::parse(&job.schedule, &job.timezone)?;
    let (mut at, now, mut runs) = (since, now()?, Vec::new());
    while let Some(next) = schedule.next_after(at).filter(|next| *next <= now) {
        runs.push(next);
        at = next;
    }
    Ok(runs)
}

fn ids(job: &Job, runs: &[u64]) -> BTreeSet<String> {
    let id = |run: &u64| format!("{}@{}", job.name, Rfc3339(*run));
    runs.iter().map(id).collect()
}

/// What became of a merchant's orders: by id, how often delivered and how often closed as a repeat.
async fn ended(world: &World, id: &str) -> Result<BTreeMap<String, (u32, u32)>> {
    let outcomes = Outcomes::read(&world.connection).await?;
    ensure!(outcomes.wrong().is_empty(), "{:?}", outcomes.wrong());
    let mut ended = BTreeMap::new();
    for recorded in outcomes.all() {
        let outcome = &recorded.outcome;
        if outcome.envelope.merchant.as_str() != id {
            continue;
        }
        let counts: &mut (u32, u32) = ended.entry(outcome.envelope.id.to_string()).or_default();
        match outcome.kind {
            OutcomeKind::Delivered => counts.0 += 1,
            OutcomeKind::Duplicate => counts.1 += 1,
            other => anyhow::bail!("{} ended as {other:?}", outcome.envelope.id),
        }
    }
    Ok(ended)
}

/// Waits until exactly these orders of a merchant were delivered, each once.
async fn delivered(
    world: &World,
    id: &str,
    wanted: &BTreeSet<String>,
    within: Duration,
) -> Result<()> {
    let all = eventually("the runs are delivered", within, async || {
        let ended = ended(world, id).await?;
        Ok((ended.len() >= wanted.len()).then_some(ended))
    });
    let all = all.await?;
    let found: BTreeSet<String> = all.keys().cloned().collect();
    ensure!(found == *wanted, "{id}: {found:?}, not {wanted:?}");
    ensure!(
        all.values().all(|(delivered, _)| *delivered == 1),
        "{id}: {all:?}"
    );
    Ok(())
}

async fn counted(node: &NodeProcess, name: &str, wanted: f64) -> Result<()> {
    eventually(name, SOON, async || {
        let found = node.metric(name).await?;
        ensure!(found == wanted, "{name} is {found}, not {wanted}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn missed_runs_go_by_their_policy() -> Result<()> {
    let world = World::start().await?;
    let since = now()? - 5 * HOUR;
    let hourly = hourly()?;
    let mut wanted = BTreeMap::new();
    for missed in [Missed::Skip, Missed::Once, Missed::All] {
        let job = job("menu", &hourly, missed);
        let runs = runs(&job, since)?;
        ensure!(runs.len() == 5, "{runs:?}");
        let made_up = match missed {
            Missed::Skip => &[],
            Missed::Once => &runs[4..],
            Missed::All => &runs[..],
        };
        left_at(&world, missed.as_str(), &job, since).await?;
        wanted.insert(missed.as_str(), ids(&job, made_up));
        world
            .register(&merchant(&world, missed.as_str(), vec![job]))
            .await?;
    }
    // In India the hour begins half past.
    let mut abroad = job("lunch", "0 13 * * *", Missed::Once);
    abroad.timezone = "Asia/Kolkata".to_owned();
    let days = runs(&abroad, now()? - 50 * HOUR)?;
    let newest = *days.last().context("a run in two days")?;
    ensure!(newest % (24 * HOUR) == 7 * HOUR + HOUR / 2, "{newest}");
    left_at(&world, "abroad", &abroad, newest - 1).await?;
    wanted.insert("abroad", ids(&abroad, &[newest]));
    world
        .register(&merchant(&world, "abroad", vec![abroad]))
        .await?;

    let mut node = world.node("node").start().await?;
    for (id, ids) in &wanted {
        delivered(&world, id, ids, SOON).await?;
    }
    counted(&node, "expediter_job_runs_published_total", 7.0).await?;
    counted(&node, "expediter_job_runs_left_out_total", 9.0).await?;
    let late = node.metric("expediter_job_late_seconds").await?;
    ensure!(late > 60.0, "{late}");
    let arrival = &world.fleet.arrivals("once");
    ensure!(arrival.len() == 1, "{arrival:?}");
    let skipped = eventually("what is left out is settled", SOON, async || {
        let state = state(&world, "skip", "menu").await?;
        Ok(state.filter(|state| state.settled.0 > since + 4 * HOUR))
    });
    ensure!(skipped.await?.scheduled == Some(Rfc3339(since)));

    node.kill9();
    node.restart().await?;
    // It looks at its jobs as soon as it runs; another one shows that it has.
    let fresh = job("fresh", &hourly, Missed::All);
    world
        .register(&merchant(&world, "newcomer", vec![fresh]))
        .await?;
    eventually("the newcomer begins", SOON, async || {
        state(&world, "newcomer", "fresh").await
    })
    .await?;
    for (id, ids) in &wanted {
        delivered(&world, id, ids, SOON).await?;
    }
    ensure!(ended(&world, "newcomer").await?.is_empty());
    counted(&node, "expediter_job_runs_published_total", 0.0).await?;
    node.check(&[]).await
}

/// A former owner crashed between the publish of a run and the write of how far the job is.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_published_before_is_the_same_order() -> Result<()> {
    let world = World::start().await?;
    let since = now()? - 3 * HOUR;
    let menu = job("menu", &hourly()?, Missed::All);
    let runs = runs(&menu, since)?;
    left_at(&world, "luigis", &menu, since).await?;
    world
        .register(&merchant(&world, "luigis", vec![menu.clone()]))
        .await?;
    let published = |run: u64| {
        let id = format!("menu@{}", Rfc3339(run));
        NewOrder::to("luigis").id(id).body(PAYLOAD)
    };
    // Within the broker's window, and after it.
    world.publisher().send(published(runs[0])).await?;
    world
        .publisher()
        .send(published(runs[1]).repeatable())
        .await?;
    let node = world.node("node").start().await?;
    let all = eventually("all is closed", SOON, async || {
        let ended = ended(&world, "luigis").await?;
        let (delivered, repeats) = ended
            .values()
            .fold((0, 0), |sum, counts| (sum.0 + counts.0, sum.1 + counts.1));
        Ok(((delivered, repeats) == (3, 1)).then_some(ended))
    });
    let all = all.await?;
    ensure!(
        all.keys().cloned().collect::<BTreeSet<_>>() == ids(&menu, &runs),
        "{all:?}"
    );
    ensure!(
        all[&format!("menu@{}", Rfc3339(runs[1]))] == (1, 1),
        "{all:?}"
    );
    ensure!(world.fleet.arrivals("luigis").len() == 3);
    node.check(&[]).await
}

/// In the middle of many runs the owner ends, and another goes on.
async fn handed_over(kill: bool) -> Result<()> {
    let world = World::start().await?;
    let since = now()? - 100 * HOUR;
    let menu = job("menu", &hourly()?, Missed::All);
    let runs = runs(&menu, since)?;
    let names: Vec<String> = (0..12).map(|n| format!("m{n}")).collect();
    for name in &names {
        left_at(&world, name, &menu, since).await?;
        world
            .register(&merchant(&world, name, vec![menu.clone()]))
            .await?;
    }
    let first = world.node("first").spawn()?;
    let begun = world
        .fleet
        .wait_until(Duration::from_secs(30), |stats| stats.arrived >= 20)
        .await;
    ensure!(begun, "nothing is published");
    if kill {
        first.kill9();
    } else {
        let code = first.terminate(Duration::from_secs(15)).await?;
        ensure!(code == 0, "exit code {code}");
    }
    let second = world.node("second").start().await?;
    for name in &names {
        delivered(&world, name, &ids(&menu, &runs), Duration::from_secs(30)).await?;
    }
    let by_second = second.metric("expediter_job_runs_published_total").await?;
    println!("{by_second} of 1200 runs were published by the second node");
    second.check(&["lease ended"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_owner_loses_and_doubles_no_run() -> Result<()> {
    handed_over(true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_loses_and_doubles_no_run() -> Result<()> {
    handed_over(false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_schedule_begins_anew_and_a_job_that_is_gone_is_forgotten() -> Result<()> {
    let world = World::start().await?;
    let since = now()? - 5 * HOUR;
    let node = world.node("node").start().await?;
    let menu = job("menu", &hourly()?, Missed::All);
    left_at(
        &world,
        "luigis",
        &job("menu", "0 0 * * *", Missed::All),
        since,
    )
    .await?;
    left_at(
        &world,
        "luigis",
        &job("stays", &menu.schedule, Missed::Skip),
        now()?,
    )
    .await?;
    let stays = job("stays", &menu.schedule, Missed::Skip);
    world
        .register(&merchant(
            &world,
            "luigis",
            vec![menu.clone(), stays.clone()],
        ))
        .await?;
    let begun = eventually("it begins anew", SOON, async || {
        let found = state(&world, "luigis", "menu").await?;
        Ok(found.filter(|state| state.schedule == menu.schedule))
    });
    ensure!(begun.await?.settled.0 > since + 4 * HOUR);
    world
        .register(&merchant(&world, "luigis", vec![stays]))
        .await?;
    eventually("it is forgotten", SOON, async || {
        let gone = state(&world, "luigis", "menu").await?.is_none();
        Ok(gone.then_some(()))
    })
    .await?;
    ensure!(state(&world, "luigis", "stays").await?.is_some());
    world.delete("luigis").await?;
    eventually("the merchant's are forgotten", SOON, async || {
        let gone = state(&world, "luigis", "stays").await?.is_none();
        Ok(gone.then_some(()))
    })
    .await?;
    ensure!(ended(&world, "luigis").await?.is_empty());
    node.check(&[]).await
}

/// A minute after the other, through a crash and a hand-over.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: just test-long"]
async fn long_each_minute_is_one_order() -> Result<()> {
    let world = World::start().await?;
    let minutely = job("tick", "* * * * *", Missed::All);
    let first = world.node("first").start().await?;
    world
        .register(&merchant(&world, "luigis", vec![minutely.clone()]))
        .await?;
    let begun = eventually("it begins", SOON, async || {
        state(&world, "luigis", "tick").await
    });
    let begun = begun.await?.settled.0;
    let minute = Duration::from_secs(75);
    world.arrived("luigis", 1, minute).await?;
    first.kill9();
    let second = world.node("second").start().await?;
    world.arrived("luigis", 2, minute).await?;
    let third = world.node("third").start().await?;
    ensure!(second.terminate(Duration::from_secs(15)).await? == 0);
    world.arrived("luigis", 3, minute).await?;
    delivered(
        &world,
        "luigis",
        &ids(&minutely, &runs(&minutely, begun)?),
        SOON,
    )
    .await?;
    third.check(&["lease ended"]).await
}
