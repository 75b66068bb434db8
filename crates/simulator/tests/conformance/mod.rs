//! What the conformance tests share: machines, any command, and who took what.
#![allow(dead_code, reason = "every test file uses a part of it")]
#![allow(clippy::missing_panics_doc, reason = "tests")]
#![allow(unreachable_pub, reason = "a module of each test crate")]

use core::time::Duration;
use std::collections::BTreeMap;

use smpcall_local_apic::{Access, Icr, Interrupt, Mode, Register, Routing, Vector};
use smpcall_machine::{Cpu, Instant};
use smpcall_simulator::{Config, InterruptFrame, RunEnd, SimAccess, World};

/// The vector of interrupts that are counted.
pub const COUNTED: u8 = 0xf1;

pub const fn cpu(number: u32) -> Cpu {
    Cpu::new(number)
}

pub const fn us(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

/// An ordinary interrupt with the vector that is counted.
pub fn counted() -> Interrupt {
    Interrupt::Fixed(Vector::new(COUNTED).expect("legal"))
}

/// A machine without ticks: nothing happens but what the test does.
pub fn config(cpus: usize, routing: Routing) -> Config {
    let mut config = Config::new(cpus, routing, 1);
    config.tick = None;
    config
}

fn end(mut frame: InterruptFrame) {
    frame.end_of_interrupt();
}

fn return_at_once(_: InterruptFrame) {}

/// A machine whose CPUs take the counted vector and NMIs, and do nothing else about them.
pub fn world<'p>(config: &Config) -> World<'p> {
    let mut world = World::new(config).expect("a machine");
    world.set_handler(COUNTED, end);
    world.set_nmi_handler(return_at_once);
    world
}

/// Runs the machine until its programs have ended and what they sent has arrived.
pub fn run(world: &mut World<'_>) {
    assert_eq!(
        world.run(Instant::from_nanos(10_000_000_000)),
        RunEnd::ProgramsEnded,
        "at {:?}",
        world.time()
    );
    world.run_on(world.time().plus(us(100)));
}

/// How often each CPU took the counted vector; those that did not are missing.
pub fn takers(world: &World<'_>) -> BTreeMap<u32, u64> {
    let taken = |number| (number, world.inspect(cpu(number)).counters.taken[usize::from(COUNTED)]);
    (0..world.cpus() as u32).map(taken).filter(|&(_, taken)| taken > 0).collect()
}

/// Each of these CPUs, once.
pub fn once(cpus: impl IntoIterator<Item = u32>) -> BTreeMap<u32, u64> {
    cpus.into_iter().map(|cpu| (cpu, 1)).collect()
}

/// Writes any command to the running CPU's ICR, as no driver would.
pub fn command(icr: Icr) {
    let mode = SimAccess.mode();
    let bits = icr.encode(mode).expect("the destination fits");
    match mode {
        Mode::XApic => {
            SimAccess.write(Register::ICR_HIGH, (bits >> 32) as u32);
            SimAccess.write(Register::ICR_LOW, bits as u32);
        }
        Mode::X2Apic => SimAccess.write_icr(bits),
    }
}

/// Every routing, with a machine of up to `cpus` CPUs that it fits.
pub fn machines(cpus: usize) -> impl Iterator<Item = Config> {
    Routing::ALL.into_iter().map(move |routing| config(cpus.min(routing.max_cpus() as usize), routing))
}
