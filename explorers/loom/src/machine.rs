//! A machine whose CPUs are loom's threads. Interrupts are polled; time passes for a CPU only when its wait expires.

use std::cell::Cell;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

use loom::thread::JoinHandle;
use smpcall::{
    Cpu, CpuSet, CrossCall, Deadline, Instant, InterruptsOff, Kernel, Machine, Mailboxes, mailboxes,
};
use smpcall_machine::{Ipi, SendError, Woken, Word, wait};

use crate::memory::LoomMemory;

/// A machine with this many mailboxes: 3, or 49 for one with leaves. At most four of its CPUs run.
pub struct Threads<const CPUS: usize>;

/// How many CPUs can run.
const RUNNING: usize = 4;

/// Interrupts that are pending.
static PENDING: [Word<LoomMemory>; RUNNING] = [const { Word::new(0) }; RUNNING];
/// One if time has passed for a CPU: its next wait with a deadline may expire.
static TIME: [Word<LoomMemory>; RUNNING] = [const { Word::new(0) }; RUNNING];

/// When an execution starts, in nanoseconds: not zero, which some words take for "never".
const START: u64 = 1_000_000_000;

loom::thread_local! {
    static CPU: CpuState = CpuState::default();
}

#[derive(Default)]
struct CpuState {
    number: Cell<u32>,
    interrupts_off: Cell<bool>,
    /// Whether interrupts are taken at all: nobody sends any to the others.
    takes_interrupts: Cell<bool>,
    /// Nanoseconds since [`START`].
    elapsed: Cell<u64>,
    expired: Cell<bool>,
}

std::thread_local! {
    /// How many of the next rings are lost.
    static RINGS_LOST: Cell<u32> = const { Cell::new(0) };
}

/// Loses the next rings of this execution.
pub(crate) fn lose_rings(count: u32) {
    RINGS_LOST.set(count);
}

/// Runs the rest of this thread as a CPU.
pub(crate) fn become_cpu(number: u32, takes_interrupts: bool) {
    CPU.with(|cpu| {
        cpu.number.set(number);
        cpu.takes_interrupts.set(takes_interrupts);
    });
}

/// The number of this CPU.
pub(crate) fn number() -> u32 {
    CPU.with(|cpu| cpu.number.get())
}

/// The name of a word of the machine's own.
pub(crate) fn name_of(location: *const ()) -> Option<String> {
    let position = |words: &[Word<LoomMemory>]| words.iter().position(|word| word.location() == location);
    let named = |kind: &str, words| position(words).map(|cpu| format!("{kind}[{cpu}]"));
    named("pending", &PENDING).or_else(|| named("time", &TIME))
}

/// Starts a CPU. Those that are never rung are spared the look at their pending interrupts.
pub(crate) fn start(number: u32, takes_interrupts: bool, program: fn()) -> JoinHandle<()> {
    loom::thread::spawn(move || {
        become_cpu(number, takes_interrupts);
        program();
    })
}

/// Lets time pass for a CPU, at any moment from now on: one of its waits with a deadline may expire, once.
pub(crate) fn let_time_pass(number: u32) -> JoinHandle<()> {
    // Relaxed: time orders nothing.
    loom::thread::spawn(move || TIME[number as usize].store(1, Relaxed))
}

/// Whether a wait with this deadline expires now; if so it is the deadline now.
pub(crate) fn expires(deadline: Deadline) -> bool {
    let Some(instant) = deadline.instant() else { return false };
    CPU.with(|cpu| {
        if cpu.elapsed.get() + START >= instant.as_nanos() {
            return true;
        }
        if cpu.expired.get() || TIME[cpu.number.get() as usize].load(Relaxed) == 0 {
            return false;
        }
        cpu.expired.set(true);
        cpu.elapsed.set(instant.as_nanos() - START);
        true
    })
}

/// Halts until an interrupt is pending, and takes it; returns false if `others_left` was zero before one was.
pub(crate) fn idle<const CPUS: usize>(others_left: &Word<LoomMemory>) -> bool
where
    Threads<CPUS>: Kernel<Memory = LoomMemory>,
{
    // Taken after the wait and not during it: whoever halts looks after each interrupt whether to halt again.
    let off = InterruptsOff::<Threads<CPUS>>::new();
    let pending = &PENDING[off.cpu().index()];
    let woken = wait::<Threads<CPUS>>(&[pending.differs(!0, 0), others_left.equals(!0, 0)], Deadline::NEVER);
    drop(off);
    woken == Woken::Met(0)
}

/// Takes the pending interrupt, if interrupts are enabled.
pub(crate) fn deliver<const CPUS: usize>()
where
    Threads<CPUS>: Kernel<Memory = LoomMemory>,
{
    let enabled = CPU.with(|cpu| cpu.takes_interrupts.get() && !cpu.interrupts_off.get());
    let pending = &PENDING[Threads::<CPUS>::current_cpu().index()];
    // Relaxed and acquire: taking an interrupt makes visible what its senders had written.
    if enabled && pending.load(Relaxed) != 0 && pending.swap(0, Acquire) != 0 {
        let were_enabled = Threads::<CPUS>::disable_interrupts();
        CrossCall::<Threads<CPUS>>::handle_ring();
        CPU.with(|cpu| cpu.interrupts_off.set(!were_enabled));
    }
}

macro_rules! machine_of {
    ($cpus:literal, $mailboxes:ident) => {
        mailboxes! { static $mailboxes: Threads<$cpus> = $cpus CPUs, 0 events }

        // SAFETY: 1. Each thread has a number of its own. 2. Handlers run in `deliver` only, while interrupts are enabled;
        // no other task runs on a thread. 3. A CPU's clock is only ever advanced. 4. There are no NMIs. 5. Loom's atomics.
        unsafe impl Machine for Threads<$cpus> {
            type Memory = LoomMemory;
            type CpuSet = CpuSet<1>;
            const HAS_NMI: bool = false;

            fn current_cpu() -> Cpu {
                CPU.with(|cpu| Cpu::new(cpu.number.get()))
            }

            fn disable_interrupts() -> bool {
                CPU.with(|cpu| !cpu.interrupts_off.replace(true))
            }

            fn restore_interrupts(were_enabled: bool) {
                if were_enabled {
                    CPU.with(|cpu| cpu.interrupts_off.set(false));
                    deliver::<$cpus>();
                }
            }

            fn interrupts_enabled() -> bool {
                CPU.with(|cpu| !cpu.interrupts_off.get())
            }

            fn in_nmi() -> bool {
                false
            }

            fn send(target: Cpu, _: Ipi) -> Result<(), SendError> {
                let lost = RINGS_LOST.get();
                if lost > 0 {
                    RINGS_LOST.set(lost - 1);
                } else {
                    // Release: the sender's stores are visible to who takes the interrupt.
                    PENDING[target.index()].fetch_or(1, Release);
                }
                Ok(())
            }

            fn now() -> Instant {
                Instant::from_nanos(START).plus(Duration::from_nanos(CPU.with(|cpu| cpu.elapsed.get())))
            }

            fn pause() {
                deliver::<$cpus>();
            }
        }

        // SAFETY: one static for each machine; `handle_ring` is called by `deliver` while interrupts are enabled.
        unsafe impl Kernel for Threads<$cpus> {
            fn mailboxes() -> &'static Mailboxes<Self> {
                &$mailboxes
            }
        }
    };
}

machine_of!(3, MAILBOXES_3);
machine_of!(49, MAILBOXES_49);
