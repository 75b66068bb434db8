//! CPUs that come and go, or are declared dead, while calls and posts come in. CPU 0 controls.

use core::sync::atomic::Ordering::{Acquire, Release};
use core::time::Duration;

use smpcall::{CallError, Cpu, HotplugError, InterruptsOff, Life};
use smpcall_local_apic::Routing;
use smpcall_machine::Machine as _;

use super::books::{Books, FOR_EVER, SHORT, Wrong};
use super::{Actors, protocol};
use crate::explorer::note::Note;
use crate::explorer::scenario::{Bounds, Protocol};
use crate::explorer::system::Violation;
use crate::kernel::Calls;
use crate::{SimMachine, TIMER_VECTOR, program};

pub(super) fn all() -> Vec<Protocol> {
    let mut all = ups();
    all.extend(downs());
    all.extend(deaths());
    for protocol in &mut all {
        // One register write a message.
        protocol.routing = Routing::X2ApicPhysical;
    }
    all
}

/// Longer than anything takes that is not lost.
const LIMIT: Duration = Duration::from_secs(1);

const fn bounds(drops: u32, expiries: u32) -> Bounds {
    Bounds { drops, expiries, ticks: 0, wedges: 0 }
}

fn with(mut protocol: Protocol, bounds: Bounds) -> Protocol {
    protocol.bounds = bounds;
    protocol
}

/// The idle loop of a CPU that may be taken down, until the controller has spoken.
fn idle(books: &'static Books) {
    loop {
        let mut guard = InterruptsOff::new();
        if Calls::may_halt(&mut guard) {
            Calls::die_if_asked(&mut guard);
            if books.said[1].load(Acquire) != 0 {
                return;
            }
            program::halt();
        }
        drop(guard);
        program::forget_but(0);
    }
}

/// The controller has spoken: idle loops end.
fn wake(books: &'static Books, cpu: u32) {
    // A locked instruction: a device's interrupt does not wait for a store buffer.
    books.said[1].fetch_or(1, Release);
    program::request_interrupt(Cpu::new(cpu), TIMER_VECTOR);
}

/// What a CPU runs that is started, until it takes calls.
fn comes() {
    program::enable_local_apic().expect("the routing fits");
    let mut guard = InterruptsOff::new();
    Calls::start_here(&mut guard);
    drop(guard);
    SimMachine::restore_interrupts(true);
}

/// Brings a CPU up; returns whether it is.
fn up(books: &'static Books, cpu: u32) -> bool {
    let result = Calls::cpu_up(Cpu::new(cpu), LIMIT);
    let life = Calls::life(Cpu::new(cpu));
    let fits = match result {
        Ok(()) => life == Some(Life::Online),
        // It may have come, and parked.
        Err(HotplugError::NotCome { .. }) => matches!(life, Some(Life::Late | Life::Offline)),
        Err(HotplugError::Unfinished(Life::Alive)) => matches!(life, Some(Life::Alive | Life::Up)),
        Err(HotplugError::Fence(_)) => matches!(life, Some(Life::Late | Life::Offline)),
        Err(_) => false,
    };
    if !fits {
        books.wrong(Wrong::NotAsTold);
    }
    result.is_ok()
}

/// Takes a CPU down; returns whether it is.
fn down(books: &'static Books, cpu: u32) -> bool {
    let cpu = Cpu::new(cpu);
    let result = Calls::cpu_down(cpu, LIMIT);
    let life = Calls::life(cpu);
    let fits = match result {
        // Or another controller was faster.
        Ok(()) | Err(HotplugError::AlreadyOffline) => life == Some(Life::Offline),
        Err(HotplugError::TimedOut(_)) => life == Some(Life::Online),
        Err(HotplugError::Unfinished(Life::Dying)) => matches!(life, Some(Life::Dying | Life::Parked)),
        Err(_) => false,
    };
    if !fits {
        books.wrong(Wrong::NotAsTold);
    }
    if result.is_ok() {
        is_offline(books, cpu);
    }
    result.is_ok()
}

/// Law L5: nothing is accepted.
fn is_offline(books: &'static Books, cpu: Cpu) {
    let refused = Calls::for_ever().call_static(cpu, move || books.wrong(Wrong::OnlineAfterAll));
    if refused != Err(CallError::Offline) {
        books.wrong(Wrong::OnlineAfterAll);
    }
}

