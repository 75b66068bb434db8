//! How a kernel adopts `smpcall`: all that it implements, in one file.
//!
//! * [`Machine`]: what the CPU, its interrupt flag, its interrupt controller and its clock are.
//! * [`Kernel`]: where the mailboxes are, and how patient this kernel is.
//! * [`Hotplug`]: how CPUs are started, parked and reset.
//! * [`CrashStop`]: where a crash is noted.
//! * [`Lockups`]: what is done about CPUs that stand still.
//!
//! What calls the library is elsewhere: `interrupts.rs` (rings, ticks, NMIs), `tasks.rs` (the idle loop), `main.rs` (the
//! end of a CPU's start), `crash.rs` (the crash stop).

use core::arch::asm;
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use core::time::Duration;

use smpcall::vmcore::Registers;
use smpcall::{
    Answer, Callback, CrashNotes, CrashStop, CrossCall, Diagnosis, FenceError, Hotplug, Kernel, Life, Lockup,
    LockupKind, Lockups, Mailbox, Mailboxes, Refused,
};
use smpcall_local_apic::Interrupt;
use smpcall_machine::{
    Cpu, CpuMask, CpuSet, Hardware, Instant, InterruptsOff, Ipi, Machine, SendError, Word,
};
use x86_64::instructions::interrupts;

use crate::console::say;
use crate::cpu::MAX_CPUS;
use crate::{apic, back_trace, clock, cpu, faults, memory, tally};

/// This kernel.
pub(crate) struct Lab;

/// Its cross-CPU calls.
pub(crate) type Calls = CrossCall<Lab>;

/// A set of this kernel's CPUs.
pub(crate) type Cpus = CpuSet<{ MAX_CPUS / 64 }>;

/// The time between two ticks on machines of up to 16 CPUs.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// Events in the ring of each CPU.
pub(crate) const EVENTS: usize = 128;

// SAFETY: 1: the number comes from the record that `gs` leads to, one for each CPU, and tasks never leave their CPU. 2: the
// interrupt flag. 3: time-stamp counters never go backwards. 4: handlers of NMIs, machine checks and double faults say that
// they are entered. 5: `Hardware` is `core::sync::atomic`.
unsafe impl Machine for Lab {
    type Memory = Hardware;
    type CpuSet = Cpus;
    const HAS_NMI: bool = true;

    #[inline(always)]
    fn current_cpu() -> Cpu {
        cpu::current()
    }

    #[inline(always)]
    fn disable_interrupts() -> bool {
        let flags: u64;
        // SAFETY: the flags are read and interrupts disabled. It touches the stack and, being a barrier, memory.
        unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags) }
        flags & Registers::INTERRUPT_FLAG != 0
    }

    #[inline(always)]
    fn restore_interrupts(were_enabled: bool) {
        if were_enabled {
            // SAFETY: the handlers are in place wherever interrupts were enabled before. A barrier for memory.
            unsafe { asm!("sti", options(nostack)) }
        }
    }

    #[inline(always)]
    fn interrupts_enabled() -> bool {
        interrupts::are_enabled()
    }

    #[inline(always)]
    fn in_nmi() -> bool {
        cpu::in_nmi()
    }

    #[inline(always)]
    fn send(target: Cpu, ipi: Ipi) -> Result<(), SendError> {
        match ipi {
            Ipi::Ring if faults::swallows(target) => Ok(()),
            Ipi::Ring => apic::ring(target),
            Ipi::Probe => apic::send(target, Interrupt::Nmi),
        }
    }

    fn send_many(targets: &CpuMask, ipi: Ipi) -> Result<(), SendError> {
        match ipi {
            Ipi::Ring if faults::are_on() => {
                apic::send_many(&faults::spared(targets), Interrupt::Fixed(apic::RING))
            }
            Ipi::Ring => apic::send_many(targets, Interrupt::Fixed(apic::RING)),
            Ipi::Probe => apic::send_many(targets, Interrupt::Nmi),
        }
    }

    #[inline(always)]
    fn now() -> Instant {
        clock::now()
    }
}

