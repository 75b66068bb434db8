//! Back traces: from registers, or from where a sleeping task left its own, to where the stack ends.
//!
//! Each step asks for the ORC entry of the address, and follows it, as the kernel's own unwinder does: through interrupt
//! stacks, exception stacks and the registers that entry code has saved. A function that the tables leave out is left where
//! the stack has the return address of a direct call of it. Where nothing leads on, what is left of the stack is looked
//! through for return addresses: such frames are guesses, and say so.
//!
//! Bounded: a stack pointer only goes up on one stack, stacks change a few times, and there is a largest number of frames.
//!
//! Source: Linux, `arch/x86/kernel/unwind_orc.c`, `unwind_frame.c` and `unwind_guess.c` (facts only).

use std::fmt;

use smpcall_vmcore::Registers;

use crate::ReadError;
use crate::location::Location;
use crate::orc::{FrameKind, OrcEntry, Register};
use crate::stacks::{Stack, Stacks};
use crate::virtual_memory::{VirtualMemory, number, number_u32, sign_extended};

/// No back trace is longer.
const MOST_FRAMES: usize = 512;
/// Task, interrupt, NMI, and some more in between: no kernel nests more stacks.
const MOST_SWITCHES: usize = 16;
/// How many guesses are made of one stack.
const MOST_GUESSES: usize = 64;
/// The first address of the kernel's half.
const KERNEL_HALF: u64 = 1 << 63;

/// What is known of code: the kernel's image and its modules.
pub trait Code {
    /// How to unwind from an address; none where the kernel itself does not know.
    ///
    /// # Errors
    ///
    /// The tables cannot be read.
    fn entry(&self, address: u64) -> Result<Option<OrcEntry>, ReadError>;
    /// The name of an address.
    fn locate(&self, address: u64) -> Option<Location>;
    /// Whether there is code at an address.
    fn is_code(&self, address: u64) -> bool;
    /// Whether the offset of [`Register::SpIndirect`] counts before the word is read (until Linux 5.11), not after.
    fn offset_before_indirection(&self) -> bool;
    /// Whether the kernel keeps frame pointers: it was built without ORC.
    fn has_frame_pointers(&self) -> bool;
}

/// Registers that were saved on the stack when something was interrupted; or those that a back trace began with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Their values.
    pub registers: Registers,
    /// Whether all general registers are known; otherwise only `rip`, `cs`, `rflags`, `rsp` and `ss`.
    pub complete: bool,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where it goes on: a return address; or, with [`saved`](Self::saved), the instruction that was interrupted.
    pub address: u64,
    /// The stack pointer in this frame.
    pub stack_pointer: u64,
    /// The name of the address.
    pub location: Option<Location>,
    /// Which stack it is on.
    pub stack: Stack,
    /// Whether unwinding led here. Otherwise it is a word on the stack that looks like a return address, and may be left over
    /// from an earlier call.
    pub certain: bool,
    /// The registers at this address, if it was interrupted here.
    pub saved: Option<Saved>,
}

/// How a back trace ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// At the first frame of a kernel thread, or of a CPU's idle task.
    #[error("end of the stack")]
    Bottom,
    /// At user mode, whose registers these are.
    #[error("user mode, at {:#x}", .0.rip)]
    UserMode(Box<Registers>),
    /// The kernel has nothing that says how to go on. Frames behind were guessed.
    #[error("nothing says how to unwind from {address:#x}")]
    NoEntry {
        /// The address.
        address: u64,
    },
    /// An entry needs a register that is not known.
    #[error("unwinding from {address:#x} needs {register:?}, which is not known there")]
    NoRegister {
        /// The address.
        address: u64,
        /// The register.
        register: Register,
    },
    /// A word of the stack, or of the tables, cannot be read.
    #[error("{0}")]
    Unreadable(ReadError),
    /// The stack pointer would go back: the stack is damaged, or the tables are.
    #[error("the stack pointer would go from {from:#x} to {to:#x}: the stack is damaged")]
    NoProgress {
        /// Before.
        from: u64,
        /// After.
        to: u64,
    },
    /// There are more frames, or more changes of stacks, than any kernel has.
    #[error("more frames than a kernel has: the stack is damaged")]
    TooLong,
}

/// Frames, the innermost first, and how they ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackTrace {
    /// The frames.
    pub frames: Vec<Frame>,
    /// How it ended.
    pub end: End,
}

impl BackTrace {
    /// Whether it reached the end of the stack or user mode, every frame being certain.
    pub fn is_whole(&self) -> bool {
        matches!(self.end, End::Bottom | End::UserMode(_)) && self.frames.iter().all(|frame| frame.certain)
    }

    /// Whether a function is on it for certain.
    pub fn has(&self, function: &str) -> bool {
        self.frames.iter().any(|frame| {
            frame.certain && frame.location.as_ref().is_some_and(|location| location.name == function)
        })
    }
}

