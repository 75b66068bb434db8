//! What the mailboxes cost in memory: bits per ordered pair of CPUs.

#[path = "support/idle.rs"]
mod idle;

use idle::Idle;
use smpcall::{
    Cpu, EventSlot, Kernel, LEVELS, Mailbox, Mailboxes, Storage, leaf_words, mailboxes, target_words,
};

// SAFETY: no code runs on this machine: it is measured, not used.
unsafe impl Kernel for Idle {
    fn mailboxes() -> &'static Mailboxes<Self> {
        &SMALL
    }
}

mailboxes! { static SMALL: Idle = 64 CPUs, 128 events }
mailboxes! { static TINY: Idle = 1 CPUs, 0 events }

const MIB: usize = 1 << 20;

type Largest = Storage<Idle, 4096, { leaf_words(4096) }, { target_words(4096) }, 128>;

#[test]
fn four_thousand_cpus_need_less_than_64_mib_event_rings_included() {
    let needed = Mailboxes::<Idle>::bytes_needed(4096, 128);
    assert!(needed < 64 * MIB, "{needed} bytes");
    assert!(size_of::<Largest>() < 64 * MIB, "{} bytes", size_of::<Largest>());
}

#[test]
fn what_is_said_to_be_needed_is_what_the_static_takes() {
    fn padding<const CPUS: usize, const LEAVES: usize, const SETS: usize, const EVENTS: usize>() -> usize {
        let storage = size_of::<Storage<Idle, CPUS, LEAVES, SETS, EVENTS>>();
        storage - Mailboxes::<Idle>::bytes_needed(CPUS, EVENTS)
    }
    // Three parts are aligned to a cache line of 64 bytes each.
    assert!(padding::<4096, { leaf_words(4096) }, { target_words(4096) }, 128>() < 3 * 64);
    assert!(padding::<49, { leaf_words(49) }, { target_words(49) }, 0>() < 3 * 64);
    assert!(padding::<3, { leaf_words(3) }, { target_words(3) }, 1>() < 3 * 64);
}

/// Twice the CPUs: what grows by more than twice is what a pair costs.
#[test]
fn a_pair_of_cpus_costs_bits() {
    for cpus in [512, 1024, 2048] {
        let [one, two] = [cpus, 2 * cpus].map(|cpus| Mailboxes::<Idle>::bytes_needed(cpus, 128));
        let pairs = 4 * cpus * cpus - 2 * (cpus * cpus);
        let bits = 8 * (two - 2 * one);
        // A leaf bit, and for each level two bits of its progress and two of its outcome.
        assert_eq!(bits, pairs * (1 + 4 * LEVELS));
    }
}

#[test]
fn up_to_48_cpus_there_are_no_leaf_words() {
    assert_eq!((leaf_words(1), leaf_words(48)), (0, 0));
    // From there on whole cache lines, so that no two targets share one.
    assert_eq!((leaf_words(49), leaf_words(512), leaf_words(513)), (8, 8, 16));
    assert_eq!((target_words(1), target_words(32), target_words(33), target_words(64)), (1, 1, 2, 2));
    let per_cpu = size_of::<Mailbox<Idle>>() + 2 * 2 * LEVELS * size_of::<u64>();
    assert_eq!(Mailboxes::<Idle>::bytes_needed(48, 0), 48 * per_cpu);
}

#[test]
fn a_static_has_the_machine_that_was_asked_for() {
    assert_eq!((SMALL.cpu_count(), TINY.cpu_count()), (64, 1));
    assert_eq!(SMALL.cpus().map(Cpu::number).collect::<Vec<_>>(), (0..64).collect::<Vec<_>>());
    assert!(SMALL.get(Cpu::new(63)).is_some() && SMALL.get(Cpu::new(64)).is_none());
    for cpu in SMALL.cpus() {
        assert_eq!(SMALL.event_ring(cpu).events().count(), 0);
    }
    assert_eq!(TINY.event_ring(Cpu::new(0)).written(), 0);
}

#[test]
fn memory_that_a_kernel_hands_in_serves_as_well() {
    const CPUS: usize = 100;
    let mailboxes: &'static [_] = Box::leak((0..CPUS).map(|_| Mailbox::NEW).collect());
    let words: &'static [_] = Box::leak(
        (0..Mailboxes::<Idle>::words_needed(CPUS)).map(|_| smpcall::machine::Word::new(0)).collect(),
    );
    let events: &'static [EventSlot] = Box::leak((0..4 * CPUS).map(|_| EventSlot::NEW).collect());
    assert_eq!(Mailboxes::<Idle>::new(mailboxes, words, events).cpu_count(), CPUS);

    let refused = |words: &'static [_], events: &'static [EventSlot]| {
        let new =
            std::panic::AssertUnwindSafe(|| Mailboxes::<Idle>::new(mailboxes, words, events).cpu_count());
        std::panic::catch_unwind(new).is_err()
    };
    assert!(refused(&words[1..], events), "a word is missing");
    assert!(refused(words, &events[1..]), "not the same number of events for each CPU");
    assert!(refused(words, &events[..3 * CPUS]), "not a power of two");
    assert!(!refused(words, &events[..2 * CPUS]) && !refused(words, &[]));
}

/// What a location is called, in each part of the memory.
#[test]
fn every_word_of_the_mailboxes_has_a_name_of_its_own() {
    for cpus in [3, 49, 64] {
        let mailboxes: &'static [_] = Box::leak((0..cpus).map(|_| Mailbox::NEW).collect());
        let words: &'static [smpcall::machine::Word<smpcall::machine::Hardware>] = Box::leak(
            (0..Mailboxes::<Idle>::words_needed(cpus)).map(|_| smpcall::machine::Word::new(0)).collect(),
        );
        let boxes = Mailboxes::<Idle>::new(mailboxes, words, &[]);
        let mut names: Vec<String> = words
            .iter()
            .map(|word| boxes.name_of(word.location()).expect("it is part of the mailboxes").to_string())
            .collect();
        if cpus > 48 {
            assert_eq!(names[0], "leaf[0].0");
            assert_eq!(names[leaf_words(cpus)], "leaf[1].0");
        }
        names.sort();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all, "{cpus} CPUs: two words with one name");
        assert_eq!(boxes.name_of(core::ptr::null()), None);
    }
}
