//! Rendezvous: all CPUs stop, or none does anything; against late CPUs, lost rings, calls, posts, and each other.

use core::sync::atomic::Ordering::{Acquire, Relaxed};
use core::time::Duration;

use smpcall::{CallError, Cpu, Deferred, InterruptsOff, Post, RendezvousError};
use smpcall_machine::{Machine as _, Plain, Word};

use super::books::FOR_EVER;
use super::{Actors, protocol};
use crate::explorer::note::Note;
use crate::explorer::scenario::{Bounds, Protocol};
use crate::explorer::system::Violation;
use crate::kernel::Calls;
use crate::{SimCpuSet, SimMachine, SimMemory};

/// A deadline that is later than the second look at a ring, which may be lost.
const LATE: Duration = Duration::from_millis(1);
/// One that is before the first.
const EARLY: Duration = Duration::from_micros(100);

pub(super) fn all() -> Vec<Protocol> {
    let mut all = alone();
    all.extend(among_calls());
    all.extend(with_others());
    all
}

/// A rendezvous, and CPUs that are in the middle of something.
fn alone() -> Vec<Protocol> {
    let mut late = meeting(
        "rendezvous-late",
        "a CPU with interrupts off until the rendezvous is given up: nobody has run anything (L3)",
        (3, 0, 0),
        |cpu, hall| {
            cpu.does(move |books| {
                hall.meet(0, &[0, 1, 2], false);
                books.say(0);
            });
            cpu.does(move |books| {
                let guard = InterruptsOff::<SimMachine>::new();
                books.await_word_of(0);
                drop(guard);
                hall.works();
            });
            cpu.idles();
        },
    );
    // Nobody else makes time pass.
    late.prompt = false;
    vec![
        late,
        meeting(
            "rendezvous",
            "two CPUs stop, and both run something (L1, L2, L3)",
            (2, 1, 1),
            |cpu, hall| {
                cpu.does(move |_| hall.meet(0, &[0, 1], false));
                cpu.does(move |_| hall.works_twice());
            },
        ),
        meeting(
            "rendezvous-polling",
            "as rendezvous, with interrupts off before (L1, L2, L3)",
            (2, 1, 1),
            |cpu, hall| {
                cpu.does(move |_| hall.meet(0, &[1], true));
                cpu.does(move |_| hall.works_twice());
            },
        ),
        meeting(
            "rendezvous-three",
            "three CPUs stop, and one runs something (L1, L2)",
            (3, 1, 0),
            |cpu, hall| {
                cpu.does(move |_| hall.meet(0, &[2], false));
                cpu.does(move |_| hall.works());
                cpu.does(move |_| hall.works());
            },
        ),
        meeting(
            "rendezvous-early",
            "three CPUs, and a deadline that comes at any time: all run it or none (L1, L3)",
            (3, 0, 1),
            |cpu, hall| {
                cpu.does(move |_| hall.meet(0, &[0, 1, 2], false));
                cpu.does(move |_| hall.works());
                cpu.idles();
            },
        ),
    ]
}

fn among_calls() -> Vec<Protocol> {
    vec![
        meeting("rendezvous-call", "one participant calls another one (L1, L6)", (3, 0, 0), |cpu, hall| {
            cpu.does(move |_| hall.meet(0, &[0], false));
            cpu.does(move |books| {
                // What is served is something that the rendezvous must not come into the middle of.
                let result = Calls::for_ever().call(Cpu::new(2), || {
                    books.run(0);
                    hall.works();
                });
                books.settle(0, result);
            });
            cpu.idles();
        }),
        meeting(
            "rendezvous-call-polling",
            "one participant calls another one with interrupts off (L1, L6)",
            (3, 0, 0),
            |cpu, hall| {
                cpu.does(move |_| hall.meet(0, &[2], false));
                cpu.calls_with_interrupts_off(0, 2, FOR_EVER);
                cpu.idles();
            },
        ),
        meeting(
            "rendezvous-crossing",
            "a participant calls the controller (L1, L2, L6)",
            (2, 1, 0),
            |cpu, hall| {
                cpu.does(move |_| hall.meet(0, &[0, 1], false));
                cpu.calls(0, 0, FOR_EVER);
            },
        ),
        meeting(
            "rendezvous-serving",
            "a participant serves a post that comes before or after the rendezvous, and never within (L6)",
            (3, 0, 0),
            |cpu, hall| {
                cpu.does(move |_| hall.meet(0, &[0], false));
                cpu.idles();
                cpu.does(move |_| hall.post(Cpu::new(1), 0));
            },
        ),
        meeting(
            "rendezvous-post",
            "what runs posts and calls: the post runs afterwards, the call is refused (L1, L3)",
            (2, 0, 1),
            |cpu, hall| {
                cpu.does(move |_| hall.meet_and_post(0, &[0, 1]));
                cpu.idles();
            },
        ),
    ]
}

