//! The picture of an account: the table with boxes, an arrow for each message and for each value from another CPU, and the
//! waits of the end.
//!
//! There is no time in an account, so a row is as high as its text. Purple: messages and what handlers do; blue: values that
//! another CPU has written; red: what is lost, and what the violation is about; amber: who waits for whom in the end.

// Pixels are signed and few.
#![allow(clippy::cast_possible_wrap, clippy::cast_sign_loss)]

use super::rows::{Cell, Row, rows};
use super::{Account, CpuEnd, Deed, InterruptState, Status, words};
use crate::timeline::{AMBER, BLUE, GREY, INK, PURPLE, RED, Svg, text_width};

mod arrows;
#[cfg(test)]
mod tests;

/// Left of the first column, for the rows' numbers.
const LEFT: i32 = 62;
/// Between two columns, for the arrows.
const GUTTER: i32 = 56;
/// How far the operations of a handler stand to the right of what it interrupts.
const INDENT: i32 = 16;
/// Inside a box, at each side.
const PADDING: i32 = 7;
const LINE: i32 = 15;
/// Between two rows.
const GAP: i32 = 8;
/// Longer texts are broken.
const CHARACTERS: usize = 40;

const LEGEND: &str = "Purple: interrupts. Blue: a value that another CPU wrote. Red: what is lost, and what the violation \
                      is about. Amber: who waits for whom.";

/// What stands in a box.
struct Block {
    lines: Vec<String>,
    /// Smaller, below: the place in the source, and what changes.
    small: Vec<String>,
    ink: &'static str,
    indent: i32,
    /// Whether it is something that happens to the CPU: then it has no box.
    passive: bool,
}

impl Block {
    fn width(&self) -> i32 {
        let widths = self.lines.iter().map(|line| text_width(line, 12, true));
        let small = self.small.iter().map(|line| text_width(line, 11, false));
        widths.chain(small).max().unwrap_or(0) + self.indent + 2 * PADDING
    }

    fn height(&self) -> i32 {
        (self.lines.len() + self.small.len()) as i32 * LINE + 6
    }
}

/// A column: its left edge and its width.
#[derive(Clone, Copy)]
struct Column {
    x: i32,
    width: i32,
}

/// The upper edge and the height of a row.
#[derive(Clone, Copy)]
struct Band {
    y: i32,
    height: i32,
}

impl Band {
    fn middle(self) -> i32 {
        self.y + self.height / 2
    }
}

struct Picture<'a> {
    svg: Svg,
    account: &'a Account,
    rows: Vec<Row>,
    blocks: Vec<Vec<Option<Block>>>,
    columns: Vec<Column>,
    bands: Vec<Band>,
    width: i32,
}

/// Draws an account as an SVG 1.1 document. The same account gives the same document, byte for byte.
pub(super) fn draw(account: &Account) -> String {
    let rows = rows(account, true);
    let mut blocks: Vec<Vec<Option<Block>>> = rows.iter().map(|row| row_blocks(account, row)).collect();
    let ends = (0..).zip(&account.ending.cpus).map(|(cpu, end)| Some(end_block(account, cpu, end)));
    blocks.push(ends.collect());
    let mut x = LEFT;
    let mut columns = Vec::new();
    for cpu in 0..account.start.len() {
        let widths = blocks.iter().filter_map(|row| row.get(cpu)?.as_ref()).map(Block::width);
        let width = widths.max().unwrap_or(0).max(90);
        columns.push(Column { x, width });
        x += width + GUTTER;
    }
    let width = (x - GUTTER + 18).max(640).max(text_width(&account.title, 18, true) + 36);
    let mut picture =
        Picture { svg: Svg::default(), account, rows, blocks, columns, bands: Vec::new(), width };
    picture.document()
}

/// The boxes of a row.
fn row_blocks(account: &Account, row: &Row) -> Vec<Option<Block>> {
    let (first, last) = row.lines;
    let block = |(of, cell): (usize, &Cell)| {
        if cell.is_empty() {
            return None;
        }
        let line = &account.lines[first];
        let passive = of != usize::from(row.cpu);
        let ink = match &line.deed {
            Deed::Send { lost: targets, .. }
                if targets.iter().any(|&cpu| !passive || usize::from(cpu) == of) =>
            {
                RED
            }
            Deed::Wedge if !passive => RED,
            _ if passive => GREY,
            Deed::Enter { .. } | Deed::Return => PURPLE,
            _ if line.depth > 0 => PURPLE,
            _ => INK,
        };
        let fill = |parts: &[String]| words::fill(parts, CHARACTERS, CHARACTERS);
        let (lines, small) = if passive || first != last {
            (fill(&cell.parts), Vec::new())
        } else {
            let headline = words::headline(line);
            let mut rest = Vec::new();
            if !line.source.is_empty() && line.deed != Deed::Return {
                let at = if matches!(line.deed, Deed::Enter { .. }) { "at " } else { "" };
                rest.push(format!("{at}{}", line.source));
            }
            rest.extend(cell.changes.iter().cloned());
            (fill(&headline), if rest.is_empty() { rest } else { fill(&rest) })
        };
        let indent = if passive { 0 } else { INDENT * i32::from(line.depth) };
        Some(Block { lines, small, ink, indent, passive })
    };
    row.cells.iter().enumerate().map(block).collect()
}

