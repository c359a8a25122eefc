use std::time::Duration;

use crate::Priority;

/// An order that is published on a schedule: `[[merchant.job]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// As a merchant's id; names the job within its merchant, and its orders: `<name>@<time>`.
    pub name: String,
    /// Five fields of cron: minute, hour, day of the month, month, day of the week.
    pub schedule: String,
    /// Name in the time zone database; `UTC` by default.
    pub timezone: String,
    pub missed: Missed,
    /// The order's payload, as it is sent.
    pub payload: String,
    /// `application/json` by default.
    pub content_type: String,
    /// From the scheduled time; `None`: the merchant's `retry.deadline` from the publish.
    pub deadline: Option<Duration>,
    pub priority: Priority,
}

/// What becomes of runs whose time passed while no node worked on the merchant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missed {
    /// They are left out.
    Skip,
    /// The newest of them is made up for.
    Once,
    /// All of them are made up for, at most the newest 100.
    All,
}

impl Missed {
    /// The name used in manifests.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Once => "once",
            Self::All => "all",
        }
    }
}
