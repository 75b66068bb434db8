//! The hand-over to a capture kernel (law L8): the drain that ships, against interrupts that arrive while it runs and a vector
//! that stays in service. No mailboxes.
//!
//! The machine has one image: CPU 0 is the crashed kernel, and from its drain on the capture kernel. Until it says that its
//! handlers stand, every vector comes to an inert gate.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::time::Duration;

use smpcall_local_apic::{Drained, InertGates, Interrupt, Vector};
use smpcall_machine::{Cpu, Deadline, InterruptsOff, Machine, Word, wait};

use super::apic::send;
use crate::explorer::note::Note;
use crate::explorer::scenario::{Bounds, Protocol, Scenario};
use crate::explorer::system::Violation;
use crate::machine::{SPURIOUS_VECTOR, local_apic};
use crate::{SimMachine, SimMemory};

/// Pending at the crash.
const OLD: Vector = vector(0x40);
/// Sent by another CPU, at any time.
const ARRIVES: Vector = vector(0x50);
/// In service at the crash, above both.
const STALE: Vector = vector(0x60);
const SPURIOUS: Vector = vector(SPURIOUS_VECTOR);

/// Nothing depends on how long it is: a wait ends when nobody can move, or earlier by a budget of the explorer's.
const WINDOW: Duration = Duration::from_millis(1);

const fn vector(number: u8) -> Vector {
    match Vector::new(number) {
        Some(vector) => vector,
        None => panic!("vectors below 16 are illegal"),
    }
}

pub(super) fn all() -> Vec<Protocol> {
    let mut all = vec![
        pending(
            "hand-over",
            "a drain takes what is pending, or tells of it; another CPU's interrupt arrives meanwhile (L8)",
            Drains::Driver,
        ),
        pending(
            "hand-over-hasty",
            "interrupts are enabled and disabled again without a look at what is pending (see hand-over)",
            Drains::WithoutLook,
        ),
        in_service(
            "hand-over-stale",
            "a drain ends what is in service, so that lower vectors come to the capture kernel (L8)",
            Drains::Driver,
        ),
        in_service(
            "hand-over-stale-kept",
            "what is in service is not ended, and holds lower vectors back (see hand-over-stale)",
            Drains::WithoutLook,
        ),
    ];
    for protocol in &mut all {
        protocol.broken = ["hand-over-hasty", "hand-over-stale-kept"].contains(&protocol.name.as_str());
    }
    all
}

/// How the capture kernel begins.
#[derive(Clone, Copy)]
enum Drains {
    /// By the drain that ships.
    Driver,
    /// By enabling interrupts and disabling them.
    WithoutLook,
}

/// What the two kernels on CPU 0 share with their handlers.
struct Crash {
    gates: InertGates,
    /// 1 once the capture kernel has real handlers.
    installed: Word<SimMemory>,
    /// 1 once the vector that stays in service was taken.
    entered: Word<SimMemory>,
    /// 1 once another CPU's interrupt was taken, by a gate or a handler.
    arrived: Word<SimMemory>,
    /// How often each was taken by a gate, and by a handler.
    old: [Note; 2],
    new: [Note; 2],
    /// The drain said that the old one remains.
    told: Note,
    /// The drain said that something is in service.
    left_in_service: Note,
}

