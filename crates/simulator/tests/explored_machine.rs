//! The explored machine against what is known of the hardware: litmus tests, programs at random beside a reference
//! that enumerates them naively, and pairs of scenarios of which exactly one breaks a law.

#[path = "explored_machine/reference.rs"]
mod reference;

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use smpcall_local_apic::{Access as _, Register, Routing};
use smpcall_machine::{Cpu, Deadline, InterruptsOff, Machine as _, Plain, Word, wait};
use smpcall_simulator::explorer::report::{Exploration, Limits};
use smpcall_simulator::explorer::{
    Bounds, Engine, MemoryModel, Note, Plan, Protocol, Scenario, Setup, Violation, explore,
};
use smpcall_simulator::{InterruptFrame, SimAccess, SimMachine, SimMemory, TIMER_VECTOR, program};

use reference::{
    Load, Op, Outcome, PIECES, Raise, Read, Reference, Seen, Store, Swap, Test, WORDS, Write, acquires,
    releases,
};

type SimWord = Word<SimMemory>;
type SimPlain = Plain<SimMemory, u64>;

const VECTOR: u8 = 0x40;

const NOTES: usize = 24;

// --- The explored machine.

struct Shared {
    words: [SimWord; WORDS],
    pieces: [SimPlain; PIECES],
    notes: [Note; NOTES],
}

impl Shared {
    fn new() -> Self {
        Self {
            words: [const { Word::new(0) }; WORDS],
            pieces: [const { Plain::new(0) }; PIECES],
            notes: [const { Note::new(0) }; NOTES],
        }
    }

    fn run(&self, ops: &[Op], first: usize) {
        for (at, &op) in ops.iter().enumerate() {
            match op {
                Load(word, order) => self.notes[first + at].set(self.words[word].load(order)),
                Store(word, value, order) => self.words[word].store(value, order),
                Swap(word, value, order) => self.notes[first + at].set(self.words[word].swap(value, order)),
                Read(piece) => {
                    // SAFETY: there is one thread; whether CPUs race is what is tested.
                    let _ = unsafe { self.pieces[piece].read() };
                }
                // SAFETY: the same.
                Write(piece) => unsafe { self.pieces[piece].write(1) },
                Raise(cpu) => program::request_interrupt(Cpu::new(cpu as u32), VECTOR),
            }
        }
    }
}

fn protocol_of(test: &Test, outcomes: &Arc<Mutex<BTreeSet<Outcome>>>) -> Protocol {
    let (test, outcomes) = (test.clone(), outcomes.clone());
    let mut protocol = Protocol::new("litmus", "a litmus test", test.programs.len(), move || {
        let mut scenario = Scenario::new();
        let shared = scenario.share(Shared::new());
        for cpu in 0..test.programs.len() {
            let (ops, first) = (test.programs[cpu].clone(), test.first(cpu, false));
            scenario.cpu(move || shared.run(&ops, first));
        }
        let handling = test.clone();
        scenario.handler(VECTOR, move |mut frame| {
            let cpu = SimMachine::current_cpu().index();
            shared.run(&handling.handlers[cpu], handling.first(cpu, true));
            frame.end_of_interrupt();
        });
        let (outcomes, ops) = (outcomes.clone(), test.ops());
        scenario.check(move || {
            let found = shared.notes[..ops].iter().map(Note::get);
            let left = shared.words.iter().map(|word| word.load(Relaxed));
            outcomes.lock().expect("not poisoned").insert(found.chain(left).collect());
            Ok(())
        });
        scenario
    });
    // An end of interrupt waits for no store on an x2APIC.
    protocol.routing = Routing::X2ApicPhysical;
    protocol
}

fn plan(engine: Engine, setup: Setup) -> Plan {
    let limits = Limits { time: Some(Duration::from_secs(60)), ..Limits::default() };
    Plan { engine, limits, ..Plan::new(setup) }
}

fn setup(memory: MemoryModel, reduce: bool) -> Setup {
    Setup { memory, reduce, ..Setup::new(Bounds::default()) }
}

