//! Where everything stands: columns by how far it is to the end of the chain, CPUs that wait in the same way in one box.

use std::collections::{BTreeMap, BTreeSet};

use crate::graph::Node;
use crate::report::Report;

/// Pixels between columns and between rows.
pub(super) const GAP: (i32, i32) = (210, 34);

/// So many boxes are drawn: a picture of more is no help.
const MOST: usize = 64;

/// A box: one CPU, several that wait alike, a lock, or nobody.
#[derive(Debug)]
pub(super) struct Box {
    pub(super) cpus: Vec<u32>,
    pub(super) lock: Option<String>,
    /// Whether it is known who holds the lock.
    pub(super) held: bool,
    pub(super) column: usize,
    pub(super) row: usize,
}

/// From who waits to what it waits for.
#[derive(Debug)]
pub(super) struct Arrow {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) label: String,
    pub(super) guessed: bool,
    /// Which of the arrows that end at the same box, and how many these are.
    pub(super) lane: usize,
    pub(super) lanes: usize,
    /// Which of those that go back.
    pub(super) back: usize,
}

#[derive(Debug, Default)]
pub(super) struct Layout {
    pub(super) boxes: Vec<Box>,
    pub(super) arrows: Vec<Arrow>,
    /// How many boxes there was no room for.
    pub(super) left_out: usize,
}

/// Who stands at one end of an arrow before boxes are made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Cpu(u32),
    Lock(usize),
    Nobody,
}

impl Layout {
    pub(super) fn of(report: &Report) -> Self {
        let links = links(report);
        let mut layout = Self::default();
        // CPUs that only wait, and all for the same in the same way, are drawn as one.
        let mut out: BTreeMap<&End, BTreeSet<(&End, &str, bool)>> = BTreeMap::new();
        let targets: BTreeSet<&End> = links.keys().map(|(_, to, ..)| to).collect();
        for (from, to, label, guessed) in links.keys() {
            out.entry(from).or_default().insert((to, label, *guessed));
        }
        let mut alike: BTreeMap<BTreeSet<(&End, &str, bool)>, Vec<&End>> = BTreeMap::new();
        let mut index: BTreeMap<&End, usize> = BTreeMap::new();
        for (end, links) in &out {
            if matches!(end, End::Cpu(_)) && !targets.contains(*end) {
                alike.entry(links.clone()).or_default().push(end);
            }
        }
        for ends in alike.values() {
            let cpus = ends.iter().filter_map(|end| if let End::Cpu(cpu) = end { Some(*cpu) } else { None });
            let at = layout.add(Box { cpus: cpus.collect(), lock: None, held: false, column: 0, row: 0 });
            index.extend(ends.iter().map(|&end| (end, at)));
        }
        for end in out.keys().copied().chain(targets.iter().copied()) {
            index.entry(end).or_insert_with(|| {
                let (cpus, lock) = match end {
                    End::Cpu(cpu) => (vec![*cpu], None),
                    End::Lock(node) => (vec![], lock_name(report, *node)),
                    End::Nobody => (vec![], None),
                };
                layout.add(Box { cpus, lock, held: out.contains_key(end), column: 0, row: 0 })
            });
        }
        let mut arrows: BTreeMap<(usize, usize, &str, bool), usize> = BTreeMap::new();
        for ((from, to, label, guessed), times) in &links {
            let key = (index[from], index[to], label.as_str(), *guessed);
            *arrows.entry(key).or_default() += times;
        }
        for ((from, to, label, guessed), times) in arrows {
            if from < MOST && to < MOST {
                let label = if times > 1 { format!("{times} x {label}") } else { label.to_owned() };
                layout.arrows.push(Arrow { from, to, label, guessed, lane: 0, lanes: 1, back: 0 });
            }
        }
        layout.left_out = layout.boxes.len().saturating_sub(MOST);
        layout.boxes.truncate(MOST);
        layout.arrange();
        layout
    }

    /// How much room arrows that go back need below everything.
    pub(super) fn below(&self) -> i32 {
        let back = self.arrows.iter().filter(|arrow| self.goes_back(arrow)).count();
        let back = i32::try_from(back).unwrap_or(0);
        if back == 0 { 0 } else { 40 + 30 * back }
    }

