//! Protocols of callers and posters, each for few laws and of few operations: so that counterexamples are short.

use core::sync::atomic::Ordering::{Relaxed, Release};
use core::time::Duration;

use smpcall::{CallError, Caller, Deferred, InterruptsOff, Post};
use smpcall_machine::{Cpu, Deadline, Machine, Plain, Word, wait};
use smpcall_simulator::explorer::{Note, Protocol, Scenario, Violation};
use smpcall_simulator::kernel::{Calls, Hooks};
use smpcall_simulator::{RING_VECTOR, SimCpuSet, SimMachine, SimMemory, program};

use super::purpose::broken;

/// All of them, but for [`stale_claim_post`].
pub(crate) fn all() -> Vec<Protocol> {
    vec![
        rung_again(),
        answered(),
        attended_pass(),
        attended_wait(),
        interrupted_caller(),
        visible(),
        visible_to_many(),
        many_deadline(),
        posted_twice(),
        posted_by_two(),
        rung_once(),
        given_up(),
        given_up_many(),
        stale_mark_post(),
        static_call(),
        levels(),
        levels_of_many(),
        left_behind(),
    ]
}

/// How often each call ran, what its caller was told, and how many rings a CPU took.
struct Calling {
    effects: Word<SimMemory>,
    said: [Word<SimMemory>; 2],
    /// Plain data that a caller and its closure hand to each other.
    data: Plain<SimMemory, u64>,
    runs: [Note; 5],
    told: [Note; 5],
    rings: Note,
}

impl Calling {
    fn new(scenario: &mut Scenario) -> &'static Self {
        let calling = scenario.share(Self {
            effects: Word::new(0),
            said: [const { Word::new(0) }; 2],
            data: Plain::new(0),
            runs: [const { Note::new(0) }; 5],
            told: [const { Note::new(0) }; 5],
            rings: Note::new(0),
        });
        scenario.name(calling.effects.location(), "effects");
        for (at, word) in calling.said.iter().enumerate() {
            scenario.name(word.location(), format!("said[{at}]"));
        }
        calling
    }

    fn run(&self, call: usize) {
        // Between the claim and the completion others can act.
        self.effects.fetch_add(1, Relaxed);
        self.runs[call].add(1);
    }

    fn tell<T>(&self, call: usize, result: &Result<T, CallError>) {
        self.told[call].set(if result.is_ok() { 1 } else { 2 });
        program::forget_but(0);
    }

    fn say(&self, word: usize) {
        self.said[word].store(1, Release);
    }

    fn hear(&self, word: usize) {
        wait::<SimMachine>(&[self.said[word].equals(!0, 1)], Deadline::NEVER);
    }

    /// Uses the data, as if no other CPU could.
    fn use_data(&self) {
        // SAFETY: on a simulated machine two accesses are never made at the same time, and the explorer is told of both:
        // whether something orders them is what it checks.
        unsafe { self.data.write(self.data.read() + 1) };
    }

    /// Every call that was made has run once, and its caller was told so.
    fn all_run(&self, calls: usize) -> Result<(), Violation> {
        for call in 0..calls {
            let (runs, told) = (self.runs[call].get(), self.told[call].get());
            if (runs, told) != (1, 1) {
                return Err(broken(
                    "L1",
                    format!("call {call} ran {runs} times, and its caller was told {told}"),
                ));
            }
        }
        Ok(())
    }

    /// So many rings were taken by `cpu`.
    fn count_rings(&'static self, scenario: &mut Scenario, cpu: usize) {
        scenario.handler(RING_VECTOR, move |mut frame| {
            if SimMachine::current_cpu().index() == cpu {
                self.rings.add(1);
            }
            frame.end_of_interrupt();
            Calls::handle_ring();
        });
    }

    fn rings_are(&self, expected: u64) -> Result<(), Violation> {
        match self.rings.get() {
            rings if rings == expected => Ok(()),
            rings => Err(broken("L2", format!("{rings} rings were taken where {expected} would do"))),
        }
    }
}

