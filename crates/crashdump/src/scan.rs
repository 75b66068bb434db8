//! Looks for `VMCOREINFO` in memory: for dumps that have no note of it, as QEMU's without its vmcoreinfo device.
//!
//! The kernel keeps the text at the start of a page of its own, and it begins with the release. Source: Linux,
//! `kernel/vmcore_info.c` (before 6.9 `kernel/crash_core.c`), `crash_save_vmcoreinfo_init`.

use std::ops::Range;

use smpcall_vmcore::VmCoreInfo;

use crate::PhysicalMemory;
use crate::memory::PAGE_BYTES;
use crate::notes::text;

const BEGINS: &[u8] = b"OSRELEASE=";

/// Keys that every such text has, to tell it from a page with the same beginning: a copy of it in a file, cut off.
const KEYS: [&str; 2] = ["PAGESIZE", "SYMBOL(swapper_pg_dir)"];

/// Where the kernel's zones begin: for devices of 24 bits, for those of 32 bits, and for all others. A page that is taken
/// early lies near the beginning of the last of them that there is.
const ZONES: [u64; 3] = [0, 16 << 20, 4 << 30];

/// How much of a zone is looked through before the next zone's turn comes.
const TURN: u64 = 64 << 20;

/// How many turns each zone has: its first 16 GiB. A dump may say that it has any number of pages.
const TURNS: u64 = 256;

/// How much is read at once where each read takes long, however short it is.
pub(crate) const BLOCK: u64 = 4 << 20;

/// The text; none if no page has it. Where a read of a few bytes is as slow as one of many, `blocks` of so many bytes
/// are read; else the beginning of each page.
pub(crate) fn vmcoreinfo(memory: &dyn PhysicalMemory, blocks: Option<u64>) -> Option<String> {
    let mut block = Vec::new();
    in_order(&memory.ranges()).find_map(|range| {
        let first = range.start.checked_next_multiple_of(PAGE_BYTES)?;
        let Some(bytes) = blocks else {
            return (first..range.end).step_by(PAGE_BYTES as usize).find_map(|at| within(memory, at));
        };
        (first..range.end).step_by(bytes as usize).find_map(|at| {
            block.resize(bytes.min(range.end - at) as usize, 0);
            memory.read_physical(at, &mut block).ok()?;
            let pages = (at..).step_by(PAGE_BYTES as usize).zip(block.chunks(PAGE_BYTES as usize));
            pages.filter(|(_, page)| page.starts_with(BEGINS)).find_map(|(at, _)| within(memory, at))
        })
    })
}

/// The ranges in pieces: those first that are nearest to the beginning of their zone.
fn in_order(ranges: &[Range<u64>]) -> impl Iterator<Item = Range<u64>> {
    (0..TURNS).flat_map(|turn| ZONES.into_iter().map(move |zone| (turn, zone))).flat_map(|(turn, zone)| {
        let next_zone = ZONES.into_iter().find(|&other| other > zone).unwrap_or(u64::MAX);
        let begin = (zone + turn * TURN).min(next_zone);
        let end = (begin + TURN).min(next_zone);
        let first = ranges.partition_point(|range| range.end <= begin);
        ranges[first..]
            .iter()
            .take_while(move |range| begin < end && range.start < end)
            .map(move |range| range.start.max(begin)..range.end.min(end))
    })
}

/// The text of a page.
fn within(memory: &dyn PhysicalMemory, at: u64) -> Option<String> {
    let mut begins = [0; BEGINS.len()];
    memory.read_physical(at, &mut begins).ok().filter(|()| begins == BEGINS)?;
    let mut page = [0; PAGE_BYTES as usize];
    memory.read_physical(at, &mut page).ok()?;
    let text = text(&page);
    let info = VmCoreInfo::new(text.as_bytes());
    KEYS.iter().all(|key| info.get(key).is_some()).then_some(text)
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list of ranges may have one")]
mod tests {
    use super::*;
    use crate::ReadError;

    /// Pages of which nearly all are zero.
    #[derive(Debug)]
    struct Pages(Vec<Range<u64>>, Vec<(u64, &'static [u8])>);

    impl PhysicalMemory for Pages {
        fn read_physical(&self, address: u64, into: &mut [u8]) -> Result<(), ReadError> {
            let last = address + (into.len() as u64 - 1);
            let has = |range: &&Range<u64>| range.contains(&address) && range.contains(&last);
            self.0.iter().find(has).ok_or(ReadError::Absent { address })?;
            into.fill(0);
            let inside =
                |page: u64| page.checked_sub(address).map(|at| at as usize).filter(|&at| at < into.len());
            if let Some((at, bytes)) = self.1.iter().find_map(|&(page, bytes)| Some((inside(page)?, bytes))) {
                let length = bytes.len().min(into.len() - at);
                into[at..at + length].copy_from_slice(&bytes[..length]);
            }
            Ok(())
        }

        fn ranges(&self) -> Vec<Range<u64>> {
            self.0.clone()
        }
    }

    const TEXT: &[u8] = b"OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffffffff82a10000\n";

    #[test]
    fn the_page_is_found_wherever_it_is() {
        for at in [0x1000, 0x9f_f000, 0x180_0000, 0x1_0000_0000, 0x1_3fff_f000] {
            let memory = Pages(vec![0..0xa0_0000, 0xff_f000..0x200_0000, 1 << 32..5 << 30], vec![(at, TEXT)]);
            for blocks in [None, Some(BLOCK), Some(1 << 16)] {
                let found = vmcoreinfo(&memory, blocks).map(String::into_bytes);
                assert_eq!(found.as_deref(), Some(TEXT), "{at:#x} {blocks:?}");
            }
        }
        let memory = Pages(vec![0..0xa0_0000], vec![]);
        assert_eq!((vmcoreinfo(&memory, None), vmcoreinfo(&memory, Some(BLOCK))), (None, None));
    }

    #[test]
    fn a_piece_of_a_copy_is_not_taken_for_it() {
        let memory = Pages(vec![0..0x10_0000], vec![(0x1000, &TEXT[..40]), (0x5000, TEXT)]);
        assert_eq!(vmcoreinfo(&memory, None).map(String::into_bytes).as_deref(), Some(TEXT));
    }

    #[test]
    fn zones_take_turns_and_nothing_near_is_left_out() {
        let mib = |range: Range<u64>| range.start << 20..range.end << 20;
        let pieces: Vec<_> = in_order(&[mib(0..200), mib(4090..4200)]).collect();
        assert_eq!(pieces, [0..16, 16..80, 4096..4160, 80..144, 4160..4200, 144..200, 4090..4096].map(mib));
        let end = ZONES[2] + TURNS * TURN;
        let all: u64 = in_order(&[0..end]).map(|range| range.end - range.start).sum();
        assert_eq!(all, end);
    }

    #[test]
    fn memory_without_end_is_not_looked_through_without_end() {
        let looked: u64 = in_order(&[0..u64::MAX]).map(|range| range.end - range.start).sum();
        assert_eq!(looked, ZONES[2] + TURNS * TURN);
        assert_eq!(in_order(&[1 << 60..u64::MAX]).count(), 0);
    }
}
