use proptest::prelude::*;
use smpcall_vmcore::VmCoreInfo;

use crate::printk::{Caller, Layout, Log, LogError, read};
use crate::symbols::Symbols;
use crate::virtual_memory::Extents;

const BASE: u64 = 0xffff_ffff_8300_0000;

fn read_with(info: &str, memory: &Extents) -> Result<Log, LogError> {
    let symbols = Symbols::default();
    read(memory, &Layout { info: VmCoreInfo::new(info.as_bytes()), symbols: &symbols, types: None })
}

fn texts(log: &Log) -> Vec<&str> {
    log.records.iter().map(|record| &*record.text).collect()
}

/// A ring as Linux has had it since 5.10: 8 descriptors, 128 bytes of text.
struct Ring {
    descriptors: Vec<u8>,
    infos: Vec<u8>,
    text: Vec<u8>,
    tail: u64,
    head: u64,
}

/// Linux counts from the last descriptor before the numbers wrap.
const FIRST: u64 = (1 << 62) - 8;
const FINALIZED: u64 = 2 << 62;
const COMMITTED: u64 = 1 << 62;

impl Ring {
    fn new() -> Self {
        Self {
            descriptors: vec![0; 8 * 24],
            infos: vec![0; 8 * 88],
            text: vec![0; 128],
            tail: FIRST,
            head: FIRST,
        }
    }

