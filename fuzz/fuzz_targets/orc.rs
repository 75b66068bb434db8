//! Back traces: any tables, any stacks, any code.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smpcall_crashdump::ReadError;
use smpcall_crashdump::location::Location;
use smpcall_crashdump::orc::{Layout, OrcEntry, OrcTable};
use smpcall_crashdump::stacks::{Stack, Stacks};
use smpcall_crashdump::unwind::{Code, Start, Unwinder};
use smpcall_crashdump::virtual_memory::Extents;
use smpcall_vmcore::Registers;

const CODE: u64 = 0xffff_ffff_8100_0000;
const IPS: u64 = 0xffff_ffff_8200_0000;
const ENTRIES: u64 = 0xffff_ffff_8300_0000;
const TASK: u64 = 0xffff_c900_0001_0000;
const IRQ: u64 = 0xffff_c900_0002_0000;
/// How long code, each stack and the tables are.
const PART: usize = 1024;

struct Fuzzed {
    memory: Extents,
    table: OrcTable,
    layout: Layout,
    frame_pointers: bool,
}

impl Code for Fuzzed {
    fn entry(&self, address: u64) -> Result<Option<OrcEntry>, ReadError> {
        Ok(self.table.find(&self.memory, address)?.map(|entry| self.layout.decode(entry)))
    }

    fn locate(&self, address: u64) -> Option<Location> {
        let offset = address % 0x40;
        self.is_code(address).then(|| Location { name: "function".into(), offset, size: 0x40, module: None })
    }

    fn is_code(&self, address: u64) -> bool {
        (CODE..CODE + PART as u64).contains(&address)
    }

    fn offset_before_indirection(&self) -> bool {
        self.frame_pointers
    }

    fn has_frame_pointers(&self) -> bool {
        self.frame_pointers
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((head, mut rest)) = data.split_first_chunk::<24>() else { return };
    let mut part = |at: u64| {
        let (here, behind) = rest.split_at(rest.len().min(PART));
        rest = behind;
        (at, here.to_vec())
    };
    let memory = Extents([IPS, ENTRIES, CODE, TASK, IRQ].into_iter().map(&mut part).collect());
    let layouts = [Layout::TwoBitType, Layout::SignalBit, Layout::ThreeBitType, Layout::Renumbered];
    let fuzzed = Fuzzed {
        memory,
        table: OrcTable { ips: IPS, entries: ENTRIES, count: head[0].into() },
        layout: layouts[usize::from(head[1] % 4)],
        frame_pointers: head[1] & 4 != 0,
    };
    let small = |at: usize| u64::from(u16::from_le_bytes([head[at], head[at + 1]]));
    let registers = Registers {
        rip: CODE + small(2),
        rsp: TASK + small(4),
        rbp: TASK + small(6),
        r10: TASK + small(8),
        r13: IRQ + small(10),
        rdi: small(12),
        rdx: small(14),
        cs: small(16),
        ..Registers::NONE
    };
    let stacks = Stacks::new(vec![(IRQ..IRQ + PART as u64, Stack::Irq)]);
    let unwinder = Unwinder::new(&fuzzed.memory, &fuzzed, &stacks);
    for start in [Start::registers(&registers), Start::sleeping(registers.rsp, registers.rbp, registers.rip)]
    {
        let trace = unwinder.unwind(start);
        assert!(trace.frames.len() <= 1200);
        let _ = trace.to_string();
    }
});
