//! Hotplug: CPUs come and go, and no call, post or ring is lost or left over when they do (law L5).
//!
//! A CPU is offline or online, as the door of its mailbox says; on the way its *life* word says where. Each arrow is
//! one atomic step, or a store by the only CPU that may make it:
//!
//! | from | to | by | how |
//! |---|---|---|---|
//! | settled, offline | `STARTING` | controller | `prepare` callbacks, then store, then the start-up message |
//! | `STARTING` | `ALIVE` | new CPU | compare-exchange: it has come in time |
//! | `STARTING` | `LATE` | controller | compare-exchange: it has not; `prepare` is taken back |
//! | `LATE` | settled, offline | new CPU | compare-exchange, then it parks; or the controller fences it |
//! | `ALIVE` | `UP` | new CPU | `starting` callbacks, NMI declared, mailbox opened, then store |
//! | `ALIVE` | `FAILED` | new CPU | a `starting` callback refused: taken back, then store, then it parks |
//! | `FAILED` | settled, offline | controller | `prepare` is taken back |
//! | `UP` | settled, online | controller | `online` callbacks |
//! | settled or `UP` | `ASKED` | controller | `offline` callbacks, then store, then an empty call |
//! | `ASKED` | `DYING` | dying CPU | compare-exchange, in its idle loop |
//! | `ASKED` | settled or `UP` | controller | compare-exchange at its deadline: withdrawn; `offline` is taken back |
//! | `DYING` | `PARKED` | dying CPU | `dying` callbacks, mailbox closed and emptied, then store, then it parks |
//! | `PARKED` | settled, offline | controller | what was left listed is taken over; `dead` callbacks |
//! | any with a mailbox | `FENCED` | controller | [`declare_dead`](CrossCall::declare_dead): the CPU was fenced |
//! | `FENCED` | settled, offline | controller | what it had accepted, and what it had called, is settled; `dead` |
//!
//! Calls to a new CPU work from its opening on, before its `online` callbacks have run: these may call it. The controller
//! is whoever holds the one right to change the set of CPUs; it waits for it, serving, and with a deadline. A
//! deadline that passes after the other CPU has begun its part is not made up for: the controller leaves, is told
//! [`Unfinished`](HotplugError::Unfinished), and the next operation on this CPU goes on from where its life stands.
//!
//! # Caveats
//! * A controller that dies in the middle takes the right with it until it is declared dead: see
//!   [`Exclusive`](crate::global::Exclusive), also for what a controller may serve.
//! * What a CPU that is declared dead had begun to run is lost with it, and so may be a shared post that it was just pushing
//!   ([`Contended`](crate::PostRefusal::Contended) for ever): see [`declare_dead`](CrossCall::declare_dead).

use core::sync::atomic::Ordering::{Acquire, Relaxed};

use crate::door::OPEN;
use crate::{Cpu, CrossCall, Kernel, Mailbox};
use smpcall_machine::SendError;

mod control;
mod down;
mod error;
mod fence;
mod up;

pub use error::{FenceError, HotplugError, Refused, Stage};

/// Offline or online, as the door says: nothing is under way.
const SETTLED: u64 = 0;
const STARTING: u64 = 1;
const ALIVE: u64 = 2;
const UP: u64 = 3;
/// A `starting` callback refused: its index and its reason are in the upper bits.
const FAILED: u64 = 4;
const LATE: u64 = 5;
const ASKED: u64 = 6;
const DYING: u64 = 7;
const PARKED: u64 = 8;
const FENCED: u64 = 9;
/// The bits of a life word that say which of these.
const PHASE: u64 = 0xff;
const INDEX_SHIFT: u32 = 8;
const INDEX: u64 = 0xff_ffff;
const REASON_SHIFT: u32 = 32;

/// Where a CPU is between offline and online. See [`CrossCall::life`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Life {
    /// Its mailbox is closed, and nobody brings it up.
    Offline,
    /// It was started and has not come yet.
    Starting,
    /// It has come and runs its `starting` callbacks.
    Alive,
    /// It serves calls; its `online` callbacks have not run.
    Up,
    /// One of its `starting` callbacks refused, and it has parked; `prepare` is not taken back yet.
    Failed,
    /// It had not come by the deadline. It parks if it comes.
    Late,
    /// Online.
    Online,
    /// It was asked to go offline.
    Asked,
    /// It is going offline.
    Dying,
    /// It has closed its mailbox and parked; its `dead` callbacks have not run.
    Parked,
    /// It was fenced; what it had accepted is being settled.
    Fenced,
}

