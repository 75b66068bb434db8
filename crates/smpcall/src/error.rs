//! What a caller can be told, with the facts in it.

use core::fmt;
use core::time::Duration;

use crate::{Cpu, Machine};

/// What is known of a CPU that did not answer in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TargetState {
    /// Its mailbox is closed.
    Offline,
    /// It runs a closure or post: of this caller, if of one.
    Busy {
        /// Whose call it runs; none for a post.
        caller: Option<Cpu>,
    },
    /// It answered the NMI probe: alive, and interrupts were disabled at this instruction.
    InterruptsDisabled {
        /// The instruction pointer that the NMI interrupted.
        at: u64,
    },
    /// It answered the NMI probe: alive, with interrupts enabled. So the rings got lost, or the handler is not reached.
    NotTaken {
        /// The instruction pointer that the NMI interrupted.
        at: u64,
    },
    /// It did not answer the NMI probe.
    NoSignOfLife,
    /// Nobody probed: the machine has no NMI, the target has not declared that it takes them, or the deadline
    /// left no time (less than two back-offs).
    NotProbed,
}

/// Why a target did not run a call in time, and what was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// What is known of the target.
    pub target: TargetState,
    /// How often the ring was repeated.
    pub rings_repeated: u32,
    /// How long the caller has waited.
    pub waited: Duration,
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.target {
            TargetState::Offline => f.write_str("the target is offline")?,
            TargetState::Busy { caller: Some(caller) } => {
                write!(f, "the target is busy in an earlier call of {caller}")?;
            }
            TargetState::Busy { caller: None } => f.write_str("the target is busy in a post")?,
            TargetState::InterruptsDisabled { at } => {
                write!(f, "the target is alive with interrupts disabled at {at:#x}")?;
            }
            TargetState::NotTaken { at } => {
                write!(
                    f,
                    "the target is alive with interrupts enabled at {at:#x} and has not taken the ring"
                )?;
            }
            TargetState::NoSignOfLife => f.write_str("the target shows no sign of life")?,
            TargetState::NotProbed => f.write_str("the target did not answer and was not probed")?,
        }
        write!(f, " (waited {:?}, ring repeated {} times)", self.waited, self.rings_repeated)
    }
}

/// Why a call was not run, or not finished. Except for [`Unfinished`](CallError::Unfinished),
/// [`Panicked`](CallError::Panicked) and [`TargetDied`](CallError::TargetDied) the closure was not run and never will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallError {
    /// There is no CPU with this number (or the set to choose from is empty).
    NoSuchCpu,
    /// The target's mailbox is closed.
    Offline,
    /// Calls wait, and an NMI handler must not. It can [`post`](crate::CrossCall::post).
    FromNmi,
    /// Interrupts are disabled here: such a caller serves others' closures while it waits, and says so with
    /// [`with_interrupts_off`](crate::Caller::with_interrupts_off).
    InterruptsOff,
    /// All call levels of this CPU were in use until the deadline (without one: for
    /// [`LEVEL_WAIT`](crate::Kernel::LEVEL_WAIT)), or a nested caller is already waiting for one.
    Busy,
    /// This CPU is stopped in a [rendezvous](crate::Caller::rendezvous), and so are all others: nobody would serve it. It can
    /// [`post`](crate::CrossCall::post).
    InRendezvous,
    /// The deadline had passed before anything was sent.
    DeadlinePassed,
    /// Nobody had claimed it by the deadline; it was withdrawn.
    TimedOut(Diagnosis),
    /// The target had claimed it by the deadline and has not finished: it will be run, or is being run.
    /// Only [`call_static`](crate::Caller::call_static) says this.
    Unfinished(Diagnosis),
    /// The closure panicked on the target, which went on panicking.
    Panicked,
    /// The target had claimed it when it was [declared dead](crate::CrossCall::declare_dead): it may have run, in part or
    /// not at all. What it captured and what it would have returned is leaked.
    TargetDied,
    /// A slot for a result is missing: the slice ends before the target's number.
    NoRoomForResult,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchCpu => f.write_str("there is no such CPU"),
            Self::Offline => f.write_str("the target CPU is offline"),
            Self::FromNmi => f.write_str("an NMI handler cannot wait for a call"),
            Self::InterruptsOff => {
                f.write_str("interrupts are disabled: call with the guard that disabled them")
            }
            Self::Busy => f.write_str("all call levels of this CPU are in use"),
            Self::InRendezvous => {
                f.write_str("all CPUs are stopped in a rendezvous: post it, and it is run afterwards")
            }
            Self::DeadlinePassed => f.write_str("the deadline had passed before the call was sent"),
            Self::TimedOut(diagnosis) => write!(f, "timed out: {diagnosis}"),
            Self::Unfinished(diagnosis) => write!(f, "claimed, not finished: {diagnosis}"),
            Self::Panicked => f.write_str("the closure panicked on the target"),
            Self::TargetDied => f.write_str("the target died after it had claimed the call"),
            Self::NoRoomForResult => f.write_str("the results have no room for the target"),
        }
    }
}

