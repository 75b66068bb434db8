//! The local APICs of this machine: which CPU has which, how they are addressed, and the driver in the one mode that all are in.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, Ordering::Relaxed};
use core::time::Duration;

use smpcall_local_apic::{
    ApicBase, ApicId, ApicMsrs, ApicRecord, ApicState, Drained, EnableError, InService, InertGates,
    Interrupt, LocalApic, LocalDelivery, LocalSource, LocalVector, Mmio, Mode, Msr, Prepared, Routing,
    RoutingError, StartUpDelays, StartUpError, TimerDivide, TimerMode, Topology, Vector,
};
use smpcall_machine::{Cpu, CpuMask, CpuSet, InterruptsOff, Machine, SendError};

use crate::boot::{self, DIRECT_MAP};
use crate::clock;
use crate::cpu::{MAX_CPUS, cpuid, per_cpu};
use crate::machine::{Lab, TICK};

/// The vector of rings: as in report 000.
pub(crate) const RING: Vector = Vector::new(0xfb).unwrap();
/// That of ticks.
pub(crate) const TICK_VECTOR: Vector = Vector::new(0xec).unwrap();
/// That of the device that suites play by interrupting themselves.
pub(crate) const DEVICE: Vector = Vector::new(0x41).unwrap();
/// That of interrupts that disappear.
pub(crate) const SPURIOUS: Vector = Vector::new(0xff).unwrap();

/// Where every PC has the registers of the local APIC in xAPIC mode, as far as it was not moved.
const REGISTERS: u64 = 0xfee0_0000;

/// The identifier of each CPU's APIC. Read by the start-up code too.
#[unsafe(no_mangle)]
static APIC_IDS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(u32::MAX) }; MAX_CPUS];
/// How many CPUs there are.
#[unsafe(no_mangle)]
static CPU_COUNT: AtomicU32 = AtomicU32::new(0);

/// Which CPU has which of the identifiers below 4,096, plus 1; 0: none has it.
static CPUS_BY_ID: [AtomicU16; 4096] = [const { AtomicU16::new(0) }; 4096];

/// The routings that this kernel has a driver for, those for x2APIC first.
const ROUTINGS: [Routing; 5] = [
    Routing::X2ApicCluster,
    Routing::X2ApicPhysical,
    Routing::Flat,
    Routing::XApicCluster,
    Routing::Physical,
];
const X2APIC_ROUTINGS: u8 = 2;

/// The position of this machine's among them: written once at boot.
static CHOSEN: AtomicU8 = AtomicU8::new(ROUTINGS.len() as u8 - 1);
/// All CPUs have been started and may be sent to by shorthand.
static ALL_STARTED: AtomicBool = AtomicBool::new(false);

/// The set of all CPUs, as memory that [`Topology::shorthand_reach`] can lend.
struct Reach(core::cell::UnsafeCell<CpuSet<{ MAX_CPUS / 64 }>>);
// SAFETY: written once, by the boot CPU, before `ALL_STARTED` is set.
unsafe impl Sync for Reach {}
static REACH: Reach = Reach(core::cell::UnsafeCell::new(CpuSet::EMPTY));

/// The command that rings each CPU.
struct Rings(core::cell::UnsafeCell<[Option<Prepared>; MAX_CPUS]>);
// SAFETY: written by the boot CPU before other CPUs run, and before anybody is rung.
unsafe impl Sync for Rings {}
static RINGS: Rings = Rings(core::cell::UnsafeCell::new([None; MAX_CPUS]));

/// The tables of this machine.
pub(crate) struct Tables;

impl Topology for Tables {
    #[inline(always)]
    fn apic_id(&self, cpu: Cpu) -> Option<ApicId> {
        // Relaxed, here and below: written before other CPUs are started.
        APIC_IDS.get(cpu.index()).map(|id| ApicId(id.load(Relaxed)))
    }

    fn cpu(&self, id: ApicId) -> Option<Cpu> {
        match CPUS_BY_ID.get(id.0 as usize) {
            Some(cpu) => u32::from(cpu.load(Relaxed)).checked_sub(1).map(Cpu::new),
            // Rare: clusters of packages with large numbers.
            None => all().find(|&cpu| self.apic_id(cpu) == Some(id)),
        }
    }

