//! The crash stop: one CPU wins, every CPU that can answer saves its registers, those that cannot are named, and the
//! winner goes on within its limit (law L7).
//!
//! | step | by | how |
//! |---|---|---|
//! | election | every CPU that crashes | one compare-exchange on the machine's `crash` word: 0 to the CPU's number + 1 |
//! | save | every CPU | begins the step in its own word, writes its [notes](CrashNotes), stores `crash_saved` (release) |
//! | stop | the winner | an NMI to every CPU that has declared that it takes them, repeated to those that have not saved |
//! | stopped | a CPU in its NMI handler | finds the `crash` word set to another CPU: saves, parks |
//! | lost | a CPU that crashes too | finds the same: saves, parks; also inside of its NMI handler |
//! | again | the winner crashes inside of its crash stop | goes on with the step after the one that crashed, and waits for nobody |
//!
//! The `crash` word is all that a CPU needs to know that it is to stop, so there is no word for each of them: an NMI
//! for whatever reason stops a CPU once somebody has crashed.
//!
//! **Each step of the winner is begun at most twice**: save, send, name. A word that only this CPU uses says how often each
//! was begun. So a crash in a step has it tried once more - the crash may have come from elsewhere, an NMI handler, and
//! the others must not be left running because of that - and after a second crash in it, it is left out. The CPU
//! parks when it has crashed eight times: each step twice, and its way out.
//!
//! Nothing waits for a lock, and nothing for another CPU without a bound: a crash in a hotplug callback, in a
//! rendezvous or in a served closure is like any other. What the other CPUs had under way stays as it is: a crash stop
//! ends the world, and it is in the dump.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::time::Duration;

use crate::crash_notes::{CrashNotes, own_notes};
use crate::door::OPEN;
use crate::global::{resetter_in, winner_in};
use crate::mailbox::Own;
use crate::{Cpu, CpuMask, CrossCall, Deadline, Instant, Kernel, Mailbox, Mailboxes};
use smpcall_machine::{Awaited, Conditions, CpuSetStorage, EventKind, Ipi, Woken, wait_at_most};
use smpcall_vmcore::{
    Absence, CpuMissing, CpuStopped, CrashSummary, PendingInterrupts, PrStatus, Registers, Role,
};

// The bits of a CPU's `crash_steps`: a step was begun. When it was begun again, the bit `TWICE` times further up.

/// The CPU writes its notes.
const SAVE: u64 = 1 << 0;
/// The winner sends the first NMIs.
const SEND: u64 = 1 << 1;
/// The winner writes down who is missing.
const NAME: u64 = 1 << 2;
/// Where the bits for the second time are.
const TWICE: u64 = 1 << 8;
/// How often the CPU has crashed: in the bits from this one on.
const CRASH: u64 = 1 << 32;

/// How long a reset may take: 10 ms and a little, and twice that to be sure. A crash stop may begin so much later.
const RESET_LIMIT: Duration = Duration::from_millis(25);
/// The same, counted in looks: the clock may stand still.
const RESET_LOOKS: u64 = 1 << 19;

/// A CPU that has crashed more often than this parks.
const MOST_CRASHES: u64 = 8;

/// What a kernel adds to have its CPUs stopped when one of them crashes.
///
/// Its NMI handler begins with [`CrossCall::handle_stop`].
///
/// # Safety
/// 1. [`crash_notes`](CrashStop::crash_notes) returns the same memory at every call, with an entry for each CPU that
///    has a mailbox, which nothing else writes.
/// 2. [`park`](CrashStop::park) never returns, and a CPU that is parked runs nothing but NMI handlers.
pub unsafe trait CrashStop: Kernel {
    /// The time that the winner spends on sending to all others and waiting for them, at most. (What a hypervisor does not
    /// schedule meanwhile is missing.) No send begins later; one that has begun ends by the bound of [`send_many`], and
    /// the last one has a whole round for that.
    ///
    /// [`send_many`]: smpcall_machine::Machine::send_many
    const STOP_LIMIT: Duration = Duration::from_secs(1);

