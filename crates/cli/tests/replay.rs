//! `smpcall replay` as people and scripts see it.

mod common;

use std::fs;

use common::{smpcall, smpcall_in};

#[test]
fn then_comes_out_lost_and_now_held_and_the_command_is_content() {
    let run = smpcall(&["replay", "--json"]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    let json = run.json();
    let replays = json.as_array().expect("an array");
    assert!(!replays.is_empty());
    for pair in replays.chunks(2) {
        let came_out = |replay: &serde_json::Value| (replay["when"].clone(), replay["outcome"].clone());
        let expected =
            [("then", "lost"), ("now", "held")].map(|(when, outcome)| (when.into(), outcome.into()));
        assert_eq!(pair.iter().map(came_out).collect::<Vec<_>>(), expected, "{}", pair[0]["incident"]);
    }
}

#[test]
fn the_json_has_every_name_that_scripts_rely_on_and_is_the_machine_asked_for() {
    let run = smpcall(&[
        "replay",
        "lost-call",
        "--then",
        "--cpus",
        "6",
        "--routing",
        "x2apic-cluster",
        "--seed",
        "9",
        "--json",
    ]);
    let json = run.json();
    let replay = &json[0];
    assert_eq!(json.as_array().map(Vec::len), Some(1));
    let names: Vec<&str> = replay.as_object().expect("an object").keys().map(String::as_str).collect();
    for name in
        ["incident", "when", "cpus", "routing", "seed", "outcome", "laws", "ipis", "diagnosis", "events"]
    {
        assert!(names.contains(&name), "{name} is missing from {names:?}");
    }
    assert_eq!(
        (&replay["cpus"], &replay["routing"], &replay["seed"]),
        (&6.into(), &"x2apic-cluster".into(), &9.into())
    );
    assert_eq!(replay["ipis"], serde_json::json!({"sent": 10, "taken": 9, "lost": 1, "resent": 0}));
    assert_eq!(replay["laws"]["L1"], "broken");
    assert_eq!(replay["diagnosis"][0]["kind"], "ipi-lost");
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let run = |seed| smpcall(&["replay", "--json", "--seed", seed]).out;
    assert_eq!(run("4"), run("4"));
    assert_ne!(run("4"), run("5"));
}

#[test]
fn then_without_the_fault_is_not_lost_and_that_is_a_finding() {
    let run = smpcall(&["replay", "--then", "--fault", "none"]);
    assert_eq!(run.code, 1, "{}", run.err);
    assert!(run.out.starts_with("lost-call, then: NOT LOST"), "{}", run.out);
    assert_eq!(smpcall(&["replay", "--now", "--fault", "none"]).code, 0);
}

#[test]
fn a_dead_target_is_told_and_diagnosed() {
    let run = smpcall(&["replay", "lost-call", "--now", "--fault", "dead-target", "--json"]);
    assert_eq!(run.code, 0, "{}", run.err);
    let json = run.json();
    assert_eq!((&json[0]["outcome"], &json[0]["laws"]["L4"]), (&"held".into(), &"held".into()));
    assert_eq!(json[0]["diagnosis"][0]["kind"], "interrupts-off");
}

#[test]
fn arguments_that_make_no_sense_are_refused_in_one_sentence() {
    smpcall(&["replay", "lost-cal"]).is_refused(2, "no such incident; known: lost-call");
    smpcall(&["replay", "--then", "--now"]).is_refused(2, "cannot be used with");
    smpcall(&["replay", "--routing", "vsmp"]).is_refused(2, "there are flat, physflat");
    smpcall(&["replay", "--routing", "flat", "--cpus", "9"])
        .is_refused(2, "reaches 8 CPUs at the most, not 9");
    smpcall(&["replay", "--seed", "-1"]).is_refused(2, "'-1'");
    smpcall(&["replay", "--fault", "dead-target"]).is_refused(2, "--now");
    smpcall(&["replay", "--fault", "flood"]).is_refused(2, "no such fault");
    smpcall(&["replay", "--cpus", "256"]).is_refused(2, "255 CPUs at the most");
    for cpus in ["0", "1"] {
        smpcall(&["replay", "--cpus", cpus]).is_refused(2, "at least 2 CPUs");
        smpcall(&["replay", "--now", "--cpus", cpus]).is_refused(2, "at least 2 CPUs");
    }
    smpcall(&["replay", "--now", "--cpus", "4097"]).is_refused(2, "4096 CPUs at the most");
    smpcall(&["replay", "--cpus", "99999999999999999999"]).is_refused(2, "--cpus");
    smpcall(&["replay", "--timeline", ""]).is_refused(2, "--timeline");
    smpcall(&["rewind"]).is_refused(2, "rewind");
    smpcall(&[]).is_refused(2, "--help");
}

#[test]
fn one_replay_is_drawn_into_the_file_and_two_into_two_and_nothing_else_is_left() {
    let directory = tempfile::tempdir().expect("a directory");
    let files = || {
        let mut names: Vec<String> = fs::read_dir(directory.path())
            .expect("readable")
            .map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    };
    let run = smpcall_in(directory.path(), &["replay", "lost-call", "--now", "--timeline", "one.svg"]);
    assert_eq!((run.code, run.err.as_str()), (0, "wrote one.svg\n"));
    assert_eq!(files(), ["one.svg"]);
    let run = smpcall_in(directory.path(), &["replay", "lost-call", "--json", "--timeline", "two.svg"]);
    assert_eq!((run.code, run.err.as_str()), (0, "wrote two-then.svg\nwrote two-now.svg\n"));
    run.json();
    assert_eq!(files(), ["one.svg", "two-now.svg", "two-then.svg"]);
    let read = |name: &str| fs::read_to_string(directory.path().join(name)).expect("readable");
    assert_eq!(read("one.svg"), read("two-now.svg"), "the same seed gives the same picture");
    assert!(read("two-then.svg").contains("</svg>"));
    let run =
        smpcall_in(directory.path(), &["replay", "lost-call", "--now", "--quiet", "--timeline", "one.svg"]);
    assert_eq!((run.code, run.err.as_str()), (0, ""), "quiet, and the file is replaced");
}

#[test]
fn a_picture_that_cannot_be_written_is_one_sentence_and_no_result() {
    let directory = tempfile::tempdir().expect("a directory");
    let run = |file: &str| smpcall_in(directory.path(), &["replay", "lost-call", "--timeline", file]);
    run("missing/a.svg").is_refused(3, "its directory does not exist");
    run(".").is_refused(3, "it is a directory");
    fs::write(directory.path().join("file"), "").expect("is written");
    run("file/a.svg").is_refused(3, "cannot write");
    // The second of two files cannot be written: the first is not left behind.
    fs::create_dir(directory.path().join("a-now.svg")).expect("a directory");
    run("a.svg").is_refused(3, "a-now.svg: it is a directory");
    assert!(!directory.path().join("a-then.svg").exists());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_standard_output_is_a_failure_and_one_without_reader_is_none() {
    use std::process::Stdio;
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("a device");
    let output = common::command(&["replay"]).stdout(full).stderr(Stdio::piped()).output().expect("starts");
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write the result to standard output"));

    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = common::command(&["replay"]).stdout(writer).stderr(Stdio::piped()).output().expect("starts");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &[][..]));
}

