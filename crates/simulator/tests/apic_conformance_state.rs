//! The conformance list, part 4: what KVM's self-tests `xapic_ipi_test` and `xapic_state_test` check, one test per line
//! of the list: IPIs that wake, and the ICR read back after any write.

mod conformance;

use core::sync::atomic::Ordering::{Acquire, Release};
use std::cell::Cell;

use conformance::{COUNTED, command, config, counted, cpu, machines, run, takers, us, world};
use proptest::prelude::*;
use smpcall_local_apic::{DeliveryMode, Icr, Mode, Register, Routing, Shorthand};
use smpcall_machine::{Deadline, Instant, Machine, Word, wait};
use smpcall_simulator::apic::{ApicModel, Effect, FaultCause};
use smpcall_simulator::{
    Activity, InterruptFrame, SimMachine, SimMemory, World, local_apic, program, send_interrupt,
};

const NOW: Instant = Instant::from_nanos(1000);

/// `xapic_ipi_test`: each of 2,000 IPIs to a CPU that halts in a loop is received, and ends its halt.
#[test]
fn every_ipi_is_received_and_wakes_a_halted_cpu() {
    const IPIS: u64 = 2000;
    thread_local!(static RECEIVED: Word<SimMemory> = const { Word::new(0) });
    fn receive(mut frame: InterruptFrame) {
        RECEIVED.with(|received| received.fetch_add(1, Release));
        frame.end_of_interrupt();
    }
    for routing in [Routing::Physical, Routing::X2ApicPhysical] {
        RECEIVED.with(|received| received.store(0, Release));
        let (halts, wakes) = (Cell::new(0), Cell::new(0));
        let mut world = World::new(&config(2, routing)).expect("a machine");
        world.set_handler(COUNTED, receive);
        world.spawn(cpu(1), || {
            // With interrupts disabled in between, no IPI is taken but in the halt.
            let _ = SimMachine::disable_interrupts();
            while wakes.get() < IPIS {
                halts.set(halts.get() + 1);
                program::halt();
                wakes.set(wakes.get() + 1);
                assert_eq!(RECEIVED.with(|received| received.load(Acquire)), wakes.get());
                let _ = SimMachine::disable_interrupts();
            }
        });
        world.spawn(cpu(0), || {
            for sent in 1..=IPIS {
                program::advance(us(1 + program::random(3)));
                send_interrupt(cpu(1), counted()).expect("idle");
                RECEIVED.with(|received| wait::<SimMachine>(&[received.equals(!0, sent)], Deadline::NEVER));
            }
        });
        run(&mut world);
        assert_eq!((halts.get(), wakes.get()), (IPIS, IPIS), "{routing}");
        assert_eq!(takers(&world).get(&1), Some(&IPIS));
        assert_eq!(world.counters().ipis_merged, 0);
    }
}

/// `xapic_ipi_test`, its other half: without an IPI the halt does not end.
#[test]
fn a_halted_cpu_sleeps_until_an_ipi_comes() {
    let mut world = world(&config(2, Routing::Physical));
    world.spawn(cpu(1), program::halt);
    world.spawn(cpu(0), || {
        program::advance(us(1000));
        assert_eq!(program::inspect(cpu(1)).activity, Activity::Halted);
        send_interrupt(cpu(1), counted()).expect("idle");
    });
    run(&mut world);
    assert!(world.inspect(cpu(1)).ended);
}

/// The bits of the ICR's low word that read back, in either mode: all but the delivery status and reserved ones.
const LOW: u64 = 0x000c_cfff;

fn xapic() -> ApicModel {
    ApicModel::new(3, Mode::XApic)
}

/// Writes the two words, and reads what both then are.
fn through_xapic(apic: &mut ApicModel, value: u64) -> u64 {
    let write = |apic: &mut ApicModel, register, word| {
        apic.write(register, word, NOW).expect("no fault in xAPIC mode")
    };
    let read =
        |apic: &mut ApicModel, register| u64::from(apic.read(register, NOW).expect("no fault in xAPIC mode"));
    write(apic, Register::ICR_HIGH, (value >> 32) as u32);
    write(apic, Register::ICR_LOW, value as u32);
    read(apic, Register::ICR_HIGH) << 32 | read(apic, Register::ICR_LOW)
}

/// `xapic_state_test`, `test_icr`: every vector with every delivery mode, destination mode, level, trigger mode and
/// shorthand, to an identifier that exists and one that does not.
#[test]
fn the_icr_reads_back_all_vectors_and_modes() {
    let (mut old, mut new) = (xapic(), ApicModel::new(3, Mode::X2Apic));
    for vector in 0..=0xffu64 {
        for modes in 0..0x100u64 {
            let (bits, shorthand) = (modes & 0x1f, modes >> 5 & 0b11);
            // Delivery and destination mode from bit 8, level and trigger from bit 14.
            let low = vector | (bits & 0xf) << 8 | (bits >> 4) << 14 | (modes >> 7) << 15 | shorthand << 18;
            for id in [3, 0xfe] {
                let value = id << 56 | low;
                assert_eq!(through_xapic(&mut old, value), value, "{value:#x}");
                let value = id << 32 | low;
                new.write_icr(value, NOW).expect("no reserved bits");
                assert_eq!(new.read_icr(NOW), value, "{value:#x}");
            }
        }
    }
}

