//! The timer of the local APIC: the tests of the same names are in `crates/simulator/tests/apic_conformance_timer.rs`.

use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;

use smpcall_local_apic::{Register, TimerDivide, TimerMode};
use smpcall_machine::{Deadline, InterruptsOff, Machine, Predicate, Woken, wait, wait_at_most};

use super::{ARRIVAL, COUNTED, Check, Findings, LIMIT, TAKEN, check, is_pending, read, write, write_msr};
use crate::clock::{self, delay};
use crate::machine::{BOOT_CPU, Calls, Lab};

pub(super) const CHECKS: &[Check] = &[
    check("one_shot_interrupts_once_and_not_before_its_interval", 1, one_shot),
    check("one_shot_counts_down_to_zero", 1, counts_down),
    check("a_change_of_mode_leaves_the_initial_count", 1, leaves_initial_count),
    check("from_one_shot_to_periodic_the_count_goes_on_and_wraps", 1, to_periodic),
    check("from_periodic_to_one_shot_the_count_goes_on_to_zero", 1, to_one_shot),
    check("a_later_period_goes_on_to_zero_as_one_shot_too", 1, to_one_shot_later),
    check("a_timer_that_has_ended_is_not_started_by_a_change_of_mode", 1, stays_ended),
    check("a_tsc_deadline_of_now_interrupts_once", 1, deadline_of_now),
    check("a_tsc_deadline_that_has_come_clears_itself", 1, deadline_clears),
];

/// Masks nothing: interrupts come with the counted vector.
fn set_mode(mode: TimerMode) {
    write(Register::LVT_TIMER, u32::from(COUNTED) | (mode as u32) << 17);
}

fn start(mode: TimerMode, count: u32) {
    // The kernel's ticks are stopped by that.
    Calls::watch_ticks(false);
    write(Register::TIMER_INITIAL_COUNT, 0);
    write(Register::TIMER_DIVIDE, TimerDivide::By16 as u32);
    set_mode(mode);
    TAKEN[BOOT_CPU.index()].store(0, Relaxed);
    write(Register::TIMER_INITIAL_COUNT, count);
}

fn count() -> u32 {
    read(Register::TIMER_CURRENT_COUNT)
}

fn taken() -> u64 {
    TAKEN[BOOT_CPU.index()].load(Relaxed)
}

/// Waits until the count is below a number. Whether it came to that.
fn run_below(limit: u32) -> bool {
    let below = Predicate(|| count() < limit);
    wait_at_most::<Lab>(&below, Deadline::within::<Lab>(LIMIT), u64::MAX) != Woken::Deadline
}

fn await_taken(number: u64) -> bool {
    let arrived = TAKEN[BOOT_CPU.index()].equals(!0, number);
    wait::<Lab>(&[arrived], Deadline::within::<Lab>(LIMIT)) != Woken::Deadline
}

/// Some milliseconds on most machines: long enough to be looked at while it counts.
const COUNT: u32 = 1 << 20;

/// The least time that so many ticks take, by the time-stamp counter. An emulator may be kept from running between any two
/// readings, so each of the count stands between two of the clock, and the time between the inner ones counts.
fn least_time_of(ticks: u32) -> Duration {
    let guard = InterruptsOff::<Lab>::new();
    start(TimerMode::OneShot, u32::MAX);
    let first = count();
    let begun = Lab::now();
    delay(Duration::from_millis(20));
    let ended = Lab::now();
    let last = count();
    write(Register::TIMER_INITIAL_COUNT, 0);
    drop(guard);
    let counted = first.saturating_sub(last).max(1);
    let nanos = ended.since(begun).as_nanos() * u128::from(ticks) / u128::from(counted);
    Duration::from_nanos(nanos as u64)
}

/// `x86/apic.c`, `test_apic_timer_one_shot`.
fn one_shot(findings: &mut Findings) {
    let interval = least_time_of(COUNT);
    let before = Lab::now();
    start(TimerMode::OneShot, COUNT);
    let arrived = await_taken(1);
    let lasted = Lab::now().since(before);
    findings.that(arrived, format_args!("it does not come"));
    // Two clocks, which an emulator makes from two of its host's: a twentieth.
    findings
        .that(lasted >= interval * 19 / 20, format_args!("it comes after {lasted:?} and not {interval:?}"));
    delay(interval * 3);
    findings.same("interrupts", taken(), 1);
}

/// `x86/apic.c`, `test_apic_change_mode`, the first of its checks; the following are the others.
fn counts_down(findings: &mut Findings) {
    start(TimerMode::OneShot, COUNT);
    findings.that(run_below(COUNT / 2), format_args!("it does not count"));
    findings.that(await_taken(1), format_args!("it does not come"));
    findings.same("the count at the end", count().into(), 0);
}

