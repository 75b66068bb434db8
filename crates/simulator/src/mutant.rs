//! Deliberate faults, applied at the seam to one place of the code that runs: what an explorer must find.
//!
//! A mutant changes what one operation does, named by its file and line, and nothing is compiled anew. That reaches every
//! access to shared memory, every wait, every message, every register of the APIC and every disabling of interrupts of
//! the code that ships.
//!
//! A mutant breaks what the code relies on, memory safety included: a claim that two CPUs win runs a closure twice, maybe
//! in a frame that is gone. Explore them in a process of their own.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use smpcall_machine::Access;

use crate::processor::Source;

/// What the operation does instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// An access, or a wait, orders nothing: it is relaxed.
    Relaxed,
    /// An access has this ordering. A compare-exchange that fails keeps its own.
    Ordered(Ordering),
    /// A compare-exchange that fails orders nothing.
    FailureRelaxed,
    /// It writes nothing, and reports what it has found; a compare-exchange reports success if it would have succeeded.
    NotWritten,
    /// A read-modify-write is a load and a store, with room for others in between.
    NotAtomic,
    /// A compare-exchange writes whatever it finds, and reports success.
    Unconditional,
    /// A store or read-modify-write writes this instead; a compare-exchange still compares.
    Writes(u64),
    /// It reports this, whatever it finds.
    Finds(u64),
    /// An access is made twice.
    Twice,
    /// A wait ends at once, as if its first condition held.
    NotWaited,
    /// A message is not sent, and nobody is told.
    NotSent,
    /// A message is sent twice.
    SentTwice,
    /// Disabling interrupts does nothing.
    NotDisabled,
    /// The fence before a write of the 64-bit ICR is left out.
    NotFenced,
    /// An APIC register is not written.
    RegisterNotWritten,
    /// An APIC register is written twice.
    RegisterWrittenTwice,
    /// An APIC register reads as this.
    RegisterReads(u32),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Relaxed => "relaxed",
            Self::Ordered(order) => return write!(f, "only {order:?}"),
            Self::FailureRelaxed => "relaxed if it fails",
            Self::NotWritten => "not written",
            Self::NotAtomic => "not atomic",
            Self::Unconditional => "unconditional",
            Self::Writes(value) => return write!(f, "writes {value:#x}"),
            Self::Finds(value) => return write!(f, "finds {value:#x}"),
            Self::Twice => "done twice",
            Self::NotWaited => "not waited",
            Self::NotSent => "not sent",
            Self::SentTwice => "sent twice",
            Self::NotDisabled => "not disabled",
            Self::NotFenced => "not fenced",
            Self::RegisterNotWritten => "register not written",
            Self::RegisterWrittenTwice => "register written twice",
            Self::RegisterReads(value) => return write!(f, "register reads {value:#x}"),
        })
    }
}

/// A fault at one place of the source.
#[derive(Clone, Debug)]
pub struct Mutant {
    file: String,
    line: u32,
    fault: Fault,
    /// How often the place was come to, on all machines that share this mutant.
    reached: Arc<AtomicU64>,
}

impl Mutant {
    /// This fault in the operations that stand on this line of the file whose path ends like this.
    pub fn new(file: impl Into<String>, line: u32, fault: Fault) -> Self {
        Self { file: file.into(), line, fault, reached: Arc::default() }
    }

    /// This fault in the operations that stand on the line on which `snippet` begins in the text of the file.
    ///
    /// # Panics
    /// If the snippet does not stand there exactly once.
    pub fn at(file: impl Into<String>, text: &str, snippet: &str, fault: Fault) -> Self {
        let file = file.into();
        let mut places = text.match_indices(snippet);
        let (before, _) = places.next().unwrap_or_else(|| panic!("`{snippet}` does not stand in {file}"));
        assert!(places.next().is_none(), "`{snippet}` stands in {file} more than once");
        let line = text[..before].matches('\n').count() + 1;
        Self::new(file, line as u32, fault)
    }

    /// The line.
    pub fn line(&self) -> u32 {
        self.line
    }

    /// How often an operation at its place was come to, on all machines that were given this mutant or a clone of it. Zero
    /// after an exploration: the protocol does not use the place.
    pub fn reached(&self) -> u64 {
        // Relaxed: a statistic, read when the machines' threads have been joined.
        self.reached.load(Ordering::Relaxed)
    }

    /// The fault, if this is its place.
    #[inline]
    pub(crate) fn at_place(&self, source: Source) -> Option<Fault> {
        if source.line() != self.line || !source.file().ends_with(&self.file) {
            return None;
        }
        // Relaxed: see `reached`.
        self.reached.fetch_add(1, Ordering::Relaxed);
        Some(self.fault)
    }
}

