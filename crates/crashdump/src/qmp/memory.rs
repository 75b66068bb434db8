//! The guest's physical memory.

use std::fs::{self, DirBuilder, File};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, chown};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Shared, locked};
use crate::memory::end;
use crate::{PhysicalMemory, ReadError};

/// At most so much is read by one command: the monitor does nothing else meanwhile.
const PMEMSAVE_BYTES: usize = 4 << 20;

/// The same for words that are printed: 64 KiB of memory are 350 KiB of text.
const XP_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct MonitorMemory {
    client: Shared,
    ranges: Vec<Range<u64>>,
    /// None: memory is read by `xp`.
    exchange: Option<Exchange>,
}

impl MonitorMemory {
    /// Finds out how memory can be read, by reading some.
    pub(super) fn new(
        socket: &Path,
        client: Shared,
        ranges: Vec<Range<u64>>,
        remarks: &mut Vec<String>,
    ) -> Self {
        let mut memory = Self { client, ranges, exchange: None };
        let probe = memory.ranges.first().map_or(0, |range| range.start);
        let tried = Exchange::new(socket).and_then(|exchange| {
            let mut bytes = [0; 16];
            exchange.read(&memory.client, probe, &mut bytes).map(|()| exchange)
        });
        match tried {
            Ok(exchange) => memory.exchange = Some(exchange),
            Err(reason) => remarks.push(format!(
                "memory is read word by word (xp), which is slow, because the monitor's pmemsave cannot be used: it {reason}"
            )),
        }
        memory
    }

    fn read_some(&self, address: u64, into: &mut [u8]) -> Result<(), String> {
        match &self.exchange {
            Some(exchange) => exchange.read(&self.client, address, into),
            None => xp(&self.client, address, into),
        }
    }
}

impl PhysicalMemory for MonitorMemory {
    fn read_physical(&self, address: u64, into: &mut [u8]) -> Result<(), ReadError> {
        // What is no memory may be a device, and a device may notice that it is read.
        let mut at = address;
        let end = end(address, into.len())?;
        for range in self.ranges.iter().skip_while(|range| range.end <= address) {
            if at >= end || at < range.start {
                break;
            }
            at = range.end;
        }
        if at < end {
            return Err(ReadError::Absent { address: at });
        }
        let most = if self.exchange.is_some() { PMEMSAVE_BYTES } else { XP_BYTES };
        for (at, part) in (address..).step_by(most).zip(into.chunks_mut(most)) {
            self.read_some(at, part).map_err(|reason| ReadError::Failed {
                address: at,
                reason: format!("the monitor {reason}").into(),
            })?;
        }
        Ok(())
    }

    fn ranges(&self) -> Vec<Range<u64>> {
        self.ranges.clone()
    }
}

/// The directory and the file through which memory comes.
#[derive(Debug)]
struct Exchange {
    directory: PathBuf,
    file: PathBuf,
}

impl Exchange {
    fn new(socket: &Path) -> Result<Self, String> {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let process = std::process::id();
        // Nobody can have prepared the directory: it is made here, or it is not taken.
        let made =
            (0..1000).map(|number| parent.join(format!("smpcall-{process}-{number}"))).find_map(|path| {
                match DirBuilder::new().mode(0o700).create(&path) {
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => None,
                    Err(error) => Some(Err(format!("has nowhere to write to: {}: {error}", path.display()))),
                    Ok(()) => Some(Ok(path)),
                }
            });
        let directory =
            made.unwrap_or_else(|| Err(format!("has nowhere to write to: {}", parent.display())))?;
        let exchange = Self { file: directory.join("memory"), directory };
        // QEMU may run as another user than root, who asks. Anybody else cannot give it away, and need not.
        if let Ok(owner) = fs::metadata(socket) {
            let _ = chown(&exchange.directory, Some(owner.uid()), None);
        }
        Ok(exchange)
    }

