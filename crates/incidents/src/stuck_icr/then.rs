//! Incident 3 as then: the crash path of kdump in Linux 2.6 of 2007, re-created from what is known of it.
//!
//! The CPU that crashes stops the others by an NMI, waits up to a second until they have saved their registers, and boots
//! the capture kernel. The NMI goes the way of all IPIs, which is another one for each sub-architecture; but each waits
//! first until the ICR is idle, and that wait has no end.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use core::time::Duration;
use std::cell::Cell;

use smpcall_diagnosis::{BusyController, diagnose};
use smpcall_local_apic::{Access, ApicId, DeliveryMode, Icr, Mode, Register, Routing, SetCost};
use smpcall_machine::{Cpu, Deadline, EventKind, Instant, Machine, Predicate, Word, wait};
use smpcall_simulator::campaign::Ipis;
use smpcall_simulator::{
    CpuReport, InterruptFrame, RunEnd, SimAccess, SimMachine, SimMemory, World, program,
};

use super::{Cast, TIME_LIMIT, cannot_happen, human, is_locked_up, reports, view};
use crate::evidence;
use crate::incident::{ReplayError, Setup, When};
use crate::laws::{Law, Laws};
use crate::replay::{Outcome, Replay};

/// The largest machine of an xAPIC, in CPUs.
const MAX_CPUS: usize = 255;

/// How often the crash looks, once a millisecond, whether all others have saved: as in `nmi_shootdown_cpus`.
const SHOOTDOWN_MSECS: u32 = 1000;

/// Where [`apic_wait_icr_idle`] is, for who looks at the stack.
const ICR_WAIT: &str = "apic_wait_icr_idle";

/// The functions between `smp_send_nmi_allbutself` and the ICR, outermost first. Source: report 002.
const fn send_path(routing: Routing) -> Option<&'static [&'static str]> {
    Some(match routing {
        Routing::MachDefault => &["send_IPI_mask", "send_IPI_mask_bitmask"],
        Routing::BigSmp | Routing::Es7000 | Routing::NumaQ | Routing::Summit => {
            &["send_IPI_mask", "send_IPI_mask_sequence"]
        }
        Routing::Flat => &["send_IPI_allbutself", "flat_send_IPI_allbutself", "flat_send_IPI_mask"],
        Routing::Cluster => &[
            "send_IPI_allbutself",
            "cluster_send_IPI_allbutself",
            "cluster_send_IPI_mask",
            "send_IPI_mask_sequence",
        ],
        Routing::Physical => &[
            "send_IPI_allbutself",
            "physflat_send_IPI_allbutself",
            "physflat_send_IPI_mask",
            "send_IPI_mask_sequence",
        ],
        _ => return None,
    })
}

/// The global variables of the kernel.
struct Kernel {
    /// The CPU that crashes, plus one, once its callback for NMIs is registered.
    crashing_cpu: Word<SimMemory>,
    waiting_for_crash_ipi: Word<SimMemory>,
    /// Whose registers are saved.
    crash_notes: [Cell<bool>; MAX_CPUS],
    dump: Cell<Option<Dump>>,
}

/// The capture kernel was booted.
#[derive(Clone, Copy)]
struct Dump {
    at: Instant,
}

thread_local! {
    // Global to the machine that this thread simulates.
    static KERNEL: Kernel = const {
        Kernel {
            crashing_cpu: Word::new(0),
            waiting_for_crash_ipi: Word::new(0),
            crash_notes: [const { Cell::new(false) }; MAX_CPUS],
            dump: Cell::new(None),
        }
    };
}

impl Kernel {
    /// As at boot. Outside of the machine.
    fn reset(&self) {
        // The orderings do not matter: no CPU runs.
        self.crashing_cpu.store(0, Release);
        self.waiting_for_crash_ipi.store(0, Release);
        self.crash_notes.iter().for_each(|saved| saved.set(false));
        self.dump.set(None);
    }

    fn crash_save_cpu(&self) {
        self.crash_notes[SimMachine::current_cpu().index()].set(true);
    }
}

