//! The devices around the local APICs: a pair of 8259s, an I/O APIC, an interval timer, and the lines between them.
//!
//! As on a PC: line 0 (the interval timer) is at the I/O APIC's pin 2, lines 1 and 3..=15 at the pins of their numbers, and
//! pins 16..=23 at the I/O APIC only. The 8259s interrupt the boot CPU through its pin LINT0; nothing is wired to LINT1. An
//! interrupt of a device is offered at once: nothing loses it on its way.
//!
//! An INIT of the I/O APIC resets its target as one of a CPU does. One for the boot CPU, be it of the I/O APIC or through
//! LINT0, is [refused](crate::World::boot_cpu_inits) and told, as a CPU's is. A pin of the I/O APIC whose entry is opened with
//! a reserved delivery mode stops the run: hardware promises nothing.

mod io_apic;
mod pic;
mod pit;

use smpcall_local_apic::{DeliveryMode, Icr, IoApicAccess, Mode, PortAccess};

use crate::apic::{Acceptance, Command, LocalSource, Message};
use crate::config::BOOT_CPU;
use crate::explorer::footprint::Footprint;
use crate::operation::give_up_if_abandoned;
use crate::state::{Driver, State, expect_current};

use io_apic::IoApicChip;
pub(crate) use io_apic::{Delivery, Request};
use pic::PicPair;
use pit::Pit;

/// How many lines there are.
pub(crate) const LINES: u8 = io_apic::PINS as u8;

/// All devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Devices {
    pic: PicPair,
    io_apic: IoApicChip,
    pit: Pit,
    /// The level of LINT0.
    lint0: bool,
    /// Somebody has used one of them since the start.
    pub(crate) used: bool,
}

/// The I/O ports of the simulated machine: those of the 8259s (0x20, 0x21, 0xa0, 0xa1) and of the interval timer's counter 0
/// (0x40, 0x43). Nobody answers at others. An access is no operation: it happens with the one before.
///
/// For [`Pic`](smpcall_local_apic::Pic).
#[derive(Clone, Copy, Debug)]
pub struct SimPorts;

impl PortAccess for SimPorts {
    fn read(&self, port: u16) -> u8 {
        expect_current().with(|machine| machine.devices().pic.read(port))
    }

    fn write(&self, port: u16, value: u8) {
        let state = expect_current();
        state.with(|machine| {
            let devices = machine.devices();
            devices.pic.write(port, value);
            let restarts = devices.pit.write(port, value);
            machine.drive_lint0();
            if restarts {
                let time = machine.cpu().time;
                machine.schedule_pit(time);
            }
        });
        give_up_if_abandoned(state);
    }
}

/// The registers of the simulated machine's I/O APIC, which has 24 pins. An access is no operation: it happens with the one
/// before.
///
/// For [`IoApic`](smpcall_local_apic::IoApic).
#[derive(Clone, Copy, Debug)]
pub struct SimIoApic;

impl IoApicAccess for SimIoApic {
    fn select(&self, register: u8) {
        expect_current().with(|machine| machine.devices().io_apic.select(register));
    }

    fn read(&self) -> u32 {
        expect_current().with(|machine| machine.devices().io_apic.read())
    }

    /// # Panics
    /// If this opens an entry whose delivery mode is reserved.
    fn write(&self, value: u32) {
        let state = expect_current();
        let reserved = state.with(|machine| {
            let time = machine.cpu().time;
            match machine.devices().io_apic.write(value) {
                Ok(request) => {
                    machine.send_of_device(request, time);
                    None
                }
                Err(reserved) => Some(reserved),
            }
        });
        if let Some(reserved) = reserved {
            panic!("{reserved}");
        }
        give_up_if_abandoned(state);
    }
}

impl State {
    /// The devices, of which somebody uses one.
    fn devices(&mut self) -> &mut Devices {
        self.devices.used = true;
        if self.driver == Driver::Stepped {
            // Rare enough to be told apart from nothing.
            self.explored.footprint = Footprint::EVERYTHING;
        }
        &mut self.devices
    }

