//! Three CPUs, each with two or more calls: to be explored as far as time permits.

use smpcall::Cpu;

use super::books::{FOR_EVER, SHORT};
use super::{Actors, protocol};
use crate::explorer::scenario::{Bounds, Protocol};
use crate::kernel::Calls;

/// Two calls of the next CPU, one after the other.
fn calls_twice(cpu: &mut Actors, entry: usize, targets: [u32; 2], interrupts_off: bool) {
    cpu.does(move |books| {
        books.call(entry, targets[0], FOR_EVER, interrupts_off);
        books.call(entry + 1, targets[1], FOR_EVER, interrupts_off);
    });
}

pub(super) fn all() -> Vec<Protocol> {
    let mut all = vec![
        protocol(
            "reuse-callers",
            "a given-up call, another from its slot to a CPU that a third one calls (L1, L4)",
            3,
            |cpu| {
                cpu.does(|books| {
                    books.call(0, 1, SHORT, false);
                    books.call(1, 2, FOR_EVER, false);
                });
                cpu.calls(2, 2, FOR_EVER);
                cpu.idles();
            },
        ),
        protocol(
            "ring-again",
            "two callers, interrupts on and off: repeated rings against answers (L1, L2)",
            3,
            |cpu| {
                cpu.calls(0, 2, FOR_EVER);
                cpu.calls_with_interrupts_off(1, 2, FOR_EVER);
                cpu.idles();
            },
        ),
        protocol(
            "nested-cross",
            "a closure calls a third CPU, which calls the first caller (L1, L2, L6)",
            3,
            |cpu| {
                cpu.does(|books| {
                    let result = Calls::for_ever().call(Cpu::new(1), || {
                        books.run(0);
                        books.call(1, 2, FOR_EVER, true);
                    });
                    books.settle(0, result);
                });
                cpu.idles();
                cpu.calls(2, 0, FOR_EVER);
            },
        ),
        protocol(
            "many-callers",
            "two calls to many, to the same CPU and to each other (L1, L2, L6)",
            3,
            |cpu| {
                cpu.calls_many(0, &[1, 2], FOR_EVER);
                cpu.calls_many(2, &[0, 2], FOR_EVER);
                cpu.idles();
            },
        ),
        protocol("callers-twice", "two callers with two calls each to one CPU (L1, L2)", 3, |cpu| {
            calls_twice(cpu, 0, [2, 2], false);
            calls_twice(cpu, 2, [2, 2], false);
            cpu.idles();
        }),
        protocol("three-by-two", "each of three CPUs calls both others (L1, L2, L6)", 3, |cpu| {
            calls_twice(cpu, 0, [1, 2], false);
            calls_twice(cpu, 2, [2, 0], false);
            calls_twice(cpu, 4, [0, 1], false);
        }),
        protocol(
            "three-by-two-polling",
            "each of three CPUs calls both others, interrupts off (L1, L2, L6)",
            3,
            |cpu| {
                calls_twice(cpu, 0, [1, 2], true);
                calls_twice(cpu, 2, [2, 0], true);
                calls_twice(cpu, 4, [0, 1], true);
            },
        ),
    ];
    for large in all.iter_mut().filter(|protocol| protocol.name.starts_with("three-by-two")) {
        large.bounds = Bounds::default();
    }
    all
}