fn declare_dead(books: &'static Books, cpu: u32) -> bool {
    let cpu = Cpu::new(cpu);
    // SAFETY: what its closures write are notes, and no task migrates.
    let result = unsafe { Calls::declare_dead(cpu, SHORT.expect("it is a limit")) };
    let fits = match result {
        Ok(()) => Calls::life(cpu) == Some(Life::Offline),
        Err(HotplugError::IsAlive | HotplugError::Fence(_)) => Calls::life(cpu) == Some(Life::Online),
        Err(HotplugError::Unfinished(Life::Fenced)) => Calls::life(cpu) == Some(Life::Fenced),
        Err(_) => false,
    };
    if !fits {
        books.wrong(Wrong::NotAsTold);
    }
    if result.is_ok() {
        is_offline(books, cpu);
    }
    result.is_ok()
}

fn ups() -> Vec<Protocol> {
    // CPU 2 is present and waits to be started.
    let coming = |cpu: &mut Actors, caller: fn(&mut Actors)| {
        cpu.does(|books| {
            if up(books, 2) {
                // It must be accepted, and its ring must reach it.
                books.call(0, 2, FOR_EVER, false);
                books.must_have_run(0);
            }
        });
        caller(cpu);
        cpu.scenario.not_started(Cpu::new(2));
        cpu.scenario.start_up(|_, _| comes());
    };
    let again = |cpu: &mut Actors| {
        cpu.does(|books| {
            // If it was given up, it may come at any moment from now on.
            if up(books, 1) || up(books, 1) {
                books.call(0, 1, FOR_EVER, false);
                books.must_have_run(0);
            }
        });
        cpu.scenario.not_started(Cpu::new(1));
        cpu.scenario.start_up(|_, _| comes());
    };
    vec![
        with(
            protocol("up-call", "a call to a CPU as it comes up: refused or run (L1, L5)", 3, move |cpu| {
                coming(cpu, |cpu| cpu.calls(1, 2, FOR_EVER));
            }),
            bounds(0, 0),
        ),
        with(
            protocol("up-post", "a post to a CPU as it comes up: refused or run (L1, L5)", 3, move |cpu| {
                coming(cpu, |cpu| cpu.posts(0, 2));
            }),
            bounds(0, 0),
        ),
        with(
            protocol("up-late", "a CPU that comes late parks, and can be started again (L3, L5)", 2, again),
            bounds(1, 1),
        ),
    ]
}

fn downs() -> Vec<Protocol> {
    /// The controller takes CPU 1 down and ends its idle loop if it stays.
    fn goes(cpu: &mut Actors, awaits_poster: bool, callers: impl FnOnce(&mut Actors)) {
        cpu.does(move |books| {
            down(books, 1);
            if awaits_poster {
                // The last tick finds a post whose ring was lost.
                books.await_word_of(0);
            }
            wake(books, 1);
        });
        let books = cpu.books;
        cpu.scenario.cpu(move || idle(books));
        callers(cpu);
    }
    vec![
        with(
            protocol("down", "a CPU goes offline, or is asked too late: one of the two (L3, L5)", 2, |cpu| {
                goes(cpu, false, |_| ());
            }),
            bounds(1, 2),
        ),
        with(
            protocol("down-call", "a call to a CPU that is taken down: run or refused (L1, L5)", 3, |cpu| {
                goes(cpu, false, |cpu| cpu.calls(0, 1, FOR_EVER));
            }),
            bounds(0, 1),
        ),
        with(
            protocol("down-post", "a post to a CPU that is taken down: run or refused (L1, L5)", 3, |cpu| {
                goes(cpu, true, |cpu| cpu.posts(0, 1));
            }),
            bounds(1, 1),
        ),
        with(
            protocol("down-many", "a call to many, one of which is taken down (L1, L5)", 3, |cpu| {
                goes(cpu, false, |cpu| cpu.calls_many(0, &[1], FOR_EVER));
            }),
            bounds(0, 0),
        ),
        with(
            protocol("down-twice", "two controllers take the same CPU down: one does (L5)", 3, |cpu| {
                goes(cpu, false, |cpu| {
                    cpu.does(|books| match Calls::cpu_down(Cpu::new(1), LIMIT) {
                        Ok(()) | Err(HotplugError::AlreadyOffline) => is_offline(books, Cpu::new(1)),
                        Err(_) => books.wrong(Wrong::NotAsTold),
                    });
                });
            }),
            bounds(0, 0),
        ),
        with(
            protocol(
                "down-up",
                "the ring of a given-up call, and its CPU goes and comes back: the next call is rung for (L2, L5)",
                2,
                |cpu| {
                    cpu.does(|books| {
                        books.call(0, 1, SHORT, false);
                        if down(books, 1) && up(books, 1) {
                            books.call(1, 1, FOR_EVER, false);
                            books.must_have_run(1);
                        }
                        wake(books, 1);
                    });
                    let books = cpu.books;
                    cpu.scenario.cpu(move || idle(books));
                    cpu.scenario.start_up(|_, _| comes());
                },
            ),
            bounds(0, 1),
        ),
    ]
}

