//! Reads a log line by line and keeps what it says of CPUs and calls, in bounded memory however long the log is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, BufRead};

use super::line::{Caller, LONGEST, Line};
use super::record::{Record, TargetState, recognise};
use super::snapshot::{Cause, Snapshot};
use crate::errata::CpuModel;
use crate::evidence::{Detector, Frame, MachineEvidence, Panic, StallEvidence, Task};
use crate::frames;

/// So many reports of overdue calls are kept: the latest ones.
const MOST_CALLS: usize = 512;
/// So many callers' lines are kept apart. Who speaks next then loses only what it was in the middle of.
const MOST_SPEAKERS: usize = 512;
/// So many events of one call are kept: more than any kernel lists.
const MOST_EVENTS: usize = 64;

/// An overdue call, as the log tells of it.
#[derive(Clone, Debug)]
pub(super) struct Overdue {
    pub(super) report: u64,
    pub(super) waiter: u32,
    pub(super) target: Option<u32>,
    pub(super) function: Option<String>,
    pub(super) nanos: Option<u64>,
    pub(super) state: Option<TargetState>,
    pub(super) rung_again: u64,
    pub(super) ended: bool,
    /// When it was first and last told of.
    pub(super) first_told: Option<u64>,
    pub(super) last_told: Option<u64>,
    /// When the first report came, how long it had lasted.
    pub(super) first_nanos: Option<u64>,
    pub(super) events: Vec<(u64, Option<u32>, Option<u32>, String)>,
}

/// What a monitor has said of a local APIC.
#[derive(Debug, Default)]
pub(super) struct Apic {
    pub(super) pending: Option<Vec<u8>>,
    pub(super) in_service: Option<Vec<u8>>,
}

/// What one caller is in the middle of.
#[derive(Debug, Default)]
struct Speaker {
    subject: Option<Snapshot>,
    /// The call whose events are being listed.
    report: Option<u64>,
    /// A stall whose CPU the next header names.
    open_stall: Option<StallEvidence>,
    in_warning: bool,
}

/// Reads a log.
#[derive(Debug, Default)]
pub struct Reader {
    speakers: BTreeMap<Option<Caller>, Speaker>,
    pub(super) snapshots: BTreeMap<u32, Snapshot>,
    pub(super) mentioned: BTreeSet<u32>,
    pub(super) calls: VecDeque<Overdue>,
    pub(super) calls_forgotten: u64,
    pub(super) stalls: BTreeMap<(u32, Detector), StallEvidence>,
    pub(super) no_ticks: BTreeSet<u32>,
    pub(super) offline: BTreeMap<u32, Vec<Option<String>>>,
    offline_cpu: Option<u32>,
    /// Who was asked by an NMI and has not answered yet, and when it was asked.
    pub(super) asked: BTreeMap<u32, Option<u64>>,
    pub(super) answered: BTreeSet<u32>,
    pub(super) apics: BTreeMap<u32, Apic>,
    apic_of: Option<u32>,
    pub(super) halted: BTreeMap<u32, (bool, bool, bool)>,
    monitor_cpu: Option<u32>,
    pub(super) kernel: Option<String>,
    pub(super) hypervisor: Option<String>,
    pub(super) model: CpuModel,
    pub(super) panic: Option<Panic>,
    pub(super) now: Option<u64>,
    /// Whether anything has been reported that is no good sign.
    alarmed: bool,
    pub(super) x86: bool,
    lines: u64,
    timed: u64,
    recognised: u64,
}

impl Reader {
    /// A reader that has read nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads all there is, line by line, and returns what it tells.
    ///
    /// # Errors
    /// Those of the source.
    pub fn read_all(mut self, mut source: impl BufRead) -> io::Result<Self> {
        let mut line = Vec::new();
        loop {
            line.clear();
            if !next_line(&mut source, &mut line)? {
                return Ok(self);
            }
            self.line(&line);
        }
    }

    /// Whether anything looked like the log of a kernel.
    pub fn looks_like_a_log(&self) -> bool {
        self.recognised > 0 || self.timed > 0
    }

    /// How many lines it has read.
    pub const fn lines(&self) -> u64 {
        self.lines
    }

