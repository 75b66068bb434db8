//! Incident 5 as then: the way from `panic` into the capture kernel of 2005, and that kernel up to where it stops.
//!
//! `machine_crash_shutdown` stops the other CPUs by NMI, if any run, and masks the I/O APIC; what the local APIC holds stays.
//! The capture kernel sets all gates (`init_IRQ`), enables interrupts (`local_irq_enable` in `start_kernel`), and only later
//! brings up the other CPUs (`smp_init`). The handler of call-function IPIs reads `call_data->func` without looking
//! whether there is a call: `call_data` is null until the first one.
//!
//! A second machine shows the report's first solution, a handler that looks, and what that leaves: other vectors come
//! to the gates of other interrupts, and the one in service holds back all below it.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use core::time::Duration;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

use smpcall_diagnosis::{PendingAtCrash, diagnose};
use smpcall_local_apic::{Interrupt, IoApic, StartUpDelays, Topology, Vector};
use smpcall_machine::{Cpu, Deadline, EventKind, Instant, Machine, Pointer, Word, wait};
use smpcall_simulator::{
    CpuReport, Image, ImageId, InterruptFrame, SimCpuSet, SimIoApic, SimMachine, SimMemory, SimTopology,
    Trace, World, local_apic, program, send_interrupt_to,
};

use super::scene::{self, CALL_FUNCTION, TIMER};
use super::{Cast, NO_OTHER_CPU, PRINTING, START_UP_PAGE, TIME_LIMIT, view};
use crate::incident::{ReplayError, Setup, When};
use crate::laws::{Law, Laws};
use crate::replay::{Outcome, Replay};

/// How long the crash waits for the others. The kernel's own.
const STOP_LIMIT: Duration = Duration::from_secs(1);
/// From the first interrupt-enable to `smp_init`. (Ours.)
const BOOTING: Duration = Duration::from_millis(1);
/// A period of the timer with HZ=250, and for how many of them the kernel looks whether it ticks. (Ours.)
const TIMER_PERIOD: Duration = Duration::from_millis(4);
pub(super) const TIMER_PERIODS: u32 = 10;
/// Where the vectors of interrupt lines begin on i386: a gate belongs to the line of its vector minus this.
pub(super) const FIRST_EXTERNAL_VECTOR: u8 = 0x20;

const CALL_VECTOR: Vector = Vector::new(CALL_FUNCTION).expect("an ordinary vector");

/// A call that is under way. On its caller's stack.
struct CallData {
    func: fn(),
    started: Word<SimMemory>,
    finished: Word<SimMemory>,
}

/// Both kernels' variables, and what the replay keeps of the run.
struct Kernels {
    cast: Cast,
    /// The report's first solution: the handler looks whether there is a call.
    looks_for_call: bool,
    capture: Cell<Option<ImageId>>,
    /// First kernel: how many CPUs the NMI has stopped.
    stopped: Word<SimMemory>,
    /// The crashed CPU as it left the first kernel.
    at_crash: RefCell<Option<CpuReport>>,
    /// Capture kernel: the call under way.
    call_data: Pointer<SimMemory, CallData>,
    /// Capture kernel: which CPUs have come up.
    online: Box<[Word<SimMemory>]>,
    functions_run: Cell<usize>,
    enabled_at: Cell<Option<Instant>>,
    oops: Cell<Option<u8>>,
    smp_init: Cell<bool>,
    misrouted: RefCell<Vec<u8>>,
    timer_ticks: Cell<u32>,
    dumped: Cell<bool>,
}

thread_local! {
    // Of the machine that this thread simulates.
    static KERNELS: RefCell<Option<Rc<Kernels>>> = const { RefCell::new(None) };
}

impl Kernels {
    fn new(cast: Cast, looks_for_call: bool) -> Rc<Self> {
        let kernels = Rc::new(Self {
            cast,
            looks_for_call,
            capture: Cell::new(None),
            stopped: Word::new(0),
            at_crash: RefCell::new(None),
            call_data: Pointer::new(core::ptr::null_mut()),
            online: cast.all().map(|_| Word::new(0)).collect(),
            functions_run: Cell::new(0),
            enabled_at: Cell::new(None),
            oops: Cell::new(None),
            smp_init: Cell::new(false),
            misrouted: RefCell::new(Vec::new()),
            timer_ticks: Cell::new(0),
            dumped: Cell::new(false),
        });
        KERNELS.set(Some(kernels.clone()));
        kernels
    }
}

fn kernels() -> Rc<Kernels> {
    KERNELS.with_borrow(Option::clone).expect("they are set before the machine runs")
}

// The first kernel.