/// `xapic_state_test`, absent identifiers: the command goes out, nobody receives it, and the controller is idle again.
#[test]
fn a_command_to_an_absent_identifier_is_sent_to_nobody() {
    for config in machines(4) {
        let (absent, idle) = (config.routing.mode().broadcast() - 1, Cell::new(false));
        let mut world = world(&config);
        world.spawn(cpu(0), || {
            command(Icr::physical(DeliveryMode::Fixed, COUNTED, absent));
            program::advance(us(10));
            // The driver would wait in vain.
            idle.set(local_apic().send_one(&Nobody, cpu(0), counted()).is_err());
            send_interrupt(cpu(1), counted()).expect("the controller is idle");
        });
        run(&mut world);
        assert_eq!(takers(&world), conformance::once([1]), "{}", config.routing);
        assert!(idle.get());
        assert_eq!(world.counters().ipis_sent, 1, "the one to CPU 1");
    }
}

/// The tables of a kernel that knows of no CPU.
struct Nobody;

impl smpcall_local_apic::Topology for Nobody {
    fn apic_id(&self, _: smpcall_machine::Cpu) -> Option<smpcall_local_apic::ApicId> {
        None
    }

    fn cpu(&self, _: smpcall_local_apic::ApicId) -> Option<smpcall_machine::Cpu> {
        None
    }

    fn shorthand_reach(&self) -> Option<&smpcall_machine::CpuMask> {
        None
    }
}

/// `xapic_state_test`, x2APIC: each reserved bit faults, alone and with others, and changes nothing.
#[test]
fn reserved_bits_of_an_x2apic_icr_fault_and_the_former_status_bit_does_not() {
    let mut apic = ApicModel::new(3, Mode::X2Apic);
    apic.write_icr(0x5_0000_40f1, NOW).expect("no reserved bits");
    for bit in 0..32 {
        let value = 0x7_0000_40f2 | 1 << bit;
        // 12 is the delivery status that an xAPIC has: neither stored nor a fault.
        let reserved = matches!(bit, 13 | 16 | 17 | 20..32);
        let mut apic = apic.clone();
        let result = apic.write_icr(value, NOW);
        assert_eq!(result.is_err(), reserved, "bit {bit}");
        if let Err(fault) = result {
            assert_eq!(fault.cause, FaultCause::ReservedBits(1 << bit));
            assert_eq!(apic.read_icr(NOW), 0x5_0000_40f1);
        } else {
            assert_eq!(apic.read_icr(NOW), value & !(1 << 12));
        }
    }
}

/// `xapic_state_test`, with the controller busy: software cannot set the status, and sees it.
#[test]
fn the_delivery_status_is_hardwares() {
    let mut apic = xapic();
    assert_eq!(through_xapic(&mut apic, 0x0300_0000_0000_50f1), 0x0300_0000_0000_40f1);
    apic.set_dispatch_time(us(1));
    assert_eq!(through_xapic(&mut apic, 0x0300_0000_0000_40f1), 0x0300_0000_0000_50f1);
}

proptest! {
    /// `xapic_state_test`, garbage: whatever is written, the defined bits read back, and only a legal command is sent.
    #[test]
    fn garbage_reads_back_in_its_defined_bits(value: u64) {
        let mut apic = xapic();
        prop_assert_eq!(through_xapic(&mut apic, value), value & (0xff << 56 | LOW));
        let mut apic = ApicModel::new(3, Mode::X2Apic);
        let reserved = value & Icr::reserved(Mode::X2Apic) & !u64::from(Icr::SEND_PENDING);
        match apic.write_icr(value, NOW) {
            Err(fault) => {
                prop_assert_eq!(fault.cause, FaultCause::ReservedBits(reserved));
                prop_assert_eq!(apic.read_icr(NOW), 0);
            }
            Ok(effect) => {
                prop_assert_eq!(reserved, 0);
                prop_assert_eq!(apic.read_icr(NOW), value & (0xffff_ffff << 32 | LOW));
                if let Effect::Dispatch(sent) = effect {
                    let by_all = matches!(sent.icr.shorthand, Shorthand::SelfOnly | Shorthand::All);
                    prop_assert!(!by_all || sent.icr.delivery_mode == DeliveryMode::Fixed);
                    prop_assert!(!sent.icr.delivery_mode.has_interrupt_vector() || sent.icr.vector >= 16);
                }
            }
        }
    }
}
