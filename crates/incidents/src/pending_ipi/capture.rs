//! The hand-over and the capture kernel, with `local-apic` and `smpcall` as they ship (law L8).
//!
//! The crashed kernel records what its local APIC holds, for the dump, and masks every source. The capture kernel begins on its
//! own stack with inert gates at every vector, and drains; only then it installs handlers, enables interrupts, starts the
//! other CPUs - except the boot CPU, if another one has crashed -, calls them, and writes the dump to a disk that interrupts.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use core::time::Duration;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

use smpcall::vmcore::PendingInterrupts;
use smpcall::{Crash, CrashNotes, CrashStop};
use smpcall_local_apic::{Drained, InertGates, IoApic, Pic, StartUp, StartUpDelays, Topology, Vector};
use smpcall_machine::{Cpu, Deadline, EventKind, Instant, InterruptsOff, Machine, Woken, Word, wait};
use smpcall_simulator::kernel::{Calls, Hooks, come_online};
use smpcall_simulator::{
    CpuReport, Image, ImageId, InterruptFrame, SPURIOUS_VECTOR, SimIoApic, SimMachine, SimMemory, SimPorts,
    SimTopology, World, local_apic, program, stopping,
};

use super::scene::DISK;
use super::{Cast, PRINTING, START_UP_PAGE, dump};

/// How long the gates are open at the most: a thousand times what taking the interrupts that can be pending lasts. (Ours.)
pub(super) const WINDOW: Duration = Duration::from_millis(100);
/// From the first interrupt-enable with real handlers to the start of other CPUs. (Ours.)
const BOOTING: Duration = Duration::from_millis(1);
/// How long a caller is ready to wait. (Ours.)
pub(super) const LIMIT: Duration = Duration::from_secs(1);
/// What the disk takes at a time, in bytes; how long for it, and how long the kernel waits. (Ours.)
const BLOCK: usize = 4096;
const DISK_TIME: Duration = Duration::from_micros(100);
const DISK_LIMIT: Duration = Duration::from_secs(1);
/// The boot CPU, which is never sent INIT.
const BOOT_CPU: Cpu = Cpu::new(0);
/// The disk's vector in the capture kernel: below what was in service at the crash.
pub(super) const DISK_VECTOR: u8 = 0x41;

const SPURIOUS: Vector = Vector::new(SPURIOUS_VECTOR).expect("an ordinary vector");

/// The capture kernel's variables, and what the replay keeps of the run.
pub(super) struct Capture {
    cast: Cast,
    /// Whether it starts other CPUs.
    smp: bool,
    pub(super) image: ImageId,
    /// Where the crashed kernel has left its notes.
    notes: Cell<Option<&'static [CrashNotes<SimMachine>]>>,
    pub(super) gates: InertGates,
    /// The crashed CPU as it left the first kernel, after the gates were closed, and as nobody but the machine knows it.
    pub(super) at_crash: RefCell<Option<CpuReport>>,
    pub(super) after_drain: RefCell<Option<CpuReport>>,
    pub(super) drained: Cell<Option<Drained>>,
    pub(super) drain_took: Cell<Duration>,
    /// Real handlers stand from this time on, and other CPUs are started from that time on.
    pub(super) handlers_at: Cell<Option<Instant>>,
    pub(super) smp_init_at: Cell<Option<Instant>>,
    alive: Box<[Word<SimMemory>]>,
    pub(super) started: RefCell<Vec<Cpu>>,
    pub(super) silent: Cell<usize>,
    /// How often each CPU ran the call to all others.
    runs: Box<[Word<SimMemory>]>,
    /// How long that call took, and how many of the calls to one CPU each were answered.
    pub(super) returned_after: Cell<Option<Duration>>,
    pub(super) answered: Cell<usize>,
    pub(super) blocks: Word<SimMemory>,
    pub(super) disk: RefCell<Vec<u8>>,
    pub(super) finished: Cell<bool>,
}

