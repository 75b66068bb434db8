//! The start of the kernel, in order: on the boot CPU, and on every other one.

use core::time::Duration;

use smpcall_local_apic::{IoApic, IoApicMmio, Mode, Pic, Ports};
use smpcall_machine::{Cpu, InterruptsOff, Machine};

use crate::console::say;
use crate::crash::{Exit, exit};
use crate::machine::{BOOT_CPU, Calls, Lab};
use crate::options::Options;
use crate::{
    acpi, apic, boot, capture_load, clock, console, cpu, machine, memory, options, random, suites, tasks,
};

/// How long a CPU may take to come. An emulator has one thread for all.
const COMING: Duration = Duration::from_secs(10);

/// The first Rust of the boot CPU, on a stack that is left behind. `start_info` is a physical address.
#[unsafe(no_mangle)]
extern "C" fn boot_cpu_entry(start_info: u64) -> ! {
    // SAFETY: this is the boot CPU, and alone.
    unsafe { cpu::adopt_record(BOOT_CPU) }
    console::set_up();
    // SAFETY: the entry has handed on what the loader said; once, before anything else.
    if let Err(error) = unsafe { memory::set_up(start_info) } {
        fail(error);
    }
    cpu::give_stacks(BOOT_CPU);
    cpu::load_tables();
    let stack = cpu::this().stack().end;
    // SAFETY: the stack is this CPU's, and nothing on the old one is used any more.
    unsafe {
        core::arch::asm!("mov rsp, {}", "xor ebp, ebp", "call {}", "ud2", in(reg) stack, sym boot_cpu_main,
            options(noreturn));
    }
}

fn fail(error: impl core::fmt::Display) -> ! {
    say!("the kernel cannot start: {error}");
    exit(Exit::Crashed)
}

extern "C" fn boot_cpu_main() -> ! {
    let options = options::read();
    random::seed(options.seed);
    if let Err(error) = clock::set_up() {
        fail(error);
    }
    silence_legacy_interrupts();
    let Some(madt) = acpi::find(memory::handed().rsdp, *b"APIC") else {
        fail("the firmware has no table of CPUs (an ACPI MADT)");
    };
    match apic::set_up(acpi::apics(madt), options.apic, options.routing, options.cpus) {
        Ok(0) => {}
        Ok(left_out) => {
            say!("{left_out} CPUs are left out: this mode cannot address them, or there are too many");
        }
        Err(error) => fail(format_args!("its APICs cannot be used: {error}")),
    }
    capture_load::load();
    machine::make_mailboxes();
    let guard = InterruptsOff::<Lab>::new();
    if let Err(error) = apic::enable_here(&guard) {
        fail(format_args!("the APIC of the boot CPU cannot be used: {error}"));
    }
    drop(guard);
    Lab::restore_interrupts(true);
    if !apic::measure_timer() {
        say!("no ticks: counting instructions does not go with the timer of an x2APIC in this emulator");
    }
    Calls::declare_nmi(true);
    Calls::open();
    let guard = InterruptsOff::<Lab>::new();
    apic::start_ticks();
    Calls::watch_ticks(true);
    drop(guard);
    bring_up_all();
    announce(&options);
    suites::run(&options)
}

fn announce(options: &Options) {
    let mode = match apic::mode() {
        Mode::XApic => "xapic",
        Mode::X2Apic => "x2apic",
    };
    let online = apic::all().filter(|&cpu| Calls::is_online(cpu)).count();
    say!(
        "@ lab version=1 cpus={online} apic={mode} routing={} tsc_khz={} seed={}",
        apic::routing(),
        clock::ticks_per_second() / 1000,
        options.seed
    );
}

/// Masks the 8259s and the I/O APIC: what this kernel wants it asks the local APICs for.
pub(crate) fn silence_legacy_interrupts() {
    /// Where every PC has its first I/O APIC.
    const IO_APIC: u64 = 0xfec0_0000;
    // SAFETY: this is a kernel, and nobody else uses the 8259s.
    Pic::new(unsafe { Ports::new() }).mask_all();
    // SAFETY: the direct map shows the registers uncached, and nobody else uses them.
    let io_apic = IoApic::new(unsafe { IoApicMmio::new(memory::direct(IO_APIC)) });
    io_apic.mask_all();
}

fn bring_up_all() {
    // SAFETY: the page is memory below 1 MiB, of which this kernel uses nothing else; the loader's words were copied.
    unsafe { boot::prepare_start_up_page(x86_64::registers::control::Cr3::read().0.start_address().as_u64()) }
    let others = apic::all().filter(|&cpu| cpu != BOOT_CPU);
    for cpu in others.clone() {
        cpu::give_stacks(cpu);
    }
    for cpu in others {
        if let Err(error) = Calls::cpu_up(cpu, COMING) {
            fail(format_args!("{cpu} did not come up: {error}"));
        }
        Calls::progress();
    }
    apic::allow_shorthands();
}

/// The first Rust of every other CPU, on its own stack.
#[unsafe(no_mangle)]
extern "C" fn other_cpu_entry(number: u32) -> ! {
    let cpu = Cpu::new(number);
    // SAFETY: the start-up code has found the number by the identifier of this CPU's APIC.
    unsafe { cpu::adopt_record(cpu) }
    // The sign of life. Release: nothing is published by it; it is the order that the reader's acquire asks for.
    cpu::this().arrivals.fetch_add(1, core::sync::atomic::Ordering::Release);
    cpu::load_tables();
    let mut guard = InterruptsOff::<Lab>::new();
    if let Err(error) = apic::enable_here(&guard) {
        say!("{cpu}: its APIC cannot be used: {error}");
        machine::halt_for_ever();
    }
    // Does not return if this CPU is not wanted any more.
    Calls::start_here(&mut guard);
    drop(guard);
    tasks::idle()
}
