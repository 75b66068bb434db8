//! The kernel of simulated machines: where their mailboxes are, and what their interrupt handlers do.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use smpcall::{Callback, Crash, CrashNotes, CrossCall, Diagnosis, EventSlot, Kernel, Mailbox, Mailboxes};
use smpcall_machine::{Cpu, Machine as _, Word};

use crate::interrupt::InterruptFrame;
use crate::machine::SimMachine;
use crate::state::{Entered, Shared, expect_current};
use crate::stopping::{self, LockupHooks};

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
    /// A CPU [has crashed](stopping::crash) and won: what it does then, alone. If it returns, the CPU parks.
    pub crashed: Option<fn(Crash<SimMachine>)>,
    /// Every tick looks for lockups; with none of these, not.
    pub lockups: Option<LockupHooks>,
    /// What is to be done when a CPU comes or goes: see [`Hotplug::callbacks`](smpcall::Hotplug::callbacks).
    pub callbacks: &'static [Callback],
}

/// The kernel of one machine.
pub(crate) struct KernelState {
    mailboxes: MailboxMemory,
    hooks: Hooks,
    /// The CPU whose tick looks after those that have none.
    backstop: Cell<Cpu>,
}

impl KernelState {
    /// A kernel with closed mailboxes for this many CPUs.
    pub(crate) fn new(cpus: usize, backstop: Cpu, hooks: Hooks) -> Self {
        Self { mailboxes: MailboxMemory::lease(cpus), hooks, backstop: Cell::new(backstop) }
    }

    pub(crate) fn mailboxes(&self) -> &'static Mailboxes<SimMachine> {
        self.mailboxes.mailboxes
    }

    /// The memory for the notes of a crash: one entry a CPU.
    pub(crate) fn crash_notes(&self) -> &'static [CrashNotes<SimMachine>] {
        self.mailboxes.notes
    }

    pub(crate) fn hooks(&self) -> &Hooks {
        &self.hooks
    }

    /// Another CPU's tick looks after those that have none.
    pub(crate) fn set_backstop(&self, cpu: Cpu) {
        self.backstop.set(cpu);
    }

    /// Of a machine that begins anew.
    pub(crate) fn forget_statistics(&self) {
        // SAFETY: the machine's CPUs run no more, and are started anew before they run again.
        unsafe { self.mailboxes.mailboxes.forget_statistics() };
    }

    /// The statistics of a CPU that decide what it does.
    pub(crate) fn steering(&self, cpu: usize) -> [u64; 6] {
        self.mailboxes.mailboxes.steering_statistics(Cpu::new(cpu as u32))
    }
}

pub(crate) fn kernel() -> Rc<KernelState> {
    let kernel = expect_current().with(|machine| machine.image().kernel.clone());
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
    if SimMachine::current_cpu() == kernel().backstop.get() {
        Calls::backstop();
    }
    stopping::look_for_lockups(&frame);
    // Nothing is held on the stack while the hook runs: the CPU may be stopped in there for ever.
    let hook = kernel().hooks.tick;
    if let Some(hook) = hook {
        hook(&frame);
    }
}

/// The handler of NMIs. In the answer to a probe the line of the source stands for the instruction pointer.
#[allow(clippy::needless_pass_by_value, reason = "a handler is given its frame")]
pub(crate) fn handle_nmi(frame: InterruptFrame) {
    let registers = stopping::interrupted(&frame);
    if Calls::handle_stop(&registers) {
        return;
    }
    Calls::handle_nmi(frame.source.line().into(), frame.interrupts_were_enabled);
    Calls::handle_back_trace(&registers);
}

/// Gives a booted machine, none of whose CPUs runs, its kernel: mailboxes, handlers, hooks. Its CPUs are online
/// afterwards.
pub(crate) fn install(state: Shared, backstop: Cpu, hooks: Hooks) {
    state.with(|machine| {
        let kernel = KernelState::new(machine.cpus.len(), backstop, hooks);
        machine.images[0].kernel = Some(Rc::new(kernel));
        machine.images[0].serve();
    });
    let _entered = Entered::new(state);
    for cpu in 0..state.with(|machine| machine.cpus.len()) {
        if state.with(|machine| machine.cpus[cpu].anew.is_none()) {
            state.with(|machine| machine.running = cpu);
            come_online();
        }
    }
}

/// What each CPU does when it has started, with its APIC enabled: it declares its NMI handler and opens its mailbox.
pub fn come_online() {
    Calls::declare_nmi(true);
    Calls::open();
}

/// The memory behind [`Mailboxes`], which want `'static` references, and that for the notes of a crash. From a pool and
/// back to it.
#[derive(Clone, Copy)]
struct Memory {
    mailboxes: &'static Mailboxes<SimMachine>,
    notes: &'static [CrashNotes<SimMachine>],
}

/// Such memory, until it is dropped.
struct MailboxMemory(Memory);

impl core::ops::Deref for MailboxMemory {
    type Target = Memory;

    fn deref(&self) -> &Memory {
        &self.0
    }
}

thread_local! {
    static POOL: RefCell<Vec<Memory>> = const { RefCell::new(Vec::new()) };
}

impl MailboxMemory {
    fn lease(cpus: usize) -> Self {
        let pooled = POOL.with_borrow_mut(|pool| {
            let at = pool.iter().position(|memory| memory.mailboxes.cpu_count() == cpus)?;
            Some(pool.swap_remove(at))
        });
        Self(pooled.unwrap_or_else(|| {
            let boxes: &'static [_] = Box::leak((0..cpus).map(|_| Mailbox::NEW).collect());
            let words = (0..Mailboxes::<SimMachine>::words_needed(cpus)).map(|_| Word::new(0));
            let events = (0..cpus * EVENTS_PER_CPU).map(|_| EventSlot::NEW);
            let (words, events) = (Box::leak(words.collect()), Box::leak(events.collect()));
            Memory {
                mailboxes: Box::leak(Box::new(Mailboxes::new(boxes, words, events))),
                notes: Box::leak((0..cpus).map(|_| CrashNotes::NEW).collect()),
            }
        }))
    }
}

impl Drop for MailboxMemory {
    fn drop(&mut self) {
        // SAFETY: the machine that had them is gone.
        unsafe {
            self.mailboxes.reset();
            self.notes.iter().for_each(|notes| notes.reset());
        }
        // If the thread ends, so does its pool: the mailboxes are leaked then.
        let _ = POOL.try_with(|pool| pool.borrow_mut().push(self.0));
    }
}
