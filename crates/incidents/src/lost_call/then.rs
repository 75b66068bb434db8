//! Incident 1 as then: `smp_call_function` of Linux 2.6.23, re-created from what is known of it.
//!
//! One global pointer, `call_data`, leads to the call that is under way, which lies on its caller's stack. One lock,
//! `call_lock`, lets one caller at a time use it. The call counts how many CPUs have started and how many have
//! finished it, and not which; the caller spins until the first count is complete, and if it waits, until the second
//! is. Nothing is ever sent again. The crash dump needs a call of its own to freeze the other CPUs: it by-passes the
//! lock, which the stuck caller holds, and keeps the old `call_data` for whoever reads the dump.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use core::time::Duration;
use std::cell::{Cell, RefCell};

use smpcall_diagnosis::{CountedCall, diagnose};
use smpcall_local_apic::{Interrupt, Vector};
use smpcall_machine::{Cpu, Deadline, Event, EventKind, Instant, Machine, Pointer, Word, wait};
use smpcall_simulator::campaign::Ipis;
use smpcall_simulator::{
    CpuReport, InterruptFrame, Operation, RING_VECTOR, SimCpuSet, SimMachine, SimMemory, TIMER_VECTOR, Trace,
    World, program, send_interrupt_to,
};

use super::{Cast, MAX_CPUS_THEN, human, soft_lockup, this_cpu, view, wait_for_the_moment};
use crate::evidence::{self, Waiter};
use crate::incident::{Incident, ReplayError, Setup, When};
use crate::laws::{CallBooks, TargetBooks};
use crate::replay::{Outcome, Replay};

/// The vector of call-function IPIs.
const CALL_FUNCTION: Vector = match Vector::new(RING_VECTOR) {
    Some(vector) => vector,
    None => panic!("an ordinary vector"),
};

/// The run is over by then, whatever becomes of it.
const TIME_LIMIT: Instant = Instant::from_nanos(3 * soft_lockup::THRESHOLD.as_nanos() as u64);

/// A call that is under way. On its caller's stack.
struct CallData {
    func: fn(*mut ()),
    info: *mut (),
    started: Word<SimMemory>,
    finished: Word<SimMemory>,
    wait: bool,
}

impl CallData {
    const fn new(func: fn(*mut ()), info: *mut (), wait: bool) -> Self {
        Self { func, info, started: Word::new(0), finished: Word::new(0), wait }
    }

    fn counts(&self) -> Counts {
        Counts { started: self.started.load(Acquire), finished: self.finished.load(Acquire) }
    }
}

/// How far a call has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) started: u64,
    pub(super) finished: u64,
}

/// The global variables of the kernel.
struct Kernel {
    call_lock: Word<SimMemory>,
    call_data: Pointer<SimMemory, CallData>,
    saved_call_data: Pointer<SimMemory, CallData>,
    /// Nobody ever writes it: what a CPU waits for that is halted for good.
    thaw: Word<SimMemory>,
    /// How often each CPU has dropped its cached buffers.
    buffers_dropped: [Cell<u64>; MAX_CPUS_THEN],
    /// What a soft lockup was found with, before the dump began.
    lockup: RefCell<Option<Lockup>>,
    /// What the dump holds.
    dump: Cell<Option<Dump>>,
}

/// The machine at the moment at which the soft-lockup check fired.
struct Lockup {
    time: Instant,
    cpu: Cpu,
    stalled: Duration,
    /// Whether the timer interrupted a wait that had interrupts enabled.
    interrupted_wait: bool,
    reports: Vec<CpuReport>,
}

/// The calls, as the dump shows them.
#[derive(Clone, Copy)]
pub(super) struct Dump {
    pub(super) saved_call_data: Counts,
    pub(super) call_data: Counts,
}