/// Memory that is filled in once, at boot.
pub(crate) struct Late<T>(pub(crate) UnsafeCell<MaybeUninit<T>>);
// SAFETY: written by the boot CPU before other CPUs run, and read only afterwards.
unsafe impl<T> Sync for Late<T> {}

pub(crate) static MAILBOXES: Late<Mailboxes<Lab>> = Late(UnsafeCell::new(MaybeUninit::uninit()));
pub(crate) static MAILBOXES_ARE_THERE: AtomicBool = AtomicBool::new(false);

/// Makes the mailboxes, for as many CPUs as the machine has. By the boot CPU, before anything of `smpcall` is used.
pub(crate) fn make_mailboxes() {
    let cpus = apic::count();
    // SAFETY: mailboxes, words and event slots are all zero at first, and this memory is nobody else's.
    let mailboxes = unsafe {
        Mailboxes::new(
            memory::allocate_zeroed::<Mailbox<Lab>>(cpus),
            memory::allocate_zeroed::<Word<Hardware>>(Mailboxes::<Lab>::words_needed(cpus)),
            memory::allocate_zeroed(cpus * EVENTS),
        )
    };
    // SAFETY: nobody else runs yet, and nobody has used it.
    unsafe { (*MAILBOXES.0.get()).write(mailboxes) };
    // Relaxed: other CPUs are started afterwards.
    MAILBOXES_ARE_THERE.store(true, Relaxed);
}

/// How much memory [`make_mailboxes`] takes.
pub(crate) fn mailbox_bytes(cpus: usize) -> usize {
    // Each of the three parts begins at a multiple of this.
    Mailboxes::<Lab>::bytes_needed(cpus, EVENTS) + 3 * 4096
}

/// Whether `smpcall` can be used: a panic may come before.
pub(crate) fn is_ready() -> bool {
    MAILBOXES_ARE_THERE.load(Relaxed)
}

// SAFETY: 1: one static, written before it is used. 2: `handle_ring` and `tick` are called by the handlers of their vectors,
// which are taken only while interrupts are enabled.
unsafe impl Kernel for Lab {
    #[inline(always)]
    fn mailboxes() -> &'static Mailboxes<Self> {
        // SAFETY: `make_mailboxes` has been called: it is the first thing at boot.
        unsafe { (*MAILBOXES.0.get()).assume_init_ref() }
    }

    // An emulator lets other CPUs run meanwhile, all in one thread.
    const FIRST_BACKOFF: Duration = Duration::from_millis(2);
    const LONGEST_BACKOFF: Duration = Duration::from_millis(32);

    fn reschedule() {
        tally::here().reschedules.add(1);
    }

    fn overdue(target: Option<Cpu>, diagnosis: &Diagnosis) {
        match target {
            Some(target) => say!("{}: overdue on {target}: {diagnosis}", Self::current_cpu()),
            None => say!("{}: overdue: {diagnosis}", Self::current_cpu()),
        }
    }
}

impl Lab {
    /// The mailbox of a CPU that there is.
    pub(crate) fn mailbox_of(cpu: Cpu) -> &'static Mailbox<Self> {
        Self::mailboxes().get(cpu).expect("there is a mailbox for each CPU")
    }
}

/// The boot CPU is the first of the tables.
pub(crate) const BOOT_CPU: Cpu = Cpu::new(0);

/// What this kernel does when CPUs come and go.
static CALLBACKS: [Callback; 2] = [
    // Suites look at these: they count.
    Callback {
        prepare: Some(|cpu| tally::count(&tally::of(cpu).prepared)),
        online: Some(|cpu| tally::count(&tally::of(cpu).came)),
        offline: Some(|cpu| tally::count(&tally::of(cpu).was_to_go)),
        dead: Some(|cpu| tally::of(cpu).went.add(1)),
        ..Callback::named("tally")
    },
    Callback { starting: Some(start_timer), dying: Some(stop_timer), ..Callback::named("timer") },
];

#[expect(clippy::unnecessary_wraps, reason = "a callback may refuse; this one has no reason to")]
fn start_timer(_: Cpu) -> Result<(), Refused> {
    apic::start_ticks();
    Calls::watch_ticks(true);
    Ok(())
}

