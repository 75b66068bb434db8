//! What finds a post whose ring was lost, and what callers are told of a target that does not answer.

use core::time::Duration;

use smpcall::{CallError, Cpu, InterruptsOff, Kernel, TargetState};
use smpcall_local_apic::Interrupt;
use smpcall_machine::{Deadline, wait};

use super::apic::send;
use super::books::{FOR_EVER, SHORT, Wrong};
use super::{Actors, protocol};
use crate::explorer::note::Note;
use crate::explorer::scenario::{Bounds, Protocol};
use crate::explorer::system::Violation;
use crate::kernel::Calls;
use crate::{RING_VECTOR, SimMachine, TIMER_VECTOR, program};

pub(super) fn all() -> Vec<Protocol> {
    let mut all = ticks();
    all.extend(wedges());
    all.extend([probe(), busy(), reschedule()]);
    all
}

/// The timer of a CPU ticks once the first program has spoken.
fn ticks_after_word(cpu: &mut Actors, target: u32) {
    cpu.does(move |books| {
        books.await_word_of(0);
        program::request_interrupt(Cpu::new(target), TIMER_VECTOR);
    });
}

/// An idle loop, until a post has run.
fn idles_until_run(cpu: &mut Actors) {
    cpu.does(|books| {
        while !books.has_found_work() {
            let mut guard = InterruptsOff::new();
            if Calls::may_halt(&mut guard) && !books.has_found_work() {
                program::halt();
            }
            drop(guard);
            program::forget_but(0);
        }
    });
}

fn ticks() -> Vec<Protocol> {
    let with = |mut protocol: Protocol, bounds: Bounds| {
        protocol.bounds = bounds;
        protocol
    };
    let one = Bounds { drops: 1, expiries: 1, ..Bounds::default() };
    vec![
        with(
            protocol("tick-call", "one call, and ticks at any time (L1, L2)", 2, |cpu| {
                cpu.calls(0, 1, FOR_EVER);
                cpu.idles();
            }),
            Bounds { ticks: 2, ..one },
        ),
        with(
            protocol(
                "tick-close",
                "a call to a CPU that goes offline, and ticks at any time (L1, L5)",
                2,
                |cpu| {
                    cpu.calls(0, 1, FOR_EVER);
                    cpu.closes();
                },
            ),
            Bounds { ticks: 2, ..one },
        ),
        protocol("tick-post", "a post whose ring may be lost, found by the target's tick (L2)", 3, |cpu| {
            cpu.posts(0, 1);
            cpu.idles();
            ticks_after_word(cpu, 1);
        }),
        protocol(
            "idle-entry",
            "a post whose ring may be lost, found by the target as it goes idle (L2)",
            2,
            |cpu| {
                cpu.posts(0, 1);
                cpu.does(|books| {
                    books.await_word_of(0);
                    let mut guard = InterruptsOff::new();
                    while !Calls::may_halt(&mut guard) {}
                    books.in_order();
                });
            },
        ),
        with(
            protocol(
                "idle-halt",
                "a post to a CPU that is about to halt: its ring wakes it (L2)",
                2,
                |cpu| {
                    cpu.posts(0, 1);
                    idles_until_run(cpu);
                },
            ),
            Bounds::default(),
        ),
        protocol(
            "idle-tick",
            "a post to a CPU that halts; if the ring is lost, the tick wakes it (L2)",
            3,
            |cpu| {
                cpu.posts(0, 1);
                idles_until_run(cpu);
                ticks_after_word(cpu, 1);
            },
        ),
        protocol(
            "backstop",
            "a post to a CPU that has no tick, found by the tick of another one (L2)",
            3,
            |cpu| {
                cpu.does(|books| {
                    books.await_word_of(0);
                    // It rings for what it has seen twice.
                    Calls::backstop();
                    Calls::backstop();
                    books.await_run();
                });
                cpu.posts(0, 2);
                cpu.idles();
            },
        ),
        with(
            protocol(
                "nmi-post",
                "an NMI handler posts what the program that it interrupts posts too (L1)",
                3,
                |cpu| {
                    let (books, errand) = (cpu.books, cpu.errand);
                    cpu.posts(0, 2);
                    cpu.scenario.cpu(|| send(Cpu::new(0), Interrupt::Nmi));
                    cpu.idles();
                    cpu.scenario.nmi_handler(move |_| books.post(1, 2, errand));
                },
            ),
            // A lost NMI is none, and a lost ring needs a tick.
            Bounds::default(),
        ),
    ]
}

