//! The explored machine against what is known of the hardware: litmus tests, programs at random beside a reference
//! that enumerates them naively, and pairs of scenarios of which exactly one breaks a law.

use core::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, Release, SeqCst};
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

type SimWord = Word<SimMemory>;
type SimPlain = Plain<SimMemory, u64>;

const VECTOR: u8 = 0x40;

/// One operation of a litmus test. Places are numbers; the values that loads find are the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Load(usize, Ordering),
    Store(usize, u64, Ordering),
    Swap(usize, u64, Ordering),
    Read(usize),
    Write(usize),
    Raise(usize),
}

use Op::{Load, Raise, Read, Store, Swap, Write};

const WORDS: usize = 5;
const PIECES: usize = 2;
const NOTES: usize = 24;

/// What each CPU runs, and what its interrupts run.
#[derive(Clone, Debug, Default)]
struct Test {
    programs: Vec<Vec<Op>>,
    handlers: Vec<Vec<Op>>,
}

impl Test {
    fn new(programs: &[&[Op]]) -> Self {
        Self { programs: programs.iter().map(|ops| ops.to_vec()).collect(), handlers: vec![Vec::new(); programs.len()] }
    }

    fn with_handlers(programs: &[&[Op]], handlers: &[&[Op]]) -> Self {
        Self { handlers: handlers.iter().map(|ops| ops.to_vec()).collect(), ..Self::new(programs) }
    }

    /// The number of the first operation of a program or handler.
    fn first(&self, cpu: usize, handler: bool) -> usize {
        let all = |lists: &[Vec<Op>]| lists.iter().map(Vec::len).sum::<usize>();
        if handler { all(&self.programs) + all(&self.handlers[..cpu]) } else { all(&self.programs[..cpu]) }
    }

    fn ops(&self) -> usize {
        self.first(self.programs.len(), true)
    }
}

/// What was found by each operation, and what is left in each word.
type Outcome = Vec<u64>;

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    outcomes: BTreeSet<Outcome>,
    race: bool,
}

// --- The reference: every interleaving of every operation, with vector clocks.

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Reference {
    at: Vec<(usize, Option<usize>)>,
    raised: Vec<bool>,
    memory: Vec<u64>,
    buffers: Vec<Vec<(usize, u64, Vec<u32>)>>,
    found: Vec<u64>,
    clocks: Vec<Vec<u32>>,
    released: Vec<Vec<u32>>,
    written: Vec<Vec<u32>>,
    read: Vec<Vec<u32>>,
    raced: bool,
}

fn join(into: &mut [u32], other: &[u32]) {
    into.iter_mut().zip(other).for_each(|(mine, theirs)| *mine = (*mine).max(*theirs));
}

fn acquires(order: Ordering) -> bool {
    matches!(order, Acquire | AcqRel | SeqCst)
}

fn releases(order: Ordering) -> bool {
    matches!(order, Release | AcqRel | SeqCst)
}

impl Reference {
    fn new(test: &Test) -> Self {
        let cpus = test.programs.len();
        Self {
            at: vec![(0, None); cpus],
            raised: vec![false; cpus],
            memory: vec![0; WORDS],
            buffers: vec![Vec::new(); cpus],
            found: vec![0; test.ops()],
            clocks: (0..cpus).map(|cpu| (0..cpus).map(|of| u32::from(of == cpu)).collect()).collect(),
            released: vec![vec![0; cpus]; WORDS],
            written: vec![vec![0; cpus]; PIECES],
            read: vec![vec![0; cpus]; PIECES],
            raced: false,
        }
    }

    fn knows(&self, cpu: usize, accesses: &[u32]) -> bool {
        accesses.iter().zip(&self.clocks[cpu]).all(|(access, known)| access <= known)
    }

    fn publish(&mut self, word: usize, clock: Option<&[u32]>, continues: bool) {
        if !continues {
            self.released[word].fill(0);
        }
        if let Some(clock) = clock {
            join(&mut self.released[word], clock);
        }
    }

    fn flush(&mut self, cpu: usize) {
        let (word, value, clock) = self.buffers[cpu].remove(0);
        self.memory[word] = value;
        self.publish(word, Some(&clock), false);
    }

    /// The CPU's next operation, and its number.
    fn next(&self, test: &Test, cpu: usize) -> Option<(Op, usize)> {
        let (program, handler) = self.at[cpu];
        let (list, at) = match handler {
            Some(at) => (&test.handlers[cpu], at),
            None => (&test.programs[cpu], program),
        };
        list.get(at).map(|&op| (op, test.first(cpu, handler.is_some()) + at))
    }

