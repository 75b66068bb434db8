//! A source, opened: which format it is found out from its first bytes.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use smpcall_vmcore::{PendingInterrupts, Record, prstatus};

use crate::cache::Cached;
use crate::flattened::{self, Flattened};
use crate::notes::{self, Note};
use crate::qmp::{self, Machine};
use crate::registers::{self, SavedCpu};
use crate::storage::{FileStorage, Storage};
use crate::translate::MappedSegment;
use crate::{Architecture, OpenError, PhysicalMemory, elf, kdump, scan};

/// Where a running kernel shows its memory.
const KCORE: &str = "/proc/kcore";

/// Formats that are known by how they begin, and not read.
const REFUSED: [(&[u8], &str); 5] = [
    (b"DISKDUMP", "this is a dump of diskdump, the forerunner of kdump; it cannot be read here"),
    (&[0x1f, 0x8b], "this file is compressed by gzip as a whole; decompress it first (gzip -d)"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "this file is compressed by zstd as a whole; decompress it first (zstd -d)"),
    (
        &[0xfd, b'7', b'z', b'X', b'Z', 0],
        "this file is compressed by xz as a whole; decompress it first (xz -d)",
    ),
    (b"QEVM", "this is a saved or migrated state of QEMU, and no dump; use dump-guest-memory in its monitor"),
];

/// Those of the notes that are ours and can be read.
fn records(notes: &[Note]) -> impl Iterator<Item = Record> {
    notes.iter().filter_map(|note| {
        let note = smpcall_vmcore::Note {
            owner: note.owner.as_bytes(),
            kind: note.kind,
            descriptor: &note.descriptor,
        };
        Record::read(&note)?.ok()
    })
}

/// How a file begins: its first 16 bytes, or all that it has.
fn begins(storage: &dyn Storage) -> Result<Vec<u8>, OpenError> {
    let mut begins = vec![0; 16];
    let read = storage
        .read_at(0, &mut begins)
        .map_err(|error| OpenError::NotReadable { what: format!("the file cannot be read: {error}") })?;
    begins.truncate(read);
    Ok(begins)
}

/// What a source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An ELF core.
    Elf,
    /// A kdump-compressed dump: of makedumpfile or of QEMU.
    KdumpCompressed,
    /// The running kernel.
    Kcore,
    /// A virtual machine, through its monitor.
    Monitor,
    /// An ELF core with our own notes.
    Smpcall,
}

impl Kind {
    /// Whether the source changes while it is read.
    pub const fn lives(self) -> bool {
        matches!(self, Self::Kcore | Self::Monitor)
    }
}

/// An opened source: physical memory, and what its notes say.
#[derive(Debug)]
pub struct Dump {
    kind: Kind,
    flattened: bool,
    architecture: Architecture,
    memory: Cached,
    cpus: Vec<SavedCpu>,
    vmcoreinfo: Option<String>,
    notes: Vec<Note>,
    mapped: Vec<MappedSegment>,
    phys_base: Option<i64>,
    machine: Option<Machine>,
    remarks: Vec<String>,
}

