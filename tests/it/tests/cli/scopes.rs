//! `expediter merchant scope …`, and the keys of flow control as they go in and out.

use anyhow::{Result, ensure};
use expediter_harness::World;

use super::{NOT_FOUND, OK, USAGE, feed, run};

const APPLY: [&str; 5] = ["merchant", "apply", "-f", "-", "--json"];

fn shared(concurrency: u32) -> String {
    format!(
        "[[group]]\nid = \"sandwiches\"\nrate = [\"50/s\", \"20000/h\"]\nburst = 10\n\
         [[credential]]\nid = \"pos-vendor\"\nconcurrency = {concurrency}\n"
    )
}

fn merchant(world: &World) -> String {
    let url = world.fleet.url("luigis");
    format!(
        r#"
[[merchant]]
id = "luigis"
group = "sandwiches"
[merchant.adapter]
url = "{url}"
credential = "pos-vendor"
rate_limit_scope = "credential"
idempotency = "lookup"
lookup = {{ url = "{url}?ref={{id}}" }}
[merchant.limits]
rate = ["20/s", "10000/15min"]
min_concurrency = 2
ordering = "order"
backlog = 1000
[merchant.retry]
on_park = "hold"
[merchant.breaker]
consecutive = 3
[merchant.hours]
timezone = "Europe/Rome"
open = ["mon-fri 10:00-14:00", "daily 18:00-02:00"]
[[merchant.job]]
name = "menu"
schedule = "30 9 * * mon-fri"
payload = {{ kind = "menu" }}
"#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_limits_are_applied_listed_and_deleted() -> Result<()> {
    let world = World::start().await?;
    // The log of the node, too, must stay without a warning.
    let node = world.node("node").start().await?;
    let all = shared(40) + &merchant(&world);
    let dry = feed(&world, &[&APPLY[..4], &["--dry-run"]].concat(), &all).await?;
    dry.exits(OK)?.says(&[
        "would create  group/sandwiches",
        "would create  credential/pos-vendor",
        "would create  luigis",
    ])?;
    let none = run(&world, &["merchant", "scope", "list", "--json"]).await?;
    ensure!(
        none.exits(OK)?.objects()?.is_empty(),
        "a dry run changed something"
    );

    let first = feed(&world, &APPLY, &all).await?.exits(OK)?;
    let first = first.tells(&["3 created"])?.objects()?;
    ensure!(first[0]["scope"] == "group/sandwiches" && first[2]["merchant"] == "luigis");
    let again = feed(&world, &APPLY, &all).await?.exits(OK)?;
    again.tells(&["3 unchanged"])?;
    let changed = feed(&world, &APPLY, &shared(41)).await?.exits(OK)?;
    let changed = changed.objects()?;
    ensure!(changed[0]["action"] == "unchanged" && changed[1]["action"] == "changed");
    ensure!(
        changed[1]["changes"][0]["key"] == "concurrency",
        "{changed:?}"
    );
    ensure!(changed[1]["changes"][0]["to"] == "41", "{changed:?}");

    let list = run(&world, &["merchant", "scope", "list"])
        .await?
        .exits(OK)?;
    list.says(&[
        "group/sandwiches",
        "50/s, 20000/h",
        "credential/pos-vendor",
        "41",
    ])?;
    let list = run(&world, &["merchant", "scope", "list", "--json"])
        .await?
        .exits(OK)?;
    let list = list.objects()?;
    ensure!(list.len() == 2 && list[0]["merchants"] == 1, "{list:?}");
    let merchants = run(&world, &["merchant", "list"]).await?.exits(OK)?;
    merchants
        .says(&["20/s, 10000/15min", "2-8"])?
        .tells(&["1 merchant"])?;

    // What is shown can be applied, and says what is shared.
    let shown = run(&world, &["merchant", "show", "luigis"])
        .await?
        .exits(OK)?;
    let shown = shown.says(&[
        "# shares the limits of group/sandwiches: 50/s, 20000/h, burst 10",
        "# shares the limits of credential/pos-vendor: 41 attempts in flight",
        "open = [\"mon-fri 10:00-14:00\", \"daily 18:00-02:00\"]",
    ])?;
    let same = feed(&world, &APPLY, &shown.out).await?.exits(OK)?;
    same.tells(&["1 unchanged"])?;
    let json = run(&world, &["merchant", "show", "luigis", "--json"])
        .await?
        .exits(OK)?;
    let json = json.object()?;
    ensure!(json["shares"][1]["concurrency"] == 41, "{json}");
    let same = feed(&world, &APPLY, &json["manifest"].to_string())
        .await?
        .exits(OK)?;
    same.tells(&["1 unchanged"])?;

    let delete = ["merchant", "scope", "delete", "group/sandwiches"];
    run(&world, &delete)
        .await?
        .exits(OK)?
        .says(&["deleted  group/sandwiches"])?;
    run(&world, &delete)
        .await?
        .exits(NOT_FOUND)?
        .tells(&["group/sandwiches has no limits"])?;
    let audit = run(&world, &["audit", "--json"]).await?.exits(OK)?;
    let records = audit.objects()?.into_iter();
    let of_group =
        records.filter(|record| record["kind"] == "group" && record["id"] == "sandwiches");
    let verbs: Vec<_> = of_group.map(|record| record["verb"].clone()).collect();
    ensure!(
        verbs == ["merchant.apply", "merchant.scope.delete"],
        "{verbs:?}"
    );
    let wrong = ["merchant", "scope", "delete", "sandwiches"];
    run(&world, &wrong)
        .await?
        .exits(USAGE)?
        .tells(&["group/NAME or credential/NAME"])?;
    let json = run(&world, &["merchant", "show", "luigis", "--json"])
        .await?
        .exits(OK)?;
    let json = json.object()?;
    ensure!(
        json["shares"]
            .as_array()
            .is_some_and(|shares| shares.len() == 1),
        "{json}"
    );
    let bad = "[[group]]\nid = \"a\"\nconcurency = 3\n";
    let refused = feed(&world, &APPLY, bad).await?.exits(USAGE)?;
    refused.tells(&["-:3: group[0].concurency: unknown key; did you mean concurrency?"])?;
    node.check(&[]).await
}
