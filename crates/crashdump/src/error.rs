//! What can go wrong: [`OpenError`] for a source as a whole, [`ReadError`] for one address.
//!
//! Each says what happened, where, and what to do about it where something can be done.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::Architecture;

/// Why memory at an address could not be read. Addresses are physical unless they are called virtual.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The machine had no memory there, as far as the source knows.
    #[error("there is no memory at physical address {address:#x} in this source")]
    Absent {
        /// The first address that is missing.
        address: u64,
    },
    /// The page was left out on purpose when the dump was made.
    #[error(
        "the page at physical address {address:#x} was left out when the dump was made; a dump of everything \
         (makedumpfile -d 0) has it"
    )]
    Excluded {
        /// The first address that is missing.
        address: u64,
    },
    /// The page should be in the dump, and is not: writing it was interrupted.
    #[error("the page at physical address {address:#x} was lost: the dump was not written to its end")]
    Lost {
        /// The first address that is missing.
        address: u64,
    },
    /// The file ends before the bytes of this page.
    #[error(
        "the bytes for physical address {address:#x} should be at offset {offset:#x} of the file, beyond its end: \
         the file was cut off; copy it again"
    )]
    CutOff {
        /// The first address that is missing.
        address: u64,
        /// Where its bytes should be.
        offset: u64,
    },
    /// The bytes of this page cannot be what a writer wrote.
    #[error("the page at physical address {address:#x} is damaged (offset {offset:#x} of the file): {what}")]
    Damaged {
        /// The page.
        address: u64,
        /// Where its bytes are.
        offset: u64,
        /// What is wrong with them.
        what: &'static str,
    },
    /// The kernel's page tables map nothing there.
    #[error("virtual address {address:#x} is not mapped: its {level} holds {entry:#x}")]
    NotMapped {
        /// The virtual address.
        address: u64,
        /// Which entry on the way to it is not present.
        level: Level,
        /// What that entry holds.
        entry: u64,
    },
    /// A page table on the way to a virtual address cannot be read.
    #[error(
        "virtual address {address:#x} cannot be translated, because its {level} cannot be read: {source}"
    )]
    Table {
        /// The virtual address.
        address: u64,
        /// Which entry on the way to it.
        level: Level,
        /// Why.
        source: Box<ReadError>,
    },
    /// Bits of the address that must all be the same are not.
    #[error(
        "{address:#x} is no virtual address of this machine: its upper bits are not copies of one another"
    )]
    NotCanonical {
        /// The address.
        address: u64,
    },
    /// No segment of the source has this virtual address, and it has no page tables that could be asked.
    #[error("no segment of this source has virtual address {address:#x}")]
    NoSegment {
        /// The address.
        address: u64,
    },
    /// The range goes beyond the end of all addresses.
    #[error("{length} bytes from {address:#x} go beyond the last address")]
    Wraps {
        /// Where the range begins.
        address: u64,
        /// How long it is.
        length: u64,
    },
    /// More was asked for at once than anything in a kernel is long: most likely a length was read from garbage.
    #[error("{length} bytes at {address:#x} are more than is read at once ({limit})")]
    TooLong {
        /// Where the range begins.
        address: u64,
        /// How long it is.
        length: u64,
        /// How long it may be.
        limit: u64,
    },
    /// The operating system, or the machine's monitor, refused.
    #[error("reading physical address {address:#x} failed: {reason}")]
    Failed {
        /// The first address.
        address: u64,
        /// What was said.
        reason: Box<str>,
    },
}

/// One of the tables that translate an address, by the name of its entries. SDM volume 3A, 5.5 "4-Level Paging and
/// 5-Level Paging".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Of the fifth level: 256 TiB an entry.
    Pml5Entry,
    /// Of the fourth level: 512 GiB an entry.
    Pml4Entry,
    /// Page-directory-pointer table: 1 GiB an entry.
    PointerEntry,
    /// Page directory: 2 MiB an entry.
    DirectoryEntry,
    /// Page table: 4 KiB an entry.
    TableEntry,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pml5Entry => "PML5 entry",
            Self::Pml4Entry => "PML4 entry",
            Self::PointerEntry => "page-directory-pointer entry",
            Self::DirectoryEntry => "page-directory entry",
            Self::TableEntry => "page-table entry",
        })
    }
}

/// Why a source cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The operating system refused.
    #[error("{} cannot be {what}: {source}", path.display())]
    File {
        /// The file or socket.
        path: PathBuf,
        /// What was tried: "opened", "read".
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The first bytes are those of no format that is known here.
    #[error(
        "this is no crash dump: it begins with {}, and not as an ELF core (7f 45 4c 46), a kdump-compressed dump \
         (\"KDUMP   \") or a flattened one (\"makedumpfile\")",
        Hex(begins)
    )]
    NotADump {
        /// The first bytes, at most eight.
        begins: Vec<u8>,
    },
    /// It is a dump of a kind that cannot be read here.
    #[error("{what}")]
    NotReadable {
        /// Which, and what to do.
        what: String,
    },
    /// A part that everything else depends on cannot be read.
    #[error("the {part} at offset {offset:#x} of the file cannot be used: {what}")]
    Damaged {
        /// Which part.
        part: &'static str,
        /// Where it is.
        offset: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The file ends before a part that everything else depends on.
    #[error(
        "the file has {length} bytes, and its {part} should be at {offset:#x} to {end:#x}: it was cut off; copy it \
         again"
    )]
    CutOff {
        /// Which part.
        part: &'static str,
        /// Where it should begin.
        offset: u64,
        /// Where it should end.
        end: u64,
        /// How long the file is.
        length: u64,
    },
    /// The kernel's virtual memory of this architecture cannot be read here.
    #[error("this is a dump of {0}: its page tables cannot be read here yet, only those of x86-64")]
    OtherArchitecture(Architecture),
    /// Nothing says where the kernel's page tables are.
    #[error(
        "nothing in this source says where the kernel's page tables are: it has no VMCOREINFO and no CPU's cr3; \
         for a QEMU guest use dump-guest-memory in ELF format, best with -device vmcoreinfo"
    )]
    NoPageTables,
    /// Something says where the kernel's page tables are, and they do not translate the kernel.
    #[error("the kernel's page tables cannot be used: {what}")]
    BadPageTables {
        /// What was tried, and how it ended.
        what: String,
    },
    /// A machine's monitor did not do what it was asked.
    #[error("the monitor at {} {what}", path.display())]
    Monitor {
        /// The socket.
        path: PathBuf,
        /// What it did or did not.
        what: String,
    },
}

/// Bytes, as people write them.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nothing (it is empty)");
        }
        for (at, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if at == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}
