//! Suites `crash` and `incident-5`: this kernel crashes, and what is left of the run is the capture kernel's.
//!
//! * `incident-5`: report 004. A CPU panics in an interrupt handler, with rings and others pending and interrupts disabled.
//! * `crash`: some CPU crashes in some way at some instant under the torture, while another one is wedged.

use core::sync::atomic::Ordering::{Acquire, Release};
use core::time::Duration;

use smpcall_local_apic::{Interrupt, Vector, Vectors};
use smpcall_machine::{Cpu, Deadline, InterruptsOff, Machine, Woken, wait};

use super::{Run, torture};
use crate::clock::LabWord;
use crate::console::say;
use crate::cpu::MAX_CPUS;
use crate::crash::{Expectation, expect};
use crate::interrupts::Frame;
use crate::machine::{BOOT_CPU, Calls, Cpus, Lab};
use crate::{apic, capture_load, clock, hooks, random, tasks};

/// How long something may take that is over within milliseconds on a machine that nobody else uses.
const LIMIT: Duration = Duration::from_secs(30);

/// A CPU that has begun nothing for so long has interrupts disabled.
const MASKED: Duration = Duration::from_secs(2);

/// The vector in whose handler CPUs crash or are wedged: it is taken before rings are.
const SCENE: Vector = Vector::new(0xfc).unwrap();
/// That in whose handler a CPU crashes with interrupts pending: below all that is pending but one, as in the report.
const LOW_SCENE: Vector = Vector::new(0x31).unwrap();
/// What is pending at the crash of incident 5: rings, as in the report, and others, of which one is below what is in service.
const PENDING: [Vector; 4] =
    [apic::RING, apic::DEVICE, Vector::new(0x55).unwrap(), Vector::new(0x22).unwrap()];

fn pending_vectors() -> Vectors {
    let mut vectors = Vectors::EMPTY;
    for vector in PENDING {
        vectors.insert(vector.number());
    }
    vectors
}

/// What a CPU is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
enum Part {
    /// As the others.
    Bystander = 0,
    /// It spins in an NMI handler, which no other NMI interrupts.
    WedgedInNmi = 1,
    /// It spins with interrupts disabled.
    Wedged = 2,
    /// It panics in an NMI handler.
    PanicInNmi = 3,
    /// It panics in an interrupt handler.
    Panic = 4,
    /// It reads from where nothing is, in an interrupt handler.
    Fault = 5,
    /// It panics in an interrupt handler with interrupts pending.
    PanicWithPending = 6,
}

const PARTS: [Part; 7] = [
    Part::Bystander,
    Part::WedgedInNmi,
    Part::Wedged,
    Part::PanicInNmi,
    Part::Panic,
    Part::Fault,
    Part::PanicWithPending,
];

impl Part {
    /// What has it begin.
    fn cue(self) -> Interrupt {
        match self {
            Self::WedgedInNmi | Self::PanicInNmi => Interrupt::Nmi,
            Self::PanicWithPending => Interrupt::Fixed(LOW_SCENE),
            _ => Interrupt::Fixed(SCENE),
        }
    }
}

/// The part of each CPU; with this bit, it has begun.
static CAST: [LabWord; MAX_CPUS] = [const { LabWord::new(0) }; MAX_CPUS];
const ON_STAGE: u64 = 1 << 8;

/// Plays the part of this CPU, if it has one for such a handler.
fn play(in_nmi: bool) {
    let place = &CAST[Lab::current_cpu().index()];
    // Acquire: what it expects.
    let part = PARTS[(place.load(Acquire) as usize & 0xff) % PARTS.len()];
    if part == Part::Bystander || (part.cue() == Interrupt::Nmi) != in_nmi {
        return;
    }
    // Release: it stands.
    place.fetch_or(ON_STAGE, Release);
    match part {
        Part::Bystander => {}
        Part::WedgedInNmi | Part::Wedged => {
            wait::<Lab>(&[place.equals(!0, 0)], Deadline::NEVER);
        }
        Part::PanicInNmi => panic!("in an NMI handler"),
        Part::Panic => panic!("in an interrupt handler"),
        // SAFETY: there is nothing, so nothing is read: the exception is what is wanted. It does not come back.
        Part::Fault => unsafe {
            core::hint::black_box((0xffff_9000_dead_b000 as *const u64).read_volatile());
        },
        Part::PanicWithPending => {
            for vector in PENDING {
                let _ = apic::send_self(vector);
            }
            let vectors = pending_vectors();
            let accepted = smpcall_machine::Predicate(|| {
                let requests = apic::record().requests;
                vectors.iter().all(|vector| requests.contains(vector))
            });
            wait::<Lab>(&accepted, Deadline::within::<Lab>(LIMIT));
            panic!("with interrupts pending");
        }
    }
}

fn on_nmi() {
    play(true);
}

/// Never ended: the vector is in service for ever.
fn on_entry(frame: &mut Frame) -> bool {
    let mine = [SCENE, LOW_SCENE].iter().any(|vector| frame.vector == u64::from(vector.number()));
    if mine {
        play(false);
    }
    mine
}

/// Gives a CPU its part, and the cue; waits until it has begun if it stays.
fn cue(cpu: Cpu, part: Part) -> bool {
    // Release: what it expects.
    CAST[cpu.index()].store(part as u64, Release);
    if apic::send(cpu, part.cue()).is_err() {
        return false;
    }
    let begun = CAST[cpu.index()].differs(!0, part as u64);
    !matches!(part, Part::Wedged | Part::WedgedInNmi)
        || wait::<Lab>(&[begun], Deadline::within::<Lab>(LIMIT)) != Woken::Deadline
}

