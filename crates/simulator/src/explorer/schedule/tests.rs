use super::super::minimise::samples::Offline;
use super::*;

/// The second sender finds the call that the first one left before the queue was emptied.
const HANG: &str = "0 2 0*4 2*2 1*4 2";

fn schedule(text: &str) -> Schedule {
    text.parse().expect("a schedule")
}

#[test]
fn every_schedule_is_read_as_it_was_written() {
    for text in ["", "0", "0*3 1i 1*2 0!1 #5f3a", "#0001", "3i*2 3n 3x 3t 3f 3k 12w 0!ff*2"] {
        assert_eq!(schedule(text).to_string(), text);
    }
    assert_eq!(schedule(" 0\t0 0*2\n#00FF"), schedule("0*4 #00ff"));
}

#[test]
fn what_is_no_schedule_is_refused_with_the_place() {
    for (text, complaint) in [
        ("0 1q 2", "word 2 of the schedule, `1q`, is no decision"),
        ("0*", "word 1 of the schedule, `0*`, repeats a decision"),
        ("0 1*0", "word 2 of the schedule, `1*0`, repeats a decision"),
        ("0*999999 0*2", "word 2 of the schedule, `0*2`, repeats a decision"),
        ("0 #12", "word 2 of the schedule, `#12`, is no checksum"),
        ("#+123", "word 1 of the schedule, `#+123`, is no checksum"),
        ("0 #1234 1", "word 3 of the schedule, `1`, is no checksum"),
    ] {
        let error = text.parse::<Schedule>().expect_err(text).to_string();
        assert!(error.starts_with(complaint), "{text}: {error}");
    }
}

#[test]
fn a_replay_comes_to_the_same_violation_and_checksum_every_time() {
    let mut system = Offline::new(false, 0);
    let first = replay(&mut system, &schedule(HANG)).expect("all is offered");
    assert!(matches!(&first.outcome, Outcome::Violated(violation) if violation.law == "hang"));
    assert_eq!(first.footprints.len(), 13);
    let named = Schedule { digest: Some(first.digest), ..schedule(HANG) };
    assert_eq!(replay(&mut system, &named), Ok(first));
}

#[test]
fn a_replay_sees_every_decision_before_it_is_made() {
    let mut system = Offline::new(false, 0);
    let mut seen = Vec::new();
    let watch = |system: &mut Offline, position| seen.push((position, system.decisions));
    replay_with(&mut system, &schedule("0 2*2 0"), watch).expect("all is offered");
    assert_eq!(seen, [(0, 0), (1, 1), (2, 2), (3, 3)]);
}

#[test]
fn a_schedule_that_ends_too_soon_says_what_could_follow() {
    let mut system = Offline::new(false, 0);
    let replayed = replay(&mut system, &schedule("0 2")).expect("all is offered");
    assert_eq!(replayed.outcome, Outcome::Open(vec![Choice::step(0), Choice::step(2)]));
    let replayed = replay(&mut system, &schedule("2*3 0*5 1*4 2*9 1")).expect("all is offered");
    assert_eq!(replayed.outcome, Outcome::Ended(0));
}

#[test]
fn a_decision_that_cannot_be_made_is_named_with_what_could_be() {
    let error = replay(&mut Offline::new(false, 0), &schedule("2 0*2")).expect_err("the sender has ended");
    let text = error.to_string();
    assert!(text.starts_with("decision 3 of 3, `0`, cannot be made here: what can happen is 2. "), "{text}");
    let error = replay(&mut Offline::new(false, 0), &schedule("2*3 0*5 1*4 2*9 1*2")).expect_err("the end");
    let text = error.to_string();
    assert!(
        text.contains("decision 23 of 23, `1`, cannot be made here: the execution is at its end"),
        "{text}"
    );
}

#[test]
fn a_law_that_breaks_early_is_reported() {
    let error = replay(&mut Offline::new(false, 0), &schedule(&format!("{HANG} 1"))).expect_err("too long");
    assert!(
        error
            .to_string()
            .starts_with("a law breaks after 13 of 14 decisions already (hang: nobody can move)")
    );
}

#[test]
fn changed_code_is_noticed_although_all_decisions_can_still_be_made() {
    let text = "2*3 0*2";
    let digest = replay(&mut Offline::new(false, 0), &schedule(text)).expect("all is offered").digest;
    let named = Schedule { digest: Some(digest), ..schedule("2*3 1*2") };
    let error = replay(&mut Offline::new(false, 0), &named).expect_err("another CPU");
    assert!(error.to_string().contains("not what is written happens"), "{error}");
    assert!(error.to_string().contains(&format!("leave off #{digest:04x}")), "{error}");
}
