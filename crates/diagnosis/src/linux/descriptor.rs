//! Call descriptors and the queues that they are linked into.
//!
//! | kernel | descriptor | queue |
//! |---|---|---|
//! | 2.6.30 to 3.13 | `call_single_data{list, func, info, flags}` | `call_single_queue{list, lock}`, oldest first |
//! | 3.14 to 5.7 | `call_single_data{llist, func, info, flags}` | `llist_head`, newest first |
//! | 5.8 and later | `__call_single_data{node{llist, u_flags, src, dst}, func, info}` | the same; `irq_work` and wake-ups too |
//!
//! Source: Linux, `kernel/smp.c`, `include/linux/smp.h`, `include/linux/smp_types.h` of these releases (facts only).

use std::collections::BTreeSet;

use smpcall_crashdump::VirtualMemory;
use smpcall_crashdump::release::KernelRelease;
use smpcall_crashdump::types::{Field, Types};

use super::reader::Reader;
use crate::evidence::CallKind;

/// No queue is believed to be longer.
const LONGEST: usize = 16_384;
/// Somebody may not write the descriptor: it is in use. `CSD_FLAG_LOCK`.
const LOCK: u64 = 1;
/// `CSD_FLAG_SYNCHRONOUS`, of the kernels whose flags have no type.
const SYNCHRONOUS: u64 = 2;

/// How descriptors are laid out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    next: Field,
    flags: Field,
    function: Field,
    information: Field,
    /// Who made it and for whom: written only by kernels that look for stuck calls.
    route: Option<(Field, Field)>,
    size: usize,
    /// The flags say what kind of work it is.
    typed: bool,
    /// A circular list with a head, not a chain that ends with zero.
    circular: bool,
}

impl Layout {
    /// As the kernel's types say. `debugged`: the kernel notes who called whom.
    pub(super) fn new(types: &Types, debugged: bool) -> Option<Self> {
        let structure = ["__call_single_data", "call_single_data"]
            .into_iter()
            .find(|name| types.size_of(name).is_some())?;
        let any = |paths: &[&str]| paths.iter().find_map(|path| types.field(structure, path));
        let circular = types.field(structure, "list.next").is_some();
        let route = || Some((types.field(structure, "node.src")?, types.field(structure, "node.dst")?));
        Some(Self {
            next: any(&["node.llist.next", "llist.next", "list.next"])?,
            flags: any(&["node.u_flags", "flags"])?,
            function: any(&["func"])?,
            information: any(&["info"])?,
            route: route().filter(|_| debugged),
            size: usize::try_from(types.size_of(structure)?).ok().filter(|&size| size <= 256)?,
            typed: types.field(structure, "node.u_flags").is_some(),
            circular,
        })
    }

    /// As kernels from 5.8 on have it, and those from 3.14 on had it before: for a kernel that carries no types. It depends on no
    /// option of their configuration.
    pub(super) fn built_in(release: &KernelRelease, debugged: bool) -> Option<Self> {
        let typed = release.at_least(5, 8);
        if !release.at_least(3, 14) {
            return None;
        }
        let field = |offset, size| Field { offset, size, bits: None, signed: false, count: None };
        let (flags, function, information) = if typed { (8, 16, 24) } else { (24, 8, 16) };
        Some(Self {
            next: field(0, 8),
            flags: field(flags, 4),
            function: field(function, 8),
            information: field(information, 8),
            route: (debugged && release.at_least(5, 10)).then(|| (field(12, 2), field(14, 2))),
            size: 32,
            typed,
            circular: false,
        })
    }

    /// In bytes.
    pub(super) const fn size(&self) -> usize {
        self.size
    }

    /// The descriptor at an address, from its bytes.
    pub(super) fn parse(&self, address: u64, bytes: &[u8]) -> Option<Csd> {
        let flags = self.flags.value(bytes)?;
        let kind = match (self.typed, flags & 0xf0, flags & SYNCHRONOUS != 0) {
            (true, 0x00, _) | (false, _, false) => CallKind::Async,
            (true, 0x10, _) | (false, _, true) => CallKind::Sync,
            (true, 0x20, _) => CallKind::IrqWork,
            (true, 0x30, _) => CallKind::Wakeup,
            // Flags of work that is not known here.
            _ => return None,
        };
        let route =
            self.route.and_then(|(src, dst)| Some((src.value(bytes)? as u32, dst.value(bytes)? as u32)));
        Some(Csd {
            address,
            next: self.next.value(bytes)?,
            flags: flags as u32,
            kind,
            function: self.function.value(bytes)?,
            information: self.information.value(bytes)?,
            route,
        })
    }

