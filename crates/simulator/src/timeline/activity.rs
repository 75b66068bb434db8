//! Which events belong together: messages from sending to fate, spans from begin to end, and single marks.

use std::collections::{BTreeMap, BTreeSet};

use smpcall_machine::{Cpu, Event, EventKind};

/// What became of an IPI; times in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Accepted(u64),
    Merged(u64),
    Lost(u64),
    Rejected(u64),
    OnItsWay,
}

/// One IPI to one target.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) number: u64,
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) vector: u32,
    /// `None`: the trace begins after the sending.
    pub(super) sent: Option<u64>,
    pub(super) fate: Fate,
    /// The attempt, if this is a repeated ring.
    pub(super) again: Option<u32>,
    /// When the ring was repeated that arrived although this one did not.
    pub(super) mended: Option<u64>,
}

impl Message {
    /// The first time known of it.
    pub(super) fn begin(&self) -> u64 {
        self.sent.or(self.end()).unwrap_or_default()
    }

    /// The last time known of it.
    pub(super) fn end(&self) -> Option<u64> {
        match self.fate {
            Fate::Accepted(at) | Fate::Merged(at) | Fate::Lost(at) | Fate::Rejected(at) => Some(at),
            Fate::OnItsWay => None,
        }
    }
}

/// What a CPU does for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SpanKind {
    /// An interrupt handler; `ipi` if the vector is one that IPIs of this trace carry.
    Interrupt { vector: u32, ipi: bool },
    /// A wait, for a certain CPU if known, in a named frame if known.
    Wait { target: Option<u32>, frame: Option<String>, expired: bool },
    /// The closure of a call.
    Closure { caller: Option<u32>, panicked: bool },
    /// The CPU is wedged with interrupts off.
    Wedged,
    /// The CPU halts.
    Halted,
    /// A named frame.
    Frame { name: String },
}

/// Something that lasts on one CPU.
#[derive(Clone, Debug)]
pub(super) struct Span {
    pub(super) cpu: u32,
    pub(super) kind: SpanKind,
    pub(super) begin: u64,
    /// `None`: it still lasted when the trace ended.
    pub(super) end: Option<u64>,
    /// How many spans of the same sort enclose it.
    pub(super) depth: u32,
    /// An interrupt that is no IPI and led to nothing that is traced (a tick), or a frame inside of one.
    pub(super) routine: bool,
}

/// Something that happens at one moment on one CPU.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    pub(super) cpu: u32,
    pub(super) other: Option<u32>,
    pub(super) time: u64,
    pub(super) kind: EventKind,
    pub(super) argument: u64,
    /// The innermost named frame at that moment.
    pub(super) frame: Option<String>,
}

/// A whole trace, paired up.
#[derive(Default)]
pub(super) struct Activity {
    pub(super) messages: Vec<Message>,
    pub(super) spans: Vec<Span>,
    pub(super) marks: Vec<Mark>,
    /// Kinds that have no glyph, and how often they occurred.
    pub(super) without_glyph: BTreeMap<EventKind, usize>,
    /// Events on or about CPUs that the machine does not have.
    pub(super) beyond: usize,
    pub(super) first: u64,
    pub(super) last: u64,
}

/// What is open on one CPU: indices into `Activity::spans`.
#[derive(Default)]
struct Open {
    interrupts: Vec<(usize, Option<u64>)>,
    waits: Vec<usize>,
    closures: Vec<usize>,
    frames: Vec<usize>,
    halted: Option<usize>,
}

struct Reader<'a> {
    activity: Activity,
    open: Vec<Open>,
    frame_names: &'a [String],
    /// Messages by number, sender and target, and whether their sending was read: a duplicated message finds its
    /// first copy here.
    known: BTreeMap<(u64, u32, u32), (usize, bool)>,
    /// Interrupts that something notable happened in; frames with the interrupt around them.
    notable: BTreeSet<usize>,
    inside: BTreeMap<usize, usize>,
    rings_again: Vec<(u64, u32, u32, u32)>,
}

impl Activity {
    /// Pairs up `events` of a machine with `cpus` CPUs.
    pub(super) fn new(cpus: u32, events: &[Event], frame_names: &[String]) -> Self {
        let mut sorted: Vec<&Event> = events.iter().collect();
        // Stable: what happened at one instant stays in the order of the trace.
        sorted.sort_by_key(|event| event.time);
        let mut reader = Reader {
            activity: Self {
                first: sorted.first().map_or(0, |event| event.time.as_nanos()),
                last: sorted.last().map_or(0, |event| event.time.as_nanos()),
                ..Self::default()
            },
            open: (0..cpus).map(|_| Open::default()).collect(),
            frame_names,
            known: BTreeMap::new(),
            notable: BTreeSet::new(),
            inside: BTreeMap::new(),
            rings_again: Vec::new(),
        };
        for event in sorted {
            if event.cpu.number() >= cpus || event.other.is_some_and(|other| other.number() >= cpus) {
                reader.activity.beyond += 1;
            } else {
                reader.read(event);
            }
        }
        reader.finish()
    }
}

