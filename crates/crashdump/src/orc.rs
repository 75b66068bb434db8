//! ORC: the tables from which a kernel of x86-64 unwinds its own stacks. For every address of code they say how to find the
//! caller's stack pointer, its frame pointer and where it goes on.
//!
//! Two tables in the same order: addresses (32 bits each, relative to their own place) and entries of 6 bytes. They are
//! bisected where they are: of the two megabytes of a kernel some twenty words are read for one address.
//!
//! Entries were laid out in four ways ([`Layout`]). Since 6.4 a hash of the definition is in memory beside the tables.
//!
//! Source: Linux, `arch/x86/include/asm/orc_types.h`, `arch/x86/kernel/unwind_orc.c`, `scripts/orc_hash.sh` (facts only).

use crate::ReadError;
use crate::release::KernelRelease;
use crate::symbols::Symbols;
use crate::virtual_memory::{VirtualMemory, number_u32, sign_extended};

/// The size of an entry.
const ENTRY: usize = 6;
/// No kernel has more entries. A distribution kernel has some 400,000.
const MOST_ENTRIES: u64 = 1 << 24;
/// The size of the hash at `__start_orc_header`.
const HASH: usize = 20;

/// How an entry is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Linux 4.14 to 6.2: two bits for the type, one for the end of the stack.
    TwoBitType,
    /// Linux 6.3: a bit between them says that the frame was interrupted.
    SignalBit,
    /// Linux 6.4 to 7.0: three bits for the type, two of its values being *undefined* and *end of stack*.
    ThreeBitType,
    /// Since Linux 7.1: registers have other numbers.
    Renumbered,
}

impl Layout {
    /// The hashes of the definitions: what a kernel has at `__start_orc_header`.
    const HASHES: [([u8; HASH], Self); 3] = [
        (
            [
                0xdb, 0x84, 0xae, 0xd4, 0x10, 0x3b, 0x31, 0xdd, 0x51, 0xe0, 0x17, 0xf8, 0xf7, 0x97, 0x83,
                0xca, 0x98, 0x5c, 0x2c, 0x51,
            ],
            Self::SignalBit,
        ),
        (
            [
                0xfe, 0x5d, 0x32, 0xbf, 0x58, 0x1b, 0xd6, 0x3b, 0x2c, 0xa9, 0xa5, 0xc6, 0x5b, 0xa5, 0xa6,
                0x25, 0xea, 0xb3, 0xfe, 0x24,
            ],
            Self::ThreeBitType,
        ),
        (
            [
                0x13, 0x7c, 0x36, 0xad, 0x76, 0x27, 0xc4, 0xdd, 0x55, 0x93, 0x21, 0x76, 0xbb, 0x0e, 0xcd,
                0xbd, 0x50, 0x41, 0xfc, 0x82,
            ],
            Self::Renumbered,
        ),
    ];

    /// By the hash, if there is one that is known; otherwise by the release.
    pub fn of(hash: Option<&[u8]>, release: &KernelRelease) -> Self {
        let by_hash = hash.and_then(|hash| Self::HASHES.iter().find(|(known, _)| known == hash));
        if let Some((_, layout)) = by_hash {
            return *layout;
        }
        // Red Hat brought the third back to 5.14, without the hash.
        if release.version() == (5, 14) && release.el9_build().is_some_and(|build| build >= 517) {
            return Self::ThreeBitType;
        }
        match release.version() {
            (0..6, _) | (6, 0..3) => Self::TwoBitType,
            (6, 3) => Self::SignalBit,
            (6, _) | (7, 0) => Self::ThreeBitType,
            _ => Self::Renumbered,
        }
    }

    fn register(self, number: u16) -> Register {
        use Register::{
            Ax, Bp, BpIndirect, Di, Dx, PreviousSp, R10, R13, Sp, SpIndirect, Undefined, Unknown,
        };
        const BEFORE: [Register; 11] =
            [Undefined, PreviousSp, Dx, Di, Bp, Sp, R10, R13, BpIndirect, SpIndirect, Ax];
        const SINCE: [Register; 11] =
            [Undefined, Ax, Dx, Sp, Bp, Di, R10, R13, PreviousSp, SpIndirect, BpIndirect];
        let registers = if self == Self::Renumbered { SINCE } else { BEFORE };
        registers.get(usize::from(number & 0xf)).copied().unwrap_or(Unknown)
    }

