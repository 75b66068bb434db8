//! Crash stops (law L7): elections, CPUs in NMI handlers, CPUs that make no step, and crashes of the winner.
//!
//! Who is to be stopped waits for ever, so that an execution that leaves it running is a hang. Who wins reads the notes of
//! all that have saved: a CPU that says so before its notes are written races with it.

use core::time::Duration;

use smpcall::vmcore::{Notes, PrStatus, Registers, prstatus};
use smpcall::{Crash, CrashStop, InterruptsOff};
use smpcall_local_apic::{Interrupt, Routing, Vector};
use smpcall_machine::{Cpu, Deadline, Instant, Machine, Plain, Word, wait};

use super::apic::send;
use super::books::SHORT;
use crate::apic::IcrFault;
use crate::explorer::note::Note;
use crate::explorer::scenario::{Bounds, Protocol, Scenario};
use crate::explorer::system::Violation;
use crate::kernel::{Calls, Hooks};
use crate::stopping::LockupHooks;
use crate::{SimMachine, SimMemory, program};

pub(super) fn all() -> Vec<Protocol> {
    let mut all = stops();
    all.extend(elections());
    all.extend([rendezvous(), complete(), coming_up(), reset(), wedged(), wedged_three(), again()]);
    all.extend(busy_controllers());
    all.extend(back_traces());
    all
}

/// A vector that nobody waits for.
const USELESS: Vector = match Vector::new(0x40) {
    Some(vector) => vector,
    None => panic!("vectors below 16 are illegal"),
};

/// What the winner was told.
struct Ends {
    /// Crash stops that have come to their end.
    returned: Note,
    /// Ends of a second crash of the winner.
    again: Note,
    /// The CPUs that are saved and missing, a bit each, by the first end.
    saved: Note,
    missing: Note,
    /// The notes of a CPU that has saved are not its own.
    wrong: Note,
    /// Never written: who waits for it waits for ever.
    never: Word<SimMemory>,
    cpus: usize,
}

impl Ends {
    fn new(scenario: &mut Scenario, cpus: usize) -> &'static Self {
        let ends = scenario.share(Self {
            returned: Note::new(0),
            again: Note::new(0),
            saved: Note::new(0),
            missing: Note::new(0),
            wrong: Note::new(0),
            never: Word::new(0),
            cpus,
        });
        scenario.name(ends.never.location(), "never");
        ends
    }

    /// This CPU crashes.
    fn crash(&self) -> ! {
        let me = u64::from(SimMachine::current_cpu().number());
        let end = Calls::crash_stop(&Registers { r15: me, rip: 1, ..Registers::NONE });
        self.end(&end);
        program::park()
    }

    fn end(&self, end: &Crash<SimMachine>) {
        let bits = |set: &crate::SimCpuSet| set.iter().fold(0, |bits, cpu| bits | 1 << cpu.number());
        for cpu in &*end.saved {
            // SAFETY: the CPU says that it has written its notes. (Whether that is ordered is what is explored.)
            let bytes = unsafe { SimMachine::crash_notes()[cpu.index()].copy() };
            let mut notes = Notes::new(&bytes).filter_map(Result::ok);
            let status = notes.find(|note| note.kind == prstatus::NT_PRSTATUS && note.owner == b"CORE");
            let status = status.and_then(|note| PrStatus::from_bytes(note.descriptor));
            if status.is_none_or(|status| status.registers.r15 != u64::from(cpu.number())) {
                self.wrong.set(1);
            }
        }
        if end.crashed_again {
            self.again.add(1);
        }
        self.returned.add(1);
        self.saved.set(bits(&end.saved));
        self.missing.set(bits(&end.missing));
    }

    /// Does nothing until it is stopped.
    #[track_caller]
    fn wait_for_ever(&self) {
        wait::<SimMachine>(&[self.never.equals(!0, 1)], Deadline::NEVER);
    }

    /// At every end: one winner, who knows of every CPU.
    fn check(&self, ends: core::ops::RangeInclusive<u64>) -> Result<(), Violation> {
        let all = (1 << self.cpus) - 1;
        let (saved, missing) = (self.saved.get(), self.missing.get());
        let told = self.returned.get();
        if !ends.contains(&told) || told - self.again.get().min(told) > 1 {
            return Err(Violation::new("L7", format!("{told} crash stops have come to their end")));
        }
        if self.wrong.get() != 0 {
            return Err(Violation::new("L7", "the notes of a CPU are not its own".to_owned()));
        }
        if told != 0 && (saved | missing != all || saved & missing != 0) {
            let what = format!("the winner says saved: {saved:#b}, missing: {missing:#b}");
            return Err(Violation::new("L7", what));
        }
        Ok(())
    }
}

