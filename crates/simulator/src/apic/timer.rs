//! The timer: one shot, periodic, or at a time-stamp. SDM, "APIC Timer" and "TSC-Deadline Mode".
//!
//! One count is a nanosecond of the model's clock times the divisor; the time-stamp counter is the clock itself.

use core::hash::{Hash, Hasher};
use core::time::Duration;

use smpcall_local_apic::Trigger;
use smpcall_machine::Instant;

use super::{Acceptance, ApicModel, local};

/// The writable bits of the divide configuration.
pub(super) const DIVIDE_BITS: u32 = 0b1011;

/// The timer's registers, but for its entry in the local vector table.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timer {
    pub(super) initial_count: u32,
    pub(super) divide: u32,
    /// The count in progress; not in TSC-deadline mode.
    counting: Option<Counting>,
    /// When it fires in TSC-deadline mode; 0 if it does not.
    deadline: u64,
}

/// A count in progress.
#[derive(Clone, Copy, Debug)]
struct Counting {
    /// The count, which is not zero, ...
    count: u32,
    /// ... at this time.
    at: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
    Reserved,
}

const fn mode_of(bits: u32) -> TimerMode {
    match bits & 0b11 {
        0b00 => TimerMode::OneShot,
        0b01 => TimerMode::Periodic,
        0b10 => TimerMode::TscDeadline,
        _ => TimerMode::Reserved,
    }
}

impl Timer {
    /// Nanoseconds per count: 1 to 128. SDM, "APIC Timer", divide configuration.
    fn divisor(&self) -> u64 {
        let bits = self.divide & 0b11 | (self.divide & 0b1000) >> 1;
        1 << ((bits + 1) % 8)
    }

    fn time_for(&self, counts: u32) -> Duration {
        Duration::from_nanos(u64::from(counts) * self.divisor())
    }
}

const fn nanos(time: Duration) -> u64 {
    // Differences of instants fit.
    time.as_nanos() as u64
}

impl ApicModel {
    fn timer_mode(&self) -> TimerMode {
        mode_of(self.lvt[local::TIMER] >> local::TIMER_MODE_SHIFT)
    }

    const fn timer_is_masked(&self) -> bool {
        self.lvt[local::TIMER] & local::MASKED != 0
    }

    /// When the timer will fire; in the past if it should have. `None` if it is not running, or masked. To be asked
    /// again after every register write, and after it has fired.
    pub fn timer_fires_at(&self) -> Option<Instant> {
        if self.timer_is_masked() { None } else { self.timer_ends_at() }
    }

    /// When the count ends, masked or not.
    fn timer_ends_at(&self) -> Option<Instant> {
        match self.timer_mode() {
            TimerMode::OneShot | TimerMode::Periodic => {
                let Counting { count, at } = self.timer.counting?;
                Some(at.plus(self.timer.time_for(count)))
            }
            TimerMode::TscDeadline if self.timer.deadline != 0 => {
                Some(Instant::from_nanos(self.timer.deadline))
            }
            TimerMode::TscDeadline | TimerMode::Reserved => None,
        }
    }

    /// Lets the timer fire, if its time has come at `now`, and says what became of its interrupt: `None` if it was not the
    /// time, or it is masked. Periods that have passed unnoticed give one interrupt.
    pub fn fire_timer(&mut self, now: Instant) -> Option<Acceptance> {
        let end = self.timer_ends_at().filter(|&end| end <= now)?;
        self.timer.counting = match self.timer_mode() {
            TimerMode::Periodic => self.next_period(end, now),
            _ => None,
        };
        self.timer.deadline = 0;
        (!self.timer_is_masked()).then(|| self.deliver_fixed(local::TIMER, Trigger::Edge))
    }

    /// The period in which `now` lies, of a periodic timer whose count ended at `end`.
    fn next_period(&self, end: Instant, now: Instant) -> Option<Counting> {
        let period = nanos(self.timer.time_for(self.timer.initial_count));
        // Written as zero, it has stopped.
        let late = nanos(now.since(end)).checked_div(period)?;
        let at = end.plus(Duration::from_nanos(late * period));
        Some(Counting { count: self.timer.initial_count, at })
    }

    /// What happened up to `now` happens before what is written now.
    pub(super) fn settle_timer(&mut self, now: Instant) {
        self.fire_timer(now);
    }

    /// The current count at `now`. A count that ended and was not [noticed](Self::fire_timer) reads as it will afterwards.
    pub(super) fn current_count(&self, now: Instant) -> u32 {
        let (Some(mut counting), Some(end)) = (self.timer.counting, self.timer_ends_at()) else { return 0 };
        if end <= now {
            match self.next_period(end, now) {
                Some(next) if self.timer_mode() == TimerMode::Periodic => counting = next,
                _ => return 0,
            }
        }
        let elapsed = nanos(now.since(counting.at)) / self.timer.divisor();
        // Less than the count has elapsed, so it fits.
        counting.count - elapsed as u32
    }

    /// Writing the initial count starts the timer, zero stops it; ignored in TSC-deadline mode.
    pub(super) fn write_initial_count(&mut self, count: u32, now: Instant) {
        self.settle_timer(now);
        if self.timer_mode() != TimerMode::TscDeadline {
            self.timer.initial_count = count;
            self.timer.counting = (count != 0).then_some(Counting { count, at: now });
        }
    }

    pub(super) fn write_divide(&mut self, divide: u32, now: Instant) {
        self.settle_timer(now);
        let count = self.current_count(now);
        self.timer.divide = divide;
        self.timer.counting = self.timer.counting.map(|_| Counting { count, at: now });
    }

    /// The timer's entry was written, and its mode was another one: into and out of TSC-deadline mode it is disarmed,
    /// between one-shot and periodic it goes on.
    pub(super) fn timer_mode_was(&mut self, before: u32) {
        let deadline = [mode_of(before), self.timer_mode()].map(|mode| mode == TimerMode::TscDeadline);
        if deadline[0] != deadline[1] {
            self.timer.counting = None;
            self.timer.deadline = 0;
        }
    }

    /// Reads `IA32_TSC_DEADLINE` (MSR `0x6e0`): zero if the timer is not armed, or not in TSC-deadline mode.
    pub const fn read_tsc_deadline(&self) -> u64 {
        self.timer.deadline
    }

    /// Writes `IA32_TSC_DEADLINE` at `now`: the timer fires when the time-stamp counter - nanoseconds of the model's clock -
    /// reaches `deadline`, at once if it has; zero disarms it. Ignored in other modes.
    pub fn write_tsc_deadline(&mut self, deadline: u64, now: Instant) {
        if self.timer_mode() == TimerMode::TscDeadline {
            self.settle_timer(now);
            self.timer.deadline = deadline;
            self.settle_timer(now);
        }
    }

    /// The timer's part of the state, its times as distances from `now`.
    pub(super) fn hash_timer(&self, state: &mut impl Hasher, now: Instant) {
        let (registers, ends) = ((self.timer.initial_count, self.timer.divide), self.timer_ends_at());
        let counting = self.timer.counting.map(|counting| (counting.count, now.since(counting.at)));
        (registers, counting, ends.map(|end| end.since(now))).hash(state);
    }
}

#[cfg(test)]
mod tests;
