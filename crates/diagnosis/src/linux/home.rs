//! In whose memory a descriptor lies. Without a kernel that notes it, that is how one knows who called.

use std::ops::Range;

use smpcall_crashdump::VirtualMemory;
use smpcall_vmcore::Registers;

use super::descriptor::Csd;
use super::processor::{self, Processor};
use super::reader::Reader;
use crate::evidence::Home;

/// No machine is believed to have more tasks.
const MOST_TASKS: usize = 100_000;
/// So much of a stack, from each frame on, is looked through for an address.
const FRAME: usize = 512;
/// And so many frames.
const FRAMES: usize = 48;
/// The size of an interrupt stack.
const IRQ_STACK: u64 = 16 << 10;

/// The memory of each CPU in which descriptors may lie.
#[derive(Debug)]
pub(super) struct Homes<'k> {
    reader: Reader<'k>,
    of_cpus: Vec<OfCpu>,
    /// The part of each CPU's memory that holds static variables.
    section: Option<Range<u64>>,
}

#[derive(Debug)]
struct OfCpu {
    cpu: u32,
    stacks: [Range<u64>; 2],
    /// Where the descriptors of its calls to many are: to be added to the offset of the target.
    many: Option<u64>,
    /// The descriptor of its calls to one for which it does not wait.
    single: Option<u64>,
    offset: Option<u64>,
}

impl<'k> Homes<'k> {
    pub(super) fn new(reader: Reader<'k>, processors: &[Processor]) -> Self {
        let of_cpu = |processor: &Processor| {
            let cpu = processor.evidence.cpu;
            let cfd = reader.per_cpu("cfd_data", cpu);
            // `csd` until 5.12 and from 6.4, `pcpu` between.
            let many = cfd.and_then(|cfd| {
                // It is the first member in all of them.
                let by_types = || reader.any_member(cfd, "call_function_data", &["csd", "pcpu"]);
                by_types().or_else(|| reader.word(cfd).filter(|_| reader.kernel.types.is_none()))
            });
            OfCpu {
                cpu,
                stacks: [processor.stack.clone(), irq_stack(reader, cpu).unwrap_or_default()],
                many,
                single: reader.per_cpu("csd_data", cpu),
                offset: reader.kernel.per_cpu_layout().ok().and_then(|layout| layout.offset(cpu).ok()),
            }
        };
        let symbol = |name| reader.kernel.symbols.address_of(name);
        let section = symbol("__per_cpu_start").zip(symbol("__per_cpu_end")).map(|(begin, end)| begin..end);
        Self { reader, of_cpus: processors.iter().map(of_cpu).collect(), section }
    }

    /// Who made a call to `target`, and where its descriptor lies.
    pub(super) fn of(&self, csd: &Csd, target: u32) -> (Option<u32>, Home) {
        let home = self.home(csd, target);
        let caller = match &home {
            Home::StackOf { cpu } | Home::PerCpu { cpu, variable: Some(_) } => Some(*cpu),
            _ => None,
        };
        let noted = csd
            .route
            .map(|(source, _)| source)
            .filter(|&source| self.of_cpus.iter().any(|of| of.cpu == source));
        (noted.or(caller), home)
    }

    fn home(&self, csd: &Csd, target: u32) -> Home {
        let at = csd.address;
        if let Some(of) = self.of_cpus.iter().find(|of| of.stacks.iter().any(|stack| stack.contains(&at))) {
            return Home::StackOf { cpu: of.cpu };
        }
        let offset = self.of_cpus.iter().find(|of| of.cpu == target).and_then(|of| of.offset);
        let is_many =
            |of: &&OfCpu| of.many.zip(offset).is_some_and(|(many, offset)| many.wrapping_add(offset) == at);
        for (found, variable) in [
            (self.of_cpus.iter().find(is_many), "cfd_data"),
            (self.of_cpus.iter().find(|of| of.single == Some(at)), "csd_data"),
        ] {
            if let Some(of) = found {
                return Home::PerCpu { cpu: of.cpu, variable: Some(variable.into()) };
            }
        }
        if let Some(symbol) = self.reader.symbol(at) {
            return Home::Elsewhere { symbol: Some(symbol) };
        }
        let in_section = |of: &&OfCpu| {
            let value = of.offset.map(|offset| at.wrapping_sub(offset));
            self.section.as_ref().zip(value).is_some_and(|(section, value)| section.contains(&value))
        };
        if let Some(of) = self.of_cpus.iter().find(in_section) {
            return Home::PerCpu { cpu: of.cpu, variable: None };
        }
        match self.sleeping(at) {
            Some(task) => Home::SleepingTask { task },
            None => Home::Elsewhere { symbol: None },
        }
    }

