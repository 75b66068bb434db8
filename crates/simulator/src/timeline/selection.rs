//! What of a trace is drawn, and what is left out: nothing is left out without being counted.

use std::collections::{BTreeMap, BTreeSet};

use smpcall_machine::EventKind;

use super::Options;
use super::activity::{Activity, Fate, Mark, Message, Span, SpanKind};
use super::scale::Moments;
use super::units::{count, duration, ranges};

/// The drawn part of an [`Activity`], and what is said about the rest.
pub(super) struct Selection<'a> {
    /// CPU numbers, ascending: one column each.
    pub(super) columns: Vec<u32>,
    pub(super) messages: Vec<&'a Message>,
    pub(super) spans: Vec<&'a Span>,
    pub(super) marks: Vec<&'a Mark>,
    pub(super) moments: Moments,
    /// When the activities began that were left out for want of room: ascending.
    left_out: Vec<u64>,
    /// When the repeated rings were sent that are left out because others like them are drawn: ascending.
    rings: Vec<u64>,
    /// When the routine interrupts began: ascending.
    routine: Vec<u64>,
    /// What is left out, in sentences.
    pub(super) notes: Vec<String>,
}

/// One activity as a candidate for drawing: from when to when, and which.
#[derive(Clone, Copy)]
struct Candidate {
    begin: u64,
    end: u64,
    important: bool,
    alarm: bool,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    Message(usize),
    Span(usize),
    Mark(usize),
}

impl<'a> Selection<'a> {
    pub(super) fn new(activity: &'a Activity, cpus: u32, options: &Options) -> Self {
        let columns = columns(activity, cpus, options.max_columns);
        let shown: BTreeSet<u32> = columns.iter().copied().collect();
        let mut selection = Self {
            columns,
            messages: Vec::new(),
            spans: Vec::new(),
            marks: Vec::new(),
            moments: Moments { together: activity.latency.saturating_mul(TOGETHER), ..Moments::default() },
            left_out: Vec::new(),
            rings: Vec::new(),
            routine: Vec::new(),
            notes: Vec::new(),
        };
        selection.note_columns(activity, cpus, &shown);
        selection.note_routine(activity);
        let further = further_rings(&activity.messages);
        selection.rings = further.iter().map(|&index| activity.messages[index].begin()).collect();
        selection.rings.sort_unstable();
        let candidates = candidates(activity, &shown, &further);
        let total = candidates.len();
        let (kept, left_out) = within_budget(candidates, MOST_DRAWN);
        if !left_out.is_empty() {
            selection.left_out = left_out.iter().map(|candidate| candidate.begin).collect();
            selection.left_out.sort_unstable();
            let important = left_out.iter().filter(|candidate| candidate.important).count();
            selection.notes.push(format!(
                "{} of {total} activities are drawn: the first losses, repeats and alarms and what is nearest to \
                 them. The other {}, {important} losses, repeats and alarms among them, are counted in the breaks.",
                kept.len(),
                left_out.len()
            ));
        }
        selection.keep(activity, &kept);
        if !activity.without_glyph.is_empty() {
            let kinds = activity.without_glyph.iter().map(|(kind, number)| format!("{number} {kind:?}"));
            let kinds: Vec<String> = kinds.collect();
            selection.notes.push(format!("Events that have no glyph: {}.", kinds.join(", ")));
        }
        if activity.beyond > 0 {
            selection.notes.push(format!(
                "{} left out: they name a CPU that this machine of {cpus} does not have.",
                count(activity.beyond, "event")
            ));
        }
        selection
    }

    /// Whether something other than routine was left out between two moments that follow each other.
    pub(super) fn hides(&self, from: u64, to: u64) -> bool {
        between(&self.left_out, from, to) + between(&self.rings, from, to) > 0
    }

    /// What a break between two moments says: how long it is and what was left out in it.
    pub(super) fn break_text(&self, from: u64, to: u64) -> String {
        let mut text = format!("{} pass", duration(to - from));
        let left_out = [
            (&self.rings, "more ring", "more rings"),
            (&self.left_out, "activity left out", "activities left out"),
            (&self.routine, "routine interrupt", "routine interrupts"),
        ];
        for (times, one, many) in left_out {
            match between(times, from, to) {
                0 => {}
                1 => text = format!("{text}, 1 {one}"),
                number => text = format!("{text}, {number} {many}"),
            }
        }
        text
    }

