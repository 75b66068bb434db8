//! Traces to draw in tests: the lost call of 2009 as it ended then, and with its ring repeated.

use smpcall_machine::{Cpu, Event, EventKind, Instant};

/// The names of the frames of report 000, outermost first.
const FRAMES: [&str; 6] = [
    "invalidate_bdev",
    "on_each_cpu",
    "smp_call_function",
    "__smp_call_function",
    "try_dump",
    "start_disk_dump",
];

/// [`FRAMES`] as the picture takes them.
pub(crate) fn frame_names() -> Vec<String> {
    FRAMES.map(str::to_owned).to_vec()
}

const CALLER: u32 = 5;
const VECTOR: u32 = 0xfb;
const TIMER: u32 = 0xef;

/// Builds a trace event by event.
pub(crate) struct Trace {
    pub(crate) events: Vec<Event>,
    next_message: u64,
}

impl Trace {
    pub(crate) fn new() -> Self {
        Self { events: Vec::new(), next_message: 1 }
    }

    pub(crate) fn at(
        &mut self,
        time: u64,
        cpu: u32,
        kind: EventKind,
        other: Option<u32>,
        detail: u32,
        argument: u64,
    ) {
        let (time, cpu, other) = (Instant::from_nanos(time), Cpu::new(cpu), other.map(Cpu::new));
        self.events.push(Event { time, kind, cpu, other, detail, argument });
    }

    /// An IPI; `None` loses it. Returns when the handler begins.
    pub(crate) fn ipi(&mut self, time: u64, from: u32, to: u32, latency: Option<u64>) -> u64 {
        let number = self.next_message;
        self.next_message += 1;
        self.at(time, from, EventKind::IcrWritten, Some(to), VECTOR, 0);
        self.at(time, from, EventKind::IpiSent, Some(to), VECTOR, number);
        match latency {
            Some(latency) => self.at(time + latency, to, EventKind::IpiAccepted, Some(from), VECTOR, number),
            None => self.at(time, from, EventKind::IpiLost, Some(to), VECTOR, number),
        }
        time + latency.unwrap_or(0) + 150
    }

    /// The handler of an IPI, in which one call of `caller` is run.
    pub(crate) fn handler(&mut self, time: u64, cpu: u32, caller: u32) {
        self.at(time, cpu, EventKind::InterruptTaken, None, VECTOR, 0);
        self.at(time + 200, cpu, EventKind::CallClaimed, Some(caller), 0, 0);
        self.at(time + 700, cpu, EventKind::CallRun, Some(caller), 0, 0);
        self.at(time + 800, cpu, EventKind::EndOfInterrupt, None, VECTOR, 0);
        self.at(time + 900, cpu, EventKind::InterruptReturned, None, VECTOR, 0);
    }

    fn volley(&mut self, begin: u64, cpus: u32, caller: u32, lost: Option<u32>) -> u64 {
        let mut end = begin;
        for (index, target) in (0..cpus).filter(|&cpu| cpu != caller).enumerate() {
            let sent = begin + 90 * index as u64;
            if Some(target) == lost {
                self.ipi(sent, caller, target, None);
            } else {
                let taken = self.ipi(sent, caller, target, Some(420 + u64::from(target * 37 % 60)));
                self.handler(taken, target, caller);
                end = taken + 900;
            }
        }
        end
    }
}