fn panic() -> ! {
    let _panic = program::frame("panic");
    program::advance(PRINTING);
    let _kexec = program::frame("crash_kexec");
    machine_crash_shutdown();
    let capture = {
        let kernels = kernels();
        kernels.at_crash.replace(Some(program::inspect(SimMachine::current_cpu())));
        kernels.capture.get().expect("the capture kernel was loaded")
    };
    program::boot_kernel(capture)
}

/// The local APIC is left as it is: the report's capture kernel is interrupted by what it holds.
fn machine_crash_shutdown() {
    let kernels = kernels();
    let others: SimCpuSet = kernels.cast.others().filter(|_| kernels.cast.others_run).collect();
    if !others.is_empty() {
        // As then: nobody looks at whether it could be sent.
        let _ = send_interrupt_to(&others, Interrupt::Nmi);
        let all = others.len() as u64;
        wait::<SimMachine>(
            &[kernels.stopped.equals(u64::MAX, all)],
            Deadline::within::<SimMachine>(STOP_LIMIT),
        );
    }
    // disable_IO_APIC
    IoApic::new(SimIoApic).mask_all();
}

#[allow(clippy::needless_pass_by_value, reason = "a handler is given its frame")]
fn crash_nmi_callback(_: InterruptFrame) {
    // AcqRel: the crashing CPU sees what this one did before.
    kernels().stopped.fetch_add(1, AcqRel);
    program::park()
}

// The capture kernel.

fn start_kernel() {
    let _frame = program::frame("start_kernel");
    let kernels = kernels();
    // init_IRQ: the image has its gates.
    kernels.enabled_at.set(Some(SimMachine::now()));
    local_irq_enable();
    program::advance(BOOTING);
    if kernels.looks_for_call {
        // What the report's solution leaves shows in the timer; more is not asked of this machine.
        check_timer();
        program::park();
    }
    smp_init(&kernels);
    smp_call_function(&kernels, || {
        let kernels = self::kernels();
        kernels.functions_run.set(kernels.functions_run.get() + 1);
    });
    program::record(EventKind::DumpStarted, None, 0, 0);
    kernels.dumped.set(true);
    program::stop();
}

fn local_irq_enable() {
    SimMachine::restore_interrupts(true);
}

/// The gates of interrupt lines. No line has a driver yet, so an interrupt is unexpected, and ended.
fn do_irq(mut frame: InterruptFrame) {
    let _entry = program::frame("do_IRQ");
    kernels().misrouted.borrow_mut().extend(frame.vector);
    frame.end_of_interrupt();
}

fn call_function_interrupt(frame: InterruptFrame) {
    let _entry = program::frame("call_function_interrupt");
    smp_call_function_interrupt(frame);
}

fn smp_call_function_interrupt(mut frame: InterruptFrame) {
    let _handler = program::frame("smp_call_function_interrupt");
    let kernels = kernels();
    // Acquire: pairs with the store of the caller.
    let data = kernels.call_data.load(Acquire);
    if data.is_null() && !kernels.looks_for_call {
        // `call_data->func`: address 0 is mapped nowhere.
        let _fault = program::frame("do_page_fault");
        kernels.oops.set(frame.vector);
        die();
    }
    frame.end_of_interrupt();
    if data.is_null() {
        return;
    }
    // SAFETY: not null, so it leads to the call for which this IPI was sent, on the stack of a caller that does not return
    // before all CPUs have finished it.
    let data = unsafe { &*data };
    // Both AcqRel: the caller sees what was done before.
    data.started.fetch_add(1, AcqRel);
    (data.func)();
    data.finished.fetch_add(1, AcqRel);
}

/// In an interrupt handler that is a panic, and the capture kernel has no kernel to go to.
fn die() -> ! {
    let _frame = program::frame("die");
    program::park()
}

/// Whether the timer, now at its own vector, interrupts.
fn check_timer() {
    let _frame = program::frame("check_timer");
    program::set_handler(TIMER.vector, timer_interrupt);
    TIMER.wire(TIMER.vector);
    for _ in 0..TIMER_PERIODS {
        TIMER.interrupt();
        program::advance(TIMER_PERIOD);
    }
}

fn timer_interrupt(mut frame: InterruptFrame) {
    let kernels = kernels();
    kernels.timer_ticks.set(kernels.timer_ticks.get() + 1);
    frame.end_of_interrupt();
}

fn smp_init(kernels: &Kernels) {
    let _frame = program::frame("smp_init");
    kernels.smp_init.set(true);
    for cpu in kernels.cast.others() {
        let Some(id) = SimTopology::current().apic_id(cpu) else { continue };
        let alive = [kernels.online[cpu.index()].equals(u64::MAX, 1)];
        // As then: a CPU that does not come is one that is not there.
        let _ = local_apic().start_cpu(id, START_UP_PAGE, StartUpDelays::SPECIFIED, &alive);
    }
}

