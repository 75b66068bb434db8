//! What time it is, and when each CPU was last seen to do something: from the time stamps of timers and ticks.
//!
//! No dump says when it was made. Every stamp that some CPU has written lies before; and a CPU that can take interrupts has not
//! yet taken the timer interrupt that is due next, so the moment lies before that (or hardly after). On a machine on which
//! any CPU ticks, that leaves a few milliseconds.
//!
//! All times are nanoseconds of `CLOCK_MONOTONIC`. Source: Linux, `kernel/time/tick-sched.c`, `kernel/time/hrtimer.c`
//! (facts only).

use super::reader::Reader;

/// Ticks of 100, 250, 300, 1000 Hz: `CONFIG_HZ`.
const PERIODS: [u64; 4] = [10_000_000, 4_000_000, 3_333_333, 1_000_000];
/// In `tick_sched.flags`, since Linux 6.8: `TS_FLAG_STOPPED`.
const STOPPED: u64 = 1 << 1;
/// No machine runs for longer: 100 years. Larger values mean "never".
const NEVER: u64 = 100 * 365 * 86_400 * 1_000_000_000;

/// The stamps of one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamps {
    pub(super) cpu: u32,
    /// The last tick that it took, at the latest.
    tick: Option<u64>,
    /// When it last began or ceased to sleep.
    idle: Option<u64>,
    /// When its next timer is due.
    due: Option<u64>,
}

/// What time it is.
#[derive(Clone, Debug, Default)]
pub(super) struct Clock {
    /// Between two ticks.
    pub(super) period: u64,
    /// It is not earlier than this.
    pub(super) earliest: u64,
    /// It is not later than this.
    pub(super) latest: Option<u64>,
    stamps: Vec<Stamps>,
    jiffies: Option<Jiffies>,
}

/// The tick counter, and when it was last counted up.
#[derive(Clone, Copy, Debug)]
struct Jiffies {
    count: u64,
    at: u64,
}

fn time(value: u64) -> Option<u64> {
    (1..NEVER).contains(&value).then_some(value)
}

impl Stamps {
    fn read(reader: Reader<'_>, cpu: u32, period: u64) -> Self {
        let of = |path| reader.of_cpu("tick_cpu_sched", "tick_sched", path, cpu);
        let stopped = of("tick_stopped").or_else(|| Some(of("flags")? & STOPPED)).unwrap_or(0) != 0;
        // A running tick's timer stands at the next one; of a stopped one the next is kept aside.
        let next = if stopped { of("last_tick") } else { of("sched_timer.node.expires") };
        let idle = ["idle_entrytime", "idle_waketime", "idle_exittime"].map(|path| of(path).and_then(time));
        let due = reader.of_cpu("hrtimer_bases", "hrtimer_cpu_base", "expires_next", cpu);
        Self {
            cpu,
            tick: next.and_then(time).map(|next| next.saturating_sub(period)),
            idle: idle.into_iter().flatten().max(),
            due: due.and_then(time),
        }
    }

    fn last(&self) -> Option<u64> {
        self.tick.max(self.idle)
    }
}

impl Clock {
    /// Reads all stamps of these CPUs. `able`: whether a CPU could take interrupts.
    pub(super) fn read(reader: Reader<'_>, cpus: &[u32], able: impl Fn(u32) -> bool) -> Self {
        let at = reader.number("last_jiffies_update", 8).and_then(time);
        let next = reader.number("tick_next_period", 8).and_then(time);
        let apart = at.zip(next).and_then(|(at, next)| next.checked_sub(at));
        let period = reader.number("tick_period", 8).or(apart).and_then(nearest).unwrap_or(PERIODS[0]);
        let stamps = cpus.iter().map(|&cpu| Stamps::read(reader, cpu, period)).collect();
        let jiffies = reader.number("jiffies_64", 8).zip(at).map(|(count, at)| Jiffies { count, at });
        Self::new(period, stamps, jiffies, able)
    }

    fn new(period: u64, stamps: Vec<Stamps>, jiffies: Option<Jiffies>, able: impl Fn(u32) -> bool) -> Self {
        let seen = stamps.iter().filter_map(Stamps::last).chain(jiffies.map(|jiffies| jiffies.at));
        let earliest = seen.max().unwrap_or(0);
        let due = stamps.iter().filter(|stamps| able(stamps.cpu)).filter_map(|stamps| stamps.due);
        // One that is due already is about to be taken.
        let latest = due.min().filter(|_| earliest > 0).map(|due| due.max(earliest));
        Self { period, earliest, latest, stamps, jiffies }
    }

