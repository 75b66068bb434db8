//! What programs and handlers can do besides running ordinary code. All of it panics outside of a simulated CPU.

use core::time::Duration;
use std::panic::Location;

use rand_core::Rng;
use smpcall_machine::{Cpu, Event, EventKind, Machine};

use crate::hash::absorb;
use crate::machine::SimMachine;
use crate::operation;
use crate::processor::CpuReport;
use crate::state::{Driver, State, Stop, current, expect_current};

/// The state, for one statement.
fn state() -> *mut State {
    expect_current()
}

/// How many CPUs the machine has.
pub fn cpus() -> usize {
    // SAFETY: one thread; no other reference into the state is alive while a program runs. So everywhere below.
    unsafe { (*state()).cpus.len() }
}

/// A random number below `limit`, from this CPU's own seeded generator; 0 if `limit` is 0.
pub fn random(limit: u64) -> u64 {
    // SAFETY: as above.
    let number = unsafe { (*state()).cpu().random.next_u64() };
    ((u128::from(number) * u128::from(limit)) >> 64) as u64
}

/// Works on nothing that is shared, for a time. Interrupts are taken meanwhile and make it longer.
///
/// On a stepped machine it takes no time: interrupts can come before every operation anyway.
#[track_caller]
pub fn advance(duration: Duration) {
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    operation::work(state(), nanos, Location::caller());
}

/// Enables interrupts and halts until one was taken (`sti; hlt`, atomically: none is missed in between).
#[track_caller]
pub fn halt() {
    operation::halt(state(), Location::caller());
}

/// Ends the run at this point of virtual time; it can be continued. No effect on a stepped machine.
pub fn stop() {
    let state = state();
    // SAFETY: as above; no reference is alive across the suspension.
    unsafe {
        if (*state).driver == Driver::Timed {
            (*state).stop.get_or_insert(Stop::Asked);
            let (running, time) = ((*state).running as u32, (*state).cpu().time);
            (*state).queue.set(running, time);
            operation::suspend(state);
        }
    }
}

/// What an outsider sees of a CPU: what a handler that reports a hang has in hand.
///
/// # Panics
/// If there is no such CPU.
pub fn inspect(cpu: Cpu) -> CpuReport {
    // SAFETY: as above.
    unsafe { (*state()).report(cpu.index()) }
}

/// Records an event on this CPU, now.
pub fn record(kind: EventKind, other: Option<Cpu>, detail: u32, argument: u64) {
    let time = SimMachine::now();
    SimMachine::observe(&Event { time, kind, cpu: SimMachine::current_cpu(), other, detail, argument });
}

/// Stepped machines: declares that this CPU now knows something that no operation returned, such as the content of
/// a Rust variable that another CPU wrote. States are told apart by it.
pub fn learn(knowledge: u64) {
    // SAFETY: as above.
    let processor = unsafe { (*state()).cpu() };
    processor.history = absorb(processor.history, knowledge);
}

/// Stepped machines: declares that all that this CPU will still do depends, besides shared memory, only on this
/// place in its program and on `knowledge`. What it learned before no longer tells states apart.
///
/// A wrong declaration hides states from a controller that looks at hashes: cross-check without.
#[track_caller]
pub fn forget_but(knowledge: u64) {
    let source = Location::caller();
    let place = u64::from(source.line()) << 32 | u64::from(source.column());
    // SAFETY: as above.
    let processor = unsafe { (*state()).cpu() };
    let handler = u64::from(processor.handler_depth);
    processor.history = absorb(absorb(absorb(0, place), handler), knowledge);
}

/// A named frame of the running CPU's stack, until dropped.
#[must_use = "the frame is left when this is dropped"]
pub struct Frame {
    state: *mut State,
    cpu: usize,
}

/// Enters a frame: what a back trace of this CPU shows.
pub fn frame(name: &'static str) -> Frame {
    let state = state();
    // SAFETY: as above.
    let machine = unsafe { &mut *state };
    let cpu = machine.running;
    let number = machine.frame_number(name);
    machine.cpu().frames.push(number);
    machine.record(cpu, EventKind::FrameEntered, None, 0, number.into());
    Frame { state, cpu }
}

impl Drop for Frame {
    fn drop(&mut self) {
        // A frame that outlived its machine, or was carried to another one, is nobody's.
        if current() != self.state {
            return;
        }
        // SAFETY: as above; it is the current machine, hence alive.
        let machine = unsafe { &mut *self.state };
        machine.cpus[self.cpu].frames.pop();
        machine.record(self.cpu, EventKind::FrameLeft, None, 0, 0);
    }
}
