//! The driver on the model: who receives what, how many commands that takes, and what happens when the controller
//! is busy. The machine here is one thread that plays the CPU of its choice.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use smpcall_local_apic::{
    Access, ApicId, DISPATCH_BOUND, EnableError, InService, Interrupt, LocalApic, Mode, PATIENT_BOUND,
    Register, Routing, RoutingError, Sent, Topology, Vector,
};
use smpcall_machine::{Cpu, CpuMask, CpuSet, Hardware, Instant, Ipi, Machine, SendError};
use smpcall_simulator::apic::{Acceptance, ApicModel, Effect, IcrFault, Message};

const PAUSE_NANOS: u64 = 50;
const RING: Vector = Vector::new(0xfb).unwrap();
const FROM_NMI: Vector = Vector::new(0xe0).unwrap();
const SPURIOUS: Vector = Vector::new(0xff).unwrap();

/// The APICs, the bus between them, and all that the tests look at.
#[derive(Default)]
struct Bus {
    apics: Vec<ApicModel>,
    current: usize,
    now: u64,
    clock_reads: u32,
    register_reads: u32,
    writes: Vec<(Register, u64, bool)>,
    interrupts_enabled: bool,
    /// For each CPU the messages that were accepted, merged ones included.
    received: Vec<Vec<Message>>,
    /// A device that sends from an interrupt handler as soon as interrupts are enabled.
    busy_handler: bool,
    /// An NMI comes before the register access after so many more; its handler sends [`FROM_NMI`] to CPU 2.
    nmi_after: Option<u32>,
    in_nmi: bool,
    /// Commands that were written although the controller was busy.
    written_while_busy: u32,
}

thread_local!(static BUS: RefCell<Bus> = RefCell::default());

fn bus<R>(look: impl FnOnce(&mut Bus) -> R) -> R {
    BUS.with_borrow_mut(look)
}

impl Bus {
    fn cause(&mut self, effect: Effect) {
        let Effect::Dispatch(command) = effect else { return };
        for cpu in 0..self.apics.len() {
            if self.apics[cpu].is_addressed_by(&command, cpu == self.current)
                && !matches!(self.apics[cpu].accept(command.message()), Acceptance::Rejected(_))
            {
                self.received[cpu].push(command.message());
            }
        }
    }

    fn model(&mut self) -> (&mut ApicModel, Instant) {
        (&mut self.apics[self.current], Instant::from_nanos(self.now))
    }

    /// Which CPUs received something, and how often.
    fn receivers(&self) -> BTreeMap<u32, usize> {
        let counts = self.received.iter().enumerate().map(|(cpu, messages)| (cpu as u32, messages.len()));
        counts.filter(|&(_, count)| count > 0).collect()
    }

    fn icr_writes(&self) -> usize {
        self.writes.iter().filter(|(register, ..)| *register == Register::ICR_LOW).count()
    }

    fn forget(&mut self) {
        self.writes.clear();
        self.received.iter_mut().for_each(Vec::clear);
        (self.clock_reads, self.register_reads) = (0, 0);
    }
}

struct OneThread;

// SAFETY: one thread plays all CPUs one after the other; the clock only advances.
unsafe impl Machine for OneThread {
    type Memory = Hardware;
    type CpuSet = CpuSet<64>;
    const HAS_NMI: bool = true;

    fn current_cpu() -> Cpu {
        Cpu::new(bus(|bus| bus.current as u32))
    }

    fn disable_interrupts() -> bool {
        bus(|bus| std::mem::replace(&mut bus.interrupts_enabled, false))
    }

    fn restore_interrupts(were_enabled: bool) {
        bus(|bus| bus.interrupts_enabled |= were_enabled);
    }

    fn interrupts_enabled() -> bool {
        bus(|bus| bus.interrupts_enabled)
    }

    fn in_nmi() -> bool {
        bus(|bus| bus.in_nmi)
    }

    fn send(_: Cpu, _: Ipi) -> Result<(), SendError> {
        Err(SendError::Unsupported)
    }

    fn now() -> Instant {
        bus(|bus| {
            bus.clock_reads += 1;
            Instant::from_nanos(bus.now)
        })
    }

