//! Every schedule of the mailbox on three CPUs: two senders, and an owner whose handler takes the letters.

use smpcall_machine::{Cpu, Deadline, Ipi, Machine, wait};
use smpcall_simulator::explorer::{
    Engine, MemoryModel, Note, Plan, Protocol, Scenario, Setup, Violation, explore,
};
use smpcall_simulator::{RING_VECTOR, SimMachine, SimMemory};

use own_protocol::OneLetter;

type Mailbox = OneLetter<SimMemory>;

/// Whether the machine is what it should be when all programs have ended: each letter was taken once.
fn check(taken: &[Note; 2]) -> Result<(), Violation> {
    match [taken[0].get(), taken[1].get()] {
        [1, 1] => Ok(()),
        other => Err(Violation::new("letters", format!("taken {other:?} times"))),
    }
}

/// Two senders, and an owner that takes letters in this way.
fn protocol(name: &str, take: fn(&Mailbox) -> Option<u64>, rings: bool) -> Protocol {
    Protocol::new(name, "two senders and a mailbox for one letter", 3, move || {
        let mut scenario = Scenario::new();
        // What lives longer than an execution is shared: the explorer puts it back.
        let mailbox = scenario.share(Mailbox::new());
        let taken = scenario.share([const { Note::new(0) }; 2]);
        scenario.name(mailbox.state().location(), "state");

        for sender in [0, 1] {
            scenario.cpu(move || {
                while !mailbox.put(sender) {
                    // Never a loop that spins: a wait is over when its condition holds, and the explorer knows it.
                    wait::<SimMachine>(&[mailbox.state().equals(!0, 0)], Deadline::NEVER);
                }
                if rings {
                    SimMachine::send(Cpu::new(2), Ipi::Ring).expect("CPU 2 has an address");
                }
            });
        }
        // The owner does nothing by itself; a CPU without a program only takes interrupts.
        scenario.handler(RING_VECTOR, move |mut frame| {
            frame.end_of_interrupt();
            if let Some(letter) = take(mailbox) {
                taken[letter as usize].add(1);
            }
        });
        scenario.check(|| check(taken));
        scenario
    })
}

/// Both memory models, with data races looked for.
fn plans(protocol: &Protocol) -> [Plan; 2] {
    let setup = Setup::new(protocol.bounds);
    [Plan::new(Setup { memory: MemoryModel::Tso, ..setup.clone() }), Plan::new(setup)]
}

#[test]
fn every_letter_is_taken_once_on_every_schedule() {
    let protocol = protocol("letters", Mailbox::take, true);
    for plan in plans(&protocol) {
        let by_states = explore(&protocol, &plan, &()).expect("such a machine");
        assert_eq!(by_states.found, None);
        assert!(by_states.is_complete() && by_states.states > 100, "{} states", by_states.states);
        // The other engine agrees.
        let by_classes =
            explore(&protocol, &Plan { engine: Engine::Dpor, ..plan }, &()).expect("such a machine");
        assert_eq!(by_classes.found, None);
        assert_eq!(by_classes.endings, by_states.endings);
    }
}

#[test]
fn a_letter_that_is_read_too_late_is_a_data_race() {
    let protocol = protocol("letters-late", Mailbox::take_too_late, true);
    for plan in plans(&protocol) {
        let found =
            explore(&protocol, &plan, &()).expect("such a machine").found.expect("the mistake is found");
        assert_eq!(found.violation.law, "race", "{}", found.violation);
    }
}

#[test]
fn a_sender_that_does_not_ring_makes_another_one_wait_for_ever() {
    let protocol = protocol("letters-unrung", Mailbox::take, false);
    for plan in plans(&protocol) {
        let found =
            explore(&protocol, &plan, &()).expect("such a machine").found.expect("the mistake is found");
        assert_eq!(found.violation.law, "hang", "{}", found.violation);
        // The decisions that lead there, from the start.
        assert!(found.schedule.len() < 20, "{:?}", found.schedule);
    }
}
