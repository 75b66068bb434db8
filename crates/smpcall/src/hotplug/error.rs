//! Why a CPU did not come or go.

use core::fmt;
use core::time::Duration;

use super::Life;
use crate::{Diagnosis, ExclusiveError};
use smpcall_machine::SendError;

/// A callback's refusal, with a reason of the kernel's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Refused(pub u32);

/// The part of a [`Callback`](super::Callback) that refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Before the CPU was started.
    Prepare,
    /// On the new CPU, before its mailbox opened.
    Starting,
    /// The new CPU served calls.
    Online,
    /// Before the CPU went.
    Offline,
}

/// Why a CPU could not be stopped for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FenceError {
    /// The machine has no means to stop another CPU.
    Unsupported,
    /// The message that stops it was not sent.
    NotSent(SendError),
    /// It was sent, and the CPU runs all the same.
    NotStopped,
}

impl fmt::Display for FenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported => f.write_str("this machine cannot stop another CPU"),
            Self::NotSent(error) => write!(f, "the message that stops it was not sent: {error}"),
            Self::NotStopped => f.write_str("it was told to stop and has not"),
        }
    }
}

impl core::error::Error for FenceError {}

/// Why a CPU did not come or go. Unless it says otherwise, everything is as it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HotplugError {
    /// The right to change the set of CPUs was not to be had.
    Exclusive(ExclusiveError),
    /// There is no CPU with this number.
    NoSuchCpu,
    /// It is online.
    AlreadyOnline,
    /// It is offline.
    AlreadyOffline,
    /// A CPU cannot take itself down: another one has to.
    OneSelf,
    /// Without it no CPU would be online.
    LastOnline,
    /// It is the boot CPU, which this machine keeps.
    BootCpu,
    /// A callback refused. What had been done was taken back, in reverse order.
    Callback {
        /// Its name.
        name: &'static str,
        /// Its part.
        stage: Stage,
        /// Its reason.
        refused: Refused,
        /// Whether that is all. Otherwise the CPU could not be taken down again in time: it serves calls, and is
        /// [`Up`](Life::Up) or further down.
        taken_back: bool,
    },
    /// The start-up message was not sent. Should the CPU come all the same, it parks.
    NotStarted(SendError),
    /// The CPU had not come by the deadline. Should it come, it parks.
    NotCome {
        /// How long the controller has waited.
        waited: Duration,
    },
    /// The CPU did not go by the deadline: it was not idle, or does not answer. It stays online.
    TimedOut(Diagnosis),
    /// At the deadline the CPU was here, on the way that it had begun: it goes on. The next operation on it takes up
    /// from there.
    Unfinished(Life),
    /// A CPU that may still run could not be fenced. Nothing of what it holds was touched: a machine that cannot
    /// fence cannot reclaim what a CPU has claimed.
    Fence(FenceError),
    /// It was to be declared dead, and it answered.
    IsAlive,
    /// A CPU has crashed: nobody is started or fenced any more.
    Crashing,
}

impl fmt::Display for HotplugError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exclusive(error) => write!(f, "{error}"),
            Self::NoSuchCpu => f.write_str("there is no such CPU"),
            Self::AlreadyOnline => f.write_str("the CPU is online"),
            Self::AlreadyOffline => f.write_str("the CPU is offline"),
            Self::OneSelf => f.write_str("a CPU cannot take itself down: do it from another one"),
            Self::LastOnline => f.write_str("no other CPU is online"),
            Self::BootCpu => f.write_str("this machine keeps its boot CPU"),
            Self::Callback { name, stage, refused, taken_back } => {
                write!(f, "{name} refused at stage {stage:?} with reason {}", refused.0)?;
                if !taken_back {
                    f.write_str("; the CPU could not be taken down again in time and serves calls")?;
                }
                Ok(())
            }
            Self::NotStarted(error) => write!(f, "the CPU was not started: {error}"),
            Self::NotCome { waited } => write!(f, "the CPU had not come after {waited:?}"),
            Self::TimedOut(diagnosis) => write!(f, "the CPU did not go offline: {diagnosis}"),
            Self::Unfinished(life) => {
                write!(f, "the CPU was {life:?} at the deadline and goes on: try again later")
            }
            Self::Fence(error) => write!(f, "the CPU may still run: {error}"),
            Self::Crashing => f.write_str("a CPU has crashed: no other one is started or fenced any more"),
            Self::IsAlive => f.write_str("the CPU is alive: it answered"),
        }
    }
}

impl core::error::Error for HotplugError {}

impl From<ExclusiveError> for HotplugError {
    fn from(error: ExclusiveError) -> Self {
        Self::Exclusive(error)
    }
}
