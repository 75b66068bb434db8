//! The seam: what the protocol demands of a machine, answered by the thread that asks.

#![allow(
    clippy::redundant_closure_for_method_calls,
    reason = "a method of `Context<'_>` is one of one lifetime only"
)]

use std::time::Duration;

use smpcall::machine::{Hardware, Ipi, SendError};
use smpcall::{Cpu, CpuSet, Instant, InterruptsOff, Kernel, Machine, Mailboxes};

use crate::context::{on_cpu, with_current};
use crate::run::TICK;

/// The machine that the current thread is a CPU of: the type that [`Calls`](crate::Calls) are made for.
///
/// Programs of [`Config::run`](crate::Config::run) may use it as a [`Machine`] directly: `Host::send` sends a spurious
/// ring or NMI. On a thread that is no CPU its functions panic.
pub enum Host {}

// SAFETY: 1. Each CPU is one thread for the machine's whole life, and each thread is given a number of its own.
// 2. Maskable handlers run in `Context::take_pending` only, which looks at the CPU's flag; threads have one task. The
// flag is set and cleared between compiler fences. 3. `std::time::Instant` never goes backwards. 4. `in_nmi` is set
// by the NMI handler, the only one that looks at no flag. 5. Real atomics on ordinary memory.
unsafe impl Machine for Host {
    type Memory = Hardware;
    type CpuSet = CpuSet<1>;
    const HAS_NMI: bool = true;

    #[inline]
    fn current_cpu() -> Cpu {
        on_cpu(|context| context.cpu)
    }

    #[inline]
    fn disable_interrupts() -> bool {
        on_cpu(|context| context.disable_interrupts())
    }

    #[inline]
    fn restore_interrupts(were_enabled: bool) {
        on_cpu(|context| {
            if were_enabled {
                context.enable_interrupts();
            }
        });
    }

    fn interrupts_enabled() -> bool {
        on_cpu(|context| context.interrupts_enabled())
    }

    fn in_nmi() -> bool {
        on_cpu(|context| context.in_nmi())
    }

    fn send(target: Cpu, ipi: Ipi) -> Result<(), SendError> {
        on_cpu(|context| context.send(target, ipi))
    }

    fn now() -> Instant {
        on_cpu(|context| Instant::from_nanos(context.machine.started.elapsed().as_nanos() as u64 + 1))
    }

    fn pause() {
        on_cpu(|context| context.pause());
    }
}

// SAFETY: 1. A thread is a CPU of one machine, whose mailboxes no other machine has (`Lease`), and has no others while it
// is. 2. `handle_ring` is called by `Context::take_pending` only, which runs where interrupts are enabled, and for signals
// by the handler that has interrupted such code.
unsafe impl Kernel for Host {
    /// Some times what a signal takes to a thread that runs. One that waits for a processor is rung again in vain.
    const FIRST_BACKOFF: Duration = Duration::from_micros(50);

    fn mailboxes() -> &'static Mailboxes<Self> {
        on_cpu(|context| context.mailboxes())
    }
}

/// Takes the interrupts that are pending, as far as they are enabled. For long computations with polled delivery, where
/// nothing else looks. Nothing happens on a thread that is no CPU.
pub fn poll_interrupts() {
    with_current(|context| context.take_pending());
}

/// Enables interrupts and waits for one, in one step, as `sti; hlt` does: one that is pending ends the wait at once. Also
/// returns after a tick of a millisecond, or for no reason. The interrupt has been taken when it returns, unless another
/// guard keeps interrupts off.
pub fn halt(guard: InterruptsOff<Host>) {
    on_cpu(|context| context.halt(TICK));
    drop(guard);
}

/// Calls `f`, and counts the interrupts that come meanwhile on this CPU: `taken_inside`, `deferred_inside` and
/// `nmis_inside` of [`InterruptCounts`](crate::InterruptCounts). Nests.
pub fn watch<R>(f: impl FnOnce() -> R) -> R {
    on_cpu(|context| context.watch(f))
}
