//! Scenarios that run on any machine that `smpcall` runs on: the lab kernel includes this file, and so does a test of the
//! simulated machine. What each comes to, and how many rings it takes, stands here once; so if both machines hold to it, they
//! agree.
//!
//! CPU 0 runs them, all other CPUs halt, nobody ticks, and at least four are online. Then what is sent does not depend on
//! how fast anybody is.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;

use smpcall::{CallError, CrossCall, Hotplug};
use smpcall_machine::{Cpu, CpuSetStorage, Deadline, InterruptsOff, Machine, When, wait};

/// How long anything may take that is to happen.
const LIMIT: Duration = Duration::from_secs(10);

/// Long enough for a CPU to end its pass and to halt: who calls before that need not ring.
const SETTLE: Duration = Duration::from_micros(200);

/// One scenario.
pub(crate) struct Scenario {
    /// What is done.
    pub(crate) name: &'static str,
    /// Does it. Whether it came to what it should.
    pub(crate) run: fn() -> bool,
    /// How many rings that takes on a machine of so many CPUs; none: that depends on timing.
    pub(crate) rings: Option<fn(u64) -> u64>,
}

const fn scenario(name: &'static str, run: fn() -> bool, rings: fn(u64) -> u64) -> Scenario {
    Scenario { name, run, rings: Some(rings) }
}

/// All of them, on this machine.
pub(crate) fn all<K: Hotplug>() -> [Scenario; 13] {
    [
        scenario("a_call_to_a_halted_cpu", one::<K>, |_| 1),
        scenario("a_call_to_oneself", oneself::<K>, |_| 0),
        scenario("a_call_to_two", two::<K>, |_| 2),
        scenario("a_call_to_all_others", others::<K>, |cpus| cpus - 1),
        scenario("a_call_to_all", everybody::<K>, |cpus| cpus - 1),
        scenario("a_call_to_any_of_two", any::<K>, |_| 1),
        scenario("a_call_to_any_with_oneself_among_them", any_with_oneself::<K>, |_| 0),
        scenario("a_call_to_those_that_a_predicate_names", those::<K>, |_| 1),
        scenario("a_call_with_a_deadline_in_the_past", too_late::<K>, |_| 0),
        scenario("a_call_to_no_cpu", nobody::<K>, |_| 0),
        scenario("a_call_with_interrupts_off", interrupts_off::<K>, |_| 1),
        scenario("a_call_in_a_served_call", nested::<K>, |_| 2),
        Scenario { name: "a_call_to_an_offline_cpu", run: offline::<K>, rings: None },
    ]
}

