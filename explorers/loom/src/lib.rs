//! The shipping mailbox under loom: small scenarios, in every interleaving and with every reordering of C11 that loom
//! knows. What the project's own explorer covers ends at x86-TSO; this begins there.
//!
//! * [`LoomMemory`]: the seam [`Memory`](smpcall_machine::Memory), answered by loom's atomics.
//! * [`Threads`]: a machine whose CPUs are loom's threads and whose interrupts are polled.
//! * [`explore`]: explores a [`Scenario`]; [`scenarios::ALL`] are the ones there are.
//!
//! # What loom's memory model is
//! * Loads may return old values, within coherence and happens-before; compare-exchanges do not fail spuriously.
//! * Sequentially consistent *accesses* are acquire-release ones: weaker than what ships. What holds here holds the more
//!   with the real ordering. [`SeqCst::Fenced`] puts a sequentially consistent fence before and after each of them,
//!   which is stronger than what ships.
//! * No load is satisfied by a store that comes later in program order: no "load buffering".
//! * Of each word, the last seven stores can be read.
//! * Waits spin and yield, because parking would make happens-before of its own and so hide a missing release.
//!
//! # What is not covered
//! Interrupts are taken where a wait pauses and where interrupts are enabled again, not between any two instructions: that
//! is the explorer's part. With a bound on pre-emptions, schedules beyond it are not seen.

mod exploration;
mod machine;
mod memory;
pub mod scenarios;

pub use exploration::{Bound, Exploration, Limits, Scenario, explore};
pub use machine::Threads;
pub use memory::{LoomMemory, SeqCst, Weakening};