    fn shorthand_reach(&self) -> Option<&CpuMask> {
        // Acquire is not needed: the set was written long before, by the CPU that has started this one, or by this one.
        if !ALL_STARTED.load(Relaxed) {
            return None;
        }
        // SAFETY: see `Reach`.
        Some(unsafe { &*REACH.0.get() }.up_to(count()))
    }
}

/// How many CPUs there are, online or not.
pub(crate) fn count() -> usize {
    CPU_COUNT.load(Relaxed) as usize
}

/// All CPUs, online or not.
pub(crate) fn all() -> impl Iterator<Item = Cpu> + Clone {
    (0..count() as u32).map(Cpu::new)
}

/// How CPUs are addressed.
pub(crate) fn routing() -> Routing {
    ROUTINGS[usize::from(chosen())]
}

/// The position of this machine's routing. For `with_apic`.
#[inline(always)]
pub(crate) fn chosen() -> u8 {
    // Relaxed: written before other CPUs are started.
    CHOSEN.load(Relaxed)
}

/// The driver in xAPIC mode.
///
/// A constant for each routing, so that a send looks nothing up.
const fn xapic(routing: Routing) -> LocalApic<Lab, Mmio> {
    // SAFETY: the direct map shows the registers uncached and for ever; `choose_mode` has checked that they are there and
    // that all APICs are in this mode.
    LocalApic::new(unsafe { Mmio::new((DIRECT_MAP + REGISTERS) as *mut u32) }, routing)
}

/// The registers in xAPIC mode, for a driver with other habits.
pub(crate) fn xapic_registers() -> Mmio {
    // SAFETY: as in `xapic`.
    unsafe { Mmio::new((DIRECT_MAP + REGISTERS) as *mut u32) }
}

const fn x2apic(routing: Routing) -> LocalApic<Lab, Msr> {
    // SAFETY: this is a kernel; used only if `choose_mode` has switched to x2APIC.
    LocalApic::new(unsafe { Msr::new() }, routing)
}

/// Evaluates with the driver of this machine's routing.
macro_rules! with_apic {
    (|$apic:ident| $result:expr) => {
        match $crate::apic::chosen() {
            0 => {
                let $apic = const { &$crate::apic::x2apic($crate::apic::ROUTINGS[0]) };
                $result
            }
            1 => {
                let $apic = const { &$crate::apic::x2apic($crate::apic::ROUTINGS[1]) };
                $result
            }
            2 => {
                let $apic = const { &$crate::apic::xapic($crate::apic::ROUTINGS[2]) };
                $result
            }
            3 => {
                let $apic = const { &$crate::apic::xapic($crate::apic::ROUTINGS[3]) };
                $result
            }
            _ => {
                let $apic = const { &$crate::apic::xapic($crate::apic::ROUTINGS[4]) };
                $result
            }
        }
    };
}

/// The mode that all APICs are in.
#[inline(always)]
pub(crate) fn mode() -> Mode {
    if chosen() < X2APIC_ROUTINGS { Mode::X2Apic } else { Mode::XApic }
}

/// Rings a CPU.
#[inline(always)]
pub(crate) fn ring(target: Cpu) -> Result<(), SendError> {
    // SAFETY: see `Rings`.
    let ring = unsafe { &*RINGS.0.get() }.get(target.index()).copied().flatten();
    let ring = ring.ok_or(SendError::Unreachable)?;
    // What was prepared is good for each driver of the mode.
    match mode() {
        Mode::X2Apic => const { &x2apic(Routing::X2ApicCluster) }.send_prepared(ring),
        Mode::XApic => const { &xapic(Routing::Physical) }.send_prepared(ring),
    }
}

/// Sends an interrupt to one CPU.
#[inline]
pub(crate) fn send(target: Cpu, interrupt: Interrupt) -> Result<(), SendError> {
    with_apic!(|apic| apic.send_one(&Tables, target, interrupt).map(drop))
}