fn with_others() -> Vec<Protocol> {
    vec![
        meeting(
            "rendezvous-two",
            "two rendezvous at once: one after the other (L3, L6)",
            (2, 0, 0),
            |cpu, hall| {
                cpu.does(move |_| hall.meet(0, &[0, 1], false));
                cpu.does(move |_| hall.meet(1, &[0, 1], false));
            },
        ),
        meeting(
            "rendezvous-two-polling",
            "two rendezvous at once, one with interrupts off before (L3, L6)",
            (2, 0, 0),
            |cpu, hall| {
                cpu.does(move |_| hall.meet(0, &[1], false));
                cpu.does(move |_| hall.meet(1, &[0, 1], true));
            },
        ),
        meeting(
            "rendezvous-close",
            "a CPU that is to run something goes offline: it runs or the controller is told (L1, L5)",
            (2, 0, 1),
            |cpu, hall| {
                cpu.does(move |_| hall.meet(0, &[0, 1], false));
                cpu.closes();
            },
        ),
    ]
}

/// A protocol on this many CPUs, with so many messages lost and early deadlines.
fn meeting(
    name: &str,
    about: &str,
    (cpus, drops, expiries): (usize, u32, u32),
    programs: impl Fn(&mut Actors, Hall) + Send + Sync + 'static,
) -> Protocol {
    let limit = if drops == 0 { EARLY } else { LATE };
    let mut protocol = protocol(name, about, cpus, move |cpu| {
        let hall = Hall::new(cpu, cpus, limit);
        programs(cpu, hall);
    });
    protocol.bounds = Bounds { drops, expiries, ..Bounds::default() };
    protocol
}

const CPUS: usize = 3;
/// What a controller was told.
const TOOK_PLACE: u64 = 1;
const GIVEN_UP: u64 = 2;

const IN_THE_MIDDLE: u64 = 1;
const WRONG_CPU: u64 = 2;
const CALL_NOT_REFUSED: u64 = 3;
const POST_TOO_EARLY: u64 = 4;
const REFUSED: u64 = 5;

/// The books of up to two rendezvous.
struct Register {
    cpus: usize,
    /// How often each of them ran on each CPU, and what its controller was told; the CPUs that were to run it.
    ran: [[Note; CPUS]; 2],
    told: [Note; 2],
    asked: [Note; 2],
    wrong: Note,
    posts_run: Note,
    posts_accepted: Note,
    /// How many closures are under way.
    running: Word<SimMemory>,
    /// The CPUs that are in the middle of something, one bit each.
    busy: Word<SimMemory>,
    /// What each CPU uses without any other protection than interrupts off.
    data: [Plain<SimMemory, u64>; CPUS],
}

#[derive(Clone, Copy)]
struct Hall {
    register: &'static Register,
    posts: &'static [Post<SimMachine, Errand>; CPUS],
    limit: Duration,
}

