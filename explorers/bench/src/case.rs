//! The cases of the small protocol: who sends, and what the target does.
//!
//! A lock-free list per CPU; a sender rings only if the list was empty; a synchronous caller waits until its flag
//! clears. Every tool counts the same operations, one line each, plain data not counted:
//!
//! * `push(i)`: load `head`; then loop { store `next[i]` := old; compare-exchange `head` old -> i + 1 }.
//!   `ring`, if old was 0: store `irr` := 1.
//! * `call_async(i)`: push, ring if due. `call_sync(i)`: `call_async(i)`, then await `locked[i]` = 0.
//! * `handler`: swap `head` -> 0; for each call found: load `next`, store `locked` := 0.

/// What the target of a case does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Until all calls have run: await `irr` != 0; store `irr` := 0; handler.
    Polls,
    /// `call_async` of a call of its own, then halts. Its handler may pre-empt it between any two operations
    /// whenever `irr` is set; taking the interrupt clears `irr`.
    IsInterrupted,
    /// Goes offline and comes back: store `online` := 0; store `irr` := 0; store `online` := 1; the handler, if it
    /// drains; then until `locked[1]` = 0: load `locked[1]`; await `irr` != 0; store `irr` := 0; handler. Sender 1:
    /// load `online`, and if set `call_async(0)`; sender 2: await `online` != 0, `call_sync(1)`.
    GoesOffline {
        /// Whether it looks at its list when it is back: without, a call can be lost.
        drains: bool,
    },
}

/// One case.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) senders: usize,
    pub(crate) target: Target,
}

impl Case {
    /// How many calls there are: one a sender, and the target's own.
    pub(crate) fn calls(&self) -> usize {
        self.senders + usize::from(self.target == Target::IsInterrupted)
    }

    /// Whether a call can be lost.
    pub(crate) fn is_faulty(&self) -> bool {
        self.target == Target::GoesOffline { drains: false }
    }
}

/// The largest number of calls of a case.
pub(crate) const MOST_CALLS: usize = 5;

const fn case(name: &'static str, senders: usize, target: Target) -> Case {
    Case { name, senders, target }
}

/// All cases, in the order of the table.
pub(crate) const ALL: &[Case] = &[
    case("ok2", 2, Target::Polls),
    case("ok3", 3, Target::Polls),
    case("ok4", 4, Target::Polls),
    case("irq2", 2, Target::IsInterrupted),
    case("irq3", 3, Target::IsInterrupted),
    case("irq4", 4, Target::IsInterrupted),
    case("bug", 2, Target::GoesOffline { drains: false }),
    case("fix", 2, Target::GoesOffline { drains: true }),
];

/// The case of this name.
pub(crate) fn named(name: &str) -> Option<Case> {
    ALL.iter().copied().find(|case| case.name == name)
}