thread_local! {
    // Global to the machine that this thread simulates.
    static KERNEL: Kernel = const {
        Kernel {
            call_lock: Word::new(0),
            call_data: Pointer::new(core::ptr::null_mut()),
            saved_call_data: Pointer::new(core::ptr::null_mut()),
            thaw: Word::new(0),
            buffers_dropped: [const { Cell::new(0) }; MAX_CPUS_THEN],
            lockup: RefCell::new(None),
            dump: Cell::new(None),
        }
    };
}

impl Kernel {
    /// As at boot. Outside of the machine.
    fn reset(&self) {
        // The orderings do not matter: no CPU runs. So below, wherever a replay looks at a machine that stands still.
        self.call_lock.store(0, Release);
        self.call_data.store(core::ptr::null_mut(), Release);
        self.saved_call_data.store(core::ptr::null_mut(), Release);
        for count in &self.buffers_dropped {
            count.set(0);
        }
        self.lockup.replace(None);
        self.dump.set(None);
        soft_lockup::reset();
    }

    fn lock_calls(&self) {
        // Acquire: what the last holder wrote to `call_data` comes before what this one does.
        while self.call_lock.compare_exchange(0, 1, Acquire, Acquire).is_err() {
            wait::<SimMachine>(&[self.call_lock.equals(u64::MAX, 0)], Deadline::NEVER);
        }
    }

    fn unlock_calls(&self) {
        // Release: pairs with the next `lock_calls`.
        self.call_lock.store(0, Release);
    }
}

/// The caller's stack, from the outermost frame that the report names.
fn del_gendisk(cpus: usize) {
    let _del_gendisk = program::frame("del_gendisk");
    let _invalidate_partition = program::frame("invalidate_partition");
    let _invalidate_device = program::frame("__invalidate_device");
    let _invalidate_bdev = program::frame("invalidate_bdev");
    on_each_cpu(invalidate_bh_lru, core::ptr::null_mut(), true, cpus);
}

/// Drops the buffers that this CPU has cached.
fn invalidate_bh_lru(_: *mut ()) {
    KERNEL.with(|kernel| {
        let dropped = &kernel.buffers_dropped[this_cpu().index()];
        dropped.set(dropped.get() + 1);
    });
}

fn on_each_cpu(func: fn(*mut ()), info: *mut (), wait: bool, cpus: usize) {
    let _frame = program::frame("on_each_cpu");
    smp_call_function(func, info, wait, cpus);
    let were_enabled = SimMachine::disable_interrupts();
    func(info);
    SimMachine::restore_interrupts(were_enabled);
}

fn smp_call_function(func: fn(*mut ()), info: *mut (), wait: bool, cpus: usize) {
    let _frame = program::frame("smp_call_function");
    KERNEL.with(|kernel| {
        kernel.lock_calls();
        __smp_call_function(kernel, func, info, wait, cpus);
        kernel.unlock_calls();
    });
}

/// The call itself: sends once, and waits for ever.
fn __smp_call_function(kernel: &Kernel, func: fn(*mut ()), info: *mut (), wait_for_end: bool, cpus: usize) {
    let _frame = program::frame("__smp_call_function");
    let data = CallData::new(func, info, wait_for_end);
    // Release: who loads the pointer sees the call that it leads to.
    kernel.call_data.store((&raw const data).cast_mut(), Release);
    send_to_all_but_self(cpus);
    let others = cpus as u64 - 1;
    wait::<SimMachine>(&[data.started.equals(u64::MAX, others)], Deadline::NEVER);
    if wait_for_end {
        wait::<SimMachine>(&[data.finished.equals(u64::MAX, others)], Deadline::NEVER);
    }
}

fn send_to_all_but_self(cpus: usize) {
    let targets: SimCpuSet = (0..cpus as u32).map(Cpu::new).filter(|&cpu| cpu != this_cpu()).collect();
    // As then: nobody looks at whether it could be sent. A lost one shows in the counts alone.
    let _ = send_interrupt_to(&targets, Interrupt::Fixed(CALL_FUNCTION));
}

