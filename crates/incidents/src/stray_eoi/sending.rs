//! An IPI for one CPU: the mask path of those kernels, re-created for every routing, and what it costs beside ours.
//!
//! `native_smp_send_reschedule` wrapped the CPU into a mask (`cpumask_of`) and called the routing's `send_IPI_mask`: with
//! x2APIC clusters that copied the mask to a scratch mask of the sender's, with interrupts disabled, looked for members of each cluster
//! and took the served ones away. The kernel of the report no longer had all the routings that are known here: those of
//! earlier ones send by the same two sequences as the ones that were left.

use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;
use std::cell::Cell;

use smpcall_local_apic::{
    Access, Addressing, ApicId, DeliveryMode, Icr, Interrupt, LocalApic, LogicalModel, Mode, Register,
    Routing, SetCost, Topology, Vector,
};
use smpcall_machine::{Cpu, CpuMask, Deadline, Instant, Machine, Predicate, Word, wait};
use smpcall_simulator::{
    Config, ConfigError, InterruptFrame, SimAccess, SimMachine, SimMemory, World, program,
};

/// `RESCHEDULE_VECTOR` of those kernels.
pub(super) const RESCHEDULE_VECTOR: u8 = 0xfd;
pub(super) const RESCHEDULE: Vector = match Vector::new(RESCHEDULE_VECTOR) {
    Some(vector) => vector,
    None => panic!("an ordinary vector"),
};

/// The delivery status of an xAPIC's ICR.
const BUSY: u32 = 1 << 12;

/// What a send took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// Registers of the local APIC that were read.
    pub(super) register_reads: u32,
    /// Registers of the local APIC that were written, the ICR's among them.
    pub(super) register_writes: u32,
    /// Commands: writes that send.
    pub(super) commands: u32,
    /// Accesses to words of the kernel's tables and masks.
    pub(super) words: u32,
    /// Nanoseconds of the model.
    pub(super) nanos: u64,
}

thread_local! {
    static COST: Cell<Cost> = const {
        Cell::new(Cost { register_reads: 0, register_writes: 0, commands: 0, words: 0, nanos: 0 })
    };
}

fn count(change: impl FnOnce(&mut Cost)) {
    let mut cost = COST.get();
    change(&mut cost);
    COST.set(cost);
}

fn load(word: &Word<SimMemory>) -> u64 {
    count(|cost| cost.words += 1);
    // Relaxed: tables that nobody changes, and masks of one CPU.
    word.load(Relaxed)
}

fn store(word: &Word<SimMemory>, value: u64) {
    count(|cost| cost.words += 1);
    // Relaxed: as in `load`.
    word.store(value, Relaxed);
}

/// The running CPU's registers, counted.
struct Counted;

impl Access for Counted {
    fn mode(&self) -> Mode {
        SimAccess.mode()
    }

    #[track_caller]
    fn read(&self, register: Register) -> u32 {
        count(|cost| cost.register_reads += 1);
        SimAccess.read(register)
    }

    #[track_caller]
    fn write(&self, register: Register, value: u32) {
        count(|cost| {
            cost.register_writes += 1;
            cost.commands += u32::from(register == Register::ICR_LOW);
        });
        SimAccess.write(register, value);
    }

    #[track_caller]
    fn write_icr(&self, value: u64) {
        count(|cost| {
            cost.register_writes += 1;
            cost.commands += 1;
        });
        SimAccess.write_icr(value);
    }
}

/// What such a kernel keeps for sending.
pub(super) struct Tables {
    routing: Routing,
    cpus: usize,
    /// Words of a mask.
    mask_words: usize,
    /// What addresses each CPU: `x86_cpu_to_apicid`, or `x86_cpu_to_logical_apicid`.
    destinations: Vec<Word<SimMemory>>,
    /// The identifier of each CPU's APIC, and the CPU of each identifier: what the driver that ships asks for.
    ids: Vec<Word<SimMemory>>,
    /// What `cpumask_of` leads to: each bit of a word, and no bit.
    bits: Vec<Word<SimMemory>>,
    no_bit: Word<SimMemory>,
    /// The members of each cluster: `cpus_in_cluster`.
    clusters: Vec<Word<SimMemory>>,
    /// The sender's own mask: `ipi_mask`.
    scratch: Vec<Word<SimMemory>>,
}

impl Tables {
    pub(super) fn new(routing: Routing, cpus: usize) -> Self {
        let mask_words = cpus.div_ceil(64);
        let words = |values: &mut dyn Iterator<Item = u64>| values.map(Word::new).collect::<Vec<_>>();
        let clusters = match routing.set_cost() {
            SetCost::PerCluster => {
                let size = cluster_size(routing);
                let member = |cluster: usize, cpu: usize| cpu < cpus && cpu / size == cluster;
                let word = |cluster: usize, word: usize| {
                    (0..64)
                        .filter(|bit| member(cluster, 64 * word + bit))
                        .fold(0, |bits, bit| bits | 1 << bit)
                };
                let all =
                    (0..cpus.div_ceil(size)).flat_map(|cluster| (0..mask_words).map(move |at| (cluster, at)));
                words(&mut all.map(|(cluster, at)| word(cluster, at)))
            }
            SetCost::One | SetCost::PerCpu => vec![],
        };
        Self {
            routing,
            cpus,
            mask_words,
            destinations: words(&mut (0..cpus).map(|cpu| destination(routing, cpu).into())),
            ids: words(&mut (0..cpus as u64)),
            bits: words(&mut (0..64).map(|bit| 1 << bit)),
            no_bit: Word::new(0),
            clusters,
            scratch: words(&mut core::iter::repeat_n(0, cpus * mask_words)),
        }
    }

