//! The registers of each CPU, from the notes of a dump: `NT_PRSTATUS`, and QEMU's own note.
//!
//! QEMU's note (owner `QEMU`, type 0), little-endian, 440 bytes; the last 8 are missing in old ones:
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | version, size of the note (32 bits each) |
//! | 8..136 | rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8 to r15 |
//! | 136..152 | rip, rflags |
//! | 152..392 | cs, ds, es, fs, gs, ss, ldt, tr, gdt, idt: selector, limit, flags, padding (32 bits each), base (64) |
//! | 392..432 | cr0 to cr4 |
//! | 432..440 | `IA32_KERNEL_GS_BASE` |
//!
//! Source: QEMU, `target/i386/arch_dump.c` (facts only).

use smpcall_vmcore::{PrStatus, Registers, prstatus};

use crate::notes::Note;

/// The owner of QEMU's notes.
pub const QEMU: &str = "QEMU";

/// The size of QEMU's note without `IA32_KERNEL_GS_BASE`.
const QEMU_BYTES: usize = 432;

/// What a note says of one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SavedCpu {
    /// The position of the note among its kind. The number of the CPU only if every CPU has one.
    pub index: usize,
    /// Its registers.
    pub registers: Registers,
    /// Registers that only a machine's monitor saves.
    pub control: Option<Control>,
    /// The task that it ran, if the note says so: of a kernel's own notes. (QEMU's count CPUs from 1 here.)
    pub pid: Option<u32>,
}

/// Registers that a monitor knows, and a crashing kernel does not save.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Control register 0.
    pub cr0: u64,
    /// The address of the last page fault.
    pub cr2: u64,
    /// The page tables.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// The base of `gs`.
    pub gs_base: u64,
    /// What `swapgs` would make the base of `gs`: in user mode the kernel's. None if the note is too old to say.
    pub kernel_gs_base: Option<u64>,
    /// The base of the global descriptor table.
    pub gdt_base: u64,
    /// The base of the interrupt descriptor table.
    pub idt_base: u64,
    /// The base of the task state segment.
    pub task_base: u64,
}

impl Control {
    /// In [`cr4`](Self::cr4): page tables have five levels. SDM volume 3A, "Control Registers".
    pub const LA57: u64 = 1 << 12;
}

/// The CPUs of a dump's notes, in the order of their `NT_PRSTATUS` notes; or of QEMU's, if there are no others.
pub(crate) fn of_notes(notes: &[Note]) -> Vec<SavedCpu> {
    let qemu: Vec<SavedCpu> = notes
        .iter()
        .filter(|note| note.owner == QEMU && note.kind == 0)
        .filter_map(|note| from_qemu(&note.descriptor))
        .collect();
    let mut cpus: Vec<SavedCpu> = notes
        .iter()
        .filter(|note| note.owner == prstatus::CORE && note.kind == prstatus::NT_PRSTATUS)
        .filter_map(|note| PrStatus::from_bytes(&note.descriptor))
        .map(|status| SavedCpu { registers: status.registers, pid: Some(status.pid), ..SavedCpu::default() })
        .collect();
    // QEMU writes both for every CPU, in the same order; with another number nothing says which belongs to which.
    if cpus.len() == qemu.len() {
        for (cpu, qemu) in cpus.iter_mut().zip(&qemu) {
            (cpu.control, cpu.pid) = (qemu.control, None);
        }
    } else if cpus.is_empty() {
        cpus = qemu;
    }
    for (index, cpu) in cpus.iter_mut().enumerate() {
        cpu.index = index;
    }
    cpus
}

fn from_qemu(note: &[u8]) -> Option<SavedCpu> {
    if note.len() < QEMU_BYTES {
        return None;
    }
    let word =
        |offset: usize| u64::from_le_bytes(*note[offset..].first_chunk().expect("the length was checked"));
    let general = |at: usize| word(8 + 8 * at);
    let selector = |segment: usize| word(152 + 24 * segment) & 0xffff_ffff;
    let base = |segment: usize| word(152 + 24 * segment + 16);
    let control = |number: usize| word(392 + 8 * number);
    let registers = Registers {
        rax: general(0),
        rbx: general(1),
        rcx: general(2),
        rdx: general(3),
        rsi: general(4),
        rdi: general(5),
        rsp: general(6),
        rbp: general(7),
        r8: general(8),
        r9: general(9),
        r10: general(10),
        r11: general(11),
        r12: general(12),
        r13: general(13),
        r14: general(14),
        r15: general(15),
        orig_rax: u64::MAX,
        rip: general(16),
        rflags: general(17),
        cs: selector(0),
        ds: selector(1),
        es: selector(2),
        fs: selector(3),
        gs: selector(4),
        ss: selector(5),
        fs_base: base(3),
        gs_base: base(4),
    };
    let control = Control {
        cr0: control(0),
        cr2: control(2),
        cr3: control(3),
        cr4: control(4),
        gs_base: base(4),
        kernel_gs_base: (note.len() >= QEMU_BYTES + 8).then(|| word(QEMU_BYTES)),
        task_base: base(7),
        gdt_base: base(8),
        idt_base: base(9),
    };
    Some(SavedCpu { registers, control: Some(control), ..SavedCpu::default() })
}

