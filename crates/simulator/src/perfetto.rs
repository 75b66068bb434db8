//! A trace as a file that <https://ui.perfetto.dev> and Perfetto's `trace_processor` read.
//!
//! [`encode`] turns events into Perfetto's protobuf format: one `Trace` of `TracePacket`s, all on one sequence. The packets are
//! in order of time.
//!
//! | track | what is on it |
//! |---|---|
//! | findings | instants: what went wrong, in sentences, and what the caller adds |
//! | calls pending | a counter: calls that their callers wait for; one to many counts once |
//! | IPIs on their way | a counter: messages that have left and have no fate yet |
//! | CPU *n* | slices: interrupt and NMI handlers, waits, closures, named frames, halts, wedges; instants: all other events |
//!
//! They are children of one track `machine` of one process. Slices that overlap and do not nest are moved to a track below
//! their CPU's. What had not ended when the trace did ends there, and says `unfinished`. An instant is called as its
//! [`EventKind`](smpcall_machine::EventKind), and its numbers are those that the kind has.
//!
//! Flows, which are drawn as arrows, lead from the sending of an IPI over its acceptance to the handler that takes it, and from
//! the queueing of a call over the closure that runs it to the end for its caller: `CallCompleted`, `CallLeft`, or, without a
//! closure, `CallWithdrawn` or `CallRefused`. A call to many has one for each target. What never arrived has no flow.
//!
//! Timestamps are nanoseconds of the trace's own clock. No packet names a clock (`timestamp_clock_id`) and there is no
//! `ClockSnapshot`, so Perfetto takes them for its trace time, which it calls `CLOCK_BOOTTIME`.
//!
//! Source: `protos/perfetto/trace/trace_packet.proto` and `track_event/*.proto` in Perfetto's repository.

mod counters;
mod flows;
mod labels;
mod lanes;
mod proto;
mod slices;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt::Write;

use prost::Message;
use smpcall_machine::Event;

use crate::timeline::{self, Activity};
use flows::Flows;
use labels::Names;
use lanes::Edge;
use proto::{Trace, TracePacket, TrackDescriptor, TrackEvent, Type};
use slices::Label;

/// What is written.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The name of the process.
    pub process: &'a str,
    /// What the machine's track says about itself.
    pub description: &'a str,
    /// How many CPUs the machine has. Events of others are left out and counted in the description.
    pub cpus: u32,
    /// The trace, in the order in which things happened; times need not ascend.
    pub events: &'a [Event],
    /// The names that [`FrameEntered`](smpcall_machine::EventKind::FrameEntered) refers to by number.
    pub frame_names: &'a [String],
    /// What is known at the end of the trace, besides what the trace itself shows: a diagnosis, say.
    pub findings: &'a [String],
}

/// The only process; 0 would be the idle one.
const PID: i32 = 1;
/// The only sequence; 0 would be none.
const SEQUENCE: u32 = 1;
/// Tracks by number. The first one of each CPU is `CPUS` and its number.
const PROCESS: u64 = 1;
const MACHINE: u64 = 2;
const FINDINGS: u64 = 3;
const CALLS: u64 = 4;
const IPIS: u64 = 5;
const CPUS: u64 = 6;

/// Writes a trace as Perfetto's `Trace`. The same input gives the same bytes.
pub fn encode(input: &Input<'_>) -> Vec<u8> {
    let activity = Activity::new(input.cpus, input.events, input.frame_names);
    let known = |event: &&Event| {
        event.cpu.number() < input.cpus && event.other.is_none_or(|other| other.number() < input.cpus)
    };
    let events: Vec<&Event> = input.events.iter().filter(known).collect();
    let nmis = activity.messages.iter().filter(|message| message.nmi);
    let nmis: BTreeSet<_> = nmis.map(|message| (message.number, message.from, message.to)).collect();
    let flows = Flows::new(&events, &nmis);
    let mut sorted: Vec<(usize, &Event)> = events.iter().copied().enumerate().collect();
    // Stable, as the activity is.
    sorted.sort_by_key(|(_, event)| event.time);

    let mut writer = Writer::default();
    writer.describe(input, activity.beyond);
    for (cpu, slices) in (0..).zip(slices::slices(input.cpus, &activity, &sorted, input.frame_names, &flows))
    {
        for (number, edges) in lanes::lanes(slices).into_iter().enumerate() {
            let track = writer.lane(input.cpus, cpu, number);
            writer.edges(track, edges);
        }
    }
    for &(place, event) in sorted.iter().filter(|(_, event)| !labels::is_edge(event.kind)) {
        let name = format!("{:?}", event.kind);
        let label = Label { name, values: labels::of_event(event), flows: flows.of(place) };
        writer.instant(CPUS + u64::from(event.cpu.number()), event.time.as_nanos(), label);
    }
    for finding in timeline::findings(&activity) {
        writer.finding(finding.time, finding.text);
    }
    for finding in input.findings {
        writer.finding(activity.last, finding.clone());
    }
    writer.counter(CALLS, counters::calls(&activity, &events, &flows));
    writer.counter(IPIS, counters::ipis(&activity));
    writer.finish()
}

/// Collects packets.
#[derive(Default)]
struct Writer {
    tracks: Vec<TrackDescriptor>,
    events: Vec<(u64, TrackEvent)>,
    event_names: Names,
    value_names: Names,
    /// How many tracks there are besides the first ones.
    overlapping: u64,
}

