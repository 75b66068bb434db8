//! Suite `agree`: the scenarios that the simulated machine runs too (`crates/simulator/tests/two_machines.rs`), with the same
//! outcome and the same number of rings.

use core::time::Duration;

use smpcall_machine::InterruptsOff;

use super::Run;
use crate::apic;
use crate::machine::{Calls, Lab};

mod scenarios;

const LIMIT: Duration = Duration::from_secs(10);

pub(super) fn run(run: &mut Run) {
    if !run.has_cpus("agree", 4) {
        return;
    }
    // A tick that finds a mark answers for a ring.
    let stopped = Calls::within(LIMIT).call_all(|_| {
        let _guard = InterruptsOff::<Lab>::new();
        Calls::watch_ticks(false);
        apic::stop_ticks();
    });
    run.check("nobody_ticks", stopped.is_ok(), format_args!("on all CPUs"));
    for scenario in scenarios::all::<Lab>() {
        scenarios::settle::<Lab>();
        let before = scenarios::rings::<Lab>();
        let held = (scenario.run)();
        let rings = scenarios::rings::<Lab>() - before;
        let wanted = scenario.rings.map_or(rings, |wanted| wanted(scenarios::cpus::<Lab>()));
        run.count(scenario.name, rings);
        run.check(
            scenario.name,
            held && rings == wanted,
            format_args!("{rings} rings, as on the simulated machine {wanted}; outcome as there: {held}"),
        );
    }
}