/// The handler of the call-function IPI.
fn call_function_interrupt(mut frame: InterruptFrame) {
    let _outer = program::frame("call_function_interrupt");
    let _inner = program::frame("smp_call_function_interrupt");
    KERNEL.with(|kernel| {
        // SAFETY: the pointer leads to the call for which this IPI was sent. It is on the stack of a caller that does
        // not return before all CPUs have started it, which this one has not, and, as every caller here waits for the
        // end as well, before all have finished it. The dump never returns.
        // Acquire: pairs with the store of the caller.
        let data = unsafe { &*kernel.call_data.load(Acquire) };
        // Read before it is counted as started: a caller that does not wait for the end would be gone afterwards.
        let (func, info, wait_for_end) = (data.func, data.info, data.wait);
        frame.end_of_interrupt();
        // Both AcqRel: the caller sees what was done before.
        data.started.fetch_add(1, AcqRel);
        func(info);
        if wait_for_end {
            data.finished.fetch_add(1, AcqRel);
        }
    });
}

/// The handler of the timer, on every CPU.
fn apic_timer_interrupt(mut frame: InterruptFrame) {
    let _entry = program::frame("apic_timer_interrupt");
    let _handler = program::frame("smp_apic_timer_interrupt");
    frame.end_of_interrupt();
    let _local = program::frame("smp_local_timer_interrupt");
    let _update = program::frame("update_process_times");
    if let Some(stalled) = soft_lockup::check() {
        let interrupted_wait =
            frame.interrupts_were_enabled && matches!(frame.interrupted, Operation::Wait { .. });
        let reports = (0..program::cpus() as u32).map(|cpu| program::inspect(Cpu::new(cpu))).collect();
        let (time, cpu) = (SimMachine::now(), this_cpu());
        KERNEL.with(|kernel| {
            kernel.lockup.replace(Some(Lockup { time, cpu, stalled, interrupted_wait, reports }));
        });
        try_crashdump();
    }
}

fn try_crashdump() {
    let _frame = program::frame("try_crashdump");
    program::record(EventKind::DumpStarted, None, 0, 0);
    try_dump(program::cpus());
}

/// Freezes the other CPUs by a call of its own, and dumps.
fn try_dump(cpus: usize) {
    let _frame = program::frame("try_dump");
    KERNEL.with(|kernel| {
        // Not `lock_calls`: the stuck caller, below on this CPU's stack, holds it.
        let stuck = kernel.call_data.load(Acquire);
        kernel.saved_call_data.store(stuck, Release);
        let data = CallData::new(freeze, core::ptr::null_mut(), true);
        // Release: as in `__smp_call_function`, and the waits are the same.
        kernel.call_data.store((&raw const data).cast_mut(), Release);
        send_to_all_but_self(cpus);
        let others = cpus as u64 - 1;
        wait::<SimMachine>(&[data.started.equals(u64::MAX, others)], Deadline::NEVER);
        wait::<SimMachine>(&[data.finished.equals(u64::MAX, others)], Deadline::NEVER);
        start_disk_dump(kernel);
    });
}

/// Counts as finished, and halts for good with interrupts disabled.
fn freeze(_: *mut ()) {
    let _frame = program::frame("freeze");
    KERNEL.with(|kernel| {
        // SAFETY: as in `call_function_interrupt`: it is the dump's call, and the dump never returns.
        let data = unsafe { &*kernel.call_data.load(Acquire) };
        // AcqRel: the dump sees what this CPU did before.
        data.finished.fetch_add(1, AcqRel);
        wait::<SimMachine>(&[kernel.thaw.differs(u64::MAX, 0)], Deadline::NEVER);
    });
}

/// Writes memory to disk, of which this keeps what the report tells. The machine stands still afterwards.
fn start_disk_dump(kernel: &Kernel) {
    let _frame = program::frame("start_disk_dump");
    let counts = |pointer: &Pointer<SimMemory, CallData>| {
        // SAFETY: both calls are on this CPU's stack, in frames below this one; the soft-lockup check fires only on a
        // CPU that is in a call, because nothing else here keeps a task from making progress.
        unsafe { &*pointer.load(Acquire) }.counts()
    };
    kernel.dump.set(Some(Dump {
        saved_call_data: counts(&kernel.saved_call_data),
        call_data: counts(&kernel.call_data),
    }));
    program::stop();
}

