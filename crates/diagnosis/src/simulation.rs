//! Traces of the simulated machine, as `smpcall replay --trace` writes them: Perfetto's format, read packet by packet.
//!
//! What is read from it: which calls were queued, claimed, run and given up; which rings were sent, merged and taken; what each CPU
//! was in the middle of at the end. Tracks, slices and instants are named as the simulator names them; what else a trace holds
//! is passed over.

mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, Read};

use crate::evidence::{
    CallEvidence, CallState, CountedCall, CpuEvidence, MachineEvidence, Running, WaitEvidence,
};
use wire::{Field, Fields};

/// The vector that rings have on the simulated machine.
const RING_VECTOR: u64 = 0xfb;
/// As for the incidents: waits shorter than this are normal.
const PATIENCE_NANOS: u64 = 1_000_000_000;
/// No packet is longer: the longest one holds all names.
const LONGEST_PACKET: u64 = 16 << 20;
/// So many calls, tracks and names are kept.
const MOST: usize = 1 << 20;
/// Rings that one CPU sent so shortly before it began to wait were for what it waits for.
const BURST_NANOS: u64 = 1_000_000;

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The system does not let it be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is no trace, or a damaged one.
    #[error("it is no trace of Perfetto's, or a damaged one, at byte {offset}: {what}")]
    Damaged {
        /// Where.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// It is a trace of something else.
    #[error("it is a trace, and none of a simulated machine: it has no tracks of CPUs")]
    NotOurs,
}

/// One slice that has begun.
#[derive(Clone, Debug)]
struct Slice {
    name: String,
    began: u64,
    unfinished: bool,
}

#[derive(Clone, Copy, Debug)]
struct Call {
    caller: u32,
    target: u32,
    level: u64,
    queued: u64,
    claimed: bool,
}

#[derive(Debug, Default)]
struct Machine {
    event_names: BTreeMap<u64, String>,
    value_names: BTreeMap<u64, String>,
    cpu_of_track: BTreeMap<u64, u32>,
    /// Of each track the slices that have begun, the innermost last; and how they were left at the end.
    open: BTreeMap<u64, Vec<Slice>>,
    left: BTreeMap<u32, Vec<Slice>>,
    calls: Vec<Call>,
    sent_to: BTreeMap<u32, u64>,
    merged_at: BTreeMap<u32, u64>,
    taken_by: BTreeMap<u32, u64>,
    /// Rings sent: when, by whom, to whom.
    rings: Vec<(u64, u32, u32)>,
    last_interrupt: BTreeMap<u32, u64>,
    last: u64,
}

/// Whether a file begins like a trace: a packet of a plausible length with names in it, or a track.
pub fn looks_like_a_trace(head: &[u8]) -> bool {
    let mut fields = Fields::new(head);
    matches!(fields.next(), Some(Field { number: 1, kind: wire::Kind::Bytes(_) | wire::Kind::Cut }))
        && head.windows(7).any(|window| window == b"IpiSent" || window == b"machine")
}

/// Reads a trace to its end.
///
/// # Errors
/// [`TraceError`].
pub fn read(mut source: impl BufRead) -> Result<MachineEvidence, TraceError> {
    let mut machine = Machine::default();
    let mut offset = 0;
    let mut packet = Vec::new();
    while let Some((tag, tag_bytes)) = wire::read_varint(&mut source, offset)? {
        let damaged = |what| TraceError::Damaged { offset, what };
        if tag != 1 << 3 | 2 {
            return Err(damaged("it is not made of packets"));
        }
        let length = wire::read_varint(&mut source, offset)?;
        let (length, length_bytes) = length.ok_or_else(|| damaged("it ends in the length of a packet"))?;
        if length > LONGEST_PACKET {
            return Err(damaged("a packet is longer than any that is written"));
        }
        packet.clear();
        let read = source.by_ref().take(length).read_to_end(&mut packet)?;
        if read as u64 != length {
            return Err(damaged("it ends in a packet: it was cut off"));
        }
        machine.packet(&packet);
        offset += tag_bytes + length_bytes + length;
    }
    if machine.cpu_of_track.is_empty() {
        return Err(TraceError::NotOurs);
    }
    Ok(machine.evidence())
}

