//! Incident 4 as then: how those kernels ended interrupts and sent to one CPU, re-created from what is known of it.
//!
//! `ack_APIC_irq` writes the local APIC's end-of-interrupt register and asks nothing. The chip of irq 0 has it as its
//! acknowledgement (`apic_ack_edge`) wherever its interrupt came from: also when that is an `ExtINT`, whose end is the 8259's
//! business. A reschedule interrupt for one CPU goes through a mask of one.

use core::time::Duration;

use smpcall_diagnosis::{StrayEnd, diagnose};
use smpcall_local_apic::{Access, PortAccess, Register};
use smpcall_machine::{Event, EventKind};
use smpcall_simulator::campaign::Ipis;
use smpcall_simulator::{CpuReport, InterruptFrame, SimAccess, SimPorts, TIMER_VECTOR, World, program};

use super::board::{self, DISK_VECTOR};
use super::ends::{CutShort, Early, Ends};
use super::sending::{self, RESCHEDULE_VECTOR, Tables};
use super::{DEVICES_TO, tasks, view};
use crate::evidence;
use crate::incident::{self, ReplayError, Setup, When};
use crate::laws::{Law, Laws};
use crate::replay::Replay;

/// `APIC_DM_EXTINT`, in the entry of LINT0.
const APIC_DM_EXTINT: u32 = 0x700;
/// OCW2 of an 8259: the end of line 0.
const END_OF_LINE_0: u8 = 0x60;

/// Whether anything is in service is nobody's question.
#[expect(non_snake_case, reason = "its name")]
fn ack_APIC_irq() {
    SimAccess.write(Register::END_OF_INTERRUPT, 0);
}

/// The acknowledgement of a chip whose interrupts are edges, irq 0 among them.
fn apic_ack_edge() {
    ack_APIC_irq();
}

/// The vector of irq 0.
fn timer(_: InterruptFrame) {
    let _entry = program::frame("do_IRQ");
    // The 8259 was in a mode in which it ends by itself what it has given out (`legacy_pic->init(1)`), which the model of
    // it has not: it is told here. Harmless where it was not in service.
    SimPorts.write(0x20, END_OF_LINE_0);
    let _flow = program::frame("handle_edge_irq");
    apic_ack_edge();
    let _handler = program::frame("timer_interrupt");
    board::serve_timer();
}

/// The disk's vector: ended when its handler is done.
fn disk(_: InterruptFrame) {
    let _entry = program::frame("do_IRQ");
    let _flow = program::frame("handle_fasteoi_irq");
    {
        let _handler = program::frame("ide_intr");
        board::serve_disk();
    }
    // `ioapic_ack_level`.
    ack_APIC_irq();
}

/// The vectors of the slower devices: ended before they are handled.
#[expect(clippy::needless_pass_by_value, reason = "a handler is given its frame")]
fn edge(frame: InterruptFrame) {
    let _entry = program::frame("do_IRQ");
    let _flow = program::frame("handle_edge_irq");
    apic_ack_edge();
    board::serve_slow(frame.vector.unwrap_or_default());
}

fn smp_reschedule_interrupt(_: InterruptFrame) {
    ack_APIC_irq();
    // `scheduler_ipi`, and the return from the interrupt to a task that is to be rescheduled.
    tasks::schedule();
}

fn smp_apic_timer_interrupt(_: InterruptFrame) {
    ack_APIC_irq();
    // `scheduler_tick`, and the same return: a lost reschedule interrupt is found here.
    tasks::schedule();
}

/// Replays it.
pub(crate) fn then(setup: &Setup) -> Result<Replay, ReplayError> {
    if let Some(reason) = super::not_applicable(setup) {
        return Ok(Replay::not_applicable(setup, reason));
    }
    let tables = Tables::new(setup.routing, setup.cpus);
    let mut world = World::new(&super::config(setup, RESCHEDULE_VECTOR))?;
    board::reset();
    tasks::reset();
    let handlers: [(u8, fn(InterruptFrame)); 4] = [
        (board::TIMER_VECTOR, timer),
        (DISK_VECTOR, disk),
        (RESCHEDULE_VECTOR, smp_reschedule_interrupt),
        (TIMER_VECTOR, smp_apic_timer_interrupt),
    ];
    for (vector, handler) in handlers {
        world.set_handler(vector, handler);
    }
    for (_, vector, _) in board::EDGES {
        world.set_handler(vector, edge);
    }
    let ext_int = setup.fault != incident::Fault::None;
    for cpu in (0..setup.cpus as u32).map(smpcall_machine::Cpu::new) {
        let tables = &tables;
        world.spawn(cpu, move || {
            if cpu == DEVICES_TO {
                if ext_int {
                    SimAccess.write(Register::LVT_LINT0, APIC_DM_EXTINT);
                }
                board::wire(ext_int);
            }
            super::work_and_wake(setup.cpus, |target, _| {
                tasks::wake(target, || tables.native_smp_send_reschedule(target));
            });
        });
    }
    super::run(&mut world);
    told(setup, &world)
}

