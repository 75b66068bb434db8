//! The stacks of a kernel of x86-64: which one an address is on.
//!
//! A task has a stack of its own, a CPU has one for interrupts and one for each of a few exceptions that must not use
//! whatever stack was interrupted. Source: Linux, `Documentation/arch/x86/kernel-stacks.rst`, `arch/x86/include/asm/cpu_entry_area.h`
//! and `processor.h` (facts only).

use std::fmt;
use std::ops::Range;

use crate::percpu::PerCpu;
use crate::symbols::Symbols;
use crate::types::Types;
use crate::virtual_memory::VirtualMemory;

/// The size of a task's stack, which begins at a multiple of it: `THREAD_SIZE` without KASAN, since Linux 3.15.
pub const TASK_STACK: u64 = 16 << 10;
/// The size of an interrupt stack.
const IRQ_STACK: u64 = 16 << 10;
/// Where each CPU has its entry code's data and stacks.
const ENTRY_AREAS: Range<u64> = 0xffff_fe00_0000_0000..0xffff_fe80_0000_0000;

/// The stacks in a `struct cea_exception_stacks`.
const EXCEPTIONS: [(&str, Stack); 6] = [
    ("NMI_stack", Stack::Nmi),
    ("DF_stack", Stack::DoubleFault),
    ("DB_stack", Stack::Debug),
    ("MCE_stack", Stack::MachineCheck),
    ("VC_stack", Stack::Vc),
    ("VC2_stack", Stack::Vc),
];

/// Which kind of stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    /// A task's.
    Task,
    /// A CPU's for interrupts and softirqs.
    Irq,
    /// For NMIs.
    Nmi,
    /// For double faults.
    DoubleFault,
    /// For debug exceptions.
    Debug,
    /// For machine checks.
    MachineCheck,
    /// For exceptions of encrypted guests (#VC).
    Vc,
    /// The small one on which entry code begins.
    Entry,
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Task => "TASK",
            Self::Irq => "IRQ",
            Self::Nmi => "NMI",
            Self::DoubleFault => "#DF",
            Self::Debug => "#DB",
            Self::MachineCheck => "#MC",
            Self::Vc => "#VC",
            Self::Entry => "ENTRY",
        })
    }
}

/// The stacks that belong to CPUs.
#[derive(Clone, Debug, Default)]
pub struct Stacks {
    of_cpus: Vec<(Range<u64>, Stack)>,
}

impl Stacks {
    /// Reads where they are, for each of these CPUs. Those that cannot be found are taken for tasks' stacks.
    pub fn load(
        memory: &dyn VirtualMemory,
        symbols: &Symbols,
        types: Option<&Types>,
        per_cpu: &PerCpu,
        cpus: &[u32],
    ) -> Self {
        let pointer = |variable: &str, member: u64, cpu| {
            let at = per_cpu.address(symbols, types, variable, cpu).ok()?.checked_add(member)?;
            memory.read_u64(at).ok().filter(|&value| value != 0)
        };
        // `pcpu_hot` held what is most used, from Linux 6.2 to 6.14.
        let hot = types.and_then(|types| types.offset("pcpu_hot", "hardirq_stack_ptr"));
        let irq = |cpu| {
            hot.and_then(|member| pointer("pcpu_hot", member, cpu))
                .or_else(|| pointer("hardirq_stack_ptr", 0, cpu))
                .or_else(|| pointer("irq_stack_ptr", 0, cpu))
        };
        let exceptions: Vec<_> = EXCEPTIONS
            .iter()
            .filter_map(|&(name, stack)| {
                let field = types?.field("cea_exception_stacks", name).filter(|field| field.size > 0)?;
                Some((field, stack))
            })
            .collect();
        let mut of_cpus = Vec::new();
        for &cpu in cpus {
            if let Some(top) = irq(cpu) {
                // The pointer is to the top, or to the last word below it.
                let end = top.checked_next_multiple_of(4096).unwrap_or(top);
                of_cpus.push((end.saturating_sub(IRQ_STACK)..end, Stack::Irq));
            }
            if let Some(base) = pointer("cea_exception_stacks", 0, cpu) {
                of_cpus.extend(exceptions.iter().map(|(field, stack)| {
                    let begin = base.wrapping_add(field.offset);
                    (begin..begin.saturating_add(field.size), *stack)
                }));
            }
        }
        Self { of_cpus }
    }

    /// From what is known otherwise.
    pub fn new(of_cpus: Vec<(Range<u64>, Stack)>) -> Self {
        Self { of_cpus }
    }

    /// The stack that an address is on. The end belongs to it: that is where an empty stack's pointer is.
    pub fn at(&self, address: u64) -> (Range<u64>, Stack) {
        let of_cpu = self.of_cpus.iter().find(|(range, _)| range.contains(&address));
        // At the end of one stack, another may begin: the one that has bytes there goes first.
        let of_cpu = of_cpu.or_else(|| self.of_cpus.iter().find(|(range, _)| range.end == address));
        if let Some((range, stack)) = of_cpu {
            return (range.clone(), *stack);
        }
        if ENTRY_AREAS.contains(&address) {
            let begin = address & !4095;
            return (begin..begin + 4096, Stack::Entry);
        }
        let begin = address & !(TASK_STACK - 1);
        (begin..begin.saturating_add(TASK_STACK), Stack::Task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_on_the_stack_that_has_it() {
        let stacks = Stacks::new(vec![(0x4000..0x8000, Stack::Irq), (0x8000..0x9000, Stack::Nmi)]);
        assert_eq!(stacks.at(0x7ff8), (0x4000..0x8000, Stack::Irq));
        assert_eq!(stacks.at(0x8000).1, Stack::Nmi);
        assert_eq!(stacks.at(0x9000).1, Stack::Nmi, "an empty one");
        assert_eq!(
            stacks.at(0xffff_c900_0001_3f58),
            (0xffff_c900_0001_0000..0xffff_c900_0001_4000, Stack::Task)
        );
        assert_eq!(stacks.at(0xffff_fe00_0000_2fd8).1, Stack::Entry);
        assert_eq!(stacks.at(u64::MAX).1, Stack::Task);
    }
}
