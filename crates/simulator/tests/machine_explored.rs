//! The life of a CPU on the stepped machine: every schedule of resets and starts.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::collections::BTreeSet;

use smpcall_local_apic::{Routing, Topology};
use smpcall_machine::{Cpu, Deadline, InterruptsOff, Ipi, Machine, Word, wait};
use smpcall_simulator::explorer::report::Exploration;
use smpcall_simulator::explorer::{
    Bounds, Engine, MemoryModel, Note, Plan, Protocol, Scenario, Setup, explore,
};
use smpcall_simulator::{
    Config, Operation, Program, SimMachine, SimMemory, SimTopology, Stepper, local_apic, program,
};

type SimWord = Word<SimMemory>;

const CPU: [Cpu; 3] = [Cpu::new(0), Cpu::new(1), Cpu::new(2)];

fn init(target: usize) {
    let id = SimTopology::current().apic_id(CPU[target]).expect("it has an APIC");
    local_apic().send_init(id).expect("sent");
}

fn start_up(target: usize) {
    let id = SimTopology::current().apic_id(CPU[target]).expect("it has an APIC");
    local_apic().send_start_up(id, 8).expect("sent");
}

fn config(cpus: usize) -> Config {
    Config::new(cpus, Routing::X2ApicPhysical, 0)
}

/// Lets CPUs step, the lowest that can first, until none can.
fn run_down(stepper: &mut Stepper<'_>) {
    while let Some(cpu) = (0..stepper.cpus()).map(|cpu| CPU[cpu]).find(|&cpu| stepper.is_enabled(cpu)) {
        stepper.step(cpu);
    }
}

#[test]
fn a_cpu_that_was_not_started_makes_no_step_until_it_is_sent_a_start_up_message() {
    static UP: SimWord = SimWord::new(0);
    let config = Config { not_started: vec![CPU[1]], ..config(2) };
    let programs: Vec<Program<'_>> = vec![Box::new(|| {
        init(1);
        start_up(1);
    })];
    let mut stepper = Stepper::new(&config, programs).expect("a machine");
    stepper.on_start_up(|cpu, page| {
        assert!(!SimMachine::interrupts_enabled());
        UP.store(u64::from(page) << 8 | u64::from(cpu.number()), Release);
    });
    stepper.start();
    for round in 0..3 {
        UP.store(0, Relaxed);
        if round > 0 {
            // SAFETY: nothing refers to the CPUs' stacks.
            unsafe { stepper.restart() };
        }
        assert!(!stepper.is_enabled(CPU[1]));
        assert_eq!(stepper.pending(CPU[1]).operation, Operation::WaitForStartUp);
        while !stepper.is_enabled(CPU[1]) {
            stepper.step(CPU[0]);
        }
        assert_eq!(stepper.pending(CPU[1]).operation, Operation::StartUp { page: 8 });
        stepper.step(CPU[1]);
        assert!(matches!(stepper.pending(CPU[1]).operation, Operation::Access { .. }));
        run_down(&mut stepper);
        assert_eq!(UP.load(Relaxed), 0x801);
        assert!(stepper.inspect(CPU[1]).parked, "it never enabled interrupts");
        let counters = stepper.inspect(CPU[1]).counters;
        assert_eq!((counters.resets, counters.start_ups), (1, 1));
    }
}