impl Machine {
    fn packet(&mut self, packet: &[u8]) {
        let (mut time, mut event) = (0, None);
        for field in Fields::new(packet) {
            match (field.number, field.kind) {
                (8, wire::Kind::Number(at)) => time = at,
                (11, wire::Kind::Bytes(bytes)) => event = Some(bytes),
                (12, wire::Kind::Bytes(bytes)) => self.names(bytes),
                (60, wire::Kind::Bytes(bytes)) => self.track(bytes),
                _ => {}
            }
        }
        if let Some(event) = event {
            self.last = self.last.max(time);
            self.event(time, event);
        }
    }

    fn names(&mut self, bytes: &[u8]) {
        for field in Fields::new(bytes) {
            let wire::Kind::Bytes(bytes) = field.kind else { continue };
            let (mut number, mut name) = (0, "");
            for field in Fields::new(bytes) {
                match (field.number, field.kind) {
                    (1, wire::Kind::Number(iid)) => number = iid,
                    (2, wire::Kind::Bytes(text)) => name = core::str::from_utf8(text).unwrap_or_default(),
                    _ => {}
                }
            }
            let names = match field.number {
                2 => &mut self.event_names,
                3 => &mut self.value_names,
                _ => continue,
            };
            if names.len() < MOST {
                names.insert(number, name.to_owned());
            }
        }
    }

    fn track(&mut self, bytes: &[u8]) {
        let (mut uuid, mut name) = (None, "");
        for field in Fields::new(bytes) {
            match (field.number, field.kind) {
                (1, wire::Kind::Number(number)) => uuid = Some(number),
                (2, wire::Kind::Bytes(text)) => name = core::str::from_utf8(text).unwrap_or_default(),
                _ => {}
            }
        }
        // `CPU 5`, and `CPU 5, overlapping 1`.
        let digits = name.strip_prefix("CPU ").map(|rest| rest.split(',').next().unwrap_or(rest));
        let cpu = digits.and_then(|digits| digits.parse().ok()).filter(|&cpu: &u32| cpu < 8192);
        if let (Some(uuid), Some(cpu)) = (uuid, cpu)
            && self.cpu_of_track.len() < MOST
        {
            self.cpu_of_track.insert(uuid, cpu);
        }
    }

    fn event(&mut self, time: u64, bytes: &[u8]) {
        let (mut kind, mut name, mut track) = (0, None, 0);
        let mut values: BTreeMap<&str, u64> = BTreeMap::new();
        for field in Fields::new(bytes) {
            match (field.number, field.kind) {
                (9, wire::Kind::Number(number)) => kind = number,
                (10, wire::Kind::Number(number)) => name = self.event_names.get(&number).map(String::as_str),
                (11, wire::Kind::Number(number)) => track = number,
                (4, wire::Kind::Bytes(bytes)) => {
                    values.extend(self.value(bytes));
                }
                _ => {}
            }
        }
        let Some(&cpu) = self.cpu_of_track.get(&track) else { return };
        let name = name.unwrap_or_default().to_owned();
        let other = values.get("other_cpu").and_then(|&other| u32::try_from(other).ok());
        let (vector, level) = (values.get("vector").copied(), values.get("level").copied().unwrap_or(0));
        let unfinished = values.get("unfinished") == Some(&1);
        match kind {
            1 => self.begin(time, cpu, track, Slice { name, began: time, unfinished }),
            2 => self.end(cpu, track),
            3 => self.instant(time, cpu, &name, (other, vector, level)),
            _ => {}
        }
    }

    fn value(&self, bytes: &[u8]) -> Option<(&str, u64)> {
        let (mut name, mut value) = (None, 0);
        for field in Fields::new(bytes) {
            if let wire::Kind::Number(number) = field.kind {
                match field.number {
                    1 => name = self.value_names.get(&number).map(String::as_str),
                    2 | 3 | 7 => value = number,
                    _ => {}
                }
            }
        }
        Some((name?, value))
    }

