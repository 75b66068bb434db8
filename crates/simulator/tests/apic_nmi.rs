//! NMIs: one at a time and one more latched; and handlers that send, which do not tear the two-word xAPIC command that they
//! interrupt.

use core::time::Duration;

use smpcall_local_apic::{Interrupt, Routing, Vector};
use smpcall_machine::{Cpu, Instant, Machine};
use smpcall_simulator::{
    Config, InterruptFrame, Program, RunEnd, SimMachine, Stepper, World, program, send_interrupt,
};

const CPU: [Cpu; 3] = [Cpu::new(0), Cpu::new(1), Cpu::new(2)];
const FROM_TASK: u8 = 0x41;
const FROM_NMI: u8 = 0x42;

fn send(target: Cpu, vector: u8) {
    let vector = Vector::new(vector).expect("legal");
    send_interrupt(target, Interrupt::Fixed(vector)).expect("the controller is idle");
}

/// Sends to CPU 2 on the CPU that was interrupted.
#[allow(clippy::needless_pass_by_value, reason = "a handler is given its frame")]
fn handle_nmi(frame: InterruptFrame) {
    assert_eq!(frame.vector, None);
    assert!(SimMachine::in_nmi());
    send(CPU[2], FROM_NMI);
}

/// A machine of three CPUs, of which CPU 0 sends to CPU 1, with everybody's interrupts left pending.
fn stepper(routing: Routing) -> Stepper<'static> {
    let programs: Vec<Program<'static>> = vec![
        Box::new(|| send(CPU[1], FROM_TASK)),
        // CPU 1 interrupts CPU 0 when the test says so.
        Box::new(|| {
            send_interrupt(CPU[0], Interrupt::Nmi).expect("the controller is idle");
        }),
    ];
    let mut stepper = Stepper::new(&Config::new(3, routing, 0), programs).expect("a machine");
    stepper.set_nmi_handler(handle_nmi);
    stepper.start();
    stepper
}

/// Lets CPU 0 send with an NMI before its operation number `position`. `None` if the program has fewer.
fn interrupted_at(routing: Routing, position: usize) -> Option<[Vec<u8>; 3]> {
    let mut stepper = stepper(routing);
    while !stepper.has_ended(CPU[1]) {
        stepper.step(CPU[1]);
    }
    for _ in 0..position {
        stepper.step(CPU[0]);
        if stepper.has_ended(CPU[0]) {
            return None;
        }
    }
    stepper.take_nmi(CPU[0]);
    while !stepper.has_ended(CPU[0]) {
        stepper.step(CPU[0]);
    }
    assert_eq!(stepper.inspect(CPU[0]).counters.nmis_taken, 1);
    Some(CPU.map(|cpu| stepper.inspect(cpu).requested))
}

#[test]
fn a_send_from_an_nmi_handler_tears_no_command_whatever_it_interrupts() {
    for routing in Routing::ALL {
        let mut positions = 0;
        while let Some(pending) = interrupted_at(routing, positions) {
            let expected = [vec![], vec![FROM_TASK], vec![FROM_NMI]];
            assert_eq!(pending, expected, "{routing}, NMI before operation {positions}");
            positions += 1;
        }
        // One write on x2APIC; the check, the two words and the interrupt flag before and after on xAPIC.
        let operations = if routing.mode() == smpcall_local_apic::Mode::X2Apic { 1 } else { 5 };
        assert_eq!(positions, operations, "{routing}");
    }
}

/// How many NMIs a CPU takes whose handler lasts 10 us, if they come at these moments (in nanoseconds, ascending). It works,
/// or, `in_operation`, performs one operation that lasts a while.
fn taken_of(moments: &[u64], in_operation: bool) -> u64 {
    let mut config = Config::new(1 + moments.len(), Routing::X2ApicPhysical, 0);
    config.tick = None;
    // Every message takes its 500 ns, and an operation of CPU 0 on its APIC 20 us.
    (config.cost.jitter, config.cost.ipi_latency, config.cost.apic_read) = (0, 500, 20_000);
    let mut world = World::new(&config).expect("a machine");
    world.set_nmi_handler(|_| program::advance(Duration::from_micros(10)));
    world.spawn(CPU[0], || {
        program::advance(Duration::from_micros(10));
        if in_operation {
            let _ = smpcall_simulator::local_apic().version();
        }
        program::advance(Duration::from_micros(100));
    });
    for (sender, &moment) in moments.iter().enumerate() {
        world.spawn(Cpu::new(1 + sender as u32), move || {
            program::advance(Duration::from_nanos(moment));
            send_interrupt(CPU[0], Interrupt::Nmi).expect("there is no delivery status to wait for");
        });
    }
    assert_eq!(world.run(Instant::from_nanos(10_000_000)), RunEnd::ProgramsEnded);
    world.inspect(CPU[0]).counters.nmis_taken
}

/// SDM, "Handling Multiple NMIs".
#[test]
fn one_more_nmi_is_latched_while_one_is_handled_and_no_third() {
    assert_eq!(taken_of(&[50_000], false), 1);
    assert_eq!(taken_of(&[50_000, 50_010], false), 2, "the first is taken at once, in the middle of work");
    assert_eq!(
        taken_of(&[50_000, 52_000, 54_000, 56_000], false),
        2,
        "all but one of those that come meanwhile merge"
    );
    assert_eq!(
        taken_of(&[50_000, 52_000, 70_000], false),
        3,
        "the second is in its handler when the third comes"
    );
}

#[test]
fn nmis_that_come_within_one_operation_are_one_and_then_one_more_is_latched() {
    // The operation lasts from 10 to 30 us: an NMI is taken between two, never in one.
    assert_eq!(taken_of(&[12_000, 20_000], true), 1);
    assert_eq!(taken_of(&[12_000, 20_000, 32_000, 36_000], true), 2);
    assert_eq!(taken_of(&[12_000, 20_000], false), 2, "without it");
}
