//! What every file holds: slices that nest and end, time that only goes on, flows with two ends, every event once.

use std::collections::BTreeMap;

use proptest::prelude::*;
use prost::Message;
use smpcall_machine::{Cpu, Event, EventKind, Instant};

use super::proto::{Trace, TrackDescriptor, TrackEvent, Type};
use super::{CALLS, CPUS, FINDINGS, IPIS, Input, encode};
use crate::timeline::samples::{Trace as Sample, dead_target, frame_names, lost_call_now, lost_call_then};

/// A file, read again.
struct File {
    tracks: BTreeMap<u64, TrackDescriptor>,
    events: Vec<(u64, TrackEvent)>,
    names: Vec<String>,
    value_names: Vec<String>,
}

fn encoded(cpus: u32, events: &[Event]) -> Vec<u8> {
    let (process, description, findings) = ("smpcall lost-call then", "A machine.", ["ipi-lost".to_owned()]);
    let frame_names = &frame_names();
    encode(&Input { process, description, cpus, events, frame_names, findings: &findings })
}

impl File {
    #[track_caller]
    fn of(cpus: u32, events: &[Event]) -> Self {
        let trace = Trace::decode(encoded(cpus, events).as_slice()).expect("it is one message");
        let mut file =
            Self { tracks: BTreeMap::new(), events: Vec::new(), names: Vec::new(), value_names: Vec::new() };
        for packet in trace.packet {
            assert_eq!(packet.trusted_packet_sequence_id, Some(1));
            if let Some(data) = packet.interned_data {
                assert!(file.names.is_empty(), "all names come first");
                file.names = data.event_names.into_iter().filter_map(|name| name.name).collect();
                file.value_names =
                    data.debug_annotation_names.into_iter().filter_map(|name| name.name).collect();
            }
            if let Some(track) = packet.track_descriptor {
                let parent = track.parent_uuid.is_none_or(|parent| file.tracks.contains_key(&parent));
                assert!(parent, "a parent is described before its children");
                let again = file.tracks.insert(track.uuid(), track);
                assert_eq!(again, None, "a track is described once");
            }
            if let Some(event) = packet.track_event {
                file.events.push((packet.timestamp.expect("events have times"), event));
            }
        }
        file.is_sound();
        file
    }

