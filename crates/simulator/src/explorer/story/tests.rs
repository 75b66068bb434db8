use super::samples::{claimed_twice, data_race, lost_ring, mutual};
use super::*;

fn text(account: &Account, width: usize) -> String {
    account.text(&Layout { width, fold: true })
}

#[test]
fn a_lost_ring_reads_like_this() {
    let expected = r"
call: one call, one lost message, no re-ring

  # | CPU 0                                     | CPU 1
----+-------------------------------------------+--------------
  1 | call.rs:61 write slot[0].data             |
  2 | call.rs:64 store.rel slot[0].state 0 -> 1 |
  3 | mark.rs:42 or.acqrel pending[1] 0 -> 1    |
 *4 | send.rs:118 send 0xf0 to CPU 1 LOST       | (x 0xf0 lost)

In the end nobody can move:
  CPU 0 waits at call.rs:77 for slot[0].state = 3, but it is 1 since row 2 of
    CPU 0; only CPU 1 can write it. Its interrupts are enabled, and none is
    pending.
  CPU 1 has ended its program. Its interrupts are enabled, and none is pending.
Why nobody is woken:
  Row 4: 0xf0 to CPU 1 is lost, and nobody sends it again.
  Only an interrupt would move CPU 1, and none is pending.

Violation: hang: nobody can move, and CPU 0 waits for ever
Replay: smpcall explore call --drops 1 --replay '0*3 0!1 #5f3a'
";
    assert_eq!(text(&lost_ring(), 80), expected.trim_start_matches('\n'));
}

#[test]
fn a_claim_that_is_not_atomic_reads_like_this() {
    let expected = r"
mutant claim-by-store: a claim in two steps

   # | CPU 0                         | CPU 1                         | CPU 2
-----+-------------------------------+-------------------------------+------------------------------
   1 | call.rs:64 store.rel          |                               |
     |    slot[0].state 0 -> 1       |                               |
   2 | mark.rs:42 or.acqrel          |                               |
     |    pending[2] 0 -> 1          |                               |
   3 |                               |                               | serve.rs:90 swap.acqrel
     |                               |                               |    pending[2] 1 -> 0
   4 |                               |                               | serve.rs:97 load.acq
     |                               |                               |    slot[0].state = 1
   5 |                               | mark.rs:42 or.acqrel          |
     |                               |    pending[2] 0 -> 1          |
   6 |                               | send.rs:118 send 0xf0         | (IRR={0xf0})
     |                               |    to CPU 2                   |
   7 |                               |                               | >> interrupt 0xf0 at
     |                               |                               |    serve.rs:98 IF=0 IRR={}
     |                               |                               |    ISR={0xf0}
   8 |                               |                               | : serve.rs:90 swap.acqrel
     |                               |                               | :    pending[2] 1 -> 0
   9 |                               |                               | : serve.rs:97 load.acq
     |                               |                               | :    slot[0].state = 1
  10 |                               |                               | : serve.rs:98 store.rlx
     |                               |                               | :    slot[0].state 1 -> 2
 *11 |                               |                               | : serve.rs:101
     |                               |                               | :    runs the closure of
     |                               |                               | :    slot[0]
  12 |                               |                               | : kernel.rs:44 EOI ISR={}
  13 |                               |                               | << returns IF=1
  14 |                               |                               | serve.rs:98 store.rlx
     |                               |                               |    slot[0].state 2 -> 2
 *15 |                               |                               | serve.rs:101
     |                               |                               |    runs the closure of
     |                               |                               |    slot[0]

In the end:
  CPU 0 can go on at call.rs:70.
  CPU 1 has ended its program. Its interrupts are enabled, and none is pending.
  CPU 2 can go on at serve.rs:104.

Violation: L1: the closure of slot[0] ran twice
Replay: smpcall explore mutant-claim-by-store --replay '0*2 2*2 1*2 2i 2*7 #01c4'
";
    assert_eq!(text(&claimed_twice(), 100), expected.trim_start_matches('\n'));
}

#[test]
fn a_data_race_reads_like_this() {
    let expected = r"
mutant publish-relaxed: data behind a relaxed flag

  # | CPU 0                                | CPU 1
----+--------------------------------------+------------------------------------
  1 | call.rs:58 cli IF=0                  |
 *2 | call.rs:61 write slot[0].data        |
  3 | call.rs:64 store.rlx slot[0].state   |
    |    0 -> 1                            |
  4 | call.rs:66 sti IF=1                  |
  5 |                                      | serve.rs:97 cmpxchg.acq
    |                                      |    slot[0].state 1 -> 2
 *6 |                                      | serve.rs:100 read slot[0].data

In the end:
  CPU 0 can go on at call.rs:70.
  CPU 1 can go on at serve.rs:101.

Violation: race: slot[0].data: rows 2 and 6 access it, one of them writes, and
  nothing orders them
Replay: smpcall explore mutant-publish-relaxed --replay '0*4 1*2 #9e07'
";
    assert_eq!(text(&data_race(), 80), expected.trim_start_matches('\n'));
}

