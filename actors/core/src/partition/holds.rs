//! Orders that wait although their merchant could take them: operators' decisions and opening
//! hours. The backlog takes them in, nothing is started, what runs ends.

use expediter_types::{Hold, Merchant, MerchantId, Now, OpenState, UnixMillis};

use super::{Command, Directory, PartitionMachine};

/// What a merchant's orders wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// Until an operator says otherwise.
    ByOperator(Hold),
    /// Until the merchant opens; `None`: its hours never open it.
    OutsideHours { until: Option<UnixMillis> },
}

impl Held {
    /// What holds this merchant now, if anything does.
    #[must_use]
    pub fn of(merchant: &Merchant, directory: &dyn Directory, now: Now) -> Option<Self> {
        if let Some(hold) = directory.hold(merchant) {
            return Some(Self::ByOperator(hold));
        }
        match merchant.hours.as_ref()?.at(now.wall) {
            OpenState::Closed { until } => Some(Self::OutsideHours { until }),
            OpenState::Open { .. } => None,
        }
    }
}

impl PartitionMachine {
    /// Brings a merchant in line with what holds it, and says whether anything does. Looks again
    /// when its hours open or close it.
    pub(super) fn keep_hold(
        &mut self,
        id: &MerchantId,
        directory: &dyn Directory,
        now: Now,
    ) -> bool {
        let Some(backlog) = self.backlogs.get(id) else {
            return false;
        };
        let manifest = backlog.active.clone();
        let Some(merchant) = manifest.or_else(|| directory.merchant(id)) else {
            return backlog.held;
        };
        let was_held = backlog.held;
        let held = Held::of(&merchant, directory, now);
        if let Some(hours) = merchant.hours.as_ref() {
            let (OpenState::Open { until } | OpenState::Closed { until }) = hours.at(now.wall);
            self.timers.extend(until.map(|at| (at, id.clone())));
        }
        let is_held = held.is_some();
        if is_held != was_held {
            if let Some(backlog) = self.backlogs.get_mut(id) {
                backlog.held = is_held;
            }
            if is_held {
                self.let_go(id, now);
            } else {
                // The actor that waits for the last answers was told to start nothing.
                self.begin_again(&merchant, now);
            }
        }
        is_held
    }

    /// Operators decided something: about a merchant, a group, or several.
    pub fn on_holds(&mut self, directory: &dyn Directory, now: Now) {
        self.wake_all(directory, now);
    }

    /// An actor that is started while its merchant is held takes answers only.
    pub(super) fn halt_if_held(&mut self, id: &MerchantId) {
        if self.backlogs.get(id).is_some_and(|backlog| backlog.held) {
            self.commands.push_back(Command::Halt(id.clone()));
        }
    }
}