impl fmt::Display for BackTrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut stack = None;
        for frame in &self.frames {
            if stack.replace(frame.stack).is_none_or(|stack| stack != frame.stack) {
                writeln!(f, " <{}>", frame.stack)?;
            }
            f.write_str(if frame.certain { "  " } else { "  ? " })?;
            match &frame.location {
                Some(location) => writeln!(f, "{location}")?,
                None => writeln!(f, "{:#018x}", frame.address)?,
            }
        }
        match &self.end {
            End::Bottom => Ok(()),
            end => writeln!(f, " ({end})"),
        }
    }
}

/// From where a back trace starts.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    ip: u64,
    sp: u64,
    bp: u64,
    /// The address is that of an instruction that did not run, not one behind a call.
    exact: bool,
    saved: Option<Saved>,
}

impl Start {
    /// From the registers of a CPU.
    pub const fn registers(registers: &Registers) -> Self {
        Self {
            ip: registers.rip,
            sp: registers.rsp,
            bp: registers.rbp,
            exact: true,
            saved: Some(Saved { registers: *registers, complete: true }),
        }
    }

    /// From a task that does not run: its stack pointer, its frame pointer, and where it goes on.
    pub const fn sleeping(sp: u64, bp: u64, ip: u64) -> Self {
        Self { ip, sp, bp, exact: false, saved: None }
    }
}

/// Unwinds one stack after the other.
pub struct Unwinder<'k> {
    memory: &'k dyn VirtualMemory,
    code: &'k dyn Code,
    stacks: &'k Stacks,
}

impl fmt::Debug for Unwinder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unwinder").finish_non_exhaustive()
    }
}

/// Where unwinding stands.
#[derive(Clone, Copy)]
struct State {
    ip: u64,
    sp: u64,
    bp: u64,
    exact: bool,
    certain: bool,
    /// All registers, if entry code saved them right below this frame.
    known: Option<Registers>,
}

impl<'k> Unwinder<'k> {
    /// With what is needed for it.
    pub const fn new(memory: &'k dyn VirtualMemory, code: &'k dyn Code, stacks: &'k Stacks) -> Self {
        Self { memory, code, stacks }
    }

    /// The back trace from there.
    pub fn unwind(&self, start: Start) -> BackTrace {
        let mut frames = Vec::new();
        let Start { ip, sp, bp, exact, saved } = start;
        let known = saved.filter(|saved| saved.complete).map(|saved| saved.registers);
        let mut state = State { ip, sp, bp, exact, certain: true, known };
        let end = self.walk(&mut state, saved, &mut frames);
        if !matches!(end, End::Bottom | End::UserMode(_)) {
            self.guess(&state, &mut frames);
        }
        BackTrace { frames, end }
    }

    /// Goes on from a state until there is an end. Leaves the state at the last frame.
    fn walk(&self, state: &mut State, mut saved: Option<Saved>, frames: &mut Vec<Frame>) -> End {
        let mut switches = 0;
        loop {
            if let Some(Saved { registers, .. }) = saved
                && registers.cs & 3 == 3
            {
                return End::UserMode(Box::new(registers));
            }
            let (range, stack) = self.stacks.at(state.sp);
            if frames.len() >= MOST_FRAMES || switches > MOST_SWITCHES {
                return End::TooLong;
            }
            frames.push(self.frame(state, stack, saved.take()));
            let next = match self.step(*state) {
                Ok((next, registers)) => {
                    saved = registers;
                    next
                }
                Err(end) => return end,
            };
            if range.contains(&next.sp) || range.end == next.sp {
                if next.sp <= state.sp {
                    return End::NoProgress { from: state.sp, to: next.sp };
                }
            } else {
                switches += 1;
            }
            *state = next;
        }
    }

    fn frame(&self, state: &State, stack: Stack, saved: Option<Saved>) -> Frame {
        Frame {
            address: state.ip,
            stack_pointer: state.sp,
            location: self.locate(state.ip, state.exact),
            stack,
            certain: state.certain,
            saved,
        }
    }

    /// A return address may be the first of the next function, if the call was the last instruction of its own: so the byte
    /// before it is looked up.
    fn locate(&self, address: u64, exact: bool) -> Option<Location> {
        if exact {
            return self.code.locate(address);
        }
        let mut location = self.code.locate(address.wrapping_sub(1))?;
        location.offset += 1;
        Some(location)
    }

    fn word(&self, address: u64) -> Result<u64, End> {
        self.memory.read_u64(address).map_err(End::Unreadable)
    }

