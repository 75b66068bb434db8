//! What lasts on one CPU, drawn on its column: waits, interrupts, closures and wedges.

use super::activity::{Span, SpanKind};
use super::labels::{Rect, Style};
use super::page::{AMBER, BLUE, GREEN, GREY, INK, Page, RED, Request, plain};
use super::units::{count, duration};

/// A bar: how far left of the column's middle it begins, how wide it is, and its colours.
struct Bar {
    class: &'static str,
    left: i32,
    width: i32,
    fill: &'static str,
    stroke: &'static str,
}

/// Draws all spans, the ones that enclose others first.
pub(super) fn draw(page: &mut Page<'_>) {
    let mut spans = page.selection.spans.clone();
    spans.sort_by_key(|span| (layer(&span.kind), span.depth));
    for span in spans {
        draw_span(page, span);
    }
}

fn layer(kind: &SpanKind) -> u32 {
    match kind {
        SpanKind::Wedged => 0,
        SpanKind::Wait { .. } => 1,
        SpanKind::Interrupt { .. } => 2,
        SpanKind::Closure { .. } | SpanKind::Stopped => 3,
    }
}

fn bar(kind: &SpanKind, depth: u32, narrow: bool) -> Bar {
    let depth = depth.min(3) as i32;
    let half = if narrow { 4 } else { 8 };
    match kind {
        SpanKind::Wedged => {
            Bar { class: "wedged", left: half + 3, width: 2 * half + 6, fill: "url(#hatch)", stroke: RED }
        }
        SpanKind::Stopped => {
            Bar { class: "stopped", left: half / 4, width: half / 2, fill: INK, stroke: "none" }
        }
        SpanKind::Wait { expired, .. } => Bar {
            class: "wait",
            left: half - depth,
            width: 2 * half,
            fill: "#f6c453",
            stroke: if *expired { RED } else { AMBER },
        },
        SpanKind::Interrupt { ipi: true, .. } => Bar {
            class: "interrupt of-ipi",
            left: half / 2 - 2 * depth,
            width: half,
            fill: "#cfe0f3",
            stroke: BLUE,
        },
        SpanKind::Interrupt { ipi: false, .. } => Bar {
            class: "interrupt other",
            left: half / 2 - 2 * depth,
            width: half,
            fill: "#e3e6ea",
            stroke: GREY,
        },
        SpanKind::Closure { panicked, .. } => {
            let fill = if *panicked { RED } else { "#2f9e55" };
            Bar { class: "closure", left: half / 4 - 2 * depth, width: half / 2, fill, stroke: "none" }
        }
    }
}

fn draw_span(page: &mut Page<'_>, span: &Span) {
    let x = page.geometry.x(span.cpu);
    let end = span.end.unwrap_or(page.activity.last).min(page.activity.last);
    let (top, below) = (page.scale.y(span.begin), page.scale.y(end));
    let open_tail = if span.end.is_none() { 14 } else { 0 };
    let height = (below - top + open_tail).max(3);
    let bar = bar(&span.kind, span.depth, page.geometry.is_narrow());
    let (left, length) = (x - bar.left, duration(end - span.begin));
    let open = if span.end.is_none() { ", not over when the trace ends" } else { "" };
    page.svg.open("g", &[("class", &bar.class)]);
    page.svg.text("title", &[], &format!("CPU {}: {}, {length}{open}", span.cpu, describe(&span.kind)));
    page.svg.leaf(
        "rect",
        &[
            ("x", &left),
            ("y", &top),
            ("width", &bar.width),
            ("height", &height),
            ("fill", &bar.fill),
            ("stroke", &bar.stroke),
        ],
    );
    if let SpanKind::Wait { .. } = span.kind {
        // Of those inside of a break only one that led to what follows it: the others cannot be told apart.
        let together = page.selection.moments.together;
        let hidden = |look: u64| {
            page.scale.breaks.iter().any(|gap| gap.from < look && look.saturating_add(together) < gap.to)
        };
        let shown = span.looks.iter().filter(|&&look| !hidden(look));
        let mut ys: Vec<i32> = shown.map(|&look| page.scale.y(look)).collect();
        ys.dedup();
        for y in ys {
            let look = format!("M{} {y} h{}", left - 4, bar.width + 8);
            page.svg
                .leaf("path", &[("class", &"look"), ("d", &look), ("stroke", &RED), ("stroke-width", &2)]);
        }
    }
    if let SpanKind::Interrupt { ended: Some(ended), .. } = span.kind {
        let path = format!("M{left} {} h{}", page.scale.y(ended), bar.width);
        page.svg
            .leaf("path", &[("class", &"eoi"), ("d", &path), ("stroke", &bar.stroke), ("stroke-width", &2)]);
    }
    if span.end.is_none() && bar.width > 3 {
        // A torn lower edge: this goes on.
        let tear =
            format!("M{left} {} l{w} 4 l{w} -4 v4 h-{} z", top + height - 3, bar.width, w = bar.width / 2);
        page.svg.leaf("path", &[("d", &tear), ("fill", &"#ffffff")]);
    }
    page.svg.close();
    if matches!(span.kind, SpanKind::Wait { .. }) && height > 40 {
        // Labels of others stand beside it.
        page.obstacles.push(Rect { x: left, y: top, width: bar.width, height });
    }
    if let Some(request) = label(page, span, &length) {
        page.requests.push(Request { x, aside: Some(page_aside(page)), ..request });
    }
}

