//! What happens at a moment: IPIs as arrows with their fate, and marks; with the legend of both.

use std::collections::BTreeMap;

use smpcall_machine::EventKind;

use super::activity::{Fate, Mark, Message};
use super::labels::Rect;
use super::page::{AMBER, BLUE, GREEN, GREY, INK, PURPLE, Page, RED, Request, alarm, plain};
use super::svg::Svg;
use super::units::{count, duration};

/// Draws all IPIs and marks; those that went wrong last, above the others.
pub(super) fn draw(page: &mut Page<'_>) {
    let mut messages = page.selection.messages.clone();
    messages.sort_by_key(|message| rank(message));
    for message in &messages {
        draw_message(page, message);
    }
    label_volleys(page);
    for mark in page.selection.marks.clone() {
        draw_mark(page, mark);
    }
}

fn rank(message: &Message) -> u32 {
    match (message.fate, message.again) {
        (Fate::Lost(_) | Fate::Rejected(_), _) => 2,
        (_, Some(_)) => 1,
        _ => 0,
    }
}

fn draw_message(page: &mut Page<'_>, message: &Message) {
    let (from, to) = (page.geometry.x(message.from), page.geometry.x(message.to));
    let top = page.scale.y(message.begin());
    let arrival = match message.fate {
        Fate::Accepted(at) | Fate::Merged(at) | Fate::Rejected(at) => page.scale.y(at),
        Fate::Lost(_) => {
            page.scale.y(message.begin().saturating_add(page.activity.latency)).clamp(top + 14, top + 60)
        }
        Fate::OnItsWay => page.scale.y(page.activity.last),
    };
    let class = match (message.fate, message.again) {
        (Fate::Lost(_), _) => "ipi lost",
        (Fate::Rejected(_), _) => "ipi rejected",
        (_, Some(_)) => "ipi again",
        (Fate::Merged(_), None) => "ipi merged",
        (Fate::OnItsWay, None) => "ipi on-its-way",
        (Fate::Accepted(_), None) => "ipi accepted",
    };
    page.svg.open("g", &[("class", &class)]);
    page.svg.text("title", &[], &describe(page, message));
    let direction = if to < from { -1 } else { 1 };
    match message.fate {
        Fate::Lost(_) | Fate::Rejected(_) => {
            let short = (page.geometry.pitch * 2 / 5).max(10);
            let end = (to - direction * short, arrival);
            lost_arrow(&mut page.svg, (from, top), end, (to, arrival));
            page.obstacles.push(Rect { x: end.0 - 11, y: end.1 - 11, width: 22, height: 22 });
            page.obstacles.push(Rect { x: to - 10, y: arrival - 10, width: 20, height: 20 });
            let what = if matches!(message.fate, Fate::Lost(_)) { "LOST" } else { "NOT ACCEPTED" };
            let texts =
                vec![format!("{what}: {} never reached CPU {}", message.what(), message.to), what.to_owned()];
            let style = alarm(if page.geometry.is_narrow() { 12 } else { 14 }, RED);
            // Beyond the goal, where the arrow does not go.
            page.requests.push(Request {
                priority: 1,
                x: to,
                y: arrival,
                aside: Some(13 * direction),
                reach: 8,
                texts,
                style,
            });
        }
        Fate::OnItsWay => {
            let end = (to - direction * 8, arrival);
            line(&mut page.svg, (from, top), end, GREY, 1, "2 3");
        }
        Fate::Accepted(_) | Fate::Merged(_) => {
            let (stroke, width) = if message.again.is_some() { (PURPLE, 3) } else { (BLUE, 1) };
            let dashes = if matches!(message.fate, Fate::Merged(_)) { "5 3" } else { "none" };
            if message.from == message.to {
                loop_arrow(&mut page.svg, (from, top), arrival, stroke);
            } else {
                arrow(&mut page.svg, (from, top), (to, arrival), stroke, width, dashes);
                // Who got it must stay readable beside who did not.
                page.obstacles.push(Rect { x: to - 6, y: arrival - 5, width: 12, height: 10 });
            }
        }
    }
    page.svg.close();
    if let Some(attempt) = message.again {
        let texts = vec![
            format!("RUNG AGAIN (attempt {attempt}): {} to CPU {}", message.what(), message.to),
            format!("RUNG AGAIN ({attempt})"),
            "AGAIN".into(),
        ];
        page.requests.push(Request {
            priority: 1,
            x: to,
            y: arrival,
            aside: Some(13 * direction),
            reach: 8,
            texts,
            style: alarm(if page.geometry.is_narrow() { 11 } else { 13 }, PURPLE),
        });
    }
}

