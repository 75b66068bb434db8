//! `smpcall replay --trace` as Perfetto reads it: decoded by hand, so that the reader does not share the writer's mistakes.

mod common;

use std::collections::BTreeMap;
use std::fs;

use common::{smpcall, smpcall_in};

/// A value in protobuf's wire format (<https://protobuf.dev/programming-guides/encoding/>).
#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let length = bytes.iter().position(|byte| byte & 0x80 == 0).expect("a number ends") + 1;
    let (digits, rest) = bytes.split_at(length);
    *bytes = rest;
    digits.iter().rev().fold(0, |number, digit| number << 7 | u64::from(digit & 0x7f))
}

/// The fields of a message, in order.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Value<'_>)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let value = match key & 7 {
            0 => Value::Number(varint(&mut bytes)),
            1 => {
                let (number, rest) = bytes.split_first_chunk().expect("8 bytes");
                bytes = rest;
                Value::Number(u64::from_le_bytes(*number))
            }
            2 => {
                let length = varint(&mut bytes) as usize;
                let (value, rest) = bytes.split_at(length);
                bytes = rest;
                Value::Bytes(value)
            }
            other => panic!("wire type {other} is not written"),
        };
        fields.push((key >> 3, value));
    }
    fields
}

fn messages<'a>(fields: &[(u64, Value<'a>)], wanted: u64) -> Vec<Vec<(u64, Value<'a>)>> {
    bytes(fields, wanted).into_iter().map(self::fields).collect()
}

fn bytes<'a>(fields: &[(u64, Value<'a>)], wanted: u64) -> Vec<&'a [u8]> {
    let of_field = fields.iter().filter(|(number, _)| *number == wanted);
    of_field
        .filter_map(|(_, value)| if let Value::Bytes(bytes) = value { Some(*bytes) } else { None })
        .collect()
}