    fn begin(&mut self, time: u64, cpu: u32, track: u64, slice: Slice) {
        if let Some(vector) = slice.name.strip_prefix("IPI ").or(slice.name.strip_prefix("interrupt ")) {
            self.last_interrupt.insert(cpu, time);
            if vector == format!("{RING_VECTOR:#04x}") {
                *self.taken_by.entry(cpu).or_default() += 1;
            }
        }
        if let Some(caller) =
            slice.name.strip_prefix("call of CPU ").and_then(|caller| caller.parse::<u32>().ok())
        {
            let waits = |call: &&mut Call| call.caller == caller && call.target == cpu && !call.claimed;
            if let Some(call) = self.calls.iter_mut().find(waits) {
                call.claimed = true;
            }
        }
        let open = self.open.entry(track).or_default();
        if open.len() < MOST {
            open.push(slice);
        }
    }

    fn end(&mut self, cpu: u32, track: u64) {
        let Some(slice) = self.open.get_mut(&track).and_then(Vec::pop) else { return };
        if slice.unfinished {
            // It ends with the trace, and not by itself.
            self.left.entry(cpu).or_default().push(slice);
        } else if let Some(caller) = slice.name.strip_prefix("call of CPU ") {
            let caller = caller.parse().ok();
            let runs = |call: &Call| Some(call.caller) == caller && call.target == cpu && call.claimed;
            if let Some(at) = self.calls.iter().position(runs) {
                self.calls.swap_remove(at);
            }
        }
    }

    fn instant(&mut self, time: u64, cpu: u32, name: &str, values: (Option<u32>, Option<u64>, u64)) {
        let (Some(other), vector, level) = values else { return };
        let ring = vector == Some(RING_VECTOR);
        match name {
            "CallQueued" if self.calls.len() < MOST => {
                self.calls.push(Call { caller: cpu, target: other, level, queued: time, claimed: false });
            }
            "CallCompleted" | "CallWithdrawn" | "CallRefused" | "CallLeft" => {
                let same = |call: &Call| (call.caller, call.target, call.level) == (cpu, other, level);
                if let Some(at) = self.calls.iter().position(same) {
                    self.calls.swap_remove(at);
                }
            }
            "IpiSent" if ring => {
                *self.sent_to.entry(other).or_default() += 1;
                if self.rings.len() < MOST {
                    self.rings.push((time, cpu, other));
                }
            }
            "IpiMerged" if ring => *self.merged_at.entry(cpu).or_default() += 1,
            _ => {}
        }
    }

    fn evidence(mut self) -> MachineEvidence {
        let cpus: BTreeSet<u32> = self.cpu_of_track.values().copied().collect();
        self.calls.sort_by_key(|call| (call.queued, call.caller, call.target));
        let calls = self.calls.iter().map(|call| CallEvidence {
            state: if call.claimed { CallState::Claimed } else { CallState::Queued },
            nanos: Some(self.last.saturating_sub(call.queued)),
            marked: Some(true),
            ..CallEvidence::queued(call.caller, call.target)
        });
        let mut evidence = MachineEvidence {
            origin: "trace".into(),
            ring_vector: Some(RING_VECTOR as u8),
            patience_nanos: PATIENCE_NANOS,
            calls: calls.collect(),
            ..MachineEvidence::default()
        };
        evidence.cpus = cpus.iter().map(|&cpu| self.cpu(cpu)).collect();
        evidence.counted_calls = cpus.iter().filter_map(|&cpu| self.counted(cpu, &evidence)).collect();
        evidence
    }