impl Reader<'_> {
    fn read(&mut self, event: &Event) {
        use EventKind as K;
        if is_notable(event.kind) {
            let open = &self.open[event.cpu.index()].interrupts;
            self.notable.extend(open.iter().map(|&(index, _)| index));
        }
        match event.kind {
            K::IpiSent | K::IpiAccepted | K::IpiMerged | K::IpiLost | K::IpiRejected => self.message(event),
            K::InterruptTaken | K::EndOfInterrupt | K::InterruptReturned => self.interrupt(event),
            K::WaitBegan | K::WaitEnded => self.wait(event),
            K::CallClaimed | K::CallRun | K::CallPanicked => self.closure(event),
            K::FrameEntered | K::FrameLeft => self.frame_edge(event),
            K::Wedged | K::Halted | K::Resumed => self.standstill(event),
            K::RungAgain => {
                if let Some(target) = event.other {
                    let (from, to) = (event.cpu.number(), target.number());
                    self.rings_again.push((event.time.as_nanos(), from, to, event.detail));
                }
            }
            K::CallCompleted
            | K::CallWithdrawn
            | K::CallRefused
            | K::CallOverdue
            | K::CallLeft
            | K::ManyQueued
            | K::RingFailed
            | K::BudgetSpent
            | K::ProbeSent
            | K::ProbeAnswered
            | K::PostRun
            | K::MailboxOpened
            | K::MailboxClosed
            | K::NmiTaken
            | K::SoftLockup
            | K::DumpStarted
            | K::ProgramEnded => self.mark(event),
            other => self.count(other),
        }
    }

    fn interrupt(&mut self, event: &Event) {
        let time = event.time.as_nanos();
        let depth = self.open[event.cpu.index()].interrupts.len();
        match event.kind {
            EventKind::InterruptTaken => {
                let kind = SpanKind::Interrupt { vector: event.detail, ipi: false };
                let index = self.begin(event, kind, depth);
                self.open[event.cpu.index()].interrupts.push((index, None));
            }
            EventKind::InterruptReturned => {
                if let Some((index, _)) = self.open[event.cpu.index()].interrupts.pop() {
                    self.activity.spans[index].end = Some(time);
                }
            }
            _ => {
                if let Some(last) = self.open[event.cpu.index()].interrupts.last_mut() {
                    last.1.get_or_insert(time);
                }
                self.count(event.kind);
            }
        }
    }

    fn wait(&mut self, event: &Event) {
        if event.kind == EventKind::WaitBegan {
            let depth = self.open[event.cpu.index()].waits.len();
            let frame = self.frame(event.cpu.number());
            let target = event.other.map(Cpu::number);
            let index = self.begin(event, SpanKind::Wait { target, frame, expired: false }, depth);
            self.open[event.cpu.index()].waits.push(index);
        } else if let Some(index) = self.open[event.cpu.index()].waits.pop() {
            let span = &mut self.activity.spans[index];
            span.end = Some(event.time.as_nanos());
            if let SpanKind::Wait { expired, .. } = &mut span.kind {
                *expired = event.argument == 1;
            }
        }
    }

    fn closure(&mut self, event: &Event) {
        if event.kind == EventKind::CallClaimed {
            let depth = self.open[event.cpu.index()].closures.len();
            let caller = event.other.map(Cpu::number);
            let index = self.begin(event, SpanKind::Closure { caller, panicked: false }, depth);
            self.open[event.cpu.index()].closures.push(index);
            return;
        }
        let claimed = self.open[event.cpu.index()].closures.pop();
        if let Some(index) = claimed {
            let span = &mut self.activity.spans[index];
            span.end = Some(event.time.as_nanos());
            if let SpanKind::Closure { panicked, .. } = &mut span.kind {
                *panicked = event.kind == EventKind::CallPanicked;
            }
        }
        if claimed.is_none() || event.kind == EventKind::CallPanicked {
            self.mark(event);
        }
    }

    fn standstill(&mut self, event: &Event) {
        match event.kind {
            EventKind::Wedged => {
                let index = self.begin(event, SpanKind::Wedged, 0);
                if event.argument != u64::MAX {
                    self.activity.spans[index].end = Some(event.argument.max(event.time.as_nanos()));
                }
                self.mark(event);
            }
            EventKind::Halted => {
                let index = self.begin(event, SpanKind::Halted, 0);
                self.open[event.cpu.index()].halted = Some(index);
            }
            _ => {
                if let Some(index) = self.open[event.cpu.index()].halted.take() {
                    self.activity.spans[index].end = Some(event.time.as_nanos());
                }
            }
        }
    }

    fn message(&mut self, event: &Event) {
        use EventKind as K;
        let Some(other) = event.other.map(Cpu::number) else {
            self.count(event.kind);
            return;
        };
        let (cpu, time) = (event.cpu.number(), event.time.as_nanos());
        let sender_side = matches!(event.kind, K::IpiSent | K::IpiLost);
        let (from, to) = if sender_side { (cpu, other) } else { (other, cpu) };
        let fate = match event.kind {
            K::IpiAccepted => Fate::Accepted(time),
            K::IpiMerged => Fate::Merged(time),
            K::IpiLost => Fate::Lost(time),
            K::IpiRejected => Fate::Rejected(time),
            _ => Fate::OnItsWay,
        };
        let key = (event.argument, from, to);
        let known = self.known.get_mut(&key);
        match known {
            // The order of two CPUs' clocks is not the order of cause and effect: the end may be read first.
            Some((index, sent_seen)) if event.kind == K::IpiSent && !*sent_seen => {
                *sent_seen = true;
                self.activity.messages[*index].sent = Some(time);
                return;
            }
            Some((index, _)) if self.activity.messages[*index].fate == Fate::OnItsWay => {
                self.activity.messages[*index].fate = fate;
                return;
            }
            _ => {}
        }
        // A new message, or another copy of one whose fate is known: it left when the first one did.
        let sent = match known {
            Some((index, _)) if event.kind != K::IpiSent => self.activity.messages[*index].sent,
            _ => sender_side.then_some(time),
        };
        self.known.insert(key, (self.activity.messages.len(), event.kind == K::IpiSent));
        self.activity.messages.push(Message {
            number: event.argument,
            from,
            to,
            vector: event.detail,
            sent,
            fate,
            again: None,
            mended: None,
        });
    }

    fn frame_edge(&mut self, event: &Event) {
        if event.kind == EventKind::FrameLeft {
            if let Some(index) = self.open[event.cpu.index()].frames.pop() {
                self.activity.spans[index].end = Some(event.time.as_nanos());
            }
            return;
        }
        let name = usize::try_from(event.argument).ok().and_then(|index| self.frame_names.get(index));
        let name = name.map_or_else(|| format!("frame {}", event.argument), String::clone);
        let depth = self.open[event.cpu.index()].frames.len();
        let index = self.begin(event, SpanKind::Frame { name }, depth);
        if let Some(&(interrupt, _)) = self.open[event.cpu.index()].interrupts.last() {
            self.inside.insert(index, interrupt);
        }
        self.open[event.cpu.index()].frames.push(index);
    }

    fn begin(&mut self, event: &Event, kind: SpanKind, depth: usize) -> usize {
        self.activity.spans.push(Span {
            cpu: event.cpu.number(),
            kind,
            begin: event.time.as_nanos(),
            end: None,
            depth: depth as u32,
            routine: false,
        });
        self.activity.spans.len() - 1
    }

    fn mark(&mut self, event: &Event) {
        let frame = self.frame(event.cpu.number());
        self.activity.marks.push(Mark {
            cpu: event.cpu.number(),
            other: event.other.map(Cpu::number),
            time: event.time.as_nanos(),
            kind: event.kind,
            argument: event.argument,
            frame,
        });
    }

    fn frame(&self, cpu: u32) -> Option<String> {
        let &index = self.open[cpu as usize].frames.last()?;
        match &self.activity.spans[index].kind {
            SpanKind::Frame { name } => Some(name.clone()),
            _ => None,
        }
    }

    fn count(&mut self, kind: EventKind) {
        *self.activity.without_glyph.entry(kind).or_default() += 1;
    }

    fn finish(mut self) -> Activity {
        // A trace that records no return still says when the handler was done with the interrupt.
        for open in &self.open {
            for &(index, end_of_interrupt) in &open.interrupts {
                self.activity.spans[index].end = end_of_interrupt;
            }
        }
        self.name_repeated_rings();
        self.name_mended_losses();
        let ipi_vectors: BTreeSet<u32> =
            self.activity.messages.iter().map(|message| message.vector).collect();
        for (index, span) in self.activity.spans.iter_mut().enumerate() {
            if let SpanKind::Interrupt { vector, ipi } = &mut span.kind {
                *ipi = ipi_vectors.contains(vector);
                // One that never returned is not routine: its CPU is in it now.
                span.routine = !*ipi && !self.notable.contains(&index) && span.end.is_some();
            }
        }
        for (frame, interrupt) in self.inside {
            self.activity.spans[frame].routine = self.activity.spans[interrupt].routine;
        }
        self.activity
    }

    /// A `RungAgain` and the message that it sent are two events: they are the nearest in time.
    fn name_repeated_rings(&mut self) {
        let mut by_pair: BTreeMap<(u32, u32), Vec<usize>> = BTreeMap::new();
        for (index, message) in self.activity.messages.iter().enumerate() {
            by_pair.entry((message.from, message.to)).or_default().push(index);
        }
        for (time, from, to, attempt) in core::mem::take(&mut self.rings_again) {
            let Some(indices) = by_pair.get(&(from, to)) else { continue };
            let messages = &self.activity.messages;
            let after = indices.partition_point(|&index| messages[index].begin() < time);
            let candidates = indices[after.saturating_sub(1)..].iter().take(2).copied();
            let free = candidates.filter(|&index| messages[index].again.is_none());
            if let Some(index) = free.min_by_key(|&index| messages[index].begin().abs_diff(time)) {
                self.activity.messages[index].again = Some(attempt);
            }
        }
    }

    /// A loss is mended by the next repeated ring on the same way that arrives.
    fn name_mended_losses(&mut self) {
        let mut arrived: BTreeMap<(u32, u32, u32), u64> = BTreeMap::new();
        for message in self.activity.messages.iter_mut().rev() {
            let way = (message.from, message.to, message.vector);
            match message.fate {
                Fate::Lost(_) | Fate::Rejected(_) => message.mended = arrived.get(&way).copied(),
                Fate::Accepted(_) | Fate::Merged(_) if message.again.is_some() => {
                    arrived.insert(way, message.begin());
                }
                _ => {}
            }
        }
    }
}

