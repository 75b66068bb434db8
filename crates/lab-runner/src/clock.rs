//! How long to wait for a machine that gets on at the pace of a busy host.

use std::time::{Duration, Instant};

/// How much time of the processor an emulator may use without saying anything new, for each thread that executes guest
/// code. 255 CPUs take up to 10 s until the image says its first line.
const BUSY: Duration = Duration::from_secs(60);

/// How much time of the clock it may take: the host may be busy with other things, and a guest in which every CPU is
/// halted uses no time at all.
const SILENT: Duration = Duration::from_secs(300);

/// Since when nothing new was said.
pub(crate) struct Patience {
    process: u32,
    threads: u32,
    news: u64,
    since: Instant,
    used_then: Duration,
}

impl Patience {
    /// For this process, of which so many threads execute guest code.
    pub(crate) fn new(process: u32, threads: u32) -> Self {
        Self { process, threads, news: 0, since: Instant::now(), used_then: Duration::ZERO }
    }

    /// Why it has ended, if it has. `news` counts what was said.
    pub(crate) fn has_ended(&mut self, news: u64) -> Option<String> {
        let used = used(self.process).unwrap_or(Duration::ZERO);
        if news != self.news {
            (self.news, self.since, self.used_then) = (news, Instant::now(), used);
            return None;
        }
        let busy = used.saturating_sub(self.used_then);
        over(self.since.elapsed(), busy, self.threads)
    }
}

/// Why it is over after so much time of the clock and of the processors, if it is.
fn over(silent: Duration, busy: Duration, threads: u32) -> Option<String> {
    if busy <= BUSY * threads && silent <= SILENT {
        return None;
    }
    let (silent, busy) = (silent.as_secs(), busy.as_secs());
    Some(format!("no progress for {silent} s ({busy} s of the host's processors): stopped"))
}

/// How much time of the processor this process has used, if the system tells: `/proc/PID/stat`, fields 14 and 15, in
/// hundredths of a second (proc(5); `USER_HZ` is 100 wherever this runs).
fn used(process: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    ticks(&stat).map(|ticks| Duration::from_millis(ticks.saturating_mul(10)))
}

fn ticks(stat: &str) -> Option<u64> {
    // The second field is the program's name, in parentheses, with anything in it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    next()?.checked_add(next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_behind_any_name() {
        let stat = "12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 120 30 0 0 20 0";
        assert_eq!(ticks(stat), Some(150));
        assert_eq!(ticks("12 (a) S 1"), None);
        assert_eq!(ticks(""), None);
    }

    #[test]
    fn a_busy_host_is_waited_for_and_a_busy_guest_is_not() {
        let seconds = Duration::from_secs;
        assert_eq!(over(seconds(299), seconds(59), 1), None, "others have the processors");
        assert!(over(seconds(301), seconds(0), 1).expect("is over").contains("no progress for 301 s"));
        assert!(over(seconds(61), seconds(61), 1).is_some());
        assert_eq!(over(seconds(61), seconds(200), 4), None, "four of them work");
    }

    #[test]
    fn news_is_waited_for_again() {
        let mut patience = Patience::new(std::process::id(), 1);
        patience.since = Instant::now();
        patience.used_then = Duration::from_secs(7);
        assert_eq!(patience.has_ended(1), None);
        assert_eq!(patience.news, 1);
        assert!(patience.used_then < Duration::from_secs(7), "what was used until the news counts no more");
    }
}
