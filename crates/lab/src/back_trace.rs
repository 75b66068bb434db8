//! Where a CPU is: the instruction pointer, and return addresses found on its stack.
//!
//! The image keeps no frame pointers. A word on the stack is printed if it is an address in the code right behind a call: a
//! place that was called from, perhaps some time ago. So the first line is certain and the others are candidates, as in the
//! `?` lines of Linux' traces. `addr2line` or a debugger makes names of them.

use smpcall::vmcore::Registers;

use crate::boot::is_code;
use crate::console::say;
use crate::cpu::this;
use crate::memory;

/// As many candidates as a trace has.
const MOST: usize = 16;
/// As many words are looked at.
const WORDS: u64 = 512;

/// Prints where this CPU was with these registers. Any context.
pub(crate) fn print(registers: &Registers) {
    say!(
        "  {:#x} (stack {:#x}, interrupts {})",
        registers.rip,
        registers.rsp,
        if registers.interrupts_enabled() { "enabled" } else { "disabled" }
    );
    let mut found = 0;
    for word in words(registers.rsp) {
        if found < MOST && is_after_call(word) {
            say!("  {word:#x} ?");
            found += 1;
        }
    }
}

/// The words from a stack pointer on, as far as they are on this CPU's task stack or, if they are on none that is known, for
/// a little while within the memory of the kernel.
fn words(stack_pointer: u64) -> impl Iterator<Item = u64> {
    let start = stack_pointer.next_multiple_of(8);
    let stack = this().stack();
    let end = if stack.contains(&start) { stack.end } else { memory::stack_end_near(start) };
    let words = (end.saturating_sub(start) / 8).min(WORDS);
    // SAFETY: the range is part of a stack, which is memory for ever.
    (0..words).map(move |word| unsafe { ((start + word * 8) as *const u64).read_volatile() })
}

/// Whether an address in the code follows a call: `e8` and four bytes, or `ff` with a register or memory operand.
fn is_after_call(address: u64) -> bool {
    if !is_code(address) || !is_code(address - 7) {
        return false;
    }
    // SAFETY: all seven bytes are in the code.
    let byte = |back: u64| unsafe { ((address - back) as *const u8).read() };
    let indirect = |back: u64| byte(back) == 0xff && byte(back - 1) >> 3 & 7 == 2;
    byte(5) == 0xe8 || indirect(2) || indirect(3) || indirect(6) || indirect(7)
}
