//! The emulator's local APICs against the manual: what kvm-unit-tests and the KVM self-tests check, and what is known of
//! emulators that do otherwise. Checks have the names of their counterparts on the simulated machine
//! (`crates/simulator/tests/apic_*.rs`) where they check the same.
//!
//! A check fails here whenever the APIC does not do as the manual says. Whether that is known of this emulator is for the
//! program that runs the image to say.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use core::time::Duration;

use smpcall_local_apic::{Access, ApicId, DeliveryMode, Icr, Mmio, Mode, Msr, Register, Topology, Vector};
use smpcall_machine::{Cpu, Deadline, InterruptsOff, Machine, SendError, Woken, wait};

use super::Run;
use crate::apic::{self, Tables};
use crate::boot::DIRECT_MAP;
use crate::clock::{LabWord, delay};
use crate::cpu::MAX_CPUS;
use crate::hooks;
use crate::interrupts::Frame;
use crate::machine::{BOOT_CPU, Calls, Lab};

mod base;
mod registers;
mod sending;
mod taking;
mod timer;

/// The vector of interrupts that are counted.
const COUNTED: u8 = 0xf1;
/// One of lower priority.
const LOWER: u8 = 0x61;

/// How long anything may take that is to happen. An emulator has one thread for all.
const LIMIT: Duration = Duration::from_secs(10);

/// One check.
struct Check {
    name: &'static str,
    /// In which mode only.
    mode: Option<Mode>,
    /// How many CPUs it takes.
    cpus: usize,
    run: fn(&mut Findings),
}

const fn check(name: &'static str, cpus: usize, run: fn(&mut Findings)) -> Check {
    Check { name, mode: None, cpus, run }
}

const fn xapic(name: &'static str, cpus: usize, run: fn(&mut Findings)) -> Check {
    Check { name, mode: Some(Mode::XApic), cpus, run }
}

const fn x2apic(name: &'static str, cpus: usize, run: fn(&mut Findings)) -> Check {
    Check { name, mode: Some(Mode::X2Apic), cpus, run }
}

/// Runs all that fit the machine.
pub(super) fn run(run: &mut Run) {
    hooks::on_entry(Some(entered));
    hooks::on_nmi(Some(taking::nmi_entered));
    // The last are those after which a CPU may have no APIC any more.
    let lists = [registers::CHECKS, sending::CHECKS, taking::CHECKS, timer::CHECKS, base::CHECKS];
    let fits = |check: &&Check| check.mode.is_none_or(|mode| mode == apic::mode());
    let all = || lists.into_iter().flatten().filter(fits);
    let total = all().count() as u64;
    for (done, check) in all().enumerate() {
        run.progress("conformance", done as u64, total);
        if apic::count() < check.cpus {
            run.skip(check.name, format_args!("it takes {} CPUs", check.cpus));
            continue;
        }
        let mut findings = Findings::new();
        (check.run)(&mut findings);
        restore(&mut findings);
        if findings.skipped {
            run.skip(check.name, format_args!("{}", findings.text));
        } else {
            run.check(check.name, findings.held, format_args!("{}", findings.text));
        }
    }
    hooks::on_nmi(None);
    hooks::on_entry(None);
}

/// What a check has found: the first that was not as it should be.
struct Findings {
    held: bool,
    skipped: bool,
    text: Text,
}

impl Findings {
    const fn new() -> Self {
        Self { held: true, skipped: false, text: Text { bytes: [0; 200], length: 0 } }
    }

    /// That something holds; if not, `what` was found.
    fn that(&mut self, holds: bool, what: fmt::Arguments<'_>) {
        if !holds && self.held {
            self.held = false;
            // What does not fit is left out.
            let _ = self.text.write_fmt(what);
        }
    }

    /// That these are the same.
    fn same(&mut self, what: &str, found: u64, wanted: u64) {
        self.that(found == wanted, format_args!("{what}: {found:#x} and not {wanted:#x}"));
    }

    /// It cannot be checked here.
    fn skip(&mut self, why: &str) {
        self.skipped = true;
        let _ = self.text.write_str(why);
    }
}

/// A text of limited length.
struct Text {
    bytes: [u8; 200],
    length: usize,
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes().filter(u8::is_ascii) {
            *self.bytes.get_mut(self.length).ok_or(fmt::Error)? = byte;
            self.length += 1;
        }
        Ok(())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(core::str::from_utf8(&self.bytes[..self.length]).unwrap_or_default())
    }
}

/// The registers, with nothing between: what no driver would write, too.
fn read(register: Register) -> u32 {
    match apic::mode() {
        Mode::XApic => mmio().read(register),
        Mode::X2Apic => msr().read(register),
    }
}