/// Sends an interrupt to a set of CPUs.
pub(crate) fn send_many(targets: &CpuMask, interrupt: Interrupt) -> Result<(), SendError> {
    with_apic!(|apic| apic.send_many(&Tables, targets, interrupt).map(drop))
}

/// Sends an ordinary interrupt to this CPU.
pub(crate) fn send_self(vector: Vector) -> Result<(), SendError> {
    with_apic!(|apic| apic.send_self(vector).map(drop))
}

/// Ends the interrupt of `vector`, whose handler this is.
///
/// # Safety
/// As for [`InService::entered`].
#[inline(always)]
pub(crate) unsafe fn end_of_interrupt(vector: Vector) {
    // SAFETY: promised by the caller.
    let token = unsafe { InService::entered(vector) };
    // The routing does not matter to it: two arms, not five.
    match mode() {
        Mode::X2Apic => const { &x2apic(Routing::X2ApicCluster) }.end_of_interrupt(token),
        Mode::XApic => const { &xapic(Routing::Physical) }.end_of_interrupt(token),
    }
}

/// Why the APICs of this machine cannot be used.
#[derive(Debug)]
pub(crate) enum SetUpError {
    /// This CPU has none, or it is disabled.
    NoApic,
    /// Its registers are not where they are on every PC.
    Moved(u64),
    /// x2APIC was asked for and the CPU has none.
    NoX2Apic,
    /// xAPIC was asked for and the firmware has left x2APIC on, from where no way leads back but through a reset.
    LeftInX2Apic,
    /// No routing fits.
    Routing(RoutingError),
    /// This kernel has no driver for it: those of report 002 are for comparison elsewhere.
    NoDriver(Routing),
    /// The driver refused.
    Enable(EnableError),
}

fn base() -> ApicMsrs {
    // SAFETY: this is a kernel on a 64-bit CPU, all of which have a local APIC; deadlines are not used; the mode is changed
    // by `choose_mode` and `enable_here` only, before the driver for it is used.
    unsafe { ApicMsrs::new() }
}

/// Enters the CPUs into the tables - this one first, then the others as they are listed - and chooses mode and routing.
/// Returns how many identifiers could not be used: they cannot be addressed, or there are too many.
pub(crate) fn set_up(
    ids: impl Iterator<Item = ApicId>,
    asked: Option<Mode>,
    asked_routing: Option<Routing>,
    most: usize,
) -> Result<usize, SetUpError> {
    let now = ApicBase::read(&base());
    let Some(ApicState::Enabled(found)) = now.state() else { return Err(SetUpError::NoApic) };
    let has_x2apic = cpuid(1).ecx & 1 << 21 != 0;
    let mode = asked_routing.map(Routing::mode).or(asked).unwrap_or(found);
    match (found, mode) {
        (Mode::X2Apic, Mode::XApic) => return Err(SetUpError::LeftInX2Apic),
        (Mode::XApic, Mode::X2Apic) if !has_x2apic => return Err(SetUpError::NoX2Apic),
        (_, Mode::XApic) if now.address() != REGISTERS => return Err(SetUpError::Moved(now.address())),
        _ => {}
    }
    ApicBase::switch(&base(), ApicState::Enabled(mode)).map_err(|_| SetUpError::LeftInX2Apic)?;
    // Any routing of the mode will do to ask for the identifier.
    let me = match mode {
        Mode::XApic => xapic(Routing::Physical).id(),
        Mode::X2Apic => x2apic(Routing::X2ApicPhysical).id(),
    };
    let highest = match mode {
        Mode::XApic => Routing::Physical.max_id(),
        Mode::X2Apic => Routing::X2ApicPhysical.max_id(),
    };
    let mut left_out = 0;
    for id in core::iter::once(me).chain(ids.filter(|&id| id != me)) {
        let cpu = count();
        if id > highest || cpu >= most.min(MAX_CPUS) || Tables.cpu(id).is_some() {
            left_out += 1;
            continue;
        }
        APIC_IDS[cpu].store(id.0, Relaxed);
        if let Some(slot) = CPUS_BY_ID.get(id.0 as usize) {
            slot.store(cpu as u16 + 1, Relaxed);
        }
        CPU_COUNT.store(cpu as u32 + 1, Relaxed);
    }
    let cpus = count() as u32;
    let fits = |routing: &Routing| routing.check_tables(mode, &Tables, cpus).is_ok();
    let routing = asked_routing.unwrap_or_else(|| match mode {
        Mode::XApic => Some(Routing::Flat).filter(fits).unwrap_or(Routing::Physical),
        Mode::X2Apic => Some(Routing::X2ApicCluster).filter(fits).unwrap_or(Routing::X2ApicPhysical),
    });
    routing.check_tables(mode, &Tables, cpus).map_err(SetUpError::Routing)?;
    let position =
        ROUTINGS.iter().position(|&known| known == routing).ok_or(SetUpError::NoDriver(routing))?;
    CHOSEN.store(position as u8, Relaxed);
    // SAFETY: see `Rings`.
    let rings = unsafe { &mut *RINGS.0.get() };
    for (cpu, ring) in all().zip(rings) {
        *ring = with_apic!(|apic| apic.prepare_one(&Tables, cpu, Interrupt::Fixed(RING)).ok());
    }
    Ok(left_out)
}

