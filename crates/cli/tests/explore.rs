//! `smpcall explore` as people and scripts see it.

mod common;

use std::collections::BTreeSet;
use std::fs;

use common::{Run, smpcall, smpcall_in};

fn explore(arguments: &[&str]) -> Run {
    smpcall(&[&["explore"], arguments].concat())
}

/// The arguments of the command in a line that replays something, as a shell would read them.
fn pasted(output: &str) -> Vec<String> {
    let line = output
        .lines()
        .find_map(|line| line.strip_prefix("Replay: smpcall "))
        .expect("a line that replays it");
    let (command, schedule) = line.split_once('\'').expect("the schedule is quoted");
    let schedule = schedule.strip_suffix('\'').expect("to its end");
    command.split_whitespace().chain([schedule]).map(str::to_owned).collect()
}

fn run_pasted(output: &str) -> Run {
    smpcall(&pasted(output).iter().map(String::as_str).collect::<Vec<_>>())
}

/// Times and sizes are other ones each time; line numbers, and with them the widths of columns, change with every edit
/// of the source, and so do checksums and how many executions the engines need.
fn stable(text: &str) -> String {
    let digits = |part: &str| part.trim_start_matches(|c: char| c.is_ascii_hexdigit()).to_owned();
    let mut out = String::new();
    for line in text.lines().filter(|line| !line.starts_with("  time ") && !line.starts_with("  explored ")) {
        let mut parts = line.split(".rs:");
        let mut line = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            line += ".rs:LINE";
            line += part.trim_start_matches(|c: char| c.is_ascii_digit());
        }
        if let Some((before, after)) = line.split_once(" #").filter(|(before, _)| before.contains("explore"))
        {
            line = format!("{before} #CHECKSUM{}", digits(after));
        }
        if line.contains(" | ") || line.contains("-+-") {
            line = line.split_whitespace().collect::<Vec<_>>().join(" ");
            while line.contains("--") {
                line = line.replace("--", "-");
            }
        }
        out += &line;
        out.push('\n');
    }
    out
}

/// A document without what changes.
fn stable_json(run: &Run) -> String {
    let mut json = run.json();
    let document = json.as_object_mut().expect("an object");
    for name in ["seconds", "memory_bytes", "executions", "transitions", "endings"] {
        document.remove(name).unwrap_or_else(|| panic!("{name} is missing: {}", run.out));
    }
    let violations = document["violations"].as_array_mut().expect("an array");
    for violation in violations {
        let schedule = violation.as_object_mut().expect("an object").remove("schedule").expect("a schedule");
        assert!(schedule.as_str().is_some_and(|schedule| schedule.contains(" #")), "{schedule}");
    }
    stable(&serde_json::to_string_pretty(&json).expect("JSON"))
}

