//! The order of events in virtual time: a heap in which each event source has one slot that can be moved.
//!
//! A CPU that waits with a deadline and is woken earlier has its one entry moved, so nothing stale piles up
//! however many waits there are. Events of the same time come in the order in which they were set.

const ABSENT: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Entry {
    time: u64,
    sequence: u64,
    slot: u32,
}

impl Entry {
    const fn key(self) -> u128 {
        (self.time as u128) << 64 | self.sequence as u128
    }
}

/// A binary heap of slots keyed by time, with the position of each slot.
#[derive(Default)]
pub(crate) struct EventQueue {
    heap: Vec<Entry>,
    position: Vec<u32>,
    sequence: u64,
}

impl EventQueue {
    /// A queue with this many slots, all unset.
    pub(crate) fn new(slots: usize) -> Self {
        Self { heap: Vec::with_capacity(slots), position: vec![ABSENT; slots], sequence: 0 }
    }

    /// Adds a slot and returns its number.
    pub(crate) fn add_slot(&mut self) -> u32 {
        self.position.push(ABSENT);
        self.position.len() as u32 - 1
    }

    /// How many slots there are.
    pub(crate) fn slots(&self) -> u32 {
        self.position.len() as u32
    }

    /// The earliest event.
    #[inline]
    pub(crate) fn first(&self) -> Option<(u64, u32)> {
        self.heap.first().map(|entry| (entry.time, entry.slot))
    }

    /// The time of the earliest event; the end of time if there is none.
    #[inline]
    pub(crate) fn first_time(&self) -> u64 {
        self.heap.first().map_or(u64::MAX, |entry| entry.time)
    }

    /// The time that a slot is set to.
    pub(crate) fn time_of(&self, slot: u32) -> Option<u64> {
        let position = self.position[slot as usize];
        (position != ABSENT).then(|| self.heap[position as usize].time)
    }

    /// Sets a slot to a time, replacing the one it had.
    pub(crate) fn set(&mut self, slot: u32, time: u64) {
        self.sequence += 1;
        let entry = Entry { time, sequence: self.sequence, slot };
        let position = self.position[slot as usize];
        if position == ABSENT {
            self.heap.push(entry);
            self.up(self.heap.len() - 1, entry);
        } else {
            self.replace(position as usize, entry);
        }
    }

    /// Unsets a slot; nothing happens if it is not set.
    pub(crate) fn cancel(&mut self, slot: u32) {
        let position = self.position[slot as usize];
        if position != ABSENT {
            self.remove(position as usize);
        }
    }

    /// Takes the earliest event.
    pub(crate) fn pop(&mut self) -> Option<(u64, u32)> {
        let first = *self.heap.first()?;
        self.remove(0);
        Some((first.time, first.slot))
    }

    /// Takes the earliest event, which is earlier than `time`, and sets a slot to that: as [`set`](Self::set) and then
    /// [`pop`](Self::pop), in one way down from the top, where what is set soon comes to a rest.
    pub(crate) fn set_and_pop(&mut self, slot: u32, time: u64) -> Option<(u64, u32)> {
        debug_assert!(time > self.first_time(), "what is set is not the first");
        if self.heap.is_empty() || self.position[slot as usize] != ABSENT {
            self.set(slot, time);
            return self.pop();
        }
        let first = self.heap[0];
        self.position[first.slot as usize] = ABSENT;
        self.sequence += 1;
        self.down(0, Entry { time, sequence: self.sequence, slot });
        Some((first.time, first.slot))
    }

    fn remove(&mut self, at: usize) {
        self.position[self.heap[at].slot as usize] = ABSENT;
        let Some(last) = self.heap.pop() else { return };
        if at < self.heap.len() {
            self.replace(at, last);
        }
    }

    /// Puts an entry where another one was, and from there where it belongs.
    fn replace(&mut self, at: usize, entry: Entry) {
        if at > 0 && entry.key() < self.heap[(at - 1) / 2].key() {
            self.up(at, entry);
        } else {
            self.down(at, entry);
        }
    }

    fn up(&mut self, mut at: usize, entry: Entry) {
        while at > 0 {
            let parent = (at - 1) / 2;
            if self.heap[parent].key() <= entry.key() {
                break;
            }
            self.place(at, self.heap[parent]);
            at = parent;
        }
        self.place(at, entry);
    }

    fn down(&mut self, mut at: usize, entry: Entry) {
        loop {
            let mut child = 2 * at + 1;
            if child >= self.heap.len() {
                break;
            }
            if child + 1 < self.heap.len() && self.heap[child + 1].key() < self.heap[child].key() {
                child += 1;
            }
            if entry.key() <= self.heap[child].key() {
                break;
            }
            self.place(at, self.heap[child]);
            at = child;
        }
        self.place(at, entry);
    }

    fn place(&mut self, at: usize, entry: Entry) {
        self.heap[at] = entry;
        self.position[entry.slot as usize] = at as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn events_of_one_time_come_in_the_order_in_which_they_were_set() {
        let mut queue = EventQueue::new(4);
        for slot in [2, 0, 3, 1, 2] {
            queue.set(slot, 7);
        }
        let order: Vec<u32> = std::iter::from_fn(|| queue.pop()).map(|(_, slot)| slot).collect();
        assert_eq!(order, [0, 3, 1, 2], "setting a slot again puts it behind the others");
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_sorted_list(ops in prop::collection::vec((0u32..12, 0u64..40, 0u8..5), 0..300)) {
            let mut queue = EventQueue::new(12);
            let mut model: Vec<(u64, u64, u32)> = Vec::new();
            for (index, (slot, time, what)) in ops.into_iter().enumerate() {
                match what {
                    0 => {
                        queue.cancel(slot);
                        model.retain(|entry| entry.2 != slot);
                    }
                    1 => {
                        model.sort_unstable();
                        let expected = (!model.is_empty()).then(|| model.remove(0));
                        prop_assert_eq!(queue.pop(), expected.map(|entry| (entry.0, entry.2)));
                    }
                    2 if model.iter().min().is_some_and(|first| first.0 < time) => {
                        model.retain(|entry| entry.2 != slot);
                        model.push((time, index as u64, slot));
                        model.sort_unstable();
                        let expected = model.remove(0);
                        prop_assert_eq!(queue.set_and_pop(slot, time), Some((expected.0, expected.2)));
                    }
                    _ => {
                        queue.set(slot, time);
                        model.retain(|entry| entry.2 != slot);
                        model.push((time, index as u64, slot));
                    }
                }
                model.sort_unstable();
                prop_assert_eq!(queue.first(), model.first().map(|entry| (entry.0, entry.2)));
                let expected = model.iter().find(|entry| entry.2 == slot).map(|entry| entry.0);
                prop_assert_eq!(queue.time_of(slot), expected);
            }
        }
    }
}
