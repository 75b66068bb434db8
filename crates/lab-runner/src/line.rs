//! The lines that the image prints for machines: one word after `@ ` says what follows.
//!
//! What is on a serial line can be anything: firmware, two CPUs at once, a guest that dies in the middle of a word. So
//! a line that begins with `@ ` and cannot be read is an error and not text: it could have been a failed check.

use std::fmt;

/// The version of the contract between image and runner.
pub const CONTRACT: u64 = 1;

/// One line for machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line<'t> {
    /// The image has come up.
    Lab(Lab),
    /// A suite begins.
    Begin(&'t str),
    /// A suite has ended.
    End(&'t str),
    /// How far something is.
    Progress {
        /// What it is.
        name: &'t str,
        /// How much of it is done.
        done: u64,
        /// Of how much.
        total: u64,
    },
    /// A figure of the running suite.
    Count {
        /// Its name.
        name: &'t str,
        /// Its value, in the unit that its name implies.
        value: u64,
    },
    /// A check of the running suite, and what came of it.
    Check(Verdict, &'t str, &'t str),
    /// The suite wants this CPU to stand still.
    Freeze(u32),
    /// The suite wants it to go on.
    Thaw,
    /// The capture kernel has begun.
    Capture,
    /// The vmcore is complete: its length in bytes.
    Vmcore(u64),
    /// The run is over: how many checks held, did not hold, and were skipped.
    Over {
        /// How many held.
        passed: u64,
        /// How many did not.
        failed: u64,
        /// How many were not made.
        skipped: u64,
    },
}

/// What the image says of the machine when it comes up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lab {
    /// The version of the contract that it keeps.
    pub version: u64,
    /// How many CPUs run.
    pub cpus: u32,
    /// In which mode their APICs are: `xapic` or `x2apic`.
    pub apic: String,
    /// How many times the time stamp counter counts in a millisecond.
    pub tsc_khz: u64,
}

/// What came of a check, as the image says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It held.
    Pass,
    /// It did not.
    Fail,
    /// It was not made.
    Skip,
}

/// A line for machines that no machine can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a line for machines cannot be read")
    }
}

/// Reads a line without its end, or returns `None` if it is for people.
///
/// # Errors
/// It begins with `@ ` and says nothing that is in the contract.
pub fn parse(text: &str) -> Option<Result<Line<'_>, Unreadable>> {
    let text = text.strip_prefix("@ ")?;
    Some(read(text.trim_end()).ok_or(Unreadable))
}

fn read(text: &str) -> Option<Line<'_>> {
    let (word, rest) = split(text);
    let mut words = rest.split_ascii_whitespace();
    let line = match word {
        "lab" => return lab(rest).map(Line::Lab),
        "pass" => return check(Verdict::Pass, rest),
        "fail" => return check(Verdict::Fail, rest),
        "skip" => return check(Verdict::Skip, rest),
        "suite" => {
            let name = name(words.next()?)?;
            match words.next()? {
                "begin" => Line::Begin(name),
                "end" => Line::End(name),
                _ => return None,
            }
        }
        "progress" => {
            let name = name(words.next()?)?;
            Line::Progress { name, done: number(words.next()?)?, total: number(words.next()?)? }
        }
        "count" => Line::Count { name: name(words.next()?)?, value: number(words.next()?)? },
        "freeze" => Line::Freeze(u32::try_from(number(words.next()?)?).ok()?),
        "thaw" => Line::Thaw,
        "capture" => (words.next()? == "begin").then_some(Line::Capture)?,
        "vmcore" => Line::Vmcore(number(words.next()?)?),
        "end" => Line::Over {
            passed: number(words.next()?)?,
            failed: number(words.next()?)?,
            skipped: number(words.next()?)?,
        },
        _ => return None,
    };
    words.next().is_none().then_some(line)
}

/// The first word, and what follows it.
fn split(text: &str) -> (&str, &str) {
    text.split_once(' ').map_or((text, ""), |(word, rest)| (word, rest.trim_start()))
}

fn check(verdict: Verdict, rest: &str) -> Option<Line<'_>> {
    let (word, text) = split(rest);
    Some(Line::Check(verdict, name(word)?, text))
}

fn lab(rest: &str) -> Option<Lab> {
    let mut lab = Lab::default();
    for word in rest.split_ascii_whitespace() {
        let (key, value) = word.split_once('=')?;
        match key {
            "version" => lab.version = number(value)?,
            "cpus" => lab.cpus = u32::try_from(number(value)?).ok()?,
            "apic" => name(value)?.clone_into(&mut lab.apic),
            "tsc_khz" => lab.tsc_khz = number(value)?,
            // What a later image may say besides.
            _ => {}
        }
    }
    (lab.cpus > 0 && !lab.apic.is_empty()).then_some(lab)
}

fn name(word: &str) -> Option<&str> {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-';
    (!word.is_empty() && word.bytes().all(legal)).then_some(word)
}

/// Digits and nothing else: `parse` alone would take a sign.
fn number(word: &str) -> Option<u64> {
    word.bytes().all(|byte| byte.is_ascii_digit()).then(|| word.parse().ok())?
}

/// Takes a stream of bytes apart into lines.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
    cut: bool,
}

/// The longest line that is kept, in bytes. What is longer is cut.
pub const LONGEST: usize = 4096;

impl Lines {
    /// Takes the next bytes of the stream, and hands over each line that they complete: without its end, without
    /// control characters, and with replacement characters for what is not UTF-8.
    pub fn feed(&mut self, bytes: &[u8], mut line: impl FnMut(&str)) {
        for &byte in bytes {
            if byte == b'\n' {
                let text = self.take();
                line(&text);
            } else if self.partial.len() < LONGEST {
                self.partial.push(byte);
            } else {
                self.cut = true;
            }
        }
    }