/// One of the accesses that are made instead of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Access(Access),
    /// Stores what the access that was asked for would have written where the first part found what it found.
    WriteResult,
}

/// What is done instead of an access, and with which ordering.
pub(crate) fn parts(fault: Fault, access: Access, order: Ordering) -> (impl Iterator<Item = Part>, Ordering) {
    let plain = matches!(access, Access::PlainRead(_) | Access::PlainWrite(_));
    let order = match fault {
        Fault::Relaxed => Ordering::Relaxed,
        Fault::Ordered(order) => order,
        _ => order,
    };
    let first = match (fault, access) {
        (Fault::Relaxed | Fault::FailureRelaxed, Access::CompareExchange(expected, value, _)) => {
            Access::CompareExchange(expected, value, Ordering::Relaxed)
        }
        (Fault::NotWritten | Fault::NotAtomic, _) if access.writes() && !plain => Access::Load,
        (Fault::Unconditional, Access::CompareExchange(_, value, _)) => Access::Swap(value),
        (Fault::Writes(value), Access::Store(_)) => Access::Store(value),
        (Fault::Writes(value), Access::CompareExchange(expected, _, failure)) => {
            Access::CompareExchange(expected, value, failure)
        }
        (Fault::Writes(value), _) if access.writes() && !plain => Access::Swap(value),
        _ => access,
    };
    let second = match fault {
        Fault::NotAtomic if access.writes() && !plain => Some(Part::WriteResult),
        Fault::Twice if !plain => Some(Part::Access(access)),
        _ => None,
    };
    (core::iter::once(Part::Access(first)).chain(second), order)
}

/// What is answered for an access whose first part finds `found`.
pub(crate) fn answer(fault: Fault, access: Access, found: u64) -> u64 {
    match (fault, access) {
        (Fault::Unconditional, Access::CompareExchange(expected, ..)) => expected,
        (_, Access::Store(_)) => 0,
        (Fault::Finds(value), _) => value,
        _ => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts_of(fault: Fault, access: Access) -> Vec<Part> {
        parts(fault, access, Ordering::AcqRel).0.collect()
    }

    #[test]
    fn a_mutant_is_at_its_own_line_of_its_own_file_only() {
        let here = core::panic::Location::caller();
        let mutant = Mutant::new("mutant.rs", here.line(), Fault::Twice);
        assert_eq!(mutant.at_place(here), Some(Fault::Twice));
        assert_eq!(Mutant::new("other.rs", here.line(), Fault::Twice).at_place(here), None);
        assert_eq!(Mutant::new("mutant.rs", here.line() + 1, Fault::Twice).at_place(here), None);
        assert_eq!(mutant.reached(), 1);
    }

    #[test]
    #[should_panic(expected = "more than once")]
    fn a_snippet_that_stands_in_two_lines_names_no_place() {
        let _ = Mutant::at("file.rs", "one.load()\ntwo.load()", "load", Fault::Relaxed);
    }

    #[test]
    fn what_is_done_instead_is_what_the_fault_says() {
        let exchange = Access::CompareExchange(1, 2, Ordering::Acquire);
        assert_eq!(parts_of(Fault::NotAtomic, exchange), [Part::Access(Access::Load), Part::WriteResult]);
        assert_eq!(parts_of(Fault::NotWritten, exchange), [Part::Access(Access::Load)]);
        assert_eq!(parts_of(Fault::Unconditional, exchange), [Part::Access(Access::Swap(2))]);
        assert_eq!(answer(Fault::Unconditional, exchange, 7), 1);
        let relaxed = Access::CompareExchange(1, 2, Ordering::Relaxed);
        assert_eq!(parts_of(Fault::FailureRelaxed, exchange), [Part::Access(relaxed)]);
        assert_eq!(parts_of(Fault::Twice, Access::FetchAdd(1)), [Part::Access(Access::FetchAdd(1)); 2]);
        assert_eq!(parts_of(Fault::Writes(5), Access::FetchOr(1)), [Part::Access(Access::Swap(5))]);
        assert_eq!(parts_of(Fault::NotWritten, Access::Load), [Part::Access(Access::Load)]);
        assert_eq!(parts_of(Fault::NotAtomic, Access::PlainWrite(8)), [Part::Access(Access::PlainWrite(8))]);
        assert_eq!(parts(Fault::Ordered(Ordering::Acquire), exchange, Ordering::AcqRel).1, Ordering::Acquire);
        assert_eq!(answer(Fault::Finds(9), Access::Load, 3), 9);
    }
}
