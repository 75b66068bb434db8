//! The suites: what is run, in which order, and how it is told.
//!
//! Lines that begin with `@ ` are for the program that runs the image: see the runner for what they mean.

use core::fmt;
use core::time::Duration;

use smpcall_machine::Cpu;

use crate::apic;
use crate::console::say;
use crate::crash::{Exit, exit};
use crate::machine::Calls;
use crate::options::Options;
use crate::tasks;

mod agree;
mod bench;
mod books;
mod calls;
mod conformance;
mod crash;
mod errands;
mod frozen;
mod hotplug;
mod incidents;
mod lockup;
mod lost;
mod posts;
mod rendezvous;
mod torture;

/// How long a CPU may take to say where it is.
const PATIENCE: Duration = Duration::from_secs(1);

/// A suite.
struct Suite {
    name: &'static str,
    /// Whether it is run when none is named.
    by_default: bool,
    run: fn(&mut Run),
}

const fn suite(name: &'static str, run: fn(&mut Run)) -> Suite {
    Suite { name, by_default: true, run }
}

const fn on_request(name: &'static str, run: fn(&mut Run)) -> Suite {
    Suite { name, by_default: false, run }
}

const SUITES: &[Suite] = &[
    suite("calls", calls::run),
    suite("posts", posts::run),
    suite("rendezvous", rendezvous::run),
    suite("hotplug", hotplug::run),
    suite("lost", lost::run),
    suite("lockup", lockup::run),
    suite("incident-1", incidents::lost_call),
    suite("incident-2", incidents::offline_queue),
    suite("incident-3", incidents::stuck_icr),
    on_request("agree", agree::run),
    on_request("frozen", frozen::run),
    on_request("conformance", conformance::run),
    on_request("crash", crash::random),
    on_request("incident-5", crash::pending),
    on_request("bench", bench::run),
];

/// A run of suites: what was asked for, and how many checks held.
pub(crate) struct Run {
    pub(crate) options: Options,
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Run {
    /// A check: `text` says what was found.
    pub(crate) fn check(&mut self, name: &str, held: bool, text: fmt::Arguments<'_>) {
        // Who checks has come somewhere.
        Calls::progress();
        if held {
            self.passed += 1;
            say!("@ pass {name} {text}");
        } else {
            self.failed += 1;
            say!("@ fail {name} {text}");
        }
    }

    /// A CPU does not end its task: says where all such CPUs are, and ends the run, because nothing can be given to them.
    pub(crate) fn hang(&mut self, name: &str, cpu: Cpu) -> ! {
        for cpu in apic::all().filter(|&cpu| !tasks::is_done(cpu)) {
            let traced = Calls::back_trace_of(cpu, PATIENCE);
            if let Err(error) = traced {
                say!("{cpu} has not ended its task, and {error}");
            }
        }
        self.check(name, false, format_args!("{cpu} hangs: the run ends here"));
        self.end()
    }

    /// Tells the sum, and leaves.
    fn end(&self) -> ! {
        say!("@ end {} {} {}", self.passed, self.failed, self.skipped);
        exit(if self.failed == 0 { Exit::Held } else { Exit::Failed })
    }

    /// What cannot be checked here, and why.
    pub(crate) fn skip(&mut self, name: &str, reason: fmt::Arguments<'_>) {
        self.skipped += 1;
        say!("@ skip {name} {reason}");
    }

    /// A figure.
    #[expect(clippy::unused_self, reason = "figures belong to a run")]
    pub(crate) fn count(&self, name: &str, value: u64) {
        say!("@ count {name} {value}");
    }

    /// How far a suite has come.
    #[expect(clippy::unused_self, reason = "as above")]
    pub(crate) fn progress(&self, name: &str, done: u64, total: u64) {
        Calls::progress();
        say!("@ progress {name} {done} {total}");
    }

    /// How many operations a suite is to make: what was asked for, or else this.
    pub(crate) fn operations(&self, otherwise: u64) -> u64 {
        self.options.operations.unwrap_or(otherwise)
    }

    /// Whether there are so many CPUs; if not, that is told.
    pub(crate) fn has_cpus(&mut self, name: &str, least: usize) -> bool {
        let enough = apic::count() >= least;
        if !enough {
            self.skip(name, format_args!("it takes {least} CPUs"));
        }
        enough
    }
}

/// The time between two ticks of a CPU; none if there are none.
fn tick_time() -> Option<Duration> {
    apic::tick_time()
}

/// Runs what is asked for, and ends.
pub(crate) fn run(options: &Options) -> ! {
    let mut run = Run { options: *options, passed: 0, failed: 0, skipped: 0 };
    if options.suites.is_empty() {
        for suite in SUITES.iter().filter(|suite| suite.by_default) {
            run_one(&mut run, suite);
        }
    } else {
        for name in options.suites.split(',') {
            match SUITES.iter().find(|suite| suite.name == name) {
                Some(suite) => run_one(&mut run, suite),
                None => run.check(name, false, format_args!("there is no suite of this name")),
            }
        }
    }
    run.end()
}

fn run_one(run: &mut Run, suite: &Suite) {
    say!("@ suite {} begin", suite.name);
    Calls::progress();
    (suite.run)(run);
    say!("@ suite {} end", suite.name);
}