fn explored(test: &Test, engine: Engine, setup: Setup) -> Seen {
    let outcomes = Arc::default();
    let exploration = explore(&protocol_of(test, &outcomes), &plan(engine, setup), &()).expect("a machine");
    let complete = exploration.is_complete() || exploration.found.is_some();
    assert!(complete, "{engine} {test:?}: {:?}", exploration.incomplete);
    let law = exploration.found.map(|found| found.violation.law);
    assert!(law.is_none() || law.as_deref() == Some("race"), "{engine} {test:?}: {law:?}");
    let outcomes = outcomes.lock().expect("not poisoned").clone();
    Seen { outcomes, race: law.is_some() }
}

/// Both engines, with and without doing at once what is private, see what the reference sees.
fn agrees(test: &Test, memory: MemoryModel) -> Seen {
    agrees_with(test, memory, &[false, true])
}

fn agrees_with(test: &Test, memory: MemoryModel, reductions: &[bool]) -> Seen {
    let expected = Reference::all(test, memory == MemoryModel::Tso);
    for engine in [Engine::States, Engine::Dpor] {
        for &reduce in reductions {
            let seen = explored(test, engine, setup(memory, reduce));
            let case = format!("{engine}, {memory:?}, reduce {reduce}: {test:?}");
            assert_eq!(seen.race, expected.race, "race: {case}");
            if !expected.race {
                let missing: Vec<_> = expected.outcomes.difference(&seen.outcomes).collect();
                let extra: Vec<_> = seen.outcomes.difference(&expected.outcomes).collect();
                assert!(
                    missing.is_empty() && extra.is_empty(),
                    "missing {missing:?}, too many {extra:?}: {case}"
                );
            }
        }
    }
    expected
}

/// Whether an outcome with these values of the operations' findings, then of words 0 and 1, is possible.
fn possible(seen: &Seen, wanted: &[(usize, u64)], words: &[(usize, u64)], test: &Test) -> bool {
    seen.outcomes.iter().any(|outcome| {
        wanted.iter().all(|&(op, value)| outcome[op] == value)
            && words.iter().all(|&(word, value)| outcome[test.ops() + word] == value)
    })
}

const X: usize = 0;
const Y: usize = 1;

/// A litmus test by its name in the literature, with whether its relaxed outcome is possible under sequential consistency
/// and under x86-TSO (Sewell et al., CACM 2010; Alglave, Maranget, Tautschnig, TOPLAS 2014).
fn litmus(
    name: &str,
    programs: &[&[Op]],
    found: &[(usize, u64)],
    words: &[(usize, u64)],
    sc: bool,
    tso: bool,
) {
    let test = Test::new(programs);
    for (memory, expected) in [(MemoryModel::Sc, sc), (MemoryModel::Tso, tso)] {
        let seen = agrees(&test, memory);
        assert_eq!(possible(&seen, found, words, &test), expected, "{name} under {memory:?}");
    }
}

#[test]
fn litmus_tests_end_as_the_memory_model_says() {
    let (l, s) = (|word| Load(word, Relaxed), |word, value| Store(word, value, Relaxed));
    litmus("SB", &[&[s(X, 1), l(Y)], &[s(Y, 1), l(X)]], &[(1, 0), (3, 0)], &[], false, true);
    litmus("MP", &[&[s(X, 1), s(Y, 1)], &[l(Y), l(X)]], &[(2, 1), (3, 0)], &[], false, false);
    litmus("LB", &[&[l(X), s(Y, 1)], &[l(Y), s(X, 1)]], &[(0, 1), (2, 1)], &[], false, false);
    litmus("S", &[&[s(X, 2), s(Y, 1)], &[l(Y), s(X, 1)]], &[(2, 1)], &[(X, 2)], false, false);
    litmus("R", &[&[s(X, 1), s(Y, 1)], &[s(Y, 2), l(X)]], &[(3, 0)], &[(Y, 2)], false, true);
    litmus("2+2W", &[&[s(X, 1), s(Y, 2)], &[s(Y, 1), s(X, 2)]], &[], &[(X, 1), (Y, 1)], false, false);
    litmus("n5", &[&[s(X, 1), l(X)], &[s(X, 2), l(X)]], &[(1, 2), (3, 1)], &[], false, false);
    litmus("n6", &[&[s(X, 1), l(X), l(Y)], &[s(Y, 2), s(X, 2)]], &[(1, 1), (2, 0)], &[(X, 1)], false, true);
    litmus(
        "IRIW",
        &[&[s(X, 1)], &[s(Y, 1)], &[l(X), l(Y)], &[l(Y), l(X)]],
        &[(2, 1), (3, 0), (4, 1), (5, 0)],
        &[],
        false,
        false,
    );
    let sc = |word| Store(word, 1, SeqCst);
    litmus("SB, exchanged", &[&[sc(X), l(Y)], &[sc(Y), l(X)]], &[(1, 0), (3, 0)], &[], false, false);
    litmus("SB, one exchanged", &[&[sc(X), l(Y)], &[s(Y, 1), l(X)]], &[(1, 0), (3, 0)], &[], false, true);
}

