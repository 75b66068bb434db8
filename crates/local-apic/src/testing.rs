//! What the tests of this crate need: registers that remember, tables, and a machine of one CPU.

extern crate std;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::vec::Vec;

use smpcall_machine::{Cpu, CpuMask, CpuSet, Hardware, Instant, Ipi, Machine, SendError};

use crate::{Access, ApicId, LocalApic, Mode, Register, Routing, Topology};

/// The tables of a kernel.
pub(crate) struct Tables {
    pub(crate) ids: Vec<Option<ApicId>>,
    pub(crate) cpus: BTreeMap<u32, Cpu>,
    pub(crate) reach: Option<CpuSet<4>>,
}

impl Tables {
    /// CPUs 0, 1, ... with these identifiers.
    pub(crate) fn of(ids: &[u32]) -> Self {
        let cpus = ids.iter().zip(0..).map(|(&id, cpu)| (id, Cpu::new(cpu))).collect();
        Self { ids: ids.iter().map(|&id| Some(ApicId(id))).collect(), cpus, reach: None }
    }
}

impl Topology for Tables {
    fn apic_id(&self, cpu: Cpu) -> Option<ApicId> {
        self.ids.get(cpu.index()).copied().flatten()
    }

    fn cpu(&self, id: ApicId) -> Option<Cpu> {
        self.cpus.get(&id.0).copied()
    }

    fn shorthand_reach(&self) -> Option<&CpuMask> {
        self.reach.as_deref()
    }
}

/// Registers that hold what was written, and remember in which order.
pub(crate) struct Recorder {
    mode: Mode,
    pub(crate) values: RefCell<BTreeMap<Register, u32>>,
    pub(crate) writes: RefCell<Vec<(Register, u64)>>,
    pub(crate) reads: RefCell<Vec<Register>>,
}

impl Recorder {
    pub(crate) fn new(mode: Mode) -> Self {
        Self { mode, values: RefCell::default(), writes: RefCell::default(), reads: RefCell::default() }
    }

    pub(crate) fn set(&self, register: Register, value: u32) {
        self.values.borrow_mut().insert(register, value);
    }

    /// The writes since the last time.
    pub(crate) fn written(&self) -> Vec<(Register, u64)> {
        self.writes.take()
    }
}

impl Access for &Recorder {
    fn mode(&self) -> Mode {
        self.mode
    }

    fn read(&self, register: Register) -> u32 {
        self.reads.borrow_mut().push(register);
        self.values.borrow().get(&register).copied().unwrap_or(0)
    }

    fn write(&self, register: Register, value: u32) {
        self.writes.borrow_mut().push((register, value.into()));
        self.set(register, value);
    }

    fn write_icr(&self, value: u64) {
        self.writes.borrow_mut().push((Register::ICR_LOW, value));
    }
}

std::thread_local! {
    static NOW: Cell<u64> = const { Cell::new(0) };
    static ENABLED: Cell<bool> = const { Cell::new(false) };
}

/// The time, in nanoseconds: a pause takes one microsecond, and nothing else takes any.
pub(crate) fn now() -> u64 {
    NOW.get()
}

/// A machine of one CPU. Each thread, that is each test, has its own.
pub(crate) struct OneCpu;

// SAFETY: one thread plays the one CPU; the clock only advances; it takes no interrupts and no NMIs.
unsafe impl Machine for OneCpu {
    type Memory = Hardware;
    type CpuSet = CpuSet<4>;
    const HAS_NMI: bool = false;

    fn current_cpu() -> Cpu {
        Cpu::new(0)
    }

    fn disable_interrupts() -> bool {
        ENABLED.replace(false)
    }

    fn restore_interrupts(were_enabled: bool) {
        ENABLED.set(ENABLED.get() || were_enabled);
    }

    fn interrupts_enabled() -> bool {
        ENABLED.get()
    }

    fn in_nmi() -> bool {
        false
    }

    fn send(_: Cpu, _: Ipi) -> Result<(), SendError> {
        Err(SendError::Unsupported)
    }

    fn now() -> Instant {
        Instant::from_nanos(NOW.get())
    }

    fn pause() {
        NOW.set(NOW.get() + 1000);
    }
}

/// A driver on registers that remember.
pub(crate) fn driver(recorder: &Recorder) -> LocalApic<OneCpu, &Recorder> {
    let routing = match recorder.mode {
        Mode::XApic => Routing::Physical,
        Mode::X2Apic => Routing::X2ApicPhysical,
    };
    LocalApic::new(recorder, routing)
}
