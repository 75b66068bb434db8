//! What a scenario writes down about an execution, to check it at the end.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::explorer::footprint::Use;
use crate::hash::absorb;
use crate::state::{Driver, Phase, State, current};

/// A number that programs keep beside the code that is explored: how often something ran, what a caller was told.
///
/// It is part of the state, put back before each execution, and no operation: nothing can come between it and the
/// operation before it. Shared with [`Scenario::share`](super::scenario::Scenario::share), like everything that
/// outlives an execution.
#[derive(Default)]
pub struct Note(AtomicU64);

impl Note {
    /// A note with this initial value.
    pub const fn new(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }

    /// The value. Who runs on a CPU has learned it.
    pub fn get(&self) -> u64 {
        self.used(Use::Read);
        self.0.load(Relaxed)
    }

    /// Replaces the value.
    pub fn set(&self, value: u64) {
        self.used(Use::Write);
        self.change(value);
    }

    /// Adds to the value, without learning it.
    pub fn add(&self, value: u64) {
        self.used(Use::Raise);
        self.change(self.0.load(Relaxed).wrapping_add(value));
    }

    fn change(&self, value: u64) {
        let old = self.0.swap(value, Relaxed);
        on_a_stepped_cpu(|machine| machine.explored.note(self.0.as_ptr().addr(), old, value));
    }

    fn used(&self, how: Use) {
        on_a_stepped_cpu(|machine| {
            let slot = machine.explored.places.slot(self.0.as_ptr().addr());
            machine.explored.footprint.add(machine.explored.places.all[slot as usize].place, how);
            if how == Use::Read {
                let value = self.0.load(Relaxed);
                let processor = machine.cpu();
                processor.history = absorb(processor.history, value);
            }
        });
    }
}

fn on_a_stepped_cpu(use_it: impl FnOnce(&mut State)) {
    let Some(state) = current() else { return };
    state.with(|machine| {
        if machine.phase == Phase::Running && machine.driver == Driver::Stepped {
            use_it(machine);
        }
    });
}
