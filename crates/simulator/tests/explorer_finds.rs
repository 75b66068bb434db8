//! The explorer finds what is broken: every protocol that is known for a mistake, by its law and a short schedule. And
//! it misses no ending that it reaches when nothing is reduced.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use core::time::Duration;

use smpcall_machine::{Cpu, Deadline, InterruptsOff, Ipi, Machine, Woken, Word, wait};
use smpcall_simulator::explorer::choice::Action;
use smpcall_simulator::explorer::report::{Exploration, Found, Incomplete, Limits};
use smpcall_simulator::explorer::{
    Bounds, Engine, MemoryModel, Note, Plan, Protocol, Scenario, Setup, Violation, explore, protocols,
};
use smpcall_simulator::{RING_VECTOR, SimMachine, SimMemory, program};

/// What is broken: its law, how many decisions the schedule that is found has at most, and where it is found.
const BROKEN: [(&str, &str, usize, MemoryModel); 30] = [
    ("wedge-borrowed", "hang", 300, MemoryModel::Sc),
    ("icr-nmi-torn", "icr", 12, MemoryModel::Sc),
    ("icr-handler-torn", "icr", 12, MemoryModel::Sc),
    ("x2apic-no-fence", "fence", 8, MemoryModel::Tso),
    ("eoi-stray", "eoi", 16, MemoryModel::Sc),
    ("eoi-stray-nested", "eoi", 14, MemoryModel::Sc),
    ("mask-handler-torn", "mask", 12, MemoryModel::Sc),
    ("halt-late", "hang", 10, MemoryModel::Sc),
    ("then-lost-call", "hang", 10, MemoryModel::Sc),
    ("then-online-mask", "hang", 10, MemoryModel::Sc),
    ("then-offline-queue", "hang", 20, MemoryModel::Sc),
    ("then-stuck-icr", "hang", 8, MemoryModel::Sc),
    ("then-nmi-shorthand", "L7", 10, MemoryModel::Sc),
    ("then-pending-ipi", "L8", 14, MemoryModel::Sc),
    ("then-in-service", "hang", 6, MemoryModel::Sc),
    ("hand-over-hasty", "L8", 12, MemoryModel::Sc),
    ("hand-over-stale-kept", "hang", 12, MemoryModel::Sc),
    ("sketch-stale-mark", "L1", 26, MemoryModel::Sc),
    ("sketch-split-claim", "L1", 14, MemoryModel::Sc),
    ("sketch-summary", "hang", 10, MemoryModel::Sc),
    ("sketch-mark-and-ring", "hang", 8, MemoryModel::Sc),
    ("sketch-refusal", "L1", 12, MemoryModel::Sc),
    ("sketch-early-look", "hang", 8, MemoryModel::Sc),
    ("sketch-late-ring", "L5", 14, MemoryModel::Sc),
    ("sketch-broadcast", "L1", 34, MemoryModel::Sc),
    ("sketch-merged-post", "L1", 16, MemoryModel::Sc),
    ("sketch-late-idle", "L1", 26, MemoryModel::Sc),
    ("sketch-without-polling", "hang", 4, MemoryModel::Sc),
    ("sketch-unordered", "race", 4, MemoryModel::Sc),
    ("bug", "hang", 16, MemoryModel::Sc),
];

fn setup(protocol: &Protocol, memory: MemoryModel) -> Setup {
    Setup { memory, ..Setup::new(protocol.bounds) }
}

fn explored(protocol: &Protocol, plan: &Plan) -> Exploration {
    explore(protocol, plan, &()).expect("there is such a machine")
}

fn find(protocol: &Protocol, plan: &Plan) -> Found {
    let exploration = explored(protocol, plan);
    assert_eq!(exploration.incomplete, Some(Incomplete::Violation), "{}", protocol.name);
    exploration.found.expect("the mistake is found")
}

#[test]
fn every_broken_protocol_is_found_by_both_engines() {
    for (name, law, longest, memory) in BROKEN {
        let protocol = protocols::by_name(name).expect("there is such a protocol");
        for engine in [Engine::States, Engine::Dpor] {
            let found = find(&protocol, &Plan { engine, ..Plan::new(setup(&protocol, memory)) });
            let decisions = found.schedule.len();
            println!("{name}, {engine}: {}, after {decisions} decisions", found.violation);
            assert_eq!(found.violation.law, law, "{name}, {engine}: {}", found.violation);
            assert!((1..=longest).contains(&decisions), "{name}, {engine}: {decisions} decisions");
        }
    }
}

