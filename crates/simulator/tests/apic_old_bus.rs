//! Local APICs of the P6 family on their bus: they hold two interrupts of a class, and what finds no room is offered again
//! until it does (report 003 half remembers it). Nothing is lost, and the sender's delivery status says so meanwhile.

use core::cell::Cell;
use core::time::Duration;

use smpcall_local_apic::{
    DestinationMode, Interrupt, IoApic, IoDelivery, Polarity, Redirection, Routing, Trigger, Vector,
};
use smpcall_machine::{Cpu, Instant, Machine};
use smpcall_simulator::apic::Features;
use smpcall_simulator::{
    Config, ConfigError, InterruptFrame, Program, SimIoApic, SimMachine, Stepper, World, program,
    send_interrupt,
};

const CPU: [Cpu; 3] = [Cpu::new(0), Cpu::new(1), Cpu::new(2)];
/// Three of one class.
const VECTORS: [u8; 3] = [0x41, 0x45, 0x4e];

fn end(mut frame: InterruptFrame) {
    frame.end_of_interrupt();
}

fn send(target: Cpu, vector: u8) {
    let vector = Vector::new(vector).expect("legal");
    send_interrupt(target, Interrupt::Fixed(vector)).expect("an idle controller");
}

fn config(cpus: usize, features: Features) -> Config {
    let mut config = Config::new(cpus, Routing::Flat, 1);
    (config.tick, config.apic_features) = (None, features);
    config
}

fn world<'p>(config: &Config) -> World<'p> {
    let mut world = World::new(config).expect("a machine");
    for vector in VECTORS {
        world.set_handler(vector, end);
    }
    world
}