impl core::fmt::Display for SetUpError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoApic => f.write_str("this CPU has none, or it is disabled"),
            Self::Moved(address) => {
                write!(f, "its registers are at {address:#x} and not at {REGISTERS:#x}: use x2APIC")
            }
            Self::NoX2Apic => {
                f.write_str("this CPU has no x2APIC: use xAPIC, or another emulator or version of it")
            }
            Self::LeftInX2Apic => f.write_str(
                "the firmware has left it in x2APIC mode, from where it cannot be switched back: use x2APIC",
            ),
            Self::Routing(error) => error.fmt(f),
            Self::NoDriver(routing) => write!(f, "this kernel does not address CPUs by {routing}"),
            Self::Enable(error) => error.fmt(f),
        }
    }
}

/// Switches the running CPU's APIC to the machine's mode, and enables it. With interrupts disabled.
pub(crate) fn enable_here(guard: &InterruptsOff<Lab>) -> Result<(), SetUpError> {
    let cpu = guard.cpu();
    ApicBase::switch(&base(), ApicState::Enabled(mode())).map_err(|_| SetUpError::LeftInX2Apic)?;
    let Some(expected) = Tables.apic_id(cpu) else { return Err(SetUpError::NoApic) };
    with_apic!(|apic| {
        apic.enable(cpu, expected, SPURIOUS).map_err(SetUpError::Enable)?;
        // Nobody expects anything from the pins; the 8259s and the I/O APIC are masked.
        for pin in [LocalSource::Lint0, LocalSource::Lint1] {
            let _ = apic.set_local_vector(pin, LocalVector::MASKED);
        }
        let _ = apic.set_local_vector(LocalSource::Lint1, LocalVector::without_vector(LocalDelivery::Nmi));
        Ok(())
    })
}

/// From now on messages to all others go by shorthand: every CPU has been started once.
pub(crate) fn allow_shorthands() {
    // SAFETY: see `Reach`: nobody is lent it before the store below.
    unsafe { &mut *REACH.0.get() }.extend(all());
    // Release is not needed on x86-64 for who runs on this CPU; others are told by calls, which acquire.
    ALL_STARTED.store(true, core::sync::atomic::Ordering::Release);
}

/// Starts a CPU at the start-up page, and waits until it has come into the kernel or has had its time.
pub(crate) fn start_cpu(cpu: Cpu) -> Result<(), StartUpError> {
    let arrivals = &per_cpu(cpu).arrivals;
    let before = arrivals.load(Relaxed);
    let Some(id) = Tables.apic_id(cpu) else {
        return Err(StartUpError::OwnApic(ApicId(u32::MAX)));
    };
    // CPUs since the P6 need no time after INIT; 64-bit ones are all newer.
    let delays = StartUpDelays { after_init: Duration::ZERO, ..StartUpDelays::SPECIFIED };
    with_apic!(|apic| apic
        .start_cpu(id, boot::START_UP_PAGE, delays, &[arrivals.differs(!0, before)])
        .map(drop))
}

