//! The deliberate faults that are tried on every change: what each is, where, and which exploration kills it.

use smpcall_simulator::explorer::MemoryModel::{self, Sc, Tso};
use smpcall_simulator::mutant::Fault::{
    self, Finds, NotAtomic, NotDisabled, NotFenced, NotSent, NotWaited, NotWritten, RegisterNotWritten,
    RegisterReads, RegisterWrittenTwice, Relaxed, SentTwice, Unconditional, Writes,
};
use smpcall_simulator::mutant::Mutant;

use super::code;

/// A deliberate fault, and who finds it.
pub(crate) struct Named {
    /// What it means.
    pub(crate) what: &'static str,
    file: &'static str,
    snippet: &'static str,
    /// What the operation does instead.
    pub(crate) fault: Fault,
    /// The protocol that kills it.
    pub(crate) by: &'static str,
    /// On which memory.
    pub(crate) memory: MemoryModel,
}

impl Named {
    /// The fault in the operation that contains the snippet.
    pub(crate) fn mutant(&self) -> Mutant {
        let (path, text) = code::file(self.file);
        Mutant::at(path, text, self.snippet, self.fault)
    }

    /// Whether it is in what a call, a post or a single interrupt goes through, and not in what takes many steps before it
    /// begins: deferred work, CPUs that come, go or die, a rendezvous, a crash stop.
    pub(crate) fn is_of_calls(&self) -> bool {
        const LONGER: [&str; 7] = ["work", "hotplug", "rendezvous", "crash", "lockup", "global", "dead"];
        !LONGER.iter().any(|part| self.file.contains(part) || self.by.contains(part))
    }

    /// Where it is.
    pub(crate) fn place(&self) -> String {
        format!("{}:{}", self.file, self.mutant().line())
    }
}

const fn sc(
    what: &'static str,
    file: &'static str,
    snippet: &'static str,
    fault: Fault,
    by: &'static str,
) -> Named {
    Named { what, file, snippet, fault, by, memory: Sc }
}

/// The state word of an empty list, to whoever looks whether it holds posts.
const EMPTY_LIST: u64 = 1;
const OPEN: u64 = 1 << 0;
const OPEN_ATTENDED: u64 = 0b11;
/// A door that is open and marked by CPU 2.
const MARKED: u64 = 1 << 18 | OPEN;

/// A target word in which CPU 1 may claim the call, and nobody is waited for.
const CLAIM_OF_CPU_1: u64 = 1 << 1;

