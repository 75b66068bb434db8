//! The machine operation by operation, driven by a small exhaustive controller.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::time::Duration;
use std::cell::Cell;
use std::collections::HashSet;

use smpcall_local_apic::Routing;
use smpcall_machine::{
    Access, Cpu, Deadline, Instant, InterruptsOff, Ipi, Machine, Plain, Woken, Word, wait,
};
use smpcall_simulator::{
    Config, InterruptFrame, Operation, Program, RING_VECTOR, SimMachine, SimMemory, Stepper, program,
};

type SimWord = Word<SimMemory>;

const CPU: [Cpu; 4] = [Cpu::new(0), Cpu::new(1), Cpu::new(2), Cpu::new(3)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Step(Cpu),
    StepLosing(Cpu, Cpu),
    Interrupt(Cpu),
}

/// What an exploration came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    states: usize,
    ended: usize,
    stuck: usize,
}

/// Visits every state, depth first, by running again up to it. `drops`: how many messages may be lost.
fn explore(stepper: &mut Stepper<'_>, restore_memory: &dyn Fn(), drops: usize) -> Outcome {
    let mut outcome = Outcome::default();
    let mut seen = HashSet::new();
    let mut paths: Vec<Vec<Choice>> = vec![Vec::new()];
    restore_memory();
    stepper.start();
    while let Some(path) = paths.pop() {
        restore_memory();
        // SAFETY: the programs of these tests own nothing and hand out nothing that lives on their stacks.
        unsafe { stepper.restart() };
        for &choice in &path {
            match choice {
                Choice::Step(cpu) => stepper.step(cpu),
                Choice::StepLosing(cpu, target) => stepper.step_losing(cpu, &[target]),
                Choice::Interrupt(cpu) => stepper.take_interrupt(cpu),
            }
        }
        let lost = path.iter().filter(|choice| matches!(choice, Choice::StepLosing(..))).count();
        if !seen.insert((stepper.state_hash(), lost)) {
            continue;
        }
        outcome.states += 1;
        let mut choices = Vec::new();
        for cpu in 0..stepper.cpus() {
            let cpu = Cpu::new(cpu as u32);
            if stepper.is_enabled(cpu) {
                choices.push(Choice::Step(cpu));
                if lost < drops {
                    choices.extend(stepper.targets(cpu).into_iter().map(|to| Choice::StepLosing(cpu, to)));
                }
            }
            if stepper.deliverable(cpu).is_some() {
                choices.push(Choice::Interrupt(cpu));
            }
        }
        if choices.is_empty() {
            let all_ended = (0..stepper.cpus()).all(|cpu| stepper.has_ended(Cpu::new(cpu as u32)));
            *(if all_ended { &mut outcome.ended } else { &mut outcome.stuck }) += 1;
        }
        paths.extend(choices.into_iter().map(|choice| {
            let mut longer = path.clone();
            longer.push(choice);
            longer
        }));
    }
    outcome
}

fn stepper(programs: Vec<Program<'_>>) -> Stepper<'_> {
    let config = Config::new(programs.len(), Routing::X2ApicPhysical, 0);
    Stepper::new(&config, programs).expect("a machine")
}

/// The small protocol: a list of calls, and an interrupt if the list was empty.
struct Calls {
    head: SimWord,
    next: [SimWord; 4],
    locked: [SimWord; 4],
}

static CALLS: Calls = Calls {
    head: SimWord::new(0),
    next: [const { SimWord::new(0) }; 4],
    locked: [const { SimWord::new(1) }; 4],
};

fn restore_calls() {
    CALLS.head.store(0, Relaxed);
    for call in 0..4 {
        CALLS.next[call].store(0, Relaxed);
        CALLS.locked[call].store(1, Relaxed);
    }
}

fn call_async(call: usize, target: Cpu) {
    let mut old = CALLS.head.load(Relaxed);
    loop {
        CALLS.next[call].store(old, Relaxed);
        match CALLS.head.compare_exchange(old, call as u64 + 1, AcqRel, Relaxed) {
            Ok(_) => break,
            Err(found) => old = found,
        }
    }
    if old == 0 {
        SimMachine::send(target, Ipi::Ring).expect("the ring goes out");
    }
}

fn call_sync(call: usize, target: Cpu) {
    call_async(call, target);
    wait::<SimMachine>(&[CALLS.locked[call].equals(u64::MAX, 0)], Deadline::NEVER);
}

fn serve(mut frame: InterruptFrame) {
    frame.end_of_interrupt();
    let mut head = CALLS.head.swap(0, Acquire);
    while head != 0 {
        let call = head as usize - 1;
        head = CALLS.next[call].load(Relaxed);
        CALLS.locked[call].store(0, Release);
    }
}

/// The tests share static words and run on several threads.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn senders(count: usize) -> Vec<Program<'static>> {
    let mut programs: Vec<Program<'static>> = vec![Box::new(|| {})];
    for call in 0..count {
        programs.push(Box::new(move || call_sync(call, CPU[0])));
    }
    programs
}

