//! A trace of an order, from its publisher over the node to the merchant and the collector.

use anyhow::{Context as _, Result, ensure};
use expediter_harness::{NewOrder, World, eventually};

use super::SOON;
use super::listener::{Answer, Listener};

#[tokio::test(flavor = "multi_thread")]
async fn an_order_continues_its_publishers_trace_as_far_as_the_collector() -> Result<()> {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let world = World::start().await?;
    let collector = Listener::start(|_, _| Answer::status(200)).await?;
    let endpoint = collector.url().replace("/orders", "");
    let node = world.node("node").set("telemetry.otlp_endpoint", &endpoint);
    let node = node.start().await?;
    let shop = Listener::start(|_, _| Answer::status(201)).await?;
    let mut merchant = world.merchant("luigis");
    merchant.adapter.url = shop.url();
    world.register(&merchant).await?;
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let order = NewOrder::to("luigis").body("{\"pizza\":\"margherita\"}");
    let order = order.header("traceparent", parent.as_str());
    world.publisher().send(order).await?;
    let requests = shop.arrived(1, SOON).await?;
    let traced = requests[0].header("traceparent").context("a trace")?;
    ensure!(
        traced.starts_with(&format!("00-{TRACE}-")) && traced != parent,
        "{traced}"
    );

    // The span that the merchant was told, under the publisher's trace, in binary.
    let bytes = |hex: &str| {
        let digits = hex.as_bytes().chunks(2);
        let byte = |pair: &[u8]| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?);
        digits.map(byte).collect::<Result<Vec<u8>>>()
    };
    let span = traced.split('-').nth(2).context("a span")?;
    let wanted = [bytes(TRACE)?, bytes(span)?];
    let exported = eventually("the span is exported", SOON * 2, || async {
        let requests = collector.requests();
        Ok(requests.into_iter().find(|request| {
            let has = |part: &Vec<u8>| request.body.windows(part.len()).any(|at| at == part);
            wanted.iter().all(has)
        }))
    })
    .await?;
    ensure!(
        exported.path == "/v1/traces" && exported.method == "POST",
        "{exported:?}"
    );
    let text = String::from_utf8_lossy(&exported.body).into_owned();
    ensure!(text.contains("node") && text.contains("luigis"), "{text}");
    ensure!(!text.contains("margherita"), "a payload: {text}");
    node.check(&[]).await
}
