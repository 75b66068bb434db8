//! Exploring one mutant, in a process of its own.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use smpcall_simulator::explorer::report::Limits;
use smpcall_simulator::explorer::run::explore_and_explain;
use smpcall_simulator::explorer::{MemoryModel, Plan, Protocol, Setup};
use smpcall_simulator::mutant::Mutant;

/// What became of a mutant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It breaks a law.
    Killed {
        /// In which protocol, on which memory.
        by: String,
        /// The law, by its short name.
        law: String,
        /// In words.
        what: String,
        /// Decisions of the shortest counterexample found: operations, interrupts taken, stores that reach memory, time that
        /// passes; without operations that nobody else can notice, which are no decisions.
        operations: u32,
        /// With those.
        all_operations: u32,
        /// Faults of the machine in it: lost messages, forced deadlines.
        faults: u32,
        /// Whether there is none shorter.
        shortest: bool,
        /// The counterexample.
        schedule: String,
    },
    /// Nothing is broken.
    Survived {
        /// How often its place was come to.
        reached: u64,
        /// Explorations that did not come to their end.
        incomplete: Vec<String>,
    },
    /// The process ended, or did not end, without a word.
    Crashed(String),
}

/// One exploration of all states.
pub(crate) fn attempt(
    protocol: &Protocol,
    memory: MemoryModel,
    mutant: &Mutant,
    limits: Limits,
) -> (Option<Fate>, bool) {
    let mut setup = Setup::new(protocol.bounds);
    setup.memory = memory;
    setup.mutant = Some(mutant.clone());
    let mut plan = Plan::new(setup);
    plan.limits = limits;
    let (exploration, counterexample) =
        explore_and_explain(protocol, &plan, &()).expect("there is such a machine");
    let complete = exploration.is_complete();
    let by = format!("{} {memory:?}", protocol.name);
    let killed = exploration.found.map(|found| {
        let (operations, all_operations, faults, shortest, schedule) = match counterexample {
            Some(short) => {
                let all = short.schedule.choices.len() as u32;
                let schedule = short.schedule.to_string();
                (short.after.operations, all, short.after.faults, short.shortest, schedule)
            }
            None => (found.schedule.len() as u32, found.schedule.len() as u32, 0, false, String::new()),
        };
        let smpcall_simulator::explorer::Violation { law, what, .. } = found.violation;
        Fate::Killed { by, law, what, operations, all_operations, faults, shortest, schedule }
    });
    (killed, complete)
}

impl Fate {
    /// As one line that [`read`](Self::read) reads.
    pub(crate) fn line(&self) -> String {
        match self {
            Self::Killed { by, law, what, operations, all_operations, faults, shortest, schedule } => {
                format!(
                    "FATE\tkilled\t{by}\t{law}\t{}\t{operations}\t{all_operations}\t{faults}\t{shortest}\t{schedule}",
                    what.replace(['\t', '\n'], " ")
                )
            }
            Self::Survived { reached, incomplete } => {
                format!("FATE\tsurvived\t{reached}\t{}", incomplete.join(","))
            }
            Self::Crashed(how) => format!("FATE\tcrashed\t{}", how.replace(['\t', '\n'], " ")),
        }
    }

    /// What a process has printed.
    fn read(output: &str) -> Option<Self> {
        let at = output.find("FATE\t")?;
        let fields: Vec<&str> = output[at..].lines().next()?.split('\t').collect();
        let own = |at: usize| fields.get(at).map(|&field| field.to_owned());
        Some(match *fields.get(1)? {
            "killed" => Self::Killed {
                by: own(2)?,
                law: own(3)?,
                what: own(4)?,
                operations: own(5)?.parse().ok()?,
                all_operations: own(6)?.parse().ok()?,
                faults: own(7)?.parse().ok()?,
                shortest: own(8)?.parse().ok()?,
                schedule: own(9)?,
            },
            "survived" => Self::Survived {
                reached: own(2)?.parse().ok()?,
                incomplete: own(3)?.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
            },
            _ => Self::Crashed(own(2)?),
        })
    }
}

/// What says which mutant a process is for.
pub(crate) const VARIABLE: &str = "SMPCALL_MUTANT";

/// Explores a mutant in another process of this test program, which runs the test `test` with the mutant's name in
/// [`VARIABLE`]: a mutant may well crash.
pub(crate) fn in_own_process(test: &str, name: &str, patience: Duration) -> Fate {
    let program = std::env::current_exe().expect("a test program has a path");
    let mut child = Command::new(program)
        .args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(VARIABLE, name)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a test program can be started again");
    let mut stdout = child.stdout.take().expect("it was asked for");
    let reader = std::thread::spawn(move || {
        let mut output = String::new();
        let _ = stdout.read_to_string(&mut output);
        output
    });
    let start = Instant::now();
    let status = loop {
        match child.try_wait().expect("a child can be waited for") {
            Some(status) => break format!("{status}"),
            None if start.elapsed() > patience => {
                let _ = child.kill();
                let _ = child.wait();
                break "no end".to_owned();
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let output = reader.join().expect("reading does not panic");
    Fate::read(&output).unwrap_or(Fate::Crashed(status))
}

/// Runs `work` for each item, on two threads; the results are in the order of the items.
pub(crate) fn on_two_threads<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let results = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((index, item)) = {
                    // Relaxed: only the number counts.
                    let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    items.get(index).map(|item| (index, item))
                } {
                    let result = work(item);
                    results.lock().expect("no thread panics").push((index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no thread panics");
    results.sort_by_key(|&(index, _)| index);
    results.into_iter().map(|(_, result)| result).collect()
}