fn stop_timer(_: Cpu) {
    Calls::watch_ticks(false);
    apic::stop_ticks();
}

// SAFETY: 1: INIT stops a CPU between two instructions, and what it had stored is visible then: x86 CPUs do not drop what
// has left the pipeline. QEMU, whose INIT is an order that the target's thread follows later, is waited for by `fence`. 2:
// INIT comes first. 3: it halts.
unsafe impl Hotplug for Lab {
    fn callbacks() -> &'static [Callback] {
        &CALLBACKS
    }

    fn boot_cpu() -> Cpu {
        BOOT_CPU
    }

    fn start_cpu(cpu: Cpu) -> Result<(), SendError> {
        apic::start_cpu(cpu).map_err(|error| match error {
            smpcall_local_apic::StartUpError::NotSent { error, .. } => error,
            _ => SendError::Unreachable,
        })
    }

    fn park() -> ! {
        halt_for_ever()
    }

    fn fence(cpu: Cpu) -> Result<(), FenceError> {
        // An emulated CPU takes the INIT when its thread comes to it; there is no word of it.
        apic::reset(cpu).map_err(FenceError::NotSent)?;
        clock::delay(Duration::from_millis(10));
        Ok(())
    }
}

/// Where crashes are noted: found by the capture kernel.
pub(crate) static CRASH_NOTES: [CrashNotes<Lab>; MAX_CPUS] = [CrashNotes::NEW; MAX_CPUS];

// SAFETY: 1: one static, which nothing else writes. 2: it halts with interrupts disabled.
unsafe impl CrashStop for Lab {
    fn crash_notes() -> &'static [CrashNotes<Self>] {
        &CRASH_NOTES
    }

    fn park() -> ! {
        halt_for_ever()
    }

    fn current_task() -> u32 {
        // One task for each CPU, numbered from 1: 0 is none.
        Self::current_cpu().number() + 1
    }
}

impl Lockups for Lab {
    const TICK: Duration = TICK;
    // Short, so that the suite does not last: a kernel in earnest takes 20 s and 10 s.
    const SOFT_LIMIT: Duration = Duration::from_secs(2);
    const HARD_LIMIT: Duration = Duration::from_secs(1);
    const BACK_TRACE_LIMIT: Duration = Duration::from_millis(500);

    fn locked_up(lockup: &Lockup) -> Answer {
        let Lockup { kind, culprit, finder, lasted, ticks, state, .. } = lockup;
        say!("{kind:?} lockup of {culprit} for {lasted:?} ({ticks} ticks), found by {finder}: {state:?}");
        if let Some(registers) = &lockup.registers {
            back_trace::print(registers);
        }
        tally::of(*culprit).note_lockup(lockup);
        Answer::GoOn
    }

    fn lockup_ended(culprit: Cpu, kind: LockupKind, lasted: Duration) {
        say!("{kind:?} lockup of {culprit} has ended after {lasted:?}");
        tally::of(culprit).lockups_ended.add(1);
    }

    fn back_trace(asker: Cpu, registers: &Registers) {
        say!("{} asks where {} is:", asker, Self::current_cpu());
        back_trace::print(registers);
        tally::here().back_traces.add(1);
    }
}

/// Halts with interrupts disabled, whatever wakes it.
pub(crate) fn halt_for_ever() -> ! {
    interrupts::disable();
    loop {
        x86_64::instructions::hlt();
    }
}

/// Halts for ever and takes interrupts meanwhile.
pub(crate) fn stand() -> ! {
    loop {
        halt_until_interrupt(&mut InterruptsOff::<Lab>::new());
    }
}

/// Halts until an interrupt comes and has been handled. In one step: none that comes after the last look is overslept.
#[inline(always)]
pub(crate) fn halt_until_interrupt(guard: &mut InterruptsOff<Lab>) {
    let _ = guard;
    // SAFETY: the handlers are in place. No interrupt is taken between the first two instructions. (SDM, STI.) A barrier for
    // memory, which handlers change.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) }
}

/// Whether this CPU was asked to go offline: its task is to return to the idle loop.
pub(crate) fn is_asked_to_go() -> bool {
    Calls::life(Lab::current_cpu()) == Some(Life::Asked)
}
