//! The rows of stateright: the protocol as a hand-written model, one action for each operation.

use std::time::{Duration, Instant};

use stateright::{Checker, Model, Property};

use crate::case::{Case, MOST_CALLS, Target};
use crate::row::{Explored, Outcome, Report};

/// Where a thread is. An operation that is next has its operands here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum At {
    LoadOnline,
    AwaitOnline,
    LoadHead,
    StoreNext {
        old: u8,
    },
    ExchangeHead {
        old: u8,
    },
    Ring,
    AwaitCompletion,
    Done,
    /// The target's own.
    StoreOffline,
    ClearIrr,
    StoreOnline,
    LoadLocked,
    AwaitIrr,
    ClearIrrAndHandle,
    SwapHead,
    LoadNext {
        call: u8,
    },
    StoreLocked {
        call: u8,
        next: u8,
    },
}

/// The senders, the target, and the handler that pre-empts the target.
const THREADS: usize = MOST_CALLS + 1;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    head: u8,
    irr: bool,
    online: bool,
    next: [u8; MOST_CALLS],
    locked: [bool; MOST_CALLS],
    senders: [At; MOST_CALLS],
    target: At,
    /// Of an interrupted target.
    handler: At,
    run: u8,
}

/// Which of the state's threads makes a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Sender(usize),
    Target,
    Handler,
}

struct Protocol(Case);

impl Protocol {
    fn push(state: &mut State, call: usize, at: At) -> At {
        match at {
            At::StoreNext { old } => {
                state.next[call] = old;
                At::ExchangeHead { old }
            }
            At::ExchangeHead { old } if state.head == old => {
                state.head = call as u8 + 1;
                if old == 0 { At::Ring } else { At::AwaitCompletion }
            }
            At::LoadHead | At::ExchangeHead { .. } => At::StoreNext { old: state.head },
            At::Ring => {
                state.irr = true;
                At::AwaitCompletion
            }
            other => unreachable!("not part of a push: {other:?}"),
        }
    }

    fn handle(state: &mut State, at: At, end: impl FnOnce(&State) -> At) -> At {
        let call = match at {
            At::SwapHead => std::mem::take(&mut state.head),
            At::LoadNext { call } => {
                return At::StoreLocked { call, next: state.next[call as usize - 1] };
            }
            At::StoreLocked { call, next } => {
                state.locked[call as usize - 1] = false;
                state.run += 1;
                next
            }
            other => unreachable!("not part of the handler: {other:?}"),
        };
        if call == 0 { end(state) } else { At::LoadNext { call } }
    }

    fn step_sender(&self, state: &mut State, sender: usize) {
        state.senders[sender] = match state.senders[sender] {
            At::LoadOnline => {
                if state.online {
                    At::LoadHead
                } else {
                    At::Done
                }
            }
            At::AwaitOnline => At::LoadHead,
            At::AwaitCompletion => At::Done,
            at => match Self::push(state, sender, at) {
                // The first sender of the offline cases does not wait.
                At::AwaitCompletion if sender == 0 && self.goes_offline() => At::Done,
                at => at,
            },
        };
    }

    fn step_target(&self, state: &mut State) {
        let (calls, target) = (self.0.calls() as u8, self.0.target);
        let own_call = self.0.senders;
        state.target = match state.target {
            At::StoreOffline => {
                state.online = false;
                At::ClearIrr
            }
            At::ClearIrr => {
                state.irr = false;
                At::StoreOnline
            }
            At::StoreOnline => {
                state.online = true;
                if target == (Target::GoesOffline { drains: true }) { At::SwapHead } else { At::LoadLocked }
            }
            At::LoadLocked => {
                if state.locked[1] {
                    At::AwaitIrr
                } else {
                    At::Done
                }
            }
            At::AwaitIrr => At::ClearIrrAndHandle,
            At::ClearIrrAndHandle => {
                state.irr = false;
                At::SwapHead
            }
            at @ (At::SwapHead | At::LoadNext { .. } | At::StoreLocked { .. }) => {
                Self::handle(state, at, |state| match target {
                    Target::GoesOffline { .. } => At::LoadLocked,
                    _ if state.run == calls => At::Done,
                    _ => At::AwaitIrr,
                })
            }
            at => match Self::push(state, own_call, at) {
                At::AwaitCompletion => At::Done,
                at => at,
            },
        };
    }

