//! The pair of 8259s of a PC.
//!
//! Source: Intel 8259A Programmable Interrupt Controller, data sheet: "Interrupt Sequence", "Initialization Command Words",
//! "Operation Command Words", "Cascade Mode". Edge-triggered, fully nested, priorities fixed, no automatic end of
//! interrupt; polling and special masks are not modelled.

use core::hash::Hash;

/// The master's line that the slave is connected to.
const CASCADE: u8 = 2;

/// One chip.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Chip {
    /// The lines as they are, and those whose rising edge was not acknowledged yet (IRR).
    lines: u8,
    requests: u8,
    in_service: u8,
    masks: u8,
    vector_base: u8,
    reads_in_service: bool,
    /// Initialization command words still to come: which is next, and whether there is a fourth one.
    next_word: Option<(u8, bool)>,
}

impl Chip {
    const fn new(vector_base: u8) -> Self {
        Self {
            lines: 0,
            requests: 0,
            in_service: 0,
            masks: 0xff,
            vector_base,
            reads_in_service: false,
            next_word: None,
        }
    }

    fn set_line(&mut self, line: u8, asserted: bool) {
        let bit = 1 << line;
        if !asserted {
            // A request has to be held until it is acknowledged; else it is spurious.
            self.lines &= !bit;
            self.requests &= !bit;
        } else if self.lines & bit == 0 {
            self.lines |= bit;
            self.requests |= bit;
        }
    }

    /// The line that would be acknowledged: requested, not masked, of higher priority than all in service.
    fn offered(&self) -> Option<u8> {
        let open = self.requests & !self.masks;
        let (line, served) = (open.trailing_zeros(), self.in_service.trailing_zeros());
        (open != 0 && line < served).then_some(line as u8)
    }

    /// The second INTA pulse: the line's vector. Line 7 without a service bit if the request has disappeared.
    fn acknowledge(&mut self) -> u8 {
        let Some(line) = self.offered() else { return 7 };
        self.requests &= !(1 << line);
        self.in_service |= 1 << line;
        line
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            // ICW1: the edge detector, the masks and what is in service are cleared.
            *self =
                Self { masks: 0, next_word: Some((2, value & 1 != 0)), lines: self.lines, ..Self::new(0) };
        } else if value & 0x18 == 0x08 {
            // OCW3.
            match value & 0b11 {
                0b10 => self.reads_in_service = false,
                0b11 => self.reads_in_service = true,
                _ => {}
            }
        } else {
            // OCW2: ends are the ones with bit 5; rotations end too, and priorities stay fixed here.
            match value & 0xe0 {
                0x60 | 0xe0 => self.in_service &= !(1 << (value & 7)),
                0x20 | 0xa0 => self.in_service &= self.in_service.wrapping_sub(1),
                _ => {}
            }
        }
    }

    fn write_data(&mut self, value: u8) {
        self.next_word = match self.next_word {
            None => {
                self.masks = value;
                None
            }
            Some((2, fourth)) => {
                self.vector_base = value & 0xf8;
                Some((3, fourth))
            }
            // The wiring is what it is.
            Some((3, true)) => Some((4, true)),
            Some(_) => None,
        };
    }

    const fn read_command(&self) -> u8 {
        if self.reads_in_service { self.in_service } else { self.requests }
    }
}

/// The pair: lines 0..=7 at the master, 8..=15 at the slave.
///
/// At first as a kernel's boot code leaves it: vectors from 0x20 and 0x28 on, all lines masked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PicPair {
    master: Chip,
    slave: Chip,
}

impl Default for PicPair {
    fn default() -> Self {
        let mut master = Chip::new(0x20);
        // The slave's output.
        master.masks = !(1 << CASCADE);
        Self { master, slave: Chip::new(0x28) }
    }
}

impl PicPair {
    /// A line is asserted or not. Line 2 of the master is the slave's, and nobody else's.
    pub(crate) fn set_line(&mut self, line: u8, asserted: bool) {
        match line {
            CASCADE | 16.. => {}
            0..8 => self.master.set_line(line, asserted),
            8..16 => self.slave.set_line(line - 8, asserted),
        }
        self.cascade();
    }

    fn cascade(&mut self) {
        let asserted = self.slave.offered().is_some();
        self.master.set_line(CASCADE, asserted);
    }

    /// Whether the pair interrupts the CPU.
    pub(crate) fn interrupts(&self) -> bool {
        self.master.offered().is_some()
    }

