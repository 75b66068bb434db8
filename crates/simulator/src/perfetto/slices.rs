//! What lasts: the spans that the timeline draws, and what it has no room for: named frames, NMI handlers, halts, crash stops,
//! stages of a rendezvous, pauses, and the time from a reset to the next start.

use smpcall_machine::{Event, EventKind};

use super::flows::Flows;
use super::labels::{self, Value, Values};
use super::lanes::Slice;
use crate::timeline::{Activity, SpanKind};

/// What is written about a slice.
#[derive(Clone, Debug)]
pub(super) struct Label {
    pub(super) name: String,
    pub(super) values: Values,
    pub(super) flows: Vec<u64>,
}

/// The slices of each CPU. `sorted` are the events that `activity` was made of, by time, with their places in the trace.
pub(super) fn slices(
    cpus: u32,
    activity: &Activity,
    sorted: &[(usize, &Event)],
    frame_names: &[String],
    flows: &Flows,
) -> Vec<Vec<Slice<Label>>> {
    let mut slices: Vec<Vec<Slice<Label>>> = (0..cpus).map(|_| Vec::new()).collect();
    let mut add = |cpu: u32, begin: u64, end: Option<u64>, mut label: Label| {
        // A wedge may have been to last longer than the trace.
        let end = end.filter(|&end| end <= activity.last);
        if end.is_none() {
            label.values.push(("unfinished", Value::Flag(true)));
        }
        slices[cpu as usize].push(Slice { begin, end: end.unwrap_or(activity.last), what: label });
    };
    let mut flows_of_begin = FlowsOfBegin::new(cpus, sorted, flows);
    let is_interrupt = |kind: &SpanKind| matches!(kind, SpanKind::Interrupt { .. });
    let mut add_spans = |add: &mut dyn FnMut(u32, u64, Option<u64>, Label), interrupts: bool| {
        for span in activity.spans.iter().filter(|span| is_interrupt(&span.kind) == interrupts) {
            let (name, values) = labels::of_span(span);
            let flows = flows_of_begin.next(span.cpu, &span.kind);
            add(span.cpu, span.begin, span.end, Label { name, values, flows });
        }
    };
    // In this order, because of two that begin and end together the first encloses the second.
    add_spans(&mut add, true);
    for ((place, event), end, name) in pairs(cpus, sorted, frame_names) {
        let label = Label { name, values: Values::new(), flows: flows.of(place) };
        add(event.cpu.number(), event.time.as_nanos(), end, label);
    }
    add_spans(&mut add, false);
    slices
}

/// The flows of the events with which handlers and closures begin, in order, for each CPU.
struct FlowsOfBegin {
    interrupts: Vec<std::vec::IntoIter<Vec<u64>>>,
    closures: Vec<std::vec::IntoIter<Vec<u64>>>,
}

impl FlowsOfBegin {
    fn new(cpus: u32, sorted: &[(usize, &Event)], flows: &Flows) -> Self {
        let of_kind = |kind| {
            let mut of_cpu: Vec<Vec<Vec<u64>>> = vec![Vec::new(); cpus as usize];
            for (place, event) in sorted.iter().filter(|(_, event)| event.kind == kind) {
                of_cpu[event.cpu.index()].push(flows.of(*place));
            }
            of_cpu.into_iter().map(Vec::into_iter).collect()
        };
        Self { interrupts: of_kind(EventKind::InterruptTaken), closures: of_kind(EventKind::CallClaimed) }
    }

    /// Those of the next span of this kind: there is a span for every such event, in the same order.
    fn next(&mut self, cpu: u32, kind: &SpanKind) -> Vec<u64> {
        let of_kind = match kind {
            SpanKind::Interrupt { .. } => &mut self.interrupts,
            SpanKind::Closure { .. } => &mut self.closures,
            _ => return Vec::new(),
        };
        of_kind[cpu as usize].next().unwrap_or_default()
    }
}

/// The stage of a rendezvous in which its closure runs; those after it are ends.
const STAGE_RUN: u32 = 3;

/// What is open on one CPU: the places of the beginnings in `sorted`, the innermost last.
#[derive(Clone, Default)]
struct Open {
    frames: Vec<usize>,
    nmis: Vec<usize>,
    halts: Vec<usize>,
    crashes: Vec<usize>,
    stages: Vec<usize>,
    resets: Vec<usize>,
}

/// Pairs the events that the timeline does not make spans of, in the order of the beginnings; an end without a beginning
/// is left out. `None`: it still lasted when the trace ended.
fn pairs<'a>(
    cpus: u32,
    sorted: &[(usize, &'a Event)],
    frame_names: &[String],
) -> Vec<((usize, &'a Event), Option<u64>, String)> {
    use EventKind as K;
    let name = |event: &Event| match event.kind {
        K::NmiTaken => "NMI".to_owned(),
        K::Halted => "halted".to_owned(),
        K::CrashWon => "crash stop".to_owned(),
        K::RendezvousStage if event.detail == STAGE_RUN => "rendezvous, run".to_owned(),
        K::RendezvousStage => "rendezvous, interrupts off".to_owned(),
        K::Paused => "paused".to_owned(),
        K::Reset => "reset, not started".to_owned(),
        _ => {
            let name = usize::try_from(event.argument).ok().and_then(|number| frame_names.get(number));
            name.map_or_else(|| format!("frame {}", event.argument), String::clone)
        }
    };
    let mut open = vec![Open::default(); cpus as usize];
    let mut found: Vec<(usize, Option<u64>)> = Vec::new();
    for (place, (_, event)) in sorted.iter().enumerate() {
        let open = &mut open[event.cpu.index()];
        let begun = match event.kind {
            K::FrameEntered => {
                open.frames.push(place);
                None
            }
            K::NmiTaken => {
                open.nmis.push(place);
                None
            }
            K::Halted => {
                open.halts.push(place);
                None
            }
            K::FrameLeft => open.frames.pop(),
            // No vector is that of NMIs.
            K::InterruptReturned => open.nmis.pop_if(|begun| sorted[*begun].1.detail == event.detail),
            K::Resumed => open.halts.pop(),
            K::CrashWon => {
                open.crashes.push(place);
                None
            }
            K::CrashStopped => open.crashes.pop(),
            K::RendezvousStage => {
                let before = open.stages.pop();
                if event.detail <= STAGE_RUN {
                    open.stages.push(place);
                }
                before
            }
            K::Paused => {
                found.push((place, Some(event.argument.max(event.time.as_nanos()))));
                None
            }
            K::Reset => {
                let before = open.resets.pop();
                open.resets.push(place);
                before
            }
            K::StartedUp => open.resets.pop(),
            _ => None,
        };
        found.extend(begun.map(|begun| (begun, Some(event.time.as_nanos()))));
    }
    for open in open {
        let Open { frames, nmis, halts, crashes, stages, resets } = open;
        let open = [frames, nmis, halts, crashes, stages, resets];
        found.extend(open.into_iter().flatten().map(|begun| (begun, None)));
    }
    found.sort_unstable();
    found.into_iter().map(|(begun, end)| (sorted[begun], end, name(sorted[begun].1))).collect()
}