fn start_secondary(cpu: Cpu, _page: u8) {
    program::enable_local_apic().expect("the routing fits the machine");
    // Release: the CPU that starts this one finds it able to be interrupted.
    kernels().online[cpu.index()].store(1, Release);
    SimMachine::restore_interrupts(true);
}

/// `call_lock` is left out: nobody else calls.
fn smp_call_function(kernels: &Kernels, func: fn()) {
    let _frame = program::frame("smp_call_function");
    let data = CallData { func, started: Word::new(0), finished: Word::new(0) };
    let is_online = |cpu: &Cpu| kernels.online[cpu.index()].load(Acquire) == 1;
    let targets: SimCpuSet = kernels.cast.others().filter(is_online).collect();
    if targets.is_empty() {
        return;
    }
    // Release: who loads the pointer sees the call that it leads to.
    kernels.call_data.store((&raw const data).cast_mut(), Release);
    // As then: nobody looks at whether it could be sent.
    let _ = send_interrupt_to(&targets, Interrupt::Fixed(CALL_VECTOR));
    let all = targets.len() as u64;
    wait::<SimMachine>(&[data.started.equals(u64::MAX, all)], Deadline::NEVER);
    wait::<SimMachine>(&[data.finished.equals(u64::MAX, all)], Deadline::NEVER);
}

// The replay.

/// What is left when a run is over.
pub(super) struct Remains {
    pub(super) at_crash: Option<CpuReport>,
    /// The first interrupt that the capture kernel took.
    pub(super) first_taken: Option<u8>,
    /// How long after its first interrupt-enable.
    pub(super) after: Option<Duration>,
    /// The vector whose handler read through `call_data` while it was null.
    pub(super) oops: Option<u8>,
    pub(super) smp_init: bool,
    pub(super) misrouted: Vec<u8>,
    pub(super) timer_ticks: u32,
    pub(super) functions_run: usize,
    pub(super) dumped: bool,
    /// The crashed CPU at the end.
    pub(super) at_the_end: CpuReport,
}

/// Whether the machine is in the state that was reported: the first interrupt that the capture kernel has taken is the
/// call-function IPI, its handler read through the uninitialised `call_data`, before `smp_init`, and there it stopped.
fn is_reported_state(remains: &Remains) -> bool {
    remains.first_taken == Some(CALL_FUNCTION)
        && remains.oops == Some(CALL_FUNCTION)
        && !remains.smp_init
        && remains.at_the_end.parked
        && !remains.dumped
}

/// One machine, from the first kernel's boot to its end.
fn run(setup: &Setup, cast: Cast, looks_for_call: bool) -> Result<(Remains, Remnant), ReplayError> {
    let mut world = World::new(&cast.config(setup))?;
    let kernels = Kernels::new(cast, looks_for_call);
    let capture = Image::new(start_kernel)
        .handler_of_all(do_irq)
        .handler(CALL_FUNCTION, call_function_interrupt)
        .on_start_up(start_secondary);
    kernels.capture.set(Some(world.add_image(capture)));
    world.set_nmi_handler(crash_nmi_callback);
    scene::first_kernel(&mut world, cast, panic);
    world.run(TIME_LIMIT);
    let trace = world.trace();
    let first = super::taken_by_the_capture_kernel(cast.crasher, &trace.events).next();
    let remains = Remains {
        at_crash: kernels.at_crash.take(),
        first_taken: first.map(|(_, vector)| vector),
        after: first.zip(kernels.enabled_at.get()).map(|((at, _), enabled)| at.since(enabled)),
        oops: kernels.oops.get(),
        smp_init: kernels.smp_init.get(),
        misrouted: kernels.misrouted.take(),
        timer_ticks: kernels.timer_ticks.get(),
        functions_run: kernels.functions_run.get(),
        dumped: kernels.dumped.get(),
        at_the_end: world.inspect(cast.crasher),
    };
    let ipis = super::ipis(&world, &trace.events, 0);
    let remnant = Remnant { reports: super::reports(&world), ipis, trace };
    KERNELS.set(None);
    // SAFETY: 1. Nothing that is used from here on refers to the programs' stacks: `call_data`, which leads to one, is not
    // followed any more, and the machine is not run any more. 2. What lives there are named frames, counts and
    // reference-counted memory: nobody relies on their being dropped.
    unsafe { world.forget_programs() };
    Ok((remains, remnant))
}

/// The rest of a run.
struct Remnant {
    reports: Vec<CpuReport>,
    ipis: smpcall_simulator::campaign::Ipis,
    trace: Trace,
}

