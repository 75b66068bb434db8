//! Incident 4 (report 003): ends of interrupt that belong to nothing, with a real `ExtINT` of the 8259s; and an IPI to one CPU
//! that goes through a mask. No mailboxes.

use core::sync::atomic::Ordering::{Relaxed, Release};

use smpcall_local_apic::{Access, DeliveryMode, Icr, Interrupt, Mode, Pic, Register, Routing};
use smpcall_machine::{Cpu, Deadline, InterruptsOff, Machine, Word, wait};

use super::apic::{ANSWER, DEVICE, MESSAGE, send};
use crate::explorer::note::Note;
use crate::explorer::scenario::{Protocol, Scenario};
use crate::explorer::system::Violation;
use crate::machine::{SimAccess, local_apic};
use crate::{InterruptFrame, SimMachine, SimMemory, SimPorts, program};

/// Irq 0: what the 8259s give.
const LEGACY: u8 = 0x20;
/// A device of lower priority than the other one.
const LOWER: u8 = 0x40;

pub(super) fn all() -> Vec<Protocol> {
    use Judged::{Entries, Vectors};
    let ended = |name: &str, about: &str, case| {
        let mut protocol = ended(name, about, case);
        protocol.broken = case.strays && case.nests && case.judged == Entries;
        protocol
    };
    let once = Case { strays: false, nests: true, second: DEVICE.number(), judged: Entries };
    let stray = Case { strays: true, ..once };
    vec![
        ended("eoi-once", "an ExtINT is ended at the 8259s; what it interrupts is not ended with it", once),
        ended(
            "eoi-once-nested",
            "as eoi-once, with a device of lower priority that must wait",
            Case { second: LOWER, ..once },
        ),
        ended(
            "eoi-stray",
            "an ExtINT is ended at the local APIC too: the handler that it interrupts is entered again (report 003; see eoi-once)",
            stray,
        ),
        ended(
            "eoi-stray-nested",
            "as eoi-stray: a handler of lower priority nests (see eoi-once-nested)",
            Case { second: LOWER, ..stray },
        ),
        ended(
            "eoi-stray-vectors",
            "as eoi-stray-nested: no vector is lost",
            Case { second: LOWER, judged: Vectors, ..stray },
        ),
        ended(
            "eoi-stray-alone",
            "an ExtINT is ended at the local APIC with nothing in service: nothing happens (report 003)",
            Case { nests: false, ..stray },
        ),
        sent_by_mask(
            "mask-handler",
            "an interrupt handler sends by the CPU's own scratch mask; it is used with interrupts off",
            true,
        ),
        sent_by_mask(
            "mask-handler-torn",
            "the scratch mask is used with interrupts on, and the handler empties it (see mask-handler)",
            false,
        ),
    ]
}

/// What is looked at in the end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Judged {
    /// Who was entered while whom, and that no vector is lost.
    Entries,
    /// That no vector is lost.
    Vectors,
}

#[derive(Clone, Copy)]
struct Case {
    /// The handler of the `ExtINT` writes an end of interrupt at the local APIC as well.
    strays: bool,
    /// The device's handler enables interrupts.
    nests: bool,
    /// What is requested after the device's interrupt.
    second: u8,
    judged: Judged,
}

/// What was seen.
#[derive(Default)]
struct Seen {
    inside: Note,
    device: Note,
    lower: Note,
    legacy: Note,
    /// The device's handler was entered again, or one of lower priority, while it ran.
    early: Note,
}

/// CPU 0 gives LINT0 to the 8259s; then CPU 1 requests interrupts of devices there, and CPU 2 raises irq 0.
fn ended(name: &str, about: &str, case: Case) -> Protocol {
    let Case { strays, nests, second, judged } = case;
    Protocol::new(name, about, 3, move || {
        let mut scenario = Scenario::new();
        let seen = scenario.share(Seen::default());
        let [wired, worked] = [(); 2].map(|()| scenario.share(Word::<SimMemory>::new(0)));
        scenario.name(wired.location(), "wired");
        scenario.name(worked.location(), "worked");
        let until_wired = move || wait::<SimMachine>(&[wired.equals(!0, 1)], Deadline::NEVER);
        scenario.cpu(move || {
            Pic::new(SimPorts).set_masks(!1);
            local_apic().connect_pic().expect("every local APIC has LINT0");
            // Release: the devices find what was wired.
            wired.store(1, Release);
            worked.load(Relaxed);
        });
        scenario.cpu(move || {
            until_wired();
            program::request_interrupt(Cpu::new(0), DEVICE.number());
            program::request_interrupt(Cpu::new(0), second);
        });
        scenario.cpu(move || {
            until_wired();
            program::raise_irq(0);
        });
        scenario.handler(DEVICE.number(), move |mut frame| {
            enter(seen, &seen.device);
            seen.inside.set(1);
            if nests {
                // Others may interrupt it; itself, and what is below it, is held back as long as it is in service.
                SimMachine::restore_interrupts(true);
                worked.fetch_add(1, Relaxed);
                let _ = SimMachine::disable_interrupts();
            } else {
                worked.fetch_add(1, Relaxed);
            }
            seen.inside.set(0);
            frame.end_of_interrupt();
        });
        scenario.handler(LOWER, move |mut frame| {
            enter(seen, &seen.lower);
            frame.end_of_interrupt();
        });
        scenario.handler(LEGACY, move |mut frame| {
            seen.legacy.add(1);
            // It has no token, so this writes nothing.
            frame.end_of_interrupt();
            if strays {
                SimAccess.write(Register::END_OF_INTERRUPT, 0);
            }
            let pic = Pic::new(SimPorts);
            // SAFETY: 1. This vector is given to line 0 alone. 2. Once per entry.
            if let Some(in_service) = unsafe { pic.entered(0) } {
                pic.end_of_interrupt(in_service);
            }
        });
        scenario.check(move || judge(seen, second, judged));
        scenario
    })
}