fn leaves_initial_count(findings: &mut Findings) {
    start(TimerMode::Periodic, COUNT);
    set_mode(TimerMode::OneShot);
    findings.same("initial count", read(Register::TIMER_INITIAL_COUNT).into(), COUNT.into());
}

fn to_periodic(findings: &mut Findings) {
    start(TimerMode::OneShot, COUNT);
    let half = run_below(COUNT / 2);
    set_mode(TimerMode::Periodic);
    // An emulator may be kept from running here for as long as the host likes: only what cannot be is wrong.
    let after = count();
    findings.that(half && after > 0, format_args!("the count after the change: {after:#x}"));
    findings.that(await_taken(1) && await_taken_at_least(3), format_args!("it does not begin again"));
}

fn await_taken_at_least(number: u64) -> bool {
    let more = Predicate(|| taken() >= number);
    wait_at_most::<Lab>(&more, Deadline::within::<Lab>(LIMIT), u64::MAX) != Woken::Deadline
}

/// In the first period, as the list has it.
fn to_one_shot(findings: &mut Findings) {
    // An emulator that its host keeps waiting comes too late for that, and begins again with a longer one.
    for shift in 0..8 {
        start(TimerMode::Periodic, COUNT << shift);
        findings.that(run_below((COUNT << shift) / 2), format_args!("it does not count"));
        let guard = InterruptsOff::<Lab>::new();
        set_mode(TimerMode::OneShot);
        let in_time = count() > 0 && !is_pending(COUNTED);
        drop(guard);
        if in_time && taken() == 0 {
            return ends(findings, 0);
        }
    }
    findings.skip("the host is too slow: the mode was never changed within the first period");
}

fn to_one_shot_later(findings: &mut Findings) {
    start(TimerMode::Periodic, COUNT);
    findings.that(await_taken_at_least(1), format_args!("it does not come"));
    let guard = InterruptsOff::<Lab>::new();
    set_mode(TimerMode::OneShot);
    // One that is pending belongs to the period before.
    let before = taken() + u64::from(is_pending(COUNTED));
    drop(guard);
    ends(findings, before);
}

/// The timer, in one-shot mode by now, interrupts once more, and no more.
fn ends(findings: &mut Findings, before: u64) {
    let more = Predicate(|| taken() > before);
    let came = wait_at_most::<Lab>(&more, Deadline::within::<Lab>(ARRIVAL), u64::MAX) != Woken::Deadline;
    findings.that(came, format_args!("it does not come to its end"));
    delay(SEVERAL_INTERVALS);
    findings.that(taken() <= before + 1, format_args!("it begins again"));
    findings.same("the count at the end", count().into(), 0);
}

/// Long enough for a few intervals, whatever the timer's clock.
const SEVERAL_INTERVALS: Duration = Duration::from_millis(60);

fn stays_ended(findings: &mut Findings) {
    start(TimerMode::OneShot, COUNT);
    findings.that(await_taken(1), format_args!("it does not come"));
    set_mode(TimerMode::Periodic);
    delay(SEVERAL_INTERVALS);
    findings.same("interrupts", taken(), 1);
    findings.same("the count", count().into(), 0);
}

const DEADLINE: u32 = 0x6e0;

fn has_deadline(findings: &mut Findings) -> bool {
    let has = core::arch::x86_64::__cpuid(1).ecx & 1 << 24 != 0;
    if !has {
        findings.skip("CPUID says that the timer has no deadlines");
    }
    has
}

fn arm(deadline: u64) -> bool {
    Calls::watch_ticks(false);
    write(Register::TIMER_INITIAL_COUNT, 0);
    set_mode(TimerMode::TscDeadline);
    TAKEN[BOOT_CPU.index()].store(0, Relaxed);
    // SAFETY: this suite alone uses the timer meanwhile, and its vector is counted.
    unsafe { write_msr(DEADLINE, deadline) }
}

fn read_deadline() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: `has_deadline` says that it is there; reading changes nothing.
    unsafe {
        core::arch::asm!("rdmsr", in("ecx") DEADLINE, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// `x86/apic.c`, `test_tsc_deadline_timer`.
fn deadline_of_now(findings: &mut Findings) {
    if has_deadline(findings) {
        findings.that(arm(clock::ticks()) && await_taken(1), format_args!("it does not come"));
        delay(Duration::from_millis(5));
        findings.same("interrupts", taken(), 1);
    }
}

fn deadline_clears(findings: &mut Findings) {
    if has_deadline(findings) {
        findings.that(arm(clock::ticks() + 1_000_000) && await_taken(1), format_args!("it does not come"));
        findings.same("the deadline", read_deadline(), 0);
    }
}
