//! Questions to the owner of a partition, over plain request and reply.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, Message, Request, RequestErrorKind};
use bytes::Bytes;
use expediter_types::Partition;
use expediter_wire::subjects;
use futures::StreamExt;
use tokio::task::JoinSet;

use crate::{Connection, ControlHandler, Error};

/// Requests of one partition that are answered at the same time; more wait.
const WIDTH: usize = 32;

/// Answers for ever; runs while the partition is owned and ends when its future is dropped.
pub(crate) async fn serve(client: Client, partition: Partition, handler: Arc<dyn ControlHandler>) {
    let subject = subjects::control_partition(partition);
    loop {
        match client.subscribe(subject.clone()).await {
            Ok(mut requests) => {
                let mut running = JoinSet::new();
                while let Some(request) = requests.next().await {
                    while running.len() >= WIDTH {
                        running.join_next().await;
                    }
                    while running.try_join_next().is_some() {}
                    running.spawn(answer(client.clone(), partition, handler.clone(), request));
                }
            }
            Err(error) => tracing::debug!(%partition, %error, "no subscription to control"),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn answer(
    client: Client,
    partition: Partition,
    handler: Arc<dyn ControlHandler>,
    request: Message,
) {
    let Some(reply) = request.reply else { return };
    let answer = handler.handle(partition, request.payload).await;
    if let Err(error) = client.publish(reply, answer).await {
        tracing::debug!(%partition, %error, "an answer could not be sent");
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
    let request = Request::new().payload(request).timeout(Some(timeout));
    match connection.client().send_request(subject, request).await {
        Ok(reply) => Ok(reply.payload),
        Err(error) if error.kind() == RequestErrorKind::NoResponders => {
            Err(Error::NoOwner { partition })
        }
        Err(error) => Err(Error::broker(format!(
            "asking the owner of partition {partition}"
        ))(error)),
    }
}