    /// Reads one line, without its end.
    pub fn line(&mut self, bytes: &[u8]) {
        self.lines += 1;
        let line = Line::of(bytes);
        self.timed += u64::from(line.nanos.is_some());
        self.now = self.now.max(line.nanos);
        if let Some(Caller::Cpu(cpu)) = line.caller {
            // Who prints is alive.
            self.asked.remove(&cpu);
        }
        let Some(record) = recognise(&line.text) else { return };
        // Keys and values of a processor, and names of functions, stand in all sorts of texts.
        self.recognised += u64::from(!matches!(record, Record::Processor(..)));
        let mut speaker = self.speakers.remove(&line.caller).unwrap_or_default();
        self.take(&mut speaker, record, line.nanos);
        if self.speakers.len() >= MOST_SPEAKERS
            && let Some((_, gone)) = self.speakers.pop_first()
        {
            self.keep(gone.subject);
        }
        self.speakers.insert(line.caller, speaker);
    }

    /// What it has read, as evidence.
    pub fn evidence(mut self) -> MachineEvidence {
        for speaker in core::mem::take(&mut self.speakers).into_values() {
            if let Some(stall) = speaker.open_stall {
                self.add_stall(stall);
            }
            self.keep(speaker.subject);
        }
        super::conclude::conclude(&self)
    }

    fn mention(&mut self, cpu: u32) {
        self.mentioned.insert(cpu);
    }

    fn add_stall(&mut self, stall: StallEvidence) {
        self.mention(stall.cpu);
        let known = self.stalls.entry((stall.cpu, stall.detector)).or_insert(stall);
        known.nanos = known.nanos.max(stall.nanos);
    }

    /// Keeps the better of two dumps of the same CPU: that with the better cause, else the later one.
    fn keep(&mut self, snapshot: Option<Snapshot>) {
        let Some(snapshot) = snapshot.filter(Snapshot::is_telling) else { return };
        // A back trace that somebody printed of himself without any alarm is no sign of anything.
        if snapshot.cause == Cause::Itself && !self.alarmed {
            return;
        }
        self.mention(snapshot.cpu);
        let better = self.snapshots.get(&snapshot.cpu).is_none_or(|known| {
            let waits = |snapshot: &Snapshot| frames::call_wait(&snapshot.stack).is_some();
            (snapshot.cause, waits(&snapshot)) >= (known.cause, waits(known))
        });
        if better {
            self.snapshots.insert(snapshot.cpu, snapshot);
        }
    }

    /// From here on it is about another CPU, or about none.
    fn begin(&mut self, speaker: &mut Speaker, subject: Option<Snapshot>) {
        let done = core::mem::replace(&mut speaker.subject, subject);
        self.keep(done);
    }

    fn call(&mut self, report: u64) -> Option<&mut Overdue> {
        self.calls.iter_mut().rev().find(|call| call.report == report)
    }

