//! The torture: every CPU makes random operations of all kinds, as `scftorture` of Linux does, and everything is entered into
//! the books.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;

use smpcall::{CallError, Caller, ManyError};
use smpcall_machine::{Cpu, CpuMask, InterruptsOff};

use super::books::{self, Message, note};
use super::errands;
use crate::cpu::MAX_CPUS;
use crate::machine::{self, Calls, Cpus, Lab};
use crate::tasks::Step;
use crate::{apic, clock, hooks, random};

/// No call should take so long, however slow the machine is.
const LIMIT: Duration = Duration::from_secs(60);
/// Operations between two looks at whether the CPU is to go offline.
const SLICE: u64 = 32;
/// The closure of a long call.
const LONG: Duration = Duration::from_micros(100);

/// The operations, and how often each is chosen.
const WEIGHTS: [(Operation, u64); 14] = [
    (Operation::Call, 24),
    (Operation::CallStatic, 4),
    (Operation::InterruptsOff, 10),
    (Operation::Nested, 8),
    (Operation::FromInterrupt, 8),
    (Operation::Long, 2),
    (Operation::Many, 8),
    (Operation::ManyInto, 4),
    (Operation::All, 2),
    (Operation::Others, 2),
    (Operation::Any, 6),
    (Operation::If, 2),
    (Operation::Post, 12),
    (Operation::Reschedule, 8),
];

#[derive(Clone, Copy)]
enum Operation {
    Call,
    CallStatic,
    InterruptsOff,
    Nested,
    FromInterrupt,
    Long,
    Many,
    ManyInto,
    All,
    Others,
    Any,
    If,
    Post,
    Reschedule,
}

/// How many operations each CPU is to make.
static QUOTA: AtomicU64 = AtomicU64::new(0);

/// Begins new books, for so many operations in all. While nothing is under way.
pub(super) fn begin(operations: u64) {
    books::begin();
    errands::begin();
    // Relaxed: the tasks are given afterwards.
    QUOTA.store(operations.div_ceil(apic::count().max(1) as u64), Relaxed);
    hooks::on_device(Some(from_interrupt));
}

/// How many operations were asked for in all.
pub(super) fn total() -> u64 {
    QUOTA.load(Relaxed) * apic::count() as u64
}

/// The task of each CPU.
pub(super) fn task(me: Cpu) -> Step {
    let quota = QUOTA.load(Relaxed);
    for _ in 0..SLICE {
        if books::operations_of(me) >= quota {
            return Step::Done;
        }
        if machine::is_asked_to_go() {
            return Step::Again;
        }
        operate();
        note(|page| page.operations.add(1));
    }
    Calls::progress();
    Step::Again
}

fn choose() -> Operation {
    let total: u64 = const {
        let (mut total, mut index) = (0, 0);
        while index < WEIGHTS.len() {
            total += WEIGHTS[index].1;
            index += 1;
        }
        total
    };
    let mut chosen = random::below(total);
    for (operation, weight) in WEIGHTS {
        if chosen < weight {
            return operation;
        }
        chosen -= weight;
    }
    Operation::Call
}

/// Whether a CPU has operations left to make.
pub(super) fn is_under_way(cpu: Cpu) -> bool {
    books::operations_of(cpu) < QUOTA.load(Relaxed)
}

fn any_cpu() -> Cpu {
    Cpu::new(random::below(apic::count() as u64) as u32)
}

/// Each CPU with a probability of one half; on large machines of one in so many that eight are expected.
pub(super) fn any_cpus() -> Cpus {
    let one_in = (apic::count() as u64 / 8).max(2);
    apic::all().filter(|_| random::below(one_in) == 0).collect()
}

