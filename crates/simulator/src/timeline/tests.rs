//! What every picture holds: well-formed, complete or saying what is missing, the same twice, readable.

use smpcall_machine::{Event, EventKind};

use super::labels::Rect;
use super::samples::{Trace, dead_target, frame_names, lost_call_now, lost_call_then};
use super::{Input, Options, render};

fn draw(cpus: u32, events: &[Event], options: &Options) -> String {
    let subtitle = "16 CPUs, one of 15 call-function IPIs is lost; time runs downwards";
    render(&Input { title: "lost-call", subtitle, cpus, events, frame_names: &frame_names() }, options)
}

fn default(cpus: u32, events: &[Event]) -> String {
    draw(cpus, events, &Options::default())
}

fn count(document: &str, class: &str) -> usize {
    let parsed = roxmltree::Document::parse(document).expect("well-formed XML");
    let classes = parsed.descendants().filter_map(|node| node.attribute("class"));
    classes.filter(|found| found.split(' ').any(|one| one == class)).count()
}

fn texts(document: &str, class: &str) -> Vec<String> {
    let parsed = roxmltree::Document::parse(document).expect("well-formed XML");
    parsed
        .descendants()
        .filter(|node| {
            node.has_tag_name("text") && node.attribute("class").is_some_and(|c| c.starts_with(class))
        })
        .filter_map(|node| node.text().map(str::to_owned))
        .collect()
}

fn labels(document: &str) -> Vec<Rect> {
    let parsed = roxmltree::Document::parse(document).expect("well-formed XML");
    let rects = parsed.descendants().filter(|node| {
        node.has_tag_name("rect") && matches!(node.attribute("class"), Some("label" | "head"))
    });
    let number = |node: &roxmltree::Node<'_, '_>, name| node.attribute(name).unwrap().parse().unwrap();
    rects
        .map(|node| Rect {
            x: number(&node, "x"),
            y: number(&node, "y"),
            width: number(&node, "width"),
            height: number(&node, "height"),
        })
        .collect()
}

#[test]
fn every_ipi_of_the_lost_call_is_drawn_and_the_lost_one_stands_out() {
    let document = default(16, &lost_call_then(16));
    assert_eq!(count(&document, "ipi"), 30);
    assert_eq!(count(&document, "accepted"), 29);
    assert_eq!(count(&document, "lost"), 1);
    assert!(texts(&document, "label").iter().any(|text| text == "LOST: 0xfb never reached CPU 11"));
    let expected = [
        "IPI 0xfb, CPU 5 to CPU 11, was LOST at 1.20 \u{b5}s, and not sent again: CPU 5 waits 10.0 s.",
        "Soft lockup on CPU 5 at 10.0 s: no progress for 10.0 s.",
        "CPU 5 starts a crash dump at 10.0 s and stops 15 CPUs.",
    ];
    assert_eq!(texts(&document, "finding"), expected);
}

/// The height of the page.
fn height(document: &str) -> u32 {
    let parsed = roxmltree::Document::parse(document).expect("well-formed XML");
    parsed.root_element().attribute("height").expect("there").parse().expect("a number")
}

#[test]
fn the_lost_call_of_16_cpus_fits_a_screen() {
    let then = default(16, &lost_call_then(16));
    assert!(height(&then) <= 900, "{}", height(&then));
    assert_eq!(count(&then, "break"), 1);
    let now = default(16, &lost_call_now(16));
    assert!(height(&now) <= 720, "{}", height(&now));
    assert_eq!(count(&now, "break"), 1);
}

#[test]
fn who_a_crash_dump_stops_does_not_count_as_waiting() {
    let document = default(16, &lost_call_then(16));
    assert_eq!((count(&document, "stopped"), count(&document, "wait")), (15, 1));
    assert!(!texts(&document, "finding").iter().any(|text| text.contains("has waited")));
}

#[test]
fn a_wait_with_looks_is_one_bar_with_a_tick_for_the_look_that_led_to_something() {
    let document = default(16, &lost_call_now(16));
    assert_eq!((count(&document, "wait"), count(&document, "look")), (1, 1));
    assert!(texts(&document, "label").iter().any(|text| text.ends_with(", 1 look")));
}

#[test]
fn of_many_repeated_rings_the_first_and_the_last_are_drawn_and_the_rest_is_counted() {
    let document = default(2, &dead_target(1_000));
    assert_eq!(count(&document, "again"), 5);
    let labels = texts(&document, "label");
    assert!(labels.iter().any(|text| text == "7.97 s pass, 995 more rings"), "{labels:?}");
    assert!(labels.iter().any(|text| text.starts_with("RUNG AGAIN (attempt 1000)")), "{labels:?}");
    assert!(height(&document) < 900, "{}", height(&document));
    let findings = texts(&document, "finding");
    let told = "CPU 0 is told at 8.01 s, after 1000 repeated rings, that its call to CPU 1 timed out; \
                CPU 1 had answered an NMI.";
    assert_eq!(findings.join(" "), format!("CPU 1 is wedged, interrupts off, from 0 ns. {told}"));
}

#[test]
fn neighbouring_times_on_the_axis_are_told_apart() {
    for events in [lost_call_then(16), lost_call_now(16), dead_target(1_000)] {
        let axis = texts(&default(16, &events), "axis");
        assert!(axis.len() > 3 && axis.windows(2).all(|pair| pair[0] != pair[1]), "{axis:?}");
    }
}

#[test]
fn the_legend_explains_what_is_drawn_and_nothing_else() {
    let now = texts(&default(16, &lost_call_now(16)), "legend");
    assert!(now.iter().any(|text| text == "rung again") && !now.iter().any(|text| text == "crash dump"));
    let then = texts(&default(16, &lost_call_then(16)), "legend");
    assert!(!then.iter().any(|text| text == "rung again") && then.iter().any(|text| text == "crash dump"));
}

