//! The disk: requests of the CPU that goes and comes, of which each is finished by an interrupt on some other CPU; and the
//! books about what then becomes of each.
//!
//! The disk is played: at the moments of the incident by whoever is there, else by the program of a CPU.

use core::time::Duration;
use std::cell::RefCell;
use std::collections::VecDeque;

use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use smpcall_machine::{Cpu, Deadline, Instant, Machine, Woken, Word, wait};
use smpcall_simulator::{SimMachine, SimMemory, program};

use super::{Cast, this_cpu};

/// The vector of its interrupts. (Ours.)
pub(super) const VECTOR: u8 = 0x41;

/// How many requests hung on CPU 3: the report's. One was handed over as the CPU went, the others after it was back: a
/// load that leaves as many hanging as there were in the dump.
pub(super) const REPORTED: usize = 108;
/// Requests that are finished while the CPU is offline. (Ours.)
pub(super) const WHILE_OFFLINE: usize = 4;
/// All requests. The first is finished as the CPU goes, the next while it is offline, the others when it is back.
pub(super) const REQUESTS: usize = REPORTED + WHILE_OFFLINE;

/// The longest times between two of them, in nanoseconds. (Ours.)
const PAUSE_WHILE_OFFLINE: u64 = 50_000;
const PAUSE: u64 = 10_000;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// On the CPU that had made it.
    AtHome,
    /// It was accepted for that CPU, which went, and handed to the one that had taken it down.
    TakenOver,
    /// On the CPU that took the disk's interrupt, because the other was offline.
    Refused,
}

/// What is known of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Book {
    /// By whom and when it was handed to the CPU that had made it, and accepted.
    pub(super) handed_over: Option<(Cpu, Instant)>,
    /// How it ended, and where.
    pub(super) end: Option<(End, Cpu)>,
    /// How often.
    pub(super) ends: u32,
}

impl Book {
    /// Whether it was handed over and has not ended.
    pub(super) fn is_hanging(&self) -> bool {
        self.handed_over.is_some() && self.end.is_none()
    }
}

/// The disk of a machine.
struct Disk {
    /// What it has finished and no driver has seen, by CPU.
    finished: RefCell<Vec<VecDeque<usize>>>,
    books: RefCell<Vec<Book>>,
    /// How many have ended: what is waited for.
    ended: Word<SimMemory>,
}

thread_local! {
    // Of the machine that this thread simulates.
    static DISK: Disk = const {
        Disk {
            finished: RefCell::new(Vec::new()),
            books: RefCell::new(Vec::new()),
            ended: Word::new(0),
        }
    };
}

/// As at boot. Outside of the machine.
pub(super) fn reset(cpus: usize) {
    DISK.with(|disk| {
        disk.finished.replace(vec![VecDeque::new(); cpus]);
        disk.books.replace(vec![Book::default(); REQUESTS]);
        // The ordering does not matter: no CPU runs.
        disk.ended.store(0, Relaxed);
    });
}

/// The books.
pub(super) fn books() -> Vec<Book> {
    DISK.with(|disk| disk.books.borrow().clone())
}

/// The disk has finished a request, and interrupts a CPU.
pub(super) fn finish(number: usize, on: Cpu) {
    DISK.with(|disk| disk.finished.borrow_mut()[on.index()].push_back(number));
    program::request_interrupt(on, VECTOR);
}

/// The driver on this CPU asks what is finished.
pub(super) fn next_finished() -> Option<usize> {
    DISK.with(|disk| disk.finished.borrow_mut()[this_cpu().index()].pop_front())
}

/// A request is about to be handed to the CPU that made it: to be entered before it can end.
pub(super) fn handed_over(number: usize) {
    let (by, at) = (this_cpu(), SimMachine::now());
    enter(number, |book| book.handed_over = Some((by, at)));
}

/// Whether it was handed over.
pub(super) fn was_handed_over(number: usize) -> bool {
    DISK.with(|disk| disk.books.borrow()[number].handed_over.is_some())
}

/// A request has ended on this CPU.
pub(super) fn ended(number: usize, end: End) {
    let on = this_cpu();
    enter(number, |book| {
        if end == End::Refused {
            book.handed_over = None;
        }
        book.end = Some((end, on));
        book.ends += 1;
    });
    // AcqRel: who sees them all sees what each has done.
    DISK.with(|disk| disk.ended.fetch_add(1, AcqRel));
}

fn enter(number: usize, change: impl FnOnce(&mut Book)) {
    DISK.with(|disk| change(&mut disk.books.borrow_mut()[number]));
}

/// Waits until so many requests have ended; false at the deadline.
pub(super) fn await_ends(count: usize, deadline: Deadline) -> bool {
    DISK.with(|disk| {
        wait::<SimMachine>(&[disk.ended.equals(u64::MAX, count as u64)], deadline) != Woken::Deadline
    })
}

/// Without the fault, the first request is finished and over before the CPU goes.
pub(super) fn finish_first_early(cast: Cast) {
    if !cast.fault {
        finish(0, cast.controller);
        await_ends(1, Deadline::NEVER);
    }
}

/// With the fault, it is finished at the reported moment: now.
pub(super) fn finish_first_late(cast: Cast) {
    if cast.fault {
        finish(0, cast.controller);
    }
}

/// What it finishes while the CPU is offline.
pub(super) fn play_while_offline(cast: Cast) {
    play(cast, 1..=WHILE_OFFLINE, PAUSE_WHILE_OFFLINE);
}

/// What the CPU makes when it is back, and the disk finishes.
pub(super) fn play_when_back(cast: Cast) {
    play(cast, WHILE_OFFLINE + 1..=REQUESTS - 1, PAUSE);
}

fn play(cast: Cast, numbers: core::ops::RangeInclusive<usize>, pause: u64) {
    for (number, on) in numbers.zip(cast.others().cycle()) {
        program::advance(Duration::from_nanos(1 + program::random(pause)));
        finish(number, on);
    }
}