fn describe(page: &Page<'_>, message: &Message) -> String {
    let at = |time: u64| duration(time.saturating_sub(page.activity.first));
    let sent = message
        .sent
        .map_or_else(|| "sent before the trace began".into(), |time| format!("sent at {}", at(time)));
    let fate = match message.fate {
        Fate::Accepted(time) => format!("accepted at {}", at(time)),
        Fate::Merged(time) => format!("merged with a pending one at {}", at(time)),
        Fate::Lost(_) => "LOST".into(),
        Fate::Rejected(time) => format!("not accepted at {}", at(time)),
        Fate::OnItsWay => "on its way when the trace ends".into(),
    };
    let again = message.again.map_or_else(String::new, |attempt| format!(", attempt {attempt}"));
    let Message { number, from, to, .. } = message;
    format!("IPI {number}, {}, CPU {from} to CPU {to}{again}: {sent}, {fate}", message.what())
}

/// One label for each row of IPIs that a CPU sends with one vector.
fn label_volleys(page: &mut Page<'_>) {
    let mut volleys: BTreeMap<(u32, String, usize), (u64, usize)> = BTreeMap::new();
    for message in &page.selection.messages {
        if message.again.is_none() {
            let burst = page.scale.breaks.partition_point(|gap| gap.to <= message.begin());
            let volley = volleys.entry((message.from, message.what(), burst)).or_insert((message.begin(), 0));
            *volley = (volley.0.min(message.begin()), volley.1 + 1);
        }
    }
    for ((from, what, _), (begin, number)) in volleys {
        let text = if number == 1 { what } else { format!("{number} \u{d7} {what}") };
        page.requests.push(Request {
            priority: 7,
            x: page.geometry.x(from),
            y: page.scale.y(begin) - 4,
            aside: Some(12),
            reach: 4,
            texts: vec![text],
            style: plain(11, BLUE),
        });
    }
}