#[test]
fn every_interleaving_of_two_callers_ends() {
    let _alone = alone();
    let mut stepper = stepper(senders(2));
    stepper.set_handler(RING_VECTOR, serve);
    let outcome = explore(&mut stepper, &restore_calls, 0);
    assert!(outcome.ended > 0);
    assert_eq!(outcome.stuck, 0, "{outcome:?}");
    assert!(outcome.states > 100, "{outcome:?}");
}

#[test]
fn a_lost_ring_leaves_a_state_in_which_nobody_can_move() {
    let _alone = alone();
    let mut stepper = stepper(senders(2));
    stepper.set_handler(RING_VECTOR, serve);
    let outcome = explore(&mut stepper, &restore_calls, 1);
    assert!(outcome.stuck > 0, "{outcome:?}");
}

#[test]
fn exploring_again_visits_the_same_states() {
    let _alone = alone();
    let explore_three = || {
        let mut stepper = stepper(senders(3));
        stepper.set_handler(RING_VECTOR, serve);
        explore(&mut stepper, &restore_calls, 0)
    };
    assert_eq!(explore_three(), explore_three());
}

#[test]
fn a_handler_that_leaves_nothing_behind_may_be_forgotten() {
    let _alone = alone();
    let count = |believe_hints| {
        let mut programs = senders(2);
        // The target has a program of its own, which the handler may interrupt anywhere.
        programs[0] = Box::new(|| call_async(3, CPU[0]));
        let config = Config { believe_hints, ..Config::new(3, Routing::X2ApicPhysical, 0) };
        let mut stepper = Stepper::new(&config, programs).expect("a machine");
        stepper.set_handler(RING_VECTOR, serve);
        explore(&mut stepper, &restore_calls, 0)
    };
    let (with, without) = (count(true), count(false));
    assert!(with.states < without.states, "{with:?} {without:?}");
    assert_eq!((with.stuck, without.stuck), (0, 0));
}

static FLAG: SimWord = SimWord::new(0);
static OTHER: SimWord = SimWord::new(0);

fn restore_flags() {
    FLAG.store(0, Relaxed);
    OTHER.store(0, Relaxed);
}

fn acknowledge(mut frame: InterruptFrame) {
    frame.end_of_interrupt();
}

fn set_flag_and_ring() {
    FLAG.store(1, Release);
    SimMachine::send(CPU[0], Ipi::Ring).expect("the ring goes out");
}

#[test]
fn halting_after_a_check_with_interrupts_enabled_sleeps_through_the_wake_up() {
    let _alone = alone();
    let sleeper = || {
        while FLAG.load(Acquire) == 0 {
            program::halt();
        }
    };
    let mut stepper = stepper(vec![Box::new(sleeper), Box::new(set_flag_and_ring)]);
    stepper.set_handler(RING_VECTOR, acknowledge);
    let outcome = explore(&mut stepper, &restore_flags, 0);
    assert!(outcome.stuck > 0 && outcome.ended > 0, "{outcome:?}");
}

