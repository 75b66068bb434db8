//! CPUs that stop at any instant while posts and deferred work rain on them, are declared dead, and come up again: every
//! post is run, abandoned, or torn, and none is stuck.

mod support;

use core::cell::Cell;

use smpcall::{Deferred, Hotplug as _, HotplugError, Life, Post, PostRefusal, Posted};
use smpcall_machine::InterruptsOff;
use smpcall_simulator::kernel::Hooks;
use smpcall_simulator::{Config, RING_VECTOR, SimMachine, World, program};
use support::{Calls, Flag, Machine, counted, cpu, ms, quiet, run, us};

thread_local! {
    /// Posts that were accepted and not merged, and those that have come to their end: run, or abandoned.
    static QUEUED: Cell<u64> = const { Cell::new(0) };
    static ENDED: Cell<u64> = const { Cell::new(0) };
    static ABANDONED: Cell<u64> = const { Cell::new(0) };
}

fn add_to(counter: &'static std::thread::LocalKey<Cell<u64>>) {
    counter.set(counter.get() + 1);
}

/// Takes a while, and counts itself when it has ended.
fn work() {
    program::advance(us(program::random(20)));
    add_to(&ENDED);
}

macro_rules! node {
    ($name:ident, $handle:ty, $is_work:literal) => {
        struct $name;

        impl Deferred<SimMachine> for $name {
            type Handle = $handle;

            const IS_WORK: bool = $is_work;

            fn run(_: Self::Handle) {
                work();
            }

            fn abandoned(_: Self::Handle, cpu: smpcall::Cpu) {
                assert_eq!(cpu, VICTIM);
                assert_eq!(SimMachine::current_cpu(), support::cpu(0));
                assert!($is_work || !SimMachine::interrupts_enabled(), "as for a run");
                add_to(&ABANDONED);
                add_to(&ENDED);
            }
        }
    };
}

node!(Owned, Box<Post<SimMachine, Self>>, false);
node!(OwnedWork, Box<Post<SimMachine, Self>>, true);
node!(Shared, &'static Post<SimMachine, Self>, false);
node!(SharedWork, &'static Post<SimMachine, Self>, true);

const VICTIM: smpcall::Cpu = cpu(3);

/// Enters the answer in the books; false if it was merged or refused.
fn enter<T>(result: Result<Posted, smpcall::PostError<T>>) -> bool {
    match result {
        Ok(Posted::Queued) => {
            add_to(&QUEUED);
            true
        }
        Ok(Posted::Merged) => false,
        Err(error) => {
            let known = matches!(error.reason, PostRefusal::Offline | PostRefusal::Contended);
            assert!(known, "{:?}", error.reason);
            false
        }
    }
}

fn idle(over: &Flag) {
    while over.get() == 0 {
        let mut guard = InterruptsOff::new();
        if Calls::may_halt(&mut guard) {
            Calls::die_if_asked(&mut guard);
            program::halt();
        }
        drop(guard);
        Calls::run_work();
    }
}

fn rings() {
    program::set_handler(RING_VECTOR, |mut frame| {
        frame.end_of_interrupt();
        Calls::handle_ring();
        Calls::exit_interrupt();
    });
}

/// What one life after the other came to: torn, and abandoned.
fn lives(seed: u64) -> (u64, u64) {
    for counter in [&QUEUED, &ENDED, &ABANDONED] {
        counter.set(0);
    }
    let shared: &'static Post<SimMachine, Shared> = Box::leak(Box::new(Post::new(Shared)));
    let shared_work: &'static Post<SimMachine, SharedWork> = Box::leak(Box::new(Post::new(SharedWork)));
    let (over, done, stop) = (Flag::new(), Flag::new(), Flag::new());
    let torn = Cell::new(0);
    let config = Config { seed, tick: Some(ms(1)), ..quiet(4) };
    let mut world = World::with_kernel(&config, Hooks::default()).expect("a machine");
    let over = &over;
    world.on_start_up(move |_, _| {
        program::enable_local_apic().expect("the routing fits");
        rings();
        let mut guard = InterruptsOff::new();
        Calls::start_here(&mut guard);
        drop(guard);
        SimMachine::restore_interrupts(true);
        idle(over);
    });
    world.spawn(VICTIM, || {
        rings();
        idle(over);
    });
    for poster in [1, 2] {
        let (done, stop) = (&done, &stop);
        world.spawn(cpu(poster), move || {
            while stop.get() == 0 {
                program::advance(us(program::random(40)));
                match program::random(4) {
                    0 => enter(Calls::post::<Owned>(VICTIM, Box::new(Post::new(Owned)))),
                    1 => enter(Calls::post::<OwnedWork>(VICTIM, Box::new(Post::new(OwnedWork)))),
                    2 => enter(Calls::post::<Shared>(VICTIM, shared)),
                    _ => enter(Calls::post::<SharedWork>(VICTIM, shared_work)),
                };
            }
            done.raise();
        });
    }
    world.spawn(cpu(0), || {
        rings();
        for _ in 0..6 {
            // Where it stops is anywhere.
            program::advance(us(50 + program::random(200)));
            program::advance(core::time::Duration::from_nanos(program::random(5_000)));
            SimMachine::fence(VICTIM).expect("an INIT is not lost here");
            program::advance(us(program::random(100)));
            // SAFETY: no closure was sent to it, and no task migrates.
            assert_eq!(unsafe { Calls::declare_dead(VICTIM, ms(1)) }, Ok(()), "seed {seed}");
            assert_eq!(Calls::life(VICTIM), Some(Life::Offline));
            // SAFETY: as above.
            let again = unsafe { Calls::declare_dead(VICTIM, ms(1)) };
            assert_eq!(again, Err(HotplugError::AlreadyOffline));
            assert_eq!(Calls::cpu_up(VICTIM, ms(40)), Ok(()), "seed {seed}");
        }
        stop.raise();
        done.reached(2);
        // Ticks and idle loops find what is left.
        program::advance(ms(5));
        let before = ENDED.get();
        assert!(enter(Calls::post::<Shared>(VICTIM, shared)), "seed {seed}: a post is stuck");
        assert!(enter(Calls::post::<SharedWork>(VICTIM, shared_work)), "seed {seed}: work is stuck");
        program::advance(ms(5));
        assert_eq!(ENDED.get(), before + 2, "seed {seed}: both run");
        torn.set(counted(|counters| counters.posts_torn.get()));
        over.raise();
    });
    run(&mut world);
    drop(world);
    assert_eq!(QUEUED.get(), ENDED.get() + torn.get(), "seed {seed}: accounted for one by one");
    assert!(QUEUED.get() > 100, "seed {seed}: posts were accepted");
    (torn.get(), ABANDONED.get())
}

#[test]
fn every_post_to_a_cpu_that_stops_at_any_instant_is_run_abandoned_or_torn() {
    let (mut torn, mut abandoned) = (0, 0);
    for seed in 0..80 {
        let (torn_here, abandoned_here) = lives(seed);
        (torn, abandoned) = (torn + torn_here, abandoned + abandoned_here);
    }
    println!("{torn} torn, {abandoned} abandoned");
    assert!(torn > 50 && abandoned > 100, "CPUs stop in the middle: {torn} torn, {abandoned} abandoned");
}