    /// How often the winner looks whether all have saved, at most: the bound that holds if its clock stands still. A look
    /// takes between some 10 ns and some 100 ns, so that the default lasts between a third and three times of the default
    /// limit.
    const STOP_LOOKS: u64 = 1 << 25;

    /// Into how many rounds both are divided. Each begins with an NMI to those that have not saved. At least 1.
    const STOP_ROUNDS: u32 = 4;

    /// The memory for notes, where the capture kernel finds it.
    fn crash_notes() -> &'static [CrashNotes<Self>];

    /// Stops this CPU for ever: interrupts disabled, halted. Called in any context, NMI handlers included.
    fn park() -> !;

    /// The task that this CPU runs, as the kernel counts; 0 for none. Part of the notes. Called in any context.
    fn current_task() -> u32 {
        0
    }
}

/// How a crash stop ended: what the winner goes on with.
///
/// Made on the winner only, which runs alone from then on, except for the CPUs that are [missing](Self::missing).
pub struct Crash<K: CrashStop> {
    /// The CPU that won the election, and runs this.
    pub winner: Cpu,
    /// The CPUs whose registers are saved, the winner among them.
    pub saved: K::CpuSet,
    /// The CPUs that were not offline and have not saved. They may still run.
    pub missing: K::CpuSet,
    /// How many NMIs were asked for (since the last crash, if the winner has crashed again). What the interrupt controller did
    /// not take is among them.
    pub nmis: u32,
    /// How long the winner has waited, by its own clock.
    pub waited: Duration,
    /// The winner has crashed again inside of its crash stop: nobody was waited for any more.
    pub crashed_again: bool,
}

impl<K: CrashStop> Crash<K> {
    /// Why a CPU has not saved; none if it has, or there is no such CPU.
    pub fn why_missing(&self, cpu: Cpu) -> Option<Absence> {
        if self.saved.contains(cpu) {
            return None;
        }
        Some(K::mailboxes().get(cpu)?.absence())
    }

    /// Notes what was pending and in service at the winner's interrupt controller (law L8), for the dump. The last word
    /// counts. Its `cpu` should be the winner.
    pub fn note_pending(&self, pending: PendingInterrupts) {
        note_verdict::<K>(self.winner, |notes| notes.set_pending(pending));
    }
}

impl<K: CrashStop> CrossCall<K> {
    /// This CPU has crashed: stops all others. Returns on the CPU that goes on - to the capture kernel, or to a reset - and
    /// parks every other one that comes here.
    ///
    /// `registers` are those of the crash, from the exception frame or taken by the panic handler: they go into this
    /// CPU's notes. Any context: NMI handlers, closures, callbacks, a crash stop. Interrupts are disabled from here on.
    /// Returns within [`STOP_LIMIT`](CrashStop::STOP_LIMIT) (and up to 25 ms more while another CPU is just being started or
    /// fenced, because nobody may win who is reset then), and within [`STOP_LOOKS`](CrashStop::STOP_LOOKS) even if the
    /// clock stands still. If the winner crashes before it has left the kernel and comes here again, this returns at once,
    /// with what is saved so far. A CPU that crashes for the ninth time parks: then it is the way out that crashes.
    #[cold]
    pub fn crash_stop(registers: &Registers) -> Crash<K> {
        // Never enabled again.
        let _ = K::disable_interrupts();
        let (boxes, me) = (K::mailboxes(), K::current_cpu());
        // Before anything that could crash. Relaxed: see `begins`.
        let crashes = boxes.get(me).map_or(0, |mine| mine.crash_steps.fetch_add(CRASH, Relaxed) / CRASH);
        if crashes >= MOST_CRASHES {
            K::park();
        }
        let mine = u64::from(me.number()) + 1;
        let crash = &boxes.global().crash;
        // AcqRel: a CPU that comes up and the winner do not miss each other, see `has_crashed`. Failure acquires nothing: the winner has told nothing yet.
        loop {
            match crash.compare_exchange(0, mine, AcqRel, Relaxed) {
                Ok(_) => {
                    boxes.trace(me, EventKind::CrashWon, None, 0, registers.rip);
                    return boxes.lead(me, registers, false);
                }
                Err(winner) if winner == mine => {
                    boxes.trace(me, EventKind::CrashedAgain, None, 0, registers.rip);
                    return boxes.lead(me, registers, true);
                }
                Err(found) => {
                    if let Some(resetter) = resetter_in(found) {
                        boxes.await_reset(me, resetter, found);
                        continue;
                    }
                    boxes.trace(me, EventKind::CrashLost, winner_in(found), 0, registers.rip);
                    if boxes.begins(me, SAVE) {
                        boxes.save(me, registers, Role::Loser);
                    }
                    K::park()
                }
            }
        }
    }

