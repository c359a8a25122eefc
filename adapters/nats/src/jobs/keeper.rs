//! One job: waits for its runs, publishes them, and writes down how far it is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use expediter_core::jobs::due;
use expediter_types::{Job, MerchantId, Seq, UnixMillis};
use expediter_wire::job::{JobState, run_order};
use expediter_wire::order::order_headers;
use expediter_wire::schedule::Schedule;
use expediter_wire::{Rfc3339, subjects};
use tokio::sync::watch;

use super::{Context, keys};
use crate::broker::NoAck;
use crate::clock::wall;
use crate::error::chain;

/// The clock may be set: it is looked at again at the latest after this.
const LOOK: Duration = Duration::from_secs(15);
/// After the first failure; then longer, up to [`LOOK`].
const RETRY: Duration = Duration::from_millis(250);

/// Keeps one job.
pub(super) struct Keeper {
    context: Arc<Context>,
    merchant: MerchantId,
    name: String,
    /// `None`: not read yet.
    standing: Option<Standing>,
    /// Decided, and to be published: however long the broker is away.
    runs: VecDeque<UnixMillis>,
    failures: u32,
}

/// How far the job is.
struct Standing {
    state: JobState,
    /// In CONTROL, to be replaced by the next one.
    revision: Seq,
    /// `state` is written there.
    written: bool,
}

impl Keeper {
    pub(super) fn new(context: Arc<Context>, merchant: MerchantId, name: String) -> Self {
        Self {
            context,
            merchant,
            name,
            standing: None,
            runs: VecDeque::new(),
            failures: 0,
        }
    }