    fn cpu(&self, cpu: u32) -> CpuEvidence {
        let left = self.left.get(&cpu).map_or(&[][..], Vec::as_slice);
        let lasts = |slice: &Slice| self.last.saturating_sub(slice.began);
        let is_wait = |slice: &&Slice| slice.name == "wait" || slice.name.starts_with("wait for CPU ");
        let wait = left.iter().find(is_wait).map(|slice| WaitEvidence {
            targets: slice.name.rsplit_once(' ').and_then(|(_, cpu)| cpu.parse().ok()).into_iter().collect(),
            nanos: Some(lasts(slice)),
            ..WaitEvidence::default()
        });
        let closure = left.iter().find_map(|slice| Some((slice, slice.name.strip_prefix("call of CPU ")?)));
        let running = closure.map(|(slice, caller)| Running {
            caller: caller.parse().ok(),
            nanos: Some(lasts(slice)),
            ..Running::default()
        });
        let wedged = left.iter().any(|slice| slice.name.starts_with("wedged"));
        let since_tick = self.last_interrupt.get(&cpu).map(|&at| self.last.saturating_sub(at));
        // Who took an interrupt so lately takes them.
        let takes = since_tick.is_some_and(|since| since < PATIENCE_NANOS);
        let of = |counts: &BTreeMap<u32, u64>| Some(counts.get(&cpu).copied().unwrap_or(0));
        CpuEvidence {
            interrupts_enabled: if wedged { Some(false) } else { takes.then_some(true) },
            function: wedged.then(|| "a wedged stretch of code".to_owned()),
            wait,
            running,
            rings_sent_to: of(&self.sent_to),
            rings_merged: of(&self.merged_at),
            rings_taken: of(&self.taken_by),
            since_tick_nanos: since_tick,
            ..CpuEvidence::unknown(cpu)
        }
    }

    /// The call of a CPU that waits for nobody in particular: to those whom it rang just before, of whom counts tell who took it.
    fn counted(&self, cpu: u32, evidence: &MachineEvidence) -> Option<CountedCall> {
        let wait = evidence.cpu(cpu)?.wait.as_ref().filter(|wait| wait.targets.is_empty())?;
        if self.calls.iter().any(|call| call.caller == cpu) {
            return None;
        }
        let began = self.last.saturating_sub(wait.nanos?);
        let just_before = |&&(at, from, _): &&(u64, u32, u32)| {
            from == cpu && at <= began.saturating_add(BURST_NANOS) && at.saturating_add(BURST_NANOS) >= began
        };
        let targets: BTreeSet<u32> = self.rings.iter().filter(just_before).map(|&(.., to)| to).collect();
        let short = |target: &&u32| {
            let target = evidence.cpu(**target);
            target.and_then(CpuEvidence::rings_not_taken).is_some_and(|short| short > 0)
        };
        let missing = targets.iter().filter(short).count();
        let taken = targets.len() - missing;
        (!targets.is_empty()).then(|| CountedCall {
            caller: cpu,
            targets: targets.into_iter().collect(),
            started: taken,
            finished: taken,
            function: None,
            nanos: wait.nanos,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::diagnose;
    use crate::verdict::VerdictKind;

    fn varint(mut value: u64, out: &mut Vec<u8>) {
        while value >= 0x80 {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }

    fn number(field: u64, value: u64) -> Vec<u8> {
        let mut out = Vec::new();
        varint(field << 3, &mut out);
        varint(value, &mut out);
        out
    }

    fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        varint(field << 3 | 2, &mut out);
        varint(value.len() as u64, &mut out);
        out.extend(value);
        out
    }

    const NAMES: [&str; 6] = ["CallQueued", "IpiSent", "interrupt 0xec", "IPI 0xfb", "call of CPU 0", "wait"];
    const VALUES: [&str; 4] = ["other_cpu", "vector", "level", "unfinished"];

    /// At a time, on a CPU, an event of a kind with a name and values.
    type Written<'a> = (u64, u64, u64, &'a str, &'a [(&'a str, u64)]);