fn numbers(fields: &[(u64, Value<'_>)], wanted: u64) -> Vec<u64> {
    let of_field = fields.iter().filter(|(number, _)| *number == wanted);
    of_field
        .filter_map(|(_, value)| if let Value::Number(number) = value { Some(*number) } else { None })
        .collect()
}

fn text(fields: &[(u64, Value<'_>)], wanted: u64) -> String {
    let bytes = bytes(fields, wanted).concat();
    String::from_utf8(bytes).expect("UTF-8")
}

/// What a trace holds, by field numbers of `trace_packet.proto`, `track_event.proto` and `track_descriptor.proto`.
struct Contents {
    processes: Vec<String>,
    tracks: BTreeMap<u64, String>,
    /// How many slices begin and instants happen, by name.
    named: BTreeMap<String, u64>,
    /// The names of the events along each flow.
    flows: BTreeMap<u64, Vec<String>>,
}

/// Reads a trace, and sees that time only goes on and that on every track what begins ends.
#[track_caller]
fn read(file: &[u8]) -> Contents {
    let mut contents = Contents {
        processes: Vec::new(),
        tracks: BTreeMap::new(),
        named: BTreeMap::new(),
        flows: BTreeMap::new(),
    };
    let mut names = BTreeMap::new();
    let mut open: BTreeMap<u64, i64> = BTreeMap::new();
    let mut now = 0;
    for packet in messages(&fields(file), 1) {
        assert_eq!(numbers(&packet, 10), [1], "one sequence");
        for name in messages(&packet, 12).iter().flat_map(|data| messages(data, 2)) {
            names.insert(numbers(&name, 1)[0], text(&name, 2));
        }
        for track in messages(&packet, 60) {
            contents.tracks.insert(numbers(&track, 1)[0], text(&track, 2));
            contents.processes.extend(messages(&track, 3).iter().map(|process| text(process, 6)));
        }
        for event in messages(&packet, 11) {
            let time = numbers(&packet, 8)[0];
            assert!(time >= now, "time only goes on");
            now = time;
            let track = numbers(&event, 11)[0];
            assert!(contents.tracks.contains_key(&track), "the track is described");
            let name = numbers(&event, 10).first().map_or_else(String::new, |number| names[number].clone());
            let open = open.entry(track).or_default();
            match numbers(&event, 9)[0] {
                1 => *open += 1,
                2 => *open -= 1,
                3 => {}
                4 => continue,
                other => panic!("no event has the type {other}"),
            }
            assert!(*open >= 0, "an end has a beginning");
            if !name.is_empty() {
                *contents.named.entry(name.clone()).or_default() += 1;
            }
            for flow in numbers(&event, 47) {
                contents.flows.entry(flow).or_default().push(name.clone());
            }
        }
    }
    assert!(open.values().all(|&open| open == 0), "what begins ends");
    contents
}

#[test]
fn the_trace_holds_every_ipi_of_the_replay_and_its_flows_arrive() {
    let directory = tempfile::tempdir().expect("a directory");
    let run = smpcall_in(
        directory.path(),
        &["replay", "lost-call", "--cpus", "6", "--json", "--trace", "a.pftrace"],
    );
    assert_eq!((run.code, run.err.as_str()), (0, "wrote a-then.pftrace\nwrote a-now.pftrace\n"));
    for (index, when) in ["then", "now"].into_iter().enumerate() {
        let bytes = fs::read(directory.path().join(format!("a-{when}.pftrace"))).expect("readable");
        let contents = read(&bytes);
        assert_eq!(contents.processes, [format!("smpcall lost-call {when}")]);
        assert!((0..6).all(|cpu| contents.tracks.values().any(|name| *name == format!("CPU {cpu}"))));
        let ipis = &run.json()[index]["ipis"];
        let named = |name: &str| contents.named.get(name).copied().unwrap_or_default();
        let counted = (named("IpiSent"), named("IPI 0xfb"), named("IpiLost"), named("RungAgain"));
        let count = |name: &str| ipis[name].as_u64().expect("a number");
        assert_eq!(counted, (count("sent"), count("taken"), count("lost"), count("resent")), "{when}");
        let arrived = contents.flows.values().filter(|flow| flow[0] == "IpiSent");
        let mut number = 0;
        for flow in arrived {
            assert_eq!(flow[1..], ["IpiAccepted", "IPI 0xfb"], "{when}");
            number += 1;
        }
        assert_eq!(number, count("taken"), "{when}");
        assert!(contents.flows.values().all(|flow| flow.len() >= 2), "{when}");
        let verdict = run.json()[index]["diagnosis"][0]["kind"].as_str().expect("a name").to_owned();
        let told = contents.named.keys().any(|name| name.starts_with(&format!("diagnosis: {verdict}")));
        assert!(told, "{when}: {verdict}");
    }
}

#[test]
fn the_same_seed_gives_the_same_trace_beside_a_picture() {
    let directory = tempfile::tempdir().expect("a directory");
    for name in ["a", "b"] {
        let (svg, trace) = (format!("{name}.svg"), format!("{name}.pftrace"));
        let run = smpcall_in(
            directory.path(),
            &["replay", "lost-call", "--now", "--timeline", &svg, "--trace", &trace],
        );
        assert_eq!((run.code, run.err), (0, format!("wrote {svg}\nwrote {trace}\n")));
    }
    let bytes = |name: &str| fs::read(directory.path().join(name)).expect("readable");
    assert!(bytes("a.pftrace") == bytes("b.pftrace"));
}

#[test]
fn a_trace_that_cannot_be_written_is_one_sentence_and_nothing_is_left() {
    let directory = tempfile::tempdir().expect("a directory");
    let run = |file: &str| {
        smpcall_in(
            directory.path(),
            &["replay", "lost-call", "--now", "--timeline", "a.svg", "--trace", file],
        )
    };
    run("missing/a.pftrace").is_refused(3, "its directory does not exist");
    run(".").is_refused(3, "it is a directory");
    run("a.svg").is_refused(2, "name the same file");
    assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 0);
    smpcall(&["replay", "--trace", ""]).is_refused(2, "--trace");
}