fn write(register: Register, value: u32) {
    match apic::mode() {
        Mode::XApic => mmio().write(register, value),
        Mode::X2Apic => msr().write(register, value),
    }
}

fn mmio() -> Mmio {
    // SAFETY: the direct map shows the registers uncached and for ever; used only while the APIC is in this mode.
    unsafe { Mmio::new((DIRECT_MAP + 0xfee0_0000) as *mut u32) }
}

fn msr() -> Msr {
    // SAFETY: this is a kernel; used only while the APIC is in x2APIC mode.
    unsafe { Msr::new() }
}

/// Writes any command to the running CPU's ICR.
fn command(icr: Icr) {
    let mode = apic::mode();
    // Of 32 bits in the one mode, and identifiers of 8 in the other: see where destinations come from.
    command_bits(icr.encode(mode).unwrap_or_default());
}

fn command_bits(bits: u64) {
    let _pinned = InterruptsOff::<Lab>::new();
    match apic::mode() {
        Mode::XApic => {
            mmio().write(Register::ICR_HIGH, (bits >> 32) as u32);
            mmio().write(Register::ICR_LOW, bits as u32);
        }
        Mode::X2Apic => msr().write_icr(bits),
    }
}

fn read_icr() -> u64 {
    match apic::mode() {
        Mode::XApic => mmio().read_icr(),
        Mode::X2Apic => msr().read_icr(),
    }
}

/// The counted vector by itself.
fn send(target: Cpu) {
    command(Icr::physical(DeliveryMode::Fixed, COUNTED, id_of(target)));
}

fn id_of(cpu: Cpu) -> u32 {
    Tables.apic_id(cpu).map_or(0, |id| id.0)
}

/// An identifier that no CPU has, and that is not the broadcast. With 255 CPUs in xAPIC mode there is none.
fn absent(findings: &mut Findings) -> Option<u32> {
    let broadcast = apic::mode().broadcast();
    let absent = (1..broadcast).rev().take(2 * MAX_CPUS).find(|&id| Tables.cpu(ApicId(id)).is_none());
    if absent.is_none() {
        findings.skip("every identifier is some CPU's");
    }
    absent
}

/// Whether a vector is pending (or, with another bank, in service) on the running CPU.
fn is_set(bank: fn(usize) -> Register, vector: u8) -> bool {
    read(bank(usize::from(vector / 32))) & 1 << (vector % 32) != 0
}

fn is_pending(vector: u8) -> bool {
    is_set(Register::interrupt_request, vector)
}

/// How often each CPU has taken the counted vector.
static TAKEN: [LabWord; MAX_CPUS] = [const { LabWord::new(0) }; MAX_CPUS];
/// The vectors that the boot CPU has taken, the last one in the lowest byte.
static ORDER: AtomicU64 = AtomicU64::new(0);
/// How often the next handler sends itself its own vector before it ends.
static RESENDS: AtomicU32 = AtomicU32::new(0);
/// How often a vector below 16 came, or an exception that has its number.
static ILLEGAL: AtomicU32 = AtomicU32::new(0);
/// Where each CPU goes on if the instruction that is under way faults; 0: it is not to.
static RESUME: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

const GENERAL_PROTECTION: u64 = 13;
/// What the 8259s answer when they are asked and have nothing to say, with the vectors that they have after a reset: they are
/// asked where a CPU has no APIC. Intel 8259A data sheet, "default IR7".
const SPURIOUS_OF_PIC: u64 = 15;
/// What is sent where the manual says that it is not: an exception that nothing here raises, without an error code.
const ILLEGAL_VECTOR: u8 = 5;

/// The hook of vectors without a handler.
fn entered(frame: &mut Frame) -> bool {
    let me = Lab::current_cpu();
    match frame.vector {
        vector if vector == u64::from(COUNTED) || vector == u64::from(LOWER) => {
            if me == BOOT_CPU {
                // Relaxed: of this CPU alone.
                ORDER.store(ORDER.load(Relaxed) << 8 | vector, Relaxed);
                for _ in 0..RESENDS.swap(0, Relaxed) {
                    send(me);
                }
            }
            write(Register::END_OF_INTERRUPT, 0);
            if vector == u64::from(COUNTED) {
                // Relaxed: nothing is published with it.
                TAKEN[me.index()].fetch_add(1, Relaxed);
            }
            true
        }
        GENERAL_PROTECTION => {
            // Relaxed, here and below: of this CPU alone.
            let resume = RESUME[me.index()].swap(0, Relaxed);
            if resume != 0 {
                frame.rip = resume;
            }
            resume != 0
        }
        vector if vector == u64::from(ILLEGAL_VECTOR) => {
            ILLEGAL.fetch_add(1, Relaxed);
            if is_set(Register::in_service, ILLEGAL_VECTOR) {
                write(Register::END_OF_INTERRUPT, 0);
            }
            true
        }
        // Relaxed: written before the APIC of that CPU was lost.
        SPURIOUS_OF_PIC => NO_APIC.load(Relaxed) == me.number() + 1,
        _ => false,
    }
}

