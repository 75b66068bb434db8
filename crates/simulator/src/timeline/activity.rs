//! What a trace is made of for the reader: messages from sending to fate, spans from begin to end, and single marks.

use std::collections::BTreeMap;

use smpcall_machine::EventKind;

/// What became of an IPI; times in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Accepted(u64),
    Merged(u64),
    Lost(u64),
    Rejected(u64),
    OnItsWay,
}

/// One IPI to one target.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) number: u64,
    pub(crate) from: u32,
    pub(crate) to: u32,
    pub(crate) vector: u32,
    /// The delivery mode, as in the ICR; 0 if it is not known.
    pub(crate) mode: u64,
    /// Delivered as an NMI: the vector means nothing.
    pub(crate) nmi: bool,
    /// `None`: the trace begins after the sending.
    pub(crate) sent: Option<u64>,
    pub(crate) fate: Fate,
    /// The attempt, if this is a repeated ring.
    pub(crate) again: Option<u32>,
    /// When the ring was repeated that arrived although this one did not.
    pub(crate) mended: Option<u64>,
}

impl Message {
    /// What is sent, for people.
    pub(crate) fn what(&self) -> String {
        match self.mode {
            _ if self.nmi => "NMI".into(),
            0b101 => "INIT".into(),
            0b110 => "start-up".into(),
            _ => format!("{:#04x}", self.vector),
        }
    }

    /// The first time known of it.
    pub(crate) fn begin(&self) -> u64 {
        self.sent.or(self.end()).unwrap_or_default()
    }

    /// The last time known of it.
    pub(crate) fn end(&self) -> Option<u64> {
        match self.fate {
            Fate::Accepted(at) | Fate::Merged(at) | Fate::Lost(at) | Fate::Rejected(at) => Some(at),
            Fate::OnItsWay => None,
        }
    }
}

/// What a CPU does for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SpanKind {
    /// An interrupt handler; `ipi` if the vector is one that IPIs of this trace carry.
    Interrupt {
        vector: u32,
        ipi: bool,
        /// When its handler wrote its end of interrupt.
        ended: Option<u64>,
    },
    /// A wait, for a certain CPU if known, in a named frame if known.
    Wait { target: Option<u32>, frame: Option<String>, expired: bool },
    /// The closure of a call.
    Closure { caller: Option<u32>, panicked: bool },
    /// The CPU is wedged with interrupts off.
    Wedged,
    /// A wait in a handler that a crash dump made the CPU enter: it stands still on purpose.
    Stopped,
}

/// Something that lasts on one CPU.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) cpu: u32,
    pub(crate) kind: SpanKind,
    pub(crate) begin: u64,
    /// `None`: it still lasted when the trace ended.
    pub(crate) end: Option<u64>,
    /// How many spans of the same sort enclose it.
    pub(crate) depth: u32,
    /// When a wait was interrupted by a look at what it waits for, to be continued.
    pub(crate) looks: Vec<u64>,
    /// Nothing came of it: an interrupt that is no IPI and led to nothing that is traced (a tick), or a wait that
    /// was over before an IPI could have arrived.
    pub(crate) routine: bool,
}

/// Something that happens at one moment on one CPU.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    pub(crate) cpu: u32,
    pub(crate) other: Option<u32>,
    pub(crate) time: u64,
    /// [`EndOfInterrupt`](EventKind::EndOfInterrupt): one that is not of the handler that wrote it. Its `argument` is the
    /// vector whose handler lost its in-service bit; 0 if nothing was in service.
    /// [`InterruptTaken`](EventKind::InterruptTaken): one that was let in by such a loss. Its `argument` is its vector.
    pub(crate) kind: EventKind,
    pub(crate) argument: u64,
    pub(crate) detail: u32,
    /// The innermost named frame at that moment.
    pub(crate) frame: Option<String>,
}

/// A whole trace, paired up.
#[derive(Default)]
pub(crate) struct Activity {
    pub(crate) messages: Vec<Message>,
    pub(crate) spans: Vec<Span>,
    pub(crate) marks: Vec<Mark>,
    /// Kinds that have no glyph, and how often they occurred.
    pub(crate) without_glyph: BTreeMap<EventKind, usize>,
    /// Events on or about CPUs that the machine does not have.
    pub(crate) beyond: usize,
    /// How long an IPI takes from sending to acceptance, in the middle; nanoseconds, 0 if none was accepted.
    pub(crate) latency: u64,
    pub(crate) first: u64,
    pub(crate) last: u64,
}
