//! Long runs of one CPU: decisions that do not depend on each other are put into an order with few context switches.

use super::super::choice::Choice;
use super::super::footprint::Footprint;
use super::super::system::System;
use super::{Minimiser, Tail};

/// The best order is looked for among at most this many sets of decisions that can come first; beyond it, a good one.
const MOST_SETS: usize = 200_000;

impl<S: System> Minimiser<'_, S> {
    /// Lessens the number of context switches.
    pub(super) fn merge_runs(&mut self) {
        loop {
            let before = self.best.cost;
            let order = fewest_switches(&self.best.choices, &self.best.footprints, MOST_SETS);
            let choices: Vec<Choice> = order.into_iter().map(|index| self.best.choices[index]).collect();
            self.attempt(choices.into_iter(), Tail::Cut);
            self.move_runs();
            if self.best.cost == before || self.exhausted() {
                return;
            }
        }
    }

    /// Moves a run of one CPU next to another one of it, although it depends on what is in between.
    fn move_runs(&mut self) {
        let mut first = 0;
        'runs: while first < runs(&self.best.choices).len() {
            let runs = runs(&self.best.choices);
            let cpu = runs[first][0].cpu;
            for second in (first + 1..runs.len()).filter(|&second| runs[second][0].cpu == cpu) {
                let between = runs[first + 1..second].concat();
                let (before, after) = (runs[..first].concat(), runs[second + 1..].concat());
                let together = [runs[first].clone(), runs[second].clone()].concat();
                for order in [[&together, &between], [&between, &together]] {
                    let moved = [&before, order[0], order[1], &after].into_iter().flatten().copied();
                    if self.attempt(moved, Tail::Last) {
                        continue 'runs;
                    }
                }
            }
            first += 1;
        }
    }
}

/// The decisions, cut where another CPU comes.
fn runs(choices: &[Choice]) -> Vec<Vec<Choice>> {
    choices.chunk_by(|a, b| a.cpu == b.cpu).map(<[Choice]>::to_vec).collect()
}

/// What must come before what: the same CPU's decisions in order, and others that conflict.
struct Dependencies {
    /// The positions of each CPU's decisions, by CPUs in the order of their numbers.
    own: Vec<Vec<usize>>,
    /// For each decision and each CPU: how many decisions of that CPU must come before.
    needed: Vec<Vec<usize>>,
}

impl Dependencies {
    fn new(choices: &[Choice], footprints: &[Footprint]) -> Self {
        let mut cpus: Vec<u16> = choices.iter().map(|choice| choice.cpu).collect();
        cpus.sort_unstable();
        cpus.dedup();
        let mut own = vec![Vec::new(); cpus.len()];
        let mut needed = Vec::with_capacity(choices.len());
        for (position, choice) in choices.iter().enumerate() {
            let before = own.iter().zip(&cpus).map(|(theirs, &cpu): (&Vec<usize>, _)| {
                let conflicts = |&&other: &&usize| footprints[other].conflicts(&footprints[position]);
                let mut last_first = theirs.iter().enumerate().rev();
                let last = last_first.find(|(_, other)| cpu == choice.cpu || conflicts(other));
                last.map_or(0, |(index, _)| index + 1)
            });
            needed.push(before.collect());
            own[cpus.partition_point(|&cpu| cpu < choice.cpu)].push(position);
        }
        Self { own, needed }
    }

    /// The next decision of a CPU, if nothing that must come before it is missing.
    fn next(&self, done: &[usize], cpu: usize) -> Option<usize> {
        let position = *self.own[cpu].get(done[cpu])?;
        let ready = self.needed[position].iter().zip(done).all(|(needed, done)| needed <= done);
        ready.then_some(position)
    }
}

/// The positions of the decisions in an equivalent order with the fewest context switches; if there are more than `most`
/// sets of decisions that could come first, in one with few.
fn fewest_switches(choices: &[Choice], footprints: &[Footprint], most: usize) -> Vec<usize> {
    let dependencies = Dependencies::new(choices, footprints);
    let sizes = dependencies.own.iter().map(|own| own.len() + 1);
    match sizes.clone().try_fold(1_usize, usize::checked_mul) {
        Some(sets) if sets <= most => exact(&dependencies, sets),
        _ => greedy(&dependencies, choices.len()),
    }
}

/// One CPU as long as it can, then the one that can go on longest.
fn greedy(dependencies: &Dependencies, len: usize) -> Vec<usize> {
    let mut done = vec![0; dependencies.own.len()];
    let mut order = Vec::with_capacity(len);
    while order.len() < len {
        let run = |cpu: usize| {
            let mut done = done.clone();
            let mut run = Vec::new();
            while let Some(position) = dependencies.next(&done, cpu) {
                done[cpu] += 1;
                run.push(position);
            }
            run
        };
        let longest = (0..done.len()).map(|cpu| (cpu, run(cpu)));
        // The last of equals is returned, so the CPUs are turned round.
        let Some((cpu, run)) = longest.rev().max_by_key(|(_, run)| run.len()) else { break };
        done[cpu] += run.len();
        order.extend(run);
    }
    order
}

