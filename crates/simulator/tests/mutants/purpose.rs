//! Protocols for what those of the laws do not use: the driver's dealings with its controller, and machines with leaves.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use smpcall_local_apic::{Interrupt, Routing, Vector};
use smpcall_machine::{Cpu, Instant, Machine, SendError, Word};
use smpcall_simulator::apic::IcrFault;
use smpcall_simulator::explorer::{Note, Protocol, Scenario, Violation, protocols};
use smpcall_simulator::kernel::{Calls, Hooks};
use smpcall_simulator::{SimMachine, SimMemory, program, send_interrupt};

use super::calling;

/// All of them.
pub(crate) fn all() -> Vec<Protocol> {
    let mut all = vec![
        send_in_nmi(),
        handlers_nest(),
        controller_busy(),
        store_then_send(),
        leaves(),
        leaves_two(),
        send_in_handler(),
    ];
    all.extend(calling::all());
    all
}

/// The protocol with this name: one of these, or of the laws.
pub(crate) fn by_name(name: &str) -> Option<Protocol> {
    all().into_iter().find(|protocol| protocol.name == name).or_else(|| protocols::by_name(name))
}

const LOW: u8 = 0x41;
const HIGH: u8 = 0x91;
const VECTORS: [u8; 3] = [LOW, HIGH, 0x51];

fn send(target: u32, vector: u8) -> Result<(), SendError> {
    let vector = Vector::new(vector).expect("a legal vector");
    send_interrupt(Cpu::new(target), Interrupt::Fixed(vector)).map(drop)
}

pub(crate) fn broken(law: &str, what: impl Into<String>) -> Violation {
    Violation::new(law, what)
}

/// A send of two words is interrupted by one that sends too: both messages reach their targets.
fn interrupted_send(name: &str, about: &str, by_nmi: bool) -> Protocol {
    let mut protocol = Protocol::new(name, about, 3, move || {
        let mut scenario = Scenario::new();
        let taken = scenario.share([const { [const { Note::new(0) }; 2] }; 3]);
        scenario.cpu(|| send(1, LOW).expect("the controller is idle"));
        scenario.cpu(|| {});
        scenario.cpu(move || {
            if by_nmi {
                send_interrupt(Cpu::new(0), Interrupt::Nmi).expect("the controller is idle");
            } else {
                send(0, VECTORS[2]).expect("the controller is idle");
            }
        });
        scenario.nmi_handler(|_| send(2, HIGH).expect("the controller is idle"));
        scenario.handler(VECTORS[2], |mut frame| {
            send(2, HIGH).expect("the controller is idle");
            frame.end_of_interrupt();
        });
        for (which, vector) in [LOW, HIGH].into_iter().enumerate() {
            scenario.handler(vector, move |mut frame| {
                taken[SimMachine::current_cpu().index()][which].add(1);
                frame.end_of_interrupt();
            });
        }
        scenario.check(move || {
            let taken = taken.each_ref().map(|cpu| cpu.each_ref().map(Note::get));
            if taken == [[0, 0], [1, 0], [0, 1]] {
                Ok(())
            } else {
                Err(broken("sent", format!("the messages were taken by the wrong CPUs: {taken:?}")))
            }
        });
        scenario
    });
    protocol.routing = Routing::Physical;
    protocol
}

fn send_in_nmi() -> Protocol {
    interrupted_send("send-in-nmi", "the two words of a command, and an NMI handler that sends", true)
}

fn send_in_handler() -> Protocol {
    interrupted_send(
        "send-in-handler",
        "the two words of a command, and an interrupt handler that sends",
        false,
    )
}

/// A handler that enables interrupts is interrupted by those of higher priority, never by its own vector.
fn handlers_nest() -> Protocol {
    let about =
        "a handler with interrupts enabled, another of higher priority, and a second interrupt of its own";
    Protocol::new("handlers-nest", about, 2, || {
        let mut scenario = Scenario::new();
        let [inside, low, high, wrong] = scenario.share([const { Note::new(0) }; 4]);
        scenario.cpu(|| {
            for vector in [LOW, HIGH, LOW] {
                send(1, vector).expect("the controller is idle");
            }
        });
        scenario.cpu(|| {});
        scenario.handler(LOW, move |mut frame| {
            if inside.get() != 0 {
                wrong.set(1);
            }
            inside.set(1);
            SimMachine::restore_interrupts(true);
            let _ = SimMachine::disable_interrupts();
            inside.set(0);
            low.add(1);
            frame.end_of_interrupt();
        });
        scenario.handler(HIGH, move |mut frame| {
            high.add(1);
            frame.end_of_interrupt();
        });
        scenario.check(move || {
            if wrong.get() != 0 {
                return Err(broken("in service", "a handler was entered while it ran"));
            }
            // Two of one vector may have become one.
            if high.get() == 1 && matches!(low.get(), 1 | 2) {
                return Ok(());
            }
            Err(broken(
                "in service",
                format!("interrupts were not taken: {} low, {} high", low.get(), high.get()),
            ))
        });
        scenario
    })
}

