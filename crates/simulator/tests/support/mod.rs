//! What the tests of the protocol on the simulated machine share: short names, and flags to line CPUs up with.
#![allow(dead_code, reason = "every test file uses a part of it")]
#![allow(clippy::missing_panics_doc, reason = "tests")]
#![allow(unreachable_pub, reason = "a module of each test crate")]

use core::sync::atomic::Ordering::{Acquire, Release};
use core::time::Duration;
use std::cell::Cell;

use smpcall::{CallError, Deferred, Diagnosis, Post};
use smpcall_machine::{Deadline, Instant, InterruptsOff, Word, wait};
use smpcall_simulator::campaign::default_routing;
use smpcall_simulator::faults::parse;
use smpcall_simulator::kernel::Hooks;
use smpcall_simulator::{Config, RunEnd, SimCpuSet, SimMachine, SimMemory, World, program};

pub use smpcall_machine::{Cpu, Machine};
#[allow(unused_imports, reason = "as above")]
pub use smpcall_simulator::kernel::Calls;

/// The CPU with this number.
pub const fn cpu(number: u32) -> Cpu {
    Cpu::new(number)
}

pub const fn us(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

pub const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A set of CPUs.
pub fn set(numbers: impl IntoIterator<Item = u32>) -> SimCpuSet {
    numbers.into_iter().map(Cpu::new).collect()
}

/// A fault-free machine of this size, without ticks: nothing happens but what the test does.
pub fn quiet(cpus: usize) -> Config {
    let mut config = Config::new(cpus, default_routing(cpus), 1);
    config.tick = None;
    config
}

/// A machine with a kernel and no hooks.
pub fn world<'p>(config: &Config) -> World<'p> {
    World::with_kernel(config, Hooks::default()).expect("a machine")
}

/// Runs the machine until all its programs have ended, which takes less than ten seconds of its time.
pub fn run(world: &mut World<'_>) {
    let end = world.run(Instant::from_nanos(10_000_000_000));
    assert_eq!(end, RunEnd::ProgramsEnded, "at {:?}", world.time());
}

/// Commands that the running CPU has written to its ICR.
pub fn icr_writes() -> u64 {
    program::inspect(SimMachine::current_cpu()).counters.icr_writes
}

/// A counter of the running CPU's mailbox.
pub fn counted(counter: impl Fn(&smpcall::Counters) -> u64) -> u64 {
    use smpcall::Kernel;
    let mailbox = SimMachine::mailboxes().get(SimMachine::current_cpu()).expect("this CPU has a mailbox");
    counter(mailbox.counters())
}

/// Works with interrupts disabled.
pub fn work_with_interrupts_off(duration: Duration) {
    let _off = InterruptsOff::<SimMachine>::new();
    program::advance(duration);
}

/// A number that CPUs wait for; starts at 0.
pub struct Flag(Word<SimMemory>);

impl Flag {
    pub const fn new() -> Self {
        Self(Word::new(0))
    }

    /// Adds one.
    pub fn raise(&self) {
        self.0.fetch_add(1, Release);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Acquire)
    }

    /// Waits, with interrupts as they are, until it was raised this often.
    pub fn reached(&self, value: u64) {
        wait::<SimMachine>(&[self.0.equals(!0, value)], Deadline::NEVER);
    }

    /// The condition for waits of the tests' own.
    pub fn when(&self, value: u64) -> smpcall_machine::When<'_, SimMemory> {
        self.0.equals(!0, value)
    }
}

thread_local! {
    /// How many posts of [`post_to`] the machines of this thread have run.
    pub static POSTS_RUN: Cell<u64> = const { Cell::new(0) };
}

/// A post that counts itself when it is run.
pub struct Errand;

impl Deferred<SimMachine> for Errand {
    type Handle = Box<Post<SimMachine, Self>>;

    fn run(_: Self::Handle) {
        POSTS_RUN.set(POSTS_RUN.get() + 1);
    }
}

/// Queues one.
pub fn post_to(target: u32) {
    Calls::post::<Errand>(cpu(target), Box::new(Post::new(Errand))).expect("queued");
}

/// A machine without ticks, with faults.
pub fn faulty(cpus: usize, faults: &str) -> Config {
    let mut config = quiet(cpus);
    config.faults = parse(faults).expect("faults");
    config
}

/// How long something takes, and what comes of it.
pub fn took<R>(what: impl FnOnce() -> R) -> (Duration, R) {
    let started = SimMachine::now();
    let result = what();
    (SimMachine::now().since(started), result)
}

/// What a caller was told at its deadline.
pub fn timed_out<R: core::fmt::Debug>(result: Result<R, CallError>) -> Diagnosis {
    match result {
        Err(CallError::TimedOut(diagnosis)) => diagnosis,
        other => panic!("{other:?}"),
    }
}