    /// A word of `cpumask_of(cpu)`.
    fn mask_of(&self, cpu: usize, at: usize) -> &Word<SimMemory> {
        if cpu / 64 == at { &self.bits[cpu % 64] } else { &self.no_bit }
    }

    /// The next member of a mask from this CPU on.
    fn next<'w>(&self, from: usize, word: impl Fn(usize) -> &'w Word<SimMemory>) -> Option<usize> {
        let mut from = from;
        while from < self.cpus {
            let bits = load(word(from / 64)) >> (from % 64);
            if bits != 0 {
                return Some(from + bits.trailing_zeros() as usize);
            }
            from = (from / 64 + 1) * 64;
        }
        None
    }

    /// Asks a CPU to reschedule, as then.
    #[track_caller]
    pub(super) fn native_smp_send_reschedule(&self, cpu: Cpu) {
        self.send_ipi_mask(cpu.index());
    }

    /// The routing's `send_IPI_mask`, for `cpumask_of(cpu)`.
    #[track_caller]
    fn send_ipi_mask(&self, cpu: usize) {
        let mask = |at| self.mask_of(cpu, at);
        let were_enabled = SimMachine::disable_interrupts();
        match self.routing.set_cost() {
            // `flat_send_IPI_mask`: the mask is the destination.
            SetCost::One => self.send_dest_field(load(mask(0)) as u32),
            // `default_send_IPI_mask_sequence_phys` and its likes.
            SetCost::PerCpu => {
                let mut from = 0;
                while let Some(member) = self.next(from, mask) {
                    self.send_dest_field(load(&self.destinations[member]) as u32);
                    from = member + 1;
                }
            }
            // `__x2apic_send_IPI_mask`.
            SetCost::PerCluster => self.send_by_cluster(mask),
        }
        SimMachine::restore_interrupts(were_enabled);
    }

    #[track_caller]
    fn send_by_cluster<'w>(&'w self, mask: impl Fn(usize) -> &'w Word<SimMemory>) {
        let me = SimMachine::current_cpu().index();
        let scratch = |at: usize| &self.scratch[me * self.mask_words + at];
        for at in 0..self.mask_words {
            store(scratch(at), load(mask(at)));
        }
        let mut from = 0;
        while let Some(cpu) = self.next(from, scratch) {
            let cluster = cpu / cluster_size(self.routing) * self.mask_words;
            let members = |at: usize| &self.clusters[cluster + at];
            let mut destination = 0;
            for at in 0..self.mask_words {
                let mut both = load(scratch(at)) & load(members(at));
                while both != 0 {
                    let member = 64 * at + both.trailing_zeros() as usize;
                    destination |= load(&self.destinations[member]) as u32;
                    both &= both - 1;
                }
            }
            self.send_dest_field(destination);
            for at in 0..self.mask_words {
                store(scratch(at), load(scratch(at)) & !load(members(at)));
            }
            from = cpu + 1;
        }
    }

    /// `__default_send_IPI_dest_field`, or `__x2apic_send_IPI_dest`.
    #[track_caller]
    fn send_dest_field(&self, destination: u32) {
        let (mode, vector) = (self.routing.mode(), RESCHEDULE_VECTOR);
        let icr = if self.routing.addressing().is_logical() {
            Icr::logical(DeliveryMode::Fixed, vector, destination)
        } else {
            Icr::physical(DeliveryMode::Fixed, vector, destination)
        };
        let command = icr.encode(mode).expect("the routing reaches all CPUs");
        match mode {
            Mode::X2Apic => Counted.write_icr(command),
            Mode::XApic => {
                let idle = || Counted.read(Register::ICR_LOW) & BUSY == 0;
                if !idle() {
                    // As then: however long it takes.
                    wait::<SimMachine>(&Predicate(idle), Deadline::NEVER);
                }
                Counted.write(Register::ICR_HIGH, (command >> 32) as u32);
                Counted.write(Register::ICR_LOW, command as u32);
            }
        }
    }
}

impl Topology for &Tables {
    fn apic_id(&self, cpu: Cpu) -> Option<ApicId> {
        self.ids.get(cpu.index()).map(|id| ApicId(load(id) as u32))
    }

    fn cpu(&self, id: ApicId) -> Option<Cpu> {
        // Identifiers are the CPUs' numbers here, and the table the same.
        self.ids.get(id.0 as usize).map(|cpu| Cpu::new(load(cpu) as u32))
    }

