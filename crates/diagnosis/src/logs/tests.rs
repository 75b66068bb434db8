//! Logs as a whole, and what is concluded from them. The lines are our own, in the kernel's formats.

use super::{Reader, Record, TargetState, recognise};
use crate::diagnose;
use crate::evidence::{Detector, MachineEvidence, StackKind};
use crate::verdict::{Confidence, Verdict, VerdictKind};

fn read(log: &str) -> MachineEvidence {
    let reader = Reader::new().read_all(log.as_bytes()).expect("memory can be read");
    assert!(reader.looks_like_a_log());
    reader.evidence()
}

fn first(log: &str) -> Verdict {
    diagnose(&read(log)).verdicts.remove(0)
}

#[test]
fn reports_of_overdue_calls_are_recognised() {
    let line = "smp: csd: Detected non-responsive CSD lock (#7) on CPU#3, waiting 5000000042 ns for CPU#05 do_it+0x0/0x10(0x0).";
    let expected = Record::CallOverdue {
        report: 7,
        waiter: 3,
        nanos: Some(5_000_000_042),
        target: Some(5),
        function: Some("do_it".into()),
    };
    assert_eq!(recognise(line), Some(expected));
    let unknown = "csd: Continued non-responsive CSD lock (#1) on CPU#3, waiting -42 ns for CPU#-1 0x0(0x0).";
    assert!(matches!(recognise(unknown), Some(Record::CallOverdue { nanos: None, target: None, .. })));
    let state = |text| match recognise(text) {
        Some(Record::CallState { state, .. }) => state,
        other => panic!("{other:?}"),
    };
    assert_eq!(state("csd: CSD lock (#1) unresponsive."), TargetState::Unresponsive);
    assert_eq!(state("csd: CSD lock (#1) handling this request."), TargetState::Running);
    let prior = state("csd: CSD lock (#1) handling prior scf_one+0x0/0x50(0xffff) request.");
    assert_eq!(prior, TargetState::RunningAnother(Some("scf_one".into())));
    let event = recognise("csd: cnt(63d8dd8): 0003->0037 ipi");
    let kind = "ipi".to_owned();
    assert_eq!(event, Some(Record::CallEvent { count: 0x63d_8dd8, source: Some(3), target: Some(55), kind }));
    assert!(matches!(
        recognise("csd: cnt(1): ffff->0037 idle"),
        Some(Record::CallEvent { source: None, .. })
    ));
    assert_eq!(recognise("csd: cnt now: 63fe4cd"), None);
}

#[test]
fn stalls_are_recognised_in_old_and_new_words() {
    use Detector::{HardLockup, RcuStall, SoftLockup};
    let stall = |text| match recognise(text) {
        Some(Record::Stall { cpu, detector, nanos, .. }) => {
            (cpu, detector, nanos.map(|nanos| nanos / 1_000_000_000))
        }
        other => panic!("{text}: {other:?}"),
    };
    for (text, expected) in [
        (
            "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [kworker/1:3:2750]",
            (Some(0), SoftLockup, Some(22)),
        ),
        ("BUG: soft lockup - CPU#3 stuck for 61s! [dd:17]", (Some(3), SoftLockup, Some(61))),
        ("BUG: soft lockup detected on CPU#5!", (Some(5), SoftLockup, None)),
        ("NMI watchdog: Watchdog detected hard LOCKUP on cpu 63", (Some(63), HardLockup, None)),
        ("watchdog: CPU 8 Hard LOCKUP", (Some(8), HardLockup, None)),
        ("watchdog: CPU 1 detected hard LOCKUP on other CPUs 8", (Some(8), HardLockup, None)),
        ("rcu: INFO: rcu_preempt self-detected stall on CPU", (None, RcuStall, None)),
        ("INFO: rcu_sched detected stalls on CPUs/tasks:", (None, RcuStall, None)),
    ] {
        assert_eq!(stall(text), expected);
    }
    let task = recognise("watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [kworker/1:3:2750]");
    assert!(
        matches!(task, Some(Record::Stall { task: Some((name, Some(2750))), .. }) if name == "kworker/1:3")
    );
    assert_eq!(
        recognise("rcu:  3-...!: (0 ticks this GP) idle=5d2c/0/0x0 softirq=1/1 fqs=0"),
        Some(Record::StallRow { cpu: 3, ticks: Some(0) })
    );
    assert!(matches!(
        recognise("#1:   1% system,   0% softirq,  99% hardirq,   0% idle"),
        Some(Record::Utilisation { interrupts: 99 })
    ));
}