#[test]
fn halting_after_a_check_with_interrupts_disabled_does_not() {
    let _alone = alone();
    let sleeper = || {
        let _ = SimMachine::disable_interrupts();
        while FLAG.load(Acquire) == 0 {
            program::halt();
            let _ = SimMachine::disable_interrupts();
        }
        SimMachine::restore_interrupts(true);
    };
    let mut stepper = stepper(vec![Box::new(sleeper), Box::new(set_flag_and_ring)]);
    stepper.set_handler(RING_VECTOR, acknowledge);
    let outcome = explore(&mut stepper, &restore_flags, 0);
    assert_eq!(outcome.stuck, 0, "{outcome:?}");
    assert!(outcome.ended > 0);
}

fn location_of(stepper: &Stepper<'_>, cpu: Cpu) -> Option<usize> {
    match stepper.pending(cpu).operation {
        Operation::Access { location, .. } => Some(location),
        _ => None,
    }
}

#[test]
fn an_operation_is_offered_as_data_before_it_happens_and_again_after_an_interrupt() {
    let _alone = alone();
    restore_flags();
    let mut stepper = stepper(vec![Box::new(|| OTHER.store(7, Release)), Box::new(set_flag_and_ring)]);
    stepper.set_handler(RING_VECTOR, |mut frame| {
        FLAG.fetch_add(10, Relaxed);
        frame.end_of_interrupt();
    });
    stepper.start();
    let offered = stepper.pending(CPU[0]);
    let store =
        Operation::Access { location: OTHER.location().addr(), access: Access::Store(7), order: Release };
    assert_eq!(offered.operation, store);
    assert!(offered.source.file().ends_with("stepped.rs"));
    assert_eq!(OTHER.load(Relaxed), 0, "it has not happened");
    assert_eq!(stepper.deliverable(CPU[0]), None);

    stepper.step(CPU[1]);
    assert_eq!(stepper.targets(CPU[1]), [CPU[0]]);
    stepper.step(CPU[1]);
    assert_eq!(stepper.deliverable(CPU[0]), Some(RING_VECTOR));
    stepper.take_interrupt(CPU[0]);
    assert_eq!(location_of(&stepper, CPU[0]), Some(FLAG.location().addr()), "the handler's own operation");
    assert_eq!(stepper.handler_depth(CPU[0]), 1);
    assert!(!stepper.inspect(CPU[0]).interrupts_enabled);
    stepper.step(CPU[0]);
    assert_eq!(FLAG.load(Relaxed), 11);
    stepper.step(CPU[0]);
    assert_eq!(stepper.pending(CPU[0]), offered, "the same operation again");
    assert_eq!(stepper.handler_depth(CPU[0]), 0);
    stepper.step(CPU[0]);
    assert_eq!(OTHER.load(Relaxed), 7);
    assert!(stepper.has_ended(CPU[0]) && stepper.has_ended(CPU[1]));
    assert!(!stepper.is_enabled(CPU[0]));
}

#[test]
fn a_wait_is_enabled_only_while_a_condition_holds_and_names_the_words_it_read() {
    let _alone = alone();
    restore_flags();
    let waiter = || {
        let conditions = [FLAG.equals(1, 1), OTHER.equals(1, 1)];
        assert_eq!(wait::<SimMachine>(&conditions, Deadline::NEVER), Woken::Met(1));
    };
    let mut stepper = stepper(vec![Box::new(waiter), Box::new(|| OTHER.store(1, Release))]);
    stepper.start();
    assert!(!stepper.is_enabled(CPU[0]));
    assert_eq!(stepper.watched(CPU[0]), [FLAG.location().addr(), OTHER.location().addr()]);
    assert_eq!(stepper.deadline(CPU[0]), None);
    stepper.step(CPU[1]);
    assert!(stepper.is_enabled(CPU[0]));
    stepper.step(CPU[0]);
    assert!(stepper.has_ended(CPU[0]));
}

