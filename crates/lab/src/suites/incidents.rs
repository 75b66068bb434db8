//! The incidents that a real machine can have: 1 (a lost ring), 2 (a queue of a CPU that goes offline), 3 (a delivery status
//! that never clears: no emulator ever sets it, so the driver reads its registers through a shim that does).

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;

use smpcall::{Deferred, ManyError, Post, TargetState};
use smpcall_local_apic::{Access, Icr, Interrupt, LocalApic, Mmio, Mode, Register, Routing};
use smpcall_machine::{Counter, Cpu, Deadline, Machine, Predicate, SendError, Woken, wait};

use super::Run;
use super::calls::counted;
use super::hotplug::{WEDGED, wedge_cpu};
use crate::apic::{self, Tables};
use crate::clock::LabWord;
use crate::cpu::MAX_CPUS;
use crate::machine::{BOOT_CPU, Calls, Cpus, Lab};
use crate::tasks::{self, Step};
use crate::{clock, faults, hooks};

const LIMIT: Duration = Duration::from_secs(60);

/// Long enough for a CPU to halt.
const SETTLE: Duration = Duration::from_millis(100);

/// The CPU that calls in report 000, if there is one of that number.
const REPORTED_CALLER: u32 = 5;

/// How a call to all others ended on another CPU: it is a task's, so that it can run on the reported CPU.
struct Call {
    limit: AtomicU64,
    ran: [Counter; MAX_CPUS],
    /// 1: it ended well. 2: one CPU timed out, with interrupts disabled. 3: in another way.
    end: LabWord,
    timed_out: AtomicU64,
}

static CALL: Call = Call {
    limit: AtomicU64::new(0),
    ran: [const { Counter::new(0) }; MAX_CPUS],
    end: LabWord::new(0),
    timed_out: AtomicU64::new(0),
};

fn call_others(_: Cpu) -> Step {
    let limit = Duration::from_millis(CALL.limit.load(Relaxed));
    let result = Calls::within(limit).call_others(|cpu| CALL.ran[cpu.index()].add(1));
    let end = match result {
        Ok(()) => 1,
        Err(ManyError::Failed(failures)) => {
            let first = failures.timed_out.first();
            CALL.timed_out.store(first.map_or(0, |cpu| u64::from(cpu.number()) + 1), Relaxed);
            let disabled = failures.diagnosis.is_some_and(|(cpu, diagnosis)| {
                Some(cpu) == first && matches!(diagnosis.target, TargetState::InterruptsDisabled { .. })
            });
            if failures.timed_out.len() == 1 && disabled { 2 } else { 3 }
        }
        Err(ManyError::NotSent(_)) => 3,
    };
    // Release: the rest of it.
    CALL.end.store(end, core::sync::atomic::Ordering::Release);
    Step::Done
}

/// Has `caller` call all others; returns how it ended.
fn called_by(caller: Cpu, limit: Duration) -> u64 {
    for ran in &CALL.ran {
        ran.set(0);
    }
    CALL.limit.store(limit.as_millis() as u64, Relaxed);
    CALL.end.store(0, Relaxed);
    if caller == BOOT_CPU {
        call_others(caller);
    } else {
        tasks::give(caller, call_others);
        tasks::await_done(caller, Deadline::within::<Lab>(LIMIT));
    }
    CALL.end.load(Relaxed)
}

/// On how many CPUs the closure ran exactly once; none if it ran twice anywhere, or on the caller.
fn ran_once(caller: Cpu) -> Option<usize> {
    let once = apic::all().filter(|cpu| CALL.ran[cpu.index()].get() == 1).count();
    let more = apic::all().any(|cpu| CALL.ran[cpu.index()].get() > 1);
    (!more && CALL.ran[caller.index()].get() == 0).then_some(once)
}

/// Incident 1 (report 000): of a call to all others, the ring of one is lost.
pub(super) fn lost_call(run: &mut Run) {
    if !run.has_cpus("incident-1", 2) {
        return;
    }
    let caller = Cpu::new(REPORTED_CALLER.min(apic::count() as u32 - 1));
    // Not the boot CPU, if there is another one: it controls the suite.
    let victim = apic::all().filter(|&cpu| cpu != caller).last().unwrap_or(BOOT_CPU);
    let others = apic::count() - 1;
    // A tick would find the call, too.
    let stopped = Calls::within(LIMIT).call_all(|_| {
        Calls::watch_ticks(false);
        apic::stop_ticks();
    });
    clock::delay(SETTLE);
    let before = (faults::swallowed(), counted("rings_repeated"), counted("rings_sent"));
    faults::set(0, Some((victim, 1)));
    let end = called_by(caller, LIMIT);
    faults::set(0, None);
    let (swallowed, repeated) = (faults::swallowed() - before.0, counted("rings_repeated") - before.1);
    run.count("rings_swallowed", swallowed);
    run.count("rings_repeated", repeated);
    run.count("rings_sent", counted("rings_sent") - before.2);
    let started = Calls::within(LIMIT).call_all(|_| {
        apic::start_ticks();
        Calls::watch_ticks(true);
    });
    run.check(
        "lost_call_completes",
        stopped.is_ok()
            && started.is_ok()
            && swallowed == 1
            && repeated >= 1
            && end == 1
            && ran_once(caller) == Some(others),
        format_args!("{caller} has called {others} others, {swallowed} rings lost, {repeated} repeated"),
    );
    dead_target(run, caller, victim, others);
}

