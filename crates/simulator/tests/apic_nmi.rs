//! NMI handlers that send: the two-word xAPIC command that they interrupt is not torn.

use smpcall_local_apic::{Interrupt, Routing, Vector};
use smpcall_machine::{Cpu, Machine};
use smpcall_simulator::{Config, InterruptFrame, Program, SimMachine, Stepper, send_interrupt};

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
