//! The kernel of simulated machines: where their mailboxes are, and what their interrupt handlers do.

use std::cell::RefCell;
use std::rc::Rc;

use smpcall::{CrossCall, Diagnosis, EventSlot, Kernel, Mailbox, Mailboxes};
use smpcall_machine::{Cpu, Machine as _, Word};

use crate::interrupt::InterruptFrame;
use crate::machine::{RING_VECTOR, SimMachine, TIMER_VECTOR};
use crate::state::{Entered, Shared, expect_current};

/// Cross-CPU calls on the machine that this thread simulates.
pub type Calls = CrossCall<SimMachine>;

/// Events that each CPU's own ring holds.
pub const EVENTS_PER_CPU: usize = 64;

/// What a machine's kernel does beyond the protocol. A copy is part of the machine's state.
#[derive(Clone, Copy, Default)]
pub struct Hooks {
    /// A deadline has passed on a claimed call: see [`Kernel::overdue`].
    pub overdue: Option<fn(Option<Cpu>, &Diagnosis)>,
    /// A reschedule request was taken: see [`Kernel::reschedule`].
    pub reschedule: Option<fn()>,
    /// The timer has ticked; the mailbox was served.
    pub tick: Option<fn(&InterruptFrame)>,
}

/// The kernel of one machine.
pub(crate) struct KernelState {
    mailboxes: MailboxMemory,
    hooks: Hooks,
    /// The CPU whose tick looks after those that have none.
    backstop: Cpu,
}

impl KernelState {
    /// A kernel with closed mailboxes for this many CPUs.
    pub(crate) fn new(cpus: usize, backstop: Cpu, hooks: Hooks) -> Self {
        Self { mailboxes: MailboxMemory::lease(cpus), hooks, backstop }
    }

    pub(crate) fn mailboxes(&self) -> &'static Mailboxes<SimMachine> {
        self.mailboxes.mailboxes
    }

    /// Of a machine that begins anew.
    pub(crate) fn forget_statistics(&self) {
        // SAFETY: the machine's CPUs run no more, and are started anew before they run again.
        unsafe { self.mailboxes.mailboxes.forget_statistics() };
    }

    /// The statistics of a CPU that decide what it does.
    pub(crate) fn steering(&self, cpu: usize) -> [u64; 3] {
        self.mailboxes.mailboxes.steering_statistics(Cpu::new(cpu as u32))
    }
}

fn kernel() -> Rc<KernelState> {
    let kernel = expect_current().with(|machine| machine.kernel.clone());
    kernel.expect("the machine was given a kernel (World::with_kernel) before its programs call")
}

// SAFETY: 1. A machine's mailboxes are set once, before any of its CPUs runs, and are leased from a pool: no other
// machine has them at the same time. 2. Both are called by the handlers below, for interrupts that are taken while
// they are enabled.
unsafe impl Kernel for SimMachine {
    fn mailboxes() -> &'static Mailboxes<Self> {
        kernel().mailboxes()
    }

    fn reschedule() {
        if let Some(hook) = kernel().hooks.reschedule {
            hook();
        }
    }

    fn overdue(target: Option<Cpu>, diagnosis: &Diagnosis) {
        if let Some(hook) = kernel().hooks.overdue {
            hook(target, diagnosis);
        }
    }
}

/// The handler of rings. The end of interrupt comes first: a ring that arrives during the pass pends.
pub(crate) fn handle_ring(mut frame: InterruptFrame) {
    frame.end_of_interrupt();
    Calls::handle_ring();
}

/// The handler of the timer.
pub(crate) fn handle_tick(mut frame: InterruptFrame) {
    frame.end_of_interrupt();
    Calls::tick();
    if SimMachine::current_cpu() == kernel().backstop {
        Calls::backstop();
    }
    if let Some(hook) = kernel().hooks.tick {
        hook(&frame);
    }
}

/// The handler of NMIs. The line of the source stands for the instruction pointer, which a simulated CPU has not.
#[allow(clippy::needless_pass_by_value, reason = "a handler is given its frame")]
pub(crate) fn handle_nmi(frame: InterruptFrame) {
    Calls::handle_nmi(frame.source.line().into(), frame.interrupts_were_enabled);
}

/// Gives a booted machine, none of whose CPUs runs, its kernel: mailboxes, handlers, hooks. Its CPUs are online
/// afterwards.
pub(crate) fn install(state: Shared, backstop: Cpu, hooks: Hooks) {
    state.with(|machine| {
        machine.kernel = Some(Rc::new(KernelState::new(machine.cpus.len(), backstop, hooks)));
        machine.handlers[RING_VECTOR as usize] = Some(handle_ring);
        machine.handlers[TIMER_VECTOR as usize] = Some(handle_tick);
        machine.nmi_handler = Some(handle_nmi);
    });
    start_cpus(state);
}

/// What each CPU does when it starts: it declares its NMI handler and opens its mailbox.
pub(crate) fn start_cpus(state: Shared) {
    let _entered = Entered::new(state);
    for cpu in 0..state.with(|machine| machine.cpus.len()) {
        state.with(|machine| machine.running = cpu);
        Calls::declare_nmi(true);
        Calls::open();
    }
}

/// The memory behind [`Mailboxes`], which want `'static` references. From a pool and back to it.
struct MailboxMemory {
    mailboxes: &'static Mailboxes<SimMachine>,
}

thread_local! {
    static POOL: RefCell<Vec<&'static Mailboxes<SimMachine>>> = const { RefCell::new(Vec::new()) };
}

impl MailboxMemory {
    fn lease(cpus: usize) -> Self {
        let pooled = POOL.with_borrow_mut(|pool| {
            let at = pool.iter().position(|mailboxes| mailboxes.cpu_count() == cpus)?;
            Some(pool.swap_remove(at))
        });
        let mailboxes = pooled.unwrap_or_else(|| {
            let boxes: &'static [_] = Box::leak((0..cpus).map(|_| Mailbox::NEW).collect());
            let words = (0..Mailboxes::<SimMachine>::words_needed(cpus)).map(|_| Word::new(0));
            let events = (0..cpus * EVENTS_PER_CPU).map(|_| EventSlot::NEW);
            let (words, events) = (Box::leak(words.collect()), Box::leak(events.collect()));
            Box::leak(Box::new(Mailboxes::new(boxes, words, events)))
        });
        Self { mailboxes }
    }
}

impl Drop for MailboxMemory {
    fn drop(&mut self) {
        // SAFETY: the machine that had them is gone.
        unsafe { self.mailboxes.reset() };
        // If the thread ends, so does its pool: the mailboxes are leaked then.
        let _ = POOL.try_with(|pool| pool.borrow_mut().push(self.mailboxes));
    }
}
