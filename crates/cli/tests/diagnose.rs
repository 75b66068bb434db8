//! `smpcall diagnose` as people and scripts see it.

mod common;

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;

use common::{command, seen, smpcall, smpcall_in};

fn log(name: &str) -> String {
    let logs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../diagnosis/tests/fixtures/logs");
    logs.join(name).to_str().expect("a name").to_owned()
}

#[test]
fn the_verdict_is_the_first_line_and_what_is_wrong_is_exit_code_1() {
    let run = smpcall(&["diagnose", &log("guest-6.12-lock-call.log")]);
    assert_eq!((run.code, run.err.as_str()), (1, ""));
    let first = run.out.lines().next().expect("a line");
    assert!(first.starts_with("VERDICT interrupts-off (likely): CPU 1 "), "{first}");
    assert!(run.out.contains("CPU 2-3 ---["), "{}", run.out);
}

#[test]
fn a_quiet_log_is_exit_code_0() {
    let run = smpcall(&["diagnose", &log("guest-6.1-healthy.log")]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    assert!(run.out.starts_with("VERDICT healthy (possible)"), "{}", run.out);
}

#[test]
fn the_json_has_every_name_that_scripts_rely_on() {
    let run = smpcall(&["diagnose", "--json", &log("guest-6.1-irqs-off.log")]);
    let json = run.json();
    assert_eq!((run.code, &json["source"]["kind"], &json["source"]["cpus"]), (1, &"log".into(), &4.into()));
    assert!(json["source"]["kernel"].as_str().is_some_and(|kernel| kernel.starts_with("6.1")));
    let verdict = json["verdicts"][0].as_object().expect("a verdict");
    let keys = ["kind", "cpu", "culprit", "waiters", "function", "confidence", "evidence", "missing"];
    assert!(keys.iter().all(|key| verdict.contains_key(*key)), "{verdict:?}");
    assert_eq!((&verdict["kind"], &verdict["cpu"]), (&"interrupts-off".into(), &1.into()));
    assert!(json["graph"]["nodes"].is_array() && json["graph"]["edges"].is_array());
    assert_eq!(json["cpus"].as_array().map(Vec::len), Some(4));
    assert!(json["seconds"].is_number());
}

#[test]
fn a_log_comes_on_standard_input_too() {
    let mut child = command(&["diagnose", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let contents = fs::read(log("guest-6.1-long-handler.log")).expect("readable");
    child.stdin.take().expect("piped").write_all(&contents).expect("is read");
    let run = seen(&child.wait_with_output().expect("it ends"));
    assert_eq!(run.code, 1, "{}", run.err);
    assert!(run.out.starts_with("VERDICT long-handler"), "{}", run.out);
}

#[test]
fn a_picture_is_drawn_where_it_is_wanted() {
    let directory = tempfile::tempdir().expect("a directory");
    let source = log("guest-6.1-mutual.log");
    let run = smpcall_in(directory.path(), &["diagnose", &source, "--timeline", "graph.svg"]);
    assert_eq!((run.code, run.err.as_str()), (1, "wrote graph.svg\n"));
    let svg = fs::read_to_string(directory.path().join("graph.svg")).expect("was written");
    assert!(svg.starts_with("<svg ") && svg.contains("VERDICT mutual-wait"), "{svg}");
}

#[test]
fn a_trace_of_a_replay_gives_the_verdict_of_the_replay() {
    let directory = tempfile::tempdir().expect("a directory");
    let replay =
        smpcall_in(directory.path(), &["replay", "lost-call", "--then", "--json", "--trace", "t.pftrace"]);
    let expected = replay.json()[0]["diagnosis"][0].clone();
    let run = smpcall_in(directory.path(), &["diagnose", "t.pftrace", "--json"]);
    let json = run.json();
    assert_eq!((run.code, &json["source"]["kind"]), (1, &"simulator".into()), "{}", run.err);
    let found = &json["verdicts"][0];
    for key in ["kind", "cpu", "waiters"] {
        assert_eq!(found[key], expected[key], "{found:#} {expected:#}");
    }
}

#[test]
fn what_cannot_be_read_is_one_sentence_and_exit_code_3() {
    let directory = tempfile::tempdir().expect("a directory");
    let put = |name: &str, contents: &[u8]| {
        fs::write(directory.path().join(name), contents).expect("is written");
    };
    put("empty", b"");
    put("letter", b"Dear all,\nit hangs.\n");
    put("cut-off", b"\x7fELF\x02\x01\x01");
    let refused = |arguments: &[&str], words: &str| {
        smpcall_in(directory.path(), &[&["diagnose"], arguments].concat()).is_refused(3, words);
    };
    refused(&["missing"], "there is no such file");
    refused(&["."], "directory");
    refused(&["empty"], "empty is empty");
    refused(&["letter"], "neither a crash dump nor a trace nor a log");
    refused(&["cut-off"], "cut-off");
    refused(&["qmp:missing.sock"], "missing.sock");
    let source = log("guest-6.1-healthy.log");
    refused(&[&source, "--dmesg"], "needs a crash dump");
    refused(&[&source, "--extract", "small"], "needs a crash dump");
    assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 3, "nothing was written");
}

#[test]
fn arguments_that_make_no_sense_are_exit_code_2() {
    smpcall(&["diagnose"]).is_refused(2, "SOURCE");
    smpcall(&["diagnose", "x", "--format", "pdf"]).is_refused(2, "known: auto, log, dump, trace");
    smpcall(&["diagnose", "x", "--timeline", "a", "--extract", "a"]).is_refused(2, "same file");
    smpcall(&["diagnose", "x", "--dmesg", "--json"]).is_refused(2, "--json");
}

#[test]
fn the_help_says_what_to_do_at_three_in_the_morning() {
    let run = smpcall(&["diagnose", "--help"]);
    assert_eq!(run.code, 0);
    for words in ["qmp:SOCKET", "SysRq", "journalctl", "Exit codes", "No debuginfo"] {
        assert!(run.out.contains(words), "{words}: {}", run.out);
    }
}