/// Ticks of the timer's clock, divided by 16, in a tick. Zero: there are no ticks.
static TIMER_COUNT: AtomicU32 = AtomicU32::new(0);
const DIVIDE: TimerDivide = TimerDivide::By16;
/// How long the timer is measured.
const MEASURED: Duration = Duration::from_millis(2);

/// Measures the clock of the timer. On the boot CPU, with its APIC enabled and the clock set up. Returns whether there are
/// ticks: QEMU (10.0) ends with "Bad icount read" when it counts instructions and the timer of an x2APIC is written.
pub(crate) fn measure_timer() -> bool {
    if mode() == Mode::X2Apic && clock::counts_instructions() {
        return false;
    }
    with_apic!(|apic| {
        // Too long to interrupt meanwhile. The entry takes this vector, says the driver's table of them.
        let _ = apic.start_timer(TimerMode::OneShot, DIVIDE, u32::MAX, TICK_VECTOR);
        let before = (Lab::now(), apic.timer_count());
        clock::delay(MEASURED);
        let after = (Lab::now(), apic.timer_count());
        apic.stop_timer();
        let nanos = after.0.since(before.0).as_nanos().max(1) as u64;
        let counted = u64::from(before.1.saturating_sub(after.1));
        let per_tick = counted * planned_tick().as_nanos() as u64 / nanos;
        TIMER_COUNT.store(u32::try_from(per_tick).unwrap_or(u32::MAX).max(1), Relaxed);
    });
    true
}

/// Machines with many CPUs tick more slowly: an emulator has one CPU for all of them.
fn planned_tick() -> Duration {
    TICK * (count() as u32).div_ceil(16)
}

/// The time between two ticks of a CPU; none if there are none.
pub(crate) fn tick_time() -> Option<Duration> {
    (TIMER_COUNT.load(Relaxed) != 0).then(planned_tick)
}

/// Starts the ticks of the running CPU. With interrupts disabled.
pub(crate) fn start_ticks() {
    let count = TIMER_COUNT.load(Relaxed);
    if count == 0 {
        return;
    }
    // The timer's entry takes every vector from 16 on.
    let _ = with_apic!(|apic| apic.start_timer(TimerMode::Periodic, DIVIDE, count, TICK_VECTOR));
}

/// Stops them. One may still be pending.
pub(crate) fn stop_ticks() {
    if TIMER_COUNT.load(Relaxed) == 0 {
        return;
    }
    with_apic!(|apic| apic.stop_timer());
}

/// Resets another CPU: it waits for a start-up message afterwards.
pub(crate) fn reset(cpu: Cpu) -> Result<(), SendError> {
    let id = Tables.apic_id(cpu).ok_or(SendError::Unreachable)?;
    with_apic!(|apic| apic.send_init(id).map(drop))
}

/// What the handler of a vector that nobody uses does: see [`InertGates`](smpcall_local_apic::InertGates).
pub(crate) fn end_if_in_service(gates: &InertGates, vector: u8) -> bool {
    with_apic!(|apic| gates.taken(apic, vector))
}

/// Records this CPU's APIC: see [`LocalApic::record`].
pub(crate) fn record() -> ApicRecord {
    with_apic!(|apic| apic.record())
}

/// Silences what this CPU's APIC sends to itself.
pub(crate) fn mask_all_local_vectors() {
    with_apic!(|apic| apic.mask_all_local_vectors());
}

/// Rids this CPU's APIC of what an earlier kernel has left in it: see [`LocalApic::drain`].
///
/// # Safety
/// As there.
pub(crate) unsafe fn drain(
    gates: &InertGates,
    interrupts_off: &mut InterruptsOff<Lab>,
    window: Duration,
) -> Drained {
    // SAFETY: promised by the caller.
    with_apic!(|apic| unsafe { apic.drain(gates, interrupts_off, SPURIOUS, window) })
}

/// The identifier of this kernel's first CPU.
pub(crate) fn boot_id() -> ApicId {
    ApicId(APIC_IDS[0].load(Relaxed))
}