#[test]
fn an_expiry_moves_the_clock_of_its_own_cpu_only() {
    let _alone = alone();
    restore_flags();
    let clocks = [Cell::new(0), Cell::new(0)];
    let waiter = |cpu: usize| {
        let deadline = Deadline::within::<SimMachine>(Duration::from_micros(5));
        let woken = wait::<SimMachine>(&[FLAG.equals(1, 1)], deadline);
        clocks[cpu].set(SimMachine::now().as_nanos());
        assert_eq!(woken == Woken::Deadline, cpu == 0);
    };
    let mut stepper =
        stepper(vec![Box::new(|| waiter(0)), Box::new(|| waiter(1)), Box::new(|| FLAG.store(1, Release))]);
    stepper.start();
    assert_eq!(stepper.deadline(CPU[0]), Some(Instant::from_nanos(5000)));
    stepper.expire(CPU[0]);
    stepper.step(CPU[2]);
    stepper.expire(CPU[1]);
    assert!(stepper.has_ended(CPU[0]) && stepper.has_ended(CPU[1]));
    assert_eq!(clocks[0].get(), 5000);
    assert_eq!(clocks[1].get(), 5000, "a deadline that comes while a condition holds reports the condition");
    assert_eq!(stepper.inspect(CPU[2]).time, Instant::default());
}

#[test]
fn an_nmi_comes_with_interrupts_disabled_and_not_inside_another_one() {
    let _alone = alone();
    restore_flags();
    let guarded = || {
        let _off = InterruptsOff::<SimMachine>::new();
        OTHER.load(Relaxed);
    };
    let prober = || {
        for _ in 0..3 {
            SimMachine::send(CPU[0], Ipi::Probe).expect("the probe goes out");
        }
    };
    let mut stepper = stepper(vec![Box::new(guarded), Box::new(prober)]);
    stepper.set_nmi_handler(|frame| {
        assert!(frame.vector.is_none() && SimMachine::in_nmi());
        FLAG.fetch_add(1, Relaxed);
    });
    stepper.start();
    stepper.step(CPU[0]);
    assert!(!stepper.inspect(CPU[0]).interrupts_enabled);
    stepper.step(CPU[1]);
    assert!(stepper.nmi_deliverable(CPU[0]));
    stepper.take_nmi(CPU[0]);
    stepper.step(CPU[1]);
    stepper.step(CPU[1]);
    assert!(!stepper.nmi_deliverable(CPU[0]), "one is in progress");
    stepper.step(CPU[0]);
    assert!(stepper.nmi_deliverable(CPU[0]), "one more was latched");
    stepper.take_nmi(CPU[0]);
    stepper.step(CPU[0]);
    assert!(!stepper.nmi_deliverable(CPU[0]), "and the third merged with it");
    assert_eq!(FLAG.load(Relaxed), 2);
    assert_eq!(stepper.counters().nmis_taken, 2);
}

#[test]
fn the_hash_tells_states_apart_and_nothing_else() {
    static DATA: Plain<SimMemory, u64> = Plain::new(0);
    let _alone = alone();
    let programs = || -> Vec<Program<'static>> {
        vec![
            Box::new(|| {
                FLAG.store(1, Release);
                OTHER.load(Acquire);
            }),
            Box::new(|| {
                OTHER.store(1, Release);
                // SAFETY: only this CPU accesses it.
                unsafe { DATA.write(1) };
            }),
        ]
    };
    let run = |order: &[usize]| {
        restore_flags();
        let mut stepper = stepper(programs());
        stepper.start();
        for &cpu in order {
            stepper.step(CPU[cpu]);
        }
        stepper.state_hash()
    };
    assert_eq!(run(&[0, 1]), run(&[1, 0]), "two independent stores");
    let last_writer = |order: [usize; 2]| {
        restore_flags();
        let store = |value| -> Program<'static> { Box::new(move || FLAG.store(value, Release)) };
        let mut stepper = stepper(vec![store(1), store(2)]);
        stepper.start();
        for cpu in order {
            stepper.step(CPU[cpu]);
        }
        stepper.state_hash()
    };
    assert_ne!(last_writer([0, 1]), last_writer([1, 0]), "stores learn nothing, but memory differs");
    assert_ne!(run(&[0]), run(&[1]));
    assert_ne!(run(&[0, 0, 1]), run(&[0, 1, 0]), "the load found something else");
    assert_ne!(run(&[0, 1]), run(&[0, 1, 1]), "plain data was written");
}

