//! The lab kernel: `smpcall` and `smpcall-local-apic`, unchanged, on a real SMP machine.
#![cfg_attr(target_os = "none", no_std, no_main)]

/// The image is built for `x86_64-unknown-none` and started by `smpcall lab`.
#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("the lab kernel runs on a bare machine: start it with `smpcall lab`");
    std::process::exit(2);
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