/// All of them.
pub(crate) const ALL: &[Named] = &[
    // A call: from the slot to the ring.
    sc("a call is queued without a release", "call.rs", "store(queued, Release)", Relaxed, "deadline-static"),
    sc("a call is not queued", "call.rs", "store(queued, Release)", NotWritten, "static-call"),
    sc("a state names another target", "call.rs", "store(queued, Release)", Writes(0x201), "static-call"),
    sc(
        "a slot is used again before it is free",
        "caller.rs",
        "self.states.0[level].load(Acquire) == EMPTY)",
        Finds(0),
        "deadline-static",
    ),
    sc(
        "interrupts between mark and ring",
        "caller.rs",
        "let pinned = InterruptsOff::new();",
        NotDisabled,
        "interrupted-caller",
    ),
    sc("a mark is not set", "mark.rs", "self.door.0.fetch_or(bit, SeqCst)", NotWritten, "static-call"),
    sc("a mark is not atomic", "mark.rs", "self.door.0.fetch_or(bit, SeqCst)", NotAtomic, "twice"),
    sc(
        "a quiet mailbox is taken for a noticed one",
        "mark.rs",
        "self.door.0.fetch_or(bit, SeqCst)",
        Finds(OPEN_ATTENDED),
        "static-call",
    ),
    sc(
        "a noticed mailbox is taken for a quiet one",
        "mark.rs",
        "self.door.0.fetch_or(bit, SeqCst)",
        Finds(OPEN),
        "attended-pass",
    ),
    sc("a leaf is not marked", "mark.rs", "leaf.fetch_or(bit, SeqCst);", NotWritten, "leaves"),
    sc("a leaf is not atomic", "mark.rs", "leaf.fetch_or(bit, SeqCst);", NotAtomic, "leaves-two"),
    sc(
        "a caller believes that its group is marked",
        "mark.rs",
        "let door = mailbox.door.0.load(SeqCst);",
        Finds(1 << 16 | OPEN),
        "leaves",
    ),
    sc(
        "what a pass has taken is not given back before a closure waits",
        "serve.rs",
        "self.mine.door.0.fetch_or(groups, SeqCst)",
        NotWritten,
        "served-waits",
    ),
    sc("a pass overlooks a leaf", "serve.rs", "leaves[index].swap(0, SeqCst)", Finds(0), "leaves"),
    sc("the first ring is not sent", "mark.rs", "K::send(target, Ipi::Ring)", NotSent, "static-call"),
    sc("the first ring is sent twice", "mark.rs", "K::send(target, Ipi::Ring)", SentTwice, "rung-once"),
    sc(
        "the rings of a call to many are not sent",
        "mark.rs",
        "K::send_many(targets, Ipi::Ring)",
        NotSent,
        "many",
    ),
    // The ladder.
    sc("a lost ring is not repeated", "ladder.rs", "K::send(first, Ipi::Ring)", NotSent, "rung-again"),
    sc(
        "an unanswered mark is taken for an answered one",
        "mark.rs",
        "mailbox.door.0.load(SeqCst) & (place.group",
        Finds(OPEN),
        "rung-again",
    ),
    sc(
        "an answered mark is rung for again",
        "mark.rs",
        "mailbox.door.0.load(SeqCst) & (place.group",
        Finds(MARKED),
        "answered",
    ),
    // The wait, the deadline and the end of a call.
    sc("a call is not waited for", "pending.rs", "self.here.wait_serving(", NotWaited, "static-call"),
    sc("a wait acquires nothing", "pending.rs", "self.here.wait_serving(", Relaxed, "static-call"),
    sc(
        "a withdrawal is not atomic",
        "pending.rs",
        "compare_exchange(self.queued, EMPTY, Release, Acquire)",
        NotAtomic,
        "given-up",
    ),
    sc(
        "a withdrawal takes what was claimed",
        "pending.rs",
        "compare_exchange(self.queued, EMPTY, Release, Acquire)",
        Unconditional,
        "given-up",
    ),
    sc(
        "a withdrawal is not written",
        "pending.rs",
        "compare_exchange(self.queued, EMPTY, Release, Acquire)",
        NotWritten,
        "given-up",
    ),
    sc(
        "a call that was left behind is not noted",
        "pending.rs",
        "left_behind.fetch_or(1 << self.level, Release)",
        NotWritten,
        "left-behind",
    ),
    sc(
        "a level is not waited for",
        "caller.rs",
        "wait::<K>(&[free(0), free(1), free(2), free(3), another_left], limit)",
        NotWaited,
        "left-behind",
    ),
    // A pass.
    sc(
        "a pass does not take its marks in one step",
        "serve.rs",
        "self.mine.door.0.swap(OPEN | ATTENDED, SeqCst)",
        NotAtomic,
        "two-callers",
    ),
    sc(
        "a handler takes a marked door for a quiet one",
        "serve.rs",
        "let door = self.mine.door.0.load(Relaxed);\n        // Closed: this is",
        Finds(OPEN),
        "static-call",
    ),
    sc("a pass overlooks a call", "serve.rs", "        state.load(Acquire)\n", Finds(0), "static-call"),
    sc(
        "a claim acquires nothing",
        "serve.rs",
        "state.compare_exchange(seen, in_phase(seen, CLAIMED), Acquire, Acquire)",
        Relaxed,
        "deadline-static",
    ),
    sc(
        "a claim is not atomic",
        "serve.rs",
        "state.compare_exchange(seen, in_phase(seen, CLAIMED), Acquire, Acquire)",
        NotAtomic,
        "given-up",
    ),
    sc(
        "a claim takes what was withdrawn",
        "serve.rs",
        "state.compare_exchange(seen, in_phase(seen, CLAIMED), Acquire, Acquire)",
        Unconditional,
        "given-up",
    ),
    sc(
        "a claim is not written",
        "serve.rs",
        "state.compare_exchange(seen, in_phase(seen, CLAIMED), Acquire, Acquire)",
        NotWritten,
        "given-up",
    ),
    sc(
        "a call is done without a release",
        "serve.rs",
        "Completion::One(state) => state.store(",
        Relaxed,
        "static-call",
    ),
    sc(
        "a call is not said to be done",
        "serve.rs",
        "Completion::One(state) => state.store(",
        NotWritten,
        "static-call",
    ),
    sc(
        "a call that was run is said to have panicked",
        "serve.rs",
        "Completion::One(state) => state.store(",
        Writes(5),
        "static-call",
    ),
    sc(
        "a target frees the slot of the call that it has run",
        "serve.rs",
        "Completion::One(state) => state.store(",
        Writes(0),
        "static-call",
    ),
    sc(
        "posts before a call are not looked for",
        "lists.rs",
        "link_at(self.posts.0.load(Relaxed)).is_some()",
        Finds(EMPTY_LIST),
        "stale-mark-post",
    ),
    // Attendance.
    sc(
        "a waiter that polls does not attend",
        "attend.rs",
        "here.mine.door.0.fetch_or(ATTENDED, Relaxed)",
        NotWritten,
        "attended-wait",
    ),
    sc(
        "the end of an attendance overlooks marks",
        "attend.rs",
        "compare_exchange(OPEN | ATTENDED, OPEN, Relaxed, Relaxed)",
        Unconditional,
        "twice",
    ),
    sc(
        "the end of an attendance is not atomic",
        "attend.rs",
        "compare_exchange(OPEN | ATTENDED, OPEN, Relaxed, Relaxed)",
        NotAtomic,
        "twice",
    ),
    sc(
        "a handler's attendance does not end",
        "attend.rs",
        "compare_exchange(OPEN | ATTENDED, OPEN, Relaxed, Relaxed)",
        NotWritten,
        "twice",
    ),
    sc(
        "a waiter's attendance does not end",
        "attend.rs",
        "let door = self.here.mine.door.0.fetch_and(!ATTENDED, Relaxed)",
        NotWritten,
        "mutual-polling",
    ),
    sc(
        "a waiter leaves marks that nobody rang for",
        "attend.rs",
        "let door = self.here.mine.door.0.fetch_and(!ATTENDED, Relaxed)",
        Finds(OPEN_ATTENDED),
        "mutual-polling",
    ),
    // Calls to many.
    sc(
        "targets are published without a release",
        "many.rs",
        ".store(claims | claims << TARGETS_PER_WORD, Release);",
        Relaxed,
        "many-deadline-one",
    ),
    sc(
        "targets are not published",
        "many.rs",
        ".store(claims | claims << TARGETS_PER_WORD, Release);",
        NotWritten,
        "visible-to-many",
    ),
    sc(
        "targets are published without their pending bits",
        "many.rs",
        ".store(claims | claims << TARGETS_PER_WORD, Release);",
        Writes(CLAIM_OF_CPU_1),
        "visible-to-many",
    ),
    sc(
        "a pass overlooks a claim bit",
        "serve.rs",
        "word.load(Acquire) & claim == 0",
        Finds(0),
        "visible-to-many",
    ),
    sc(
        "a claim bit is not atomic",
        "serve.rs",
        "word.fetch_and(!claim, Acquire) & claim == 0",
        NotAtomic,
        "given-up-many",
    ),
    sc(
        "a claim bit stays set",
        "serve.rs",
        "word.fetch_and(!claim, Acquire) & claim == 0",
        NotWritten,
        "many-deadline-one",
    ),
    sc(
        "a target finishes without a release",
        "serve.rs",
        "word.fetch_and(!bits.high, Release);",
        Relaxed,
        "visible-to-many",
    ),
    sc("a pending bit is not atomic", "serve.rs", "word.fetch_and(!bits.high, Release);", NotAtomic, "many"),
    sc(
        "a pending bit stays set",
        "serve.rs",
        "word.fetch_and(!bits.high, Release);",
        NotWritten,
        "visible-to-many",
    ),
    sc(
        "a call to many is not waited for",
        "many.rs",
        "wait_serving(finished, poll, until)",
        NotWaited,
        "given-up-many",
    ),
    sc(
        "a wait for many acquires nothing",
        "many.rs",
        "wait_serving(finished, poll, until)",
        Relaxed,
        "visible-to-many",
    ),
    sc(
        "a withdrawal from one of many is not atomic",
        "many.rs",
        "compare_exchange(seen, withdrawn, Relaxed, Relaxed)",
        NotAtomic,
        "given-up-many",
    ),
    sc(
        "a withdrawal from one of many is not written",
        "many.rs",
        "compare_exchange(seen, withdrawn, Relaxed, Relaxed)",
        NotWritten,
        "many-deadline-one",
    ),
    // Hotplug.
    sc(
        "a late CPU comes all the same",
        "hotplug/up.rs",
        "compare_exchange(STARTING, ALIVE, Acquire, Relaxed)",
        Unconditional,
        "up-late",
    ),
    sc(
        "a CPU does not say that it has come",
        "hotplug/up.rs",
        "life.store(UP, Release)",
        NotWritten,
        "up-late",
    ),
    sc(
        "a CPU goes although the question was withdrawn",
        "hotplug/down.rs",
        "compare_exchange(ASKED, DYING, Acquire, Relaxed)",
        Unconditional,
        "down",
    ),
    sc(
        "going is not atomic",
        "hotplug/down.rs",
        "compare_exchange(ASKED, DYING, Acquire, Relaxed)",
        NotAtomic,
        "down",
    ),
    sc(
        "a CPU does not say that it has gone",
        "hotplug/down.rs",
        "life.store(PARKED, Release)",
        NotWritten,
        "down",
    ),
    sc(
        "a controller's withdrawal is not atomic",
        "hotplug/control.rs",
        "compare_exchange(from, to, Release, Acquire)",
        NotAtomic,
        "down",
    ),
    sc(
        "a controller's withdrawal is not written",
        "hotplug/control.rs",
        "compare_exchange(from, to, Release, Acquire)",
        NotWritten,
        "down",
    ),
    sc(
        "two controllers at once",
        "global.rs",
        "compare_exchange(0, u64::from(here.me.number()) + 1, Acquire, Relaxed)",
        NotAtomic,
        "down-twice",
    ),
    sc(
        "a controller keeps the others out",
        "global.rs",
        "exclusive.store(0, Release)",
        NotWritten,
        "down-twice",
    ),
    sc(
        "a fenced CPU's mailbox stays open",
        "hotplug/fence.rs",
        "self.theirs.door.0.swap(0, SeqCst)",
        NotWritten,
        "dead-call",
    ),
    sc(
        "a call that a dead CPU has claimed is not ended",
        "hotplug/fence.rs",
        "compare_exchange(seen, end, Release, Relaxed)",
        NotWritten,
        "dead-call",
    ),
    sc(
        "a dead target of many is still waited for",
        "hotplug/fence.rs",
        "word.fetch_and(!bits.high, Release)",
        NotWritten,
        "dead-many",
    ),
    sc(
        "nobody notes that a target of many died",
        "serve.rs",
        "has_outcomes.store(1, Relaxed)",
        NotWritten,
        "dead-many",
    ),
    sc(
        "a dead CPU's own call is not withdrawn",
        "hotplug/fence.rs",
        "compare_exchange(seen, EMPTY, Release, Relaxed)",
        NotWritten,
        "dead-caller",
    ),
    // Posts.
    sc(
        "a push is not atomic",
        "post.rs",
        "compare_exchange(head, link.as_ptr(), AcqRel, Relaxed)",
        NotAtomic,
        "close-post",
    ),
    sc(
        "a push is not written",
        "post.rs",
        "compare_exchange(head, link.as_ptr(), AcqRel, Relaxed)",
        NotWritten,
        "posted-twice",
    ),
    sc(
        "a push opens a closed list",
        "post.rs",
        "compare_exchange(head, link.as_ptr(), AcqRel, Relaxed)",
        Unconditional,
        "close-post",
    ),
    sc(
        "a post does not reach the backlog",
        "lists.rs",
        "end.store(newer, Release);",
        NotWritten,
        "posted-twice",
    ),
    sc(
        "a post in the backlog is overlooked",
        "lists.rs",
        "NonNull::new(self.backlog.load(Relaxed))\n",
        Finds(0),
        "posted-twice",
    ),
    sc(
        "a post is not linked to the next",
        "post.rs",
        "node.older.store(head, Relaxed);",
        Writes(EMPTY_LIST),
        "posted-two",
    ),
    sc(
        "an open list is taken for a closed one",
        "post.rs",
        "let mut head = theirs.posts.0.load(Relaxed);",
        Finds(0),
        "posted-twice",
    ),
    sc(
        "a post is listed whatever became of it",
        "post.rs",
        "node.state.compare_exchange(pushing, listed_on(target), Release, Relaxed)",
        Unconditional,
        "close-posts",
    ),
    sc(
        "a post stays queued when it is run",
        "post.rs",
        "node.state.swap(IDLE, AcqRel);",
        NotWritten,
        "posted-twice",
    ),
    sc(
        "a refused post stays taken",
        "post.rs",
        "node.state.store(IDLE, Release);",
        NotWritten,
        "close-posts",
    ),
    sc(
        "posts stay on the list when they are taken",
        "lists.rs",
        "compare_exchange(newest, leave, AcqRel, Relaxed)",
        NotWritten,
        "posted-twice",
    ),
    sc(
        "taking posts is not atomic",
        "lists.rs",
        "compare_exchange(newest, leave, AcqRel, Relaxed)",
        NotAtomic,
        "posted-two",
    ),
    // Opening and closing.
    sc(
        "a door is not opened again",
        "open.rs",
        "here.mine.door.0.store(OPEN, SeqCst);",
        NotWritten,
        "close-open-post",
    ),
    sc(
        "a door is not closed",
        "open.rs",
        "let taken = here.mine.door.0.swap(0, SeqCst);",
        NotWritten,
        "down",
    ),
    sc(
        "closing a door is not atomic",
        "open.rs",
        "let taken = here.mine.door.0.swap(0, SeqCst);",
        NotAtomic,
        "close",
    ),
    sc(
        "a closing door forgets its marks",
        "open.rs",
        "let taken = here.mine.door.0.swap(0, SeqCst);",
        Finds(OPEN),
        "close",
    ),
    sc(
        "a list is not closed",
        "lists.rs",
        "compare_exchange(newest, leave, AcqRel, Relaxed)",
        NotWritten,
        "close-post",
    ),
    sc(
        "a list is left open",
        "lists.rs",
        "compare_exchange(newest, leave, AcqRel, Relaxed)",
        Writes(EMPTY_LIST),
        "close-post",
    ),
    // The driver of the local APIC.
    sc(
        "no end of interrupt",
        "driver.rs",
        "self.access.write(Register::END_OF_INTERRUPT, 0);",
        RegisterNotWritten,
        "handlers-nest",
    ),
    sc(
        "two ends of one interrupt",
        "driver.rs",
        "self.access.write(Register::END_OF_INTERRUPT, 0);",
        RegisterWrittenTwice,
        "handlers-nest",
    ),
    sc(
        "a drain that leaves interrupts enabled",
        "hand_over.rs",
        "let _ = M::disable_interrupts();",
        NotDisabled,
        "hand-over",
    ),
    sc(
        "a gate that ends nothing",
        "inert_gates.rs",
        "apic.access.write(Register::END_OF_INTERRUPT, 0);",
        RegisterNotWritten,
        "hand-over",
    ),
    sc(
        "a command without its destination",
        "send.rs",
        "self.access.write(Register::ICR_HIGH, (command >> 32) as u32);",
        RegisterNotWritten,
        "send-in-nmi",
    ),
    sc(
        "a command is not written",
        "send.rs",
        "self.access.write(Register::ICR_LOW, command as u32);",
        RegisterNotWritten,
        "send-in-nmi",
    ),
    sc(
        "a command is written twice",
        "send.rs",
        "self.access.write(Register::ICR_LOW, command as u32);",
        RegisterWrittenTwice,
        "send-in-nmi",
    ),
    sc(
        "interrupts between the words of a command",
        "send.rs",
        "let interrupts_off = InterruptsOff::<M>::new();\n                let idle",
        NotDisabled,
        "send-in-handler",
    ),
    sc(
        "an NMI handler does not put the destination back",
        "send.rs",
        "self.access.write(Register::ICR_HIGH, interrupted);",
        RegisterNotWritten,
        "send-in-nmi",
    ),
    sc(
        "an NMI handler puts another destination back",
        "send.rs",
        "let interrupted = self.access.read(Register::ICR_HIGH)",
        RegisterReads(0),
        "send-in-nmi",
    ),
    sc(
        "a busy controller is ignored",
        "idle.rs",
        "access.read(Register::ICR_LOW) & Icr::SEND_PENDING == 0",
        RegisterReads(0),
        "controller-busy",
    ),
    sc(
        "a busy controller is not waited for",
        "idle.rs",
        "wait_at_most::<M>(&Predicate(|| is_idle(access)), deadline, looks)",
        NotWaited,
        "controller-busy",
    ),
    sc(
        "a stuck command is not written again",
        "idle.rs",
        "access.write(Register::ICR_LOW, stuck &",
        RegisterNotWritten,
        "controller-busy",
    ),
    Named {
        memory: Tso,
        ..sc(
            "no fence before an x2APIC's command",
            "send.rs",
            "self.access.write_icr(command);",
            NotFenced,
            "store-then-send",
        )
    },
    // A crash stop.
    sc(
        "two CPUs win",
        "crash.rs",
        "crash.compare_exchange(0, mine, AcqRel, Relaxed)",
        NotAtomic,
        "crash-election",
    ),
    sc(
        "a CPU is stopped that nobody waits for",
        "crash.rs",
        "wait_at_most::<K>(&all, deadline, looks)",
        NotWaited,
        "crash-complete",
    ),
    sc("the NMIs are not sent", "crash.rs", "K::send_many(&unsaved, Ipi::Probe)", NotSent, "crash"),
    sc("an NMI finds no crash", "crash.rs", "boxes.global().crash.load(Relaxed)", Finds(0), "crash"),
    sc("a CPU saves without a word", "crash.rs", "mine.crash_saved.store(1, Release)", NotWritten, "crash"),
    sc("a word before the notes", "crash.rs", "mine.crash_saved.store(1, Release)", Relaxed, "crash"),
    sc("notes are read early", "crash.rs", "self.crash_saved.load(Acquire)", Relaxed, "crash-election"),
    sc(
        "a CPU comes up and hears of no crash",
        "crash.rs",
        "self.global().crash.fetch_or(0, AcqRel)",
        Finds(0),
        "crash-coming-up",
    ),
    // A back trace.
    sc(
        "a back trace is not asked for",
        "lockup.rs",
        "u64::from(self.me.number()) + 1, Relaxed)",
        NotWritten,
        "back-trace",
    ),
    sc(
        "the NMI for a back trace is not sent",
        "lockup.rs",
        "K::send(target, Ipi::Probe)",
        NotSent,
        "back-trace",
    ),
    sc("a back trace is taken in silence", "lockup.rs", "wanted.store(0, Release)", NotWritten, "back-trace"),
    sc("a back trace is read early", "lockup.rs", "wanted.store(0, Release)", Relaxed, "back-trace"),
    sc("nobody waits for a back trace", "lockup.rs", "wait_at_most::<K>(&[taken]", NotWaited, "back-trace"),
    // A rendezvous.
    sc(
        "a CPU stops without a word",
        "rendezvous.rs",
        "stage_reached.store(self.meeting.number | stage, Release)",
        NotWritten,
        "rendezvous-two",
    ),
    sc(
        "a word before what was done",
        "rendezvous.rs",
        "stage_reached.store(self.meeting.number | stage, Release)",
        Relaxed,
        "rendezvous",
    ),
    sc(
        "a stage is not begun",
        "rendezvous.rs",
        "word.store(number | PREPARE, Relaxed)",
        NotWritten,
        "rendezvous",
    ),
    sc(
        "a stage is not moved on",
        "rendezvous.rs",
        "compare_exchange(number | self.stage, number | next, Release, Relaxed)",
        NotWritten,
        "rendezvous",
    ),
    sc(
        "a stage is moved on after it was given up",
        "rendezvous.rs",
        "compare_exchange(number | self.stage, number | next, Release, Relaxed)",
        Unconditional,
        "rendezvous-polling",
    ),
    sc(
        "a stage and its end cross",
        "rendezvous.rs",
        "compare_exchange(number | self.stage, number | next, Release, Relaxed)",
        NotAtomic,
        "rendezvous-polling",
    ),
    sc(
        "a stage before what was done",
        "rendezvous.rs",
        "compare_exchange(number | self.stage, number | next, Release, Relaxed)",
        Relaxed,
        "rendezvous-three",
    ),
    sc(
        "a CPU leaves after the run was begun",
        "rendezvous.rs",
        "compare_exchange(seen, number | ABORT, Relaxed, Relaxed)",
        Unconditional,
        "rendezvous-polling",
    ),
    sc(
        "a CPU leaves as the run is begun",
        "rendezvous.rs",
        "compare_exchange(seen, number | ABORT, Relaxed, Relaxed)",
        NotAtomic,
        "rendezvous-polling",
    ),
    sc(
        "a CPU goes on while others run",
        "rendezvous.rs",
        "wait::<K>(&[self.meeting.word.differs(!0, self.meeting.number | RUN)]",
        NotWaited,
        "rendezvous",
    ),
    sc(
        "a CPU serves while others run",
        "rendezvous.rs",
        "match wait::<K>(&[reached], self.meeting.deadline)",
        NotWaited,
        "rendezvous-serving",
    ),
    sc(
        "nobody waits for the run",
        "rendezvous.rs",
        "while wait::<K>(&[reached], ladder.next_report())",
        NotWaited,
        "rendezvous-three",
    ),
    sc(
        "nobody is let go",
        "rendezvous.rs",
        "self.meeting.word.store(self.meeting.number | last, Release)",
        NotWritten,
        "rendezvous",
    ),
    sc(
        "all are let go before what was done",
        "rendezvous.rs",
        "self.meeting.word.store(self.meeting.number | last, Release)",
        Relaxed,
        "rendezvous",
    ),
    sc(
        "two have the one right",
        "global.rs",
        "word.compare_exchange(0, u64::from(here.me.number()) + 1, Acquire, Relaxed)",
        NotAtomic,
        "rendezvous-two",
    ),
    sc(
        "a CPU wins that is being reset",
        "global.rs",
        "crash.compare_exchange(0, held, Relaxed, Relaxed)",
        NotWritten,
        "crash-reset",
    ),
    // A CPU that stops in the middle of its lists.
    sc(
        "posts on their way are forgotten",
        "lists.rs",
        "let taken = self.taken.load(Relaxed);",
        Finds(0),
        "dead-post",
    ),
    sc(
        "posts stay on their way",
        "lists.rs",
        "self.taken.store(core::ptr::null_mut(), Release);",
        NotWritten,
        "dead-post",
    ),
    sc(
        "nobody says which posts are on their way",
        "lists.rs",
        "self.taken.store(newest, Relaxed);",
        NotWritten,
        "posted-twice",
    ),
    sc(
        "nobody says which post begins",
        "lists.rs",
        "self.beginning.store(link.as_ptr(), Relaxed);",
        NotWritten,
        "dead-post",
    ),
    sc(
        "a post begins without a word",
        "post.rs",
        "state.swap(beginning_on(cpu), Release);",
        NotWritten,
        "dead-post",
    ),
    sc(
        "a post that begins is overlooked",
        "lists.rs",
        "NonNull::new(self.beginning.load(Relaxed))?",
        Finds(0),
        "dead-post",
    ),
    sc(
        "a post that begins is taken for one that has begun",
        "post.rs",
        "state.load(Relaxed) == beginning_on(cpu)",
        Finds(0),
        "dead-post",
    ),
    // Deferred work.
    sc(
        "work is not listed",
        "work.rs",
        "self.work.store(link.as_ptr(), Release);",
        NotWritten,
        "work-handler",
    ),
];