fn operate() {
    match choose() {
        Operation::Call => call(Calls::within(LIMIT), any_cpu()),
        Operation::CallStatic => call_static(any_cpu()),
        Operation::InterruptsOff => call_with_interrupts_off(any_cpu()),
        Operation::Nested => nested(any_cpu()),
        // The handler has run when this returns, unless interrupts are disabled, which they are not.
        Operation::FromInterrupt => drop(apic::send_self(apic::DEVICE)),
        Operation::Long => long(any_cpu()),
        Operation::Many => {
            let targets = any_cpus();
            many(Some(&targets), |caller, body| caller.call_many(&targets, body));
        }
        Operation::ManyInto => many_into(&any_cpus()),
        Operation::All => many(None, |caller, body| caller.call_all(body)),
        Operation::Others => many(None, |caller, body| caller.call_others(body)),
        Operation::Any => any(&any_cpus()),
        Operation::If => many(None, |caller, body| caller.call_if(|cpu| cpu.number() % 3 == 1, body)),
        Operation::Post => errands::post(any_cpu()),
        Operation::Reschedule => {
            // Fire and forget: offline CPUs refuse it, and nothing else is promised.
            let _ = Calls::reschedule(any_cpu());
            note(|page| page.reschedules.add(1));
        }
    }
}

/// Enters how a call to one CPU ended.
fn enter<R>(result: &Result<R, CallError>) {
    note(|page| match result {
        Ok(_) => page.completed.add(1),
        Err(CallError::Offline) => page.refused.add(1),
        Err(CallError::Busy) => page.busy.add(1),
        Err(CallError::TimedOut(_)) => page.timed_out.add(1),
        Err(_) => page.failed.add(1),
    });
}

fn enter_data(right: bool) {
    note(|page| page.wrong_data.add(u64::from(!right)));
}

/// A call: the closure reads what the caller has written, and writes what the caller reads.
fn call(caller: Caller<'_, Lab>, target: Cpu) {
    let message = Message::random();
    let mut written = 0;
    let result = caller.call(target, || {
        written = message.receive(Some(target));
        written
    });
    enter(&result);
    match result {
        Ok(returned) => {
            let expected = message.expected(target);
            enter_data(written == expected && returned == expected);
        }
        Err(_) => note(|page| page.wrong_runs.add(u64::from(written != 0))),
    }
}

fn call_static(target: Cpu) {
    // The closure borrows nothing: where it ran and whether is entered on the other side.
    let message = Message::random();
    let (first, expected) = (message.expected(Cpu::new(0)), target);
    let result = Calls::within(LIMIT).call_static(target, move || {
        let message = Message::random();
        message.receive(Some(expected));
        core::hint::black_box(first);
    });
    enter(&result);
}

fn call_with_interrupts_off(target: Cpu) {
    let mut guard = InterruptsOff::<Lab>::new();
    call(Calls::within(LIMIT).with_interrupts_off(&mut guard), target);
}

/// A closure that calls a third CPU, and waits there with interrupts disabled.
fn nested(target: Cpu) {
    let third = any_cpu();
    let message = Message::random();
    let result = Calls::within(LIMIT).call(target, || {
        let answer = message.receive(Some(target));
        call_with_interrupts_off(third);
        answer
    });
    enter(&result);
    if let Ok(answer) = result {
        enter_data(answer == message.expected(target));
    }
}

/// From the handler of the device that suites play.
fn from_interrupt() {
    call_with_interrupts_off(any_cpu());
    errands::post(any_cpu());
}

fn long(target: Cpu) {
    let message = Message::random();
    let result = Calls::within(LIMIT).call(target, || {
        clock::delay(LONG);
        message.receive(Some(target))
    });
    enter(&result);
    if let Ok(answer) = result {
        enter_data(answer == message.expected(target));
    }
}

fn any(candidates: &CpuMask) {
    let message = Message::random();
    let result = Calls::within(LIMIT).call_any(candidates, || message.receive(None));
    match result {
        Ok((cpu, answer)) => {
            enter(&Ok(()));
            enter_data(candidates.contains(cpu) && answer == message.expected(cpu));
        }
        // Nobody to choose from.
        Err(CallError::NoSuchCpu) if candidates.is_empty() => {}
        Err(error) => enter::<()>(&Err(error)),
    }
}

