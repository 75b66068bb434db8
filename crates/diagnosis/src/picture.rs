//! The wait-for graph as a picture: who waits is on the left, what it waits for on the right, the culprit red.

mod layout;

use core::fmt::Write;

use crate::report::{CpuRow, Part, Report};
use crate::text;
use layout::{Arrow, Box as Cell, Layout};

const INK: &str = "#1b2430";
const GREY: &str = "#5b6673";
const RED: &str = "#c8001a";
const AMBER: &str = "#a35f00";
const BLUE: &str = "#1f5c9e";
const PURPLE: &str = "#7a1fa2";

/// Pixels.
const MARGIN: i32 = 24;
const HEAD: i32 = 96;
const FOOT: i32 = 48;
const BOX: (i32, i32) = (250, 74);

/// Places and counts in a picture are small.
fn pixels(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX / 4096)
}

/// Draws a report's graph as an SVG document.
pub fn svg(report: &Report) -> String {
    let layout = Layout::of(report);
    let place = |cell: &Cell| {
        let x = MARGIN + pixels(cell.column) * (BOX.0 + layout::GAP.0);
        let y = HEAD + pixels(cell.row) * (BOX.1 + layout::GAP.1);
        (x, y)
    };
    let columns = pixels(layout.boxes.iter().map(|cell| cell.column + 1).max().unwrap_or(1));
    let rows = pixels(layout.boxes.iter().map(|cell| cell.row + 1).max().unwrap_or(1));
    let headline = report.verdicts.first().map_or_else(String::new, text::headline);
    let lines = wrapped(&headline, 96);
    let width = (2 * MARGIN + columns * BOX.0 + (columns - 1) * layout::GAP.0).max(880);
    let head = (pixels(lines.len()) - 1) * 20;
    let height = HEAD + head + rows * BOX.1 + (rows - 1) * layout::GAP.1 + layout.below() + FOOT;
    let mut out = String::new();
    // Writing to a `String` cannot fail, here and below.
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"Helvetica, Arial, sans-serif\">\n<title>{}</title>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n",
        escaped(&headline)
    );
    for (number, line) in lines.iter().enumerate() {
        write_text(&mut out, (MARGIN, 34 + 20 * pixels(number)), 16, true, INK, line);
    }
    let about = &report.source;
    let kernel = about.kernel.as_ref().map_or_else(String::new, |kernel| format!(", kernel {kernel}"));
    write_text(
        &mut out,
        (MARGIN, 58 + head),
        13,
        false,
        GREY,
        &format!("{}{kernel}, {} CPUs known", about.kind, about.cpus),
    );
    let _ = writeln!(out, "<g transform=\"translate(0 {head})\">");
    if layout.boxes.is_empty() {
        write_text(&mut out, (MARGIN, HEAD + 30), 14, false, INK, "Nobody waits for anybody.");
    }
    for arrow in &layout.arrows {
        draw_arrow(&mut out, &layout, arrow, &place, HEAD + rows * (BOX.1 + layout::GAP.1) - layout::GAP.1);
    }
    for cell in &layout.boxes {
        draw_box(&mut out, report, cell, place(cell));
    }
    // Last, so that nothing is drawn over them.
    for arrow in &layout.arrows {
        draw_label(&mut out, &layout, arrow, &place, HEAD + rows * (BOX.1 + layout::GAP.1) - layout::GAP.1);
    }
    out.push_str("</g>\n");
    legend(&mut out, height - 18);
    if layout.arrows.iter().any(|arrow| arrow.guessed) {
        write_text(&mut out, (MARGIN + 600, height - 18), 12, false, GREY, "dashed: inferred");
    }
    if layout.left_out > 0 {
        let more = format!("and {} more, left out here", layout.left_out);
        write_text(&mut out, (MARGIN + 720, height - 18), 12, true, GREY, &more);
    }
    out.push_str("</svg>\n");
    out
}

fn ink_of(part: Part) -> (&'static str, &'static str) {
    match part {
        Part::Culprit => (RED, "#fde8ea"),
        Part::Stuck => (AMBER, "#fdf3dc"),
        Part::Waiter => (BLUE, "#e8f0fa"),
        Part::None => (GREY, "#f3f5f7"),
    }
}

fn legend(out: &mut String, y: i32) {
    let entries = [
        ("culprit", Part::Culprit),
        ("does not answer", Part::Stuck),
        ("waits", Part::Waiter),
        ("other", Part::None),
    ];
    for (number, (name, part)) in entries.into_iter().enumerate() {
        let x = MARGIN + 150 * pixels(number);
        let (ink, paper) = ink_of(part);
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"{}\" width=\"16\" height=\"12\" rx=\"3\" fill=\"{paper}\" stroke=\"{ink}\" stroke-width=\"2\"/>",
            y - 11
        );
        write_text(out, (x + 24, y), 12, false, GREY, name);
    }
}

