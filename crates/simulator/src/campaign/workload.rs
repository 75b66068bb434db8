//! What each CPU of a campaign does: random calls, posts and requests, from every context, entered in the books.

use core::fmt;
use core::str::FromStr;
use core::time::Duration;

use smpcall::{CallError, Caller, Cpu, CpuMask, ManyError};
use smpcall_machine::{InterruptsOff, Machine};

use super::churn::{self, Churn};
use super::crashes::{self, Context};
use super::errands;
use super::ledger::{Ledger, Outcome};
use crate::SimMachine;
use crate::kernel::Calls;
use crate::machine::SimCpuSet;
use crate::program::{advance, random};
use crate::state::expect_current;

/// What the CPUs of a campaign do, beside calls. The text form is a list separated by commas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "independent choices")]
pub struct Workload {
    /// They post to each other.
    pub posts: bool,
    /// They defer work to each other.
    pub work: bool,
    /// They take each other down, and up.
    pub hotplug: bool,
    /// They declare each other dead, the living too, whose answer then has less than 1 us to arrive: many of these are
    /// fenced, wherever they are.
    pub fencing: bool,
    /// They stop all others and run something.
    pub rendezvous: bool,
}

impl Workload {
    /// Calls and posts: nobody comes or goes.
    pub const CALLS: Self = Self { posts: true, ..Self::NOTHING_ELSE };
    /// All but fencing: no call is orphaned by that.
    pub const MIXED: Self = Self { work: true, hotplug: true, rendezvous: true, ..Self::CALLS };
    /// All there is.
    pub const ALL: Self = Self { fencing: true, ..Self::MIXED };

    const NOTHING_ELSE: Self =
        Self { posts: false, work: false, hotplug: false, fencing: false, rendezvous: false };

    /// Whether CPUs come and go.
    pub(super) const fn changes_cpus(self) -> bool {
        self.hotplug || self.fencing
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("calls")?;
        for (name, is_in) in [
            ("posts", self.posts),
            ("work", self.work),
            ("hotplug", self.hotplug),
            ("fencing", self.fencing),
            ("rendezvous", self.rendezvous),
        ] {
            if is_in {
                write!(f, ",{name}")?;
            }
        }
        Ok(())
    }
}

/// Why a text is no workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParseWorkloadError {
    /// There is no such activity.
    Unknown(String),
    /// Calls are missing, by whose number a campaign ends.
    NoCalls,
}

impl fmt::Display for ParseWorkloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(name) => write!(
                f,
                "a workload is a list of calls, posts, work, hotplug, fencing and rendezvous, or all; not `{name}`"
            ),
            Self::NoCalls => f.write_str("a workload needs calls: their number says when the campaign ends"),
        }
    }
}

impl core::error::Error for ParseWorkloadError {}

impl FromStr for Workload {
    type Err = ParseWorkloadError;

    fn from_str(text: &str) -> Result<Self, ParseWorkloadError> {
        let mut workload = Self::NOTHING_ELSE;
        let mut calls = false;
        for name in text.split(',').map(str::trim) {
            match name {
                "all" => (workload, calls) = (Self::ALL, true),
                "calls" => calls = true,
                "posts" => workload.posts = true,
                "work" => workload.work = true,
                "hotplug" => workload.hotplug = true,
                "fencing" => workload.fencing = true,
                "rendezvous" => workload.rendezvous = true,
                _ => return Err(ParseWorkloadError::Unknown(name.into())),
            }
        }
        if calls { Ok(workload) } else { Err(ParseWorkloadError::NoCalls) }
    }
}

/// What all CPUs of a campaign have in common.
pub(super) struct Plan<'a> {
    pub(super) ledger: &'a Ledger,
    pub(super) cpus: u64,
    pub(super) workload: Workload,
    /// Whether callers may wait for ever: not if somebody may be dead for ever.
    pub(super) patient: bool,
    /// Handlers of rings and closures work at most this long: shorter than the first back-off.
    pub(super) longest_closure: Duration,
    pub(super) churn: Churn,
}

