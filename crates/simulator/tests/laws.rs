//! The laws on the code that ships: every schedule of small machines, under sequential consistency and x86-TSO, data
//! races included, within bounds that each test names and prints. Larger bounds take minutes: the command and the
//! example `explore` go there.
//!
//! Each test also names how many states it must see at least, so that an exploration of nothing fails: about half
//! of what there were under sequential consistency when the test was written.

use smpcall_local_apic::Routing;
use smpcall_simulator::explorer::report::{Exploration, Incomplete, Limits};
use smpcall_simulator::explorer::{Bounds, Engine, MemoryModel, Plan, Protocol, Setup, explore, protocols};

fn by_name(name: &str) -> Protocol {
    protocols::by_name(name).expect("there is such a protocol")
}

/// Explores all of a protocol, to the last state, and holds it to its laws.
fn holds(protocol: &Protocol, plan: &Plan) -> Exploration {
    let exploration = explore(protocol, plan, &()).expect("there is such a machine");
    let Setup { bounds, memory, .. } = plan.setup;
    let name = &protocol.name;
    println!(
        "{name}, {memory:?}, {bounds:?}, {}: {} states, {} classes, {:.1?}",
        plan.engine, exploration.states, exploration.classes, exploration.elapsed
    );
    if let Some(found) = exploration.found {
        let schedule: Vec<String> = found.schedule.iter().map(ToString::to_string).collect();
        panic!("{name}, {memory:?}, {bounds:?}: {}\n{}", found.violation, schedule.join(" "));
    }
    assert_eq!(exploration.incomplete, None, "{name}: given up after {} states", exploration.states);
    assert!(!exploration.endings.is_empty(), "{name}: nothing came to an end");
    exploration
}

fn law(name: &str, bounds: Bounds, at_least: u64) {
    let protocol = by_name(name);
    let sequential = holds(&protocol, &Plan::new(Setup::new(bounds)));
    assert!(sequential.states >= at_least, "{name}: only {} states", sequential.states);
    let buffered = Setup { memory: MemoryModel::Tso, ..Setup::new(bounds) };
    let buffered = holds(&protocol, &Plan::new(buffered));
    // Every sequentially consistent execution is one of TSO as well.
    assert!(buffered.states >= sequential.states, "{name}: store buffers take states away");
    if protocol.routing == Routing::X2ApicPhysical && protocol.kernel.is_some() {
        // What a CPU writes after a command is named by what it has learned, and with store buffers that is also of the
        // fence before the command: the same endings have other names.
        let kept = buffered.endings.len() >= sequential.endings.len();
        assert!(kept, "{name}: store buffers take endings away");
        return;
    }
    assert!(buffered.endings.is_superset(&sequential.endings), "{name}: store buffers take endings away");
}

const fn bounds(drops: u32, expiries: u32) -> Bounds {
    Bounds { drops, expiries, ticks: 0, wedges: 0 }
}

/// The bounds that the protocol comes with.
fn own(name: &str) -> Bounds {
    by_name(name).bounds
}

/// What takes longer than a test may: `.ci/reach` explores it under sequential consistency, within bounds that it names, to
/// the last state except for `three-by-two-polling`; here its beginning, in both memory models.
const LARGE: [&str; 11] = [
    "cycle",
    "many-callers",
    "three-by-two",
    "three-by-two-polling",
    "rendezvous-call",
    "rendezvous-early",
    "rendezvous-call-polling",
    "down-call",
    "down-post",
    "dead-up",
    "dead-post-three",
];

/// How many states of it.
const BEGINNING: u64 = 20_000;

#[test]
fn the_beginning_of_what_is_large_holds() {
    for name in LARGE {
        let protocol = by_name(name);
        for setup in setups(name) {
            let limits = Limits { states: Some(BEGINNING), ..Limits::default() };
            let plan = Plan { limits, ..Plan::new(setup) };
            let exploration = explore(&protocol, &plan, &()).expect("there is such a machine");
            assert_eq!(exploration.found, None, "{name}");
            assert_eq!(exploration.incomplete, Some(Incomplete::Limit), "{name} is not large");
        }
    }
}

