//! Who waits for whom: CPUs and calls as nodes. A cycle is a deadlock; a chain ends at the culprit.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::Serialize;

use crate::evidence::{CallEvidence, CallState, MachineEvidence};

/// Something that waits or is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Node {
    /// A CPU.
    Cpu {
        /// Its number.
        cpu: u32,
    },
    /// A call or post that is not finished.
    Call {
        /// Who made it, if known.
        caller: Option<u32>,
        /// Who is to run it.
        target: u32,
        /// What is to be run, if known.
        function: Option<String>,
        /// Whether the target has taken it.
        claimed: bool,
        /// Whether it is only inferred that there is such a call.
        #[serde(skip_serializing_if = "core::ops::Not::not")]
        guessed: bool,
    },
    /// A lock that somebody waits for.
    Lock {
        /// Its name.
        name: String,
        /// The CPU that has it, if known.
        holder: Option<u32>,
    },
}

/// The node `from` waits for the node `to`; both index [`WaitGraph::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Edge {
    /// Who waits.
    pub from: usize,
    /// For whom.
    pub to: usize,
}

/// Who waits for whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WaitGraph {
    /// CPUs in ascending order, then calls in the order of the evidence. Only those that an edge touches.
    pub nodes: Vec<Node>,
    /// In ascending order.
    pub edges: Vec<Edge>,
    /// From each waiting CPU to those that it waits for, through whatever lies between.
    #[serde(skip)]
    targets: BTreeMap<u32, BTreeSet<u32>>,
    /// The same backwards.
    #[serde(skip)]
    waiters: BTreeMap<u32, BTreeSet<u32>>,
    /// Of these pairs, those who wait for nothing but a lock.
    #[serde(skip)]
    for_locks: BTreeSet<(u32, u32)>,
}

impl WaitGraph {
    /// The graph of all unfinished calls, and of waits for which no call is known.
    pub fn new(evidence: &MachineEvidence, calls: &[CallEvidence]) -> Self {
        let open: Vec<&CallEvidence> =
            calls.iter().filter(|call| call.state != CallState::Finished).collect();
        let mut targets: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        let mut cpus: BTreeSet<u32> = open.iter().map(|call| call.target).collect();
        for (caller, target) in open.iter().filter_map(|call| Some((waiter(call)?, call.target))) {
            targets.entry(caller).or_default().insert(target);
        }
        let is_finished = |call: &&CallEvidence| call.state == CallState::Finished;
        let finished = calls.iter().filter(is_finished).filter_map(|call| Some((call.caller?, call.target)));
        let finished: BTreeSet<(u32, u32)> = finished.collect();
        let mut direct = Vec::new();
        for (cpu, wait) in evidence.cpus.iter().filter_map(|cpu| Some((cpu.cpu, cpu.wait.as_ref()?))) {
            for &target in &wait.targets {
                // A wait for one's own call that is finished there is about to end.
                let finished = finished.contains(&(cpu, target));
                if target != cpu && !finished && targets.entry(cpu).or_default().insert(target) {
                    direct.push((cpu, target));
                }
            }
        }
        let mut for_locks = BTreeSet::new();
        for lock in &evidence.locks {
            for (&cpu, holder) in lock.waiters.iter().filter_map(|cpu| Some((cpu, lock.holder?))) {
                if cpu != holder && targets.entry(cpu).or_default().insert(holder) {
                    for_locks.insert((cpu, holder));
                }
            }
        }
        targets.retain(|_, set| !set.is_empty());
        cpus.extend(evidence.locks.iter().flat_map(|lock| lock.waiters.iter().chain(&lock.holder)));
        cpus.extend(targets.keys().chain(targets.values().flatten()));
        let index: BTreeMap<u32, usize> = cpus.iter().copied().zip(0..).collect();
        let mut nodes: Vec<Node> = cpus.iter().map(|&cpu| Node::Cpu { cpu }).collect();
        let mut edges: Vec<Edge> = Vec::new();
        for call in open {
            let node = nodes.len();
            nodes.push(Node::Call {
                caller: call.caller,
                target: call.target,
                function: call.function.clone(),
                claimed: call.state == CallState::Claimed,
                guessed: call.candidates > 0,
            });
            edges.extend(waiter(call).map(|caller| Edge { from: index[&caller], to: node }));
            edges.push(Edge { from: node, to: index[&call.target] });
        }
        for lock in &evidence.locks {
            let node = nodes.len();
            nodes.push(Node::Lock { name: lock.name.clone(), holder: lock.holder });
            edges.extend(lock.waiters.iter().map(|cpu| Edge { from: index[cpu], to: node }));
            edges.extend(lock.holder.map(|holder| Edge { from: node, to: index[&holder] }));
        }
        edges.extend(direct.iter().map(|(from, to)| Edge { from: index[from], to: index[to] }));
        edges.sort_unstable();
        let mut waiters: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        for (&from, set) in &targets {
            for &to in set {
                waiters.entry(to).or_default().insert(from);
            }
        }
        Self { nodes, edges, targets, waiters, for_locks }
    }