#[test]
fn a_repeated_ring_has_its_own_arrow_and_the_loss_is_called_mended() {
    let document = default(16, &lost_call_now(16));
    assert_eq!((count(&document, "lost"), count(&document, "again")), (1, 1));
    assert_eq!(count(&document, "mended"), 1);
    assert_eq!(count(&document, "bad"), 0);
    let findings = texts(&document, "finding");
    assert!(findings[0].contains("repeated 250 \u{b5}s later"), "{findings:?}");
}

#[test]
fn labels_and_heads_do_not_cover_each_other() {
    for (cpus, events) in
        [(16, lost_call_then(16)), (16, lost_call_now(16)), (64, lost_call_then(64)), (12, lost_call_now(12))]
    {
        let labels = labels(&default(cpus, &events));
        assert!(labels.len() > 16);
        for (index, label) in labels.iter().enumerate() {
            let covered = labels[..index].iter().find(|other| other.overlaps(label));
            assert_eq!(covered, None, "{label:?}");
        }
    }
}

#[test]
fn the_same_trace_gives_the_same_document_whatever_the_order_of_its_events_in_time() {
    let events = lost_call_then(16);
    let mut sorted = events.clone();
    sorted.sort_by_key(|event| event.time);
    assert_eq!(default(16, &events), default(16, &events));
    assert_eq!(default(16, &events), default(16, &sorted));
}

#[test]
fn an_empty_trace_and_a_machine_of_one_cpu_are_drawn() {
    assert_eq!(count(&default(0, &[]), "lifeline"), 0);
    assert_eq!(count(&default(4, &[]), "lifeline"), 4);
    let mut trace = Trace::new();
    let taken = trace.ipi(10, 0, 0, Some(300));
    trace.handler(taken, 0, 0);
    let document = default(1, &trace.events);
    assert_eq!((count(&document, "lifeline"), count(&document, "accepted")), (1, 1));
    assert!(texts(&document, "finding")[0].starts_with("No IPI was lost"));
}

#[test]
fn ticks_without_consequence_are_left_out_and_counted_the_one_with_the_lockup_is_drawn() {
    let document = default(16, &lost_call_then(16));
    assert_eq!(count(&document, "other"), 1);
    let notes = texts(&document, "note");
    assert!(
        notes.iter().any(|note| note.starts_with(
            "Left out, because nothing came of them: 1584 interrupts of vector 0xef, 1 wait shorter"
        )),
        "{notes:?}"
    );
    assert!(notes.iter().any(|note| note.contains("1485 Halted, 1485 Resumed")), "{notes:?}");
    assert!(texts(&document, "label").iter().any(|text| text == "10.0 s pass, 1584 routine interrupts"));
}

#[test]
fn what_exceeds_the_budget_is_counted_and_the_loss_is_kept() {
    let mut trace = Trace::new();
    for round in 0..5_000 {
        let latency = (round != 3_000).then_some(400);
        trace.ipi(round * 2_000, 0, 1, latency);
    }
    let document = default(2, &trace.events);
    assert_eq!((count(&document, "accepted"), count(&document, "lost")), (599, 1));
    let notes = texts(&document, "note");
    assert!(notes[0].starts_with("600 of 5000 activities are drawn"), "{notes:?}");
    let breaks = texts(&document, "label").into_iter().filter(|text| text.contains("activities left out"));
    let counted = breaks
        .map(|text| text.split(", ").last().unwrap().split(' ').next().unwrap().parse::<u32>().unwrap());
    assert_eq!(counted.sum::<u32>(), 4_400);
}

#[test]
fn cpus_beyond_the_widest_page_are_named_and_those_of_the_loss_are_kept() {
    let events = lost_call_then(256);
    let document = draw(256, &events, &Options { max_columns: 8, ..Options::default() });
    assert_eq!(count(&document, "lifeline"), 8);
    assert_eq!(count(&document, "lost"), 1);
    let notes = texts(&document, "note").join(" ");
    assert!(notes.contains("248 CPUs left out for want of room"), "{notes}");
}

#[test]
fn events_of_cpus_that_do_not_exist_are_counted_and_harmless() {
    let document = default(2, &lost_call_then(16));
    assert!(texts(&document, "note").iter().any(|note| note.contains("name a CPU that this machine of 2")));
}

#[test]
fn wedges_probes_panics_and_given_up_calls_are_labelled() {
    let mut trace = Trace::new();
    trace.at(0, 1, EventKind::Wedged, None, 0, u64::MAX);
    trace.at(10, 0, EventKind::WaitBegan, Some(1), 0, 0);
    trace.at(500, 0, EventKind::ProbeSent, Some(1), 0, 0);
    trace.at(900, 0, EventKind::WaitEnded, Some(1), 0, 1);
    trace.at(1_000, 0, EventKind::CallWithdrawn, Some(1), 0, 0);
    trace.at(1_100, 2, EventKind::CallClaimed, Some(0), 0, 0);
    trace.at(1_200, 2, EventKind::CallPanicked, Some(0), 0, 0);
    trace.at(1_250, 2, EventKind::FrameEntered, None, 0, 99);
    trace.at(1_300, 2, EventKind::WaitBegan, None, 0, 0);
    let document = default(3, &trace.events);
    let labels = texts(&document, "label").join("; ");
    for expected in
        ["wedged", "NMI probe: CPU 1", "no answer", "call to CPU 1 timed out", "panic", "frame 99"]
    {
        assert!(labels.contains(expected), "{expected}: {labels}");
    }
}