    fn stamps(&self, cpu: u32) -> Option<&Stamps> {
        self.stamps.iter().find(|stamps| stamps.cpu == cpu)
    }

    /// How long ago a CPU took its last tick, or went to sleep or woke: at least and at most. Interrupts were enabled then, or
    /// were just being taken.
    pub(super) fn since_alive(&self, cpu: u32) -> Option<(u64, Option<u64>)> {
        let alive = self.stamps(cpu)?.last()?;
        // The stamp of a tick is the time at which it was due, not at which it was taken.
        let least = self.earliest.saturating_sub(alive).saturating_sub(self.period);
        Some((least, self.latest.map(|latest| latest.saturating_sub(alive))))
    }

    /// How long ago it took its last tick, as far as that is known to a period.
    pub(super) fn since_tick(&self, cpu: u32) -> Option<u64> {
        let tick = self.stamps(cpu)?.tick?;
        Some(self.latest.unwrap_or(self.earliest).saturating_sub(tick))
    }

    /// For how long at least a CPU that sleeps has done nothing else: each interrupt that it takes meanwhile is stamped.
    pub(super) fn asleep(&self, cpu: u32) -> Option<u64> {
        let last = self.stamps(cpu)?.last()?;
        Some(self.earliest.saturating_sub(last))
    }

    /// How long ago a count of jiffies was reached: at least and at most.
    pub(super) fn since_jiffies(&self, count: u64) -> Option<(u64, Option<u64>)> {
        let jiffies = self.jiffies?;
        let back = jiffies.count.checked_sub(count)?.checked_mul(self.period)?;
        let at = jiffies.at.checked_sub(back)?;
        let least = self.earliest.saturating_sub(at).saturating_sub(self.period);
        Some((least, self.latest.map(|latest| latest.saturating_sub(at))))
    }
}

/// The configured period that a measured one is nearest to.
fn nearest(period: u64) -> Option<u64> {
    let near = |&known: &u64| period.abs_diff(known) < known / 20;
    PERIODS.into_iter().find(|known| near(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn stamps(cpu: u32, tick: u64, due: u64) -> Stamps {
        Stamps { cpu, tick: Some(tick), idle: None, due: Some(due) }
    }

    #[test]
    fn the_time_is_after_every_stamp_and_before_what_a_cpu_that_can_take_it_has_not_taken() {
        let clock = Clock::new(
            4 * MS,
            vec![stamps(0, 100 * MS, 104 * MS), stamps(1, 20 * MS, 24 * MS)],
            None,
            |cpu| cpu == 0,
        );
        assert_eq!((clock.earliest, clock.latest), (100 * MS, Some(104 * MS)));
        assert_eq!(clock.since_alive(0), Some((0, Some(4 * MS))));
        assert_eq!(clock.since_alive(1), Some((76 * MS, Some(84 * MS))));
        assert_eq!(clock.since_tick(1), Some(84 * MS));
        assert_eq!(clock.since_alive(2), None);
    }

    #[test]
    fn with_nobody_who_can_take_interrupts_there_is_no_upper_limit() {
        let clock = Clock::new(4 * MS, vec![stamps(0, 100 * MS, 104 * MS)], None, |_| false);
        assert_eq!((clock.latest, clock.since_alive(0)), (None, Some((0, None))));
    }

    #[test]
    fn a_timer_that_is_due_already_does_not_turn_time_back() {
        let clock = Clock::new(4 * MS, vec![stamps(0, 100 * MS, 90 * MS)], None, |_| true);
        assert_eq!(clock.latest, Some(100 * MS));
    }

    #[test]
    fn jiffies_are_times() {
        let jiffies = Some(Jiffies { count: 1000, at: 100 * MS });
        let clock = Clock::new(4 * MS, vec![stamps(0, 100 * MS, 104 * MS)], jiffies, |_| true);
        assert_eq!(clock.since_jiffies(990), Some((36 * MS, Some(44 * MS))));
        assert_eq!(clock.since_jiffies(1001), None, "it is not yet that late");
        assert_eq!(clock.since_jiffies(0), None, "before time began");
    }

    #[test]
    fn periods_are_those_that_kernels_are_built_with() {
        assert_eq!(nearest(4_000_250), Some(4_000_000));
        assert_eq!(nearest(3_333_333), Some(3_333_333));
        assert_eq!(nearest(0), None);
        assert_eq!(nearest(u64::MAX), None);
    }
}
