//! The first kernel up to its panic: the devices and how they are wired, and the module of report 004.
//!
//! Ours is what is pending besides the module's IPI: three devices interrupt while interrupts are disabled, and the crash
//! comes inside the handler of a fourth one, whose vector is in service then and stays so.

use core::time::Duration;
use std::cell::Cell;

use smpcall_local_apic::{
    Access, DeliveryMode, DestinationMode, Icr, IoApic, IoDelivery, Mode, Polarity, Redirection, Register,
    Topology, Trigger,
};
use smpcall_machine::{Deadline, Machine, Predicate, wait};
use smpcall_simulator::{InterruptFrame, SimIoApic, SimMachine, SimTopology, World, local_apic, program};

use super::{Cast, QUIET_START};

/// The vector of call-function IPIs on i386.
pub(super) const CALL_FUNCTION: u8 = smpcall_simulator::RING_VECTOR;

/// A device, and the vector that an i386 kernel of 2005 gave it: from 0x31 on, every eighth, in the order of pins.
#[derive(Clone, Copy)]
pub(super) struct Device {
    pub(super) line: u8,
    pub(super) pin: u8,
    pub(super) vector: u8,
    trigger: Trigger,
}

/// In service at the crash.
pub(super) const NETWORK: Device = Device { line: 16, pin: 16, vector: 0xa9, trigger: Trigger::Level };
/// Pending, and above the vector in service.
const USB: Device = Device { line: 18, pin: 18, vector: 0xb9, trigger: Trigger::Level };
/// Pending, and below it.
pub(super) const DISK: Device = Device { line: 14, pin: 14, vector: 0x99, trigger: Trigger::Edge };
/// Pending, and below it.
pub(super) const TIMER: Device = Device { line: 0, pin: 2, vector: 0x31, trigger: Trigger::Edge };

impl Device {
    /// Lets its interrupts come to the running CPU, with this vector.
    pub(super) fn wire(self, vector: u8) {
        let me = SimTopology::current().apic_id(SimMachine::current_cpu()).expect("every CPU has an APIC");
        let entry = Redirection {
            vector,
            delivery: IoDelivery::Fixed,
            destination_mode: DestinationMode::Physical,
            destination: u8::try_from(me.0).expect("the CPU that crashes is one that an I/O APIC can name"),
            polarity: Polarity::ActiveHigh,
            trigger: self.trigger,
            masked: false,
            send_pending: false,
            remote_irr: false,
        };
        IoApic::new(SimIoApic).set_entry(self.pin, entry).expect("an I/O APIC has these pins");
    }

    /// It interrupts. A level stays asserted: nobody serves the device.
    pub(super) fn interrupt(self) {
        program::raise_irq(self.line);
    }
}

/// What the handlers of a replay need to know.
#[derive(Clone, Copy)]
struct Scene {
    panic: fn() -> !,
}

thread_local! {
    // Of the machine that this thread simulates.
    static SCENE: Cell<Option<Scene>> = const { Cell::new(None) };
}

/// Gives the machine its first kernel, which comes to `panic` on the CPU that crashes.
pub(super) fn first_kernel(world: &mut World<'_>, cast: Cast, panic: fn() -> !) {
    SCENE.set(Some(Scene { panic }));
    world.set_handler(NETWORK.vector, network_interrupt);
    if cast.others_run {
        for cpu in cast.others() {
            world.spawn(cpu, move || {
                let _frame = program::frame("work");
                // One in three has interrupts disabled when it is stopped.
                let _ = cpu.number() % 3 == 2 && SimMachine::disable_interrupts();
                loop {
                    program::advance(Duration::from_micros(50));
                }
            });
        }
    }
    world.spawn(cast.crasher, move || {
        for device in [NETWORK, USB, DISK, TIMER] {
            device.wire(device.vector);
        }
        let _frame = program::frame("sys_init_module");
        program::advance(QUIET_START + Duration::from_nanos(program::random(1_000_000)));
        if cast.leaves_pending {
            NETWORK.interrupt();
            program::advance(Duration::from_millis(1));
            unreachable!("the crash comes in the handler, which does not return");
        }
        let _ = SimMachine::disable_interrupts();
        panic();
    });
}

/// The handler inside which the crash comes.
#[allow(clippy::needless_pass_by_value, reason = "a handler is given its frame")]
fn network_interrupt(_: InterruptFrame) {
    let _entry = program::frame("do_IRQ");
    for device in [USB, DISK, TIMER] {
        device.interrupt();
    }
    init_module();
    let scene = SCENE.get().expect("the machine was given its first kernel");
    (scene.panic)();
}

/// The module's: interrupts are disabled, and the running CPU sends itself the call-function vector, by a logical destination
/// where the routing has any.
fn init_module() {
    let _frame = program::frame("init_module");
    let (apic, me) = (local_apic(), SimMachine::current_cpu());
    let (routing, access) = (apic.routing(), apic.access());
    let id = SimTopology::current().apic_id(me).expect("every CPU has an APIC");
    let logical = match routing.model() {
        Some(model) => model.logical_id(me, id).map(u32::from),
        None => routing.addressing().is_logical().then(|| id.x2apic_logical()),
    };
    let icr = match logical.filter(|_| routing.addressing().is_logical()) {
        Some(logical) => Icr::logical(DeliveryMode::Fixed, CALL_FUNCTION, logical),
        None => Icr::physical(DeliveryMode::Fixed, CALL_FUNCTION, id.0),
    };
    let icr = icr.encode(routing.mode()).expect("the CPU has such a destination");
    match routing.mode() {
        Mode::XApic => {
            // apic_wait_icr_idle
            let idle = || access.read(Register::ICR_LOW) & Icr::SEND_PENDING == 0;
            wait::<SimMachine>(&Predicate(idle), Deadline::NEVER);
            access.write(Register::ICR_HIGH, (icr >> 32) as u32);
            access.write(Register::ICR_LOW, icr as u32);
        }
        Mode::X2Apic => access.write_icr(icr),
    }
}