    fn add(&mut self, cell: Box) -> usize {
        self.boxes.push(cell);
        self.boxes.len() - 1
    }

    fn goes_back(&self, arrow: &Arrow) -> bool {
        self.boxes[arrow.from].column >= self.boxes[arrow.to].column
    }

    fn arrange(&mut self) {
        // How far it is to the end, along arrows that lead to no box that is on the way already.
        let count = self.boxes.len();
        let mut distance = vec![None; count];
        for start in 0..count {
            self.distance(start, &mut distance, &mut vec![false; count]);
        }
        let furthest = distance.iter().flatten().copied().max().unwrap_or(0);
        let mut rows = vec![0; furthest + 1];
        for (cell, distance) in self.boxes.iter_mut().zip(distance) {
            cell.column = furthest - distance.unwrap_or(0);
            cell.row = rows[cell.column];
            rows[cell.column] += 1;
        }
        let mut ends: BTreeMap<usize, usize> = BTreeMap::new();
        let mut back = 0;
        for at in 0..self.arrows.len() {
            if self.goes_back(&self.arrows[at]) {
                self.arrows[at].back = back;
                back += 1;
            } else {
                let lane = ends.entry(self.arrows[at].to).or_default();
                self.arrows[at].lane = *lane;
                *lane += 1;
            }
        }
        for arrow in &mut self.arrows {
            arrow.lanes = ends.get(&arrow.to).copied().unwrap_or(1);
        }
    }

    fn distance(&self, at: usize, known: &mut [Option<usize>], on_the_way: &mut [bool]) -> usize {
        if let Some(known) = known[at] {
            return known;
        }
        on_the_way[at] = true;
        let mut most = 0;
        for arrow in self.arrows.iter().filter(|arrow| arrow.from == at) {
            if !on_the_way[arrow.to] {
                most = most.max(1 + self.distance(arrow.to, known, on_the_way));
            }
        }
        on_the_way[at] = false;
        known[at] = Some(most);
        most
    }
}

fn lock_name(report: &Report, node: usize) -> Option<String> {
    match report.graph.nodes.get(node) {
        Some(Node::Lock { name, .. }) => Some(name.clone()),
        _ => None,
    }
}

/// Every "waits for", with how often: calls are no boxes, they are written on the arrows.
fn links(report: &Report) -> BTreeMap<(End, End, String, bool), usize> {
    let graph = &report.graph;
    let mut links = BTreeMap::new();
    let mut add = |from, to, label: String, guessed| {
        *links.entry((from, to, label, guessed)).or_insert(0) += 1;
    };
    for edge in &graph.edges {
        match (graph.nodes.get(edge.from), graph.nodes.get(edge.to)) {
            (Some(Node::Cpu { cpu }), Some(Node::Cpu { cpu: target })) => {
                add(End::Cpu(*cpu), End::Cpu(*target), "wait".into(), false);
            }
            (Some(Node::Cpu { cpu }), Some(Node::Lock { .. })) => {
                add(End::Cpu(*cpu), End::Lock(edge.to), String::new(), false);
            }
            (Some(Node::Lock { .. }), Some(Node::Cpu { cpu })) => {
                add(End::Lock(edge.from), End::Cpu(*cpu), "held by".into(), false);
            }
            (Some(Node::Call { function, claimed, guessed, .. }), Some(Node::Cpu { cpu: target })) => {
                let before = graph.edges.iter().find(|before| before.to == edge.from);
                let waiter = before.and_then(|before| match graph.nodes.get(before.from) {
                    Some(Node::Cpu { cpu }) => Some(End::Cpu(*cpu)),
                    _ => None,
                });
                let kind = if waiter.is_some() { "call" } else { "post" };
                let name = function.as_ref().map_or_else(String::new, |name| format!(" {name}"));
                let state = if *claimed { "taken, not finished" } else { "not taken" };
                let label = format!("{kind}{name}, {state}");
                add(waiter.unwrap_or(End::Nobody), End::Cpu(*target), label, *guessed);
            }
            _ => {}
        }
    }
    links
}
