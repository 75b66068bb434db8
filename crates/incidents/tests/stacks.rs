//! Replays give back the stacks of their CPUs. Alone in its process: it counts the mappings of all of it.
#![cfg(target_os = "linux")]

use smpcall_incidents::{Incident, Options, When, replay};

/// How many mappings this process has.
fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").expect("Linux shows them").lines().count()
}

#[test]
fn many_replays_take_no_more_stacks_than_one() {
    let options = Options { cpus: Some(8), ..Options::default() };
    // The second one has CPUs that begin anew, whose first stack is kept for a while.
    for incident in [Incident::LostCall, Incident::OfflineQueue] {
        for when in [When::Then, When::Now] {
            let run = || replay(incident, when, &options).expect("the options fit");
            run();
            let before = mappings();
            for _ in 0..50 {
                run();
            }
            // A stack is two mappings: a replay that kept one would have added 100, and one that kept all of them 800.
            assert!(mappings() < before + 100, "{incident}, {when}: {before}, then {}", mappings());
        }
    }
}