impl Plan<'_> {
    /// For what cannot borrow it: see [`from_address`](Self::from_address).
    pub(super) fn address(&self) -> usize {
        core::ptr::from_ref(self).expose_provenance()
    }

    /// # Safety
    /// The address is that of a plan that is alive.
    pub(super) unsafe fn from_address<'p>(address: usize) -> &'p Plan<'p> {
        // SAFETY: promised by the caller; the address was exposed.
        unsafe { &*core::ptr::with_exposed_provenance::<Plan<'_>>(address) }
    }

    /// The program of one CPU: goes on until the books are full.
    pub(super) fn run(&self) {
        let me = SimMachine::current_cpu();
        churn::set_busy(me, true);
        loop {
            self.pause();
            crashes::point(Context::Task);
            self.stir();
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
                break;
            }
        }
        churn::set_busy(me, false);
        if self.workload.changes_cpus() && me.index() == 0 {
            self.tidy();
        }
    }

    /// A call of deferred work.
    pub(super) fn call_from_work(&self) {
        self.one(false);
        super::forget_overdue();
    }

    fn begin(&self, wanted: usize) -> Option<core::ops::Range<usize>> {
        self.ledger.begin(SimMachine::current_cpu(), wanted)
    }

    pub(super) fn random_cpu(&self) -> Cpu {
        Cpu::new(random(self.cpus) as u32)
    }

    fn caller(&self) -> Caller<'static, SimMachine> {
        // What is served on top of a controller that fences a CPU, and waits for that CPU for ever, keeps the controller from
        // settling the call that it waits for.
        let is_served = || expect_current().with(|machine| machine.cpu().handler_depth > 0);
        let patient = self.patient && !(self.workload.fencing && is_served());
        match random(8) {
            0..4 if patient => Calls::for_ever(),
            4 => Calls::within(Duration::from_micros(random(60))),
            5 => Calls::within(Duration::from_micros(random(1_000))),
            _ => Calls::within(Duration::from_millis(20)),
        }
    }

    pub(super) fn work(&self) {
        advance(Duration::from_nanos(random(self.longest_closure.as_nanos() as u64)));
    }

    /// The closure of call number `call` runs here, and should run on `target`.
    fn runs_on(&self, call: usize, target: Cpu) {
        self.ledger.run(call);
        self.ledger.must(
            SimMachine::current_cpu() == target
                && !SimMachine::interrupts_enabled()
                && !errands::is_stopped(),
        );
        crashes::point(Context::Closure);
        self.work();
    }

    /// Enters what the caller was told. The echo shows whether the closure's writes are there exactly if it ran.
    fn settle(&self, call: usize, target: Cpu, echo: u64, result: Result<u64, CallError>) {
        let outcome = outcome_of(&result);
        let expected_echo = if outcome == Outcome::Completed { !(call as u64) } else { call as u64 };
        let expected = u64::from(target.number()) << 32 | call as u64;
        // A target that died may have come to any point of it.
        self.ledger.must(outcome == Outcome::TargetDied || echo == expected_echo);
        self.ledger.must(result.is_ok_and(|result| result == expected) || outcome != Outcome::Completed);
        self.ledger.tell(call, outcome);
    }

    /// A call to one CPU whose closure borrows and returns a value; with interrupts on or off.
    fn one(&self, interrupts_off: bool) -> bool {
        let Some(call) = self.begin(1) else { return false };
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
        let Some(calls) = self.begin(2) else { return false };
        let (outer, inner) = (calls.start, (calls.len() == 2).then_some(calls.start + 1));
        let (target, next) = (self.random_cpu(), self.random_cpu());
        let mut echo = outer as u64;
        let result = self.caller().call(target, || {
            self.runs_on(outer, target);
            if let Some(inner) = inner {
                self.ledger.hand_over(inner, target);
                self.call_one(inner, next, true);
            }
            echo = !echo;
            u64::from(target.number()) << 32 | outer as u64
        });
        if let (Err(error), Some(inner)) = (&result, inner)
            && (*error != CallError::TargetDied || self.ledger.is_made_by(inner, SimMachine::current_cpu()))
        {
            // Its caller never came to it. (If the CPU was here the closure is not told of as having died.)
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
        let Some(calls) = self.begin(set.len()) else { return false };
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
        // A call to those that are online does not say which they were.
        let to_online = matches!(shape, 2 | 3) || everybody && !cut;
        let ran =
            if to_online && self.workload.changes_cpus() { Outcome::IfOnline } else { Outcome::Completed };
        for target in &*set {
            let outcome = match &result {
                Ok(()) => ran,
                Err(ManyError::Failed(failures)) if failures.died.contains(target) => Outcome::TargetDied,
                Err(ManyError::Failed(failures))
                    if !failures.offline.contains(target) && !failures.timed_out.contains(target) =>
                {
                    ran
                }
                Err(_) => Outcome::NotRun,
            };
            self.ledger.tell(first + rank(&set, target), outcome);
        }
        true
    }

    fn check_results(&self, set: &CpuMask, results: &[Option<Cpu>], all: &Result<(), ManyError<SimMachine>>) {
        let failed = |cpu| match all {
            Ok(()) => false,
            Err(ManyError::NotSent(_)) => true,
            Err(ManyError::Failed(failures)) => {
                failures.timed_out.contains(cpu)
                    || failures.offline.contains(cpu)
                    || failures.died.contains(cpu)
            }
        };
        for (number, &result) in results.iter().enumerate() {
            let cpu = Cpu::new(number as u32);
            let expected = (set.contains(cpu) && !failed(cpu)).then_some(cpu);
            // One that died may have left a result.
            let died = matches!(all, Err(ManyError::Failed(failures)) if failures.died.contains(cpu));
            self.ledger.must(result == expected || died);
        }
    }

    /// A call to any of a few.
    fn any(&self) -> bool {
        let Some(call) = self.begin(1) else { return false };
        let call = call.start;
        let candidates: SimCpuSet = [self.random_cpu(), self.random_cpu()].into_iter().collect();
        let mut echo = call as u64;
        let result = self.caller().call_any(&candidates, || {
            let here = SimMachine::current_cpu();
            self.runs_on(call, here);
            echo = !echo;
            u64::from(here.number()) << 32 | call as u64
        });
        self.ledger.must(!result.is_ok_and(|(cpu, _)| !candidates.contains(cpu)));
        let (target, result) = match result {
            Ok((target, result)) => (target, Ok(result)),
            Err(error) => (Cpu::new(0), Err(error)),
        };
        self.settle(call, target, echo, result);
        true
    }

    /// A call whose closure borrows nothing, so that its caller may leave.
    fn inline(&self) -> bool {
        let Some(call) = self.begin(1) else { return false };
        let call = call.start;
        let target = self.random_cpu();
        let plan = self.address();
        let result = self.caller().call_static(target, move || {
            // SAFETY: the plan outlives the machine, which runs closures only while it exists.
            let plan = unsafe { Plan::from_address(plan) };
            plan.runs_on(call, target);
        });
        let outcome = match result {
            Ok(()) => Outcome::Completed,
            Err(CallError::Unfinished(_)) => Outcome::LeftClaimed,
            Err(CallError::TargetDied) => Outcome::TargetDied,
            Err(_) => Outcome::NotRun,
        };
        self.ledger.tell(call, outcome);
        true
    }

    /// One post, or a burst.
    fn post(&self) -> bool {
        if self.workload.posts {
            let target = self.random_cpu();
            for _ in 0..=random(4) {
                if random(3) == 0 {
                    errands::post_shared(target, self.random_cpu());
                } else {
                    errands::post_owned(target);
                }
            }
        }
        true
    }

    fn reschedule(&self) -> bool {
        let asked = Calls::reschedule(self.random_cpu());
        self.ledger.must(asked.is_ok() || self.workload.changes_cpus() && asked == Err(CallError::Offline));
        true
    }
}

/// What its caller was told.
fn outcome_of<R>(result: &Result<R, CallError>) -> Outcome {
    match result {
        Ok(_) => Outcome::Completed,
        Err(CallError::TargetDied) => Outcome::TargetDied,
        Err(_) => Outcome::NotRun,
    }
}

/// How many members of the set are below `cpu`.
fn rank(set: &CpuMask, cpu: Cpu) -> usize {
    let word = cpu.index() / 64;
    let below = set.words()[..word].iter().map(|word| word.count_ones() as usize).sum::<usize>();
    below + (set.words()[word] & ((1 << (cpu.number() % 64)) - 1)).count_ones() as usize
}
