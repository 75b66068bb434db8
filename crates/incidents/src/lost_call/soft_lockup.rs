//! The soft-lockup check of 2.6.23: the timer interrupt looks at when the scheduler last ran its watchdog thread.
//!
//! Everything here is per-CPU data that only its own CPU uses: one thread simulates all of them, one at a time.

use core::time::Duration;
use std::cell::Cell;

use smpcall_machine::{EventKind, Instant, Machine};
use smpcall_simulator::{MAX_CPUS, SimMachine, program};

use super::this_cpu;

/// No progress at task level for longer than this is a soft lockup. That kernel's threshold, in virtual time.
pub(super) const THRESHOLD: Duration = Duration::from_secs(10);

struct PerCpu {
    touched: Cell<u64>,
    reported: Cell<bool>,
}

thread_local! {
    static CPUS: [PerCpu; MAX_CPUS] =
        const { [const { PerCpu { touched: Cell::new(0), reported: Cell::new(false) } }; MAX_CPUS] };
}

/// As at boot, on all CPUs.
pub(super) fn reset() {
    CPUS.with(|cpus| {
        for cpu in cpus {
            cpu.touched.set(0);
            cpu.reported.set(false);
        }
    });
}

/// The scheduler of this CPU has run its watchdog thread.
pub(super) fn touch() {
    let now = SimMachine::now();
    CPUS.with(|cpus| {
        let cpu = &cpus[this_cpu().index()];
        cpu.touched.set(now.as_nanos());
        cpu.reported.set(false);
    });
}

/// From the timer interrupt. Records a soft lockup of this CPU, once until it makes progress again, and returns for how
/// long it has made none.
pub(super) fn check() -> Option<Duration> {
    let now = SimMachine::now();
    let stalled = CPUS.with(|cpus| {
        let cpu = &cpus[this_cpu().index()];
        let stalled = now.since(Instant::from_nanos(cpu.touched.get()));
        (stalled > THRESHOLD && !cpu.reported.replace(true)).then_some(stalled)
    });
    if let Some(stalled) = stalled {
        program::record(EventKind::SoftLockup, None, 0, stalled.as_nanos() as u64);
    }
    stalled
}