/// The glyph, colour, label and its priority for one kind of mark.
fn appearance(mark: &Mark) -> (Glyph, &'static str, Vec<String>, u32) {
    use EventKind as K;
    let whom = |text: &str| {
        let target = mark.other.map_or_else(String::new, |cpu| format!(" CPU {cpu}"));
        vec![format!("{text}{target}"), text.to_owned()]
    };
    let just = |text: &str| vec![text.to_owned()];
    match mark.kind {
        K::SoftLockup => {
            let long = format!("SOFT LOCKUP: {} without progress", duration(mark.argument));
            (Glyph::Star, RED, vec![long, "SOFT LOCKUP".into()], 1)
        }
        K::DumpStarted => {
            let place = mark.frame.as_ref().map_or_else(String::new, |name| format!(" ({name})"));
            (Glyph::Square, INK, vec![format!("CRASH DUMP STARTS{place}"), "CRASH DUMP".into()], 1)
        }
        K::CallWithdrawn => (
            Glyph::Square,
            RED,
            vec![
                mark.other.map_or("TOLD: call timed out".into(), |cpu| {
                    format!("TOLD: call to CPU {cpu} timed out")
                }),
                "TOLD".into(),
            ],
            1,
        ),
        K::CallRefused => (Glyph::Square, RED, whom("call refused:"), 2),
        K::CallOverdue => (Glyph::Square, AMBER, whom("call overdue:"), 2),
        K::CallLeft => (Glyph::Square, AMBER, whom("call left behind:"), 2),
        K::RingFailed if mark.other.is_none() => {
            let targets = count(mark.argument as usize, "CPU");
            (Glyph::Square, RED, vec![format!("ring failed: to {targets}"), "ring failed".into()], 2)
        }
        K::RingFailed => (Glyph::Square, RED, whom("ring failed: to"), 2),
        K::EndOfInterrupt if mark.argument == 0 => {
            (Glyph::Triangle, GREY, just("stray EOI, nothing in service"), 5)
        }
        K::EndOfInterrupt => {
            let vector = mark.argument;
            let long = format!("STRAY EOI: ends {vector:#04x}, whose handler runs on");
            (Glyph::Triangle, RED, vec![long, "STRAY EOI".into()], 1)
        }
        K::InterruptTaken => {
            let (vector, inside) = (mark.argument, mark.detail);
            let long = format!("LET IN: {vector:#04x}, inside of {inside:#04x}");
            (Glyph::Diamond, RED, vec![long, "LET IN".into()], 1)
        }
        K::CrashWon => (Glyph::Star, RED, just("CRASH: stops the others"), 1),
        K::CrashLost => (Glyph::Star, RED, whom("crashed too, after"), 2),
        K::CrashedAgain => (Glyph::Star, RED, just("crashed again"), 2),
        K::CrashSaved => (Glyph::Diamond, INK, just("registers saved"), 4),
        K::CrashMissing => (Glyph::Square, RED, whom("MISSING:"), 1),
        K::CrashStopped => {
            let (saved, missing) = (mark.argument, mark.detail);
            (Glyph::Bar, INK, vec![format!("crash stop ends: {saved} saved, {missing} missing")], 2)
        }
        K::StopSent => {
            let text = format!("NMI to {}", count(mark.argument as usize, "CPU"));
            (Glyph::Diamond, PURPLE, vec![text], 2)
        }
        K::RendezvousStage => {
            let stage = match mark.detail {
                2 => "interrupts off",
                3 => "run",
                4 => "over",
                _ => "given up",
            };
            (Glyph::Bar, PURPLE, vec![format!("rendezvous: {stage}")], 5)
        }
        K::RendezvousLate => (Glyph::Square, RED, whom("LATE for the rendezvous:"), 1),
        K::LockupFound => {
            let sort = if mark.detail == 0 { "SOFT LOCKUP" } else { "HARD LOCKUP" };
            let place = mark.other.map_or_else(String::new, |cpu| format!(" of CPU {cpu}"));
            let long = format!("{sort}{place}: for {}", duration(mark.argument));
            (Glyph::Star, RED, vec![long, sort.into()], 1)
        }
        K::LockupEnded => (Glyph::Dot, GREEN, just("lockup has ended"), 4),
        K::BackTraceSent => (Glyph::Diamond, PURPLE, whom("NMI for a back trace:"), 2),
        K::BackTraceTaken => (Glyph::Diamond, PURPLE, just("back trace taken"), 4),
        K::PostAbandoned => (Glyph::Square, AMBER, whom("post taken over from"), 4),
        K::Paused => (Glyph::Bar, RED, just("paused"), 6),
        K::Reset => (Glyph::Bar, RED, whom("RESET by"), 2),
        K::StartedUp => (Glyph::Bar, GREEN, whom("started by"), 4),
        K::BootCpuSentInit => (Glyph::Star, RED, whom("INIT TO THE BOOT CPU, by"), 1),
        K::ImageBooted => (Glyph::Square, INK, just("BOOTS ANOTHER KERNEL"), 1),
        K::ProbeSent => (Glyph::Diamond, PURPLE, whom("NMI probe:"), 2),
        K::ProbeAnswered => (Glyph::Diamond, PURPLE, just("probe answered"), 4),
        K::BudgetSpent => (Glyph::Dot, AMBER, just("budget spent"), 6),
        K::NmiTaken => (Glyph::Diamond, PURPLE, just("NMI"), 6),
        K::CallCompleted if mark.other.is_none() => (Glyph::Dot, GREEN, just("call to many returned"), 5),
        K::CallCompleted => (Glyph::Dot, GREEN, whom("call completed"), 5),
        K::ManyQueued => {
            (Glyph::Dot, INK, vec![format!("call to {}", count(mark.argument as usize, "CPU"))], 5)
        }
        K::MailboxClosed => (Glyph::Bar, INK, just("mailbox closed"), 6),
        K::MailboxOpened => (Glyph::Bar, GREEN, vec![], 6),
        // A wedge has a bar of its own, a panic the closure's.
        K::Wedged | K::CallPanicked => (Glyph::Square, RED, vec![], 2),
        _ => (Glyph::Dot, GREEN, vec![], 9),
    }
}

#[derive(Clone, Copy)]
enum Glyph {
    Star,
    Square,
    Diamond,
    Triangle,
    Dot,
    Bar,
}

fn draw_mark(page: &mut Page<'_>, mark: &Mark) {
    let (glyph, ink, texts, priority) = appearance(mark);
    let (x, y) = (page.geometry.x(mark.cpu), page.scale.y(mark.time));
    let at = duration(mark.time.saturating_sub(page.activity.first));
    let class = format!("mark {:?}", mark.kind);
    page.svg.open("g", &[("class", &class)]);
    let text = texts.first().cloned().unwrap_or_else(|| format!("{:?}", mark.kind));
    page.svg.text("title", &[], &format!("CPU {} at {at}: {text}", mark.cpu));
    draw_glyph(&mut page.svg, glyph, (x, y), ink);
    page.svg.close();
    if texts.is_empty() {
        return;
    }
    let style = match priority {
        1 if page.geometry.is_narrow() => alarm(12, ink),
        1 => alarm(14, ink),
        _ => plain(11, ink),
    };
    if priority <= 2 {
        page.obstacles.push(Rect { x: x - 10, y: y - 10, width: 20, height: 20 });
    }
    page.requests.push(Request { priority, x, y, aside: Some(14), reach: 5, texts, style });
}

