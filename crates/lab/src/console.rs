//! The serial line: text for people, and lines that begin with `@ ` for the program that runs the image.

use core::cell::UnsafeCell;
use core::fmt::{self, Write};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::time::Duration;

use smpcall_machine::{Deadline, InterruptsOff, Machine, Predicate, Woken, wait, wait_at_most};
use uart_16550::{Config, Uart16550, backend::PioBackend};

use crate::clock::LabWord;
use crate::machine::Lab;

const PORT: u16 = 0x3f8;
/// Looks for room in the transmitter: a line that is not read by anybody does not hold up the kernel.
const LOOKS: u64 = 1 << 16;
/// How long a CPU waits until another one has printed its line. The other one may have been stopped in the middle.
const PATIENCE: Duration = Duration::from_millis(200);

struct Line(UnsafeCell<Option<Uart16550<PioBackend>>>);

// SAFETY: used by the CPU that holds `PRINTING` only, or by one that has waited for it in vain, which garbles text at worst:
// the driver holds no pointers.
unsafe impl Sync for Line {}

static LINE: Line = Line(UnsafeCell::new(None));
/// Who prints: the number of the CPU + 1, or 0.
static PRINTING: LabWord = LabWord::new(0);

/// Sets up the line. By the boot CPU, before anything is printed; without it, nothing is.
pub(crate) fn set_up() {
    // SAFETY: the port is that of the first serial line, and this CPU runs alone.
    unsafe {
        if let Ok(mut line) = Uart16550::new_port(PORT)
            && line.init(Config::default()).is_ok()
        {
            *LINE.0.get() = Some(line);
        }
    }
}

struct Sink<'a>(&'a mut Uart16550<PioBackend>);

impl Sink<'_> {
    fn byte(&mut self, byte: u8) {
        let line = UnsafeCell::new(&mut *self.0);
        // SAFETY: the condition is evaluated on this CPU, one look after the other.
        let room = Predicate(|| unsafe { (*line.get()).ready_to_send().is_ok() });
        if wait_at_most::<Lab>(&room, Deadline::NEVER, LOOKS) != Woken::Deadline {
            let _ = self.0.try_send_byte(byte);
        }
    }
}

impl Write for Sink<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.byte(b'\r');
            }
            self.byte(byte);
        }
        Ok(())
    }
}

/// Prints, alone. Any context; in NMI handlers, which may have interrupted a printing CPU, with no patience.
pub(crate) fn print(text: fmt::Arguments<'_>) {
    let pinned = InterruptsOff::<Lab>::new();
    let me = u64::from(pinned.cpu().number()) + 1;
    let patience = if Lab::in_nmi() { Duration::ZERO } else { PATIENCE };
    let deadline = Deadline::within::<Lab>(patience);
    loop {
        // Acquire: what the last one has done with the line.
        match PRINTING.compare_exchange(0, me, Acquire, Relaxed) {
            Ok(_) => break,
            // This CPU itself, in what was interrupted.
            Err(holder) if holder == me => break,
            Err(_) => {
                if wait::<Lab>(&[PRINTING.equals(!0, 0)], deadline) == Woken::Deadline {
                    PRINTING.store(me, Relaxed);
                    break;
                }
            }
        }
    }
    // SAFETY: see `Line`.
    if let Some(line) = unsafe { &mut *LINE.0.get() } {
        let _ = Sink(line).write_fmt(text);
    }
    // Release: as above.
    PRINTING.store(0, Release);
}

/// A byte that was sent to the line, if there is one.
pub(crate) fn received() -> Option<u8> {
    let _pinned = InterruptsOff::<Lab>::new();
    // SAFETY: see `Line`.
    unsafe { &mut *LINE.0.get() }.as_mut()?.try_receive_byte().ok()
}

/// Prints a line.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::console::print(format_args!("{}\n", format_args!($($text)*)))
    };
}
pub(crate) use say;