#[test]
fn every_broken_protocol_is_listed_here_and_names_its_twin() {
    let all = protocols::all();
    let holds = |name: &str| all.iter().any(|protocol| protocol.name == name && !protocol.broken);
    for protocol in all.iter().filter(|protocol| protocol.broken) {
        assert!(BROKEN.iter().any(|(name, ..)| *name == protocol.name), "{}", protocol.name);
        let mended = holds(&format!("{}-mended", protocol.name));
        let named = protocol.about.split_once("(see ").or_else(|| protocol.about.split_once("; see "));
        let named = named.and_then(|(_, rest)| rest.strip_suffix(')')).is_some_and(holds);
        assert!(mended || named || protocol.name == "bug", "{}: what would hold?", protocol.name);
    }
}

/// What is missing under sequential consistency is only ever missing: the store that is late.
#[test]
fn a_missing_fence_shows_under_tso_only() {
    let protocol = protocols::by_name("x2apic-no-fence").expect("there is such a protocol");
    let sequential = explored(&protocol, &Plan::new(setup(&protocol, MemoryModel::Sc)));
    assert!(sequential.is_complete() && sequential.found.is_none());
}

/// A protocol of these tests, without mailboxes.
fn protocol(
    name: &str,
    cpus: usize,
    bounds: Bounds,
    build: impl Fn(&mut Scenario) + Send + Sync + 'static,
) -> Protocol {
    let mut protocol = Protocol::new(name, "a test's", cpus, move || {
        let mut scenario = Scenario::new();
        build(&mut scenario);
        scenario
    });
    protocol.bounds = bounds;
    protocol
}

const NOTHING: Bounds = Bounds { drops: 0, expiries: 0, ticks: 0, wedges: 0 };

type Words = [Word<SimMemory>; 4];

fn words(scenario: &mut Scenario) -> &'static Words {
    scenario.share([const { Word::new(0) }; 4])
}

fn await_word(word: &Word<SimMemory>, value: u64) {
    wait::<SimMachine>(&[word.equals(!0, value)], Deadline::NEVER);
}

/// One CPU leaves work and rings; the other one halts if there is none.
fn sleeper(scenario: &mut Scenario) {
    let words = words(scenario);
    scenario.cpu(move || {
        words[0].store(1, Release);
        SimMachine::send(Cpu::new(1), Ipi::Ring).expect("a ring");
    });
    scenario.cpu(move || {
        let off = InterruptsOff::<SimMachine>::new();
        if words[0].load(Acquire) == 0 {
            program::halt();
        }
        drop(off);
    });
    scenario.handler(RING_VECTOR, |mut frame| frame.end_of_interrupt());
}

#[test]
fn a_ring_that_may_be_lost_and_is_not_repeated_hangs() {
    let kept = protocol("sleeper", 2, NOTHING, sleeper);
    assert_eq!(explored(&kept, &Plan::new(setup(&kept, MemoryModel::Sc))).found, None);
    let lost = protocol("sleeper", 2, Bounds { drops: 1, ..NOTHING }, sleeper);
    let found = find(&lost, &Plan::new(setup(&lost, MemoryModel::Sc)));
    assert_eq!(found.violation.law, "hang");
    assert!(found.schedule.iter().any(|choice| choice.cpu == 0 && choice.action == Action::Lose(1)));
}

/// A ring that is forgotten, and not lost, is found even if somebody looks after a while: that is what `prompt` is for.
#[test]
fn a_forgotten_ring_that_only_the_deadline_makes_up_for_is_found() {
    let mut forgotten = protocol("forgotten", 2, Bounds { drops: 1, ..NOTHING }, |scenario| {
        let words = words(scenario);
        scenario.cpu(|| words[0].store(1, Release));
        scenario.cpu(|| {
            // Looks at another word, and at this one only when its time is up.
            let deadline = Deadline::within::<SimMachine>(Duration::from_micros(10));
            let woken = wait::<SimMachine>(&[words[1].equals(!0, 1)], deadline);
            assert_eq!(woken, Woken::Deadline);
            await_word(&words[0], 1);
        });
    });
    let plan = Plan::new(setup(&forgotten, MemoryModel::Sc));
    assert_eq!(explored(&forgotten, &plan).found, None, "time heals it");
    forgotten.prompt = true;
    let found = find(&forgotten, &plan);
    assert_eq!(found.violation.law, "L2");
    assert!(found.violation.what.contains("until time passes"), "{}", found.violation);
}

#[test]
fn only_what_the_bounds_permit_is_tried() {
    let states = |name: &str, bounds| {
        let protocol = protocols::by_name(name).expect("there is such a protocol");
        let exploration = explored(&protocol, &Plan::new(Setup::new(bounds)));
        assert!(exploration.is_complete() && exploration.found.is_none(), "{name}");
        exploration.states
    };
    let nothing = states("wedge", NOTHING);
    for bounds in [
        Bounds { drops: 1, ..NOTHING },
        Bounds { expiries: 1, ..NOTHING },
        Bounds { ticks: 1, ..NOTHING },
        Bounds { wedges: 1, ..NOTHING },
    ] {
        assert!(states("wedge", bounds) > nothing, "{bounds:?}");
    }
    // Without a lost interrupt, the algorithm of the past holds.
    states("then-lost-call", NOTHING);
}