    /// The NMI handler's first act: if another CPU has crashed, saves `registers` - what the NMI interrupted - and parks.
    /// Otherwise returns whether the NMI is explained (it was the winner's, and this CPU was just parking itself): the
    /// handler is to return then.
    #[inline]
    pub fn handle_stop(registers: &Registers) -> bool {
        let boxes = K::mailboxes();
        // Relaxed: the number says nothing about other data, and the winner's store is visible before its NMI is taken.
        let winner = winner_in(boxes.global().crash.load(Relaxed));
        let me = K::current_cpu();
        if winner.is_none_or(|winner| winner == me) {
            return false;
        }
        Self::stop_here(boxes, me, registers)
    }

    #[cold]
    fn stop_here(boxes: &'static Mailboxes<K>, me: Cpu, registers: &Registers) -> bool {
        // If this NMI has interrupted a loser that saves itself, that goes on and parks. A handler beside it would write
        // the same notes.
        if !boxes.begins(me, SAVE) {
            return true;
        }
        boxes.save(me, registers, Role::Stopped);
        K::park()
    }

    /// Whether a CPU has crashed and the others are to stop. A CPU that comes up asks after it has declared that it takes
    /// NMIs, and parks if so: the winner may have found that it takes none.
    pub fn has_crashed() -> bool {
        K::mailboxes().has_crashed()
    }
}

impl<K: Kernel> Mailboxes<K> {
    /// See [`CrossCall::has_crashed`].
    pub(crate) fn has_crashed(&self) -> bool {
        // AcqRel, and a write: it comes before the winner's exchange, which then acquires this CPU's declaration, or after
        // it and finds the winner. A load could overtake the declaration.
        winner_in(self.global().crash.fetch_or(0, AcqRel)).is_some()
    }

    /// A CPU that has crashed waits until another one has reset whom it resets - perhaps this one - or for so long that it
    /// has crashed itself. A CPU that crashes while it resets waits for nobody.
    fn await_reset(&self, me: Cpu, resetter: Cpu, held: u64) {
        let crash = &self.global().crash;
        if resetter != me {
            let deadline = Deadline::within::<K>(RESET_LIMIT);
            let _ = wait_at_most::<K>(&[crash.differs(!0, held)], deadline, RESET_LOOKS);
        }
        // Relaxed: the election follows.
        let _ = crash.compare_exchange(held, 0, Relaxed, Relaxed);
    }
}

impl<K: CrashStop> Mailboxes<K> {
    /// Whether a step of this CPU, which was not begun yet, begins now.
    fn begins(&self, me: Cpu, step: u64) -> bool {
        // Relaxed: this decides between contexts of one CPU, each of which has interrupted the one before.
        self.get(me).is_none_or(|mine| mine.crash_steps.fetch_or(step, Relaxed) & step == 0)
    }

