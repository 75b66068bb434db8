//! What `info registers -a` prints: the registers of each CPU. Source: QEMU, `target/i386/cpu-dump.c` (facts only).

use smpcall_vmcore::Registers;

use crate::{Control, SavedCpu};

/// The CPUs, in the order in which they are printed. What is not printed is zero; a CPU without an instruction pointer
/// is none.
pub(super) fn parse(answer: &str) -> Vec<SavedCpu> {
    let mut cpus: Vec<(SavedCpu, bool)> = Vec::new();
    for line in answer.lines() {
        if line.trim_start().starts_with("CPU#") {
            let index = cpus.len();
            cpus.push((SavedCpu { index, control: Some(Control::default()), ..SavedCpu::default() }, false));
        } else if let Some((cpu, complete)) = cpus.last_mut() {
            *complete |= read_line(cpu, line);
        }
    }
    cpus.into_iter().filter(|(_, complete)| *complete).map(|(cpu, _)| cpu).collect()
}

/// Reads `NAME=number` of a line; behind a segment's name are its selector and its base. Returns whether the
/// instruction pointer was among them.
fn read_line(cpu: &mut SavedCpu, line: &str) -> bool {
    // Short names are filled up with spaces: "R8 =", "CS =", "GDT=     ".
    let mut pointer = false;
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('=') {
        let name = before.split_whitespace().next_back().unwrap_or_default();
        let mut words = after.split_whitespace();
        let number = |word: Option<&str>| u64::from_str_radix(word?, 16).ok();
        if let Some(value) = number(words.next()) {
            pointer |= name == "RIP";
            assign(cpu, name, value, number(words.next()).unwrap_or(0));
        }
        rest = after;
    }
    pointer
}

fn assign(cpu: &mut SavedCpu, name: &str, value: u64, base: u64) {
    let Registers { rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8, r9, r10, r11, r12, r13, r14, r15, .. } =
        &mut cpu.registers;
    let control = cpu.control.get_or_insert_default();
    let place = match name {
        "RAX" => rax,
        "RBX" => rbx,
        "RCX" => rcx,
        "RDX" => rdx,
        "RSI" => rsi,
        "RDI" => rdi,
        "RBP" => rbp,
        "RSP" => rsp,
        "R8" => r8,
        "R9" => r9,
        "R10" => r10,
        "R11" => r11,
        "R12" => r12,
        "R13" => r13,
        "R14" => r14,
        "R15" => r15,
        "RIP" => &mut cpu.registers.rip,
        "RFL" => &mut cpu.registers.rflags,
        "CS" => &mut cpu.registers.cs,
        "SS" => &mut cpu.registers.ss,
        "DS" => &mut cpu.registers.ds,
        "ES" => &mut cpu.registers.es,
        "FS" => {
            cpu.registers.fs_base = base;
            &mut cpu.registers.fs
        }
        "GS" => {
            (cpu.registers.gs_base, control.gs_base) = (base, base);
            &mut cpu.registers.gs
        }
        "TR" => {
            control.task_base = base;
            return;
        }
        "GDT" => &mut control.gdt_base,
        "IDT" => &mut control.idt_base,
        "CR0" => &mut control.cr0,
        "CR2" => &mut control.cr2,
        "CR3" => &mut control.cr3,
        "CR4" => &mut control.cr4,
        _ => return,
    };
    *place = value;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PRINTED: &str = "\nCPU#0\nRAX=0000000000000001 RBX=ffff89768f831a00 RCX=3 RDX=4\nR8 =ffffffffffc3d5e4 R9 \
        =00000000313b060b R10=a R11=b\nRIP=ffffffffa9ada73c RFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0\nCS \
        =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]\nFS =0000 00007f0000001000 00000000 00000000\nGS =0000 \
        ffff89768f800000 00000000 00000000\nTR =0040 fffffe0000003000 00004087 00008900 DPL=0 TSS64-avl\nGDT=     \
        fffffe0000001000 0000007f\nIDT=     fffffe0000000000 00000fff\nCR0=80050033 CR2=00000000005eaeb0 \
        CR3=00000000029cc000 CR4=000006b0\nFPR0=0000000000000000 0000 FPR1=0000000000000000 0000\n\nCPU#1\nRIP=000000000052ed5d \
        RFL=00000202 [-------] CPL=3\n\nCPU#2\nRAX=1\n";

    #[test]
    fn registers_are_read_as_they_are_printed() {
        let cpus = parse(PRINTED);
        assert_eq!(cpus.len(), 2, "the third has no instruction pointer");
        let registers = cpus[0].registers;
        assert_eq!((registers.rax, registers.rbx, registers.rdx), (1, 0xffff_8976_8f83_1a00, 4));
        assert_eq!((registers.r8, registers.r9, registers.r11), (0xffff_ffff_ffc3_d5e4, 0x313b_060b, 0xb));
        assert_eq!((registers.rip, registers.rflags, registers.cs), (0xffff_ffff_a9ad_a73c, 0x46, 0x10));
        assert_eq!((registers.fs_base, registers.gs_base), (0x7f00_0000_1000, 0xffff_8976_8f80_0000));
        let control = cpus[0].control.expect("of a monitor");
        assert_eq!((control.cr0, control.cr3, control.cr4), (0x8005_0033, 0x29c_c000, 0x6b0));
        assert_eq!(control.idt_base, 0xffff_fe00_0000_0000);
        assert_eq!((control.gdt_base, control.task_base), (0xffff_fe00_0000_1000, 0xffff_fe00_0000_3000));
        assert_eq!((cpus[1].index, cpus[1].registers.rip, cpus[1].registers.rflags), (1, 0x52_ed5d, 0x202));
    }

    proptest! {
        #[test]
        fn any_answer_is_read_to_an_end(cut in 0..PRINTED.len(), noise in "[ -~\n]{0,200}") {
            let _ = parse(&format!("{}{noise}{}", &PRINTED[..cut], &PRINTED[cut..]));
        }
    }
}