#[test]
fn a_locked_instruction_on_a_private_word_is_a_fence() {
    let (l, s) = (|word| Load(word, Relaxed), |word| Store(word, 1, Relaxed));
    let locked = |word| Swap(word, 1, Relaxed);
    let programs: &[&[Op]] = &[&[s(X), locked(2), l(Y)], &[s(Y), locked(3), l(X)]];
    litmus("SB, fenced", programs, &[(2, 0), (5, 0)], &[], false, false);
}

#[test]
fn what_an_interrupt_delays_still_waits_for_the_store_buffer() {
    // The exchange finds what its own CPU has stored, whatever interrupts it.
    let l = |word| Load(word, Relaxed);
    let test = Test::with_handlers(
        &[&[Store(X, 1, Relaxed), Raise(0), Swap(X, 2, Relaxed)], &[l(X)]],
        &[&[l(Y)], &[]],
    );
    let seen = agrees(&test, MemoryModel::Tso);
    assert!(!possible(&seen, &[(2, 0)], &[], &test));
}

#[test]
fn what_an_interrupt_delays_waits_for_the_store_buffer_no_longer_than_it_would_have() {
    // The load may overtake the store also after a handler that ended with a locked instruction.
    let l = |word| Load(word, Relaxed);
    let test = Test::with_handlers(
        &[&[Raise(0), l(2), Store(X, 1, Relaxed), l(Y)], &[Store(Y, 1, SeqCst), l(X)]],
        &[&[Swap(3, 1, Relaxed), Store(4, 1, Relaxed)], &[]],
    );
    agrees(&test, MemoryModel::Tso);
}

/// A small generator of its own: what is tested may not depend on somebody else's.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn op(&mut self, cpus: u64, plain: bool, raises: bool) -> Op {
        let word = self.below(3) as usize;
        let value = 1 + self.below(2);
        match self.below(if raises { 9 } else { 8 }) {
            0 | 1 => Load(word, [Relaxed, Acquire][self.below(2) as usize]),
            2 | 3 => Store(word, value, [Relaxed, Release, Release, SeqCst][self.below(4) as usize]),
            4 => Swap(word, value, [Relaxed, Acquire, Release, AcqRel][self.below(4) as usize]),
            5 if plain => Read(self.below(2) as usize),
            6 if plain => Write(self.below(2) as usize),
            5..8 => Load(word, Acquire),
            _ => Raise(self.below(cpus) as usize),
        }
    }

    fn ops(&mut self, most: u64, cpus: u64, plain: bool, raises: bool) -> Vec<Op> {
        // The first operation of all: no program does everything at once.
        let first = Load(WORDS - 1, Relaxed);
        core::iter::once(first).chain((0..=self.below(most)).map(|_| self.op(cpus, plain, raises))).collect()
    }
}

fn at_random(
    seed: u64,
    count: usize,
    plain: bool,
    interrupts: bool,
    memory: MemoryModel,
    reductions: &[bool],
) {
    let mut random = Random(seed);
    let mut races = 0;
    for _ in 0..count {
        let cpus = 2 + random.below(2);
        let most = if cpus == 2 { 4 } else { 3 };
        let programs: Vec<_> = (0..cpus).map(|_| random.ops(most, cpus, plain, interrupts)).collect();
        let handlers =
            (0..cpus).map(|_| if interrupts { random.ops(2, cpus, plain, false) } else { Vec::new() });
        let test = Test { handlers: handlers.collect(), programs };
        races += u32::from(agrees_with(&test, memory, reductions).race);
    }
    assert!(!plain || races > 0 && (races as usize) < count, "{races} of {count} race");
}