/// QEMU's note of a CPU: for a dump that we write of a machine whose monitor we have asked.
pub(crate) fn to_qemu(registers: &Registers, control: &Control) -> Vec<u8> {
    let length = QEMU_BYTES + if control.kernel_gs_base.is_some() { 8 } else { 0 };
    let mut note = Vec::with_capacity(length);
    note.extend_from_slice(&1u32.to_le_bytes());
    note.extend_from_slice(&(length as u32).to_le_bytes());
    let Registers { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, .. } =
        *registers;
    let general = [
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        registers.rip,
        registers.rflags,
    ];
    let segments = [
        (registers.cs, 0),
        (registers.ds, 0),
        (registers.es, 0),
        (registers.fs, registers.fs_base),
        (registers.gs, control.gs_base),
        (registers.ss, 0),
        (0, 0),
        (0, control.task_base),
        (0, control.gdt_base),
        (0, control.idt_base),
    ];
    let mut put = |words: &[u64]| words.iter().for_each(|word| note.extend_from_slice(&word.to_le_bytes()));
    put(&general);
    for (selector, base) in segments {
        put(&[selector & 0xffff_ffff, 0, base]);
    }
    put(&[control.cr0, 0, control.cr2, control.cr3, control.cr4]);
    if let Some(base) = control.kernel_gs_base {
        put(&[base]);
    }
    note
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn note(owner: &str, kind: u32, descriptor: Vec<u8>) -> Note {
        Note { owner: owner.into(), kind, descriptor }
    }

    /// A note in which every field holds its own offset.
    fn numbered() -> Vec<u8> {
        (0..440u64 / 8).flat_map(|at| (at * 8).to_le_bytes()).collect()
    }

    #[test]
    fn qemus_note_is_read_as_it_is_laid_out() {
        let cpu = from_qemu(&numbered()).expect("long enough");
        let registers = cpu.registers;
        assert_eq!((registers.rax, registers.rsp, registers.r15), (8, 56, 128));
        assert_eq!((registers.rip, registers.rflags), (136, 144));
        assert_eq!((registers.cs, registers.ss, registers.gs_base), (152, 272, 264));
        let control = cpu.control.expect("always there");
        assert_eq!((control.cr0, control.cr2, control.cr3, control.cr4), (392, 408, 416, 424));
        assert_eq!((control.task_base, control.gdt_base, control.idt_base), (336, 360, 384));
        assert_eq!(control.kernel_gs_base, Some(432));
        assert_eq!(from_qemu(&numbered()[..432]).and_then(|cpu| cpu.control?.kernel_gs_base), None);
        assert_eq!(from_qemu(&numbered()[..431]), None);
    }

    #[test]
    fn notes_of_both_kinds_are_joined_if_there_are_as_many() {
        let status = |pid| note("CORE", 1, PrStatus { pid, ..PrStatus::default() }.to_bytes().to_vec());
        let both = [status(1), status(2), note("QEMU", 0, numbered()), note("QEMU", 0, numbered())];
        let cpus = of_notes(&both);
        assert_eq!(cpus.iter().map(|cpu| cpu.index).collect::<Vec<_>>(), [0, 1]);
        assert!(cpus.iter().all(|cpu| cpu.control.is_some() && cpu.pid.is_none()));
        let cpus = of_notes(&both[..3]);
        assert!(cpus.iter().all(|cpu| cpu.control.is_none()));
        assert_eq!((cpus.len(), cpus[1].pid), (2, Some(2)));
        assert_eq!(of_notes(&both[2..]).len(), 2);
        assert_eq!(of_notes(&[note("CORE", 1, vec![0; 300]), note("QEMU", 1, numbered())]), []);
    }

    proptest! {
        #[test]
        fn registers_survive_qemus_note(values: [u64; 27], kernel_gs: Option<u64>, bases: [u64; 3], cr: [u64; 4]) {
            let descriptor = {
                let mut status = PrStatus::default().to_bytes();
                for (chunk, value) in status[112..328].chunks_exact_mut(8).zip(values) {
                    chunk.copy_from_slice(&value.to_le_bytes());
                }
                status
            };
            let mut registers = PrStatus::from_bytes(&descriptor).expect("the right size").registers;
            let control = Control {
                cr0: cr[0], cr2: cr[1], cr3: cr[2], cr4: cr[3], gs_base: registers.gs_base,
                kernel_gs_base: kernel_gs, gdt_base: bases[0], idt_base: bases[1], task_base: bases[2],
            };
            let read = from_qemu(&to_qemu(&registers, &control)).expect("long enough");
            // What the note has no room for.
            registers.orig_rax = u64::MAX;
            for selector in [&mut registers.cs, &mut registers.ds, &mut registers.es, &mut registers.fs,
                &mut registers.gs, &mut registers.ss] {
                *selector &= 0xffff_ffff;
            }
            prop_assert_eq!(read.registers, registers);
            prop_assert_eq!(read.control, Some(control));
        }

        #[test]
        fn any_bytes_are_a_note_or_none(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            prop_assert_eq!(from_qemu(&bytes).is_some(), bytes.len() >= 432);
        }
    }
}
