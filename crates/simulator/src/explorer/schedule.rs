//! A schedule as one short line that people copy, and its replay, which fails loudly where the code has changed.
//!
//! `0*3 1i 1*2 0!1 #5f3a`: three steps of CPU 0, an interrupt on CPU 1 and two steps of it, a step of CPU 0 whose
//! message to its first target is lost. The [`Choice`]s are written as they write themselves; `*N` repeats one.
//! The last word is a checksum over what happened when the line was written. In a shell the line needs quotes.

use core::fmt;
use core::str::FromStr;

use super::choice::{Action, Choice};
use super::footprint::{Footprint, Use};
use super::system::{System, Violation};

/// Decisions from the start of an execution, and what must come of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// The decisions, in order.
    pub choices: Vec<Choice>,
    /// A checksum over what happened in it. None: whatever happens is right. A change goes unnoticed with a chance of
    /// 1 in 65,536.
    pub digest: Option<u16>,
}

/// More decisions than this are refused when a schedule is read: `0*4000000000` is a typing error, not a schedule.
pub const MOST_CHOICES: usize = 1_000_000;

impl Schedule {
    /// These decisions, whatever comes of them.
    pub fn new(choices: Vec<Choice>) -> Self {
        Self { choices, digest: None }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut space = "";
        for run in self.choices.chunk_by(|a, b| a == b) {
            write!(f, "{space}{}", run[0])?;
            if run.len() > 1 {
                write!(f, "*{}", run.len())?;
            }
            space = " ";
        }
        match self.digest {
            Some(digest) => write!(f, "{space}#{digest:04x}"),
            None => Ok(()),
        }
    }
}

/// Text that is no schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScheduleError {
    /// A word of it is no decision.
    Choice {
        /// Which word, from 1.
        position: usize,
        /// The word.
        word: String,
    },
    /// What follows `*` is no number of repetitions from 1 to [`MOST_CHOICES`], or there are more decisions in all.
    Repetitions {
        /// Which word, from 1.
        position: usize,
        /// The word.
        word: String,
    },
    /// What begins with `#` is not four hexadecimal digits at the end of the line.
    Digest {
        /// Which word, from 1.
        position: usize,
        /// The word.
        word: String,
    },
}

impl fmt::Display for ScheduleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Choice { position, word } => write!(
                f,
                "word {position} of the schedule, `{word}`, is no decision: write a CPU's number, then nothing for \
                 a step or one of !MASK i n x t f k w, and `*N` to repeat it"
            ),
            Self::Repetitions { position, word } => write!(
                f,
                "word {position} of the schedule, `{word}`, repeats a decision: write a number from 1 after the `*`, \
                 and at most {MOST_CHOICES} decisions in all"
            ),
            Self::Digest { position, word } => write!(
                f,
                "word {position} of the schedule, `{word}`, is no checksum: write `#` and four hexadecimal digits as \
                 the last word, or leave it off"
            ),
        }
    }
}

impl core::error::Error for ScheduleError {}

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let mut schedule = Self::default();
        for (index, word) in text.split_whitespace().enumerate() {
            let place = || (index + 1, word.to_owned());
            let bad_digest = || {
                let (position, word) = place();
                ScheduleError::Digest { position, word }
            };
            if schedule.digest.is_some() {
                return Err(bad_digest());
            }
            if let Some(digits) = word.strip_prefix('#') {
                let hexadecimal = digits.len() == 4 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
                let digest = u16::from_str_radix(digits, 16).ok().filter(|_| hexadecimal);
                schedule.digest = Some(digest.ok_or_else(bad_digest)?);
                continue;
            }
            let (choice, times) = match word.split_once('*') {
                None => (word, Some(1)),
                Some((choice, times)) => (choice, times.parse().ok()),
            };
            let choice: Choice = choice.parse().map_err(|_| {
                let (position, word) = place();
                ScheduleError::Choice { position, word }
            })?;
            let room = MOST_CHOICES - schedule.choices.len();
            let times = times.filter(|times| (1..=room).contains(times)).ok_or_else(|| {
                let (position, word) = place();
                ScheduleError::Repetitions { position, word }
            })?;
            schedule.choices.extend(core::iter::repeat_n(choice, times));
        }
        Ok(schedule)
    }
}

/// How far a replay came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It broke a law, with the last decision or in the state after it.
    Violated(Violation),
    /// The execution came to its end, which has this fingerprint.
    Ended(u64),
    /// The schedule came to its end, and this is what could happen next.
    Open(Vec<Choice>),
}

/// A schedule that was performed to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// What came of it.
    pub outcome: Outcome,
    /// What each decision touched. A decision that broke a law has touched everything.
    pub footprints: Vec<Footprint>,
    /// The checksum over what happened: the [`digest`](Schedule::digest) of this schedule.
    pub digest: u16,
}

/// A schedule that does not fit what it is replayed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Diverged {
    /// A decision cannot be made.
    NotOffered {
        /// How many decisions were made before.
        position: usize,
        /// How many the schedule has.
        of: usize,
        /// The decision.
        asked: Choice,
        /// What could happen instead. Nothing: the execution is at its end.
        offered: Vec<Choice>,
    },
    /// A law broke before the schedule was at its end.
    BrokeEarly {
        /// How many decisions were made.
        position: usize,
        /// How many the schedule has.
        of: usize,
        /// The law.
        violation: Violation,
    },
    /// All decisions could be made, but something else happened than when the schedule was written.
    OtherDigest {
        /// The checksum of the schedule.
        asked: u16,
        /// The checksum of what happened now.
        found: u16,
        /// What came of it.
        outcome: Outcome,
    },
    /// All decisions could be made, but the law that was said to break does not.
    OtherOutcome {
        /// The law, by its short name.
        law: String,
        /// What came of it.
        outcome: Outcome,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Violated(violation) => violation.fmt(f),
            Self::Ended(_) => f.write_str("the execution ends, and no law is broken"),
            Self::Open(_) => f.write_str("no law is broken so far"),
        }
    }
}

