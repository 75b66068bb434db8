//! What slices and instants are called, and which numbers are written beside them.

use smpcall_machine::{Event, EventKind};

use super::proto::DebugAnnotation;
use crate::timeline::{Span, SpanKind};

/// Names that packets refer to by number.
#[derive(Default)]
pub(super) struct Names {
    numbers: hashbrown::HashMap<String, u64, rustc_hash::FxBuildHasher>,
    /// In the order of their numbers, which begin with 1.
    pub(super) names: Vec<String>,
}

impl Names {
    pub(super) fn number(&mut self, name: &str) -> u64 {
        if let Some(&number) = self.numbers.get(name) {
            return number;
        }
        self.names.push(name.to_owned());
        let number = self.names.len() as u64;
        self.numbers.insert(name.to_owned(), number);
        number
    }
}

/// A number beside a slice or an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Number(u64),
    /// Shown in hexadecimal.
    Hexadecimal(u64),
    Flag(bool),
}

/// Numbers with their names.
pub(super) type Values = Vec<(&'static str, Value)>;

/// As a packet has it.
pub(super) fn annotation(names: &mut Names, (name, value): (&str, Value)) -> DebugAnnotation {
    let name_iid = Some(names.number(name));
    match value {
        Value::Number(number) => DebugAnnotation { name_iid, uint_value: Some(number), ..Default::default() },
        Value::Hexadecimal(number) => {
            DebugAnnotation { name_iid, pointer_value: Some(number), ..Default::default() }
        }
        Value::Flag(flag) => DebugAnnotation { name_iid, bool_value: Some(flag), ..Default::default() },
    }
}

/// Whether the event is an end of a slice, and therefore no instant.
pub(super) fn is_edge(kind: EventKind) -> bool {
    use EventKind as K;
    matches!(
        kind,
        K::InterruptTaken
            | K::InterruptReturned
            | K::NmiTaken
            | K::WaitBegan
            | K::WaitEnded
            | K::CallClaimed
            | K::CallRun
            | K::FrameEntered
            | K::FrameLeft
            | K::Halted
            | K::Resumed
            | K::Wedged
    )
}

/// The numbers beside an instant: those that its [`EventKind`] gives a meaning to.
pub(super) fn of_event(event: &Event) -> Values {
    use EventKind as K;
    use Value::{Hexadecimal, Number};
    let mut values = Values::new();
    values.extend(event.other.map(|other| ("other_cpu", Number(other.number().into()))));
    let (detail, argument) = (u64::from(event.detail), event.argument);
    match event.kind {
        K::CallQueued
        | K::CallCompleted
        | K::CallWithdrawn
        | K::CallRefused
        | K::CallLeft
        | K::CallPanicked => values.push(("level", Number(detail))),
        K::ManyQueued => values.extend([("level", Number(detail)), ("targets", Number(argument))]),
        K::Rung | K::StopSent => values.push(("targets", Number(argument))),
        K::RungAgain => values.push(("attempt", Number(detail))),
        K::MarksTaken => values.push(("door", Hexadecimal(argument))),
        K::ProbeAnswered => values.push(("instruction_pointer", Hexadecimal(argument))),
        K::IcrWritten => values.extend([("vector", Hexadecimal(detail)), ("icr", Hexadecimal(argument))]),
        K::IpiSent | K::IpiAccepted | K::IpiMerged | K::IpiLost | K::IpiRejected => {
            values.extend([("vector", Hexadecimal(detail)), ("message", Number(argument))]);
        }
        K::EndOfInterrupt => values.push(("vector", Hexadecimal(detail))),
        K::SoftLockup => values.push(("nanoseconds_without_progress", Number(argument))),
        K::LifeChanged => values.push(("phase", Number(detail))),
        K::RendezvousStage => values.extend([("stage", Number(detail)), ("rendezvous", Number(argument))]),
        K::RendezvousLate => values.push(("stage", Number(detail))),
        K::CrashWon | K::CrashLost | K::CrashedAgain | K::BackTraceTaken => {
            values.push(("instruction_pointer", Hexadecimal(argument)));
        }
        K::CrashSaved => {
            values.extend([("role", Number(detail)), ("instruction_pointer", Hexadecimal(argument))]);
        }
        K::CrashStopped => values.extend([("missing", Number(detail)), ("saved", Number(argument))]),
        K::LockupFound | K::LockupEnded => {
            values.extend([("hard", Value::Flag(detail != 0)), ("nanoseconds", Number(argument))]);
        }
        K::Reset | K::BootCpuSentInit => values.push(("message", Number(argument))),
        K::StartedUp => values.extend([("page", Hexadecimal(detail)), ("message", Number(argument))]),
        K::ImageBooted => values.push(("image", Number(argument))),
        K::Paused => values.push(("until", Number(argument))),
        _ => {}
    }
    values
}

/// What a span is called, and the numbers beside it.
pub(super) fn of_span(span: &Span) -> (String, Values) {
    use Value::{Flag, Number};
    let mut values = Values::new();
    let name = match &span.kind {
        SpanKind::Interrupt { vector, ipi: true, .. } => format!("IPI {vector:#04x}"),
        SpanKind::Interrupt { vector, ipi: false, .. } => format!("interrupt {vector:#04x}"),
        SpanKind::Wait { target, expired, .. } => {
            if !span.looks.is_empty() {
                values.push(("looks", Number(span.looks.len() as u64)));
            }
            values.push(("expired", Flag(*expired)));
            target.map_or_else(|| "wait".to_owned(), |cpu| format!("wait for CPU {cpu}"))
        }
        SpanKind::Closure { caller, panicked } => {
            values.push(("panicked", Flag(*panicked)));
            caller.map_or_else(|| "call".to_owned(), |cpu| format!("call of CPU {cpu}"))
        }
        SpanKind::Wedged => "wedged, interrupts off".to_owned(),
        SpanKind::Stopped => "stopped by the crash dump".to_owned(),
    };
    (name, values)
}
