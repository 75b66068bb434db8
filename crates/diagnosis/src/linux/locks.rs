//! Locks on which CPUs spin: which one, as far as registers and the lock's own word tell, and who has it, if a stack tells.
//!
//! A queued spin lock has no owner in it: a byte that says that it is taken, a bit for the first who waits, and the number of the
//! last; in a virtual machine without help from its hypervisor nothing but the byte. Whoever waits has its address in a register.
//!
//! Source: Linux, `kernel/locking/qspinlock.c`, `include/asm-generic/qspinlock_types.h` (facts only).

use smpcall_crashdump::VirtualMemory;
use smpcall_vmcore::Registers;

use super::home;
use super::processor::Processor;
use super::reader::Reader;
use crate::evidence::LockEvidence;
use crate::frames::{self, Role};
use crate::verdict::Fact;

/// The byte that says that it is taken.
const TAKEN: u32 = 0xff;
/// The function in which a CPU waits for a queued spin lock.
const WAITS_IN: &str = "queued_spin_lock_slowpath";

/// The locks that somebody is known to have; of others, whoever waits says where they are.
pub(super) fn read(reader: Reader<'_>, processors: &mut [Processor]) -> Vec<LockEvidence> {
    let spins = |processor: &Processor| {
        let reason = frames::reason(&processor.evidence.stack)?;
        (reason.role == Some(Role::SpinLock)).then(|| address(reader, processor)).flatten()
    };
    let waits: Vec<(usize, u64)> =
        processors.iter().enumerate().filter_map(|(at, processor)| Some((at, spins(processor)?))).collect();
    let mut locks: Vec<LockEvidence> = Vec::new();
    for &(at, address) in &waits {
        let cpu = processors[at].evidence.cpu;
        let name = reader.symbol(address).unwrap_or_else(|| format!("at {address:#x}"));
        if let Some(known) = locks.iter_mut().find(|lock| lock.address == Some(address)) {
            known.waiters.push(cpu);
            continue;
        }
        let waits_too = |other: usize| waits.iter().any(|&(waiter, _)| waiter == other);
        let mut holders = (0..processors.len())
            .filter(|&other| !waits_too(other) && home::knows(reader, &processors[other], address));
        let holder = holders.next().filter(|_| holders.next().is_none());
        let Some(holder) = holder.map(|holder| processors[holder].evidence.cpu) else {
            let fact = Fact::new(format!("CPU {cpu} spins on the lock"), name, reader.source("registers"));
            processors[at].evidence.facts.push(fact.at(address));
            continue;
        };
        locks.push(LockEvidence {
            name,
            address: Some(address),
            waiters: vec![cpu],
            holder: Some(holder),
            inferred: Some(format!("only CPU {holder} has its address on its stack")),
        });
    }
    locks
}

/// The lock that a CPU waits for: where the register of the first argument still points to, if that is a lock that is taken; or
/// else the only address in its registers at which there is one that is waited for.
fn address(reader: Reader<'_>, processor: &Processor) -> Option<u64> {
    let waits_in = |name: &str| name.contains(WAITS_IN);
    let frame = processor.trace.as_ref()?.frames.iter().find(|frame| {
        frame.saved.is_some() && frame.location.as_ref().is_some_and(|place| waits_in(&place.name))
    })?;
    let registers: &Registers = &frame.saved.as_ref()?.registers;
    let word = |address: u64| {
        let may_be = Reader::is_kernel(address) && address.is_multiple_of(4);
        may_be.then(|| reader.kernel.memory.read_u32(address).ok()).flatten()
    };
    if word(registers.rdi).is_some_and(is_taken) {
        return Some(registers.rdi);
    }
    let mut found: Vec<u64> = home::kept(registers)
        .into_iter()
        .filter(|&address| word(address).is_some_and(is_waited_for))
        .collect();
    found.sort_unstable();
    found.dedup();
    if let [only] = found.as_slice() { Some(*only) } else { None }
}

/// Whether this is the word of a lock that is taken.
const fn is_taken(word: u32) -> bool {
    word & TAKEN == 1 && word & 0xfe00 == 0
}

/// Whether it is one for which somebody waits, too.
const fn is_waited_for(word: u32) -> bool {
    is_taken(word) && word != 1
}

#[cfg(test)]
mod tests {
    use super::is_waited_for;

    #[test]
    fn a_lock_is_waited_for_if_it_is_taken_and_somebody_is_pending_or_last() {
        assert!(is_waited_for(0x101), "taken, one pending");
        assert!(is_waited_for(0x000c_0001), "taken, CPU 2 is the last that waits");
        for other in [0, 1, 0x100, 2, 0xffff_ffff, 0x8_0201] {
            assert!(!is_waited_for(other), "{other:#x}");
        }
    }
}
