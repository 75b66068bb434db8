//! Deferred work: raised from programs and handlers, run after the interrupt, against closing mailboxes and nested interrupts.

use core::sync::atomic::Ordering::{Acquire, Release};

use smpcall::{Cpu, Deferred, InterruptsOff, Post, PostRefusal, Posted};
use smpcall_machine::{Deadline, Machine as _, Word, wait};

use super::books::FOR_EVER;
use super::{Actors, protocol};
use crate::explorer::note::Note;
use crate::explorer::scenario::{Bounds, Protocol};
use crate::explorer::system::Violation;
use crate::kernel::Calls;
use crate::{RING_VECTOR, SimMachine, SimMemory, TIMER_VECTOR, program};

/// Nothing is lost: who raises work does not wait for it, and nobody's timer ticks.
const NO_LOSS: Bounds = Bounds { drops: 0, expiries: 1, ticks: 0, wedges: 0 };

pub(super) fn all() -> Vec<Protocol> {
    let mut all = of_programs();
    all.extend(of_handlers());
    all
}

fn without_loss(mut protocol: Protocol) -> Protocol {
    protocol.bounds = NO_LOSS;
    protocol
}

fn of_programs() -> Vec<Protocol> {
    vec![
        working(
            "work",
            "two CPUs raise the same work; a lost ring is found by the tick (L1, L2)",
            3,
            |cpu, work| {
                raises(cpu, work, 0, 2);
                raises(cpu, work, 1, 2);
                cpu.does(|books| {
                    books.await_word_of(0);
                    books.await_word_of(1);
                    ticks();
                });
            },
        ),
        working("work-again", "work that is raised again while it runs, or before (L1)", 2, |cpu, work| {
            cpu.does(move |books| {
                work.raise(0, 1);
                work.raise(1, 1);
                books.say(0);
            });
            cpu.does(|books| {
                books.await_word_of(0);
                ticks();
            });
        }),
        without_loss(working(
            "work-two",
            "two pieces of work, the first of them again: a list of more than one (L1)",
            2,
            |cpu, work| {
                let other = Raised {
                    post: cpu.scenario.share(Post::new(Doing { calls_back: false, ..*work.post.value() })),
                    ..work
                };
                cpu.does(move |_| {
                    work.raise(0, 1);
                    other.raise(1, 1);
                    work.raise(2, 1);
                });
                cpu.idles();
            },
        )),
        working("work-own", "a CPU raises work for itself, beside a call to it (L1)", 2, |cpu, work| {
            cpu.does(move |books| {
                work.raise(0, 0);
                books.call(0, 1, FOR_EVER, false);
                ticks();
            });
            cpu.calls(1, 0, FOR_EVER);
        }),
        working("work-close", "two CPUs raise work for one that goes offline (L1, L5)", 3, |cpu, work| {
            raises(cpu, work, 0, 2);
            raises(cpu, work, 1, 2);
            closes(cpu);
        }),
        without_loss(working(
            "work-polling",
            "work for a CPU that polls with interrupts off: it runs when they are on again (L1, L2)",
            2,
            |cpu, work| {
                raises(cpu, work, 0, 1);
                cpu.does(move |books| {
                    let mut guard = InterruptsOff::new();
                    Calls::poll_until(&mut guard, books.said[0].equals(!0, 1), Deadline::NEVER);
                    drop(guard);
                    work.await_run();
                });
            },
        )),
        without_loss(working("work-halt", "work for a CPU that is about to halt (L2)", 2, |cpu, work| {
            raises(cpu, work, 0, 1);
            cpu.does(move |_| {
                while !work.has_run() {
                    Calls::run_work();
                    let mut guard = InterruptsOff::new();
                    if Calls::may_halt(&mut guard) && !work.has_run() {
                        program::halt();
                    }
                    drop(guard);
                    program::forget_but(0);
                }
            });
        })),
    ]
}

fn of_handlers() -> Vec<Protocol> {
    let mut calls_back = working_on(
        "work-call",
        "work that calls the CPU that has raised it, which waits for a call (L1, L6)",
        2,
        true,
        |cpu, work| {
            cpu.does(move |books| {
                work.raise(0, 1);
                books.call(0, 1, FOR_EVER, false);
                books.say(0);
                work.await_run();
            });
            cpu.does(|books| {
                books.await_word_of(0);
                ticks();
            });
        },
    );
    calls_back.bounds = Bounds { drops: 1, ..Bounds::default() };
    vec![
        calls_back,
        working(
            "work-handler",
            "an interrupt handler raises work for a CPU that goes offline: run or refused (L1, L5)",
            2,
            |cpu, work| {
                cpu.does(|_| program::request_interrupt(Cpu::new(0), TIMER_VECTOR));
                closes(cpu);
                raised_by_timer(cpu, work, 1);
            },
        ),
        without_loss(working(
            "work-interrupted",
            "a timer interrupt raises work for its own CPU, maybe while work runs there (L1)",
            2,
            |cpu, work| {
                cpu.does(move |books| {
                    work.raise(0, 1);
                    program::request_interrupt(Cpu::new(1), TIMER_VECTOR);
                    books.say(0);
                });
                cpu.does(|books| {
                    books.await_word_of(0);
                    ticks();
                });
                raised_by_timer(cpu, work, 1);
            },
        )),
    ]
}

