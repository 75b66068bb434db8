//! Pairs up the events of a trace: which messages, spans and marks they are.

use std::collections::{BTreeMap, BTreeSet};

use smpcall_machine::{Cpu, Event, EventKind};

use super::activity::{Activity, Fate, Mark, Message, Span, SpanKind};

/// The delivery mode of an NMI in bits 8 to 10 of the ICR (Intel SDM, volume 3, "Interrupt Command Register").
const ICR_NMI: u64 = 0b100;

/// What is open on one CPU: indices into `Activity::spans`.
#[derive(Default)]
struct Open {
    /// With the time of the end of interrupt, if that was seen.
    interrupts: Vec<(usize, Option<u64>)>,
    /// The vector and the span of a handler whose in-service bit was cleared by somebody else's end of interrupt.
    unprotected: Option<(u32, usize)>,
    /// How many CPUs the last ring, or NMI of a crash stop, was for that had several targets.
    several: u64,
    waits: Vec<(usize, Place)>,
    closures: Vec<usize>,
    /// The names of the frames, outermost first, and which entering each was.
    frames: Vec<(usize, String)>,
    /// The last wait that is over, if the next one in the same place continues it.
    looking: Option<(usize, Place)>,
    /// Rings that are about to be repeated: the attempt for each target.
    again: BTreeMap<u32, u32>,
    /// The ICR's value at its last writing.
    icr: u64,
    /// Its mailbox was closed once: opening it is no longer a part of booting.
    was_closed: bool,
}

/// Where a wait takes place: how many interrupts and which frame it is in, and whom it is for.
type Place = (usize, Option<usize>, Option<u32>);

struct Reader<'a> {
    activity: Activity,
    open: Vec<Open>,
    frame_names: &'a [String],
    frames_entered: usize,
    /// Messages by number, sender and target, and whether their sending was read: a duplicated message finds its
    /// first copy here.
    known: BTreeMap<(u64, u32, u32), (usize, bool)>,
    /// Interrupts that something notable happened in.
    notable: BTreeSet<usize>,
    /// When a crash dump was started.
    dump: Option<u64>,
    /// Whether the trace records that handlers return.
    has_returns: bool,
}

impl Activity {
    /// Pairs up `events` of a machine with `cpus` CPUs.
    pub(crate) fn new(cpus: u32, events: &[Event], frame_names: &[String]) -> Self {
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
            frames_entered: 0,
            known: BTreeMap::new(),
            notable: BTreeSet::new(),
            dump: None,
            has_returns: false,
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
        let open = &mut self.open[event.cpu.index()];
        match event.kind {
            K::CallQueued | K::ManyQueued | K::CallCompleted | K::CallWithdrawn => open.looking = None,
            K::IcrWritten => open.icr = event.argument,
            K::Rung | K::StopSent if event.other.is_none() => open.several = event.argument,
            K::DumpStarted => self.dump = self.dump.or(Some(event.time.as_nanos())),
            _ => {}
        }
        match event.kind {
            K::IpiSent | K::IpiAccepted | K::IpiMerged | K::IpiLost | K::IpiRejected => self.message(event),
            K::InterruptTaken | K::EndOfInterrupt | K::InterruptReturned => self.interrupt(event),
            K::WaitBegan | K::WaitEnded => self.wait(event),
            K::CallClaimed | K::CallRun | K::CallPanicked => self.closure(event),
            K::FrameEntered | K::FrameLeft => self.frame_edge(event),
            K::Wedged => self.wedged(event),
            K::RungAgain => {
                if let Some(target) = event.other {
                    open.again.insert(target.number(), event.detail);
                }
            }
            K::MailboxOpened if !open.was_closed => self.count(event.kind),
            K::MailboxClosed => {
                open.was_closed = true;
                self.mark(event);
            }
            K::CallCompleted
            | K::CallWithdrawn
            | K::CallRefused
            | K::CallOverdue
            | K::CallLeft
            | K::ManyQueued
            | K::BudgetSpent
            | K::ProbeSent
            | K::ProbeAnswered
            | K::PostRun
            | K::MailboxOpened
            | K::NmiTaken
            | K::SoftLockup
            | K::DumpStarted
            | K::CrashWon
            | K::CrashLost
            | K::CrashedAgain
            | K::CrashSaved
            | K::CrashMissing
            | K::CrashStopped
            | K::StopSent
            | K::RendezvousStage
            | K::RendezvousLate
            | K::LockupFound
            | K::LockupEnded
            | K::BackTraceSent
            | K::BackTraceTaken
            | K::PostAbandoned
            | K::Paused
            | K::BootCpuSentInit
            | K::ImageBooted => self.mark(event),
            K::Reset | K::StartedUp => {
                self.mark(event);
                if event.other.is_some() {
                    self.message(event);
                }
            }
            K::RingFailed => {
                let several = if event.other.is_none() { open.several } else { 1 };
                self.mark(&Event { argument: several, ..*event });
            }
            other => self.count(other),
        }
    }