    /// Whether a step of the winner begins now: for the first or second time.
    fn tries(&self, me: Cpu, step: u64) -> bool {
        self.begins(me, step) || self.begins(me, step * TWICE)
    }

    /// Writes the notes of this CPU.
    fn save(&self, me: Cpu, registers: &Registers, role: Role) {
        let time = K::now();
        let status = PrStatus { pid: K::current_task(), registers: *registers };
        let in_nmi = role != Role::Stopped && K::in_nmi();
        let stopped = CpuStopped { cpu: me.number(), role, in_nmi, time: time.as_nanos() };
        if let Some(notes) = K::crash_notes().get(me.index()) {
            // SAFETY: they are this CPU's, and if another context of it was writing them, that never goes on.
            unsafe { notes.own.write(own_notes(&status, stopped)) };
        }
        if let Some(mine) = self.get(me) {
            // Release: the notes, to the winner and to whoever runs after it.
            mine.crash_saved.store(1, Release);
        }
        self.trace(me, EventKind::CrashSaved, None, role as usize, registers.rip);
    }

    /// The winner's steps; `again` if it has crashed in one of them, or on its way out.
    fn lead(&self, me: Cpu, registers: &Registers, again: bool) -> Crash<K> {
        const { assert!(K::STOP_ROUNDS > 0, "a crash stop without a round stops nobody") }
        let started = K::now();
        let saved = self.get(me).is_some_and(Mailbox::has_saved);
        // The registers of the first crash are worth more than those of a later one.
        if !saved && self.tries(me, SAVE) {
            self.save(me, registers, Role::Winner);
        }
        let mut nmis = 0;
        if self.tries(me, SEND) {
            let rounds = if again { 1 } else { K::STOP_ROUNDS };
            for round in 1..=rounds {
                // From the beginning of them all, and not from the send on: an interrupt controller that stays busy takes its
                // time in each round, and that comes out of the round.
                let ends = started.plus(K::STOP_LIMIT / K::STOP_ROUNDS * round);
                if round > 1 && K::now() >= ends {
                    continue;
                }
                let sent = self.send_stop(me);
                nmis += sent.len() as u32;
                if again || self.have_saved(&sent, Deadline::at(ends)) {
                    break;
                }
            }
        }
        let mut crash = self.result(me, nmis, K::now().since(started));
        crash.crashed_again = again;
        if self.tries(me, NAME) {
            self.name_missing(&crash, started);
        }
        crash
    }

    /// Sends an NMI to all that have not saved; returns to whom.
    fn send_stop(&self, me: Cpu) -> K::CpuSet {
        let unsaved = self.unsaved(me);
        if !unsaved.is_empty() {
            self.trace(me, EventKind::StopSent, None, 0, unsaved.len() as u64);
            let sent = K::send_many(&unsaved, Ipi::Probe);
            self.note_ring(me, None, sent);
        }
        unsaved
    }

    /// Waits for one round until these CPUs have saved; returns whether they have.
    fn have_saved(&self, cpus: &CpuMask, deadline: Deadline) -> bool {
        let looks = K::STOP_LOOKS / u64::from(K::STOP_ROUNDS);
        let all = AllSaved { boxes: self, cpus };
        cpus.is_empty() || wait_at_most::<K>(&all, deadline, looks) != Woken::Deadline
    }

    /// The others that an NMI can stop and that have not saved.
    fn unsaved(&self, me: Cpu) -> K::CpuSet {
        let mut unsaved = <K::CpuSet as CpuSetStorage>::EMPTY;
        for cpu in self.cpus().filter(|&cpu| cpu != me) {
            let Some(theirs) = self.get(cpu) else { continue };
            // Acquire: the handler that was declared is in place.
            if K::HAS_NMI && theirs.takes_nmi.load(Acquire) != 0 && !theirs.has_saved() {
                unsaved.insert(cpu);
            }
        }
        unsaved
    }

