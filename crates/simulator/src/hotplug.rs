//! The CPUs of simulated machines come and go, as those of a PC do: by INIT and start-up messages through the driver.

use core::time::Duration;

use smpcall::{Callback, FenceError, Hotplug};
use smpcall_local_apic::{ApicId, Topology as _};
use smpcall_machine::{Cpu, SendError};

use crate::config::BOOT_CPU;
use crate::kernel::kernel;
use crate::machine::{SimMachine, SimTopology, local_apic};
use crate::program;

/// Where start-up code begins: a page of the first megabyte, which this machine has not.
const START_UP_PAGE: u8 = 8;
/// After so long an INIT that was not lost has arrived, whatever delays it: the time that the specification of Intel
/// multiprocessors (1.4, B.4) gives it. Who starts a CPU may go on sooner; who fences one must be sure.
const INIT_ARRIVES: Duration = Duration::from_millis(10);

/// How often a CPU that was sent a start-up message is looked for, before it is sent a second one.
const LOOKS: u32 = 8;

fn id_of(cpu: Cpu) -> Result<ApicId, SendError> {
    SimTopology::current().apic_id(cpu).ok_or(SendError::Unreachable)
}

// SAFETY: 1. and 2. An INIT that was accepted abandons what the CPU does; its stores are in memory, and the fence says so
// only if it was accepted. 3. A parked CPU only takes NMIs, whose handlers do not return to anything.
unsafe impl Hotplug for SimMachine {
    fn callbacks() -> &'static [Callback] {
        kernel().hooks().callbacks
    }

    fn boot_cpu() -> Cpu {
        Cpu::new(BOOT_CPU as u32)
    }

    #[track_caller]
    fn start_cpu(cpu: Cpu) -> Result<(), SendError> {
        let id = id_of(cpu)?;
        let delays = program::start_up_delays();
        local_apic().send_init(id)?;
        program::advance(delays.after_init);
        local_apic().send_start_up(id, START_UP_PAGE)?;
        for look in 0..LOOKS {
            if program::is_started(cpu) {
                return Ok(());
            }
            // Each lasts twice as long as the one before, and all of them the delay: it is mostly there at once.
            program::advance(delays.after_start_up / (1 << (LOOKS - look)));
        }
        local_apic().send_start_up(id, START_UP_PAGE).map(drop)
    }

    fn park() -> ! {
        program::park()
    }

    #[track_caller]
    fn fence(cpu: Cpu) -> Result<(), FenceError> {
        local_apic().send_init(id_of(cpu).map_err(FenceError::NotSent)?).map_err(FenceError::NotSent)?;
        program::advance(INIT_ARRIVES);
        // What a hypervisor could say, and a PC cannot: whether it has arrived.
        if program::is_started(cpu) { Err(FenceError::NotStopped) } else { Ok(()) }
    }
}