    /// Whom a CPU waits for, ascending.
    pub fn targets_of(&self, cpu: u32) -> impl Iterator<Item = u32> + '_ {
        self.targets.get(&cpu).into_iter().flatten().copied()
    }

    /// Whether a CPU waits for another one.
    pub fn waits(&self, cpu: u32) -> bool {
        self.targets.contains_key(&cpu)
    }

    /// Whether one CPU waits for another only because that one has a lock.
    pub fn is_for_lock(&self, from: u32, to: u32) -> bool {
        self.for_locks.contains(&(from, to))
    }

    /// Whether a CPU waits for a call, or for a lock whose holder does, however many locks lie between.
    pub fn waits_for_a_call(&self, cpu: u32) -> bool {
        let mut seen = BTreeSet::from([cpu]);
        let mut queue = VecDeque::from([cpu]);
        while let Some(next) = queue.pop_front() {
            for target in self.targets_of(next) {
                if !self.is_for_lock(next, target) {
                    return true;
                }
                if seen.insert(target) {
                    queue.push_back(target);
                }
            }
        }
        false
    }

    /// Who has, in the end, what a CPU waits for through locks alone; none if it waits for no lock of a known holder.
    pub fn holder_behind(&self, cpu: u32) -> Option<u32> {
        let mut seen = BTreeSet::from([cpu]);
        let mut last = cpu;
        while let Some(next) = self.targets_of(last).find(|&next| self.is_for_lock(last, next)) {
            if !seen.insert(next) {
                break;
            }
            last = next;
        }
        (last != cpu).then_some(last)
    }

    /// All that wait for a CPU: the direct ones first, then those that wait for these, ascending in each group.
    pub fn waiters_of(&self, cpu: u32) -> Vec<u32> {
        let mut found = Vec::new();
        let mut seen = BTreeSet::from([cpu]);
        let mut queue = VecDeque::from([cpu]);
        while let Some(next) = queue.pop_front() {
            for &waiter in self.waiters.get(&next).into_iter().flatten() {
                if seen.insert(waiter) {
                    found.push(waiter);
                    queue.push_back(waiter);
                }
            }
        }
        found
    }

    /// The chain that begins with a CPU and ends with one that waits for nobody, or before one that is in it already.
    pub fn chain_from(&self, cpu: u32) -> Vec<u32> {
        let mut chain = vec![cpu];
        let mut seen = BTreeSet::from([cpu]);
        while let Some(next) = chain.last().and_then(|&last| self.targets_of(last).next()) {
            if !seen.insert(next) {
                break;
            }
            chain.push(next);
        }
        chain
    }

    /// The groups of CPUs that wait for each other in a circle, each ascending, ordered by their first member.
    pub fn cycles(&self) -> Vec<Vec<u32>> {
        // Kosaraju: in the order in which a search leaves the CPUs, last first, each search against the arrows
        // finds one group. Linear: thousands of CPUs may all wait for all others.
        let mut seen = BTreeSet::new();
        let mut left = Vec::new();
        for &cpu in self.targets.keys() {
            search(&self.targets, cpu, &mut seen, &mut left);
        }
        let mut seen = BTreeSet::new();
        let mut cycles = Vec::new();
        for &cpu in left.iter().rev() {
            let mut group = Vec::new();
            search(&self.waiters, cpu, &mut seen, &mut group);
            group.sort_unstable();
            if group.len() > 1 {
                cycles.push(group);
            }
        }
        cycles.sort_unstable();
        cycles
    }
}