#[test]
fn programs_at_random_end_as_the_reference_says() {
    for reduce in [false, true] {
        at_random(1, 60, false, false, MemoryModel::Sc, &[reduce]);
        at_random(2, 60, false, false, MemoryModel::Tso, &[reduce]);
    }
}

#[test]
fn programs_at_random_are_interrupted_where_the_reference_says() {
    for reduce in [false, true] {
        at_random(3, 60, false, true, MemoryModel::Sc, &[reduce]);
    }
}

#[test]
fn programs_at_random_are_interrupted_with_stores_in_their_buffers() {
    for reduce in [false, true] {
        at_random(4, 40, false, true, MemoryModel::Tso, &[reduce]);
    }
}

#[test]
fn programs_at_random_race_where_the_reference_says() {
    for reduce in [false, true] {
        at_random(5, 100, true, false, MemoryModel::Sc, &[reduce]);
        at_random(6, 60, true, false, MemoryModel::Tso, &[reduce]);
    }
}

#[test]
fn programs_at_random_with_interrupts_race_where_the_reference_says() {
    at_random(7, 100, true, true, MemoryModel::Sc, &[false]);
}

#[test]
fn reduced_programs_at_random_with_interrupts_race_where_the_reference_says() {
    at_random(7, 100, true, true, MemoryModel::Sc, &[true]);
}

#[test]
fn programs_at_random_with_interrupts_race_with_stores_in_their_buffers() {
    at_random(8, 40, true, true, MemoryModel::Tso, &[false]);
}

#[test]
fn an_exploration_that_begins_again_goes_on_after_violations_and_on_several_threads() {
    // The store is taken for private until the load is seen.
    let mut random = Random(9);
    for _ in 0..40 {
        let programs: Vec<_> = (0..2).map(|_| random.ops(4, 2, false, false)).collect();
        let test = Test { handlers: vec![Vec::new(); 2], programs };
        for memory in [MemoryModel::Sc, MemoryModel::Tso] {
            let expected = Reference::all(&test, memory == MemoryModel::Tso).outcomes;
            for (engine, jobs, keep_going) in [
                (Engine::States, 1, true),
                (Engine::Dpor, 1, true),
                (Engine::States, 3, false),
                (Engine::Dpor, 3, false),
            ] {
                let outcomes = Arc::default();
                let plan = Plan { jobs, keep_going, ..plan(engine, setup(memory, true)) };
                let explored = explore(&protocol_of(&test, &outcomes), &plan, &()).expect("a machine");
                let case = format!("{engine}, {jobs} jobs, {memory:?}: {test:?}");
                assert!(explored.is_complete() && explored.found.is_none(), "{case}: {explored:?}");
                assert_eq!(*outcomes.lock().expect("not poisoned"), expected, "{case}");
            }
        }
    }
}

#[test]
fn whose_store_buffer_holds_a_store_is_part_of_the_state() {
    // The handler of CPU 1 and the program of CPU 2 store the same; which of them has been seen decides.
    let test = Test::with_handlers(
        &[
            &[Load(4, Relaxed), Load(0, Relaxed), Raise(1)],
            &[Load(4, Relaxed), Store(1, 2, Relaxed), Swap(1, 1, AcqRel), Load(1, Relaxed)],
            &[Load(4, Relaxed), Load(1, Acquire), Store(1, 1, Relaxed), Raise(2)],
        ],
        &[
            &[],
            &[Load(4, Relaxed), Store(1, 1, Relaxed), Load(2, Acquire)],
            &[Load(4, Relaxed), Load(1, Acquire)],
        ],
    );
    agrees(&test, MemoryModel::Tso);
}