    fn take(&mut self, speaker: &mut Speaker, record: Record, now: Option<u64>) {
        match record {
            Record::Frame(_)
            | Record::Stack(_)
            | Record::StackWas(_)
            | Record::InstructionPointer { .. }
            | Record::Flags { .. } => Self::of_dump(speaker, &mut self.x86, record),
            Record::TraceEnds => self.begin(speaker, None),
            // A second one without a new head is somebody else's.
            Record::TraceBegins => {
                if speaker.subject.as_mut().is_some_and(Snapshot::begin_trace) {
                    self.begin(speaker, None);
                }
            }
            Record::Header { cpu, task, release } => self.header(speaker, cpu, task, release),
            Record::CrashHeader { cpu, task: (name, pid) } => {
                let mut snapshot = Snapshot::new(cpu, Cause::Asked);
                snapshot.task = Some(Task { name, pid });
                self.x86 = true;
                self.begin(speaker, Some(snapshot));
            }
            Record::CallOverdue { .. }
            | Record::CallState { .. }
            | Record::RungAgain { .. }
            | Record::CallEnded { .. }
            | Record::CallEvent { .. } => {
                self.begin(speaker, None);
                self.of_call(speaker, record, now);
            }
            Record::OfflineQueue { cpu, function } => self.offline_queue(cpu, function),
            Record::Stall { cpu, detector, nanos, task } => {
                self.alarmed = true;
                self.begin(speaker, None);
                speaker.in_warning = false;
                match cpu {
                    Some(cpu) => {
                        self.add_stall(StallEvidence { cpu, detector, nanos });
                        let mut snapshot = Snapshot::new(cpu, Cause::Stall);
                        snapshot.task = task.map(|(name, pid)| Task { name, pid });
                        speaker.subject = Some(snapshot);
                    }
                    None => {
                        // Placeholder of a CPU: rows or the header name it.
                        speaker.open_stall = Some(StallEvidence { cpu: 0, detector, nanos });
                    }
                }
            }
            Record::StallRow { cpu, ticks } => {
                self.alarmed = true;
                speaker.open_stall = None;
                self.add_stall(StallEvidence { cpu, detector: Detector::RcuStall, nanos: None });
                if ticks == Some(0) {
                    self.no_ticks.insert(cpu);
                }
            }
            Record::Utilisation { .. } => {}
            Record::NmiSent { cpus } => {
                self.begin(speaker, None);
                for cpu in cpus {
                    self.mention(cpu);
                    self.answered.remove(&cpu);
                    self.asked.entry(cpu).or_insert(now);
                }
            }
            Record::NmiAnswer { cpu, idle } => {
                self.asked.remove(&cpu);
                self.answered.insert(cpu);
                let mut snapshot = Snapshot::new(cpu, Cause::Asked);
                snapshot.idle_at = idle;
                self.begin(speaker, Some(snapshot));
                speaker.in_warning = false;
            }
            Record::TaskDump { cpu } => {
                let snapshot = Snapshot::new(cpu, Cause::FromOutside);
                self.begin(speaker, Some(snapshot));
            }
            Record::Warning(begins) => speaker.in_warning = begins,
            Record::Panic(reason) => {
                self.alarmed = true;
                self.begin(speaker, None);
                self.panic.get_or_insert(Panic { cpu: None, reason: Some(reason) });
            }
            other => self.of_machine(other),
        }
    }

    fn header(
        &mut self,
        speaker: &mut Speaker,
        cpu: u32,
        task: Option<(String, Option<u32>)>,
        release: Option<String>,
    ) {
        self.kernel = self.kernel.take().or(release);
        if let Some(stall) = speaker.open_stall.take() {
            self.add_stall(StallEvidence { cpu, ..stall });
            self.begin(speaker, Some(Snapshot::new(cpu, Cause::Stall)));
        }
        if let Some(panic) = self.panic.as_mut().filter(|panic| panic.cpu.is_none()) {
            panic.cpu = Some(cpu);
        }
        let task = task.map(|(name, pid)| Task { name, pid });
        match &mut speaker.subject {
            Some(subject) if subject.cpu == cpu && subject.stack.is_empty() => {
                subject.task = task.or(subject.task.take());
            }
            _ if speaker.in_warning => self.begin(speaker, None),
            _ => {
                let mut snapshot = Snapshot::new(cpu, Cause::Itself);
                snapshot.task = task;
                self.begin(speaker, Some(snapshot));
            }
        }
    }

    fn of_dump(speaker: &mut Speaker, x86: &mut bool, record: Record) {
        let Some(subject) = &mut speaker.subject else { return };
        match record {
            Record::Frame(frame) => subject.push(frame),
            Record::Stack(kind) => subject.enter(kind),
            Record::StackWas(kind) => subject.were_on(kind),
            Record::InstructionPointer { frame, user_mode, interrupts_enabled } => {
                *x86 |= user_mode.is_some();
                subject.instruction_pointer(frame, user_mode, interrupts_enabled);
            }
            Record::Flags { interrupts_enabled } => subject.flags(interrupts_enabled),
            _ => {}
        }
    }

