//! Small writers of each format, independent of the crate's own, and memory to write.
#![allow(dead_code, reason = "each test file uses a part")]

use std::ops::Range;

use smpcall_crashdump::{Dump, OpenError};
use smpcall_vmcore::{NoteWriter, PrStatus, note_bytes};

pub(crate) const PAGE: usize = 4096;

/// Bytes that say where they are: each word of 8 bytes is its own address.
pub(crate) fn pattern(range: Range<u64>) -> Vec<u8> {
    let word = |at: u64| (at & !7).to_le_bytes()[(at % 8) as usize];
    range.map(word).collect()
}

/// Opens bytes that hold a dump.
pub(crate) fn open(bytes: &[u8]) -> Result<Dump, OpenError> {
    Dump::read(Box::new(bytes.to_vec()))
}

/// Reads from a dump's memory.
pub(crate) fn read(dump: &Dump, address: u64, bytes: usize) -> Result<Vec<u8>, smpcall_crashdump::ReadError> {
    let mut into = vec![0; bytes];
    dump.memory().read_physical(address, &mut into).map(|()| into)
}

/// Notes, one behind the other.
pub(crate) fn notes(notes: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; notes.iter().map(|(owner, _, bytes)| note_bytes(owner, bytes.len())).sum()];
    let mut writer = NoteWriter::new(&mut bytes);
    for (owner, kind, descriptor) in notes {
        writer.push(owner, *kind, descriptor).expect("there is room");
    }
    bytes
}

/// The note of a CPU whose instruction pointer is this.
pub(crate) fn status(rip: u64) -> Vec<u8> {
    let mut status = PrStatus { pid: 7, ..PrStatus::default() };
    status.registers.rip = rip;
    status.to_bytes().to_vec()
}

/// A segment of memory, or of notes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Segment {
    pub(crate) notes: bool,
    pub(crate) address: u64,
    pub(crate) physical: u64,
    pub(crate) bytes: Vec<u8>,
    /// How much more it has in memory than in the file.
    pub(crate) left_out: u64,
}

pub(crate) fn memory(physical: u64, bytes: Vec<u8>) -> Segment {
    Segment { physical, bytes, ..Segment::default() }
}

/// An ELF core.
pub(crate) fn elf(machine: u16, segments: &[Segment]) -> Vec<u8> {
    let extended = segments.len() >= 0xffff;
    let table = 64 + if extended { 64 } else { 0 };
    let mut file = vec![0; table + 56 * segments.len()];
    let put = |file: &mut Vec<u8>, at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(&mut file, 0, &[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    put(&mut file, 16, &4u16.to_le_bytes());
    put(&mut file, 18, &machine.to_le_bytes());
    put(&mut file, 32, &(table as u64).to_le_bytes());
    put(&mut file, 54, &56u16.to_le_bytes());
    put(&mut file, 56, &u16::try_from(segments.len()).unwrap_or(0xffff).to_le_bytes());
    if extended {
        put(&mut file, 40, &64u64.to_le_bytes());
        put(&mut file, 64 + 44, &(segments.len() as u32).to_le_bytes());
    }
    for (number, segment) in segments.iter().enumerate() {
        let (at, offset, bytes) = (table + 56 * number, file.len() as u64, segment.bytes.len() as u64);
        put(&mut file, at, &if segment.notes { 4u32 } else { 1 }.to_le_bytes());
        for (field, value) in [
            (8, offset),
            (16, segment.address),
            (24, segment.physical),
            (32, bytes),
            (40, bytes + segment.left_out),
        ] {
            put(&mut file, at + field, &value.to_le_bytes());
        }
        file.extend_from_slice(&segment.bytes);
    }
    file
}

/// What a page of a kdump-compressed dump is.
#[derive(Clone, Debug)]
pub(crate) enum Stored {
    /// The machine has no such page.
    Absent,
    /// It was left out.
    Excluded,
    /// It should be there, and its descriptor is empty.
    Lost,
    /// It is there: flags, and bytes as they are stored.
    Page(u32, Vec<u8>),
}

/// A kdump-compressed dump.
#[derive(Clone, Debug)]
pub(crate) struct Kdump {
    pub(crate) version: u32,
    pub(crate) status: u32,
    pub(crate) machine: &'static str,
    pub(crate) split: bool,
    pub(crate) vmcoreinfo: Vec<u8>,
    pub(crate) notes: Vec<u8>,
    pub(crate) pages: Vec<Stored>,
}

impl Default for Kdump {
    fn default() -> Self {
        Self {
            version: 6,
            status: 1,
            machine: "x86_64",
            split: false,
            vmcoreinfo: Vec::new(),
            notes: Vec::new(),
            pages: Vec::new(),
        }
    }
}

impl Kdump {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let count = self.pages.len();
        let bitmap_blocks = count.div_ceil(8 * PAGE);
        let sub_blocks = (104 + self.vmcoreinfo.len() + self.notes.len()).div_ceil(PAGE);
        let bitmaps = (1 + sub_blocks) * PAGE;
        let mut file = vec![0; bitmaps + 2 * bitmap_blocks * PAGE];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"KDUMP   ");
        put(8, &self.version.to_le_bytes());
        put(12 + 4 * 65, self.machine.as_bytes());
        for (at, value) in [
            (424, self.status),
            (428, 4096),
            (432, sub_blocks as u32),
            (436, 2 * bitmap_blocks as u32),
            (440, count as u32),
        ] {
            put(at, &value.to_le_bytes());
        }
        let sub = PAGE;
        put(sub + 12, &u32::from(self.split).to_le_bytes());
        let text_at = (sub + 104) as u64;
        let notes_at = text_at + self.vmcoreinfo.len() as u64;
        let fields = [(32, text_at, &self.vmcoreinfo, 3), (48, notes_at, &self.notes, 4)];
        for (at, offset, bytes, _) in
            fields.iter().filter(|field| self.version >= field.3 && !field.2.is_empty())
        {
            put(sub + at, &offset.to_le_bytes());
            put(sub + at + 8, &(bytes.len() as u64).to_le_bytes());
            put(*offset as usize, bytes);
        }
        if self.version >= 6 {
            put(sub + 96, &(count as u64).to_le_bytes());
        }
        let mut descriptors = Vec::new();
        let mut stored = Vec::new();
        let there = self.pages.iter().filter(|page| matches!(page, Stored::Lost | Stored::Page(..))).count();
        let data = file.len() + 24 * there;
        for (number, page) in self.pages.iter().enumerate() {
            let bit = 1 << (number % 8);
            let mut describe = |offset: u64, bytes: u32, flags: u32| {
                descriptors.extend_from_slice(&offset.to_le_bytes());
                descriptors.extend_from_slice(&bytes.to_le_bytes());
                descriptors.extend_from_slice(&flags.to_le_bytes());
                descriptors.extend_from_slice(&[0; 8]);
            };
            match page {
                Stored::Absent => continue,
                Stored::Excluded => {}
                Stored::Lost => describe(0, 0, 0),
                Stored::Page(flags, bytes) => {
                    describe((data + stored.len()) as u64, bytes.len() as u32, *flags);
                    stored.extend_from_slice(bytes);
                }
            }
            file[bitmaps + number / 8] |= bit;
            if !matches!(page, Stored::Excluded) {
                file[bitmaps + bitmap_blocks * PAGE + number / 8] |= bit;
            }
        }
        file.extend_from_slice(&descriptors);
        file.extend_from_slice(&stored);
        file
    }
}

