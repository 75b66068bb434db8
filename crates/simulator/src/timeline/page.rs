//! The page: its heading, time axis, breaks, CPU columns and legend, and the order in which things are drawn.

use super::activity::{Activity, Fate, SpanKind};
use super::findings::{Severity, findings, tally};
use super::labels::{Placer, Rect, Style, text_width};
use super::scale::Scale;
use super::selection::Selection;
use super::svg::Svg;
use super::units::{count, distinct, duration};
use super::{Input, Options, columns, marks};

pub(crate) const INK: &str = "#1b2430";
pub(crate) const GREY: &str = "#5b6673";
pub(crate) const RED: &str = "#c8001a";
pub(crate) const AMBER: &str = "#a35f00";
pub(crate) const PURPLE: &str = "#7a1fa2";
pub(crate) const GREEN: &str = "#17692f";
pub(crate) const BLUE: &str = "#1f5c9e";
/// Pixels left of the first column, for the time axis.
const LEFT: i32 = 92;
const RIGHT: i32 = 18;
/// Pixels between two columns at least and at most.
const NARROWEST: i32 = 26;
const WIDEST: i32 = 240;

/// Where the columns stand.
pub(super) struct Geometry {
    columns: Vec<u32>,
    /// Pixels from one column to the next.
    pub(super) pitch: i32,
    pub(super) width: i32,
}

impl Geometry {
    fn new(columns: &[u32], width: u32) -> Self {
        let wanted = i32::try_from(width).unwrap_or(i32::MAX).clamp(700, 20_000);
        let number = i32::try_from(columns.len()).unwrap_or(i32::MAX).max(1);
        let pitch = ((wanted - LEFT - RIGHT) / number).clamp(NARROWEST, WIDEST);
        let needed = LEFT + RIGHT + pitch.saturating_mul(number);
        // Few CPUs need no wide page, but the sentences above them do.
        Self { columns: columns.to_vec(), pitch, width: needed.max(wanted.min(980)) }
    }

    /// The middle of a CPU's column.
    pub(super) fn x(&self, cpu: u32) -> i32 {
        let column = self.columns.binary_search(&cpu).unwrap_or_else(|place| place);
        LEFT + self.pitch * column as i32 + self.pitch / 2
    }

    /// Whether columns are too narrow for more than a number.
    pub(super) fn is_narrow(&self) -> bool {
        self.pitch < 56
    }
}

/// A label that wants to be placed; lower priorities come first.
pub(super) struct Request {
    pub(super) priority: u32,
    pub(super) x: i32,
    pub(super) y: i32,
    /// Pixels between the point and the label; `None` puts the label under the point.
    pub(super) aside: Option<i32>,
    pub(super) reach: i32,
    /// The longest that fits is taken.
    pub(super) texts: Vec<String>,
    pub(super) style: Style,
}

/// What the drawing of columns, messages and marks shares.
pub(super) struct Page<'a> {
    pub(super) svg: Svg,
    pub(super) activity: &'a Activity,
    pub(super) selection: &'a Selection<'a>,
    pub(super) geometry: Geometry,
    pub(super) scale: Scale,
    pub(super) requests: Vec<Request>,
    /// What labels must not cover.
    pub(super) obstacles: Vec<Rect>,
}

pub(super) fn plain(size: i32, ink: &'static str) -> Style {
    Style { size, bold: false, ink, paper: "#ffffff", border: "none" }
}

pub(super) fn alarm(size: i32, paper: &'static str) -> Style {
    Style { size, bold: true, ink: "#ffffff", paper, border: paper }
}