impl Writer {
    /// Describes all tracks that there always are.
    fn describe(&mut self, input: &Input<'_>, beyond: usize) {
        let named = |uuid, parent, rank, name: &str| TrackDescriptor {
            uuid: Some(uuid),
            parent_uuid: Some(parent),
            sibling_order_rank: Some(rank),
            name: Some(name.to_owned()),
            ..TrackDescriptor::default()
        };
        let process =
            proto::ProcessDescriptor { pid: Some(PID), process_name: Some(input.process.to_owned()) };
        self.tracks.push(TrackDescriptor {
            uuid: Some(PROCESS),
            process: Some(process),
            ..TrackDescriptor::default()
        });
        let mut description = input.description.to_owned();
        if beyond > 0 {
            // Writing to a `String` cannot fail.
            let _ = write!(
                description,
                " Events left out, because they name a CPU that this machine of {} does not have: {beyond}.",
                input.cpus
            );
        }
        // The order of a process track's own children is not ours to say: hence a track between them.
        self.tracks.push(TrackDescriptor {
            child_ordering: Some(proto::ChildTracksOrdering::Explicit.into()),
            description: Some(description),
            ..named(MACHINE, PROCESS, 0, "machine")
        });
        self.tracks.push(named(FINDINGS, MACHINE, 0, "findings"));
        let unit = Some(proto::Unit::Count.into());
        for (rank, uuid, name) in [(1, CALLS, "calls pending"), (2, IPIS, "IPIs on their way")] {
            let counter = Some(proto::CounterDescriptor { unit });
            self.tracks.push(TrackDescriptor { counter, ..named(uuid, MACHINE, rank, name) });
        }
        for cpu in 0..input.cpus {
            let rank = i32::try_from(cpu).map_or(i32::MAX, |cpu| cpu.saturating_add(3));
            self.tracks.push(named(CPUS + u64::from(cpu), MACHINE, rank, &format!("CPU {cpu}")));
        }
    }

    /// The track of a CPU's slices: its own, or one more below that.
    fn lane(&mut self, cpus: u32, cpu: u32, number: usize) -> u64 {
        let own = CPUS + u64::from(cpu);
        if number == 0 {
            return own;
        }
        let uuid = CPUS + u64::from(cpus) + self.overlapping;
        self.overlapping += 1;
        self.tracks.push(TrackDescriptor {
            uuid: Some(uuid),
            parent_uuid: Some(own),
            name: Some(format!("CPU {cpu}, overlapping {number}")),
            ..TrackDescriptor::default()
        });
        uuid
    }

    fn labelled(&mut self, track: u64, kind: Type, label: Label) -> TrackEvent {
        let values = label.values.into_iter();
        TrackEvent {
            debug_annotations: values.map(|value| labels::annotation(&mut self.value_names, value)).collect(),
            r#type: Some(kind.into()),
            name_iid: Some(self.event_names.number(&label.name)),
            track_uuid: Some(track),
            flow_ids: label.flows,
            ..TrackEvent::default()
        }
    }

    fn edges(&mut self, track: u64, edges: Vec<(u64, Edge<Label>)>) {
        for (time, edge) in edges {
            let event = match edge {
                Edge::Begin(label) => self.labelled(track, Type::SliceBegin, label),
                Edge::End => TrackEvent {
                    r#type: Some(Type::SliceEnd.into()),
                    track_uuid: Some(track),
                    ..TrackEvent::default()
                },
            };
            self.events.push((time, event));
        }
    }

    fn instant(&mut self, track: u64, time: u64, label: Label) {
        let event = self.labelled(track, Type::Instant, label);
        self.events.push((time, event));
    }

    fn finding(&mut self, time: u64, name: String) {
        self.instant(FINDINGS, time, Label { name, values: Vec::new(), flows: Vec::new() });
    }

    fn counter(&mut self, track: u64, values: Vec<(u64, i64)>) {
        for (time, value) in values {
            let event = TrackEvent {
                r#type: Some(Type::Counter.into()),
                track_uuid: Some(track),
                counter_value: Some(value),
                ..TrackEvent::default()
            };
            self.events.push((time, event));
        }
    }

    fn finish(mut self) -> Vec<u8> {
        // Stable: the edges of one track stay in their order, and instants of the same time follow them.
        self.events.sort_by_key(|(time, _)| *time);
        let mut bytes = Vec::new();
        // Packet by packet, because all of them at once would need several times the memory.
        let mut write = |packet| {
            let packet = TracePacket { trusted_packet_sequence_id: Some(SEQUENCE), ..packet };
            bytes.extend(Trace { packet: vec![packet] }.encode_to_vec());
        };
        let interned = |names: Names| {
            let names = (1..).zip(names.names);
            names.map(|(iid, name)| proto::InternedName { iid: Some(iid), name: Some(name) }).collect()
        };
        write(TracePacket {
            sequence_flags: Some(proto::SEQ_INCREMENTAL_STATE_CLEARED),
            interned_data: Some(proto::InternedData {
                event_names: interned(self.event_names),
                debug_annotation_names: interned(self.value_names),
            }),
            ..TracePacket::default()
        });
        for track in self.tracks {
            write(TracePacket { track_descriptor: Some(track), ..TracePacket::default() });
        }
        for (time, event) in self.events {
            write(TracePacket {
                // Perfetto reads it as a signed number.
                timestamp: Some(time.min(i64::MAX as u64)),
                sequence_flags: Some(proto::SEQ_NEEDS_INCREMENTAL_STATE),
                track_event: Some(event),
                ..TracePacket::default()
            });
        }
        bytes
    }
}