fn enter(seen: &Seen, taken: &Note) {
    if seen.inside.get() != 0 {
        seen.early.set(1);
    }
    taken.add(1);
}

fn judge(seen: &Seen, second: u8, judged: Judged) -> Result<(), Violation> {
    if judged == Judged::Entries && seen.early.get() != 0 {
        let what =
            "a handler was entered again, or one of lower priority, while its interrupt was being handled";
        return Err(Violation::new("eoi", what));
    }
    let counts = (seen.device.get(), seen.lower.get(), seen.legacy.get());
    match (second, counts) {
        // Two requests of one vector may become one while the first is pending.
        (LOWER, (1, 1, 1)) | (_, (1 | 2, 0, 1)) => Ok(()),
        (_, (device, lower, legacy)) => Err(Violation::new(
            "eoi",
            format!("taken: {device} times the device, {lower} times the lower one, {legacy} times irq 0"),
        )),
    }
}

/// How often each vector was taken where it was sent to, and elsewhere.
#[derive(Default)]
struct Taken {
    message: Note,
    answer: Note,
    astray: Note,
}

/// CPU 0 sends to CPU 1. CPU 2 interrupts CPU 0, whose handler answers to CPU 2. Both by way of CPU 0's scratch mask, as
/// `__x2apic_send_IPI_mask` did, which disabled interrupts around all of it.
fn sent_by_mask(name: &str, about: &str, interrupts_off: bool) -> Protocol {
    let mut protocol = Protocol::new(name, about, 3, move || {
        let mut scenario = Scenario::new();
        let taken = scenario.share(Taken::default());
        let scratch = scenario.share(Word::<SimMemory>::new(0));
        scenario.name(scratch.location(), "ipi_mask");
        let send_by_mask = move |target: u32, vector: u8| {
            let off = interrupts_off.then(InterruptsOff::<SimMachine>::new);
            // All relaxed: one CPU's own.
            scratch.store(1 << target, Relaxed);
            let members = scratch.load(Relaxed);
            if members != 0 {
                // One cluster: its members are its CPUs, bit for bit.
                let command = Icr::logical(DeliveryMode::Fixed, vector, members as u32);
                SimAccess.write_icr(command.encode(Mode::X2Apic).expect("a cluster and bits fit"));
                scratch.store(scratch.load(Relaxed) & !members, Relaxed);
            }
            drop(off);
        };
        scenario.cpu(move || send_by_mask(1, MESSAGE.number()));
        scenario.cpu(|| {});
        scenario.cpu(|| send(Cpu::new(0), Interrupt::Fixed(DEVICE)));
        scenario.handler(DEVICE.number(), move |mut frame| {
            send_by_mask(2, ANSWER.number());
            frame.end_of_interrupt();
        });
        let arrives = |place: &'static Note, at: u32| {
            move |mut frame: InterruptFrame| {
                let here = SimMachine::current_cpu() == Cpu::new(at);
                if here { place } else { &taken.astray }.add(1);
                frame.end_of_interrupt();
            }
        };
        scenario.handler(MESSAGE.number(), arrives(&taken.message, 1));
        scenario.handler(ANSWER.number(), arrives(&taken.answer, 2));
        scenario.check(|| match (taken.message.get(), taken.answer.get(), taken.astray.get()) {
            (1, 1, 0) => Ok(()),
            (message, answer, astray) => {
                let what = format!(
                    "the message was taken {message} times, the answer {answer} times, {astray} went astray"
                );
                Err(Violation::new("mask", what))
            }
        });
        scenario
    });
    protocol.routing = Routing::X2ApicCluster;
    protocol.broken = !interrupts_off;
    protocol
}
