//! The search for the shortest schedule: breadth first over states, behind ever shorter prefixes of the best one.
//!
//! Behind a long prefix there is little to see and a shorter ending is found soon; each one that is found makes all
//! later searches less deep. The last search begins at the start: if it comes to its end, nothing shorter exists.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasherDefault;

use rustc_hash::FxHasher;

use super::super::choice::Choice;
use super::super::system::System;
use super::{Cost, Minimiser, Tail};

/// By so many decisions each prefix is shorter than the one before.
const STRIDE: usize = 6;

/// A state of a search: how it is reached, and what is offered there.
struct Node {
    /// The node before. The first node is the end of the prefix.
    parent: usize,
    choice: Choice,
    cost: Cost,
    offered: Vec<Choice>,
}

/// What tells nodes apart: the hash of the state and, if switches count, who ran last.
type Key = (u128, Option<u16>);

/// Where a search begins, and what it looks for.
struct Task {
    prefix: Vec<Choice>,
    /// What is found has at most as many faults and operations.
    limit: Cost,
    /// Whether it must not have as many switches as the limit either. If not, switches are kept few by chance only.
    count_switches: bool,
    /// At most this many executions.
    executions: u64,
}

/// What came of a search.
struct Searched {
    /// The best among the shortest schedules.
    found: Option<Vec<Choice>>,
    /// Whether all shorter ones were seen.
    complete: bool,
}

/// Where a decision leads.
enum Arrival {
    /// The law breaks.
    Broken,
    /// The execution ends in another way.
    Over,
    /// It goes on, from this state.
    Open(u128),
}

impl<S: System> Minimiser<'_, S> {
    /// Searches for shorter schedules. Whether it is proven in the end that there are none.
    pub(super) fn search(&mut self) -> bool {
        let mut length = self.best.choices.len();
        while length > 0 {
            length = length.saturating_sub(STRIDE);
            let affordable = self.most.saturating_sub(self.executions);
            // The last search needs most, and what follows it needs a little.
            let executions = match length.div_ceil(STRIDE) as u64 {
                0 => affordable - affordable / 8,
                searches => affordable / (2 * searches + 2),
            };
            let limit = Cost { operations: self.best.cost.operations - 1, ..self.best.cost };
            let prefix = self.best.choices[..length].to_vec();
            let before = self.executions;
            let Searched { found, complete } =
                self.breadth_first(&Task { prefix, limit, count_switches: false, executions });
            if let Some(found) = found {
                if self.attempt(found.into_iter(), Tail::Cut) {
                    self.drop_decisions();
                    length = self.best.choices.len();
                }
            } else if length == 0 && complete {
                self.fewest_switches(self.executions - before);
                return true;
            }
        }
        // Without a single decision there is nothing to search.
        self.best.choices.is_empty()
    }

    /// Looks for a schedule as short with fewer switches, if the search that did not count them was short enough.
    fn fewest_switches(&mut self, executions: u64) {
        let affordable = self.most.saturating_sub(self.executions);
        // A state counts once per CPU, and few machines have more than four.
        if executions.saturating_mul(4) > affordable {
            return;
        }
        let task =
            Task { prefix: Vec::new(), limit: self.best.cost, count_switches: true, executions: affordable };
        if let Some(found) = self.breadth_first(&task).found {
            self.attempt(found.into_iter(), Tail::Cut);
        }
    }

    fn breadth_first(&mut self, task: &Task) -> Searched {
        if task.executions == 0 {
            return Searched { found: None, complete: false };
        }
        let deadline = self.executions + task.executions;
        let first = Node {
            parent: 0,
            choice: Choice::step(0),
            cost: Cost::of(&task.prefix),
            offered: self.offered_after(&task.prefix),
        };
        let mut known: HashMap<Key, usize, BuildHasherDefault<FxHasher>> = HashMap::default();
        let mut best: Option<(Cost, usize, Choice)> = None;
        let (mut nodes, mut level, mut path) = (vec![first], 0..1, Vec::new());
        while !level.is_empty()
            && best.is_none()
            && nodes[level.start].cost.operations < task.limit.operations
        {
            let below = nodes.len();
            for parent in level {
                retrace(&nodes, parent, &task.prefix, &mut path);
                for choice in core::mem::take(&mut nodes[parent].offered) {
                    let cost = nodes[parent].cost.and(path.last().map(|last| last.cpu), choice);
                    if cost.faults > task.limit.faults || task.count_switches && cost >= task.limit {
                        continue;
                    }
                    if self.executions >= deadline {
                        let found = best.map(|(_, parent, choice)| way(&nodes, parent, choice, task));
                        return Searched { found, complete: false };
                    }
                    match self.arrive(&path, choice) {
                        Arrival::Broken if best.is_none_or(|(least, _, _)| cost < least) => {
                            best = Some((cost, parent, choice));
                        }
                        Arrival::Broken | Arrival::Over => {}
                        Arrival::Open(hash) => {
                            let key = (hash, task.count_switches.then_some(choice.cpu));
                            let offered = || self.trial.offered.clone();
                            match known.entry(key) {
                                Entry::Vacant(entry) => {
                                    entry.insert(nodes.len());
                                    nodes.push(Node { parent, choice, cost, offered: offered() });
                                }
                                // A second way to a state of the same level counts if it has fewer switches.
                                Entry::Occupied(entry) => {
                                    let index = *entry.get();
                                    if index >= below && cost < nodes[index].cost {
                                        nodes[index] = Node { parent, choice, cost, offered: offered() };
                                    }
                                }
                            }
                        }
                    }
                }
            }
            level = below..nodes.len();
        }
        let found = best.map(|(_, parent, choice)| way(&nodes, parent, choice, task));
        Searched { found, complete: true }
    }

    /// What can happen after a prefix of the best execution.
    fn offered_after(&mut self, prefix: &[Choice]) -> Vec<Choice> {
        self.executions += 1;
        self.system.restart();
        for &choice in prefix {
            // It went well before.
            let _ = self.system.perform_only(choice);
        }
        let mut offered = Vec::new();
        let _ = self.system.choices(&mut offered);
        offered
    }

    /// Follows a path that is known to be open, and one decision more. What is offered then is in the trial.
    fn arrive(&mut self, path: &[Choice], choice: Choice) -> Arrival {
        self.executions += 1;
        self.system.restart();
        for &choice in path {
            // It went well when its last node was found.
            let _ = self.system.perform_only(choice);
        }
        let broken = match self.system.perform_only(choice) {
            Err(violation) => Some(violation),
            Ok(()) => match self.system.choices(&mut self.trial.offered) {
                Err(violation) => Some(violation),
                Ok(()) if self.trial.offered.is_empty() => self.system.end().err(),
                Ok(()) => return Arrival::Open(self.system.state_hash()),
            },
        };
        match broken {
            Some(violation) if violation.law == self.best.violation.law => Arrival::Broken,
            _ => Arrival::Over,
        }
    }
}

/// The decisions that lead to a node, from the start.
fn retrace(nodes: &[Node], mut node: usize, prefix: &[Choice], path: &mut Vec<Choice>) {
    path.clear();
    while node != 0 {
        path.push(nodes[node].choice);
        node = nodes[node].parent;
    }
    path.extend(prefix.iter().rev());
    path.reverse();
}

/// The decisions that lead to a node and one more.
fn way(nodes: &[Node], parent: usize, choice: Choice, task: &Task) -> Vec<Choice> {
    let mut path = Vec::new();
    retrace(nodes, parent, &task.prefix, &mut path);
    path.push(choice);
    path
}
