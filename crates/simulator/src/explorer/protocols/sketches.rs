//! Mailboxes as one first sketches them: each has one mistake, and stands beside the same one without it.
//!
//! They share one set of words, and targets poll: what goes wrong is between memory and memory.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::time::Duration;

use smpcall_local_apic::{Interrupt, Vector};
use smpcall_machine::{Cpu, Deadline, InterruptsOff, Plain, Woken, Word, wait};

use super::apic::send;
use crate::explorer::note::Note;
use crate::explorer::scenario::{Bounds, Protocol, Scenario};
use crate::explorer::system::Violation;
use crate::{SimMachine, SimMemory, program};

/// What a caller is patient for.
const SHORT: Duration = Duration::from_micros(10);

/// States of a slot; a queued one is [`QUEUED`] plus what the sketch adds.
const EMPTY: u64 = 0;
const CLAIMED: u64 = 1;
const DONE: u64 = 2;
const QUEUED: u64 = 8;

/// A door: open, and marks above.
const OPEN: u64 = 1;
const MARK: u64 = 2;

const RING: Vector = match Vector::new(0x40) {
    Some(vector) => vector,
    None => panic!("an ordinary vector"),
};
const DEVICE: u8 = 0x60;

pub(super) fn all() -> Vec<Protocol> {
    let sketches: [fn(bool) -> Protocol; 12] = [
        stale_mark,
        split_claim,
        summary,
        mark_and_ring,
        refusal,
        early_look,
        late_ring,
        broadcast,
        merged_post,
        late_idle,
        without_polling,
        unordered,
    ];
    sketches.into_iter().flat_map(|sketch| [sketch(false), sketch(true)]).collect()
}

/// What the sketches are drawn on.
struct Sheet {
    state: Word<SimMemory>,
    /// Whom the call in the slot is for.
    payload: Plain<SimMemory, u64>,
    /// A mark for each target, or a door each.
    doors: [Word<SimMemory>; 3],
    leaf: Word<SimMemory>,
    count: Word<SimMemory>,
    over: Word<SimMemory>,
    list: Word<SimMemory>,
    work: Word<SimMemory>,
    done: [Word<SimMemory>; 2],
    runs: [Note; 3],
    told: [Note; 3],
    wrong: Note,
}

impl Sheet {
    fn new(scenario: &mut Scenario) -> &'static Self {
        let sheet = scenario.share(Self {
            state: Word::new(EMPTY),
            payload: Plain::new(0),
            doors: [const { Word::new(0) }; 3],
            leaf: Word::new(0),
            count: Word::new(0),
            over: Word::new(0),
            list: Word::new(0),
            work: Word::new(0),
            done: [const { Word::new(0) }; 2],
            runs: [const { Note::new(0) }; 3],
            told: [const { Note::new(0) }; 3],
            wrong: Note::new(0),
        });
        let words = [
            (&sheet.state, "state"),
            (&sheet.leaf, "leaf"),
            (&sheet.count, "count"),
            (&sheet.over, "over"),
            (&sheet.list, "list"),
            (&sheet.work, "work"),
            (&sheet.done[0], "done[0]"),
            (&sheet.done[1], "done[1]"),
            (&sheet.doors[0], "door[0]"),
            (&sheet.doors[1], "door[1]"),
            (&sheet.doors[2], "door[2]"),
        ];
        for (word, name) in words {
            scenario.name(word.location(), name);
        }
        sheet
    }

    #[track_caller]
    fn pack(&self, target: u64) {
        // SAFETY: one thread simulates all CPUs, and changes from one to another before the access, not within.
        unsafe { self.payload.write(target) }
    }

    #[track_caller]
    fn unpack(&self) -> u64 {
        // SAFETY: as above.
        unsafe { self.payload.read() }
    }

    /// Waits until this CPU is marked: false if all is over.
    fn await_mark(&self, me: usize) -> bool {
        let woken =
            wait::<SimMachine>(&[self.doors[me].differs(!0, 0), self.over.equals(!0, 1)], Deadline::NEVER);
        woken == Woken::Met(0)
    }

    fn await_state(&self, state: u64) {
        wait::<SimMachine>(&[self.state.equals(!0, state)], Deadline::NEVER);
    }

    /// Waits for the call; withdraws it if that takes too long. Whether it was run.
    fn await_or_withdraw(&self, queued: u64) -> bool {
        let deadline = Deadline::within::<SimMachine>(SHORT);
        if wait::<SimMachine>(&[self.state.equals(!0, DONE)], deadline) == Woken::Deadline {
            if self.state.compare_exchange(queued, EMPTY, AcqRel, Acquire).is_ok() {
                return false;
            }
            self.await_state(DONE);
        }
        true
    }

    /// Each call ran as often as its caller was told.
    fn told_what_ran(&self) -> Result<(), Violation> {
        if self.wrong.get() != 0 {
            return Err(Violation::new("L1", "a call ran on a CPU that it was not for"));
        }
        for (entry, (runs, told)) in self.runs.iter().zip(&self.told).enumerate() {
            if runs.get() != told.get() {
                let what =
                    format!("call {entry} ran {} times, and its caller was told {}", runs.get(), told.get());
                return Err(Violation::new("L1", what));
            }
        }
        Ok(())
    }
}