impl Crash {
    fn new(scenario: &mut Scenario) -> &'static Self {
        let note = || Note::new(0);
        let crash = scenario.share(Self {
            gates: InertGates::new(),
            installed: Word::new(0),
            entered: Word::new(0),
            arrived: Word::new(0),
            old: [note(), note()],
            new: [note(), note()],
            told: note(),
            left_in_service: note(),
        });
        for (word, name) in
            [(&crash.installed, "installed"), (&crash.entered, "entered"), (&crash.arrived, "arrived")]
        {
            scenario.name(word.location(), name);
        }
        scenario.handler(OLD.number(), move |frame| {
            crash.take(frame, &crash.old);
        });
        scenario.handler(ARRIVES.number(), move |frame| {
            crash.take(frame, &crash.new);
            // Release: for whoever waits for it.
            crash.arrived.store(1, Release);
        });
        crash
    }

    /// What the gate does, or once there is one the handler.
    fn take(&self, mut frame: crate::InterruptFrame, taken: &[Note; 2]) {
        // Relaxed: only this CPU writes it.
        let installed = self.installed.load(Relaxed) != 0;
        taken[usize::from(installed)].add(1);
        if installed {
            frame.end_of_interrupt();
        } else if let Some(vector) = frame.vector {
            self.gates.taken(&local_apic(), vector);
        }
    }

    /// The capture kernel begins, with interrupts disabled, and goes on with handlers and interrupts enabled.
    fn begin(&self, drains: Drains) {
        match drains {
            Drains::Driver => {
                let mut interrupts_off = InterruptsOff::<SimMachine>::new();
                // SAFETY: 1. Both vectors come to `take`, and no others are sent from here on. 2. The handler that was entered
                // for what is in service has returned, and has nothing more to do.
                let drained =
                    unsafe { local_apic().drain(&self.gates, &mut interrupts_off, SPURIOUS, WINDOW) };
                self.note(&drained);
            }
            Drains::WithoutLook => {
                SimMachine::restore_interrupts(true);
                let _ = SimMachine::disable_interrupts();
            }
        }
        // Relaxed: as in `take`.
        self.installed.store(1, Relaxed);
        SimMachine::restore_interrupts(true);
    }

    fn note(&self, drained: &Drained) {
        self.told.set(drained.requests.contains(OLD.number()).into());
        self.left_in_service.set(u64::from(!drained.in_service.is_empty()));
    }

    /// At every end: each was taken once, and what was pending at the crash by a gate, unless the drain told of it.
    fn check(&self) -> Result<(), Violation> {
        let [inert, real] = [0, 1].map(|by| self.old[by].get());
        let new: u64 = self.new.iter().map(Note::get).sum();
        let violation = |what: String| Err(Violation::new("L8", what));
        if inert + real != 1 || new != 1 {
            return violation(format!(
                "the old interrupt was taken {} times, the new one {new} times",
                inert + real
            ));
        }
        if real != self.told.get() {
            return violation(format!(
                "the old interrupt came {real} times to a handler of the capture kernel, and the drain told of {}",
                self.told.get()
            ));
        }
        if self.left_in_service.get() != 0 {
            return violation("the drain left a vector in service".to_owned());
        }
        Ok(())
    }
}

/// The old interrupt is pending when the capture kernel begins.
fn pending(name: &str, about: &str, drains: Drains) -> Protocol {
    let mut protocol = Protocol::new(name, about, 2, move || {
        let mut scenario = Scenario::new();
        let crash = Crash::new(&mut scenario);
        scenario.cpu(move || {
            core::mem::forget(InterruptsOff::<SimMachine>::new());
            send(Cpu::new(0), Interrupt::Fixed(OLD));
            crash.begin(drains);
        });
        scenario.cpu(|| send(Cpu::new(0), Interrupt::Fixed(ARRIVES)));
        scenario.check(move || crash.check());
        scenario
    });
    protocol.bounds = Bounds { expiries: 1, ..Bounds::default() };
    protocol
}

/// A vector above the others is in service, and its handler never ends it. The old interrupt is pending below it.
fn in_service(name: &str, about: &str, drains: Drains) -> Protocol {
    let mut protocol = Protocol::new(name, about, 2, move || {
        let mut scenario = Scenario::new();
        let crash = Crash::new(&mut scenario);
        scenario.handler(STALE.number(), move |_| {
            // Release: for whoever waits for it.
            crash.entered.store(1, Release);
        });
        scenario.cpu(move || {
            send(Cpu::new(0), Interrupt::Fixed(STALE));
            wait::<SimMachine>(&[crash.entered.equals(!0, 1)], Deadline::NEVER);
            core::mem::forget(InterruptsOff::<SimMachine>::new());
            send(Cpu::new(0), Interrupt::Fixed(OLD));
            crash.begin(drains);
            wait::<SimMachine>(&[crash.arrived.equals(!0, 1)], Deadline::NEVER);
        });
        scenario.cpu(move || {
            // Acquire: the crash comes first.
            if crash.entered.load(Acquire) == 0 {
                wait::<SimMachine>(&[crash.entered.equals(!0, 1)], Deadline::NEVER);
            }
            send(Cpu::new(0), Interrupt::Fixed(ARRIVES));
        });
        scenario.check(move || crash.check());
        scenario
    });
    protocol.bounds = Bounds::default();
    protocol
}
