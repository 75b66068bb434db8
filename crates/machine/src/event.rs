//! The fixed binary format of everything that is traced: by the protocol, by a machine, by the simulator.
//!
//! One event is 32 bytes, little-endian, so that a dump can be read anywhere:
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | time, nanoseconds of the machine's clock |
//! | 8..10 | kind ([`EventKind`]) |
//! | 10..12 | zero; in event rings a sequence number, see there |
//! | 12..16 | the CPU it happened on |
//! | 16..20 | the other CPU, or `u32::MAX` if there is none |
//! | 20..24 | detail: a vector, a call level, an attempt (see the kind) |
//! | 24..32 | argument (see the kind) |

use crate::{Cpu, Instant};

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal,)+) => {
        /// What happened. The numbers are the format: they never change meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        #[non_exhaustive]
        pub enum EventKind { $($(#[doc = $doc])+ $name = $code,)+ }

        impl TryFrom<u16> for EventKind {
            type Error = UnknownEventKind;
            fn try_from(code: u16) -> Result<Self, UnknownEventKind> {
                match code { $($code => Ok(Self::$name),)+ other => Err(UnknownEventKind(other)) }
            }
        }
    };
}

kinds! {
    /// A call was put into its slot. Other: the target. Detail: the call level.
    CallQueued = 1,
    /// A target claimed a call and is about to run it. Other: the caller. Detail: the call level.
    CallClaimed = 2,
    /// The target has run it. Other: the caller. Detail: the call level.
    CallRun = 3,
    /// The caller saw that its call was run. Other: the target (none: all of a call to many). Detail: level.
    CallCompleted = 4,
    /// The caller gave up an unclaimed call: it will never run. Other: the target. Detail: level.
    CallWithdrawn = 5,
    /// A call was refused because its target is offline. Other: the target. Detail: level.
    CallRefused = 6,
    /// A deadline passed while the call was claimed: the wait goes on (law L4). Other: the target.
    CallOverdue = 7,
    /// The caller left a claimed `'static` call behind. Other: the target. Detail: level.
    CallLeft = 8,
    /// The closure of a call panicked on its target. Other: the caller. Detail: level.
    CallPanicked = 9,
    /// A call to many was put into its slot. Detail: level. Argument: how many targets.
    ManyQueued = 10,
    /// The first ring into a quiet mailbox. Other: the target (none: several). Argument: how many targets.
    Rung = 16,
    /// An unanswered ring was repeated. Other: the target. Detail: the attempt, from 1; 0: by the backstop.
    RungAgain = 17,
    /// A ring could not be sent. Other: the target (none: several).
    RingFailed = 18,
    /// A serve pass took marks from the mailbox. Argument: the door word.
    MarksTaken = 19,
    /// A serve pass ended by its budget with marks left.
    BudgetSpent = 20,
    /// An NMI was sent to find out about an unresponsive target. Other: the target.
    ProbeSent = 21,
    /// The CPU answered a probe. Argument: the instruction pointer.
    ProbeAnswered = 22,
    /// A post was queued. Other: the target.
    PostQueued = 24,
    /// A post was already queued: the two became one. Other: the target.
    PostMerged = 25,
    /// A post is about to be run.
    PostRun = 26,
    /// A reschedule request was taken.
    Rescheduled = 27,
    /// A piece of deferred work is about to be run.
    WorkRun = 28,
    /// A post or deferred work of a CPU that will not run it was taken over. Other: that CPU.
    PostAbandoned = 29,
    /// The CPU opened its mailbox.
    MailboxOpened = 32,
    /// The CPU closed its mailbox.
    MailboxClosed = 33,
    /// A CPU's life between offline and online went on. Other: the CPU, if not the one that writes this. Detail: the phase.
    LifeChanged = 34,
    /// A rendezvous came to a stage. Detail: 2 interrupts off, 3 run, 4 exit, 5 given up. Argument: its number.
    RendezvousStage = 44,
    /// A CPU was late for a stage, and the rendezvous was given up. Other: that CPU. Detail: the stage, 1 prepare.
    RendezvousLate = 45,
    /// The CPU has crashed and won: it stops the others. Argument: the instruction pointer of the crash.
    CrashWon = 48,
    /// The CPU has crashed, and another one had before. Other: that one. Argument: the instruction pointer of the crash.
    CrashLost = 49,
    /// The winner has crashed inside of its crash stop. Argument: the instruction pointer of that.
    CrashedAgain = 50,
    /// The CPU has saved its registers. Detail: 0 as the winner, 1 stopped by it, 2 as a loser. Argument: instruction pointer.
    CrashSaved = 51,
    /// The winner sends an NMI to all that have not saved. Argument: how many.
    StopSent = 52,
    /// The winner has not seen a CPU save itself. Other: that CPU.
    CrashMissing = 53,
    /// The crash stop has ended. Detail: how many CPUs are missing. Argument: how many have saved.
    CrashStopped = 54,
    /// A lockup was found. Other: where. Detail: 0 soft, 1 hard. Argument: for how long, in nanoseconds.
    LockupFound = 55,
    /// A lockup of this CPU that was found has ended. Detail: 0 soft, 1 hard. Argument: after how long, in nanoseconds.
    LockupEnded = 56,
    /// An NMI was sent to have a CPU take its back trace. Other: the CPU.
    BackTraceSent = 57,
    /// The CPU has taken its back trace. Argument: the instruction pointer.
    BackTraceTaken = 58,
    /// Hardware: an ICR write was accepted for dispatch. Other: the target, if one. Detail: the vector. Argument: ICR.
    IcrWritten = 64,
    /// Hardware: an interrupt message left for one target. Other: the target. Detail: vector. Argument: message number.
    IpiSent = 65,
    /// Hardware: the target's APIC accepted the message. Other: the sender. Detail: vector. Argument: message number.
    IpiAccepted = 66,
    /// Hardware: the message merged with one that was pending. Other: the sender. Detail: vector. Argument: number.
    IpiMerged = 67,
    /// A fault: the message was lost. CPU: the sender. Other: the target. Detail: vector. Argument: message number.
    IpiLost = 68,
    /// Hardware: the message was not accepted (APIC disabled, illegal vector). Other: the sender. Argument: number.
    IpiRejected = 69,
    /// Hardware: the CPU took an interrupt. Detail: the vector.
    InterruptTaken = 72,
    /// Hardware: end of interrupt. Detail: the vector whose in-service bit was cleared; 0 if there was none.
    EndOfInterrupt = 73,
    /// Hardware: the CPU took an NMI.
    NmiTaken = 74,
    /// Hardware: the interrupt handler returned. Detail: the vector.
    InterruptReturned = 75,
    /// Hardware: INIT has reset the CPU; it waits for a start-up message. Other: the sender. Argument: message number.
    Reset = 76,
    /// Hardware: a start-up message has started the CPU. Other: the sender. Detail: the page. Argument: message number.
    StartedUp = 77,
    /// A mistake: the boot CPU was sent INIT, which would restart the machine. Other: the sender. Argument: number.
    BootCpuSentInit = 78,
    /// The CPU goes on in another kernel image. Argument: the image's number.
    ImageBooted = 79,
    /// The CPU began to wait. Other: whom for, if known.
    WaitBegan = 80,
    /// The wait ended. Argument: 0 a condition held, 1 the deadline passed.
    WaitEnded = 81,
    /// The CPU halted.
    Halted = 82,
    /// The CPU woke from halt.
    Resumed = 83,
    /// The program entered a named frame. Argument: the frame's number in the trace's name table.
    FrameEntered = 84,
    /// The program left the innermost named frame.
    FrameLeft = 85,
    /// A fault: the CPU is wedged (interrupts off) from now on. Argument: until when, or `u64::MAX`.
    Wedged = 88,
    /// A fault: the whole machine makes no step from now on, this CPU included. Argument: until when.
    Paused = 89,
    /// The soft-lockup check of the timer interrupt fired. Argument: nanoseconds without progress.
    SoftLockup = 90,
    /// A crash dump was started.
    DumpStarted = 91,
    /// The CPU's program ended.
    ProgramEnded = 92,
}

/// No event kind has this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownEventKind(pub u16);

impl core::fmt::Display for UnknownEventKind {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "no event kind has the number {}", self.0)
    }
}