    #[track_caller]
    fn is_sound(&self) {
        assert!(self.events.is_sorted_by_key(|(time, _)| *time), "time only goes on");
        let mut open: BTreeMap<u64, u64> = BTreeMap::new();
        let mut flows: BTreeMap<u64, u64> = BTreeMap::new();
        for (_, event) in &self.events {
            assert!(self.tracks.contains_key(&event.track_uuid()), "the track is described");
            let open = open.entry(event.track_uuid()).or_default();
            match event.r#type() {
                Type::SliceBegin => *open += 1,
                Type::SliceEnd => *open = open.checked_sub(1).expect("an end has a beginning"),
                Type::Instant => {}
                Type::Counter => assert!(event.counter_value() >= 0),
                Type::Unspecified => panic!("every event has a type"),
            }
            for flow in &event.flow_ids {
                *flows.entry(*flow).or_default() += 1;
            }
        }
        assert!(open.values().all(|&open| open == 0), "what begins ends");
        assert!(flows.values().all(|&ends| ends >= 2), "a flow has two ends");
    }

    fn name(&self, event: &TrackEvent) -> &str {
        event.name_iid.map_or("", |number| &self.names[number as usize - 1])
    }

    /// How many slices or instants are called that.
    fn number(&self, name: &str) -> usize {
        self.events.iter().filter(|(_, event)| self.name(event) == name).count()
    }

    /// When each slice of this name begins and ends, on its track.
    fn slices(&self, name: &str) -> Vec<(u64, u64, u64)> {
        let mut open: BTreeMap<u64, Vec<(&str, u64)>> = BTreeMap::new();
        let mut found = Vec::new();
        for (time, event) in &self.events {
            let open = open.entry(event.track_uuid()).or_default();
            match event.r#type() {
                Type::SliceBegin => open.push((self.name(event), *time)),
                Type::SliceEnd => {
                    let (ended, begin) = open.pop().expect("sound");
                    if ended == name {
                        found.push((event.track_uuid(), begin, *time));
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// The names along each flow, with the tracks.
    fn flows(&self) -> Vec<Vec<(u64, &str)>> {
        let mut flows: BTreeMap<u64, Vec<(u64, &str)>> = BTreeMap::new();
        for (_, event) in &self.events {
            for &flow in &event.flow_ids {
                flows.entry(flow).or_default().push((event.track_uuid(), self.name(event)));
            }
        }
        flows.into_values().collect()
    }

    fn counter(&self, track: u64) -> Vec<(u64, i64)> {
        let values = self.events.iter().filter(|(_, event)| event.track_uuid() == track);
        values.map(|(time, event)| (*time, event.counter_value())).collect()
    }

    fn findings(&self) -> Vec<&str> {
        let findings = self.events.iter().filter(|(_, event)| event.track_uuid() == FINDINGS);
        findings.map(|(_, event)| self.name(event)).collect()
    }

    /// The numbers and flags beside the only event of this name.
    #[track_caller]
    fn values(&self, name: &str) -> Vec<(&str, u64)> {
        let mut events = self.events.iter().filter(|(_, event)| self.name(event) == name);
        let (_, event) = events.next().expect("there is one");
        assert!(events.next().is_none(), "there is no other");
        let value = |a: &super::proto::DebugAnnotation| {
            a.uint_value.or(a.pointer_value).or(a.bool_value.map(u64::from)).expect("a value")
        };
        let values = event.debug_annotations.iter();
        values.map(|a| (&*self.value_names[a.name_iid() as usize - 1], value(a))).collect()
    }
}

/// The track of a CPU.
fn on(cpu: u64) -> u64 {
    CPUS + cpu
}

#[test]
fn one_process_has_a_track_for_each_cpu_in_the_order_of_their_numbers() {
    let file = File::of(16, &lost_call_then(16));
    let processes: Vec<_> = file.tracks.values().filter_map(|track| track.process.as_ref()).collect();
    assert_eq!(processes.len(), 1);
    assert_eq!(processes[0].process_name(), "smpcall lost-call then");
    let mut cpus: Vec<_> = file.tracks.values().filter(|track| track.name().starts_with("CPU")).collect();
    cpus.sort_by_key(|track| track.sibling_order_rank());
    let names: Vec<_> = cpus.iter().map(|track| track.name().to_owned()).collect();
    assert_eq!(names, (0..16).map(|cpu| format!("CPU {cpu}")).collect::<Vec<_>>());
}

#[test]
fn every_ipi_is_an_instant_and_all_but_the_lost_one_lead_to_a_handler() {
    let events = lost_call_then(16);
    let file = File::of(16, &events);
    let recorded = |kind| events.iter().filter(|event| event.kind == kind).count();
    assert_eq!(file.number("IpiSent"), recorded(EventKind::IpiSent));
    assert_eq!(file.number("IpiAccepted"), recorded(EventKind::IpiAccepted));
    assert_eq!((file.number("IpiSent"), file.number("IpiAccepted"), file.number("IpiLost")), (30, 29, 1));
    let arrived = file.flows().into_iter().filter(|flow| {
        let names: Vec<_> = flow.iter().map(|(_, name)| *name).collect();
        names == ["IpiSent", "IpiAccepted", "IPI 0xfb"] && flow[0].0 == on(5) && flow[1].0 == flow[2].0
    });
    assert_eq!(arrived.count(), 29);
}

#[test]
fn what_went_wrong_is_told_when_it_happened_and_what_the_caller_adds_at_the_end() {
    let file = File::of(16, &lost_call_then(16));
    let findings = file.findings();
    assert_eq!(findings.len(), 4);
    assert!(findings[0].contains("CPU 5 to CPU 11, was LOST"), "{findings:?}");
    assert!(findings[1].starts_with("Soft lockup on CPU 5"), "{findings:?}");
    assert_eq!(findings[3], "ipi-lost");
    let events: Vec<_> = file.events.iter().filter(|(_, event)| event.track_uuid() == FINDINGS).collect();
    assert!(events[0].0 < 3_000 && events[1].0 == 10_000_000_500);
    assert_eq!(events[3].0, file.events.last().expect("there is one").0);
}

#[test]
fn a_wait_that_does_not_end_ends_with_the_trace_and_says_so() {
    let file = File::of(16, &lost_call_then(16));
    let last = file.events.last().expect("there is one").0;
    assert_eq!(file.slices("wait"), [(on(5), 2_600, 2_690), (on(5), 2_700, last)]);
    let mut trace = Sample::new();
    trace.at(10, 0, EventKind::WaitBegan, Some(1), 0, 0);
    trace.at(90, 1, EventKind::ProgramEnded, None, 0, 0);
    let file = File::of(2, &trace.events);
    assert_eq!(file.slices("wait for CPU 1"), [(on(0), 10, 90)]);
    assert_eq!(file.values("wait for CPU 1"), [("expired", 0), ("unfinished", 1)]);
}

#[test]
fn a_call_to_many_leads_to_each_closure_and_from_there_to_its_completion() {
    let file = File::of(16, &lost_call_now(16));
    let calls: Vec<_> = file.flows().into_iter().filter(|flow| flow[0].1 == "ManyQueued").collect();
    assert_eq!(calls.len(), 15);
    for call in calls {
        assert_eq!((call[0].0, call[1].1, call[2]), (on(5), "call of CPU 5", (on(5), "CallCompleted")));
    }
    let completed = file.events.iter().find(|(_, event)| file.name(event) == "CallCompleted");
    let completed = completed.expect("it was completed").0;
    assert_eq!(file.counter(CALLS), [(1_200, 1), (completed, 0)]);
    let ipis = file.counter(IPIS);
    assert!(ipis.iter().any(|&(_, value)| value > 1));
    assert_eq!(ipis.last().map(|&(_, value)| value), Some(0), "a lost one is not on its way");
}

#[test]
fn a_call_that_nobody_claimed_leads_to_its_end_and_one_that_panics_to_its_completion() {
    let mut trace = Sample::new();
    trace.at(0, 3, EventKind::MailboxOpened, None, 0, 0);
    trace.at(10, 0, EventKind::CallQueued, Some(1), 2, 0);
    trace.at(20, 0, EventKind::CallQueued, Some(2), 1, 0);
    trace.at(50, 2, EventKind::CallClaimed, Some(0), 1, 0);
    trace.at(60, 2, EventKind::CallPanicked, Some(0), 1, 0);
    trace.at(70, 0, EventKind::CallCompleted, Some(2), 1, 0);
    trace.at(90, 0, EventKind::CallWithdrawn, Some(1), 2, 0);
    // The level's next call is another call.
    trace.at(95, 0, EventKind::CallCompleted, Some(1), 2, 0);
    let file = File::of(4, &trace.events);
    let expected: [&[(u64, &str)]; 2] = [
        &[(on(0), "CallQueued"), (on(2), "call of CPU 0"), (on(0), "CallCompleted")],
        &[(on(0), "CallQueued"), (on(0), "CallWithdrawn")],
    ];
    assert_eq!(file.flows(), expected);
    assert_eq!(file.counter(CALLS), [(0, 0), (10, 1), (20, 2), (70, 1), (90, 0)]);
    assert_eq!(file.values("call of CPU 0"), [("panicked", 1)]);
    assert_eq!(file.number("CallPanicked"), 1);
}

#[test]
fn a_duplicated_ipi_is_one_flow_and_an_nmi_leads_to_the_nmi_handler() {
    let mut trace = Sample::new();
    let taken = trace.ipi(100, 0, 1, Some(50));
    trace.at(190, 1, EventKind::IpiMerged, Some(0), 0xfb, 1);
    trace.handler(taken, 1, 0);
    // An NMI while the handler runs; the delivery mode stands in the ICR.
    trace.at(310, 0, EventKind::IcrWritten, Some(1), 2, 0x400);
    trace.at(310, 0, EventKind::IpiSent, Some(1), 2, 9);
    trace.at(320, 1, EventKind::IpiAccepted, Some(0), 2, 9);
    trace.at(330, 1, EventKind::NmiTaken, None, 2, 0);
    trace.at(340, 1, EventKind::InterruptReturned, None, 2, 0);
    let file = File::of(2, &trace.events);
    let names: Vec<Vec<&str>> =
        file.flows().iter().map(|flow| flow.iter().map(|(_, name)| *name).collect()).collect();
    let duplicated = vec!["IpiSent", "IpiAccepted", "IpiMerged", "IPI 0xfb"];
    assert_eq!(names, [duplicated, vec!["IpiSent", "IpiAccepted", "NMI"]]);
    assert_eq!(file.slices("NMI"), [(on(1), 330, 340)]);
    let handler = file.slices("IPI 0xfb");
    assert_eq!(handler, [(on(1), taken, taken + 900)], "the return from the NMI is not the handler's");
}

#[test]
fn frames_enclose_waits_and_a_wedge_that_overlaps_a_handler_has_a_track_of_its_own() {
    let mut trace = Sample::new();
    trace.at(10, 0, EventKind::FrameEntered, None, 0, 0);
    trace.at(10, 0, EventKind::WaitBegan, None, 0, 0);
    trace.at(20, 0, EventKind::WaitEnded, None, 0, 0);
    trace.at(20, 0, EventKind::FrameLeft, None, 0, 0);
    trace.at(30, 0, EventKind::InterruptTaken, None, 0x20, 0);
    trace.at(35, 0, EventKind::Wedged, None, 0, 60);
    trace.at(40, 0, EventKind::InterruptReturned, None, 0x20, 0);
    trace.at(80, 0, EventKind::Halted, None, 0, 0);
    trace.at(90, 0, EventKind::Resumed, None, 0, 0);
    let file = File::of(1, &trace.events);
    let begins = file.events.iter().filter(|(_, event)| event.r#type() == Type::SliceBegin);
    let begins: Vec<&str> = begins.map(|(_, event)| file.name(event)).collect();
    assert_eq!(begins[..2], ["invalidate_bdev", "wait"]);
    assert_eq!(file.slices("interrupt 0x20"), [(on(0), 30, 40)]);
    assert_eq!(file.slices("halted"), [(on(0), 80, 90)]);
    let wedged = file.slices("wedged, interrupts off");
    assert_eq!((wedged.len(), wedged[0].1, wedged[0].2), (1, 35, 60));
    assert_eq!(file.tracks[&wedged[0].0].name(), "CPU 0, overlapping 1");
    assert_eq!(file.tracks[&wedged[0].0].parent_uuid(), on(0));
}

#[test]
fn a_crash_stop_a_reset_and_the_stages_of_a_rendezvous_last() {
    let mut trace = Sample::new();
    trace.at(10, 0, EventKind::RendezvousStage, None, 2, 1);
    trace.at(20, 0, EventKind::RendezvousStage, None, 3, 1);
    trace.at(30, 0, EventKind::RendezvousStage, None, 4, 1);
    trace.at(40, 1, EventKind::Reset, Some(0), 0, 5);
    trace.at(50, 1, EventKind::StartedUp, Some(0), 8, 6);
    trace.at(60, 0, EventKind::CrashWon, None, 0, 0x1000);
    trace.at(70, 0, EventKind::CrashStopped, None, 0, 2);
    trace.at(80, 1, EventKind::Paused, None, 0, 90);
    trace.at(95, 1, EventKind::ProgramEnded, None, 0, 0);
    let file = File::of(2, &trace.events);
    file.is_sound();
    assert_eq!(file.slices("rendezvous, interrupts off"), [(on(0), 10, 20)]);
    assert_eq!(file.slices("rendezvous, run"), [(on(0), 20, 30)]);
    assert_eq!(file.slices("reset, not started"), [(on(1), 40, 50)]);
    assert_eq!(file.slices("crash stop"), [(on(0), 60, 70)]);
    assert_eq!(file.slices("paused"), [(on(1), 80, 90)]);
    assert_eq!(file.values("CrashStopped"), [("missing", 0), ("saved", 2)]);
}

#[test]
fn repeated_rings_are_instants_with_their_attempts() {
    let file = File::of(2, &dead_target(3));
    assert_eq!((file.number("RungAgain"), file.number("IpiMerged")), (3, 3));
    assert_eq!(file.number("ProbeSent"), 1);
    let file = File::of(16, &lost_call_now(16));
    assert_eq!(file.values("RungAgain"), [("other_cpu", 11), ("attempt", 1)]);
}

#[test]
fn the_same_trace_gives_the_same_bytes() {
    assert_eq!(encoded(16, &lost_call_then(16)), encoded(16, &lost_call_then(16)));
}

#[test]
fn nothing_happened_and_nobody_there_are_files_too() {
    for cpus in [0, 4] {
        let file = File::of(cpus, &[]);
        assert_eq!(file.tracks.len(), 5 + cpus as usize);
        assert_eq!(file.findings().len(), 2);
    }
}

#[test]
fn events_of_cpus_that_do_not_exist_are_counted_in_the_description() {
    let events = lost_call_then(16);
    let file = File::of(6, &events);
    let machine = file.tracks.values().find(|track| track.name() == "machine").expect("there is one");
    let beyond =
        events.iter().filter(|event| event.cpu.number() >= 6 || event.other.is_some_and(|o| o.number() >= 6));
    assert!(machine.description().ends_with(&format!("of 6 does not have: {}.", beyond.count())));
}

fn any_event() -> impl Strategy<Value = Event> {
    let other = prop::option::of(0_u32..5);
    let argument = prop_oneof![0_u64..6, Just(u64::MAX)];
    let time = prop_oneof![9 => 0_u64..40, 1 => Just(u64::MAX)];
    (time, 0_u16..100, 0_u32..5, other, 0_u32..4, argument).prop_map(
        |(time, kind, cpu, other, detail, argument)| Event {
            time: Instant::from_nanos(time),
            kind: EventKind::try_from(kind).unwrap_or(EventKind::InterruptTaken),
            cpu: Cpu::new(cpu),
            other: other.map(Cpu::new),
            detail,
            argument,
        },
    )
}

proptest! {
    /// Traces come from dumps too, where anything may be missing.
    #[test]
    fn whatever_the_events_are_the_file_is_sound(events in prop::collection::vec(any_event(), 0..80)) {
        let file = File::of(4, &events);
        let known = |event: &&Event| {
            event.cpu.number() < 4 && event.other.is_none_or(|other| other.number() < 4)
        };
        for kind in [EventKind::IpiSent, EventKind::IpiLost, EventKind::RungAgain, EventKind::PostQueued] {
            let recorded = events.iter().filter(known).filter(|event| event.kind == kind).count();
            prop_assert_eq!(file.number(&format!("{kind:?}")), recorded);
        }
    }
}
