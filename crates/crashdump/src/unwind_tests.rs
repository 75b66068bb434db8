use std::collections::BTreeMap;

use proptest::prelude::*;
use smpcall_vmcore::Registers;

use crate::ReadError;
use crate::location::Location;
use crate::orc::{FrameKind, OrcEntry, Register};
use crate::stacks::{Stack, Stacks};
use crate::unwind::{BackTrace, Code, End, Start, Unwinder};
use crate::virtual_memory::Extents;

const CODE: u64 = 0xffff_ffff_8100_0000;
const TASK: u64 = 0xffff_c900_0001_0000;
const IRQ: u64 = 0xffff_c900_0002_0000;
const NMI: u64 = 0xffff_fe00_0000_1000;
const FUNCTION: u64 = 0x100;

/// Functions of 0x100 bytes each, `f0`, `f1` and so on, each with one entry or none.
#[derive(Default)]
struct Functions {
    entries: BTreeMap<u64, OrcEntry>,
    frame_pointers: bool,
    old_indirection: bool,
}

impl Functions {
    fn at(index: u64) -> u64 {
        CODE + index * FUNCTION
    }

    fn with(mut self, index: u64, entry: OrcEntry) -> Self {
        self.entries.insert(index, entry);
        self
    }
}

impl Code for Functions {
    fn entry(&self, address: u64) -> Result<Option<OrcEntry>, ReadError> {
        Ok(self.is_code(address).then(|| self.entries.get(&((address - CODE) / FUNCTION)).copied()).flatten())
    }

    fn locate(&self, address: u64) -> Option<Location> {
        self.is_code(address).then(|| {
            let (index, offset) = ((address - CODE) / FUNCTION, address % FUNCTION);
            Location { name: format!("f{index}"), offset, size: FUNCTION, module: None }
        })
    }

    fn is_code(&self, address: u64) -> bool {
        (CODE..CODE + 16 * FUNCTION).contains(&address)
    }

    fn offset_before_indirection(&self) -> bool {
        self.old_indirection
    }

    fn has_frame_pointers(&self) -> bool {
        self.frame_pointers
    }
}

/// A function whose frame has so many bytes, the return address with them.
const fn frame(bytes: i16) -> OrcEntry {
    OrcEntry {
        sp_offset: bytes,
        bp_offset: 0,
        sp: Register::Sp,
        bp: Register::Undefined,
        kind: FrameKind::Call,
        interrupted: false,
    }
}

const END: OrcEntry = OrcEntry { sp: Register::Undefined, kind: FrameKind::EndOfStack, ..frame(0) };
/// Entry code: all registers are at the stack pointer.
const REGISTERS: OrcEntry = OrcEntry { kind: FrameKind::Registers, interrupted: true, ..frame(0) };
const INTERRUPT_FRAME: OrcEntry = OrcEntry { kind: FrameKind::InterruptFrame, ..REGISTERS };

/// Memory: three stacks, and code that is all zero but for calls.
struct Machine {
    memory: Extents,
}

impl Machine {
    fn new() -> Self {
        let stack = |base| (base, vec![0; 0x4000]);
        Self {
            memory: Extents(vec![
                (CODE, vec![0x90; 16 * FUNCTION as usize]),
                stack(TASK),
                stack(IRQ),
                (NMI, vec![0; 0x1000]),
            ]),
        }
    }