    fn pause() {
        bus(|bus| {
            bus.now += PAUSE_NANOS;
            if bus.busy_handler && bus.interrupts_enabled {
                let (apic, now) = bus.model();
                let effect = apic.write(Register::ICR_LOW, 0x4_4030, now).unwrap();
                bus.cause(effect);
            }
        });
    }
}

#[derive(Clone, Copy)]
struct Registers(Mode);

impl Registers {
    fn before_access(self) {
        let due = bus(|bus| {
            let due = bus.nmi_after == Some(0);
            bus.nmi_after = bus.nmi_after.and_then(|left| left.checked_sub(1));
            bus.in_nmi |= due;
            due
        });
        if due {
            let driver: Driver = LocalApic::new(self, Routing::Physical);
            let ids = (0..3).map(ApicId).collect();
            let tables = Tables { ids, cpus: BTreeMap::new(), reach: None, questions: Cell::new(0) };
            driver.send_one(&tables, Cpu::new(2), Interrupt::Fixed(FROM_NMI)).unwrap();
            bus(|bus| bus.in_nmi = false);
        }
    }
}

impl Access for Registers {
    fn mode(&self) -> Mode {
        self.0
    }

    fn read(&self, register: Register) -> u32 {
        self.before_access();
        bus(|bus| {
            bus.register_reads += 1;
            let (apic, now) = bus.model();
            apic.read(register, now).unwrap()
        })
    }

    fn write(&self, register: Register, value: u32) {
        self.before_access();
        bus(|bus| {
            bus.writes.push((register, value.into(), bus.interrupts_enabled));
            let (apic, now) = bus.model();
            let busy = register == Register::ICR_LOW && now < apic.icr_idle_at();
            let effect = apic.write(register, value, now).unwrap();
            bus.written_while_busy += u32::from(busy);
            bus.cause(effect);
        });
    }

    fn write_icr(&self, value: u64) {
        bus(|bus| {
            bus.writes.push((Register::ICR_LOW, value, bus.interrupts_enabled));
            let (apic, now) = bus.model();
            let effect = apic.write_icr(value, now).unwrap();
            bus.cause(effect);
        });
    }
}

/// The kernel's tables.
struct Tables {
    ids: Vec<ApicId>,
    cpus: BTreeMap<ApicId, Cpu>,
    reach: Option<CpuSet<64>>,
    /// How many times it was asked for a CPU.
    questions: Cell<u32>,
}

impl Topology for Tables {
    fn apic_id(&self, cpu: Cpu) -> Option<ApicId> {
        self.ids.get(cpu.index()).copied()
    }

    fn cpu(&self, id: ApicId) -> Option<Cpu> {
        self.questions.set(self.questions.get() + 1);
        self.cpus.get(&id).copied()
    }

    fn shorthand_reach(&self) -> Option<&CpuMask> {
        self.reach.as_deref()
    }
}

type Driver = LocalApic<OneThread, Registers>;

fn driver(routing: Routing) -> Driver {
    LocalApic::new(Registers(routing.mode()), routing)
}

/// A machine whose CPUs have these identifiers, all enabled, seen from CPU 0, without shorthands.
fn machine(routing: Routing, ids: impl IntoIterator<Item = u32>) -> (Driver, Tables) {
    let ids: Vec<ApicId> = ids.into_iter().map(ApicId).collect();
    routing.check(routing.mode(), ids.iter().copied()).unwrap();
    let apics = ids.iter().map(|id| ApicModel::new(id.0, routing.mode())).collect();
    BUS.set(Bus { apics, received: vec![Vec::new(); ids.len()], interrupts_enabled: true, ..Bus::default() });
    let driver = driver(routing);
    for (cpu, &id) in ids.iter().enumerate() {
        bus(|bus| bus.current = cpu);
        driver.enable(Cpu::new(cpu as u32), id, SPURIOUS).unwrap();
    }
    bus(|bus| {
        bus.current = 0;
        bus.forget();
    });
    let cpus = ids.iter().enumerate().map(|(cpu, &id)| (id, Cpu::new(cpu as u32))).collect();
    (driver, Tables { ids, cpus, reach: None, questions: Cell::new(0) })
}