/// Makes the programs of CPUs; each call is the next CPU's.
struct Actors<'a> {
    scenario: &'a mut Scenario,
    ends: &'static Ends,
}

impl Actors<'_> {
    fn crashes(&mut self) {
        let ends = self.ends;
        self.scenario.cpu(move || ends.crash());
    }

    fn waits(&mut self) {
        let ends = self.ends;
        self.scenario.cpu(move || ends.wait_for_ever());
    }

    fn waits_with_interrupts_off(&mut self) {
        let ends = self.ends;
        self.scenario.cpu(move || {
            let _off = InterruptsOff::<SimMachine>::new();
            ends.wait_for_ever();
        });
    }

    fn sends_nmi(&mut self, target: u32) {
        let ends = self.ends;
        self.scenario.cpu(move || {
            send(Cpu::new(target), Interrupt::Nmi);
            ends.wait_for_ever();
        });
    }

    /// NMIs that stop nobody make this CPU crash.
    fn nmis_crash(&mut self, on: u32) {
        let ends = self.ends;
        self.scenario.nmi_handler(move |_| {
            let me = SimMachine::current_cpu();
            let registers = Registers { r15: me.number().into(), rip: 2, ..Registers::NONE };
            if !Calls::handle_stop(&registers) && me.number() == on {
                ends.crash();
            }
        });
    }
}

