//! A thread as a CPU: its interrupt flag, what is pending for it, and how it takes that.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, compiler_fence};
use std::thread::{self, Thread};
use std::time::Duration;

use smpcall::machine::{Ipi, SendError};
use smpcall::{Cpu, Mailboxes};

use crate::config::Delivery;
use crate::counts::Tallies;
use crate::run::Shared;
use crate::{Calls, Host, signals};

/// The ring is pending.
const RING: u32 = 1 << 0;
/// The CPU shall look up from its halt; nothing else.
const WAKE: u32 = 1 << 1;
/// The NMI is pending, which no flag keeps off.
const NMI: u32 = 1 << 2;

/// What a panic leaves.
pub(crate) type Panic = Box<dyn Any + Send>;

/// Where a CPU's interrupts are sent to.
pub(crate) enum Address {
    Thread(Thread),
    Signals(signals::Address),
}

/// One CPU, as all threads see it.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Processor {
    /// Interrupts that were sent and not taken yet.
    pub(crate) pending: AtomicU32,
    address: OnceLock<Address>,
    pub(crate) tallies: Tallies,
    /// The first panic of what was served here: a `Box<Panic>`, or null.
    panic: AtomicPtr<Panic>,

    // The rest is touched by the CPU's own thread only, in whatever context. So relaxed loads and stores do, with compiler
    // fences against the handlers; an atomic read-modify-write is not needed, because a handler leaves each as it was.
    interrupts_enabled: AtomicBool,
    in_nmi: AtomicBool,
    /// How deep the thread is inside `watch`.
    watched: AtomicU32,
    /// The state of the generator that decides which rings are lost.
    random: AtomicU64,
    pauses: AtomicU32,
    /// The thread is in a pause.
    pausing: AtomicBool,
    /// The CPU sends no more.
    silent: AtomicBool,
}

impl Processor {
    /// The panic of what was served here, if there was one.
    pub(crate) fn take_panic(&self) -> Option<Panic> {
        // Acquire: the box behind it, if another thread asks.
        let raw = self.panic.swap(ptr::null_mut(), Acquire);
        // SAFETY: a pointer that is not null came from `Box::into_raw` in `keep_panic`, and the swap gives it to nobody else.
        (!raw.is_null()).then(|| *unsafe { Box::from_raw(raw) })
    }

    /// Keeps a panic for the end of the machine, if it is the first.
    pub(crate) fn keep_panic(&self, panic: Panic) {
        let raw = Box::into_raw(Box::new(panic));
        if self.panic.compare_exchange(ptr::null_mut(), raw, Release, Relaxed).is_err() {
            // SAFETY: just made, and given to nobody.
            drop(unsafe { Box::from_raw(raw) });
        }
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        drop(self.take_panic());
    }
}

/// The own CPU of a thread, on that thread.
pub(crate) struct Context<'a> {
    pub(crate) machine: &'a Shared,
    pub(crate) cpu: Cpu,
    pub(crate) processor: &'a Processor,
}

thread_local! {
    /// The CPU that this thread is, or null. Constant at first and without a destructor, so that a signal handler can
    /// read it at any instant of the thread's life.
    static CURRENT: Cell<*const Context<'static>> = const { Cell::new(ptr::null()) };
}

/// Calls `f` with the CPU that this thread is; none if it is no CPU. Async-signal-safe.
#[inline]
pub(crate) fn with_current<R>(f: impl FnOnce(&Context<'_>) -> R) -> Option<R> {
    // SAFETY: the pointer is null or was set by `enter`, whose guard borrows the context and sets it back before the
    // context goes. The reference does not leave this function, except into `f`, which cannot keep it.
    unsafe { CURRENT.get().as_ref() }.map(f)
}

/// As `with_current`, on a thread that is a CPU.
#[inline]
#[track_caller]
pub(crate) fn on_cpu<R>(f: impl FnOnce(&Context<'_>) -> R) -> R {
    with_current(f)
        .expect("this thread is no CPU of a host machine: calls are made by programs of Config::run")
}

/// While this exists, the thread is a CPU.
pub(crate) struct Entered<'a>(
    #[expect(dead_code, reason = "borrowed as long as the pointer is set")] &'a Context<'a>,
);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        CURRENT.set(ptr::null());
        // A signal handler that runs from here on sees no CPU.
        compiler_fence(SeqCst);
    }
}

