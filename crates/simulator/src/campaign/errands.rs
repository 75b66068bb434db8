//! The posts and the deferred work of a campaign, and their books: entered by the poster, and by the run.
//!
//! What is posted knows no machine, so these books belong to the thread.

use core::time::Duration;
use std::cell::{Cell, RefCell};

use smpcall::{Cpu, Deferred, Post, PostRefusal, Posted};
use smpcall_machine::Machine;

use super::crashes::{self, Context};
use super::workload::Plan;
use crate::SimMachine;
use crate::kernel::Calls;
use crate::program::{advance, random};

/// One post that its poster owns.
struct Entry {
    /// How often it began to run, or was abandoned.
    ends: u8,
    abandoned: bool,
    outcome: Outcome,
    poster: Cpu,
    target: Cpu,
}

/// What the poster was told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Nothing,
    Queued,
    Refused,
}

/// The books of posts, or those of work.
#[derive(Default)]
struct Books {
    entries: Vec<Entry>,
    wrong: u64,
}

/// The books of posts that exist once for each CPU.
#[derive(Default)]
struct SharedBooks {
    /// They live for ever.
    posts: Vec<&'static Post<SimMachine, SharedErrand>>,
    queued: Vec<u64>,
    ended: Vec<u64>,
    merged: u64,
    refused: u64,
    abandoned: u64,
}

thread_local! {
    static POSTS: RefCell<Books> = RefCell::default();
    static WORK: RefCell<Books> = RefCell::default();
    static SHARED: RefCell<SharedBooks> = RefCell::default();
    /// How many CPUs have yet to end the closure of the rendezvous that is under way: until then nobody serves.
    static STOPPED: Cell<usize> = const { Cell::new(0) };
    /// The CPUs that run deferred work.
    static WORKING: RefCell<Vec<bool>> = const { RefCell::new(Vec::new()) };
}

/// What became of the posts of a campaign, or of its deferred work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Errands {
    /// Queued: `run + abandoned + lost`, if nothing is wrong.
    pub queued: u64,
    /// Merged with one that was queued.
    pub merged: u64,
    /// Run, each once, on the CPU that was posted to.
    pub run: u64,
    /// Handed, once, to the CPU that has taken theirs down.
    pub abandoned: u64,
    /// Refused, and not run.
    pub refused: u64,
    /// Accepted by a CPU that has died since, and neither run nor handed over.
    pub lost: u64,
}

impl Errands {
    /// Adds the figures of others.
    pub fn add(&mut self, other: &Self) {
        self.queued += other.queued;
        self.merged += other.merged;
        self.run += other.run;
        self.abandoned += other.abandoned;
        self.refused += other.refused;
        self.lost += other.lost;
    }

    /// How many were asked for.
    pub const fn asked(&self) -> u64 {
        self.queued + self.merged + self.refused
    }
}

/// Begins new books, for a machine of this size. Posts of the last machine may still say that they are queued: those that
/// live for ever are forgotten.
pub(super) fn begin_books(cpus: usize) {
    POSTS.take();
    WORK.take();
    let mut shared = SharedBooks::default();
    shared.queued.resize(cpus, 0);
    shared.ended.resize(cpus, 0);
    SHARED.set(shared);
    STOPPED.set(0);
    WORKING.set(vec![false; cpus]);
}

/// Whether all that was queued has ended.
pub(super) fn have_ended() -> bool {
    let (posts, work, _) = balance_books(|_| true, 0);
    posts.lost + work.lost == 0
}

/// The posts, the work, and what is wrong with them. CPUs that `died` may keep what they had accepted, and whoever
/// posted there and died was told nothing.
pub(super) fn balance_books(died: impl Fn(Cpu) -> bool, deaths: u64) -> (Errands, Errands, u64) {
    let (mut posts, posts_wrong) = POSTS.with_borrow(|books| books.balance(&died));
    let (work, work_wrong) = WORK.with_borrow(|books| books.balance(&died));
    let mut wrong = posts_wrong + work_wrong;
    SHARED.with_borrow(|shared| {
        for (&queued, &ended) in shared.queued.iter().zip(&shared.ended) {
            posts.queued += queued;
            posts.run += ended;
            posts.lost += queued.saturating_sub(ended);
            // Each dead CPU keeps a post once at the most, or had posted it once and not entered it.
            wrong += queued.abs_diff(ended).saturating_sub(deaths);
        }
        posts.run -= shared.abandoned;
        posts.abandoned += shared.abandoned;
        posts.merged += shared.merged;
        posts.refused += shared.refused;
    });
    (posts, work, wrong)
}

impl Books {
    fn begin(&mut self, target: Cpu) -> usize {
        let poster = SimMachine::current_cpu();
        self.entries.push(Entry { ends: 0, abandoned: false, outcome: Outcome::Nothing, poster, target });
        self.entries.len() - 1
    }

    /// It begins to run here, or is handed over here by `from`.
    fn end(&mut self, number: usize, from: Option<Cpu>) {
        let entry = &mut self.entries[number];
        entry.ends = entry.ends.saturating_add(1);
        entry.abandoned = from.is_some();
        self.wrong += u64::from(from.unwrap_or_else(SimMachine::current_cpu) != entry.target);
    }

    fn balance(&self, died: impl Fn(Cpu) -> bool) -> (Errands, u64) {
        let mut sum = Errands::default();
        let mut wrong = self.wrong;
        for entry in &self.entries {
            match (entry.outcome, entry.ends) {
                (Outcome::Queued, 1) => {
                    sum.queued += 1;
                    sum.run += u64::from(!entry.abandoned);
                    sum.abandoned += u64::from(entry.abandoned);
                }
                (Outcome::Queued, 0) if died(entry.target) => {
                    sum.queued += 1;
                    sum.lost += 1;
                }
                (Outcome::Refused, 0) => sum.refused += 1,
                // Its poster died in the middle of it.
                (Outcome::Nothing, 0 | 1) if died(entry.poster) => {}
                _ => wrong += 1,
            }
        }
        (sum, wrong)
    }
}

