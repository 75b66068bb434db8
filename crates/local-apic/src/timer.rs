//! The timer of the local APIC. Source: SDM, "APIC Timer" and "TSC-Deadline Mode".

use smpcall_machine::Machine;

use crate::{Access, LocalApic, LocalSource, LocalVector, LocalVectorError, Register, Vector};

/// When the timer interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimerMode {
    /// Once, when the count has come down to zero.
    OneShot = 0b00,
    /// Each time that the count has come down to zero, from where it starts again.
    Periodic = 0b01,
    /// Once, when the time-stamp counter has reached the deadline. Where CPUID says so.
    TscDeadline = 0b10,
}

/// By how much the timer's clock is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TimerDivide {
    /// By 1.
    By1 = 0b1011,
    /// By 2.
    By2 = 0b0000,
    /// By 4.
    By4 = 0b0001,
    /// By 8.
    By8 = 0b0010,
    /// By 16.
    By16 = 0b0011,
    /// By 32.
    By32 = 0b1000,
    /// By 64.
    By64 = 0b1001,
    /// By 128.
    By128 = 0b1010,
}

impl TimerDivide {
    /// All of them, in ascending order.
    pub const ALL: [Self; 8] =
        [Self::By1, Self::By2, Self::By4, Self::By8, Self::By16, Self::By32, Self::By64, Self::By128];

    /// By how much: 1, 2, 4 to 128.
    pub const fn divisor(self) -> u32 {
        1 << match self {
            Self::By1 => 0,
            Self::By2 => 1,
            Self::By4 => 2,
            Self::By8 => 3,
            Self::By16 => 4,
            Self::By32 => 5,
            Self::By64 => 6,
            Self::By128 => 7,
        }
    }

    /// What the register says. Reserved bits are ignored.
    pub fn decode(bits: u32) -> Self {
        // Bits 0, 1 and 3: eight codes, all of them used.
        Self::ALL.into_iter().find(|&divide| divide as u32 == bits & 0b1011).unwrap_or(Self::By2)
    }
}

/// The register that holds the deadline of [`TimerMode::TscDeadline`]: the MSR `IA32_TSC_DEADLINE`, in both modes of the APIC.
pub trait DeadlineRegister {
    /// Writes a value of the time-stamp counter; one in the past interrupts at once, zero disarms. No effect unless the timer is
    /// [prepared](LocalApic::set_deadline_timer) for it.
    ///
    /// Takes effect not before what was written to the APIC before: in xAPIC mode that needs a fence (SDM, "TSC-Deadline Mode").
    fn write_tsc_deadline(&self, value: u64);
}

impl<M: Machine, A: Access> LocalApic<M, A> {
    /// Starts the timer: `vector` interrupts once (or, periodically, each time) `count` ticks of the timer's clock, divided,
    /// from now. A count of zero stops it. The frequency of that clock is the machine's: it has to be measured or told by CPUID.
    ///
    /// With interrupts disabled; the timer is masked and stopped until it is set up.
    ///
    /// # Errors
    /// [`LocalVectorError::NoTimer`] for [`TimerMode::TscDeadline`], which counts nothing:
    /// see [`set_deadline_timer`](Self::set_deadline_timer).
    pub fn start_timer(
        &self,
        mode: TimerMode,
        divide: TimerDivide,
        count: u32,
        vector: Vector,
    ) -> Result<(), LocalVectorError> {
        if mode == TimerMode::TscDeadline {
            return Err(LocalVectorError::NoTimer(LocalSource::Timer));
        }
        self.stop_timer();
        self.access.write(Register::TIMER_DIVIDE, divide as u32);
        let entry = LocalVector { timer_mode: mode, ..LocalVector::fixed(vector) };
        self.set_local_vector(LocalSource::Timer, entry)?;
        self.access.write(Register::TIMER_INITIAL_COUNT, count);
        Ok(())
    }

    /// Prepares the timer for deadlines, which [`DeadlineRegister`] takes. Only where CPUID says that it has that mode. With
    /// interrupts disabled.
    ///
    /// # Errors
    /// None on the APICs that are known: each has a timer entry.
    pub fn set_deadline_timer(&self, vector: Vector) -> Result<(), LocalVectorError> {
        self.stop_timer();
        let entry = LocalVector { timer_mode: TimerMode::TscDeadline, ..LocalVector::fixed(vector) };
        self.set_local_vector(LocalSource::Timer, entry)
    }

    /// Stops the timer and masks its entry. An interrupt that it sent before may still come. A deadline is disarmed by
    /// the change of mode that follows, if one does.
    pub fn stop_timer(&self) {
        // Each APIC has it.
        let _ = self.mask_local_vector(LocalSource::Timer);
        self.access.write(Register::TIMER_INITIAL_COUNT, 0);
    }

    /// How many ticks are left until the next interrupt; zero if the timer is stopped or has a deadline. Any context.
    pub fn timer_count(&self) -> u32 {
        self.access.read(Register::TIMER_CURRENT_COUNT)
    }

    /// By how much the timer's clock is divided. Any context.
    pub fn timer_divide(&self) -> TimerDivide {
        TimerDivide::decode(self.access.read(Register::TIMER_DIVIDE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mode;
    use crate::testing::{Recorder, driver};

    const VECTOR: Vector = Vector::new(0xef).unwrap();

    #[test]
    fn dividers_have_the_codes_of_the_manual() {
        for (index, divide) in TimerDivide::ALL.into_iter().enumerate() {
            assert_eq!(divide.divisor(), 1 << index);
            assert_eq!(TimerDivide::decode(divide as u32 | 0xfff4), divide);
        }
    }

    #[test]
    fn the_timer_is_set_up_before_it_counts() {
        let recorder = Recorder::new(Mode::X2Apic);
        driver(&recorder).start_timer(TimerMode::Periodic, TimerDivide::By16, 1000, VECTOR).unwrap();
        let expected = [
            (Register::LVT_TIMER, 0x1_0000),
            (Register::TIMER_INITIAL_COUNT, 0),
            (Register::TIMER_DIVIDE, 0b0011),
            (Register::LVT_TIMER, 0x2_00ef),
            (Register::TIMER_INITIAL_COUNT, 1000),
        ];
        assert_eq!(recorder.written(), expected);
    }

    #[test]
    fn a_deadline_is_no_count() {
        let recorder = Recorder::new(Mode::X2Apic);
        let driver = driver(&recorder);
        let refused = driver.start_timer(TimerMode::TscDeadline, TimerDivide::By1, 5, VECTOR);
        assert_eq!(refused, Err(LocalVectorError::NoTimer(LocalSource::Timer)));
        assert!(recorder.written().is_empty());
        driver.set_deadline_timer(VECTOR).unwrap();
        assert_eq!(recorder.written().last(), Some(&(Register::LVT_TIMER, 0x4_00ef)));
    }
}