    fn read(&self, client: &Shared, address: u64, into: &mut [u8]) -> Result<(), String> {
        let arguments = json!({ "val": address, "size": into.len(), "filename": self.file });
        // Until the file is read nobody else may have it written.
        let mut client = locked(client);
        client.execute("pmemsave", &arguments)?;
        let read = File::open(&self.file).and_then(|file| file.read_exact_at(into, 0));
        read.map_err(|error| format!("says that it has written {}, and {error}", self.file.display()))
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // If it cannot be removed there is nobody to tell.
        let _ = fs::remove_file(&self.file);
        let _ = fs::remove_dir(&self.directory);
    }
}

/// Reads words that the monitor prints.
fn xp(client: &Shared, address: u64, into: &mut [u8]) -> Result<(), String> {
    let begin = address & !7;
    let words = ((address - begin) as usize + into.len()).div_ceil(8);
    let answer = locked(client).human(&format!("xp /{words}gx {begin:#x}"))?;
    let bytes: Vec<u8> = words_of(&answer).flat_map(u64::to_le_bytes).collect();
    let part = bytes.get((address - begin) as usize..).and_then(|bytes| bytes.get(..into.len()));
    into.copy_from_slice(part.ok_or("prints fewer words than it was asked for (xp)")?);
    Ok(())
}

/// The words in lines of "address: word word".
fn words_of(answer: &str) -> impl Iterator<Item = u64> {
    answer
        .lines()
        .filter_map(|line| line.split_once(':'))
        .flat_map(|(_, words)| words.split_whitespace())
        .filter_map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok())
}

/// The ranges of RAM and ROM in the view that the CPUs have of memory, in order, joined.
pub(super) fn ranges(answer: &str) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut wanted = false;
    for line in answer.lines() {
        if line.starts_with("FlatView") {
            wanted = false;
        } else if line.trim_start().starts_with("AS \"memory\"") {
            wanted = true;
        } else if let Some(range) = wanted.then(|| range(line)).flatten() {
            ranges.push(range);
        }
    }
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// Of a line like `0000000000100000-000000007fffffff (prio 0, ram): pc.ram @0000000000100000`.
fn range(line: &str) -> Option<Range<u64>> {
    let (addresses, rest) = line.trim().split_once(' ')?;
    let (kind, _) = rest.split_once(')')?;
    if !kind.ends_with(", ram") && !kind.ends_with(", rom") {
        return None;
    }
    let (first, last) = addresses.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let (first, end) = (number(first)?, number(last)?.checked_add(1)?);
    (first < end).then_some(first..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VIEWS: &str = "FlatView #2\n AS \"cpu-smm-0\", root: memory\n Root memory region: memory\n  \
        0000000000000000-00000000ffffffff (prio 0, ram): smram\n\nFlatView #4\n AS \"memory\", root: system\n AS \
        \"cpu-memory-0\", root: system\n Root memory region: system\n  0000000000000000-00000000000bffff (prio 0, ram): \
        pc.ram\n  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom\n  0000000000100000-000000007fffffff (prio 0, \
        ram): pc.ram @0000000000100000\n  00000000fee00000-00000000feefffff (prio 4096, i/o): apic-msi\n  \
        0000000100000000-00000001ffffffff (prio 0, ram): pc.ram @0000000080000000\n";

    #[test]
    fn memory_is_what_the_cpus_see_and_no_device() {
        assert_eq!(ranges(VIEWS), [0..0xe_0000, 0x10_0000..0x8000_0000, 0x1_0000_0000..0x2_0000_0000]);
        assert_eq!(ranges(""), []);
    }

    #[test]
    fn words_are_read_as_they_are_printed() {
        let answer =
            "0000000000113000: 0x0000000000000001 0xffffffff80000000\r\n0000000000113010: 0x2\r\nbad\r\n";
        assert_eq!(words_of(answer).collect::<Vec<_>>(), [1, 0xffff_ffff_8000_0000, 2]);
    }

    proptest! {
        #[test]
        fn any_answer_is_read_to_an_end(cut in 0..VIEWS.len(), noise in "[ -~\n]{0,200}") {
            let text = format!("{}{noise}{}", &VIEWS[..cut], &VIEWS[cut..]);
            let found = ranges(&text);
            prop_assert!(found.windows(2).all(|pair| pair[0].end < pair[1].start));
            let _ = words_of(&noise).count();
        }
    }
}
