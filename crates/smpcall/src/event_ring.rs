//! A CPU's last events, in the fixed format of [`Event`], in memory that a crash dump holds.
//!
//! One writer, the CPU itself with interrupts off (and its NMI handler); any number of readers at any time. In the
//! ring, bytes 10..12 of an event hold the low 15 bits of its number, and a one: written last, cleared first, so
//! that a reader never takes a half-written event for a whole one. An NMI that hits between the two
//! instructions that take a number overwrites one event.

use core::sync::atomic::{AtomicU64, Ordering};

use smpcall_machine::{Counter, Event};

/// The place of one event.
pub struct EventSlot([AtomicU64; 4]);

impl EventSlot {
    /// An empty place.
    pub const NEW: Self = Self([const { AtomicU64::new(0) }; 4]);
}

/// The event ring of one CPU.
#[derive(Clone, Copy)]
pub struct EventRing<'a> {
    slots: &'a [EventSlot],
    next: &'a Counter,
}

const SEQUENCE: u64 = 0xffff << 16;

const fn sequence_of(number: u64) -> u64 {
    // Odd, so that an empty slot matches no number.
    ((number << 1 | 1) & 0xffff) << 16
}

impl<'a> EventRing<'a> {
    /// How many events a ring can hold, so that two events of one place never have the same sequence number.
    pub(crate) const LONGEST: usize = 1 << 14;

    pub(crate) fn new(slots: &'a [EventSlot], next: &'a Counter) -> Self {
        Self { slots, next }
    }

    #[inline]
    pub(crate) fn push(&self, event: Event) {
        let number = self.next.get();
        self.next.set(number + 1);
        let slot = &self.slots[number as usize & (self.slots.len() - 1)].0;
        let [time, kind, other, argument] = event.to_words();
        // Release keeps each store behind the ones before it: a reader that sees new data sees the sequence
        // cleared, and one that sees the new sequence sees all the data.
        slot[1].store(0, Ordering::Relaxed);
        slot[0].store(time, Ordering::Release);
        slot[2].store(other, Ordering::Release);
        slot[3].store(argument, Ordering::Release);
        slot[1].store(kind | sequence_of(number), Ordering::Release);
    }

    /// How many events were ever written.
    pub fn written(&self) -> u64 {
        self.next.get()
    }

    /// The last events, oldest first. Those that are overwritten while this runs are left out.
    pub fn events(&self) -> impl Iterator<Item = Event> + 'a {
        let (slots, written) = (self.slots, self.written());
        (written.saturating_sub(slots.len() as u64)..written).filter_map(move |number| {
            let slot = &slots[number as usize & (slots.len() - 1)].0;
            let kind = slot[1].load(Ordering::Acquire);
            // Acquire keeps the second look at the sequence behind the data.
            let words = [
                slot[0].load(Ordering::Acquire),
                kind & !SEQUENCE,
                slot[2].load(Ordering::Acquire),
                slot[3].load(Ordering::Acquire),
            ];
            let whole = kind & SEQUENCE == sequence_of(number) && slot[1].load(Ordering::Relaxed) == kind;
            Event::from_words(words).ok().filter(|_| whole)
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use smpcall_machine::{Cpu, EventKind, Instant};
    use std::vec::Vec;

    fn event(time: u64) -> Event {
        Event {
            time: Instant::from_nanos(time),
            kind: EventKind::Rung,
            cpu: Cpu::new(1),
            other: None,
            detail: 7,
            argument: time * 3,
        }
    }

    #[test]
    fn the_ring_keeps_the_last_events_in_order() {
        let slots = [const { EventSlot::NEW }; 4];
        let next = Counter::new(0);
        let ring = EventRing::new(&slots, &next);
        assert_eq!(ring.events().count(), 0);
        for time in 0..10 {
            ring.push(event(time));
        }
        assert_eq!(ring.written(), 10);
        assert_eq!(ring.events().collect::<Vec<_>>(), (6..10).map(event).collect::<Vec<_>>());
    }

    #[test]
    fn a_half_written_event_is_left_out() {
        let slots = [const { EventSlot::NEW }; 2];
        let next = Counter::new(0);
        let ring = EventRing::new(&slots, &next);
        ring.push(event(1));
        next.set(2);
        assert_eq!(ring.events().collect::<Vec<_>>(), [event(1)]);
    }
}
