//! The kinds of trouble.

use std::time::Duration;

use expediter_fleet::merchants::{Behaviour, Ending};

/// Which merchants are in trouble, and what they get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Mix {
    /// Of the merchants a tenth hangs until the timeout, a twentieth answers 500, a twentieth 429
    /// with Retry-After: 1
    Mixed,
    /// Ten more merchants hang, whose concurrency adds up to twice --in-flight, with a backlog that
    /// would fill it
    HungCapacity,
    /// One more merchant hangs, and gets 10,000 orders a second
    HungFlood,
    /// One more merchant answers with a body that never ends, and gets 200 orders a second
    EndlessBody,
    /// One more merchant sends its answer's body byte by byte, for minutes, and gets 200 orders a
    /// second
    Trickle,
}

/// Merchants in the same trouble; `<name>-0` and so on.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    pub(super) name: &'static str,
    pub(super) merchants: u32,
    pub(super) behaviour: Behaviour,
    /// `None`: as all.
    pub(super) concurrency: Option<u32>,
    pub(super) orders: Orders,
}

/// What merchants in trouble get while they are in trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Orders {
    /// Their share of the flow: they are some of the merchants, also in the calm phase.
    Share,
    /// So many a second, all together, besides the flow; nothing in the calm phase.
    PerSecond(u32),
    /// So many at once, all together, besides the flow; nothing in the calm phase.
    AtOnce(u32),
}

impl Mix {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Mixed => "mixed",
            Self::HungCapacity => "hung-capacity",
            Self::HungFlood => "hung-flood",
            Self::EndlessBody => "endless-body",
            Self::Trickle => "trickle",
        }
    }

    /// With so many merchants that share the flow, and a node that has so many attempts in flight.
    pub(super) fn troubles(self, merchants: u32, in_flight: u32) -> Vec<Trouble> {
        let ending = |ending| Behaviour {
            ending,
            // For the trickle: more bytes than any timeout waits for.
            body: "x".repeat(10_000),
            ..Behaviour::default()
        };
        let share = |name, part: u32, behaviour| Trouble {
            name,
            merchants: merchants / part,
            behaviour,
            concurrency: None,
            orders: Orders::Share,
        };
        let one = |name, behaviour, per_second| Trouble {
            name,
            merchants: 1,
            behaviour,
            concurrency: None,
            orders: Orders::PerSecond(per_second),
        };
        let limited = Behaviour {
            headers: vec![("retry-after".to_owned(), "1".to_owned())],
            ..Behaviour::status(429)
        };
        match self {
            Self::Mixed => vec![
                share("hung", 10, Behaviour::hung()),
                share("failing", 20, Behaviour::status(500)),
                share("limited", 20, limited),
            ],
            Self::HungCapacity => vec![Trouble {
                name: "hung",
                merchants: 10,
                behaviour: Behaviour::hung(),
                concurrency: Some((in_flight / 5).clamp(1, 10_000)),
                orders: Orders::AtOnce(in_flight.saturating_mul(2)),
            }],
            Self::HungFlood => vec![one("hung", Behaviour::hung(), 10_000)],
            Self::EndlessBody => vec![one("endless", ending(Ending::Endless), 200)],
            Self::Trickle => {
                let slow = Ending::Trickle(Duration::from_millis(100));
                vec![one("trickle", ending(slow), 200)]
            }
        }
    }
}
