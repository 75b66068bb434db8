//! The driver of the local APIC that ships: what interrupts a command of two words, what is fenced, and what wakes
//! a halted CPU. No mailboxes.

use core::sync::atomic::Ordering::{Acquire, Release};
use std::panic::Location;

use smpcall_local_apic::{Access, DeliveryMode, Icr, Interrupt, Mode, Register, Routing, Vector};
use smpcall_machine::{Cpu, Deadline, Instant, InterruptsOff, Machine, Word, wait};

use crate::explorer::note::Note;
use crate::explorer::scenario::{Protocol, Scenario};
use crate::explorer::system::Violation;
use crate::machine::SimAccess;
use crate::operation::{Operation, begin};
use crate::state::expect_current;
use crate::{InterruptFrame, SimMachine, SimMemory, program, send_interrupt};

/// What a program sends.
pub(super) const MESSAGE: Vector = vector(0x40);
/// What the handler that interrupts it sends.
pub(super) const ANSWER: Vector = vector(0x41);
/// What makes a maskable handler send.
pub(super) const DEVICE: Vector = vector(0x50);

const fn vector(number: u8) -> Vector {
    match Vector::new(number) {
        Some(vector) => vector,
        None => panic!("vectors below 16 are illegal"),
    }
}

pub(super) fn all() -> Vec<Protocol> {
    let mut all = vec![
        torn(
            "icr-nmi",
            "an NMI handler sends while the two words of the ICR are written (flat)",
            Routing::Flat,
            true,
            Sends::Driver,
            Sends::Driver,
        ),
        torn(
            "icr-nmi-physical",
            "as icr-nmi, addressed by identifier",
            Routing::Physical,
            true,
            Sends::Driver,
            Sends::Driver,
        ),
        torn(
            "icr-nmi-x2apic",
            "as icr-nmi: the ICR is one register",
            Routing::X2ApicPhysical,
            true,
            Sends::Driver,
            Sends::Driver,
        ),
        torn(
            "icr-nmi-torn",
            "an NMI handler that does not put the ICR's high word back (see icr-nmi)",
            Routing::Flat,
            true,
            Sends::Driver,
            Sends::TwoWords,
        ),
        torn(
            "icr-handler",
            "an interrupt handler sends; the two words are written with interrupts off",
            Routing::Flat,
            false,
            Sends::Driver,
            Sends::Driver,
        ),
        torn(
            "icr-handler-x2apic",
            "an interrupt handler sends; the one register is written with interrupts on",
            Routing::X2ApicPhysical,
            false,
            Sends::Driver,
            Sends::Driver,
        ),
        torn(
            "icr-handler-cluster",
            "as icr-handler-x2apic, by a cluster and bits: one CPU is one operation (report 003)",
            Routing::X2ApicCluster,
            false,
            Sends::Driver,
            Sends::Driver,
        ),
        torn(
            "icr-handler-torn",
            "the two words are written with interrupts on (see icr-handler)",
            Routing::Flat,
            false,
            Sends::TwoWords,
            Sends::Driver,
        ),
        fenced(
            "x2apic-fence",
            "what was stored before an x2APIC's ICR is written is seen by the handler (TSO)",
            Sends::Driver,
        ),
        fenced(
            "x2apic-no-fence",
            "an x2APIC's ICR is written without a fence: found under TSO (see x2apic-fence)",
            Sends::OneRegister,
        ),
        wakes("halt", "a look with interrupts off, then sti;hlt: no wake-up is lost", true),
        wakes(
            "halt-late",
            "a look with interrupts on, then hlt: the wake-up comes in between (see halt)",
            false,
        ),
    ];
    for protocol in &mut all {
        let broken = ["icr-nmi-torn", "icr-handler-torn", "x2apic-no-fence", "halt-late"];
        protocol.broken = broken.contains(&protocol.name.as_str());
    }
    all
}

/// How something is sent.
#[derive(Clone, Copy)]
enum Sends {
    /// By the driver that ships.
    Driver,
    /// The two words of an xAPIC's ICR, and nothing else.
    TwoWords,
    /// The one register of an x2APIC's ICR, and no fence.
    OneRegister,
}

impl Sends {
    #[track_caller]
    fn send(self, target: Cpu, vector: Vector) {
        let flat = Icr::logical(DeliveryMode::Fixed, vector.number(), 1 << target.number());
        let physical = Icr::physical(DeliveryMode::Fixed, vector.number(), target.number());
        match self {
            Self::Driver => send(target, Interrupt::Fixed(vector)),
            Self::TwoWords => {
                let icr = flat.encode(Mode::XApic).expect("a flat destination fits");
                SimAccess.write(Register::ICR_HIGH, (icr >> 32) as u32);
                SimAccess.write(Register::ICR_LOW, icr as u32);
            }
            Self::OneRegister => {
                write_icr_unfenced(physical.encode(Mode::X2Apic).expect("an identifier fits"));
            }
        }
    }
}

