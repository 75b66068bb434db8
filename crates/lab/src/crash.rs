//! The way of a crash: a message, the crash stop, and what comes after it.

use core::cell::UnsafeCell;
use core::fmt;
use core::panic::PanicInfo;

use smpcall::Crash;
use smpcall::vmcore::{PendingInterrupts, Registers};
use smpcall_local_apic::Vectors;
use smpcall_machine::{Cpu, Machine};
use x86_64::instructions::port::Port;

use crate::capture_load::{self, AtCrash};
use crate::console::say;
use crate::machine::{self, Calls, Cpus, Lab};
use crate::{apic, capture, start};

/// How a run ends: what QEMU's `isa-debug-exit` is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Exit {
    /// All checks held: the emulator ends with status 33.
    Held = 0x10,
    /// A check failed: 35.
    Failed = 0x11,
    /// The kernel crashed, and no dump was written: 37.
    Crashed = 0x12,
}

/// Ends the run; on a machine without that device, resets it.
pub(crate) fn exit(exit: Exit) -> ! {
    // SAFETY: nothing else is at this port.
    unsafe { Port::<u32>::new(0xf4).write(exit as u32) };
    reset()
}

/// Resets the machine: by the chipset, or by the keyboard controller. (ICH9 data sheet, "Reset Control Register"; IBM PC AT.)
fn reset() -> ! {
    // SAFETY: what this machine does is over.
    unsafe {
        Port::<u8>::new(0xcf9).write(0x02);
        Port::<u8>::new(0xcf9).write(0x06);
        Port::<u8>::new(0x64).write(0xfe);
    }
    machine::halt_for_ever()
}

/// What a suite expects of the crash that it makes: that so much is told, and perhaps more.
#[derive(Clone, Copy)]
pub(crate) struct Expectation {
    /// Who is to win. If another one does, which has crashed too, nothing is known of its APIC.
    pub(crate) culprit: Cpu,
    /// Pending there.
    pub(crate) requests: Vectors,
    /// In service there.
    pub(crate) in_service: Vectors,
    /// Who does not answer; none: whoever.
    pub(crate) missing: Option<Cpus>,
}

impl Expectation {
    const NONE: Self =
        Self { culprit: Cpu::new(0), requests: Vectors::EMPTY, in_service: Vectors::EMPTY, missing: None };
}

struct Expected(UnsafeCell<Expectation>);
// SAFETY: written by the suite, before it lets anybody crash; read by the winner of the crash.
unsafe impl Sync for Expected {}

static EXPECTED: Expected = Expected(UnsafeCell::new(Expectation::NONE));

/// A suite is about to make a crash.
pub(crate) fn expect(expectation: Expectation) {
    // SAFETY: see `Expected`.
    unsafe { *EXPECTED.0.get() = expectation }
}

/// This kernel has crashed: stops all other CPUs, says who did not stop, and hands over to the capture kernel.
pub(crate) fn crash(registers: &Registers, why: fmt::Arguments<'_>) -> ! {
    if capture::is_capture() {
        capture::crashed(why);
    }
    say!("crash on {}: {why}", Lab::current_cpu());
    if !machine::is_ready() {
        exit(Exit::Crashed);
    }
    // Returns on one CPU.
    let crash = Calls::crash_stop(registers);
    // A line that another CPU was printing ends here.
    say!("\nstopped {} CPUs with {} NMIs in {:?}", crash.saved.len(), crash.nmis, crash.waited);
    for cpu in &*crash.missing {
        say!("{cpu} did not stop: {:?}", crash.why_missing(cpu));
    }
    hand_over(&crash)
}

/// Records and silences what would go on into the capture kernel, and goes there (law L8).
fn hand_over(crash: &Crash<Lab>) -> ! {
    let record = apic::record();
    crash.note_pending(PendingInterrupts {
        cpu: crash.winner.number(),
        requested: record.requests.words(),
        in_service: record.in_service.words(),
        level_triggered: record.level_triggered.words(),
        errors: record.errors.bits(),
    });
    apic::mask_all_local_vectors();
    start::silence_legacy_interrupts();
    // SAFETY: see `Expected`.
    let expectation = unsafe { *EXPECTED.0.get() };
    if let Some(missing) = expectation.missing {
        let held = missing == crash.missing;
        let verdict = if held { "pass" } else { "fail" };
        say!(
            "@ {verdict} those_that_can_have_stopped {} are missing, {} were to be",
            crash.missing.len(),
            missing.len()
        );
    }
    // SAFETY: this is the winner, and interrupts are disabled since the crash stop.
    let why = unsafe { capture_load::enter(AtCrash { winner: crash.winner.number(), record, expectation }) };
    say!("nothing is captured: {why}");
    exit(Exit::Crashed)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say!("{info}");
    crash(&registers_here(), format_args!("panic"))
}

/// The registers of whoever calls, as far as they still are what they were.
#[inline(always)]
fn registers_here() -> Registers {
    let mut registers = Registers { orig_rax: u64::MAX, ..Registers::NONE };
    let flags: u64;
    // SAFETY: registers are read, and the flags by way of the stack.
    unsafe {
        core::arch::asm!(
            "mov {rbx}, rbx",
            "lea {rip}, [rip]",
            rbx = out(reg) registers.rbx,
            rip = out(reg) registers.rip,
            options(nostack, preserves_flags),
        );
        core::arch::asm!(
            "mov {rsp}, rsp",
            "mov {rbp}, rbp",
            "mov {r12}, r12",
            "mov {r13}, r13",
            rsp = out(reg) registers.rsp,
            rbp = out(reg) registers.rbp,
            r12 = out(reg) registers.r12,
            r13 = out(reg) registers.r13,
            options(nostack, preserves_flags),
        );
        core::arch::asm!(
            "mov {r14}, r14",
            "mov {r15}, r15",
            "mov {cs:e}, cs",
            "mov {ss:e}, ss",
            "pushfq",
            "pop {flags}",
            r14 = out(reg) registers.r14,
            r15 = out(reg) registers.r15,
            cs = out(reg) registers.cs,
            ss = out(reg) registers.ss,
            flags = out(reg) flags,
        );
    }
    registers.rflags = flags;
    registers.gs_base = core::ptr::from_ref(crate::cpu::this()).addr() as u64;
    registers
}
