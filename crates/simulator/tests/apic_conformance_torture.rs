//! The conformance list, part 5: what Linux' `scftorture` does - a weighted mix of reschedules, calls and posts, to one CPU,
//! many or all, waited for or not, from tasks and interrupt handlers, with long handlers and CPUs that come and go - and
//! `x86/smptest.c`. One test per line of the list, and each mends the weakness of the original: every send is reconciled
//! with its invocations, to the last.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use core::time::Duration;
use std::cell::RefCell;

use smpcall::{CallError, Caller, Deferred, ManyError, Post, PostError, PostRefusal};
use smpcall_local_apic::Routing;
use smpcall_machine::{Cpu, InterruptsOff, Machine, Plain};
use smpcall_simulator::explorer::{Bounds, Plan, Protocol, Scenario, Setup, explore};
use smpcall_simulator::faults::parse;
use smpcall_simulator::kernel::{Calls, Hooks};
use smpcall_simulator::{Config, InterruptFrame, RunEnd, SimCpuSet, SimMachine, SimMemory, World, program};

const CPUS: u32 = 6;

/// What the sender of something to one target was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Nothing yet.
    Open,
    /// It has run, or it is queued and will.
    Runs,
    /// It has not run and never will.
    Refused,
    /// Nothing about this target: a call to all skips who is offline. How often the target had gone offline when
    /// the call began, and whether it was.
    Skipped { went: u64, was_offline: bool },
}

/// A send to one target.
#[derive(Clone, Copy, Debug)]
struct Entry {
    target: u32,
    told: Told,
    runs: u32,
}

/// Reschedules of one CPU: they may merge, so what counts is that one runs after the last that was accepted.
#[derive(Clone, Copy, Debug, Default)]
struct Reschedules {
    accepted: u64,
    last_accepted: u64,
    runs: u64,
    seen: u64,
}

#[derive(Default)]
struct Books {
    entries: Vec<Entry>,
    reschedules: [Reschedules; CPUS as usize],
    /// Numbers in the order in which reschedules are asked for.
    ticket: u64,
    /// How often each CPU went offline, and whether it is.
    offline: [(u64, bool); CPUS as usize],
    wrong_cpu: u32,
    /// How long handlers work at most.
    longest: Duration,
    /// Nothing is sent any more.
    over: bool,
    /// How many sends were begun in interrupt handlers, and how many of a kind.
    from_interrupts: u32,
    kinds: [u32; 8],
    /// Errors other than that a target is offline or that a nested caller found no level.
    unexpected: Vec<String>,
    busy: u32,
}

thread_local!(static BOOKS: RefCell<Books> = RefCell::default());

/// Looks into the books. No operation of the simulated machine may be in `look`: another CPU would find them open.
fn books<R>(look: impl FnOnce(&mut Books) -> R) -> R {
    BOOKS.with_borrow_mut(look)
}

/// A new entry for each target, in their order.
fn enter(targets: impl IntoIterator<Item = u32>) -> Vec<usize> {
    books(|books| {
        let first = books.entries.len();
        books.entries.extend(targets.into_iter().map(|target| Entry { target, told: Told::Open, runs: 0 }));
        (first..books.entries.len()).collect()
    })
}

/// The invocation of an entry, on the running CPU.
fn invoke(entry: usize) {
    let here = SimMachine::current_cpu().number();
    let longest = books(|books| {
        books.entries[entry].runs += 1;
        books.wrong_cpu += u32::from(books.entries[entry].target != here);
        books.longest
    });
    program::advance(Duration::from_nanos(program::random(longest.as_nanos() as u64)));
}

fn tell(entry: usize, told: Told) {
    books(|books| books.entries[entry].told = told);
}

/// Notes an error, and says what it means for the entry.
fn refused(error: &CallError) -> Told {
    books(|books| match error {
        CallError::Offline => {}
        CallError::Busy => books.busy += 1,
        other => books.unexpected.push(other.to_string()),
    });
    Told::Refused
}

