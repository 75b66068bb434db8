//! The capture kernel: what this image does instead of everything else when it was entered after a crash.
//!
//! In this order (law L8): its own stack and tables, inert gates, the drain; only then handlers, mailboxes, interrupts and the
//! other CPUs; and the vmcore. Whatever goes wrong is said, and ends in a reset: a crash in here is not captured again.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering::Relaxed};
use core::time::Duration;

use smpcall_local_apic::{Drained, Topology};
use smpcall_machine::{Counter, Cpu, InterruptsOff, Machine};

use crate::apic::Tables;
use crate::capture_gates::GATES;
use crate::capture_load::{AtCrash, Parameters};
use crate::console::say;
use crate::cpu::MAX_CPUS;
use crate::crash::{Exit, exit};
use crate::machine::{BOOT_CPU, Calls, Lab};
use crate::{acpi, apic, boot, capture_gates, clock, console, cpu, interrupts, machine, memory, options};
use crate::{random, start, vmcore};

/// How long the gates are open at the most: a thousand times what taking all that can be pending lasts.
const WINDOW: Duration = Duration::from_millis(100);
/// How long another CPU may take to come. An emulator has one thread for all.
const COMING: Duration = Duration::from_secs(5);
/// How long a call to all that have come may take.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// Without a step for so long, the machine is reset.
const PATIENCE: Duration = Duration::from_secs(40);

/// What it was handed; null: this is no capture kernel.
static PARAMETERS: AtomicPtr<Parameters> = AtomicPtr::new(core::ptr::null_mut());
/// When, in nanoseconds of the clock, it must have made its next step. All ones: it need not.
static HANGS_AT: AtomicU64 = AtomicU64::new(u64::MAX);
/// How often it has crashed.
static CRASHES: AtomicU32 = AtomicU32::new(0);
static A_CHECK_FAILED: AtomicBool = AtomicBool::new(false);

/// Whether this is the capture kernel.
pub(crate) fn is_capture() -> bool {
    // Relaxed, here and below: written by its first CPU, before there are others.
    !PARAMETERS.load(Relaxed).is_null()
}

/// Whether it has made no step for too long. From the tick.
#[inline]
pub(crate) fn is_hung() -> bool {
    let hangs_at = HANGS_AT.load(Relaxed);
    hangs_at != u64::MAX && Lab::now().as_nanos() > hangs_at
}

/// It has made a step.
pub(crate) fn step() {
    HANGS_AT.store(Lab::now().plus(PATIENCE).as_nanos(), Relaxed);
}

/// It has crashed itself: says so, once, and leaves.
pub(crate) fn crashed(why: fmt::Arguments<'_>) -> ! {
    // A crash while this is said must not be said: it would not end.
    if CRASHES.fetch_add(1, Relaxed) == 0 {
        say!("\n@ fail capture the capture kernel has crashed: {why}");
    }
    exit(Exit::Crashed)
}

/// A check of the capture kernel's own.
pub(crate) fn check(name: &str, held: bool, text: fmt::Arguments<'_>) {
    if held {
        say!("@ pass {name} {text}");
    } else {
        A_CHECK_FAILED.store(true, Relaxed);
        say!("@ fail {name} {text}");
    }
}

/// The first that runs of it, on a stack of its own, with the crashed kernel's segments and without an interrupt table.
pub(crate) extern "C" fn capture_entry(parameters: *mut Parameters) -> ! {
    // SAFETY: this CPU is the first of this kernel's, and alone: the others are in the crashed kernel.
    unsafe { cpu::adopt_record(BOOT_CPU) }
    PARAMETERS.store(parameters, Relaxed);
    console::set_up();
    // SAFETY: the crashed kernel has written them before it came here.
    let handed = unsafe { &*parameters };
    boot::set_image_offset(handed.offset);
    // SAFETY: the range is for this; once, and nobody else runs.
    unsafe { memory::adopt(&handed.handed, handed.free) }
    cpu::give_stacks(BOOT_CPU);
    cpu::load_segments();
    capture_gates::close();
    let stack = cpu::this().stack().end;
    // SAFETY: the stack is this CPU's, and nothing on the old one is used any more.
    unsafe {
        core::arch::asm!("mov rsp, {}", "xor ebp, ebp", "call {}", "ud2", in(reg) stack, sym capture_main,
            options(noreturn));
    }
}

extern "C" fn capture_main() -> ! {
    say!("\n@ capture begin");
    // SAFETY: see `capture_entry`; nobody writes them any more.
    let (parameters, at_crash) = unsafe {
        let parameters = &*PARAMETERS.load(Relaxed);
        (parameters, &*parameters.at_crash)
    };
    let options = options::read();
    random::seed(options.seed);
    if let Err(error) = clock::set_up() {
        crashed(format_args!("{error}"));
    }
    step();
    start::silence_legacy_interrupts();
    let Some(madt) = acpi::find(memory::handed().rsdp, *b"APIC") else {
        crashed(format_args!("there is no table of CPUs"));
    };
    let (mode, routing) = (Some(parameters.mode), Some(parameters.routing));
    if let Err(error) = apic::set_up(acpi::apics(madt), mode, routing, MAX_CPUS) {
        crashed(format_args!("its APICs cannot be used: {error}"));
    }
    drain(at_crash);
    come_up();
    match options.crash {
        "in-capture" => panic!("as was asked for"),
        // The watchdog's case: it is found by the ticks.
        "hang-in-capture" => machine::stand(),
        _ => {}
    }
    start_others(parameters);
    call_others();
    match vmcore::write(parameters, at_crash) {
        Ok(bytes) => {
            say!("@ vmcore {bytes}");
            exit(if A_CHECK_FAILED.load(Relaxed) { Exit::Failed } else { Exit::Held })
        }
        Err(error) => {
            say!("@ fail vmcore {error}");
            exit(Exit::Crashed)
        }
    }
}

