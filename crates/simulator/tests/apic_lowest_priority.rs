//! Lowest-priority messages on the bus: one of those addressed gets it.

use core::time::Duration;

use smpcall_local_apic::{Access, ApicId, DeliveryMode, Icr, Register, Routing};
use smpcall_machine::{Cpu, Instant};
use smpcall_simulator::{Config, RunEnd, SimAccess, World, program};

const VECTOR: u8 = 0x51;

/// Writes any command, as no driver would.
fn command(icr: Icr) {
    let mode = SimAccess.mode();
    let bits = icr.encode(mode).expect("the destination fits");
    match mode {
        smpcall_local_apic::Mode::XApic => {
            SimAccess.write(Register::ICR_HIGH, (bits >> 32) as u32);
            SimAccess.write(Register::ICR_LOW, bits as u32);
        }
        smpcall_local_apic::Mode::X2Apic => SimAccess.write_icr(bits),
    }
}

/// CPU 0 of four sends a lowest-priority message to CPUs 1, 2 and 3, which have these task priorities. Who gets it?
fn receivers(config: &Config, priorities: [u32; 3]) -> Vec<u32> {
    let mut world = World::new(config).expect("a machine");
    for (index, priority) in priorities.into_iter().enumerate() {
        world.spawn(Cpu::new(index as u32 + 1), move || {
            // Not taken, to be found pending.
            let _ = <smpcall_simulator::SimMachine as smpcall_machine::Machine>::disable_interrupts();
            SimAccess.write(Register::TASK_PRIORITY, priority);
            program::advance(Duration::from_micros(100));
        });
    }
    world.spawn(Cpu::new(0), || {
        program::advance(Duration::from_micros(50));
        command(Icr::logical(DeliveryMode::LowestPriority, VECTOR, 0b1110));
        program::advance(Duration::from_micros(20));
        program::stop();
    });
    assert_eq!(world.run(Instant::from_nanos(1_000_000)), RunEnd::Stopped);
    let pending = |cpu: &u32| world.inspect(Cpu::new(*cpu)).requested == [VECTOR];
    (0..4).filter(pending).collect()
}

#[test]
fn it_goes_to_the_one_with_the_lowest_processor_priority() {
    let config = Config::new(4, Routing::Flat, 0);
    assert_eq!(receivers(&config, [0x30, 0x20, 0x40]), [2]);
    assert_eq!(receivers(&config, [0x30, 0x20, 0x10]), [3]);
}

#[test]
fn among_equals_it_goes_to_the_lowest_identifier() {
    let mut config = Config::new(4, Routing::Flat, 0);
    assert_eq!(receivers(&config, [0x20; 3]), [1]);
    config.apic_ids = Some([0, 7, 5, 6].map(ApicId).to_vec());
    assert_eq!(receivers(&config, [0x20; 3]), [2]);
}

#[test]
fn on_x2apic_it_is_reserved_and_goes_to_nobody() {
    let config = Config::new(4, Routing::X2ApicCluster, 0);
    assert_eq!(receivers(&config, [0; 3]), [0u32; 0]);
}