/// What a kernel does when a CPU comes or goes: its parts that are not none. `Callback { online: Some(f),
/// ..Callback::named("timers") }`.
///
/// The parts are told the CPU that comes or goes. `prepare`, `online`, `offline` and `dead` run on the controlling CPU,
/// in task context; `starting` and `dying` on the CPU itself, with interrupts disabled, where they must neither wait nor
/// call. On the way up callbacks run in the order of [`Hotplug::callbacks`], all of a stage before the next; on the
/// way down in reverse.
#[derive(Clone, Copy, Debug)]
pub struct Callback {
    /// What it is for: part of errors.
    pub name: &'static str,
    /// Before the CPU is started: allocate what it needs. Taken back by `dead`.
    pub prepare: Option<fn(Cpu) -> Result<(), Refused>>,
    /// On the new CPU, before its mailbox opens. Taken back by `dying`.
    pub starting: Option<fn(Cpu) -> Result<(), Refused>>,
    /// The new CPU serves calls. Taken back by `offline`.
    pub online: Option<fn(Cpu) -> Result<(), Refused>>,
    /// Before the CPU goes: move away what it holds. Taken back by `online`. When it takes back an `online` itself, it
    /// cannot refuse: what it returns is ignored.
    pub offline: Option<fn(Cpu) -> Result<(), Refused>>,
    /// On the CPU that goes, before its mailbox closes.
    pub dying: Option<fn(Cpu)>,
    /// The CPU is parked, or was fenced: then its `offline` and `dying` may not have run.
    pub dead: Option<fn(Cpu)>,
}

impl Callback {
    /// A callback that does nothing.
    pub const fn named(name: &'static str) -> Self {
        Self { name, prepare: None, starting: None, online: None, offline: None, dying: None, dead: None }
    }
}

/// A kernel whose CPUs come and go.
///
/// # Safety
/// 1. When [`fence`](Hotplug::fence) has returned `Ok`, that CPU executes nothing until it is started again, and what it
///    had stored before happens before the return.
/// 2. [`start_cpu`](Hotplug::start_cpu) resets the CPU that it starts: it runs nothing else any more.
/// 3. [`park`](Hotplug::park) does not return, and touches nothing of the mailboxes.
pub unsafe trait Hotplug: Kernel {
    /// Whether the boot CPU may go offline. (On x86 its INIT restarts the machine, and firmware may count on it.)
    const BOOT_CPU_MAY_GO: bool = false;

    /// What is to be done when a CPU comes or goes, in the order of bringing up: the same at every call, at most 16
    /// million.
    fn callbacks() -> &'static [Callback];

    /// The CPU that the machine booted on. It is never started or fenced.
    fn boot_cpu() -> Cpu;

    /// Starts a CPU that is parked, fenced or was never started (INIT, SIPI, SIPI). Its start-up code ends in
    /// [`CrossCall::start_here`]. Does not wait for it.
    ///
    /// # Errors
    /// [`SendError`]: a message was not sent. The CPU may come all the same.
    fn start_cpu(cpu: Cpu) -> Result<(), SendError>;

    /// Parks this CPU, with interrupts disabled, until it is started again.
    fn park() -> !;

    /// Makes sure that another CPU, which is not the boot CPU, executes nothing more (INIT, or a hypervisor's word). Called with
    /// interrupts disabled, or enabled.
    ///
    /// # Errors
    /// [`FenceError`]: it may still run.
    fn fence(cpu: Cpu) -> Result<(), FenceError>;
}

impl<K: Kernel> CrossCall<K> {
    /// Where a CPU is between offline and online, at this moment; none if there is no such CPU.
    pub fn life(cpu: Cpu) -> Option<Life> {
        K::mailboxes().get(cpu).map(Mailbox::life)
    }
}

impl<K: Kernel> Mailbox<K> {
    /// Where this CPU is between offline and online.
    pub(crate) fn life(&self) -> Life {
        // Acquire: who is seen to have come has opened its mailbox before. Old by the time it is used, otherwise.
        match self.life.load(Acquire) & PHASE {
            SETTLED if self.door.0.load(Relaxed) & OPEN != 0 => Life::Online,
            SETTLED => Life::Offline,
            STARTING => Life::Starting,
            ALIVE => Life::Alive,
            UP => Life::Up,
            FAILED => Life::Failed,
            LATE => Life::Late,
            ASKED => Life::Asked,
            DYING => Life::Dying,
            PARKED => Life::Parked,
            _ => Life::Fenced,
        }
    }

    /// Whether its mailbox may open or close by itself, although nobody controls it at this moment: what a controller that
    /// left at its deadline has begun. With the right to change the set of CPUs.
    pub(crate) fn is_changing(&self) -> bool {
        matches!(self.life(), Life::Alive | Life::Asked | Life::Dying)
    }
}