/// The same with a target that is really dead: told by the deadline, all others served.
fn dead_target(run: &mut Run, caller: Cpu, victim: Cpu, others: usize) {
    if !run.has_cpus("dead_target_is_told", 3) {
        return;
    }
    let wedged = wedge_cpu(victim);
    let end = called_by(caller, Duration::from_millis(500));
    let told = CALL.timed_out.load(Relaxed) == u64::from(victim.number()) + 1;
    let ran = ran_once(caller);
    WEDGED.store(0, Relaxed);
    let done = tasks::await_done(victim, Deadline::within::<Lab>(LIMIT));
    run.check(
        "dead_target_is_told",
        wedged && end == 2 && told && ran == Some(others - 1) && done && ran_once(caller) == Some(others - 1),
        format_args!(
            "{victim} stands with interrupts disabled, {} others ran it, and it never ran it later",
            others - 1
        ),
    );
}

/// The requests of report 001.
const REQUESTS: usize = 108;

/// A request that hangs, in the report, on the CPU that has gone.
struct Request {
    handed_over: AtomicU64,
    ran: AtomicU64,
    abandoned: AtomicU64,
}

impl Deferred<Lab> for Request {
    type Handle = &'static Post<Lab, Self>;
    const IS_WORK: bool = true;

    fn run(handle: Self::Handle) {
        // Relaxed: counts, read when all is over.
        handle.value().ran.fetch_add(1, Relaxed);
    }

    fn abandoned(handle: Self::Handle, _: Cpu) {
        handle.value().abandoned.fetch_add(1, Relaxed);
    }
}

static REQUEST: [Post<Lab, Request>; REQUESTS] = [const {
    Post::new(Request {
        handed_over: AtomicU64::new(0),
        ran: AtomicU64::new(0),
        abandoned: AtomicU64::new(0),
    })
}; REQUESTS];
static NEXT_REQUEST: AtomicU64 = AtomicU64::new(0);
static GOES: AtomicU64 = AtomicU64::new(0);

/// The disk interrupts: the bottom half hands a request to the CPU that has made it.
fn disk() {
    let number = NEXT_REQUEST.fetch_add(1, Relaxed) as usize;
    if let Some(request) = REQUEST.get(number) {
        let target = Cpu::new(GOES.load(Relaxed) as u32);
        if Calls::post::<Request>(target, request).is_ok() {
            request.value().handed_over.store(1, Relaxed);
        }
    }
}

/// Every CPU takes interrupts of the disk until all requests are made.
fn disk_interrupts(me: Cpu) -> Step {
    if NEXT_REQUEST.load(Relaxed) >= REQUESTS as u64 {
        return Step::Done;
    }
    if u64::from(me.number()) != GOES.load(Relaxed) {
        let _ = apic::send_self(apic::DEVICE);
    }
    // So that they are spread over some comings and goings, however many CPUs there are.
    clock::delay(Duration::from_micros(10) * apic::count() as u32);
    Step::Again
}