/// A set that its CPUs enter themselves into.
struct Ran([AtomicU64; MAX_CPUS / 64]);

impl Ran {
    /// Returns whether the CPU is in it already.
    fn enter(&self, cpu: Cpu) -> bool {
        // Relaxed: read when the call has ended, which orders it.
        let bit = 1 << (cpu.number() % 64);
        self.0[cpu.index() / 64].fetch_or(bit, Relaxed) & bit != 0
    }

    fn set(&self) -> Cpus {
        apic::all()
            .filter(|cpu| self.0[cpu.index() / 64].load(Relaxed) & 1 << (cpu.number() % 64) != 0)
            .collect()
    }
}

/// The body of a call to many: what each target runs.
struct Body<'a> {
    message: &'a Message,
    ran: &'a Ran,
}

impl Body<'_> {
    fn run(&self, cpu: Cpu) -> u64 {
        let twice = self.ran.enter(cpu);
        note(|page| page.wrong_runs.add(u64::from(twice)));
        self.message.receive(Some(cpu))
    }
}

/// A call to many; `targets` are who it is for, as far as that is known beforehand.
fn many(
    targets: Option<&Cpus>,
    send: impl FnOnce(Caller<'static, Lab>, &(dyn Fn(Cpu) + Sync)) -> Result<(), ManyError<Lab>>,
) {
    let (message, ran) = (Message::random(), Ran([const { AtomicU64::new(0) }; MAX_CPUS / 64]));
    let body = Body { message: &message, ran: &ran };
    let result = send(Calls::within(LIMIT), &|cpu| {
        body.run(cpu);
    });
    enter_many(targets.map(|targets| &**targets), &ran.set(), &result);
}

fn many_into(targets: &CpuMask) {
    let (message, ran) = (Message::random(), Ran([const { AtomicU64::new(0) }; MAX_CPUS / 64]));
    let body = Body { message: &message, ran: &ran };
    // As many as there are: kernels that call so from a small stack have the results elsewhere.
    let mut results = [const { None }; MAX_CPUS];
    let result = Calls::within(LIMIT).call_many_into(targets, &mut results, |cpu| body.run(cpu));
    let ran = ran.set();
    for cpu in apic::all() {
        let right = results[cpu.index()] == ran.contains(cpu).then(|| message.expected(cpu));
        enter_data(right);
    }
    enter_many(Some(targets), &ran, &result);
}

/// Enters how a call to many ended, and whether it ran where it should: exactly on the targets that did not fail.
fn enter_many(targets: Option<&CpuMask>, ran: &Cpus, result: &Result<(), ManyError<Lab>>) {
    let mut told = Cpus::EMPTY;
    note(|page| {
        page.completed.add(ran.len() as u64);
        match result {
            Ok(()) => {}
            Err(ManyError::NotSent(CallError::Busy)) => page.busy.add(1),
            Err(ManyError::NotSent(_)) => page.failed.add(1),
            Err(ManyError::Failed(failures)) => {
                page.refused.add(failures.offline.len() as u64);
                page.timed_out.add(failures.timed_out.len() as u64);
                page.failed.add((failures.panicked.len() + failures.died.len()) as u64);
                told.extend(failures.offline.iter().chain(&*failures.timed_out));
            }
        }
        let not_sent = matches!(result, Err(ManyError::NotSent(_)));
        let right = match targets {
            _ if not_sent => ran.is_empty(),
            Some(targets) => {
                targets.iter().all(|cpu| ran.contains(cpu) != told.contains(cpu))
                    && books::includes(targets, ran)
            }
            None => !ran.iter().any(|cpu| told.contains(cpu)),
        };
        page.wrong_runs.add(u64::from(!right));
    });
}
