//! Logs as they come, each with what is true of it (`fixtures/logs/cases.json`), and report 000 itself.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::PathBuf;

use serde_json::Value;
use smpcall_diagnosis::logs::Reader;
use smpcall_diagnosis::report::Report;
use smpcall_diagnosis::{Diagnosis, MachineEvidence, Verdict, VerdictKind, diagnose, text};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/logs")
}

fn evidence(file: &str) -> MachineEvidence {
    let source = File::open(folder().join(file)).expect("the log is there");
    let reader = Reader::new().read_all(BufReader::new(source)).expect("readable");
    assert!(reader.looks_like_a_log(), "{file}");
    reader.evidence()
}

fn diagnosis(file: &str) -> Diagnosis {
    diagnose(&evidence(file))
}

/// How the report of a log reads: what a person sees.
fn report(file: &str) -> String {
    Report::new("log", &evidence(file), 0.0).text()
}

fn cases() -> Vec<Value> {
    let text = fs::read_to_string(folder().join("cases.json")).expect("the list is there");
    let list: Value = serde_json::from_str(&text).expect("JSON");
    list["logs"].as_array().expect("a list").clone()
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[test]
fn every_log_gets_a_verdict_that_is_true_of_it() {
    let mut wrong = Vec::new();
    for case in cases() {
        let file = case["file"].as_str().expect("a name");
        let diagnosis = diagnosis(file);
        let mut check = |holds: bool, what: &str| {
            if !holds {
                wrong.push(format!("{file}: {what}\n{case:#}\n{}", text::render(&diagnosis)));
            }
        };
        let first = &diagnosis.verdicts[0];
        check(names(&case["kinds"]).contains(&first.kind.name()), "the kind");
        let never = names(&case["never"]);
        check(
            diagnosis.verdicts.iter().all(|verdict| !never.contains(&verdict.kind.name())),
            "a kind it must not have",
        );
        let cpu = case["cpu"].as_u64().map(|cpu| cpu as u32);
        let undetermined = first.kind.name() == "undetermined";
        if cpu.is_some() && !undetermined {
            check(first.cpu == cpu || first.culprit == cpu, "the CPU");
        }
        let waiters = case["waiters"].as_array().into_iter().flatten().filter_map(Value::as_u64);
        for waiter in waiters.map(|waiter| waiter as u32) {
            let is_named =
                |verdict: &Verdict| verdict.waiters.contains(&waiter) || verdict.cpu == Some(waiter);
            // CPU 2 of this log appears in it only in a warning from before it hung.
            let unnamed = file == "guest-6.12-mutual.log" && waiter == 2;
            let known = diagnosis.verdicts.iter().any(is_named);
            check(known || unnamed || first.kind.name() == "healthy", &format!("CPU {waiter} waits"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n=====\n"));
}

#[test]
fn every_report_reads_as_it_did() {
    let guests = ["lock-call", "lost-broadcast", "mutual", "long-handler", "healthy"];
    let guests = guests.map(|case| format!("guest-6.12-{case}.log"));
    let cases = cases();
    let retold =
        cases.iter().filter(|case| case["kind"] == "retold").filter_map(|case| case["file"].as_str());
    for file in retold.chain(guests.iter().map(String::as_str)) {
        let (name, _) = file.rsplit_once('.').expect("a name with an extension");
        insta::assert_snapshot!(name, report(file));
    }
}

/// Report 000: one CPU was seen, the others were not, and only counts were kept. What can be said from that is who waits, where,
/// with interrupts on; and that no erratum is known.
#[test]
fn report_000_names_who_waits_and_what_would_tell_for_whom() {
    let verdict = diagnosis("report-000.txt").verdicts.remove(0);
    assert_eq!((verdict.kind, verdict.waiters.as_slice()), (VerdictKind::Undetermined, &[5][..]));
    assert_eq!(verdict.function.as_deref(), Some("smp_call_function"));
    let fact = |value: &str| verdict.evidence.iter().any(|fact| fact.value == value);
    assert!(fact("enabled") && fact("dd_raid, pid 5679") && fact("none known here"), "{verdict:#?}");
    assert!(verdict.missing.iter().any(|missing| missing.contains("IRR")), "{verdict:#?}");
    insta::assert_snapshot!("report-000", report("report-000.txt"));
}

/// Loggers wrap lines in many ways: none of them may change the verdict.
#[test]
fn a_log_says_the_same_in_every_wrapping() {
    let file = "guest-6.12-lock-call.log";
    let text = fs::read_to_string(folder().join(file)).expect("readable");
    let expected = diagnosis(file).verdicts;
    let wraps: [fn(&str) -> String; 5] = [
        |line| format!("Mar  4 05:06:07 host7 kernel: {line}"),
        |line| format!("> > {line}"),
        |line| format!("<4>{line}"),
        |line| format!("\x1b[33m{line}\x1b[0m"),
        |line| line.trim_end().to_owned(),
    ];
    for wrap in wraps {
        let wrapped: Vec<String> = text.lines().map(wrap).collect();
        let reader = Reader::new().read_all(wrapped.join("\n").as_bytes()).expect("readable");
        assert_eq!(diagnose(&reader.evidence()).verdicts, expected);
    }
}

/// A log that was cut anywhere gives some verdict, and none that blames a lost interrupt where none was lost.
#[test]
fn a_log_that_was_cut_off_is_never_taken_for_a_lost_interrupt() {
    for file in ["retold-ksm-list.txt", "guest-6.1-lock-call.log", "guest-6.1-long-handler.log"] {
        let text = fs::read(folder().join(file)).expect("readable");
        for end in (0..text.len()).step_by(97) {
            let reader = Reader::new().read_all(&text[..end]).expect("readable");
            let verdicts = diagnose(&reader.evidence()).verdicts;
            assert!(
                verdicts.iter().all(|verdict| verdict.kind != VerdictKind::IpiLost),
                "{file} up to {end}"
            );
        }
    }
}