impl Dump {
    /// Opens a file, of whichever format, or `/proc/kcore`.
    ///
    /// # Errors
    /// If it cannot be read, is no dump, or is a damaged one.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |what| move |source| OpenError::File { path: path.to_path_buf(), what, source };
        let kcore = path.canonicalize().is_ok_and(|path| path == Path::new(KCORE));
        let file = File::open(path).map_err(failed("opened"))?;
        let storage = if kcore {
            FileStorage::endless(file)
        } else {
            FileStorage::new(file).map_err(failed("read"))?
        };
        if kcore {
            let mut core = elf::open(Box::new(storage))?;
            // A note of registers that nobody has saved, all zero, and the command line of who reads.
            core.notes.retain(|note| note.owner != prstatus::CORE);
            let mut dump = Self::of_elf(core, Cached::living);
            dump.kind = Kind::Kcore;
            return Ok(dump);
        }
        Self::read(Box::new(storage))
    }

    /// Connects to the monitor of a QEMU guest: a Unix socket that speaks QMP.
    ///
    /// # Errors
    /// [`OpenError::Monitor`].
    pub fn connect(socket: &Path) -> Result<Self, OpenError> {
        let connected = qmp::connect(socket)?;
        let memory = Cached::living(connected.memory);
        Ok(Self {
            kind: Kind::Monitor,
            flattened: false,
            architecture: Architecture::from_name(connected.architecture.as_bytes()),
            vmcoreinfo: scan::vmcoreinfo(memory.source(), Some(scan::BLOCK)),
            memory,
            notes: qmp::notes(&connected.cpus, &connected.machine),
            cpus: connected.cpus,
            mapped: Vec::new(),
            phys_base: None,
            machine: Some(connected.machine),
            remarks: connected.remarks,
        })
    }

    /// Opens a dump whose bytes are anywhere.
    ///
    /// # Errors
    /// If it is no dump, or a damaged one.
    pub fn read(storage: Box<dyn Storage>) -> Result<Self, OpenError> {
        let begins = begins(&*storage)?;
        if !begins.starts_with(flattened::SIGNATURE) {
            return Self::plain(storage, &begins);
        }
        let mut remarks = Vec::new();
        let inner = Flattened::open(storage, &mut remarks)?;
        let begins = self::begins(&inner)?;
        let mut dump = Self::plain(Box::new(inner), &begins)?;
        dump.flattened = true;
        remarks.append(&mut dump.remarks);
        dump.remarks = remarks;
        Ok(dump)
    }

    fn plain(storage: Box<dyn Storage>, begins: &[u8]) -> Result<Self, OpenError> {
        if begins.starts_with(&object::elf::ELFMAG) {
            elf::open(storage).map(|core| Self::of_elf(core, Cached::new))
        } else if begins.starts_with(kdump::SIGNATURE) {
            kdump::open(storage).map(Self::of_kdump)
        } else if let Some((_, what)) = REFUSED.iter().find(|(signature, _)| begins.starts_with(signature)) {
            Err(OpenError::NotReadable { what: (*what).into() })
        } else {
            Err(OpenError::NotADump { begins: begins[..begins.len().min(8)].to_vec() })
        }
    }

    fn of_elf(core: elf::Core, cached: fn(Box<dyn PhysicalMemory>) -> Cached) -> Self {
        let ours = records(&core.notes).any(|record| matches!(record, Record::Summary(_)));
        Self {
            kind: if ours { Kind::Smpcall } else { Kind::Elf },
            flattened: false,
            architecture: core.architecture,
            cpus: registers::of_notes(&core.notes),
            vmcoreinfo: notes::vmcoreinfo(&core.notes).or_else(|| scan::vmcoreinfo(&core.memory, None)),
            memory: cached(Box::new(core.memory)),
            notes: core.notes,
            mapped: core.mapped,
            phys_base: None,
            machine: None,
            remarks: core.remarks,
        }
    }

    fn of_kdump(core: kdump::Core) -> Self {
        Self {
            kind: Kind::KdumpCompressed,
            flattened: false,
            architecture: core.architecture,
            cpus: registers::of_notes(&core.notes),
            vmcoreinfo: core.vmcoreinfo.or_else(|| scan::vmcoreinfo(&core.memory, None)),
            memory: Cached::new(Box::new(core.memory)),
            notes: core.notes,
            mapped: Vec::new(),
            phys_base: Some(core.phys_base),
            machine: None,
            remarks: core.remarks,
        }
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether its file is in flattened form.
    pub fn is_flattened(&self) -> bool {
        self.flattened
    }

    /// Whose memory it is.
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// The memory. What is read is kept for a while, and noted for [`touched`](Self::touched).
    pub fn memory(&self) -> &dyn PhysicalMemory {
        &self.memory
    }

    /// The memory, past what is kept, and without a note: for scans of everything, and for looking again at what may
    /// have changed.
    pub fn source(&self) -> &dyn PhysicalMemory {
        self.memory.source()
    }

    /// The ranges of physical addresses that were read so far, in whole pages, in order.
    pub fn touched(&self) -> Vec<Range<u64>> {
        self.memory.touched()
    }

    /// Forgets the pages that are kept, so that they are read anew: for a source that [lives](Kind::lives).
    pub fn forget(&self) {
        self.memory.forget();
    }

    /// The CPUs that have saved their registers, in the order of their notes.
    pub fn cpus(&self) -> &[SavedCpu] {
        &self.cpus
    }

    /// The text of `VMCOREINFO`, from its note or from memory.
    pub fn vmcoreinfo(&self) -> Option<&str> {
        self.vmcoreinfo.as_deref()
    }

    /// All notes, in the file's order.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// What the monitor says of its machine, if this is one.
    pub fn machine(&self) -> Option<&Machine> {
        self.machine.as_ref()
    }

    /// Our own notes, read. Those that cannot be read are left out.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        records(&self.notes)
    }

    /// What the local APIC of each CPU held, if anybody has noted it: a monitor, or a crash stop of ours.
    pub fn pending_interrupts(&self) -> impl Iterator<Item = PendingInterrupts> {
        self.records().filter_map(|record| match record {
            Record::Pending(pending) => Some(pending),
            _ => None,
        })
    }

    /// Segments with a virtual address.
    pub(crate) fn mapped(&self) -> &[MappedSegment] {
        &self.mapped
    }

    /// How far the kernel's image was moved in physical memory, if the dump's header says so.
    pub(crate) fn phys_base(&self) -> Option<i64> {
        self.phys_base
    }

    /// What was found to be wrong with the dump as a whole, one sentence each: cut off, incomplete, notes that cannot
    /// be read.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }
}
