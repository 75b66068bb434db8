//! What stands for the registers of a simulated CPU.

mod support;

use core::cell::RefCell;

use smpcall::vmcore::Registers;
use smpcall_local_apic::Routing;
use smpcall_machine::{InterruptsOff, Ipi};
use smpcall_simulator::{Config, SimMachine, World, program, stopping};
use support::{Machine, cpu, run, us};

thread_local! {
    static INTERRUPTED: RefCell<Vec<(Registers, Registers)>> = const { RefCell::new(Vec::new()) };
}

/// What a task and its NMI handler see, in this order: the task with interrupts enabled and disabled; the handler itself, and
/// what it has interrupted in the task, enabled and disabled.
fn seen() -> (Vec<Registers>, Vec<(Registers, Registers)>, Vec<String>) {
    let of_task = RefCell::new(Vec::new());
    let mut world =
        World::new(&Config { tick: None, ..Config::new(2, Routing::Flat, 1) }).expect("a machine");
    world.set_nmi_handler(|frame| {
        let interrupted = stopping::registers(frame.source, frame.interrupts_were_enabled);
        INTERRUPTED.with_borrow_mut(|seen| seen.push((program::registers(), interrupted)));
    });
    world.spawn(cpu(1), || {
        of_task.borrow_mut().push(program::registers());
        program::advance(us(10));
        let _off = InterruptsOff::<SimMachine>::new();
        of_task.borrow_mut().push(program::registers());
        program::advance(us(10));
    });
    world.spawn(cpu(0), || {
        for _ in 0..2 {
            program::advance(us(5));
            SimMachine::send(cpu(1), Ipi::Probe).expect("sent");
            program::advance(us(5));
        }
    });
    run(&mut world);
    let interrupted = INTERRUPTED.take();
    let place = |registers: &Registers| {
        let source = world.source_of(registers.rip).expect("a place in the source");
        format!("{}:{}", source.file(), source.line())
    };
    let task = of_task.take();
    let places =
        task.iter().chain(interrupted.iter().map(|(_, interrupted)| interrupted)).map(place).collect();
    (task, interrupted, places)
}

#[test]
fn registers_tell_the_cpu_the_flag_the_stack_and_the_place_in_the_source() {
    let (task, interrupted, places) = seen();
    assert_eq!((task.len(), interrupted.len()), (2, 2));
    let all = || task.iter().chain(interrupted.iter().flat_map(|(own, interrupted)| [own, interrupted]));
    assert!(all().all(|registers| registers.r15 == 1 && registers.cs == 0x10 && registers.ss == 0x18));
    assert!(all().all(|registers| registers.rflags & 2 != 0));
    assert_eq!([0, 1].map(|at| task[at].interrupts_enabled()), [true, false]);
    assert_eq!([0, 1].map(|at| interrupted[at].1.interrupts_enabled()), [true, false]);
    for (own, of_task) in &interrupted {
        assert!(!own.interrupts_enabled(), "in its handler");
        assert_eq!(of_task.rsp, task[0].rsp);
        assert!(own.rsp < of_task.rsp && own.rsp % 8 == 0);
    }
    let file = file!();
    assert!(places.iter().all(|place| place.starts_with(&format!("{file}:"))), "{places:?}");
    let line = |place: &String| place.rsplit_once(':').and_then(|(_, line)| line.parse::<u32>().ok());
    let [first, second, third, fourth] = [0, 1, 2, 3].map(|at| line(&places[at]).expect("a line"));
    assert_eq!([third, second, fourth], [first + 1, first + 3, first + 4], "the work was interrupted");
}

#[test]
fn every_run_has_the_same_registers() {
    assert_eq!(seen(), seen());
}

#[test]
fn cpus_have_stacks_of_their_own() {
    let stacks = RefCell::new(Vec::new());
    let mut world = World::new(&support::quiet(3)).expect("a machine");
    for number in 0..3 {
        let stacks = &stacks;
        world.spawn(cpu(number), move || {
            stacks.borrow_mut().push((program::registers().r15, program::registers().rsp));
        });
    }
    run(&mut world);
    let mut stacks = stacks.take();
    stacks.sort_unstable();
    assert_eq!(stacks.iter().map(|stack| stack.0).collect::<Vec<_>>(), [0, 1, 2]);
    // 16 KiB each, and a gap.
    assert!(stacks.windows(2).all(|pair| pair[1].1 - pair[0].1 == 0x8000), "{stacks:x?}");
}