    /// Puts a record into the slot of `id`: its state, and its text between two positions of the ring.
    fn put(&mut self, id: u64, state: u64, begin: u64, text: &str) -> u64 {
        let slot = (id % 8) as usize;
        let size = (8 + text.len() as u64).next_multiple_of(8);
        // What does not fit before the end begins at the start of the next round, with its number at the beginning.
        let wraps = begin / 128 != (begin + size - 1) / 128;
        let next = if wraps { (begin / 128 + 1) * 128 + size } else { begin + size };
        let at = if wraps { 0 } else { (begin % 128) as usize };
        self.text[at..at + 8].copy_from_slice(&id.to_le_bytes());
        self.text[at + 8..at + 8 + text.len()].copy_from_slice(text.as_bytes());
        for (index, word) in [state | id, begin, next].iter().enumerate() {
            let at = 24 * slot + 8 * index;
            self.descriptors[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        let info = &mut self.infos[88 * slot..88 * (slot + 1)];
        let sequence = id.wrapping_sub(FIRST);
        info[..8].copy_from_slice(&sequence.to_le_bytes());
        info[8..16].copy_from_slice(&(1_500_000_000 + sequence * 1000).to_le_bytes());
        info[16..18].copy_from_slice(&(text.len() as u16).to_le_bytes());
        info[19] = 6 << 5;
        info[20..24]
            .copy_from_slice(&(if sequence.is_multiple_of(2) { 117 } else { 1 << 31 | 3_u32 }).to_le_bytes());
        self.head = id;
        next
    }

    fn memory(&self) -> Extents {
        let mut ring = vec![0; 88];
        let mut put = |at: usize, value: u64| ring[at..at + 8].copy_from_slice(&value.to_le_bytes());
        // desc_ring: count_bits, descs, infos, head_id, tail_id; text_data_ring: size_bits, data.
        for (at, value) in [
            (0, 3),
            (8, BASE + 0x1000),
            (16, BASE + 0x2000),
            (24, self.head),
            (32, self.tail),
            (48, 7),
            (56, BASE + 0x3000),
        ] {
            put(at, value);
        }
        Extents(vec![
            (BASE, (BASE + 0x100).to_le_bytes().to_vec()),
            (BASE + 0x100, ring),
            (BASE + 0x1000, self.descriptors.clone()),
            (BASE + 0x2000, self.infos.clone()),
            (BASE + 0x3000, self.text.clone()),
        ])
    }
}

const RING_INFO: &str = "SYMBOL(prb)=ffffffff83000000\nOFFSET(printk_ringbuffer.desc_ring)=0\n\
    OFFSET(printk_ringbuffer.text_data_ring)=48\nOFFSET(prb_desc_ring.count_bits)=0\nOFFSET(prb_desc_ring.descs)=8\n\
    OFFSET(prb_desc_ring.infos)=16\nOFFSET(prb_desc_ring.head_id)=24\nOFFSET(prb_desc_ring.tail_id)=32\n\
    SIZE(prb_desc)=24\nOFFSET(prb_desc.state_var)=0\nOFFSET(prb_desc.text_blk_lpos)=8\n\
    OFFSET(prb_data_blk_lpos.begin)=0\nOFFSET(prb_data_blk_lpos.next)=8\nSIZE(printk_info)=88\n\
    OFFSET(printk_info.seq)=0\nOFFSET(printk_info.ts_nsec)=8\nOFFSET(printk_info.text_len)=16\n\
    OFFSET(printk_info.caller_id)=20\nOFFSET(prb_data_ring.size_bits)=0\nOFFSET(prb_data_ring.data)=8\n\
    OFFSET(atomic_long_t.counter)=0\n";

#[test]
fn the_ring_is_read_from_its_oldest_record() {
    let mut ring = Ring::new();
    let mut at = 0;
    for (step, text) in ["first", "two\nlines", "third\n"].into_iter().enumerate() {
        at = ring.put(FIRST + step as u64, FINALIZED, at, text);
    }
    let log = read_with(RING_INFO, &ring.memory()).expect("a log");
    assert_eq!(texts(&log), ["first", "two\nlines", "third"]);
    let record = &log.records[1];
    assert_eq!((record.sequence, record.nanoseconds, record.level), (1, 1_500_001_000, 6));
    assert_eq!((log.records[0].caller, record.caller), (Some(Caller::Task(117)), Some(Caller::Cpu(3))));
    assert_eq!(record.to_string(), "[    1.500001] two\n[    1.500001] lines");
    assert_eq!(log.unfinished, 0);
}

#[test]
fn text_that_did_not_fit_before_the_end_is_at_the_beginning() {
    let mut ring = Ring::new();
    let at = ring.put(FIRST, FINALIZED, 0, &"a".repeat(80));
    let at = ring.put(FIRST + 1, FINALIZED, at, &"b".repeat(60));
    assert_eq!(at, 128 + 72, "the second is in the second round");
    ring.tail = FIRST + 1;
    ring.put(FIRST + 2, FINALIZED, at, "c");
    let log = read_with(RING_INFO, &ring.memory()).expect("a log");
    assert_eq!(texts(&log), ["b".repeat(60), "c".into()]);
    // One that ends exactly where the ring does has not wrapped.
    let mut ring = Ring::new();
    assert_eq!(ring.put(FIRST, FINALIZED, 0, &"d".repeat(120)), 128);
    assert_eq!(texts(&read_with(RING_INFO, &ring.memory()).expect("a log")), ["d".repeat(120)]);
}

#[test]
fn records_that_were_not_finished_are_counted() {
    let mut ring = Ring::new();
    let at = ring.put(FIRST, COMMITTED, 0, "whole so far");
    let at = ring.put(FIRST + 1, 0, at, "reserved");
    ring.put(FIRST + 2, FINALIZED, at, "last");
    // The next was taken by a CPU that stopped before it changed the descriptor.
    ring.head = FIRST + 3;
    let log = read_with(RING_INFO, &ring.memory()).expect("a log");
    assert_eq!((texts(&log), log.unfinished), (vec!["whole so far", "last"], 2));
}

#[test]
fn a_descriptor_that_holds_no_record_yet_is_no_unfinished_one() {
    let mut ring = Ring::new();
    ring.put(FIRST, 3 << 62, 0, "");
    ring.put(FIRST + 1, FINALIZED, 0, "first");
    let log = read_with(RING_INFO, &ring.memory()).expect("a log");
    assert_eq!((texts(&log), log.unfinished), (vec!["first"], 0));
}

#[test]
fn a_record_without_text_is_empty() {
    let mut ring = Ring::new();
    ring.put(FIRST, FINALIZED, 0, "x");
    for at in [8, 16] {
        ring.descriptors[at..at + 8].copy_from_slice(&3_u64.to_le_bytes());
    }
    assert_eq!(texts(&read_with(RING_INFO, &ring.memory()).expect("a log")), [""]);
}

#[test]
fn what_is_missing_is_named() {
    let memory = Ring::new().memory();
    let error = read_with("", &memory).expect_err("nothing is known");
    assert_eq!(error, LogError::Unknown("log_buf".into()));
    let error = read_with("SYMBOL(prb)=ffffffff83000000\n", &memory).expect_err("no layout");
    assert_eq!(error, LogError::Unknown("printk_ringbuffer.desc_ring".into()));
    let mut absurd = memory;
    absurd.0[1].1[0] = 40;
    assert!(matches!(read_with(RING_INFO, &absurd), Err(LogError::Absurd { value: 40, .. })));
}

/// The ring of records of Linux 3.5 to 5.9: time, length, lengths of text and dictionary, facility, flags and level.
fn old_record(text: &str, nanoseconds: u64) -> Vec<u8> {
    let length = (16 + text.len()).next_multiple_of(4);
    let mut record = nanoseconds.to_le_bytes().to_vec();
    record.extend_from_slice(&(length as u16).to_le_bytes());
    record.extend_from_slice(&(text.len() as u16).to_le_bytes());
    record.extend_from_slice(&[0, 0, 0, 4 << 5]);
    record.extend_from_slice(text.as_bytes());
    record.resize(length, 0);
    record
}

const OLD_INFO: &str = "SYMBOL(log_buf)=ffffffff83000000\nSYMBOL(log_buf_len)=ffffffff83000008\n\
    SYMBOL(log_first_idx)=ffffffff83000010\nSYMBOL(log_next_idx)=ffffffff83000018\nSIZE(printk_log)=16\n\
    OFFSET(printk_log.ts_nsec)=0\nOFFSET(printk_log.len)=8\nOFFSET(printk_log.text_len)=10\n";

fn old_memory(buffer: Vec<u8>, first: u64, next: u64) -> Extents {
    let head = [BASE + 0x1000, buffer.len() as u64, first, next];
    Extents(vec![(BASE, head.iter().flat_map(|word| word.to_le_bytes()).collect()), (BASE + 0x1000, buffer)])
}

#[test]
fn the_records_before_5_10_are_read_around_the_end_of_their_buffer() {
    let (old, young) = (old_record("old", 2_000_000_000), old_record("young", 3_000_000_000));
    let mut buffer = young.clone();
    buffer.resize(64, 0xff);
    buffer.extend_from_slice(&old);
    // A record of no length says that the next one is at the beginning.
    buffer.extend_from_slice(&[0; 24]);
    let log = read_with(OLD_INFO, &old_memory(buffer, 64, young.len() as u64)).expect("a log");
    assert_eq!(texts(&log), ["old", "young"]);
    assert_eq!((log.records[0].level, log.records[1].nanoseconds), (4, 3_000_000_000));
}

#[test]
fn records_that_never_meet_their_end_are_an_end() {
    let buffer = [old_record("a", 1), old_record("b", 2), vec![0; 32]].concat();
    let log = read_with(OLD_INFO, &old_memory(buffer, 0, 7)).expect("a log");
    assert_eq!(log.unfinished, 1);
}

#[test]
fn plain_characters_are_lines() {
    let text = b"rest\n<4>[   12.345678] warned\n<6>no time\nplain";
    let mut buffer = vec![0; 64];
    let begin = 100_u32;
    for (at, byte) in text.iter().enumerate() {
        buffer[(begin as usize + at) % 64] = *byte;
    }
    let info = "SYMBOL(log_buf)=ffffffff83000000\nSYMBOL(log_buf_len)=ffffffff83000008\n\
        SYMBOL(log_end)=ffffffff83000010\nSYMBOL(logged_chars)=ffffffff83000018\n";
    let log = read_with(info, &old_memory(buffer, u64::from(begin) + text.len() as u64, text.len() as u64))
        .expect("a log");
    assert_eq!(texts(&log), ["rest", "warned", "no time", "plain"]);
    assert_eq!((log.records[1].level, log.records[1].nanoseconds), (4, 12_345_678_000));
}

proptest! {
    #[test]
    fn damaged_rings_are_logs_or_errors(damage in prop::collection::vec((0..5_usize, 0..800_usize, any::<u8>()), 0..30)) {
        let mut ring = Ring::new();
        let at = ring.put(FIRST, FINALIZED, 0, "first");
        ring.put(FIRST + 1, FINALIZED, at, "second");
        let mut memory = ring.memory();
        let mut old = old_memory([old_record("a", 1), old_record("b", 2), vec![0; 32]].concat(), 0, 40);
        for (extent, at, byte) in damage {
            for memory in [&mut memory, &mut old] {
                let count = memory.0.len();
                let bytes = &mut memory.0[extent % count].1;
                let at = at % bytes.len();
                bytes[at] = byte;
            }
        }
        for log in [read_with(RING_INFO, &memory), read_with(OLD_INFO, &old)].into_iter().flatten() {
            prop_assert!(log.records.len() <= 1 << 20);
        }
    }
}
