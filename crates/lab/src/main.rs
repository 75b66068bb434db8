//! The lab kernel: `smpcall` and `smpcall-local-apic`, unchanged, on a real SMP machine.
#![cfg_attr(target_os = "none", no_std, no_main)]

/// The image is built for `x86_64-unknown-none` and started by `smpcall lab`.
#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("the lab kernel runs on a bare machine: start it with `smpcall lab`");
    std::process::exit(2);
}

#[cfg(target_os = "none")]
mod acpi;
#[cfg(target_os = "none")]
mod apic;
#[cfg(target_os = "none")]
mod back_trace;
#[cfg(target_os = "none")]
mod boot;
#[cfg(target_os = "none")]
mod capture;
#[cfg(target_os = "none")]
mod capture_gates;
#[cfg(target_os = "none")]
mod capture_load;
#[cfg(target_os = "none")]
mod clock;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod cpu;
#[cfg(target_os = "none")]
mod crash;
#[cfg(target_os = "none")]
mod disk;
#[cfg(target_os = "none")]
mod faults;
#[cfg(target_os = "none")]
mod hooks;
#[cfg(target_os = "none")]
mod interrupts;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod options;
#[cfg(target_os = "none")]
mod pci;
#[cfg(target_os = "none")]
mod random;
#[cfg(target_os = "none")]
mod start;
#[cfg(target_os = "none")]
mod suites;
#[cfg(target_os = "none")]
mod tally;
#[cfg(target_os = "none")]
mod tasks;
#[cfg(target_os = "none")]
mod vmcore;