#[test]
fn sleep_sets_lose_no_state() {
    use smpcall_simulator::explorer::machine::ExploredMachine;
    use smpcall_simulator::explorer::{protocols, states};
    let names =
        ["sketch-stale-mark-mended", "deadline", "probe", "mutual-deadline", "twice", "close-open", "irq2"];
    for name in names {
        let protocol = protocols::by_name(name).expect("there is such a protocol");
        for memory in [MemoryModel::Sc, MemoryModel::Tso] {
            let setup = setup(memory, false);
            let setup = Setup { bounds: protocol.bounds, ..setup };
            let explored = [true, false].map(|sleep_sets| {
                let options = states::Options { sleep_sets, ..states::Options::default() };
                let machine = || ExploredMachine::new(&protocol, &setup).expect("a machine");
                let explored = states::explore(machine, &options, &());
                assert!(explored.is_complete(), "{name}: {explored:?}");
                (explored.states, explored.endings)
            });
            assert_eq!(explored[0], explored[1], "{name}, {memory:?}");
        }
    }
}

#[test]
fn two_machines_of_one_protocol_have_nothing_in_common() {
    use smpcall_simulator::explorer::machine::ExploredMachine;
    use smpcall_simulator::explorer::small;
    use smpcall_simulator::explorer::system::System as _;
    let protocol = small::irq(1);
    let setup = Setup { reduce: false, ..Setup::new(protocol.bounds) };
    let mut machines = [0, 1].map(|_| ExploredMachine::new(&protocol, &setup).expect("a machine"));
    for machine in &mut machines {
        let mut choices = Vec::new();
        machine.restart();
        loop {
            machine.choices(&mut choices).expect("nobody hangs");
            let Some(&choice) = choices.first() else { break };
            let _ = machine.perform(choice).expect("no law is broken");
        }
        machine.end().expect("every call was run");
    }
}

#[test]
fn every_pair_of_orderings_orders_plain_data_or_does_not() {
    for store in [Relaxed, Release, SeqCst] {
        for load in [Relaxed, Acquire, SeqCst] {
            // The reader reads the data whatever it finds: it races unless it waits.
            let ordered = releases(store) && acquires(load);
            let test = Test::new(&[&[Write(0), Store(X, 1, store)], &[Load(X, load), Read(0)]]);
            assert!(agrees(&test, MemoryModel::Sc).race, "nothing makes the reader wait");
            let protocol = Protocol::new("pair", "a flag", 2, move || {
                let mut scenario = Scenario::new();
                let shared = scenario.share(Shared::new());
                scenario.cpu(move || shared.run(&[Write(0), Store(X, 1, store)], 0));
                scenario.cpu(move || {
                    if shared.words[X].load(load) == 1 {
                        shared.run(&[Read(0)], 0);
                    }
                });
                scenario
            });
            assert_eq!(law(&protocol, Engine::States, true).as_deref(), (!ordered).then_some("race"));
            assert_eq!(law(&protocol, Engine::Dpor, true).as_deref(), (!ordered).then_some("race"));
        }
    }
}

#[test]
fn an_exchange_continues_a_release_sequence_and_a_store_ends_it() {
    for (middle, race) in [(Swap(X, 2, Relaxed), false), (Store(X, 2, Relaxed), true)] {
        let protocol = Protocol::new("sequence", "a release sequence", 3, move || {
            let mut scenario = Scenario::new();
            let shared = scenario.share(Shared::new());
            scenario.cpu(move || shared.run(&[Write(0), Store(X, 1, Release)], 0));
            scenario.cpu(move || {
                wait::<SimMachine>(&[shared.words[X].equals(!0, 1)], Deadline::NEVER);
                shared.run(&[middle], 0);
            });
            scenario.cpu(move || {
                wait::<SimMachine>(&[shared.words[X].equals(!0, 2)], Deadline::NEVER);
                shared.run(&[Read(0)], 0);
            });
            scenario
        });
        // With the store: the waiter in the middle has acquired, but does not pass it on.
        assert_eq!(law(&protocol, Engine::States, true).as_deref(), race.then_some("race"));
    }
}

// --- Scenarios of which exactly one breaks a law.