    /// A trace of three CPUs.
    fn trace(events: &[Written<'_>]) -> Vec<u8> {
        let named = |field, names: &[&str]| -> Vec<u8> {
            let name = |(iid, name): (u64, &&str)| {
                bytes(field, &[number(1, iid), bytes(2, name.as_bytes())].concat())
            };
            (1..).zip(names).flat_map(name).collect()
        };
        let mut out = bytes(1, &bytes(12, &[named(2, &NAMES), named(3, &VALUES)].concat()));
        for cpu in 0..3 {
            let track = [number(1, 100 + cpu), bytes(2, format!("CPU {cpu}").as_bytes())].concat();
            out.extend(bytes(1, &bytes(60, &track)));
        }
        let place = |names: &[&str], name: &str| {
            names.iter().position(|known| *known == name).map_or(0, |at| at as u64 + 1)
        };
        for (time, cpu, kind, name, values) in events {
            let mut event =
                [number(9, *kind), number(10, place(&NAMES, name)), number(11, 100 + cpu)].concat();
            for (name, value) in *values {
                event.extend(bytes(4, &[number(1, place(&VALUES, name)), number(3, *value)].concat()));
            }
            out.extend(bytes(1, &[number(8, *time), bytes(11, &event)].concat()));
        }
        out
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_call_that_was_never_claimed_by_a_cpu_that_takes_ticks_has_lost_its_ring() {
        let lost = trace(&[
            (10, 0, 3, "CallQueued", &[("other_cpu", 1), ("level", 0)]),
            (11, 0, 3, "IpiSent", &[("other_cpu", 1), ("vector", 0xfb)]),
            (5 * SECOND, 1, 1, "interrupt 0xec", &[]),
            (5 * SECOND + 10, 1, 2, "", &[]),
        ]);
        assert!(looks_like_a_trace(&lost));
        let evidence = read(&lost[..]).expect("a trace");
        let verdict = diagnose(&evidence).verdicts.remove(0);
        assert_eq!((verdict.kind, verdict.cpu, verdict.waiters), (VerdictKind::IpiLost, Some(1), vec![0]));
    }

    #[test]
    fn a_call_that_was_claimed_and_ran_is_no_finding_and_one_that_runs_on_is_a_long_handler() {
        let begins = |unfinished| {
            trace(&[
                (10, 0, 3, "CallQueued", &[("other_cpu", 1), ("level", 0)]),
                (12, 1, 1, "call of CPU 0", if unfinished { &[("unfinished", 1)] } else { &[] }),
                (5 * SECOND, 1, 2, "", &[]),
            ])
        };
        let kind = |bytes: Vec<u8>| diagnose(&read(&bytes[..]).expect("a trace")).verdicts[0].kind;
        assert_eq!(kind(begins(false)), VerdictKind::Healthy);
        assert_eq!(kind(begins(true)), VerdictKind::LongHandler);
    }

    #[test]
    fn of_a_wait_for_many_the_counts_of_rings_say_who_is_missing() {
        let lost = trace(&[
            (10, 0, 3, "IpiSent", &[("other_cpu", 1), ("vector", 0xfb)]),
            (11, 0, 3, "IpiSent", &[("other_cpu", 2), ("vector", 0xfb)]),
            (20, 0, 1, "wait", &[("unfinished", 1)]),
            (30, 1, 1, "IPI 0xfb", &[]),
            (31, 1, 2, "", &[]),
            (5 * SECOND, 2, 1, "interrupt 0xec", &[]),
            (5 * SECOND + 1, 2, 2, "", &[]),
            (5 * SECOND + 2, 0, 2, "", &[]),
        ]);
        let verdict = diagnose(&read(&lost[..]).expect("a trace")).verdicts.remove(0);
        assert_eq!((verdict.kind, verdict.cpu, verdict.waiters), (VerdictKind::IpiLost, Some(2), vec![0]));
    }

    #[test]
    fn what_is_no_trace_or_was_cut_off_is_refused_with_the_place() {
        let whole = trace(&[(10, 0, 3, "IpiSent", &[("other_cpu", 1), ("vector", 0xfb)])]);
        let cut = read(&whole[..whole.len() - 1]);
        assert!(matches!(cut, Err(TraceError::Damaged { offset: 1.., .. })), "{cut:?}");
        assert!(matches!(read(&b"text"[..]), Err(TraceError::Damaged { offset: 0, .. })));
        assert!(matches!(read(&b""[..]), Err(TraceError::NotOurs)));
        assert!(!looks_like_a_trace(b"\x0atext") && !looks_like_a_trace(b""));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..512), at in 0..256_usize, with: u8) {
            let _ = read(&bytes[..]).map(|evidence| diagnose(&evidence));
            bytes = trace(&[(10, 0, 3, "CallQueued", &[("other_cpu", 1), ("level", 0)])]);
            let at = at % bytes.len();
            bytes[at] = with;
            let _ = read(&bytes[..]).map(|evidence| diagnose(&evidence));
        }
    }
}