/// Whether with this a call begins: both callers send from a frame of their own.
fn begins_call(trace: &Trace, event: &Event) -> bool {
    let name = || usize::try_from(event.argument).ok().and_then(|number| trace.frame_names.get(number));
    event.kind == EventKind::FrameEntered
        && name().is_some_and(|name| ["__smp_call_function", "try_dump"].contains(&name.as_str()))
}

/// What is left when a run is over.
struct Remains {
    lockup: Option<Lockup>,
    dump: Option<Dump>,
    returned_after: Option<Duration>,
    buffers_dropped: Vec<u64>,
}

/// Whether the machine is in the state that was reported: the caller is in its wait with interrupts enabled, the saved
/// call counts all targets but one, the soft-lockup check has started the dump, and its freeze has reached everybody.
fn is_reported_state(cast: Cast, remains: &Remains) -> bool {
    let (Some(lockup), Some(dump)) = (&remains.lockup, remains.dump) else { return false };
    let others = cast.cpus as u64 - 1;
    let all_but_one = Counts { started: others - 1, finished: others - 1 };
    remains.returned_after.is_none()
        && lockup.cpu == cast.caller
        && lockup.interrupted_wait
        && dump.saved_call_data == all_but_one
        && dump.call_data == Counts { started: others, finished: others }
}

/// Replays it.
pub(crate) fn then(setup: &Setup) -> Result<Replay, ReplayError> {
    let cast = Cast::of(setup);
    let mut config = cast.config(setup);
    // The kernel of the day used no shorthand on machines whose CPUs can come and go.
    config.shorthands = false;
    let returned_after = Cell::new(None);
    let mut world = World::new(&config)?;
    KERNEL.with(Kernel::reset);
    world.set_handler(RING_VECTOR, call_function_interrupt);
    world.set_handler(TIMER_VECTOR, apic_timer_interrupt);
    cast.occupy_others(&mut world);
    world.spawn(cast.caller, || {
        wait_for_the_moment();
        soft_lockup::touch();
        let called = SimMachine::now();
        del_gendisk(cast.cpus);
        returned_after.set(Some(SimMachine::now().since(called)));
        program::stop();
    });
    world.run(TIME_LIMIT);

    let remains = KERNEL.with(|kernel| Remains {
        lockup: kernel.lockup.take(),
        dump: kernel.dump.take(),
        returned_after: returned_after.get(),
        buffers_dropped: kernel.buffers_dropped.iter().map(Cell::get).collect(),
    });
    let replay = told(setup, cast, &world, &remains);
    // What leads to the callers' stacks goes before they do.
    KERNEL.with(Kernel::reset);
    // SAFETY: 1. Nothing that is used from here on refers to those stacks: the two pointers of the kernel are null
    // again, `told` has copied what it tells, and the machine is not run any more. 2. What lives there are named frames,
    // counts and copies of numbers: nobody relies on their being dropped.
    unsafe { world.forget_programs() };
    Ok(replay)
}

fn told(setup: &Setup, cast: Cast, world: &World<'_>, remains: &Remains) -> Replay {
    let outcome = if is_reported_state(cast, remains) { Outcome::Lost } else { Outcome::Held };
    let counters = world.counters();
    let trace = world.trace();
    let rings_repeated = evidence::rings_repeated(&trace.events, |event| begins_call(&trace, event));
    let books = CallBooks {
        targets: cast
            .others()
            .map(|cpu| TargetBooks {
                runs: remains.buffers_dropped[cpu.index()],
                told: false,
                looked_since: false,
            })
            .collect(),
        returned_after: remains.returned_after,
        limit: None,
        rings_lost: counters.ipis_lost,
        rings_repeated,
    };
    let reports: Vec<CpuReport> = cast.all().map(|cpu| world.inspect(cpu)).collect();
    let evidence = match &remains.lockup {
        Some(lockup) => found_by(lockup, cast, remains, &trace.events),
        None => evidence::of_machine(&reports, &trace.events, None),
    };
    Replay {
        incident: Incident::LostCall,
        when: When::Then,
        cpus: setup.cpus,
        routing: setup.routing,
        seed: setup.seed,
        fault: setup.fault,
        outcome,
        reason: None,
        laws: books.judge(),
        ipis: Ipis {
            sent: counters.ipis_sent,
            taken: counters.taken[RING_VECTOR as usize],
            lost: counters.ipis_lost,
            resent: rings_repeated,
        },
        diagnosis: diagnose(&evidence),
        trace,
        view: view::then(cast, &reports, remains.dump),
        summary: summary(cast, remains),
    }
}