impl core::error::Error for CallError {}

/// Why an operation on the whole machine - hotplug, a rendezvous - did not begin. Nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExclusiveError {
    /// It waits, and an NMI handler must not.
    FromNmi,
    /// Interrupts are disabled here, and the caller did not hand in the guard that disabled them.
    InterruptsOff,
    /// This is inside of a closure or post that the CPU serves: the operation could wait for its own end.
    InsideServed,
    /// This CPU has no mailbox.
    NoSuchCpu,
    /// Another such operation, of a task on this CPU, lasted until the deadline.
    HeldBy(Cpu),
}

impl fmt::Display for ExclusiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FromNmi => f.write_str("an NMI handler cannot wait for other CPUs"),
            Self::InterruptsOff => {
                f.write_str("interrupts are disabled: hand in the guard that disabled them, or enable them")
            }
            Self::InsideServed => f.write_str("inside of a served closure: do it from a task"),
            Self::NoSuchCpu => f.write_str("this CPU has no mailbox"),
            Self::HeldBy(cpu) => {
                write!(f, "another operation on the whole machine, of {cpu}, lasted until the deadline")
            }
        }
    }
}

impl core::error::Error for ExclusiveError {}

/// Why a call to many was not run, or not on all.
pub enum ManyError<M: Machine> {
    /// Nothing was sent; the closure was not run anywhere.
    NotSent(CallError),
    /// It was run exactly once on all requested CPUs but these.
    Failed(ManyFailures<M>),
}

/// The CPUs on which a call to many did not end well. The sets are disjoint.
pub struct ManyFailures<M: Machine> {
    /// Offline, or no CPU at all. Not run there.
    pub offline: M::CpuSet,
    /// Unclaimed at the deadline. Not run there.
    pub timed_out: M::CpuSet,
    /// The closure panicked there.
    pub panicked: M::CpuSet,
    /// They had claimed it when they were [declared dead](crate::CrossCall::declare_dead): it may have run there, in part
    /// or not at all.
    pub died: M::CpuSet,
    /// The first of those that timed out, and why.
    pub diagnosis: Option<(Cpu, Diagnosis)>,
}

// Not derived: that would demand the same of the machine.
impl<M: Machine> Clone for ManyFailures<M> {
    fn clone(&self) -> Self {
        Self {
            offline: self.offline.clone(),
            timed_out: self.timed_out.clone(),
            panicked: self.panicked.clone(),
            died: self.died.clone(),
            diagnosis: self.diagnosis,
        }
    }
}

impl<M: Machine> Clone for ManyError<M> {
    fn clone(&self) -> Self {
        match self {
            Self::NotSent(error) => Self::NotSent(*error),
            Self::Failed(failures) => Self::Failed(failures.clone()),
        }
    }
}

impl<M: Machine> fmt::Debug for ManyFailures<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManyFailures")
            .field("offline", &self.offline)
            .field("timed_out", &self.timed_out)
            .field("panicked", &self.panicked)
            .field("died", &self.died)
            .field("diagnosis", &self.diagnosis)
            .finish()
    }
}

impl<M: Machine> fmt::Debug for ManyError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent(error) => f.debug_tuple("NotSent").field(error).finish(),
            Self::Failed(failures) => f.debug_tuple("Failed").field(failures).finish(),
        }
    }
}

impl<M: Machine> fmt::Display for ManyError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent(error) => write!(f, "{error}"),
            Self::Failed(failures) => {
                let ManyFailures { offline, timed_out, panicked, died, diagnosis } = failures;
                write!(f, "offline: {}; timed out: {}; panicked: {}", &**offline, &**timed_out, &**panicked)?;
                if !died.is_empty() {
                    write!(f, "; died: {}", &**died)?;
                }
                match diagnosis {
                    Some((cpu, diagnosis)) => write!(f, "; {cpu}: {diagnosis}"),
                    None => Ok(()),
                }
            }
        }
    }
}

impl<M: Machine> core::error::Error for ManyError<M> {}

/// Why a post was not queued. The handle comes back; nothing will run.
#[derive(Debug)]
pub struct PostError<H> {
    /// The post, as it was handed in.
    pub handle: H,
    /// Why.
    pub reason: PostRefusal,
}

/// Why a post was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostRefusal {
    /// There is no CPU with this number.
    NoSuchCpu,
    /// The target's mailbox is closed.
    Offline,
    /// It is already queued, on another CPU.
    QueuedOn(Cpu),
    /// Another CPU is just queueing it and did not finish within 1 ms (or this is an NMI handler, which must not wait).
    Contended,
}

impl fmt::Display for PostRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchCpu => f.write_str("there is no such CPU"),
            Self::Offline => f.write_str("the target CPU is offline"),
            Self::QueuedOn(cpu) => write!(f, "the post is already queued on {cpu}"),
            Self::Contended => f.write_str("the post is just being queued by another CPU"),
        }
    }
}

impl<H: fmt::Debug> fmt::Display for PostError<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

impl<H: fmt::Debug> core::error::Error for PostError<H> {}