/// Whether an interrupt handler in which this happens is worth drawing.
fn is_notable(kind: EventKind) -> bool {
    use EventKind as K;
    !matches!(
        kind,
        K::InterruptTaken
            | K::InterruptReturned
            | K::EndOfInterrupt
            | K::FrameEntered
            | K::FrameLeft
            | K::IpiAccepted
            | K::IpiMerged
            | K::MarksTaken
            | K::Halted
            | K::Resumed
    )
}

#[cfg(test)]
mod tests {
    use super::super::samples::Trace;
    use super::*;

    fn fates(events: &[Event]) -> Vec<(Option<u64>, Fate)> {
        Activity::new(4, events, &[]).messages.iter().map(|message| (message.sent, message.fate)).collect()
    }

    #[test]
    fn a_duplicate_is_a_second_message_that_left_with_the_first() {
        let mut trace = Trace::new();
        trace.ipi(100, 0, 1, Some(50));
        trace.at(190, 1, EventKind::IpiMerged, Some(0), 0xfb, 1);
        assert_eq!(fates(&trace.events), [(Some(100), Fate::Accepted(150)), (Some(100), Fate::Merged(190))]);
    }

    #[test]
    fn an_end_that_is_stamped_before_its_beginning_is_still_one_message() {
        let mut trace = Trace::new();
        trace.at(90, 1, EventKind::IpiAccepted, Some(0), 0xfb, 7);
        trace.at(95, 0, EventKind::IpiLost, Some(2), 0xfb, 8);
        trace.at(100, 0, EventKind::IpiSent, Some(1), 0xfb, 7);
        trace.at(100, 0, EventKind::IpiSent, Some(2), 0xfb, 8);
        assert_eq!(fates(&trace.events), [(Some(100), Fate::Accepted(90)), (Some(100), Fate::Lost(95))]);
    }

