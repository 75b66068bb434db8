//! The kernel's log, from its own memory: what the console said last, and what it did not get to say.
//!
//! * Since Linux 5.10 a ring of descriptors beside a ring of text (`prb`). VMCOREINFO says how they are laid out.
//! * From 3.5 to 5.9 a ring of records (`log_buf`, `struct printk_log`), laid out by VMCOREINFO too.
//! * Before, a ring of plain characters.
//!
//! The rings may have been written to by another CPU when the machine stopped: records that were not finished are left
//! out, and counted.
//!
//! Source: Linux, `kernel/printk/printk_ringbuffer.c`, `kernel/printk/printk.c` and `Documentation/admin-guide/kdump/gdbmacros.txt`
//! (facts only).

use std::fmt;

use smpcall_vmcore::VmCoreInfo;

use crate::ReadError;
use crate::symbols::Symbols;
use crate::types::Types;
use crate::virtual_memory::{VirtualMemory, number};

/// No log is larger, in bytes: `log_buf_len` is at most 2 GiB, but nobody has more than some megabytes.
const LARGEST_RING: u64 = 64 << 20;
/// No more records are read: each has at least some 80 bytes besides its text.
const MOST_RECORDS: u64 = 1 << 20;
/// The largest descriptor or information of a record; they have 24 and 88 bytes.
const LARGEST_STRUCTURE: u64 = 4096;

/// Who wrote a record. Source: Linux, `include/linux/printk.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A task, by its number.
    Task(u32),
    /// A CPU, outside of tasks.
    Cpu(u32),
}

/// One record of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its number; it counts all there ever were.
    pub sequence: u64,
    /// When, in nanoseconds since boot, by the clock of the CPU that wrote it.
    pub nanoseconds: u64,
    /// How urgent: 0 (emergency) to 7 (debugging).
    pub level: u8,
    /// Who wrote it, if the kernel was built to keep that.
    pub caller: Option<Caller>,
    /// Its text, of one or more lines, without the last line's end.
    pub text: String,
}

impl fmt::Display for Record {
    /// As `dmesg` prints it, each line with its time.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, rest) = (self.nanoseconds / 1_000_000_000, self.nanoseconds % 1_000_000_000);
        for (at, line) in self.text.split('\n').enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            write!(f, "[{seconds:5}.{:06}] {line}", rest / 1000)?;
        }
        Ok(())
    }
}

/// The log, oldest record first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// Its records.
    pub records: Vec<Record>,
    /// How many could not be used: not finished when the machine stopped, or damaged.
    pub unfinished: u64,
}

/// Why there is no log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Something about it is not known.
    #[error(
        "the kernel's log cannot be found: neither VMCOREINFO nor the kernel's symbols and types say {0}"
    )]
    Unknown(String),
    /// It cannot be read.
    #[error("the {what} of the kernel's log cannot be read: {source}")]
    Missing {
        /// Which part.
        what: &'static str,
        /// Why.
        source: ReadError,
    },
    /// A size is not one that a log can have.
    #[error("the kernel's log cannot be used: its {what} is {value:#x}")]
    Absurd {
        /// Which.
        what: &'static str,
        /// What it is said to be.
        value: u64,
    },
}

/// What says where things are: VMCOREINFO first, then symbols and types.
#[derive(Clone, Copy, Debug)]
pub struct Layout<'a> {
    /// VMCOREINFO.
    pub info: VmCoreInfo<'a>,
    /// Symbols.
    pub symbols: &'a Symbols,
    /// Types.
    pub types: Option<&'a Types>,
}

impl Layout<'_> {
    fn symbol(&self, name: &str) -> Option<u64> {
        self.info.symbol(name).or_else(|| self.symbols.address_of(name))
    }

    fn offset(&self, structure: &str, member: &str) -> Result<u64, LogError> {
        let name = format!("{structure}.{member}");
        let offset = self.info.offset(&name).or_else(|| self.types?.offset(structure, member));
        offset.filter(|&offset| offset <= LARGEST_STRUCTURE).ok_or(LogError::Unknown(name))
    }

    fn size(&self, structure: &str) -> Result<u64, LogError> {
        let size = self.info.size(structure).or_else(|| self.types?.size_of(structure));
        size.filter(|size| (1..=LARGEST_STRUCTURE).contains(size))
            .ok_or_else(|| LogError::Unknown(format!("the size of {structure}")))
    }
}