/// A post that a closure makes.
struct Errand(&'static Register);

impl Deferred<SimMachine> for Errand {
    type Handle = &'static Post<SimMachine, Self>;

    fn run(handle: Self::Handle) {
        let register = handle.value().0;
        if register.running.load(Relaxed) != 0 {
            register.wrong.set(POST_TOO_EARLY);
        }
        register.posts_run.add(1);
    }
}

impl Hall {
    fn new(cpu: &mut Actors, cpus: usize, limit: Duration) -> Self {
        let register: &'static Register = cpu.scenario.share(Register {
            cpus,
            ran: [const { [const { Note::new(0) }; CPUS] }; 2],
            told: [const { Note::new(0) }; 2],
            asked: [const { Note::new(0) }; 2],
            wrong: Note::new(0),
            posts_run: Note::new(0),
            posts_accepted: Note::new(0),
            running: Word::new(0),
            busy: Word::new(0),
            data: [const { Plain::new(0) }; CPUS],
        });
        cpu.scenario.name(register.running.location(), "running");
        cpu.scenario.name(register.busy.location(), "busy");
        let posts = cpu.scenario.share(core::array::from_fn(|_| Post::new(Errand(register))));
        let books = cpu.books;
        cpu.scenario.check(move || books.check().and_then(|()| register.check()));
        Self { register, posts, limit }
    }

    /// Something that nobody else may be in the middle of.
    fn works(self) {
        let guard = InterruptsOff::<SimMachine>::new();
        let me = guard.cpu().index();
        self.register.use_data(me);
        self.register.busy.fetch_or(1 << me, Relaxed);
        self.register.use_data(me);
        self.register.busy.fetch_and(!(1 << me), Relaxed);
        drop(guard);
    }

    fn works_twice(self) {
        self.works();
        self.works();
    }

    fn meet(self, which: usize, runners: &[u32], interrupts_off: bool) {
        let register = self.register;
        self.enter(which, runners, interrupts_off, |cpu| register.run(which, cpu));
        self.works();
    }

    fn meet_and_post(self, which: usize, runners: &[u32]) {
        let register = self.register;
        self.enter(which, runners, false, |cpu| {
            register.run(which, cpu);
            let other = Cpu::new(1 - cpu.number());
            self.post(cpu, cpu.index());
            if cpu.number() == 0 {
                self.post(other, 2);
            }
            let mut guard = InterruptsOff::new();
            let called = Calls::for_ever().with_interrupts_off(&mut guard).call(other, || ());
            if called != Err(CallError::InRendezvous) {
                register.wrong.set(CALL_NOT_REFUSED);
            }
        });
    }

    fn post(self, target: Cpu, which: usize) {
        match Calls::post::<Errand>(target, &self.posts[which]) {
            Ok(_) => self.register.posts_accepted.add(1),
            Err(_) => self.register.wrong.set(REFUSED),
        }
    }

    fn enter(self, which: usize, runners: &[u32], interrupts_off: bool, closure: impl Fn(Cpu) + Sync) {
        let register = self.register;
        let cpus: SimCpuSet = runners.iter().copied().map(Cpu::new).collect();
        register.asked[which].set(runners.iter().map(|cpu| 1 << cpu).sum());
        let caller = Calls::within(self.limit);
        let result = if interrupts_off {
            let mut guard = InterruptsOff::new();
            caller.with_interrupts_off(&mut guard).rendezvous(&cpus, closure)
        } else {
            caller.rendezvous(&cpus, closure)
        };
        register.told[which].set(match result {
            Ok(()) => TOOK_PLACE,
            Err(RendezvousError::Panicked(_)) => 0,
            Err(_) => GIVEN_UP,
        });
    }
}

impl Register {
    /// The closure of a rendezvous runs.
    fn run(&self, which: usize, cpu: Cpu) {
        if SimMachine::current_cpu() != cpu || SimMachine::interrupts_enabled() {
            self.wrong.set(WRONG_CPU);
        }
        self.running.fetch_add(1, Relaxed);
        // Between these others could act, if they could.
        if self.busy.load(Acquire) != 0 {
            self.wrong.set(IN_THE_MIDDLE);
        }
        // What another CPU uses for itself: each closure that runs takes one, and nobody takes it twice.
        self.use_data((cpu.index() + self.cpus - 1) % self.cpus);
        self.running.fetch_sub(1, Relaxed);
        self.ran[which][cpu.index()].add(1);
    }

    fn use_data(&self, of: usize) {
        // SAFETY: on a simulated machine two accesses are never made at the same time, and the explorer is told of both:
        // whether something orders them is what it checks.
        unsafe { self.data[of].write(self.data[of].read() + 1) };
    }

    fn check(&self) -> Result<(), Violation> {
        match self.wrong.get() {
            0 => {}
            IN_THE_MIDDLE => {
                return Err(Violation::new(
                    "stop",
                    "a closure ran while a CPU was in the middle of something",
                ));
            }
            WRONG_CPU => {
                return Err(Violation::new(
                    "L1",
                    "a closure ran on the wrong CPU, or with interrupts enabled",
                ));
            }
            CALL_NOT_REFUSED => return Err(Violation::new("L3", "a call was made while nobody serves")),
            POST_TOO_EARLY => return Err(Violation::new("stop", "a post ran while all CPUs were stopped")),
            _ => return Err(Violation::new("L1", "a post was refused for no reason")),
        }
        for (which, (ran, told)) in self.ran.iter().zip(&self.told).enumerate() {
            let ran: u64 = ran
                .iter()
                .enumerate()
                .map(|(cpu, times)| times.get() << (8 * cpu))
                .fold(0, |all, one| all | one);
            let asked = self.asked[which].get();
            let all: u64 = (0..CPUS).map(|cpu| (asked >> cpu & 1) << (8 * cpu)).sum();
            let expected = if told.get() == TOOK_PLACE { all } else { 0 };
            if ran != expected {
                let what = format!(
                    "rendezvous {which} ran {ran:#x} times (a byte for each CPU) where {expected:#x} was told"
                );
                return Err(Violation::new("L1", what));
            }
        }
        let (accepted, run) = (self.posts_accepted.get(), self.posts_run.get());
        if accepted == run {
            Ok(())
        } else {
            Err(Violation::new("L1", format!("{accepted} posts were accepted, {run} were run")))
        }
    }
}