impl Context<'_> {
    /// Makes the thread this CPU, with interrupts enabled. Nobody sends to it before this.
    pub(crate) fn enter(&self) -> Entered<'_> {
        let own = self.processor;
        let seed =
            self.machine.config.seed ^ u64::from(self.cpu.number()).wrapping_mul(0xd6e8_feb8_6659_fd93);
        own.random.store(seed, Relaxed);
        own.interrupts_enabled.store(true, Relaxed);
        let address = match self.machine.config.delivery {
            Delivery::Polled => Address::Thread(thread::current()),
            Delivery::Signals => Address::Signals(signals::own_address()),
        };
        assert!(own.address.set(address).is_ok(), "a CPU has one thread");
        compiler_fence(SeqCst);
        CURRENT.set(ptr::from_ref(self).cast());
        Entered(self)
    }

    pub(crate) fn mailboxes(&self) -> &'static Mailboxes<Host> {
        self.machine.lease.mailboxes()
    }

    pub(crate) fn interrupts_enabled(&self) -> bool {
        self.processor.interrupts_enabled.load(Relaxed)
    }

    /// Returns whether they were enabled before.
    #[inline]
    pub(crate) fn disable_interrupts(&self) -> bool {
        // Not one step: a handler that comes in between leaves the flag as it was.
        let were_enabled = self.processor.interrupts_enabled.load(Relaxed);
        self.processor.interrupts_enabled.store(false, Relaxed);
        // Nothing of what follows is done before the handler finds the flag.
        compiler_fence(SeqCst);
        were_enabled
    }

    /// Enables interrupts, and takes what is pending.
    #[inline]
    pub(crate) fn enable_interrupts(&self) {
        compiler_fence(SeqCst);
        self.processor.interrupts_enabled.store(true, Relaxed);
        // A signal that found the flag set has left its bit, which is looked at now; one that comes after this
        // store finds the flag clear. Between the two, both look, and one of them finds the bit.
        compiler_fence(SeqCst);
        self.take_pending();
    }

    /// Takes the pending interrupts, as far as they are enabled. Returns how many rings.
    #[inline]
    pub(crate) fn take_pending(&self) -> u64 {
        // Relaxed: a hint. A bit that is missed is found later, or its signal comes.
        if self.processor.pending.load(Relaxed) == 0 {
            return 0;
        }
        if self.machine.config.delivery == Delivery::Polled {
            self.take_nmi(0);
        }
        let mut rings = 0;
        while self.interrupts_enabled() && self.processor.pending.load(Relaxed) & (RING | WAKE) != 0 {
            self.disable_interrupts();
            rings += u64::from(self.take_ring());
            compiler_fence(SeqCst);
            self.processor.interrupts_enabled.store(true, Relaxed);
            compiler_fence(SeqCst);
        }
        rings
    }

    /// The interrupt handler: interrupts are disabled. Returns whether a ring was pending.
    fn take_ring(&self) -> bool {
        // Acquire: what the sender did before it sent.
        let taken = self.processor.pending.fetch_and(!(RING | WAKE), Acquire);
        if taken & RING == 0 {
            return false;
        }
        self.processor.tallies.rings_taken.add_one();
        // Unwinding must not leave the handler: it may have interrupted anything.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(Calls::handle_ring)) {
            self.processor.keep_panic(panic);
        }
        true
    }

    /// The handler of ring signals.
    #[allow(dead_code, reason = "not called where there are no signals")]
    pub(crate) fn ring_signal(&self) {
        let tallies = &self.processor.tallies;
        let inside = self.processor.watched.load(Relaxed) != 0;
        if !self.interrupts_enabled() {
            // The bit stays for `enable_interrupts`.
            tallies.deferred.add_one();
            if inside {
                tallies.deferred_inside.add_one();
            }
            return;
        }
        let pausing = self.processor.pausing.load(Relaxed);
        let rings = self.take_pending();
        self.processor.pausing.store(pausing, Relaxed);
        tallies.taken_by_signal.add(rings);
        if inside {
            tallies.taken_inside.add(rings);
        }
        if pausing {
            tallies.taken_in_pause.add(rings);
        }
    }

    /// The handler of NMIs: takes it if one is pending and none is being handled.
    pub(crate) fn take_nmi(&self, instruction_pointer: u64) {
        let own = self.processor;
        if own.in_nmi.load(Relaxed) || own.pending.load(Relaxed) & NMI == 0 {
            return;
        }
        own.in_nmi.store(true, Relaxed);
        let were_enabled = self.disable_interrupts();
        // Acquire: what the sender did before it sent.
        if own.pending.fetch_and(!NMI, Acquire) & NMI != 0 {
            own.tallies.nmis_taken.add_one();
            if own.watched.load(Relaxed) != 0 {
                own.tallies.nmis_inside.add_one();
            }
            if let Some(hook) = self.machine.config.on_nmi
                && let Err(panic) = catch_unwind(hook)
            {
                own.keep_panic(panic);
            }
            Calls::handle_nmi(instruction_pointer, were_enabled);
        }
        compiler_fence(SeqCst);
        // Maskable interrupts that came meanwhile: their signals were kept off during the handler and come now;
        // polled ones are looked at by whoever looked for the NMI, or at the next occasion.
        own.interrupts_enabled.store(were_enabled, Relaxed);
        own.in_nmi.store(false, Relaxed);
        compiler_fence(SeqCst);
    }

    pub(crate) fn in_nmi(&self) -> bool {
        self.processor.in_nmi.load(Relaxed)
    }

    /// Sends an interrupt, or loses it.
    pub(crate) fn send(&self, target: Cpu, ipi: Ipi) -> Result<(), SendError> {
        if self.processor.silent.load(Relaxed) {
            return Err(SendError::Unreachable);
        }
        let own = &self.processor.tallies;
        let theirs = self.machine.processors.get(target.index()).ok_or(SendError::Unreachable)?;
        let (bit, sent) = match ipi {
            Ipi::Ring => (RING, &own.rings_sent),
            Ipi::Probe => (NMI, &own.nmis_sent),
        };
        sent.add_one();
        if ipi == Ipi::Ring && self.is_lost() {
            own.rings_lost.add_one();
            return Ok(());
        }
        let result = theirs.raise(bit);
        match result {
            Ok(false) if ipi == Ipi::Ring => own.rings_merged.add_one(),
            Ok(_) => {}
            Err(_) => own.sends_failed.add_one(),
        }
        result.map(|_| ())
    }

    /// From now on this CPU sends nothing, in whatever context: the others' threads may end.
    pub(crate) fn be_silent(&self) {
        self.processor.silent.store(true, Relaxed);
        // A handler that found it clear has ended by now: it ran on this thread.
        compiler_fence(SeqCst);
    }

    /// Whether the ring that is just being sent gets lost (splitmix64, by Vigna).
    fn is_lost(&self) -> bool {
        let one_in = self.machine.config.lose_one_ring_in;
        if one_in == 0 {
            return false;
        }
        let state = self.processor.random.load(Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
        // If a handler sends between the load and this, its ring shares the fate of this one.
        self.processor.random.store(state, Relaxed);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31).is_multiple_of(one_in)
    }

    /// Waits for an interrupt, `limit` at most. Interrupts are disabled, and what is pending has kept; the caller enables
    /// them next.
    pub(crate) fn halt(&self, limit: Duration) {
        self.processor.tallies.halts.add_one();
        // Relaxed: if a bit is missed, its sender unparks afterwards.
        match self.machine.config.delivery {
            Delivery::Polled if self.processor.pending.load(Relaxed) == 0 => thread::park_timeout(limit),
            Delivery::Polled => {}
            Delivery::Signals => signals::sleep_while_nothing_is_pending(self.processor, limit),
        }
    }

    /// One round of a wait.
    pub(crate) fn pause(&self) {
        self.take_pending();
        let pauses = self.processor.pauses.load(Relaxed).wrapping_add(1);
        self.processor.pauses.store(pauses, Relaxed);
        // Where there are fewer processors than CPUs, the one that is waited for may need this one's.
        self.processor.pausing.store(true, Relaxed);
        compiler_fence(SeqCst);
        if self.machine.is_crowded || pauses.is_multiple_of(64) {
            thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
        compiler_fence(SeqCst);
        self.processor.pausing.store(false, Relaxed);
    }

    /// Calls `f` and counts the interrupts that come meanwhile.
    pub(crate) fn watch<R>(&self, f: impl FnOnce() -> R) -> R {
        struct Watched<'a>(&'a AtomicU32);
        impl Drop for Watched<'_> {
            fn drop(&mut self) {
                compiler_fence(SeqCst);
                self.0.store(self.0.load(Relaxed) - 1, Relaxed);
            }
        }
        let depth = &self.processor.watched;
        depth.store(depth.load(Relaxed) + 1, Relaxed);
        let _watched = Watched(depth);
        compiler_fence(SeqCst);
        f()
    }
}

impl Processor {
    /// Makes an interrupt pending, and tells the thread. False if it was pending already: then the thread was told.
    fn raise(&self, bit: u32) -> Result<bool, SendError> {
        // A CPU that has not started yet has no address.
        let address = self.address.get().ok_or(SendError::Unreachable)?;
        // Release: the sender's earlier stores are visible to whoever takes the bit. Acquire: the telling below is not
        // done before it.
        if self.pending.fetch_or(bit, AcqRel) & bit != 0 {
            return Ok(false);
        }
        let told = match address {
            Address::Thread(thread) => {
                thread.unpark();
                Ok(())
            }
            Address::Signals(address) if bit == NMI => signals::send_nmi(address),
            Address::Signals(address) => signals::send_ring(address),
        };
        if told.is_err() {
            // Or nobody would tell it again. Another sender's ring that has merged with this one is lost with it, and
            // repeated like any that is lost.
            self.pending.fetch_and(!bit, Relaxed);
        }
        told.map(|()| true)
    }

    /// Gets the CPU out of its halt.
    pub(crate) fn wake(&self) {
        // A CPU that cannot be told wakes up by itself within a tick.
        let _ = self.raise(WAKE);
    }
}
