//! A multiprocessor made of host threads: each thread is a CPU, and the protocol of `smpcall` runs between them as it
//! does between the CPUs of a kernel.
//!
//! [`Config::run`] starts the CPUs, runs a program on each, keeps those whose program has ended serving calls until
//! all have ended, and returns the programs' results with everything that was counted.
//!
//! ```
//! use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
//! use std::time::Duration;
//!
//! use smpcall::{Cpu, Deferred, Post};
//! use smpcall_host::{Calls, Config, Host};
//!
//! struct Note;
//!
//! static NOTES: AtomicU64 = AtomicU64::new(0);
//! static NOTE: Post<Host, Note> = Post::new(Note);
//!
//! impl Deferred<Host> for Note {
//!     type Handle = &'static Post<Host, Self>;
//!
//!     fn run(_: Self::Handle) {
//!         NOTES.fetch_add(1, Relaxed);
//!     }
//! }
//!
//! let limit = Duration::from_secs(10);
//! let visits = AtomicU64::new(0);
//! let run = Config::new(3).run(|cpu| {
//!     if cpu != Cpu::new(0) {
//!         return None;
//!     }
//!     // A call: the closure borrows from this stack, runs on CPU 1, and returns a value.
//!     let mut sum = 40;
//!     let result = Calls::within(limit).call(Cpu::new(1), || {
//!         sum += 2;
//!         sum
//!     });
//!     // A post: nobody waits for it.
//!     Calls::post::<Note>(Cpu::new(2), &NOTE).expect("CPU 2 is online");
//!     // A call to all, this CPU included.
//!     Calls::within(limit)
//!         .call_all(|_| {
//!             visits.fetch_add(1, Relaxed);
//!         })
//!         .expect("all are online and answer");
//!     Some(result)
//! });
//! assert_eq!(run.results[0], Some(Ok(42)));
//! assert_eq!(visits.load(Relaxed), 3);
//! assert_eq!(NOTES.load(Relaxed), 1);
//! assert_eq!(run.total(|counters| &counters.posts_run), 1);
//! ```
//!
//! # Two forms of delivery
//! * Polled, the default: an interrupt is a bit, which its CPU looks at when it enables interrupts, at each
//!   pause of a wait, while it is idle, and in [`poll_interrupts`]. Closures run as ordinary code of the thread.
//!   It is the form for Miri, for `ThreadSanitizer`, and for examples.
//! * [By signals](Config::by_signals), on Linux: an interrupt is the same bit and a signal to the thread, whose handler
//!   takes it between any two instructions. **Closures and posts then run in a signal handler**, and may do only what
//!   is async-signal-safe (signal-safety(7)): no allocation, no lock, no output. A kernel's interrupt handlers may do
//!   no more. Nobody can check it, so asking for this form is unsafe.
//!
//! Interrupts are disabled by a flag of the CPU. A signal that finds it set returns at once; the bit stays, and the
//! interrupt is taken when interrupts are enabled. So disabling costs no system call.
//!
//! # What differs from a kernel
//! * No timer: an idle CPU looks at its mailbox every millisecond, a busy one does not. A post whose ring got lost
//!   waits until its CPU is idle, is rung for something else, or polls.
//! * A closure or post that panics is caught where the interrupt was taken. Its caller is told; [`Config::run`] goes on
//!   panicking when all programs have ended, as it does for a program that panics.
//! * Machines are independent of each other; any number may run at a time. A static [`Post`](smpcall::Post) belongs to
//!   one machine at a time.

mod config;
mod context;
mod counts;
mod machine;
mod pool;
mod run;
#[cfg(all(target_os = "linux", target_pointer_width = "64", not(miri)))]
mod signals;
#[cfg(not(all(target_os = "linux", target_pointer_width = "64", not(miri))))]
#[path = "no_signals.rs"]
mod signals;

pub use config::{Config, Idle};
pub use counts::InterruptCounts;
pub use machine::{Host, halt, poll_interrupts, watch};
pub use run::Run;

/// Cross-CPU calls on the machine that the current thread is a CPU of. On other threads all of its functions panic.
pub type Calls = smpcall::CrossCall<Host>;
