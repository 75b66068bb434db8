//! Every fault that there is, in every operation of the code that ships: which are killed, and which are not.
//!
//! The operations are found in the text, so that those that no protocol comes to are found too.

use core::sync::atomic::Ordering;
use std::fmt::Write as _;
use std::time::Duration;

use smpcall_simulator::explorer::report::Limits;
use smpcall_simulator::explorer::{MemoryModel, Protocol, protocols};
use smpcall_simulator::mutant::{Fault, Mutant};

use super::kill::{Fate, attempt};
use super::{code, purpose};

/// A fault in a line of a file.
pub(crate) struct Site {
    pub(crate) file: &'static str,
    pub(crate) line: u32,
    pub(crate) text: &'static str,
    pub(crate) fault: Fault,
}

/// All of them, in the order of the text.
pub(crate) fn sites() -> Vec<Site> {
    let mut sites = Vec::new();
    for (file, text) in code::FILES {
        for (index, text) in
            text.lines().enumerate().take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        {
            let text = text.trim();
            // The wait of `wait_serving` stands, for the machine, where that is called.
            if file.ends_with("attend.rs") && text.contains("wait::<")
                || text.starts_with("//")
                || text.starts_with("use ")
                || text.starts_with("pub")
            {
                continue;
            }
            for fault in faults_in(text) {
                sites.push(Site { file, line: index as u32 + 1, text, fault });
            }
        }
    }
    sites
}

/// The faults that make sense in the operation on a line.
fn faults_in(line: &str) -> Vec<Fault> {
    let has = |what: &str| line.contains(what);
    let mut faults = Vec::new();
    let ordered = has("Acquire") || has("Release") || has("AcqRel") || has("SeqCst");
    let both = has("AcqRel") || has("SeqCst");
    let exchange = has(".compare_exchange(");
    let modifies = exchange || has(".swap(") || has(".fetch_");
    let stores = has(".store(") && !has("AtomicU64");
    if modifies || stores || has(".load(") {
        if ordered {
            faults.push(Fault::Relaxed);
        }
        if both && modifies {
            faults.extend([Fault::Ordered(Ordering::Acquire), Fault::Ordered(Ordering::Release)]);
        }
        if has("SeqCst") && stores {
            faults.push(Fault::Ordered(Ordering::Release));
        }
        if has("SeqCst") && has(".load(") {
            faults.push(Fault::Ordered(Ordering::Acquire));
        }
        if has(", Acquire).is_") && exchange {
            faults.push(Fault::FailureRelaxed);
        }
        if modifies || stores {
            faults.push(Fault::NotWritten);
        }
        if modifies {
            faults.push(Fault::NotAtomic);
        }
        if exchange {
            faults.push(Fault::Unconditional);
        }
        if has(".fetch_add(") || has(".fetch_sub(") || has(".swap(") {
            faults.push(Fault::Twice);
        }
    }
    if (has("wait::<") || has(".wait_serving(") || has("wait_within::<")) && !has("fn ") {
        faults.extend([Fault::NotWaited, Fault::Relaxed]);
    }
    if has("K::send") {
        faults.extend([Fault::NotSent, Fault::SentTwice]);
    }
    if has("InterruptsOff::") && !has("fn ") {
        faults.push(Fault::NotDisabled);
    }
    if has("access.write(") {
        faults.extend([Fault::RegisterNotWritten, Fault::RegisterWrittenTwice]);
    }
    if has("access.write_icr(") {
        faults.extend([Fault::RegisterNotWritten, Fault::NotFenced]);
    }
    if has("access.read(Register::ICR") {
        faults.extend([Fault::RegisterReads(0), Fault::RegisterReads(1 << 12)]);
    }
    faults
}

/// The protocols of the laws, and those for the purpose; without those that are broken by themselves.
fn all_protocols() -> Vec<Protocol> {
    let mut all = protocols::all();
    all.retain(|protocol| !protocol.broken && protocol.kernel.is_some());
    all.extend(purpose::all());
    let only = std::env::var("SMPCALL_PROTOCOLS").unwrap_or_default();
    if !only.is_empty() {
        all.retain(|protocol| only.split(',').any(|name| name == protocol.name));
    }
    all
}

/// Protocols of few states.
fn is_small(name: &str) -> bool {
    let laws =
        ["call", "call-polling", "deadline", "close", "close-post", "post-call", "close-open-post", "twice"];
    laws.contains(&name)
        || purpose::all().iter().any(|own| own.name == name && own.cpus <= 3 && name != "interrupted-caller")
}

/// The shortest counterexample among those of explorations of at most this many states.
fn shortest(all: &[Protocol], mutant: &Mutant, states: u64) -> Option<Fate> {
    let limits = Limits { states: Some(states), ..Limits::default() };
    let memories = [MemoryModel::Sc, MemoryModel::Tso];
    let mut best: Option<(u32, Fate)> = None;
    for memory in memories {
        for protocol in all.iter().filter(|protocol| is_small(&protocol.name)) {
            if let (Some(fate @ Fate::Killed { operations, .. }), _) =
                attempt(protocol, memory, mutant, limits)
                && best.as_ref().is_none_or(|(fewest, _)| operations < *fewest)
            {
                best = Some((operations, fate));
            }
        }
        if best.is_some() {
            break;
        }
    }
    best.map(|(_, fate)| fate)
}

/// Explores one site, in ever larger explorations.
pub(crate) fn explore(site: &Site) -> Fate {
    let mutant = Mutant::new(site.file, site.line, site.fault);
    let all = all_protocols();
    if let Some(fate) = shortest(&all, &mutant, 300) {
        return fate;
    }
    let seconds = std::env::var("SMPCALL_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let passes = [
        Limits { states: Some(5_000), ..Limits::default() },
        Limits { time: Some(Duration::from_secs(seconds)), ..Limits::default() },
    ];
    let mut incomplete = Vec::new();
    for memory in [MemoryModel::Sc, MemoryModel::Tso] {
        let mut open: Vec<&Protocol> = all.iter().collect();
        for limits in passes {
            let mut left = Vec::new();
            for protocol in open {
                let before = mutant.reached();
                let (killed, complete) = attempt(protocol, memory, &mutant, limits);
                if let Some(killed) = killed {
                    return killed;
                }
                // A protocol that never comes there says nothing, however far it is explored.
                if !complete && mutant.reached() > before {
                    left.push(protocol);
                }
            }
            open = left;
            if limits.time == Some(Duration::ZERO) {
                break;
            }
        }
        incomplete.extend(open.iter().map(|protocol| format!("{} {memory:?}", protocol.name)));
        if mutant.reached() == 0 {
            break;
        }
    }
    Fate::Survived { reached: mutant.reached(), incomplete }
}

/// A line of the report.
pub(crate) fn report(site: &Site, fate: &Fate) -> String {
    let mut line = format!("{}:{} {}: ", site.file, site.line, site.fault);
    let _ = match fate {
        Fate::Killed { by, law, operations, all_operations, .. } => {
            write!(line, "killed by {by} ({law}), {operations} of {all_operations} operations")
        }
        Fate::Survived { reached: 0, .. } => write!(line, "NOT REACHED `{}`", site.text),
        Fate::Survived { reached, incomplete } => {
            write!(line, "SURVIVED, reached {reached} times, incomplete {incomplete:?} `{}`", site.text)
        }
        Fate::Crashed(how) => write!(line, "CRASHED: {how}"),
    };
    line
}
