//! Resetting and starting CPUs: INIT, start-up, and the sequence of the two.
//!
//! Sources: SDM, "Multiple-Processor (MP) Initialization"; MP specification, B.4, "Application Processor Startup", which has
//! the delays.

use core::fmt;
use core::time::Duration;

use smpcall_machine::{Conditions, Deadline, Machine, SendError, Woken, wait};

use crate::idle::{Patience, delay};
use crate::{Access, ApicId, DeliveryMode, Icr, Level, LocalApic, Mode, Sent, Trigger};

/// How long the sequence waits. Deadlines of the one wait, with interrupts as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartUpDelays {
    /// Between INIT and what follows it.
    pub after_init: Duration,
    /// After each start-up message, for a sign of life.
    pub after_start_up: Duration,
}

impl StartUpDelays {
    /// 10 ms and 200 us. MP specification, B.4.
    pub const SPECIFIED: Self =
        Self { after_init: Duration::from_millis(10), after_start_up: Duration::from_micros(200) };

    /// What CPUs need that can have an x2APIC: no time after INIT, and 10 us after each start-up message. Linux's `init_udelay`
    /// of 0, for Intel's family 6 and AMD's family 15 and later (`arch/x86/kernel/smpboot.c`).
    pub const CURRENT: Self = Self { after_init: Duration::ZERO, after_start_up: Duration::from_micros(10) };

    /// None: for machines that are known to need none, and for explored ones, where a delay is one more decision.
    pub const NONE: Self = Self { after_init: Duration::ZERO, after_start_up: Duration::ZERO };
}

/// How far the sequence came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartUp {
    /// The CPU gave its sign of life after so many start-up messages.
    Alive {
        /// 1 or 2; 0 if it was alive before the first one or if its APIC takes none.
        start_ups: u8,
    },
    /// All was sent, and the CPU gave no sign of life. It may still: whoever gives up on it must keep it from going on when
    /// it comes late.
    NoSignOfLife {
        /// 2; 0 for an APIC that takes none.
        start_ups: u8,
    },
}

/// A step of the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartUpStep {
    /// INIT.
    Init,
    /// The end of INIT's level.
    InitDeassert,
    /// The start-up message with this number, 1 or 2.
    StartUp(u8),
}

/// Why the sequence was not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartUpError {
    /// Start-up messages cannot name pages `0xa0..=0xbf`. Nothing was sent. MP specification, B.4.2.
    ReservedPage(u8),
    /// It is this CPU's own APIC. Nothing was sent.
    OwnApic(ApicId),
    /// A step was not sent; those before it were.
    NotSent {
        /// The step.
        step: StartUpStep,
        /// Why.
        error: SendError,
    },
}

impl fmt::Display for StartUpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReservedPage(page) => {
                write!(f, "no CPU can start at page {page:#x}: choose one outside of 0xa0 to 0xbf")
            }
            Self::OwnApic(id) => write!(f, "{id} is the running CPU's own: it is started already"),
            Self::NotSent { step, error } => {
                f.write_str(match step {
                    StartUpStep::Init => "INIT was not sent",
                    StartUpStep::InitDeassert => "the end of INIT was not sent",
                    StartUpStep::StartUp(1) => "the first start-up message was not sent",
                    StartUpStep::StartUp(_) => "the second start-up message was not sent",
                })?;
                write!(f, ": {error}")
            }
        }
    }
}

impl core::error::Error for StartUpError {}