/// As first sketched, or mended.
fn sketch(
    name: &str,
    about: &str,
    mended: bool,
    cpus: usize,
    expiries: u32,
    build: impl Fn(&mut Scenario, &'static Sheet) + Send + Sync + 'static,
) -> Protocol {
    let (name, about) = if mended {
        (format!("sketch-{name}-mended"), format!("without this mistake: {about}"))
    } else {
        (format!("sketch-{name}"), format!("a sketch: {about}"))
    };
    let mut protocol = Protocol::new(name, about, cpus, move || {
        let mut scenario = Scenario::new();
        let sheet = Sheet::new(&mut scenario);
        build(&mut scenario, sheet);
        scenario
    });
    protocol.broken = !mended;
    protocol.bounds = Bounds { expiries, ..Bounds::default() };
    protocol
}

/// A mark outlives the call that it was set for, and the slot is used again.
fn stale_mark(mended: bool) -> Protocol {
    let about = "a slot's state does not name the target, and a stale mark's target claims the next call";
    sketch("stale-mark", about, mended, 3, 1, move |scenario, sheet| {
        let queued = move |target: usize| if mended { QUEUED + target as u64 } else { QUEUED };
        scenario.cpu(move || {
            for (entry, target) in [(0, 1), (1, 2)] {
                sheet.pack(target as u64);
                sheet.state.store(queued(target), Release);
                sheet.doors[target].fetch_or(MARK, AcqRel);
                sheet.told[entry].add(u64::from(sheet.await_or_withdraw(queued(target))));
                program::forget_but(0);
            }
            sheet.over.store(1, Release);
        });
        for me in [1, 2] {
            scenario.cpu(move || {
                while sheet.await_mark(me) {
                    sheet.doors[me].swap(0, AcqRel);
                    if sheet.state.compare_exchange(queued(me), CLAIMED, AcqRel, Acquire).is_ok() {
                        let target = sheet.unpack();
                        if target != me as u64 {
                            sheet.wrong.set(1);
                        }
                        sheet.runs[target as usize - 1].add(1);
                        sheet.state.store(DONE, Release);
                    }
                    program::forget_but(0);
                }
            });
        }
        scenario.check(|| sheet.told_what_ran());
    })
}

/// The claim is a load and a store.
fn split_claim(mended: bool) -> Protocol {
    let about = "a claim that is not one step runs what was withdrawn";
    sketch("split-claim", about, mended, 2, 1, move |scenario, sheet| {
        scenario.cpu(move || {
            sheet.state.store(QUEUED, Release);
            sheet.doors[1].fetch_or(MARK, AcqRel);
            sheet.told[0].add(u64::from(sheet.await_or_withdraw(QUEUED)));
            sheet.over.store(1, Release);
        });
        scenario.cpu(move || {
            if !sheet.await_mark(1) {
                return;
            }
            let claimed = if mended {
                sheet.state.compare_exchange(QUEUED, CLAIMED, AcqRel, Acquire).is_ok()
            } else {
                let queued = sheet.state.load(Acquire) == QUEUED;
                if queued {
                    sheet.state.store(CLAIMED, Release);
                }
                queued
            };
            if claimed {
                sheet.runs[0].add(1);
                sheet.state.store(DONE, Release);
            }
        });
        scenario.check(|| sheet.told_what_ran());
    })
}

/// Two levels of marks: a leaf for the sources, a door above it.
fn summary(mended: bool) -> Protocol {
    let about =
        "who finds the leaf marked takes the door for marked, and a refused sender's mark makes it deaf";
    sketch("summary", about, mended, 3, 0, move |scenario, sheet| {
        // Marks the leaf, and the door if need be; whether the door is open.
        let mark = move |source: u64| {
            if sheet.leaf.fetch_or(source, AcqRel) != 0 && !mended {
                return true;
            }
            sheet.doors[1].fetch_or(MARK, AcqRel) & OPEN != 0
        };
        // Calls, or finds the door closed, if it is early, and goes away.
        scenario.cpu(move || {
            if mark(0b01) {
                wait::<SimMachine>(&[sheet.done[0].equals(!0, 1)], Deadline::NEVER);
            }
            sheet.over.fetch_add(1, AcqRel);
        });
        // Opens its door, and serves as long as there is somebody.
        scenario.cpu(move || {
            sheet.doors[1].store(OPEN, Release);
            loop {
                let marked = sheet.doors[1].differs(MARK, 0);
                if wait::<SimMachine>(&[marked, sheet.over.equals(!0, 2)], Deadline::NEVER) == Woken::Met(1) {
                    return;
                }
                sheet.doors[1].swap(OPEN, AcqRel);
                let taken = sheet.leaf.swap(0, AcqRel);
                for source in (0..2).filter(|source| taken & 1 << source != 0) {
                    sheet.done[source].store(1, Release);
                }
                program::forget_but(0);
            }
        });
        // Calls when it is open.
        scenario.cpu(move || {
            wait::<SimMachine>(&[sheet.doors[1].differs(OPEN, 0)], Deadline::NEVER);
            mark(0b10);
            wait::<SimMachine>(&[sheet.done[1].equals(!0, 1)], Deadline::NEVER);
            sheet.over.fetch_add(1, AcqRel);
        });
    })
}

/// The first into a quiet door rings.
fn mark_and_ring(mended: bool) -> Protocol {
    let about = "an interrupt between mark and ring, whose handler relies on the ring";
    sketch("mark-and-ring", about, mended, 2, 0, move |scenario, sheet| {
        let call = move |source: usize| {
            let off = mended.then(InterruptsOff::<SimMachine>::new);
            if sheet.doors[1].fetch_or(1 << source, AcqRel) == 0 {
                send(Cpu::new(1), Interrupt::Fixed(RING));
            }
            drop(off);
            wait::<SimMachine>(&[sheet.done[source].equals(!0, 1)], Deadline::NEVER);
        };
        scenario.cpu(move || call(0));
        scenario.cpu(|| program::request_interrupt(Cpu::new(0), DEVICE));
        scenario.handler(DEVICE, move |mut frame| {
            frame.end_of_interrupt();
            call(1);
        });
        scenario.handler(RING.number(), move |mut frame| {
            frame.end_of_interrupt();
            let taken = sheet.doors[1].swap(0, AcqRel);
            for source in (0..2).filter(|source| taken & 1 << source != 0) {
                sheet.done[source].store(1, Release);
            }
        });
    })
}

/// A sender finds the door closed; the mark of another one in its group has led the closing CPU to its call.
fn refusal(mended: bool) -> Protocol {
    let about =
        "a refused sender takes the closed door for the verdict, and the closing CPU has run its call";
    sketch("refusal", about, mended, 3, 0, move |scenario, sheet| {
        scenario.cpu(move || {
            sheet.state.store(QUEUED, Release);
            let closed = sheet.doors[2].fetch_or(MARK, AcqRel) & OPEN == 0;
            let withdrawn =
                closed && (!mended || sheet.state.compare_exchange(QUEUED, EMPTY, AcqRel, Acquire).is_ok());
            if !withdrawn {
                sheet.await_state(DONE);
                sheet.told[0].add(1);
            }
        });
        // Shares the mark, and has nothing itself.
        scenario.cpu(move || {
            sheet.doors[2].fetch_or(MARK, AcqRel);
        });
        scenario.cpu(move || {
            sheet.doors[2].store(OPEN, Release);
            if sheet.doors[2].swap(0, AcqRel) & MARK != 0
                && sheet.state.compare_exchange(QUEUED, CLAIMED, AcqRel, Acquire).is_ok()
            {
                sheet.runs[0].add(1);
                sheet.state.store(DONE, Release);
            }
        });
        scenario.check(|| sheet.told_what_ran());
    })
}

/// A sender looks at the door before it queues, and not afterwards.
fn early_look(mended: bool) -> Protocol {
    let about = "a sender looks at the door before it queues only: it is closed in between, and the sender waits for ever";
    sketch("early-look", about, mended, 2, 0, move |scenario, sheet| {
        scenario.cpu(move || {
            if sheet.doors[1].load(Acquire) & OPEN == 0 {
                return;
            }
            sheet.state.store(QUEUED, Release);
            let closed = sheet.doors[1].fetch_or(MARK, AcqRel) & OPEN == 0;
            if mended && closed && sheet.state.compare_exchange(QUEUED, EMPTY, AcqRel, Acquire).is_ok() {
                return;
            }
            sheet.await_state(DONE);
            sheet.told[0].add(1);
        });
        scenario.cpu(move || {
            sheet.doors[1].store(OPEN, Release);
            if sheet.doors[1].swap(0, AcqRel) & MARK != 0
                && sheet.state.compare_exchange(QUEUED, CLAIMED, AcqRel, Acquire).is_ok()
            {
                sheet.runs[0].add(1);
                sheet.state.store(DONE, Release);
            }
        });
        scenario.check(|| sheet.told_what_ran());
    })
}

/// The handler's swap leaves the door open.
fn late_ring(mended: bool) -> Protocol {
    let about = "a ring that is taken late swaps the door blindly, and opens it again";
    sketch("late-ring", about, mended, 2, 0, move |scenario, sheet| {
        scenario.cpu(move || {
            let door = sheet.doors[1].fetch_or(MARK, AcqRel);
            if door & OPEN != 0 {
                send(Cpu::new(1), Interrupt::Fixed(RING));
            }
        });
        scenario.cpu(move || {
            sheet.doors[1].fetch_or(OPEN, AcqRel);
            let off = InterruptsOff::<SimMachine>::new();
            sheet.doors[1].swap(0, AcqRel);
            drop(off);
            sheet.over.store(1, Release);
        });
        scenario.handler(RING.number(), move |mut frame| {
            frame.end_of_interrupt();
            // Relaxed: only its owner opens and closes it.
            if !mended || sheet.doors[1].load(Relaxed) & OPEN != 0 {
                sheet.doors[1].swap(OPEN, AcqRel);
            }
        });
        scenario.check(|| {
            // No CPU runs: the ordering does not matter.
            if sheet.doors[1].load(Relaxed) & OPEN == 0 {
                Ok(())
            } else {
                Err(Violation::new("L5", "the door of an offline CPU is open"))
            }
        });
    })
}

/// A call to some has a count of those who have still to run it.
fn broadcast(mended: bool) -> Protocol {
    let about = "a call to many with a count only: a stale mark's CPU runs it, and it was not for that one";
    sketch("broadcast", about, mended, 3, 1, move |scenario, sheet| {
        scenario.cpu(move || {
            // A call to CPU 2 alone, which may be given up.
            sheet.state.store(QUEUED + 2, Release);
            sheet.doors[2].fetch_or(MARK, AcqRel);
            sheet.told[2].add(u64::from(sheet.await_or_withdraw(QUEUED + 2)));
            program::forget_but(0);
            // One to a set, which is CPU 1. The bits come last.
            sheet.state.store(EMPTY, Relaxed);
            sheet.count.store(1, Release);
            sheet.leaf.store(0b010, Release);
            sheet.doors[1].fetch_or(MARK, AcqRel);
            wait::<SimMachine>(&[sheet.count.equals(!0, 0)], Deadline::NEVER);
            sheet.told[1].add(1);
            program::forget_but(0);
            sheet.over.store(1, Release);
        });
        for me in [1, 2] {
            scenario.cpu(move || {
                while sheet.await_mark(me) {
                    sheet.doors[me].swap(0, AcqRel);
                    let one = QUEUED + me as u64;
                    let bit = 1 << me;
                    if sheet.state.compare_exchange(one, CLAIMED, AcqRel, Acquire).is_ok() {
                        sheet.runs[me].add(1);
                        sheet.state.store(DONE, Release);
                    } else if mended {
                        if sheet.leaf.fetch_and(!bit, AcqRel) & bit != 0 {
                            sheet.runs[me].add(1);
                            sheet.count.fetch_sub(1, AcqRel);
                        }
                    } else if sheet.count.load(Acquire) != 0 {
                        sheet.runs[me].add(1);
                        sheet.count.fetch_sub(1, AcqRel);
                    }
                    program::forget_but(0);
                }
            });
        }
        scenario.check(|| sheet.told_what_ran());
    })
}

/// Posts that coalesce. The node's state: 0 idle, 1 being pushed, 2 listed; the list: 0 closed, 1 empty, 2 has the node.
struct Node;

impl Node {
    const IDLE: u64 = 0;
    const PUSHING: u64 = 1;
    const LISTED: u64 = 2;
    const CLOSED: u64 = 0;
    const QUIET: u64 = 1;
    const FULL: u64 = 2;
}

/// What a poster was told: refused, or accepted (by itself or merged).
fn post(sheet: &Sheet, poster: usize, mended: bool) {
    sheet.work.fetch_or(1 << poster, AcqRel);
    // As first sketched, a node that is being pushed counts as listed.
    let entered = if mended { Node::PUSHING } else { Node::LISTED };
    loop {
        match sheet.state.compare_exchange(Node::IDLE, entered, AcqRel, Acquire) {
            Ok(_) => break,
            Err(Node::LISTED) => {
                // A step that writes: what this poster wrote is published by it.
                if sheet.state.compare_exchange(Node::LISTED, Node::LISTED, AcqRel, Acquire).is_ok() {
                    sheet.told[poster].add(1);
                    return;
                }
            }
            Err(_) => {
                wait::<SimMachine>(&[sheet.state.differs(!0, Node::PUSHING)], Deadline::NEVER);
            }
        }
        program::forget_but(0);
    }
    if sheet.list.compare_exchange(Node::QUIET, Node::FULL, AcqRel, Acquire).is_ok() {
        if mended {
            sheet.state.store(Node::LISTED, Release);
        }
        sheet.told[poster].add(1);
    } else {
        sheet.state.store(Node::IDLE, Release);
    }
}

/// Takes the list, leaving it as said, and runs the node if it was there.
fn run_posts(sheet: &Sheet, leave: u64, mended: bool) {
    if sheet.list.swap(leave, AcqRel) != Node::FULL {
        return;
    }
    if mended {
        // Whoever has pushed it is about to say so.
        sheet.await_state(Node::LISTED);
    }
    sheet.state.store(Node::IDLE, Release);
    let work = sheet.work.swap(0, AcqRel);
    for poster in (0..2).filter(|poster| work & 1 << poster != 0) {
        sheet.runs[poster].add(1);
    }
}

/// Every accepted post has been found by a run.
fn accepted_posts_ran(sheet: &Sheet) -> Result<(), Violation> {
    let lost = (0..2).find(|&poster| sheet.told[poster].get() > sheet.runs[poster].get());
    match lost {
        None => Ok(()),
        Some(poster) => {
            Err(Violation::new("L1", format!("the post of CPU {poster} was accepted and never run")))
        }
    }
}

/// A poster merges into the push of another one, which is refused.
fn merged_post(mended: bool) -> Protocol {
    let about = "a post merges into one that is just being pushed, and that one finds the list closed";
    sketch("merged-post", about, mended, 3, 0, move |scenario, sheet| {
        scenario.cpu(move || post(sheet, 0, mended));
        scenario.cpu(move || post(sheet, 1, mended));
        scenario.cpu(move || {
            sheet.list.store(Node::QUIET, Release);
            run_posts(sheet, Node::CLOSED, mended);
        });
        scenario.check(|| accepted_posts_ran(sheet));
    })
}

/// The node is idle again only after its run.
fn late_idle(mended: bool) -> Protocol {
    let about = "a node is marked idle after its run, and what merges during the run is not seen";
    sketch("late-idle", about, mended, 2, 0, move |scenario, sheet| {
        scenario.cpu(move || {
            wait::<SimMachine>(&[sheet.list.differs(!0, Node::CLOSED)], Deadline::NEVER);
            post(sheet, 0, true);
            post(sheet, 1, true);
            sheet.over.store(1, Release);
        });
        scenario.cpu(move || {
            sheet.list.store(Node::QUIET, Release);
            loop {
                let woken = wait::<SimMachine>(
                    &[sheet.list.equals(!0, Node::FULL), sheet.over.equals(!0, 1)],
                    Deadline::NEVER,
                );
                if woken == Woken::Met(1) {
                    return;
                }
                if mended {
                    run_posts(sheet, Node::QUIET, true);
                } else {
                    sheet.list.swap(Node::QUIET, AcqRel);
                    sheet.await_state(Node::LISTED);
                    let work = sheet.work.swap(0, AcqRel);
                    for poster in (0..2).filter(|poster| work & 1 << poster != 0) {
                        sheet.runs[poster].add(1);
                    }
                    sheet.state.store(Node::IDLE, Release);
                }
                program::forget_but(0);
            }
        });
        scenario.check(|| accepted_posts_ran(sheet));
    })
}

/// Two CPUs call each other and wait, with interrupts off.
fn without_polling(mended: bool) -> Protocol {
    let about = "two CPUs call each other with interrupts off, and do not serve while they wait";
    sketch("without-polling", about, mended, 2, 0, move |scenario, sheet| {
        for me in [0, 1] {
            scenario.cpu(move || {
                let _off = InterruptsOff::<SimMachine>::new();
                sheet.doors[1 - me].store(MARK, Release);
                let done = sheet.done[me].equals(!0, 1);
                let marked = sheet.doors[me].equals(!0, MARK);
                let answer = || sheet.done[1 - me].store(1, Release);
                if mended && wait::<SimMachine>(&[marked, done], Deadline::NEVER) == Woken::Met(0) {
                    answer();
                    wait::<SimMachine>(&[done], Deadline::NEVER);
                } else {
                    wait::<SimMachine>(&[done], Deadline::NEVER);
                    wait::<SimMachine>(&[marked], Deadline::NEVER);
                    answer();
                }
            });
        }
    })
}

/// The slot's state is stored without an ordering.
fn unordered(mended: bool) -> Protocol {
    let about = "a slot is queued by a relaxed store: nothing orders its payload before the claim";
    sketch("unordered", about, mended, 2, 0, move |scenario, sheet| {
        scenario.cpu(move || {
            sheet.pack(1);
            sheet.state.store(QUEUED, if mended { Release } else { Relaxed });
            sheet.await_state(DONE);
        });
        scenario.cpu(move || {
            sheet.await_state(QUEUED);
            sheet.unpack();
            sheet.state.store(DONE, Release);
        });
    })
}