impl fmt::Display for Diverged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const WHY: &str = "The schedule belongs to other code, another protocol or other options";
        match self {
            Self::NotOffered { position, of, asked, offered } => {
                write!(f, "decision {} of {of}, `{asked}`, cannot be made here: ", position + 1)?;
                if offered.is_empty() {
                    f.write_str("the execution is at its end")?;
                } else {
                    f.write_str("what can happen is")?;
                    offered.iter().try_for_each(|choice| write!(f, " {choice}"))?;
                }
                write!(f, ". {WHY}: replay it on what it was written for, or explore again")
            }
            Self::BrokeEarly { position, of, violation } => write!(
                f,
                "a law breaks after {position} of {of} decisions already ({violation}). {WHY}: cut the schedule there \
                 to see this, or explore again"
            ),
            Self::OtherDigest { asked, found, outcome } => write!(
                f,
                "all decisions can be made, but not what is written happens (#{found:04x}, and not #{asked:04x}): \
                 {outcome}. {WHY}: leave off #{asked:04x} to see what happens now, or explore again"
            ),
            Self::OtherOutcome { law, outcome } => write!(
                f,
                "all decisions can be made, but `{law}` is not what breaks: {outcome}. {WHY}: replay it on what it was \
                 written for, or explore again"
            ),
        }
    }
}

impl core::error::Error for Diverged {}

/// Performs a schedule, from the start of a new execution.
///
/// # Errors
/// A decision is not offered, a law breaks before the end, or the checksum is another one.
pub fn replay<S: System>(system: &mut S, schedule: &Schedule) -> Result<Replayed, Diverged> {
    replay_with(system, schedule, |_, _| {})
}

/// As [`replay`], with somebody who looks at the system before each decision: `watch` is given the position of the
/// decision, from 0. What the last decision did is seen afterwards, in the system.
///
/// # Errors
/// As [`replay`].
pub fn replay_with<S: System>(
    system: &mut S,
    schedule: &Schedule,
    mut watch: impl FnMut(&mut S, usize),
) -> Result<Replayed, Diverged> {
    let of = schedule.choices.len();
    let (mut footprints, mut offered, mut checksum) = (Vec::with_capacity(of), Vec::new(), Checksum::new());
    system.restart();
    let mut broken = system.choices(&mut offered).err();
    for (position, &asked) in schedule.choices.iter().enumerate() {
        if let Some(violation) = broken {
            return Err(Diverged::BrokeEarly { position, of, violation });
        }
        if !offered.contains(&asked) {
            return Err(Diverged::NotOffered { position, of, asked, offered });
        }
        watch(system, position);
        checksum.decision(asked);
        match system.perform(asked) {
            Ok(footprint) => {
                checksum.footprint(&footprint);
                checksum.number(system.digest());
                footprints.push(footprint);
                broken = system.choices(&mut offered).err();
            }
            Err(violation) => {
                footprints.push(Footprint::EVERYTHING);
                broken = Some(violation);
            }
        }
    }
    let outcome = match broken {
        Some(violation) => Outcome::Violated(violation),
        None if offered.is_empty() => match system.end() {
            Ok(fingerprint) => Outcome::Ended(fingerprint),
            Err(violation) => Outcome::Violated(violation),
        },
        None => Outcome::Open(offered),
    };
    checksum.outcome(&outcome);
    let found = checksum.finish();
    match schedule.digest {
        Some(asked) if asked != found => Err(Diverged::OtherDigest { asked, found, outcome }),
        _ => Ok(Replayed { outcome, footprints, digest: found }),
    }
}

/// FNV-1a over what happens, 64 bits wide, folded to 16. The words of violations are no part of it, so that they can be
/// mended, and neither are hashes of states, which hold for one process only.
struct Checksum(u64);

impl Checksum {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn byte(&mut self, byte: u8) {
        self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }

    fn number(&mut self, number: u64) {
        number.to_le_bytes().into_iter().for_each(|byte| self.byte(byte));
    }

    fn decision(&mut self, choice: Choice) {
        let (kind, targets) = match choice.action {
            Action::Step => (0, 0),
            Action::Lose(targets) => (1, targets),
            Action::Interrupt => (2, 0),
            Action::Nmi => (3, 0),
            Action::Expire => (4, 0),
            Action::TimePasses => (5, 0),
            Action::Flush => (6, 0),
            Action::Tick => (7, 0),
            Action::Wedge => (8, 0),
        };
        self.number(u64::from(choice.cpu) | kind << 16 | u64::from(targets) << 32);
    }

    fn footprint(&mut self, footprint: &Footprint) {
        self.byte(u8::from(footprint.is_everything()));
        for &(place, how) in footprint.uses() {
            let how = match how {
                Use::Read => 1,
                Use::Write => 2,
                Use::Raise => 3,
            };
            self.number(u64::from(place.0) | how << 32);
        }
    }

    fn outcome(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Violated(violation) => {
                self.byte(1);
                violation.law.bytes().for_each(|byte| self.byte(byte));
            }
            Outcome::Ended(fingerprint) => {
                self.byte(2);
                self.number(*fingerprint);
            }
            Outcome::Open(_) => self.byte(3),
        }
    }

    fn finish(&self) -> u16 {
        (self.0 ^ self.0 >> 16 ^ self.0 >> 32 ^ self.0 >> 48) as u16
    }
}

#[cfg(test)]
mod tests;