    /// The descriptor of a CPU's call to many for one target.
    pub(super) fn of_many(&self, source: u32, target: u32) -> Option<u64> {
        let many = self.of_cpus.iter().find(|of| of.cpu == source)?.many?;
        let offset = self.of_cpus.iter().find(|of| of.cpu == target)?.offset?;
        Some(many.wrapping_add(offset)).filter(|&at| Reader::is_kernel(at))
    }

    /// The descriptor of a CPU's calls to one for which it does not wait.
    pub(super) fn of_single(&self, source: u32) -> Option<u64> {
        self.of_cpus.iter().find(|of| of.cpu == source)?.single
    }

    /// The task on whose stack an address is.
    fn sleeping(&self, at: u64) -> Option<String> {
        // Stacks are in the range of vmalloc, since 4.9: ask only of what can be one.
        let vmalloc = self.reader.number("vmalloc_base", 8).unwrap_or(0xffff_c900_0000_0000);
        if !(vmalloc..vmalloc.saturating_add(32 << 40)).contains(&at) {
            return None;
        }
        let first = self.reader.kernel.symbols.address_of("init_task")?;
        let list = self.reader.kernel.types.as_ref()?.offset("task_struct", "tasks.next")?;
        let mut task = first;
        for _ in 0..MOST_TASKS {
            task = self.reader.word(task.wrapping_add(list))?.wrapping_sub(list);
            if task == first {
                return None;
            }
            let stack = self.reader.member(task, "task_struct", "stack")?;
            if (stack..stack.saturating_add(smpcall_crashdump::stacks::TASK_STACK)).contains(&at) {
                let found = processor::task(self.reader, task)?;
                let pid = found.pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
                return Some(format!("{}{pid}", found.name));
            }
        }
        None
    }
}

/// The stack on which a CPU runs interrupts.
fn irq_stack(reader: Reader<'_>, cpu: u32) -> Option<Range<u64>> {
    let hot = || reader.of_cpu("pcpu_hot", "pcpu_hot", "hardirq_stack_ptr", cpu);
    let alone = |name| reader.number_of_cpu(name, 8, cpu);
    let top = hot().or_else(|| alone("hardirq_stack_ptr")).or_else(|| alone("irq_stack_ptr"))?;
    let end = Some(top).filter(|&top| Reader::is_kernel(top))?.checked_next_multiple_of(4096)?;
    Some(end.saturating_sub(IRQ_STACK)..end)
}

/// Whether an address is in the frames of a CPU or in its registers.
pub(super) fn knows(reader: Reader<'_>, processor: &Processor, address: u64) -> bool {
    let in_registers = |registers: &Registers| kept(registers).contains(&address);
    processor.registers.as_ref().is_some_and(in_registers)
        || processor.trace.iter().flat_map(|trace| &trace.frames).take(FRAMES).any(|frame| {
            frame.saved.as_ref().is_some_and(|saved| in_registers(&saved.registers))
                || refers(reader, frame.stack_pointer, address)
        })
}

/// The registers in which a function keeps addresses.
pub(super) const fn kept(registers: &Registers) -> [u64; 14] {
    let Registers { rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r12, r13, r14, r15, .. } = *registers;
    [rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r12, r13, r14, r15]
}

/// Whether one of the words from `begin` on is this address.
fn refers(reader: Reader<'_>, begin: u64, address: u64) -> bool {
    let bytes = reader.kernel.memory.read_available(begin, FRAME);
    bytes.chunks_exact(8).any(|word| word == address.to_le_bytes())
}