fn run(protocol: &Protocol, engine: Engine, setup: Setup) -> Exploration {
    explore(protocol, &plan(engine, setup), &()).expect("a machine")
}

fn law(protocol: &Protocol, engine: Engine, reduce: bool) -> Option<String> {
    let setup = Setup { reduce, ..Setup::new(protocol.bounds) };
    run(protocol, engine, setup).found.map(|found| found.violation.law)
}

#[test]
fn an_interrupt_before_a_write_publishes_nothing_of_it() {
    // The handler says that the data is there; it may come before the data is.
    let protocol = |early: bool| {
        Protocol::new("early", "a handler publishes what its program writes", 2, move || {
            let mut scenario = Scenario::new();
            let shared = scenario.share(Shared::new());
            scenario.handler(VECTOR, move |mut frame| {
                shared.words[X].store(1, Release);
                frame.end_of_interrupt();
            });
            let order: &'static [Op] = if early { &[Raise(0), Write(0)] } else { &[Write(0), Raise(0)] };
            scenario.cpu(move || shared.run(order, 0));
            scenario.cpu(move || {
                wait::<SimMachine>(&[shared.words[X].equals(!0, 1)], Deadline::NEVER);
                shared.run(&[Read(0)], 0);
            });
            scenario
        })
    };
    for reduce in [false, true] {
        assert_eq!(law(&protocol(false), Engine::States, reduce), None);
        assert_eq!(law(&protocol(true), Engine::States, reduce).as_deref(), Some("race"), "reduce {reduce}");
    }
}

#[test]
fn an_nmi_before_a_write_publishes_nothing_of_it() {
    for reduce in [false, true] {
        let protocol =
            Protocol::new("early", "an NMI handler publishes what its program writes", 2, move || {
                let mut scenario = Scenario::new();
                let shared = scenario.share(Shared::new());
                scenario.nmi_handler(move |_| shared.words[X].store(1, Release));
                scenario.cpu(move || {
                    let _off = InterruptsOff::<SimMachine>::new();
                    shared.words[Y].store(1, Relaxed);
                    shared.run(&[Write(0)], 0);
                    shared.words[Y].store(2, Relaxed);
                });
                scenario.cpu(move || {
                    wait::<SimMachine>(
                        &[shared.words[Y].equals(!0, 1)],
                        Deadline::at(smpcall_machine::Instant::from_nanos(1)),
                    );
                    SimMachine::send(Cpu::new(0), smpcall_machine::Ipi::Probe).expect("sent");
                    wait::<SimMachine>(&[shared.words[X].equals(!0, 1)], Deadline::NEVER);
                    shared.run(&[Read(0)], 0);
                });
                scenario
            });
        assert_eq!(law(&protocol, Engine::States, reduce).as_deref(), Some("race"), "reduce {reduce}");
    }
}

#[test]
fn a_race_of_programs_without_any_other_operation_is_seen() {
    for (pieces, race) in [([0, 0], true), ([0, 1], false)] {
        let test = Test::new(&[&[Write(pieces[0])], &[Write(pieces[1])]]);
        assert_eq!(agrees(&test, MemoryModel::Sc).race, race);
    }
}

#[test]
fn a_panic_before_the_first_operation_is_a_violation() {
    let protocol = Protocol::new("panics", "a program that panics at once", 2, || {
        let mut scenario = Scenario::new();
        scenario.cpu(|| panic!("on purpose"));
        scenario
    });
    assert_eq!(law(&protocol, Engine::States, true).as_deref(), Some("panic"));
}

/// A handler that can be interrupted counts in a word of its own, as does the handler that interrupts it.
fn nested(atomic: bool) -> Protocol {
    Protocol::new("nested", "two handlers of one CPU count in one word", 2, move || {
        let mut scenario = Scenario::new();
        let shared = scenario.share(Shared::new());
        for vector in [0x40, 0x60] {
            scenario.handler(vector, move |mut frame: InterruptFrame| {
                SimMachine::restore_interrupts(true);
                if atomic {
                    shared.words[X].fetch_add(1, Relaxed);
                } else {
                    let count = shared.words[X].load(Relaxed);
                    shared.words[X].store(count + 1, Relaxed);
                }
                let _ = SimMachine::disable_interrupts();
                frame.end_of_interrupt();
            });
        }
        scenario.cpu(|| {});
        scenario.cpu(|| {
            program::request_interrupt(Cpu::new(0), 0x40);
            program::request_interrupt(Cpu::new(0), 0x60);
        });
        scenario.check(move || match shared.words[X].load(Relaxed) {
            2 => Ok(()),
            other => Err(Violation::new("count", format!("{other} instead of 2"))),
        });
        scenario
    })
}