    fn of_call(&mut self, speaker: &mut Speaker, record: Record, now: Option<u64>) {
        self.alarmed = true;
        match record {
            Record::CallOverdue { report, waiter, nanos, target, function } => {
                self.mention(waiter);
                if let Some(target) = target {
                    self.mention(target);
                }
                speaker.report = Some(report);
                let same =
                    |call: &&mut Overdue| call.waiter == waiter && call.target == target && !call.ended;
                if let Some(call) = self.call(report).filter(same) {
                    call.nanos = call.nanos.max(nanos);
                    call.last_told = now;
                    call.state = None;
                    call.events.clear();
                    return;
                }
                if self.calls.len() == MOST_CALLS {
                    self.calls.pop_front();
                    self.calls_forgotten += 1;
                }
                self.calls.push_back(Overdue {
                    report,
                    waiter,
                    target,
                    function,
                    nanos,
                    state: None,
                    rung_again: 0,
                    ended: false,
                    first_told: now,
                    last_told: now,
                    first_nanos: nanos,
                    events: vec![],
                });
            }
            Record::CallState { report, state } => {
                speaker.report = Some(report);
                if let Some(call) = self.call(report) {
                    call.state = Some(state);
                }
            }
            Record::RungAgain { report } => {
                if let Some(call) = self.call(report) {
                    call.rung_again += 1;
                }
            }
            Record::CallEnded { report } => {
                if let Some(call) = self.call(report) {
                    call.ended = true;
                    call.last_told = now.or(call.last_told);
                }
            }
            Record::CallEvent { count, source, target, kind } => {
                let report = speaker.report;
                let call = report.and_then(|report| self.call(report));
                if let Some(call) = call.filter(|call| call.events.len() < MOST_EVENTS) {
                    call.events.push((count, source, target, kind));
                }
            }
            _ => {}
        }
    }

    fn offline_queue(&mut self, cpu: Option<u32>, function: Option<String>) {
        const MOST: usize = 1024;
        self.alarmed = true;
        if let Some(cpu) = cpu {
            self.mention(cpu);
            self.offline.entry(cpu).or_default();
            self.offline_cpu = Some(cpu);
        } else if let Some(queue) = self.offline_cpu.and_then(|cpu| self.offline.get_mut(&cpu))
            && queue.len() < MOST
        {
            queue.push(function);
        }
    }

    fn of_machine(&mut self, record: Record) {
        match record {
            // A capture kernel that starts fewer does not take any away.
            Record::CpuCount(count) => self.mentioned.extend(0..count),
            Record::Release(release) => {
                self.kernel.get_or_insert(release);
            }
            Record::Hypervisor(name) => {
                self.hypervisor.get_or_insert(name);
            }
            Record::Processor(key, value) => {
                let number = || value.parse().ok();
                match key {
                    "vendor_id" => self.model.vendor = value,
                    "model name" => self.model.name = Some(value),
                    "cpu family" => self.model.family = number().unwrap_or(self.model.family),
                    "model" => self.model.model = number().unwrap_or(self.model.model),
                    _ => self.model.stepping = number(),
                }
            }
            Record::ApicOf(cpu) => {
                self.mention(cpu);
                self.apic_of = Some(cpu);
                self.x86 = true;
            }
            Record::Apic(pending, vectors) => {
                if let Some(cpu) = self.apic_of {
                    let apic = self.apics.entry(cpu).or_default();
                    *(if pending { &mut apic.pending } else { &mut apic.in_service }) = Some(vectors);
                }
            }
            Record::MonitorCpu(cpu) => {
                self.mention(cpu);
                self.monitor_cpu = Some(cpu);
            }
            Record::MonitorFlags { interrupts_enabled, user_mode, halted } => {
                if let Some(cpu) = self.monitor_cpu.take() {
                    self.halted.insert(cpu, (interrupts_enabled, user_mode, halted));
                }
            }
            _ => {}
        }
    }
}

/// Reads up to the end of a line, of which no more than is looked at is kept. False at the end of the source.
fn next_line(source: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    let mut any = false;
    loop {
        let buffer = match source.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if buffer.is_empty() {
            return Ok(any);
        }
        any = true;
        let end = buffer.iter().position(|&byte| byte == b'\n');
        let part = &buffer[..end.unwrap_or(buffer.len())];
        let room = LONGEST.saturating_sub(line.len());
        line.extend_from_slice(&part[..part.len().min(room)]);
        let used = end.map_or(buffer.len(), |end| end + 1);
        source.consume(used);
        if end.is_some() {
            return Ok(true);
        }
    }
}

/// A frame in which a CPU idles, for one that was not asked further.
pub(super) fn idle_frame(function: &str) -> Vec<Frame> {
    vec![Frame::of(function)]
}