/// The name of each test, its protocol, its bounds, and states at least.
macro_rules! laws {
    ($($test:ident: $protocol:literal, $bounds:expr, $states:literal states;)+) => {
        $(#[test] fn $test() { law($protocol, $bounds, $states); })+

        #[test]
        fn every_protocol_is_explored() {
            let explored = [$($protocol),+];
            for protocol in protocols::all() {
                let name = protocol.name.as_str();
                let found = explored.contains(&name) || LARGE.contains(&name);
                // Those that do not hold are in the tests of what the explorer finds.
                assert_eq!(found, !protocol.broken, "{}", protocol.name);
            }
        }
    };
}

laws! {
    a_call_survives_a_lost_ring: "call", own("call"), 150 states;
    a_call_survives_two_lost_rings_and_is_run_once_if_they_were_late: "call", bounds(2, 2), 450 states;
    a_polling_caller_survives_a_lost_ring: "call-polling", own("call-polling"), 120 states;
    a_deadline_against_a_claim_ends_in_one_of_two_ways: "deadline", own("deadline"), 71 states;
    a_deadline_with_two_expiries: "deadline", bounds(2, 2), 90 states;
    a_static_call_may_be_left_when_claimed: "deadline-static", own("deadline-static"), 1_000 states;
    a_reused_slot_runs_nothing_on_its_former_target: "reuse", own("reuse"), 3_000 states;
    a_reused_slot_of_a_static_call_neither: "static-reuse", own("static-reuse"), 4_100 states;
    two_calls_are_run_in_order: "twice", own("twice"), 860 states;
    mutual_calls_end: "mutual", own("mutual"), 14_000 states;
    mutual_calls_end_with_interrupts_off: "mutual-polling", own("mutual-polling"), 37_000 states;
    mutual_calls_end_with_interrupts_off_on_one_side: "mutual-mixed", own("mutual-mixed"), 31_000 states;
    mutual_calls_with_deadlines_end: "mutual-deadline", own("mutual-deadline"), 20_000 states;
    two_callers_may_lose_the_only_ring: "two-callers", own("two-callers"), 10_000 states;
    two_callers_with_deadlines_are_both_told: "callers-deadline", own("callers-deadline"), 6_500 states;
    two_callers_with_interrupts_off_may_lose_the_only_ring: "callers-polling", own("callers-polling"), 7_200 states;
    a_target_that_calls_on_serves_and_ends: "chain", own("chain"), 9_500 states;
    a_closure_that_waits_is_served_what_was_taken_with_its_call: "served-waits", own("served-waits"), 16_000 states;
    a_closure_that_calls_back_ends: "nested", own("nested"), 2_200 states;
    a_closure_that_calls_a_third_cpu_ends: "nested-chain", own("nested-chain"), 1_500 states;
    a_cpu_that_stops_polling_leaves_no_call_behind: "poll-until", own("poll-until"), 1_500 states;
    a_call_to_two_runs_once_on_each: "many", own("many"), 34_000 states;
    a_call_to_two_with_a_deadline_is_told_for_each: "many-deadline", own("many-deadline"), 30_000 states;
    a_call_to_two_that_crosses_another_ends_one_lost: "many-crossing", bounds(1, 0), 20_000 states;
    crossing_calls_to_many_end_with_interrupts_off: "many-mutual", own("many-mutual"), 36_000 states;
    a_post_is_run_once_for_each_queueing: "post", own("post"), 2_400 states;
    a_post_from_a_handler_is_run: "post-handler", own("post-handler"), 1_700 states;
    a_post_is_run_before_a_later_call: "post-call", own("post-call"), 550 states;
    a_post_is_run_before_a_call_from_the_slot_of_a_given_up_one: "post-reuse", own("post-reuse"), 1_000 states;
    a_post_is_run_before_a_call_to_many_from_that_slot: "post-reuse-many", own("post-reuse-many"), 1_000 states;
    a_call_to_a_closing_cpu_is_run_or_refused: "close", own("close"), 950 states;
    a_call_to_a_closing_cpu_after_two_lost_rings: "close", bounds(2, 2), 2_200 states;
    two_posts_to_a_closing_cpu_are_run_or_refused: "close-posts", own("close-posts"), 4_100 states;
    a_post_to_a_closing_cpu_is_run_or_refused: "close-post", own("close-post"), 97 states;
    a_call_with_a_deadline_to_a_closing_cpu_is_told: "close-deadline", own("close-deadline"), 890 states;
    a_stale_mark_in_a_closing_mailbox_runs_the_next_call_or_none: "close-stale", own("close-stale"), 5_100 states;
    a_polling_call_to_a_closing_cpu_is_run_or_refused: "close-polling", own("close-polling"), 740 states;
    two_calls_to_a_closing_cpu_are_run_or_refused: "close-callers", own("close-callers"), 85_000 states;
    a_call_to_two_of_which_one_closes_one_lost: "close-many", bounds(1, 0), 2_200 states;
    a_call_to_a_cpu_that_comes_back_is_run_or_refused: "close-open", own("close-open"), 2_100 states;
    a_post_to_a_cpu_that_comes_back_is_run_or_refused: "close-open-post", own("close-open-post"), 290 states;
    a_call_to_a_cpu_that_comes_up_is_refused_or_run: "up-call", own("up-call"), 3_400 states;
    a_post_to_a_cpu_that_comes_up_is_refused_or_run: "up-post", own("up-post"), 2_000 states;
    a_cpu_that_comes_late_parks_and_can_be_started_again: "up-late", own("up-late"), 4_800 states;
    a_cpu_goes_or_the_question_is_withdrawn: "down", own("down"), 34_000 states;
    a_call_to_many_of_which_one_is_taken_down_is_run_or_refused: "down-many", own("down-many"), 45_000 states;
    two_controllers_take_turns: "down-twice", own("down-twice"), 4_700 states;
    no_ring_is_left_over_from_a_former_life: "down-up", own("down-up"), 80_000 states;
    a_call_to_a_cpu_that_dies_is_run_refused_or_told: "dead-call", own("dead-call"), 70_000 states;
    a_call_to_many_of_which_one_dies_is_told: "dead-many", own("dead-many"), 50_000 states;
    what_a_dead_cpu_has_called_runs_no_more: "dead-caller", own("dead-caller"), 27_000 states;
    a_controller_that_fences_serves_nobody_who_waits_for_the_victim: "dead-served", own("dead-served"), 1_000 states;
    a_post_to_a_cpu_that_dies_is_run_abandoned_or_torn: "dead-post", own("dead-post"), 80_000 states;
    work_of_a_cpu_that_dies_is_run_abandoned_or_torn: "dead-work", own("dead-work"), 210_000 states;
    ticks_disturb_no_call: "tick-call", own("tick-call"), 6_700 states;
    ticks_disturb_no_closing_mailbox: "tick-close", own("tick-close"), 25_000 states;
    a_tick_finds_a_post_whose_ring_was_lost: "tick-post", own("tick-post"), 31 states;
    going_idle_finds_a_post_whose_ring_was_lost: "idle-entry", own("idle-entry"), 43 states;
    a_ring_wakes_a_cpu_that_is_about_to_halt: "idle-halt", own("idle-halt"), 73 states;
    a_tick_wakes_a_halted_cpu_whose_ring_was_lost: "idle-tick", own("idle-tick"), 280 states;
    the_backstop_rings_for_a_post_to_a_tickless_cpu: "backstop", own("backstop"), 77 states;
    a_post_from_an_nmi_handler_is_run_or_refused: "nmi-post", own("nmi-post"), 250 states;
    who_calls_a_cpu_that_stands_still_is_told: "wedge", own("wedge"), 260 states;
    two_callers_of_a_cpu_that_stands_still_are_told: "wedge-callers", own("wedge-callers"), 29_000 states;
    a_probed_target_is_diagnosed: "probe", own("probe"), 190 states;
    a_caller_without_a_call_level_is_told: "busy", own("busy"), 48 states;
    a_lost_reschedule_request_costs_a_tick: "reschedule", own("reschedule"), 14 states;
    work_is_run_once_for_each_queueing: "work", own("work"), 5_400 states;
    work_that_is_raised_while_it_runs_is_run_again: "work-again", own("work-again"), 520 states;
    work_for_the_own_cpu_is_run: "work-own", bounds(1, 0), 11_000 states;
    work_for_a_closing_cpu_is_run_or_refused: "work-close", own("work-close"), 9_900 states;
    work_that_a_polling_cpu_finds_is_run: "work-polling", own("work-polling"), 230 states;
    work_keeps_a_cpu_from_halting: "work-halt", own("work-halt"), 170 states;
    work_may_call_and_wait: "work-call", own("work-call"), 1_600 states;
    work_from_a_handler_for_a_closing_cpu_is_run_or_refused: "work-handler", own("work-handler"), 210 states;
    work_from_a_handler_that_interrupts_work_is_run: "work-interrupted", own("work-interrupted"), 660 states;
    a_late_cpu_lets_a_rendezvous_do_nothing: "rendezvous-late", own("rendezvous-late"), 55_000 states;
    a_rendezvous_survives_a_lost_ring: "rendezvous", own("rendezvous"), 13_000 states;
    a_rendezvous_with_interrupts_off_survives_a_lost_ring: "rendezvous-polling", own("rendezvous-polling"), 3_800 states;
    a_rendezvous_of_three_survives_a_lost_ring: "rendezvous-three", own("rendezvous-three"), 22_000 states;
    a_participant_serves_before_and_after_a_rendezvous: "rendezvous-serving", own("rendezvous-serving"), 140_000 states;
    work_on_a_list_of_more_than_one_is_run: "work-two", own("work-two"), 11_000 states;
    a_call_to_the_controller_of_a_rendezvous_ends: "rendezvous-crossing", own("rendezvous-crossing"), 15_000 states;
    two_rendezvous_come_one_after_the_other: "rendezvous-two", own("rendezvous-two"), 11_000 states;
    two_rendezvous_come_one_after_the_other_with_interrupts_off: "rendezvous-two-polling", own("rendezvous-two-polling"), 9_000 states;
    what_a_rendezvous_posts_runs_afterwards: "rendezvous-post", own("rendezvous-post"), 40_000 states;
    a_rendezvous_with_a_closing_cpu_is_told: "rendezvous-close", own("rendezvous-close"), 4_700 states;
    a_crash_stops_the_other_cpu_with_a_lost_nmi: "crash", own("crash"), 40 states;
    a_crash_stops_two_others_with_a_lost_nmi: "crash-three", own("crash-three"), 450 states;
    a_crash_stops_who_calls_the_crashing_cpu: "crash-call", own("crash-call"), 9_200 states;
    a_closure_that_crashes_stops_its_caller: "crash-served", own("crash-served"), 1_000 states;
    of_two_that_crash_one_wins: "crash-election", own("crash-election"), 780 states;
    of_three_that_crash_one_wins: "crash-election-three", own("crash-election-three"), 44_000 states;
    of_two_that_crash_one_wins_and_a_third_is_stopped: "crash-election-stop", own("crash-election-stop"), 5_500 states;
    a_crash_inside_an_nmi_handler_wins_or_saves_itself: "crash-nmi", own("crash-nmi"), 3_400 states;
    a_crash_ends_a_rendezvous: "crash-rendezvous", own("crash-rendezvous"), 580 states;
    a_crash_in_which_nothing_goes_wrong_saves_all: "crash-complete", own("crash-complete"), 390 states;
    a_cpu_that_comes_up_during_a_crash_stops: "crash-coming-up", own("crash-coming-up"), 350 states;
    a_crash_stop_ends_with_a_controller_that_stays_busy: "crash-icr-busy", own("crash-icr-busy"), 5 states;
    a_crash_stop_writes_a_stuck_command_again: "crash-icr-stuck", own("crash-icr-stuck"), 5 states;
    a_winner_is_not_reset: "crash-reset", own("crash-reset"), 100 states;
    a_cpu_that_stands_still_is_named_by_the_winner: "crash-wedge", own("crash-wedge"), 34 states;
    two_crashes_and_a_cpu_that_stands_still: "crash-wedge-three", own("crash-wedge-three"), 2_600 states;
    a_second_crash_of_the_winner_goes_to_the_end: "crash-again", own("crash-again"), 1_500 states;
    a_back_trace_is_taken_or_its_asker_told: "back-trace", own("back-trace"), 18 states;
    two_may_ask_for_one_back_trace: "back-traces", own("back-traces"), 470 states;
    a_reused_slot_among_three_runs_nothing_on_its_former_target: "reuse-callers", bounds(0, 1), 3_600 states;
    repeated_rings_against_answers_run_nothing_twice: "ring-again", own("ring-again"), 8_800 states;
    nested_calls_that_cross_end: "nested-cross", bounds(0, 0), 1_000 states;
    two_callers_with_two_calls_each_end: "callers-twice", bounds(0, 0), 7_600 states;
    an_nmi_does_not_tear_a_command: "icr-nmi", own("icr-nmi"), 22 states;
    an_nmi_does_not_tear_a_command_by_identifier: "icr-nmi-physical", own("icr-nmi-physical"), 22 states;
    an_nmi_cannot_tear_a_command_of_one_register: "icr-nmi-x2apic", own("icr-nmi-x2apic"), 8 states;
    a_handler_does_not_tear_a_command: "icr-handler", own("icr-handler"), 12 states;
    a_handler_cannot_tear_a_command_of_one_register: "icr-handler-x2apic", own("icr-handler-x2apic"), 8 states;
    what_was_stored_before_a_fenced_command_is_seen: "x2apic-fence", own("x2apic-fence"), 2 states;
    a_handler_cannot_tear_a_command_to_a_cluster: "icr-handler-cluster", own("icr-handler-cluster"), 9 states;
    an_ext_int_is_not_ended_at_the_local_apic: "eoi-once", own("eoi-once"), 63 states;
    an_ext_int_lets_no_lower_priority_in: "eoi-once-nested", own("eoi-once-nested"), 42 states;
    a_stray_end_of_interrupt_alone_is_harmless: "eoi-stray-alone", own("eoi-stray-alone"), 48 states;
    a_stray_end_of_interrupt_loses_no_vector: "eoi-stray-vectors", own("eoi-stray-vectors"), 50 states;
    a_handler_does_not_empty_the_mask_of_what_it_interrupts: "mask-handler", own("mask-handler"), 32 states;
    a_look_with_interrupts_off_loses_no_wake_up: "halt", own("halt"), 13 states;
    a_call_with_a_bit_for_each_target_survives_a_lost_interrupt: "then-lost-call-mended", own("then-lost-call-mended"), 270 states;
    a_cpu_that_leaves_under_the_lock_strands_no_caller: "then-online-mask-mended", own("then-online-mask-mended"), 26 states;
    a_queue_that_is_run_on_the_way_down_and_up_strands_nobody: "then-offline-queue-mended", own("then-offline-queue-mended"), 240 states;
    a_stuck_controller_does_not_stop_a_crash: "then-stuck-icr-mended", own("then-stuck-icr-mended"), 15 states;
    nmis_go_only_to_whoever_has_declared: "then-nmi-shorthand-mended", own("then-nmi-shorthand-mended"), 23 states;
    inert_gates_take_what_is_pending: "then-pending-ipi-mended", own("then-pending-ipi-mended"), 12 states;
    what_was_in_service_is_ended_first: "then-in-service-mended", own("then-in-service-mended"), 4 states;
    a_slot_that_names_its_target_is_not_mistaken: "sketch-stale-mark-mended", own("sketch-stale-mark-mended"), 53 states;
    a_claim_in_one_step_runs_nothing_withdrawn: "sketch-split-claim-mended", own("sketch-split-claim-mended"), 11 states;
    whoever_marks_the_door_himself_is_heard: "sketch-summary-mended", own("sketch-summary-mended"), 130 states;
    nothing_comes_between_mark_and_ring: "sketch-mark-and-ring-mended", own("sketch-mark-and-ring-mended"), 30 states;
    a_refused_sender_withdraws_first: "sketch-refusal-mended", own("sketch-refusal-mended"), 42 states;
    a_sender_that_looks_after_it_queued_does_not_hang: "sketch-early-look-mended", own("sketch-early-look-mended"), 7 states;
    a_late_ring_leaves_the_door_closed: "sketch-late-ring-mended", own("sketch-late-ring-mended"), 11 states;
    a_bit_for_each_target_keeps_others_out: "sketch-broadcast-mended", own("sketch-broadcast-mended"), 50 states;
    a_post_merges_into_a_listed_one_only: "sketch-merged-post-mended", own("sketch-merged-post-mended"), 200 states;
    a_node_that_is_idle_before_its_run_loses_no_post: "sketch-late-idle-mended", own("sketch-late-idle-mended"), 45 states;
    who_serves_while_he_waits_ends: "sketch-without-polling-mended", own("sketch-without-polling-mended"), 9 states;
    a_release_orders_the_payload: "sketch-unordered-mended", own("sketch-unordered-mended"), 2 states;
    the_small_protocol_holds: "ok2", own("ok2"), 72 states;
    the_small_protocol_holds_with_interrupts: "irq2", own("irq2"), 920 states;
    a_target_that_looks_when_it_is_back_holds: "fix", own("fix"), 330 states;
    a_drain_takes_what_is_pending_or_tells_of_it: "hand-over", own("hand-over"), 190 states;
    a_drain_with_two_early_deadlines: "hand-over", bounds(0, 2), 190 states;
    a_drain_ends_what_is_in_service: "hand-over-stale", own("hand-over-stale"), 270 states;
}

/// What is explored with everything that makes explorations smaller switched off as well.
const SMALL: [&str; 24] = [
    "call",
    "call-polling",
    "deadline",
    "deadline-static",
    "twice",
    "nested",
    "poll-until",
    "post-call",
    "close",
    "close-post",
    "close-deadline",
    "close-polling",
    "close-open",
    "close-open-post",
    "tick-post",
    "idle-entry",
    "idle-tick",
    "nmi-post",
    "icr-nmi",
    "eoi-once",
    "then-lost-call-mended",
    "then-offline-queue-mended",
    "sketch-merged-post-mended",
    "sketch-late-idle-mended",
];

fn setups(name: &str) -> [Setup; 2] {
    let sequential = Setup::new(own(name));
    [sequential.clone(), Setup { memory: MemoryModel::Tso, ..sequential }]
}

/// The hints of programs make states equal; a wrong one hides some.
#[test]
fn hints_lose_no_ending() {
    let mut states = (0, 0);
    for name in SMALL {
        for hinted in setups(name) {
            let plain = Setup { believe_hints: false, ..hinted.clone() };
            let hinted = holds(&by_name(name), &Plan::new(hinted));
            let plain = holds(&by_name(name), &Plan::new(plain));
            assert_eq!(hinted.endings, plain.endings, "{name}");
            states = (states.0 + hinted.states, states.1 + plain.states);
        }
    }
    assert!(states.0 < states.1, "the hints hint at nothing: {states:?}");
}

/// Doing at once what nobody can notice takes states away, and no ending.
#[test]
fn what_is_done_at_once_loses_no_ending() {
    let mut states = (0, 0);
    for name in SMALL {
        for reduced in setups(name) {
            let plain = Setup { reduce: false, ..reduced.clone() };
            let reduced = holds(&by_name(name), &Plan::new(reduced));
            let plain = holds(&by_name(name), &Plan::new(plain));
            assert_eq!(reduced.endings, plain.endings, "{name}");
            states = (states.0 + reduced.states, states.1 + plain.states);
        }
    }
    assert!(states.0 < states.1, "nothing is done at once: {states:?}");
}

/// The engine that stores no states reaches the same endings.
#[test]
fn both_engines_reach_the_same_endings() {
    for name in SMALL {
        for setup in setups(name) {
            let by_states = holds(&by_name(name), &Plan::new(setup.clone()));
            let by_classes = holds(&by_name(name), &Plan { engine: Engine::Dpor, ..Plan::new(setup) });
            assert_eq!(by_states.endings, by_classes.endings, "{name}");
        }
    }
}

#[test]
fn a_bound_that_is_larger_is_explored_further() {
    let states = |bounds| holds(&by_name("call"), &Plan::new(Setup::new(bounds))).states;
    let none = states(bounds(0, 0));
    assert!(states(bounds(1, 0)) > none && states(bounds(0, 1)) > none);
}

/// The window of a drain may be over with something still pending: then it tells, and a handler takes it later.
#[test]
fn a_drain_whose_window_ends_early_has_another_ending() {
    let protocol = by_name("hand-over");
    let endings = |expiries| holds(&protocol, &Plan::new(Setup::new(bounds(0, expiries)))).endings;
    let (in_time, early) = (endings(0), endings(1));
    assert!(
        early.is_superset(&in_time) && early.len() > in_time.len(),
        "{} and {}",
        early.len(),
        in_time.len()
    );
}