    /// An entry from its bytes.
    pub fn decode(self, bytes: [u8; ENTRY]) -> OrcEntry {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let flags = word(4);
        let sp = self.register(flags);
        let old_kind = |end: bool| match (sp, end) {
            (Register::Undefined, false) => Some(FrameKind::Undefined),
            (Register::Undefined, true) => Some(FrameKind::EndOfStack),
            _ => FrameKind::of(flags >> 8 & 3, 2),
        };
        let (kind, interrupted) = match self {
            Self::TwoBitType => {
                let kind = old_kind(flags & 1 << 10 != 0);
                (kind, matches!(kind, Some(FrameKind::Registers | FrameKind::InterruptFrame)))
            }
            Self::SignalBit => (old_kind(flags & 1 << 11 != 0), flags & 1 << 10 != 0),
            Self::ThreeBitType | Self::Renumbered => (FrameKind::of(flags >> 8 & 7, 0), flags & 1 << 11 != 0),
        };
        OrcEntry {
            sp_offset: word(0).cast_signed(),
            bp_offset: word(2).cast_signed(),
            sp,
            bp: self.register(flags >> 4),
            kind: kind.unwrap_or(FrameKind::Undefined),
            interrupted,
        }
    }
}

/// From which register something is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "registers are called what the manual calls them")]
pub enum Register {
    /// It has not changed, or nothing is known.
    Undefined,
    /// The stack pointer of the caller.
    PreviousSp,
    Ax,
    Dx,
    Di,
    Bp,
    Sp,
    R10,
    R13,
    /// The word that the stack pointer points to.
    SpIndirect,
    /// The word that the frame pointer, with the offset, points to.
    BpIndirect,
    /// A number that no kernel uses.
    Unknown,
}

/// What a frame ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// The kernel says that it cannot be unwound from here.
    Undefined,
    /// There is no caller: where a thread began, or user mode.
    EndOfStack,
    /// A return address.
    Call,
    /// All registers of what was interrupted: a `struct pt_regs`.
    Registers,
    /// Only what the processor pushes: instruction pointer, flags, stack pointer.
    InterruptFrame,
}

impl FrameKind {
    const fn of(number: u16, first: u16) -> Option<Self> {
        match number + first {
            0 => Some(Self::Undefined),
            1 => Some(Self::EndOfStack),
            2 => Some(Self::Call),
            3 => Some(Self::Registers),
            4 => Some(Self::InterruptFrame),
            _ => None,
        }
    }
}

/// How to find the caller's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrcEntry {
    /// To be added to what `sp` names.
    pub sp_offset: i16,
    /// To be added to what `bp` names.
    pub bp_offset: i16,
    /// From where the caller's stack pointer is counted.
    pub sp: Register,
    /// From where the place of its frame pointer is counted.
    pub bp: Register,
    /// What is there.
    pub kind: FrameKind,
    /// Whether the frame that comes next was interrupted: its address is that of an instruction that did not run, not one
    /// behind a call.
    pub interrupted: bool,
}

/// Where the tables of the kernel's image or of a module are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrcTable {
    /// Addresses.
    pub ips: u64,
    /// Entries.
    pub entries: u64,
    /// How many.
    pub count: u32,
}

impl OrcTable {
    /// Those of the kernel's image; none if it was built without.
    pub fn of_image(symbols: &Symbols) -> Option<Self> {
        let at = |name| symbols.address_of(name);
        let (ips, end) = (at("__start_orc_unwind_ip")?, at("__stop_orc_unwind_ip")?);
        let entries = at("__start_orc_unwind")?;
        let count = end.checked_sub(ips)? / 4;
        (count > 0 && count <= MOST_ENTRIES).then_some(Self { ips, entries, count: count as u32 })
    }

    /// The bytes of the entry for an address: that of the last address which is not above it. None below the first.
    ///
    /// # Errors
    ///
    /// A word of the tables cannot be read.
    pub fn find(&self, memory: &dyn VirtualMemory, address: u64) -> Result<Option<[u8; ENTRY]>, ReadError> {
        // The last few steps are in one page, so the words of a small piece are read together.
        const PIECE: u32 = 16;
        let ip = |index: u32, offset: u32| {
            let place = self.ips.wrapping_add(4 * u64::from(index));
            place.wrapping_add(sign_extended(offset))
        };
        let (mut low, mut high) = (0, self.count);
        while high - low > PIECE {
            let middle = low + (high - low) / 2;
            let offset = memory.read_u32(self.ips.wrapping_add(4 * u64::from(middle)))?;
            if ip(middle, offset) <= address {
                low = middle;
            } else {
                high = middle;
            }
        }
        let piece =
            memory.read_bytes(self.ips.wrapping_add(4 * u64::from(low)), 4 * (high - low) as usize)?;
        let below = |index: &u32| {
            let offset = number_u32(&piece, 4 * (index - low) as usize);
            offset.is_some_and(|offset| ip(*index, offset) <= address)
        };
        let Some(index) = (low..high).rev().find(below) else { return Ok(None) };
        let mut entry = [0; ENTRY];
        memory.read(self.entries.wrapping_add(ENTRY as u64 * u64::from(index)), &mut entry)?;
        Ok(Some(entry))
    }
}

/// The layout of a kernel's entries.
pub fn layout(memory: &dyn VirtualMemory, symbols: &Symbols, release: &KernelRelease) -> Layout {
    let hash = symbols.address_of("__start_orc_header").and_then(|at| memory.read_bytes(at, HASH).ok());
    Layout::of(hash.as_deref(), release)
}
