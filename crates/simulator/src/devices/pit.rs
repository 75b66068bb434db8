//! Counter 0 of the 8254 interval timer, as far as it interrupts: a period.
//!
//! Source: Intel 8254 Programmable Interval Timer, data sheet: "Control Word Register", "Write Operations", "Mode 2: Rate
//! Generator". Modes 2 and 3 are the periodic ones; in the others it does not interrupt here.

/// What counts down: 1.193182 MHz.
const FREQUENCY: u64 = 1_193_182;

/// The counter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Pit {
    periodic: bool,
    /// The low byte of a count whose high byte is still to come.
    low: Option<u8>,
    count: Option<u16>,
}

impl Pit {
    /// Writes port 0x40 (counter 0) or 0x43 (control); says whether the counting begins anew.
    pub(crate) fn write(&mut self, port: u16, value: u8) -> bool {
        match port {
            // Counter 0, low byte then high byte; the bit above the mode's lowest two is ignored for modes 2 and 3.
            0x43 if value & 0xf0 == 0x30 => {
                *self = Self { periodic: value & 0b0100 != 0, ..Self::default() };
                true
            }
            0x40 => match self.low.take() {
                None => {
                    self.low = Some(value);
                    false
                }
                Some(low) => {
                    self.count = Some(u16::from_le_bytes([low, value]));
                    true
                }
            },
            _ => false,
        }
    }

    /// Nanoseconds between two interrupts, if it counts. A count of 0 means 65536, and 1 is not allowed.
    pub(crate) fn period(&self) -> Option<u64> {
        let count = match self.count.filter(|_| self.periodic)? {
            0 => 0x1_0000,
            1 => 2,
            count => u64::from(count),
        };
        Some(count * 1_000_000_000 / FREQUENCY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_interrupts_from_when_its_whole_count_is_written() {
        let mut pit = Pit::default();
        assert!(pit.write(0x43, 0x34));
        assert_eq!(pit.period(), None);
        assert!(!pit.write(0x40, 0x9c));
        assert!(pit.write(0x40, 0x2e));
        // 11932 / 1.193182 MHz: about 100 Hz.
        assert_eq!(pit.period(), Some(10_000_150));
        assert!(pit.write(0x43, 0x30), "mode 0: once, at the end of the count");
        assert_eq!(pit.period(), None);
    }

    #[test]
    fn a_count_of_zero_is_the_longest() {
        let mut pit = Pit::default();
        for (port, value) in [(0x43, 0x36), (0x40, 0), (0x40, 0)] {
            pit.write(port, value);
        }
        assert_eq!(pit.period(), Some(54_925_401));
    }
}