/// The handler of the timer raises the work, as the second of two.
fn raised_by_timer(cpu: &mut Actors, work: Raised, target: u32) {
    cpu.scenario.handler(TIMER_VECTOR, move |mut frame| {
        frame.end_of_interrupt();
        work.raise(1, target);
        Calls::exit_interrupt();
    });
}

/// A protocol on machines whose handlers run deferred work when they return.
fn working(
    name: &str,
    about: &str,
    cpus: usize,
    programs: impl Fn(&mut Actors, Raised) + Send + Sync + 'static,
) -> Protocol {
    working_on(name, about, cpus, false, programs)
}

fn working_on(
    name: &str,
    about: &str,
    cpus: usize,
    calls_back: bool,
    programs: impl Fn(&mut Actors, Raised) + Send + Sync + 'static,
) -> Protocol {
    protocol(name, about, cpus, move |cpu| {
        let work = Raised::new(cpu, calls_back);
        cpu.scenario.handler(RING_VECTOR, |mut frame| {
            frame.end_of_interrupt();
            Calls::handle_ring();
            Calls::exit_interrupt();
        });
        programs(cpu, work);
    })
}

/// What the handler of the timer does, in a program.
fn ticks() {
    Calls::tick();
    Calls::run_work();
}

fn raises(cpu: &mut Actors, work: Raised, who: usize, target: u32) {
    cpu.does(move |books| {
        work.raise(who, target);
        books.say(who);
    });
}

/// Goes offline, and runs what was listed and has not run.
fn closes(cpu: &mut Actors) {
    cpu.does(|_| {
        let mut guard = InterruptsOff::new();
        Calls::close(&mut guard);
        drop(guard);
        Calls::run_work();
    });
}

/// The books of a piece of work.
struct Chore {
    /// What those who raise it leave for the run: one bit each.
    work: Word<SimMemory>,
    queued: Note,
    run: Note,
    /// Those whose work was accepted, and whose work a run has found, one bit each.
    accepted: Note,
    found: Note,
    wrong: Note,
}

/// A piece of work, and its books.
#[derive(Clone, Copy)]
struct Raised {
    chore: &'static Chore,
    post: &'static Post<SimMachine, Doing>,
}

impl Raised {
    fn new(cpu: &mut Actors, calls_back: bool) -> Self {
        let chore = cpu.scenario.share(Chore {
            work: Word::new(0),
            queued: Note::new(0),
            run: Note::new(0),
            accepted: Note::new(0),
            found: Note::new(0),
            wrong: Note::new(0),
        });
        let post = cpu.scenario.share(Post::new(Doing { chore, calls_back }));
        cpu.scenario.name(chore.work.location(), "work");
        let books = cpu.books;
        cpu.scenario.check(|| books.check().and_then(|()| chore.check()));
        Self { chore, post }
    }

    /// Leaves something to do, and raises the work.
    fn raise(self, who: usize, target: u32) {
        let work = 1 << who;
        self.chore.work.fetch_or(work, Release);
        let result = Calls::post::<Doing>(Cpu::new(target), self.post);
        if result.is_ok() {
            self.chore.accepted.add(work);
        }
        match result {
            Ok(Posted::Queued) => self.chore.queued.add(1),
            Ok(Posted::Merged) => {}
            Err(error) => {
                if !matches!(error.reason, PostRefusal::Offline | PostRefusal::Contended) {
                    self.chore.wrong.set(REFUSED);
                }
            }
        }
    }

    fn has_run(self) -> bool {
        self.chore.found.get() != 0
    }

    #[track_caller]
    fn await_run(self) {
        wait::<SimMachine>(&[self.chore.work.equals(!0, 0)], Deadline::NEVER);
    }
}

const REFUSED: u64 = 1;
const INTERRUPTS_OFF: u64 = 2;
const NESTED: u64 = 3;

impl Chore {
    fn check(&self) -> Result<(), Violation> {
        match self.wrong.get() {
            0 => {}
            REFUSED => return Err(Violation::new("L1", "work was refused for no reason")),
            INTERRUPTS_OFF => return Err(Violation::new("work", "work ran with interrupts disabled")),
            NESTED => return Err(Violation::new("work", "work ran inside of other work")),
            _ => return Err(Violation::new("L1", "a call that work has made was refused")),
        }
        let (queued, run) = (self.queued.get(), self.run.get());
        if queued != run {
            return Err(Violation::new("L1", format!("work was queued {queued} times and run {run} times")));
        }
        let lost = self.accepted.get() & !self.found.get();
        if lost == 0 {
            Ok(())
        } else {
            Err(Violation::new("L1", format!("work was accepted, and no run came after it: {lost:#b}")))
        }
    }
}

/// What is raised.
struct Doing {
    chore: &'static Chore,
    /// Whether it calls CPU 0.
    calls_back: bool,
}

impl Deferred<SimMachine> for Doing {
    type Handle = &'static Post<SimMachine, Self>;
    const IS_WORK: bool = true;

    fn run(handle: Self::Handle) {
        let &Self { chore, calls_back } = handle.value();
        if !SimMachine::interrupts_enabled() {
            chore.wrong.set(INTERRUPTS_OFF);
        }
        if Calls::run_work() {
            chore.wrong.set(NESTED);
        }
        if calls_back && Calls::for_ever().call(Cpu::new(0), || ()).is_err() {
            chore.wrong.set(NESTED + 1);
        }
        let work = chore.work.swap(0, Acquire);
        chore.run.add(1);
        let found = chore.found.get();
        chore.found.set(found | work);
    }
}
