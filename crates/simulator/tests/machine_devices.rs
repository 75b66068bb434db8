//! The devices around the local APICs: 8259s and interval timer through LINT0, the I/O APIC, the timers of the local APICs.

mod support;

use core::cell::{Cell, RefCell};

use smpcall_local_apic::{
    DestinationMode, IoApic, IoApicAccess, IoDelivery, LocalDelivery, LocalSource, LocalVector, Pic,
    Polarity, PortAccess, Redirection, Routing, TimerDivide, TimerMode, Trigger, Vector,
};
use smpcall_machine::{Deadline, Instant, InterruptsOff, Word, wait};
use smpcall_simulator::{
    Config, InterruptFrame, Program, SimIoApic, SimMachine, SimMemory, SimPorts, Stepper, World, local_apic,
    program,
};
use support::{Machine, cpu, ms, quiet, run, us};

thread_local! {
    /// The vectors that were taken, and when.
    static TAKEN: RefCell<Vec<(u8, u64)>> = const { RefCell::new(Vec::new()) };
}

fn note(frame: &InterruptFrame) {
    let vector = frame.vector.expect("no NMI");
    TAKEN.with_borrow_mut(|taken| taken.push((vector, SimMachine::now().as_nanos())));
}

/// Of an interrupt of the 8259s: ended there, and never at the APIC.
#[allow(clippy::needless_pass_by_value, reason = "a handler is given its frame")]
fn external(frame: InterruptFrame) {
    note(&frame);
    let pic = Pic::new(SimPorts);
    // SAFETY: this handler was entered for the line, once.
    let in_service = unsafe { pic.entered(frame.vector.expect("no NMI") - 0x20) };
    if let Some(in_service) = in_service {
        pic.end_of_interrupt(in_service);
    }
}

fn fixed(mut frame: InterruptFrame) {
    note(&frame);
    frame.end_of_interrupt();
}

fn vectors() -> Vec<u8> {
    TAKEN.take().into_iter().map(|(vector, _)| vector).collect()
}

/// Connects the 8259s to this CPU and opens these lines.
fn connect(lines: u16) {
    local_apic().connect_pic().expect("LINT0 is there");
    // Line 2 is the slave's.
    Pic::new(SimPorts).set_masks(!(lines | 1 << 2));
}

fn world<'p>() -> World<'p> {
    TAKEN.take();
    let mut world = World::new(&quiet(2)).expect("a machine");
    for vector in 0x20..0x30 {
        world.set_handler(vector, external);
    }
    world
}

#[test]
fn an_external_interrupt_ignores_the_priority_and_is_in_service_at_the_8259_only() {
    let mut world = world();
    world.set_handler(0x60, |mut frame| {
        note(&frame);
        program::raise_irq(0);
        SimMachine::restore_interrupts(true);
        program::advance(us(10));
        assert_eq!(vectors(), [0x60, 0x20], "although the APIC has 0x60 in service");
        assert_eq!(program::inspect(cpu(0)).in_service, [0x60]);
        frame.end_of_interrupt();
    });
    world.spawn(cpu(0), || {
        connect(1);
        program::request_interrupt(cpu(0), 0x60);
        program::advance(us(50));
        assert_eq!(Pic::new(SimPorts).in_service(), 0);
    });
    run(&mut world);
    assert_eq!(world.inspect(cpu(0)).counters.taken[0x20], 1);
}

#[test]
fn an_external_interrupt_waits_for_enabled_interrupts_and_wakes_a_halted_cpu() {
    let mut world = world();
    world.spawn(cpu(0), || {
        connect(1 << 12);
        let off = InterruptsOff::<SimMachine>::new();
        program::raise_irq(12);
        program::advance(us(10));
        assert!(TAKEN.with_borrow(Vec::is_empty));
        drop(off);
        program::advance(us(1));
        assert_eq!(vectors(), [0x2c]);
        program::halt();
        assert_eq!(vectors(), [0x2c]);
    });
    world.spawn(cpu(1), || {
        program::advance(us(100));
        program::raise_irq(12);
    });
    run(&mut world);
}

#[test]
fn a_request_that_is_withdrawn_before_it_is_taken_is_not_taken() {
    let mut world = world();
    world.spawn(cpu(0), || {
        connect(1 << 3);
        let off = InterruptsOff::<SimMachine>::new();
        program::set_irq(3, true);
        program::set_irq(3, false);
        drop(off);
        program::advance(us(10));
        assert_eq!(vectors(), [], "the 8259s asked, and ask no more");
    });
    run(&mut world);
}