/// By the driver that ships.
#[track_caller]
pub(super) fn send(target: Cpu, interrupt: Interrupt) {
    let sent = send_interrupt(target, interrupt);
    sent.expect("the target has an address, and the controller is idle");
}

/// Writes the x2APIC's ICR as the processor does, without what its driver does before.
#[track_caller]
fn write_icr_unfenced(value: u64) {
    let state = expect_current();
    begin(state, Operation::WriteIcr(value), 0, Location::caller());
    state.with(|machine| {
        let processor = machine.cpu();
        let now = Instant::from_nanos(processor.time);
        let effect = processor.apic.write_icr(value, now).expect("no reserved bits");
        machine.carry_out(effect);
    });
}

/// How often each vector was taken where it was sent to, and elsewhere.
#[derive(Default)]
struct Taken {
    message: Note,
    answer: Note,
    astray: Note,
}

/// CPU 0 sends to CPU 1. CPU 2 interrupts CPU 0, by NMI or not, whose handler answers to CPU 2.
fn torn(name: &str, about: &str, routing: Routing, by_nmi: bool, program: Sends, handler: Sends) -> Protocol {
    let mut protocol = Protocol::new(name, about, 3, move || {
        let mut scenario = Scenario::new();
        let taken = scenario.share(Taken::default());
        scenario.cpu(move || program.send(Cpu::new(1), MESSAGE));
        scenario.cpu(|| {});
        let cause = if by_nmi { Interrupt::Nmi } else { Interrupt::Fixed(DEVICE) };
        scenario.cpu(move || send(Cpu::new(0), cause));
        let arrives = |place: &'static Note, at: u32| {
            move |mut frame: InterruptFrame| {
                let here = SimMachine::current_cpu() == Cpu::new(at);
                if here { place } else { &taken.astray }.add(1);
                frame.end_of_interrupt();
            }
        };
        scenario.handler(MESSAGE.number(), arrives(&taken.message, 1));
        scenario.handler(ANSWER.number(), arrives(&taken.answer, 2));
        if by_nmi {
            scenario.nmi_handler(move |_| handler.send(Cpu::new(2), ANSWER));
        } else {
            scenario.handler(DEVICE.number(), move |mut frame| {
                handler.send(Cpu::new(2), ANSWER);
                frame.end_of_interrupt();
            });
        }
        scenario.check(|| match (taken.message.get(), taken.answer.get(), taken.astray.get()) {
            (1, 1, 0) => Ok(()),
            (message, answer, astray) => {
                let what = format!(
                    "the message was taken {message} times, the answer {answer} times, {astray} went astray"
                );
                Err(Violation::new("icr", what))
            }
        });
        scenario
    });
    protocol.routing = routing;
    protocol
}

/// CPU 0 stores and sends; CPU 1's handler looks.
fn fenced(name: &str, about: &str, sends: Sends) -> Protocol {
    let mut protocol = Protocol::new(name, about, 2, move || {
        let mut scenario = Scenario::new();
        let stored = scenario.share(Word::<SimMemory>::new(0));
        let missed = scenario.share(Note::new(0));
        scenario.name(stored.location(), "stored");
        scenario.cpu(move || {
            stored.store(1, Release);
            sends.send(Cpu::new(1), MESSAGE);
        });
        scenario.handler(MESSAGE.number(), move |mut frame| {
            if stored.load(Acquire) == 0 {
                missed.set(1);
            }
            frame.end_of_interrupt();
        });
        scenario.check(|| match missed.get() {
            0 => Ok(()),
            _ => Err(Violation::new(
                "fence",
                "the interrupt was taken before the store that it was sent after was visible",
            )),
        });
        scenario
    });
    protocol.routing = Routing::X2ApicPhysical;
    protocol
}

/// CPU 0 leaves work and sends; CPU 1 halts if there is none.
fn wakes(name: &str, about: &str, interrupts_off: bool) -> Protocol {
    Protocol::new(name, about, 2, move || {
        let mut scenario = Scenario::new();
        let work = scenario.share(Word::<SimMemory>::new(0));
        scenario.name(work.location(), "work");
        scenario.cpu(move || {
            work.store(1, Release);
            Sends::Driver.send(Cpu::new(1), MESSAGE);
        });
        scenario.cpu(move || {
            let off = interrupts_off.then(InterruptsOff::<SimMachine>::new);
            if work.load(Acquire) == 0 {
                program::halt();
            }
            drop(off);
            wait::<SimMachine>(&[work.equals(!0, 1)], Deadline::NEVER);
        });
        scenario.handler(MESSAGE.number(), |mut frame| frame.end_of_interrupt());
        scenario
    })
}
