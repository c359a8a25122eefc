mod answers;
mod client;
mod judging;
mod steering;

use std::time::Duration;

use super::{Behaviour, Fleet, FleetHandle, Options, Record};

/// Generous: these machines may be busy. No test waits for it unless it fails.
const DEADLINE: Duration = Duration::from_secs(20);

fn fleet() -> FleetHandle {
    let options = Options {
        record: Record::Arrivals,
        ..Options::default()
    };
    Fleet::start(options).expect("the fleet starts")
}

fn judging_fleet() -> FleetHandle {
    let options = Options {
        judge: true,
        threads: 2,
        ..Options::default()
    };
    Fleet::start(options).expect("the fleet starts")
}

fn merchant(behaviour: Behaviour) -> FleetHandle {
    let fleet = fleet();
    fleet.set("acme", behaviour).expect("a valid behaviour");
    fleet
}
