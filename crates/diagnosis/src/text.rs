//! A diagnosis for people: the verdict in one line, who waits for whom, the evidence, what is missing, what to do next.

mod whole;

use core::fmt::Write;
use std::collections::BTreeMap;

use crate::Diagnosis;
use crate::graph::{Node, WaitGraph};
use crate::verdict::{Verdict, VerdictKind};

/// The whole diagnosis as plain text without colours, ending with a line break.
pub fn render(diagnosis: &Diagnosis) -> String {
    let mut out = String::new();
    for verdict in &diagnosis.verdicts {
        // Writing to a `String` cannot fail, here and below.
        let _ = writeln!(out, "{}", headline(verdict));
    }
    let picture = picture(&diagnosis.graph);
    if !picture.is_empty() {
        out.push_str("\nWho waits for whom:\n");
        for line in picture {
            let _ = writeln!(out, "  {line}");
        }
    }
    for verdict in &diagnosis.verdicts {
        let _ = write!(out, "\n{}\n", details(verdict));
    }
    out
}

/// A verdict in one line.
pub fn headline(verdict: &Verdict) -> String {
    format!("VERDICT {} ({}): {}", verdict.kind, verdict.confidence, sentence(verdict))
}

fn sentence(verdict: &Verdict) -> String {
    let cpu = verdict.cpu.map_or_else(|| "a CPU".into(), |cpu| format!("CPU {cpu}"));
    let waiters = match verdict.waiters.as_slice() {
        [] => String::new(),
        [one] => format!("; CPU {one} waits for it"),
        many => format!("; CPUs {} wait for it", ranges(many)),
    };
    let function = verdict.function.as_deref();
    let within = function.map_or_else(String::new, |name| format!(" in {name}"));
    let called = function.map_or_else(String::new, |name| format!(" of {name}"));
    match verdict.kind {
        VerdictKind::Healthy => "nobody waits for longer than is normal".into(),
        VerdictKind::MutualWait => {
            format!("{cpu} waits in a circle with others{within}; also waiting: {}", ranges(&verdict.waiters))
        }
        VerdictKind::OfflineQueue => {
            format!("{cpu} is offline, or was meanwhile, and calls lie in its mailbox{waiters}")
        }
        VerdictKind::CpuDead => format!("{cpu} answers nothing, not even an NMI{waiters}"),
        VerdictKind::VcpuNotRunning => format!("the hypervisor does not run {cpu}{waiters}"),
        VerdictKind::StuckIcr => {
            format!("the interrupt controller of {cpu} never becomes ready to send{waiters}")
        }
        VerdictKind::IpiLost => format!("the IPI for the call{called} never reached {cpu}{waiters}"),
        VerdictKind::InterruptsOff => {
            let holder = verdict.culprit.filter(|culprit| Some(*culprit) != verdict.cpu);
            let lock = holder.map_or_else(String::new, |holder| format!(", held up by CPU {holder}"));
            format!("{cpu} runs with interrupts disabled{within}{lock}{waiters}")
        }
        VerdictKind::LongHandler => format!("{cpu} does not come to an end{within}{waiters}"),
        VerdictKind::PendingAtCrash => format!("interrupts were pending or in service at the crash on {cpu}"),
        VerdictKind::StrayEoi => {
            format!("a handler on {cpu} ended an interrupt that was not its own{within}")
        }
        VerdictKind::Undetermined if verdict.cpu.is_none() && !verdict.waiters.is_empty() => {
            let (who, waits) = match verdict.waiters.as_slice() {
                [one] => (format!("CPU {one}"), "waits"),
                many => (format!("CPUs {}", ranges(many)), "wait"),
            };
            format!("{who} {waits} for a call{within}, and the evidence does not say who has not taken it")
        }
        VerdictKind::Undetermined => {
            format!("{cpu} does not answer, and the evidence does not say why{waiters}")
        }
    }
}

/// The evidence, what is missing and what to do next, without a line break at the end.
fn details(verdict: &Verdict) -> String {
    let cpu = verdict.cpu.map_or_else(String::new, |cpu| format!(" at CPU {cpu}"));
    let mut out = format!("{}{cpu}, because:", verdict.kind);
    let width = verdict.evidence.iter().map(|fact| fact.what.chars().count()).max().unwrap_or(0);
    for fact in &verdict.evidence {
        let _ = write!(out, "\n  {:<width$}  {}  [{}]", fact.what, fact.value, fact.source);
    }
    if verdict.evidence.is_empty() {
        out.push_str("\n  no evidence");
    }
    for missing in &verdict.missing {
        let _ = write!(out, "\n  missing: {missing}");
    }
    if verdict.kind != VerdictKind::Healthy {
        let _ = write!(out, "\n  next: {}", verdict.kind.next_step());
    }
    out
}