    fn put(&mut self, address: u64, bytes: &[u8]) {
        let (base, extent) = self
            .memory
            .0
            .iter_mut()
            .find(|(base, bytes)| (*base..*base + bytes.len() as u64).contains(&address))
            .expect("memory");
        let at = (address - *base) as usize;
        extent[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn words(&mut self, address: u64, words: &[u64]) {
        for (at, word) in words.iter().enumerate() {
            self.put(address + 8 * at as u64, &word.to_le_bytes());
        }
    }

    /// A `struct pt_regs` with this instruction pointer, selector and stack pointer, and frame pointer 7.
    fn pt_regs(&mut self, address: u64, ip: u64, cs: u64, sp: u64) {
        let mut words: Vec<u64> = (100..121).collect();
        (words[4], words[16], words[17], words[19]) = (7, ip, cs, sp);
        self.words(address, &words);
    }

    /// A call of `target` right before `address`.
    fn call(&mut self, address: u64, target: u64) {
        let mut code = vec![0xe8];
        code.extend_from_slice(&(target.wrapping_sub(address) as u32).to_le_bytes());
        self.put(address - 5, &code);
    }

    fn unwind(&self, code: &Functions, start: Start) -> BackTrace {
        let stacks = Stacks::new(vec![(IRQ..IRQ + 0x4000, Stack::Irq), (NMI..NMI + 0x1000, Stack::Nmi)]);
        Unwinder::new(&self.memory, code, &stacks).unwind(start)
    }
}

fn registers(ip: u64, sp: u64) -> Registers {
    Registers { rip: ip, rsp: sp, cs: 0x10, ..Registers::NONE }
}

fn names(trace: &BackTrace) -> Vec<String> {
    let name =
        |location: &Option<Location>| location.as_ref().map_or("?".into(), |location| location.name.clone());
    trace
        .frames
        .iter()
        .map(|frame| format!("{}{}", if frame.certain { "" } else { "? " }, name(&frame.location)))
        .collect()
}

#[test]
fn calls_are_followed_to_the_end_of_the_stack() {
    let code = Functions::default().with(0, frame(8)).with(1, frame(32)).with(2, END);
    let mut machine = Machine::new();
    machine.words(TASK + 0x3000, &[Functions::at(1) + 0x20, 0, 0, 0, Functions::at(2) + 0x30]);
    let trace = machine.unwind(&code, Start::registers(&registers(Functions::at(0) + 4, TASK + 0x3000)));
    assert_eq!(names(&trace), ["f0", "f1", "f2"]);
    assert_eq!(trace.end, End::Bottom);
    assert!(trace.is_whole() && trace.has("f1") && !trace.has("f9"));
    assert_eq!(trace.frames[1].stack_pointer, TASK + 0x3008);
    assert_eq!(trace.to_string(), " <TASK>\n  f0+0x4/0x100\n  f1+0x20/0x100\n  f2+0x30/0x100\n");
}

#[test]
fn a_return_address_behind_a_functions_end_belongs_to_that_function() {
    let code = Functions::default().with(0, frame(8)).with(1, frame(8)).with(2, frame(800)).with(3, END);
    let mut machine = Machine::new();
    // A call was the last instruction of f1, so the return address is the first of f2.
    machine.words(TASK + 0x3000, &[Functions::at(2), Functions::at(3) + 1]);
    let trace = machine.unwind(&code, Start::registers(&registers(Functions::at(0), TASK + 0x3000)));
    assert_eq!(names(&trace), ["f0", "f1", "f3"]);
    assert_eq!(trace.frames[1].location.as_ref().map(|at| at.offset), Some(FUNCTION));
}

#[test]
fn an_interrupt_leads_from_its_stack_to_what_it_interrupted() {
    // f1 runs on the interrupt stack, whose first word points back to the task's stack, where entry code (f2) keeps
    // the registers of f3.
    let switch = OrcEntry { sp: Register::SpIndirect, ..frame(8) };
    let code = Functions::default()
        .with(0, frame(8))
        .with(1, switch)
        .with(2, REGISTERS)
        .with(3, frame(16))
        .with(4, END);
    let mut machine = Machine::new();
    let task = TASK + 0x3000;
    machine.words(IRQ + 0x3ff0, &[Functions::at(1) + 9, task]);
    machine.words(task, &[Functions::at(2) + 9]);
    machine.pt_regs(task + 8, Functions::at(3) + 5, 0x10, TASK + 0x3800);
    machine.words(TASK + 0x3800, &[0, Functions::at(4) + 7]);
    let trace = machine.unwind(&code, Start::registers(&registers(Functions::at(0), IRQ + 0x3ff0)));
    assert_eq!(names(&trace), ["f0", "f1", "f2", "f3", "f4"]);
    let stacks: Vec<_> = trace.frames.iter().map(|frame| frame.stack).collect();
    assert_eq!(stacks, [Stack::Irq, Stack::Irq, Stack::Task, Stack::Task, Stack::Task]);
    let saved = trace.frames[3].saved.expect("it was interrupted");
    assert!(saved.complete);
    assert_eq!(
        (saved.registers.rip, saved.registers.r15, saved.registers.rbp),
        (Functions::at(3) + 5, 100, 7)
    );
    assert!(trace.frames[2].saved.is_none());
    assert!(trace.to_string().starts_with(" <IRQ>\n  f0+0x0/0x100\n  f1+0x9/0x100\n <TASK>\n  f2+"));
}

#[test]
fn until_5_11_the_offset_of_an_indirection_counts_before_it() {
    let switch = OrcEntry { sp: Register::SpIndirect, ..frame(16) };
    let mut code = Functions::default().with(1, switch).with(2, END);
    let mut machine = Machine::new();
    machine.words(IRQ + 0x3000, &[TASK + 0x3000, 0, TASK + 0x3400]);
    machine.words(TASK + 0x3000, &[0, Functions::at(2) + 1]);
    machine.words(TASK + 0x33f8, &[Functions::at(2) + 2]);
    let start = Start::registers(&registers(Functions::at(1), IRQ + 0x3000));
    assert_eq!(machine.unwind(&code, start).frames[1].address, Functions::at(2) + 1);
    code.old_indirection = true;
    assert_eq!(machine.unwind(&code, start).frames[1].address, Functions::at(2) + 2);
}

#[test]
fn frame_pointers_are_followed_where_entries_count_from_them() {
    let by_bp =
        OrcEntry { sp: Register::Bp, bp: Register::PreviousSp, sp_offset: 16, bp_offset: -16, ..frame(0) };
    let code = Functions::default().with(0, by_bp).with(1, by_bp).with(2, END);
    let mut machine = Machine::new();
    machine.words(TASK + 0x3100, &[TASK + 0x3200, Functions::at(1) + 1]);
    machine.words(TASK + 0x3200, &[0, Functions::at(2) + 1]);
    let start = Registers { rbp: TASK + 0x3100, ..registers(Functions::at(0) + 8, TASK + 0x3000) };
    let trace = machine.unwind(&code, Start::registers(&start));
    assert_eq!((names(&trace), trace.end), (vec!["f0".into(), "f1".into(), "f2".into()], End::Bottom));
}

#[test]
fn user_mode_ends_a_back_trace_with_its_registers() {
    let code = Functions::default().with(0, frame(8)).with(1, REGISTERS);
    let mut machine = Machine::new();
    machine.words(TASK + 0x3000, &[Functions::at(1) + 1]);
    machine.pt_regs(TASK + 0x3008, 0x40_1000, 0x33, 0x7ffc_0000);
    let trace = machine.unwind(&code, Start::registers(&registers(Functions::at(0), TASK + 0x3000)));
    assert_eq!(names(&trace), ["f0", "f1"]);
    assert!(matches!(trace.end, End::UserMode(registers) if registers.rip == 0x40_1000));
    // A CPU in user mode has nothing on its kernel stack.
    let user = Registers { cs: 0x33, ..registers(0x40_1000, 0x7ffc_0000) };
    let trace = machine.unwind(&code, Start::registers(&user));
    assert!(trace.frames.is_empty() && trace.is_whole());
}

#[test]
fn what_only_the_processor_saved_is_said_to_be_incomplete() {
    let code = Functions::default().with(0, INTERRUPT_FRAME).with(1, END);
    let mut machine = Machine::new();
    machine.words(NMI + 0xfd8, &[Functions::at(1) + 3, 0x10, 0x46, TASK + 0x3000, 0x18]);
    let trace = machine.unwind(&code, Start::registers(&registers(Functions::at(0), NMI + 0xfd8)));
    let saved = trace.frames[1].saved.expect("it was interrupted");
    assert!(!saved.complete);
    assert_eq!((saved.registers.rip, saved.registers.rflags), (Functions::at(1) + 3, 0x46));
    assert_eq!((trace.frames[0].stack, trace.frames[1].stack), (Stack::Nmi, Stack::Task));
}

#[test]
fn a_register_that_nobody_saved_is_named() {
    let code = Functions::default().with(1, OrcEntry { sp: Register::R10, ..frame(0) }).with(2, END);
    let mut machine = Machine::new();
    let sleeping = Start::sleeping(TASK + 0x3000, 0, Functions::at(1) + 1);
    let trace = machine.unwind(&code, sleeping);
    assert_eq!(trace.end, End::NoRegister { address: Functions::at(1) + 1, register: Register::R10 });
    // With all registers it is no obstacle.
    machine.words(TASK + 0x3100, &[Functions::at(2) + 1]);
    let start = Registers { r10: TASK + 0x3108, ..registers(Functions::at(1) + 1, TASK + 0x3000) };
    assert_eq!(names(&machine.unwind(&code, Start::registers(&start))), ["f1", "f2"]);
}

#[test]
fn a_function_without_entries_is_left_where_it_was_called() {
    // As a crashing kernel stands in __crash_kexec: f5 has no entries, and words of its frame look like code.
    let code = Functions::default().with(1, frame(8)).with(2, END);
    let mut machine = Machine::new();
    machine.words(
        TASK + 0x3000,
        &[Functions::at(6), Functions::at(5) + 9, Functions::at(1) + 0x20, Functions::at(2) + 8],
    );
    machine.call(Functions::at(1) + 0x20, Functions::at(5));
    let trace = machine.unwind(&code, Start::registers(&registers(Functions::at(5) + 9, TASK + 0x3000)));
    assert_eq!(names(&trace), ["f5", "f1", "f2"]);
    assert!(trace.is_whole());
}

#[test]
fn what_cannot_be_unwound_is_guessed_from_calls_and_said_to_be() {
    let code = Functions::default().with(1, frame(8)).with(2, END);
    let mut machine = Machine::new();
    // f6 is no return address: there is no call before it. f3's leads nowhere. f1's leads to the end.
    let words = [Functions::at(6), Functions::at(3) + 0x10, 0, Functions::at(1) + 0x20, Functions::at(2) + 8];
    machine.words(TASK + 0x3000, &words);
    machine.call(Functions::at(3) + 0x10, Functions::at(7));
    machine.call(Functions::at(1) + 0x20, Functions::at(7));
    let start = Start::registers(&registers(Functions::at(5) + 9, TASK + 0x3000));
    let trace = machine.unwind(&code, start);
    assert_eq!(names(&trace), ["f5", "? f1", "? f2"]);
    assert_eq!(trace.end, End::NoEntry { address: Functions::at(5) + 9 });
    assert!(!trace.is_whole() && !trace.has("f1"));
    // If none leads to an end, each is a guess of its own.
    let code = Functions::default().with(1, frame(8));
    assert_eq!(names(&machine.unwind(&code, start)), ["f5", "? f3", "? f1"]);
}

#[test]
fn a_stack_that_goes_back_or_round_ends() {
    let back = OrcEntry { sp_offset: -8, ..frame(0) };
    let code = Functions::default().with(0, back);
    let mut machine = Machine::new();
    machine.words(TASK + 0x2ff0, &[Functions::at(0), Functions::at(0)]);
    let trace = machine.unwind(&code, Start::registers(&registers(Functions::at(0), TASK + 0x3000)));
    assert_eq!(trace.end, End::NoProgress { from: TASK + 0x3000, to: TASK + 0x2ff8 });
    // Two stacks that lead to one another.
    let code = Functions::default().with(0, OrcEntry { sp: Register::SpIndirect, ..frame(8) });
    let mut machine = Machine::new();
    machine.words(TASK + 0x3000, &[IRQ + 0x3000]);
    machine.words(IRQ + 0x3000, &[Functions::at(0)]);
    machine.words(IRQ + 0x3008, &[TASK + 0x3000]);
    machine.words(TASK + 0x3000, &[IRQ + 0x3000]);
    let trace = machine.unwind(&code, Start::registers(&registers(Functions::at(0), TASK + 0x3000)));
    assert!(trace.frames.len() < 600, "{}", trace.frames.len());
    assert!(!trace.is_whole());
}

#[test]
fn a_call_of_nothing_shows_its_caller() {
    let code = Functions::default().with(1, END);
    let mut machine = Machine::new();
    machine.words(TASK + 0x3000, &[Functions::at(1) + 4]);
    let trace = machine.unwind(&code, Start::registers(&registers(0, TASK + 0x3000)));
    assert_eq!(names(&trace), ["?", "f1"]);
}

#[test]
fn kernels_with_frame_pointers_are_unwound_by_them() {
    let code = Functions { frame_pointers: true, ..Functions::default() };
    let mut machine = Machine::new();
    machine.words(TASK + 0x3100, &[TASK + 0x3200, Functions::at(1) + 1]);
    // Entry code marks its registers by the lowest bit.
    machine.words(TASK + 0x3200, &[TASK + 0x3300 + 1, Functions::at(2) + 1]);
    machine.pt_regs(TASK + 0x3300, Functions::at(3) + 1, 0x33, 0x7ffc_0000);
    let start = Registers { rbp: TASK + 0x3100, ..registers(Functions::at(0) + 8, TASK + 0x3000) };
    let trace = machine.unwind(&code, Start::registers(&start));
    assert_eq!(names(&trace), ["f0", "f1", "f2"]);
    assert!(matches!(trace.end, End::UserMode(_)));
}

proptest! {
    /// Whatever is on the stacks and in the tables: an end, soon.
    #[test]
    fn any_stack_ends(
        words in prop::collection::vec((0..0x4000_u64 / 8, 0..24_u64), 0..200),
        entries in prop::collection::vec((any::<[u8; 6]>(), 0..4_usize), 16),
        (ip, sp, bp) in (0..16_u64, 0..0x4000_u64, 0..0x4000_u64),
        frame_pointers: bool,
    ) {
        use crate::orc::Layout;
        let layouts = [Layout::TwoBitType, Layout::SignalBit, Layout::ThreeBitType, Layout::Renumbered];
        let mut code = Functions { frame_pointers, ..Functions::default() };
        for (index, (bytes, layout)) in entries.into_iter().enumerate() {
            code.entries.insert(index as u64, layouts[layout].decode(bytes));
        }
        let mut machine = Machine::new();
        for (at, word) in words {
            // Code, or a place on one of the stacks.
            let value = match word {
                0..16 => Functions::at(word) + 8,
                16..20 => TASK + (word * 0x311) % 0x4000,
                _ => IRQ + (word * 0x2f1) % 0x4000,
            };
            machine.words(if at % 2 == 0 { TASK } else { IRQ } + 8 * at, &[value]);
        }
        let start = Registers { rbp: TASK + bp, ..registers(Functions::at(ip), TASK + sp) };
        let trace = machine.unwind(&code, Start::registers(&start));
        prop_assert!(trace.frames.len() <= 1200);
    }
}