#[test]
fn without_a_name_the_protocols_are_listed() {
    let run = explore(&[]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    let line = |name: &str| {
        let found = run.out.lines().find(|line| line.split_whitespace().next() == Some(name));
        found.unwrap_or_else(|| panic!("{name} is missing: {}", run.out)).to_owned()
    };
    insta::assert_snapshot!("list", ["protocol", "call", "ok2", "irq2", "bug", "fix"].map(line).join("\n"));
    let json = explore(&["--json"]).json();
    let listed = json.as_array().expect("an array");
    assert_eq!(listed.len(), run.out.lines().take_while(|line| !line.is_empty()).count() - 1);
    let bug = listed.iter().find(|entry| entry["protocol"] == "bug").expect("is listed");
    assert_eq!((&bug["broken"], &bug["cpus"], &bug["most_cpus"]), (&true.into(), &3.into(), &3.into()));
}

#[test]
fn a_bug_is_a_finding_with_a_story() {
    let run = explore(&["bug"]);
    assert_eq!((run.code, run.err.as_str()), (1, ""), "no progress where nobody watches");
    insta::assert_snapshot!("bug", stable(&run.out));
}

#[test]
fn what_holds_is_no_finding() {
    let run = explore(&["fix"]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    let explored = run.out.lines().find(|line| line.starts_with("  explored ")).expect("what was explored");
    assert!(
        explored.starts_with("  explored  by states: ") && explored.ends_with("; complete"),
        "{explored}"
    );
    insta::assert_snapshot!("fix", stable(&run.out));
}

#[test]
fn the_json_of_a_bug_and_of_what_holds() {
    let run = explore(&["bug", "--json"]);
    assert_eq!(run.code, 1, "{}", run.err);
    insta::assert_snapshot!("bug_json", stable_json(&run));
    let run = explore(&["fix", "--engine", "dpor", "--json"]);
    assert_eq!(run.code, 0, "{}", run.err);
    insta::assert_snapshot!("fix_json", stable_json(&run));
}

#[test]
fn the_line_that_is_printed_replays_the_same_story() {
    for options in [&[][..], &["--memory", "tso"], &["--engine", "pct"], &["--drops", "1"]] {
        let found = explore(&[&["bug"], options].concat());
        assert_eq!(found.code, 1, "{options:?}: {}", found.err);
        let again = run_pasted(&found.out);
        assert_eq!((again.code, again.err.as_str()), (1, ""), "{options:?}");
        assert!(found.out.ends_with(&again.out), "{options:?}\n{}\n{}", found.out, again.out);
    }
    let json = explore(&["bug", "--json"]).json();
    let schedule = json["violations"][0]["schedule"].as_str().expect("text");
    let again = explore(&["bug", "--json", "--replay", schedule]).json();
    assert_eq!((&again["outcome"], &again["law"]), (&"violated".into(), &"hang".into()));
    assert_eq!(again["account"], json["violations"][0]["account"]);
    assert_eq!(again["schedule"], schedule);
}

#[test]
fn a_schedule_that_breaks_nothing_says_so() {
    let run = explore(&["ok1", "--replay", "0 0"]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    assert!(
        run.out.contains("NO LAW IS BROKEN so far") && run.out.contains("What can happen next: 0"),
        "{}",
        run.out
    );
    // One step after the other, as the command says, to the end.
    let mut schedule = String::new();
    let ended = loop {
        let json = explore(&["ok1", "--json", "--replay", &schedule]).json();
        if json["outcome"] == "ended" {
            break schedule;
        }
        let run = explore(&["ok1", "--replay", &schedule]);
        let next =
            run.out.lines().find_map(|line| line.split_once("What can happen next: ")).expect("something").1;
        schedule = format!("{schedule} {}", next.split(' ').next().expect("a decision"));
    };
    let run = explore(&["ok1", "--replay", &ended]);
    assert_eq!(run.code, 0);
    assert!(run.out.contains("NO LAW IS BROKEN: the execution ends well."), "{}", run.out);
    assert_eq!(run_pasted(&run.out).code, 0);
}

#[test]
fn a_schedule_that_does_not_fit_is_refused_loudly() {
    let schedule =
        explore(&["bug", "--json"]).json()["violations"][0]["schedule"].as_str().expect("text").to_owned();
    let (decisions, checksum) = schedule.split_once(" #").expect("a checksum");
    let other = format!("{decisions} #{:04x}", !u16::from_str_radix(checksum, 16).expect("hexadecimal"));
    explore(&["bug", "--replay", &other]).is_refused(2, "The schedule belongs to other code");
    explore(&["bug", "--replay", &format!("{decisions} 1")]).is_refused(2, "cannot be made here");
    explore(&["fix", "--replay", &schedule]).is_refused(2, "the schedule does not fit fix");
    explore(&["bug", "--replay", "0 7q"]).is_refused(2, "word 2 of the schedule, `7q`, is no decision");
}

#[test]
fn shards_add_up() {
    let numbers = |json: &serde_json::Value| {
        let endings = json["endings"].as_array().expect("an array");
        let endings = endings.iter().map(|ending| ending.as_str().expect("text").to_owned());
        (json["classes"].as_u64().expect("a number"), endings.collect::<BTreeSet<_>>())
    };
    let whole = explore(&["ok3", "--engine", "dpor", "--json"]).json();
    assert_eq!(whole["complete"], true);
    let (mut classes, mut endings, mut transitions) = (0, BTreeSet::new(), vec![]);
    for shard in 1..=8 {
        let json = explore(&["ok3", "--shard", &format!("{shard}/8"), "--json"]).json();
        assert_eq!((&json["incomplete"], &json["engine"]), (&"shard".into(), &"dpor".into()));
        let (more, others) = numbers(&json);
        classes += more;
        endings.extend(others);
        transitions.push(json["transitions"].as_u64());
    }
    assert_eq!((classes, endings), numbers(&whole));
    assert!(
        transitions.iter().all(|count| *count > Some(0)),
        "everybody has something to do: {transitions:?}"
    );
}

#[test]
fn threads_change_nothing_that_is_counted() {
    let counts = |arguments: &[&str]| {
        let json = explore(&[&["irq1", "--json"], arguments].concat()).json();
        assert_eq!(json["complete"], true, "{json}");
        ["classes", "states", "endings"].map(|name| json[name].clone())
    };
    for engine in ["dpor", "states"] {
        assert_eq!(counts(&["--engine", engine]), counts(&["--engine", engine, "--jobs", "3"]));
    }
    // And neither does it what is believed, but for the number of states.
    let [_, fewer, endings] = counts(&[]);
    let [_, more, same] = counts(&["--no-hints", "--no-local"]);
    assert!(more.as_u64() >= fewer.as_u64());
    assert_eq!(endings, same);
}

#[test]
fn limits_end_an_exploration_and_it_says_so() {
    for (engine, option, value) in [
        ("states", "--states", "1000"),
        ("dpor", "--executions", "100"),
        ("states", "--minutes", "0.001"),
        ("states", "--memory-limit", "1K"),
    ] {
        let run = explore(&["irq4", "--engine", engine, option, value, "--json"]);
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{option}");
        let json = run.json();
        assert_eq!((&json["complete"], &json["incomplete"]), (&false.into(), &"limit".into()), "{option}");
    }
    let run = explore(&["irq4", "--states", "1000"]);
    assert!(run.out.starts_with("irq4: INCOMPLETE, no law is broken in what was explored"), "{}", run.out);
}

#[test]
fn executions_drawn_at_random_are_those_of_their_seed() {
    let drawn = |engine: &str, seed: &str| {
        let run = explore(&["bug", "--engine", engine, "--executions", "5000", "--seed", seed, "--json"]);
        assert_eq!(run.code, 1, "{engine} {}", run.err);
        run.json()["executions"].clone()
    };
    for engine in ["random", "pct"] {
        assert_eq!(drawn(engine, "3"), drawn(engine, "3"));
    }
    let json = explore(&["fix", "--engine", "random", "--executions", "500", "--json"]).json();
    assert_eq!((&json["executions"], &json["incomplete"]), (&500.into(), &"random".into()));
}

#[cfg(unix)]
#[test]
fn the_first_interrupt_ends_an_exploration_cleanly() {
    use std::io::Read;
    use std::process::{Command, Stdio};
    use std::thread::sleep;
    use std::time::Duration;

    let mut child = common::command(&["explore", "irq4", "--engine", "dpor", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    sleep(Duration::from_millis(700));
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("there is kill");
    assert!(sent.success() && child.try_wait().expect("a child").is_none(), "it was still at it");
    let status = child.wait().expect("it ends");
    let mut out = String::new();
    child.stdout.take().expect("a pipe").read_to_string(&mut out).expect("UTF-8");
    let json: serde_json::Value = serde_json::from_str(&out).expect("one JSON document and nothing else");
    assert_eq!(status.code(), Some(0));
    assert_eq!((&json["complete"], &json["incomplete"]), (&false.into(), &"stopped".into()));
    assert!(json["classes"].as_u64() > Some(0), "what was covered counts: {json}");
}

#[test]
fn the_picture_is_written_if_there_is_something_to_draw() {
    let directory = tempfile::tempdir().expect("a directory");
    let run = smpcall_in(directory.path(), &["explore", "bug", "--timeline", "bug.svg"]);
    assert_eq!((run.code, run.err.as_str()), (1, "wrote bug.svg\n"));
    let drawn = fs::read_to_string(directory.path().join("bug.svg")).expect("is written");
    assert!(drawn.ends_with("</svg>\n"), "{drawn}");
    let run = smpcall_in(directory.path(), &["explore", "fix", "--timeline", "fix.svg"]);
    assert_eq!((run.code, run.err.as_str()), (0, "nothing was found: fix.svg is not written\n"));
    assert!(!directory.path().join("fix.svg").exists());
    smpcall_in(directory.path(), &["explore", "bug", "--timeline", "no/bug.svg"])
        .is_refused(3, "its directory does not");
}

#[test]
fn all_protocols_have_a_line_and_an_entry() {
    let limit = ["--all", "--executions", "20"];
    let listed = explore(&["--json"]).json().as_array().expect("an array").len();
    let json = explore(&[&limit[..], &["--json"]].concat()).json();
    assert_eq!(json.as_array().map(Vec::len), Some(listed));
    let run = explore(&limit);
    assert_eq!(run.out.lines().count(), listed + 1, "{}", run.out);
    let line = run.out.lines().find(|line| line.starts_with("bug ")).expect("a line");
    assert!(line.contains("BROKEN") && line.ends_with("hang in 10 operations, as it should be"), "{line}");
    // With so few executions not every bug is found, and then not everything is as it should be.
    let bug = |entry: &&serde_json::Value| entry["broken_on_purpose"] == true;
    let missed = json.as_array().expect("an array").iter().filter(bug);
    let missed = missed.filter(|entry| entry["violations"].as_array().is_some_and(Vec::is_empty)).count();
    assert_eq!(run.code, i32::from(missed > 0), "{missed}");
    assert!(run.out.ends_with(&format!(" s, {missed} not as they should be\n")), "{}", run.out);
}

#[test]
fn arguments_that_make_no_sense_are_refused_in_one_sentence() {
    explore(&["bgu"]).is_refused(2, "did you mean bug");
    explore(&["quicksort"]).is_refused(2, "`smpcall explore` lists them");
    explore(&["bug", "--cpus", "2"]).is_refused(2, "bug has 3 CPUs");
    explore(&["ok", "--cpus", "99"]).is_refused(2, "ok has 1 to");
    explore(&["bug", "--engine", "loom"]).is_refused(2, "there are dpor, states, random, pct");
    explore(&["bug", "--memory", "c11"]).is_refused(2, "there are sc and tso");
    explore(&["ok3", "--engine", "states", "--shard", "1/8"])
        .is_refused(2, "use --engine dpor, random or pct");
    for shard in ["0/8", "9/8", "1", "x/y"] {
        explore(&["ok3", "--shard", shard]).is_refused(2, "a shard is I/N, with I from 1 to N");
    }
    explore(&["bug", "--drops", "65536"]).is_refused(2, "65536");
    explore(&["bug", "--jobs", "0"]).is_refused(2, "there are 1 to 1024 threads");
    explore(&["bug", "--states", "0"]).is_refused(2, "--states");
    explore(&["bug", "--memory-limit", "much"]).is_refused(2, "a size is a number above 0");
    explore(&["bug", "--all"]).is_refused(2, "cannot be used with");
    explore(&["bug", "--replay", "0", "--engine", "dpor"]).is_refused(2, "cannot be used with");
    explore(&["--replay", "0"]).is_refused(2, "PROTOCOL");
    explore(&["bug", "--timeline", "."]).is_refused(3, "it is a directory");
}

#[test]
fn completions_and_the_manual_know_it() {
    for shell in ["bash", "zsh", "fish"] {
        let script = smpcall(&["completions", shell]).out;
        assert!(script.contains("explore") && script.contains("memory-limit"), "{shell}");
    }
    let page = smpcall(&["man"]).out;
    assert!(page.contains(".TH smpcall-explore") && page.contains("shard"), "{page}");
}

#[test]
fn the_output_in_the_readme_is_what_the_command_prints() {
    let readme = include_str!("../../../README.md");
    let block =
        readme.split("```text\n").find(|block| block.starts_with("x2apic-no-fence")).expect("an example");
    let shown = block.split("```").next().expect("its end");
    let printed = explore(&["x2apic-no-fence", "--memory", "tso"]).out;
    let timeless = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with("  time "));
        lines.collect::<Vec<_>>().join("\n").trim_end().to_owned()
    };
    assert_eq!(timeless(shown), timeless(&printed), "renew the README's example");
}