    /// The caller's frame, and the registers that were saved there.
    fn step(&self, state: State) -> Result<(State, Option<Saved>), End> {
        if self.code.has_frame_pointers() {
            return self.step_by_frame_pointer(state);
        }
        let lookup = if state.exact { state.ip } else { state.ip.wrapping_sub(1) };
        match self.code.entry(lookup).map_err(End::Unreadable)? {
            Some(entry) if entry.kind != FrameKind::Undefined => self.follow(state, entry),
            // A call of a null pointer: the return address is the first word. The kernel does the same.
            None if state.ip == 0 => self.follow(state, CALLED_NULL),
            _ => self.step_by_call(state),
        }
    }

    /// Some functions are left out of the tables, as `__crash_kexec` is, in which every kernel that crashes stands. Its
    /// caller's return address is the first word that is behind a direct call of this very function.
    fn step_by_call(&self, state: State) -> Result<(State, Option<Saved>), End> {
        let none = || End::NoEntry { address: state.ip };
        let within = if state.exact { state.ip } else { state.ip.wrapping_sub(1) };
        let function = self.code.locate(within).map(|at| within.wrapping_sub(at.offset)).ok_or_else(none)?;
        let called_it = |ip| self.call_before(ip) == Some(Call::Direct(function));
        let (at, ip) = self.code_words(state.sp).find(|&(_, ip)| called_it(ip)).ok_or_else(none)?;
        Ok((State { ip, sp: at + 8, exact: false, known: None, ..state }, None))
    }

    /// The words on the rest of a stack that are addresses of code, and where they are.
    fn code_words(&self, sp: u64) -> impl Iterator<Item = (u64, u64)> {
        let range = self.stacks.at(sp).0;
        let begin = sp.checked_next_multiple_of(8).unwrap_or(sp).max(range.start);
        let bytes = match begin {
            KERNEL_HALF.. => self.memory.read_available(begin, range.end.saturating_sub(begin) as usize),
            _ => Vec::new(),
        };
        (0..bytes.len() / 8).filter_map(move |index| {
            let word = number(&bytes, 8 * index, 8).filter(|&word| word >= KERNEL_HALF)?;
            self.code.is_code(word).then_some((begin + 8 * index as u64, word))
        })
    }

    /// The call whose return address this is; none if there is no call before it.
    fn call_before(&self, address: u64) -> Option<Call> {
        // The longest indirect call has 7 bytes. SDM volume 2A, "CALL".
        let mut code = [0; 7];
        self.memory.read(address.checked_sub(7)?, &mut code).ok()?;
        if code[2] == 0xe8 {
            let relative = number_u32(&code, 3).map_or(0, sign_extended);
            return Some(Call::Direct(address.wrapping_add(relative)));
        }
        // FF /2: a register (2 bytes), or memory with its displacements (2, 3, 4, 6, 7 bytes).
        let indirect = |length: usize| code[7 - length] == 0xff && code[8 - length] >> 3 & 7 == 2;
        [2, 3, 4, 6, 7].into_iter().any(indirect).then_some(Call::Indirect)
    }

    fn follow(&self, state: State, entry: OrcEntry) -> Result<(State, Option<Saved>), End> {
        match entry.kind {
            FrameKind::Undefined => return Err(End::NoEntry { address: state.ip }),
            FrameKind::EndOfStack => return Err(End::Bottom),
            _ => {}
        }
        let top = self.caller_stack(&state, entry)?;
        let mut next = State { exact: entry.interrupted, known: None, ..state };
        let mut saved = None;
        match entry.kind {
            FrameKind::Registers => {
                let registers = self.pt_regs(top)?;
                (next.ip, next.sp, next.known) = (registers.rip, registers.rsp, Some(registers));
                saved = Some(Saved { registers, complete: true });
            }
            FrameKind::InterruptFrame => {
                let registers = self.interrupt_frame(top)?;
                (next.ip, next.sp, next.known) = (registers.rip, registers.rsp, state.known);
                saved = Some(Saved { registers, complete: false });
            }
            _ => (next.ip, next.sp) = (self.word(top.wrapping_sub(8))?, top),
        }
        next.bp = match entry.bp {
            Register::PreviousSp => self.word(top.wrapping_add_signed(entry.bp_offset.into()))?,
            Register::Bp => self.word(state.bp.wrapping_add_signed(entry.bp_offset.into()))?,
            Register::Undefined => next.known.map_or(state.bp, |registers| registers.rbp),
            register => return Err(End::NoRegister { address: state.ip, register }),
        };
        Ok((next, saved))
    }

