//! What every picture holds: well-formed, complete or saying what is missing, the same twice, readable.

use smpcall_machine::{Event, EventKind};

use super::labels::Rect;
use super::samples::{Trace, frame_names, lost_call_now, lost_call_then};
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
    let findings = texts(&document, "finding");
    assert!(findings[0].contains("CPU 5 to CPU 11, was LOST") && findings[0].contains("waits 10.0 s"));
    assert!(findings.iter().any(|text| text.starts_with("Soft lockup on CPU 5")));
    assert!(findings.iter().any(|text| text.contains("starts a crash dump")));
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
        notes.iter().any(|note| note.starts_with("1584 interrupts of vector 0xef left out")),
        "{notes:?}"
    );
    assert!(
        texts(&document, "label").iter().any(|text| text.contains("10.0 s") || text.contains("9.99 s pass"))
    );
}

#[test]
fn what_exceeds_the_budget_is_counted_and_the_loss_is_kept() {
    let mut trace = Trace::new();
    for round in 0..5_000 {
        let latency = (round != 3_000).then_some(400);
        trace.ipi(round * 2_000, 0, 1, latency);
    }
    let document = draw(2, &trace.events, &Options { max_drawn: 100, ..Options::default() });
    assert_eq!((count(&document, "accepted"), count(&document, "lost")), (99, 1));
    let notes = texts(&document, "note");
    assert!(notes[0].starts_with("100 of 5000 activities are drawn"), "{notes:?}");
    let breaks = texts(&document, "label").into_iter().filter(|text| text.contains("activities left out"));
    let counted = breaks
        .map(|text| text.split(", ").last().unwrap().split(' ').next().unwrap().parse::<u32>().unwrap());
    assert_eq!(counted.sum::<u32>(), 4_900);
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
    trace.at(1_300, 2, EventKind::Halted, None, 0, 0);
    let document = default(3, &trace.events);
    let labels = texts(&document, "label").join("; ");
    for expected in ["wedged", "NMI probe: CPU 1", "no answer", "call withdrawn: CPU 1", "panic", "frame 99"]
    {
        assert!(labels.contains(expected), "{expected}: {labels}");
    }
}