fn page_aside(page: &Page<'_>) -> i32 {
    if page.geometry.is_narrow() { 7 } else { 12 }
}

fn describe(kind: &SpanKind) -> String {
    match kind {
        SpanKind::Interrupt { vector, ipi, .. } => {
            let what = if *ipi { "handler of IPI" } else { "handler of interrupt" };
            format!("{what} {vector:#04x}")
        }
        SpanKind::Wait { target, frame, expired } => {
            let whom = target.map_or_else(String::new, |cpu| format!(" for CPU {cpu}"));
            let place = frame.as_ref().map_or_else(String::new, |name| format!(" in {name}"));
            let how = if *expired { ", ended by its time limit" } else { "" };
            format!("waits{whom}{place}{how}")
        }
        SpanKind::Closure { caller, panicked } => {
            let whom = caller.map_or_else(String::new, |cpu| format!(" of CPU {cpu}"));
            let how = if *panicked { ", which panics" } else { "" };
            format!("runs the call{whom}{how}")
        }
        SpanKind::Wedged => "wedged, interrupts off".into(),
        SpanKind::Stopped => "stopped on purpose, by the crash dump".into(),
    }
}

/// The label of a span that is worth one without pointing at it.
fn label(page: &Page<'_>, span: &Span, length: &str) -> Option<Request> {
    let end = span.end.unwrap_or(u64::MAX);
    let outlasted = page.scale.breaks.iter().filter(|gap| span.begin <= gap.from && gap.to <= end);
    let longest = outlasted.max_by_key(|gap| gap.to - gap.from);
    let begin_y = page.scale.y(span.begin);
    let request = |priority, y, texts, style| {
        let reach = if priority < 5 { 8 } else { 3 };
        Some(Request { priority, x: 0, y, aside: None, reach, texts, style })
    };
    match &span.kind {
        SpanKind::Wait { target, frame, expired } => {
            let whom = target.map_or_else(String::new, |cpu| format!(" for CPU {cpu}"));
            let place = frame.as_ref().map_or_else(String::new, |name| format!(" in {name}"));
            let looks = match span.looks.len() {
                0 => String::new(),
                number => ", ".to_owned() + &count(number, "look"),
            };
            let how = match (span.end, expired) {
                (None, _) => looks + ", still waiting",
                (_, true) => looks + ", no answer",
                _ => looks,
            };
            let texts = vec![
                format!("waits {length}{whom}{place}{how}"),
                format!("waits {length}{whom}{how}"),
                format!("waits {length}{how}"),
                format!("waits {length}"),
            ];
            let important = longest.is_some() || span.end.is_none() || *expired;
            let style = Style { size: 12, bold: important, ink: AMBER, paper: "#ffffff", border: "none" };
            let y = longest.map_or(begin_y, |gap| gap.top.midpoint(gap.bottom));
            request(if important { 3 } else { 8 }, y, texts, style)
        }
        SpanKind::Interrupt { vector, ipi: false, .. } => {
            let texts = vec![format!("interrupt {vector:#04x}"), format!("{vector:#04x}")];
            request(6, begin_y, texts, plain(11, GREY))
        }
        SpanKind::Wedged => {
            request(2, begin_y + 10, vec!["wedged, interrupts off".into(), "wedged".into()], plain(12, RED))
        }
        SpanKind::Closure { panicked: true, .. } => {
            request(2, begin_y, vec!["call panicked".into(), "panic".into()], plain(12, RED))
        }
        SpanKind::Closure { .. } if longest.is_some() => {
            request(4, begin_y + 6, vec![format!("runs the call for {length}")], plain(11, GREEN))
        }
        _ => None,
    }
}
