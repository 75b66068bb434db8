//! What is known of calls and posts.

use core::fmt;

use serde::Serialize;

/// How far a call has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CallState {
    /// Handed over; the target has not taken it.
    Queued,
    /// The target has taken it and has not finished it.
    Claimed,
    /// It was run.
    Finished,
}

/// What kind of work a descriptor on a call queue stands for.
///
/// Source: the flag types of Linux since 5.8, `include/linux/smp_types.h` (facts only).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CallKind {
    /// Somebody may wait for it.
    Sync,
    /// Nobody waits for it.
    Async,
    /// An `irq_work`, which travels on the same queue.
    IrqWork,
    /// A wake-up of a task on the target CPU.
    Wakeup,
}

impl fmt::Display for CallKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Sync => "SYNC",
            Self::Async => "ASYNC",
            Self::IrqWork => "IRQ_WORK",
            Self::Wakeup => "TTWU",
        })
    }
}

/// Where the descriptor of a call lies. It tells who made the call where nothing else does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Descriptor {
    /// Its address.
    #[serde(serialize_with = "crate::verdict::hexadecimal_number")]
    pub address: u64,
    /// In whose memory.
    pub home: Home,
    /// Its flags as they were read.
    pub flags: u32,
}

/// In whose memory a descriptor lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "in")]
pub enum Home {
    /// On the stack of the task that this CPU runs.
    StackOf {
        /// Which CPU.
        cpu: u32,
    },
    /// On the stack of a task that no CPU runs.
    SleepingTask {
        /// Which task, for people: name and number.
        task: String,
    },
    /// In memory that belongs to this CPU.
    PerCpu {
        /// Which CPU.
        cpu: u32,
        /// The variable, if known: `cfd_data`, `csd_data`.
        variable: Option<String>,
    },
    /// In memory of its own: static, or allocated.
    Elsewhere {
        /// The symbol, if it has one.
        symbol: Option<String>,
    },
}

impl fmt::Display for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StackOf { cpu } => write!(f, "on the stack of CPU {cpu}"),
            Self::SleepingTask { task } => write!(f, "on the stack of {task}, which runs nowhere"),
            Self::PerCpu { cpu, variable: Some(variable) } => write!(f, "in {variable} of CPU {cpu}"),
            Self::PerCpu { cpu, variable: None } => write!(f, "in memory of CPU {cpu}"),
            Self::Elsewhere { symbol: Some(symbol) } => write!(f, "in {symbol}"),
            Self::Elsewhere { symbol: None } => f.write_str("in memory of its own"),
        }
    }
}

/// What is known about a call or post to one CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallEvidence {
    /// Who made it; `None` if unknown.
    pub caller: Option<u32>,
    /// Who is to run it.
    pub target: u32,
    /// How far it has got.
    pub state: CallState,
    /// Whether its caller waits for it: true for calls, false for posts.
    pub waited: bool,
    /// What is to be run.
    pub function: Option<String>,
    /// Whether the target's mailbox shows it: for Linux, whether it is linked into the target's queue.
    pub marked: Option<bool>,
    /// Whether an IPI was sent for it, or for an earlier one that lies before it.
    pub rung: Option<bool>,
    /// How long ago it was made, in nanoseconds.
    pub nanos: Option<u64>,
    /// How its target and state are known, if they are inferred.
    pub inferred: Option<String>,
    /// If its target is inferred: of how many CPUs that come into question this is one. Zero: the target is known.
    pub candidates: usize,
    /// What kind of work it is, if known.
    pub kind: Option<CallKind>,
    /// Where its descriptor lies.
    pub descriptor: Option<Descriptor>,
    /// It cannot be older than this, in nanoseconds: for instance because its caller was somewhere else then.
    pub nanos_at_most: Option<u64>,
    /// It may have been made just now: its age was looked for and is not known, and nothing says that it is older than an IPI
    /// takes.
    pub perhaps_fresh: bool,
    /// How often its caller has sent the IPI again.
    pub rung_again: Option<u64>,
    /// Whether its target has taken a ring after the one for this call was sent.
    pub ring_taken: Option<bool>,
    /// That it came to an end after all, later: after how many nanoseconds altogether, if known.
    pub ended: Option<Ended>,
}

/// A wait that was overdue has come to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// After how many nanoseconds altogether, if known.
    pub after_nanos: Option<u64>,
    /// Whether the IPI had been sent again before. That proves nothing by itself: whatever held the target up may have ended.
    pub rung_again: bool,
}

impl CallEvidence {
    /// A call that `caller` waits for and `target` has not taken; the rest is unknown.
    pub fn queued(caller: u32, target: u32) -> Self {
        Self { caller: Some(caller), waited: true, ..Self::post(target) }
    }

    /// A post that `target` has not taken; the rest is unknown.
    pub fn post(target: u32) -> Self {
        Self {
            caller: None,
            target,
            state: CallState::Queued,
            waited: false,
            function: None,
            marked: None,
            rung: None,
            nanos: None,
            inferred: None,
            candidates: 0,
            kind: None,
            descriptor: None,
            nanos_at_most: None,
            perhaps_fresh: false,
            rung_again: None,
            ring_taken: None,
            ended: None,
        }
    }
}

/// A call to several CPUs that kept counts only, as Linux did up to 2.6.26: which target is missing is not recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CountedCall {
    /// Who made it.
    pub caller: u32,
    /// Who is to run it.
    pub targets: Vec<u32>,
    /// How many have taken it.
    pub started: usize,
    /// How many have finished it.
    pub finished: usize,
    /// What is to be run.
    pub function: Option<String>,
    /// How long ago it was made, in nanoseconds.
    pub nanos: Option<u64>,
}
