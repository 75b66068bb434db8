//! The memory of mailboxes, which want `'static` references: leased to one machine at a time, from a pool and back to it.

use std::sync::{Mutex, PoisonError};

use smpcall::machine::Word;
use smpcall::{EventSlot, Mailbox, Mailboxes};

use crate::Host;

/// Events that each CPU's own ring holds.
const EVENTS_PER_CPU: usize = 64;

static POOL: Mutex<Vec<&'static Mailboxes<Host>>> = Mutex::new(Vec::new());

/// Closed and empty mailboxes that nobody else has.
pub(crate) struct Lease {
    mailboxes: &'static Mailboxes<Host>,
}

impl Lease {
    pub(crate) fn new(cpus: usize) -> Self {
        let pooled = {
            let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
            let at = pool.iter().position(|mailboxes| mailboxes.cpu_count() == cpus);
            at.map(|at| pool.swap_remove(at))
        };
        let mailboxes = pooled.unwrap_or_else(|| {
            let boxes: &'static [_] = Box::leak((0..cpus).map(|_| Mailbox::NEW).collect());
            let words = (0..Mailboxes::<Host>::words_needed(cpus)).map(|_| Word::new(0));
            let events = (0..cpus * EVENTS_PER_CPU).map(|_| EventSlot::NEW);
            let (words, events) = (Box::leak(words.collect()), Box::leak(events.collect()));
            Box::leak(Box::new(Mailboxes::new(boxes, words, events)))
        });
        Self { mailboxes }
    }

    pub(crate) fn mailboxes(&self) -> &'static Mailboxes<Host> {
        self.mailboxes
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // SAFETY: the threads that were the machine's CPUs have been joined, after each had closed its mailbox: no call or
        // post is under way.
        unsafe { self.mailboxes.reset() };
        POOL.lock().unwrap_or_else(PoisonError::into_inner).push(self.mailboxes);
    }
}
