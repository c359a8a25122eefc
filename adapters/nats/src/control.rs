//! Questions to the owner of a partition and to a node, over NATS' service API: `nats micro ls`,
//! `info` and `stats` show who answers.
//!
//! Each owned partition is a service of its own, so that an endpoint exists only while the partition
//! is owned: a question to a partition that nobody owns is refused at once. Each owner has a queue
//! group of its own: a former owner that hangs gets a copy of a question, not the question.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::service::endpoint::Endpoint;
use async_nats::service::{self, ServiceExt};
use async_nats::{Client, Request, RequestErrorKind};
use bytes::Bytes;
use expediter_ports::BoxFuture;
use expediter_types::{NodeName, Partition, Seq};
use expediter_wire::subjects;
use futures::{FutureExt, StreamExt};
use tokio::task::JoinSet;

use crate::{Connection, ControlHandler, Error};

/// Requests of one endpoint that are answered at the same time; more wait.
const WIDTH: usize = 32;

/// Answers for ever; runs while the partition is owned and ends when its future is dropped.
pub(crate) async fn serve_partition(
    client: Client,
    partition: Partition,
    node: NodeName,
    epoch: Seq,
    handler: Arc<dyn ControlHandler>,
) {
    let place = Place {
        service: "expediter-partition",
        description: "The owner of a partition",
        metadata: metadata([
            ("partition", partition.to_string()),
            ("node", node.to_string()),
            ("epoch", epoch.to_string()),
        ]),
        subject: subjects::control_partition(partition),
        queue_group: format!("epoch-{epoch}"),
    };
    serve(client, place, |request| handler.handle(partition, request)).await;
}

/// Answers for ever; ends when its future is dropped.
pub(crate) async fn serve_node(
    client: Client,
    node: NodeName,
    instance: String,
    handler: Arc<dyn ControlHandler>,
) {
    let place = Place {
        service: "expediter-node",
        description: "A node",
        metadata: metadata([("node", node.to_string()), ("instance", instance.clone())]),
        subject: subjects::control_node(&node),
        queue_group: instance,
    };
    serve(client, place, |request| handler.handle_node(request)).await;
}

/// What the service API shows of an endpoint.
struct Place {
    service: &'static str,
    description: &'static str,
    metadata: HashMap<String, String>,
    subject: String,
    queue_group: String,
}

impl Place {
    async fn open(&self, client: &Client) -> Result<(Service, Endpoint), async_nats::Error> {
        let service = client
            .service_builder()
            .description(self.description)
            .metadata(self.metadata.clone())
            .queue_group(&self.queue_group)
            .start(self.service, env!("CARGO_PKG_VERSION"))
            .await?;
        let endpoint = service.endpoint_builder().name("control");
        let service = Service(Some(service));
        Ok((service, endpoint.add(&self.subject).await?))
    }
}

/// Ends what answers for a service, which dropping the client's own handle does not.
struct Service(Option<service::Service>);

impl Drop for Service {
    fn drop(&mut self) {
        let stopped = self
            .0
            .take()
            .and_then(|service| service.stop().now_or_never());
        debug_assert!(
            matches!(stopped, Some(Ok(()))),
            "stopping waits for nothing"
        );
    }
}

fn metadata<const N: usize>(pairs: [(&str, String); N]) -> HashMap<String, String> {
    pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

async fn serve(client: Client, place: Place, handle: impl Fn(Bytes) -> BoxFuture<'static, Bytes>) {
    let subject = &place.subject;
    loop {
        match place.open(&client).await {
            Ok((_service, mut requests)) => {
                let mut running = JoinSet::new();
                while let Some(request) = requests.next().await {
                    while running.len() >= WIDTH {
                        running.join_next().await;
                    }
                    while running.try_join_next().is_some() {}
                    let answer = handle(request.message.payload.clone());
                    running.spawn(respond(request, answer));
                }
            }
            Err(error) => tracing::debug!(subject, %error, "no endpoint for control"),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn respond(request: service::Request, answer: BoxFuture<'static, Bytes>) {
    if request.message.reply.is_none() {
        return;
    }
    if let Err(error) = request.respond(Ok(answer.await)).await {
        let subject = &request.message.subject;
        tracing::debug!(%subject, %error, "an answer could not be sent");
    }
}

/// Asks the owner of a partition.
///
/// # Errors
/// [`Error::NoOwner`] at once when nobody owns it; no answer within `timeout`.
pub async fn request(
    connection: &Connection,
    partition: Partition,
    request: Bytes,
    timeout: Duration,
) -> Result<Bytes, Error> {
    let subject = subjects::control_partition(partition);
    match ask(connection, subject, request, timeout).await {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err(Error::NoOwner { partition }),
        Err(error) => Err(Error::broker(format!(
            "asking the owner of partition {partition}"
        ))(error)),
    }
}

/// Asks a node.
///
/// # Errors
/// [`Error::NoNode`] at once when there is none of that name; no answer within `timeout`.
pub async fn request_node(
    connection: &Connection,
    node: &NodeName,
    request: Bytes,
    timeout: Duration,
) -> Result<Bytes, Error> {
    let subject = subjects::control_node(node);
    match ask(connection, subject, request, timeout).await {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err(Error::NoNode { node: node.clone() }),
        Err(error) => Err(Error::broker(format!("asking node {node}"))(error)),
    }
}

/// `None`: nobody listens.
async fn ask(
    connection: &Connection,
    subject: String,
    request: Bytes,
    timeout: Duration,
) -> Result<Option<Bytes>, async_nats::RequestError> {
    let request = Request::new().payload(request).timeout(Some(timeout));
    match connection.client().send_request(subject, request).await {
        Ok(reply) => Ok(Some(reply.payload)),
        Err(error) if error.kind() == RequestErrorKind::NoResponders => Ok(None),
        Err(error) => Err(error),
    }
}