fn set(cpus: impl IntoIterator<Item = u32>) -> CpuSet<64> {
    cpus.into_iter().map(Cpu::new).collect()
}

fn once_each(cpus: impl IntoIterator<Item = u32>) -> BTreeMap<u32, usize> {
    cpus.into_iter().map(|cpu| (cpu, 1)).collect()
}

fn sent(commands: u32) -> Sent {
    Sent { commands, rewritten: 0 }
}

fn fault_cpu_0(fault: IcrFault) {
    bus(|bus| bus.apics[0].set_icr_fault(Some(fault)));
}

const STUCK: IcrFault = IcrFault::StuckUntil(Instant::from_nanos(u64::MAX));

/// The shorthand field of a command.
fn shorthand(icr: u64) -> u64 {
    icr >> 18 & 0b11
}

// Who receives what, for how many commands.

#[test]
fn one_cpu_takes_one_command_on_every_routing_and_only_it_receives() {
    for routing in Routing::ALL {
        let cpus = routing.max_cpus().min(300);
        let (driver, tables) = machine(routing, 0..cpus);
        for target in 0..cpus {
            bus(Bus::forget);
            let result = driver.send_one(&tables, Cpu::new(target), Interrupt::Fixed(RING));
            assert_eq!(result, Ok(sent(1)), "{routing}");
            assert_eq!(bus(|bus| bus.receivers()), once_each([target]), "{routing}");
            assert_eq!(bus(|bus| bus.received[target as usize][0]), Message::fixed(0xfb));
            assert_eq!(bus(|bus| bus.icr_writes()), 1);
        }
    }
}

#[test]
fn nmis_are_sent_like_everything_else() {
    for routing in Routing::ALL {
        let (driver, tables) = machine(routing, 0..8);
        driver.send_one(&tables, Cpu::new(5), Interrupt::Nmi).unwrap();
        driver.send_many(&tables, &set([1, 7]), Interrupt::Nmi).unwrap();
        let latched: Vec<u32> =
            bus(|bus| (0..8).filter(|&cpu| bus.apics[cpu as usize].nmi_pending()).collect());
        assert_eq!(latched, [1, 5, 7], "{routing}");
        assert!(bus(|bus| bus.apics.iter().all(|apic| apic.irr().is_empty())));
    }
}

#[test]
fn sixteen_cpus_are_two_commands_in_two_clusters_and_four_thousand_are_256() {
    let (driver, tables) = machine(Routing::X2ApicCluster, 8..24);
    assert_eq!(driver.send_many(&tables, &set(1..16), Interrupt::Fixed(RING)), Ok(sent(2)));
    let (driver, tables) = machine(Routing::X2ApicCluster, 0..4096);
    assert_eq!(driver.send_many(&tables, &set(1..4096), Interrupt::Fixed(RING)), Ok(sent(256)));
    assert_eq!(bus(|bus| bus.receivers()), once_each(1..4096));
}

#[test]
fn clusters_are_merged_whatever_the_order_of_identifiers() {
    // Neighbours in number are in different clusters: cluster `n % 256`, the worst order there is.
    let ids = (0..4096u32).map(|cpu| ((cpu % 256) << 4) | (cpu / 256));
    let (driver, tables) = machine(Routing::X2ApicCluster, ids);
    assert_eq!(driver.send_many(&tables, &set(1..4096), Interrupt::Fixed(RING)), Ok(sent(256)));
    assert_eq!(bus(|bus| bus.receivers()), once_each(1..4096));
}

#[test]
fn merging_clusters_asks_sixteen_questions_for_each_cluster_if_identifiers_follow_cpu_numbers() {
    let (driver, tables) = machine(Routing::X2ApicCluster, 0..4096);
    driver.send_many(&tables, &set(1..4096), Interrupt::Fixed(RING)).unwrap();
    assert_eq!(tables.questions.get(), 256 * 16);
}