    /// Who has saved, and who is missing.
    fn result(&self, me: Cpu, nmis: u32, waited: Duration) -> Crash<K> {
        let mut saved = <K::CpuSet as CpuSetStorage>::EMPTY;
        let mut missing = <K::CpuSet as CpuSetStorage>::EMPTY;
        for cpu in self.cpus() {
            let Some(theirs) = self.get(cpu) else { continue };
            if theirs.has_saved() {
                saved.insert(cpu);
            } else if cpu == me || theirs.absence() != Absence::Offline {
                missing.insert(cpu);
            }
        }
        Crash { winner: me, saved, missing, nmis, waited, crashed_again: false }
    }

    /// Writes down who is missing, and how it went.
    fn name_missing(&self, crash: &Crash<K>, started: Instant) {
        let me = crash.winner;
        for cpu in &*crash.missing {
            self.trace(me, EventKind::CrashMissing, Some(cpu), 0, 0);
            if let Some(why) = crash.why_missing(cpu) {
                note_verdict::<K>(cpu, |notes| notes.set_missing(CpuMissing { cpu: cpu.number(), why }));
            }
        }
        let (saved, missing) = (crash.saved.len(), crash.missing.len());
        let summary = CrashSummary {
            winner: me.number(),
            expected: (saved + missing) as u32,
            saved: saved as u32,
            nmis: crash.nmis,
            crashed_again: u32::from(crash.crashed_again),
            time: started.as_nanos(),
            waited: crash.waited.as_nanos() as u64,
        };
        note_verdict::<K>(me, |notes| notes.set_summary(summary));
        self.trace(me, EventKind::CrashStopped, None, missing, saved as u64);
    }
}

impl<K: Kernel> Mailbox<K> {
    fn has_saved(&self) -> bool {
        // Acquire: with the notes.
        self.crash_saved.load(Acquire) != 0
    }

    /// Why this CPU has not saved, as far as others know. A report: it decides nothing.
    fn absence(&self) -> Absence {
        let open = self.door.0.load(Relaxed) & OPEN != 0;
        if self.takes_nmi.load(Relaxed) == 0 {
            return if open { Absence::TakesNoNmi } else { Absence::Offline };
        }
        let own = &self.own.0;
        match own.running.get() {
            0 => {}
            Own::POST_RUNS => return Absence::Busy { caller: None },
            caller => return Absence::Busy { caller: Some(caller as u32 - 1) },
        }
        match own.last_answer() {
            None => Absence::NoSignOfLife,
            Some((at, true)) => Absence::InterruptsEnabled { at },
            Some((at, false)) => Absence::InterruptsDisabled { at },
        }
    }
}

/// Changes what the winner has to say about a CPU.
fn note_verdict<K: CrashStop>(cpu: Cpu, change: impl FnOnce(&mut crate::crash_notes::Verdict)) {
    if let Some(notes) = K::crash_notes().get(cpu.index()) {
        // SAFETY: written by the winner only, of which there is one. If it has crashed in the middle of this, that context
        // never goes on.
        unsafe {
            let mut verdict = notes.verdict.read();
            change(&mut verdict);
            notes.verdict.write(verdict);
        }
    }
}

/// All these CPUs have saved.
struct AllSaved<'a, K: Kernel> {
    boxes: &'a Mailboxes<K>,
    cpus: &'a CpuMask,
}

impl<K: Kernel> Conditions for AllSaved<'_, K> {
    fn first_met(&self) -> Option<usize> {
        let saved = |cpu| self.boxes.get(cpu).is_none_or(Mailbox::has_saved);
        self.cpus.iter().all(saved).then_some(0)
    }

    fn describe(&self, see: &mut dyn FnMut(Awaited)) {
        for theirs in self.cpus.iter().filter_map(|cpu| self.boxes.get(cpu)) {
            let location = theirs.crash_saved.location();
            see(Awaited { location, mask: !0, value: 1, equal: true });
        }
    }
}