    fn step_handler(state: &mut State) {
        state.handler = match state.handler {
            At::AwaitIrr => {
                state.irr = false;
                At::SwapHead
            }
            at => Self::handle(state, at, |_| At::AwaitIrr),
        };
    }

    fn goes_offline(&self) -> bool {
        matches!(self.0.target, Target::GoesOffline { .. })
    }

    fn is_interrupted(&self) -> bool {
        self.0.target == Target::IsInterrupted
    }

    fn is_finished(&self, state: &State) -> bool {
        state.target == At::Done
            && state.senders[..self.0.senders].iter().all(|&at| at == At::Done)
            && (!self.is_interrupted() || usize::from(state.run) == self.0.calls())
    }

    fn for_each_enabled(&self, state: &State, mut enabled: impl FnMut(Step)) {
        for (sender, &at) in state.senders[..self.0.senders].iter().enumerate() {
            let can_move = match at {
                At::AwaitOnline => state.online,
                At::AwaitCompletion => !state.locked[sender],
                At::Done => false,
                _ => true,
            };
            if can_move {
                enabled(Step::Sender(sender));
            }
        }
        if self.is_interrupted() {
            let pending = state.handler == At::AwaitIrr;
            if !pending || state.irr {
                enabled(Step::Handler);
            }
            if pending && state.target != At::Done {
                enabled(Step::Target);
            }
        } else if state.target != At::Done && (state.target != At::AwaitIrr || state.irr) {
            enabled(Step::Target);
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let offline = self.goes_offline();
        let mut senders = [if offline { At::AwaitOnline } else { At::LoadHead }; MOST_CALLS];
        if offline {
            senders[0] = At::LoadOnline;
        }
        let target = match self.0.target {
            Target::Polls => At::AwaitIrr,
            Target::IsInterrupted => At::LoadHead,
            Target::GoesOffline { .. } => At::StoreOffline,
        };
        vec![State {
            head: 0,
            irr: false,
            online: true,
            next: [0; MOST_CALLS],
            locked: [true; MOST_CALLS],
            senders,
            target,
            handler: At::AwaitIrr,
            run: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Step>) {
        actions.reserve(THREADS);
        self.for_each_enabled(state, |step| actions.push(step));
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match step {
            Step::Sender(sender) => self.step_sender(&mut state, sender),
            Step::Target => self.step_target(&mut state),
            Step::Handler => Self::step_handler(&mut state),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("somebody can move until all calls have run", |model: &Self, state| {
            let mut stuck = true;
            model.for_each_enabled(state, |_| stuck = false);
            !stuck || model.is_finished(state)
        })]
    }
}

fn report(checker: &impl Checker<Protocol>, start: Instant, limit: Duration) -> Report {
    let states = checker.unique_state_count() as u64;
    let outcome = match checker.discoveries().into_iter().next() {
        Some((name, path)) => {
            Outcome::Found(format!("not always: {name} ({} steps)", path.into_actions().len()))
        }
        None if start.elapsed() >= limit => Outcome::Unfinished(limit.as_secs_f64()),
        None => Outcome::Ok,
    };
    Report::new(Explored::States(states), outcome)
}

pub(crate) fn breadth_first(case: Case, limit: Duration) -> Report {
    let start = Instant::now();
    let checker = Protocol(case).checker().threads(1).timeout(limit).spawn_bfs().join();
    report(&checker, start, limit)
}

pub(crate) fn depth_first(case: Case, limit: Duration) -> Report {
    let start = Instant::now();
    let checker = Protocol(case).checker().threads(1).timeout(limit).spawn_dfs().join();
    report(&checker, start, limit)
}