#[test]
fn a_reset_can_come_between_any_two_operations_and_takes_the_rest_away() {
    static STEPS: SimWord = SimWord::new(0);
    static STARTED: SimWord = SimWord::new(0);
    let programs: Vec<Program<'_>> = vec![
        Box::new(|| {
            init(1);
            start_up(1);
        }),
        Box::new(|| {
            let _off = InterruptsOff::<SimMachine>::new();
            for _ in 0..3 {
                STEPS.fetch_add(1, Relaxed);
            }
        }),
    ];
    let mut stepper = Stepper::new(&config(2), programs).expect("a machine");
    stepper.on_start_up(|_, _| STARTED.store(1, Release));
    stepper.start();
    let mut seen = BTreeSet::new();
    for steps in 0..10 {
        STEPS.store(0, Relaxed);
        STARTED.store(0, Relaxed);
        // SAFETY: nothing refers to the CPUs' stacks.
        unsafe { stepper.restart() };
        for _ in 0..steps {
            if stepper.is_enabled(CPU[1]) {
                stepper.step(CPU[1]);
            }
        }
        run_down(&mut stepper);
        assert_eq!(STARTED.load(Relaxed), 1);
        seen.insert(STEPS.load(Relaxed));
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn the_handlers_of_a_reset_cpu_are_abandoned_and_its_requests_forgotten() {
    static FOREVER: SimWord = SimWord::new(0);
    let programs: Vec<Program<'_>> = vec![
        Box::new(|| {
            SimMachine::send(CPU[1], Ipi::Probe).expect("sent");
            SimMachine::send(CPU[1], Ipi::Ring).expect("sent");
            init(1);
            start_up(1);
        }),
        Box::new(|| {
            let _ = wait::<SimMachine>(&[FOREVER.equals(1, 1)], Deadline::NEVER);
        }),
    ];
    let mut stepper = Stepper::new(&config(2), programs).expect("a machine");
    stepper.set_nmi_handler(|_| {
        let _ = wait::<SimMachine>(&[FOREVER.equals(1, 1)], Deadline::NEVER);
    });
    stepper.on_start_up(|_, _| {
        assert!(!SimMachine::in_nmi());
        program::enable_local_apic().expect("the routing fits");
    });
    stepper.start();
    stepper.step(CPU[0]);
    stepper.take_nmi(CPU[1]);
    assert_eq!(stepper.handler_depth(CPU[1]), 1);
    run_down(&mut stepper);
    let report = stepper.inspect(CPU[1]);
    assert!(report.parked && report.waits.is_empty() && report.requested.is_empty(), "{report:?}");
    assert_eq!(stepper.handler_depth(CPU[1]), 0);
}

#[test]
fn a_cpu_can_reset_itself_in_the_middle_of_its_step() {
    let programs: Vec<Program<'_>> = vec![
        Box::new(|| start_up(1)),
        Box::new(|| {
            init(1);
            unreachable!("it was reset");
        }),
    ];
    let mut stepper = Stepper::new(&config(2), programs).expect("a machine");
    stepper.on_start_up(|_, _| ());
    stepper.start();
    while stepper.is_enabled(CPU[1]) {
        stepper.step(CPU[1]);
    }
    assert!(stepper.inspect(CPU[1]).waits_for_start_up);
    run_down(&mut stepper);
    assert_eq!(stepper.inspect(CPU[1]).counters.start_ups, 1);
}

#[test]
fn the_boot_cpu_refuses_init() {
    let programs: Vec<Program<'_>> = vec![Box::new(|| ()), Box::new(|| init(0))];
    let mut stepper = Stepper::new(&config(2), programs).expect("a machine");
    stepper.start();
    run_down(&mut stepper);
    assert_eq!(stepper.boot_cpu_inits(), 1);
    assert!(!stepper.inspect(CPU[0]).waits_for_start_up);
    // SAFETY: nothing refers to the CPUs' stacks.
    unsafe { stepper.restart() };
    assert_eq!(stepper.boot_cpu_inits(), 0);
}