    fn shorthand_reach(&self) -> Option<&CpuMask> {
        None
    }
}

/// How many CPUs a command can reach at once.
fn cluster_size(routing: Routing) -> usize {
    if routing.addressing() == Addressing::X2ApicCluster { 16 } else { 4 }
}

/// What addresses a CPU whose APIC has its number as identifier.
fn destination(routing: Routing, cpu: usize) -> u32 {
    let id = ApicId(cpu as u32);
    let logical = |model: LogicalModel| model.logical_id(Cpu::new(cpu as u32), id).map_or(0, u32::from);
    match routing.addressing() {
        Addressing::Physical => id.0,
        Addressing::Flat => logical(LogicalModel::Flat),
        Addressing::Cluster => logical(LogicalModel::Cluster),
        Addressing::X2ApicCluster => id.x2apic_logical(),
    }
}

/// The costs of one IPI to one CPU, on one routing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Costs {
    /// By the mask path of those kernels.
    pub(super) mask_then: Cost,
    /// By ours for sets, with a set of one.
    pub(super) mask_now: Cost,
    /// By ours for one.
    pub(super) single: Cost,
}

/// Measures them on a machine of this size on which nothing else happens, without jitter: CPU 0 sends to the last CPU.
pub(super) fn measure(routing: Routing, cpus: usize) -> Result<Costs, ConfigError> {
    let mut config = Config::new(cpus, routing, 1);
    (config.tick, config.cost.jitter) = (None, 0);
    let clock = config.cost.clock;
    let tables = Tables::new(routing, cpus);
    let costs = Cell::new(Costs::default());
    let mut world = World::new(&config)?;
    world.set_handler(RESCHEDULE_VECTOR, |mut frame: InterruptFrame| frame.end_of_interrupt());
    let target = Cpu::new(cpus as u32 - 1);
    world.spawn(Cpu::new(0), || {
        let apic = LocalApic::<SimMachine, Counted>::new(Counted, routing);
        let reschedule = Interrupt::Fixed(RESCHEDULE);
        let cost_of = |send: &dyn Fn()| {
            // Until the controller is idle again.
            program::advance(Duration::from_micros(10));
            COST.take();
            let began = SimMachine::now();
            send();
            let nanos = SimMachine::now().since(began).as_nanos() as u64;
            Cost { nanos: nanos - clock, ..COST.take() }
        };
        costs.set(Costs {
            mask_then: cost_of(&|| tables.native_smp_send_reschedule(target)),
            mask_now: cost_of(&|| {
                apic.send_one_as_set(&&tables, target, reschedule).expect("an idle controller");
            }),
            single: cost_of(&|| {
                apic.send_one(&&tables, target, reschedule).expect("an idle controller");
            }),
        });
    });
    world.run(Instant::from_nanos(u64::MAX / 2));
    drop(world);
    Ok(costs.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_operation_sends_once_and_never_costs_more_than_a_mask() {
        for routing in Routing::ALL {
            for cpus in [2, 8, 60, 200, 1000].into_iter().filter(|&cpus| cpus <= routing.max_cpus() as usize)
            {
                let Costs { mask_then, mask_now, single } = measure(routing, cpus).expect("a machine");
                for cost in [mask_then, mask_now, single] {
                    assert_eq!(cost.commands, 1, "{routing} {cpus}");
                }
                assert_eq!(single.words, 1, "{routing} {cpus}: only the identifier is looked up");
                assert!(single.nanos <= mask_now.nanos.min(mask_then.nanos), "{routing} {cpus}");
                assert!(single.register_writes <= mask_now.register_writes);
            }
        }
    }

    #[test]
    fn an_x2apic_is_written_once_and_an_xapic_twice_after_a_look() {
        let single = |routing| measure(routing, 8).expect("a machine").single;
        let cost = single(Routing::X2ApicCluster);
        assert_eq!((cost.register_reads, cost.register_writes), (0, 1));
        let cost = single(Routing::Flat);
        assert_eq!((cost.register_reads, cost.register_writes), (1, 2));
    }

    #[test]
    fn the_mask_path_finds_its_one_cpu_wherever_it_is() {
        for routing in Routing::ALL {
            let cpus = 130.min(routing.max_cpus() as usize);
            let tables = Tables::new(routing, cpus);
            let mut world = World::new(&Config::new(cpus, routing, 1)).expect("a machine");
            world.set_handler(RESCHEDULE_VECTOR, |mut frame: InterruptFrame| frame.end_of_interrupt());
            world.spawn(Cpu::new(1), || {
                for cpu in 0..cpus as u32 {
                    tables.native_smp_send_reschedule(Cpu::new(cpu));
                    program::advance(Duration::from_micros(5));
                }
            });
            world.run(Instant::from_nanos(1_000_000_000));
            for cpu in 0..cpus as u32 {
                let taken = world.inspect(Cpu::new(cpu)).counters.taken[RESCHEDULE_VECTOR as usize];
                assert_eq!(taken, 1, "{routing}, CPU {cpu}");
            }
        }
    }
}