/// The CPU, plus 1, whose APIC is disabled for the moment, or for ever.
static NO_APIC: AtomicU32 = AtomicU32::new(0);

/// Writes a model-specific register of the running CPU. Returns whether it took it: if not, the write has faulted.
///
/// # Safety
/// As for the instruction: nothing may depend on what the register had.
unsafe fn write_msr(number: u32, value: u64) -> bool {
    let guard = InterruptsOff::<Lab>::new();
    let resume = RESUME[guard.cpu().index()].as_ptr();
    let faulted: u32;
    // SAFETY: the caller's; and if it faults, the handler of that finds where to go on, with all registers as they were.
    unsafe {
        core::arch::asm!(
            "lea {scratch}, [rip + 2f]",
            "mov [{resume}], {scratch}",
            "mov {faulted:e}, 1",
            "wrmsr",
            "xor {faulted:e}, {faulted:e}",
            "2:",
            "mov qword ptr [{resume}], 0",
            scratch = out(reg) _,
            resume = in(reg) resume,
            faulted = out(reg) faulted,
            in("ecx") number,
            in("eax") value as u32,
            in("edx") (value >> 32) as u32,
        );
    }
    faulted == 0
}

/// All CPUs but the boot CPU, which runs the checks.
fn others() -> impl Iterator<Item = Cpu> + Clone {
    apic::all().filter(|&cpu| cpu != BOOT_CPU)
}

/// Runs a closure on a CPU, with interrupts disabled there.
fn on<R: Send + Default>(findings: &mut Findings, cpu: Cpu, closure: impl FnOnce() -> R + Send) -> R {
    let closure = || {
        let _guard = InterruptsOff::<Lab>::new();
        closure()
    };
    match Calls::within(LIMIT).call(cpu, closure) {
        Ok(result) => result,
        Err(error) => {
            findings.that(false, format_args!("{cpu} cannot be called: {error}"));
            R::default()
        }
    }
}

/// Waits until no CPU has any of the vectors of this suite pending: what was sent has been taken then, or never came.
fn settle(findings: &mut Findings) {
    for cpu in apic::all() {
        let deadline = Deadline::within::<Lab>(LIMIT);
        while on(findings, cpu, || is_pending(COUNTED) || is_pending(LOWER)) {
            if deadline.has_passed(Lab::now()) {
                findings.that(false, format_args!("{cpu} does not take what is pending"));
                return;
            }
            delay(Duration::from_micros(100));
        }
    }
}

/// Sends, and checks how often each CPU takes the counted vector.
fn sent(findings: &mut Findings, what: &str, send: impl FnOnce(), wanted: impl Fn(Cpu) -> u64) {
    for taken in &TAKEN {
        taken.store(0, Relaxed);
    }
    send();
    for cpu in apic::all().filter(|&cpu| wanted(cpu) > 0) {
        let arrived = TAKEN[cpu.index()].equals(!0, wanted(cpu));
        if wait::<Lab>(&[arrived], Deadline::within::<Lab>(ARRIVAL)) == Woken::Deadline {
            break;
        }
    }
    settle(findings);
    for cpu in apic::all() {
        // Relaxed: what its handler has counted before it was called by `settle` is here.
        let found = TAKEN[cpu.index()].load(Relaxed);
        let wanted = wanted(cpu);
        findings.that(found == wanted, format_args!("{what}: {cpu} takes {found} and not {wanted}"));
    }
}

/// How long to wait for an interrupt that may never come; `settle` finds what is late.
const ARRIVAL: Duration = Duration::from_secs(1);

/// The CPU, plus 1, whose APIC was disabled and cannot be enabled again; 0: none.
static LOST: AtomicU32 = AtomicU32::new(0);

/// Puts the APICs back into the state in which the kernel has them.
fn restore(findings: &mut Findings) {
    // Relaxed: written by this CPU.
    for cpu in apic::all().filter(|cpu| cpu.number() + 1 != LOST.load(Relaxed)) {
        let enabled = on(findings, cpu, || {
            let guard = InterruptsOff::<Lab>::new();
            let enabled = apic::enable_here(&guard).is_ok();
            apic::start_ticks();
            Calls::watch_ticks(true);
            enabled
        });
        findings.that(enabled, format_args!("the APIC of {cpu} cannot be enabled again"));
    }
}

/// What the driver could not send does not arrive, which is what is looked at.
fn said(result: Result<(), SendError>) {
    let _ = result;
}

/// The counted vector, for the driver.
const fn counted() -> Vector {
    Vector::new(COUNTED).unwrap()
}
