//! Where shared things are, on a stepped machine: a name for each location that is the same in every execution, on
//! every thread and in every process, and who has touched it so far.
//!
//! A location that only one context of one CPU ever touches needs no interleaving: nobody notices when it is accessed.
//! Which ones those are is learned while exploring; when one turns out otherwise, the exploration begins again.

use rustc_hash::FxHashMap;

use crate::explorer::footprint::Place;
use crate::hash;
use crate::races::Known;

/// No record of plain data.
pub(crate) const NO_RECORD: u32 = u32::MAX;

/// One location, and what is known of it.
#[allow(clippy::struct_excessive_bools, reason = "independent facts")]
pub(crate) struct Location {
    pub(crate) address: usize,
    /// The same in every execution.
    pub(crate) name: u64,
    /// The hash of a [pair](crate::hash::pair) with this name, as far as the name goes.
    pub(crate) key: u128,
    pub(crate) place: Place,
    /// Who touched it, in any execution: a bit for each CPU and kind of context.
    pub(crate) contexts: u64,
    /// It is believed that only one context touches it.
    pub(crate) private: bool,
    /// It lives as long as the machine, and is put back before each execution.
    pub(crate) lasting: bool,
    /// Something below is not as at the start of the execution.
    pub(crate) dirty: bool,
    /// Its first value is in the log.
    pub(crate) logged: bool,
    /// A word that was written in this execution: what it was before it was written for the last time.
    pub(crate) before: u64,
    /// Plain data: its first bit among the records of races.
    pub(crate) record: u32,
    /// Plain data: what it was last written by.
    pub(crate) writer: u128,
    /// Which accesses to plain data are known to whoever reads this word with acquire ordering.
    pub(crate) known: Known,
}

/// The kind of context that touches something.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Context {
    Program = 0,
    Handler = 1,
    Nmi = 2,
    /// A handler that has interrupted a handler, however deep.
    Nested = 3,
}

/// From the last of these on, CPUs are not told apart: only one of them may touch anything where something is taken for
/// private.
pub(crate) const CONTEXT_CPUS: usize = 16;

/// The number that stands for a CPU where contexts are told apart.
pub(crate) const fn context_cpu(cpu: usize) -> usize {
    if cpu < CONTEXT_CPUS { cpu } else { CONTEXT_CPUS - 1 }
}

/// The contexts that can interrupt each other and are not told apart.
const NESTED_CONTEXTS: u64 = 0x8888_8888_8888_8888;

pub(crate) const fn context_bit(cpu: usize, context: Context) -> u64 {
    1 << (context_cpu(cpu) * 4 + context as usize)
}

/// The number of the CPU that a context is one of.
pub(crate) const fn context_cpu_of(context: u64) -> u32 {
    context.trailing_zeros() / 4
}

/// Whether a word is touched by one context only.
pub(crate) const fn is_private(contexts: u64) -> bool {
    contexts & contexts.wrapping_sub(1) == 0 && contexts & NESTED_CONTEXTS == 0
}

impl Location {
    /// Whether it is neither in declared memory nor on a CPU's stack.
    pub(crate) const fn is_foreign(&self) -> bool {
        self.name & FOREIGN != 0
    }
}

struct Range {
    base: usize,
    bytes: usize,
    code: u64,
}

const STACK: u64 = 1 << 62;
const FOREIGN: u64 = 1 << 63;
const POINTER: u64 = 1 << 61;
const CACHED: usize = 1024;

/// The locations that were touched so far, in any execution.
pub(crate) struct Places {
    ranges: Vec<Range>,
    /// From the lowest to behind the highest address of each CPU's stack.
    pub(crate) stacks: Vec<(usize, usize)>,
    by_address: FxHashMap<usize, u32>,
    cache: Box<[(usize, u32); CACHED]>,
    pub(crate) all: Vec<Location>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            ranges: Vec::new(),
            stacks: Vec::new(),
            by_address: FxHashMap::default(),
            cache: Box::new([(0, 0); CACHED]),
            all: Vec::new(),
        }
    }
}

impl Places {
    /// Declares memory that lives as long as the machine. The order of declarations is part of the names.
    pub(crate) fn add_range(&mut self, base: usize, bytes: usize) {
        let code = self.ranges.last().map_or(64, |last| last.code + last.bytes as u64 + 64);
        self.ranges.push(Range { base, bytes, code });
    }

