//! What a machine is to be like: how many CPUs, how they are interrupted, what goes wrong.

use crate::signals;

/// How an inter-processor interrupt reaches its CPU: see the crate's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    Polled,
    Signals,
}

/// What a CPU does when its program has ended and others' have not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Idle {
    /// It sleeps until it is interrupted, after [`may_halt`](smpcall::CrossCall::may_halt).
    #[default]
    Halt,
    /// It polls its mailbox with interrupts disabled, and is not rung.
    Poll,
}

/// The configuration of a machine, and the way to run it.
#[derive(Clone, Debug)]
#[must_use = "a configuration does nothing until it is run"]
pub struct Config {
    pub(crate) cpus: usize,
    pub(crate) delivery: Delivery,
    pub(crate) idle: Idle,
    pub(crate) lose_one_ring_in: u64,
    pub(crate) seed: u64,
    pub(crate) on_nmi: Option<fn()>,
}

impl Config {
    /// The largest number of CPUs.
    pub const MOST_CPUS: usize = 64;

    /// A machine with this many CPUs, polled delivery, halting idle CPUs and no faults.
    ///
    /// # Panics
    /// If there are no CPUs, or more than [`MOST_CPUS`](Self::MOST_CPUS).
    pub const fn new(cpus: usize) -> Self {
        assert!(cpus > 0 && cpus <= Self::MOST_CPUS, "a machine has 1 to 64 CPUs");
        Self {
            cpus,
            delivery: Delivery::Polled,
            idle: Idle::Halt,
            lose_one_ring_in: 0,
            seed: 0,
            on_nmi: None,
        }
    }

    /// Whether this system can deliver interrupts by signals: 64-bit Linux can, but not under Miri.
    pub const fn has_signals() -> bool {
        signals::AVAILABLE
    }

    /// Delivers interrupts by signals: the closures and posts of others run in a signal handler of the target's thread,
    /// which has interrupted it between any two instructions.
    ///
    /// # Safety
    /// Every closure and post that one CPU of this machine sends to another one, and the hook for NMIs, does only
    /// what is async-signal-safe (signal-safety(7)): it does not allocate, free, lock, print or panic, and touches no
    /// thread-local state of the interrupted code. An allocator that is entered twice corrupts memory.
    pub const unsafe fn by_signals(mut self) -> Self {
        self.delivery = Delivery::Signals;
        self
    }

    /// What CPUs do after their programs.
    pub const fn idle(mut self, idle: Idle) -> Self {
        self.idle = idle;
        self
    }

    /// Loses each ring with a chance of one in `n`; none if `n` is 0. The sender is told that it was sent.
    pub const fn lose_one_ring_in(mut self, n: u32) -> Self {
        self.lose_one_ring_in = n as u64;
        self
    }

    /// Seeds the choice of the rings that are lost: the n-th ring of a CPU is lost or not, whatever the timing.
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Called by each CPU when it takes an NMI, in the NMI handler, before the probe is answered. With
    /// signals it may do only what is async-signal-safe.
    pub const fn on_nmi(mut self, hook: fn()) -> Self {
        self.on_nmi = Some(hook);
        self
    }
}
