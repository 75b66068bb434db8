//! What each CPU of a campaign does: random calls, posts and requests, from every context, entered in the books.

use core::time::Duration;
use std::cell::{Cell, RefCell};

use smpcall::{CallError, Caller, Cpu, CpuMask, Deferred, ManyError, Post, Posted};
use smpcall_machine::{InterruptsOff, Machine};

use super::ledger::{Ledger, Outcome};
use crate::SimMachine;
use crate::kernel::Calls;
use crate::machine::SimCpuSet;
use crate::program::{advance, random};

/// What all CPUs of a campaign have in common.
pub(super) struct Plan<'a> {
    pub(super) ledger: &'a Ledger,
    pub(super) cpus: u64,
    /// Whether callers may wait for ever: not if somebody may be dead for ever.
    pub(super) patient: bool,
    /// Handlers of rings and closures work at most this long: shorter than the first back-off.
    pub(super) longest_closure: Duration,
}

thread_local! {
    /// Posts that this thread's machines have run since the campaign began.
    static POSTS_RUN: Cell<u64> = const { Cell::new(0) };
    /// Posts that can be posted again and again. They live for ever, so they are kept for the next campaign.
    static SHARED_POSTS: RefCell<Vec<&'static Post<SimMachine, SharedErrand>>> = const { RefCell::new(Vec::new()) };
}

/// How many posts were run since this was called last.
pub(super) fn take_posts_run() -> u64 {
    POSTS_RUN.replace(0)
}

/// A post that its poster owns.
struct OwnedErrand;

/// A post that exists once for each CPU and is merged if it is queued already.
struct SharedErrand;

impl Deferred<SimMachine> for OwnedErrand {
    type Handle = Box<Post<SimMachine, Self>>;

    fn run(_: Self::Handle) {
        POSTS_RUN.set(POSTS_RUN.get() + 1);
    }
}

impl Deferred<SimMachine> for SharedErrand {
    type Handle = &'static Post<SimMachine, Self>;

    fn run(_: Self::Handle) {
        POSTS_RUN.set(POSTS_RUN.get() + 1);
    }
}

fn shared_post(cpu: Cpu) -> &'static Post<SimMachine, SharedErrand> {
    SHARED_POSTS.with_borrow_mut(|posts| {
        while posts.len() <= cpu.index() {
            posts.push(Box::leak(Box::new(Post::new(SharedErrand))));
        }
        posts[cpu.index()]
    })
}

/// Forgets posts that a dead CPU of the last machine still had: their state says that they are queued.
pub(super) fn renew_shared_posts() {
    SHARED_POSTS.with_borrow_mut(Vec::clear);
}

