//! Law L6's second limit: each interrupt has a budget, so that no flood starves a waiter, a source, or what was
//! interrupted. On a kernel of this file's own, with a budget of three.

mod support;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

use smpcall::{CrossCall, Deferred, Kernel, Mailboxes, Post, mailboxes};
use smpcall_machine::{CpuMask, Instant, Ipi, SendError};
use smpcall_simulator::{
    InterruptFrame, RING_VECTOR, SimCpuSet, SimMachine, SimMemory, TIMER_VECTOR, World, program,
};
use support::{Cpu, Machine, cpu, ms, quiet, us};

/// The simulated machine, with a kernel that is short of patience.
struct Hasty;

type Calls = CrossCall<Hasty>;

// SAFETY: all of it is the simulated machine's.
unsafe impl Machine for Hasty {
    type Memory = SimMemory;
    type CpuSet = SimCpuSet;
    const HAS_NMI: bool = false;

    fn current_cpu() -> Cpu {
        SimMachine::current_cpu()
    }

    fn disable_interrupts() -> bool {
        SimMachine::disable_interrupts()
    }

    fn restore_interrupts(were_enabled: bool) {
        SimMachine::restore_interrupts(were_enabled);
    }

    fn interrupts_enabled() -> bool {
        SimMachine::interrupts_enabled()
    }

    fn in_nmi() -> bool {
        SimMachine::in_nmi()
    }

    fn send(target: Cpu, ipi: Ipi) -> Result<(), SendError> {
        SimMachine::send(target, ipi)
    }

    fn send_many(targets: &CpuMask, ipi: Ipi) -> Result<(), SendError> {
        SimMachine::send_many(targets, ipi)
    }

    fn now() -> Instant {
        SimMachine::now()
    }
}

// SAFETY: one static; both handlers are called for interrupts that are taken while they are enabled.
unsafe impl Kernel for Hasty {
    const BUDGET: u32 = 3;

    fn mailboxes() -> &'static Mailboxes<Self> {
        &MAILBOXES
    }
}

const CPUS: u32 = 8;

mailboxes! { static MAILBOXES: Hasty = 8 CPUs, 0 events }

/// The mailboxes are one static: one test at a time has them.
static IN_USE: Mutex<()> = Mutex::new(());

fn machine<'p>() -> (MutexGuard<'static, ()>, World<'p>) {
    let in_use = IN_USE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // SAFETY: the machine that used them last is gone.
    unsafe { MAILBOXES.reset() };
    let mut config = quiet(CPUS as usize);
    config.tick = Some(ms(1));
    let mut world = World::new(&config).expect("a machine");
    world.set_handler(RING_VECTOR, |mut frame: InterruptFrame| {
        frame.end_of_interrupt();
        Calls::handle_ring();
    });
    world.set_handler(TIMER_VECTOR, |mut frame: InterruptFrame| {
        frame.end_of_interrupt();
        Calls::tick();
    });
    (in_use, world)
}

/// CPU 0's flooders: they call it again and again until `stop`, and count their calls.
fn flood<'p>(world: &mut World<'p>, stop: &'p AtomicBool, completed: &'p [AtomicU64]) {
    for (flooder, completed) in (1..).zip(completed) {
        world.spawn(cpu(flooder), move || {
            Calls::open();
            program::advance(us(5));
            while !stop.load(Relaxed) {
                if Calls::within(ms(5)).call(cpu(0), || program::advance(us(2))).is_ok() {
                    completed.fetch_add(1, Relaxed);
                }
            }
        });
    }
}

#[test]
fn a_flood_does_not_starve_a_waiter_whose_interrupts_are_on() {
    let stop = AtomicBool::new(false);
    let completed = [const { AtomicU64::new(0) }; 5];
    let (_in_use, mut world) = machine();
    flood(&mut world, &stop, &completed);
    world.spawn(cpu(0), || {
        Calls::open();
        program::advance(us(200));
        for _ in 0..2_000 {
            let before = Hasty::now();
            Calls::for_ever().call(cpu(7), || ()).expect("run");
            let waited = Hasty::now().since(before);
            assert!(waited < ms(1), "{waited:?} for a call to an idle CPU");
        }
        stop.store(true, Relaxed);
    });
    world.spawn(cpu(7), || {
        Calls::open();
        while !stop.load(Relaxed) {
            program::advance(us(10));
        }
    });
    support::run(&mut world);
    assert!(MAILBOXES.get(cpu(0)).is_some_and(|mailbox| mailbox.counters().budgets_spent.get() > 10));
}

#[test]
fn no_source_is_starved_by_those_with_lower_numbers() {
    let stop = AtomicBool::new(false);
    let completed = [const { AtomicU64::new(0) }; 6];
    let (_in_use, mut world) = machine();
    flood(&mut world, &stop, &completed);
    world.spawn(cpu(0), || {
        Calls::open();
        while Hasty::now() < Instant::from_nanos(100_000_000) {
            program::advance(us(50));
        }
        stop.store(true, Relaxed);
    });
    support::run(&mut world);
    let completed: Vec<u64> = completed.iter().map(|count| count.load(Relaxed)).collect();
    let (least, most) = (completed.iter().min(), completed.iter().max());
    assert!(least.is_some_and(|&least| least > 50 && most < Some(&(least * 2))), "{completed:?}");
}

/// A post that posts itself again as long as it is asked to.
struct Restless(AtomicBool);

impl Deferred<Hasty> for Restless {
    type Handle = &'static Post<Hasty, Self>;

    fn run(handle: Self::Handle) {
        if handle.value().0.load(Relaxed) {
            let _ = Calls::post::<Self>(Hasty::current_cpu(), handle);
        }
    }
}

#[test]
fn posts_that_post_themselves_again_do_not_starve_calls() {
    static POSTS: [Post<Hasty, Restless>; 8] = [const { Post::new(Restless(AtomicBool::new(true))) }; 8];
    let (_in_use, mut world) = machine();
    world.spawn(cpu(0), || {
        Calls::open();
        for post in &POSTS {
            Calls::post::<Restless>(cpu(0), post).expect("queued");
        }
        program::advance(ms(3));
    });
    world.spawn(cpu(1), || {
        program::advance(us(50));
        Calls::within(ms(5)).call(cpu(0), || ()).expect("run");
        for post in &POSTS {
            post.value().0.store(false, Relaxed);
        }
    });
    support::run(&mut world);
    world.run_on(world.time().plus(ms(5)));
}