/// A post that its poster owns.
struct OwnedErrand(usize);

/// A post that exists once for each CPU and is merged if it is queued already.
struct SharedErrand(usize);

/// Deferred work.
struct Work {
    number: usize,
    /// The address of the plan: see [`Plan::from_address`].
    plan: usize,
}

impl Deferred<SimMachine> for OwnedErrand {
    type Handle = Box<Post<SimMachine, Self>>;

    fn run(post: Self::Handle) {
        POSTS.with_borrow_mut(|books| books.end(post.value().0, None));
        runs_as_a_post();
    }

    fn abandoned(post: Self::Handle, cpu: Cpu) {
        POSTS.with_borrow_mut(|books| books.end(post.value().0, Some(cpu)));
        runs_as_a_post();
    }
}

impl Deferred<SimMachine> for SharedErrand {
    type Handle = &'static Post<SimMachine, Self>;

    fn run(post: Self::Handle) {
        SHARED.with_borrow_mut(|shared| shared.ended[post.value().0] += 1);
        runs_as_a_post();
    }

    fn abandoned(post: Self::Handle, _: Cpu) {
        SHARED.with_borrow_mut(|shared| shared.abandoned += 1);
        Self::run(post);
    }
}

fn runs_as_a_post() {
    if SimMachine::interrupts_enabled() || is_stopped() {
        POSTS.with_borrow_mut(|books| books.wrong += 1);
    }
    crashes::point(Context::Post);
}

impl Deferred<SimMachine> for Work {
    type Handle = Box<Post<SimMachine, Self>>;
    const IS_WORK: bool = true;

    fn run(work: Self::Handle) {
        let me = SimMachine::current_cpu().index();
        let nested = WORKING.with_borrow_mut(|working| core::mem::replace(&mut working[me], true));
        WORK.with_borrow_mut(|books| {
            books.end(work.value().number, None);
            books.wrong += u64::from(nested || !SimMachine::interrupts_enabled() || is_stopped());
        });
        // The machine may go on without this CPU, which then owns nothing.
        let plan = work.value().plan;
        drop(work);
        crashes::point(Context::Work);
        advance(Duration::from_nanos(random(2_000)));
        if random(8) == 0 {
            // SAFETY: the plan outlives the machine, which runs work only while it exists.
            unsafe { Plan::from_address(plan) }.call_from_work();
        }
        WORKING.with_borrow_mut(|working| working[me] = false);
    }

    fn abandoned(work: Self::Handle, cpu: Cpu) {
        WORK.with_borrow_mut(|books| books.end(work.value().number, Some(cpu)));
    }
}

/// What this CPU was in the middle of is gone: it was fenced.
pub(super) fn forget_work_of(cpu: Cpu) {
    WORKING.with_borrow_mut(|working| working[cpu.index()] = false);
}

/// So many CPUs are about to run the closure of a rendezvous: nobody serves before the last of them has.
pub(super) fn stop_for(runners: usize) {
    if !is_stopped() {
        STOPPED.set(runners);
    }
}

/// One of them has run it.
pub(super) fn has_run() {
    STOPPED.set(STOPPED.get().saturating_sub(1));
}

/// Whether some CPU has yet to end the closure of a rendezvous that another one has begun.
pub(super) fn is_stopped() -> bool {
    STOPPED.get() > 0
}

/// Posts something that is owned.
pub(super) fn post_owned(target: Cpu) {
    let number = POSTS.with_borrow_mut(|books| books.begin(target));
    let posted = Calls::post::<OwnedErrand>(target, Box::new(Post::new(OwnedErrand(number))));
    POSTS.with_borrow_mut(|books| books.told(number, posted.map_err(|error| error.reason)));
}

/// Posts what exists once for CPU `whose`.
pub(super) fn post_shared(target: Cpu, whose: Cpu) {
    let posted = Calls::post::<SharedErrand>(target, shared_post(whose));
    SHARED.with_borrow_mut(|shared| match posted {
        Ok(Posted::Queued) => shared.queued[whose.index()] += 1,
        Ok(Posted::Merged) => shared.merged += 1,
        Err(_) => shared.refused += 1,
    });
}

fn shared_post(cpu: Cpu) -> &'static Post<SimMachine, SharedErrand> {
    SHARED.with_borrow_mut(|shared| {
        while shared.posts.len() <= cpu.index() {
            let number = shared.posts.len();
            shared.posts.push(Box::leak(Box::new(Post::new(SharedErrand(number)))));
        }
        shared.posts[cpu.index()]
    })
}

/// Defers work to `target`.
pub(super) fn defer(target: Cpu, plan: &Plan<'_>) {
    let number = WORK.with_borrow_mut(|books| books.begin(target));
    let work = Work { number, plan: plan.address() };
    let posted = Calls::post::<Work>(target, Box::new(Post::new(work)));
    WORK.with_borrow_mut(|books| books.told(number, posted.map_err(|error| error.reason)));
}

impl Books {
    fn told(&mut self, number: usize, posted: Result<Posted, PostRefusal>) {
        match posted {
            Ok(Posted::Queued) => self.entries[number].outcome = Outcome::Queued,
            Err(_) => self.entries[number].outcome = Outcome::Refused,
            // Nobody else has it.
            Ok(Posted::Merged) => self.wrong += 1,
        }
    }
}