#[test]
fn frames_of_all_formats_are_recognised() {
    let frame = |text| match recognise(text) {
        Some(Record::Frame(frame)) => (frame.function, frame.module, frame.guess),
        other => panic!("{text}: {other:?}"),
    };
    let plain = |name: &str| (name.to_owned(), None, false);
    for text in [
        "schedule+0x12/0x80",
        "[<ffffffff81654320>] schedule+0x12a/0x3b0",
        "[c000000ff7f53b20] [c0000000001b8d3c] schedule+0x3bc/0x480",
        "schedule+0x94/0x170 (P)",
        "#7 [ffff810000a51bb8] schedule at ffffffff8020c000",
    ] {
        assert_eq!(frame(text), plain("schedule"));
    }
    assert_eq!(frame("? spin.isra.0+0x12/0x80 [lose]"), ("spin.isra.0".into(), Some("lose".into()), true));
    assert_eq!(frame("#1 [ffff810000a51bb8] spin at ffffffffc0010000 [lose]").1.as_deref(), Some("lose"));
    for other in [
        "R13: 000000000000000e",
        "a+b",
        "Code: 00 01",
        "+0x12/0x80",
        "0xffff+0x1/0x2 x",
        "x+0x1/0x2 and more",
    ] {
        assert!(!matches!(recognise(other), Some(Record::Frame(_))), "{other}");
    }
}

#[test]
fn registers_say_whether_interrupts_are_enabled() {
    let flags = |text| match recognise(text) {
        Some(Record::Flags { interrupts_enabled }) => Some(interrupts_enabled),
        Some(Record::InstructionPointer { interrupts_enabled, .. }) => interrupts_enabled,
        _ => None,
    };
    assert_eq!(flags("RSP: 0018:ffffb61c0a83bb40 EFLAGS: 00000202 ORIG_RAX: ffffffffffffff11"), Some(true));
    assert_eq!(flags("RSP: 0018:ffffb61c0a83bb40 EFLAGS: 00000046"), Some(false));
    assert_eq!(flags("RIP: ffffffff81234560  RSP: ffffc90000123450  RFLAGS: 00000087"), Some(false));
    assert_eq!(flags("pstate: 60400009 (nZCv daif +PAN -UAO -TCO +DIT -SSBS BTYPE=--)"), Some(true));
    assert_eq!(flags("pstate: 604000c9 (nZCv daIF +PAN -UAO -TCO +DIT -SSBS BTYPE=--)"), Some(false));
    assert_eq!(flags("pmr: 000000c0"), Some(false));
    assert_eq!(flags("pmr: 000000e0"), None);
    assert_eq!(flags("R13: 000000000000000e"), None);
}