#[test]
fn an_exploration_that_is_cut_short_says_so() {
    let protocol = protocols::by_name("fix").expect("there is such a protocol");
    let limits = Limits { states: Some(20), ..Limits::default() };
    let cut = explored(&protocol, &Plan { limits, ..Plan::new(setup(&protocol, MemoryModel::Sc)) });
    assert_eq!((cut.incomplete, cut.found), (Some(Incomplete::Limit), None));
    assert!((20..500).contains(&cut.states), "{} states", cut.states);
}

/// A panic of a program is a violation, with its words.
#[test]
fn a_panic_on_some_schedule_is_found() {
    let panics = protocol("panics", 2, NOTHING, |scenario| {
        let words = words(scenario);
        scenario.cpu(|| words[0].store(1, Release));
        scenario.cpu(|| assert!(words[0].load(Acquire) == 0, "the other CPU was faster"));
    });
    let found = find(&panics, &Plan::new(setup(&panics, MemoryModel::Sc)));
    assert_eq!(found.violation.law, "panic");
    assert!(found.violation.what.contains("the other CPU was faster"), "{}", found.violation);
}

/// All ends of these programs, by what their check is shown: every engine, with and without reduction.
fn every_exploration_sees(protocol: &Protocol, endings: usize) {
    for memory in [MemoryModel::Sc, MemoryModel::Tso] {
        let plan = Plan::new(setup(protocol, memory));
        let all = [
            plan.clone(),
            Plan { engine: Engine::Dpor, ..plan.clone() },
            Plan::new(Setup { reduce: false, believe_hints: false, ..plan.setup.clone() }),
            Plan {
                engine: Engine::Dpor,
                setup: Setup { reduce: false, ..plan.setup.clone() },
                ..plan.clone()
            },
            Plan { jobs: 2, ..plan },
        ];
        let all = all.map(|plan| explored(protocol, &plan));
        for exploration in &all {
            assert!(exploration.is_complete() && exploration.found.is_none());
            assert_eq!(exploration.endings, all[0].endings, "{memory:?}");
        }
        assert_eq!(all[0].endings.len(), endings, "{memory:?}");
    }
}

#[test]
fn no_exploration_misses_an_ending_of_racing_words() {
    let racing = protocol("racing", 2, NOTHING, |scenario| {
        let words = words(scenario);
        let notes = scenario.share([const { Note::new(0) }; 2]);
        for me in [0, 1] {
            scenario.cpu(move || {
                let seen = words[1 - me].load(Acquire);
                words[me].store(1 + seen, Release);
                let sum = words[2].fetch_add(1 + me as u64, AcqRel);
                let last = words[1 - me].swap(4, AcqRel);
                notes[me].set(seen << 6 | sum << 3 | last);
            });
        }
    });
    every_exploration_sees(&racing, 10);
}

/// CPU 1 notes before which of its operations the ring was taken, and with what it read.
#[test]
fn no_exploration_misses_an_ending_of_an_interrupted_program() {
    let interrupted = protocol("interrupted", 2, NOTHING, |scenario| {
        let words = words(scenario);
        let taken = scenario.share(Note::new(0));
        let notes = scenario.share([const { Note::new(0) }; 2]);
        scenario.cpu(move || {
            words[0].fetch_add(1, AcqRel);
            SimMachine::send(Cpu::new(1), Ipi::Ring).expect("a ring");
            words[0].fetch_add(1, AcqRel);
        });
        scenario.cpu(move || {
            for note in notes {
                let seen = words[0].load(Acquire);
                note.set(seen << 4 | taken.get());
            }
        });
        scenario.handler(RING_VECTOR, move |mut frame| {
            taken.set(1);
            frame.end_of_interrupt();
        });
    });
    every_exploration_sees(&interrupted, 14);
}

/// A note is part of the state, its upper half too.
#[test]
fn states_that_differ_only_in_a_note_are_told_apart() {
    let order = protocol("order", 2, NOTHING, |scenario| {
        let words = words(scenario);
        let first = scenario.share(Note::new(0));
        // Which of the two steps comes first shows in the note alone.
        for who in [1_u64, 2] {
            scenario.cpu(move || {
                words[0].store(1, Release);
                if first.get() == 0 {
                    first.set(who << 56);
                }
                program::forget_but(0);
                words[1].store(1, Release);
            });
        }
        scenario.check(|| match first.get() >> 56 {
            2 => Err(Violation::new("order", "CPU 1 was first")),
            _ => Ok(()),
        });
    });
    assert_eq!(find(&order, &Plan::new(setup(&order, MemoryModel::Sc))).violation.law, "order");
}
