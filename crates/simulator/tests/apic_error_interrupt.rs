//! A register access that is an error interrupts the CPU that made it.

use core::time::Duration;
use std::cell::Cell;

use smpcall_local_apic::{Access, Register, Routing};
use smpcall_machine::{Cpu, Instant};
use smpcall_simulator::{Config, InterruptFrame, RunEnd, SimAccess, World, program};

const ERROR_VECTOR: u8 = 0xfe;

thread_local!(static ERRORS: Cell<u32> = const { Cell::new(0) });

fn handle_error(mut frame: InterruptFrame) {
    ERRORS.set(ERRORS.get() + 1);
    frame.end_of_interrupt();
}

#[test]
fn reading_a_register_that_does_not_exist_raises_the_error_interrupt_at_once() {
    let mut world = World::new(&Config::new(1, Routing::Flat, 0)).expect("a machine");
    world.set_handler(ERROR_VECTOR, handle_error);
    world.spawn(Cpu::new(0), || {
        SimAccess.write(Register::LVT_ERROR, ERROR_VECTOR.into());
        assert_eq!(SimAccess.read(Register::SELF_IPI), 0);
        program::advance(Duration::from_micros(1));
    });
    assert_eq!(world.run(Instant::from_nanos(1_000_000)), RunEnd::ProgramsEnded);
    assert_eq!(ERRORS.get(), 1);
}
