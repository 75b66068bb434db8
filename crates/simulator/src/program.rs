//! What programs and handlers can do besides running ordinary code. All of it panics outside of a simulated CPU.

use core::time::Duration;
use std::panic::Location;

use rand_core::Rng;
use smpcall::vmcore::Registers;
use smpcall_local_apic::{EnableError, StartUpDelays};
use smpcall_machine::{Cpu, Event, EventKind, Machine};

use crate::apic::IcrFault;
use crate::devices::LINES;
use crate::hash::absorb;
use crate::image::ImageId;
use crate::machine::SimMachine;
use crate::operation::{give_up_if_abandoned, suspend};
use crate::processor::{CpuReport, Source};
use crate::state::{Driver, Handler, Shared, Stop, current, expect_current};
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

/// How long this machine waits when it starts a CPU.
pub fn start_up_delays() -> StartUpDelays {
    expect_current().with(|machine| machine.start_up_delays)
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

/// Disables interrupts and halts for ever: only NMIs are still taken (as their handler ends, this goes on), and only INIT
/// ends it. A CPU parks itself as its last act: when it goes offline, or after a crash. What it owns is never dropped;
/// the run does not wait for its program any more.
#[track_caller]
pub fn park() -> ! {
    waiting::park(expect_current(), Location::caller())
}

/// Whether a CPU was started and not reset since. False if there is no such CPU.
pub fn is_started(cpu: Cpu) -> bool {
    expect_current().with(|machine| machine.is_started(cpu))
}

/// Prepares and enables the running CPU's local APIC, through the driver: what a started CPU does first.
///
/// # Errors
/// If the routing does not fit this CPU.
pub fn enable_local_apic() -> Result<(), EnableError> {
    let cpu = SimMachine::current_cpu();
    let (routing, id) = expect_current().with(|machine| (machine.routing, machine.apic_ids[cpu.index()]));
    crate::machine::boot(routing, cpu, id)
}

/// Goes on in another kernel image, as kexec does: on a fresh stack, with interrupts disabled, with that image's handlers
/// and mailboxes, at its [entry](crate::Image::new). The APIC is left as it is: what is pending or in service stays so, and
/// NMIs stay blocked if they are, until a handler of the new image returns. The other CPUs go on with what they do.
///
/// What the calling program owns is never dropped, and nobody waits for its end but for that of the entry. Virtual time
/// only.
///
/// # Panics
/// On a stepped machine, or if the machine has no such image.
#[track_caller]
pub fn boot_kernel(image: ImageId) -> ! {
    crate::life::boot_kernel(expect_current(), image, Location::caller())
}

/// Sets the handler of a vector in the running CPU's image: for all CPUs that use it.
pub fn set_handler(vector: u8, handler: Handler) {
    expect_current().with(|machine| machine.image().handlers[vector as usize] = Some(handler));
}

/// Sets the handler of NMIs in the running CPU's image.
pub fn set_nmi_handler(handler: Handler) {
    expect_current().with(|machine| machine.image().nmi_handler = Some(handler));
}

/// Lets rings, ticks and NMIs serve the mailboxes of the running CPU's image from now on: its handlers of
/// [`RING_VECTOR`](crate::RING_VECTOR), [`TIMER_VECTOR`](crate::TIMER_VECTOR) and NMIs are the kernel's.
///
/// # Panics
/// If the image has no [kernel](crate::Image::kernel).
pub fn serve() {
    expect_current().with(|machine| {
        assert!(machine.image().kernel.is_some(), "the image has no mailboxes to be served");
        machine.image().serve();
    });
}

/// The image that the running CPU uses.
pub fn image() -> ImageId {
    ImageId(expect_current().with(|machine| machine.cpu().image))
}

/// A device asserts its interrupt line (0..=23), or does not any more; see [`SimIoApic`](crate::SimIoApic) and
/// [`SimPorts`](crate::SimPorts) for what becomes of it. Not an operation: it happens with the one before.
///
/// # Panics
/// If there is no such line.
pub fn set_irq(line: u8, asserted: bool) {
    assert!(line < LINES, "there are lines 0 to {}", LINES - 1);
    let state = expect_current();
    state.with(|machine| {
        let time = machine.cpu().time;
        machine.set_line(line, asserted, time);
    });
    // An entry of the I/O APIC may say INIT.
    give_up_if_abandoned(state);
}

/// A device interrupts by an edge: it asserts its line for a moment that is long enough to be seen at edge-triggered inputs.
///
/// # Panics
/// If there is no such line.
pub fn raise_irq(line: u8) {
    set_irq(line, false);
    set_irq(line, true);
}

/// What stands for the instruction pointer at a place in the source: an address of a kernel's text that nothing else has.
/// [`source_of`] leads back. The same in every run of the same programs, machine and seed.
pub fn instruction_pointer(source: Source) -> u64 {
    expect_current().with(|machine| machine.instruction_pointer(source))
}

/// The place in the source that an [`instruction_pointer`] of this machine stands for.
pub fn source_of(instruction_pointer: u64) -> Option<Source> {
    expect_current().with(|machine| machine.source_of(instruction_pointer))
}

/// What stands for the registers of this CPU, here: an [instruction pointer](instruction_pointer) in `rip`, the interrupt flag
/// as it is in `rflags`, the CPU's number in `r15`; `rsp` is in a stack of this CPU's, lower in handlers, and `cs` and `ss` are
/// those of a Linux kernel. All others are zero. The same in every run of the same programs, machine and seed.
#[track_caller]
pub fn registers() -> Registers {
    registers_at(Location::caller(), SimMachine::interrupts_enabled())
}

/// As [`registers`], at another place, and with another interrupt flag.
pub(crate) fn registers_at(source: Source, interrupts_enabled: bool) -> Registers {
    expect_current().with(|machine| {
        let depth = machine.cpu().handler_depth;
        machine.registers(source, depth, interrupts_enabled)
    })
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