impl<M: Machine, A: Access> LocalApic<M, A> {
    /// Starts a CPU: INIT, a delay, a start-up message, and a second one if there is no sign of life. Its execution begins
    /// in real mode at physical address `page` times 4096. `alive` is the sign: a word that it writes.
    ///
    /// On an 82489DX, which takes no start-up messages, INIT is level-triggered and its level ended after the delay; the CPU
    /// starts at the warm-reset vector, which the caller has set up.
    ///
    /// By identifier on every routing. Task context; bounded by the [patience](crate::PATIENT_BOUND) of each
    /// message and the delays. Not for the boot CPU: after INIT it begins with the firmware instead of waiting (law L8).
    ///
    /// # Errors
    /// If a message was not sent: see [`StartUpError`].
    pub fn start_cpu(
        &self,
        target: ApicId,
        page: u8,
        delays: StartUpDelays,
        alive: &impl Conditions,
    ) -> Result<StartUp, StartUpError> {
        if (0xa0..=0xbf).contains(&page) {
            return Err(StartUpError::ReservedPage(page));
        }
        if target == self.id() {
            return Err(StartUpError::OwnApic(target));
        }
        let not_sent = |step| move |error| StartUpError::NotSent { step, error };
        let takes_start_ups = self.version().is_integrated();
        if takes_start_ups {
            self.send_init(target).map_err(not_sent(StartUpStep::Init))?;
            delay::<M>(delays.after_init);
        } else {
            self.send_init_level(target, Level::Assert).map_err(not_sent(StartUpStep::Init))?;
            delay::<M>(delays.after_init);
            let deassert = self.send_init_level(target, Level::Deassert);
            deassert.map_err(not_sent(StartUpStep::InitDeassert))?;
        }
        let start_ups = if takes_start_ups { 2 } else { 0 };
        for number in 1..=start_ups {
            self.send_start_up(target, page).map_err(not_sent(StartUpStep::StartUp(number)))?;
            if is_alive_within::<M>(alive, delays.after_start_up) {
                return Ok(StartUp::Alive { start_ups: number });
            }
        }
        if !takes_start_ups && is_alive_within::<M>(alive, delays.after_start_up) {
            return Ok(StartUp::Alive { start_ups: 0 });
        }
        Ok(StartUp::NoSignOfLife { start_ups })
    }

    /// Sends INIT to an APIC, by identifier on every routing: a CPU that is not running has no logical one. Its CPU forgets
    /// everything and waits for a start-up message; the boot CPU begins with the firmware. So it fences: what was running
    /// there does not go on. Context, bound and errors as for [`send_one`](Self::send_one).
    ///
    /// # Errors
    /// See there.
    pub fn send_init(&self, target: ApicId) -> Result<Sent, SendError> {
        self.send_to_stopped(target, |id| Icr::physical(DeliveryMode::Init, 0, id))
    }

    /// Sends the beginning or the end of a level-triggered INIT, as only an 82489DX needs. The Pentium 4 and
    /// later ignore the end. Otherwise as [`send_init`](Self::send_init).
    ///
    /// # Errors
    /// See there; and [`SendError::Unsupported`] on x2APIC.
    pub fn send_init_level(&self, target: ApicId, level: Level) -> Result<Sent, SendError> {
        if self.access.mode() == Mode::X2Apic {
            return Err(SendError::Unsupported);
        }
        let icr = |id| Icr { level, trigger: Trigger::Level, ..Icr::physical(DeliveryMode::Init, 0, id) };
        self.send_to_stopped(target, icr)
    }

    /// Sends a start-up message to an APIC: its CPU, waiting for one since an INIT, begins to execute at physical
    /// address `page` times 4096; otherwise it ignores it. By identifier, as [`send_init`](Self::send_init).
    ///
    /// # Errors
    /// See there.
    pub fn send_start_up(&self, target: ApicId, page: u8) -> Result<Sent, SendError> {
        self.send_to_stopped(target, |id| Icr::physical(DeliveryMode::StartUp, page, id))
    }

    fn send_to_stopped(&self, target: ApicId, icr: impl FnOnce(u32) -> Icr) -> Result<Sent, SendError> {
        let icr = icr(self.addressable(Some(target))?.0);
        self.submit(icr, &mut Patience::of(icr.delivery_mode))
    }
}

