//! The account of one execution, for a reader who has not seen it before: plain data that a machine fills in, and its
//! text.
//!
//! [`Account::text`] has four parts: a table with a row per operation and a column per CPU; who waits for what in the end,
//! and why nobody will wake it; the law that is broken; and the line that replays it. [`Account::picture`] draws the same as
//! SVG. All facts come from the machine. Here they are only laid out and compared: what changed in the interrupt state,
//! who wrote a word last, which message was lost and never sent again.
//!
//! How to read a row: the place in the source, the operation with its memory ordering after a dot (`load.acq`,
//! `swap.acqrel`), the variable, and its value (`= 1`) or the old and the new one (`0 -> 1`). `IF=0`: interrupts are disabled from
//! here; `IRR={0xf0}`, `ISR={}`: what is requested and in service from here. In parentheses stands what happens to
//! a CPU that does nothing itself. `>>` is an interrupt that is taken, `:` stands before what its handler does, `<<` is its
//! return.

use core::sync::atomic::Ordering;

use smpcall_machine::Access;

use super::schedule::Schedule;
use super::system::Violation;

mod ending;
mod picture;
mod rows;
#[cfg(test)]
mod samples;
mod table;
#[cfg(test)]
mod tests;
mod words;

/// What a CPU's interrupt hardware holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterruptState {
    /// Whether maskable interrupts are enabled (IF).
    pub enabled: bool,
    /// The vectors that are requested and not taken (IRR), ascending.
    pub requested: Vec<u8>,
    /// The vectors in service (ISR), ascending.
    pub in_service: Vec<u8>,
    /// Whether an NMI is latched.
    pub nmi: bool,
}

/// What happened in one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Shared memory was accessed.
    Access {
        /// How.
        access: Access,
        /// The name of the word, or of the plain data.
        variable: String,
        /// What was there before. None if it is not known, as for plain data.
        old: Option<u64>,
        /// What is there afterwards. None if it is not known.
        new: Option<u64>,
        /// The memory ordering. None for plain data.
        order: Option<Ordering>,
        /// Whether it is a store that only entered the store buffer (total store order). Then a [flush](Self::Flush)
        /// follows, and `old` is of no meaning.
        buffered: bool,
    },
    /// The oldest store of the store buffer reached memory.
    Flush {
        /// The name of the word.
        variable: String,
        /// What was there before.
        old: Option<u64>,
        /// What is there afterwards.
        new: u64,
    },
    /// A wait ended because its condition holds.
    Woken {
        /// The name of the word.
        variable: String,
        /// What it had to be, in words: `= 0`.
        condition: String,
    },
    /// A wait ended because its deadline has come.
    Expired,
    /// Interrupts were enabled or disabled.
    Interrupts {
        /// Whether they were enabled.
        enabled: bool,
    },
    /// A message left the APIC.
    Send {
        /// The vector; none for an NMI.
        vector: Option<u8>,
        /// The CPUs that it was for.
        targets: Vec<u16>,
        /// Those of them for which it was lost.
        lost: Vec<u16>,
    },
    /// The end of interrupt was written.
    EndOfInterrupt,
    /// An interrupt was taken.
    Enter {
        /// The vector; none for an NMI.
        vector: Option<u8>,
    },
    /// The handler returned.
    Return,
    /// Interrupts were enabled and the CPU halted.
    Halt,
    /// The timer ticked.
    Tick,
    /// A fault keeps the CPU from making another step.
    Wedge,
    /// Something else, in words.
    Other(String),
}

impl Deed {
    /// The name of the word that this reads from memory.
    fn reads(&self) -> Option<&str> {
        match self {
            Self::Access { access, variable, .. }
                if !matches!(access, Access::Store(_) | Access::PlainWrite(_)) =>
            {
                Some(variable)
            }
            Self::Woken { variable, .. } => Some(variable),
            _ => None,
        }
    }