    /// The CPU acknowledges (INTA): the vector.
    pub(crate) fn acknowledge(&mut self) -> u8 {
        let line = self.master.acknowledge();
        let vector = if line == CASCADE && self.master.in_service & 1 << CASCADE != 0 {
            self.slave.vector_base | self.slave.acknowledge()
        } else {
            self.master.vector_base | line
        };
        self.cascade();
        vector
    }

    /// Reads a port; all ones where there is no chip.
    pub(crate) const fn read(&self, port: u16) -> u8 {
        match port {
            0x20 => self.master.read_command(),
            0x21 => self.master.masks,
            0xa0 => self.slave.read_command(),
            0xa1 => self.slave.masks,
            _ => 0xff,
        }
    }

    /// Writes a port; nothing happens where there is no chip.
    pub(crate) fn write(&mut self, port: u16, value: u8) {
        match port {
            0x20 => self.master.write_command(value),
            0x21 => self.master.write_data(value),
            0xa0 => self.slave.write_command(value),
            0xa1 => self.slave.write_data(value),
            _ => {}
        }
        self.cascade();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> PicPair {
        let mut pic = PicPair::default();
        pic.write(0x21, 0);
        pic.write(0xa1, 0);
        pic
    }

    #[test]
    fn a_line_gives_one_interrupt_for_each_edge() {
        let mut pic = open();
        pic.set_line(0, true);
        pic.set_line(0, true);
        assert!(pic.interrupts());
        assert_eq!(pic.acknowledge(), 0x20);
        assert!(!pic.interrupts(), "the edge was acknowledged");
        pic.write(0x20, 0x20);
        assert!(!pic.interrupts(), "the level does not count");
        pic.set_line(0, false);
        pic.set_line(0, true);
        assert!(pic.interrupts());
    }

    #[test]
    fn what_is_in_service_blocks_itself_and_lower_priorities() {
        let mut pic = open();
        for line in [4, 1, 4, 6] {
            pic.set_line(line, true);
        }
        assert_eq!(pic.acknowledge(), 0x21);
        assert!(!pic.interrupts());
        pic.set_line(0, true);
        assert_eq!(pic.acknowledge(), 0x20);
        pic.write(0x20, 0x20);
        assert!(!pic.interrupts(), "line 1 is still in service");
        pic.write(0x20, 0x61);
        assert_eq!(pic.acknowledge(), 0x24);
    }

    #[test]
    fn the_slave_interrupts_through_the_master_and_both_are_ended() {
        let mut pic = open();
        pic.set_line(12, true);
        assert_eq!(pic.acknowledge(), 0x2c);
        for port in [0x20, 0xa0] {
            pic.write(port, 0x0b);
        }
        assert_eq!((pic.read(0x20), pic.read(0xa0)), (1 << 2, 1 << 4));
        pic.set_line(13, true);
        assert!(!pic.interrupts(), "of lower priority at the slave");
        pic.write(0xa0, 0x64);
        pic.write(0x20, 0x62);
        assert_eq!(pic.acknowledge(), 0x2d);
    }

    #[test]
    fn a_request_that_disappears_is_acknowledged_as_line_seven_and_not_in_service() {
        let mut pic = open();
        pic.set_line(3, true);
        pic.set_line(3, false);
        assert_eq!(pic.acknowledge(), 0x27);
        pic.write(0x20, 0x0b);
        assert_eq!(pic.read(0x20), 0);
    }

    #[test]
    fn masked_lines_are_remembered() {
        let mut pic = PicPair::default();
        pic.set_line(5, true);
        assert!(!pic.interrupts());
        pic.write(0x20, 0x0a);
        assert_eq!(pic.read(0x20), 1 << 5);
        pic.write(0x21, !(1 << 5));
        assert_eq!(pic.acknowledge(), 0x25);
    }

    #[test]
    fn initialization_sets_the_vectors_and_opens_all_lines() {
        let mut pic = PicPair::default();
        for (port, words) in [(0x20, [0x11, 0x30, 0x04, 0x01]), (0xa0, [0x11, 0x38, 0x02, 0x01])] {
            pic.write(port, words[0]);
            for word in &words[1..] {
                pic.write(port + 1, *word);
            }
        }
        assert_eq!((pic.read(0x21), pic.read(0xa1)), (0, 0));
        pic.set_line(1, true);
        assert_eq!(pic.acknowledge(), 0x31);
        pic.write(0x21, 0x80);
        assert_eq!(pic.read(0x21), 0x80, "the words are over");
    }
}