/// Line numbers in the replays' own source change with every edit of it.
fn without_line_numbers(text: &str) -> String {
    let mut parts = text.split(".rs:");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |out, part| out + ".rs:LINE" + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

#[test]
fn then_reads_like_the_report() {
    let run = smpcall(&["replay", "lost-call", "--then", "--seed", "1"]);
    assert_eq!(run.code, 0);
    insta::assert_snapshot!("then", without_line_numbers(&run.out));
}

#[test]
fn now_reads_like_good_news() {
    let run = smpcall(&["replay", "lost-call", "--now", "--seed", "1"]);
    assert_eq!(run.code, 0);
    insta::assert_snapshot!("now", without_line_numbers(&run.out));
}

#[test]
fn a_queue_that_nobody_rings_for_reads_like_the_report_and_one_that_is_emptied_accounts_for_each_request() {
    for when in ["then", "now"] {
        let run = smpcall(&["replay", "offline-queue", &format!("--{when}"), "--seed", "1"]);
        assert_eq!(run.code, 0);
        insta::assert_snapshot!(format!("offline_queue_{when}"), without_line_numbers(&run.out));
    }
}

#[test]
fn a_stray_end_of_interrupt_reads_like_the_report_and_its_mending_with_what_sending_costs() {
    for when in ["then", "now"] {
        let run = smpcall(&["replay", "stray-eoi", &format!("--{when}"), "--seed", "1"]);
        assert_eq!(run.code, 0);
        insta::assert_snapshot!(format!("stray_eoi_{when}"), without_line_numbers(&run.out));
    }
}

#[test]
fn a_crash_that_waits_for_the_icr_reads_like_the_report_and_one_that_goes_on_says_who_is_missing() {
    for when in ["then", "now"] {
        let run = smpcall(&["replay", "stuck-icr", &format!("--{when}"), "--seed", "1"]);
        assert_eq!(run.code, 0);
        insta::assert_snapshot!(format!("stuck_icr_{when}"), without_line_numbers(&run.out));
    }
}

#[test]
fn an_ipi_that_was_pending_reads_like_the_report_and_the_dump_says_what_was_pending() {
    for when in ["then", "now"] {
        let run = smpcall(&["replay", "pending-ipi", &format!("--{when}"), "--seed", "1"]);
        assert_eq!(run.code, 0);
        insta::assert_snapshot!(format!("pending_ipi_{when}"), without_line_numbers(&run.out));
    }
}

#[test]
fn nobody_who_reads_a_file_sees_colours() {
    assert!(!smpcall(&["replay"]).out.contains('\x1b'));
}
