//! The machine of these tests: one thread that plays the CPU of its choice, the APICs' models, and the bus between them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use smpcall_local_apic::{
    Access, ApicId, DeliveryMode, InertGates, Interrupt, LocalApic, Mode, Register, Routing, Sent, Topology,
    Vector,
};
use smpcall_machine::{Cpu, CpuMask, CpuSet, Hardware, Instant, Ipi, Machine, SendError};
use smpcall_simulator::apic::{Acceptance, ApicModel, Effect, IcrFault, Message};

pub(crate) const PAUSE_NANOS: u64 = 50;
pub(crate) const RING: Vector = Vector::new(0xfb).unwrap();
pub(crate) const FROM_NMI: Vector = Vector::new(0xe0).unwrap();
pub(crate) const SPURIOUS: Vector = Vector::new(0xff).unwrap();

/// The APICs, the bus between them, and all that the tests look at.
#[derive(Default)]
pub(crate) struct Bus {
    pub(crate) apics: Vec<ApicModel>,
    pub(crate) current: usize,
    pub(crate) now: u64,
    pub(crate) clock_reads: u32,
    pub(crate) register_reads: u32,
    pub(crate) writes: Vec<(Register, u64, bool)>,
    pub(crate) interrupts_enabled: bool,
    /// For each CPU the messages that were accepted, merged ones included.
    pub(crate) received: Vec<Vec<Message>>,
    /// A device that sends from an interrupt handler as soon as interrupts are enabled.
    pub(crate) busy_handler: bool,
    /// An NMI comes before the register access after so many more; its handler sends [`FROM_NMI`] to CPU 2.
    pub(crate) nmi_after: Option<u32>,
    pub(crate) in_nmi: bool,
    /// What the gates of the current CPU do, if it takes interrupts at all: one whenever it pauses.
    pub(crate) gates: Option<Rc<InertGates>>,
    /// Ends of level-triggered interrupts that went to the I/O APICs.
    pub(crate) broadcasts: Vec<u8>,
    /// Commands that were written although the controller was busy.
    pub(crate) written_while_busy: u32,
}

thread_local!(pub(crate) static BUS: RefCell<Bus> = RefCell::default());

pub(crate) fn bus<R>(look: impl FnOnce(&mut Bus) -> R) -> R {
    BUS.with_borrow_mut(look)
}

impl Bus {
    pub(crate) fn cause(&mut self, effect: Effect) {
        if let Effect::BroadcastEndOfInterrupt(vector) = effect {
            self.broadcasts.push(vector);
        }
        let Effect::Dispatch(command) = effect else { return };
        let addressed = |cpu: &usize| self.apics[*cpu].is_addressed_by(&command, *cpu == self.current);
        let mut targets: Vec<usize> = (0..self.apics.len()).filter(addressed).collect();
        if command.icr.delivery_mode == DeliveryMode::LowestPriority {
            let order = |cpu: &usize| self.apics[*cpu].arbitration_order(command.icr.vector);
            targets = targets.into_iter().min_by_key(order).into_iter().collect();
        }
        for cpu in targets {
            if !matches!(self.apics[cpu].accept(command.message()), Acceptance::Rejected(_)) {
                self.received[cpu].push(command.message());
            }
        }
    }

    pub(crate) fn model(&mut self) -> (&mut ApicModel, Instant) {
        (&mut self.apics[self.current], Instant::from_nanos(self.now))
    }

    /// Which CPUs received something, and how often.
    pub(crate) fn receivers(&self) -> BTreeMap<u32, usize> {
        let counts = self.received.iter().enumerate().map(|(cpu, messages)| (cpu as u32, messages.len()));
        counts.filter(|&(_, count)| count > 0).collect()
    }

    pub(crate) fn icr_writes(&self) -> usize {
        self.writes.iter().filter(|(register, ..)| *register == Register::ICR_LOW).count()
    }

    pub(crate) fn forget(&mut self) {
        self.writes.clear();
        self.received.iter_mut().for_each(Vec::clear);
        (self.clock_reads, self.register_reads) = (0, 0);
    }
}

pub(crate) struct OneThread;

// SAFETY: one thread plays all CPUs one after the other; the clock only advances.
unsafe impl Machine for OneThread {
    type Memory = Hardware;
    type CpuSet = CpuSet<64>;
    const HAS_NMI: bool = true;

    fn current_cpu() -> Cpu {
        Cpu::new(bus(|bus| bus.current as u32))
    }

    fn disable_interrupts() -> bool {
        bus(|bus| std::mem::replace(&mut bus.interrupts_enabled, false))
    }

    fn restore_interrupts(were_enabled: bool) {
        bus(|bus| bus.interrupts_enabled |= were_enabled);
    }

    fn interrupts_enabled() -> bool {
        bus(|bus| bus.interrupts_enabled)
    }

    fn in_nmi() -> bool {
        bus(|bus| bus.in_nmi)
    }

    fn send(_: Cpu, _: Ipi) -> Result<(), SendError> {
        Err(SendError::Unsupported)
    }

    fn now() -> Instant {
        bus(|bus| {
            bus.clock_reads += 1;
            Instant::from_nanos(bus.now)
        })
    }

    fn pause() {
        bus(|bus| {
            bus.now += PAUSE_NANOS;
            if bus.busy_handler && bus.interrupts_enabled {
                let (apic, now) = bus.model();
                let effect = apic.write(Register::ICR_LOW, 0x4_4030, now).unwrap();
                bus.cause(effect);
            }
        });
        take_an_interrupt();
    }
}