fn draw_glyph(svg: &mut Svg, glyph: Glyph, (x, y): (i32, i32), ink: &str) {
    match glyph {
        Glyph::Star => {
            let spikes =
                [(0, -11), (3, -4), (10, -5), (5, 1), (8, 8), (0, 5), (-8, 8), (-5, 1), (-10, -5), (-3, -4)];
            polygon(svg, &spikes.map(|(right, down)| (x + right, y + down)), ink);
        }
        Glyph::Square => polygon(svg, &[(x - 6, y - 6), (x + 6, y - 6), (x + 6, y + 6), (x - 6, y + 6)], ink),
        Glyph::Triangle => polygon(svg, &[(x - 8, y - 6), (x + 8, y - 6), (x, y + 8)], ink),
        Glyph::Diamond => polygon(svg, &[(x, y - 7), (x + 6, y), (x, y + 7), (x - 6, y)], ink),
        Glyph::Dot => svg.leaf(
            "circle",
            &[
                ("cx", &x),
                ("cy", &y),
                ("r", &3),
                ("fill", &ink),
                ("stroke", &"#ffffff"),
                ("stroke-width", &0.5),
            ],
        ),
        Glyph::Bar => line(svg, (x - 8, y), (x + 8, y), ink, 2, "none"),
    }
}

fn polygon(svg: &mut Svg, points: &[(i32, i32)], fill: &str) {
    let points: Vec<String> = points.iter().map(|(x, y)| format!("{x},{y}")).collect();
    let points = points.join(" ");
    svg.leaf("polygon", &[("points", &points), ("fill", &fill), ("stroke", &"#ffffff")]);
}

fn line(svg: &mut Svg, from: (i32, i32), to: (i32, i32), stroke: &str, width: i32, dashes: &str) {
    svg.leaf(
        "line",
        &[
            ("x1", &from.0),
            ("y1", &from.1),
            ("x2", &to.0),
            ("y2", &to.1),
            ("stroke", &stroke),
            ("stroke-width", &width),
            ("stroke-dasharray", &dashes),
        ],
    );
}

/// A line with a head at its end.
fn arrow(svg: &mut Svg, from: (i32, i32), to: (i32, i32), stroke: &str, width: i32, dashes: &str) {
    line(svg, from, to, stroke, width, dashes);
    let (x, y) = (f64::from(to.0), f64::from(to.1));
    let (right, down) = (x - f64::from(from.0), y - f64::from(from.1));
    let length = right.hypot(down).max(1.0);
    let (right, down) = (right / length, down / length);
    let size = 7.0 + f64::from(width);
    let base = (x - right * size, y - down * size);
    let half = size * 0.4;
    let points = format!(
        "{x:.1},{y:.1} {:.1},{:.1} {:.1},{:.1}",
        base.0 - down * half,
        base.1 + right * half,
        base.0 + down * half,
        base.1 - right * half
    );
    svg.leaf("polygon", &[("points", &points), ("fill", &stroke)]);
}

/// An IPI to oneself.
fn loop_arrow(svg: &mut Svg, from: (i32, i32), bottom: i32, stroke: &str) {
    let (x, top) = from;
    let bottom = bottom.max(top + 8);
    let path = format!("M{x} {top} C{right} {top} {right} {bottom} {} {bottom}", x + 6, right = x + 26);
    svg.leaf("path", &[("d", &path), ("fill", &"none"), ("stroke", &stroke)]);
    polygon(svg, &[(x + 3, bottom), (x + 10, bottom - 3), (x + 10, bottom + 3)], stroke);
}