fn us(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

/// CPU 1 has its interrupts disabled for 50 us.
fn disable_interrupts_for_a_while() {
    let were_enabled = SimMachine::disable_interrupts();
    program::advance(us(50));
    SimMachine::restore_interrupts(were_enabled);
    program::advance(us(50));
}

/// How often CPU 1 took each of the three.
fn taken(world: &World<'_>) -> [u64; 3] {
    let counters = world.inspect(CPU[1]).counters;
    VECTORS.map(|vector| counters.taken[vector as usize])
}

/// CPU 0 sends all three to CPU 1, which has its interrupts disabled for a while. How often each was taken, how often one was
/// offered again, and how long CPU 0 was busy.
fn three_of_a_class(features: Features) -> ([u64; 3], u64, Duration) {
    let busy = Cell::new(Duration::ZERO);
    let mut world = world(&config(2, features));
    world.spawn(CPU[0], || {
        for vector in VECTORS {
            send(CPU[1], vector);
        }
        let sent = SimMachine::now();
        while program::inspect(CPU[0]).send_pending {
            program::advance(Duration::from_nanos(100));
        }
        busy.set(SimMachine::now().since(sent));
    });
    world.spawn(CPU[1], disable_interrupts_for_a_while);
    world.run(Instant::from_nanos(1_000_000));
    (taken(&world), world.inspect(CPU[1]).counters.ipis_retried, busy.get())
}

#[test]
fn the_third_of_a_class_is_offered_again_until_there_is_room_and_none_is_lost() {
    let (taken, retried, busy) = three_of_a_class(Features::P6);
    assert_eq!(taken, [1; 3]);
    // Once a microsecond, for about 50.
    assert!((40..=60).contains(&retried), "{retried}");
    assert!(busy > us(45) && busy < us(55), "{busy:?}");
}

#[test]
fn an_apic_of_today_has_room_for_all() {
    let (taken, retried, busy) = three_of_a_class(Features::CURRENT);
    assert_eq!((taken, retried), ([1; 3], 0));
    assert!(busy < us(1), "{busy:?}");
}

#[test]
fn what_waits_for_a_cpu_that_is_reset_has_an_end() {
    let mut world = world(&config(2, Features::P6));
    world.spawn(CPU[0], || {
        for vector in VECTORS {
            send(CPU[1], vector);
        }
        // Not through the controller, which is busy.
        redirect(5, 0x40, 1, IoDelivery::Init);
        program::advance(us(10));
        assert!(program::inspect(CPU[0]).send_pending);
        program::raise_irq(5);
        program::advance(us(10));
        assert!(!program::inspect(CPU[0]).send_pending);
    });
    world.spawn(CPU[1], disable_interrupts_for_a_while);
    world.run(Instant::from_nanos(1_000_000));
    let counters = world.inspect(CPU[1]).counters;
    assert_eq!((counters.resets, counters.ipis_rejected), (1, 1));
}

fn redirect(pin: u8, vector: u8, destination: u8, delivery: IoDelivery) {
    let entry = Redirection {
        vector,
        delivery,
        destination_mode: DestinationMode::Physical,
        destination,
        polarity: Polarity::ActiveHigh,
        trigger: Trigger::Edge,
        masked: false,
        send_pending: false,
        remote_irr: false,
    };
    IoApic::new(SimIoApic).set_entry(pin, entry).expect("there is such a pin");
}

/// Devices and what is wired to the CPU alone find no room either, and are not lost: on both machines.
fn from_elsewhere() {
    program::advance(us(5));
    for (pin, vector) in (4..).zip(VECTORS) {
        redirect(pin, vector, 1, IoDelivery::Fixed);
        program::raise_irq(pin);
    }
    program::request_interrupt(CPU[1], 0x4a);
}

#[test]
fn devices_and_local_sources_are_not_lost_either() {
    let mut world = world(&config(2, Features::P6));
    world.set_handler(0x4a, end);
    world.spawn(CPU[0], from_elsewhere);
    world.spawn(CPU[1], disable_interrupts_for_a_while);
    world.run(Instant::from_nanos(1_000_000));
    let counters = world.inspect(CPU[1]).counters;
    assert_eq!((taken(&world), counters.taken[0x4a]), ([1; 3], 1));
    assert!((35..=55).contains(&counters.devices_retried), "{}", counters.devices_retried);
}

fn stepper(programs: Vec<Program<'static>>) -> Stepper<'static> {
    let mut stepper = Stepper::new(&config(3, Features::P6), programs).expect("a machine");
    for vector in VECTORS.into_iter().chain([0x4a, 0x4b]) {
        stepper.set_handler(vector, end);
    }
    stepper.start();
    stepper
}

/// CPU 1 takes what it can and handles it to its end. Whether there was something.
fn take_one(stepper: &mut Stepper<'_>) -> bool {
    if stepper.deliverable(CPU[1]).is_none() {
        return false;
    }
    stepper.take_interrupt(CPU[1]);
    while stepper.is_enabled(CPU[1]) {
        stepper.step(CPU[1]);
    }
    true
}

#[test]
fn a_stepped_machine_loses_none_whenever_the_target_takes_the_first() {
    let mut refused = 0;
    // After how many steps of the sender the target takes what there is.
    for position in 0..40 {
        let mut stepper =
            stepper(vec![Box::new(|| VECTORS.into_iter().for_each(|vector| send(CPU[1], vector)))]);
        let mut steps = 0;
        while stepper.is_enabled(CPU[0]) {
            if steps == position {
                take_one(&mut stepper);
            }
            stepper.step(CPU[0]);
            steps += 1;
        }
        let pending = stepper.inspect(CPU[0]).send_pending;
        assert_eq!(pending, stepper.inspect(CPU[1]).requested == VECTORS[..2], "after {position}");
        refused += u64::from(pending);
        while take_one(&mut stepper) {}
        assert!(!stepper.inspect(CPU[0]).send_pending, "after {position}");
        let counters = stepper.inspect(CPU[1]).counters;
        assert_eq!(VECTORS.map(|vector| counters.taken[vector as usize]), [1; 3], "after {position}");
    }
    assert!((1..40).contains(&refused), "{refused} times");
}

#[test]
fn a_sender_that_waits_for_its_delivery_status_goes_on_when_the_message_was_accepted() {
    let mut stepper = stepper(vec![Box::new(|| {
        for vector in VECTORS {
            send(CPU[1], vector);
        }
        send(CPU[2], VECTORS[0]);
    })]);
    while stepper.is_enabled(CPU[0]) {
        stepper.step(CPU[0]);
    }
    assert!(!stepper.has_ended(CPU[0]), "it waits for its controller");
    let before = stepper.state_hash();
    assert!(take_one(&mut stepper));
    assert_ne!(stepper.state_hash(), before);
    while stepper.is_enabled(CPU[0]) {
        stepper.step(CPU[0]);
    }
    assert!(stepper.has_ended(CPU[0]));
    assert_eq!(stepper.inspect(CPU[2]).requested, [VECTORS[0]]);
    while take_one(&mut stepper) {}
    assert_eq!(stepper.inspect(CPU[1]).counters.ipis_accepted, 3);
}

#[test]
fn a_stepped_machine_loses_nothing_of_devices_and_local_sources() {
    let mut stepper = stepper(vec![Box::new(from_elsewhere)]);
    while stepper.is_enabled(CPU[0]) {
        stepper.step(CPU[0]);
    }
    assert_eq!(stepper.inspect(CPU[1]).requested, VECTORS[..2]);
    stepper.inject(CPU[1], 0x4b);
    while take_one(&mut stepper) {}
    let counters = stepper.inspect(CPU[1]).counters;
    assert_eq!(VECTORS.map(|vector| counters.taken[vector as usize]), [1; 3]);
    assert_eq!([0x4a, 0x4b].map(|vector: usize| counters.taken[vector]), [1, 1]);
}

#[test]
fn a_restart_forgets_what_waits_on_the_bus() {
    let mut stepper = stepper(vec![Box::new(|| VECTORS.into_iter().for_each(|vector| send(CPU[1], vector)))]);
    let first = stepper.state_hash();
    while stepper.is_enabled(CPU[0]) {
        stepper.step(CPU[0]);
    }
    // SAFETY: nothing refers to the CPUs' stacks.
    unsafe { stepper.restart() };
    assert_eq!(stepper.state_hash(), first);
    while take_one(&mut stepper) {}
    assert_eq!(stepper.inspect(CPU[1]).counters.ipis_accepted, 0);
}

#[test]
fn there_is_no_such_apic_in_x2apic_mode() {
    let mut config = Config::new(2, Routing::X2ApicCluster, 1);
    config.apic_features = Features::P6;
    let error = World::new(&config).err().expect("refused");
    assert_eq!(error, ConfigError::NoX2Apic(Routing::X2ApicCluster));
    assert_eq!(
        error.to_string(),
        "the local APICs of the P6 family have no x2APIC mode, which routing x2apic-cluster needs"
    );
}
