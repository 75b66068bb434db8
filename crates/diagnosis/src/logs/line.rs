//! One line of a log without what loggers have put around it: levels, times, hosts, colours, quotation marks, callers.

use super::scan::Scan;

/// Who has printed a line, where the kernel says so (`CONFIG_PRINTK_CALLER`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Caller {
    /// A task: its number.
    Task(u32),
    /// A CPU outside of any task.
    Cpu(u32),
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When, in nanoseconds since some moment that is the same for all lines of the same kind.
    pub nanos: Option<u64>,
    /// Who, if known.
    pub caller: Option<Caller>,
    /// What, without blanks around it.
    pub text: String,
}

/// So many bytes of a line are looked at; what a kernel prints in one is shorter.
pub const LONGEST: usize = 4096;

impl Line {
    /// Reads one line, without its end. Any bytes are allowed.
    pub fn of(bytes: &[u8]) -> Self {
        let text = without_escapes(&bytes[..bytes.len().min(LONGEST)]);
        let mut rest = text.as_str();
        // Quoted in a mail, however often.
        while let Some(inner) = rest.trim_start().strip_prefix('>') {
            rest = inner;
        }
        rest = without_level(rest.trim_start());
        let (nanos, after_time) = time(rest);
        rest = after_time;
        if nanos.is_none() {
            rest = without_logger(rest);
        }
        let (caller, rest) = caller(rest);
        Self { nanos, caller, text: rest.trim().to_owned() }
    }
}

/// The text without escape sequences of terminals and without other control characters; a tab becomes a blank.
fn without_escapes(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\x1b' => match characters.peek() {
                // Control sequence: parameters, then one letter.
                Some('[') => {
                    characters.next();
                    while characters.next().is_some_and(|next| !('@'..='~').contains(&next)) {}
                }
                // Title of the window: up to BEL.
                Some(']') => while characters.next().is_some_and(|next| next != '\x07') {},
                _ => {
                    characters.next();
                }
            },
            '\t' => out.push(' '),
            _ if character.is_control() => {}
            _ => out.push(character),
        }
    }
    out
}

/// Without the level that the kernel's ring has in front, as in `<4>`.
fn without_level(text: &str) -> &str {
    let mut scan = Scan(text);
    let level = scan.literal("<").and_then(|()| scan.number()).and_then(|_| scan.literal(">"));
    level.map_or(text, |()| scan.0)
}

/// The time in brackets, wherever a logger has put it, and what follows.
fn time(text: &str) -> (Option<u64>, &str) {
    // Behind date, host and name of the logger.
    const REACH: usize = 128;
    let mut from = 0;
    while let Some(open) = text[from..].find('[').map(|at| from + at).filter(|&at| at < REACH) {
        let inner = &text[open + 1..];
        if let Some((stamp, rest)) = inner.split_once(']')
            && let Some(nanos) = since_boot(stamp.trim()).or_else(|| calendar(stamp.trim()))
        {
            return (Some(nanos), rest);
        }
        from = open + 1;
    }
    (None, text)
}

/// `123.456789`: seconds, and six digits of a fraction.
fn since_boot(stamp: &str) -> Option<u64> {
    let (seconds, micros) = stamp.split_once('.')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(seconds) || !digits(micros) || micros.len() != 6 {
        return None;
    }
    let micros: u64 = micros.parse().ok()?;
    seconds.parse::<u64>().ok()?.checked_mul(1_000_000_000)?.checked_add(micros * 1_000)
}