    fn interrupt(&mut self, event: &Event) {
        let time = event.time.as_nanos();
        let depth = self.open[event.cpu.index()].interrupts.len();
        match event.kind {
            EventKind::InterruptTaken => {
                let kind = SpanKind::Interrupt { vector: event.detail, ipi: false, ended: None };
                let index = self.begin(event, kind, depth);
                let open = &mut self.open[event.cpu.index()];
                open.interrupts.push((index, None));
                // The priority of a vector is in its upper half.
                if let Some((vector, unprotected)) = open.unprotected
                    && event.detail >> 4 <= vector >> 4
                {
                    self.notable.extend([index, unprotected]);
                    self.mark(&Event { argument: event.detail.into(), detail: vector, ..*event });
                }
            }
            EventKind::InterruptReturned => {
                self.has_returns = true;
                let open = &mut self.open[event.cpu.index()].interrupts;
                // Of an NMI there is a return, too, but it was not taken as an interrupt.
                let spans = &mut self.activity.spans;
                let returns = |&mut (index, _): &mut (usize, _)| matches!(spans[index].kind, SpanKind::Interrupt { vector, .. } if vector == event.detail);
                if let Some((index, _)) = open.pop_if(returns) {
                    spans[index].end = Some(time);
                    self.open[event.cpu.index()]
                        .unprotected
                        .take_if(|(_, unprotected)| *unprotected == index);
                }
            }
            _ => self.end_of_interrupt(event),
        }
    }

    /// An in-service bit was cleared: that of the handler which wrote this, or another one's, or none.
    fn end_of_interrupt(&mut self, event: &Event) {
        let time = event.time.as_nanos();
        let open = &mut self.open[event.cpu.index()];
        let spans = &mut self.activity.spans;
        let own = open.interrupts.last_mut().filter(|(index, ended)| {
            let of_vector = |vector: u32| ended.is_none() && vector == event.detail;
            matches!(spans[*index].kind, SpanKind::Interrupt { vector, .. } if of_vector(vector))
        });
        if let Some((index, end)) = own {
            *end = Some(time);
            if let SpanKind::Interrupt { ended, .. } = &mut spans[*index].kind {
                *ended = Some(time);
            }
            return;
        }
        let of_vector = |&&(index, _): &&(usize, _)| matches!(spans[index].kind, SpanKind::Interrupt { vector, .. } if vector == event.detail);
        let other = open.interrupts.iter().rev().find(of_vector).map(|&(index, _)| index);
        open.unprotected = other.map(|index| (event.detail, index)).or(open.unprotected);
        self.notable.extend(open.interrupts.iter().map(|&(index, _)| index));
        self.mark(&Event { argument: event.detail.into(), ..*event });
    }