impl Plan<'_> {
    /// The program of one CPU: goes on until the books are full.
    pub(super) fn run(&self) {
        loop {
            advance(Duration::from_nanos(random(4_000)));
            let go_on = match random(100) {
                0..40 => self.one(false),
                40..55 => self.one(true),
                55..67 => self.many(),
                67..72 => self.any(),
                72..77 => self.inline(),
                77..84 => self.nested(),
                84..97 => self.post(),
                _ => self.reschedule(),
            };
            super::forget_overdue();
            if !go_on {
                return;
            }
        }
    }

    fn random_cpu(&self) -> Cpu {
        Cpu::new(random(self.cpus) as u32)
    }

    fn caller(&self) -> Caller<'static, SimMachine> {
        match random(8) {
            0..4 if self.patient => Calls::for_ever(),
            4 => Calls::within(Duration::from_micros(random(60))),
            5 => Calls::within(Duration::from_micros(random(1_000))),
            _ => Calls::within(Duration::from_millis(20)),
        }
    }

    fn work(&self) {
        advance(Duration::from_nanos(random(self.longest_closure.as_nanos() as u64)));
    }

    /// The closure of call number `call` runs here, and should run on `target`.
    fn runs_on(&self, call: usize, target: Cpu) {
        self.ledger.run(call);
        if SimMachine::current_cpu() != target || SimMachine::interrupts_enabled() {
            Ledger::count(&self.ledger.wrong);
        }
        self.work();
    }

    /// Enters what the caller was told. The echo shows whether the closure's writes are there exactly if it ran.
    fn settle(&self, call: usize, target: Cpu, echo: u64, result: Result<u64, CallError>) {
        let ran = result.is_ok();
        let expected_echo = if ran { !(call as u64) } else { call as u64 };
        let expected = u64::from(target.number()) << 32 | call as u64;
        if echo != expected_echo || result.is_ok_and(|result| result != expected) {
            Ledger::count(&self.ledger.wrong);
        }
        self.ledger.tell(call, if ran { Outcome::Completed } else { Outcome::NotRun });
    }

    /// A call to one CPU whose closure borrows and returns a value; with interrupts on or off.
    fn one(&self, interrupts_off: bool) -> bool {
        let Some(call) = self.ledger.begin(1) else { return false };
        self.call_one(call.start, self.random_cpu(), interrupts_off);
        true
    }

    fn call_one(&self, call: usize, target: Cpu, interrupts_off: bool) {
        let mut echo = call as u64;
        let closure = || {
            self.runs_on(call, target);
            echo = !echo;
            u64::from(target.number()) << 32 | call as u64
        };
        let result = if interrupts_off {
            let mut guard = InterruptsOff::new();
            self.caller().with_interrupts_off(&mut guard).call(target, closure)
        } else {
            self.caller().call(target, closure)
        };
        self.settle(call, target, echo, result);
    }

    /// A call whose closure calls another CPU.
    fn nested(&self) -> bool {
        let Some(calls) = self.ledger.begin(2) else { return false };
        let (outer, inner) = (calls.start, (calls.len() == 2).then_some(calls.start + 1));
        let (target, next) = (self.random_cpu(), self.random_cpu());
        let mut echo = outer as u64;
        let result = self.caller().call(target, || {
            self.runs_on(outer, target);
            if let Some(inner) = inner {
                self.call_one(inner, next, true);
            }
            echo = !echo;
            u64::from(target.number()) << 32 | outer as u64
        });
        if let (Err(_), Some(inner)) = (&result, inner) {
            // Its caller never came to it.
            self.ledger.tell(inner, Outcome::NotRun);
        }
        self.settle(outer, target, echo, result);
        true
    }

    /// A call to many: a random set, those that a predicate picks, all the others, or all.
    fn many(&self) -> bool {
        let me = SimMachine::current_cpu();
        let mut set = SimCpuSet::EMPTY;
        let shape = random(8);
        // Broadcasts are dear on large machines; there, most sets are small.
        let everybody = shape < 2 && (self.cpus <= 16 || random(self.cpus) < 16);
        if everybody {
            set.extend((0..self.cpus as u32).map(Cpu::new));
            if shape == 0 {
                set.remove(me);
            }
        } else {
            for _ in 0..=random(self.cpus.min(12)) {
                set.insert(self.random_cpu());
            }
        }
        if set.is_empty() {
            return true;
        }
        let Some(calls) = self.ledger.begin(set.len()) else { return false };
        let cut = calls.len() < set.len();
        while calls.len() < set.len() {
            let last = set.iter().last();
            last.map(|cpu| set.remove(cpu));
        }

        let first = calls.start;
        let closure = |cpu: Cpu| self.runs_on(first + rank(&set, cpu), cpu);
        let result = match shape {
            0 if everybody && !cut => self.caller().call_others(closure),
            1 if everybody && !cut => self.caller().call_all(closure),
            2 | 3 => self.caller().call_if(|cpu| set.contains(cpu), closure),
            4 => {
                let mut results = vec![None; self.cpus as usize];
                let result = self.caller().call_many_into(&set, &mut results, |cpu| {
                    closure(cpu);
                    cpu
                });
                self.check_results(&set, &results, &result);
                result
            }
            5 => {
                let mut guard = InterruptsOff::new();
                self.caller().with_interrupts_off(&mut guard).call_many(&set, closure)
            }
            _ => self.caller().call_many(&set, closure),
        };
        for target in &*set {
            let ran = match &result {
                Ok(()) => true,
                Err(ManyError::NotSent(_)) => false,
                Err(ManyError::Failed(failures)) => {
                    !failures.offline.contains(target) && !failures.timed_out.contains(target)
                }
            };
            let outcome = if ran { Outcome::Completed } else { Outcome::NotRun };
            self.ledger.tell(first + rank(&set, target), outcome);
        }
        true
    }

    fn check_results(
        &self,
        set: &CpuMask,
        results: &[Option<Cpu>],
        result: &Result<(), ManyError<SimMachine>>,
    ) {
        let failed = |cpu| match result {
            Ok(()) => false,
            Err(ManyError::NotSent(_)) => true,
            Err(ManyError::Failed(failures)) => {
                failures.timed_out.contains(cpu) || failures.offline.contains(cpu)
            }
        };
        for (number, &result) in results.iter().enumerate() {
            let cpu = Cpu::new(number as u32);
            let expected = (set.contains(cpu) && !failed(cpu)).then_some(cpu);
            if result != expected {
                Ledger::count(&self.ledger.wrong);
            }
        }
    }

    /// A call to any of a few.
    fn any(&self) -> bool {
        let Some(call) = self.ledger.begin(1) else { return false };
        let call = call.start;
        let candidates: SimCpuSet = [self.random_cpu(), self.random_cpu()].into_iter().collect();
        let mut echo = call as u64;
        let result = self.caller().call_any(&candidates, || {
            let here = SimMachine::current_cpu();
            self.runs_on(call, here);
            echo = !echo;
            u64::from(here.number()) << 32 | call as u64
        });
        if result.is_ok_and(|(cpu, _)| !candidates.contains(cpu)) {
            Ledger::count(&self.ledger.wrong);
        }
        let (target, result) = match result {
            Ok((target, result)) => (target, Ok(result)),
            Err(error) => (Cpu::new(0), Err(error)),
        };
        self.settle(call, target, echo, result);
        true
    }

    /// A call whose closure borrows nothing, so that its caller may leave.
    fn inline(&self) -> bool {
        let Some(call) = self.ledger.begin(1) else { return false };
        let call = call.start;
        let target = self.random_cpu();
        let plan = core::ptr::from_ref(self).expose_provenance();
        let result = self.caller().call_static(target, move || {
            // SAFETY: the plan outlives the machine, which runs closures only while it exists.
            let plan = unsafe { &*core::ptr::with_exposed_provenance::<Plan<'_>>(plan) };
            plan.runs_on(call, target);
        });
        let outcome = match result {
            Ok(()) => Outcome::Completed,
            Err(CallError::Unfinished(_)) => Outcome::LeftClaimed,
            Err(_) => Outcome::NotRun,
        };
        self.ledger.tell(call, outcome);
        true
    }

    /// One post, or a burst.
    fn post(&self) -> bool {
        let target = self.random_cpu();
        for _ in 0..=random(4) {
            let (posted, refused) = if random(3) == 0 {
                let posted = Calls::post::<SharedErrand>(target, shared_post(self.random_cpu()));
                (posted.as_ref().ok().copied(), posted.is_err())
            } else {
                let posted = Calls::post::<OwnedErrand>(target, Box::new(Post::new(OwnedErrand)));
                (posted.as_ref().ok().copied(), posted.is_err())
            };
            let books = &self.ledger.posts;
            match posted {
                Some(Posted::Queued) => Ledger::count(&books.queued),
                Some(Posted::Merged) => Ledger::count(&books.merged),
                None => {}
            }
            if refused {
                Ledger::count(&books.refused);
            }
        }
        true
    }

    fn reschedule(&self) -> bool {
        if Calls::reschedule(self.random_cpu()).is_err() {
            Ledger::count(&self.ledger.wrong);
        }
        true
    }
}

/// How many members of the set are below `cpu`.
fn rank(set: &CpuMask, cpu: Cpu) -> usize {
    let word = cpu.index() / 64;
    let below = set.words()[..word].iter().map(|word| word.count_ones() as usize).sum::<usize>();
    below + (set.words()[word] & ((1 << (cpu.number() % 64)) - 1)).count_ones() as usize
}