    fn perform(&mut self, test: &Test, cpu: usize, tso: bool) -> bool {
        let Some((op, number)) = self.next(test, cpu) else { return false };
        let drains = matches!(op, Swap(..) | Store(_, _, SeqCst));
        if drains && !self.buffers[cpu].is_empty() {
            return false;
        }
        match op {
            Load(word, order) => {
                let own = self.buffers[cpu].iter().rev().find(|store| store.0 == word).map(|store| store.1);
                self.found[number] = own.unwrap_or(self.memory[word]);
                if acquires(order) && own.is_none() {
                    let released = self.released[word].clone();
                    join(&mut self.clocks[cpu], &released);
                }
            }
            Store(word, value, order) => {
                let clock = if releases(order) { self.clocks[cpu].clone() } else { vec![0; self.at.len()] };
                self.buffers[cpu].push((word, value, clock));
                self.clocks[cpu][cpu] += 1;
                if !tso || order == SeqCst {
                    self.flush(cpu);
                }
            }
            Swap(word, value, order) => {
                self.found[number] = core::mem::replace(&mut self.memory[word], value);
                if acquires(order) {
                    let released = self.released[word].clone();
                    join(&mut self.clocks[cpu], &released);
                }
                let clock = releases(order).then(|| self.clocks[cpu].clone());
                self.publish(word, clock.as_deref(), true);
                self.clocks[cpu][cpu] += 1;
            }
            Read(piece) => {
                self.raced |= !self.knows(cpu, &self.written[piece]);
                self.read[piece][cpu] = self.clocks[cpu][cpu];
            }
            Write(piece) => {
                self.raced |= !self.knows(cpu, &self.written[piece]) || !self.knows(cpu, &self.read[piece]);
                self.written[piece][cpu] = self.clocks[cpu][cpu];
            }
            Raise(target) => self.raised[target] = true,
        }
        match &mut self.at[cpu] {
            (_, Some(at)) | (at, None) => *at += 1,
        }
        if self.at[cpu].1 == Some(test.handlers[cpu].len()) {
            self.at[cpu].1 = None;
        }
        true
    }

    fn all(test: &Test, tso: bool) -> Seen {
        let mut seen = Seen { outcomes: BTreeSet::new(), race: false };
        let mut visited = BTreeSet::new();
        let mut left = vec![Self::new(test)];
        while let Some(state) = left.pop() {
            if state.raced {
                seen.race = true;
                continue;
            }
            if !visited.insert(state.clone()) {
                continue;
            }
            let before = left.len();
            for cpu in 0..state.at.len() {
                if state.raised[cpu] && state.at[cpu].1.is_none() {
                    let mut next = state.clone();
                    next.raised[cpu] = false;
                    next.at[cpu].1 = (!test.handlers[cpu].is_empty()).then_some(0);
                    left.push(next);
                }
                if !state.buffers[cpu].is_empty() {
                    let mut next = state.clone();
                    next.flush(cpu);
                    left.push(next);
                }
                let mut next = state.clone();
                if next.perform(test, cpu, tso) {
                    left.push(next);
                }
            }
            if left.len() == before {
                seen.outcomes.insert([state.found, state.memory].concat());
            }
        }
        seen
    }
}

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
                // SAFETY: there is one thread; whether CPUs race is what is tested.
                Read(piece) => {
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
    Plan { engine, limits, keep_going: true, ..Plan::new(setup) }
}

fn setup(memory: MemoryModel, reduce: bool) -> Setup {
    Setup { memory, reduce, ..Setup::new(Bounds::default()) }
}

fn explored(test: &Test, engine: Engine, setup: Setup) -> Seen {
    let outcomes = Arc::default();
    let exploration = explore(&protocol_of(test, &outcomes), &plan(engine, setup), &()).expect("a machine");
    assert!(exploration.is_complete(), "{engine} {test:?}: {:?}", exploration.incomplete);
    let law = exploration.found.map(|found| found.violation.law);
    assert!(law.is_none() || law.as_deref() == Some("race"), "{engine} {test:?}: {law:?}");
    let outcomes = outcomes.lock().expect("not poisoned").clone();
    Seen { outcomes, race: law.is_some() }
}