/// 16 CPUs as in 2009: CPU 5 waits for CPU 11 until the soft-lockup check starts a dump, 10 s later.
pub(crate) fn lost_call_then(cpus: u32) -> Vec<Event> {
    const LOCKUP: u64 = 10_000_000_000;
    let mut trace = Trace::new();
    for (number, _) in (0_u64..4).zip(FRAMES) {
        trace.at(1_000 + 40 * number, CALLER, EventKind::FrameEntered, None, 0, number);
    }
    trace.at(1_200, CALLER, EventKind::ManyQueued, None, 0, u64::from(cpus - 1));
    trace.volley(1_300, cpus, CALLER, Some(11));
    short_wait(&mut trace, 2_600);
    trace.at(2_700, CALLER, EventKind::WaitBegan, None, 0, 0);
    for tick in 1..100 {
        for cpu in 0..cpus {
            let time = tick * 100_000_000 + u64::from(cpu) * 1_000;
            trace.at(time, cpu, EventKind::InterruptTaken, None, TIMER, 0);
            trace.at(time, cpu, EventKind::FrameEntered, None, 0, 6);
            trace.at(time + 600, cpu, EventKind::FrameLeft, None, 0, 0);
            trace.at(time + 600, cpu, EventKind::EndOfInterrupt, None, TIMER, 0);
            trace.at(time + 700, cpu, EventKind::InterruptReturned, None, TIMER, 0);
            if cpu != CALLER {
                trace.at(time + 700, cpu, EventKind::Resumed, None, 0, 0);
                trace.at(time + 900, cpu, EventKind::Halted, None, 0, 0);
            }
        }
    }
    trace.at(LOCKUP, CALLER, EventKind::InterruptTaken, None, TIMER, 0);
    trace.at(LOCKUP + 500, CALLER, EventKind::SoftLockup, None, 0, LOCKUP - 1_000);
    trace.at(LOCKUP + 900, CALLER, EventKind::FrameEntered, None, 0, 4);
    trace.at(LOCKUP + 1_300, CALLER, EventKind::FrameEntered, None, 0, 5);
    trace.at(LOCKUP + 1_600, CALLER, EventKind::DumpStarted, None, 0, 0);
    trace.volley(LOCKUP + 2_000, cpus, CALLER, None);
    // As they were told, they stand still and never return.
    trace.events.retain(|event| event.time.as_nanos() < LOCKUP || event.kind != EventKind::InterruptReturned);
    for cpu in (0..cpus).filter(|&cpu| cpu != CALLER) {
        trace.at(LOCKUP + 10_000, cpu, EventKind::WaitBegan, None, 0, 0);
    }
    trace.events
}

/// As a wait for the ICR to become ready.
fn short_wait(trace: &mut Trace, time: u64) {
    trace.at(time, CALLER, EventKind::WaitBegan, None, 0, 0);
    trace.at(time + 90, CALLER, EventKind::WaitEnded, None, 0, 0);
}

/// A CPU that is wedged from the start is rung again and again, probed and given up.
pub(crate) fn dead_target(rings: u32) -> Vec<Event> {
    const TARGET: u32 = 1;
    let mut trace = Trace::new();
    trace.at(0, TARGET, EventKind::Wedged, None, 0, u64::MAX);
    trace.ipi(1_000, 0, TARGET, Some(400));
    trace.at(1_100, 0, EventKind::WaitBegan, None, 0, 0);
    for attempt in 1..=rings {
        let time = u64::from(attempt) * 8_000_000;
        trace.at(time, 0, EventKind::WaitEnded, None, 0, 1);
        trace.at(time + 80, 0, EventKind::RungAgain, Some(TARGET), attempt, 0);
        let number = u64::from(attempt) + 100;
        trace.at(time + 200, 0, EventKind::IpiSent, Some(TARGET), VECTOR, number);
        trace.at(time + 600, TARGET, EventKind::IpiMerged, Some(0), VECTOR, number);
        trace.at(time + 250, 0, EventKind::WaitBegan, None, 0, 0);
        if attempt == 2 {
            trace.at(time + 900, 0, EventKind::ProbeSent, Some(TARGET), 0, 0);
            trace.at(time + 1_900, TARGET, EventKind::ProbeAnswered, None, 0, 0);
        }
    }
    let end = u64::from(rings + 1) * 8_000_000;
    trace.at(end, 0, EventKind::WaitEnded, None, 0, 1);
    trace.at(end + 80, 0, EventKind::CallWithdrawn, Some(TARGET), 0, 0);
    trace.at(end + 100, 0, EventKind::CallCompleted, None, 0, 0);
    trace.events
}

/// The same loss, with the ring repeated after 250 us.
pub(crate) fn lost_call_now(cpus: u32) -> Vec<Event> {
    let mut trace = Trace::new();
    trace.at(1_200, CALLER, EventKind::ManyQueued, None, 0, u64::from(cpus - 1));
    trace.volley(1_300, cpus, CALLER, Some(11));
    trace.at(2_700, CALLER, EventKind::WaitBegan, None, 0, 0);
    trace.at(252_000, CALLER, EventKind::WaitEnded, None, 0, 1);
    trace.at(252_100, CALLER, EventKind::RungAgain, Some(11), 1, 0);
    let taken = trace.ipi(252_200, CALLER, 11, Some(440));
    trace.at(252_300, CALLER, EventKind::WaitBegan, None, 0, 0);
    trace.handler(taken, 11, CALLER);
    trace.at(taken + 1_000, CALLER, EventKind::WaitEnded, None, 0, 0);
    trace.at(taken + 1_100, CALLER, EventKind::CallCompleted, None, 0, 0);
    trace.events
}
