//! Real dumps of Linux, each with what is true of it: extracts (`smpcall diagnose --extract`) of dumps that `tests/linux/run` has
//! made. And the same ones damaged.

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use smpcall_crashdump::extract::{Format as Form, extract};
use smpcall_crashdump::kernel::Kernel;
use smpcall_crashdump::{Dump, VirtualMemory};
use smpcall_diagnosis::evidence::{CallKind, Home};
use smpcall_diagnosis::report::Report;
use smpcall_diagnosis::source::{Format, Source};
use smpcall_diagnosis::{CallState, Confidence, MachineEvidence, Verdict, VerdictKind, diagnose, linux};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dumps")
}

/// The dumps and what is true of each, by name.
fn cases() -> Vec<(PathBuf, Value)> {
    let mut cases: Vec<(PathBuf, Value)> = fs::read_dir(folder())
        .expect("the folder is there")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "vmcore"))
        .map(|path| {
            let note = fs::read(path.with_extension("vmcore.json")).expect("each has a note");
            let note: Value = serde_json::from_slice(&note).expect("JSON");
            (path, note["truth"].clone())
        })
        .collect();
    cases.sort_by(|(a, _), (b, _)| a.cmp(b));
    assert!(cases.len() >= 12, "there are dumps: {}", cases.len());
    cases
}

fn fixture(name: &str) -> PathBuf {
    folder().join(format!("{name}.vmcore"))
}

fn report(path: &Path) -> Report {
    let source = Source::open(path.to_str().expect("a name"), Format::Auto).expect("a dump");
    source.report().expect("concludes")
}

fn evidence(path: &Path) -> MachineEvidence {
    let dump = Dump::open(path).expect("a dump");
    let kernel = Kernel::open(&dump).expect("a kernel");
    linux::evidence(&dump, &kernel)
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().into_iter().flatten().filter_map(Value::as_u64).map(|number| number as u32).collect()
}

fn sorted(cpus: &[u32]) -> Vec<u32> {
    let mut cpus = cpus.to_vec();
    cpus.sort_unstable();
    cpus
}