/// The current CPU takes an interrupt, if it takes interrupts and one is deliverable. Its gate is inert.
fn take_an_interrupt() {
    let taken = bus(|bus| {
        let gates = bus.gates.clone().filter(|_| bus.interrupts_enabled)?;
        let (apic, _) = bus.model();
        let vector = apic.take()?;
        bus.interrupts_enabled = false;
        Some((gates, vector, Registers(bus.apics[bus.current].mode())))
    });
    if let Some((gates, vector, registers)) = taken {
        let routing = if registers.0 == Mode::XApic { Routing::Physical } else { Routing::X2ApicPhysical };
        let driver: Driver = LocalApic::new(registers, routing);
        gates.taken(&driver, vector);
        bus(|bus| bus.interrupts_enabled = true);
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Registers(pub(crate) Mode);

impl Registers {
    fn before_access(self) {
        let due = bus(|bus| {
            let due = bus.nmi_after == Some(0);
            bus.nmi_after = bus.nmi_after.and_then(|left| left.checked_sub(1));
            bus.in_nmi |= due;
            due
        });
        if due {
            let driver: Driver = LocalApic::new(self, Routing::Physical);
            let ids = (0..3).map(ApicId).collect();
            let tables = Tables { ids, cpus: BTreeMap::new(), reach: None, questions: Cell::new(0) };
            driver.send_one(&tables, Cpu::new(2), Interrupt::Fixed(FROM_NMI)).unwrap();
            bus(|bus| bus.in_nmi = false);
        }
    }
}

impl Access for Registers {
    fn mode(&self) -> Mode {
        self.0
    }

    fn read(&self, register: Register) -> u32 {
        self.before_access();
        bus(|bus| {
            bus.register_reads += 1;
            let (apic, now) = bus.model();
            apic.read(register, now).unwrap()
        })
    }

    fn write(&self, register: Register, value: u32) {
        self.before_access();
        bus(|bus| {
            bus.writes.push((register, value.into(), bus.interrupts_enabled));
            let (apic, now) = bus.model();
            let busy = register == Register::ICR_LOW && now < apic.icr_idle_at();
            let effect = apic.write(register, value, now).unwrap();
            bus.written_while_busy += u32::from(busy);
            bus.cause(effect);
        });
    }

    fn read_icr(&self) -> u64 {
        bus(|bus| {
            let (apic, now) = bus.model();
            apic.read_icr(now)
        })
    }

    fn write_icr(&self, value: u64) {
        bus(|bus| {
            bus.writes.push((Register::ICR_LOW, value, bus.interrupts_enabled));
            let (apic, now) = bus.model();
            let effect = apic.write_icr(value, now).unwrap();
            bus.cause(effect);
        });
    }
}

/// The kernel's tables.
pub(crate) struct Tables {
    pub(crate) ids: Vec<ApicId>,
    pub(crate) cpus: BTreeMap<ApicId, Cpu>,
    pub(crate) reach: Option<CpuSet<64>>,
    /// How many times it was asked for a CPU.
    pub(crate) questions: Cell<u32>,
}

impl Topology for Tables {
    fn apic_id(&self, cpu: Cpu) -> Option<ApicId> {
        self.ids.get(cpu.index()).copied()
    }

    fn cpu(&self, id: ApicId) -> Option<Cpu> {
        self.questions.set(self.questions.get() + 1);
        self.cpus.get(&id).copied()
    }

    fn shorthand_reach(&self) -> Option<&CpuMask> {
        self.reach.as_deref()
    }
}

pub(crate) type Driver = LocalApic<OneThread, Registers>;

pub(crate) fn driver(routing: Routing) -> Driver {
    LocalApic::new(Registers(routing.mode()), routing)
}

/// A machine whose CPUs have these identifiers, all enabled, seen from CPU 0, without shorthands.
pub(crate) fn machine(routing: Routing, ids: impl IntoIterator<Item = u32>) -> (Driver, Tables) {
    let ids: Vec<ApicId> = ids.into_iter().map(ApicId).collect();
    routing.check(routing.mode(), ids.iter().copied()).unwrap();
    let apics = ids.iter().map(|id| ApicModel::new(id.0, routing.mode())).collect();
    BUS.set(Bus { apics, received: vec![Vec::new(); ids.len()], interrupts_enabled: true, ..Bus::default() });
    let driver = driver(routing);
    for (cpu, &id) in ids.iter().enumerate() {
        bus(|bus| bus.current = cpu);
        driver.enable(Cpu::new(cpu as u32), id, SPURIOUS).unwrap();
    }
    bus(|bus| {
        bus.current = 0;
        bus.forget();
    });
    let cpus = ids.iter().enumerate().map(|(cpu, &id)| (id, Cpu::new(cpu as u32))).collect();
    (driver, Tables { ids, cpus, reach: None, questions: Cell::new(0) })
}

pub(crate) fn set(cpus: impl IntoIterator<Item = u32>) -> CpuSet<64> {
    cpus.into_iter().map(Cpu::new).collect()
}

pub(crate) fn once_each(cpus: impl IntoIterator<Item = u32>) -> BTreeMap<u32, usize> {
    cpus.into_iter().map(|cpu| (cpu, 1)).collect()
}

pub(crate) fn sent(commands: u32) -> Sent {
    Sent { commands, rewritten: 0 }
}

pub(crate) fn fault_cpu_0(fault: IcrFault) {
    bus(|bus| bus.apics[0].set_icr_fault(Some(fault)));
}

pub(crate) const STUCK: IcrFault = IcrFault::StuckUntil(Instant::from_nanos(u64::MAX));

/// The shorthand field of a command.
pub(crate) fn shorthand(icr: u64) -> u64 {
    icr >> 18 & 0b11
}
