//! Per-CPU variables and sets of CPUs.
//!
//! A per-CPU variable of CPU n is at its symbol's value plus `__per_cpu_offset[n]`. Before Linux 6.15 the values on x86-64 are
//! offsets that count from zero; since, they are addresses in the kernel's image, and the offsets reach from there. The sum
//! is the same.
//!
//! Source: Linux, `arch/x86/kernel/setup_percpu.c` and `include/linux/cpumask.h` (facts only).

use crate::ReadError;
use crate::symbols::Symbols;
use crate::types::Types;
use crate::virtual_memory::{VirtualMemory, number};

/// No kernel is built for more CPUs. Linux' `NR_CPUS` is at most 8,192 on x86-64.
const MOST_CPUS: u32 = 8192;

/// A set of CPUs that the kernel keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuSet {
    /// That could ever be there.
    Possible,
    /// That are there.
    Present,
    /// That run. After a panic that is the crashing one alone.
    Online,
    /// That tasks may move to.
    Active,
    /// That are going offline. Since Linux 5.13.
    Dying,
}

impl CpuSet {
    /// The set itself since Linux 4.5, and its bits before.
    const fn symbols(self) -> [&'static str; 2] {
        match self {
            Self::Possible => ["__cpu_possible_mask", "cpu_possible_bits"],
            Self::Present => ["__cpu_present_mask", "cpu_present_bits"],
            Self::Online => ["__cpu_online_mask", "cpu_online_bits"],
            Self::Active => ["__cpu_active_mask", "cpu_active_bits"],
            Self::Dying => ["__cpu_dying_mask", "cpu_dying_bits"],
        }
    }
}

/// Why something of a CPU is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PerCpuError {
    /// The kernel has no such symbol, or its table lacks it.
    #[error(
        "{0} is not among the kernel's symbols (it may be built without CONFIG_KALLSYMS_ALL, or not have it at all); \
         --vmlinux gives the symbols of the kernel's file"
    )]
    NoSymbol(String),
    /// It cannot be read.
    #[error("{what} cannot be read: {source}")]
    Missing {
        /// What.
        what: String,
        /// Why.
        source: ReadError,
    },
    /// There is no such CPU.
    #[error("there is no CPU {cpu}: the kernel counts {count}")]
    NoCpu {
        /// The CPU.
        cpu: u32,
        /// How many there are.
        count: usize,
    },
}

/// Where each CPU has its variables.
#[derive(Clone, Debug, Default)]
pub struct PerCpu {
    offsets: Vec<u64>,
    /// What is to be added to an offset in the section of per-CPU variables: its first address, if it is not zero.
    section: u64,
}

impl PerCpu {
    /// Reads `__per_cpu_offset`.
    ///
    /// # Errors
    ///
    /// It is not among the symbols, or cannot be read.
    pub fn load(memory: &dyn VirtualMemory, symbols: &Symbols) -> Result<Self, PerCpuError> {
        const NAME: &str = "__per_cpu_offset";
        let table = symbols.address_of(NAME).ok_or_else(|| PerCpuError::NoSymbol(NAME.into()))?;
        let count = number_of_cpus(memory, symbols);
        let bytes = memory
            .read_bytes(table, 8 * count as usize)
            .map_err(|source| PerCpuError::Missing { what: NAME.into(), source })?;
        let offsets = bytes.chunks_exact(8).filter_map(|entry| number(entry, 0, 8)).collect();
        Ok(Self { offsets, section: symbols.address_of("__per_cpu_start").unwrap_or(0) })
    }

    /// How many CPUs there can be: their numbers are below.
    pub fn count(&self) -> usize {
        self.offsets.len()
    }

    /// What is added to a variable's value for a CPU.
    ///
    /// # Errors
    ///
    /// There is no such CPU.
    pub fn offset(&self, cpu: u32) -> Result<u64, PerCpuError> {
        let offset = self.offsets.get(cpu as usize).copied();
        offset.ok_or(PerCpuError::NoCpu { cpu, count: self.offsets.len() })
    }

    /// The CPU whose offset this is: what the base of `gs` is in the kernel.
    pub fn cpu_of(&self, gs_base: u64) -> Option<u32> {
        self.offsets.iter().position(|&offset| offset == gs_base && offset != 0).map(|cpu| cpu as u32)
    }

    /// The address of a CPU's variable, by the symbols or else by the types.
    ///
    /// # Errors
    ///
    /// There is no such variable or CPU.
    pub fn address(
        &self,
        symbols: &Symbols,
        types: Option<&Types>,
        variable: &str,
        cpu: u32,
    ) -> Result<u64, PerCpuError> {
        let by_types = || types?.per_cpu_variable(variable).map(|offset| offset.wrapping_add(self.section));
        let value = symbols.address_of(variable).or_else(by_types);
        let value = value.ok_or_else(|| PerCpuError::NoSymbol(variable.into()))?;
        Ok(value.wrapping_add(self.offset(cpu)?))
    }
}

/// How many CPUs the kernel counts; the most that there can be if it does not say.
fn number_of_cpus(memory: &dyn VirtualMemory, symbols: &Symbols) -> u32 {
    let count = symbols.address_of("nr_cpu_ids").and_then(|at| memory.read_u32(at).ok());
    count.filter(|&count| count > 0).map_or(64, |count| count.min(MOST_CPUS))
}

/// The CPUs of a set, in order.
///
/// # Errors
///
/// The kernel has no such set, or it cannot be read.
pub fn cpus_of(memory: &dyn VirtualMemory, symbols: &Symbols, set: CpuSet) -> Result<Vec<u32>, PerCpuError> {
    let names = set.symbols();
    let at = names.iter().find_map(|name| symbols.address_of(name));
    let at = at.ok_or_else(|| PerCpuError::NoSymbol(names[0].into()))?;
    let count = number_of_cpus(memory, symbols);
    let bytes = memory
        .read_bytes(at, 8 * count.div_ceil(64) as usize)
        .map_err(|source| PerCpuError::Missing { what: names[0].into(), source })?;
    Ok((0..count).filter(|&cpu| bytes[cpu as usize / 8] >> (cpu % 8) & 1 != 0).collect())
}