    fn keep(&mut self, activity: &'a Activity, kept: &[Candidate]) {
        let mut times = BTreeSet::new();
        for candidate in kept {
            times.insert(candidate.begin);
            match candidate.what {
                What::Message(index) => {
                    let message = &activity.messages[index];
                    self.messages.push(message);
                    let lost = matches!(message.fate, Fate::Lost(_));
                    // A lost one is drawn to where it would have arrived.
                    times.insert(if lost {
                        candidate.begin.saturating_add(activity.latency)
                    } else {
                        candidate.end
                    });
                }
                What::Span(index) => {
                    self.spans.push(&activity.spans[index]);
                    // One that is not over is drawn to the page's end.
                    times.extend(activity.spans[index].end.map(|_| candidate.end));
                }
                What::Mark(index) => {
                    let mark = &activity.marks[index];
                    self.marks.push(mark);
                    if is_alarm(mark) {
                        self.moments.roomy.insert(mark.time);
                    }
                }
            }
        }
        if !self.left_out.is_empty() {
            // So that what was left out before the first and after the last drawn moment has a break too.
            times.extend([activity.first, activity.last.saturating_add(1)]);
        }
        self.moments.times = times.into_iter().collect();
    }

    fn note_columns(&mut self, activity: &Activity, cpus: u32, shown: &BTreeSet<u32>) {
        let hidden: Vec<u32> = (0..cpus).filter(|cpu| !shown.contains(cpu)).collect();
        if hidden.is_empty() {
            return;
        }
        let is_hidden = |cpu: u32| !shown.contains(&cpu);
        let ipis = activity.messages.iter().filter(|m| is_hidden(m.from) || is_hidden(m.to)).count();
        let spans = activity.spans.iter().filter(|span| is_hidden(span.cpu) && !span.routine).count();
        let marks = activity.marks.iter().filter(|mark| is_hidden(mark.cpu)).count();
        self.notes.push(format!(
            "{} left out for want of room (CPU {}), with {} from or to them and {} on them.",
            count(hidden.len(), "CPU"),
            ranges(&hidden),
            count(ipis, "IPI"),
            if spans + marks == 1 { "1 activity".into() } else { format!("{} activities", spans + marks) },
        ));
    }

    fn note_routine(&mut self, activity: &Activity) {
        let mut by_vector: BTreeMap<u32, usize> = BTreeMap::new();
        let mut short_waits = 0;
        for span in activity.spans.iter().filter(|span| span.routine) {
            if let SpanKind::Interrupt { vector, .. } = span.kind {
                *by_vector.entry(vector).or_default() += 1;
                self.routine.push(span.begin);
            } else {
                short_waits += 1;
            }
        }
        self.routine.sort_unstable();
        let interrupts = by_vector.into_iter();
        let mut left_out: Vec<String> = interrupts
            .map(|(vector, number)| format!("{} of vector {vector:#04x}", count(number, "interrupt")))
            .collect();
        if short_waits > 0 {
            let latency = duration(activity.latency);
            left_out.push(format!("{} shorter than an IPI takes ({latency})", count(short_waits, "wait")));
        }
        if !left_out.is_empty() {
            self.notes.push(format!("Left out, because nothing came of them: {}.", left_out.join(", ")));
        }
    }
}

/// Counts what is at `from` or later and before `to`, so that neighbouring ranges share nothing and miss nothing.
fn between(ascending: &[u64], from: u64, to: u64) -> usize {
    let begin = ascending.partition_point(|&time| time < from);
    ascending.partition_point(|&time| time < to).saturating_sub(begin)
}

/// The repeated rings of each ladder between its first ones and its last: they say nothing new.
fn further_rings(messages: &[Message]) -> BTreeSet<usize> {
    let mut ladders: BTreeMap<(u32, u32), Vec<usize>> = BTreeMap::new();
    let mut further = BTreeSet::new();
    let mut end = |ladder: &mut Vec<usize>| {
        ladder.pop();
        further.extend(ladder.drain(..).skip(FIRST_RINGS));
    };
    for (index, message) in messages.iter().enumerate() {
        let ladder = ladders.entry((message.from, message.to)).or_default();
        if message.again == Some(1) {
            end(ladder);
        }
        if message.again.is_some() {
            ladder.push(index);
        }
    }
    ladders.values_mut().for_each(end);
    further
}

fn candidates(activity: &Activity, shown: &BTreeSet<u32>, further: &BTreeSet<usize>) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for (index, message) in activity.messages.iter().enumerate() {
        if further.contains(&index) {
            continue;
        }
        if shown.contains(&message.from) && shown.contains(&message.to) {
            candidates.push(Candidate {
                begin: message.begin(),
                end: message.end().unwrap_or(activity.last),
                important: is_important_message(message),
                alarm: false,
                what: What::Message(index),
            });
        }
    }
    for (index, span) in activity.spans.iter().enumerate() {
        if shown.contains(&span.cpu) && !span.routine {
            candidates.push(Candidate {
                begin: span.begin,
                end: span.end.unwrap_or(activity.last).min(activity.last),
                important: false,
                alarm: false,
                what: What::Span(index),
            });
        }
    }
    for (index, mark) in activity.marks.iter().enumerate() {
        if shown.contains(&mark.cpu) {
            candidates.push(Candidate {
                begin: mark.time,
                end: mark.time,
                important: is_important_mark(mark),
                alarm: is_alarm(mark),
                what: What::Mark(index),
            });
        }
    }
    candidates
}