fn draw_box(out: &mut String, report: &Report, cell: &Cell, (x, y): (i32, i32)) {
    let (width, height) = BOX;
    if let Some(lock) = &cell.lock {
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"36\" fill=\"#f6ecfa\" stroke=\"{PURPLE}\" \
             stroke-width=\"2\"/>"
        );
        write_text(out, (x + 24, y + 30), 15, true, PURPLE, "lock");
        write_text(out, (x + 24, y + 52), 12, false, INK, &shortened(lock, 30));
        if !cell.held {
            let x = x + width - 24;
            let _ = writeln!(
                out,
                "<text x=\"{x}\" y=\"{}\" font-size=\"12\" fill=\"{GREY}\" text-anchor=\"end\">holder unknown</text>",
                y + 29
            );
        }
        return;
    }
    let rows: Vec<&CpuRow> = cell.cpus.iter().filter_map(|&cpu| report.cpu(cpu)).collect();
    let part = rows.iter().map(|row| row.part).min().unwrap_or(Part::None);
    let (ink, paper) = ink_of(part);
    let _ = writeln!(
        out,
        "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"{paper}\" stroke=\"{ink}\" \
         stroke-width=\"2\"/>"
    );
    let title = if cell.cpus.is_empty() {
        "nobody".to_owned()
    } else {
        format!("CPU {}", shortened(&text::ranges(&cell.cpus), 22))
    };
    write_text(out, (x + 12, y + 24), 15, true, ink, &title);
    let state = match rows.first().map(|row| (row.online, row.interrupts_enabled)) {
        Some((Some(false), _)) => "offline",
        Some((_, Some(false))) => "interrupts off",
        Some((_, Some(true))) => "interrupts on",
        _ => "",
    };
    if rows.len() == 1 && !state.is_empty() {
        let ink = if state == "interrupts on" { GREY } else { RED };
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{}\" font-size=\"12\" fill=\"{ink}\" text-anchor=\"end\">{state}</text>",
            x + width - 12,
            y + 23
        );
    }
    let mut functions: Vec<&str> = rows.iter().filter_map(|row| row.function.as_deref()).collect();
    functions.dedup();
    let place = match functions.as_slice() {
        [] => String::new(),
        [one] => (*one).to_owned(),
        many => format!("{} and others", many[0]),
    };
    write_text(out, (x + 12, y + 44), 12, false, INK, &shortened(&place, 34));
    let task = match rows.as_slice() {
        [one] => one.task.as_ref().map(|task| match task.pid {
            Some(pid) => format!("{}, pid {pid}", task.name),
            None => task.name.clone(),
        }),
        _ => None,
    };
    write_text(out, (x + 12, y + 62), 12, false, GREY, &shortened(&task.unwrap_or_default(), 34));
}

/// Where an arrow begins, bends and ends; and where its label stands.
fn course(
    layout: &Layout,
    arrow: &Arrow,
    place: &dyn Fn(&Cell) -> (i32, i32),
    bottom: i32,
) -> (String, (i32, i32)) {
    let (from, to) = (&layout.boxes[arrow.from], &layout.boxes[arrow.to]);
    let (a, b) = (place(from), place(to));
    let mid = |y: i32| y + BOX.1 / 2;
    // Several arrows into one box end a little apart.
    let shift = pixels(arrow.lane) * 12 - pixels(arrow.lanes) * 6 + 6;
    if from.column < to.column {
        let (x1, y1, x2, y2) = (a.0 + BOX.0, mid(a.1), b.0 - 10, mid(b.1) + shift);
        let half = i32::midpoint(x1, x2);
        let path = format!("M {x1} {y1} C {half} {y1}, {half} {y2}, {x2} {y2}");
        // Beside the box that it comes from: there arrows are far apart.
        let along = if to.column - from.column > 1 { (x1 * 3 + x2) / 4 } else { half };
        return (path, (along, i32::midpoint(y1, y2)));
    }
    // Against the direction: below everything, back to the left.
    let depth = bottom + 22 + 30 * pixels(arrow.back);
    let (x1, x2) = (a.0 + BOX.0 / 2 + 20, b.0 + BOX.0 / 2 - 20);
    let (y1, y2) = (a.1 + BOX.1, b.1 + BOX.1 + 10);
    (
        format!(
            "M {x1} {y1} C {x1} {depth}, {x1} {depth}, {} {depth} S {x2} {depth}, {x2} {y2}",
            i32::midpoint(x1, x2)
        ),
        (i32::midpoint(x1, x2), depth),
    )
}