#[test]
fn a_handler_is_interrupted_between_its_operations_if_it_enables_interrupts() {
    for engine in [Engine::States, Engine::Dpor] {
        for reduce in [false, true] {
            assert_eq!(law(&nested(true), engine, reduce), None, "{engine}, reduce {reduce}");
            assert_eq!(
                law(&nested(false), engine, reduce).as_deref(),
                Some("count"),
                "{engine}, reduce {reduce}"
            );
        }
    }
}

#[test]
fn a_word_that_was_not_shared_does_not_keep_an_exploration_from_ending() {
    let protocol = Protocol::new("forgotten", "a word that the scenario does not share", 2, || {
        let mut scenario = Scenario::new();
        let word: &'static SimWord = Box::leak(Box::new(Word::new(0)));
        scenario.cpu(move || {
            word.store(1, Relaxed);
            word.store(2, Relaxed);
        });
        scenario.cpu(move || {
            let _ = word.load(Relaxed);
        });
        scenario
    });
    let limits = Limits { time: Some(Duration::from_secs(3)), ..Limits::default() };
    let plan = Plan { limits, keep_going: true, ..Plan::new(Setup::new(Bounds::default())) };
    let exploration = explore(&protocol, &plan, &()).expect("a machine");
    assert!(
        exploration.is_complete() || exploration.found.is_some(),
        "it neither ends nor says why: {:?}",
        exploration.incomplete
    );
}

#[test]
fn a_message_to_an_apic_that_is_disabled_for_a_moment_may_be_lost() {
    const ENABLED: u32 = 1 << 8;
    let expected: BTreeSet<u64> = [0, 1].into();
    for engine in [Engine::States, Engine::Dpor] {
        for reduce in [false, true] {
            let taken = Arc::new(Mutex::new(BTreeSet::new()));
            let all = taken.clone();
            let protocol = Protocol::new("disabled", "an APIC that is disabled for a moment", 2, move || {
                let mut scenario = Scenario::new();
                let shared = scenario.share(Shared::new());
                scenario.handler(VECTOR, move |mut frame: InterruptFrame| {
                    shared.notes[0].add(1);
                    frame.end_of_interrupt();
                });
                scenario.cpu(|| {
                    SimAccess.write(Register::SPURIOUS_VECTOR, 0xff);
                    SimAccess.write(Register::SPURIOUS_VECTOR, 0xff | ENABLED);
                });
                scenario.cpu(|| program::request_interrupt(Cpu::new(0), VECTOR));
                let all = all.clone();
                scenario.check(move || {
                    all.lock().expect("not poisoned").insert(shared.notes[0].get());
                    Ok(())
                });
                scenario
            });
            assert_eq!(law(&protocol, engine, reduce), None);
            assert_eq!(*taken.lock().expect("not poisoned"), expected, "{engine}, reduce {reduce}");
        }
    }
}