    /// What an address is called: the same on every thread, unless it is neither in a declared range nor on a stack.
    fn code(&self, address: usize) -> Option<u64> {
        if let Some(range) = self.ranges.iter().find(|range| address.wrapping_sub(range.base) < range.bytes) {
            return Some(range.code + (address - range.base) as u64);
        }
        let cpu = self.stacks.iter().position(|&(low, high)| (low..high).contains(&address))?;
        Some(STACK | (cpu as u64) << 32 | (self.stacks[cpu].1 - address) as u64)
    }

    /// The number of the location at an address.
    #[inline]
    pub(crate) fn slot(&mut self, address: usize) -> u32 {
        let line = (address >> 3 ^ address >> 13) % CACHED;
        let (cached, slot) = self.cache[line];
        if cached == address {
            return slot;
        }
        let slot = self.look_up(address);
        self.cache[line] = (address, slot);
        slot
    }

    #[cold]
    fn look_up(&mut self, address: usize) -> u32 {
        if let Some(&slot) = self.by_address.get(&address) {
            return slot;
        }
        let code = self.code(address);
        let name = code.unwrap_or(FOREIGN | address as u64);
        let place = match code {
            Some(code) if code & STACK != 0 => {
                0x4000_0000 | (code >> 12) as u32 & 0x3ff0_0000 | code as u32 & 0xf_ffff
            }
            Some(code) => code as u32,
            None => 0x8000_0000 | (address >> 3) as u32 & 0x3fff_ffff,
        };
        self.all.push(Location {
            address,
            name,
            key: hash::key(name),
            place: Place(place),
            contexts: 0,
            private: false,
            lasting: code.is_some_and(|code| code & STACK == 0),
            dirty: false,
            logged: false,
            before: 0,
            record: NO_RECORD,
            writer: 0,
            known: Known::NOTHING,
        });
        let slot = self.all.len() as u32 - 1;
        self.by_address.insert(address, slot);
        slot
    }

    /// The name of the location at an address; 0 before it was touched.
    pub(crate) fn name_of(&self, address: usize) -> u64 {
        let line = (address >> 3 ^ address >> 13) % CACHED;
        let (cached, slot) = self.cache[line];
        let slot = if cached == address { Some(slot) } else { self.by_address.get(&address).copied() };
        slot.map_or(0, |slot| self.all[slot as usize].name)
    }

    /// A value as it enters hashes: an address becomes its name.
    #[inline(always)]
    pub(crate) fn canonical(&self, value: u64) -> u64 {
        if value >> 32 == 0 { value } else { self.canonical_address(value) }
    }

    fn canonical_address(&self, value: u64) -> u64 {
        self.code(value as usize).map_or(value, |code| code | POINTER)
    }
}

/// The request register and the NMI latch of a CPU's APIC.
pub(crate) fn irr_place(cpu: usize) -> Place {
    Place(0xc000_0000 + 2 * cpu as u32)
}

pub(crate) fn nmi_place(cpu: usize) -> Place {
    Place(0xc000_0001 + 2 * cpu as u32)
}

/// What is left of a budget of the explorer's.
pub(crate) fn budget_place(budget: u32) -> Place {
    Place(0xd000_0000 + budget)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_depend_on_addresses() {
        let names = |objects: &[[u64; 4]; 2], stack: &[u64; 64]| {
            let mut places = Places::default();
            for object in objects {
                places.add_range(object.as_ptr().addr(), size_of_val(object));
            }
            let low = stack.as_ptr().addr();
            places.stacks.push((low, low + size_of_val(stack)));
            let addresses = [
                &raw const objects[0][0],
                &raw const objects[0][3],
                &raw const objects[1][1],
                &raw const stack[63],
            ];
            addresses.map(|address| {
                let slot = places.slot(address.addr());
                assert_eq!(places.slot(address.addr()), slot);
                (places.all[slot as usize].name, places.canonical(address.addr() as u64))
            })
        };
        let one = names(&[[0; 4]; 2], &[0; 64]);
        let boxed = (Box::new([[0; 4]; 2]), Box::new([0; 64]));
        assert_eq!(one, names(&boxed.0, &boxed.1));
        for (at, name) in one.iter().enumerate() {
            assert!(!one[..at].contains(name));
        }
    }

    #[test]
    fn who_touched_a_word_decides_whether_it_is_private() {
        let program = context_bit(0, Context::Program);
        let handler = context_bit(0, Context::Handler);
        let other = context_bit(1, Context::Program);
        assert!(is_private(program) && !is_private(program | other) && !is_private(program | handler));
        let nested = context_bit(0, Context::Nested);
        assert!(!is_private(nested), "two of them can interrupt each other");
    }
}
