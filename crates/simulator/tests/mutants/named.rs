//! The deliberate faults that are tried on every change: what each is, where, and which exploration kills it.

use smpcall_simulator::explorer::MemoryModel::{self, Sc, Tso};
use smpcall_simulator::mutant::Fault::{
    self, Finds, NotAtomic, NotDisabled, NotFenced, NotSent, NotWaited, NotWritten, RegisterNotWritten,
    RegisterReads, RegisterWrittenTwice, Relaxed, SentTwice, Twice, Unconditional, Writes,
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
        "a pass overlooks a leaf",
        "serve.rs",
        "words.first().map_or(0, |word| word.swap(0, SeqCst))",
        Finds(0),
        "leaves",
    ),
    sc(
        "the first ring is not sent",
        "mark.rs",
        "let sent = K::send(target, Ipi::Ring);",
        NotSent,
        "static-call",
    ),
    sc(
        "the first ring is sent twice",
        "mark.rs",
        "let sent = K::send(target, Ipi::Ring);",
        SentTwice,
        "rung-once",
    ),
    sc(
        "the rings of a call to many are not sent",
        "mark.rs",
        "let sent = K::send_many(targets, Ipi::Ring);",
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
        "self.mine.door.0.swap(leave, SeqCst)",
        NotAtomic,
        "two-callers",
    ),
    sc(
        "a handler takes a marked door for a quiet one",
        "serve.rs",
        "let door = self.mine.door.0.load(Relaxed);\n        if door & OPEN == 0 ||",
        Finds(OPEN),
        "static-call",
    ),
    sc("a pass overlooks a call", "serve.rs", "let mut seen = state.load(Acquire);", Finds(0), "static-call"),
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
        "posts before a call are not looked for",
        "post.rs",
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
        "a count comes without its targets",
        "many.rs",
        "self.count().store(total, Relaxed);",
        NotWritten,
        "given-up-many",
    ),
    sc(
        "claim bits are set without a release",
        "many.rs",
        "claims.store(bits, Release);",
        Relaxed,
        "many-deadline-one",
    ),
    sc("claim bits are not set", "many.rs", "claims.store(bits, Release);", NotWritten, "visible-to-many"),
    sc(
        "a pass overlooks a claim bit",
        "serve.rs",
        "word.load(Acquire) & bit != 0",
        Finds(0),
        "visible-to-many",
    ),
    sc(
        "a claim bit is not atomic",
        "serve.rs",
        "word.fetch_and(!bit, Acquire) & bit == 0",
        NotAtomic,
        "given-up-many",
    ),
    sc(
        "a claim bit stays set",
        "serve.rs",
        "word.fetch_and(!bit, Acquire) & bit == 0",
        NotWritten,
        "many-deadline-one",
    ),
    sc(
        "a target counts down without a release",
        "serve.rs",
        "count.fetch_sub(1, Release);",
        Relaxed,
        "visible-to-many",
    ),
    sc("a count is not atomic", "serve.rs", "count.fetch_sub(1, Release);", NotAtomic, "many"),
    sc("a target counts down twice", "serve.rs", "count.fetch_sub(1, Release);", Twice, "given-up-many"),
    sc(
        "a target does not count down",
        "serve.rs",
        "count.fetch_sub(1, Release);",
        NotWritten,
        "visible-to-many",
    ),
    sc(
        "a call to many is not waited for",
        "many.rs",
        "wait_serving(self.count().equals(COUNT, 0), poll, until)",
        NotWaited,
        "given-up-many",
    ),
    sc(
        "a wait for many acquires nothing",
        "many.rs",
        "wait_serving(self.count().equals(COUNT, 0), poll, until)",
        Relaxed,
        "visible-to-many",
    ),
    sc(
        "a withdrawal from one of many is not atomic",
        "many.rs",
        "fetch_and(!bit, Relaxed) & bit != 0;",
        NotAtomic,
        "given-up-many",
    ),
    sc(
        "a withdrawal from one of many is not written",
        "many.rs",
        "fetch_and(!bit, Relaxed) & bit != 0;",
        NotWritten,
        "given-up-many",
    ),
    sc(
        "a withdrawal is not counted",
        "many.rs",
        "self.count().fetch_sub(1, Relaxed);",
        NotWritten,
        "many-deadline-one",
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
        "post.rs",
        "end.store(oldest_first, Relaxed);",
        NotWritten,
        "posted-twice",
    ),
    sc(
        "a post in the backlog is overlooked",
        "post.rs",
        "NonNull::new(self.backlog.load(Relaxed))?",
        Finds(0),
        "posted-twice",
    ),
    sc(
        "a post is not linked to the next",
        "post.rs",
        "node.next.store(head, Relaxed);",
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
        "link.state.swap(IDLE, AcqRel);",
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
        "post.rs",
        "self.posts.0.swap(empty(), Acquire);",
        NotWritten,
        "posted-twice",
    ),
    sc(
        "taking posts is not atomic",
        "post.rs",
        "self.posts.0.swap(empty(), Acquire);",
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
        "close-posts",
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
    sc("a list is not closed", "post.rs", "self.posts.0.swap(closed(), Acquire);", NotWritten, "close-post"),
    sc(
        "a list is left open",
        "post.rs",
        "self.posts.0.swap(closed(), Acquire);",
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
        "let interrupts_off = InterruptsOff::<M>::new();\n                if",
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
        "wait::<M>(&Predicate(|| is_idle(access)), Deadline::within::<M>(bound))",
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
];