fn calling(
    name: &str,
    about: &str,
    cpus: usize,
    build: impl Fn(&mut Scenario, &'static Calling) + Send + Sync + 'static,
) -> Protocol {
    let mut protocol = Protocol::new(name, about, cpus, move || {
        let mut scenario = Scenario::new();
        let calling = Calling::new(&mut scenario);
        build(&mut scenario, calling);
        scenario
    });
    protocol.kernel = Some(Hooks::default());
    protocol
}

/// Longer than the first back-off of a waiter, shorter than the second.
const ONE_LOOK: Duration = Duration::from_micros(400);

/// Time passes: everybody else does what they can do first.
fn let_others_come_to_rest(calling: &Calling, limit: Duration) {
    let never = calling.said[1].equals(!0, u64::MAX);
    wait::<SimMachine>(&[never], Deadline::within::<SimMachine>(limit));
}

/// The first ring may be lost: the deadline is late enough for the second one.
fn rung_again() -> Protocol {
    let about = "a call whose ring may be lost, with a deadline behind the second ring: it is run";
    let mut protocol = calling("rung-again", about, 2, |scenario, calling| {
        scenario.cpu(|| calling.tell(0, &Calls::within(ONE_LOOK).call(Cpu::new(1), || calling.run(0))));
        scenario.cpu(|| {});
        scenario.check(|| calling.all_run(1));
    });
    protocol.bounds.drops = 1;
    protocol.prompt = true;
    protocol
}

/// A call waits in the mailbox of a CPU that runs another one's closure, for longer than the first back-off: its caller does
/// not ring.
fn answered() -> Protocol {
    let about = "a call behind a closure that is slow: an answered ring is not repeated";
    calling("answered", about, 3, |scenario, calling| {
        scenario.cpu(|| {
            let result = Calls::for_ever().call(Cpu::new(1), || {
                calling.run(0);
                calling.say(0);
                let_others_come_to_rest(calling, ONE_LOOK);
            });
            calling.tell(0, &result);
        });
        scenario.cpu(|| {});
        scenario.cpu(|| {
            calling.hear(0);
            calling.tell(1, &Calls::for_ever().call(Cpu::new(1), || calling.run(1)));
        });
        calling.count_rings(scenario, 1);
        scenario.check(|| calling.all_run(2).and(calling.rings_are(1)));
    })
}

/// One call, one ring.
fn rung_once() -> Protocol {
    let about = "a call: one ring, and no more";
    calling("rung-once", about, 2, |scenario, calling| {
        scenario.cpu(|| calling.tell(0, &Calls::for_ever().call(Cpu::new(1), || calling.run(0))));
        scenario.cpu(|| {});
        calling.count_rings(scenario, 1);
        scenario.check(|| calling.all_run(1).and(calling.rings_are(1)));
    })
}

/// A pass that has a stale mark finds a call, and a post that was made before it: the post runs first.
fn given_up_post(name: &str, about: &str, to_many: bool) -> Protocol {
    let mut protocol = calling(name, about, 2, move |scenario, calling| {
        let post = scenario.share(Post::new(Counted(calling, 1)));
        scenario.cpu(move || {
            let limit = Duration::from_micros(100);
            let given_up = Calls::within(limit).call_static(Cpu::new(1), move || calling.run(0));
            if given_up.is_ok() {
                return;
            }
            program::forget_but(0);
            Calls::post::<Counted>(Cpu::new(1), post).expect("it is online");
            let closure = || {
                calling.runs[3].set(calling.runs[1].get());
                calling.run(2);
            };
            let targets: SimCpuSet = [Cpu::new(1)].into_iter().collect();
            if to_many {
                let _ = Calls::for_ever().call_many(&targets, |_| closure());
            } else {
                let _ = Calls::for_ever().call(Cpu::new(1), closure);
            }
        });
        scenario.cpu(|| {});
        scenario.check(|| match (calling.runs[2].get(), calling.runs[3].get()) {
            (0, _) | (1, 1) => Ok(()),
            (runs, posts) => {
                let what =
                    format!("a call ran {runs} times, {posts} of its caller's earlier posts before it");
                Err(broken("L1", what))
            }
        });
    });
    protocol.bounds.expiries = 1;
    protocol
}

/// The second call is one to many.
fn stale_mark_post() -> Protocol {
    let about = "a given-up call, a post and a call to many: the post runs before the second call";
    given_up_post("stale-mark-post", about, true)
}

/// The second call has the state word of the first: a claim that looked for posts before may take it all the same.
pub(crate) fn stale_claim_post() -> Protocol {
    let about = "a given-up call, a post and a call like the first: the post runs before the second call";
    given_up_post("stale-claim-post", about, false)
}

/// Whoever is told that a call was not run, or has run, has what it uses for itself: any violation is a race.
fn given_up() -> Protocol {
    let about = "a call with a deadline: afterwards its caller has the data for itself, unless it left the call claimed";
    let mut protocol = calling("given-up", about, 2, |scenario, calling| {
        scenario.cpu(move || {
            let limit = Duration::from_micros(100);
            let result = Calls::within(limit).call_static(Cpu::new(1), move || calling.use_data());
            if !matches!(result, Err(CallError::Unfinished(_))) {
                calling.use_data();
            }
        });
        scenario.cpu(|| {});
    });
    protocol.bounds.expiries = 1;
    protocol
}

/// As [`given_up`], of a call to many.
fn given_up_many() -> Protocol {
    let about = "a call to many with a deadline: afterwards its caller has the data for itself";
    let mut protocol = calling("given-up-many", about, 2, |scenario, calling| {
        scenario.cpu(move || {
            let targets: SimCpuSet = [Cpu::new(1)].into_iter().collect();
            let limit = Duration::from_micros(100);
            let _ = Calls::within(limit).call_many(&targets, |_| calling.use_data());
            calling.use_data();
        });
        scenario.cpu(|| {});
    });
    protocol.bounds.expiries = 1;
    protocol
}

/// A CPU in a pass looks again by itself: who marks it then does not ring.
fn attended_pass() -> Protocol {
    let about = "a request to a CPU that is in a pass: no ring";
    let mut protocol = calling("attended-pass", about, 3, |scenario, calling| {
        scenario.cpu(|| {
            let result = Calls::for_ever().call(Cpu::new(1), || {
                calling.run(0);
                calling.say(0);
                calling.hear(1);
            });
            calling.tell(0, &result);
        });
        scenario.cpu(|| {});
        scenario.cpu(|| {
            calling.hear(0);
            Calls::reschedule(Cpu::new(1)).expect("it is online");
            calling.say(1);
        });
        calling.count_rings(scenario, 1);
        scenario.check(|| calling.all_run(1).and(calling.rings_are(1)));
    });
    protocol.prompt = true;
    protocol
}

/// A CPU that polls looks by itself: who calls it does not ring.
fn attended_wait() -> Protocol {
    let about = "a call to a CPU that polls: no ring";
    calling("attended-wait", about, 2, |scenario, calling| {
        scenario.cpu(|| {
            let_others_come_to_rest(calling, ONE_LOOK);
            calling.tell(0, &Calls::for_ever().call(Cpu::new(1), || calling.run(0)));
            calling.say(0);
        });
        scenario.cpu(|| {
            let mut guard = InterruptsOff::new();
            Calls::poll_until(&mut guard, calling.said[0].equals(!0, 1), Deadline::NEVER);
        });
        calling.count_rings(scenario, 1);
        scenario.check(|| calling.all_run(1).and(calling.rings_are(0)));
    })
}

/// A caller is interrupted, wherever it is, by a closure that calls from the same CPU.
fn interrupted_caller() -> Protocol {
    let about = "two CPUs call each other, and one closure calls back: from the CPU whose call it interrupts";
    let mut protocol = calling("interrupted-caller", about, 2, |scenario, calling| {
        scenario.cpu(|| calling.tell(0, &Calls::for_ever().call(Cpu::new(1), || calling.run(0))));
        scenario.cpu(|| {
            let result = Calls::for_ever().call(Cpu::new(0), || {
                calling.run(1);
                let mut guard = InterruptsOff::new();
                let caller = Calls::for_ever().with_interrupts_off(&mut guard);
                let result = caller.call(Cpu::new(1), || calling.run(2));
                calling.told[2].set(if result.is_ok() { 1 } else { 2 });
            });
            calling.tell(1, &result);
        });
        scenario.check(|| calling.all_run(3));
    });
    protocol.prompt = true;
    protocol
}

/// What a caller writes is there for its closure, and the other way round; and again from the same slot.
fn visible() -> Protocol {
    let about = "two calls, whose closures use what their caller uses before, between and after";
    let mut protocol = calling("visible", about, 2, |scenario, calling| {
        scenario.cpu(|| {
            for call in 0..2 {
                calling.use_data();
                let result = Calls::for_ever().call(Cpu::new(1), || {
                    calling.use_data();
                    calling.run(call);
                });
                calling.use_data();
                calling.tell(call, &result);
            }
        });
        scenario.cpu(|| {});
        scenario.check(|| calling.all_run(2));
    });
    protocol.prompt = true;
    protocol
}

#[expect(clippy::result_large_err, reason = "it holds the sets of CPUs")]
fn call_many(
    calling: &Calling,
    call: usize,
    caller: Caller<'_, SimMachine>,
) -> Result<(), smpcall::ManyError<SimMachine>> {
    let set: SimCpuSet = [Cpu::new(1)].into_iter().collect();
    caller.call_many(&set, |_| {
        calling.use_data();
        calling.run(call);
    })
}

/// As [`visible`], of calls to many.
fn visible_to_many() -> Protocol {
    let about = "two calls to many, whose closures use what their caller uses before, between and after";
    let mut protocol = calling("visible-to-many", about, 2, |scenario, calling| {
        scenario.cpu(|| {
            for call in 0..2 {
                calling.use_data();
                let result = call_many(calling, call, Calls::for_ever());
                calling.use_data();
                calling.told[call].set(if result.is_ok() { 1 } else { 2 });
                program::forget_but(0);
            }
        });
        scenario.cpu(|| {});
        scenario.check(|| calling.all_run(2));
    });
    protocol.prompt = true;
    protocol
}

/// The deadline of a call to many races with its claim, and its slot is used again.
fn many_deadline() -> Protocol {
    let about = "a call to many whose deadline races with its claim, and another from its slot";
    let mut protocol = calling("many-deadline-one", about, 2, |scenario, calling| {
        scenario.cpu(|| {
            for (call, limit) in [(0, Some(Duration::from_micros(100))), (1, None)] {
                calling.use_data();
                let result = call_many(calling, call, limit.map_or_else(Calls::for_ever, Calls::within));
                calling.use_data();
                calling.told[call].set(if result.is_ok() { 1 } else { 2 });
                program::forget_but(0);
            }
        });
        scenario.cpu(|| {});
        scenario.check(|| {
            for call in 0..2 {
                let (runs, told) = (calling.runs[call].get(), calling.told[call].get());
                if (runs, told) != (1, 1) && (runs, told) != (0, 2) {
                    let what = format!("call {call} ran {runs} times, and its caller was told {told}");
                    return Err(broken("L1", what));
                }
            }
            Ok(())
        });
    });
    protocol.bounds.expiries = 1;
    protocol
}

/// A post that counts its runs, and uses what its poster uses.
struct Errand(&'static Calling);

impl Deferred<SimMachine> for Errand {
    type Handle = &'static Post<SimMachine, Self>;

    fn run(handle: Self::Handle) {
        let calling = handle.value().0;
        calling.use_data();
        calling.run(0);
        calling.said[0].fetch_add(1, Release);
    }
}

/// A post, and again when it has run.
fn posted_twice() -> Protocol {
    let about = "a post, and the same again when it has run";
    let mut protocol = calling("posted-twice", about, 2, |scenario, calling| {
        let errand = scenario.share(Post::new(Errand(calling)));
        scenario.cpu(|| {
            for times in 1..=2 {
                calling.use_data();
                Calls::post::<Errand>(Cpu::new(1), errand).expect("it is online, and the post is idle");
                wait::<SimMachine>(&[calling.said[0].equals(!0, times)], Deadline::NEVER);
                calling.use_data();
                program::forget_but(times);
            }
        });
        scenario.cpu(|| {});
        scenario.check(|| match calling.runs[0].get() {
            2 => Ok(()),
            runs => Err(broken("L1", format!("two posts were run {runs} times"))),
        });
    });
    protocol.prompt = true;
    protocol
}

/// One call that borrows nothing: not even a wait that is left out makes its closure run in a frame that is gone.
fn static_call() -> Protocol {
    let about = "a call that borrows nothing";
    let mut protocol = calling("static-call", about, 2, |scenario, calling| {
        scenario.cpu(move || {
            calling.use_data();
            let result = Calls::for_ever().call_static(Cpu::new(1), move || {
                calling.use_data();
                calling.run(0);
            });
            calling.use_data();
            // At once, and not at the end: the shorter the counterexample.
            assert!(result.is_ok(), "a call without a deadline to a CPU that is online is run");
            calling.tell(0, &result);
        });
        scenario.cpu(|| {});
        scenario.check(|| calling.all_run(1));
    });
    protocol.prompt = true;
    protocol
}

/// More calls, one after the other, than there are levels.
fn levels() -> Protocol {
    let about = "five calls, one after the other: each level comes back";
    let mut protocol = calling("levels", about, 2, |scenario, calling| {
        scenario.cpu(|| {
            for call in 0..5 {
                calling.tell(call, &Calls::for_ever().call(Cpu::new(1), || calling.run(call)));
            }
        });
        scenario.cpu(|| {});
        scenario.check(|| calling.all_run(5));
    });
    protocol.prompt = true;
    protocol
}

/// As [`levels`], of calls to many.
fn levels_of_many() -> Protocol {
    let about = "five calls to many, one after the other: each level comes back";
    let mut protocol = calling("levels-of-many", about, 2, |scenario, calling| {
        scenario.cpu(|| {
            for call in 0..5 {
                let result = call_many(calling, call, Calls::for_ever());
                calling.told[call].set(if result.is_ok() { 1 } else { 2 });
                program::forget_but(0);
            }
        });
        scenario.cpu(|| {});
        scenario.check(|| calling.all_run(5));
    });
    protocol.prompt = true;
    protocol
}

/// Calls that borrow nothing are left behind until no level is free; when they have ended, one is.
fn left_behind() -> Protocol {
    let about = "four calls are left behind; the fifth takes the level of one that has ended";
    calling("left-behind", about, 2, |scenario, calling| {
        scenario.cpu(move || {
            for call in 0..4 {
                let limit = Duration::from_micros(100);
                let result = Calls::within(limit).call_static(Cpu::new(1), move || {
                    calling.run(call);
                    let mut guard = InterruptsOff::new();
                    Calls::poll_until(&mut guard, calling.said[0].equals(!0, 1), Deadline::NEVER);
                });
                let left = matches!(result, Err(CallError::Unfinished(_)));
                calling.told[call].set(if left { 1 } else { 2 });
                program::forget_but(0);
            }
            calling.say(0);
            calling.tell(4, &Calls::for_ever().call(Cpu::new(1), || calling.run(4)));
        });
        scenario.cpu(|| {});
        scenario.check(|| calling.all_run(5));
    })
}

/// A post that counts its runs.
struct Counted(&'static Calling, usize);

impl Deferred<SimMachine> for Counted {
    type Handle = &'static Post<SimMachine, Self>;

    fn run(handle: Self::Handle) {
        let Counted(calling, poster) = handle.value();
        calling.run(*poster);
    }
}

/// Two CPUs post different nodes to a third: both are run.
fn posted_by_two() -> Protocol {
    let about = "two posts of two CPUs to a third";
    let mut protocol = calling("posted-two", about, 3, |scenario, calling| {
        for poster in 0..2 {
            let post = scenario.share(Post::new(Counted(calling, poster)));
            scenario.cpu(|| {
                Calls::post::<Counted>(Cpu::new(2), post).expect("it is online");
            });
        }
        scenario.check(|| match [calling.runs[0].get(), calling.runs[1].get()] {
            [1, 1] => Ok(()),
            runs => Err(broken("L1", format!("two posts were run {runs:?} times"))),
        });
    });
    protocol.prompt = true;
    protocol
}
