//! What a call compiles to on hardware atomics: `.ci/seam-cost` disassembles `one_call`, `one_post` and
//! `many_calls`, once as they are and once with the seam cut out of the sources, and compares.
//!
//! The machine is a stand-in with one CPU; its functions are opaque to the compiler, as a kernel's are.

#![allow(missing_docs, clippy::missing_errors_doc, clippy::result_large_err, clippy::no_mangle_with_rust_abi)]

use std::hint::black_box;
use std::time::Duration;

use smpcall::machine::{Hardware, Instant, Ipi, SendError};
use smpcall::{
    CallError, Cpu, CpuMask, CpuSet, CrossCall, Deferred, Kernel, Machine, Mailboxes, ManyError, Post,
    mailboxes,
};

/// The stand-in.
pub struct Bench;

// SAFETY: one CPU, one thread, no interrupts: every promise holds trivially.
unsafe impl Machine for Bench {
    type Memory = Hardware;
    type CpuSet = CpuSet<4>;
    const HAS_NMI: bool = true;

    #[inline(never)]
    fn current_cpu() -> Cpu {
        Cpu::new(black_box(0))
    }

    #[inline(never)]
    fn disable_interrupts() -> bool {
        black_box(true)
    }

    #[inline(never)]
    fn restore_interrupts(were_enabled: bool) {
        black_box(were_enabled);
    }

    fn interrupts_enabled() -> bool {
        black_box(true)
    }

    fn in_nmi() -> bool {
        black_box(false)
    }

    #[inline(never)]
    fn send(target: Cpu, ipi: Ipi) -> Result<(), SendError> {
        black_box((target, ipi));
        Ok(())
    }

    #[inline(never)]
    fn now() -> Instant {
        Instant::from_nanos(black_box(0))
    }
}

// SAFETY: one static, and `serve` is called where interrupts are enabled.
unsafe impl Kernel for Bench {
    fn mailboxes() -> &'static Mailboxes<Self> {
        &MAILBOXES
    }
}

mailboxes! { static MAILBOXES: Bench = 256 CPUs, 128 events }

type Calls = CrossCall<Bench>;

/// A synchronous call that borrows and returns a value.
#[unsafe(no_mangle)]
#[inline(never)]
pub fn one_call(target: Cpu, sum: &mut u64) -> Result<u64, CallError> {
    Calls::within(Duration::from_millis(1)).call(target, || {
        *sum += 1;
        *sum
    })
}

/// A call to a set.
#[unsafe(no_mangle)]
#[inline(never)]
pub fn many_calls(targets: &CpuMask, flag: &std::sync::atomic::AtomicU64) -> Result<(), ManyError<Bench>> {
    Calls::within(Duration::from_millis(1)).call_many(targets, |cpu| {
        flag.fetch_or(1 << (cpu.number() % 64), std::sync::atomic::Ordering::Relaxed);
    })
}

struct Flush;

impl Deferred<Bench> for Flush {
    type Handle = &'static Post<Bench, Self>;

    fn run(handle: Self::Handle) {
        black_box(handle);
    }
}

/// An asynchronous post.
#[unsafe(no_mangle)]
#[inline(never)]
pub fn one_post(target: Cpu) -> bool {
    static POST: Post<Bench, Flush> = Post::new(Flush);
    Calls::post::<Flush>(target, &POST).is_ok()
}

/// The interrupt handler's part.
#[unsafe(no_mangle)]
#[inline(never)]
pub fn serve() {
    Calls::handle_ring();
}

fn main() {
    Calls::open();
    let mut sum = 0;
    assert_eq!(one_call(black_box(Cpu::new(0)), &mut sum), Ok(1));
    assert!(one_call(black_box(Cpu::new(1)), &mut sum).is_err());
    let set: CpuSet<4> = [Cpu::new(0)].into_iter().collect();
    assert!(many_calls(&set, &std::sync::atomic::AtomicU64::new(0)).is_ok());
    assert!(one_post(Cpu::new(0)));
    serve();
}