/// Incident 2 (report 001): a CPU goes and comes while others hand requests to it.
pub(super) fn offline_queue(run: &mut Run) {
    if !run.has_cpus("incident-2", 3) {
        return;
    }
    let target = Cpu::new(3.min(apic::count() as u32 - 1));
    GOES.store(u64::from(target.number()), Relaxed);
    NEXT_REQUEST.store(0, Relaxed);
    for request in REQUEST.iter().map(Post::value) {
        for number in [&request.handed_over, &request.ran, &request.abandoned] {
            number.store(0, Relaxed);
        }
    }
    hooks::on_device(Some(disk));
    let helpers: Cpus = apic::all().filter(|&cpu| cpu != BOOT_CPU && cpu != target).collect();
    for cpu in &*helpers {
        tasks::give(cpu, disk_interrupts);
    }
    let (mut rounds, mut failed) = (0u64, 0u64);
    while NEXT_REQUEST.load(Relaxed) < REQUESTS as u64 {
        rounds += 1;
        failed += u64::from(Calls::cpu_down(target, LIMIT).is_err());
        failed += u64::from(Calls::cpu_up(target, LIMIT).is_err());
    }
    let done = helpers.iter().all(|cpu| tasks::await_done(cpu, Deadline::within::<Lab>(LIMIT)));
    hooks::on_device(None);
    let of = |number: fn(&Request) -> &AtomicU64| -> u64 {
        REQUEST.iter().map(|request| number(request.value()).load(Relaxed)).sum()
    };
    let ended = Predicate(|| {
        of(|request| &request.ran) + of(|request| &request.abandoned) >= of(|request| &request.handed_over)
    });
    let ended = wait::<Lab>(&ended, Deadline::within::<Lab>(LIMIT)) != Woken::Deadline;
    let one_by_one = REQUEST.iter().map(Post::value).all(|request| {
        request.handed_over.load(Relaxed) == request.ran.load(Relaxed) + request.abandoned.load(Relaxed)
    });
    let handed_over = of(|request| &request.handed_over);
    run.count("requests", REQUESTS as u64);
    run.count("requests_refused", REQUESTS as u64 - handed_over);
    run.count("requests_run", of(|request| &request.ran));
    run.count("requests_abandoned", of(|request| &request.abandoned));
    run.check(
        "cpu_goes_and_comes",
        failed == 0 && done,
        format_args!("{target} went and came {rounds} times, {failed} failed"),
    );
    run.check(
        "requests_accounted_for",
        ended && one_by_one,
        format_args!("{handed_over} of {REQUESTS} handed over, each of them run or handed back; the others refused by name"),
    );
    let called = Calls::within(LIMIT).call(target, Lab::current_cpu);
    run.check(
        "calls_after_bring_up",
        called == Ok(target),
        format_args!("a call to {target} ended with {called:?}"),
    );
}

/// The registers of an xAPIC whose delivery status is stuck.
struct Stuck {
    registers: Mmio,
    /// Whether it is stuck at all, and whether writing the low word again mends it.
    shows_pending: Cell<bool>,
    heals_when_rewritten: bool,
}

impl Access for Stuck {
    fn mode(&self) -> Mode {
        Mode::XApic
    }

    fn read(&self, register: Register) -> u32 {
        let stuck = register == Register::ICR_LOW && self.shows_pending.get();
        self.registers.read(register) | if stuck { Icr::SEND_PENDING } else { 0 }
    }

    fn write(&self, register: Register, value: u32) {
        if register == Register::ICR_LOW && self.shows_pending.get() {
            if !self.heals_when_rewritten {
                return;
            }
            self.shows_pending.set(false);
        }
        self.registers.write(register, value);
    }

    fn write_icr(&self, value: u64) {
        self.registers.write_icr(value);
    }
}

/// Incident 3 (report 002): the delivery status does not clear, and an NMI is to be sent.
pub(super) fn stuck_icr(run: &mut Run) {
    if apic::mode() == Mode::X2Apic {
        run.skip("incident-3", format_args!("n/a: an x2APIC has no delivery status that could stick"));
        return;
    }
    if !run.has_cpus("incident-3", 2) {
        return;
    }
    let others: Cpus = apic::all().filter(|&cpu| cpu != BOOT_CPU).collect();
    let send = |heals_when_rewritten| {
        let stuck = Stuck {
            registers: apic::xapic_registers(),
            shows_pending: Cell::new(true),
            heals_when_rewritten,
        };
        let driver: LocalApic<Lab, _> = LocalApic::new(stuck, Routing::Physical);
        let started = Lab::now();
        let result = driver.send_many(&Tables, &others, Interrupt::Nmi);
        (result, Lab::now().since(started))
    };
    // The command that is stuck is a ring: what merges with itself is written again, a start-up message is not.
    let rung = Calls::within(LIMIT).call_all(|_| ());
    let (result, took) = send(false);
    run.count("stuck_send_milliseconds", took.as_millis() as u64);
    run.check(
        "stuck_is_told",
        rung.is_ok() && result == Err(SendError::ControllerBusy),
        format_args!("an NMI to {} others ended with {result:?} after {took:?}", others.len()),
    );
    hooks::on_nmi(Some(|| ()));
    let nmis = || -> u64 { others.iter().map(|cpu| crate::cpu::per_cpu(cpu).taken.nmis.get()).sum() };
    let before = nmis();
    let (result, took) = send(true);
    let all = before + others.len() as u64;
    let taken = wait::<Lab>(&Predicate(|| nmis() >= all), Deadline::within::<Lab>(LIMIT)) != Woken::Deadline;
    hooks::on_nmi(None);
    run.check(
        "retry_mends",
        taken && result.is_ok_and(|sent| sent.rewritten == 1),
        format_args!(
            "the command that was stuck was written again: {result:?} after {took:?}; all others took the NMI"
        ),
    );
    let called = Calls::within(LIMIT).call_all(|_| ());
    run.check(
        "goes_on",
        called.is_ok(),
        format_args!("calls by the ordinary driver work: {}", called.is_ok()),
    );
}