/// One line for each group of CPUs that wait for the same CPU in the same way: `CPU 5 ---[call, not taken]--> CPU 11`.
fn picture(graph: &WaitGraph) -> Vec<String> {
    let cpu = |node: usize| match graph.nodes.get(node) {
        Some(Node::Cpu { cpu }) => Some(*cpu),
        _ => None,
    };
    // By target and by what lies between; the order of the lines is that of these.
    let mut groups: BTreeMap<(u32, String), Vec<Option<u32>>> = BTreeMap::new();
    let mut unheld: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for edge in &graph.edges {
        match (cpu(edge.from), cpu(edge.to)) {
            (Some(from), Some(to)) => groups.entry((to, "wait".into())).or_default().push(Some(from)),
            (Some(from), None) => {
                if let Some(Node::Lock { name, holder: None }) = graph.nodes.get(edge.to) {
                    unheld.entry(name).or_default().push(from);
                }
            }
            (None, Some(to)) => {
                if let Some(Node::Lock { name, .. }) = graph.nodes.get(edge.from) {
                    let waiters = graph.edges.iter().filter(|before| before.to == edge.from);
                    let waiters = waiters.map(|before| cpu(before.from));
                    groups.entry((to, format!("lock {name}"))).or_default().extend(waiters);
                    continue;
                }
                let Some(Node::Call { function, claimed, guessed, .. }) = graph.nodes.get(edge.from) else {
                    continue;
                };
                let name = function.as_ref().map_or_else(String::new, |name| format!(" {name}"));
                let state = if *claimed { "taken, not finished" } else { "not taken" };
                let waiter = graph.edges.iter().find(|before| before.to == edge.from);
                let kind = if waiter.is_some() { "call" } else { "post" };
                let possibly = if *guessed { "possibly a " } else { "" };
                let between = format!("{possibly}{kind}{name}, {state}");
                let waiter = waiter.and_then(|before| cpu(before.from));
                groups.entry((to, between)).or_default().push(waiter);
            }
            _ => {}
        }
    }
    let lines = groups.into_iter().map(|((to, between), from)| {
        let number = from.len();
        let mut cpus: Vec<u32> = from.into_iter().flatten().collect();
        cpus.sort_unstable();
        cpus.dedup();
        let times = if number > 1 { format!("{number} x ") } else { String::new() };
        let who = match cpus.as_slice() {
            [] => "nobody waits".to_owned(),
            [one] => format!("CPU {one}"),
            many => format!("CPU {}", ranges(many)),
        };
        format!("{who} ---[{times}{between}]--> CPU {to}")
    });
    let held_by_nobody = |(name, cpus): (&str, Vec<u32>)| {
        format!("CPU {} ---[lock {name}]--> who holds it is not known", ranges(&cpus))
    };
    lines.chain(unheld.into_iter().map(held_by_nobody)).collect()
}

/// CPU numbers as ranges, in ascending order: `0-3,7`; none as `nobody`.
pub(crate) fn ranges(cpus: &[u32]) -> String {
    let mut sorted = cpus.to_vec();
    sorted.sort_unstable();
    let mut parts = Vec::new();
    let mut rest = sorted.as_slice();
    while let Some(&first) = rest.first() {
        let run = rest.iter().zip(first..).take_while(|&(&cpu, expected)| cpu == expected).count();
        parts.push(if run == 1 { first.to_string() } else { format!("{first}-{}", rest[run - 1]) });
        rest = &rest[run..];
    }
    if parts.is_empty() { "nobody".into() } else { parts.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnose;
    use crate::samples::{counted_call, machine, waiting_call, working};

    #[test]
    fn the_lost_call_reads_like_this() {
        let expected = "\
VERDICT ipi-lost (certain): the IPI for the call of invalidate_bh_lru never reached CPU 11; CPU 5 waits for it

Who waits for whom:
  CPU 5 ---[call invalidate_bh_lru, not taken]--> CPU 11

ipi-lost at CPU 11, because:
  call of CPU 5 to CPU 11  not taken, made 10.00 s ago (14 of 15 targets have taken it; of all targets only \
this one's count of rings is short)  [simulator: mailbox]
  interrupts of CPU 11     enabled  [simulator: registers]
  IRR of CPU 11            empty  [simulator: local APIC]
  ISR of CPU 11            empty  [simulator: local APIC]
  rings sent to CPU 11     5  [simulator: counters]
  rings merged at CPU 11   0  [simulator: counters]
  rings taken by CPU 11    4  [simulator: counters]
  ring to CPU 11           sent  [simulator: mailbox]
  next: Send the IPI again: if the call then runs, only the interrupt was lost. Then suspect what carries it: \
hypervisor, interrupt remapping, processor errata.
";
        assert_eq!(render(&diagnose(&counted_call(16, 11))), expected);
    }

    #[test]
    fn many_waiters_are_one_line_of_the_picture_and_posts_have_no_waiter() {
        let mut evidence = machine(8);
        evidence.calls = (1..8).filter(|&cpu| cpu != 4).map(|cpu| waiting_call(cpu, 0)).collect();
        let mut post = waiting_call(4, 0);
        post.waited = false;
        evidence.calls.push(post);
        let text = render(&diagnose(&evidence));
        assert!(text.contains("CPU 1-3,5-7 ---[6 x call invalidate_bh_lru, not taken]--> CPU 0\n"), "{text}");
        assert!(text.contains("nobody waits ---[post invalidate_bh_lru, not taken]--> CPU 0\n"), "{text}");
    }

    #[test]
    fn a_healthy_machine_is_told_so_without_a_picture_or_advice() {
        let mut evidence = machine(2);
        evidence.cpus.push(working(2));
        let text = render(&diagnose(&evidence));
        assert!(text.starts_with("VERDICT healthy (certain): nobody waits"), "{text}");
        assert!(!text.contains("-->") && !text.contains("next:"), "{text}");
    }
}
