//! The pair of 8259s: masking, what they have pending and in service, and the end of what they send as `ExtINT`.
//!
//! Source: Intel 8259A Programmable Interrupt Controller, data sheet: "Operation Command Words", "Reading the 8259A Status",
//! "End of Interrupt", "Cascade Mode".

use core::marker::PhantomData;

/// Access to I/O ports.
pub trait PortAccess {
    /// Reads a port.
    fn read(&self, port: u16) -> u8;

    /// Writes a port.
    fn write(&self, port: u16, value: u8);
}

/// The I/O ports of the CPU.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    constructed_by_new: (),
}

#[cfg(target_arch = "x86_64")]
impl Ports {
    /// The ports.
    ///
    /// # Safety
    /// Wherever it is used, the code may use I/O ports (privilege level 0), and what it writes there harms nobody.
    pub const unsafe fn new() -> Self {
        Self { constructed_by_new: () }
    }
}

#[cfg(target_arch = "x86_64")]
impl PortAccess for Ports {
    fn read(&self, port: u16) -> u8 {
        let () = self.constructed_by_new;
        let value: u8;
        // SAFETY: promised to `new`.
        unsafe {
            core::arch::asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags));
        }
        value
    }

    fn write(&self, port: u16, value: u8) {
        // SAFETY: promised to `new`.
        unsafe {
            core::arch::asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags));
        }
    }
}

/// The command and the data port of each chip.
const MASTER: (u16, u16) = (0x20, 0x21);
const SLAVE: (u16, u16) = (0xa0, 0xa1);
/// The master's line that the slave is connected to.
const CASCADE: u8 = 2;
/// OCW2: a specific end of interrupt for the line in the lowest three bits.
const SPECIFIC_END: u8 = 0x60;
/// OCW3: the next read of the command port gives the requests, or what is in service.
const READ_REQUESTS: u8 = 0x0a;
const READ_IN_SERVICE: u8 = 0x0b;

/// The right, and the duty, to end one interrupt that an 8259 has in service: what [`InService`](crate::InService) is for the
/// local APIC. An `ExtINT` gives this one and never that one (report 003).
#[derive(Debug)]
#[must_use = "until the end is written, the 8259 withholds this line and all of lower priority"]
pub struct PicInService {
    line: u8,
    this_cpu_only: PhantomData<*mut ()>,
}

impl PicInService {
    /// The line, 0..=15.
    pub const fn line(&self) -> u8 {
        self.line
    }
}

/// The pair of 8259s of a PC: lines 0..=7 at the master, 8..=15 at the slave. As bits: line 0 is bit 0.
///
/// All functions: with interrupts disabled, and while no other CPU uses them.
#[derive(Debug)]
pub struct Pic<P> {
    ports: P,
}

impl<P: PortAccess> Pic<P> {
    /// The pair that is reached like that.
    pub const fn new(ports: P) -> Self {
        Self { ports }
    }

    /// The lines that are held back (OCW1).
    pub fn masks(&self) -> u16 {
        u16::from_le_bytes([self.ports.read(MASTER.1), self.ports.read(SLAVE.1)])
    }

    /// Holds back these lines, and opens the others.
    pub fn set_masks(&self, lines: u16) {
        let [master, slave] = lines.to_le_bytes();
        self.ports.write(MASTER.1, master);
        self.ports.write(SLAVE.1, slave);
    }

    /// Holds back all lines. What was in service stays so, and is to be ended. Law L8.
    pub fn mask_all(&self) {
        self.set_masks(!0);
    }

    /// The lines that ask for attention, held back or not (IRR).
    pub fn requests(&self) -> u16 {
        self.status(READ_REQUESTS)
    }

    /// The lines whose interrupt was taken and not ended (ISR).
    pub fn in_service(&self) -> u16 {
        self.status(READ_IN_SERVICE)
    }

    /// The token of a handler that was entered for `line`; none if that was spurious: a line 7 or 15 that is not in service,
    /// because its request disappeared while it was being taken. A spurious line 15 was none to the master, whose
    /// line 2 is ended here.
    ///
    /// # Safety
    /// 1. The running CPU entered the calling handler by taking the interrupt of `line`.
    /// 2. It is called once per entry.
    ///
    /// Otherwise a handler can be entered again while it runs, as with [`InService::entered`](crate::InService::entered).
    pub unsafe fn entered(&self, line: u8) -> Option<PicInService> {
        if line > 15 {
            return None;
        }
        if self.in_service() & 1 << line != 0 {
            return Some(PicInService { line, this_cpu_only: PhantomData });
        }
        if line > 7 {
            self.ports.write(MASTER.0, SPECIFIC_END | CASCADE);
        }
        None
    }