thread_local! {
    // Of the machine that this thread simulates.
    static CAPTURE: RefCell<Option<Rc<Capture>>> = const { RefCell::new(None) };
}

fn capture() -> Rc<Capture> {
    CAPTURE.with_borrow(Option::clone).expect("it is set before the machine runs")
}

/// What the first kernel does besides calls: it hands over when it has crashed.
pub(super) fn hooks() -> Hooks {
    Hooks { crashed: Some(hand_over), ..Hooks::default() }
}

impl Capture {
    /// Loads it into the machine.
    pub(super) fn load(world: &mut World<'_>, cast: Cast, smp: bool) -> Rc<Self> {
        let words = || cast.all().map(|_| Word::new(0)).collect();
        let image = Image::new(begin)
            .handler_of_all(gate)
            .nmi_handler(drop)
            .kernel(Hooks::default())
            .on_start_up(start_secondary);
        let loaded = Rc::new(Self {
            cast,
            smp,
            image: world.add_image(image),
            notes: Cell::new(None),
            gates: InertGates::new(),
            at_crash: RefCell::new(None),
            after_drain: RefCell::new(None),
            drained: Cell::new(None),
            drain_took: Cell::new(Duration::ZERO),
            handlers_at: Cell::new(None),
            smp_init_at: Cell::new(None),
            alive: words(),
            started: RefCell::new(Vec::new()),
            silent: Cell::new(0),
            runs: words(),
            returned_after: Cell::new(None),
            answered: Cell::new(0),
            blocks: Word::new(0),
            disk: RefCell::new(Vec::new()),
            finished: Cell::new(false),
        });
        CAPTURE.set(Some(loaded.clone()));
        loaded
    }

    /// How often a CPU ran the call to all others.
    pub(super) fn runs_on(&self, cpu: Cpu) -> u64 {
        // Acquire: pairs with what the CPU did when it ran it.
        self.runs[cpu.index()].load(Acquire)
    }
}

/// No machine runs any more that has it.
pub(super) fn unload() {
    CAPTURE.set(None);
}

// The first kernel's end.

/// What panics in the first kernel come to.
pub(super) fn panic() -> ! {
    let _frame = program::frame("panic");
    program::advance(PRINTING);
    stopping::crash()
}

/// The winner of the crash goes into the capture kernel.
#[allow(clippy::needless_pass_by_value, reason = "a hook is given its crash")]
fn hand_over(crash: Crash<SimMachine>) {
    let (apic, me) = (local_apic(), SimMachine::current_cpu());
    let record = apic.record();
    crash.note_pending(PendingInterrupts {
        cpu: me.number(),
        requested: record.requests.words(),
        in_service: record.in_service.words(),
        level_triggered: record.level_triggered.words(),
        errors: record.errors.bits(),
    });
    apic.mask_all_local_vectors();
    IoApic::new(SimIoApic).mask_all();
    Pic::new(SimPorts).mask_all();
    let image = {
        let capture = capture();
        capture.notes.set(Some(SimMachine::crash_notes()));
        capture.at_crash.replace(Some(program::inspect(me)));
        capture.image
    };
    program::boot_kernel(image);
}

// The capture kernel.

/// An inert gate.
#[allow(clippy::needless_pass_by_value, reason = "a handler is given its frame")]
fn gate(frame: InterruptFrame) {
    if let Some(vector) = frame.vector {
        capture().gates.taken(&local_apic(), vector);
    }
}

fn begin() {
    let _frame = program::frame("capture");
    let capture = capture();
    drain(&capture);
    install(&capture);
    program::advance(BOOTING);
    capture.smp_init_at.set(Some(SimMachine::now()));
    if capture.smp {
        start_others(&capture);
    }
    call_others(&capture);
    if write_dump(&capture) {
        program::record(EventKind::DumpStarted, None, 0, capture.disk.borrow().len() as u64);
        capture.finished.set(true);
    }
    program::stop();
}

