//! Console logs: what kernels print when CPUs hang, what the tool `crash` prints, what QEMU's monitor prints.
//!
//! A log is read line by line in bounded memory ([`Reader`]), whatever loggers have put around its lines ([`Line`]). What a line
//! says is a [`Record`]. At the end there is evidence like that of any other source, of which most is unknown.
//!
//! Traps that are taken care of: CPUs interleave (kernels that name the caller of each line are read as that many logs); a CPU
//! with interrupts off may stamp its lines with a time that stands still; on arm64 interrupts may be masked by priority alone;
//! that a call "got unstuck" after its IPI was sent again proves nothing.

mod conclude;
mod line;
mod reader;
mod record;
mod scan;
mod snapshot;
#[cfg(test)]
mod tests;
mod trace;

pub use line::{Caller, LONGEST, Line};
pub use reader::Reader;
pub use record::{Record, TargetState, recognise};
