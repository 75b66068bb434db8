//! CPUs come and go, and are declared dead, in virtual time: in which order callbacks run and are taken back, what is
//! refused, and what callers and posters are told.

mod support;

use core::cell::{Cell, RefCell};
use std::rc::Rc;

use smpcall::{
    CallError, Callback, Deferred, HotplugError, Life, ManyError, Post, Posted, Refused, Stage, TargetState,
};
use smpcall_machine::InterruptsOff;
use smpcall_simulator::kernel::Hooks;
use smpcall_simulator::{Config, SimMachine, World, program};
use support::{Calls, Flag, Machine, cpu, ms, quiet, run, set, us};

thread_local! {
    /// What the callbacks have done.
    static LOG: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    /// Which of them refuses.
    static REFUSES: Cell<Option<(&'static str, Stage)>> = const { Cell::new(None) };
    /// What `online` was told when it called the new CPU.
    static CALLED_ONLINE: Cell<Option<Result<u32, CallError>>> = const { Cell::new(None) };
}

fn log(name: &'static str, part: &str, of: smpcall::Cpu) {
    let here = SimMachine::current_cpu().number();
    let off = if SimMachine::interrupts_enabled() { "" } else { ", interrupts off" };
    LOG.with_borrow_mut(|log| log.push(format!("{name} {part} {} on {here}{off}", of.number())));
}

fn may(name: &'static str, stage: Stage, of: smpcall::Cpu) -> Result<(), Refused> {
    log(name, &format!("{stage:?}").to_lowercase(), of);
    if REFUSES.get() == Some((name, stage)) { Err(Refused(7)) } else { Ok(()) }
}

macro_rules! callback {
    ($name:literal) => {
        Callback {
            name: $name,
            prepare: Some(|cpu| may($name, Stage::Prepare, cpu)),
            starting: Some(|cpu| may($name, Stage::Starting, cpu)),
            online: Some(|cpu| may($name, Stage::Online, cpu)),
            offline: Some(|cpu| may($name, Stage::Offline, cpu)),
            dying: Some(|cpu| log($name, "dying", cpu)),
            dead: Some(|cpu| log($name, "dead", cpu)),
        }
    };
}

static CALLBACKS: [Callback; 3] = [
    callback!("a"),
    callback!("b"),
    Callback {
        online: Some(|cpu| {
            CALLED_ONLINE.set(Some(Calls::within(ms(1)).call(cpu, || SimMachine::current_cpu().number())));
            Ok(())
        }),
        ..Callback::named("caller")
    },
];

/// The log since the last look, and nothing refuses any more.
fn logged() -> Vec<String> {
    REFUSES.set(None);
    LOG.with_borrow_mut(core::mem::take)
}

/// An idle loop of a CPU that may be taken down, until the test is over; a tick wakes it.
fn idle(over: &Flag) {
    while over.get() == 0 {
        let mut guard = InterruptsOff::new();
        if Calls::may_halt(&mut guard) {
            Calls::die_if_asked(&mut guard);
            program::halt();
        }
    }
}

fn ticking(cpus: usize) -> Config {
    Config { tick: Some(ms(1)), ..quiet(cpus) }
}

/// A machine whose CPU 0 runs `controller`; the others are idle, as those are that are started again.
fn controlled(config: &Config, controller: impl Fn()) {
    let over = Rc::new(Flag::new());
    let hooks = Hooks { callbacks: &CALLBACKS, ..Hooks::default() };
    let mut world = World::with_kernel(config, hooks).expect("a machine");
    let of_started = Rc::clone(&over);
    world.on_start_up(move |_, _| {
        program::enable_local_apic().expect("the routing fits");
        let mut guard = InterruptsOff::new();
        Calls::start_here(&mut guard);
        drop(guard);
        SimMachine::restore_interrupts(true);
        idle(&of_started);
    });
    for number in 1..config.cpus as u32 {
        if !config.not_started.contains(&cpu(number)) {
            let over = Rc::clone(&over);
            world.spawn(cpu(number), move || idle(&over));
        }
    }
    world.spawn(cpu(0), move || {
        logged();
        controller();
        over.raise();
    });
    run(&mut world);
    assert_eq!(world.boot_cpu_inits(), 0, "law L8");
}

const UP: [&str; 6] = [
    "a prepare 1 on 0",
    "b prepare 1 on 0",
    "a starting 1 on 1, interrupts off",
    "b starting 1 on 1, interrupts off",
    "a online 1 on 0",
    "b online 1 on 0",
];
const DOWN: [&str; 6] = [
    "b offline 1 on 0",
    "a offline 1 on 0",
    "b dying 1 on 1, interrupts off",
    "a dying 1 on 1, interrupts off",
    "b dead 1 on 0",
    "a dead 1 on 0",
];

#[test]
fn callbacks_run_in_order_on_the_way_up_and_in_reverse_on_the_way_down() {
    let config = Config { not_started: vec![cpu(1)], ..ticking(2) };
    controlled(&config, || {
        for _ in 0..3 {
            assert_eq!(Calls::life(cpu(1)), Some(Life::Offline));
            Calls::cpu_up(cpu(1), ms(50)).expect("up");
            assert_eq!(logged(), UP);
            assert_eq!(Calls::life(cpu(1)), Some(Life::Online));
            assert_eq!(CALLED_ONLINE.take(), Some(Ok(1)), "a callback may call the CPU that comes up");
            assert_eq!(Calls::cpu_up(cpu(1), ms(50)), Err(HotplugError::AlreadyOnline));
            Calls::cpu_down(cpu(1), ms(50)).expect("down");
            assert_eq!(logged(), DOWN);
            assert!(program::inspect(cpu(1)).parked);
            assert_eq!(Calls::within(ms(1)).call(cpu(1), || ()), Err(CallError::Offline));
            assert_eq!(Calls::cpu_down(cpu(1), ms(50)), Err(HotplugError::AlreadyOffline));
        }
    });
}

/// What was done is taken back, in reverse order, and nothing else.
#[test]
fn a_callback_that_refuses_is_rolled_back_exactly() {
    let config = Config { not_started: vec![cpu(1)], ..ticking(2) };
    controlled(&config, || {
        let refused =
            |name, stage| HotplugError::Callback { name, stage, refused: Refused(7), taken_back: true };
        for (stage, rolled_back) in [
            (Stage::Prepare, vec!["a prepare 1 on 0", "b prepare 1 on 0", "a dead 1 on 0"]),
            (
                Stage::Starting,
                vec![
                    UP[0],
                    UP[1],
                    UP[2],
                    UP[3],
                    "a dying 1 on 1, interrupts off",
                    "b dead 1 on 0",
                    "a dead 1 on 0",
                ],
            ),
            (Stage::Online, [&UP[..], &["a offline 1 on 0"], &DOWN[2..]].concat()),
        ] {
            REFUSES.set(Some(("b", stage)));
            assert_eq!(Calls::cpu_up(cpu(1), ms(50)), Err(refused("b", stage)));
            assert_eq!(logged(), rolled_back, "{stage:?}");
            assert_eq!(Calls::life(cpu(1)), Some(Life::Offline));
        }
        Calls::cpu_up(cpu(1), ms(50)).expect("nobody refuses any more");
        logged();
        REFUSES.set(Some(("a", Stage::Offline)));
        assert_eq!(Calls::cpu_down(cpu(1), ms(50)), Err(refused("a", Stage::Offline)));
        assert_eq!(logged(), ["b offline 1 on 0", "a offline 1 on 0", "b online 1 on 0"]);
        assert_eq!(Calls::within(ms(1)).call(cpu(1), || 5), Ok(5), "it stays online");
    });
}

#[test]
fn a_cpu_that_is_not_idle_stays_online_at_the_deadline() {
    let busy = Flag::new();
    let mut world = World::with_kernel(&ticking(2), Hooks { callbacks: &CALLBACKS, ..Hooks::default() })
        .expect("a machine");
    world.spawn(cpu(1), || busy.reached(1));
    world.spawn(cpu(0), || {
        logged();
        let told = Calls::cpu_down(cpu(1), ms(5));
        let Err(HotplugError::TimedOut(diagnosis)) = told else { panic!("{told:?}") };
        assert_ne!(diagnosis.target, TargetState::Offline);
        assert_eq!(Calls::life(cpu(1)), Some(Life::Online));
        assert_eq!(logged(), ["b offline 1 on 0", "a offline 1 on 0", "a online 1 on 0", "b online 1 on 0"]);
        assert_eq!(Calls::within(ms(1)).call(cpu(1), || 5), Ok(5));
        busy.raise();
    });
    run(&mut world);
}

#[test]
fn what_would_make_no_sense_is_refused_by_name() {
    controlled(&ticking(3), || {
        assert_eq!(Calls::cpu_down(cpu(0), ms(5)), Err(HotplugError::OneSelf));
        assert_eq!(Calls::cpu_up(cpu(9), ms(5)), Err(HotplugError::NoSuchCpu));
        let from_other = Calls::within(ms(50)).call(cpu(1), || Calls::cpu_down(cpu(2), ms(5)));
        let told = from_other.expect("it ran");
        assert!(matches!(told, Err(HotplugError::Exclusive(_))), "inside of a closure: {told:?}");
        let guard = InterruptsOff::<SimMachine>::new();
        assert!(matches!(Calls::cpu_down(cpu(1), ms(5)), Err(HotplugError::Exclusive(_))));
        drop(guard);
        // SAFETY: it is refused.
        assert_eq!(unsafe { Calls::declare_dead(cpu(1), ms(5)) }, Err(HotplugError::IsAlive));
        assert_eq!(Calls::within(ms(1)).call(cpu(1), || 5), Ok(5), "nothing was done to it");
    });
    let mut world = World::with_kernel(&ticking(2), Hooks::default()).expect("a machine");
    world.spawn(cpu(1), || {
        assert_eq!(Calls::cpu_down(cpu(0), ms(5)), Err(HotplugError::BootCpu));
        // SAFETY: it is refused.
        assert_eq!(unsafe { Calls::declare_dead(cpu(0), ms(5)) }, Err(HotplugError::BootCpu));
    });
    run(&mut world);
    assert_eq!(world.boot_cpu_inits(), 0);
}

#[test]
fn a_cpu_whose_start_up_message_is_lost_is_given_up_and_can_be_started_again() {
    let mut config = Config { not_started: vec![cpu(1)], ..ticking(2) };
    // Message 1 is the INIT, 2 and 3 the start-up messages: the second one is sent because the first was lost.
    config.faults = smpcall_simulator::faults::parse("drop:n=2,drop:n=3").expect("faults");
    controlled(&config, || {
        let told = Calls::cpu_up(cpu(1), ms(30));
        assert!(matches!(told, Err(HotplugError::NotCome { waited }) if waited >= ms(30)), "{told:?}");
        assert_eq!(Calls::life(cpu(1)), Some(Life::Late));
        assert_eq!(logged(), ["a prepare 1 on 0", "b prepare 1 on 0", "b dead 1 on 0", "a dead 1 on 0"]);
        Calls::cpu_up(cpu(1), ms(50)).expect("fenced, and started again");
        assert_eq!(logged(), UP);
    });
}

/// Of a CPU that spins inside of a closure, for ever, with all NMIs lost on it.
const WEDGED: &str = "stop:cpu=2:at=2ms";

#[test]
fn a_dead_cpu_gives_back_what_it_had_claimed_and_comes_up_again() {
    let mut config = ticking(4);
    config.faults = smpcall_simulator::faults::parse(WEDGED).expect("a fault");
    let claimed = Flag::new();
    let told = RefCell::new(Vec::new());
    let over = Flag::new();
    let mut world =
        World::with_kernel(&config, Hooks { callbacks: &CALLBACKS, ..Hooks::default() }).expect("a machine");
    world.on_start_up(|_, _| unreachable!("a CPU that the hypervisor does not run is not started"));
    world.spawn(cpu(2), || idle(&over));
    // Claimed, and the CPU stops in the middle of it.
    world.spawn(cpu(1), || {
        let mut borrowed = 0;
        let result = Calls::for_ever().call(cpu(2), || {
            borrowed += 1;
            claimed.raise();
            program::advance(ms(5));
        });
        told.borrow_mut().push(format!("{result:?}"));
    });
    // Queued behind it, and not claimed.
    world.spawn(cpu(3), || {
        claimed.reached(1);
        program::advance(ms(2));
        let result = Calls::for_ever().call_many(&set([0, 2]), |_| ());
        let Err(ManyError::Failed(failures)) = result else { panic!("{result:?}") };
        assert_eq!((failures.offline.first(), failures.died.first()), (Some(cpu(2)), None));
        told.borrow_mut().push("offline".into());
    });
    world.spawn(cpu(0), || {
        claimed.reached(1);
        program::advance(ms(4));
        assert!(program::inspect(cpu(2)).wedged);
        Calls::post::<Counted>(cpu(2), Box::new(Post::new(Counted))).expect("it is online");
        // SAFETY: the closure that it has claimed borrows a number, and no task migrates.
        let dead = unsafe { Calls::declare_dead(cpu(2), ms(10)) };
        assert_eq!(dead, Ok(()));
        assert_eq!(ABANDONED.with_borrow_mut(core::mem::take), [(2, 0)], "once, on this CPU");
        assert_eq!(Calls::life(cpu(2)), Some(Life::Offline));
        assert_eq!(Calls::within(ms(1)).call(cpu(2), || ()), Err(CallError::Offline));
        over.raise();
    });
    run(&mut world);
    let mut told = told.borrow().clone();
    told.sort();
    assert_eq!(told, ["Err(TargetDied)", "offline"]);
}

thread_local! {
    /// The CPU that did not run a post, and the one it was handed to.
    static ABANDONED: RefCell<Vec<(u32, u32)>> = const { RefCell::new(Vec::new()) };
    static RUN: Cell<u64> = const { Cell::new(0) };
}

struct Counted;

impl Deferred<SimMachine> for Counted {
    type Handle = Box<Post<SimMachine, Self>>;

    fn run(_: Self::Handle) {
        RUN.set(RUN.get() + 1);
    }

    fn abandoned(_: Self::Handle, cpu: smpcall::Cpu) {
        let here = SimMachine::current_cpu().number();
        ABANDONED.with_borrow_mut(|all| all.push((cpu.number(), here)));
    }
}

/// Report 001: 108 requests hung on a CPU that had gone.
#[test]
fn every_post_to_a_cpu_that_goes_and_comes_is_run_or_returned() {
    let (mut all_queued, mut all_refused) = (0, 0);
    for seed in 0..20 {
        RUN.set(0);
        let (queued, refused) = (Cell::new(0), Cell::new(0));
        let done = Flag::new();
        let over = Flag::new();
        let mut config = Config { seed, ..ticking(4) };
        if seed % 2 == 1 {
            config.faults = smpcall_simulator::faults::parse("drop:p=0.05").expect("a fault");
        }
        let mut world = World::with_kernel(&config, Hooks::default()).expect("a machine");
        let over = &over;
        world.on_start_up(move |_, _| {
            program::enable_local_apic().expect("the routing fits");
            let mut guard = InterruptsOff::new();
            Calls::start_here(&mut guard);
            drop(guard);
            SimMachine::restore_interrupts(true);
            idle(over);
        });
        world.spawn(cpu(3), || idle(over));
        for poster in [1, 2] {
            let (queued, refused, done) = (&queued, &refused, &done);
            world.spawn(cpu(poster), move || {
                for _ in 0..108 {
                    program::advance(us(program::random(1_000)));
                    match Calls::post::<Counted>(cpu(3), Box::new(Post::new(Counted))) {
                        Ok(Posted::Queued) => queued.set(queued.get() + 1),
                        other => {
                            assert!(other.is_err());
                            refused.set(refused.get() + 1);
                        }
                    }
                }
                done.raise();
            });
        }
        world.spawn(cpu(0), || {
            let mut changes = 0;
            while done.get() < 2 || Calls::life(cpu(3)) != Some(Life::Online) {
                // A lost message costs a deadline, and is tried again.
                changes += u64::from(Calls::cpu_down(cpu(3), ms(5)).is_ok());
                program::advance(us(program::random(1_000)));
                changes += u64::from(Calls::cpu_up(cpu(3), ms(40)).is_ok());
                program::advance(us(program::random(10_000)));
            }
            assert!(changes >= 2, "it went and came");
            println!("seed {seed}: went or came {changes} times");
            // A tick finds what is left.
            program::advance(ms(3));
            over.raise();
        });
        run(&mut world);
        assert_eq!(queued.get() + refused.get(), 2 * 108);
        (all_queued, all_refused) = (all_queued + queued.get(), all_refused + refused.get());
        let abandoned = ABANDONED.with_borrow_mut(core::mem::take).len() as u64;
        assert_eq!(RUN.get() + abandoned, queued.get(), "seed {seed}: accounted for one by one");
    }
    assert!(all_queued > 100 && all_refused > 100, "{all_queued} queued, {all_refused} refused");
}