/// How many IPIs, spans and marks are drawn at most.
const MOST_DRAWN: usize = 600;
/// How many repeated rings are drawn before the last one.
const FIRST_RINGS: usize = 4;
/// A pause of this many times what an IPI takes belongs to what it interrupts.
const TOGETHER: u64 = 10;
/// How much is drawn for each important activity, itself included: enough to see what it broke into.
const SURROUNDINGS: usize = 12;

/// Splits into what is drawn and what is not: the first important ones, then what is nearest to them in time;
/// without any, the earliest.
fn within_budget(mut candidates: Vec<Candidate>, budget: usize) -> (Vec<Candidate>, Vec<Candidate>) {
    if candidates.len() <= budget {
        return (candidates, Vec::new());
    }
    let room = budget.div_ceil(SURROUNDINGS);
    let first = |alarm, most| {
        let important = candidates.iter().filter(|c| c.important && c.alarm == alarm);
        let mut moments: Vec<u64> = important.map(|c| c.begin).collect();
        moments.sort_unstable();
        moments.truncate(most);
        moments
    };
    // What has a large label, however late it comes; but not that alone.
    let mut moments = first(true, room.div_ceil(2));
    moments.extend(first(false, room - moments.len()));
    moments.sort_unstable();
    let distance = |candidate: &Candidate| {
        let after = moments.partition_point(|&moment| moment < candidate.begin);
        match (after.checked_sub(1).map(|index| moments[index]), moments.get(after)) {
            (_, Some(&next)) if next <= candidate.end => 0,
            (Some(previous), Some(&next)) => (candidate.begin - previous).min(next - candidate.end),
            (Some(previous), None) => candidate.begin - previous,
            (None, Some(&next)) => next - candidate.end,
            (None, None) => candidate.begin,
        }
    };
    // Stable: ties stay in the order of the trace.
    candidates.sort_by_key(|candidate| {
        let first = candidate.important && moments.binary_search(&candidate.begin).is_ok();
        (!first, distance(candidate), candidate.begin)
    });
    let left_out = candidates.split_off(budget);
    (candidates, left_out)
}

/// An IPI that went wrong or mended something.
pub(super) fn is_important_message(message: &Message) -> bool {
    message.again.is_some() || matches!(message.fate, Fate::Lost(_) | Fate::Rejected(_) | Fate::OnItsWay)
}

/// What has a large label.
fn is_alarm(mark: &Mark) -> bool {
    use EventKind as K;
    match mark.kind {
        K::EndOfInterrupt => mark.argument != 0,
        K::SoftLockup
        | K::LockupFound
        | K::DumpStarted
        | K::CallWithdrawn
        | K::InterruptTaken
        | K::CrashWon
        | K::CrashMissing
        | K::RendezvousLate
        | K::BootCpuSentInit
        | K::ImageBooted => true,
        _ => false,
    }
}

/// An alarm, or a call that did not simply complete.
pub(super) fn is_important_mark(mark: &Mark) -> bool {
    use EventKind as K;
    is_alarm(mark)
        || matches!(
            mark.kind,
            K::CallRefused
                | K::CallOverdue
                | K::CallLeft
                | K::CallPanicked
                | K::RingFailed
                | K::ProbeSent
                | K::ProbeAnswered
                | K::Wedged
                | K::CrashLost
                | K::CrashedAgain
                | K::StopSent
                | K::CrashStopped
                | K::Reset
        )
}

/// The CPUs that get a column: all, or the most eventful ones, in ascending order.
fn columns(activity: &Activity, cpus: u32, most: usize) -> Vec<u32> {
    if cpus as usize <= most {
        return (0..cpus).collect();
    }
    let mut score = vec![0_u64; cpus as usize];
    for message in &activity.messages {
        let points = if is_important_message(message) { 1_000_000 } else { 1 };
        score[message.from as usize] += points;
        score[message.to as usize] += points;
    }
    for mark in &activity.marks {
        score[mark.cpu as usize] += if is_important_mark(mark) { 1_000_000 } else { 1 };
    }
    for span in activity.spans.iter().filter(|span| !span.routine) {
        score[span.cpu as usize] += if span.end.is_none() { 1_000 } else { 1 };
    }
    let mut ranked: Vec<u32> = (0..cpus).collect();
    ranked.sort_by_key(|&cpu| core::cmp::Reverse(score[cpu as usize]));
    ranked.truncate(most);
    ranked.sort_unstable();
    ranked
}