/// Lets everybody halt.
pub(crate) fn settle<K: Machine>() {
    let nothing: [When<'_, K::Memory>; 0] = [];
    wait::<K>(&nothing, Deadline::within::<K>(SETTLE));
}

/// Rings that all CPUs have sent so far, those that were repeated among them.
pub(crate) fn rings<K: Hotplug>() -> u64 {
    let mailboxes = (0..).map_while(|number| K::mailboxes().get(Cpu::new(number)));
    mailboxes.map(|mailbox| mailbox.counters().rings_sent.get()).sum()
}

/// How many CPUs there are.
pub(crate) fn cpus<K: Hotplug>() -> u64 {
    (0..).map_while(|number| K::mailboxes().get(Cpu::new(number))).count() as u64
}

fn set<K: Machine>(numbers: &[u32]) -> K::CpuSet {
    let mut set = K::CpuSet::EMPTY;
    for &number in numbers {
        set.insert(Cpu::new(number));
    }
    set
}

/// Which CPUs a closure has run on: a bit for each of the first 64.
#[derive(Default)]
struct Ran(AtomicU64);

impl Ran {
    /// Adds to the bit: twice is seen too.
    fn on(&self, cpu: Cpu) {
        // Relaxed: read after the call, which orders it.
        self.0.fetch_add(1 << (cpu.number() % 64), Relaxed);
    }

    fn only_on(&self, numbers: impl IntoIterator<Item = u32>) -> bool {
        let wanted =
            numbers.into_iter().fold(0_u64, |wanted, number| wanted.wrapping_add(1 << (number % 64)));
        self.0.load(Relaxed) == wanted
    }
}

fn one<K: Hotplug>() -> bool {
    CrossCall::<K>::within(LIMIT).call(Cpu::new(1), K::current_cpu) == Ok(Cpu::new(1))
}

fn oneself<K: Hotplug>() -> bool {
    let me = K::current_cpu();
    CrossCall::<K>::within(LIMIT).call(me, K::current_cpu) == Ok(me)
}

fn two<K: Hotplug>() -> bool {
    let ran = Ran::default();
    let called = CrossCall::<K>::within(LIMIT).call_many(&set::<K>(&[1, 3]), |cpu| ran.on(cpu));
    called.is_ok() && ran.only_on([1, 3])
}

fn others<K: Hotplug>() -> bool {
    let ran = Ran::default();
    CrossCall::<K>::within(LIMIT).call_others(|cpu| ran.on(cpu)).is_ok() && ran.only_on(1..cpus::<K>() as u32)
}

fn everybody<K: Hotplug>() -> bool {
    let ran = Ran::default();
    CrossCall::<K>::within(LIMIT).call_all(|cpu| ran.on(cpu)).is_ok() && ran.only_on(0..cpus::<K>() as u32)
}

fn any<K: Hotplug>() -> bool {
    let called = CrossCall::<K>::within(LIMIT).call_any(&set::<K>(&[2, 3]), K::current_cpu);
    called == Ok((Cpu::new(2), Cpu::new(2)))
}

fn any_with_oneself<K: Hotplug>() -> bool {
    let called = CrossCall::<K>::within(LIMIT).call_any(&set::<K>(&[0, 2, 3]), K::current_cpu);
    called == Ok((Cpu::new(0), Cpu::new(0)))
}

fn those<K: Hotplug>() -> bool {
    let ran = Ran::default();
    let called = CrossCall::<K>::within(LIMIT).call_if(|cpu| cpu.number() == 2, |cpu| ran.on(cpu));
    called.is_ok() && ran.only_on([2])
}

fn too_late<K: Hotplug>() -> bool {
    let past = Deadline::within::<K>(Duration::ZERO);
    settle::<K>();
    CrossCall::<K>::until(past).call(Cpu::new(1), || ()) == Err(CallError::DeadlinePassed)
}

fn nobody<K: Hotplug>() -> bool {
    CrossCall::<K>::within(LIMIT).call(Cpu::new(100_000), || ()) == Err(CallError::NoSuchCpu)
}

fn interrupts_off<K: Hotplug>() -> bool {
    let mut guard = InterruptsOff::<K>::new();
    let caller = CrossCall::<K>::within(LIMIT).with_interrupts_off(&mut guard);
    caller.call(Cpu::new(3), K::current_cpu) == Ok(Cpu::new(3))
}

/// What the closure calls with is its own handler's: interrupts are off there.
fn nested<K: Hotplug>() -> bool {
    let inner = || {
        let mut guard = InterruptsOff::<K>::new();
        CrossCall::<K>::within(LIMIT).with_interrupts_off(&mut guard).call(Cpu::new(2), K::current_cpu)
    };
    CrossCall::<K>::within(LIMIT).call(Cpu::new(1), inner) == Ok(Ok(Cpu::new(2)))
}

/// The asked CPU is kicked out of its halt by a call, which it may have served already when it is asked.
fn offline<K: Hotplug>() -> bool {
    let target = Cpu::new(3);
    let down = CrossCall::<K>::cpu_down(target, LIMIT).is_ok();
    let refused = CrossCall::<K>::within(LIMIT).call(target, || ()) == Err(CallError::Offline);
    let up = CrossCall::<K>::cpu_up(target, LIMIT).is_ok();
    settle::<K>();
    down && refused && up && CrossCall::<K>::within(LIMIT).call(target, K::current_cpu) == Ok(target)
}
