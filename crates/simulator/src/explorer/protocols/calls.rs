//! Calls to one CPU.

use core::time::Duration;

use smpcall::{Cpu, InterruptsOff};
use smpcall_machine::Deadline;

use super::books::{FOR_EVER, SHORT};
use super::protocol;
use crate::SimMachine;
use crate::explorer::scenario::Protocol;
use crate::kernel::Calls;

#[allow(clippy::too_many_lines, reason = "a list")]
pub(super) fn all() -> Vec<Protocol> {
    vec![
        protocol("call", "one call, interrupts on: run once, whatever ring is lost (L1, L2, L3)", 2, |cpu| {
            cpu.calls(0, 1, FOR_EVER);
            cpu.idles();
        }),
        protocol("call-polling", "one call with interrupts off (L1, L2, L6)", 2, |cpu| {
            cpu.calls_with_interrupts_off(0, 1, FOR_EVER);
            cpu.idles();
        }),
        protocol("deadline", "one call whose deadline races with its claim (L1, L3, L4)", 2, |cpu| {
            cpu.calls(0, 1, SHORT);
            cpu.idles();
        }),
        protocol("deadline-static", "a deadline on a claimed call that borrows nothing (L4)", 2, |cpu| {
            cpu.does(|books| {
                books.call_static(0, 1, SHORT);
                books.call(1, 1, FOR_EVER, false);
            });
            cpu.idles();
        }),
        protocol(
            "reuse",
            "a given-up call, then another one from its slot to another CPU (L1, L4)",
            3,
            |cpu| {
                cpu.does(|books| {
                    books.call(0, 1, SHORT, false);
                    books.call(1, 2, FOR_EVER, false);
                });
                cpu.idles();
                cpu.idles();
            },
        ),
        protocol(
            "static-reuse",
            "a given-up call that borrows nothing, then another from its slot (L1, L4)",
            3,
            |cpu| {
                cpu.does(|books| {
                    books.call_static(0, 1, SHORT);
                    books.call(1, 2, FOR_EVER, false);
                });
                cpu.idles();
                cpu.idles();
            },
        ),
        protocol("twice", "two calls to one CPU, in order (L1, L2)", 2, |cpu| {
            cpu.does(|books| {
                books.call(0, 1, FOR_EVER, false);
                books.call(1, 1, FOR_EVER, false);
            });
            cpu.idles();
        }),
        protocol("mutual", "two CPUs call each other, interrupts on (L1, L2, L6)", 2, |cpu| {
            cpu.calls(0, 1, FOR_EVER);
            cpu.calls(1, 0, FOR_EVER);
        }),
        protocol("mutual-polling", "two CPUs call each other, interrupts off (L1, L2, L6)", 2, |cpu| {
            cpu.calls_with_interrupts_off(0, 1, FOR_EVER);
            cpu.calls_with_interrupts_off(1, 0, FOR_EVER);
        }),
        protocol(
            "mutual-mixed",
            "two CPUs call each other, one with interrupts off (L1, L2, L6)",
            2,
            |cpu| {
                cpu.calls_with_interrupts_off(0, 1, FOR_EVER);
                cpu.calls(1, 0, FOR_EVER);
            },
        ),
        protocol("mutual-deadline", "two CPUs call each other with deadlines (L1, L3, L4)", 2, |cpu| {
            cpu.calls(0, 1, SHORT);
            cpu.calls_with_interrupts_off(1, 0, SHORT);
        }),
        protocol("two-callers", "two callers, one target: only the first rings (L1, L2)", 3, |cpu| {
            cpu.calls(0, 2, FOR_EVER);
            cpu.calls(1, 2, FOR_EVER);
            cpu.idles();
        }),
        protocol("callers-deadline", "two callers with deadlines, one target (L1, L3, L4)", 3, |cpu| {
            cpu.calls(0, 2, SHORT);
            cpu.calls(1, 2, SHORT);
            cpu.idles();
        }),
        protocol("callers-polling", "two callers with interrupts off, one target (L1, L2, L6)", 3, |cpu| {
            cpu.calls_with_interrupts_off(0, 2, FOR_EVER);
            cpu.calls_with_interrupts_off(1, 2, FOR_EVER);
            cpu.idles();
        }),
        protocol("chain", "a CPU calls the second, which calls the third (L1, L2, L6)", 3, |cpu| {
            cpu.calls(0, 1, FOR_EVER);
            cpu.calls(1, 2, FOR_EVER);
            cpu.idles();
        }),
        protocol("cycle", "three CPUs call each other in a ring, interrupts off (L1, L6)", 3, |cpu| {
            cpu.calls_with_interrupts_off(0, 1, FOR_EVER);
            cpu.calls_with_interrupts_off(1, 2, FOR_EVER);
            cpu.calls_with_interrupts_off(2, 0, FOR_EVER);
        }),
        protocol("nested", "a closure calls back (L1, L2, L6)", 2, |cpu| {
            cpu.does(|books| {
                let result = Calls::for_ever().call(Cpu::new(1), || {
                    books.run(0);
                    books.call(1, 0, FOR_EVER, true);
                });
                books.settle(0, result);
            });
            cpu.idles();
        }),
        protocol("nested-chain", "a closure calls a third CPU (L1, L2, L6)", 3, |cpu| {
            cpu.does(|books| {
                let result = Calls::for_ever().call(Cpu::new(1), || {
                    books.run(0);
                    books.call(1, 2, FOR_EVER, true);
                });
                books.settle(0, result);
            });
            cpu.idles();
            cpu.idles();
        }),
        protocol(
            "served-waits",
            "a closure waits for another CPU's call, which may have been taken with its own (L1, L2, L6)",
            3,
            |cpu| {
                cpu.does(|books| {
                    let result = Calls::for_ever().call(Cpu::new(1), || {
                        books.run(0);
                        let mut guard = InterruptsOff::new();
                        Calls::poll_until(&mut guard, books.said[1].equals(!0, 1), Deadline::NEVER);
                    });
                    books.settle(0, result);
                });
                cpu.idles();
                cpu.calls_and_says(1, 1);
            },
        ),
        protocol(
            "poll-until",
            "a call to a CPU that begins to poll and stops: nobody need ring twice (L1, L2, L6)",
            2,
            |cpu| {
                cpu.calls_and_says(0, 1);
                // It polls with interrupts off until that is said, but not for ever: then interrupts are on again.
                cpu.does(|books| {
                    let mut guard = InterruptsOff::new();
                    let deadline = Deadline::within::<SimMachine>(Duration::from_micros(100));
                    Calls::poll_until(&mut guard, books.said[0].equals(!0, 1), deadline);
                });
            },
        ),
    ]
}
