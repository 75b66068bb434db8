//! Laws L1 to L4 and L6 (and of L5 what concerns calls) on the shipping code: every schedule of small machines, within
//! bounds that each test names. Larger bounds take minutes: the example `explore` goes there.
//!
//! Each test also names how many states it must see at least, so that an exploration of nothing fails: about half
//! of what there were when the test was written.

use smpcall_simulator::explorer::{Bounds, explore, protocols};

/// Explores all of a protocol, to the last state, and holds it to its laws.
fn holds(name: &str, drops: u32, expiries: u32, at_least: usize) {
    let protocol = protocols::by_name(name).expect("there is such a protocol");
    let bounds = Bounds { drops, expiries, ..Bounds::default() };
    let exploration = explore(protocol, bounds).expect("a machine");
    if let Some(violation) = exploration.violation {
        let schedule: Vec<String> = violation.schedule.iter().map(ToString::to_string).collect();
        panic!("{name}: {}\n  {}\n{}", violation.what, violation.operations.join("\n  "), schedule.join(" "));
    }
    assert!(exploration.complete, "{name}: given up after {} states", exploration.states);
    assert!(exploration.states >= at_least, "{name}: only {} states", exploration.states);
    assert!(exploration.complete_executions > 1, "{name}: hardly anything came to an end");
}

/// The name of each test, its protocol, lost interrupts, waits ended early, and states at least.
macro_rules! laws {
    ($($test:ident: $protocol:literal, $drops:literal lost, $expiries:literal expired, $states:literal states;)+) => {
        $(#[test] fn $test() { holds($protocol, $drops, $expiries, $states); })+

        #[test]
        fn every_protocol_is_explored() {
            let explored = [$($protocol),+];
            for protocol in protocols::ALL {
                assert!(explored.contains(&protocol.name), "{} is explored by no test", protocol.name);
            }
        }
    };
}

laws! {
    a_call_survives_a_lost_ring: "call", 1 lost, 1 expired, 350 states;
    a_call_survives_two_lost_rings_and_is_run_once_if_they_were_late: "call", 2 lost, 2 expired, 2_500 states;
    a_polling_caller_survives_a_lost_ring: "call-polling", 1 lost, 1 expired, 400 states;
    a_deadline_against_a_claim_ends_in_one_of_two_ways: "deadline", 1 lost, 1 expired, 150 states;
    a_deadline_with_two_expiries: "deadline", 2 lost, 2 expired, 250 states;
    a_static_call_may_be_left_when_claimed: "deadline-static", 1 lost, 1 expired, 1_300 states;
    a_static_call_may_be_left_twice: "deadline-static", 2 lost, 2 expired, 9_000 states;
    a_reused_slot_runs_nothing_on_its_former_target: "reuse", 1 lost, 1 expired, 2_200 states;
    a_reused_slot_of_a_static_call_neither: "static-reuse", 1 lost, 1 expired, 2_800 states;
    mutual_calls_end: "mutual", 1 lost, 1 expired, 9_000 states;
    mutual_calls_end_after_two_lost_rings: "mutual", 2 lost, 1 expired, 12_000 states;
    mutual_calls_end_with_interrupts_off: "mutual-polling", 1 lost, 1 expired, 33_000 states;
    mutual_calls_end_with_interrupts_off_on_one_side: "mutual-mixed", 1 lost, 1 expired, 25_000 states;
    mutual_calls_with_deadlines_end: "mutual-deadline", 1 lost, 1 expired, 24_000 states;
    two_callers_may_lose_the_only_ring: "two-callers", 1 lost, 1 expired, 24_000 states;
    two_callers_with_deadlines_are_both_told: "callers-deadline", 1 lost, 1 expired, 16_000 states;
    a_ring_of_calls_with_interrupts_off_ends_nothing_lost_and_nothing_expired: "cycle", 0 lost, 0 expired, 340_000 states;
    a_closure_that_calls_back_ends: "nested", 1 lost, 1 expired, 2_700 states;
    a_call_to_two_runs_once_on_each: "many", 1 lost, 1 expired, 23_000 states;
    a_call_to_two_with_a_deadline_is_told_for_each: "many-deadline", 1 lost, 1 expired, 24_000 states;
    a_call_to_two_that_crosses_another_ends_one_lost: "many-crossing", 1 lost, 0 expired, 14_000 states;
    crossing_calls_to_many_end_with_interrupts_off: "many-mutual", 1 lost, 1 expired, 30_000 states;
    a_post_is_run_once_for_each_queueing: "post", 1 lost, 1 expired, 1_100 states;
    a_post_from_a_handler_is_run: "post-handler", 1 lost, 1 expired, 3_600 states;
    a_call_to_a_closing_cpu_is_run_or_refused: "close", 1 lost, 1 expired, 1_200 states;
    a_call_to_a_closing_cpu_after_two_lost_rings: "close", 2 lost, 2 expired, 4_500 states;
    a_stale_mark_in_a_closing_mailbox_runs_the_next_call_or_none: "close-stale", 1 lost, 1 expired, 6_500 states;
    two_posts_to_a_closing_cpu_are_run_or_refused: "close-posts", 1 lost, 1 expired, 12_000 states;
    a_call_with_a_deadline_to_a_closing_cpu_is_told: "close-deadline", 1 lost, 1 expired, 1_000 states;
    a_polling_call_to_a_closing_cpu_is_run_or_refused: "close-polling", 1 lost, 1 expired, 1_400 states;
    a_call_to_two_of_which_one_closes_one_lost: "close-many", 1 lost, 0 expired, 4_000 states;
    a_post_to_a_closing_cpu_is_run_or_refused: "close-post", 1 lost, 1 expired, 140 states;
    a_call_to_a_cpu_that_comes_back_is_run_or_refused: "close-open", 1 lost, 1 expired, 2_300 states;
    a_post_to_a_cpu_that_comes_back_is_run_or_refused: "close-open-post", 1 lost, 1 expired, 300 states;
    a_cpu_that_stops_polling_leaves_no_call_behind: "poll-until", 1 lost, 1 expired, 1_700 states;
}
