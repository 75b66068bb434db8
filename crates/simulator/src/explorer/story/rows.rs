//! The rows of the table: what stands in which CPU's column.

use core::fmt::Write;

use super::{Account, Deed, words};

/// What stands in one CPU's column of a row.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    /// Before each of its lines of text: the handlers that it is in.
    pub(super) margin: String,
    /// Before its first line only: an interrupt begins or ends.
    pub(super) sign: &'static str,
    /// The parts between which it may be broken.
    pub(super) parts: Vec<String>,
    /// Those of them that say what is different in the interrupt state.
    pub(super) changes: Vec<String>,
}

impl Cell {
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// All in one line.
    pub(super) fn text(&self) -> String {
        format!("{}{}{}", self.margin, self.sign, self.parts.join(" "))
    }
}

/// A row.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// The first and the last line that it stands for, from 0.
    pub(super) lines: (usize, usize),
    /// Who does it.
    pub(super) cpu: u16,
    /// Whether the violation is about it.
    pub(super) evidence: bool,
    /// A cell for each CPU, by their numbers.
    pub(super) cells: Vec<Cell>,
}

impl Row {
    /// `7`, or `7-9`.
    pub(super) fn number(&self) -> String {
        let (first, last) = self.lines;
        if first == last { format!("{}", first + 1) } else { format!("{}-{}", first + 1, last + 1) }
    }

    /// The row as one line of text.
    pub(super) fn sentence(&self, account: &Account) -> String {
        let own = &self.cells[usize::from(self.cpu)];
        let depth = match account.lines[self.lines.0].depth {
            0 => String::new(),
            1 => " (in a handler)".into(),
            depth => format!(" (in {depth} handlers)"),
        };
        let mut sentence = format!("CPU {}{depth}: {}{}", self.cpu, own.sign, own.parts.join(" "));
        for (cpu, cell) in self.cells.iter().enumerate() {
            if cpu != usize::from(self.cpu) && !cell.is_empty() {
                // Writing to a `String` cannot fail.
                let _ = write!(sentence, "; CPU {cpu} {}", cell.parts.join(" "));
            }
        }
        sentence
    }
}

/// The rows of an account.
pub(super) fn rows(account: &Account, fold: bool) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut before = &account.start;
    for (index, line) in account.lines.iter().enumerate() {
        let cpus = account.start.len().max(usize::from(line.cpu) + 1);
        let mut cells = vec![Cell::default(); cpus];
        for (cpu, cell) in cells.iter_mut().enumerate() {
            let states = before.get(cpu).zip(line.after.get(cpu));
            let changes = states.map(|(before, after)| words::changes(before, after)).unwrap_or_default();
            if cpu == usize::from(line.cpu) {
                cell.margin = ": ".repeat(line.depth.into());
                cell.sign = match line.deed {
                    Deed::Enter { .. } => ">> ",
                    Deed::Return => "<< ",
                    _ => "",
                };
                cell.parts = words::line(line);
                cell.parts.extend(changes.iter().cloned());
                cell.changes = changes;
                continue;
            }
            let mut passive = changes;
            if let Deed::Send { vector, lost, .. } = &line.deed
                && lost.iter().any(|&lost| usize::from(lost) == cpu)
            {
                passive.insert(0, format!("x {} lost", words::vector(*vector)));
            }
            if !passive.is_empty() {
                cell.parts = vec![format!("({})", passive.join(" "))];
            }
        }
        let evidence = account.ending.evidence.contains(&index);
        let alone = cells.iter().filter(|cell| !cell.is_empty()).count() == 1;
        let row = Row { lines: (index, index), cpu: line.cpu, evidence, cells };
        let follows = fold
            && index > 0
            && alone
            && line.local
            && account.lines[index - 1].local
            && rows.last().is_some_and(|last| {
                let quiet = last.cells.iter().filter(|cell| !cell.is_empty()).count() == 1;
                let same = last.cpu == row.cpu && account.lines[index - 1].depth == line.depth;
                quiet && same && last.evidence == evidence
            });
        match rows.last_mut() {
            Some(last) if follows => {
                last.lines.1 = index;
                let cell = &mut last.cells[usize::from(row.cpu)];
                if let Some(part) = cell.parts.last_mut() {
                    part.push(';');
                }
                cell.parts.extend(row.cells[usize::from(row.cpu)].parts.iter().cloned());
            }
            _ => rows.push(row),
        }
        before = &line.after;
    }
    rows
}