/// A page compressed by zlib.
pub(crate) fn zlib(page: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(page).expect("to memory");
    encoder.finish().expect("to memory")
}

/// The same file in flattened form, in records of so many bytes, the last one first.
pub(crate) fn flatten(file: &[u8], record: usize) -> Vec<u8> {
    let mut flat = vec![0; PAGE];
    flat[..12].copy_from_slice(b"makedumpfile");
    (flat[23], flat[31]) = (1, 1);
    let mut records: Vec<(usize, &[u8])> = (0..).step_by(record).zip(file.chunks(record)).collect();
    records.rotate_right(1);
    for (offset, bytes) in records {
        flat.extend_from_slice(&(offset as u64).to_be_bytes());
        flat.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        flat.extend_from_slice(bytes);
    }
    flat.extend_from_slice(&[0xff; 16]);
    flat
}

/// Memory with page tables in it: sets of 8 bytes at physical addresses.
#[derive(Clone, Debug)]
pub(crate) struct Tables {
    pub(crate) bytes: Vec<u8>,
    /// Added to every entry: the bit that says that memory is encrypted.
    pub(crate) mask: u64,
    next: u64,
}

impl Tables {
    pub(crate) const ROOT: u64 = 0x1000;

    /// So many bytes, with an empty topmost table.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { bytes: vec![0; bytes], mask: 0, next: Self::ROOT + 0x1000 }
    }

    pub(crate) fn put(&mut self, at: u64, value: u64) {
        self.bytes[at as usize..at as usize + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn get(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.bytes[at as usize..at as usize + 8].try_into().expect("8 bytes"))
    }

    /// Maps a page of 4 KiB (shift 12), 2 MiB (21) or 1 GiB (30).
    pub(crate) fn map(&mut self, levels: u32, address: u64, physical: u64, shift: u32) {
        let mut table = Self::ROOT;
        for level in (0..levels).rev() {
            let at = table + (address >> (12 + 9 * level) & 511) * 8;
            if 12 + 9 * level == shift {
                let large = if shift > 12 { 0x80 } else { 0 };
                self.put(at, physical | self.mask | large | 1);
                return;
            }
            if self.get(at) == 0 {
                let next = self.next;
                self.next += 0x1000;
                self.put(at, next | self.mask | 0x63);
            }
            table = self.get(at) & !self.mask & 0x000f_ffff_ffff_f000;
        }
    }
}

/// What VMCOREINFO says of [`Tables`], if the image's base maps the first byte of memory.
pub(crate) fn vmcoreinfo(five_levels: bool, more: &str) -> String {
    format!(
        "OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffffffff80001000\nNUMBER(phys_base)=0\n\
         NUMBER(pgtable_l5_enabled)={}\n{more}",
        u8::from(five_levels)
    )
}

/// A small kernel: its tables, mapped at the image's base, and a page of text with nothing around it.
pub(crate) fn kernel() -> Vec<Segment> {
    let mut tables = Tables::new(0x10_0000);
    tables.map(4, 0xffff_ffff_8000_0000, 0, 21);
    tables.map(4, 0xffff_8880_0000_0000, 0x2000_0000, 12);
    let mut page = pattern(0x2000_0000..0x2000_1000);
    page[0xfff] = b'x';
    let text = vmcoreinfo(false, "");
    let note = notes(&[
        ("CORE", 1, &status(0xffff_ffff_8000_1234)),
        ("CORE", 1, &status(0x1234)),
        ("VMCOREINFO", 0, text.as_bytes()),
    ]);
    vec![
        Segment { notes: true, bytes: note, ..Segment::default() },
        memory(0, tables.bytes),
        memory(0x2000_0000, page),
    ]
}