/// Reads the log, of whichever form.
///
/// # Errors
///
/// It is not known where it is or how it is laid out, or its rings cannot be read.
pub fn read(memory: &dyn VirtualMemory, layout: &Layout<'_>) -> Result<Log, LogError> {
    if let Some(prb) = layout.symbol("prb") {
        return ring::read(memory, layout, prb);
    }
    let record = layout.info.size("printk_log").map(|size| ("printk_log", size));
    match record.or_else(|| layout.info.size("log").map(|size| ("log", size))) {
        Some((structure, size)) => records::read(memory, layout, structure, size),
        None => characters::read(memory, layout),
    }
}

fn missing(what: &'static str) -> impl Fn(ReadError) -> LogError {
    move |source| LogError::Missing { what, source }
}

fn word(bytes: &[u8], at: u64, size: usize) -> u64 {
    usize::try_from(at).ok().and_then(|at| number(bytes, at, size)).unwrap_or(0)
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\n').to_owned()
}

fn caller(id: u64) -> Caller {
    let id = id as u32;
    if id >> 31 == 0 { Caller::Task(id) } else { Caller::Cpu(id & !(1 << 31)) }
}

/// Since Linux 5.10.
mod ring {
    use super::{LARGEST_RING, Layout, Log, LogError, MOST_RECORDS, Record, caller, missing, text_of, word};
    use crate::virtual_memory::VirtualMemory;

    /// The upper two bits of a descriptor's state: the rest is its number.
    const STATE_SHIFT: u32 = 62;
    /// Its text may still get longer, but so far it is whole.
    const COMMITTED: u64 = 1;
    /// It is whole.
    const FINALIZED: u64 = 2;
    /// It holds no record any more, with the state in its place.
    const REUSABLE: u64 = 3 << STATE_SHIFT;
    /// Where text would begin, of a record that has none. All such values are odd, no real one is.
    const NO_TEXT: u64 = 1;

    /// A ring of text: a power of two of bytes. Positions in it only go up.
    struct Text {
        data: Vec<u8>,
    }

    impl Text {
        /// The text between two positions, without the number of its descriptor before it.
        fn between(&self, begin: u64, next: u64) -> Option<&[u8]> {
            let size = self.data.len() as u64;
            let last = next.checked_sub(1)?;
            // What does not fit before the end lies at the beginning, as a whole.
            let from = if begin / size == last / size { begin % size } else { 0 };
            let to = last % size + 1;
            let from = usize::try_from(from).ok()?.checked_add(8)?;
            self.data.get(from..usize::try_from(to).ok()?)
        }
    }