/// Replays it.
pub(crate) fn then(setup: &Setup) -> Result<Replay, ReplayError> {
    let Some(cast) = Cast::of(setup) else { return Ok(Replay::not_applicable(setup, NO_OTHER_CPU)) };
    let (remains, Remnant { reports, ipis, trace }) = run(setup, cast, false)?;
    let with_a_look = if cast.leaves_pending { Some(run(setup, cast, true)?.0) } else { None };
    let reported_state = is_reported_state(&remains);
    let pending = remains.at_crash.as_ref().map(|at_crash| PendingAtCrash {
        cpu: cast.crasher.number(),
        requested: at_crash.requested.clone(),
        in_service: at_crash.in_service.clone(),
        drained: Some(!remains.at_crash.as_ref().is_some_and(holds_something)),
        taken: remains.oops.or(remains.misrouted.first().copied()),
        function: remains.oops.map(|_| "smp_call_function_interrupt".into()),
    });
    // A kernel that found nothing old did not put the law to the test.
    let judged = cast.leaves_pending.then_some((Law::L8, !reported_state && remains.misrouted.is_empty()));
    Ok(Replay {
        incident: setup.incident,
        when: When::Then,
        cpus: setup.cpus,
        routing: setup.routing,
        seed: setup.seed,
        fault: setup.fault,
        outcome: if reported_state { Outcome::Lost } else { Outcome::Held },
        reason: None,
        laws: Laws::NOT_APPLICABLE.with(judged),
        ipis,
        diagnosis: diagnose(&super::evidence(&reports, &trace.events, pending)),
        view: view::then(cast, &remains, with_a_look.as_ref()),
        summary: summary(cast, &remains, with_a_look.as_ref()),
        trace,
    })
}

fn holds_something(report: &CpuReport) -> bool {
    !report.requested.is_empty() || !report.in_service.is_empty()
}

fn summary(cast: Cast, remains: &Remains, with_a_look: Option<&Remains>) -> String {
    let crasher = cast.crasher;
    let Some(vector) = remains.oops else {
        let what = if remains.dumped {
            "came up, called its CPUs and could write the dump"
        } else {
            "did not get to the dump"
        };
        let (ran, others) = (remains.functions_run, cast.cpus - 1);
        return format!(
            "{crasher} crashed; the capture kernel {what}. Its first call ran on {ran} of {others} others."
        );
    };
    let after = remains.after.map_or_else(String::new, |after| format!(", {} after it", super::human(after)));
    let look = with_a_look.map_or_else(String::new, |look| {
        format!(
            " With a handler that looks whether there is a call, the report's first solution, what else is pending comes to the \
             gates of interrupts that are not its own ({}), and of {TIMER_PERIODS} ticks of the timer {} are taken: {} is \
             still in service and holds back all below it.",
            super::listed(look.misrouted.iter().copied()),
            look.timer_ticks,
            super::listed(look.at_the_end.in_service.iter().copied()),
        )
    });
    format!(
        "{crasher} crashed with interrupts pending. The capture kernel's first interrupt, at its first interrupt-enable{after}, \
         was the old kernel's {vector:#04x}: the handler read call_data->func while call_data was null, before smp_init. It \
         stops there, and there is no dump.{look}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::{Fault, Incident};
    use smpcall_local_apic::Routing;

    fn remains(fault: Fault, looks_for_call: bool) -> Remains {
        let (incident, when, routing) = (Incident::PendingIpi, When::Then, Routing::MachDefault);
        let setup = Setup { incident, when, cpus: 2, routing, seed: 1, fault };
        run(&setup, Cast::of(&setup).expect("two CPUs"), looks_for_call).expect("a machine").0
    }

    #[test]
    fn the_reported_state_needs_each_of_its_parts() {
        let without = |change: fn(&mut Remains)| {
            let mut remains = remains(Fault::Reported, false);
            change(&mut remains);
            is_reported_state(&remains)
        };
        assert!(without(|_| {}));
        assert!(!without(|remains| remains.first_taken = Some(0xb9)), "another one came first");
        assert!(!without(|remains| remains.oops = None), "there was a call");
        assert!(!without(|remains| remains.smp_init = true), "it is one of its own");
        assert!(!without(|remains| remains.at_the_end.parked = false), "it goes on");
        assert!(!without(|remains| remains.dumped = true), "there is a dump");
    }

    #[test]
    fn a_handler_that_looks_leaves_misrouted_interrupts_and_a_dead_timer() {
        let remains = remains(Fault::Reported, true);
        assert!(!is_reported_state(&remains));
        assert_eq!(remains.misrouted, [0xb9], "what is above the vector in service");
        assert_eq!(remains.timer_ticks, 0);
        assert_eq!(remains.at_the_end.in_service, [0xa9]);
        assert_eq!(remains.at_the_end.requested, [0x31, 0x99]);
    }

    #[test]
    fn with_nothing_in_service_the_same_timer_ticks() {
        let remains = remains(Fault::None, true);
        assert_eq!((remains.timer_ticks, remains.misrouted.len()), (TIMER_PERIODS, 0));
    }
}