/// Who plays what.
#[derive(Debug)]
struct Plan {
    culprit: Cpu,
    crash: Part,
    /// Others that crash at the same time.
    also: Cpus,
    wedged: Option<(Cpu, Part)>,
    offline: Option<Cpu>,
}

/// Everything is set up for a crash: returns only if there is none.
fn make(run: &mut Run, plan: &Plan, load: Duration) {
    if let Some(error) = capture_load::why_none() {
        run.check("capture_is_loaded", false, format_args!("{error}"));
        return;
    }
    if let Some(cpu) = plan.offline {
        let went = Calls::cpu_down(cpu, LIMIT);
        run.check("goes_offline", went.is_ok(), format_args!("{cpu}: {went:?}"));
    }
    say!("the plan: {plan:?}, after {load:?} of load");
    hooks::on_nmi(Some(on_nmi));
    hooks::on_entry(Some(on_entry));
    let mut missing = Cpus::EMPTY;
    if let Some((cpu, Part::WedgedInNmi)) = plan.wedged {
        missing.insert(cpu);
    }
    let (mut requests, mut in_service) = (Vectors::EMPTY, Vectors::EMPTY);
    if plan.crash == Part::PanicWithPending {
        requests = pending_vectors();
        in_service.insert(LOW_SCENE.number());
    }
    expect(Expectation { culprit: plan.culprit, requests, in_service, missing: Some(missing) });
    if !load.is_zero() {
        torture::begin(u64::MAX / 2);
        for cpu in apic::all().filter(|&cpu| cpu != BOOT_CPU && Calls::is_online(cpu)) {
            tasks::give(cpu, torture::task);
        }
        let deadline = Deadline::within::<Lab>(load);
        while !deadline.has_passed(Lab::now()) {
            torture::task(BOOT_CPU);
        }
    }
    // From here on this CPU calls nobody and runs nobody's closures: they might wait for the wedged one.
    let pinned = InterruptsOff::<Lab>::new();
    let stands = plan.wedged.is_none_or(|(cpu, part)| cue(cpu, part));
    clock::delay(Duration::from_micros(random::below(20_000)));
    for cpu in &*plan.also {
        let _ = cue(cpu, Part::PanicInNmi);
    }
    let sent = cue(plan.culprit, plan.crash);
    if plan.culprit == BOOT_CPU {
        drop(pinned);
    }
    clock::delay(MASKED);
    // It waits for the wedged CPU with interrupts disabled.
    say!("{} takes no interrupts: it crashes in an NMI handler", plan.culprit);
    // Then nothing is pending there but what happens to be.
    let (requests, in_service) = (Vectors::EMPTY, Vectors::EMPTY);
    expect(Expectation { culprit: plan.culprit, requests, in_service, missing: Some(missing) });
    let sent_again = cue(plan.culprit, Part::PanicInNmi);
    clock::delay(LIMIT);
    run.check("crashes", false, format_args!("it does not: {stands} {sent} {sent_again}"));
}

/// One of these that is not taken; it is, then.
fn take(free: &mut Cpus) -> Option<Cpu> {
    let chosen = free.iter().nth(random::below(free.len().max(1) as u64) as usize)?;
    free.remove(chosen);
    Some(chosen)
}

/// Suite `crash`.
pub(super) fn random(run: &mut Run) {
    let mut free: Cpus = apic::all().collect();
    let others: Cpus = free.iter().filter(|&cpu| cpu != BOOT_CPU).collect();
    let crashes = [Part::PanicInNmi, Part::Panic, Part::Fault, Part::PanicWithPending];
    let Some(culprit) = take(&mut free) else { return };
    // The boot CPU plays no other part: it gives the cues. Rings would be taken before the vector of the last one.
    let ways = if culprit == BOOT_CPU { crashes.len() - 1 } else { crashes.len() };
    let crash = crashes[random::below(ways as u64) as usize];
    let mut free: Cpus = others.iter().filter(|&cpu| cpu != culprit).collect();
    let wedge = [Part::Wedged, Part::WedgedInNmi][random::below(2) as usize];
    let wedged = take(&mut free).map(|cpu| (cpu, wedge));
    let offline = if random::below(2) == 0 { take(&mut free) } else { None };
    let also = match random::below(8) {
        0 => free,
        1..4 => take(&mut free).into_iter().collect(),
        _ => Cpus::EMPTY,
    };
    let load = Duration::from_micros(5_000 + random::below(100_000));
    make(run, &Plan { culprit, crash, also, wedged, offline }, load);
}

/// Suite `incident-5`.
pub(super) fn pending(run: &mut Run) {
    let others = apic::count() as u32 - 1;
    let cpu = |number: u32| (number <= others && number > 0).then(|| Cpu::new(number));
    // As in the report, not the CPU that the machine was started with; if there is another one.
    let plan = Plan {
        culprit: cpu(1).unwrap_or(BOOT_CPU),
        crash: Part::PanicWithPending,
        also: Cpus::EMPTY,
        wedged: cpu(2).map(|cpu| (cpu, Part::WedgedInNmi)),
        offline: cpu(3),
    };
    make(run, &plan, Duration::ZERO);
}