    fn wait(&mut self, event: &Event) {
        let open = &mut self.open[event.cpu.index()];
        let spans = &mut self.activity.spans;
        if event.kind == EventKind::WaitEnded {
            if let Some((index, place)) = open.waits.pop() {
                let span = &mut spans[index];
                span.end = Some(event.time.as_nanos());
                if let SpanKind::Wait { expired, .. } = &mut span.kind {
                    *expired = event.argument == 1;
                    open.looking = (*expired || !span.looks.is_empty()).then_some((index, place));
                }
            }
            return;
        }
        let target = event.other.map(Cpu::number);
        let place = (open.interrupts.len(), open.frames.last().map(|&(entering, _)| entering), target);
        if let Some((index, _)) = open.looking.take_if(|(_, looking)| *looking == place) {
            let span = &mut spans[index];
            span.looks.extend(span.end.take());
            open.waits.push((index, place));
            return;
        }
        let stopped = open
            .interrupts
            .last()
            .zip(self.dump)
            .is_some_and(|(&(interrupt, _), dump)| spans[interrupt].begin > dump);
        let depth = open.waits.len();
        let kind = if stopped {
            SpanKind::Stopped
        } else {
            SpanKind::Wait { target, frame: self.frame(event.cpu.index()), expired: false }
        };
        let index = self.begin(event, kind, depth);
        self.open[event.cpu.index()].waits.push((index, place));
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

    fn wedged(&mut self, event: &Event) {
        let index = self.begin(event, SpanKind::Wedged, 0);
        if event.argument != u64::MAX {
            self.activity.spans[index].end = Some(event.argument.max(event.time.as_nanos()));
        }
        self.mark(event);
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
        let is_sending = event.kind == K::IpiSent;
        let fate = match event.kind {
            K::IpiAccepted | K::Reset | K::StartedUp => Fate::Accepted(time),
            K::IpiMerged => Fate::Merged(time),
            K::IpiLost => Fate::Lost(time),
            K::IpiRejected => Fate::Rejected(time),
            _ => Fate::OnItsWay,
        };
        let key = (event.argument, from, to);
        let messages = &mut self.activity.messages;
        let index = match self.known.get(&key) {
            // The order of two CPUs' clocks is not the order of cause and effect: the end may be read first.
            Some(&(index, false)) if is_sending => {
                messages[index].sent = Some(time);
                index
            }
            Some(&(index, _)) if messages[index].fate == Fate::OnItsWay => {
                messages[index].fate = fate;
                return;
            }
            // A new message, or another copy of one whose fate is known: it left when the first one did.
            known => {
                let first = known.filter(|_| !is_sending).map(|&(index, _)| &messages[index]);
                let sent = first.map_or(sender_side.then_some(time), |first| first.sent);
                let (again, mended, nmi) = (None, None, first.is_some_and(|first| first.nmi));
                let (number, vector) = (event.argument, event.detail);
                let mode = first.map_or(0, |first| first.mode);
                messages.push(Message { number, from, to, vector, mode, nmi, sent, fate, again, mended });
                messages.len() - 1
            }
        };
        self.known.insert(key, (index, is_sending));
        if is_sending {
            let open = &mut self.open[event.cpu.index()];
            messages[index].mode = open.icr >> 8 & 7;
            messages[index].nmi = messages[index].mode == ICR_NMI;
            if !messages[index].nmi {
                messages[index].again = open.again.remove(&to);
            }
        }
    }

    fn frame_edge(&mut self, event: &Event) {
        self.count(event.kind);
        if event.kind == EventKind::FrameLeft {
            self.open[event.cpu.index()].frames.pop();
            return;
        }
        let name = usize::try_from(event.argument).ok().and_then(|index| self.frame_names.get(index));
        let name = name.map_or_else(|| format!("frame {}", event.argument), String::clone);
        self.frames_entered += 1;
        self.open[event.cpu.index()].frames.push((self.frames_entered, name));
    }

    fn begin(&mut self, event: &Event, kind: SpanKind, depth: usize) -> usize {
        self.activity.spans.push(Span {
            cpu: event.cpu.number(),
            kind,
            begin: event.time.as_nanos(),
            end: None,
            depth: depth as u32,
            looks: Vec::new(),
            routine: false,
        });
        self.activity.spans.len() - 1
    }

    fn mark(&mut self, event: &Event) {
        let frame = self.frame(event.cpu.index());
        self.activity.marks.push(Mark {
            cpu: event.cpu.number(),
            other: event.other.map(Cpu::number),
            time: event.time.as_nanos(),
            kind: event.kind,
            argument: event.argument,
            detail: event.detail,
            frame,
        });
    }

    /// The innermost named frame of a CPU.
    fn frame(&self, cpu: usize) -> Option<String> {
        self.open[cpu].frames.last().map(|(_, name)| name.clone())
    }

    fn count(&mut self, kind: EventKind) {
        *self.activity.without_glyph.entry(kind).or_default() += 1;
    }

    fn finish(mut self) -> Activity {
        if !self.has_returns {
            // The end of interrupt still says when the handler was done.
            for &(index, end_of_interrupt) in self.open.iter().flat_map(|open| &open.interrupts) {
                self.activity.spans[index].end = end_of_interrupt;
            }
        }
        self.name_mended_losses();
        let took = |message: &Message| match (message.sent, message.fate) {
            (Some(sent), Fate::Accepted(at)) => Some(at.saturating_sub(sent)),
            _ => None,
        };
        let mut latencies: Vec<u64> = self.activity.messages.iter().filter_map(took).collect();
        latencies.sort_unstable();
        self.activity.latency = latencies.get(latencies.len() / 2).copied().unwrap_or(0);
        let ipi_vectors: BTreeSet<u32> =
            self.activity.messages.iter().map(|message| message.vector).collect();
        let latency = self.activity.latency;
        for (index, span) in self.activity.spans.iter_mut().enumerate() {
            // What is not over is not routine: its CPU is in it now.
            let lasted = span.end.map(|end| end - span.begin);
            span.routine = match &mut span.kind {
                SpanKind::Interrupt { vector, ipi, .. } => {
                    *ipi = ipi_vectors.contains(vector);
                    !*ipi && !self.notable.contains(&index) && lasted.is_some()
                }
                SpanKind::Wait { expired: false, .. } if span.looks.is_empty() => {
                    lasted.is_some_and(|nanos| nanos < latency)
                }
                _ => false,
            };
        }
        self.activity
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
    fn a_repeated_ring_is_the_next_message_to_its_target_and_no_nmi() {
        let mut trace = Trace::new();
        trace.ipi(1_000, 0, 1, None);
        trace.at(9_000, 0, EventKind::RungAgain, Some(1), 3, 0);
        trace.at(9_001, 0, EventKind::IcrWritten, Some(1), 0, ICR_NMI << 8);
        trace.at(9_001, 0, EventKind::IpiSent, Some(1), 0, 77);
        trace.ipi(9_010, 0, 2, Some(100));
        trace.ipi(9_020, 0, 1, Some(100));
        let activity = Activity::new(3, &trace.events, &[]);
        let again: Vec<_> = activity.messages.iter().map(|m| (m.what(), m.to, m.again)).collect();
        let fb = || "0xfb".to_owned();
        let expected = [(fb(), 1, None), ("NMI".into(), 1, None), (fb(), 2, None), (fb(), 1, Some(3))];
        assert_eq!(again, expected);
        assert_eq!(activity.messages[0].mended, Some(9_020));
    }

    fn waits(trace: &Trace) -> Vec<(u64, Option<u64>, usize, bool)> {
        let activity = Activity::new(4, &trace.events, &[]);
        let waits = activity.spans.iter().filter(|span| matches!(span.kind, SpanKind::Wait { .. }));
        waits.map(|span| (span.begin, span.end, span.looks.len(), span.routine)).collect()
    }

    #[test]
    fn a_wait_that_goes_on_after_a_look_is_one_wait_and_the_next_call_waits_anew() {
        let mut trace = Trace::new();
        for (begin, end, expired) in [(100, 200, 1), (210, 300, 1), (310, 320, 0), (330, 400, 0)] {
            trace.at(begin, 0, EventKind::WaitBegan, None, 0, 0);
            trace.at(end, 0, EventKind::WaitEnded, None, 0, expired);
        }
        trace.at(410, 0, EventKind::CallCompleted, None, 0, 0);
        trace.at(500, 0, EventKind::WaitBegan, None, 0, 0);
        assert_eq!(waits(&trace), [(100, Some(400), 3, false), (500, None, 0, false)]);
    }

    #[test]
    fn waits_that_end_by_themselves_are_not_joined_and_those_too_short_for_an_ipi_are_routine() {
        let mut trace = Trace::new();
        trace.ipi(0, 0, 1, Some(400));
        for (begin, end) in [(100, 300), (310, 900)] {
            trace.at(begin, 0, EventKind::WaitBegan, None, 0, 0);
            trace.at(end, 0, EventKind::WaitEnded, None, 0, 0);
        }
        assert_eq!(waits(&trace), [(100, Some(300), 0, true), (310, Some(900), 0, false)]);
    }

    #[test]
    fn who_waits_in_a_handler_that_a_dump_sent_is_stopped_on_purpose() {
        let mut trace = Trace::new();
        trace.at(10, 1, EventKind::WaitBegan, None, 0, 0);
        trace.at(20, 0, EventKind::DumpStarted, None, 0, 0);
        trace.at(30, 1, EventKind::InterruptTaken, None, 0xfb, 0);
        trace.at(40, 1, EventKind::WaitBegan, None, 0, 0);
        trace.at(50, 0, EventKind::WaitBegan, None, 0, 0);
        let activity = Activity::new(2, &trace.events, &[]);
        let stopped = activity.spans.iter().filter(|span| span.kind == SpanKind::Stopped);
        assert_eq!(stopped.map(|span| (span.cpu, span.begin)).collect::<Vec<_>>(), [(1, 40)]);
    }

    #[test]
    fn in_a_trace_without_returns_a_handler_ends_with_its_end_of_interrupt() {
        let mut trace = Trace::new();
        trace.at(10, 0, EventKind::InterruptTaken, None, 0x20, 0);
        trace.at(30, 0, EventKind::EndOfInterrupt, None, 0x20, 0);
        let activity = Activity::new(1, &trace.events, &[]);
        assert_eq!(activity.spans[0].end, Some(30));
    }

    fn marks(trace: &Trace) -> Vec<(u64, EventKind, u64)> {
        let activity = Activity::new(2, &trace.events, &[]);
        activity.marks.iter().map(|mark| (mark.time, mark.kind, mark.argument)).collect()
    }

    #[test]
    fn an_end_of_interrupt_that_is_not_its_handlers_is_a_mark_and_so_is_what_it_lets_in() {
        let mut trace = Trace::new();
        trace.at(10, 0, EventKind::InterruptTaken, None, 0x81, 0);
        // A handler without an in-service bit of its own ends the other one's interrupt.
        trace.at(20, 0, EventKind::InterruptTaken, None, 0x30, 0);
        trace.at(30, 0, EventKind::EndOfInterrupt, None, 0x81, 0);
        trace.at(35, 0, EventKind::InterruptReturned, None, 0x30, 0);
        trace.at(40, 0, EventKind::InterruptTaken, None, 0x82, 0);
        trace.at(50, 0, EventKind::EndOfInterrupt, None, 0x82, 0);
        trace.at(55, 0, EventKind::InterruptReturned, None, 0x82, 0);
        trace.at(60, 0, EventKind::EndOfInterrupt, None, 0, 0);
        trace.at(70, 0, EventKind::InterruptReturned, None, 0x81, 0);
        trace.at(80, 0, EventKind::InterruptTaken, None, 0x81, 0);
        trace.at(90, 0, EventKind::EndOfInterrupt, None, 0x81, 0);
        let expected = [
            (30, EventKind::EndOfInterrupt, 0x81),
            (40, EventKind::InterruptTaken, 0x82),
            (60, EventKind::EndOfInterrupt, 0),
        ];
        assert_eq!(marks(&trace), expected);
    }

    #[test]
    fn what_has_a_higher_priority_is_not_let_in_by_a_stray_end_of_interrupt() {
        let mut trace = Trace::new();
        trace.at(10, 0, EventKind::InterruptTaken, None, 0x81, 0);
        trace.at(20, 0, EventKind::InterruptTaken, None, 0x30, 0);
        trace.at(30, 0, EventKind::EndOfInterrupt, None, 0x81, 0);
        trace.at(35, 0, EventKind::InterruptReturned, None, 0x30, 0);
        trace.at(40, 0, EventKind::InterruptTaken, None, 0xef, 0);
        assert_eq!(marks(&trace).len(), 1);
    }

    #[test]
    fn a_ring_that_fails_says_to_how_many() {
        let mut trace = Trace::new();
        trace.at(10, 0, EventKind::StopSent, None, 0, 7);
        trace.at(20, 0, EventKind::RingFailed, None, 0, 0);
        assert_eq!(marks(&trace)[1], (20, EventKind::RingFailed, 7));
    }
}