/// A post that is an entry's invocation.
struct Errand(usize);

impl Deferred<SimMachine> for Errand {
    type Handle = Box<Post<SimMachine, Self>>;

    fn run(post: Self::Handle) {
        invoke(post.value().0);
    }
}

// The kinds of sends. `caller` is for calls; posts need none.

type Callers<'a> = &'a mut dyn FnMut(&mut dyn FnMut(Caller<'_, SimMachine>));

fn reschedule(target: u32) {
    let ticket = books(|books| {
        books.ticket += 1;
        books.ticket
    });
    let result = Calls::reschedule(Cpu::new(target));
    books(|books| match result {
        Ok(()) => {
            let of_target = &mut books.reschedules[target as usize];
            of_target.accepted += 1;
            of_target.last_accepted = of_target.last_accepted.max(ticket);
        }
        Err(CallError::Offline) => {}
        Err(other) => books.unexpected.push(other.to_string()),
    });
}

fn rescheduled() {
    let here = SimMachine::current_cpu().index();
    books(|books| {
        let ticket = books.ticket;
        let mine = &mut books.reschedules[here];
        mine.runs += 1;
        mine.seen = ticket;
    });
}

/// To one or many, not waited for: a post to each.
fn post(targets: &SimCpuSet) {
    for target in &**targets {
        let entry = enter([target.number()])[0];
        let told = match Calls::post::<Errand>(target, Box::new(Post::new(Errand(entry)))) {
            Ok(_) => Told::Runs,
            Err(PostError { reason: PostRefusal::Offline, .. }) => Told::Refused,
            Err(PostError { reason, .. }) => {
                books(|books| books.unexpected.push(format!("{reason:?}")));
                Told::Refused
            }
        };
        tell(entry, told);
    }
}

/// To one, waited for, with a result.
fn call_one(target: u32, callers: Callers<'_>) {
    let entry = enter([target])[0];
    callers(&mut |caller| {
        let result = caller.call(Cpu::new(target), || {
            invoke(entry);
            SimMachine::current_cpu()
        });
        let told = match result {
            Ok(cpu) => {
                books(|books| books.wrong_cpu += u32::from(cpu.number() != target));
                Told::Runs
            }
            Err(error) => refused(&error),
        };
        tell(entry, told);
    });
}

/// To many, waited for.
fn call_many(targets: &SimCpuSet, callers: Callers<'_>) {
    let numbers: Vec<u32> = targets.iter().map(Cpu::number).collect();
    let entries = enter(numbers.iter().copied());
    let entry_of =
        |cpu: Cpu| entries[numbers.iter().position(|&number| number == cpu.number()).expect("a target")];
    callers(&mut |caller| {
        let result = caller.call_many(targets, |cpu| invoke(entry_of(cpu)));
        for target in &**targets {
            let told = match &result {
                Ok(()) => Told::Runs,
                Err(ManyError::NotSent(error)) => refused(error),
                Err(ManyError::Failed(failures)) if failures.offline.contains(target) => Told::Refused,
                Err(ManyError::Failed(failures)) => {
                    assert!(!failures.timed_out.contains(target), "without a deadline");
                    Told::Runs
                }
            };
            tell(entry_of(target), told);
        }
    });
}

/// To all that are online, waited for.
fn call_all(callers: Callers<'_>) {
    let entries = enter(0..CPUS);
    let before = books(|books| books.offline);
    callers(&mut |caller| {
        let result = caller.call_all(|cpu| invoke(entries[cpu.index()]));
        for (cpu, (went, was_offline)) in before.into_iter().enumerate() {
            let ran = books(|books| books.entries[entries[cpu]].runs > 0);
            let told = match &result {
                Err(ManyError::NotSent(error)) => refused(error),
                Err(ManyError::Failed(failures)) if failures.offline.contains(Cpu::new(cpu as u32)) => {
                    Told::Refused
                }
                _ if ran => Told::Runs,
                _ => Told::Skipped { went, was_offline },
            };
            tell(entries[cpu], told);
        }
    });
}

fn random_cpu() -> u32 {
    program::random(CPUS.into()) as u32
}

fn random_set() -> SimCpuSet {
    (0..=program::random(CPUS.into())).map(|_| Cpu::new(random_cpu())).collect()
}

/// One send, by weight.
fn send(callers: Callers<'_>) {
    let weight = program::random(100);
    let kind = [10, 28, 30, 48, 60, 74, 94, 100].iter().position(|&bound| weight < bound).expect("below 100");
    books(|books| books.kinds[kind] += 1);
    match kind {
        0 => reschedule(random_cpu()),
        1 => post(&SimCpuSet::from_iter([Cpu::new(random_cpu())])),
        2 => post(&(0..CPUS).map(Cpu::new).collect()),
        3 | 4 => call_one(random_cpu(), callers),
        5 => post(&random_set()),
        6 => call_many(&random_set(), callers),
        _ => call_all(callers),
    }
}

fn send_from_task() {
    send(&mut |call| call(Calls::for_ever()));
}

/// In a handler of the timer interrupt, every other tick.
fn send_from_interrupt(_: &InterruptFrame) {
    if books(|books| books.over) || program::random(2) == 0 {
        return;
    }
    books(|books| books.from_interrupts += 1);
    send(&mut |call| {
        let mut guard = InterruptsOff::new();
        call(Calls::for_ever().with_interrupts_off(&mut guard));
    });
}

/// Goes offline for a while: what is accepted until then is run, and nothing is accepted.
fn go_offline_and_come_back() {
    let mut guard = InterruptsOff::<SimMachine>::new();
    let here = SimMachine::current_cpu().index();
    // Before the mailbox closes and until it has opened: what is told of this time is not asked of it.
    books(|books| books.offline[here] = (books.offline[here].0 + 1, true));
    Calls::close(&mut guard);
    let runs = || {
        books(|books| books.entries.iter().filter(|e| e.target as usize == here).map(|e| e.runs).sum::<u32>())
    };
    let before = runs();
    program::advance(Duration::from_nanos(program::random(60_000)));
    assert_eq!(runs(), before, "something ran on an offline CPU");
    Calls::open();
    books(|books| books.offline[here].1 = false);
}

/// What a torture is made of.
#[derive(Clone, Copy)]
struct Torture {
    interrupts: bool,
    churn: bool,
    longest: Duration,
    faults: &'static str,
}

const MILD: Torture =
    Torture { interrupts: false, churn: false, longest: Duration::from_micros(1), faults: "" };

const SENDS: u32 = 200;

impl Torture {
    /// Lets every CPU send, on this routing, and balances the books.
    fn run(self, routing: Routing, seed: u64) -> Books {
        books(|books| *books = Books { longest: self.longest, ..Books::default() });
        let mut config = Config::new(CPUS as usize, routing, seed);
        config.tick = Some(Duration::from_micros(30));
        config.faults = parse(self.faults).expect("faults");
        let tick: fn(&InterruptFrame) = if self.interrupts { send_from_interrupt } else { |_| {} };
        let hooks = Hooks { reschedule: Some(rescheduled), tick: Some(tick), ..Hooks::default() };
        let mut world = World::with_kernel(&config, hooks).expect("a machine");
        for cpu in 0..CPUS {
            world.spawn(Cpu::new(cpu), move || {
                for round in 0..SENDS {
                    program::advance(Duration::from_nanos(program::random(4000)));
                    // The boot CPU stays.
                    if self.churn && cpu > 0 && round % 10 == 9 {
                        go_offline_and_come_back();
                    } else {
                        send_from_task();
                    }
                }
            });
        }
        let limit = smpcall_machine::Instant::from_nanos(10_000_000_000);
        assert_eq!(world.run(limit), RunEnd::ProgramsEnded, "{routing}, seed {seed}");
        // Ticks find what no ring brought.
        books(|books| books.over = true);
        world.run_on(world.time().plus(Duration::from_millis(5)));
        drop(world);
        let result = BOOKS.take();
        result.balance(routing, seed);
        result
    }

    fn everywhere(self) -> Vec<Books> {
        let routings = [Routing::Flat, Routing::Physical, Routing::X2ApicPhysical, Routing::X2ApicCluster];
        let seeded = routings.into_iter().flat_map(|routing| (0..4).map(move |seed| (routing, seed)));
        seeded.map(|(routing, seed)| self.run(routing, seed)).collect()
    }
}

impl Books {
    /// Every send has its invocations: one, or none if its sender was told so.
    fn balance(&self, routing: Routing, seed: u64) {
        let at = format!("{routing}, seed {seed}");
        assert_eq!(self.unexpected, [""; 0], "{at}");
        assert_eq!(self.wrong_cpu, 0, "{at}");
        for (number, entry) in self.entries.iter().enumerate() {
            let (went, is_offline) = self.offline[entry.target as usize];
            let balanced = match entry.told {
                Told::Runs => entry.runs == 1,
                Told::Refused => entry.runs == 0,
                Told::Skipped { went: then, was_offline } => {
                    entry.runs == 0 && (was_offline || is_offline || went > then)
                }
                Told::Open => false,
            };
            assert!(balanced, "{at}: send {number} is {entry:?}");
        }
        for (cpu, of_cpu) in self.reschedules.iter().enumerate() {
            assert!(of_cpu.runs <= of_cpu.accepted, "{at}: CPU {cpu} {of_cpu:?}");
            assert!(
                of_cpu.accepted == 0 || of_cpu.seen >= of_cpu.last_accepted,
                "{at}: CPU {cpu} {of_cpu:?}"
            );
        }
        assert!(self.kinds.iter().all(|&count| count > 0), "{at}: a kind was never sent: {:?}", self.kinds);
    }

    fn told(&self, told: Told) -> usize {
        self.entries.iter().filter(|entry| entry.told == told).count()
    }
}

/// `scftorture`: the weighted mix from tasks. Nobody is refused, and every invocation runs on the right CPU.
#[test]
fn a_mix_of_all_kinds_is_reconciled_to_the_last_send() {
    for books in MILD.everywhere() {
        assert_eq!(books.told(Told::Runs), books.entries.len());
        assert!(books.entries.len() > (CPUS * SENDS) as usize, "{}", books.entries.len());
    }
}

/// `scftorture`: the same from interrupt handlers as well.
#[test]
fn sends_from_interrupt_handlers_are_reconciled() {
    for books in (Torture { interrupts: true, ..MILD }).everywhere() {
        assert!(books.from_interrupts > 20, "{}", books.from_interrupts);
    }
}

/// `scftorture.longwait`: handlers that work up to 50 us.
#[test]
fn long_handlers_are_reconciled() {
    (Torture { interrupts: true, longest: Duration::from_micros(50), ..MILD }).everywhere();
}

/// `scftorture.onoff_interval`: CPUs go offline and come back meanwhile.
#[test]
fn cpus_that_go_and_come_are_reconciled() {
    let all = (Torture { interrupts: true, churn: true, ..MILD }).everywhere();
    let refused: usize = all.iter().map(|books| books.told(Told::Refused)).sum();
    assert!(refused > 100, "only {refused} sends met an offline CPU");
}

/// Beyond `scftorture`: a tenth of all rings is lost.
#[test]
fn a_tenth_of_all_rings_lost_is_reconciled() {
    (Torture { interrupts: true, churn: true, faults: "drop:p=0.1", ..MILD }).everywhere();
}

/// `x86/smptest.c`: a call runs on the CPU that it is for, from every CPU to every CPU.
#[test]
fn every_cpu_reaches_every_cpu() {
    for routing in [Routing::Flat, Routing::Physical, Routing::X2ApicPhysical, Routing::X2ApicCluster] {
        let mut world = World::with_kernel(&Config::new(8, routing, 1), Hooks::default()).expect("a machine");
        for from in 0..8 {
            world.spawn(Cpu::new(from), || {
                for to in (0..8).map(Cpu::new) {
                    assert_eq!(Calls::for_ever().call(to, SimMachine::current_cpu), Ok(to));
                }
            });
        }
        assert_eq!(world.run(smpcall_machine::Instant::from_nanos(1_000_000_000)), RunEnd::ProgramsEnded);
    }
}

/// `scftorture`: an offline target is an error, for a single call and within a set, and nothing runs.
#[test]
fn an_offline_target_is_an_error() {
    let mut config = Config::new(3, Routing::Flat, 1);
    config.tick = None;
    let mut world = World::with_kernel(&config, Hooks::default()).expect("a machine");
    world.spawn(Cpu::new(1), || {
        let mut guard = InterruptsOff::<SimMachine>::new();
        Calls::close(&mut guard);
        program::advance(Duration::from_micros(100));
    });
    world.spawn(Cpu::new(0), || {
        program::advance(Duration::from_micros(20));
        let offline = Cpu::new(1);
        assert_eq!(Calls::for_ever().call(offline, || ()), Err(CallError::Offline));
        assert_eq!(Calls::reschedule(offline), Err(CallError::Offline));
        let post = Calls::post::<Errand>(offline, Box::new(Post::new(Errand(0))));
        assert!(post.is_err_and(|refused| refused.reason == PostRefusal::Offline));
        let both: SimCpuSet = [1, 2].map(Cpu::new).into_iter().collect();
        let ran = AtomicU32::new(0);
        let result = Calls::for_ever().call_many(&both, |cpu| {
            assert_eq!(cpu, Cpu::new(2));
            ran.fetch_add(1, Relaxed);
        });
        let Err(ManyError::Failed(failures)) = result else { panic!("{result:?}") };
        assert!(failures.offline.iter().eq([offline]));
        assert_eq!(ran.into_inner(), 1);
    });
    assert_eq!(world.run(smpcall_machine::Instant::from_nanos(1_000_000_000)), RunEnd::ProgramsEnded);
}

/// Plain data on its way to a handler and back.
struct Exchange {
    to_handler: Plain<SimMemory, u64>,
    from_handler: Plain<SimMemory, u64>,
}

/// `scftorture`'s memory-ordering checks: the handler sees what its sender wrote before, and after the wait the
/// sender sees what the handler wrote. In every schedule, with a lost ring, as plain data: anything less would be a
/// data race, which the explorer looks for.
#[test]
fn the_handler_sees_the_senders_writes_and_the_sender_the_handlers() {
    let mut protocol = Protocol::new("exchange", "plain data to a handler and back", 2, || {
        let mut scenario = Scenario::new();
        let exchange = scenario.share(Exchange { to_handler: Plain::new(0), from_handler: Plain::new(0) });
        scenario.cpu(move || {
            // SAFETY: the handler runs between the call and its return; nobody else touches the data.
            unsafe { exchange.to_handler.write(7) };
            let seen = Calls::for_ever().call(Cpu::new(1), || {
                // SAFETY: as above: the caller waits.
                unsafe {
                    exchange.from_handler.write(9);
                    exchange.to_handler.read()
                }
            });
            assert_eq!(seen, Ok(7));
            // SAFETY: as above: the handler has finished.
            assert_eq!(unsafe { exchange.from_handler.read() }, 9);
        });
        scenario.cpu(|| {});
        scenario
    });
    protocol.kernel = Some(Hooks::default());
    protocol.bounds = Bounds { drops: 1, expiries: 0, ticks: 0, wedges: 0 };
    let exploration = explore(&protocol, &Plan::new(Setup::new(protocol.bounds)), &()).expect("a machine");
    assert!(exploration.found.is_none(), "{:#?}", exploration.found);
    assert!(exploration.is_complete());
    assert!(exploration.states > 20, "{} states", exploration.states);
}
