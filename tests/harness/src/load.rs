use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::{NewOrder, Publisher};

/// A steady flow of orders in the background. Dropping it stops the flow.
#[derive(Debug)]
pub struct Load {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Load {
    /// Publishes `next(n)`, n = 0, 1, 2 …, so many a second.
    #[must_use]
    pub fn start(
        publisher: &Publisher,
        per_second: u32,
        mut next: impl FnMut(u64) -> NewOrder + Send + 'static,
    ) -> Self {
        let publisher = publisher.clone();
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let period = Duration::from_secs_f64(1.0 / f64::from(per_second.max(1)));
            let mut every = tokio::time::interval(period);
            for number in 0.. {
                tokio::select! {
                    biased;
                    _ = &mut stopped => break,
                    _ = every.tick() => {}
                }
                let offered = tokio::select! {
                    biased;
                    _ = &mut stopped => break,
                    offered = publisher.offer(next(number)) => offered,
                };
                if let Err(error) = offered {
                    tracing::error!(%error, "the load ends");
                    break;
                }
            }
            publisher.flush().await;
        });
        Self {
            stop: Some(stop),
            task,
        }
    }

    /// Stops, and waits until every publish is answered or given up.
    pub async fn stop(mut self) {
        if let Some(stop) = self.stop.take() {
            let _ended = stop.send(()).is_err();
        }
        if let Err(error) = (&mut self.task).await {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}