fn protocol(
    name: &str,
    about: &str,
    cpus: usize,
    ends: core::ops::RangeInclusive<u64>,
    programs: impl Fn(&mut Actors<'_>) + Send + Sync + 'static,
) -> Protocol {
    let mut protocol = Protocol::new(name, about, cpus, move || {
        let mut scenario = Scenario::new();
        let told = Ends::new(&mut scenario, cpus);
        let ends = ends.clone();
        scenario.check(move || told.check(ends.clone()));
        programs(&mut Actors { scenario: &mut scenario, ends: told });
        scenario
    });
    protocol.prompt = true;
    protocol.kernel = Some(Hooks::default());
    protocol.bounds = Bounds { drops: 1, expiries: 1, ..Bounds::default() };
    protocol
}

fn stops() -> Vec<Protocol> {
    vec![
        protocol(
            "crash",
            "a CPU crashes, another one is stopped; the NMI may be lost (L7)",
            2,
            1..=1,
            |cpu| {
                cpu.crashes();
                cpu.waits();
            },
        ),
        protocol(
            "crash-three",
            "a CPU crashes, two are stopped, one with interrupts off (L7)",
            3,
            1..=1,
            |cpu| {
                cpu.crashes();
                cpu.waits();
                cpu.waits_with_interrupts_off();
            },
        ),
        protocol("crash-call", "a CPU crashes that others call and wait for (L7)", 3, 1..=1, |cpu| {
            let ends = cpu.ends;
            cpu.scenario.cpu(move || {
                let _ = Calls::for_ever().call(Cpu::new(1), || ());
                ends.wait_for_ever();
            });
            cpu.crashes();
            cpu.waits();
        }),
        protocol(
            "crash-served",
            "a closure crashes on its target; its caller is stopped (L7)",
            2,
            1..=1,
            |cpu| {
                let ends = cpu.ends;
                cpu.scenario.cpu(move || {
                    let _ = Calls::for_ever().call(Cpu::new(1), || ends.crash());
                });
                cpu.waits();
            },
        ),
    ]
}

fn rendezvous() -> Protocol {
    let about = "a participant of a rendezvous crashes: before, in any of its stages, inside of its closure, after (L7)";
    let mut protocol = protocol("crash-rendezvous", about, 2, 1..=1, |cpu| {
        let ends = cpu.ends;
        cpu.scenario.cpu(move || {
            let both: crate::SimCpuSet = (0..2).map(Cpu::new).collect();
            let _ = Calls::for_ever().rendezvous(&both, |_| ());
            ends.wait_for_ever();
        });
        cpu.crashes();
    });
    protocol.bounds = Bounds { expiries: 1, ..Bounds::default() };
    protocol
}

fn elections() -> Vec<Protocol> {
    let mut three = protocol("crash-election-three", "three CPUs crash, one wins (L7)", 3, 1..=1, |cpu| {
        cpu.crashes();
        cpu.crashes();
        cpu.crashes();
    });
    three.bounds = Bounds { expiries: 1, ..Bounds::default() };
    vec![
        protocol("crash-election", "two CPUs crash, one wins (L7)", 2, 1..=1, |cpu| {
            cpu.crashes();
            cpu.crashes();
        }),
        three,
        protocol(
            "crash-election-stop",
            "two CPUs crash, one wins, a third one is stopped (L7)",
            3,
            1..=1,
            |cpu| {
                cpu.crashes();
                cpu.crashes();
                cpu.waits();
            },
        ),
        {
            let about = "two CPUs crash, one of them inside its NMI handler (L7)";
            let mut protocol = protocol("crash-nmi", about, 3, 1..=1, |cpu| {
                cpu.crashes();
                cpu.waits();
                cpu.sends_nmi(1);
                cpu.nmis_crash(1);
            });
            protocol.bounds = Bounds { expiries: 1, ..Bounds::default() };
            protocol
        },
    ]
}

/// Nothing is lost, nothing is late: then everybody is saved.
fn complete() -> Protocol {
    let about = "two CPUs crash, a third one is stopped, and nothing goes wrong: all are saved (L7)";
    let mut protocol = protocol("crash-complete", about, 3, 1..=1, |cpu| {
        let ends = cpu.ends;
        cpu.crashes();
        cpu.crashes();
        cpu.waits();
        cpu.scenario.check(move || match ends.missing.get() {
            0 => ends.check(1..=1),
            missing => {
                Err(Violation::new("L7", format!("said to be missing, and need not be: {missing:#b}")))
            }
        });
    });
    protocol.bounds = Bounds::default();
    protocol
}

/// The crashing CPU's ICR says busy: for ever, or until the command is written again.
fn busy_controller(name: &str, about: &str, fault: IcrFault, missing: u64) -> Protocol {
    let mut protocol = protocol(name, about, 2, 1..=1, move |cpu| {
        let ends = cpu.ends;
        cpu.scenario.cpu(move || {
            // The command that sticks is an interrupt that the other CPU has no use for.
            send(Cpu::new(1), Interrupt::Fixed(USELESS));
            program::break_icr(Some(fault));
            ends.crash();
        });
        if missing == 0 {
            cpu.waits();
        } else {
            // Nobody stops it: it goes on to its end.
            cpu.scenario.cpu(|| ());
        }
        cpu.scenario.handler(USELESS.number(), |mut frame| frame.end_of_interrupt());
        cpu.scenario.check(move || {
            ends.check(1..=1)?;
            if ends.missing.get() == missing {
                return Ok(());
            }
            let (found, expected) = (ends.missing.get(), missing);
            Err(Violation::new("L7", format!("said to be missing: {found:#b}, and should be: {expected:#b}")))
        });
    });
    protocol.routing = Routing::Physical;
    // The ICR may be waited for until a bound: then time has to pass.
    protocol.prompt = false;
    protocol.bounds = Bounds::default();
    protocol
}

fn busy_controllers() -> Vec<Protocol> {
    vec![
        busy_controller(
            "crash-icr-busy",
            "a CPU crashes whose ICR stays busy for ever: the crash stop ends, and names the other one (L7)",
            IcrFault::StuckUntil(Instant::from_nanos(u64::MAX)),
            0b10,
        ),
        busy_controller(
            "crash-icr-stuck",
            "a CPU crashes whose ICR stays busy until it is written again: the NMI goes out (L7)",
            IcrFault::StuckUntilRewritten,
            0,
        ),
    ]
}

/// A CPU declares that it takes NMIs while another one crashes.
fn coming_up() -> Protocol {
    let about = "a CPU comes up while another one crashes: it is sent an NMI, or parks by itself (L7)";
    protocol("crash-coming-up", about, 2, 1..=1, |cpu| {
        let ends = cpu.ends;
        cpu.crashes();
        cpu.scenario.cpu(move || {
            Calls::declare_nmi(false);
            Calls::declare_nmi(true);
            if Calls::has_crashed() {
                program::park();
            }
            ends.wait_for_ever();
        });
    })
}

fn reset() -> Protocol {
    let about = "a CPU crashes while another one declares it dead: who has won is not reset (L7)";
    let mut protocol = protocol("crash-reset", about, 2, 0..=1, |cpu| {
        let ends = cpu.ends;
        cpu.scenario.cpu(move || {
            // SAFETY: nothing that the other CPU leaves behind is used, and no task migrates.
            let declared = unsafe { Calls::declare_dead(Cpu::new(1), SHORT.expect("it is a limit")) };
            // Whoever has crashed, or will, stops this CPU.
            if declared.is_err() || Calls::has_crashed() {
                ends.wait_for_ever();
            }
        });
        cpu.scenario.cpu(move || {
            // So that it is asked by a call, which one early deadline withdraws.
            Calls::declare_nmi(false);
            ends.crash()
        });
    });
    protocol.prompt = false;
    protocol.routing = Routing::X2ApicPhysical;
    protocol.bounds = Bounds { expiries: 1, ..Bounds::default() };
    protocol
}

/// Waits for others that may never come.
const PATIENCE: Duration = Duration::from_secs(60);

fn wedged() -> Protocol {
    let about = "a CPU crashes, and one makes no further step: the winner is bounded and names it (L7)";
    let mut protocol = protocol("crash-wedge", about, 2, 0..=1, |cpu| {
        let ends = cpu.ends;
        cpu.crashes();
        cpu.scenario.cpu(move || {
            wait::<SimMachine>(&[ends.never.equals(!0, 1)], Deadline::within::<SimMachine>(PATIENCE));
        });
    });
    protocol.prompt = false;
    protocol.bounds = Bounds { wedges: 1, ..Bounds::default() };
    protocol
}

fn wedged_three() -> Protocol {
    let about = "two CPUs crash, and one of three makes no further step (L7)";
    let mut protocol = protocol("crash-wedge-three", about, 3, 0..=1, |cpu| {
        let ends = cpu.ends;
        cpu.crashes();
        cpu.crashes();
        cpu.scenario.cpu(move || {
            wait::<SimMachine>(&[ends.never.equals(!0, 1)], Deadline::within::<SimMachine>(PATIENCE));
        });
    });
    protocol.prompt = false;
    protocol.bounds = Bounds { wedges: 1, ..Bounds::default() };
    protocol
}

fn again() -> Protocol {
    let about = "the winner crashes again at any moment of its crash stop, and goes straight to the end (L7)";
    let mut protocol = protocol("crash-again", about, 2, 1..=2, |cpu| {
        cpu.crashes();
        cpu.sends_nmi(0);
        cpu.nmis_crash(0);
    });
    // Of a second crash the other CPU may not have been stopped yet: it is missing, and stops later.
    protocol.bounds = Bounds { expiries: 1, ..Bounds::default() };
    protocol
}

/// What a back trace has written, and whether it was taken.
struct Walk {
    frames: Plain<SimMemory, u64>,
    wrong: Note,
}

fn back_traces() -> Vec<Protocol> {
    let back_trace = |name: &str, about: &str, askers: usize| {
        let mut protocol = Protocol::new(name, about, askers + 1, move || {
            let mut scenario = Scenario::new();
            let walk = scenario.share(Walk { frames: Plain::new(0), wrong: Note::new(0) });
            let target = Cpu::new(askers as u32);
            for _ in 0..askers {
                scenario.cpu(move || {
                    if Calls::back_trace_of(target, Duration::from_millis(1)).is_ok() && askers == 1 {
                        // SAFETY: the back trace was taken. (Whether that is ordered is what is explored.)
                        walk.wrong.set(u64::from(unsafe { walk.frames.read() } == 0));
                    }
                });
            }
            scenario.cpu(move || {
                let off = InterruptsOff::<SimMachine>::new();
                drop(off);
            });
            scenario.nmi_handler(move |_| {
                WALK.set(Some(walk));
                Calls::handle_back_trace(&Registers::NONE);
            });
            scenario.check(|| match walk.wrong.get() {
                0 => Ok(()),
                _ => Err(Violation::new(
                    "L7",
                    "a back trace was not taken, and its asker was told so".to_owned(),
                )),
            });
            scenario
        });
        let back_trace = |_: Cpu, _: &Registers| {
            if let Some(walk) = WALK.get() {
                // SAFETY: only this handler writes, and on one CPU.
                unsafe { walk.frames.write(1) };
            }
        };
        let lockups = LockupHooks { back_trace: Some(back_trace), ..LockupHooks::default() };
        protocol.prompt = true;
        protocol.kernel = Some(Hooks { lockups: Some(lockups), ..Hooks::default() });
        protocol.bounds = Bounds { drops: 1, expiries: 1, ..Bounds::default() };
        protocol
    };
    vec![
        back_trace("back-trace", "a CPU is asked for its back trace; the NMI may be lost", 1),
        back_trace("back-traces", "two CPUs ask a third one for its back trace", 2),
    ]
}

thread_local! {
    /// Where the handler that runs walks its stack.
    static WALK: core::cell::Cell<Option<&'static Walk>> = const { core::cell::Cell::new(None) };
}