/// Rids this CPU of what the crashed kernel has left pending, behind the gates.
fn drain(at_crash: &AtCrash) {
    let began = Lab::now();
    let mut interrupts_off = InterruptsOff::<Lab>::new();
    allow_nmis();
    // SAFETY: the gates are closed; the crashed kernel's handlers are on stacks that nothing returns to.
    let drained = unsafe { apic::drain(&GATES, &mut interrupts_off, WINDOW) };
    let took = Lab::now().since(began);
    say!(
        "drained within {took:?}: ended {}, left {} pending and {} in service",
        drained.ended,
        drained.requests,
        drained.in_service
    );
    for (vector, count) in GATES.entered() {
        say!("  vector {vector:#04x} taken {count} times");
    }
    say!("@ count interrupts_drained {}", GATES.total());
    say!("@ count nmis_drained {}", capture_gates::nmis());
    judge(at_crash, &drained);
}

fn judge(at_crash: &AtCrash, drained: &Drained) {
    let (record, expected) = (&at_crash.record, &at_crash.expectation);
    check("nothing_old_is_left", drained.is_quiet(), format_args!("after the drain"));
    check(
        "all_in_service_was_ended",
        record.in_service.iter().all(|vector| drained.ended.contains(vector)),
        format_args!("{} were in service at the crash", record.in_service),
    );
    // Between the record and the drain nothing could take them.
    check(
        "each_request_was_taken_once",
        record.requests.iter().all(|vector| GATES.count(vector) == 1),
        format_args!("{} were pending at the crash", record.requests),
    );
    let pending = expected.requests.iter().all(|vector| record.requests.contains(vector));
    let in_service = expected.in_service.iter().all(|vector| record.in_service.contains(vector));
    let made = !(expected.requests.is_empty() && expected.in_service.is_empty());
    if made && at_crash.winner == expected.culprit.number() {
        check(
            "recorded_as_made",
            pending && in_service,
            format_args!(
                "{} pending and {} in service, as the suite has made it",
                expected.requests, expected.in_service
            ),
        );
    }
}

/// A crash in an NMI handler leaves NMIs blocked, until an `iret`. SDM volume 3A, "Handling Multiple NMIs".
fn allow_nmis() {
    // SAFETY: it returns to the next instruction with everything as it was. The gate of NMIs is in place.
    unsafe {
        core::arch::asm!(
            "mov {old}, rsp",
            "mov {segment:e}, ss",
            "push {segment}",
            "push {old}",
            "pushfq",
            "mov {segment:e}, cs",
            "push {segment}",
            "lea {segment}, [rip + 2f]",
            "push {segment}",
            "iretq",
            "2:",
            old = out(reg) _,
            segment = out(reg) _,
        );
    }
}

/// Real handlers, mailboxes, interrupts: this CPU is a kernel's boot CPU from here on.
fn come_up() {
    interrupts::load_table();
    machine::make_mailboxes();
    let guard = InterruptsOff::<Lab>::new();
    if let Err(error) = apic::enable_here(&guard) {
        crashed(format_args!("the APIC of this CPU cannot be used: {error}"));
    }
    drop(guard);
    Lab::restore_interrupts(true);
    apic::measure_timer();
    Calls::declare_nmi(true);
    Calls::open();
    let guard = InterruptsOff::<Lab>::new();
    apic::start_ticks();
    Calls::watch_ticks(true);
    drop(guard);
}

/// INIT and start-up for all others, except the CPU that the machine was started with: INIT would restart the firmware there.
fn start_others(parameters: &Parameters) {
    vmcore::save_start_up_page();
    // SAFETY: the page is memory of the crashed kernel, which has just been saved and runs no more.
    unsafe { boot::prepare_start_up_page(x86_64::registers::control::Cr3::read().0.start_address().as_u64()) }
    let left_alone = |&cpu: &Cpu| Tables.apic_id(cpu) == Some(parameters.boot_apic);
    let others = apic::all().filter(|&cpu| cpu != BOOT_CPU);
    let (mut asked, mut came) = (0, 0);
    for cpu in others.clone().filter(|cpu| !left_alone(cpu)) {
        cpu::give_stacks(cpu);
        asked += 1;
        match Calls::cpu_up(cpu, COMING) {
            Ok(()) => came += 1,
            Err(error) => say!("{cpu} does not come up: {error}"),
        }
        step();
        Calls::progress();
    }
    if came == apic::count() - 1 {
        apic::allow_shorthands();
    }
    say!("@ count capture_cpus {}", came + 1);
    check("others_come_up", came == asked, format_args!("{came} of {asked}"));
}

/// Whether each CPU has run the call.
static RAN: [Counter; MAX_CPUS] = [const { Counter::new(0) }; MAX_CPUS];

/// They work together: a call to all others.
fn call_others() {
    let result = Calls::within(CALL_LIMIT).call_others(|cpu| RAN[cpu.index()].add(1));
    let online = apic::all().filter(|&cpu| Calls::is_online(cpu)).count() as u64;
    let ran: u64 = RAN.iter().map(Counter::get).sum();
    check(
        "others_are_called",
        result.is_ok() && ran == online - 1,
        format_args!(
            "{ran} of {} have run it: {}",
            online - 1,
            if result.is_ok() { "it has ended well" } else { "it has not ended well" }
        ),
    );
    step();
}