fn deaths() -> Vec<Protocol> {
    /// CPU 1 is declared dead, unless it answers in time.
    fn dies(cpu: &mut Actors, comes_again: bool, others: impl FnOnce(&mut Actors)) {
        cpu.does(move |books| {
            if declare_dead(books, 1) && comes_again && up(books, 1) {
                books.call(0, 1, FOR_EVER, false);
                books.must_have_run(0);
            }
        });
        // So that it is asked by a call, which one early deadline withdraws.
        cpu.scenario.cpu(|| Calls::declare_nmi(false));
        if comes_again {
            cpu.scenario.start_up(|_, _| comes());
        }
        others(cpu);
    }
    vec![
        with(
            protocol(
                "dead-call",
                "a CPU is declared dead, wherever it is in a call: run, refused, or told that it died (L1, L4)",
                3,
                |cpu| dies(cpu, false, |cpu| cpu.calls(1, 1, FOR_EVER)),
            ),
            bounds(0, 1),
        ),
        with(
            protocol(
                "dead-many",
                "a CPU is declared dead, wherever it is in a call to many (L1, L4)",
                3,
                |cpu| dies(cpu, false, |cpu| cpu.calls_many(1, &[1], FOR_EVER)),
            ),
            bounds(0, 1),
        ),
        with(
            protocol(
                "dead-up",
                "a CPU is declared dead in a call, and comes up again with the caller still there (L1, L5)",
                3,
                |cpu| dies(cpu, true, |cpu| cpu.calls(1, 1, FOR_EVER)),
            ),
            bounds(0, 1),
        ),
        dead_caller(),
        dead_served(),
    ]
}

/// The controller serves a closure that calls the CPU which it is about to declare dead, and waits for it for ever.
fn dead_served() -> Protocol {
    let about = "a closure that the controller serves calls the CPU that it declares dead, without a deadline (L1, L3)";
    let served = protocol("dead-served", about, 3, |cpu| {
        cpu.does(|books| {
            declare_dead(books, 1);
        });
        cpu.scenario.cpu(|| Calls::declare_nmi(false));
        cpu.does(|books| {
            let result = Calls::for_ever().call(Cpu::new(0), || {
                books.run(0);
                books.call(1, 1, FOR_EVER, true);
            });
            books.settle(0, result);
        });
    });
    with(served, bounds(0, 1))
}

/// What a dead CPU had called runs before `declare_dead` returns, or never: afterwards its stack may be used again.
fn dead_caller() -> Protocol {
    let about =
        "a CPU is declared dead, wherever it is in a call of its own: nobody runs it afterwards (L1, L4)";
    let dead_caller = protocol("dead-caller", about, 3, |cpu| {
        let books = cpu.books;
        let ran_at_return = cpu.scenario.share(Note::new(NOT_DEAD));
        cpu.does(move |books| {
            if declare_dead(books, 1) {
                ran_at_return.set(books.has_run(0));
            }
        });
        cpu.does(|books| {
            Calls::declare_nmi(false);
            books.call(0, 2, FOR_EVER, false);
        });
        cpu.idles();
        cpu.scenario.check(move || {
            let at_return = ran_at_return.get();
            if at_return == NOT_DEAD {
                return books.check();
            }
            // It was told nothing, or something that it did not live to use.
            books.check_with_wedges()?;
            books.check_progress()?;
            match books.has_run(0) {
                ran if ran == at_return => Ok(()),
                _ => Err(Violation::new("L4", "a call ran after its caller was declared dead")),
            }
        });
    });
    with(dead_caller, bounds(0, 1))
}

/// The CPU was not declared dead.
const NOT_DEAD: u64 = u64::MAX;