#[test]
fn cpus_that_wait_for_each_other_are_named() {
    let expected = r"
In the end nobody can move:
  CPU 0 waits at call.rs:77 for done[0] = 1, but it is 0 as at the start; only CPU 1 can write it.
    0xf0 is pending in its IRR, but its interrupts are disabled.
  CPU 1 waits at call.rs:77 for done[1] = 1, but it is 0 as at the start; only CPU 0 can write it.
    0xf0 is pending in its IRR, but its interrupts are disabled.
Why nobody is woken:
  CPU 0 and CPU 1 wait for each other.
";
    assert_eq!(mutual().ending_text(100), expected.trim_start_matches('\n'));
}

#[test]
fn without_room_for_columns_the_table_becomes_a_list() {
    let expected = r"
   1 | CPU 0 call.rs:64 store.rel slot[0].state 0 -> 1
   2 | CPU 0 mark.rs:42 or.acqrel pending[2] 0 -> 1
   3 | CPU 2 serve.rs:90 swap.acqrel pending[2] 1 -> 0
   4 | CPU 2 serve.rs:97 load.acq slot[0].state = 1
   5 | CPU 1 mark.rs:42 or.acqrel pending[2] 0 -> 1
   6 | CPU 1 send.rs:118 send 0xf0 to CPU 2
     | CPU 2 (IRR={0xf0})
   7 | CPU 2 >> interrupt 0xf0 at serve.rs:98 IF=0 IRR={}
     |          ISR={0xf0}
   8 | CPU 2 : serve.rs:90 swap.acqrel pending[2] 1 -> 0
   9 | CPU 2 : serve.rs:97 load.acq slot[0].state = 1
  10 | CPU 2 : serve.rs:98 store.rlx slot[0].state 1 -> 2
 *11 | CPU 2 : serve.rs:101 runs the closure of slot[0]
  12 | CPU 2 : kernel.rs:44 EOI ISR={}
  13 | CPU 2 << returns IF=1
  14 | CPU 2 serve.rs:98 store.rlx slot[0].state 2 -> 2
 *15 | CPU 2 serve.rs:101 runs the closure of slot[0]
";
    assert_eq!(claimed_twice().table(&Layout { width: 60, fold: true }), expected.trim_start_matches('\n'));
}

#[test]
fn each_operation_is_also_a_line_of_its_own() {
    let lines = claimed_twice().operations();
    assert_eq!(lines.len(), 15);
    assert_eq!(lines[0], "CPU 0: call.rs:64 store.rel slot[0].state 0 -> 1");
    assert_eq!(lines[5], "CPU 1: send.rs:118 send 0xf0 to CPU 2; CPU 2 (IRR={0xf0})");
    assert_eq!(lines[6], "CPU 2: >> interrupt 0xf0 at serve.rs:98 IF=0 IRR={} ISR={0xf0}");
    assert_eq!(lines[8], "CPU 2 (in a handler): serve.rs:97 load.acq slot[0].state = 1");
}

#[test]
fn no_line_is_wider_than_the_page_but_the_one_to_be_copied() {
    for account in [lost_ring(), claimed_twice(), data_race(), mutual()] {
        for width in 40..=130 {
            let text = text(&account, width);
            assert!(text.is_ascii());
            for line in text.lines().filter(|line| !line.starts_with("Replay: ")) {
                assert!(line.len() <= width, "{width}: {line}");
            }
            assert!(width < 60 || !text.contains("..."), "{width}: {text}");
        }
    }
}

#[test]
fn local_operations_of_one_cpu_share_a_row_unless_all_are_wanted() {
    let mut account = data_race();
    account.lines[1].local = true;
    // It is evidence, so it keeps its row.
    let table = account.table(&Layout::default());
    assert!(table.contains("\n  1 | call.rs:58 cli IF=0 "), "{table}");
    account.ending.evidence.clear();
    let table = account.table(&Layout { width: 120, fold: true });
    assert!(table.contains("\n  1-2 | call.rs:58 cli IF=0; call.rs:61 write slot[0].data "), "{table}");
    let table = account.table(&Layout { fold: false, ..Layout::default() });
    assert!(table.contains("\n  2 | call.rs:61 write slot[0].data "), "{table}");
}