#[test]
fn everybody_but_me_is_one_command_if_shorthands_are_allowed() {
    for routing in Routing::ALL {
        let cpus = routing.max_cpus().min(300);
        let (driver, mut tables) = machine(routing, 0..cpus);
        tables.reach = Some(set(0..cpus));
        for me in [0, cpus - 1] {
            bus(|bus| {
                bus.current = me as usize;
                bus.forget();
            });
            let others = || (0..cpus).filter(|&cpu| cpu != me);
            assert_eq!(driver.send_many(&tables, &set(others()), Interrupt::Fixed(RING)), Ok(sent(1)));
            assert_eq!(bus(|bus| bus.receivers()), once_each(others()), "{routing}");
            assert_eq!(bus(|bus| shorthand(bus.writes.last().unwrap().1)), 3, "{routing}");
        }
    }
}

#[test]
fn no_shorthand_is_used_while_a_present_cpu_has_not_been_started() {
    let (driver, mut tables) = machine(Routing::Physical, 0..8);
    tables.reach = None;
    assert_eq!(driver.send_many(&tables, &set(1..8), Interrupt::Nmi), Ok(sent(7)));
    assert!(bus(|bus| bus.writes.iter().all(|&(_, value, _)| shorthand(value) == 0)));
}

#[test]
fn no_shorthand_is_used_for_any_other_set() {
    let (driver, mut tables) = machine(Routing::Physical, 0..8);
    tables.reach = Some(set(0..8));
    for targets in [set(0..8), set(1..7), set(2..8), set([0, 2, 3, 4, 5, 6, 7])] {
        bus(Bus::forget);
        let expected = sent(targets.len() as u32);
        assert_eq!(driver.send_many(&tables, &targets, Interrupt::Fixed(RING)), Ok(expected));
        assert_eq!(bus(|bus| bus.receivers()), once_each(targets.iter().map(Cpu::number)));
    }
}

#[test]
fn the_empty_set_takes_no_command() {
    for routing in Routing::ALL {
        let (driver, mut tables) = machine(routing, [0]);
        // The only CPU there is: "everybody but me" is nobody.
        tables.reach = Some(set([0]));
        assert_eq!(driver.send_many(&tables, &set([]), Interrupt::Fixed(RING)), Ok(sent(0)));
        assert_eq!(bus(|bus| bus.icr_writes()), 0);
    }
}

#[test]
fn an_unreachable_cpu_is_an_error_and_the_others_are_sent_to() {
    for routing in Routing::ALL {
        let (driver, tables) = machine(routing, 0..6);
        let no_such_cpu = Cpu::new(6);
        let result = driver.send_one(&tables, no_such_cpu, Interrupt::Fixed(RING));
        assert_eq!(result, Err(SendError::Unreachable));
        let result = driver.send_many(&tables, &set([1, 4, 6, 70]), Interrupt::Fixed(RING));
        assert_eq!(result, Err(SendError::Unreachable), "{routing}");
        assert_eq!(bus(|bus| bus.receivers()), once_each([1, 4]), "{routing}");
    }
}

#[test]
fn an_identifier_that_means_all_is_unreachable_and_not_a_broadcast() {
    for routing in Routing::ALL {
        let (driver, mut tables) = machine(routing, 0..4);
        for id in [routing.mode().broadcast(), routing.max_id().0 + 1] {
            tables.ids[3] = ApicId(id);
            let result = driver.send_one(&tables, Cpu::new(3), Interrupt::Nmi);
            assert_eq!(result, Err(SendError::Unreachable), "{routing}");
            assert_eq!(driver.send_init(ApicId(id)), Err(SendError::Unreachable), "{routing}");
        }
        assert_eq!(bus(|bus| bus.icr_writes()), 0);
    }
}

#[test]
fn a_stopped_cpu_is_started_by_its_identifier_on_every_routing() {
    for routing in Routing::ALL {
        let (driver, _) = machine(routing, 0..8);
        driver.send_init(ApicId(6)).unwrap();
        let waiting = |cpu: usize| bus(|bus| bus.apics[cpu].is_waiting_for_start_up());
        assert_eq!((0..8).filter(|&cpu| waiting(cpu)).collect::<Vec<_>>(), [6], "{routing}");
        driver.send_start_up(ApicId(6), 0x9f).unwrap();
        assert!(!waiting(6));
        assert_eq!(bus(|bus| bus.received[6][1].vector), 0x9f);
        assert_eq!(bus(|bus| bus.receivers()), BTreeMap::from([(6, 2)]), "{routing}");
    }
}