    /// Whether this writes the word with this name: not if it only enters the store buffer, and not if a
    /// compare-exchange fails.
    fn writes(&self, name: &str) -> bool {
        match self {
            Self::Access { access, variable, old, buffered, .. } if variable == name => match access {
                Access::CompareExchange(expected, ..) => *old == Some(*expected),
                access => access.writes() && !buffered,
            },
            Self::Flush { variable, .. } => variable == name,
            _ => false,
        }
    }
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The CPU that performed it.
    pub cpu: u16,
    /// How many handlers were running on it: 0 in the program. An interrupt that is taken and its return have the depth of
    /// what it interrupts.
    pub depth: u8,
    /// Where in the source: `mark.rs:42`. For an interrupt: what it interrupts. May be empty.
    pub source: String,
    /// What happened.
    pub deed: Deed,
    /// The interrupt state of all CPUs afterwards, by their numbers.
    pub after: Vec<InterruptState>,
    /// Whether no other CPU can notice it: neighbours of this kind share a row.
    pub local: bool,
    /// What else is to be said about it.
    pub note: Option<String>,
}

/// What a CPU is about in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It could go on.
    Runs,
    /// It waits for conditions.
    Waits,
    /// It is halted until an interrupt.
    Halts,
    /// A fault keeps it from making a step.
    Wedged,
    /// Its program has ended: it is halted until an interrupt, in its idle loop.
    Ended,
}

/// Who could write a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Writers {
    /// That is not known.
    Unknown,
    /// No CPU, in what is left of its program and its handlers.
    Nobody,
    /// These CPUs.
    Cpus(Vec<u16>),
}

/// A condition that a CPU waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awaited {
    /// The name of the word.
    pub variable: String,
    /// What it has to be, in words: `= 0`.
    pub condition: String,
    /// What it is.
    pub value: u64,
    /// Who could make it so.
    pub writers: Writers,
}

/// How an execution ends for one CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuEnd {
    /// What it is about.
    pub status: Status,
    /// Where it stands in the source. May be empty.
    pub source: String,
    /// What it waits for: one of these would do.
    pub waits_for: Vec<Awaited>,
}

/// How an execution ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The law that is broken.
    pub violation: Violation,
    /// The lines that the violation is about, by their index.
    pub evidence: Vec<usize>,
    /// What each CPU is about, by their numbers.
    pub cpus: Vec<CpuEnd>,
}

/// One execution, to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// What was explored.
    pub title: String,
    /// The interrupt state of all CPUs at the start, by their numbers.
    pub start: Vec<InterruptState>,
    /// The operations, in their order.
    pub lines: Vec<Line>,
    /// What came of them.
    pub ending: Ending,
    /// The decisions that lead there.
    pub schedule: Schedule,
    /// The command that replays it, up to the schedule: `smpcall explore call --drops 1`.
    pub command: String,
}

/// How an account is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// How many columns of text a line may have, 40 at least.
    pub width: usize,
    /// Whether neighbouring lines that are [local](Line::local) share a row.
    pub fold: bool,
}

impl Default for Layout {
    fn default() -> Self {
        Self { width: 100, fold: true }
    }
}

impl Account {
    /// The whole account: table, ending, violation and replay line. ASCII if all names are.
    pub fn text(&self, layout: &Layout) -> String {
        let width = layout.width.max(40);
        let mut text = String::new();
        words::wrap(&mut text, width, "", "  ", &self.title);
        text.push('\n');
        text.push_str(&self.table(layout));
        text.push('\n');
        text.push_str(&self.ending_text(width));
        text.push('\n');
        words::wrap(&mut text, width, "", "  ", &format!("Violation: {}", self.ending.violation));
        // Not wrapped: it is there to be copied.
        text.push_str(&self.replay_line());
        text.push('\n');
        text
    }

    /// The table alone. Rows are numbered as the lines are, from 1.
    pub fn table(&self, layout: &Layout) -> String {
        table::table(self, layout.width.max(40), layout.fold)
    }

    /// Who waits for what, and why nobody will wake it; in lines of at most `width` columns.
    pub fn ending_text(&self, width: usize) -> String {
        ending::text(self, width)
    }

    /// The command that replays the execution.
    pub fn replay_line(&self) -> String {
        format!("Replay: {} --replay '{}'", self.command, self.schedule)
    }

    /// The operations, a line of text for each: the n-th one is row n of the table.
    pub fn operations(&self) -> Vec<String> {
        rows::rows(self, false).iter().map(|row| row.sentence(self)).collect()
    }

    /// The picture, as an SVG 1.1 document: the table with an arrow for each message and for each value that
    /// another CPU has written.
    pub fn picture(&self) -> String {
        picture::draw(self)
    }
}