#[test]
fn a_device_interrupts_whomever_the_controller_says() {
    let _alone = alone();
    restore_flags();
    let mut stepper = stepper(vec![Box::new(|| FLAG.store(2, Release))]);
    stepper.set_handler(0x41, |mut frame| {
        FLAG.fetch_add(1, Relaxed);
        frame.end_of_interrupt();
    });
    stepper.start();
    stepper.inject(CPU[0], 0x41);
    assert_eq!(stepper.deliverable(CPU[0]), Some(0x41));
    stepper.take_interrupt(CPU[0]);
    stepper.step(CPU[0]);
    assert_eq!(stepper.found(CPU[0]), 0);
    stepper.step(CPU[0]);
    stepper.step(CPU[0]);
    assert_eq!(stepper.found(CPU[0]), 1, "the store after the handler found its value");
}

#[test]
fn enabling_interrupts_shadows_the_next_operation_only_if_asked_for() {
    let _alone = alone();
    for sti_shadow in [false, true] {
        restore_flags();
        let program: Program<'static> = Box::new(|| {
            drop(InterruptsOff::<SimMachine>::new());
            FLAG.load(Relaxed);
            FLAG.load(Relaxed);
        });
        let config = Config { sti_shadow, ..Config::new(1, Routing::X2ApicPhysical, 0) };
        let mut stepper = Stepper::new(&config, vec![program]).expect("a machine");
        stepper.start();
        stepper.step(CPU[0]);
        stepper.inject(CPU[0], 0x41);
        assert_eq!(stepper.deliverable(CPU[0]), None, "disabled");
        stepper.step(CPU[0]);
        assert_eq!(stepper.deliverable(CPU[0]).is_none(), sti_shadow);
        stepper.step(CPU[0]);
        assert_eq!(stepper.deliverable(CPU[0]), Some(0x41));
    }
}

#[test]
fn the_shadow_does_not_outlast_a_wait_or_the_program() {
    let _alone = alone();
    let waiter: Program<'static> = Box::new(|| {
        drop(InterruptsOff::<SimMachine>::new());
        assert_eq!(wait::<SimMachine>(&[FLAG.equals(u64::MAX, 1)], Deadline::NEVER), Woken::Met(0));
    });
    let ends: Program<'static> = Box::new(|| drop(InterruptsOff::<SimMachine>::new()));
    for (program, name) in [(waiter, "waits"), (ends, "ends")] {
        restore_flags();
        let config = Config { sti_shadow: true, ..Config::new(1, Routing::X2ApicPhysical, 0) };
        let mut stepper = Stepper::new(&config, vec![program]).expect("a machine");
        stepper.set_handler(0x41, |mut frame| {
            FLAG.store(1, Release);
            frame.end_of_interrupt();
        });
        stepper.start();
        stepper.inject(CPU[0], 0x41);
        while stepper.is_enabled(CPU[0]) {
            stepper.step(CPU[0]);
        }
        // Only the handler ends the wait.
        assert_eq!(stepper.deliverable(CPU[0]), Some(0x41));
        stepper.take_interrupt(CPU[0]);
        while stepper.is_enabled(CPU[0]) {
            stepper.step(CPU[0]);
        }
        assert!(stepper.has_ended(CPU[0]), "a program that {name}");
    }
}

#[test]
fn a_restart_forgets_everything() {
    let _alone = alone();
    restore_calls();
    let mut stepper = stepper(senders(2));
    stepper.set_handler(RING_VECTOR, serve);
    stepper.start();
    let hash = stepper.state_hash();
    for _ in 0..3 {
        stepper.step(CPU[1]);
        stepper.step(CPU[1]);
        assert_ne!(stepper.state_hash(), hash);
        restore_calls();
        // SAFETY: as in `explore`.
        unsafe { stepper.restart() };
        assert_eq!(stepper.state_hash(), hash);
        assert_eq!(stepper.counters().operations, 2, "each sender is at its first operation");
    }
}