/// What a CPU is about in the end.
fn end_block(account: &Account, cpu: u16, end: &CpuEnd) -> Block {
    let (what, ink) = match end.status {
        Status::Runs => ("can go on", INK),
        Status::Waits => ("WAITS", AMBER),
        Status::Halts => ("IS HALTED", AMBER),
        Status::Wedged => ("IS WEDGED", RED),
        Status::Ended => ("has ended", GREY),
    };
    let mut small = Vec::new();
    if !end.source.is_empty() {
        small.push(format!("at {}", end.source));
    }
    for awaited in &end.waits_for {
        small.push(format!("for {} {}", awaited.variable, awaited.condition));
        small.push(format!("(it is {})", words::value(awaited.value)));
    }
    let last = account.lines.last().map_or(&account.start, |line| &line.after);
    if let Some(state) = last.get(usize::from(cpu)) {
        // As changes from a state that nothing is in.
        let nothing = InterruptState { enabled: !state.enabled, ..InterruptState::default() };
        small.push(words::changes(&nothing, state).join(" "));
    }
    let small = small
        .iter()
        .flat_map(|line| words::fill(core::slice::from_ref(line), CHARACTERS, CHARACTERS))
        .collect();
    Block { lines: vec![what.into()], small, ink, indent: 0, passive: false }
}