impl core::error::Error for UnknownEventKind {}

/// One traced event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// When, on the clock of the CPU it happened on.
    pub time: Instant,
    /// What.
    pub kind: EventKind,
    /// Where.
    pub cpu: Cpu,
    /// The other CPU, if the kind has one.
    pub other: Option<Cpu>,
    /// See the kind.
    pub detail: u32,
    /// See the kind.
    pub argument: u64,
}

impl Event {
    /// The size of one encoded event.
    pub const BYTES: usize = 32;

    /// The event as the four words of the format.
    pub const fn to_words(self) -> [u64; 4] {
        let other = match self.other {
            Some(cpu) => cpu.number(),
            None => u32::MAX,
        };
        [
            self.time.as_nanos(),
            self.kind as u64 | (self.cpu.number() as u64) << 32,
            other as u64 | (self.detail as u64) << 32,
            self.argument,
        ]
    }

    /// The event from the four words of the format.
    ///
    /// # Errors
    /// If the kind is unknown.
    pub fn from_words(words: [u64; 4]) -> Result<Self, UnknownEventKind> {
        let other = words[2] as u32;
        Ok(Self {
            time: Instant::from_nanos(words[0]),
            kind: EventKind::try_from(words[1] as u16)?,
            cpu: Cpu::new((words[1] >> 32) as u32),
            other: (other != u32::MAX).then_some(Cpu::new(other)),
            detail: (words[2] >> 32) as u32,
            argument: words[3],
        })
    }

    /// The event as it stands in memory and in files.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(self.to_words()) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The event from memory or a file.
    ///
    /// # Errors
    /// If the kind is unknown.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Result<Self, UnknownEventKind> {
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            let mut value = [0; 8];
            value.copy_from_slice(chunk);
            *word = u64::from_le_bytes(value);
        }
        Self::from_words(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_unknown_kind_is_an_error_and_not_a_panic() {
        assert_eq!(Event::from_bytes(&[0xff; 32]), Err(UnknownEventKind(0xffff)));
    }

    proptest! {
        #[test]
        fn an_event_survives_its_encoding(
            time: u64, cpu: u32, other in prop::option::of(0..u32::MAX), detail: u32, argument: u64
        ) {
            let event = Event {
                time: Instant::from_nanos(time),
                kind: EventKind::RungAgain,
                cpu: Cpu::new(cpu),
                other: other.map(Cpu::new),
                detail,
                argument,
            };
            prop_assert_eq!(Event::from_bytes(&event.to_bytes()), Ok(event));
        }
    }
}
