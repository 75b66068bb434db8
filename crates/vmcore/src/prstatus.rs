//! `NT_PRSTATUS` of x86-64: one CPU's registers, in the 336 bytes of Linux' `struct elf_prstatus`.
//!
//! | bytes | what |
//! |---|---|
//! | 0..12 | signal number, code, errno (32 bits each) |
//! | 12..14 | the current signal; two bytes of padding |
//! | 16..32 | pending and held signals |
//! | 32..48 | pid, parent, group, session (32 bits each) |
//! | 48..112 | user, system and the children's times (16 bytes each) |
//! | 112..328 | 27 registers, in the order of [`Registers`] |
//! | 328..332 | whether the floating-point registers are valid; four bytes of padding |
//!
//! A kernel fills in the pid and the registers, and so do we; the rest is zero.

use crate::fields::{Reader, Writer};

/// The owner of the note.
pub const CORE: &str = "CORE";

/// The type of the note. Source: System V gABI for x86-64; `object::elf::NT_PRSTATUS` is the same number.
pub const NT_PRSTATUS: u32 = object::elf::NT_PRSTATUS.0;

macro_rules! registers {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// The registers of a CPU, in the order of Linux' `struct user_regs_struct`.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Registers { $($(#[doc = $doc])+ pub $name: u64,)+ }

        impl Registers {
            /// Their names, in order.
            pub const NAMES: [&'static str; Self::COUNT] = [$(stringify!($name),)+];
            /// How many there are.
            pub const COUNT: usize = [$(stringify!($name),)+].len();
            /// All zero: nothing is known.
            pub const NONE: Self = Self { $($name: 0,)+ };

            /// Their values, in order.
            pub const fn values(&self) -> [u64; Self::COUNT] {
                [$(self.$name,)+]
            }

            fn read(reader: &mut Reader<'_>) -> Self {
                Self { $($name: reader.u64(),)+ }
            }
        }
    };
}

registers! {
    /// General purpose.
    r15,
    /// General purpose.
    r14,
    /// General purpose.
    r13,
    /// General purpose.
    r12,
    /// General purpose; the frame pointer of code that keeps one.
    rbp,
    /// General purpose.
    rbx,
    /// General purpose.
    r11,
    /// General purpose.
    r10,
    /// General purpose.
    r9,
    /// General purpose.
    r8,
    /// General purpose.
    rax,
    /// General purpose.
    rcx,
    /// General purpose.
    rdx,
    /// General purpose.
    rsi,
    /// General purpose.
    rdi,
    /// The number of the system call that was interrupted; all ones if there was none.
    orig_rax,
    /// The instruction pointer.
    rip,
    /// Code segment.
    cs,
    /// Flags; bit 9 (`0x200`): interrupts were enabled.
    rflags,
    /// The stack pointer.
    rsp,
    /// Stack segment.
    ss,
    /// Base of `fs`.
    fs_base,
    /// Base of `gs`: in a kernel usually where the per-CPU data of this CPU is.
    gs_base,
    /// Data segment.
    ds,
    /// Extra segment.
    es,
    /// Segment `fs`.
    fs,
    /// Segment `gs`.
    gs,
}

impl Registers {
    /// The interrupt flag in [`rflags`](Self::rflags). SDM volume 1, "EFLAGS Register".
    pub const INTERRUPT_FLAG: u64 = 1 << 9;

    /// Whether interrupts were enabled.
    pub const fn interrupts_enabled(&self) -> bool {
        self.rflags & Self::INTERRUPT_FLAG != 0
    }
}

/// What is known of one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrStatus {
    /// The task that it ran, as its kernel counts; zero for none.
    pub pid: u32,
    /// Its registers.
    pub registers: Registers,
}

impl PrStatus {
    /// The size of the descriptor.
    pub const BYTES: usize = 336;

    const PID: usize = 32;
    const REGISTERS: usize = 112;

    /// The descriptor.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let mut writer = Writer(&mut bytes);
        writer.zeros(Self::PID);
        writer.u32(self.pid);
        writer.zeros(Self::REGISTERS - Self::PID - 4);
        for value in self.registers.values() {
            writer.u64(value);
        }
        bytes
    }

    /// From a descriptor; none if it is not one of x86-64.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::BYTES {
            return None;
        }
        let mut reader = Reader(bytes);
        reader.skip(Self::PID);
        let pid = reader.u32();
        reader.skip(Self::REGISTERS - Self::PID - 4);
        Some(Self { pid, registers: Registers::read(&mut reader) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_layout_is_that_of_the_kernel() {
        // Offsets within struct elf_prstatus and struct user_regs_struct of x86-64.
        let mut registers = Registers::NONE;
        (registers.r15, registers.rip, registers.rflags, registers.rsp, registers.gs_base, registers.gs) =
            (1, 2, 3, 4, 5, 6);
        let bytes = PrStatus { pid: 7, registers }.to_bytes();
        let at = |offset: usize| u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("8 bytes"));
        assert_eq!(Registers::COUNT, 27);
        assert_eq!((bytes.len(), bytes[32]), (336, 7));
        let base = 112;
        assert_eq!(at(base), 1);
        assert_eq!(at(base + 8 * 16), 2, "rip");
        assert_eq!(at(base + 8 * 18), 3, "rflags");
        assert_eq!(at(base + 8 * 19), 4, "rsp");
        assert_eq!(at(base + 8 * 22), 5, "gs_base");
        assert_eq!(at(base + 8 * 26), 6, "gs");
        assert_eq!(at(328), 0, "no floating-point registers");
        assert_eq!(Registers::NAMES[16], "rip");
    }

    #[test]
    fn a_descriptor_of_another_size_is_none() {
        assert_eq!(PrStatus::from_bytes(&[0; 335]), None);
        assert_eq!(PrStatus::from_bytes(&[0; 337]), None);
        assert_eq!(PrStatus::from_bytes(&[]), None);
    }

    proptest! {
        #[test]
        fn registers_survive_their_encoding(pid: u32, values: [u64; 27]) {
            let mut bytes = [0; PrStatus::BYTES];
            for (chunk, value) in bytes[112..328].chunks_exact_mut(8).zip(values) {
                chunk.copy_from_slice(&value.to_le_bytes());
            }
            bytes[32..36].copy_from_slice(&pid.to_le_bytes());
            let status = PrStatus::from_bytes(&bytes).expect("the right size");
            prop_assert_eq!((status.pid, status.registers.values()), (pid, values));
            prop_assert_eq!(status.to_bytes(), bytes);
        }
    }
}