fn told(setup: &Setup, world: &World<'_>) -> Result<Replay, ReplayError> {
    let trace = world.trace();
    let counters = world.counters();
    let reports = super::reports(world);
    let ends = super::ends(setup, &trace.events);
    let lost = super::lost_vectors(&reports, RESCHEDULE_VECTOR);
    let tasks = tasks::books();
    let costs = sending::measure(setup.routing, setup.cpus)?;
    let mut evidence = evidence::of_machine(&reports, &trace.events, None);
    evidence.stray_ends = stray_ends(&ends);
    let ipis = Ipis {
        sent: counters.ipis_sent,
        taken: counters.taken[RESCHEDULE_VECTOR as usize],
        lost: counters.ipis_lost,
        resent: 0,
    };
    let laws = if ipis.lost > 0 {
        Laws::NOT_APPLICABLE.with([(Law::L2, tasks.lost_no_task())])
    } else {
        Laws::NOT_APPLICABLE
    };
    Ok(Replay {
        incident: setup.incident,
        when: When::Then,
        cpus: setup.cpus,
        routing: setup.routing,
        seed: setup.seed,
        fault: setup.fault,
        outcome: super::outcome(super::is_reported_state(&ends, lost)),
        reason: None,
        laws,
        ipis,
        diagnosis: diagnose(&evidence),
        view: view::then(&Seen { reports: &reports, ends: &ends, events: &trace.events, lost, tasks, costs }),
        summary: summary(&ends, lost, tasks, costs),
        trace,
    })
}

/// What the view of it is made from.
pub(super) struct Seen<'a> {
    pub(super) reports: &'a [CpuReport],
    pub(super) ends: &'a Ends,
    pub(super) events: &'a [Event],
    pub(super) lost: u64,
    pub(super) tasks: tasks::Books,
    pub(super) costs: sending::Costs,
}

/// The findings of a trace, added up by who wrote and what was cut short.
pub(super) fn stray_ends(ends: &Ends) -> Vec<StrayEnd> {
    let mut strays: Vec<StrayEnd> = Vec::new();
    for CutShort { cpu, vector, by, .. } in &ends.cut_short {
        let same =
            |stray: &&mut StrayEnd| (stray.cpu, stray.by, stray.vector) == (cpu.number(), *by, *vector);
        if let Some(stray) = strays.iter_mut().find(same) {
            stray.times += 1;
            continue;
        }
        let let_in = |early: &&Early| early.cpu == *cpu && early.inside == *vector;
        strays.push(StrayEnd {
            cpu: cpu.number(),
            by: *by,
            vector: *vector,
            times: 1,
            let_in: ends.early.iter().filter(let_in).count() as u64,
            function: (*by == board::TIMER_VECTOR).then(|| "apic_ack_edge".into()),
        });
    }
    strays
}

fn summary(ends: &Ends, lost: u64, tasks: tasks::Books, costs: sending::Costs) -> String {
    let (of_nothing, cut, early) = (ends.of_nothing, ends.cut_short.len(), ends.early.len());
    let times = |count: usize| if count == 1 { "once".into() } else { format!("{count} times") };
    let what = if of_nothing == 0 && cut == 0 {
        "Every end of interrupt was that of the handler that wrote it.".into()
    } else {
        format!(
            "The handler of irq 0 wrote an end of interrupt that belonged to nothing: {} with nothing in service, which \
             did nothing, and {} under a handler with interrupts enabled, whose in-service bit it cleared; {} an \
             interrupt of lower priority then nested in that handler.",
            times(of_nothing as usize),
            times(cut),
            times(early),
        )
    };
    let nanos = costs.mask_then.nanos;
    format!(
        "{what} Vectors lost: {lost}. {} tasks were woken by IPIs that each went through a mask of one CPU ({nanos} ns of \
         the model; one operation: {} ns). The longest stall was {}.",
        tasks.woken,
        costs.single.nanos,
        millis(tasks.longest_stall),
    )
}

/// A time as people say it.
pub(super) fn millis(duration: Duration) -> String {
    format!("{:.3} ms", duration.as_secs_f64() * 1e3)
}

/// How many events of a kind there were on a CPU, with this detail.
pub(super) fn count(events: &[Event], kind: EventKind, vector: u8) -> usize {
    events.iter().filter(|event| event.kind == kind && event.detail == u32::from(vector)).count()
}