/// Both engines, with and without doing at once what is private, see what the reference sees.
fn agrees(test: &Test, memory: MemoryModel) -> Seen {
    let expected = Reference::all(test, memory == MemoryModel::Tso);
    for engine in [Engine::States, Engine::Dpor] {
        for reduce in [false, true] {
            let seen = explored(test, engine, setup(memory, reduce));
            let case = format!("{engine}, {memory:?}, reduce {reduce}: {test:?}");
            assert_eq!(seen.race, expected.race, "race: {case}");
            if !expected.race {
                let missing: Vec<_> = expected.outcomes.difference(&seen.outcomes).collect();
                let extra: Vec<_> = seen.outcomes.difference(&expected.outcomes).collect();
                assert!(missing.is_empty() && extra.is_empty(), "missing {missing:?}, too many {extra:?}: {case}");
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
fn litmus(name: &str, programs: &[&[Op]], found: &[(usize, u64)], words: &[(usize, u64)], sc: bool, tso: bool) {
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
    litmus(
        "n6",
        &[&[s(X, 1), l(X), l(Y)], &[s(Y, 2), s(X, 2)]],
        &[(1, 1), (2, 0)],
        &[(X, 1)],
        false,
        true,
    );
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
        (0..=self.below(most)).map(|_| self.op(cpus, plain, raises)).collect()
    }
}

fn at_random(seed: u64, count: usize, plain: bool, interrupts: bool, memory: MemoryModel) {
    let mut random = Random(seed);
    let mut races = 0;
    for _ in 0..count {
        let cpus = 2 + random.below(2);
        let most = if cpus == 2 { 4 } else { 3 };
        let programs: Vec<_> = (0..cpus).map(|_| random.ops(most, cpus, plain, interrupts)).collect();
        let handlers = (0..cpus).map(|_| if interrupts { random.ops(2, cpus, plain, false) } else { Vec::new() });
        let test = Test { handlers: handlers.collect(), programs };
        races += u32::from(agrees(&test, memory).race);
    }
    assert!(!plain || races > 0 && (races as usize) < count, "{races} of {count} race");
}

#[test]
fn programs_at_random_end_as_the_reference_says() {
    at_random(1, 60, false, false, MemoryModel::Sc);
    at_random(2, 60, false, false, MemoryModel::Tso);
}

#[test]
fn programs_at_random_are_interrupted_where_the_reference_says() {
    at_random(3, 60, false, true, MemoryModel::Sc);
}

#[test]
fn programs_at_random_are_interrupted_with_stores_in_their_buffers() {
    at_random(4, 40, false, true, MemoryModel::Tso);
}

#[test]
fn programs_at_random_race_where_the_reference_says() {
    at_random(5, 100, true, false, MemoryModel::Sc);
    at_random(6, 60, true, false, MemoryModel::Tso);
}

#[test]
fn programs_at_random_with_interrupts_race_where_the_reference_says() {
    at_random(7, 100, true, true, MemoryModel::Sc);
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
        let protocol = Protocol::new("early", "an NMI handler publishes what its program writes", 2, move || {
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
                wait::<SimMachine>(&[shared.words[Y].equals(!0, 1)], Deadline::at(smpcall_machine::Instant::from_nanos(1)));
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
            assert_eq!(law(&nested(false), engine, reduce).as_deref(), Some("count"), "{engine}, reduce {reduce}");
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
    for bounds in [bounds(1, 0, 1), bounds(1, 1, 0), bounds(0, 1, 1), bounds(1, 1, 1), bounds(1, 2, 1)] {
        for waits in [false, true] {
            let mut protocol = Protocol::new("several", "a wait with a deadline, beside a step", 2, move || {
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
                    let explored = explored.unwrap_or_else(|_| panic!("panicked: {case}"));
                    assert!(explored.is_complete() && explored.found.is_none(), "{case}: {explored:?}");
                }
            }
        }
    }
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
                shared.words[cpu].store(2, Release);
                shared.words[cpu].store(3, Release);
            });
        }
        scenario.cpu(move || {
            for _ in 0..2 {
                for cpu in 0..2 {
                    if shared.words[cpu].load(Acquire) >= 2 {
                        shared.run(&[Read(cpu)], 0);
                    }
                    program::forget_but(cpu as u64);
                }
            }
        });
        scenario
    });
    for reduce in [false, true] {
        let states = |jobs| {
            let plan = Plan { jobs, ..plan(Engine::States, Setup { reduce, ..Setup::new(Bounds::default()) }) };
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