fn draw_arrow(
    out: &mut String,
    layout: &Layout,
    arrow: &Arrow,
    place: &dyn Fn(&Cell) -> (i32, i32),
    bottom: i32,
) {
    let (path, _) = course(layout, arrow, place, bottom);
    let dashes = if arrow.guessed { " stroke-dasharray=\"6 4\"" } else { "" };
    let _ = writeln!(out, "<path d=\"{path}\" fill=\"none\" stroke=\"{INK}\" stroke-width=\"2\"{dashes}/>");
    let (to, from) = (&layout.boxes[arrow.to], &layout.boxes[arrow.from]);
    let (x, y) = place(to);
    let head = if from.column < to.column {
        let shift = pixels(arrow.lane) * 12 - pixels(arrow.lanes) * 6 + 6;
        let y = y + BOX.1 / 2 + shift;
        format!("{},{} {},{} {x},{y}", x - 12, y - 6, x - 12, y + 6)
    } else {
        let x = x + BOX.0 / 2 - 20;
        let y = y + BOX.1;
        format!("{},{} {},{} {x},{y}", x - 6, y + 12, x + 6, y + 12)
    };
    let _ = writeln!(out, "<polygon points=\"{head}\" fill=\"{INK}\"/>");
}

fn draw_label(
    out: &mut String,
    layout: &Layout,
    arrow: &Arrow,
    place: &dyn Fn(&Cell) -> (i32, i32),
    bottom: i32,
) {
    let (_, (x, y)) = course(layout, arrow, place, bottom);
    let lines = wrapped(&arrow.label, 26);
    let widest = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
    let widest = pixels(widest);
    if widest == 0 {
        return;
    }
    let (width, height) = (widest * 7 + 10, pixels(lines.len()) * 15 + 4);
    let top = y - height / 2;
    let _ = writeln!(
        out,
        "<rect x=\"{}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" rx=\"3\" fill=\"#ffffff\" fill-opacity=\"0.92\"/>",
        x - width / 2
    );
    for (number, line) in lines.iter().enumerate() {
        let _ = writeln!(
            out,
            "<text x=\"{x}\" y=\"{}\" font-size=\"12\" fill=\"{INK}\" text-anchor=\"middle\">{}</text>",
            top + 14 + 15 * pixels(number),
            escaped(line)
        );
    }
}

fn write_text(out: &mut String, (x, y): (i32, i32), size: i32, bold: bool, ink: &str, text: &str) {
    if text.is_empty() {
        return;
    }
    let weight = if bold { " font-weight=\"bold\"" } else { "" };
    let _ = writeln!(
        out,
        "<text x=\"{x}\" y=\"{y}\" font-size=\"{size}\"{weight} fill=\"{ink}\">{}</text>",
        escaped(text)
    );
}

/// Text as it may stand in XML: names come from foreign memory.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            _ if character.is_control() || matches!(character, '\u{fffe}' | '\u{ffff}') => {
                out.push('\u{fffd}');
            }
            _ => out.push(character),
        }
    }
    out
}

fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['\u{2026}']).collect()
}

/// Lines of at most `most` characters; a word that is longer is cut.
fn wrapped(text: &str, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split_whitespace() {
        let word = shortened(word, most);
        let last = lines.last_mut().expect("there is always one");
        if last.is_empty() {
            *last = word;
        } else if last.chars().count() + 1 + word.chars().count() <= most {
            last.push(' ');
            last.push_str(&word);
        } else {
            lines.push(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::{LockEvidence, MachineEvidence};
    use crate::samples::{machine, waiting_call, waits_for_cpu_0};

    fn drawn(evidence: &MachineEvidence) -> String {
        svg(&Report::new("elf", evidence, 0.0))
    }

    #[test]
    fn a_picture_shows_who_waits_for_whom_and_what_for() {
        let svg = drawn(&waits_for_cpu_0(|cpu| cpu.interrupts_enabled = Some(false)));
        for part in
            ["CPU 0", "CPU 1", "interrupts off", "invalidate_bh_lru", "<polygon", "VERDICT interrupts-off"]
        {
            assert!(svg.contains(part), "{part} in {svg}");
        }
        assert_eq!(svg.matches("<path").count(), 1);
    }

    #[test]
    fn many_waiters_are_one_box_and_a_circle_goes_back() {
        let mut evidence = machine(16);
        evidence.calls = (1..16).map(|cpu| waiting_call(cpu, 0)).collect();
        assert_eq!(drawn(&evidence).matches("<path").count(), 1);
        assert!(drawn(&evidence).contains("CPU 1-15"));
        evidence.calls = vec![waiting_call(0, 1), waiting_call(1, 0)];
        assert_eq!(drawn(&evidence).matches("<path").count(), 2);
    }

    #[test]
    fn nothing_to_draw_and_hostile_names_are_drawn() {
        assert!(drawn(&machine(2)).contains("Nobody waits"));
        let mut evidence = waits_for_cpu_0(|cpu| cpu.function = Some("<script>&\u{0}".into()));
        evidence.locks.push(LockEvidence { name: "\"<".into(), waiters: vec![1], ..LockEvidence::default() });
        let svg = drawn(&evidence);
        assert!(!svg.contains("<script>") && !svg.contains('\0'), "{svg}");
    }
}