/// Draws the whole document.
pub(super) fn draw(
    input: &Input<'_>,
    options: &Options,
    activity: &Activity,
    selection: &Selection<'_>,
) -> String {
    let geometry = Geometry::new(&selection.columns, options.width);
    let findings = findings(activity);
    let line_width = geometry.width - 2 * RIGHT;
    let sentences: Vec<(Severity, Vec<String>)> = findings
        .iter()
        .map(|finding| (finding.severity, wrap(&finding.text, line_width - 30, 14, true)))
        .collect();
    let subtitle = wrap(input.subtitle, line_width, 12, false);
    let sentence_lines: usize = sentences.iter().map(|(_, lines)| lines.len()).sum();
    let heading = 40 + 17 * subtitle.len() as i32 + 20 * sentence_lines as i32 + 8;
    let head_top = heading + 26;
    let scale = Scale::new(&selection.moments, head_top + 46, |from, to| selection.hides(from, to));
    let bottom = scale.bottom().max(head_top + 46) + 26;
    let mut page = Page {
        svg: Svg::default(),
        activity,
        selection,
        geometry,
        scale,
        requests: Vec::new(),
        obstacles: Vec::new(),
    };
    let mut notes = selection.notes.clone();
    if activity.first > 0 {
        notes.push(format!("Time 0 is {} ns on the machine's clock.", activity.first));
    }

    // Labels are placed before anything is drawn over them, but the number without a place belongs in a note,
    // and the notes decide the height of the document: so the body comes first, into a document of its own.
    page.svg.open("g", &[("class", &"body")]);
    page.stripes(head_top, bottom);
    page.breaks();
    page.lifelines(head_top, bottom);
    columns::draw(&mut page);
    marks::draw(&mut page);
    let homeless = page.labels(head_top + 30, bottom);
    if homeless > 0 {
        let labels = count(homeless, "label");
        notes.push(format!("No room for {labels}: point at a glyph to read its text."));
    }
    page.heads(head_top);
    if bottom - head_top > 1500 {
        page.heads(bottom + 4);
    }
    page.axis();
    let body = core::mem::take(&mut page.svg).finish();

    let legend_top = bottom + if bottom - head_top > 1500 { 44 } else { 14 };
    let legend_bottom = page.legend(legend_top, &body);
    let notes_bottom = page.notes(legend_bottom + 8, &notes);
    let foot = core::mem::take(&mut page.svg).finish();
    page.head(input, notes_bottom + 10, &subtitle, &sentences);
    let document = core::mem::take(&mut page.svg).finish();
    // The heading holds the root element, so the rest goes before its end.
    let root_end = document.rfind("</svg>").unwrap_or(document.len());
    let (head, tail) = document.split_at(root_end);
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{head}{body}{foot}{tail}")
}