#[test]
fn what_a_reset_cpu_left_on_its_stack_is_still_there() {
    static ADDRESS: SimWord = SimWord::new(0);
    static FOREVER: SimWord = SimWord::new(0);
    static SEEN: SimWord = SimWord::new(0);
    let programs: Vec<Program<'_>> = vec![
        Box::new(|| {
            let _ = wait::<SimMachine>(&[ADDRESS.differs(u64::MAX, 0)], Deadline::NEVER);
            init(1);
            start_up(1);
            let _ = wait::<SimMachine>(&[SEEN.equals(u64::MAX, 1)], Deadline::NEVER);
            let address = core::ptr::with_exposed_provenance::<SimWord>(ADDRESS.load(Acquire) as usize);
            // SAFETY: the stack of a CPU that was reset stays as it is until the execution is over.
            assert_eq!(unsafe { &*address }.load(Relaxed), 77);
        }),
        Box::new(|| {
            let local = SimWord::new(77);
            ADDRESS.store((&raw const local).expose_provenance() as u64, Release);
            let _ = wait::<SimMachine>(&[FOREVER.equals(1, 1)], Deadline::NEVER);
        }),
    ];
    let mut stepper = Stepper::new(&config(2), programs).expect("a machine");
    stepper.on_start_up(|_, _| {
        let locals = [const { SimWord::new(5) }; 64];
        for local in &locals {
            local.store(6, Relaxed);
        }
        SEEN.store(1, Release);
    });
    stepper.start();
    for _ in 0..3 {
        for word in [&ADDRESS, &SEEN] {
            word.store(0, Relaxed);
        }
        // SAFETY: nothing refers to the CPUs' stacks any more.
        unsafe { stepper.restart() };
        while SEEN.load(Relaxed) == 0 || stepper.is_enabled(CPU[0]) {
            run_down(&mut stepper);
        }
        assert!(stepper.has_ended(CPU[0]));
    }
}

/// Explores it in every way; all ways have to see the same endings.
fn every_exploration_sees(name: &str, cpus: usize, build: fn(&mut Scenario), endings: usize) {
    let protocol = Protocol::new(name, name, cpus, move || {
        let mut scenario = Scenario::new();
        build(&mut scenario);
        scenario
    });
    for memory in [MemoryModel::Sc, MemoryModel::Tso] {
        let plan = Plan::new(Setup { memory, ..Setup::new(Bounds::default()) });
        let all: [Exploration; 4] = [
            plan.clone(),
            Plan { engine: Engine::Dpor, ..plan.clone() },
            Plan::new(Setup { reduce: false, believe_hints: false, ..plan.setup.clone() }),
            Plan {
                engine: Engine::Dpor,
                setup: Setup { reduce: false, ..plan.setup.clone() },
                ..plan.clone()
            },
        ]
        .map(|plan| explore(&protocol, &plan, &()).expect("a machine"));
        for exploration in &all {
            assert!(exploration.is_complete(), "{name}, {memory:?}: {:?}", exploration.found);
            assert_eq!(exploration.endings, all[0].endings, "{name}, {memory:?}");
        }
        assert_eq!(all[0].endings.len(), endings, "{name}, {memory:?}");
    }
}

/// The victim is cut off after each number of its operations, and its next life sees how far it came.
#[test]
fn no_exploration_misses_where_a_reset_cuts_a_program_off() {
    every_exploration_sees(
        "cut-off",
        2,
        |scenario| {
            let word = scenario.share(SimWord::new(0));
            let seen = scenario.share(Note::new(0));
            scenario.cpu(|| {
                init(1);
                start_up(1);
            });
            scenario.cpu(move || {
                for value in 1..=3 {
                    word.store(value, Release);
                }
            });
            scenario.start_up(move |_, _| seen.set(1 + word.load(Acquire)));
        },
        4,
    );
}

/// Two CPUs start a third one: it begins once for each time that it was reset before, and whoever comes too late or too
/// early has no effect.
#[test]
fn no_exploration_misses_an_order_of_two_starters() {
    every_exploration_sees(
        "two-starters",
        3,
        |scenario| {
            let word = scenario.share(SimWord::new(0));
            let lives = scenario.share(SimWord::new(0));
            scenario.not_started(CPU[2]);
            scenario.cpu(move || {
                init(2);
                start_up(2);
                word.fetch_add(1, Relaxed);
            });
            scenario.cpu(move || {
                init(2);
                start_up(2);
            });
            scenario.start_up(move |_, _| {
                lives.fetch_add(1 + word.load(Relaxed), Relaxed);
            });
        },
        4,
    );
}

#[test]
fn an_explored_boot_cpu_that_is_sent_init_breaks_a_law() {
    let protocol = Protocol::new("boot-init", "a mistake", 2, || {
        let mut scenario = Scenario::new();
        scenario.cpu(|| ());
        scenario.cpu(|| init(0));
        scenario
    });
    let found = explore(&protocol, &Plan::new(Setup::new(Bounds::default())), &()).expect("a machine").found;
    assert_eq!(found.expect("it is found").violation.law, "L8");
}