/// `Mon Nov  3 07:02:11 2025`, as `dmesg -T` writes it. Only differences count: a month is taken for 31 days long.
fn calendar(stamp: &str) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = stamp.split_whitespace();
    words.next().filter(|day| day.len() == 3)?;
    let month = words.next().and_then(|name| MONTHS.iter().position(|month| *month == name))? as u64;
    let day: u64 = words.next()?.parse().ok().filter(|day| (1..=31).contains(day))?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<u64>().ok().filter(|&part| part < 61));
    let (hours, minutes, seconds) = (clock.next()??, clock.next()??, clock.next()??);
    let year: u64 = words.next()?.parse().ok().filter(|year| (1970..2200).contains(year))?;
    let days = ((year - 1970) * 12 + month) * 31 + day;
    Some((((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1_000_000_000)
}

/// Without the date, host and name that syslog or journald put in front of a line that has no time of its own.
fn without_logger(text: &str) -> &str {
    const REACH: usize = 100;
    match text.find(" kernel: ") {
        Some(at) if at < REACH => &text[at + " kernel: ".len()..],
        _ => text,
    }
}

/// The caller in brackets behind the time: `[ T123]`, `[    C2]`.
fn caller(text: &str) -> (Option<Caller>, &str) {
    let mut scan = Scan(text.trim_start());
    let found = (|| {
        scan.literal("[")?;
        scan.blanks();
        let kind = scan.while_(|character| matches!(character, 'T' | 'C'));
        let number = u32::try_from(scan.number()?).ok()?;
        scan.literal("]")?;
        match kind {
            "T" => Some(Caller::Task(number)),
            "C" => Some(Caller::Cpu(number)),
            _ => None,
        }
    })();
    if found.is_some() { (found, scan.0) } else { (None, text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> (Option<u64>, Option<Caller>, String) {
        let line = Line::of(text.as_bytes());
        (line.nanos, line.caller, line.text)
    }

    #[test]
    fn the_same_line_is_found_in_every_wrapping() {
        let at = Some(314_159_265_358_000);
        let bare = "csd: CSD lock (#1) unresponsive.";
        for (wrapped, nanos) in [
            (format!("[314159.265358] {bare}"), at),
            (format!("<4>[314159.265358] {bare}\r"), at),
            (format!("Mar  4 05:06:07 host7 kernel: [314159.265358] \t{bare}"), at),
            (format!("Mar  4 05:06:07 host7 kernel: {bare}"), None),
            (format!("2024-03-04T05:06:07+0000 host7 kernel: {bare}"), None),
            (format!("> > [314159.265358] {bare}"), at),
            (format!("kern  :alert : [314159.265358] {bare}"), at),
            (format!("\x1b[32m[314159.265358] \x1b[0m\x1b[31m{bare}\x1b[0m"), at),
            (bare.to_owned(), None),
        ] {
            assert_eq!(line(&wrapped), (nanos, None, bare.to_owned()), "{wrapped}");
        }
    }

    #[test]
    fn callers_are_told_apart() {
        assert_eq!(
            line("[ 2345.600100][    C2] x"),
            (Some(2_345_600_100_000), Some(Caller::Cpu(2)), "x".into())
        );
        assert_eq!(line("[    0.1][ T1] x").1, None);
        assert_eq!(line("[    0.100000][   T17] x").1, Some(Caller::Task(17)));
        assert_eq!(line("[    0.100000] [ffff8e0b] x").2, "[ffff8e0b] x");
    }

    #[test]
    fn calendar_times_differ_by_what_they_differ() {
        let nanos = |text: &str| line(text).0.expect("a time");
        let day = nanos("[Tue Nov  4 00:00:01 2025] x") - nanos("[Mon Nov  3 23:59:59 2025] x");
        assert_eq!(day, 2_000_000_000);
        assert_eq!(line("[Mon Foo  3 23:59:59 2025] x").0, None);
    }

    #[test]
    fn strange_bytes_are_survived() {
        assert_eq!(line("\0\x07 \x1b[").2, "");
        assert_eq!(Line::of(&[0xff, b'a', 0xfe]).text, "\u{fffd}a\u{fffd}");
        assert_eq!(Line::of(&vec![b'a'; 3 * LONGEST]).text.len(), LONGEST);
        assert_eq!(line("[99999999999999999999.123456] x").0, None);
    }
}
