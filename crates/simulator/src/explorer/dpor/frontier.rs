//! The top of the tree, fully expanded: units of work that know nothing of each other.
//!
//! Every node of the top is expanded with all its choices and with sleep sets, so no class is in two units and none is lost; races
//! between a unit's events and those above its root need no reversal, because the other order is in another unit.

use super::Reduction;
use super::path::{Sleeper, Touched};
use crate::explorer::choice::Choice;
use crate::explorer::footprint::Footprint;
use crate::explorer::system::System;

/// So many units are made for each shard or job, if there are so many: enough that their sizes even out.
pub(super) const UNITS_PER_SHARD: usize = 64;

/// The top has at most so many levels.
const MAX_DEPTH: usize = 24;

/// A subtree.
#[derive(Clone, Default)]
pub(super) struct Unit {
    /// The decisions that lead to its root.
    pub(super) prefix: Vec<Choice>,
    /// What sleeps there.
    pub(super) sleepers: Vec<Sleeper>,
    /// Whether the execution ends there.
    ended: bool,
}

/// Expands level by level until there are `wanted` units. The same for the same system, everywhere.
pub(super) fn expand(system: &mut impl System, reduction: Reduction, wanted: usize) -> Vec<Unit> {
    let mut units = vec![Unit::default()];
    for _ in 0..MAX_DEPTH {
        if units.len() >= wanted || units.iter().all(|unit| unit.ended) {
            break;
        }
        let mut next = Vec::with_capacity(2 * units.len());
        for unit in units {
            if unit.ended {
                next.push(unit);
            } else {
                expand_unit(system, reduction, unit, &mut next);
            }
        }
        units = next;
    }
    units
}

fn go_to(system: &mut impl System, unit: &Unit) {
    system.restart();
    for &choice in &unit.prefix {
        let performed = system.perform_only(choice);
        debug_assert!(performed.is_ok(), "a prefix breaks a law that it did not break before");
    }
}

fn expand_unit(system: &mut impl System, reduction: Reduction, mut unit: Unit, children: &mut Vec<Unit>) {
    let mut offers = Vec::new();
    go_to(system, &unit);
    if system.choices(&mut offers).is_err() || offers.is_empty() {
        unit.ended = true;
        children.push(unit);
        return;
    }
    let asleep = |unit: &Unit, offer| unit.sleepers.iter().any(|sleeper| sleeper.choice == offer);
    offers.retain(|&offer| !asleep(&unit, offer));
    for (index, &offer) in offers.iter().enumerate() {
        if index > 0 {
            go_to(system, &unit);
        }
        let performed = system.perform(offer);
        let ended = performed.is_err();
        let touched = Touched::new(performed.unwrap_or(Footprint::EVERYTHING));
        let mut prefix = unit.prefix.clone();
        prefix.push(offer);
        let sleepers = unit.sleepers.iter().filter(|sleeper| sleeper.sleeps_through(offer, &touched));
        children.push(Unit { prefix, sleepers: sleepers.copied().collect(), ended });
        if reduction != Reduction::Naive {
            unit.sleepers.push(Sleeper { choice: offer, touched });
        }
    }
}