/// The evidence of the moment at which the soft-lockup check fired, before the dump changed anything.
fn found_by(
    lockup: &Lockup,
    cast: Cast,
    remains: &Remains,
    events: &[smpcall_machine::Event],
) -> smpcall_diagnosis::MachineEvidence {
    let fired = events.iter().position(|event| event.kind == EventKind::SoftLockup).unwrap_or(events.len());
    let wait = lockup.reports[lockup.cpu.index()].waits.first();
    let waited = wait.map_or(lockup.stalled, |wait| lockup.time.since(wait.since));
    let targets: Vec<u32> = cast.others().map(Cpu::number).collect();
    // For whom the caller waits is in the counted call, which knows better than "for all".
    let stuck = Waiter { cpu: lockup.cpu, targets: vec![], waited };
    let mut evidence = evidence::of_machine(&lockup.reports, &events[..fired], Some(&stuck));
    if let Some(dump) = remains.dump {
        evidence.counted_calls.push(CountedCall {
            caller: cast.caller.number(),
            targets,
            started: dump.saved_call_data.started as usize,
            finished: dump.saved_call_data.finished as usize,
            function: Some("invalidate_bh_lru".into()),
            nanos: Some(waited.as_nanos() as u64),
        });
    }
    evidence
}

fn summary(cast: Cast, remains: &Remains) -> String {
    let (caller, others) = (cast.caller, cast.cpus - 1);
    match (&remains.lockup, remains.dump, remains.returned_after) {
        (Some(lockup), Some(dump), _) => format!(
            "{caller} called {others} others and waited for all of them without a deadline; {} started and finished \
             the call. After {:.1} s without progress the soft-lockup check in its timer interrupt started a dump, \
             whose own call reached {} of {others}. Nobody had sent the lost interrupt again.",
            dump.saved_call_data.finished,
            lockup.stalled.as_secs_f64(),
            dump.call_data.finished,
        ),
        (_, _, Some(waited)) => format!(
            "{caller} called {others} others; all started and finished the call, and it returned after {}.",
            human(waited)
        ),
        _ => format!("{caller} called {others} others; neither the call nor a dump ended within the run."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::Fault;
    use smpcall_local_apic::Routing;

    #[test]
    fn what_is_sent_twice_for_one_call_is_told_as_sent_again() {
        let setup = Setup {
            incident: Incident::LostCall,
            when: When::Then,
            cpus: 3,
            routing: Routing::Flat,
            seed: 1,
            fault: Fault::None,
        };
        let cast = Cast::of(&setup);
        let mut world = World::new(&cast.config(&setup)).expect("a machine");
        world.set_handler(RING_VECTOR, |mut frame| frame.end_of_interrupt());
        world.spawn(cast.caller, || {
            for sent in [1, 2] {
                let _frame = program::frame("__smp_call_function");
                (0..sent).for_each(|_| send_to_all_but_self(3));
            }
        });
        world.run(TIME_LIMIT);
        let remains = Remains { lockup: None, dump: None, returned_after: None, buffers_dropped: vec![0; 3] };
        let ipis = told(&setup, cast, &world, &remains).ipis;
        assert_eq!((ipis.sent, ipis.resent), (6, 2));
    }
}