impl Picture<'_> {
    fn document(&mut self) -> String {
        let account = self.account;
        let mut head = String::new();
        // No character is wider than this on average, in bold and in 14 pixels.
        words::wrap(&mut head, (self.width / 10) as usize, "", "", &account.ending.violation.to_string());
        let characters = (self.width / 8) as usize;
        let mut foot = String::new();
        words::wrap(&mut foot, characters, "", "", LEGEND);
        foot.push('\n');
        foot.push_str(&account.ending_text(characters));
        foot.push('\n');
        words::wrap(&mut foot, characters, "", "    ", &account.replay_line());
        let head_top = 52;
        let head_height = 20 * head.lines().count() as i32;
        let mut y = head_top + head_height + 44;
        for row in &self.blocks {
            let height = row.iter().flatten().map(Block::height).max().unwrap_or(LINE);
            self.bands.push(Band { y, height });
            // The ends stand apart.
            y += height + if self.bands.len() == self.rows.len() { 34 } else { GAP };
        }
        self.open(y + 24 + 17 * foot.lines().count() as i32);
        self.write((18, 30), (18, true, INK), &account.title);
        self.rectangle((18, head_top - 4, self.width - 36, head_height + 4), "#fdeaec", "none");
        for (index, line) in (0..).zip(head.lines()) {
            self.write((26, head_top + 13 + 20 * index), (14, true, RED), line);
        }
        self.lifelines();
        self.handlers();
        self.evidence();
        self.messages();
        self.values();
        self.waits();
        self.boxes();
        for (index, line) in (0..).zip(foot.lines()) {
            // What is indented in text is indented here.
            let indent = line.len() - line.trim_start().len();
            self.write((18 + 5 * indent as i32, y + 24 + 17 * index), (12, false, INK), line.trim_start());
        }
        let document = core::mem::take(&mut self.svg).finish();
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{document}")
    }

    fn open(&mut self, height: i32) {
        let (width, view) = (self.width, format!("0 0 {} {height}", self.width));
        self.svg.open(
            "svg",
            &[
                ("xmlns", &"http://www.w3.org/2000/svg"),
                ("version", &"1.1"),
                ("width", &width),
                ("height", &height),
                ("viewBox", &view),
                ("font-family", &"Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"),
            ],
        );
        self.svg.text("title", &[], &self.account.title);
        self.svg.open("defs", &[]);
        for (name, ink) in [("purple", PURPLE), ("blue", BLUE), ("red", RED), ("amber", AMBER)] {
            self.svg.open(
                "marker",
                &[
                    ("id", &name),
                    ("markerWidth", &9),
                    ("markerHeight", &8),
                    ("refX", &8),
                    ("refY", &4),
                    ("orient", &"auto"),
                    ("markerUnits", &"userSpaceOnUse"),
                ],
            );
            self.svg.leaf("path", &[("d", &"M0 0 L9 4 L0 8 z"), ("fill", &ink)]);
            self.svg.close();
        }
        self.svg.close();
        self.rectangle((0, 0, width, height), "#ffffff", "none");
    }

    fn write(&mut self, (x, y): (i32, i32), (size, bold, ink): (i32, bool, &str), text: &str) {
        let weight = if bold { "bold" } else { "normal" };
        self.svg.text(
            "text",
            &[("x", &x), ("y", &y), ("font-size", &size), ("font-weight", &weight), ("fill", &ink)],
            text,
        );
    }

    fn rectangle(&mut self, (x, y, width, height): (i32, i32, i32, i32), fill: &str, stroke: &str) {
        self.svg.leaf(
            "rect",
            &[
                ("x", &x),
                ("y", &y),
                ("width", &width),
                ("height", &height),
                ("rx", &3),
                ("fill", &fill),
                ("stroke", &stroke),
            ],
        );
    }

    /// A line from one column down to its end, and its head.
    fn lifelines(&mut self) {
        let (Some(&first), Some(&last)) = (self.bands.first(), self.bands.last()) else { return };
        for (cpu, Column { x, width }) in self.columns.clone().into_iter().enumerate() {
            self.rectangle((x, first.y - 34, width, 24), "#e6eaef", "none");
            self.write((x + PADDING, first.y - 17), (13, true, INK), &format!("CPU {cpu}"));
            let middle = x + width / 2;
            self.svg.leaf(
                "line",
                &[
                    ("x1", &middle),
                    ("y1", &(first.y - 10)),
                    ("x2", &middle),
                    ("y2", &last.y),
                    ("stroke", &"#d5dae1"),
                ],
            );
        }
    }

    /// A bar beside what a handler does, from the interrupt to its return, or to the end.
    fn handlers(&mut self) {
        for index in 0..self.rows.len() {
            let line = &self.account.lines[self.rows[index].lines.0];
            if !matches!(line.deed, Deed::Enter { .. }) {
                continue;
            }
            let (cpu, depth) = (line.cpu, line.depth);
            let is_return = |row: &Row| {
                let line = &self.account.lines[row.lines.0];
                line.cpu == cpu && line.depth == depth && line.deed == Deed::Return
            };
            let last = (index + 1..self.rows.len()).find(|&row| is_return(&self.rows[row]));
            let (from, to) = (self.bands[index], self.bands[last.unwrap_or(self.rows.len() - 1)]);
            let x = self.columns[usize::from(cpu)].x + INDENT * i32::from(depth) + 4;
            self.rectangle((x, from.y, 4, to.y + to.height - from.y), PURPLE, "none");
        }
    }

    fn evidence(&mut self) {
        for index in 0..self.rows.len() {
            let Band { y, height } = self.bands[index];
            let evidence = self.rows[index].evidence;
            let (ink, number) = (if evidence { RED } else { GREY }, self.rows[index].number());
            if evidence {
                self.rectangle((8, y - 3, self.width - 16, height + 6), "#fdeaec", "none");
            }
            self.write((18, y + height / 2 + 4), (12, evidence, ink), &number);
        }
    }

    fn boxes(&mut self) {
        let blocks = core::mem::take(&mut self.blocks);
        for (row, band) in blocks.iter().zip(self.bands.clone()) {
            for (block, column) in row.iter().zip(self.columns.clone()) {
                let Some(block) = block else { continue };
                let (x, height) = (column.x + block.indent, block.height());
                let y = band.middle() - height / 2;
                if !block.passive {
                    let margin = if block.indent > 0 { 2 } else { 0 };
                    let width = block.width() - block.indent - margin;
                    let stroke = if block.ink == INK { "#97a3b0" } else { block.ink };
                    self.rectangle((x + margin, y, width, height), "#ffffff", stroke);
                }
                let x = x + PADDING + if block.indent > 0 { 2 } else { 0 };
                let mut baseline = y + LINE - 1;
                for line in &block.lines {
                    self.write((x, baseline), (12, !block.passive, block.ink), line);
                    baseline += LINE;
                }
                for line in &block.small {
                    self.write((x, baseline), (11, false, GREY), line);
                    baseline += LINE;
                }
            }
        }
    }
}
