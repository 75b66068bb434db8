//! A CPU's last events, in the fixed format of [`Event`], in memory that a crash dump holds.
//!
//! One writer, the CPU itself with interrupts off (and its NMI handler); any number of readers at any time. In the
//! ring, bytes 10..12 of an event hold the low 15 bits of its number, and a one, written last; the number of the next
//! event is written first. So a reader never takes a half-written event for a whole one: until its end an event has the
//! number of the one that it replaces, and that one is out of the ring as soon as the next number says so. An NMI that
//! hits between the two instructions that take a number overwrites one event.

use core::sync::atomic::{AtomicU64, Ordering};

use smpcall_machine::{Counter, Event};

/// The place of one event.
#[repr(transparent)]
pub struct EventSlot([AtomicU64; 4]);

impl EventSlot {
    /// The distance of two places.
    pub(crate) const BYTES: u64 = size_of::<Self>() as u64;

    /// An empty place.
    pub const NEW: Self = Self([const { AtomicU64::new(0) }; 4]);

    /// Writes the event that ends, in a ring without an end, this many bytes before the end of the next one.
    #[inline(always)]
    pub(crate) fn write(&self, event: Event, bytes_before: u64) {
        let [time, kind, other, argument] = event.to_words();
        // Release keeps each store behind the ones before it: a reader that sees new data sees the next number, and one
        // that sees the new sequence sees all the data.
        self.0[0].store(time, Ordering::Release);
        self.0[2].store(other, Ordering::Release);
        self.0[3].store(argument, Ordering::Release);
        self.0[1].store(kind | sequence_after(bytes_before), Ordering::Release);
    }

    /// Empties it. Nobody writes it meanwhile.
    pub(crate) fn clear(&self) {
        self.0[1].store(0, Ordering::Relaxed);
    }
}

/// The event ring of one CPU.
#[derive(Clone, Copy)]
pub struct EventRing<'a> {
    slots: &'a [EventSlot],
    /// The bytes of all events that were ever written: what is added for one is the distance of two places, so that the
    /// place of the next is found without a multiplication.
    bytes: &'a Counter,
}

const SEQUENCE: u64 = 0xffff << 16;

/// The sequence number of an event, from the bytes of all events before it.
const fn sequence_after(bytes: u64) -> u64 {
    // Odd, so that an empty slot matches no number. As 32 bits, so that it is one shift.
    ((bytes as u32) << (17 - EventSlot::BYTES.trailing_zeros())) as u64 | 1 << 16
}

impl<'a> EventRing<'a> {
    /// How many events a ring can hold, so that two events of one place never have the same sequence number.
    pub(crate) const LONGEST: usize = 1 << 14;

    /// The slots are a power of two in number, or none.
    pub(crate) fn new(slots: &'a [EventSlot], bytes: &'a Counter) -> Self {
        Self { slots, bytes }
    }

    /// How many events were ever written.
    pub fn written(&self) -> u64 {
        self.bytes.get() / EventSlot::BYTES
    }

    /// The last events, oldest first. Those that are overwritten while this runs are left out.
    pub fn events(&self) -> impl Iterator<Item = Event> + 'a {
        let Self { slots, .. } = *self;
        let ring = *self;
        let written = ring.written();
        (written.saturating_sub(slots.len() as u64)..written).filter_map(move |number| {
            let slot = &slots[number as usize & (slots.len() - 1)].0;
            let kind = slot[1].load(Ordering::Acquire);
            // Acquire keeps the second look at the number behind the data.
            let words = [
                slot[0].load(Ordering::Acquire),
                kind & !SEQUENCE,
                slot[2].load(Ordering::Acquire),
                slot[3].load(Ordering::Acquire),
            ];
            let is_this = kind & SEQUENCE == sequence_after(number * EventSlot::BYTES);
            let is_replaced = ring.written() > number + slots.len() as u64;
            let whole = is_this && !is_replaced;
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

    /// As the ring's CPU does.
    fn push(ring: &EventRing<'_>, event: Event) {
        let bytes = ring.bytes.get();
        ring.bytes.set(bytes + EventSlot::BYTES);
        ring.slots[(ring.written() as usize - 1) & (ring.slots.len() - 1)].write(event, bytes);
    }

    #[test]
    fn the_ring_keeps_the_last_events_in_order() {
        let slots = [const { EventSlot::NEW }; 4];
        let bytes = Counter::new(0);
        let ring = EventRing::new(&slots, &bytes);
        assert_eq!(ring.events().count(), 0);
        for time in 0..10 {
            push(&ring, event(time));
        }
        assert_eq!(ring.written(), 10);
        assert_eq!(ring.events().collect::<Vec<_>>(), (6..10).map(event).collect::<Vec<_>>());
    }

    #[test]
    fn a_half_written_event_is_left_out() {
        let slots = [const { EventSlot::NEW }; 2];
        let bytes = Counter::new(0);
        let ring = EventRing::new(&slots, &bytes);
        push(&ring, event(1));
        bytes.set(2 * EventSlot::BYTES);
        assert_eq!(ring.events().collect::<Vec<_>>(), [event(1)]);
    }
}