/// A thick, red, broken line that ends in a cross, and an empty circle where it should have arrived.
fn lost_arrow(svg: &mut Svg, from: (i32, i32), end: (i32, i32), goal: (i32, i32)) {
    line(svg, from, end, "#ffffff", 8, "none");
    line(svg, from, end, RED, 4, "10 5");
    line(svg, end, goal, RED, 1, "2 4");
    svg.leaf(
        "circle",
        &[
            ("cx", &goal.0),
            ("cy", &goal.1),
            ("r", &9),
            ("fill", &"#ffffff"),
            ("stroke", &RED),
            ("stroke-width", &2),
            ("stroke-dasharray", &"4 3"),
        ],
    );
    svg.leaf("circle", &[("cx", &end.0), ("cy", &end.1), ("r", &11), ("fill", &"#ffffff")]);
    let (x, y) = end;
    line(svg, (x - 8, y - 8), (x + 8, y + 8), RED, 5, "none");
    line(svg, (x - 8, y + 8), (x + 8, y - 8), RED, 5, "none");
}

/// A legend entry: the class of what it explains, its text and how its glyph is drawn.
type Entry = (&'static str, &'static str, fn(&mut Svg, i32, i32));

/// The legend: each glyph, drawn beside its text at a left edge and a middle line.
pub(super) fn legend() -> [Entry; 21] {
    fn bar(svg: &mut Svg, x: i32, y: i32, fill: &str, stroke: &str) {
        svg.leaf(
            "rect",
            &[
                ("x", &(x + 8)),
                ("y", &(y - 5)),
                ("width", &18),
                ("height", &10),
                ("fill", &fill),
                ("stroke", &stroke),
            ],
        );
    }
    [
        ("ipi accepted", "IPI", |svg, x, y| arrow(svg, (x, y), (x + 32, y), BLUE, 1, "none")),
        ("ipi merged", "merged", |svg, x, y| arrow(svg, (x, y), (x + 32, y), BLUE, 1, "5 3")),
        ("ipi lost", "lost", |svg, x, y| {
            line(svg, (x, y), (x + 20, y), RED, 4, "9 4");
            line(svg, (x + 20, y - 5), (x + 30, y + 5), RED, 4, "none");
            line(svg, (x + 20, y + 5), (x + 30, y - 5), RED, 4, "none");
        }),
        ("ipi again", "rung again", |svg, x, y| arrow(svg, (x, y), (x + 32, y), PURPLE, 3, "none")),
        ("look", "look", |svg, x, y| {
            bar(svg, x, y, "#f6c453", AMBER);
            line(svg, (x + 4, y), (x + 30, y), RED, 2, "none");
        }),
        ("wait", "wait", |svg, x, y| bar(svg, x, y, "#f6c453", AMBER)),
        ("interrupt of-ipi", "IPI handler", |svg, x, y| bar(svg, x, y, "#cfe0f3", BLUE)),
        ("interrupt other", "other interrupt", |svg, x, y| bar(svg, x, y, "#e3e6ea", GREY)),
        ("closure", "call running", |svg, x, y| bar(svg, x, y, "#2f9e55", "none")),
        ("stopped", "stopped by the dump", |svg, x, y| bar(svg, x, y, INK, "none")),
        ("wedged", "wedged", |svg, x, y| bar(svg, x, y, "url(#hatch)", RED)),
        ("eoi", "end of interrupt", |svg, x, y| {
            bar(svg, x, y, "#cfe0f3", BLUE);
            line(svg, (x + 8, y), (x + 26, y), BLUE, 2, "none");
        }),
        ("mark EndOfInterrupt", "stray EOI", |svg, x, y| draw_glyph(svg, Glyph::Triangle, (x + 17, y), RED)),
        ("mark InterruptTaken", "let in by it", |svg, x, y| {
            draw_glyph(svg, Glyph::Diamond, (x + 17, y), RED);
        }),
        ("mark NmiTaken", "NMI", |svg, x, y| draw_glyph(svg, Glyph::Diamond, (x + 17, y), PURPLE)),
        ("mark CrashWon", "crash", |svg, x, y| draw_glyph(svg, Glyph::Star, (x + 17, y), RED)),
        ("mark CrashSaved", "registers saved", |svg, x, y| {
            draw_glyph(svg, Glyph::Diamond, (x + 17, y), INK);
        }),
        ("mark Reset", "reset", |svg, x, y| draw_glyph(svg, Glyph::Bar, (x + 17, y), RED)),
        ("mark StartedUp", "started", |svg, x, y| draw_glyph(svg, Glyph::Bar, (x + 17, y), GREEN)),
        ("mark SoftLockup", "soft lockup", |svg, x, y| draw_glyph(svg, Glyph::Star, (x + 17, y), RED)),
        ("mark DumpStarted", "crash dump", |svg, x, y| draw_glyph(svg, Glyph::Square, (x + 17, y), INK)),
    ]
}
