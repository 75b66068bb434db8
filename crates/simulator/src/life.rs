//! The life of a CPU: reset by INIT, started by a start-up message, begun anew by another kernel image.
//!
//! SDM, "Multiple-Processor (MP) Initialization": an INIT resets a CPU whatever it is doing and leaves it waiting for a
//! start-up message (SIPI); the boot CPU, to which INIT would mean the firmware's reset vector, is never sent one.
//! What was in progress is never finished and never unwound: its stack stays as it is, because others may refer to it.

use smpcall_machine::{Cpu, EventKind};

use crate::config::BOOT_CPU;
use crate::explorer::footprint::Use;
use crate::explorer::system::Violation;
use crate::image::ImageId;
use crate::operation::{Operation, begin, give_up_if_abandoned};
use crate::places::irr_place;
use crate::processor::{Activity, Anew, Source};
use crate::state::{Driver, Shared, State};

impl State {
    /// What a CPU was doing is abandoned.
    #[track_caller]
    fn abandon(&mut self, cpu: usize, anew: Anew) {
        if self.driver == Driver::Timed {
            if self.cpus[cpu].activity == Activity::Waiting {
                let running = core::mem::replace(&mut self.running, cpu);
                self.unwatch();
                self.running = running;
            }
            self.queue.cancel(cpu as u32);
        } else if cpu < 63 {
            self.explored.waiting &= !(1 << cpu);
        }
        if self.cpus[cpu].anew.is_none() {
            self.beginning += 1;
        }
        self.cpus[cpu].abandon(anew);
    }

    /// A CPU begins what it does instead of what was abandoned, on a fresh stack.
    pub(crate) fn begin_anew(&mut self, cpu: usize, image: usize) {
        self.beginning -= 1;
        self.cpus[cpu].begin_anew(image);
    }

    /// A CPU's APIC has accepted an INIT.
    pub(crate) fn reset_cpu(&mut self, from: Option<usize>, to: usize, number: u64, time: u64) {
        if self.driver == Driver::Stepped && !self.cpus[to].is_done() {
            self.explored.meet_reset(to);
        }
        // What it has executed it has executed: its stores reach memory long before whoever has sent the INIT relies on it.
        while !self.cpus[to].store_buffer.is_empty() {
            self.flush(to);
        }
        self.abandon(to, Anew::WaitForStartUp);
        let processor = &mut self.cpus[to];
        processor.counters.resets += 1;
        processor.time = processor.time.max(time);
        // It was software that went round in circles; a hypervisor goes on forgetting it.
        processor.wedged_in_nmi_until = 0;
        if processor.wedge.takes_nmis {
            processor.wedge = crate::processor::Wedge::default();
        }
        self.schedule_timer(to);
        self.record_at(time, to, EventKind::Reset, from, 0, number);
        // A program that is never finished is not waited for.
        self.program_ended(to);
        // It accepts nothing more, and so what waits for it has an end.
        self.offer_waiting(to, time);
    }

    /// A CPU's APIC has accepted a start-up message.
    pub(crate) fn start_up(&mut self, from: Option<usize>, to: usize, number: u64, anew: Anew, time: u64) {
        let Anew::StartUp { page, .. } = anew else { return };
        let begins = time.saturating_add(self.cost.start_up);
        let processor = &mut self.cpus[to];
        processor.counters.start_ups += 1;
        processor.anew = Some(anew);
        processor.pending = Some((Operation::StartUp { page }, std::panic::Location::caller()));
        processor.hashed = None;
        processor.refresh();
        self.record_at(time, to, EventKind::StartedUp, from, page.into(), number);
        if self.driver == Driver::Timed {
            self.wake(to, begins);
        }
    }

    /// The boot CPU survives what would restart the machine, and everybody hears of it.
    pub(crate) fn refuse_init(&mut self, from: Option<usize>, number: u64, time: u64) {
        self.boot_cpu_inits += 1;
        self.record_at(time, BOOT_CPU, EventKind::BootCpuSentInit, from, 0, number);
        if self.driver == Driver::Stepped {
            self.explored.footprint.add(irr_place(BOOT_CPU), Use::Write);
            let sender = from.map_or_else(|| "a device".to_owned(), |from| format!("CPU {from}"));
            let text = format!("{sender} sends INIT to the boot CPU, which would restart the machine");
            self.explored.violation.get_or_insert_with(|| Violation::new("L8", text));
        }
    }

    /// Whether a CPU is neither reset nor yet to be started.
    pub(crate) fn is_started(&self, cpu: Cpu) -> bool {
        self.cpus.get(cpu.index()).is_some_and(|processor| !processor.apic.is_waiting_for_start_up())
    }
}

/// See [`program::boot_kernel`](crate::program::boot_kernel).
pub(crate) fn boot_kernel(state: Shared, image: ImageId, source: Source) -> ! {
    // Everything that is due before comes first: the jump is an operation like others.
    begin(state, Operation::Fence, 0, source);
    state.with(|machine| {
        assert!(machine.driver == Driver::Timed, "a stepped machine boots one image");
        assert!(image.0 < machine.images.len(), "the machine has no such image");
        let running = machine.running;
        machine.record(running, EventKind::ImageBooted, None, 0, image.0 as u64);
        machine.abandon(running, Anew::Boot { image: image.0 });
        if let Some(kernel) = &machine.images[image.0].kernel {
            kernel.set_backstop(Cpu::new(running as u32));
        }
        let time = machine.cpu().time;
        machine.queue.set(running as u32, time);
    });
    give_up_if_abandoned(state);
    unreachable!("it was abandoned");
}