    /// What has come of a line that was never completed.
    pub fn rest(&mut self) -> Option<String> {
        (!self.partial.is_empty()).then(|| self.take())
    }

    fn take(&mut self) -> String {
        let bytes = std::mem::take(&mut self.partial);
        let mut text = plain(&String::from_utf8_lossy(&bytes));
        if std::mem::take(&mut self.cut) {
            text.push_str(" [cut]");
        }
        text
    }
}

/// The text without control sequences and characters: it is shown on somebody's terminal.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == '\x1b' && characters.next_if_eq(&'[').is_some() {
            // Parameters, then one letter that ends the sequence.
            while characters.next_if(|next| ('\x20'..='\x3f').contains(next)).is_some() {}
            characters.next_if(|next| ('\x40'..='\x7e').contains(next));
        } else if character == '\t' {
            out.push(' ');
        } else if !character.is_control() {
            out.push(character);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Line<'_> {
        parse(text).expect("for machines").expect("readable")
    }

    fn lines(bytes: &[u8]) -> Vec<String> {
        let (mut lines, mut found) = (Lines::default(), vec![]);
        lines.feed(bytes, |line| found.push(line.to_owned()));
        found.extend(lines.rest());
        found
    }

    #[test]
    fn every_line_of_the_contract_is_read() {
        let lab = Lab { version: 1, cpus: 16, apic: "x2apic".into(), tsc_khz: 2_000_000 };
        assert_eq!(read("@ lab version=1 cpus=16 apic=x2apic tsc_khz=2000000 later=x"), Line::Lab(lab));
        assert_eq!(read("@ suite calls begin"), Line::Begin("calls"));
        assert_eq!(read("@ suite incident-1 end"), Line::End("incident-1"));
        assert_eq!(read("@ progress calls 5 10"), Line::Progress { name: "calls", done: 5, total: 10 });
        assert_eq!(read("@ count call_1 398"), Line::Count { name: "call_1", value: 398 });
        assert_eq!(read("@ pass a_name and  why "), Line::Check(Verdict::Pass, "a_name", "and  why"));
        assert_eq!(read("@ fail a_name"), Line::Check(Verdict::Fail, "a_name", ""));
        assert_eq!(read("@ skip a_name no timer"), Line::Check(Verdict::Skip, "a_name", "no timer"));
        assert_eq!(read("@ freeze 3"), Line::Freeze(3));
        assert_eq!(read("@ thaw"), Line::Thaw);
        assert_eq!(read("@ capture begin"), Line::Capture);
        assert_eq!(read("@ vmcore 1234"), Line::Vmcore(1234));
        assert_eq!(read("@ end 3 2 1"), Line::Over { passed: 3, failed: 2, skipped: 1 });
    }

    #[test]
    fn what_could_have_been_a_failed_check_is_not_taken_for_text() {
        for line in [
            "@ ",
            "@ fai",
            "@ fail",
            "@ fail Name",
            "@ pass a@ fail b",
            "@ suite calls",
            "@ suite calls begin again",
            "@ progress calls 5",
            "@ count x -1",
            "@ count x +1",
            "@ count x 99999999999999999999",
            "@ freeze 4294967296",
            "@ end 1 2",
            "@ lab cpus=0 apic=xapic",
            "@ lab cpus=4",
            "@ thaw now",
        ] {
            assert_eq!(parse(line), Some(Err(Unreadable)), "{line}");
        }
        for text in ["", "@", "@fail x", " @ fail x", "pass"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn lines_are_the_same_however_the_bytes_come() {
        let bytes = b"one\r\n\x1b[2J@ pass a_b c\xff\nlast";
        let whole = lines(bytes);
        assert_eq!(whole, ["one", "@ pass a_b c\u{fffd}", "last"]);
        let (mut split, mut found) = (Lines::default(), vec![]);
        for byte in bytes {
            split.feed(&[*byte], |line| found.push(line.to_owned()));
        }
        found.extend(split.rest());
        assert_eq!(found, whole);
    }

    #[test]
    fn an_endless_line_is_cut_and_the_next_one_is_whole() {
        let mut bytes = vec![b'x'; 10 * LONGEST];
        bytes.extend(b"\n@ thaw\n");
        let found = lines(&bytes);
        assert_eq!(found[0].len(), LONGEST + " [cut]".len());
        assert_eq!(found[1..], ["@ thaw"]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_lines_without_control_characters(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            for line in lines(&bytes) {
                prop_assert!(!line.chars().any(char::is_control));
                let _ = parse(&line);
            }
        }

        #[test]
        fn any_words_after_the_mark_are_read_or_refused(text in "@ (lab|suite|progress|count|pass|fail|skip|freeze|vmcore|end)[ a-z0-9=_-]{0,40}") {
            prop_assert!(parse(&text).is_some());
        }

        #[test]
        fn a_check_comes_through_whatever_its_text_is(name in "[a-z0-9_-]{1,20}", text in "[^\\p{Cc}]{0,40}") {
            let line = format!("@ fail {name} {text}");
            let Some(Ok(Line::Check(Verdict::Fail, read, _))) = parse(&line) else {
                return Err(TestCaseError::fail(line));
            };
            prop_assert_eq!(read, name);
        }

        #[test]
        fn figures_come_through(value in any::<u64>(), done in any::<u64>(), total in any::<u64>()) {
            let line = format!("@ count some_figure {value}");
            prop_assert_eq!(parse(&line), Some(Ok(Line::Count { name: "some_figure", value })));
            let line = format!("@ progress x {done} {total}");
            prop_assert_eq!(parse(&line), Some(Ok(Line::Progress { name: "x", done, total })));
        }
    }
}
