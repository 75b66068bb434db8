//! Another kernel image on one CPU: what a crash's capture kernel is.

mod support;

use core::cell::Cell;
use core::sync::atomic::Ordering::{Relaxed, Release};

use smpcall_local_apic::Topology;
use smpcall_machine::{Deadline, EventKind, InterruptsOff, Ipi, Woken, Word, wait};
use smpcall_simulator::kernel::{Hooks, come_online};
use smpcall_simulator::{
    Config, Image, ImageId, InterruptFrame, RING_VECTOR, SimMachine, SimMemory, SimTopology, local_apic,
    program,
};
use support::{Calls, Machine, cpu, ms, quiet, run, us, world};

type SimWord = Word<SimMemory>;

fn start(target: u32) {
    let id = SimTopology::current().apic_id(cpu(target)).expect("it has an APIC");
    local_apic().send_init(id).expect("sent");
    program::advance(ms(10));
    local_apic().send_start_up(id, 8).expect("sent");
}

thread_local! {
    static INERT: Cell<u32> = const { Cell::new(0) };
}

fn inert(mut frame: InterruptFrame) {
    INERT.set(INERT.get() + 1);
    frame.end_of_interrupt();
}

#[test]
fn a_booted_image_has_its_own_handlers_and_finds_what_was_pending() {
    INERT.set(0);
    let entered = Cell::new(false);
    let config = Config { trace: true, ..quiet(2) };
    let mut world = world(&config);
    let capture = world.add_image(
        Image::new(|| {
            entered.set(true);
            assert!(!SimMachine::interrupts_enabled());
            assert_ne!(program::image(), ImageId::BUILT);
            assert!(program::inspect(cpu(0)).frames.is_empty(), "a fresh stack");
            assert_eq!(program::inspect(cpu(0)).requested, [RING_VECTOR], "the APIC is as it was");
            SimMachine::restore_interrupts(true);
            program::advance(us(1));
            assert_eq!(INERT.get(), 1);
            program::set_handler(RING_VECTOR, |_| unreachable!("nothing more comes"));
            program::advance(us(100));
        })
        .handler_of_all(inert),
    );
    world.spawn(cpu(0), move || {
        let _frame = program::frame("panic");
        core::mem::forget(InterruptsOff::<SimMachine>::new());
        SimMachine::send(cpu(0), Ipi::Ring).expect("sent");
        program::advance(us(10));
        program::boot_kernel(capture);
    });
    run(&mut world);
    assert!(entered.get());
    assert!(
        world.trace().events.iter().any(|event| event.kind == EventKind::ImageBooted && event.argument == 1)
    );
}

#[test]
fn the_other_cpus_stay_in_the_old_image_until_they_are_started() {
    let old = SimWord::new(0);
    let new = SimWord::new(0);
    let mut world = world(&quiet(3));
    world.on_start_up(|_, _| unreachable!("the new image's CPUs start the new image"));
    let capture = world.add_image(
        Image::new(|| {
            program::serve();
            program::enable_local_apic().expect("the routing fits");
            come_online();
            SimMachine::restore_interrupts(true);
            assert_eq!(Calls::within(us(100)).call(cpu(1), || 1), Err(smpcall::CallError::Offline));
            start(1);
            let started = [new.equals(u64::MAX, 1)];
            assert_eq!(wait::<SimMachine>(&started, Deadline::within::<SimMachine>(ms(1))), Woken::Met(0));
            assert_eq!(Calls::within(ms(1)).call(cpu(1), || program::image().number()), Ok(1));
            program::advance(us(100));
        })
        .kernel(Hooks::default())
        .on_start_up(|cpu, _| {
            assert_eq!(cpu.number(), 1);
            assert_eq!(program::image().number(), 1);
            program::enable_local_apic().expect("the routing fits");
            come_online();
            new.store(1, Release);
            SimMachine::restore_interrupts(true);
        }),
    );
    for victim in [1, 2] {
        world.spawn(cpu(victim), || {
            loop {
                old.fetch_add(1, Relaxed);
                program::advance(us(10));
                if old.load(Relaxed) > 1_000_000 {
                    break;
                }
            }
        });
    }
    world.spawn(cpu(0), move || {
        program::advance(us(100));
        program::boot_kernel(capture);
    });
    let end = world.run(smpcall_machine::Instant::from_nanos(30_000_000));
    assert_eq!(end, smpcall_simulator::RunEnd::TimeLimit, "CPU 2 goes on in the old image");
    assert_eq!(new.load(Relaxed), 1);
    assert!(!world.inspect(cpu(2)).ended && world.inspect(cpu(2)).counters.resets == 0);
    assert!(world.mailboxes_of(capture).is_some_and(|boxes| boxes.get(cpu(1)).is_some()));
    assert_eq!(world.boot_cpu_inits(), 0);
    // SAFETY: nothing outside refers to the CPUs' stacks, and nothing there has a destructor that matters.
    unsafe { world.forget_programs() };
}

/// Jumping out of an NMI handler executes no IRET: the next interrupt's handler does.
#[test]
fn nmis_stay_blocked_after_a_jump_out_of_an_nmi_handler_until_a_handler_returns() {
    thread_local! {
        static CAPTURE: Cell<Option<ImageId>> = const { Cell::new(None) };
        static NMIS: Cell<u32> = const { Cell::new(0) };
    }
    INERT.set(0);
    let mut world = world(&quiet(2));
    world.set_nmi_handler(|_| program::boot_kernel(CAPTURE.get().expect("it was added")));
    CAPTURE.set(Some(
        world.add_image(
            Image::new(|| {
                assert!(!SimMachine::in_nmi(), "the new kernel knows of none");
                SimMachine::send(cpu(1), Ipi::Probe).expect("sent");
                program::advance(us(10));
                assert_eq!(NMIS.get(), 0, "latched");
                SimMachine::send(cpu(1), Ipi::Ring).expect("sent");
                SimMachine::restore_interrupts(true);
                program::advance(us(10));
                assert_eq!((INERT.get(), NMIS.get()), (1, 1));
            })
            .handler(RING_VECTOR, inert)
            .nmi_handler(|_| NMIS.set(NMIS.get() + 1)),
        ),
    ));
    world.spawn(cpu(1), || program::advance(ms(1)));
    world.spawn(cpu(0), || SimMachine::send(cpu(1), Ipi::Probe).expect("sent"));
    run(&mut world);
    assert_eq!(NMIS.get(), 1);
}

#[test]
fn an_instruction_pointer_leads_back_to_the_source() {
    thread_local! {
        static SEEN: Cell<u64> = const { Cell::new(0) };
    }
    let line = Cell::new(0);
    let mut world = world(&quiet(2));
    world.set_nmi_handler(|frame| SEEN.set(program::instruction_pointer(frame.source)));
    world.spawn(cpu(1), || {
        line.set(line!() + 1);
        program::advance(ms(1));
    });
    world.spawn(cpu(0), || {
        program::advance(us(100));
        SimMachine::send(cpu(1), Ipi::Probe).expect("sent");
    });
    run(&mut world);
    let source = world.source_of(SEEN.get()).expect("it was asked for");
    assert!(source.file().ends_with("machine_images.rs"));
    assert_eq!(source.line(), line.get());
    assert_eq!(world.source_of(SEEN.get() + 16), None);
    assert_eq!(world.source_of(0), None);
}