/// The fewest switches to each set of decisions and each CPU that ran last, in ascending order of the sets.
fn exact(dependencies: &Dependencies, sets: usize) -> Vec<usize> {
    let cpus = dependencies.own.len();
    // A set is how many decisions of each CPU are done, as a number with a digit per CPU.
    let mut weights = vec![1; cpus];
    for cpu in 1..cpus {
        weights[cpu] = weights[cpu - 1] * (dependencies.own[cpu - 1].len() + 1);
    }
    let digit = |set: usize, cpu: usize| set / weights[cpu] % (dependencies.own[cpu].len() + 1);
    // Switches, and who ran before the last one.
    let mut best = vec![(u32::MAX, 0); sets * cpus];
    for set in 0..sets {
        let done: Vec<usize> = (0..cpus).map(|cpu| digit(set, cpu)).collect();
        for cpu in (0..cpus).filter(|&cpu| dependencies.next(&done, cpu).is_some()) {
            let came = (0..cpus).filter(|&last| set == 0 || best[set * cpus + last].0 != u32::MAX);
            let switches = |last: usize| match set {
                0 => 0,
                _ => best[set * cpus + last].0 + u32::from(last != cpu),
            };
            if let Some(last) = came.min_by_key(|&last| switches(last)) {
                best[(set + weights[cpu]) * cpus + cpu] = (switches(last), last);
            }
        }
    }
    let mut set = sets - 1;
    let mut order = Vec::new();
    let mut last = (0..cpus).min_by_key(|&last| best[set * cpus + last].0).unwrap_or(0);
    while set > 0 {
        let before = best[set * cpus + last].1;
        set -= weights[last];
        order.push(dependencies.own[last][digit(set, last)]);
        last = before;
    }
    order.reverse();
    order
}

#[cfg(test)]
mod tests {
    use super::super::super::footprint::{Place, Use};
    use super::super::Cost;
    use super::*;
    use proptest::prelude::*;

    /// Decisions of three CPUs, each with a use of one of three places.
    fn decisions() -> impl Strategy<Value = (Vec<Choice>, Vec<Footprint>)> {
        let uses = prop::sample::select(vec![Use::Read, Use::Write, Use::Raise]);
        prop::collection::vec((0..3_u16, 0..3_u32, uses), 0..9).prop_map(|decisions| {
            let footprint = |place, how| {
                let mut footprint = Footprint::NOTHING;
                footprint.add(Place(place), how);
                footprint
            };
            decisions.into_iter().map(|(cpu, place, how)| (Choice::step(cpu), footprint(place, how))).unzip()
        })
    }

    fn switches(choices: &[Choice], order: &[usize]) -> u32 {
        Cost::of(&order.iter().map(|&index| choices[index]).collect::<Vec<_>>()).switches
    }

    /// Whether each pair of decisions that depend on each other is in its old order.
    fn keeps_dependencies(choices: &[Choice], footprints: &[Footprint], order: &[usize]) -> bool {
        let depend =
            |a: usize, b: usize| choices[a].cpu == choices[b].cpu || footprints[a].conflicts(&footprints[b]);
        order.iter().enumerate().all(|(at, &a)| order[at + 1..].iter().all(|&b| a < b || !depend(a, b)))
    }

    /// The fewest switches of all orders that keep the dependencies.
    fn by_trying_all(choices: &[Choice], footprints: &[Footprint], order: &mut Vec<usize>) -> u32 {
        if order.len() == choices.len() {
            return switches(choices, order);
        }
        let mut least = u32::MAX;
        for next in 0..choices.len() {
            let ready = (0..next).all(|other| {
                let depend =
                    choices[other].cpu == choices[next].cpu || footprints[other].conflicts(&footprints[next]);
                order.contains(&other) || !depend
            });
            if ready && !order.contains(&next) {
                order.push(next);
                least = least.min(by_trying_all(choices, footprints, order));
                order.pop();
            }
        }
        least
    }

    proptest! {
        #[test]
        fn no_equivalent_order_has_fewer_switches((choices, footprints) in decisions()) {
            let order = fewest_switches(&choices, &footprints, MOST_SETS);
            prop_assert_eq!(order.len(), choices.len());
            prop_assert!(keeps_dependencies(&choices, &footprints, &order));
            prop_assert_eq!(switches(&choices, &order), by_trying_all(&choices, &footprints, &mut Vec::new()));
        }

        #[test]
        fn many_decisions_get_an_equivalent_order_too((choices, footprints) in decisions()) {
            let order = fewest_switches(&choices, &footprints, 0);
            prop_assert_eq!(order.len(), choices.len());
            prop_assert!(keeps_dependencies(&choices, &footprints, &order));
        }
    }
}
