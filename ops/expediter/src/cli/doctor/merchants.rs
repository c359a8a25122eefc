//! Merchants with problems.

use expediter_nats::Connection;
use expediter_types::{ClosedBecause, UnixMillis};
use expediter_wire::control::{MerchantState, MerchantStatus};

use super::{Finding, Level};
use crate::cli::Error;
use crate::cli::owners::Owners;
use crate::cli::text::{ago, clean, count, counted, now};

/// Merchants that are named.
const NAMED: usize = 20;

/// Those with the longest backlogs first.
pub(super) async fn check(connection: &Connection, owners: &Owners) -> Result<Vec<Finding>, Error> {
    let registered = expediter_nats::Registry::new(connection)
        .list()
        .await?
        .len();
    let busy = owners.busy().await;
    let mut troubled: Vec<&MerchantStatus> = busy
        .merchants
        .values()
        .filter(|status| trouble(status).is_some())
        .collect();
    troubled.sort_by_key(|status| std::cmp::Reverse(status.backlog));
    let at = now();
    let mut findings: Vec<Finding> = troubled
        .iter()
        .take(NAMED)
        .filter_map(|status| {
            let (level, what) = trouble(status)?;
            let merchant = &status.merchant;
            let error = status.last_error.as_deref().map_or(String::new(), |error| {
                format!(", last error: {}", clean(error))
            });
            let waits = oldest(status, at);
            Some(Finding::new(
                level,
                "merchants",
                format!(
                    "{merchant} {what}, {} wait{waits}{error}",
                    counted(status.backlog, "order")
                ),
                format!("expediter merchant explain {merchant}"),
            ))
        })
        .collect();
    if troubled.len() > NAMED {
        findings.push(Finding::warning(
            "merchants",
            format!(
                "{} more have problems",
                count((troubled.len() - NAMED) as u64)
            ),
            "expediter merchant list --waiting",
        ));
    }
    if troubled.is_empty() {
        findings.push(Finding::ok(
            "merchants",
            format!(
                "{}, none with a problem",
                counted(registered as u64, "merchant")
            ),
        ));
    }
    Ok(findings)
}

fn oldest(status: &MerchantStatus, now: UnixMillis) -> String {
    let oldest = status.oldest.as_ref();
    oldest.map_or(String::new(), |at| {
        format!(", the oldest {}", ago(at.0, now))
    })
}

fn trouble(status: &MerchantStatus) -> Option<(Level, &'static str)> {
    Some(match (status.state, status.closed_because) {
        (MerchantState::Quarantined, _) => {
            (Level::Wrong, "is quarantined: its actor keeps crashing")
        }
        (MerchantState::Unknown, _) => (Level::Wrong, "is not registered"),
        (MerchantState::Closed, Some(ClosedBecause::Suspended)) => {
            (Level::Wrong, "refuses our credentials")
        }
        (MerchantState::Closed, Some(ClosedBecause::Misconfigured)) => {
            (Level::Wrong, "is misconfigured")
        }
        (MerchantState::Closed, _) => (Level::Warning, "is closed for a while"),
        (MerchantState::Paused, _) => (Level::Warning, "is paused"),
        (MerchantState::Draining, _) => (Level::Warning, "is being drained"),
        (MerchantState::Idle | MerchantState::Active | MerchantState::OutsideHours, _) => {
            return None;
        }
    })
}