/// What holds if one CPU makes no further step.
fn wedges() -> Vec<Protocol> {
    let wedged = |mut protocol: Protocol| {
        protocol.bounds = Bounds { wedges: 1, expiries: 1, ..Bounds::default() };
        protocol
    };
    // A caller that borrows nothing, and then speaks.
    let calls_static = |cpu: &mut Actors, entry: usize, target: u32| {
        cpu.does(move |books| {
            books.call_static(entry, target, SHORT);
            books.say(entry);
        });
    };
    // Does nothing, but could stand still, until the callers have spoken (or will never speak).
    let idles = |cpu: &mut Actors, callers: usize| {
        let books = cpu.books;
        cpu.does(move |books| {
            let patience = Deadline::within::<SimMachine>(Duration::from_secs(1));
            for caller in &books.said[..callers] {
                wait::<SimMachine>(&[caller.equals(!0, 1)], patience);
            }
        });
        cpu.scenario.check(|| books.check_with_wedges());
    };
    let mut all = vec![
        wedged(protocol(
            "wedge",
            "a call that borrows nothing, and one CPU stands still: the caller is told (L3)",
            2,
            move |cpu| {
                calls_static(cpu, 0, 1);
                idles(cpu, 1);
            },
        )),
        wedged(protocol("wedge-callers", "two such callers of one CPU (L3)", 3, move |cpu| {
            calls_static(cpu, 0, 2);
            calls_static(cpu, 1, 2);
            idles(cpu, 2);
        })),
        wedged(protocol(
            "wedge-borrowed",
            "L4's exception: who lends to a CPU that stands still waits for ever, deadline or not (see wedge)",
            2,
            move |cpu| {
                cpu.does(|books| {
                    books.call(0, 1, SHORT, false);
                    books.say(0);
                });
                idles(cpu, 1);
            },
        )),
    ];
    for protocol in &mut all {
        protocol.broken = protocol.name == "wedge-borrowed";
    }
    all
}

/// The target has interrupts disabled until the caller gives up.
fn probe() -> Protocol {
    let limit = Duration::from_millis(1);
    let about = "a call to a CPU with interrupts off: probed by NMI, withdrawn, and told why (L3)";
    let mut protocol = protocol("probe", about, 2, move |cpu| {
        cpu.does(move |books| {
            let result = Calls::within(limit).call(Cpu::new(1), || books.run(0));
            if let Err(CallError::TimedOut(diagnosis)) = result {
                // No sign of life: the NMI is lost, or late.
                let possible = !matches!(diagnosis.target, TargetState::Offline | TargetState::Busy { .. });
                if !possible {
                    books.wrong(Wrong::Misdiagnosed);
                }
            }
            books.settle(0, result);
            books.say(0);
        });
        cpu.does(|books| {
            let guard = InterruptsOff::<SimMachine>::new();
            books.await_word_of(0);
            drop(guard);
        });
    });
    // Nobody else makes the target look.
    protocol.prompt = false;
    protocol
}

/// Calls that their caller has left behind, claimed and unfinished, hold all its call levels.
fn busy() -> Protocol {
    let about =
        "all call levels of a CPU are held by calls that it has left behind: its next caller is told (L3)";
    let mut protocol = protocol("busy", about, 2, |cpu| {
        cpu.does(|books| {
            for entry in 0..smpcall::LEVELS {
                // It ends when this CPU has spoken; until then its CPU serves the next one.
                let held = move || {
                    books.run(entry);
                    let mut guard = InterruptsOff::new();
                    Calls::poll_until(&mut guard, books.said[0].equals(!0, 1), Deadline::NEVER);
                };
                books.settle(entry, Calls::within(Duration::from_micros(100)).call_static(Cpu::new(1), held));
                program::forget_but(entry as u64);
            }
            let result = Calls::within(Duration::from_micros(100)).call(Cpu::new(1), || ());
            if result != Err(CallError::Busy) {
                books.wrong(Wrong::NotBusy);
            }
            books.say(0);
        });
        cpu.idles();
    });
    // The caller waits until its deadlines.
    protocol.prompt = false;
    protocol.bounds = Bounds::default();
    protocol
}

/// A reschedule request whose ring may be lost costs a tick.
fn reschedule() -> Protocol {
    let about = "a reschedule request whose ring may be lost: taken by the tick at the latest (L2)";
    protocol("reschedule", about, 3, |cpu| {
        let taken = cpu.scenario.share(Note::new(0));
        cpu.does(|books| {
            if Calls::reschedule(Cpu::new(1)).is_err() {
                books.wrong(Wrong::RefusedForNothing);
            }
            books.say(0);
        });
        cpu.idles();
        ticks_after_word(cpu, 1);
        let count = move || {
            let me = SimMachine::mailboxes().get(Cpu::new(1)).expect("there are three CPUs");
            taken.set(me.counters().reschedules_taken.get());
        };
        cpu.scenario.handler(RING_VECTOR, move |mut frame| {
            frame.end_of_interrupt();
            Calls::handle_ring();
            count();
        });
        cpu.scenario.handler(TIMER_VECTOR, move |mut frame| {
            frame.end_of_interrupt();
            Calls::tick();
            count();
        });
        cpu.scenario.check(|| match taken.get() {
            1 => Ok(()),
            times => Err(Violation::new("L2", format!("a reschedule request was taken {times} times"))),
        });
    })
}
