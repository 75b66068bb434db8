//! The devices of the incident's machine and how they are wired: the legacy timer through the 8259s, a disk and three
//! slower devices through the I/O APIC, all to CPU 0.
//!
//! The disk's interrupt is level-triggered and ended when its handler is done, which meanwhile enables interrupts, as the
//! old IDE drivers did while they probed (`local_irq_enable_in_hardirq`). Only under such a handler is a bit in service for
//! an end of interrupt too many to clear.

use core::time::Duration;
use std::cell::Cell;

use smpcall_local_apic::{
    DestinationMode, IoApic, IoDelivery, Pic, Polarity, PortAccess, Redirection, Trigger,
};
use smpcall_machine::{Instant, Machine};
use smpcall_simulator::{SimIoApic, SimMachine, SimPorts, program};

/// Interrupt 0 of those kernels; the 8259s are programmed to give it too.
pub(super) const TIMER_VECTOR: u8 = 0x30;
/// Devices whose interrupts are edges, of one priority class below the disk's: line, vector and name.
pub(super) const EDGES: [(u8, u8, &str); 3] =
    [(1, 0x31, "keyboard"), (4, 0x34, "serial"), (12, 0x3c, "mouse")];
/// The disk's. (Ours: they were handed out as devices came.)
pub(super) const DISK_VECTOR: u8 = 0x41;

const TIMER_LINE: u8 = 0;
const DISK_LINE: u8 = 19;
/// Where a PC connects line 0 at its I/O APIC.
const TIMER_PIN: u8 = 2;

/// Counts of the 1.19 MHz oscillator between two interrupts of a kernel with HZ=1000. (Ours.)
const TIMER_COUNT: u16 = 1193;

/// How long the handlers take. (Ours.)
const DISK_WORK: Duration = Duration::from_micros(40);
const DISK_WORK_VARIES: u64 = 80_000;
const EDGE_WORK: Duration = Duration::from_micros(3);
const TIMER_WORK: Duration = Duration::from_micros(2);

/// From the end of one interrupt to the next request, in nanoseconds, at the most. (Ours.)
const DISK_PAUSE: u64 = 300_000;
const EDGE_PAUSE: u64 = 200_000;

/// One device as it is seen by both sides.
#[derive(Default)]
struct Device {
    requests: Cell<u64>,
    handled: Cell<u64>,
}

impl Device {
    const fn new() -> Self {
        Self { requests: Cell::new(0), handled: Cell::new(0) }
    }

    fn is_waiting(&self) -> bool {
        self.requests.get() > self.handled.get()
    }
}

thread_local! {
    // Of the machine that this thread simulates.
    static DISK: Device = const { Device::new() };
    static SLOW: [Device; EDGES.len()] = const { [const { Device::new() }; EDGES.len()] };
}

/// As at power-up. Outside of the machine.
pub(super) fn reset() {
    all(|device| {
        device.requests.set(0);
        device.handled.set(0);
    });
}

/// Requests of the devices that no handler has seen.
pub(super) fn requests_not_handled() -> u64 {
    let mut missing = 0;
    all(|device| missing += device.requests.get() - device.handled.get());
    missing
}

fn all(mut see: impl FnMut(&Device)) {
    DISK.with(&mut see);
    SLOW.with(|slow| slow.iter().for_each(see));
}

/// What the boot code programs, on the CPU that takes the devices' interrupts. With `ext_int` the legacy timer's comes through
/// the 8259s, and [`DEVICES_TO`](super::DEVICES_TO) still has to give them LINT0; otherwise through the I/O APIC.
pub(super) fn wire(ext_int: bool) {
    let write = |port, value| SimPorts.write(port, value);
    // Both are initialised: edge-triggered, cascaded at line 2, vectors from 0x30 and 0x38 on.
    for (command, base, cascade) in [(0x20, TIMER_VECTOR, 0x04), (0xa0, TIMER_VECTOR + 8, 0x02)] {
        write(command, 0x11);
        for word in [base, cascade, 0x01] {
            write(command + 1, word);
        }
    }
    let pic = Pic::new(SimPorts);
    let io_apic = IoApic::new(SimIoApic);
    let set = |pin, vector, trigger| {
        let entry = Redirection {
            vector,
            delivery: IoDelivery::Fixed,
            destination_mode: DestinationMode::Physical,
            destination: 0,
            polarity: Polarity::ActiveHigh,
            trigger,
            masked: false,
            send_pending: false,
            remote_irr: false,
        };
        io_apic.set_entry(pin, entry).expect("an I/O APIC has these pins");
    };
    for (line, vector, _) in EDGES {
        set(line, vector, Trigger::Edge);
    }
    set(DISK_LINE, DISK_VECTOR, Trigger::Level);
    if ext_int {
        pic.set_masks(!(1 << TIMER_LINE));
    } else {
        pic.mask_all();
        set(TIMER_PIN, TIMER_VECTOR, Trigger::Edge);
    }
    // Counter 0: low byte, high byte, rate generator.
    write(0x43, 0x34);
    for byte in TIMER_COUNT.to_le_bytes() {
        write(0x40, byte);
    }
}

/// The devices, played by the program of a CPU: when each asks next.
pub(super) struct Devices {
    disk: Instant,
    slow: [Instant; EDGES.len()],
}

impl Devices {
    pub(super) fn new() -> Self {
        Self { disk: later(DISK_PAUSE), slow: EDGES.map(|_| later(EDGE_PAUSE)) }
    }

    /// Lets them ask for what they ask for until then. Each asks again only when it was served.
    pub(super) fn play_until(&mut self, end: Instant) {
        loop {
            let (slow, asks) = (0..EDGES.len())
                .map(|slow| (slow, self.slow[slow]))
                .min_by_key(|&(_, at)| at)
                .unwrap_or((0, end));
            let next = self.disk.min(asks);
            if next >= end {
                return;
            }
            program::advance(next.since(SimMachine::now()));
            if self.disk == next {
                DISK.with(|disk| ask(disk, || program::set_irq(DISK_LINE, true)));
                self.disk = later(DISK_PAUSE);
            } else {
                SLOW.with(|all| ask(&all[slow], || program::raise_irq(EDGES[slow].0)));
                self.slow[slow] = later(EDGE_PAUSE);
            }
        }
    }
}

fn ask(device: &Device, raise: impl FnOnce()) {
    if !device.is_waiting() {
        device.requests.set(device.requests.get() + 1);
        raise();
    }
}

fn later(pause: u64) -> Instant {
    // At least a little, so that playing them takes time.
    SimMachine::now().plus(Duration::from_nanos(1_000 + program::random(pause)))
}

/// What the disk's handler does between entry and end of interrupt: reading the status takes the request back, and the
/// rest is done with interrupts enabled.
pub(super) fn serve_disk() {
    DISK.with(|disk| {
        program::set_irq(DISK_LINE, false);
        SimMachine::restore_interrupts(true);
        program::advance(DISK_WORK + Duration::from_nanos(program::random(DISK_WORK_VARIES)));
        let _ = SimMachine::disable_interrupts();
        disk.handled.set(disk.handled.get() + 1);
    });
}

/// What the handler of a slower device does, with interrupts disabled.
pub(super) fn serve_slow(vector: u8) {
    let which =
        EDGES.iter().position(|&(_, of, _)| of == vector).expect("it is the handler of these vectors only");
    SLOW.with(|all| {
        program::advance(EDGE_WORK);
        all[which].handled.set(all[which].handled.get() + 1);
    });
}

/// What the legacy timer's handler does, with interrupts disabled.
pub(super) fn serve_timer() {
    program::advance(TIMER_WORK);
}
