use std::collections::HashMap;

use expediter_nats::{Connection, JobEntry, Jobs};
use expediter_types::{Job, Merchant, MerchantId};
use expediter_wire::Rfc3339;
use expediter_wire::job::JobState;
use expediter_wire::schedule::Schedule;
use serde::Serialize;

use crate::cli::Error;
use crate::cli::text::{clean, now, when_and_ago};

/// A job, and how far it is.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Row {
    pub(super) merchant: String,
    pub(super) name: String,
    pub(super) schedule: String,
    pub(super) timezone: String,
    pub(super) missed: &'static str,
    /// The newest published run; `None`: there was none yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last: Option<Rfc3339>,
    /// Who published it.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// `None`: no run comes any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<Rfc3339>,
}

impl Row {
    fn new(merchant: &MerchantId, job: &Job, state: Option<JobState>) -> Self {
        // The same schedule goes on where it is; another begins anew.
        let same = |state: &&JobState| {
            (&state.schedule, &state.timezone) == (&job.schedule, &job.timezone)
        };
        let settled = state
            .as_ref()
            .filter(same)
            .map_or(0, |state| state.settled.0);
        let schedule = Schedule::parse(&job.schedule, &job.timezone).ok();
        let next = schedule.and_then(|schedule| schedule.next_after(settled.max(now())));
        let run = state.filter(|state| state.scheduled.is_some());
        Self {
            merchant: merchant.to_string(),
            name: job.name.clone(),
            schedule: job.schedule.clone(),
            timezone: job.timezone.clone(),
            missed: job.missed.as_str(),
            last: run.as_ref().and_then(|state| state.scheduled),
            node: run.map(|state| state.node.to_string()),
            next: next.map(Rfc3339),
        }
    }

    /// For people, about a merchant that is known.
    pub(in crate::cli) fn line(&self) -> String {
        format!(
            "job {} ({}, {}): last run {}, next {}",
            clean(&self.name),
            clean(&self.schedule),
            clean(&self.timezone),
            moment(self.last, "never"),
            moment(self.next, "never")
        )
    }
}

/// A time for people.
pub(super) fn moment(at: Option<Rfc3339>, none: &str) -> String {
    at.map_or_else(|| none.to_owned(), |at| when_and_ago(at.0, now()))
}

/// The jobs of these merchants, `only`: of one.
pub(in crate::cli) async fn rows(
    connection: &Connection,
    merchants: &[&Merchant],
    only: Option<&MerchantId>,
) -> Result<Vec<Row>, Error> {
    if merchants.iter().all(|merchant| merchant.jobs.is_empty()) {
        return Ok(Vec::new());
    }
    let known = Jobs::new(connection).list(only).await?.into_iter();
    let mut states: HashMap<(MerchantId, String), JobState> = known
        .map(
            |JobEntry {
                 merchant,
                 name,
                 state,
                 ..
             }| ((merchant, name), state),
        )
        .collect();
    let mut rows = Vec::new();
    for merchant in merchants {
        for job in &merchant.jobs {
            let state = states.remove(&(merchant.id.clone(), job.name.clone()));
            rows.push(Row::new(&merchant.id, job, state));
        }
    }
    Ok(rows)
}
