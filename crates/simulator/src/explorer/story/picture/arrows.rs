//! The arrows between the boxes: messages, values, and who waits for whom.

use super::super::{Deed, Writers, words};
use super::{AMBER, BLUE, Column, PURPLE, Picture, RED};

impl Picture<'_> {
    /// The row that a line stands in.
    fn row_of(&self, line: usize) -> usize {
        self.rows.partition_point(|row| row.lines.1 < line)
    }

    /// The edge of a box that looks towards another column.
    fn edge(&self, row: usize, cpu: usize, towards: usize) -> (i32, i32) {
        let Column { x, width } = self.columns[cpu];
        let block = self.blocks[row][cpu].as_ref();
        let indent = block.map_or(0, |block| block.indent);
        let x = match (towards < cpu, block) {
            (true, _) => x + indent,
            (false, Some(block)) => x + block.width(),
            (false, None) => x + width,
        };
        (x, self.bands[row].middle())
    }

    /// A curve from one box to another one, with words that a reader sees who points at it.
    fn arrow(&mut self, from: (i32, i32), to: (i32, i32), ink: (&str, &str), dashes: &str, words: &str) {
        let (name, ink) = ink;
        let bend = ((to.0 - from.0) / 2).abs().max(24) * (to.0 - from.0).signum();
        let path = format!(
            "M{} {} C{} {} {} {} {} {}",
            from.0,
            from.1,
            from.0 + bend,
            from.1,
            to.0 - bend,
            to.1,
            to.0,
            to.1
        );
        let marker = format!("url(#{name})");
        self.svg.open("g", &[("class", &name)]);
        self.svg.text("title", &[], words);
        self.svg.leaf(
            "path",
            &[
                ("d", &path),
                ("fill", &"none"),
                ("stroke", &ink),
                ("stroke-width", &"1.6"),
                ("stroke-dasharray", &dashes),
                ("marker-end", &marker),
            ],
        );
        self.svg.close();
    }

    /// Each message, to the interrupt that was taken for it; to where it was lost; or to the IRR where it stayed.
    pub(super) fn messages(&mut self) {
        let account = self.account;
        for (index, line) in account.lines.iter().enumerate() {
            let Deed::Send { vector, targets, lost } = &line.deed else { continue };
            let (from, row) = (usize::from(line.cpu), self.row_of(index));
            for target in targets.iter().filter(|&&target| target != line.cpu) {
                let cpu = usize::from(*target);
                let start = self.edge(row, from, cpu);
                if lost.contains(target) {
                    self.lost(start, self.edge(row, cpu, from));
                    continue;
                }
                let rest = account.lines.iter().enumerate().skip(index + 1);
                let taken = rest
                    .take_while(|(_, later)| !is_merged(&later.deed, *vector, *target))
                    .find(|(_, later)| later.cpu == *target && later.deed == Deed::Enter { vector: *vector });
                let words = format!("row {}: {} to CPU {target}", index + 1, words::vector(*vector));
                // What is not taken stays in the IRR: a dashed arrow.
                let (end, dashes) = taken.map_or((row, "4 3"), |(taken, _)| (self.row_of(taken), "none"));
                self.arrow(start, self.edge(end, cpu, from), ("purple", PURPLE), dashes, &words);
            }
        }
    }

    /// A message that does not arrive: a red line to a cross before the other column.
    fn lost(&mut self, from: (i32, i32), to: (i32, i32)) {
        let x = to.0 - 14 * (to.0 - from.0).signum();
        let path = format!("M{} {} L{x} {}", from.0, from.1, to.1);
        let y = to.1;
        let cross = format!("M{} {} l12 12 m0 -12 l-12 12", x - 6, y - 6);
        for (path, width) in [(path, "1.6"), (cross, "3")] {
            let attributes: [(&'static str, &dyn core::fmt::Display); 5] = [
                ("class", &"lost"),
                ("d", &path),
                ("fill", &"none"),
                ("stroke", &RED),
                ("stroke-width", &width),
            ];
            self.svg.leaf("path", &attributes);
        }
    }

    /// From each write to the reads of another CPU that find its value.
    pub(super) fn values(&mut self) {
        let account = self.account;
        for (index, line) in account.lines.iter().enumerate() {
            let Some(name) = line.deed.reads() else { continue };
            let before = account.lines[..index].iter().enumerate();
            let Some((writer, written)) = before.rev().find(|(_, line)| line.deed.writes(name)) else {
                continue;
            };
            if written.cpu == line.cpu {
                continue;
            }
            let (from, to) = (usize::from(written.cpu), usize::from(line.cpu));
            let start = self.edge(self.row_of(writer), from, to);
            let end = self.edge(self.row_of(index), to, from);
            let words = format!("row {} reads the {name} of row {}", index + 1, writer + 1);
            let evidence = &account.ending.evidence;
            let race = evidence.contains(&writer) && evidence.contains(&index);
            self.arrow(start, end, if race { ("red", RED) } else { ("blue", BLUE) }, "none", &words);
        }
    }

    /// From each CPU that waits in the end to those that could wake it.
    pub(super) fn waits(&mut self) {
        let account = self.account;
        let row = self.rows.len();
        for (cpu, end) in account.ending.cpus.iter().enumerate() {
            for awaited in &end.waits_for {
                let Writers::Cpus(writers) = &awaited.writers else { continue };
                for &writer in writers {
                    let writer = usize::from(writer);
                    if writer == cpu || writer >= self.columns.len() {
                        continue;
                    }
                    // Two CPUs that wait for each other have an arrow each.
                    let shift = if cpu < writer { -6 } else { 6 };
                    let (start, end) = (self.edge(row, cpu, writer), self.edge(row, writer, cpu));
                    let words = format!("CPU {cpu} waits for CPU {writer}");
                    let (start, end) = ((start.0, start.1 + shift), (end.0, end.1 + shift));
                    self.arrow(start, end, ("amber", AMBER), "6 3", &words);
                }
            }
        }
    }
}

/// Whether this sends the same vector to the same CPU: an interrupt after that may be for both.
fn is_merged(deed: &Deed, number: Option<u8>, target: u16) -> bool {
    matches!(deed, Deed::Send { vector, targets, lost }
        if *vector == number && targets.contains(&target) && !lost.contains(&target))
}