#[test]
fn what_may_go_wrong_in_several_ways_is_explored_to_the_end() {
    let bounds = |expiries, ticks, wedges| Bounds { drops: 0, expiries, ticks, wedges };
    let mut wrong = Vec::new();
    for bounds in [bounds(1, 0, 1), bounds(1, 1, 0), bounds(0, 1, 1), bounds(1, 1, 1), bounds(1, 2, 1)] {
        for waits in [false, true] {
            let mut protocol =
                Protocol::new("several", "a wait with a deadline, beside a step", 2, move || {
                    let mut scenario = Scenario::new();
                    let shared = scenario.share(Shared::new());
                    scenario.handler(TIMER_VECTOR, |mut frame| frame.end_of_interrupt());
                    scenario.cpu(move || {
                        if waits {
                            let soon = Deadline::at(smpcall_machine::Instant::from_nanos(1000));
                            wait::<SimMachine>(&[shared.words[X].equals(!0, 7)], soon);
                        }
                    });
                    scenario.cpu(move || shared.words[Y].store(1, Relaxed));
                    scenario
                });
            protocol.bounds = bounds;
            for engine in [Engine::States, Engine::Dpor] {
                for reduce in [false, true] {
                    let explored = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| {
                        run(&protocol, engine, Setup { reduce, ..Setup::new(bounds) })
                    }));
                    let case = format!("{engine}, {bounds:?}, waits {waits}, reduce {reduce}");
                    match explored {
                        Ok(explored) if explored.is_complete() && explored.found.is_none() => {}
                        Ok(explored) => wrong.push(format!("{case}: {explored:?}")),
                        Err(_) => wrong.push(format!("{case}: panicked")),
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_handler_that_never_ends_hangs_its_machine_although_the_program_has_ended() {
    let protocol = Protocol::new("handler", "a handler that waits for ever", 2, || {
        let mut scenario = Scenario::new();
        let shared = scenario.share(Shared::new());
        scenario.handler(VECTOR, move |mut frame: InterruptFrame| {
            wait::<SimMachine>(&[shared.words[X].equals(!0, 1)], Deadline::NEVER);
            frame.end_of_interrupt();
        });
        scenario.cpu(|| {});
        scenario.cpu(|| program::request_interrupt(Cpu::new(0), VECTOR));
        scenario
    });
    assert_eq!(law(&protocol, Engine::States, true).as_deref(), Some("hang"));
    assert_eq!(law(&protocol, Engine::Dpor, true).as_deref(), Some("hang"));
}

#[test]
fn to_wait_for_deadlines_that_have_passed_for_ever_is_to_hang() {
    let protocol = Protocol::new("passed", "a deadline that has passed, again and again", 1, || {
        let mut scenario = Scenario::new();
        let shared = scenario.share(Shared::new());
        scenario.cpu(move || {
            while shared.words[X].load(Relaxed) == 0 {
                program::forget_but(0);
                let past = Deadline::at(smpcall_machine::Instant::from_nanos(1));
                wait::<SimMachine>(&[shared.words[X].equals(!0, 1)], past);
            }
        });
        scenario
    });
    for reduce in [false, true] {
        assert_eq!(law(&protocol, Engine::Dpor, reduce).as_deref(), Some("hang"));
        assert_eq!(law(&protocol, Engine::States, reduce).as_deref(), Some("hang"), "reduce {reduce}");
    }
}

#[test]
fn threads_agree_on_the_states_and_the_order_of_first_accesses_does_not_count() {
    let protocol = Protocol::new("pieces", "plain data that is first accessed in any order", 3, || {
        let mut scenario = Scenario::new();
        let shared = scenario.share(Shared::new());
        for cpu in 0..2_usize {
            scenario.cpu(move || {
                shared.words[cpu].store(1, Relaxed);
                shared.run(&[Write(cpu)], 0);
                for value in 2..6 {
                    shared.words[cpu].store(value, Release);
                }
            });
        }
        scenario.cpu(move || {
            for look in 0..6 {
                let cpu = look % 2;
                if shared.words[cpu].load(Acquire) >= 2 {
                    shared.run(&[Read(cpu)], 0);
                }
                // What was read, and through which word it is known, does not matter from here.
                program::forget_but(look as u64);
            }
        });
        scenario
    });
    for reduce in [false, true] {
        let states = |jobs| {
            let plan =
                Plan { jobs, ..plan(Engine::States, Setup { reduce, ..Setup::new(Bounds::default()) }) };
            let explored = explore(&protocol, &plan, &()).expect("a machine");
            assert!(explored.is_complete() && explored.found.is_none(), "{explored:?}");
            (explored.states, explored.endings)
        };
        let one = states(1);
        for jobs in [2, 3, 4, 2, 3, 4] {
            assert_eq!(states(jobs), one, "{jobs} threads, reduce {reduce}");
        }
    }
}