/// A routing, the identifiers of its CPUs in some order, the targets, and whether shorthands are allowed.
fn sends() -> impl Strategy<Value = (Routing, Vec<u32>, BTreeSet<u32>, bool)> {
    prop::sample::select(&Routing::ALL[..]).prop_flat_map(|routing| {
        let cpus = routing.max_cpus().min(100) as usize;
        let ids = prop::sample::subsequence((0..255u32).collect::<Vec<_>>(), cpus).prop_shuffle();
        (Just(routing), ids, prop::collection::btree_set(0..cpus as u32, 0..=cpus), any::<bool>())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn any_set_is_received_once_each_for_as_few_commands_as_the_routing_allows(
        (routing, ids, targets, shorthands) in sends()
    ) {
        let (driver, mut tables) = machine(routing, ids.iter().copied());
        tables.reach = shorthands.then(|| set(0..ids.len() as u32));
        let clusters: BTreeSet<u32> = targets.iter().map(|&cpu| ids[cpu as usize] / 16).collect();
        let all_but_me = targets.iter().copied().eq(1..ids.len() as u32);
        let expected = match routing {
            _ if targets.is_empty() => 0,
            _ if shorthands && all_but_me => 1,
            Routing::Flat => 1,
            Routing::X2ApicCluster => clusters.len(),
            _ => targets.len(),
        };
        let result = driver.send_many(&tables, &set(targets.iter().copied()), Interrupt::Fixed(RING));
        prop_assert_eq!(result, Ok(sent(expected as u32)));
        prop_assert_eq!(bus(|bus| bus.icr_writes()), expected);
        prop_assert_eq!(bus(|bus| bus.receivers()), once_each(targets));
    }
}

// Waiting for the controller.

#[test]
fn an_idle_xapic_costs_one_register_read_and_no_clock_read() {
    let (driver, tables) = machine(Routing::Physical, 0..4);
    driver.send_one(&tables, Cpu::new(2), Interrupt::Nmi).unwrap();
    assert_eq!(bus(|bus| (bus.register_reads, bus.clock_reads, bus.writes.len())), (1, 0, 2));
}

#[test]
fn an_x2apic_is_never_read_and_its_one_write_leaves_interrupts_alone() {
    let (driver, tables) = machine(Routing::X2ApicCluster, 0..4);
    driver.send_one(&tables, Cpu::new(2), Interrupt::Fixed(RING)).unwrap();
    assert_eq!(bus(|bus| (bus.register_reads, bus.clock_reads)), (0, 0));
    assert_eq!(bus(|bus| bus.writes.clone()), [(Register::ICR_LOW, 0x4_0000_48fb, true)]);
}

#[test]
fn the_two_words_of_an_xapic_are_written_with_interrupts_disabled_and_the_high_one_first() {
    let (driver, tables) = machine(Routing::Physical, 0..4);
    for enabled in [true, false] {
        bus(|bus| {
            bus.interrupts_enabled = enabled;
            bus.forget();
        });
        driver.send_one(&tables, Cpu::new(2), Interrupt::Fixed(RING)).unwrap();
        let words = [(Register::ICR_HIGH, 0x0200_0000, false), (Register::ICR_LOW, 0x40fb, false)];
        assert_eq!(bus(|bus| bus.writes.clone()), words);
        assert_eq!(OneThread::interrupts_enabled(), enabled);
    }
}

#[test]
fn a_busy_xapic_is_waited_for_and_nothing_is_written_twice() {
    let (driver, tables) = machine(Routing::Physical, 0..4);
    bus(|bus| bus.apics[0].set_dispatch_time(Duration::from_micros(15)));
    for round in 0..2 {
        let result = driver.send_one(&tables, Cpu::new(1), Interrupt::Fixed(RING));
        assert_eq!(result, Ok(sent(1)));
        assert_eq!(bus(|bus| bus.now), round * 15_000);
    }
    assert_eq!(bus(|bus| bus.receivers()), BTreeMap::from([(1, 2)]));
    assert!(OneThread::interrupts_enabled());
}

#[test]
fn a_stuck_command_is_written_again_and_then_ours_goes_out() {
    let (driver, tables) = machine(Routing::Physical, 0..4);
    driver.send_one(&tables, Cpu::new(1), Interrupt::Fixed(RING)).unwrap();
    fault_cpu_0(IcrFault::StuckUntilRewritten);
    let result = driver.send_one(&tables, Cpu::new(2), Interrupt::Nmi);
    assert_eq!(result, Ok(Sent { commands: 1, rewritten: 1 }));
    assert_eq!(bus(|bus| bus.receivers()), BTreeMap::from([(1, 2), (2, 1)]));
}

/// CPU 0 sends a ring to CPU 1 while its command to CPU 3 may still stand in the way, with an NMI before register access
/// number `position`. What did each CPU receive? `None` if there are fewer accesses. `retries`: how many commands are
/// written while the controller is busy.
fn interrupted_at(position: u32, prepare: fn(&mut ApicModel), retries: u32) -> Option<[BTreeSet<u8>; 4]> {
    let (driver, tables) = machine(Routing::Physical, 0..4);
    bus(|bus| prepare(&mut bus.apics[0]));
    let before = Interrupt::Fixed(Vector::new(0xa0).unwrap());
    driver.send_one(&tables, Cpu::new(3), before).unwrap();
    bus(|bus| {
        if bus.apics[0].icr_idle_at() <= Instant::from_nanos(bus.now) {
            bus.apics[0].set_icr_fault(Some(IcrFault::StuckUntilRewritten));
        }
        bus.nmi_after = Some(position);
    });
    driver.send_one(&tables, Cpu::new(1), Interrupt::Fixed(RING)).unwrap();
    let vectors = |messages: &Vec<Message>| messages.iter().map(|message| message.vector).collect();
    bus(|bus| {
        assert_eq!([1, 2].map(|cpu| bus.received[cpu].len()), [1, usize::from(bus.nmi_after.is_none())]);
        assert!(bus.written_while_busy <= retries, "NMI before access {position}");
        bus.nmi_after.is_none().then(|| [0, 1, 2, 3].map(|cpu| vectors(&bus.received[cpu])))
    })
}

#[test]
fn an_nmi_handler_that_sends_tears_no_command_that_waits_for_a_busy_or_a_stuck_controller() {
    let slow: fn(&mut ApicModel) = |apic| apic.set_dispatch_time(Duration::from_micros(2));
    let stuck: fn(&mut ApicModel) = |_| {};
    for (prepare, retries, accesses) in [(slow, 0, 40..60), (stuck, 1, 400..450)] {
        let mut position = 0;
        while let Some(received) = interrupted_at(position, prepare, retries) {
            let expected =
                [&[][..], &[0xfb], &[0xe0], &[0xa0]].map(|vectors| vectors.iter().copied().collect());
            assert_eq!(received, expected, "NMI before access {position}");
            position += 1;
        }
        assert!(accesses.contains(&position), "{position} accesses");
    }
}

#[test]
fn a_stuck_init_is_not_written_again() {
    let (driver, tables) = machine(Routing::Physical, 0..4);
    driver.send_init(ApicId(1)).unwrap();
    fault_cpu_0(IcrFault::StuckUntilRewritten);
    let result = driver.send_one(&tables, Cpu::new(2), Interrupt::Fixed(RING));
    assert_eq!(result, Err(SendError::ControllerBusy));
    assert_eq!(bus(|bus| bus.receivers()), once_each([1]));
}

/// How long `send` waits in vain on a controller that never becomes idle.
fn waits_in_vain(send: impl FnOnce(&Driver, &Tables) -> Result<Sent, SendError>) -> Duration {
    let (driver, tables) = machine(Routing::Physical, 0..255);
    fault_cpu_0(STUCK);
    assert_eq!(send(&driver, &tables), Err(SendError::ControllerBusy));
    assert_eq!(bus(|bus| bus.receivers()), BTreeMap::new());
    assert!(OneThread::interrupts_enabled());
    // Each write was a retry; our own command was never written.
    assert!(bus(|bus| bus.writes.iter().all(|(register, ..)| *register == Register::ICR_LOW)));
    Duration::from_nanos(bus(|bus| bus.now))
}

/// A wait ends with the first look at the clock after its deadline.
const SLACK: Duration = Duration::from_nanos(PAUSE_NANOS);

#[test]
fn an_ordinary_interrupt_gives_up_within_the_tight_bound() {
    // The word in the way is all zero: vector 0, not worth a retry.
    let waited = waits_in_vain(|driver, tables| driver.send_one(tables, Cpu::new(1), Interrupt::Fixed(RING)));
    assert!(waited >= DISPATCH_BOUND && waited <= DISPATCH_BOUND + SLACK, "{waited:?}");
    let waited = waits_in_vain(|driver, tables| {
        // Something to retry.
        bus(|bus| bus.apics[0].write(Register::ICR_LOW, 0x4030, Instant::default())).unwrap();
        driver.send_one(tables, Cpu::new(1), Interrupt::Fixed(RING))
    });
    assert!(waited >= 2 * DISPATCH_BOUND && waited <= 2 * (DISPATCH_BOUND + SLACK), "{waited:?}");
}

#[test]
fn nmi_init_and_start_up_have_the_patience_of_report_002_and_no_more() {
    type Send = fn(&Driver, &Tables) -> Result<Sent, SendError>;
    let senders: [Send; 3] = [
        |driver, tables| driver.send_one(tables, Cpu::new(1), Interrupt::Nmi),
        |driver, _| driver.send_init(ApicId(1)),
        |driver, _| driver.send_start_up(ApicId(1), 8),
    ];
    assert_eq!(PATIENT_BOUND, 1000 * Duration::from_micros(100));
    for send in senders {
        let waited = waits_in_vain(send);
        let most = PATIENT_BOUND + 2 * DISPATCH_BOUND + 3 * SLACK;
        assert!(waited >= PATIENT_BOUND && waited <= most, "{waited:?}");
    }
}

#[test]
fn the_patience_for_nmis_is_not_multiplied_by_their_number() {
    let waited = waits_in_vain(|driver, tables| driver.send_many(tables, &set(1..255), Interrupt::Nmi));
    let most = PATIENT_BOUND + 254 * 2 * (DISPATCH_BOUND + SLACK) + SLACK;
    assert!(waited <= most, "{waited:?}");
}

#[test]
fn patience_that_was_used_up_piece_by_piece_is_used_up() {
    let (driver, tables) = machine(Routing::Physical, 0..8);
    bus(|bus| bus.apics[0].set_dispatch_time(Duration::from_millis(40)));
    let result = driver.send_many(&tables, &set(1..8), Interrupt::Nmi);
    assert_eq!(result, Err(SendError::ControllerBusy));
    let waited = Duration::from_nanos(bus(|bus| bus.now));
    assert!(waited >= PATIENT_BOUND && waited < PATIENT_BOUND + Duration::from_millis(1), "{waited:?}");
    // The third NMI is under way when patience ends; it is sent again, and merges, for each one given up.
    assert!(bus(|bus| [1, 2, 3].into_iter().eq(bus.receivers().into_keys())));
}

#[test]
fn a_handler_that_keeps_the_controller_busy_cannot_prolong_the_wait() {
    let (driver, tables) = machine(Routing::Physical, 0..4);
    bus(|bus| {
        bus.apics[0].set_dispatch_time(Duration::from_micros(10));
        bus.busy_handler = true;
        let (apic, now) = bus.model();
        apic.write(Register::ICR_LOW, 0x4_4030, now).unwrap();
    });
    // The handler queues dispatches for as long as interrupts are enabled: for all of the patience.
    let result = driver.send_one(&tables, Cpu::new(1), Interrupt::Nmi);
    assert_eq!(result, Err(SendError::ControllerBusy));
    let waited = Duration::from_nanos(bus(|bus| bus.now));
    assert!(waited <= PATIENT_BOUND + 2 * DISPATCH_BOUND + 3 * SLACK, "{waited:?}");
}

#[test]
fn one_busy_moment_does_not_stop_the_rest_of_a_set() {
    let (driver, tables) = machine(Routing::Physical, 0..8);
    fault_cpu_0(IcrFault::StuckUntil(Instant::from_nanos(50_000)));
    let result = driver.send_many(&tables, &set(1..8), Interrupt::Fixed(RING));
    assert_eq!(result, Err(SendError::ControllerBusy));
    // 20 microseconds each for the first two; the third was sent when the controller healed.
    assert_eq!(bus(|bus| bus.receivers()), once_each(3..8));
}

// Enabling, end of interrupt.

#[test]
fn enabling_programs_the_flat_model_and_accepts_interrupts() {
    let (_, _) = machine(Routing::Flat, [4, 0, 1, 7]);
    bus(|bus| {
        assert!(bus.apics.iter().all(ApicModel::is_enabled));
        for (cpu, apic) in bus.apics.iter_mut().enumerate() {
            let now = Instant::default();
            assert_eq!(apic.read(Register::LOGICAL_DESTINATION, now), Ok(1 << (24 + cpu)));
            assert_eq!(apic.read(Register::DESTINATION_FORMAT, now), Ok(0xffff_ffff));
            assert_eq!(apic.read(Register::SPURIOUS_VECTOR, now), Ok(0x1ff));
        }
    });
}

#[test]
fn enabling_clears_old_errors_and_what_held_interrupts_back_and_keeps_what_is_pending() {
    let (driver, _) = machine(Routing::Physical, [0]);
    let now = Instant::default();
    bus(|bus| {
        let apic = &mut bus.apics[0];
        apic.accept(Message::fixed(0x40));
        apic.accept(Message::fixed(1));
        apic.write(Register::TASK_PRIORITY, 0xf0, now).unwrap();
        apic.write(Register::SPURIOUS_VECTOR, 0xff, now).unwrap();
    });
    driver.enable(Cpu::new(0), ApicId(0), SPURIOUS).unwrap();
    bus(|bus| {
        let apic = &mut bus.apics[0];
        assert_eq!((apic.errors(), apic.read(Register::ERROR_STATUS, now)), (0, Ok(0)));
        assert_eq!(apic.deliverable(), Some(0x40));
    });
}

#[test]
fn an_apic_that_does_not_fit_is_not_touched() {
    let (_, _) = machine(Routing::Physical, [5]);
    let refuse = |routing, mode, cpu, expected| {
        let driver: Driver = LocalApic::new(Registers(mode), routing);
        let error = driver.enable(Cpu::new(cpu), ApicId(expected), SPURIOUS).unwrap_err();
        assert!(bus(|bus| bus.writes.is_empty()));
        error
    };
    let (flat, x2) = (Routing::Flat, Routing::X2ApicPhysical);
    assert_eq!(
        refuse(x2, Mode::XApic, 0, 5),
        EnableError::Routing(RoutingError::WrongMode { routing: x2, mode: Mode::XApic })
    );
    assert_eq!(
        refuse(flat, Mode::XApic, 8, 5),
        EnableError::Routing(RoutingError::TooManyCpus { routing: flat, cpus: 9 })
    );
    let other = refuse(Routing::Physical, Mode::XApic, 0, 6);
    assert_eq!(other.to_string(), "CPU 0 has APIC 0x5 where the tables of the kernel say APIC 0x6");
}

#[test]
fn the_end_of_interrupt_of_a_token_lets_the_vector_be_taken_again() {
    for routing in Routing::ALL {
        let (driver, tables) = machine(routing, 0..2);
        for _ in 0..2 {
            driver.send_one(&tables, Cpu::new(0), Interrupt::Fixed(RING)).unwrap();
            assert_eq!(bus(|bus| bus.apics[0].take()), Some(0xfb));
            // SAFETY: the vector was taken from this APIC just now, once.
            let token = unsafe { InService::entered(RING) };
            assert_eq!(token.vector(), RING);
            driver.end_of_interrupt(token);
            assert!(bus(|bus| bus.apics[0].isr().is_empty()));
        }
        assert_eq!(bus(|bus| bus.writes.last().copied()), Some((Register::END_OF_INTERRUPT, 0, true)));
    }
}
