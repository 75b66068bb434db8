//! What stands for the registers of a simulated CPU, which runs the host's code. For the instruction pointer that is a number
//! for each place in the source, and there is the way back.
//!
//! Nothing of the host is in them: the same run has the same registers.

use smpcall::vmcore::Registers;

use crate::processor::Source;
use crate::state::State;

/// Where the text of a Linux kernel begins on x86-64, so that tools take the numbers for kernel addresses.
const TEXT: u64 = 0xffff_ffff_8100_0000;
/// From one place to the next.
const STEP: u64 = 16;
/// Where a Linux kernel on x86-64 maps its stacks.
const STACKS: u64 = 0xffff_c900_0000_0000;
/// The size of a stack, and of the gap before the next one.
const STACK: u64 = 0x4000;
/// What a handler finds below what it has interrupted: the registers that a kernel saves (21 of 64 bits).
const SAVED: u64 = 21 * 8;
/// The code segment of a Linux kernel on x86-64, and its stack's.
const CODE: u64 = 0x10;
const DATA: u64 = 0x18;
/// The bit of the flags that is always set. SDM volume 1, "EFLAGS Register".
const ALWAYS_ONE: u64 = 1 << 1;

impl State {
    /// The number of a place, by the order in which somebody asked for them.
    pub(crate) fn instruction_pointer(&mut self, source: Source) -> u64 {
        let known = self.instructions.iter().position(|&known| known == source);
        let number = known.unwrap_or_else(|| {
            self.instructions.push(source);
            self.instructions.len() - 1
        });
        TEXT + STEP * number as u64
    }

    /// Those of the running CPU at a place: `depth` handlers deep, with interrupts enabled or not.
    pub(crate) fn registers(&mut self, source: Source, depth: u32, interrupts_enabled: bool) -> Registers {
        let cpu = self.running as u64;
        let top = STACKS + (2 * cpu + 1) * STACK;
        Registers {
            rip: self.instruction_pointer(source),
            cs: CODE,
            rflags: ALWAYS_ONE | if interrupts_enabled { Registers::INTERRUPT_FLAG } else { 0 },
            rsp: top - SAVED * (u64::from(depth) + 1),
            ss: DATA,
            r15: cpu,
            ..Registers::NONE
        }
    }

    /// The place that has this number.
    pub(crate) fn source_of(&self, instruction_pointer: u64) -> Option<Source> {
        let offset = instruction_pointer.checked_sub(TEXT)?;
        self.instructions.get(usize::try_from(offset / STEP).ok()?).copied()
    }
}
