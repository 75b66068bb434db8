//! What a trace says about ends of interrupt: which handler wrote which, and what came of those that were not its own.

use std::collections::BTreeMap;

use smpcall_machine::{Cpu, Event, EventKind, Instant};

/// An in-service bit that was cleared by a handler to which it did not belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CutShort {
    pub(super) time: Instant,
    pub(super) cpu: Cpu,
    /// The vector that was in service.
    pub(super) vector: u8,
    /// The vector whose handler wrote the end of interrupt.
    pub(super) by: u8,
}

/// An interrupt that was taken although a handler of its priority or above it was running: in service no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Early {
    pub(super) time: Instant,
    pub(super) cpu: Cpu,
    /// The vector that was taken.
    pub(super) vector: u8,
    /// The vector whose handler it interrupted.
    pub(super) inside: u8,
}

/// All that is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ends {
    /// Ends that cleared the bit of the handler that wrote them.
    pub(super) own: u64,
    /// Ends with nothing in service, by handlers of what was never in service: without effect.
    pub(super) of_nothing: u64,
    /// Ends with nothing in service, by handlers whose bit had been cleared before.
    pub(super) too_late: u64,
    pub(super) cut_short: Vec<CutShort>,
    pub(super) early: Vec<Early>,
}

/// A handler that is running.
struct Handler {
    vector: u8,
    /// Its bit is clear: it was never set, or its own end or another one has cleared it.
    ended: bool,
    cut_short: bool,
}

/// The class of a vector, by which interrupts hold each other back. SDM, "Interrupt, Task, and Processor Priority".
const fn class(vector: u8) -> u8 {
    vector >> 4
}

impl Ends {
    /// From everything that happened, in order. `ext_int` is the vector that comes from the 8259s, if one does: it is never in
    /// service, and nothing in service holds it back.
    pub(super) fn of(events: &[Event], ext_int: Option<u8>) -> Self {
        let mut ends = Self::default();
        let mut running: BTreeMap<Cpu, Vec<Handler>> = BTreeMap::new();
        for event in events {
            let handlers = running.entry(event.cpu).or_default();
            let vector = event.detail as u8;
            match event.kind {
                EventKind::InterruptTaken => {
                    let from_pic = Some(vector) == ext_int;
                    let held_back = |handler: &&Handler| {
                        handler.cut_short && !from_pic && class(vector) <= class(handler.vector)
                    };
                    if let Some(handler) = handlers.iter().rev().find(held_back) {
                        let (time, cpu, inside) = (event.time, event.cpu, handler.vector);
                        ends.early.push(Early { time, cpu, vector, inside });
                    }
                    handlers.push(Handler { vector, ended: from_pic, cut_short: false });
                }
                EventKind::NmiTaken => handlers.push(Handler { vector, ended: true, cut_short: false }),
                EventKind::InterruptReturned => drop(handlers.pop()),
                EventKind::EndOfInterrupt => ends.end(event, handlers),
                _ => {}
            }
        }
        ends
    }

    fn end(&mut self, event: &Event, handlers: &mut [Handler]) {
        let Some((writer, below)) = handlers.split_last_mut() else { return };
        let vector = event.detail as u8;
        if vector == 0 {
            *(if writer.cut_short { &mut self.too_late } else { &mut self.of_nothing }) += 1;
        } else if vector == writer.vector && !writer.ended {
            writer.ended = true;
            self.own += 1;
        } else if let Some(cut) =
            below.iter_mut().rev().find(|handler| handler.vector == vector && !handler.ended)
        {
            (cut.ended, cut.cut_short) = (true, true);
            self.cut_short.push(CutShort { time: event.time, cpu: event.cpu, vector, by: writer.vector });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXT_INT: u8 = 0x30;
    const DISK: u8 = 0x41;
    const SERIAL: u8 = 0x34;

    use EventKind::{EndOfInterrupt as Ended, InterruptReturned as Returned, InterruptTaken as Taken};

    fn ends(events: &[(EventKind, u8)]) -> Ends {
        let event = |(&(kind, vector), at): (&(EventKind, u8), u64)| Event {
            time: Instant::from_nanos(at),
            kind,
            cpu: Cpu::new(0),
            other: None,
            detail: vector.into(),
            argument: 0,
        };
        Ends::of(&events.iter().zip(0..).map(event).collect::<Vec<_>>(), Some(EXT_INT))
    }

    #[test]
    fn an_end_with_nothing_in_service_is_of_nothing() {
        let found = ends(&[(Taken, EXT_INT), (Ended, 0), (Returned, EXT_INT)]);
        assert_eq!(found, Ends { of_nothing: 1, ..Ends::default() });
    }

    #[test]
    fn an_end_that_clears_the_bit_of_the_interrupted_handler_is_found_with_what_it_let_in() {
        let before = [(Taken, DISK), (Taken, EXT_INT), (Ended, DISK), (Returned, EXT_INT)];
        let after = [(Taken, SERIAL), (Ended, SERIAL), (Returned, SERIAL), (Ended, 0), (Returned, DISK)];
        let found = ends(&[&before[..], &after[..]].concat());
        assert_eq!((found.own, found.of_nothing, found.too_late), (1, 0, 1));
        let (time, cpu) = (Instant::from_nanos(2), Cpu::new(0));
        assert_eq!(found.cut_short, [CutShort { time, cpu, vector: DISK, by: EXT_INT }]);
        let time = Instant::from_nanos(4);
        assert_eq!(found.early, [Early { time, cpu, vector: SERIAL, inside: DISK }]);
    }

    #[test]
    fn the_same_vector_again_is_early_and_a_higher_one_or_another_ext_int_is_not() {
        let cut = [(Taken, DISK), (Taken, EXT_INT), (Ended, DISK), (Returned, EXT_INT)];
        for (vector, early) in [(DISK, 1), (0x4f, 1), (0x50, 0), (EXT_INT, 0)] {
            let found = ends(&[&cut[..], &[(Taken, vector)]].concat());
            assert_eq!(found.early.len(), early, "{vector:#x}");
        }
    }

    #[test]
    fn handlers_that_end_what_is_theirs_break_nothing_however_they_nest() {
        let nested = [(Taken, DISK), (Taken, 0xef), (Ended, 0xef), (Returned, 0xef), (Ended, DISK)];
        let after = [(Taken, SERIAL), (Ended, SERIAL), (Returned, SERIAL), (Returned, DISK)];
        let found = ends(&[&nested[..], &after[..]].concat());
        assert_eq!(found, Ends { own: 3, ..Ends::default() });
    }
}
