//! Labels: enums whose values are all known beforehand.

use expediter_core::invariants::Promise;
use expediter_types::{AttemptClass, ClosedBecause, DeadReason, OutcomeKind};

/// A label with a fixed set of values.
pub trait Label: Copy {
    /// The label's name.
    const NAME: &'static str;

    /// All values, in the order of [`Label::index`].
    fn values() -> Vec<&'static str>;

    /// Position among [`Label::values`].
    fn index(self) -> usize;
}

macro_rules! label {
    ($type:ty, $name:literal, $all:expr) => {
        impl Label for $type {
            const NAME: &'static str = $name;

            fn values() -> Vec<&'static str> {
                $all.into_iter().map(<$type>::as_str).collect()
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label!(AttemptClass, "class", AttemptClass::ALL);
label!(DeadReason, "reason", DeadReason::ALL);
label!(Promise, "promise", Promise::ALL);
label!(Alarm, "kind", Alarm::ALL);
label!(Stream, "stream", Stream::ALL);
label!(Notified, "result", Notified::ALL);
label!(ClosedBecause, "because", ClosedBecause::ALL);

impl Label for OutcomeKind {
    const NAME: &'static str = "outcome";

    fn values() -> Vec<&'static str> {
        let all = [
            Self::Delivered,
            Self::Rejected,
            Self::Expired,
            // The reason has a metric of its own.
            Self::DeadLettered(DeadReason::Ambiguous),
            Self::Duplicate,
            Self::Cancelled,
        ];
        all.iter().map(|kind| kind.as_str()).collect()
    }

    fn index(self) -> usize {
        match self {
            Self::Delivered => 0,
            Self::Rejected => 1,
            Self::Expired => 2,
            Self::DeadLettered(_) => 3,
            Self::Duplicate => 4,
            Self::Cancelled => 5,
        }
    }
}

/// A stream that can fill up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Full: publishers are refused.
    Orders,
    /// Full: no outcome can be written.
    Outcomes,
}

impl Stream {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Orders, Self::Outcomes];

    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Orders => "orders",
            Self::Outcomes => "outcomes",
        }
    }
}

/// What became of a try to notify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Notified {
    /// The receiver answered 2xx.
    Delivered,
    /// It did not, and is tried again.
    Failed,
    /// Nobody will hear of it.
    GivenUp,
}

impl Notified {
    /// All results.
    pub const ALL: [Self; 3] = [Self::Delivered, Self::Failed, Self::GivenUp];

    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::GivenUp => "given_up",
        }
    }
}

/// What a person should look at, now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Alarm {
    /// The ledger does not balance.
    OrdersUnaccounted,
    /// The broker lost acknowledged orders, since this process started: the log came back shorter,
    /// empty or as another.
    LogLost,
    /// OUTCOMES came back shorter, since this process started.
    OutcomesLost,
    /// OUTCOMES is 80 % full or more.
    OutcomesFilling,
    /// No new attempts: OUTCOMES is 95 % full.
    OutcomesStopped,
    /// A partition's owners crashed too often; no attempt starts.
    PartitionPaused,
    /// A merchant's steps panic; it takes no orders.
    MerchantQuarantined,
    /// A merchant refuses our credentials.
    MerchantSuspended,
    /// A merchant's endpoint is wrong.
    MerchantMisconfigured,
    /// Orders wait for a merchant that nobody registered.
    MerchantUnknown,
    /// Attempts fail by our own fault: no descriptors, no ports, no resolver.
    LocalFault,
    /// The broker cannot be reached.
    BrokerAway,
}

impl Alarm {
    /// All kinds.
    pub const ALL: [Self; 12] = [
        Self::OrdersUnaccounted,
        Self::LogLost,
        Self::OutcomesLost,
        Self::OutcomesFilling,
        Self::OutcomesStopped,
        Self::PartitionPaused,
        Self::MerchantQuarantined,
        Self::MerchantSuspended,
        Self::MerchantMisconfigured,
        Self::MerchantUnknown,
        Self::LocalFault,
        Self::BrokerAway,
    ];

    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OrdersUnaccounted => "orders_unaccounted",
            Self::LogLost => "log_lost",
            Self::OutcomesLost => "outcomes_lost",
            Self::OutcomesFilling => "outcomes_filling",
            Self::OutcomesStopped => "outcomes_stopped",
            Self::PartitionPaused => "partition_paused",
            Self::MerchantQuarantined => "merchant_quarantined",
            Self::MerchantSuspended => "merchant_suspended",
            Self::MerchantMisconfigured => "merchant_misconfigured",
            Self::MerchantUnknown => "merchant_unknown",
            Self::LocalFault => "local_fault",
            Self::BrokerAway => "broker_away",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agrees<L: Label>(all: impl IntoIterator<Item = L>, as_str: impl Fn(L) -> &'static str) {
        let values = L::values();
        let mut count = 0;
        for label in all {
            assert_eq!(values[label.index()], as_str(label));
            count += 1;
        }
        assert_eq!(count, values.len(), "{}", L::NAME);
    }

    #[test]
    fn a_label_finds_its_own_value() {
        agrees(AttemptClass::ALL, AttemptClass::as_str);
        agrees(DeadReason::ALL, DeadReason::as_str);
        agrees(Promise::ALL, Promise::as_str);
        agrees(Alarm::ALL, Alarm::as_str);
        agrees(Stream::ALL, Stream::as_str);
        agrees(Notified::ALL, Notified::as_str);
        agrees(ClosedBecause::ALL, ClosedBecause::as_str);
        agrees(
            [
                OutcomeKind::Delivered,
                OutcomeKind::Rejected,
                OutcomeKind::Expired,
                OutcomeKind::DeadLettered(DeadReason::Poisoned),
                OutcomeKind::Duplicate,
                OutcomeKind::Cancelled,
            ],
            |kind| kind.as_str(),
        );
    }
}
