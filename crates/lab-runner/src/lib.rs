//! Builds the lab kernel's image, runs it in an emulator, breaks the machine from outside, and reads what it reports.
//!
//! [`run`] is all that `smpcall lab` does: find QEMU ([`emulator`]) and the image ([`image`]), boot it once for each
//! suite, listen to what it prints ([`line`](mod@line)), freeze a virtual CPU when it asks for that, and judge what came of it
//! ([`report`]). A machine that says nothing new is stopped, and a run that does not end as it should has failed:
//! nothing passes because nobody complained.

mod clock;
mod command_line;
mod debugger;
mod deviations;
pub mod emulator;
mod error;
mod goals;
pub mod image;
pub mod line;
mod options;
mod recorder;
pub mod report;
mod run;
mod suite;
mod vmcore;
mod vmcore_tools;

pub use error::{Error, Misuse, StartError};
pub use options::{Accel, ApicMode, MAX_CPUS, Machine, Options};
pub use run::{Watch, run};
pub use suite::Suite;