/// CPU 1 waits for CPU 2, of which an NMI says what `answer` says.
fn overdue(answer: &str) -> String {
    format!(
        "\
[  100.000001] Linux version 6.1.0 (builder)
[  105.000001] smp: csd: Detected non-responsive CSD lock (#1) on CPU#1, waiting 5000000042 ns for CPU#02 work_on+0x0/0x10(0x0).
[  105.000002] smp: \tcsd: CSD lock (#1) unresponsive.
[  105.000003] Sending NMI from CPU 1 to CPUs 2:
{answer}[  106.000001] smp: csd: Re-sending CSD lock (#1) IPI from CPU#01 to CPU#02
"
    )
}

const SPINS: &str = "\
[  105.000004] NMI backtrace for cpu 2
[  105.000005] CPU: 2 PID: 77 Comm: spin Tainted: G O 6.1.0 #1
[  105.000006] RIP: 0010:spin_here+0x10/0x20 [lose]
[  105.000007] RSP: 0018:ffffc90000000000 EFLAGS: 00000046
[  105.000008] Call Trace:
[  105.000009]  <TASK>
[  105.000010]  spin_thread+0x33/0x60 [lose]
[  105.000011]  kthread+0xda/0x100
[  105.000012]  </TASK>
";

#[test]
fn a_target_that_spins_with_interrupts_off_is_found_and_named() {
    let verdict = first(&overdue(SPINS));
    assert_eq!((verdict.kind, verdict.cpu), (VerdictKind::InterruptsOff, Some(2)));
    assert_eq!((verdict.function.as_deref(), verdict.waiters), (Some("spin_here"), vec![1]));
    assert_eq!(verdict.culprit, Some(2));
}

#[test]
fn the_same_target_with_interrupts_on_has_possibly_lost_one() {
    let verdict = first(&overdue(&SPINS.replace("00000046", "00000246")));
    assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::IpiLost, Confidence::Possible));
    assert!(verdict.missing.iter().any(|missing| missing.starts_with("IRR")), "{verdict:#?}");
}

#[test]
fn who_was_asked_and_never_answered_is_dead_or_not_run_unless_the_log_is_too_short() {
    assert_eq!(first(&overdue("")).kind, VerdictKind::Undetermined);
    let later = "[  118.000000] all is quiet\n";
    assert_eq!(first(&(overdue("") + later)).kind, VerdictKind::CpuDead);
    let virtual_machine = format!("[    0.000000] Hypervisor detected: KVM\n{}{later}", overdue(""));
    assert_eq!(first(&virtual_machine).kind, VerdictKind::VcpuNotRunning);
}

#[test]
fn a_target_in_the_call_or_in_an_earlier_one_is_a_long_handler() {
    let this = overdue("").replace("unresponsive.", "handling this request.");
    let verdict = first(&this);
    assert_eq!((verdict.kind, verdict.function.as_deref()), (VerdictKind::LongHandler, Some("work_on")));
    let prior = overdue("").replace("unresponsive.", "handling prior slow_one+0x0/0x50(0xffff) request.");
    let verdict = first(&prior);
    assert_eq!((verdict.kind, verdict.function.as_deref()), (VerdictKind::LongHandler, Some("slow_one")));
}

#[test]
fn an_idle_target_may_have_lost_the_interrupt_or_was_left_to_poll() {
    let idle = "[  105.000004] NMI backtrace for cpu 2 skipped: idling at default_idle+0xb/0x10\n";
    let evidence = read(&overdue(idle));
    assert_eq!(evidence.cpus[1].idle, Some(true));
    assert_eq!(first(&overdue(idle)).kind, VerdictKind::Undetermined);
}

#[test]
fn that_it_got_unstuck_after_the_ipi_was_sent_again_changes_no_verdict() {
    let ended = "[  107.000001] smp: csd: CSD lock (#1) got unstuck on CPU#01, CPU#02 released the lock.\n";
    let verdict = first(&(overdue(SPINS) + ended));
    assert_eq!((verdict.kind, verdict.cpu), (VerdictKind::InterruptsOff, Some(2)));
    let fact = verdict.evidence.iter().find(|fact| fact.value.contains("ended later")).expect("is told");
    assert!(fact.value.contains("after 7.00 s") && fact.value.contains("proves nothing"), "{fact:?}");
}

#[test]
fn events_say_whether_the_ring_came() {
    let events = |last: &str| {
        let lines = format!(
            "[  105.000003]  csd: cnt(00000f0): ffff->0002 gotipi
[  105.000003]  csd: cnt(0000100): 0001->0002 queue
[  105.000003]  csd: cnt(0000101): 0001->0002 ipi
{last}[  105.000003]  csd: cnt now: 0000200
"
        );
        read(&overdue("").replace("[  105.000003] Sending NMI from CPU 1 to CPUs 2:\n", &lines))
            .calls
            .remove(0)
    };
    let lost = events("");
    assert_eq!((lost.rung, lost.ring_taken), (Some(true), Some(false)));
    let came = events("[  105.000003]  csd: cnt(0000102): ffff->0002 gotipi\n");
    assert_eq!((came.rung, came.ring_taken), (Some(true), Some(true)));
}

#[test]
fn callers_that_interleave_are_read_as_that_many_logs() {
    let log = "\
[    9.000001][    C1] watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [a:1]
[    9.000001][    C3] NMI backtrace for cpu 3
[    9.000002][    C1] CPU: 1 PID: 1 Comm: a Not tainted 4.20.0 #5
[    9.000002][    C3] CPU: 3 PID: 3 Comm: c Not tainted 4.20.0 #5
[    9.000003][    C1] RIP: 0010:smp_call_function_many+0x1/0x2
[    9.000003][    C3] RIP: 0010:spin_here+0x1/0x2
[    9.000004][    C1] RSP: 0018:0 EFLAGS: 00000246
[    9.000004][    C3] RSP: 0018:0 EFLAGS: 00000002
[    9.000005][    C1] Call Trace:
[    9.000005][    C3] Call Trace:
[    9.000006][    C1]  on_each_cpu+0x1/0x2
[    9.000006][    C3]  its_own+0x1/0x2
";
    let evidence = read(log);
    assert_eq!(evidence.cpus.iter().map(|cpu| cpu.cpu).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(
        (evidence.cpus[0].interrupts_enabled, evidence.cpus[1].interrupts_enabled),
        (Some(true), Some(false))
    );
    assert_eq!(evidence.cpus[1].stack.last().map(|frame| frame.function.as_str()), Some("its_own"));
    let verdict = first(log);
    // It is the only one that was seen and could not take a call.
    assert_eq!((verdict.kind, verdict.cpu, verdict.waiters), (VerdictKind::InterruptsOff, Some(3), vec![1]));
    // Nothing says that there are no more CPUs.
    assert_eq!(verdict.confidence, Confidence::Possible);
    let all = format!("[    0.000001][    T1] smp: Brought up 1 node, 4 CPUs\n{log}");
    assert_eq!(read(&all).cpus.len(), 4);
}

#[test]
fn a_back_trace_ends_where_another_one_begins() {
    let end = "[  105.000013] rcu: rcu_preempt kthread starved for 5 jiffies!
[  105.000013] Call Trace:
[  105.000014]  schedule+0x1/0x2
";
    let evidence = read(&overdue(&(SPINS.to_owned() + end)));
    let last = evidence.cpus[1].stack.last().map(|frame| frame.function.as_str());
    assert_eq!(last, Some("kthread"));
    let without_mark = SPINS.replace("[  105.000012]  </TASK>\n", "");
    let evidence = read(&overdue(&(without_mark + end)));
    assert_eq!(evidence.cpus[1].stack.len(), 3);
}

#[test]
fn what_crash_prints_is_read_through_the_nmi() {
    let log = "\
PID: 3      TASK: ffff881f9a3e0000  CPU: 20  COMMAND: \"numad\"
 #0 [ffff885fbf485e48] crash_nmi_callback at ffffffff81051a07
 #1 [ffff885fbf485ef0] end_repeat_nmi at ffffffff8182f1e1
    [exception RIP: spin_here+17]
    RIP: ffffffff81104b98  RSP: ffff885f8ee3b668  RFLAGS: 00000087
--- <NMI exception stack> ---
 #2 [ffff885f8ee3b668] spin_here at ffffffff81104b98 [lose]
 #3 [ffff885f8ee3b6b0] kthread at ffffffff81072a1c
";
    let cpu = &read(log).cpus[0];
    assert_eq!((cpu.cpu, cpu.interrupts_enabled), (20, Some(false)));
    let names: Vec<&str> = cpu.stack.iter().map(|frame| frame.function.as_str()).collect();
    assert_eq!(names, ["crash_nmi_callback", "end_repeat_nmi", "spin_here", "kthread"]);
    assert_eq!((cpu.stack[1].stack, cpu.stack[2].stack), (StackKind::Nmi, StackKind::Unknown));
    assert_eq!(cpu.task.as_ref().and_then(|task| task.pid), Some(3));
}

#[test]
fn calls_of_an_offline_cpu_are_found() {
    let log = "[    1.000000] IPI on offline CPU 3\n[    1.000000] IPI callback do_it+0x0/0x10 sent to offline CPU\n";
    let verdict = first(log);
    assert_eq!((verdict.kind, verdict.cpu), (VerdictKind::OfflineQueue, Some(3)));
    assert_eq!(verdict.function.as_deref(), Some("do_it"));
}

#[test]
fn a_monitors_view_of_apics_and_registers_is_evidence() {
    let log = "\
dumping local APIC state for CPU 1
ISR\t 236
IRR\t 251 236 (level)
CPU#1
RIP=ffffffff81104b98 RFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0
";
    let cpu = &read(log).cpus[0];
    assert_eq!(
        (cpu.pending.as_deref(), cpu.in_service.as_deref()),
        (Some(&[251, 236][..]), Some(&[236][..]))
    );
    assert_eq!((cpu.interrupts_enabled, cpu.user_mode, cpu.idle), (Some(false), Some(false), None));
}

#[test]
fn a_warning_of_a_healthy_cpu_is_no_hang_and_a_quiet_log_is_healthy() {
    let warning = "\
[    1.000000] ------------[ cut here ]------------
[    1.000000] WARNING: CPU: 0 PID: 1 at kernel/smp.c:912 smp_call_function_many_cond+0x1/0x2
[    1.000000] CPU: 0 PID: 1 Comm: swapper/0 Not tainted 6.1.0 #1
[    1.000000] RIP: 0010:smp_call_function_many_cond+0x1/0x2
[    1.000000] Call Trace:
[    1.000000]  on_each_cpu+0x1/0x2
[    1.000000] ---[ end trace 0000000000000000 ]---
";
    let verdict = first(warning);
    assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::Healthy, Confidence::Possible));
    let reader = Reader::new().read_all(&b"Dear all,\nnothing happened.\n"[..]).expect("memory can be read");
    assert!(!reader.looks_like_a_log());
}