    pub(super) fn read(memory: &dyn VirtualMemory, layout: &Layout<'_>, prb: u64) -> Result<Log, LogError> {
        let offset = |structure: &str, member: &str| layout.offset(structure, member);
        let word_at = |at: u64, size| memory.read_number(at, size);
        // `prb` points to the ring: the one that was built in, or a larger one.
        let ring = memory.read_u64(prb).map_err(missing("ring"))?;
        let descriptors = ring.wrapping_add(offset("printk_ringbuffer", "desc_ring")?);
        let texts = ring.wrapping_add(offset("printk_ringbuffer", "text_data_ring")?);
        let read_of = |base: u64, structure: &str, member: &str, size| {
            word_at(base.wrapping_add(offset(structure, member)?), size).map_err(missing("ring"))
        };
        let of_descriptors = |member, size| read_of(descriptors, "prb_desc_ring", member, size);
        let of_texts = |member, size| read_of(texts, "prb_data_ring", member, size);
        let power = |what, bits: u64, each: u64| {
            1_u64
                .checked_shl(bits as u32)
                .filter(|count| {
                    bits < 32 && count.checked_mul(each).is_some_and(|bytes| bytes <= LARGEST_RING)
                })
                .ok_or(LogError::Absurd { what, value: bits })
        };

        let descriptor_size = layout.size("prb_desc")?;
        let info_size = layout.size("printk_info")?;
        let count_bits = of_descriptors("count_bits", 4)?;
        let count =
            power("number of records, as a power of two,", count_bits, descriptor_size.max(info_size))?;
        let text_size = power("size, as a power of two,", of_texts("size_bits", 4)?, 1)?;
        let bytes = |what, at, length: u64| memory.read_bytes(at, length as usize).map_err(missing(what));
        let all_descriptors = bytes("descriptors", of_descriptors("descs", 8)?, count * descriptor_size)?;
        let all_infos = bytes("descriptions of records", of_descriptors("infos", 8)?, count * info_size)?;
        let text = Text { data: bytes("text", of_texts("data", 8)?, text_size)? };

        let counter = offset("atomic_long_t", "counter").unwrap_or(0);
        let of_id = |member: &str| {
            let at = descriptors.wrapping_add(offset("prb_desc_ring", member)?).wrapping_add(counter);
            word_at(at, 8).map_err(missing("ring"))
        };
        let number = |state: u64| state & ((1 << STATE_SHIFT) - 1);
        let (tail, head) = (number(of_id("tail_id")?), number(of_id("head_id")?));
        let state_at = offset("prb_desc", "state_var")? + counter;
        let begin_at = offset("prb_desc", "text_blk_lpos")? + offset("prb_data_blk_lpos", "begin")?;
        let next_at = offset("prb_desc", "text_blk_lpos")? + offset("prb_data_blk_lpos", "next")?;
        let (sequence_at, time_at) = (offset("printk_info", "seq")?, offset("printk_info", "ts_nsec")?);
        let length_at = offset("printk_info", "text_len")?;
        let caller_at = offset("printk_info", "caller_id").ok();
        // The facility, and then five bits of flags and three of the level: no key of VMCOREINFO is theirs.
        let level_at = length_at + 3;

        let mut log = Log::default();
        // Numbers wrap at 62 bits; head comes at most `count` behind tail.
        let behind = number(head.wrapping_sub(tail)).min(count - 1).min(MOST_RECORDS);
        for step in 0..=behind {
            let id = number(tail.wrapping_add(step));
            let slot = (id % count) as usize;
            let piece = |all: &'_ [u8], size: u64| -> Vec<u8> {
                let size = size as usize;
                all.get(slot * size..(slot + 1) * size).unwrap_or_default().to_vec()
            };
            let (descriptor, info) = (piece(&all_descriptors, descriptor_size), piece(&all_infos, info_size));
            let state = word(&descriptor, state_at, 8);
            // The descriptor before the very first record, or one whose record has made room for others.
            if state == REUSABLE | id {
                continue;
            }
            if number(state) != id || ![COMMITTED, FINALIZED].contains(&(state >> STATE_SHIFT)) {
                log.unfinished += 1;
                continue;
            }
            let (begin, next) = (word(&descriptor, begin_at, 8), word(&descriptor, next_at, 8));
            let length = word(&info, length_at, 2) as usize;
            let found = if begin & NO_TEXT != 0 { Some(&[][..]) } else { text.between(begin, next) };
            let Some(found) = found else {
                log.unfinished += 1;
                continue;
            };
            log.records.push(Record {
                sequence: word(&info, sequence_at, 8),
                nanoseconds: word(&info, time_at, 8),
                level: (word(&info, level_at, 1) >> 5) as u8,
                caller: caller_at.map(|at| word(&info, at, 4)).filter(|&id| id != 0).map(caller),
                text: text_of(&found[..length.min(found.len())]),
            });
        }
        Ok(log)
    }
}

/// From Linux 3.5 to 5.9.
mod records {
    use super::{LARGEST_RING, Layout, Log, LogError, MOST_RECORDS, Record, caller, missing, text_of, word};
    use crate::virtual_memory::VirtualMemory;