    /// A device asserts its line, or does not any more.
    pub(crate) fn set_line(&mut self, line: u8, asserted: bool, time: u64) {
        let devices = self.devices();
        devices.pic.set_line(line, asserted);
        let pin = match line {
            0 => Some(2),
            2 => None,
            line => Some(usize::from(line)),
        };
        let request = pin.and_then(|pin| devices.io_apic.set_pin(pin, asserted));
        self.drive_lint0_at(time);
        self.send_of_device(request, time);
    }

    fn drive_lint0(&mut self) {
        let time = self.cpu().time;
        self.drive_lint0_at(time);
    }

    /// The output of the 8259s reaches the boot CPU.
    fn drive_lint0_at(&mut self, time: u64) {
        let asserted = self.devices.pic.interrupts();
        if core::mem::replace(&mut self.devices.lint0, asserted) == asserted {
            return;
        }
        if asserted && self.cpus[BOOT_CPU].apic.is_init_pin(LocalSource::Lint0) {
            return self.refuse_init(None, 0, time);
        }
        let processor = &mut self.cpus[BOOT_CPU];
        if asserted {
            processor.apic.raise_local(LocalSource::Lint0);
        } else {
            processor.apic.lower_local(LocalSource::Lint0);
        }
        processor.hashed = None;
        self.notice_interrupt(BOOT_CPU, time);
    }

    /// The running CPU takes an interrupt of the 8259s: the vector that they give it.
    pub(crate) fn acknowledge_pic(&mut self) -> u8 {
        let vector = self.devices().pic.acknowledge();
        self.drive_lint0();
        vector
    }

    /// What the I/O APIC sends for a pin arrives.
    pub(crate) fn send_of_device(&mut self, request: Option<Request>, time: u64) {
        let Some(request) = request else { return };
        let Request { vector, delivery, logical, destination, trigger, .. } = request;
        // `ExtINT` is no mode that a local APIC can send; whom it is for is decoded in the same way.
        let mode = match delivery {
            Delivery::ExtInt => DeliveryMode::Fixed,
            Delivery::Message(mode) => mode,
        };
        let icr = if logical {
            Icr::logical(mode, vector, destination.into())
        } else {
            Icr::physical(mode, vector, destination.into())
        };
        let mut targets = Vec::new();
        // Its destinations have eight bits, whatever the local APICs' mode.
        self.targets(usize::MAX, &Command { icr, mode: Mode::XApic }, &mut targets);
        let mut accepted = false;
        for to in targets {
            accepted |= match delivery {
                Delivery::ExtInt => {
                    let acceptance = self.cpus[to].apic.accept_ext_int();
                    self.cpus[to].hashed = None;
                    self.notice_interrupt(to, time);
                    matches!(acceptance, Acceptance::Accepted | Acceptance::Merged)
                }
                Delivery::Message(delivery_mode) => {
                    self.arrive_from_io_apic(request, to, Message { vector, delivery_mode, trigger }, time)
                }
            };
        }
        if !accepted {
            self.request_was_refused(request);
        }
    }

    /// Nobody has accepted what the I/O APIC has sent for a pin.
    pub(crate) fn request_was_refused(&mut self, request: Request) {
        self.devices.io_apic.was_refused(request.pin);
    }

    /// A local APIC broadcasts the end of a level-triggered interrupt.
    pub(crate) fn end_of_level(&mut self, vector: u8) {
        let time = self.cpu().time;
        for request in self.devices().io_apic.end(vector) {
            self.send_of_device(Some(request), time);
        }
    }

    /// The interval timer begins a period. It makes an edge, and no time on a stepped machine.
    pub(crate) fn schedule_pit(&mut self, time: u64) {
        if self.driver == Driver::Stepped {
            return;
        }
        let slot = self.interconnect.pit_slot();
        match self.devices.pit.period() {
            Some(period) => self.queue.set(slot, time.saturating_add(period)),
            None => self.queue.cancel(slot),
        }
    }

    /// The interval timer's period is over.
    pub(crate) fn fire_pit(&mut self, time: u64) {
        self.set_line(0, false, time);
        self.set_line(0, true, time);
        self.schedule_pit(time);
    }
}