    /// The descriptor at an address.
    pub(super) fn read(&self, reader: Reader<'_>, address: u64) -> Option<Csd> {
        let bytes = reader.kernel.memory.read_bytes(address, self.size).ok()?;
        self.parse(address, &bytes)
    }
}

/// A descriptor of a call: what Linux calls a csd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Csd {
    pub(super) address: u64,
    pub(super) next: u64,
    pub(super) flags: u32,
    pub(super) kind: CallKind,
    /// The address of the function.
    pub(super) function: u64,
    /// What it is given.
    pub(super) information: u64,
    /// From which CPU to which, if the kernel notes that.
    pub(super) route: Option<(u32, u32)>,
}

impl Csd {
    /// Whether it is in use: not run to its end yet.
    pub(super) const fn is_locked(&self) -> bool {
        self.flags as u64 & LOCK != 0
    }
}

/// What is linked into a CPU's queue.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    /// Oldest first.
    pub(super) entries: Vec<Csd>,
    /// Why there may be more.
    pub(super) problem: Option<String>,
}

impl Queue {
    /// Reads a CPU's queue. `None`: it is not known where it is.
    pub(super) fn read(reader: Reader<'_>, layout: &Layout, cpu: u32) -> Option<Self> {
        let head = reader.per_cpu("call_single_queue", cpu)?;
        let mut queue = Self::default();
        let Some(mut at) = reader.word(head) else {
            queue.problem = Some(format!("the queue of CPU {cpu}: its head at {head:#x} is not in the dump"));
            return Some(queue);
        };
        let mut seen = BTreeSet::new();
        while at != 0 && !(layout.circular && at == head) {
            let address = at.wrapping_sub(layout.next.offset);
            let problem = if queue.entries.len() >= LONGEST {
                Some(format!("has more than {LONGEST} entries"))
            } else if !seen.insert(at) {
                Some(format!("comes back to {address:#x}: it is damaged"))
            } else {
                None
            };
            let csd = layout.read(reader, address).filter(|_| problem.is_none());
            let Some(csd) = csd else {
                let what = problem
                    .unwrap_or_else(|| format!("its entry at {address:#x} is none or not in the dump"));
                queue.problem = Some(format!("the queue of CPU {cpu}: {what}"));
                break;
            };
            queue.entries.push(csd);
            at = csd.next;
        }
        if !layout.circular {
            queue.entries.reverse();
        }
        Some(queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn csd(layout: &Layout, flags: u32) -> Option<Csd> {
        let mut bytes = [0; 32];
        let at = layout.flags.offset as usize;
        bytes[at..at + 4].copy_from_slice(&flags.to_le_bytes());
        bytes[12..14].copy_from_slice(&2_u16.to_le_bytes());
        bytes[14..16].copy_from_slice(&5_u16.to_le_bytes());
        layout.parse(0x1000, &bytes)
    }

    #[test]
    fn flags_have_a_type_since_5_8_and_none_before() {
        let new = Layout::built_in(&KernelRelease::new("6.1.0"), true).expect("known");
        assert_eq!(csd(&new, 0x11).map(|csd| (csd.kind, csd.is_locked())), Some((CallKind::Sync, true)));
        assert_eq!(csd(&new, 0x20).map(|csd| (csd.kind, csd.is_locked())), Some((CallKind::IrqWork, false)));
        assert_eq!(csd(&new, 0x01).and_then(|csd| csd.route), Some((2, 5)));
        assert_eq!(csd(&new, 0x41), None, "no such kind");
        let old = Layout::built_in(&KernelRelease::new("4.19.0"), false).expect("known");
        assert_eq!(csd(&old, 3).map(|csd| (csd.kind, csd.route)), Some((CallKind::Sync, None)));
        assert_eq!(csd(&old, 1).map(|csd| csd.kind), Some(CallKind::Async));
        assert!(Layout::built_in(&KernelRelease::new("2.6.32"), false).is_none());
    }

    #[test]
    fn a_descriptor_that_is_cut_off_is_none() {
        let layout = Layout::built_in(&KernelRelease::new("6.12.0"), false).expect("known");
        assert_eq!(layout.parse(0x1000, &[0; 31]), None);
    }
}