    #[test]
    fn an_ipi_without_an_end_is_on_its_way_and_one_without_a_beginning_is_kept() {
        let mut trace = Trace::new();
        trace.at(10, 0, EventKind::IpiSent, Some(1), 0xfb, 1);
        trace.at(20, 3, EventKind::IpiAccepted, Some(2), 0xfb, 2);
        assert_eq!(fates(&trace.events), [(Some(10), Fate::OnItsWay), (None, Fate::Accepted(20))]);
    }

    #[test]
    fn a_repeated_ring_belongs_to_the_message_nearest_in_time() {
        for offset in [-5_i64, 5] {
            let mut trace = Trace::new();
            trace.ipi(1_000, 0, 1, None);
            trace.ipi(9_000, 0, 1, Some(100));
            let time = 9_000_u64.saturating_add_signed(offset);
            trace.at(time, 0, EventKind::RungAgain, Some(1), 3, 0);
            let again: Vec<_> =
                Activity::new(2, &trace.events, &[]).messages.iter().map(|m| m.again).collect();
            assert_eq!(again, [None, Some(3)], "{offset}");
        }
    }

    #[test]
    fn a_handler_without_a_return_ends_with_its_end_of_interrupt() {
        let mut trace = Trace::new();
        trace.at(10, 0, EventKind::InterruptTaken, None, 0x20, 0);
        trace.at(30, 0, EventKind::EndOfInterrupt, None, 0x20, 0);
        let activity = Activity::new(1, &trace.events, &[]);
        assert_eq!(activity.spans[0].end, Some(30));
    }
}
