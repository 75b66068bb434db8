//! Reads and writes crash dumps of kernels: memory, symbols, types and stacks from the dump alone. Knows nothing of
//! IPIs.
//!
//! A [`Dump`] is an opened source: physical memory, and what its notes say. [`KernelMemory`] reads it by the kernel's
//! own page tables; everything else reads that.
//!
//! Nothing is ever written to a source. Bytes of a source are foreign: every length is checked before it is believed,
//! every loop is bounded, and what cannot be read is an error that says what and where.
#![forbid(unsafe_code)]

pub mod architecture;
pub mod btf;
#[cfg(test)]
mod btf_samples;
#[cfg(test)]
mod btf_tests;
pub mod cache;
mod compression;
pub mod dump;
mod elf;
pub mod error;
pub mod extract;
mod fields;
mod flattened;
pub mod kallsyms;
#[cfg(test)]
mod kallsyms_samples;
pub mod kallsyms_scan;
#[cfg(test)]
mod kallsyms_tests;
mod kdump;
pub mod kernel;
pub mod kernel_memory;
pub mod location;
pub mod memory;
pub mod modules;
#[cfg(test)]
mod modules_tests;
pub mod notes;
pub mod orc;
#[cfg(test)]
mod orc_tests;
pub mod percpu;
#[cfg(test)]
mod percpu_tests;
pub mod printk;
#[cfg(test)]
mod printk_tests;
pub mod qmp;
pub mod registers;
pub mod release;
mod scan;
pub mod stacks;
pub mod storage;
pub mod symbols;
pub mod translate;
pub mod types;
pub mod unwind;
#[cfg(test)]
mod unwind_tests;
pub mod virtual_memory;
#[cfg(feature = "dwarf")]
pub mod vmlinux;
mod write_elf;
mod write_kdump;

pub use architecture::Architecture;
pub use dump::{Dump, Kind};
pub use error::{Level, OpenError, ReadError};
pub use kernel_memory::KernelMemory;
pub use memory::PhysicalMemory;
pub use notes::Note;
pub use registers::{Control, SavedCpu};
pub use virtual_memory::VirtualMemory;
