//! Whether loom would see it: orderings of the shipping mailbox are weakened one at a time, and a scenario that needs
//! them must fail, with a reason that fits.

use std::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, Release};

use smpcall::machine::Access;
use smpcall_loom::{Bound, Exploration, Limits, Weakening, explore, scenarios};

fn weakened(
    scenario: &str,
    words: &'static str,
    accesses: fn(Access) -> bool,
    order: Ordering,
) -> Exploration {
    let scenario = scenarios::named(scenario).expect("there is such a scenario");
    let weakening = Some(Weakening { words, accesses, order });
    explore(scenario, &Limits { weakening, ..Limits::within(Bound::Preemptions(3)) })
}

fn loads(access: Access) -> bool {
    access == Access::Load
}

fn stores(access: Access) -> bool {
    matches!(access, Access::Store(_))
}

fn swaps(access: Access) -> bool {
    matches!(access, Access::Swap(_))
}

fn ors(access: Access) -> bool {
    matches!(access, Access::FetchOr(_))
}

fn exchanges(access: Access) -> bool {
    matches!(access, Access::CompareExchange(..))
}

/// An exchange that leaves a list of posts empty (1) or closed (0): the owner has taken it. Who pushes leaves an address.
fn takes(access: Access) -> bool {
    matches!(access, Access::CompareExchange(_, 0..=1, _))
}

/// The fault must be found, and be called this.
#[track_caller]
fn finds(exploration: &Exploration, what: &str) {
    let violation = exploration.violation.as_deref().unwrap_or("nothing found");
    assert!(violation.contains(what), "{violation}, and not {what:?}");
    assert!(!exploration.trace.is_empty());
}

const RACE: &str = "Causality violation";
const LOST: &str = "nobody can move";

#[test]
fn a_state_stored_without_release_is_a_race_for_the_payload() {
    finds(&weakened("call", "state", stores, Relaxed), RACE);
}

#[test]
fn a_state_loaded_without_acquire_is_a_race_for_the_result() {
    finds(&weakened("call", "state", loads, Relaxed), RACE);
}

#[test]
fn a_ring_that_does_not_release_loses_the_call() {
    finds(&weakened("call", "pending", ors, Relaxed), LOST);
}

#[test]
fn a_mark_that_does_not_release_loses_the_call_that_it_stands_for() {
    finds(&weakened("two-callers", "door", ors, Acquire), LOST);
    finds(&weakened("call-close", "door", ors, Acquire), LOST);
    finds(&weakened("mutual", "door", ors, Acquire), LOST);
}

#[test]
fn marks_taken_without_acquire_lose_the_call() {
    finds(&weakened("two-callers", "door", swaps, Release), LOST);
}

/// With leaves, a caller goes away when it sees the group bit in the door. What it loads must not be older than the
/// pass that has already swapped the leaf: its own or of the leaf acquires what that swap releases.
#[test]
fn a_leaf_marked_without_acquire_trusts_a_group_bit_that_is_gone() {
    finds(&weakened("leaves", "leaf", ors, Release), LOST);
}

#[test]
fn a_leaf_taken_without_release_lets_its_next_mark_trust_a_group_bit_that_is_gone() {
    finds(&weakened("leaves", "leaf", swaps, Acquire), LOST);
}

/// Acquire and release on the leaf are enough: its accesses are read-modify-writes, so of a mark and a pass one reads
/// from the other.
#[test]
fn marks_of_leaves_need_no_sequential_consistency() {
    let exploration = weakened("leaves", "leaf", |_| true, AcqRel);
    assert!(exploration.complete, "{exploration:?}");
}

#[test]
fn a_post_list_taken_without_acquire_is_read_before_it_is_written() {
    // What the owner reads of it is older than the push: the post is on no list any more.
    finds(&weakened("post-close", "posts", takes, Release), "run if it was accepted");
}

#[test]
fn a_post_merged_without_release_is_run_without_what_its_poster_wrote() {
    finds(&weakened("post-merge", "node", exchanges, Acquire), "visible to the run");
}

#[test]
fn a_post_run_without_acquire_misses_what_a_merging_poster_wrote() {
    finds(&weakened("post-merge", "node", swaps, Release), "visible to the run");
}