#[test]
fn the_interval_timer_interrupts_the_boot_cpu_at_its_rate() {
    let mut world = world();
    world.spawn(cpu(0), || {
        connect(1);
        // 11,932 counts at 1.193182 MHz: 10 ms.
        for (port, value) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
            SimPorts.write(port, value);
        }
        program::advance(ms(55));
        // Another mode: it interrupts no more.
        SimPorts.write(0x43, 0x30);
        let taken = TAKEN.take();
        assert_eq!(taken.iter().map(|taken| taken.0).collect::<Vec<_>>(), [0x20; 5]);
        for pair in taken.windows(2) {
            assert!((9_999_000..10_002_000).contains(&(pair[1].1 - pair[0].1)), "{taken:?}");
        }
        program::advance(ms(50));
        assert_eq!(vectors(), []);
    });
    run(&mut world);
}

fn redirect(pin: u8, vector: u8, destination: u8, trigger: Trigger, delivery: IoDelivery) {
    let entry = Redirection {
        vector,
        delivery,
        destination_mode: DestinationMode::Physical,
        destination,
        polarity: Polarity::ActiveHigh,
        trigger,
        masked: false,
        send_pending: false,
        remote_irr: false,
    };
    IoApic::new(SimIoApic).set_entry(pin, entry).expect("there is such a pin");
}

#[test]
fn an_edge_at_the_io_apic_interrupts_the_cpu_that_its_entry_names() {
    for routing in [Routing::Flat, Routing::X2ApicPhysical] {
        TAKEN.take();
        let config = Config { tick: None, ..Config::new(2, routing, 1) };
        let mut world = World::new(&config).expect("a machine");
        world.set_handler(0x45, |frame| {
            assert_eq!(SimMachine::current_cpu(), cpu(1));
            fixed(frame);
        });
        world.spawn(cpu(0), || {
            assert_eq!(IoApic::new(SimIoApic).pins(), 24);
            program::raise_irq(5);
            redirect(5, 0x45, 1, Trigger::Edge, IoDelivery::Fixed);
            program::advance(us(10));
            assert_eq!(vectors(), [], "the edge came while the pin was masked");
            program::raise_irq(5);
            program::advance(us(10));
            assert_eq!(vectors(), [0x45]);
        });
        run(&mut world);
    }
}

#[test]
fn a_level_at_the_io_apic_interrupts_again_after_each_end_while_it_lasts() {
    thread_local! {
        static LEFT: Cell<u32> = const { Cell::new(3) };
    }
    TAKEN.take();
    let mut world = World::new(&quiet(2)).expect("a machine");
    world.set_handler(0x49, |frame| {
        LEFT.set(LEFT.get() - 1);
        if LEFT.get() == 0 {
            program::set_irq(9, false);
        }
        fixed(frame);
    });
    world.spawn(cpu(0), || {
        redirect(9, 0x49, 0, Trigger::Level, IoDelivery::Fixed);
        program::set_irq(9, true);
        program::advance(us(50));
        assert_eq!(vectors(), [0x49; 3]);
        assert_eq!(IoApic::new(SimIoApic).not_ended().count(), 0);
        IoApic::new(SimIoApic).mask_all();
        program::set_irq(9, true);
        program::advance(us(50));
        assert_eq!(vectors(), []);
    });
    run(&mut world);
}

#[test]
fn the_interval_timer_can_come_through_the_io_apic_as_external_interrupt_of_another_cpu() {
    let mut world = world();
    world.spawn(cpu(0), || {
        // Not through LINT0, which stays masked.
        Pic::new(SimPorts).set_masks(!1);
        redirect(2, 0x30, 1, Trigger::Edge, IoDelivery::ExtInt);
        program::raise_irq(0);
        program::advance(us(10));
        assert_eq!(vectors(), [0x20], "the vector is the 8259s'");
    });
    run(&mut world);
    assert_eq!(world.inspect(cpu(1)).counters.taken[0x20], 1);
}

#[test]
fn the_timer_of_the_local_apic_fires_once_periodically_and_at_a_deadline() {
    let mut world = world();
    world.set_handler(0x50, fixed);
    world.spawn(cpu(0), || {
        let vector = Vector::new(0x50).expect("legal");
        let apic = local_apic();
        // One count is a nanosecond.
        apic.start_timer(TimerMode::OneShot, TimerDivide::By1, 10_000, vector).expect("there is a timer");
        program::advance(us(100));
        assert_eq!(vectors(), [0x50]);
        apic.start_timer(TimerMode::Periodic, TimerDivide::By2, 10_000, vector).expect("there is a timer");
        program::advance(us(105));
        assert_eq!(vectors(), [0x50; 5]);
        apic.stop_timer();
        program::advance(us(100));
        assert_eq!(vectors(), []);
        apic.set_deadline_timer(vector).expect("there is a timer");
        let deadline = SimMachine::now().plus(us(30)).as_nanos();
        smpcall_local_apic::DeadlineRegister::write_tsc_deadline(apic.access(), deadline);
        program::advance(us(100));
        let taken = TAKEN.take();
        assert_eq!(taken.len(), 1);
        assert!((deadline..deadline + 1000).contains(&taken[0].1), "{taken:?}, due at {deadline}");
    });
    run(&mut world);
    assert!(world.time() < Instant::from_nanos(1_000_000));
}