/// Runs something in these frames, outermost first.
fn within(frames: &[&'static str], run: &dyn Fn()) {
    match frames {
        [] => run(),
        [outermost, inner @ ..] => {
            let _frame = program::frame(outermost);
            within(inner, run);
        }
    }
}

fn panic(cast: Cast, routing: Routing) {
    let _panic = program::frame("panic");
    let _crash_kexec = program::frame("crash_kexec");
    machine_crash_shutdown(cast, routing);
    machine_kexec();
}

fn machine_crash_shutdown(cast: Cast, routing: Routing) {
    let _frame = program::frame("machine_crash_shutdown");
    // Never enabled again.
    let _ = SimMachine::disable_interrupts();
    nmi_shootdown_cpus(cast, routing);
    KERNEL.with(Kernel::crash_save_cpu);
}

fn nmi_shootdown_cpus(cast: Cast, routing: Routing) {
    let _frame = program::frame("nmi_shootdown_cpus");
    KERNEL.with(|kernel| {
        // Release, both: an NMI handler that sees the callback finds the count.
        kernel.waiting_for_crash_ipi.store(cast.cpus as u64 - 1, Release);
        kernel.crashing_cpu.store(u64::from(cast.crasher.number()) + 1, Release);
        smp_send_nmi_allbutself(cast, routing);
        for _ in 0..SHOOTDOWN_MSECS {
            // Acquire: with the notes of who has counted itself.
            if kernel.waiting_for_crash_ipi.load(Acquire) == 0 {
                break;
            }
            program::advance(Duration::from_millis(1));
        }
    });
}

fn smp_send_nmi_allbutself(cast: Cast, routing: Routing) {
    let _frame = program::frame("smp_send_nmi_allbutself");
    let path = send_path(routing).expect("a routing without a send path of those days is not replayed");
    within(path, &|| match routing.set_cost() {
        SetCost::PerCpu => cast.others().for_each(|cpu| send(routing, destination(routing, cpu))),
        _ => send(routing, cast.others().fold(0, |mask, cpu| mask | destination(routing, cpu))),
    });
}

/// What addresses a CPU, whose APIC has its number as identifier.
fn destination(routing: Routing, cpu: Cpu) -> u32 {
    let id = ApicId(cpu.number());
    match routing.model() {
        Some(model) if routing.addressing().is_logical() => model.logical_id(cpu, id).map_or(0, u32::from),
        _ => id.0,
    }
}

/// One command, with interrupts disabled.
fn send(routing: Routing, destination: u32) {
    apic_wait_icr_idle();
    let icr = if routing.addressing().is_logical() {
        Icr::logical(DeliveryMode::Nmi, 0, destination)
    } else {
        Icr::physical(DeliveryMode::Nmi, 0, destination)
    };
    let command = icr.encode(Mode::XApic).expect("the routing reaches all CPUs");
    SimAccess.write(Register::ICR_HIGH, (command >> 32) as u32);
    SimAccess.write(Register::ICR_LOW, command as u32);
}

/// As then: however long it takes.
fn apic_wait_icr_idle() {
    let _frame = program::frame(ICR_WAIT);
    let idle = Predicate(|| SimAccess.read(Register::ICR_LOW) & Icr::SEND_PENDING == 0);
    wait::<SimMachine>(&idle, Deadline::NEVER);
}

/// Boots the capture kernel, of which this keeps that it came to it. The machine stands still afterwards.
fn machine_kexec() {
    let _frame = program::frame("machine_kexec");
    program::record(EventKind::DumpStarted, None, 0, 0);
    KERNEL.with(|kernel| kernel.dump.set(Some(Dump { at: SimMachine::now() })));
    program::stop();
}

/// The handler of NMIs. One without a crash has no reason that is known, and is let be.
fn do_nmi(_: InterruptFrame) {
    let _frame = program::frame("do_nmi");
    KERNEL.with(|kernel| {
        // Acquire: pairs with the store before the NMI.
        let crashing_cpu = kernel.crashing_cpu.load(Acquire);
        if crashing_cpu == 0 || crashing_cpu == u64::from(SimMachine::current_cpu().number()) + 1 {
            return;
        }
        let _callback = program::frame("crash_nmi_callback");
        kernel.crash_save_cpu();
        // AcqRel: the CPU that crashes sees the notes.
        kernel.waiting_for_crash_ipi.fetch_add(u64::MAX, AcqRel);
        program::park();
    });
}

/// What is left when a run is over.
struct Remains {
    /// When that was.
    at: Instant,
    reports: Vec<CpuReport>,
    dump: Option<Dump>,
    /// The CPUs whose registers are saved.
    saved: Vec<Cpu>,
    /// When the crash began.
    crashed_at: Option<Instant>,
}

/// Replays it.
pub(crate) fn then(setup: &Setup) -> Result<Replay, ReplayError> {
    if let Some(reason) = cannot_happen(setup.routing) {
        return Ok(Replay::not_applicable(setup, reason));
    }
    if send_path(setup.routing).is_none() {
        let reason = "no kernel of the report sent by it: those with clusters wrote the ICR once for each CPU \
                      (numaq, summit, cluster)";
        return Ok(Replay::not_applicable(setup, reason));
    }
    let cast = Cast::of(setup);
    let crashed_at = Cell::new(None);
    let mut world = World::new(&cast.config(setup))?;
    KERNEL.with(Kernel::reset);
    world.set_nmi_handler(do_nmi);
    cast.occupy_others(&mut world);
    world.spawn(cast.crasher, || {
        cast.comes_to_it();
        crashed_at.set(Some(SimMachine::now()));
        panic(cast, setup.routing);
    });
    let ended = world.run(TIME_LIMIT);
    let remains = KERNEL.with(|kernel| Remains {
        at: if ended == RunEnd::TimeLimit { TIME_LIMIT } else { world.time() },
        reports: reports(&world),
        dump: kernel.dump.get(),
        saved: cast.all().filter(|cpu| kernel.crash_notes[cpu.index()].get()).collect(),
        crashed_at: crashed_at.get(),
    });
    let replay = told(setup, cast, &world, &remains);
    // SAFETY: 1. Nothing that is used from here on refers to those stacks: the kernel has no pointers, `told` has copied
    // what it tells, and the machine is not run any more. 2. What lives there are named frames and numbers: nobody relies on
    // their being dropped.
    unsafe { world.forget_programs() };
    replay
}

fn told(setup: &Setup, cast: Cast, world: &World<'_>, remains: &Remains) -> Result<Replay, ReplayError> {
    let crasher = &remains.reports[cast.crasher.index()];
    let in_the_wait = crasher.frames.last() == Some(&ICR_WAIT);
    let lost = in_the_wait && cast.is_reported_state(&remains.reports, remains.dump.is_some());
    let counters = world.counters();
    let trace = world.trace();
    let mut evidence = evidence::of_machine(&remains.reports, &trace.events, None);
    if in_the_wait && crasher.send_pending {
        evidence.busy_controllers.push(BusyController {
            cpu: cast.crasher.number(),
            nanos: crasher.waits.last().map(|wait| remains.at.since(wait.since).as_nanos() as u64),
            still_waits: true,
            function: Some(ICR_WAIT.into()),
            in_nmi_handlers: locked_up(cast, &remains.reports).map(Cpu::number).collect(),
        });
    }
    let all_saved = remains.saved.len() == cast.cpus;
    Ok(Replay {
        incident: setup.incident,
        when: When::Then,
        cpus: setup.cpus,
        routing: setup.routing,
        seed: setup.seed,
        fault: setup.fault,
        outcome: if lost { Outcome::Lost } else { Outcome::Held },
        reason: None,
        laws: Laws::NOT_APPLICABLE.with([
            (Law::L3, !in_the_wait),
            (Law::L7, remains.dump.is_some() && (all_saved || !cast.others_come_back())),
        ]),
        ipis: Ipis {
            sent: counters.ipis_sent,
            taken: counters.nmis_taken,
            lost: counters.ipis_lost,
            resent: 0,
        },
        diagnosis: diagnose(&evidence),
        trace,
        view: view::then(setup, cast, remains.at, &remains.reports, remains.dump.is_some())?,
        summary: summary(cast, remains, counters.ipis_sent),
    })
}

/// The others that are in their NMI handlers and do not come out.
pub(super) fn locked_up(cast: Cast, reports: &[CpuReport]) -> impl Iterator<Item = Cpu> {
    cast.others().filter(|cpu| is_locked_up(&reports[cpu.index()]))
}

fn summary(cast: Cast, remains: &Remains, nmis_sent: u64) -> String {
    let (crasher, others) = (cast.crasher, cast.cpus - 1);
    let locked_up = locked_up(cast, &remains.reports).count();
    if let (Some(dump), Some(began)) = (remains.dump, remains.crashed_at) {
        return format!(
            "{crasher} crashed; {} of {others} others saved their registers, and the dump began {} after the crash.",
            remains.saved.iter().filter(|&&cpu| cpu != crasher).count(),
            human(dump.at.since(began)),
        );
    }
    let frame = remains.reports[crasher.index()].frames.last().copied().unwrap_or("no frame");
    // One to each went out before the crash.
    let nmis = nmis_sent.saturating_sub(others as u64);
    format!(
        "{crasher} crashed and was to stop {others} others by an NMI. It is in {frame}, and the delivery status does not \
         clear; {locked_up} others are in their NMI handlers and do not come out. NMIs that the crash has sent: {nmis}; \
         CPUs that have saved their registers: {}. No dump was started.",
        remains.saved.len(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_send_path_of_the_report_is_there_and_no_other() {
        let with_path = Routing::ALL.into_iter().filter(|&routing| send_path(routing).is_some());
        let names: Vec<&str> = with_path.map(Routing::name).collect();
        assert_eq!(
            names,
            ["flat", "physflat", "mach-default", "bigsmp", "es7000", "numaq", "summit", "cluster"]
        );
    }

    #[test]
    fn destinations_are_those_of_the_routing() {
        let of = |routing| destination(routing, Cpu::new(6));
        assert_eq!(of(Routing::Flat), 0x40);
        assert_eq!(of(Routing::BigSmp), 6);
        assert_eq!(of(Routing::Summit), 0x14);
        assert_eq!(of(Routing::Cluster), 6);
    }
}