fn drain(capture: &Capture) {
    let _frame = program::frame("drain");
    let began = SimMachine::now();
    let mut interrupts_off = InterruptsOff::<SimMachine>::new();
    // SAFETY: 1. This image has inert gates at all vectors, and nothing else yet. 2. The kernel whose handlers were entered
    // has ended: its stack is never returned to.
    let drained = unsafe { local_apic().drain(&capture.gates, &mut interrupts_off, SPURIOUS, WINDOW) };
    capture.drained.set(Some(drained));
    capture.drain_took.set(SimMachine::now().since(began));
    capture.after_drain.replace(Some(program::inspect(SimMachine::current_cpu())));
}

/// Real handlers, and interrupts.
fn install(capture: &Capture) {
    program::serve();
    program::set_handler(DISK_VECTOR, disk_interrupt);
    program::enable_local_apic().expect("the routing fits the machine");
    come_online();
    DISK.wire(DISK_VECTOR);
    capture.handlers_at.set(Some(SimMachine::now()));
    SimMachine::restore_interrupts(true);
}

/// INIT and start-up messages for all CPUs but this one and the boot CPU.
fn start_others(capture: &Capture) {
    let _frame = program::frame("start_others");
    for cpu in capture.cast.others().filter(|&cpu| cpu != BOOT_CPU) {
        let id = SimTopology::current().apic_id(cpu).expect("every CPU has an APIC");
        let alive = [capture.alive[cpu.index()].equals(u64::MAX, 1)];
        match local_apic().start_cpu(id, START_UP_PAGE, StartUpDelays::SPECIFIED, &alive) {
            Ok(StartUp::Alive { .. }) => capture.started.borrow_mut().push(cpu),
            Ok(StartUp::NoSignOfLife { .. }) | Err(_) => capture.silent.set(capture.silent.get() + 1),
        }
    }
}

fn start_secondary(cpu: Cpu, _page: u8) {
    program::enable_local_apic().expect("the routing fits the machine");
    come_online();
    // Release: whoever sees it can call.
    capture().alive[cpu.index()].store(1, Release);
    SimMachine::restore_interrupts(true);
}

/// Calls all others at once, and then each of them.
fn call_others(capture: &Capture) {
    let _frame = program::frame("call_others");
    let began = SimMachine::now();
    let runs = &capture.runs;
    let run = |cpu: Cpu| {
        // AcqRel: it is counted where others look.
        runs[cpu.index()].fetch_add(1, AcqRel);
    };
    if Calls::within(LIMIT).call_others(run).is_ok() {
        capture.returned_after.set(Some(SimMachine::now().since(began)));
    }
    let started = capture.started.borrow().clone();
    let answers = |&&cpu: &&Cpu| Calls::within(LIMIT).call(cpu, SimMachine::current_cpu) == Ok(cpu);
    capture.answered.set(started.iter().filter(answers).count());
}

/// The dump goes to the disk block by block, each of which ends with an interrupt. Returns whether all did.
fn write_dump(capture: &Capture) -> bool {
    let _frame = program::frame("write_dump");
    let notes = capture.notes.get().unwrap_or(&[]);
    // SAFETY: the crash stop has ended, and whoever could still write notes was stopped or was never started.
    let notes: Vec<u8> = notes.iter().flat_map(|notes| unsafe { notes.copy() }).collect();
    let file = dump::build(&notes);
    for (done, block) in (1..).zip(file.chunks(BLOCK)) {
        capture.disk.borrow_mut().extend(block);
        // The disk's part.
        program::advance(DISK_TIME);
        DISK.interrupt();
        let written = [capture.blocks.equals(u64::MAX, done)];
        if wait::<SimMachine>(&written, Deadline::within::<SimMachine>(DISK_LIMIT)) == Woken::Deadline {
            return false;
        }
    }
    true
}

fn disk_interrupt(mut frame: InterruptFrame) {
    let _entry = program::frame("disk_interrupt");
    // AcqRel: for whoever waits.
    capture().blocks.fetch_add(1, AcqRel);
    frame.end_of_interrupt();
}
