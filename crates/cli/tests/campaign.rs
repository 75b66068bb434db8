//! `smpcall campaign`, the completions and the manual page as people and scripts see them.

mod common;

use common::smpcall;

#[test]
fn every_call_is_accounted_for_and_the_json_has_every_name_that_scripts_rely_on() {
    let faults = "delay:by=3us:p=0.1,duplicate:p=0.1";
    let run = smpcall(&[
        "campaign", "--cpus", "4", "--calls", "3000", "--drop", "0.1", "--faults", faults, "--json",
    ]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    let json = run.json();
    let number = |name: &str| json[name].as_u64().unwrap_or_else(|| panic!("{name}: {}", json[name]));
    assert_eq!(number("unreconciled"), 0);
    assert_eq!(number("calls"), 3000);
    assert_eq!(number("completed") + number("told"), 3000);
    assert!(json["ipis"]["lost"].as_u64() > Some(0) && json["ipis"]["resent"].as_u64() > Some(0), "{json}");
    assert!(json["ipis"]["sent"].as_u64() > json["ipis"]["taken"].as_u64(), "{json}");
    assert_eq!(json["faults"].as_array().map(Vec::len), Some(2));
    assert_eq!((number("seed"), number("runs")), (1, 1));
    assert!(json["seconds"].as_f64() > Some(0.0));
}

#[test]
fn the_json_says_how_cpus_came_and_went_and_how_crashes_ended() {
    let run = smpcall(&[
        "campaign",
        "--calls",
        "20000",
        "--workload",
        "all",
        "--crashes",
        "20",
        "--json",
        "--seed",
        "3",
    ]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    let json = run.json();
    for (part, names) in [
        ("hotplug", &["ups", "downs", "fenced", "refused", "unfinished"][..]),
        ("rendezvous", &["run", "backed_out", "refused"]),
        ("work", &["queued", "run", "abandoned", "refused", "lost"]),
        ("crashes", &["runs", "saved", "missing", "offline", "lost", "again", "stopped", "broken"]),
    ] {
        for name in names {
            assert!(json[part][name].is_u64(), "{part}.{name}: {json}");
        }
    }
    assert!(json["crashes"]["injected"].is_object(), "why crashes did not come by themselves: {json}");
    assert_eq!((&json["crashes"]["runs"], &json["crashes"]["broken"]), (&20.into(), &0.into()));
    assert!(json["crashes"]["longest"].as_f64() > Some(0.0), "{json}");
    assert!(json["work"]["run"].as_u64() > Some(0), "{json}");
    assert!(json["operations"].as_u64() > Some(20_000), "{json}");
    assert_eq!(json["workload"], "calls,posts,work,hotplug,fencing,rendezvous");
}

#[test]
fn crashes_need_no_calls() {
    let run = smpcall(&["campaign", "--cpus", "4", "--calls", "0", "--crashes", "10", "--json"]);
    assert_eq!(run.code, 0, "{}", run.err);
    let json = run.json();
    assert_eq!((&json["calls"], &json["crashes"]["runs"]), (&0.into(), &10.into()));
    assert!(smpcall(&["campaign", "--calls", "500", "--json"]).json()["crashes"].is_null());
}

#[test]
fn the_same_seed_gives_the_same_books() {
    let books = |seed| {
        let mut json = smpcall(&["campaign", "--calls", "2000", "--json", "--seed", seed]).json();
        json.as_object_mut().expect("an object").remove("seconds");
        json
    };
    assert_eq!(books("4"), books("4"));
    assert_ne!(books("4")["virtual_seconds"], books("5")["virtual_seconds"]);
}

#[test]
fn minutes_go_on_with_the_following_seeds() {
    let run = smpcall(&[
        "campaign",
        "--cpus",
        "2",
        "--calls",
        "200",
        "--minutes",
        "0.005",
        "--json",
        "--seed",
        "7",
    ]);
    assert_eq!(run.code, 0, "{}", run.err);
    let json = run.json();
    let runs = json["runs"].as_u64().expect("a number");
    assert!(runs > 1, "{json}");
    assert_eq!((&json["seed"], &json["calls"]), (&7.into(), &(200 * runs).into()));
}

#[test]
fn people_read_the_verdict_first() {
    let run = smpcall(&["campaign", "--calls", "500"]);
    assert_eq!((run.code, run.err.as_str()), (0, ""), "no progress where nobody watches");
    assert!(run.out.starts_with("campaign: RECONCILED"), "{}", run.out);
    assert!(run.out.contains("500 made"), "{}", run.out);
}

#[test]
fn arguments_that_make_no_sense_are_refused_in_one_sentence() {
    let refused = |arguments: &[&str], words: &str| {
        smpcall(&[&["campaign"], arguments].concat()).is_refused(2, words);
    };
    for drop in ["1.1", "-0.1", "NaN", "much"] {
        refused(&[&format!("--drop={drop}")], "a probability is a number from 0 to 1");
    }
    refused(&["--cpus", "0"], "at least 2 CPUs");
    refused(&["--cpus", "1"], "at least 2 CPUs");
    refused(&["--cpus", "4097"], "up to 4096");
    refused(&["--cpus", "16", "--routing", "flat"], "reaches 8 CPUs at the most, not 16");
    refused(&["--calls", "0"], "1 to");
    refused(&["--calls", "1000000000000"], "--minutes");
    refused(&["--workload", "calls,naps"], "a workload is a list of");
    refused(&["--workload", "posts"], "needs calls");
    refused(&["--minutes", "0"], "minutes are a number above 0");
    refused(&["--faults", "flood:p=1"], "no fault has this name");
    refused(&["--faults", "drop:p=2"], "not a probability");
    refused(&["--faults", "no-tick:cpu=16"], "CPUs 0 to 15");
    refused(&["--faults", "no-tick:cpu=1,no-tick:cpu=1"], "listed twice");
    refused(&["--faults", "wedge:cpu=1:at=1ms,stop:cpu=1:at=2ms"], "overlap");
    refused(&["--faults", "delay:by=5us:vector=0xfb,drop:p=1"], "loses every message");
}

#[test]
fn completions_and_the_manual_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let run = smpcall(&["completions", shell]);
        assert_eq!(run.code, 0);
        assert!(run.out.contains("campaign"), "{shell}");
    }
    smpcall(&["completions", "dos"]).is_refused(2, "bash");
    let run = smpcall(&["man"]);
    assert_eq!(run.code, 0);
    assert!(run.out.contains(".TH smpcall") && run.out.contains("timeline"), "{}", run.out);
}

#[test]
fn help_and_version_are_results() {
    for arguments in [&["--help"][..], &["replay", "--help"], &["campaign", "--help"], &["--version"]] {
        let run = smpcall(arguments);
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{arguments:?}");
        assert!(!run.out.is_empty());
    }
}