impl Page<'_> {
    /// A text at its baseline.
    fn write(&mut self, class: &str, (x, y): (i32, i32), font: Font, text: &str) {
        let Font(size, bold, ink) = font;
        let weight = if bold { "bold" } else { "normal" };
        self.svg.text(
            "text",
            &[
                ("class", &class),
                ("x", &x),
                ("y", &y),
                ("font-size", &size),
                ("font-weight", &weight),
                ("fill", &ink),
            ],
            text,
        );
    }

    fn head(
        &mut self,
        input: &Input<'_>,
        height: i32,
        subtitle: &[String],
        sentences: &[(Severity, Vec<String>)],
    ) {
        let width = self.geometry.width;
        let view = format!("0 0 {width} {height}");
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
        self.svg.text("title", &[], input.title);
        self.svg.open("defs", &[]);
        self.svg.open(
            "pattern",
            &[
                ("id", &"hatch"),
                ("width", &6),
                ("height", &6),
                ("patternUnits", &"userSpaceOnUse"),
                ("patternTransform", &"rotate(45)"),
            ],
        );
        self.svg.leaf("rect", &[("width", &6), ("height", &6), ("fill", &"#ffffff")]);
        self.svg.leaf("rect", &[("width", &3), ("height", &6), ("fill", &GREY)]);
        self.svg.close();
        self.svg.close();
        self.svg.leaf("rect", &[("width", &width), ("height", &height), ("fill", &"#ffffff")]);
        self.write("title", (RIGHT, 28), Font(20, true, INK), input.title);
        let mut y = 46;
        for line in subtitle {
            self.write("subtitle", (RIGHT, y), Font(12, false, GREY), line);
            y += 17;
        }
        for (severity, lines) in sentences {
            let (ink, paper, class) = match severity {
                Severity::Bad => (RED, "#fdeaec", "finding bad"),
                Severity::Mended => (PURPLE, "#f5ebf9", "finding mended"),
                Severity::Good => (GREEN, "#e9f5ec", "finding good"),
            };
            let height = 20 * lines.len() as i32;
            let paper_width = width - 2 * RIGHT;
            self.svg.leaf(
                "rect",
                &[
                    ("x", &RIGHT),
                    ("y", &(y - 11)),
                    ("width", &paper_width),
                    ("height", &height),
                    ("fill", &paper),
                ],
            );
            self.svg.leaf(
                "rect",
                &[("x", &RIGHT), ("y", &(y - 11)), ("width", &5), ("height", &height), ("fill", &ink)],
            );
            for line in lines {
                self.write(class, (RIGHT + 14, y + 4), Font(14, true, ink), line);
                y += 20;
            }
        }
        let tally = tally(self.activity);
        self.write("tally", (RIGHT, y + 6), Font(12, false, GREY), &tally);
    }

    fn stripes(&mut self, top: i32, bottom: i32) {
        let (pitch, columns) = (self.geometry.pitch, self.selection.columns.clone());
        for cpu in columns.iter().step_by(2) {
            let x = self.geometry.x(*cpu) - pitch / 2;
            self.svg.leaf(
                "rect",
                &[
                    ("x", &x),
                    ("y", &top),
                    ("width", &pitch),
                    ("height", &(bottom - top)),
                    ("fill", &"#f6f7f9"),
                ],
            );
        }
    }

    fn breaks(&mut self) {
        let right = self.geometry.width - RIGHT / 2;
        for gap in self.scale.breaks.clone() {
            let mut edges = [gap.top, gap.bottom].map(|y| format!("M{} {y}", LEFT - 30));
            for edge in &mut edges {
                let teeth = (right - LEFT + 30) / 16;
                for _ in 0..teeth {
                    edge.push_str(" l8 -4 l8 4");
                }
            }
            self.svg.leaf(
                "rect",
                &[
                    ("class", &"break"),
                    ("x", &(LEFT - 30)),
                    ("y", &(gap.top - 2)),
                    ("width", &(right - LEFT + 30)),
                    ("height", &(gap.bottom - gap.top)),
                    ("fill", &"#e6eaef"),
                ],
            );
            for edge in &edges {
                self.svg.leaf("path", &[("d", edge), ("fill", &"none"), ("stroke", &"#97a3b0")]);
            }
            let text = self.selection.break_text(gap.from, gap.to);
            let style = Style { size: 12, bold: true, ink: INK, paper: "#e6eaef", border: "none" };
            let width = text_width(&text, 12, true) + 8;
            self.requests.push(Request {
                priority: 0,
                x: LEFT - 24 + width / 2,
                y: gap.top.midpoint(gap.bottom) - 9,
                aside: None,
                reach: 0,
                texts: vec![text],
                style,
            });
        }
    }

    fn lifelines(&mut self, top: i32, bottom: i32) {
        for cpu in self.selection.columns.clone() {
            let x = self.geometry.x(cpu);
            self.svg.leaf(
                "line",
                &[
                    ("class", &"lifeline"),
                    ("x1", &x),
                    ("y1", &(top + 28)),
                    ("x2", &x),
                    ("y2", &bottom),
                    ("stroke", &"#b4bdc8"),
                ],
            );
        }
    }

    /// The CPU numbers: red where an IPI was lost for good or the CPU is wedged, purple where one was repeated, amber where the wait is.
    fn heads(&mut self, top: i32) {
        let (pitch, narrow) = (self.geometry.pitch, self.geometry.is_narrow());
        for cpu in self.selection.columns.clone() {
            let (paper, ink) = match self.role(cpu) {
                Role::Deaf => (RED, "#ffffff"),
                Role::Mended => (PURPLE, "#ffffff"),
                Role::Waiting => ("#f6c453", INK),
                Role::Other => ("#e6eaef", INK),
            };
            let text = if narrow { cpu.to_string() } else { format!("CPU {cpu}") };
            let x = self.geometry.x(cpu);
            let width = (pitch - 4).min(72);
            let size = if narrow { 11 } else { 13 };
            self.svg.leaf(
                "rect",
                &[
                    ("class", &"head"),
                    ("x", &(x - width / 2)),
                    ("y", &top),
                    ("width", &width),
                    ("height", &24),
                    ("rx", &4),
                    ("fill", &paper),
                ],
            );
            self.svg.text(
                "text",
                &[
                    ("class", &"head"),
                    ("x", &x),
                    ("y", &(top + 17)),
                    ("font-size", &size),
                    ("font-weight", &"bold"),
                    ("text-anchor", &"middle"),
                    ("fill", &ink),
                ],
                &text,
            );
        }
        let corner = if narrow { "CPU" } else { "time" };
        self.write("axis", (RIGHT, top + 17), Font(11, false, GREY), corner);
    }

    fn role(&self, cpu: u32) -> Role {
        let mut role = Role::Other;
        if self.selection.spans.iter().any(|span| span.cpu == cpu && span.kind == SpanKind::Wedged) {
            return Role::Deaf;
        }
        for message in &self.activity.messages {
            if message.to == cpu && matches!(message.fate, Fate::Lost(_) | Fate::Rejected(_)) {
                if message.mended.is_none() {
                    return Role::Deaf;
                }
                role = Role::Mended;
            }
        }
        let breaks = &self.scale.breaks;
        let waits_long = self.selection.spans.iter().any(|span| {
            let end = span.end.unwrap_or(u64::MAX);
            let outlasts = |gap: &super::scale::Break| span.begin <= gap.from && gap.to <= end;
            span.cpu == cpu && matches!(span.kind, SpanKind::Wait { .. }) && breaks.iter().any(outlasts)
        });
        if role == Role::Other && waits_long { Role::Waiting } else { role }
    }

    /// Places and writes the labels; returns how many found no place.
    fn labels(&mut self, top: i32, bottom: i32) -> usize {
        let bounds = Rect {
            x: LEFT - 30,
            y: top,
            width: self.geometry.width - LEFT + 30 - 4,
            height: (bottom - top).max(0),
        };
        let mut placer = Placer::new(bounds);
        self.requests.sort_by_key(|request| request.priority);
        let mut obstacles = core::mem::take(&mut self.obstacles).into_iter();
        for request in core::mem::take(&mut self.requests) {
            // Only the texts of the breaks may lie below a glyph.
            if request.priority > 0 {
                obstacles.by_ref().for_each(|rect| placer.reserve(rect));
            }
            let Request { x, y, aside, reach, texts, style, .. } = request;
            if let Some(aside) = aside {
                placer.beside(x, y, aside, reach, &texts, style);
            } else {
                placer.centred(x, y, reach, &texts[0], style);
            }
        }
        for label in &placer.labels {
            let Rect { x, y, width, height } = label.rect;
            let Style { size, bold, ink, paper, border } = label.style;
            let opacity = if border == "none" { "0.86" } else { "1" };
            self.svg.leaf(
                "rect",
                &[
                    ("class", &"label"),
                    ("x", &x),
                    ("y", &y),
                    ("width", &width),
                    ("height", &height),
                    ("rx", &3),
                    ("fill", &paper),
                    ("fill-opacity", &opacity),
                ],
            );
            self.write("label", (x + 4, y + size), Font(size, bold, ink), &label.text);
        }
        placer.homeless
    }

    fn axis(&mut self) {
        let stops = self.scale.stops().to_vec();
        let begins = |time: u64| time == stops[0].0 || self.scale.break_before(time).is_some();
        let bases: Vec<u64> = stops.iter().map(|&(time, _)| time).filter(|&time| begins(time)).collect();
        let since: Vec<u64> = bases.iter().map(|base| base - self.activity.first).collect();
        let mut names = distinct(&since).into_iter();
        let mut texts = Vec::new();
        let mut last = (0, i32::MIN, String::new());
        for &(time, y) in &stops {
            if begins(time) {
                last = (time, y, names.next().unwrap_or_default());
                texts.push((y, Font(12, true, INK), last.2.clone()));
            } else if y - last.1 >= 44 {
                let text = format!("+{}", duration(time - last.0));
                if text != last.2 {
                    last = (last.0, y, text.clone());
                    texts.push((y, Font(11, false, GREY), text));
                }
            }
        }
        for (y, font, text) in texts {
            self.write("axis", (RIGHT - 10, y + 4), font, &text);
            self.svg.leaf(
                "line",
                &[("x1", &(LEFT - 12)), ("y1", &y), ("x2", &(LEFT - 4)), ("y2", &y), ("stroke", &"#97a3b0")],
            );
        }
    }

    /// Explains the glyphs that the body has.
    fn legend(&mut self, top: i32, body: &str) -> i32 {
        let mut cell = (RIGHT, top);
        for (class, text, draw) in marks::legend() {
            if !body.contains(&format!("class=\"{class}")) {
                continue;
            }
            let width = 40 + text_width(text, 11, false) + 12;
            if cell.0 + width > self.geometry.width {
                cell = (RIGHT, cell.1 + 22);
            }
            draw(&mut self.svg, cell.0, cell.1 + 9);
            self.write("legend", (cell.0 + 38, cell.1 + 13), Font(11, false, INK), text);
            cell.0 += width;
        }
        cell.1 + 22
    }

    fn notes(&mut self, top: i32, notes: &[String]) -> i32 {
        let mut y = top + 10;
        for note in notes {
            for line in wrap(note, self.geometry.width - 2 * RIGHT, 11, false) {
                self.write("note", (RIGHT, y), Font(11, false, GREY), &line);
                y += 15;
            }
        }
        y
    }
}

/// Size in pixels, whether bold, and colour.
#[derive(Clone, Copy)]
struct Font(i32, bool, &'static str);

/// What a CPU is in the story.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Deaf,
    Mended,
    Waiting,
    Other,
}

/// Splits a text into lines of at most `width` pixels, at blanks; a longer word stands on a line of its own.
fn wrap(text: &str, width: i32, size: i32, bold: bool) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if text_width(&format!("{line} {word}"), size, bold) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