mod any_bytes {
    use proptest::prelude::*;

    use crate::diagnose;
    use crate::logs::{LONGEST, Reader};

    /// Lines that mean something, with numbers from everywhere.
    fn telling_line() -> impl Strategy<Value = String> {
        const FORMS: [&str; 18] = [
            "csd: Detected non-responsive CSD lock (#A) on CPU#B, waiting C ns for CPU#D f+0x0/0x1(0x0).",
            "csd: CSD lock (#A) unresponsive.",
            "csd: CSD lock (#A) handling prior f+0x0/0x1(0x0) request.",
            "csd: Re-sending CSD lock (#A) IPI from CPU#B to CPU#C",
            "csd: CSD lock (#A) got unstuck on CPU#B, CPU#C released the lock.",
            "csd: cnt(A): B->C ipi",
            "csd: cnt(A): ffff->C gotipi",
            "watchdog: BUG: soft lockup - CPU#A stuck for Bs! [x:C]",
            "Watchdog detected hard LOCKUP on cpu A",
            "rcu: A-....: (B ticks this GP) idle=1",
            "Sending NMI from CPU A to CPUs B-C:",
            "NMI backtrace for cpu A",
            "CPU: A PID: B Comm: c Not tainted 6.1.0 #1",
            "RIP: 0010:smp_call_function_single+0xA/0xB",
            "RSP: 0018:0 EFLAGS: A",
            " f+0xA/0xB",
            "<IRQ>",
            "--- <NMI exception stack> ---",
        ];
        let number = prop_oneof![(0_u64..6).boxed(), any::<u64>().boxed()];
        (0..FORMS.len(), number.clone(), number.clone(), number.clone(), number).prop_map(
            |(form, a, b, c, d)| {
                let name = |text: &str, mark: &str, value: u64| text.replace(mark, &value.to_string());
                // The capitals of other words would be numbers too.
                let form = FORMS[form].replace("CPU", "\0").replace("CSD", "\x01").replace("BUG", "\x02");
                let form = form.replace("RIP", "\x03").replace("RSP", "\x04").replace("EFLAGS", "\x05");
                let form = form.replace("Detected", "\x06").replace("Comm", "\x07").replace("PID", "\x08");
                let form = name(&name(&name(&name(&form, "A", a), "B", b), "C", c), "D", d);
                let back =
                    [("\0", "CPU"), ("\x01", "CSD"), ("\x02", "BUG"), ("\x03", "RIP"), ("\x04", "RSP")];
                let form = back.iter().fold(form, |form, (mark, word)| form.replace(mark, word));
                form.replace('\x05', "EFLAGS")
                    .replace('\x06', "Detected")
                    .replace('\x07', "Comm")
                    .replace('\x08', "PID")
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let reader = Reader::new().read_all(&bytes[..]).expect("memory can be read");
            diagnose(&reader.evidence());
        }

        #[test]
        fn no_sequence_of_lines_makes_it_panic(lines in proptest::collection::vec(telling_line(), 0..40)) {
            let reader = Reader::new().read_all(lines.join("\n").as_bytes()).expect("memory can be read");
            let diagnosis = diagnose(&reader.evidence());
            prop_assert!(!diagnosis.verdicts.is_empty());
        }
    }

    #[test]
    fn a_line_without_end_and_a_log_without_end_take_bounded_memory() {
        let mut reader = Reader::new();
        reader.line(&vec![b'x'; 64 * LONGEST]);
        for report in 0..20_000 {
            let line = format!(
                "csd: Detected non-responsive CSD lock (#{report}) on CPU#{}, waiting 5 ns for CPU#{} f+0x0/0x1(0x0).",
                report % 8192,
                report % 77
            );
            reader.line(line.as_bytes());
            reader.line(format!("[    1.000000][T{report}] NMI backtrace for cpu 1").as_bytes());
        }
        let evidence = reader.evidence();
        assert!(evidence.calls.len() <= 512, "{}", evidence.calls.len());
        assert_eq!(evidence.gaps.len(), 1);
    }
}