/// Depth-first along `arrows`; appends what it had not seen to `left` in the order in which it leaves it.
fn search(arrows: &BTreeMap<u32, BTreeSet<u32>>, start: u32, seen: &mut BTreeSet<u32>, left: &mut Vec<u32>) {
    let next = |cpu: u32| arrows.get(&cpu).into_iter().flatten().copied();
    if !seen.insert(start) {
        return;
    }
    let mut path = vec![(start, next(start))];
    while let Some((cpu, rest)) = path.last_mut() {
        if let Some(found) = rest.find(|&cpu| seen.insert(cpu)) {
            path.push((found, next(found)));
        } else {
            left.push(*cpu);
            path.pop();
        }
    }
}

/// Who waits for a call; nobody for a post.
fn waiter(call: &CallEvidence) -> Option<u32> {
    call.caller.filter(|&caller| call.waited && caller != call.target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::{LockEvidence, WaitEvidence};
    use crate::samples::working;

    fn graph(calls: &[(u32, u32)]) -> WaitGraph {
        let calls: Vec<_> = calls.iter().map(|&(from, to)| CallEvidence::queued(from, to)).collect();
        WaitGraph::new(&MachineEvidence::default(), &calls)
    }

    #[test]
    fn a_chain_ends_at_the_one_that_waits_for_nobody() {
        let graph = graph(&[(0, 1), (1, 2), (3, 1)]);
        assert_eq!(graph.chain_from(0), [0, 1, 2]);
        assert_eq!(graph.waiters_of(2), [1, 0, 3]);
        assert!(graph.cycles().is_empty());
    }

    #[test]
    fn circles_are_found_and_those_who_only_wait_for_one_are_not_in_it() {
        let graph = graph(&[(4, 7), (7, 4), (1, 4), (2, 3), (3, 5), (5, 2), (9, 10)]);
        assert_eq!(graph.cycles(), [vec![2, 3, 5], vec![4, 7]]);
        assert_eq!(graph.chain_from(1), [1, 4, 7]);
    }

    #[test]
    fn a_call_is_a_node_between_two_cpus_and_a_post_has_nobody_before_it() {
        let mut post = CallEvidence::queued(0, 1);
        post.waited = false;
        let graph = WaitGraph::new(&MachineEvidence::default(), &[CallEvidence::queued(2, 1), post]);
        assert_eq!(graph.nodes.len(), 4);
        assert_eq!(graph.edges, [Edge { from: 1, to: 2 }, Edge { from: 2, to: 0 }, Edge { from: 3, to: 0 }]);
        assert_eq!(graph.waiters_of(1), [2]);
    }

    #[test]
    fn a_lock_is_a_node_between_who_waits_and_who_has_it() {
        let lock = |name: &str, waiters: &[u32], holder| LockEvidence {
            name: name.into(),
            waiters: waiters.to_vec(),
            holder,
            ..LockEvidence::default()
        };
        let locks = vec![lock("rq", &[1, 2], Some(3)), lock("log", &[3], Some(4)), lock("lost", &[4], None)];
        let evidence = MachineEvidence { locks, ..MachineEvidence::default() };
        let graph = WaitGraph::new(&evidence, &[CallEvidence::queued(0, 1)]);
        assert_eq!(graph.chain_from(0), [0, 1, 3, 4]);
        assert_eq!(graph.waiters_of(4), [3, 1, 2, 0]);
        assert!(graph.is_for_lock(1, 3) && !graph.is_for_lock(0, 1));
        assert_eq!((graph.holder_behind(1), graph.holder_behind(4)), (Some(4), None));
        assert!(graph.waits_for_a_call(0) && !graph.waits_for_a_call(1));
        let named = Node::Lock { name: "lost".into(), holder: None };
        assert!(graph.nodes.contains(&named));
    }

    #[test]
    fn a_wait_without_a_known_call_is_an_edge_and_a_finished_call_is_none() {
        let mut waiting = working(0);
        waiting.wait = Some(WaitEvidence { targets: vec![0, 1, 2], ..WaitEvidence::default() });
        let evidence = MachineEvidence { cpus: vec![waiting], ..MachineEvidence::default() };
        let mut finished = CallEvidence::queued(0, 1);
        finished.state = CallState::Finished;
        let graph = WaitGraph::new(&evidence, &[finished]);
        assert_eq!(graph.targets_of(0).collect::<Vec<_>>(), [2]);
    }
}