#[test]
fn lint1_is_an_nmi_where_its_entry_says_so() {
    // The model's own tests have the rest of the pins; this one sees that a machine's APIC takes the entry.
    let mut world = World::new(&quiet(1)).expect("a machine");
    world.spawn(cpu(0), || {
        let apic = local_apic();
        let entry = LocalVector::without_vector(LocalDelivery::Nmi);
        apic.set_local_vector(LocalSource::Lint1, entry).expect("LINT1 is there");
        assert_eq!(apic.local_vector(LocalSource::Lint1).expect("it is there").delivery, LocalDelivery::Nmi);
    });
    run(&mut world);
}

#[test]
fn a_stepped_machine_has_the_devices_too_and_puts_them_back() {
    static DONE: Word<SimMemory> = Word::new(0);
    TAKEN.take();
    let programs: Vec<Program<'_>> = vec![Box::new(|| {
        connect(1);
        program::raise_irq(0);
        let _ = wait::<SimMachine>(&[DONE.equals(u64::MAX, 1)], Deadline::NEVER);
    })];
    let config = Config::new(1, Routing::X2ApicPhysical, 0);
    let mut stepper = Stepper::new(&config, programs).expect("a machine");
    stepper.set_handler(0x20, external);
    stepper.start();
    let first = stepper.state_hash();
    let mut ends = Vec::new();
    for _ in 0..2 {
        // SAFETY: nothing refers to the CPUs' stacks.
        unsafe { stepper.restart() };
        assert_eq!(stepper.state_hash(), first);
        while stepper.deliverable(cpu(0)).is_none() {
            stepper.step(cpu(0));
        }
        let before = stepper.state_hash();
        stepper.take_interrupt(cpu(0));
        ends.push((before, stepper.state_hash()));
        assert_eq!(stepper.deliverable(cpu(0)), None);
        assert_eq!(vectors(), [0x20]);
    }
    assert_eq!(ends[0], ends[1]);
}

#[test]
fn an_init_of_the_io_apic_resets_its_target_and_spares_the_boot_cpu() {
    let went_on = Cell::new(false);
    let mut world = World::new(&quiet(3)).expect("a machine");
    world.spawn(cpu(0), || {
        program::advance(us(10));
        redirect(5, 0x40, 1, Trigger::Edge, IoDelivery::Init);
        program::raise_irq(5);
        program::advance(us(10));
        assert!(program::inspect(cpu(1)).waits_for_start_up);
        redirect(5, 0x40, 0, Trigger::Edge, IoDelivery::Init);
        program::raise_irq(5);
    });
    world.spawn(cpu(1), || {
        program::advance(ms(1));
        went_on.set(true);
    });
    // Its own: what it was doing never goes on.
    world.spawn(cpu(2), || {
        program::advance(us(50));
        redirect(6, 0x40, 2, Trigger::Edge, IoDelivery::Init);
        program::raise_irq(6);
        went_on.set(true);
    });
    run(&mut world);
    assert_eq!([1, 2].map(|number| world.inspect(cpu(number)).counters.resets), [1, 1]);
    assert_eq!((world.boot_cpu_inits(), world.inspect(cpu(0)).counters.resets, went_on.get()), (1, 0, false));
}

#[test]
fn an_init_through_lint0_is_refused_and_told() {
    let mut world = world();
    world.spawn(cpu(0), || {
        let entry = LocalVector::without_vector(LocalDelivery::Init);
        local_apic().set_local_vector(LocalSource::Lint0, entry).expect("LINT0 is there");
        Pic::new(SimPorts).set_masks(!1);
        program::raise_irq(0);
        program::advance(us(10));
    });
    run(&mut world);
    assert_eq!((world.boot_cpu_inits(), world.inspect(cpu(0)).counters.resets), (1, 0));
    assert!(!world.inspect(cpu(0)).waits_for_start_up);
}

#[test]
#[should_panic(
    expected = "CPU 0 panicked: the I/O APIC's entry for pin 3, 0x640, has the delivery mode 0b110, which is reserved"
)]
fn a_start_up_message_of_the_io_apic_stops_the_run() {
    let mut world = world();
    world.spawn(cpu(0), || {
        SimIoApic.select(0x16);
        SimIoApic.write(0x640);
    });
    run(&mut world);
}
