//! Posts of the workload: a few shared ones of each CPU, and what is known of each.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use smpcall::{Deferred, Post, Posted};
use smpcall_machine::{Cpu, InterruptsOff, Machine};

use super::books::note;
use crate::apic;
use crate::cpu::MAX_CPUS;
use crate::machine::{Calls, Lab};
use crate::random;

/// Shared posts of each CPU.
const EACH: usize = 4;

/// A post that lives for ever, and what is known of it. Relaxed throughout: what orders these is what is tested, and the poster
/// compares a number that it has written before the post with the one that the run has seen.
struct Errand {
    /// Written before each post: counts up.
    written: AtomicU64,
    /// The last number that was accepted.
    accepted: AtomicU64,
    /// The highest number that a run has seen.
    seen: AtomicU64,
    /// Queued less run: no more than one at any time.
    under_way: AtomicU64,
}

impl Errand {
    const NEW: Self = Self {
        written: AtomicU64::new(0),
        accepted: AtomicU64::new(0),
        seen: AtomicU64::new(0),
        under_way: AtomicU64::new(0),
    };

    fn end(&self) {
        let written = self.written.load(Relaxed);
        self.seen.fetch_max(written, Relaxed);
        // Wrapping: a run can come before its poster has entered the post.
        self.under_way.fetch_sub(1, Relaxed);
    }
}

impl Deferred<Lab> for Errand {
    type Handle = &'static Post<Lab, Self>;

    fn run(handle: Self::Handle) {
        note(|page| {
            page.posts_run.add(1);
            page.interrupts_enabled.add(u64::from(Lab::interrupts_enabled()));
        });
        handle.value().end();
    }

    fn abandoned(handle: Self::Handle, _: Cpu) {
        note(|page| page.posts_abandoned.add(1));
        handle.value().end();
    }
}

static ERRANDS: [[Post<Lab, Errand>; EACH]; MAX_CPUS] =
    [const { [const { Post::new(Errand::NEW) }; EACH] }; MAX_CPUS];

/// Begins anew. While nothing is under way.
pub(super) fn begin() {
    for errand in ERRANDS.as_flattened().iter().map(Post::value) {
        for number in [&errand.written, &errand.accepted, &errand.seen, &errand.under_way] {
            number.store(0, Relaxed);
        }
    }
}

/// Posts one of this CPU's errands. Task context or interrupt handlers.
pub(super) fn post(target: Cpu) {
    let _ = post_to(target);
}

/// The same; returns whether it was accepted.
pub(super) fn post_to(target: Cpu) -> bool {
    // Alone on this CPU: the numbers of an errand are its CPU's.
    let pinned = InterruptsOff::<Lab>::new();
    let post = &ERRANDS[pinned.cpu().index()][random::below(EACH as u64) as usize];
    let errand = post.value();
    let number = errand.written.load(Relaxed) + 1;
    errand.written.store(number, Relaxed);
    let result = Calls::post::<Errand>(target, post);
    note(|page| match &result {
        Ok(Posted::Queued) => page.queued.add(1),
        Ok(Posted::Merged) => page.merged.add(1),
        Err(_) => page.posts_refused.add(1),
    });
    if let Ok(posted) = &result {
        errand.accepted.store(number, Relaxed);
        errand.under_way.fetch_add(u64::from(*posted == Posted::Queued), Relaxed);
    }
    drop(pinned);
    result.is_ok()
}

/// How many errands have not run as often as they were queued, or whose last run did not see what was written before the
/// last post. When nothing is under way.
pub(super) fn unreconciled() -> usize {
    let all = ERRANDS[..apic::count()].as_flattened().iter().map(Post::value);
    all.filter(|errand| {
        errand.under_way.load(Relaxed) != 0 || errand.seen.load(Relaxed) < errand.accepted.load(Relaxed)
    })
    .count()
}
