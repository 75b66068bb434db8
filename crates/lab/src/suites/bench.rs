//! Instructions of the guest, counted: what a call or a post costs.
//!
//! Under QEMU's `-accel tcg,thread=single -icount shift=0,sleep=off` the time-stamp counter goes on by one for each instruction
//! of any CPU. One CPU runs at a time, and others get their turn when it halts, executes `pause` or has used up its slice. So
//! what passes between two readings around a call is what the sender, the target - until it has halted again - and the
//! sender's wait have executed together; and between two readings around a post, which neither halts nor pauses, nobody but
//! the sender runs, as the unchanged count of posts that were run shows.
//!
//! Ticks are stopped meanwhile. The two readings themselves are part of each figure.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;

use smpcall::{Deferred, Post};
use smpcall_machine::{Cpu, Machine};

use super::Run;
use crate::apic;
use crate::clock::{counts_instructions, delay, ticks};
use crate::machine::{BOOT_CPU, Calls, Cpus, Lab};

const ROUNDS: usize = 200;
/// Rounds that are not counted: they warm up nothing but what is done once.
const FIRST: usize = 4;
/// Long enough for all others to halt.
const SETTLE: Duration = Duration::from_micros(4);
const LIMIT: Duration = Duration::from_secs(10);
/// Posts in a burst.
const BURST: usize = 16;

/// Figures of many rounds.
struct Figures([u64; ROUNDS]);

impl Figures {
    fn of(mut round: impl FnMut() -> u64) -> Self {
        let mut figures = [0; ROUNDS];
        for number in 0..FIRST + ROUNDS {
            delay(SETTLE);
            let figure = round();
            if let Some(place) = number.checked_sub(FIRST) {
                figures[place] = figure;
            }
        }
        figures.sort_unstable();
        Self(figures)
    }

    fn median(&self) -> u64 {
        self.0[ROUNDS / 2]
    }

    fn tell(&self, run: &Run, name: &str) {
        run.count(name, self.median());
        crate::console::say!(
            "{name}: median {}, from {} to {}, 90 of 100 up to {}",
            self.median(),
            self.0[0],
            self.0[ROUNDS - 1],
            self.0[ROUNDS * 9 / 10]
        );
    }
}

static POSTS_RUN: AtomicU64 = AtomicU64::new(0);

struct Nothing;

impl Deferred<Lab> for Nothing {
    type Handle = &'static Post<Lab, Self>;

    fn run(_: Self::Handle) {
        // Relaxed: a count; who compares it has waited until all others halt.
        POSTS_RUN.fetch_add(1, Relaxed);
    }
}

static POSTS: [Post<Lab, Nothing>; BURST] = [const { Post::new(Nothing) }; BURST];

/// Posts to one target; returns what each took, or none if somebody else ran in between.
fn posts<const N: usize>(target: Cpu) -> Option<[u64; N]> {
    let run_before = POSTS_RUN.load(Relaxed);
    let mut took = [0; N];
    let mut refused = 0;
    for (took, post) in took.iter_mut().zip(&POSTS) {
        let before = ticks();
        let posted = Calls::post::<Nothing>(target, post);
        *took = ticks() - before;
        refused += usize::from(posted.is_err());
    }
    (refused == 0 && POSTS_RUN.load(Relaxed) == run_before).then_some(took)
}

pub(super) fn run(run: &mut Run) {
    if !counts_instructions() {
        run.skip("bench", format_args!("the counter does not count instructions: -icount shift=0,sleep=off"));
        return;
    }
    if !run.has_cpus("bench", 2) {
        return;
    }
    let stopped = Calls::within(LIMIT).call_all(|_| apic::stop_ticks());
    let watched = Calls::within(LIMIT).call_all(|_| Calls::watch_ticks(false));
    run.check("ticks_stopped", stopped.is_ok() && watched.is_ok(), format_args!("on all CPUs"));

    Figures::of(|| {
        let before = ticks();
        ticks() - before
    })
    .tell(run, "reading");
    let target = Cpu::new(1);
    calls(run, target);
    for others in [3, 15] {
        if apic::count() > others {
            many(run, others);
        }
    }
    let mut disturbed = 0;
    let alone = Figures::of(|| {
        posts::<1>(target).map_or_else(
            || {
                disturbed += 1;
                u64::MAX
            },
            |took| took[0],
        )
    });
    alone.tell(run, "post");
    let burst = Figures::of(|| {
        posts::<BURST>(target).map_or_else(
            || {
                disturbed += 1;
                u64::MAX
            },
            |took| took[1..].iter().sum::<u64>() / (BURST as u64 - 1),
        )
    });
    burst.tell(run, "post_burst");
    run.check("posts_undisturbed", disturbed == 0, format_args!("{disturbed} rounds in which others ran"));

    let started = Calls::within(LIMIT).call_all(|_| {
        apic::start_ticks();
        Calls::watch_ticks(true);
    });
    run.check("ticks_started", started.is_ok(), format_args!("on all CPUs, if they tick at all"));
}

fn calls(run: &mut Run, target: Cpu) {
    let mut wrong = 0u64;
    let mut until = [0; FIRST + ROUNDS];
    let mut round = 0;
    let figures = Figures::of(|| {
        let before = ticks();
        let result = Calls::within(LIMIT).call(target, Lab::current_cpu);
        let took = ticks() - before;
        wrong += u64::from(result != Ok(target));
        took
    });
    // The same with a look at the clock in the closure: what came before it, and after.
    let _ = Figures::of(|| {
        let before = ticks();
        let result = Calls::within(LIMIT).call(target, ticks);
        until[round] = result.map_or(u64::MAX, |at| at - before);
        round += 1;
        0
    });
    until.sort_unstable();
    figures.tell(run, "call");
    run.count("call_until_closure", until[until.len() / 2]);
    run.check("calls_ran", wrong == 0, format_args!("{wrong} calls that did not run where they should"));
}

fn many(run: &mut Run, others: usize) {
    let targets: Cpus = apic::all().filter(|&cpu| cpu != BOOT_CPU).take(others).collect();
    let ran = AtomicU64::new(0);
    let mut failed = 0u64;
    let figures = Figures::of(|| {
        let before = ticks();
        // Relaxed: read after the calls, which order it.
        let result = Calls::within(LIMIT).call_many(&targets, |_| {
            ran.fetch_add(1, Relaxed);
        });
        let took = ticks() - before;
        failed += u64::from(result.is_err());
        took
    });
    figures.tell(run, if others == 3 { "many_3" } else { "many_15" });
    let (ran, expected) = (ran.into_inner(), (others * (FIRST + ROUNDS)) as u64);
    run.check(
        "many_ran",
        failed == 0 && ran == expected,
        format_args!("{ran} of {expected} on {others} targets, {failed} calls failed"),
    );
}
