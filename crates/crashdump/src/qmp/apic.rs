//! What `info lapic N` prints: which interrupts a CPU's local APIC holds. No dump format has it. Source: QEMU,
//! `target/i386/cpu-apic.c` (facts only).

use smpcall_vmcore::PendingInterrupts;

/// The local APIC of a CPU, as far as a monitor tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalApic {
    /// What it holds. Of level-triggered vectors only those are known that are pending or in service.
    pub pending: PendingInterrupts,
    /// Whether it is enabled by software: bit 8 of its spurious-interrupt vector register.
    pub enabled: bool,
    /// The interrupt command register; none if it was not told. SDM volume 3A, 11.6.1.
    pub command: Option<u64>,
    /// The task-priority register; none if it was not told.
    pub task_priority: Option<u8>,
}

impl LocalApic {
    /// None if nothing of it was told: a machine without local APICs, or a QEMU that does not know the command.
    pub(super) fn parse(cpu: u32, answer: &str) -> Option<Self> {
        let mut apic = Self {
            pending: PendingInterrupts { cpu, ..PendingInterrupts::default() },
            enabled: false,
            command: None,
            task_priority: None,
        };
        let (mut requested, mut in_service, mut upper) = (false, false, 0);
        for line in answer.lines() {
            let (name, rest) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
            let number = || rest.split_whitespace().next().and_then(hexadecimal);
            match name {
                "IRR" => {
                    requested = vectors(rest, &mut apic.pending.requested, &mut apic.pending.level_triggered);
                }
                "ISR" => {
                    in_service =
                        vectors(rest, &mut apic.pending.in_service, &mut apic.pending.level_triggered);
                }
                "ESR" => apic.pending.errors = number().unwrap_or(0) as u32,
                "SPIV" => apic.enabled = number().unwrap_or(0) & 0x100 != 0,
                "ICR" => apic.command = number(),
                "ICR2" => upper = number().unwrap_or(0),
                // "APR 0x00 TPR 0x10 DFR 0x0f LDR 0x01 PPR 0x10"
                "APR" => {
                    let mut words = rest.split_whitespace().skip_while(|word| *word != "TPR").skip(1);
                    apic.task_priority = words.next().and_then(hexadecimal).map(|priority| priority as u8);
                }
                _ => {}
            }
        }
        apic.command = apic.command.map(|lower| upper << 32 | lower & 0xffff_ffff);
        (requested && in_service).then_some(apic)
    }
}

fn hexadecimal(word: &str) -> Option<u64> {
    u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()
}

/// Sets the bits of the vectors in "236 251(level)" or "(none)". Returns whether the line was one of these.
fn vectors(rest: &str, bits: &mut [u32; 8], level: &mut [u32; 8]) -> bool {
    let rest = rest.trim();
    if rest == "(none)" {
        return true;
    }
    rest.split_whitespace().all(|word| {
        let (vector, is_level) = word.strip_suffix("(level)").map_or((word, false), |vector| (vector, true));
        let Ok(vector) = vector.parse::<u8>() else { return false };
        let (word, bit) = (usize::from(vector / 32), 1 << (vector % 32));
        bits[word] |= bit;
        level[word] |= if is_level { bit } else { 0 };
        true
    }) && !rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PRINTED: &str = "dumping local APIC state for CPU 1 \n\nLVT0\t 0x00010700 active-hi edge  masked ExtINT (vec \
        0)\nSPIV\t 0x000001ff APIC enabled, focus=off, spurious vec 255\nICR\t 0x000008fb logical edge de-assert \
        no-shorthand\nICR2\t 0x04000000 mask 00000100 (APIC ID)\nESR\t 0x00000040\nISR\t 236 \nIRR\t 33(level) 251 \n\nAPR \
        0x01 TPR 0x10 DFR 0x0f LDR 0x02 PPR 0x10\n";

    #[test]
    fn what_is_pending_is_read_as_it_is_printed() {
        let apic = LocalApic::parse(1, PRINTED).expect("complete");
        let set = |bits: [u32; 8]| (0..256).filter(|v| bits[v / 32] >> (v % 32) & 1 != 0).collect::<Vec<_>>();
        assert_eq!(set(apic.pending.requested), [33, 251]);
        assert_eq!(set(apic.pending.in_service), [236]);
        assert_eq!(set(apic.pending.level_triggered), [33]);
        assert_eq!((apic.pending.cpu, apic.pending.errors, apic.enabled), (1, 0x40, true));
        assert_eq!((apic.command, apic.task_priority), (Some(0x0400_0000_0000_08fb), Some(0x10)));
    }

    #[test]
    fn nothing_pending_is_told_from_nothing_told() {
        let none = PRINTED.replace("236 ", "(none)").replace("33(level) 251 ", "(none)");
        assert_eq!(LocalApic::parse(0, &none).map(|apic| apic.pending.requested), Some([0; 8]));
        assert_eq!(LocalApic::parse(0, "No local APIC\n"), None);
        assert_eq!(LocalApic::parse(0, &PRINTED.replace("IRR", "XXX")), None);
        assert_eq!(LocalApic::parse(0, &PRINTED.replace("251", "999")), None, "a garbled line is no news");
    }

    proptest! {
        #[test]
        fn any_answer_is_read_to_an_end(cut in 0..PRINTED.len(), noise in "[ -~\n]{0,100}") {
            let _ = LocalApic::parse(0, &format!("{}{noise}{}", &PRINTED[..cut], &PRINTED[cut..]));
        }
    }
}