    /// The stack pointer of the caller, or where the registers are.
    fn caller_stack(&self, state: &State, entry: OrcEntry) -> Result<u64, End> {
        let offset = i64::from(entry.sp_offset);
        let register = |of: fn(&Registers) -> u64| match &state.known {
            Some(registers) => Ok(of(registers)),
            None => Err(End::NoRegister { address: state.ip, register: entry.sp }),
        };
        Ok(match entry.sp {
            Register::Sp => state.sp.wrapping_add_signed(offset),
            Register::Bp => state.bp.wrapping_add_signed(offset),
            Register::BpIndirect => self.word(state.bp.wrapping_add_signed(offset))?,
            Register::SpIndirect if self.code.offset_before_indirection() => {
                self.word(state.sp.wrapping_add_signed(offset))?
            }
            Register::SpIndirect => self.word(state.sp)?.wrapping_add_signed(offset),
            Register::R10 => register(|registers| registers.r10)?,
            Register::R13 => register(|registers| registers.r13)?,
            Register::Di => register(|registers| registers.rdi)?,
            Register::Dx => register(|registers| registers.rdx)?,
            Register::Ax => register(|registers| registers.rax)?,
            Register::Undefined | Register::PreviousSp | Register::Unknown => {
                return Err(End::NoRegister { address: state.ip, register: entry.sp });
            }
        })
    }

    /// A `struct pt_regs`: 21 words.
    fn pt_regs(&self, at: u64) -> Result<Registers, End> {
        let bytes = self.memory.read_bytes(at, 21 * 8).map_err(End::Unreadable)?;
        let word = |index: usize| number(&bytes, 8 * index, 8).unwrap_or(0);
        Ok(Registers {
            r15: word(0),
            r14: word(1),
            r13: word(2),
            r12: word(3),
            rbp: word(4),
            rbx: word(5),
            r11: word(6),
            r10: word(7),
            r9: word(8),
            r8: word(9),
            rax: word(10),
            rcx: word(11),
            rdx: word(12),
            rsi: word(13),
            rdi: word(14),
            orig_rax: word(15),
            rip: word(16),
            // The processor pushes 64 bits, of which 16 are the selector; kernels put flags of their own above.
            cs: word(17) & 0xffff,
            rflags: word(18),
            rsp: word(19),
            ss: word(20) & 0xffff,
            ..Registers::NONE
        })
    }

    /// What the processor pushes: five words.
    fn interrupt_frame(&self, at: u64) -> Result<Registers, End> {
        let bytes = self.memory.read_bytes(at, 5 * 8).map_err(End::Unreadable)?;
        let word = |index: usize| number(&bytes, 8 * index, 8).unwrap_or(0);
        Ok(Registers {
            rip: word(0),
            cs: word(1) & 0xffff,
            rflags: word(2),
            rsp: word(3),
            ss: word(4) & 0xffff,
            ..Registers::NONE
        })
    }

    /// A chain of frame pointers. Entry code marks the registers that it has saved by the lowest bit of the pointer to them.
    fn step_by_frame_pointer(&self, state: State) -> Result<(State, Option<Saved>), End> {
        if state.bp & 1 != 0 {
            let registers = self.pt_regs(state.bp & !1)?;
            let next = State {
                ip: registers.rip,
                sp: registers.rsp,
                bp: registers.rbp,
                exact: true,
                known: Some(registers),
                ..state
            };
            return Ok((next, Some(Saved { registers, complete: true })));
        }
        if state.bp < KERNEL_HALF || !state.bp.is_multiple_of(8) {
            return Err(End::NoEntry { address: state.ip });
        }
        let [bp, ip] = [self.word(state.bp)?, self.word(state.bp.wrapping_add(8))?];
        if !self.code.is_code(ip) {
            return Err(if bp == 0 { End::Bottom } else { End::NoEntry { address: state.ip } });
        }
        Ok((State { ip, bp, sp: state.bp.wrapping_add(16), exact: false, known: None, ..state }, None))
    }

    /// Looks through the rest of the stack for return addresses: words that are addresses of code behind a call. From each
    /// it goes on as if that were certain, until one leads to the end of the stack; if none does, all of them are guesses.
    fn guess(&self, state: &State, frames: &mut Vec<Frame>) {
        let stack = self.stacks.at(state.sp).1;
        let mut single = Vec::new();
        let calls = self.code_words(state.sp).filter(|&(_, ip)| self.call_before(ip).is_some());
        for (at, ip) in calls.take(MOST_GUESSES) {
            let guess = State { ip, sp: at + 8, exact: false, certain: false, known: None, ..*state };
            let mut chain = Vec::new();
            let end = self.walk(&mut guess.clone(), None, &mut chain);
            if matches!(end, End::Bottom | End::UserMode(_)) {
                frames.append(&mut chain);
                return;
            }
            single.push(self.frame(&guess, stack, None));
        }
        frames.append(&mut single);
    }
}

/// A call instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    /// Of this address.
    Direct(u64),
    /// Of an address in a register or in memory.
    Indirect,
}

/// As if a function had just been called.
const CALLED_NULL: OrcEntry = OrcEntry {
    sp_offset: 8,
    bp_offset: 0,
    sp: Register::Sp,
    bp: Register::Undefined,
    kind: FrameKind::Call,
    interrupted: false,
};
