//! The explorer: every schedule of the code that ships, on a small machine, interrupts included.
//!
//! A [`Protocol`] is a few programs for the CPUs of a simulated machine, and what must hold at the end. At each moment
//! every CPU offers [choices](choice): to execute its next operation, to take an interrupt or an NMI before it, to lose
//! a message that it sends, to end its wait by the deadline, to let a store leave its store buffer, to tick, to be wedged.
//! An engine tries them all: [`states`] remembers states, [`dpor`] reduces by what commutes and counts classes of
//! happens-before exactly, others draw schedules of machines that are too big. [`run::explore`] does
//! it.
//!
//! Time passes when nobody can move: then the wait with the earliest deadline ends. If that happens again and
//! again, or there is no such wait, the machine hangs: that is a violation, not a time-out. And if nothing was lost
//! and no deadline was forced, nobody in a [prompt](Protocol::prompt) protocol may have to wait for time at all: a ring
//! is missing then, and only the recovery ladder hides it (law L2: the count of interrupts is part of the law).
//!
//! # What is done at once
//! Some operations no other CPU can notice, and no interrupt of the own CPU can come between them and the one before
//! with any effect: enabling interrupts, writing an end of interrupt, reading the own APIC's identifier; plain data, if
//! [races](Setup::races) are looked for and no interrupt can come; and words that only one context of one CPU ever
//! touches. Which words those are, and which CPUs take interrupts, is learned on the way: when something turns out
//! otherwise, the exploration begins again.
//!
//! # Memory
//! Sequential consistency, or [x86-TSO](MemoryModel::Tso): stores wait in a buffer of their CPU and reach memory in order;
//! locked instructions, fences and writes of an xAPIC's registers wait until it is empty, writes of x2APIC registers
//! do not; taking an interrupt and returning from it do not either (an `IRET` does, on most processors; who relies on
//! that is not covered). In both, accesses to plain data are checked for races, by happens-before as C11 defines it:
//! only a release that is acquired orders anything. What C11 allows beyond that - a relaxed load that returns an old
//! value, on machines that are weaker than x86 - is not explored.
//!
//! A store to memory that does not outlive the execution (a word on a program's stack) is not buffered: it waits until the
//! buffer is empty, as a fence would. From CPU 15 on, CPUs are not told apart when races are looked for.
//!
//! # What it does not see
//! Messages that are late or come twice: a message is accepted in the step that sends it (but nobody needs to take the
//! interrupt soon). What happens between two operations of one CPU is one step. A program that computes for ever without
//! any operation does not come back.

pub mod choice;
pub mod dpor;
pub mod footprint;
pub mod machine;
pub mod minimise;
pub mod note;
pub mod pct;
pub mod protocols;
pub mod random;
pub mod report;
pub mod run;
mod sampling;
pub mod scenario;
pub mod schedule;
mod seen;
pub mod small;
pub mod states;
pub mod story;
pub mod system;
#[doc(hidden)]
pub mod toy;
mod watch;

pub use machine::Setup;
pub use note::Note;
pub use run::{Engine, Plan, explore};
pub use scenario::{Bounds, MemoryModel, Protocol, Scenario};
pub use system::Violation;