    /// Until the job is gone.
    pub(super) async fn keep(mut self, mut job: watch::Receiver<Option<Job>>) {
        loop {
            let now = job.borrow_and_update().clone();
            let done = match &now {
                Some(job) => self.look(job).await,
                None => self.forget().await.map(|()| LOOK),
            };
            if now.is_none() && done.is_ok() {
                return;
            }
            let wait = self.wait(done);
            tokio::select! {
                changed = job.changed(), if now.is_some() => if changed.is_err() && job.borrow().is_some() {
                    return;
                },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn wait(&mut self, done: Result<Duration, String>) -> Duration {
        let error = match done {
            Ok(wait) => {
                self.failures = 0;
                return wait;
            }
            Err(error) => error,
        };
        self.failures += 1;
        let (merchant, job) = (&self.merchant, &self.name);
        tracing::debug!(%merchant, job, error, "the job goes on later");
        (RETRY * 2_u32.pow(self.failures.min(7) - 1)).min(LOOK)
    }

    /// Publishes what is due, and says how long to wait.
    async fn look(&mut self, job: &Job) -> Result<Duration, String> {
        let schedule =
            Schedule::parse(&job.schedule, &job.timezone).map_err(|error| error.to_string())?;
        let mut standing = match self.standing.take() {
            Some(standing) => standing,
            None => self.read(job).await?,
        };
        let found = self.go_on(job, &schedule, &mut standing).await;
        self.standing = Some(standing);
        found
    }

    async fn go_on(
        &mut self,
        job: &Job,
        schedule: &Schedule,
        standing: &mut Standing,
    ) -> Result<Duration, String> {
        let state = &standing.state;
        if (&state.schedule, &state.timezone) != (&job.schedule, &job.timezone) {
            self.runs.clear();
            let scheduled = state.scheduled;
            standing.state = self.begin(job);
            standing.state.scheduled = scheduled;
            standing.written = false;
        }
        self.write(standing).await?;
        let now = wall();
        let found = due(standing.state.settled.0, now, job.missed, |moment| {
            schedule.next_after(moment)
        });
        if self.runs.is_empty() {
            self.left_out(found.left_out);
            let idle = found.runs.is_empty();
            self.runs.extend(found.runs);
            if idle && found.left_out > 0 {
                standing.state.settled = Rfc3339(found.settled);
                standing.written = false;
                self.write(standing).await?;
            }
        }
        while let Some(run) = self.runs.front().copied() {
            self.publish(job, run).await?;
            self.runs.pop_front();
            standing.state = JobState {
                settled: Rfc3339(run.max(standing.state.settled.0)),
                scheduled: Some(Rfc3339(run)),
                ..self.begin(job)
            };
            standing.written = false;
            self.write(standing).await?;
        }
        let now = wall();
        let next = schedule.next_after(standing.state.settled.0);
        let left = next.map(|next| Duration::from_millis(next.saturating_sub(now)));
        Ok(left.unwrap_or(LOOK).min(LOOK))
    }

    /// From now on.
    fn begin(&self, job: &Job) -> JobState {
        let now = Rfc3339(wall());
        JobState {
            schedule: job.schedule.clone(),
            timezone: job.timezone.clone(),
            settled: now,
            scheduled: None,
            at: now,
            node: self.context.node.clone(),
        }
    }

    async fn read(&self, job: &Job) -> Result<Standing, String> {
        let _turn = self.context.calls.acquire().await;
        let broker = &self.context.shared.broker;
        let read = keys::read(broker, &self.merchant, &self.name).await;
        let (state, revision) = read.map_err(|error| chain(&error))?;
        Ok(Standing {
            written: state.is_some(),
            state: state.unwrap_or_else(|| self.begin(job)),
            revision,
        })
    }

    /// Writes how far the job is, if that is not written.
    async fn write(&self, standing: &mut Standing) -> Result<(), String> {
        if standing.written {
            return Ok(());
        }
        self.fresh()?;
        let _turn = self.context.calls.acquire().await;
        let broker = &self.context.shared.broker;
        let (merchant, name) = (&self.merchant, &self.name);
        let written = keys::write(broker, merchant, name, &standing.state, standing.revision).await;
        match written {
            Ok(revision) => {
                standing.revision = revision;
                standing.written = true;
                Ok(())
            }
            Err(error @ NoAck::WrongLast { .. }) => {
                // An answer was lost, the broker lost the key, or a former owner was late.
                let read = keys::read(broker, merchant, name).await;
                let (other, revision) = read.map_err(|error| chain(&error))?;
                standing.revision = revision;
                let ahead = other.filter(|other| {
                    let (ours, theirs) = (&standing.state, other);
                    (&ours.schedule, &ours.timezone) == (&theirs.schedule, &theirs.timezone)
                        && theirs.settled >= ours.settled
                });
                match ahead {
                    Some(other) => {
                        standing.state = other;
                        standing.written = true;
                        Ok(())
                    }
                    None => Err(error.to_string()),
                }
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Returns when the broker has the order; may be called again after an error.
    async fn publish(&self, job: &Job, run: UnixMillis) -> Result<(), String> {
        let order = run_order(&self.merchant, job, run).ok_or("its name is none")?;
        let mut headers = HeaderMap::new();
        for (name, value) in order_headers(&order) {
            headers.insert(name, &*value);
        }
        let _turn = self.context.calls.acquire().await;
        // Whoever has no lease may be no owner any more.
        self.fresh()?;
        let subject = subjects::publish(&self.merchant);
        let payload = job.payload.clone().into();
        let published = self
            .context
            .shared
            .broker
            .publish(subject, headers, payload);
        let (merchant, name) = (&self.merchant, &self.name);
        match published.await {
            Ok(ack) => {
                let late = Duration::from_millis(wall().saturating_sub(run));
                tracing::debug!(%merchant, job = name, id = %order.id, seq = ack.seq, "a run is published");
                self.context.shared.events.job_published(late);
                Ok(())
            }
            Err(error) => {
                if matches!(error, NoAck::Refused { .. }) && self.failures.is_multiple_of(8) {
                    tracing::warn!(%merchant, job = name, id = %order.id, %error, "the broker refuses a run; trying again");
                }
                Err(error.to_string())
            }
        }
    }

    fn left_out(&self, count: usize) {
        if count > 0 {
            let (merchant, job) = (&self.merchant, &self.name);
            tracing::info!(%merchant, job, count, "missed runs are left out");
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            self.context.shared.events.job_left_out(count);
        }
    }

    async fn forget(&mut self) -> Result<(), String> {
        self.fresh()?;
        let _turn = self.context.calls.acquire().await;
        let (broker, merchant) = (&self.context.shared.broker, &self.merchant);
        let read = keys::read(broker, merchant, &self.name).await;
        let (Some(_), revision) = read.map_err(|error| chain(&error))? else {
            return Ok(());
        };
        let deleted = keys::delete(broker, merchant, &self.name, revision).await;
        deleted.map_err(|error| error.to_string())
    }

    fn fresh(&self) -> Result<(), String> {
        let fresh = self.context.shared.freshness.fresh();
        fresh
            .then_some(())
            .ok_or_else(|| "the lease is not fresh".to_owned())
    }
}
