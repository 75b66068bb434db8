//! The books of a workload: what was asked for on the one side, what was run on the other, and the balance of the two.
//!
//! Each page is one CPU's, and written by that CPU only, with interrupts disabled. The pages are compared when nothing is
//! under way any more.

use smpcall_machine::{Counter, Cpu, CpuMask, InterruptsOff, Machine};

use crate::apic;
use crate::console::say;
use crate::cpu::MAX_CPUS;
use crate::machine::{Cpus, Lab};

macro_rules! page {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// A page of the books.
        pub(super) struct Page { $($(#[doc = $doc])+ pub(super) $name: Counter,)+ }

        impl Page {
            const NEW: Self = Self { $($name: Counter::new(0),)+ };

            fn clear(&self) {
                $(self.$name.set(0);)+
            }
        }

        /// The sum of all pages.
        #[derive(Clone, Copy, Debug, Default)]
        pub(super) struct Sum { $($(#[doc = $doc])+ pub(super) $name: u64,)+ }

        impl Sum {
            fn add(&mut self, page: &Page) {
                $(self.$name += page.$name.get();)+
            }
        }
    };
}

page! {
    /// Operations that have ended, one way or the other.
    operations,
    /// Calls that ended well, one for each target.
    completed,
    /// Calls that were told not to have run, one for each target: offline.
    refused,
    /// The same: no call level.
    busy,
    /// The same: nobody had claimed it by the deadline.
    timed_out,
    /// Calls that failed in any other way: there is none that should.
    failed,
    /// Closures of calls that ran on this CPU.
    ran,
    /// They ran on another CPU than they were sent to.
    wrong_cpu,
    /// With interrupts enabled.
    interrupts_enabled,
    /// While all CPUs stood still for each other.
    in_rendezvous,
    /// They saw other data than the caller had written, or the caller other data than they had.
    wrong_data,
    /// They ran twice, or although the caller was told that they did not.
    wrong_runs,
    /// Posts queued.
    queued,
    /// Posts merged with one that was queued.
    merged,
    /// Posts refused: of a CPU that is offline, queued on another one, just being queued.
    posts_refused,
    /// Posts run.
    posts_run,
    /// Posts handed over because their CPU went offline.
    posts_abandoned,
    /// Reschedules asked for.
    reschedules,
}

static PAGES: [Page; MAX_CPUS] = [const { Page::NEW }; MAX_CPUS];

/// The page of the running CPU. With interrupts disabled.
fn mine() -> &'static Page {
    &PAGES[Lab::current_cpu().index()]
}

/// Enters something into the page of the running CPU.
pub(super) fn note(enter: impl FnOnce(&Page)) {
    let pinned = InterruptsOff::<Lab>::new();
    enter(mine());
    drop(pinned);
}

/// Begins new books. While nothing is under way.
pub(super) fn begin() {
    for page in &PAGES {
        page.clear();
    }
}

/// How many operations of a CPU have ended.
pub(super) fn operations_of(cpu: Cpu) -> u64 {
    PAGES[cpu.index()].operations.get()
}

/// The sum of all pages.
pub(super) fn sum() -> Sum {
    let mut sum = Sum::default();
    for page in &PAGES {
        sum.add(page);
    }
    sum
}

impl Sum {
    /// Everything that must never happen.
    pub(super) fn violations(&self) -> u64 {
        self.wrong_cpu
            + self.interrupts_enabled
            + self.in_rendezvous
            + self.wrong_data
            + self.wrong_runs
            + self.failed
    }

    /// Whether every call and every post is accounted for, on both sides.
    pub(super) fn balances(&self) -> bool {
        self.violations() == 0
            && self.completed == self.ran
            && self.queued == self.posts_run + self.posts_abandoned
    }

    /// For people.
    pub(super) fn print(&self) {
        say!("{self:?}");
    }
}

/// What a caller sends along: words that belong together.
pub(super) struct Message([u64; 4]);

impl Message {
    /// Any.
    pub(super) fn random() -> Self {
        let first = crate::random::next();
        Self([first, first.rotate_left(17), !first, first.wrapping_mul(0x9e37_79b9_7f4a_7c15)])
    }

    /// What is answered to it on a CPU; none if the words do not belong together.
    pub(super) fn answer(&self, cpu: Cpu) -> Option<u64> {
        let Self([first, rotated, inverse, product]) = *self;
        let whole = rotated == first.rotate_left(17)
            && inverse == !first
            && product == first.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        whole.then(|| self.expected(cpu))
    }

    /// What should be answered.
    pub(super) fn expected(&self, cpu: Cpu) -> u64 {
        self.0[0] ^ self.0[3].wrapping_add(u64::from(cpu.number()))
    }

    /// The body of every closure: enters that it ran, and answers.
    pub(super) fn receive(&self, sent_to: Option<Cpu>) -> u64 {
        let here = Lab::current_cpu();
        let answer = self.answer(here);
        let page = mine();
        page.ran.add(1);
        page.wrong_cpu.add(u64::from(sent_to.is_some_and(|cpu| cpu != here)));
        page.interrupts_enabled.add(u64::from(Lab::interrupts_enabled()));
        page.in_rendezvous.add(u64::from(super::rendezvous::is_running()));
        page.wrong_data.add(u64::from(answer.is_none()));
        answer.unwrap_or(0)
    }
}

/// All CPUs that the machine has.
pub(super) fn everybody() -> Cpus {
    apic::all().collect()
}

/// Whether one set holds all members of another one.
pub(super) fn includes(whole: &CpuMask, part: &CpuMask) -> bool {
    part.iter().all(|cpu| whole.contains(cpu))
}