/// One access of CPU 0, as the table has it.
fn access(access: Access, old: Option<u64>, new: Option<u64>, order: Ordering, buffered: bool) -> String {
    let deed = Deed::Access { access, variable: "x".into(), old, new, order: Some(order), buffered };
    let line = Line { deed, source: String::new(), ..lost_ring().lines[0].clone() };
    words::line(&line).join(" ")
}

#[test]
fn accesses_show_what_they_found_and_what_they_left() {
    use Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
    let exchange = Access::CompareExchange(1, 2, Acquire);
    for (text, expected) in [
        (access(Access::Load, Some(12), Some(12), Relaxed, false), "load.rlx x = 0xc"),
        (access(Access::FetchAdd(1), Some(9), Some(10), SeqCst, false), "add.sc x 9 -> 0xa"),
        (access(Access::FetchAnd(1), Some(3), Some(1), Release, false), "and.rel x 3 -> 1"),
        (access(exchange, Some(1), Some(2), AcqRel, false), "cmpxchg.acqrel x 1 -> 2"),
        (access(exchange, Some(7), Some(7), AcqRel, false), "cmpxchg.acq x is 7, not 1"),
        (access(Access::Store(5), None, Some(5), Relaxed, true), "store.rlx x := 5 (store buffer)"),
        (access(Access::Store(5), None, Some(5), Relaxed, false), "store.rlx x := 5"),
    ] {
        assert_eq!(text, expected);
    }
}

#[test]
fn the_last_writer_of_an_awaited_word_is_named_and_failed_exchanges_write_nothing() {
    let mut account = lost_ring();
    let ending = |account: &Account| account.ending_text(200);
    assert!(ending(&account).contains("but it is 1 since row 2 of CPU 0;"), "{}", ending(&account));
    let Deed::Access { access, .. } = &mut account.lines[1].deed else { panic!("it is an access") };
    *access = Access::CompareExchange(7, 1, Ordering::Relaxed);
    assert!(ending(&account).contains("but it is 1 as at the start;"), "{}", ending(&account));
}

#[test]
fn why_an_interrupt_cannot_come_is_said() {
    let ending = |change: fn(&mut InterruptState)| {
        let mut account = lost_ring();
        change(&mut account.lines[3].after[1]);
        account.ending_text(200)
    };
    for (text, expected) in [
        (ending(|_| ()), "Its interrupts are enabled, and none is pending."),
        (ending(|state| state.enabled = false), "Its interrupts are disabled, and none is pending."),
        (
            ending(|state| {
                state.requested.push(0xf0);
                state.enabled = false;
            }),
            "0xf0 is pending in its IRR, but its interrupts are disabled.",
        ),
        (
            ending(|state| {
                state.requested.push(0xf1);
                state.in_service.push(0xf0);
            }),
            "0xf1 is pending in its IRR, but 0xf0 is still in service: no end of interrupt was written.",
        ),
        (
            ending(|state| {
                state.requested.push(0xf0);
                state.in_service.push(0xe0);
            }),
            "Its interrupts are enabled, and 0xf0 is pending in its IRR.",
        ),
        (
            ending(|state| state.nmi = true),
            "Its interrupts are enabled, and none is pending. An NMI is latched.",
        ),
    ] {
        assert!(text.contains(&format!("CPU 1 has ended its program. {expected}\n")), "{text}");
    }
}

#[test]
fn requests_that_are_dropped_and_messages_that_are_sent_again_are_said() {
    let mut account = claimed_twice();
    account.lines[6].deed = Deed::Other("enables the APIC again".into());
    let ending = account.ending_text(100);
    assert!(ending.contains("Row 7 drops 0xf0 from the IRR of CPU 2 before it is taken."), "{ending}");
    let mut account = lost_ring();
    let mut again = account.lines[3].clone();
    let Deed::Send { lost, .. } = &mut again.deed else { panic!("it is a message") };
    lost.clear();
    account.lines.push(again);
    let ending = account.ending_text(100);
    assert!(ending.contains("Row 4: 0xf0 to CPU 1 is lost, and row 5 sends it again."), "{ending}");
}

#[test]
fn parts_are_broken_at_blanks_and_cut_only_where_they_have_none() {
    let parts = ["one two".to_owned(), "three".into(), "a-very-long-name".into(), "x".into()];
    assert_eq!(words::fill(&parts, 100, 100), ["one two three a-very-long-name x"]);
    assert_eq!(words::fill(&parts, 8, 16), ["one two", "three", "a-very-long-name", "x"]);
    assert_eq!(words::fill(&parts, 4, 6), ["one", "two", "three", "a-v...", "x"]);
    assert_eq!(words::fill(&[], 4, 6), [""]);
}