    /// Ends the interrupt: at the slave and then at the master, or at the master alone. None at the local APIC.
    #[expect(clippy::needless_pass_by_value, reason = "taking it is the point: it cannot be used again")]
    pub fn end_of_interrupt(&self, in_service: PicInService) {
        let line = in_service.line;
        if line > 7 {
            self.ports.write(SLAVE.0, SPECIFIC_END | (line - 8));
            self.ports.write(MASTER.0, SPECIFIC_END | CASCADE);
        } else {
            self.ports.write(MASTER.0, SPECIFIC_END | line);
        }
    }

    fn status(&self, what: u8) -> u16 {
        let read = |port| {
            self.ports.write(port, what);
            self.ports.read(port)
        };
        u16::from_le_bytes([read(MASTER.0), read(SLAVE.0)])
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use core::cell::RefCell;
    use std::vec::Vec;

    /// A pair of chips, as far as they are used here.
    #[derive(Default)]
    struct Chips {
        masks: [u8; 2],
        requests: [u8; 2],
        in_service: [u8; 2],
        reads_in_service: [bool; 2],
        ends: Vec<(u16, u8)>,
    }

    impl PortAccess for &RefCell<Chips> {
        fn read(&self, port: u16) -> u8 {
            let chips = self.borrow();
            let chip = usize::from(port >= 0xa0);
            match port & 1 {
                1 => chips.masks[chip],
                _ if chips.reads_in_service[chip] => chips.in_service[chip],
                _ => chips.requests[chip],
            }
        }

        fn write(&self, port: u16, value: u8) {
            let mut chips = self.borrow_mut();
            let chip = usize::from(port >= 0xa0);
            match (port & 1, value) {
                (1, masks) => chips.masks[chip] = masks,
                (_, READ_REQUESTS | READ_IN_SERVICE) => {
                    chips.reads_in_service[chip] = value == READ_IN_SERVICE;
                }
                (_, end) => {
                    assert_eq!(end & 0xf8, SPECIFIC_END);
                    chips.in_service[chip] &= !(1 << (end & 7));
                    chips.ends.push((port, end));
                }
            }
        }
    }

    #[test]
    fn both_chips_are_masked_and_their_state_is_read() {
        let chips = RefCell::new(Chips { requests: [0x81, 0x10], in_service: [4, 2], ..Chips::default() });
        let pic = Pic::new(&chips);
        assert_eq!((pic.masks(), pic.requests(), pic.in_service()), (0, 0x1081, 0x0204));
        pic.mask_all();
        assert_eq!((pic.masks(), pic.requests(), pic.in_service()), (0xffff, 0x1081, 0x0204));
    }

    #[test]
    fn a_line_is_ended_where_it_is_in_service() {
        let chips = RefCell::new(Chips { in_service: [0x05, 0x10], ..Chips::default() });
        let pic = Pic::new(&chips);
        for line in [12, 0] {
            // SAFETY: the line is in service, and this is its only handler.
            let token = unsafe { pic.entered(line) }.expect("it is in service");
            assert_eq!(token.line(), line);
            pic.end_of_interrupt(token);
        }
        assert_eq!(chips.borrow().in_service, [0, 0]);
        assert_eq!(chips.borrow().ends, [(0xa0, 0x64), (0x20, 0x62), (0x20, 0x60)]);
    }

    #[test]
    fn a_spurious_line_gives_no_token_and_only_the_cascade_is_ended() {
        let chips = RefCell::new(Chips { in_service: [0x04, 0], ..Chips::default() });
        let pic = Pic::new(&chips);
        // SAFETY: the chips say that the line is not in service.
        assert!(unsafe { pic.entered(15) }.is_none());
        assert_eq!(chips.borrow().ends, [(0x20, 0x62)]);
        // SAFETY: as above.
        assert!(unsafe { pic.entered(7) }.is_none());
        // SAFETY: there is no such line.
        assert!(unsafe { pic.entered(16) }.is_none());
        assert_eq!(chips.borrow().ends.len(), 1);
    }
}