/// The controller is stuck: who is told that the message was sent can rely on it.
fn controller_busy() -> Protocol {
    let about = "a controller that is stuck, first until a retry and then for ever: sent, or told";
    Protocol::new("controller-busy", about, 2, || {
        let mut scenario = Scenario::new();
        let told = scenario.share([const { Note::new(0) }; 3]);
        let taken = scenario.share([const { Note::new(0) }; 3]);
        scenario.cpu(|| {
            let faults = [
                None,
                Some(IcrFault::StuckUntilRewritten),
                Some(IcrFault::StuckUntil(Instant::from_nanos(u64::MAX / 2))),
            ];
            for (index, fault) in faults.into_iter().enumerate() {
                program::break_icr(fault);
                told[index].set(u64::from(send(1, VECTORS[index]).is_ok()));
            }
        });
        scenario.cpu(|| {});
        for (index, vector) in VECTORS.into_iter().enumerate() {
            scenario.handler(vector, move |mut frame| {
                taken[index].add(1);
                frame.end_of_interrupt();
            });
        }
        scenario.check(move || {
            let [told, taken] = [told, taken].map(|notes| notes.each_ref().map(Note::get));
            // The retry sends the first one again.
            if told == [1, 1, 0] && matches!(taken, [1 | 2, 1, 0]) {
                return Ok(());
            }
            Err(broken("sent", format!("told {told:?} that it was sent, taken {taken:?}")))
        });
        scenario
    })
}

/// What was written before an interrupt was sent is seen by its handler.
fn store_then_send() -> Protocol {
    let about = "a store, then an interrupt by x2APIC: its handler sees the store";
    let mut protocol = Protocol::new("store-then-send", about, 2, || {
        let mut scenario = Scenario::new();
        let word = scenario.share(Word::<SimMemory>::new(0));
        let seen = scenario.share(Note::new(0));
        scenario.name(word.location(), "word");
        scenario.cpu(|| {
            word.store(1, Release);
            send(1, LOW).expect("no status to wait for");
        });
        scenario.cpu(|| {});
        scenario.handler(LOW, move |mut frame| {
            seen.set(1 + word.load(Acquire));
            frame.end_of_interrupt();
        });
        scenario.check(move || match seen.get() {
            2 => Ok(()),
            seen => Err(broken("sent", format!("the handler ran before the store was visible: {seen}"))),
        });
        scenario
    });
    protocol.routing = Routing::X2ApicPhysical;
    protocol
}

/// CPUs of a machine that needs leaves: the lowest one whose source numbers do not fit the door.
const MANY: usize = 49;

fn with_leaves(name: &str, about: &str, callers: &'static [u32]) -> Protocol {
    let mut protocol = Protocol::new(name, about, MANY, move || {
        let mut scenario = Scenario::new();
        let [runs, told] = scenario.share([const { Note::new(0) }; 2]);
        let effects = scenario.share(Word::<SimMemory>::new(0));
        let calls = || {
            let result = Calls::for_ever().call(Cpu::new(2), || {
                effects.fetch_add(1, Relaxed);
                runs.add(1);
            });
            told.add(u64::from(result.is_ok()));
            program::forget_but(0);
        };
        for cpu in 0..=1 {
            let calling = callers.contains(&cpu);
            scenario.cpu(move || {
                if calling {
                    calls();
                }
            });
        }
        let expected = callers.len() as u64;
        scenario.check(move || match (runs.get(), told.get()) {
            (runs, told) if runs == expected && told == expected => Ok(()),
            (runs, told) => {
                Err(broken("L1", format!("{expected} calls ran {runs} times, {told} were told so")))
            }
        });
        scenario
    });
    protocol.routing = Routing::X2ApicPhysical;
    protocol.prompt = true;
    protocol.kernel = Some(Hooks::default());
    protocol
}

fn leaves() -> Protocol {
    with_leaves("leaves", "a call on a machine with leaves", &[0])
}

fn leaves_two() -> Protocol {
    with_leaves("leaves-two", "two callers on a machine with leaves", &[0, 1])
}
