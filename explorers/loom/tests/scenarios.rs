//! Every scenario holds within a small bound; and the shortcut that makes them small leaves nothing out that shows.

use smpcall_loom::{Bound, Limits, SeqCst, explore, scenarios};

#[test]
fn every_scenario_holds_and_is_explored_to_its_bound() {
    for scenario in scenarios::ALL {
        for seq_cst in [SeqCst::AsAcquireRelease, SeqCst::Fenced] {
            let exploration = explore(scenario, &Limits { seq_cst, ..Limits::within(Bound::Preemptions(2)) });
            assert!(exploration.complete, "{}, {seq_cst:?}: {exploration:?}", scenario.name);
        }
    }
}

/// A scenario in which the race it is about always ends the same way would show nothing.
#[test]
fn every_race_is_seen_to_end_both_ways() {
    for (name, outcomes) in [
        ("deadline", ["run", "told"]),
        ("call-close", ["run", "told"]),
        ("post-close", ["queued", "refused"]),
        ("post-merge", ["merged", "queued"]),
    ] {
        let scenario = scenarios::named(name).expect("there is such a scenario");
        let exploration = explore(scenario, &Limits::within(Bound::Preemptions(2)));
        assert_eq!(exploration.outcomes.into_iter().collect::<Vec<_>>(), outcomes, "{name}");
    }
}

/// Where one CPU waits at a time, loom comes to an end without pruning too.
#[test]
fn pruning_changes_no_outcome() {
    for name in ["call", "slot-reuse", "post-call", "call-close", "post-close", "mutual", "deadline"] {
        let scenario = scenarios::named(name).expect("there is such a scenario");
        let [pruned, whole] = [true, false]
            .map(|prunes| explore(scenario, &Limits { prunes, ..Limits::within(Bound::Preemptions(2)) }));
        assert!(whole.complete && pruned.complete, "{name}: {whole:?} {pruned:?}");
        assert!(whole.executions >= pruned.executions, "{name}");
        assert_eq!(whole.outcomes, pruned.outcomes, "{name}");
    }
}
