//! The clock: the time-stamp counter, and its speed by comparison with the PIT.
//!
//! Sources: SDM volume 3B, "Time-Stamp Counter"; Intel 8254 data sheet; ICH9 data sheet, port 0x61.

use core::arch::x86_64::_rdtsc;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use smpcall_machine::{Deadline, Hardware, Instant, InterruptsOff, Predicate, Woken, Word, wait_at_most};
use x86_64::instructions::port::Port;

use crate::machine::Lab;

/// Nanoseconds for each tick of the counter, in units of 2^-32. Zero until the clock is set up: it stands still.
static NANOS_PER_TICK: AtomicU64 = AtomicU64::new(0);
/// What the counter had when the clock was set up.
static START: AtomicU64 = AtomicU64::new(0);

/// The time-stamp counter. No fence: two readings on one CPU are in order, and no more is promised of [`now`].
#[inline(always)]
pub(crate) fn ticks() -> u64 {
    // SAFETY: every 64-bit CPU has it.
    unsafe { _rdtsc() }
}

/// The time since the clock was set up.
#[inline(always)]
pub(crate) fn now() -> Instant {
    // Relaxed: written before anybody looks at the clock.
    let since = ticks().wrapping_sub(START.load(Relaxed));
    Instant::from_nanos(((u128::from(since) * u128::from(NANOS_PER_TICK.load(Relaxed))) >> 32) as u64)
}

/// Ticks in a second, as measured; zero before.
pub(crate) fn ticks_per_second() -> u64 {
    match NANOS_PER_TICK.load(Relaxed) {
        0 => 0,
        nanos => ((1_000_000_000u128 << 32) / u128::from(nanos)) as u64,
    }
}

/// Hertz of the PIT.
const PIT: u64 = 1_193_182;
/// What it counts down at the least between the two looks: 4 ms.
const MEASURED: u16 = (PIT / 250) as u16;
/// How often both clocks are read to find one pair of readings that nothing came between: a hypervisor lets others run.
const READINGS: usize = 16;
/// The end comes earlier than after so many looks, each of which is an access to a device.
const LOOKS: u64 = 100_000_000;

/// Channel 2 of the PIT, which is connected to nothing but the speaker.
struct Pit {
    control: Port<u8>,
    channel: Port<u8>,
    gate: Port<u8>,
}

impl Pit {
    /// Starts to count down from `0xffff`, once: 55 ms.
    fn start() -> Self {
        const GATE: u8 = 1 << 0;
        const SPEAKER: u8 = 1 << 1;
        let mut pit = Self { control: Port::new(0x43), channel: Port::new(0x42), gate: Port::new(0x61) };
        // SAFETY: nobody else uses the channel, and the speaker is switched off.
        unsafe {
            let others = pit.gate.read() & !SPEAKER;
            // Channel 2, both bytes, mode 0.
            pit.control.write(0b1011_0000);
            pit.channel.write(0xff);
            pit.channel.write(0xff);
            pit.gate.write(others | GATE);
        }
        pit
    }

    /// What it has counted since the start.
    fn counted(&mut self) -> u16 {
        // SAFETY: the count of the channel is latched and read, which changes nothing.
        unsafe {
            self.control.write(0b1000_0000);
            0xffff - u16::from_le_bytes([self.channel.read(), self.channel.read()])
        }
    }

    /// What both clocks say at one moment: the pair of readings that lie closest together.
    fn moment(&mut self) -> (u16, u64) {
        let mut best = (u64::MAX, 0, 0);
        for _ in 0..READINGS {
            let before = ticks();
            let counted = self.counted();
            let after = ticks();
            if after - before < best.0 {
                best = (after - before, counted, before + (after - before) / 2);
            }
        }
        (best.1, best.2)
    }
}

/// Measures the speed of the counter and starts the clock. On the boot CPU, before the first deadline is made.
///
/// # Errors
/// The PIT does not count.
pub(crate) fn set_up() -> Result<(), &'static str> {
    let mut pit = Pit::start();
    let start = pit.moment();
    let pit = UnsafeCell::new(pit);
    // SAFETY: looked at by this CPU alone, one look after the other; reading the count has no effect that anybody sees.
    let enough = Predicate(|| unsafe { &mut *pit.get() }.counted().wrapping_sub(start.0) >= MEASURED);
    // The clock is not there yet, so that the looks are counted.
    if wait_at_most::<Lab>(&enough, Deadline::NEVER, LOOKS) == Woken::Deadline {
        return Err("the PIT does not count, and nothing else tells the time");
    }
    let end = pit.into_inner().moment();
    let nanos = u64::from(end.0.wrapping_sub(start.0)) * 1_000_000_000 / PIT;
    let ticks = (end.1 - start.1).max(1);
    NANOS_PER_TICK.store((u128::from(nanos) * (1 << 32) / u128::from(ticks)) as u64, Relaxed);
    START.store(self::ticks(), Relaxed);
    Ok(())
}

/// Whether the counter counts instructions, as QEMU's does under `-icount shift=0`: a thousand of them take a thousand ticks.
pub(crate) fn counts_instructions() -> bool {
    let pinned = InterruptsOff::<Lab>::new();
    let mut least = u64::MAX;
    for _ in 0..8 {
        let before = ticks();
        // SAFETY: it does nothing.
        unsafe { core::arch::asm!(".rept 1000", "nop", ".endr", options(nomem, nostack, preserves_flags)) }
        least = least.min(ticks() - before);
    }
    drop(pinned);
    (1000..1020).contains(&least)
}

/// Waits for a time and for nothing else, with interrupts as they are.
pub(crate) fn delay(duration: core::time::Duration) {
    let nothing: [smpcall_machine::When<'_, Hardware>; 0] = [];
    smpcall_machine::wait::<Lab>(&nothing, Deadline::within::<Lab>(duration));
}

/// A word of the lab's own.
pub(crate) type LabWord = Word<Hardware>;