#[test]
fn each_dump_gets_the_verdict_that_is_true_of_it() {
    for (path, truth) in cases() {
        let report = report(&path);
        let verdict = &report.verdicts[0];
        let kinds: Vec<&str> =
            truth["kinds"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        assert!(kinds.contains(&verdict.kind.to_string().as_str()), "{path:?}: {verdict:#?}");
        assert_eq!(report.is_healthy(), verdict.kind == VerdictKind::Healthy, "{path:?}");
        if report.is_healthy() {
            continue;
        }
        let cpu = truth["cpu"].as_u64().map(|cpu| cpu as u32);
        assert_eq!(verdict.cpu, cpu, "{path:?}");
        let waiters: Vec<u32> =
            numbers(&truth["waiters"]).into_iter().filter(|&waiter| Some(waiter) != cpu).collect();
        assert_eq!(sorted(&verdict.waiters), waiters, "{path:?}");
    }
}

#[test]
fn no_wrong_verdict_stands_beside_the_right_one() {
    for (path, truth) in cases() {
        let kinds = truth["kinds"].to_string();
        let wrong = |verdict: &&Verdict| {
            verdict.confidence > Confidence::Possible && !kinds.contains(&verdict.kind.to_string())
        };
        let report = report(&path);
        assert_eq!(report.verdicts.iter().find(wrong), None, "{path:?}");
    }
}

#[test]
fn the_queues_hold_what_was_put_there() {
    for (path, truth) in cases() {
        let found = evidence(&path);
        assert!(found.queues_complete, "{path:?}: {:?}", found.gaps);
        for (cpu, counts) in truth["queues"].as_object().into_iter().flatten() {
            let cpu: u32 = cpu.parse().expect("a number");
            for (name, kind) in [("sync", CallKind::Sync), ("async", CallKind::Async)] {
                let Some(count) = counts[name].as_u64() else { continue };
                let queued = |call: &&smpcall_diagnosis::CallEvidence| {
                    call.target == cpu && call.state == CallState::Queued && call.kind == Some(kind)
                };
                assert_eq!(found.calls.iter().filter(queued).count() as u64, count, "{path:?}: CPU {cpu}");
            }
        }
    }
}

#[test]
fn a_caller_is_known_by_the_stack_or_the_memory_that_its_descriptor_lies_in() {
    let lost = evidence(&fixture("6.1-lost"));
    let call = lost.calls.iter().find(|call| call.target == 1).expect("the lost one");
    assert_eq!((call.caller, call.waited), (Some(2), true));
    assert_eq!(
        call.descriptor.as_ref().map(|descriptor| descriptor.home.clone()),
        Some(Home::StackOf { cpu: 2 })
    );
    assert!(
        call.nanos.is_some_and(|nanos| nanos >= 1_000_000_000),
        "the scheduler says for how long: {call:?}"
    );
    let broadcast = evidence(&fixture("6.12-lost-broadcast"));
    let many = broadcast
        .calls
        .iter()
        .find(|call| call.target == 1 && call.caller == Some(7))
        .expect("one for each CPU");
    let home = Home::PerCpu { cpu: 7, variable: Some("cfd_data".into()) };
    assert_eq!(many.descriptor.as_ref().map(|descriptor| descriptor.home.clone()), Some(home));
}

#[test]
fn a_kernel_without_types_still_tells_who_called_whom() {
    let found = evidence(&fixture("6.1-csd-lost"));
    let call = found.calls.iter().find(|call| call.target == 1).expect("the lost one");
    assert_eq!((call.caller, call.waited, call.kind), (Some(2), true, Some(CallKind::Sync)));
    assert!(!found.gaps.is_empty(), "that there are no types is said");
}

#[test]
fn a_call_that_runs_for_too_long_is_found_by_its_caller_alone() {
    let found = evidence(&fixture("6.1-long-handler"));
    let claimed: Vec<_> = found.calls.iter().filter(|call| call.state == CallState::Claimed).collect();
    assert_eq!(claimed.len(), 1, "{claimed:#?}");
    assert_eq!((claimed[0].caller, claimed[0].target), (Some(2), 1));
    assert_eq!(claimed[0].function.as_deref(), Some("calltrouble_endless_handler"));
}

/// Everything but the time that it took and what kind of file it was.
fn essence(report: &Report) -> Value {
    let mut json: Value = serde_json::from_str(&report.json()).expect("JSON");
    json["seconds"] = Value::Null;
    json["source"]["kind"] = Value::Null;
    json
}

#[test]
fn an_extract_gives_the_same_verdict_and_is_not_larger() {
    for (path, _) in cases() {
        let source = Source::open(path.to_str().expect("a name"), Format::Auto).expect("a dump");
        let first = source.report().expect("concludes");
        let (bytes, extracted) = source.extract().expect("can be written");
        assert_eq!(extracted.bytes, bytes.len() as u64);
        let length = fs::metadata(&path).expect("there").len();
        assert!(bytes.len() as u64 <= length + length / 20, "{path:?}: {} of {length}", bytes.len());
        let mut small = tempfile::NamedTempFile::new().expect("a file");
        small.write_all(&bytes).expect("is written");
        assert_eq!(essence(&report(small.path())), essence(&first), "{path:?}");
    }
}

/// The extract of a fixture as an ELF core: nothing in it is compressed or has a checksum.
fn plain(name: &str) -> Vec<u8> {
    let dump = Dump::open(&fixture(name)).expect("a dump");
    let kernel = Kernel::open(&dump).expect("a kernel");
    diagnose(&linux::evidence(&dump, &kernel));
    let mut bytes = Cursor::new(Vec::new());
    extract(&dump, &mut bytes, Form::Elf).expect("can be written");
    bytes.into_inner()
}

/// What becomes of these bytes: none if they are no dump or no kernel.
fn survives(bytes: Vec<u8>) -> Option<MachineEvidence> {
    let dump = Dump::read(Box::new(bytes)).ok()?;
    let kernel = Kernel::open(&dump).ok()?;
    let found = linux::evidence(&dump, &kernel);
    assert!(!diagnose(&found).verdicts.is_empty());
    Some(found)
}

/// Marsaglia's xorshift with 64 bits: the same numbers on every machine.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

#[test]
fn damaged_dumps_end_in_a_report_or_an_error_and_in_time() {
    const LONGEST: Duration = Duration::from_secs(60);
    let rounds = if cfg!(debug_assertions) { 8 } else { 150 };
    let mut numbers = Numbers(0x5eed_2009);
    for name in ["6.1-lost", "6.12-mutual", "6.1-csd-lost"] {
        let whole = plain(name);
        let mut read = 0;
        for round in 0..rounds {
            let mut bytes = whole.clone();
            // One bit, or up to some thousand; every fifth dump is cut off as well.
            for _ in 0..1 << (round % 13) {
                let at = numbers.below(bytes.len());
                bytes[at] ^= 1 << numbers.below(8);
            }
            if round % 5 == 4 {
                bytes.truncate(numbers.below(whole.len()));
            }
            let began = Instant::now();
            read += usize::from(survives(bytes).is_some());
            assert!(began.elapsed() < LONGEST, "{name}, round {round}: {:?}", began.elapsed());
        }
        assert!(read > 0, "{name}: some damage must let the kernel be read, or the test tests nothing");
    }
}

/// Replaces the only place where these bytes stand.
fn replace(whole: &mut [u8], from: &[u8], to: &[u8]) {
    let places: Vec<usize> =
        (0..whole.len() - from.len()).step_by(8).filter(|&at| whole[at..].starts_with(from)).collect();
    assert_eq!(places.len(), 1, "{from:x?}");
    whole[places[0]..places[0] + to.len()].copy_from_slice(to);
}

#[test]
fn a_queue_that_comes_back_to_itself_or_leads_nowhere_ends_and_is_named() {
    let path = fixture("6.1-lost");
    let dump = Dump::open(&path).expect("a dump");
    let kernel = Kernel::open(&dump).expect("a kernel");
    let found = linux::evidence(&dump, &kernel);
    let call = found.calls.iter().find(|call| call.target == 1).expect("the lost one");
    let address = call.descriptor.as_ref().expect("known").address;
    let before = kernel.memory.read_bytes(address, 32).expect("there");
    for (next, said) in [(address, "comes back"), (0xffff_8000_dead_0000, "none or not in the dump")] {
        let mut after = before.clone();
        after[..8].copy_from_slice(&next.to_le_bytes());
        let mut whole = plain("6.1-lost");
        replace(&mut whole, &before, &after);
        let damaged = survives(whole).expect("still a kernel");
        assert!(!damaged.queues_complete);
        assert!(damaged.gaps.iter().any(|gap| gap.contains(said)), "{:?}", damaged.gaps);
        assert_eq!(damaged.calls.iter().filter(|call| call.target == 1).count(), 1);
    }
}