    pub(super) fn read(
        memory: &dyn VirtualMemory,
        layout: &Layout<'_>,
        structure: &str,
        size: u64,
    ) -> Result<Log, LogError> {
        let at = |name: &str| layout.symbol(name).ok_or_else(|| LogError::Unknown(name.to_owned()));
        let buffer = memory.read_u64(at("log_buf")?).map_err(missing("address"))?;
        let length = memory.read_u32(at("log_buf_len")?).map_err(missing("size"))?;
        if length == 0 || u64::from(length) > LARGEST_RING {
            return Err(LogError::Absurd { what: "size", value: length.into() });
        }
        let first = memory.read_u32(at("log_first_idx")?).map_err(missing("beginning"))?;
        let next = memory.read_u32(at("log_next_idx")?).map_err(missing("end"))?;
        let first_number =
            layout.symbol("log_first_seq").and_then(|at| memory.read_u64(at).ok()).unwrap_or(0);
        let bytes = memory.read_bytes(buffer, length as usize).map_err(missing("text"))?;
        let offset = |member: &str| layout.offset(structure, member);
        let (time_at, length_at, text_at) = (offset("ts_nsec")?, offset("len")?, offset("text_len")?);
        // Behind the lengths of text and dictionary: facility, five bits of flags, three of the level. Then, since 5.1, the
        // caller, if it is kept.
        let level_at = text_at + 5;
        let caller_at = layout.types.and_then(|types| types.offset("printk_log", "caller_id"));

        let mut log = Log::default();
        let mut at = u64::from(first);
        let (mut sequence, mut wrapped) = (first_number, first <= next);
        while at != u64::from(next) && sequence.wrapping_sub(first_number) < MOST_RECORDS {
            let record = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
            let whole = word(record, length_at, 2);
            if whole == 0 || record.len() < size as usize {
                // The next record did not fit before the end: it is at the beginning. That happens once.
                if wrapped {
                    log.unfinished += 1;
                    break;
                }
                (at, wrapped) = (0, true);
                continue;
            }
            let text = word(record, text_at, 2) as usize;
            let found = record.get(size as usize..).unwrap_or_default();
            log.records.push(Record {
                sequence,
                nanoseconds: word(record, time_at, 8),
                level: (word(record, level_at, 1) >> 5) as u8,
                caller: caller_at.map(|at| word(record, at, 4)).filter(|&id| id != 0).map(caller),
                text: text_of(&found[..text.min(found.len())]),
            });
            at = at.saturating_add(whole);
            sequence = sequence.wrapping_add(1);
        }
        Ok(log)
    }
}

/// Before Linux 3.5.
mod characters {
    use super::{LARGEST_RING, Layout, Log, LogError, Record, missing};
    use crate::virtual_memory::VirtualMemory;

    pub(super) fn read(memory: &dyn VirtualMemory, layout: &Layout<'_>) -> Result<Log, LogError> {
        let at = |name: &str| layout.symbol(name).ok_or_else(|| LogError::Unknown(name.to_owned()));
        let buffer = memory.read_u64(at("log_buf")?).map_err(missing("address"))?;
        let length = u64::from(memory.read_u32(at("log_buf_len")?).map_err(missing("size"))?);
        // Counts characters for ever; the last `length` of them are there.
        let end = u64::from(memory.read_u32(at("log_end")?).map_err(missing("end"))?);
        if !length.is_power_of_two() || length > LARGEST_RING {
            return Err(LogError::Absurd { what: "size", value: length });
        }
        let chars = layout.symbol("logged_chars").and_then(|at| memory.read_u32(at).ok());
        let chars = chars.map_or(length, u64::from).min(length);
        let ring = memory.read_bytes(buffer, length as usize).map_err(missing("text"))?;
        let begin = end.wrapping_sub(chars);
        let text: Vec<u8> = (0..chars)
            .map(|step| ring[(begin.wrapping_add(step) & (length - 1)) as usize])
            .filter(|&byte| byte != 0)
            .collect();
        let text = String::from_utf8_lossy(&text);
        let records = text.lines().zip(0..).map(|(line, sequence)| parse(line, sequence)).collect();
        Ok(Log { records, unfinished: 0 })
    }

    /// `<4>[   12.345678] text`, where both may be missing.
    fn parse(line: &str, sequence: u64) -> Record {
        let level = line
            .strip_prefix('<')
            .and_then(|rest| rest.split_once('>'))
            .and_then(|(level, rest)| Some((level.parse::<u8>().ok()? & 7, rest)));
        let (level, line) = level.unwrap_or((4, line));
        let stamp =
            line.strip_prefix('[').and_then(|rest| rest.split_once("] ")).and_then(|(stamp, rest)| {
                let (seconds, micros) = stamp.trim().split_once('.')?;
                let seconds = seconds.parse::<u64>().ok()?.checked_mul(1_000_000_000)?;
                let micros = micros.parse::<u64>().ok().filter(|&micros| micros < 1_000_000)?;
                Some((seconds.checked_add(micros * 1000)?, rest))
            });
        let (nanoseconds, text) = stamp.unwrap_or((0, line));
        Record { sequence, nanoseconds, level, caller: None, text: text.to_owned() }
    }
}
