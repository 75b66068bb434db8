//! What programs and handlers can do besides running ordinary code. All of it panics outside of a simulated CPU.

use core::time::Duration;
use std::panic::Location;

use rand_core::Rng;
use smpcall_machine::{Cpu, Event, EventKind, Machine};

use crate::apic::IcrFault;
use crate::hash::absorb;
use crate::machine::SimMachine;
use crate::operation::suspend;
use crate::processor::CpuReport;
use crate::state::{Driver, Shared, Stop, current, expect_current};
use crate::waiting;

/// How many CPUs the machine has.
pub fn cpus() -> usize {
    expect_current().with(|machine| machine.cpus.len())
}

/// A random number below `limit`, from this CPU's own seeded generator; 0 if `limit` is 0.
pub fn random(limit: u64) -> u64 {
    let number = expect_current().with(|machine| machine.cpu().random.next_u64());
    ((u128::from(number) * u128::from(limit)) >> 64) as u64
}

/// Works on nothing that is shared, for a time. Interrupts are taken meanwhile and make it longer.
///
/// On a stepped machine it takes no time: interrupts can come before every operation anyway.
#[track_caller]
pub fn advance(duration: Duration) {
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    waiting::work(expect_current(), nanos, Location::caller());
}

/// Enables interrupts and halts until one was taken (`sti; hlt`, atomically: none is missed in between).
#[track_caller]
pub fn halt() {
    waiting::halt(expect_current(), Location::caller());
}

/// Makes the delivery status of this CPU's APIC misbehave from now on; `None` heals it. Not an operation: it happens with the
/// one before.
pub fn break_icr(fault: Option<IcrFault>) {
    expect_current().with(|machine| {
        let processor = machine.cpu();
        processor.apic.set_icr_fault(fault);
        processor.refresh();
    });
}

/// Something that is no CPU - a device, a timer - requests an interrupt from a CPU: its APIC accepts the vector, in one
/// operation.
///
/// # Panics
/// If there is no such CPU.
#[track_caller]
pub fn request_interrupt(cpu: Cpu, vector: u8) {
    crate::machine::request_interrupt(cpu, vector, Location::caller());
}

/// Ends the run at this point of virtual time; it can be continued. No effect on a stepped machine.
pub fn stop() {
    let state = expect_current();
    let stopping = state.with(|machine| {
        if machine.driver == Driver::Stepped {
            return false;
        }
        machine.stop.get_or_insert(Stop::Asked);
        let (running, time) = (machine.running as u32, machine.cpu().time);
        machine.queue.set(running, time);
        true
    });
    if stopping {
        suspend(state);
    }
}

/// What an outsider sees of a CPU: what a handler that reports a hang has in hand.
///
/// # Panics
/// If there is no such CPU.
pub fn inspect(cpu: Cpu) -> CpuReport {
    expect_current().with(|machine| machine.report(cpu.index()))
}

/// Records an event on this CPU, now.
pub fn record(kind: EventKind, other: Option<Cpu>, detail: u32, argument: u64) {
    let time = SimMachine::now();
    SimMachine::observe(&Event { time, kind, cpu: SimMachine::current_cpu(), other, detail, argument });
}

/// Stepped machines: declares that this CPU now knows something that no operation returned, such as the content of
/// a Rust variable that another CPU wrote. States are told apart by it.
pub fn learn(knowledge: u64) {
    expect_current().with(|machine| {
        let processor = machine.cpu();
        processor.history = absorb(processor.history, knowledge);
    });
}

/// Stepped machines: declares that all that this CPU will still do depends, besides shared memory, only on this
/// place in its program and on `knowledge`. What it learned before no longer tells states apart.
///
/// A hint, believed if [`Config::believe_hints`](crate::Config::believe_hints) says so.
#[track_caller]
pub fn forget_but(knowledge: u64) {
    let source = Location::caller();
    let place = u64::from(source.line()) << 32 | u64::from(source.column());
    expect_current().with(|machine| {
        if !machine.believe_hints || !machine.explored.options.hash {
            return;
        }
        let processor = machine.cpu();
        let handler = u64::from(processor.handler_depth);
        processor.history = absorb(absorb(absorb(0, place), handler), knowledge);
    });
}

/// A named frame of the running CPU's stack, until dropped.
#[must_use = "the frame is left when this is dropped"]
pub struct Frame {
    state: Shared,
    cpu: usize,
}

/// Enters a frame: what a back trace of this CPU shows.
pub fn frame(name: &'static str) -> Frame {
    let state = expect_current();
    state.with(|machine| {
        let cpu = machine.running;
        let number = machine.frame_number(name);
        machine.cpu().frames.push(number);
        machine.record(cpu, EventKind::FrameEntered, None, 0, number.into());
        Frame { state, cpu }
    })
}

impl Drop for Frame {
    fn drop(&mut self) {
        // A frame that outlived its machine, or was carried to another one, is nobody's.
        if current() != Some(self.state) {
            return;
        }
        self.state.with(|machine| {
            if let Some(processor) = machine.cpus.get_mut(self.cpu) {
                processor.frames.pop();
                machine.record(self.cpu, EventKind::FrameLeft, None, 0, 0);
            }
        });
    }
}