fn is_alive_within<M: Machine>(alive: &impl Conditions, time: Duration) -> bool {
    if time.is_zero() {
        return alive.first_met().is_some();
    }
    wait::<M>(alive, Deadline::within::<M>(time)) != Woken::Deadline
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::testing::{Recorder, driver, now};
    use crate::{Mode, Register};
    use smpcall_machine::Predicate;
    use std::string::ToString;
    use std::vec::Vec;

    const INTEGRATED: u32 = 0x14;

    fn machine(mode: Mode, version: u32) -> Recorder {
        let recorder = Recorder::new(mode);
        recorder.set(Register::VERSION, version);
        recorder
    }

    fn start(recorder: &Recorder, alive: impl Fn() -> bool) -> Result<StartUp, StartUpError> {
        driver(recorder).start_cpu(ApicId(5), 0x9a, StartUpDelays::SPECIFIED, &Predicate(alive))
    }

    fn commands(recorder: &Recorder) -> Vec<u64> {
        let low = recorder.written().into_iter().filter(|write| write.0 == Register::ICR_LOW);
        low.map(|write| write.1).collect()
    }

    #[test]
    fn a_cpu_that_stays_silent_gets_init_and_two_start_ups_with_the_delays_of_the_specification() {
        let recorder = machine(Mode::X2Apic, INTEGRATED);
        let before = now();
        assert_eq!(start(&recorder, || false), Ok(StartUp::NoSignOfLife { start_ups: 2 }));
        assert_eq!(commands(&recorder), [0x5_0000_4500, 0x5_0000_469a, 0x5_0000_469a]);
        assert_eq!(now() - before, 10_000_000 + 2 * 200_000);
    }

    #[test]
    fn a_cpu_that_answers_gets_no_second_start_up() {
        let recorder = machine(Mode::XApic, INTEGRATED);
        let before = now();
        let alive = || now() - before >= 10_050_000;
        assert_eq!(start(&recorder, alive), Ok(StartUp::Alive { start_ups: 1 }));
        assert_eq!(now() - before, 10_050_000);
        assert_eq!(commands(&recorder), [0x4500, 0x469a]);
    }

    #[test]
    fn without_delays_there_is_no_wait() {
        let recorder = machine(Mode::X2Apic, INTEGRATED);
        let before = now();
        let driver = driver(&recorder);
        let started = driver.start_cpu(ApicId(5), 8, StartUpDelays::NONE, &Predicate(|| false));
        assert_eq!(started, Ok(StartUp::NoSignOfLife { start_ups: 2 }));
        assert_eq!(now(), before);
    }

    #[test]
    fn an_82489dx_gets_a_level_that_begins_and_ends_and_no_start_up() {
        let recorder = machine(Mode::XApic, 0x01);
        assert_eq!(start(&recorder, || false), Ok(StartUp::NoSignOfLife { start_ups: 0 }));
        assert_eq!(commands(&recorder), [0xc500, 0x8500]);
    }

    #[test]
    fn a_page_that_no_message_can_name_and_the_own_apic_are_refused_before_anything_is_sent() {
        let recorder = machine(Mode::X2Apic, INTEGRATED);
        recorder.set(Register::ID, 5);
        let error = start(&recorder, || true).unwrap_err();
        assert_eq!(error.to_string(), "APIC 0x5 is the running CPU's own: it is started already");
        let never = Predicate(|| false);
        let error = driver(&recorder).start_cpu(ApicId(6), 0xa0, StartUpDelays::NONE, &never).unwrap_err();
        assert_eq!(error.to_string(), "no CPU can start at page 0xa0: choose one outside of 0xa0 to 0xbf");
        assert!(recorder.written().is_empty());
    }

    #[test]
    fn a_busy_controller_is_told_with_the_step() {
        let recorder = machine(Mode::XApic, INTEGRATED);
        recorder.set(Register::ICR_LOW, Icr::SEND_PENDING | 0x4500);
        let error = start(&recorder, || false).unwrap_err();
        assert_eq!(
            error.to_string(),
            "INIT was not sent: the interrupt controller stayed busy beyond its bound"
        );
        assert!(recorder.written().is_empty());
    }
}
