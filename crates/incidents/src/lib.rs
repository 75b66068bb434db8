//! The incidents: five ways in which real kernels lost cross-CPU calls, each built twice on the simulated machine.
//!
//! *As then* is a small, faithful re-creation of the algorithm of that day; under the reported fault it must end in
//! the reported state, which is a named predicate on the machine and never a time-out alone. *As now* is the same
//! machine and the same fault on `smpcall`, which must hold its laws.
//!
//! * [`replay()`]: runs one and says what became of it.
//! * [`Incident`], [`When`], [`Options`]: what can be run. [`Replay`]: what is told about it, for people and for programs.
//! * [`Laws`]: how each law is judged from what the run left behind.

mod evidence;
mod incident;
mod laws;
mod lost_call;
mod offline_queue;
mod pending_ipi;
mod replay;
mod stray_eoi;
mod stuck_icr;

pub use incident::{Fault, Incident, Options, ReplayError, UnknownFault, UnknownIncident, When};
pub use laws::{Judgement, Law, Laws};
pub use replay::{Outcome, Replay, replay};
