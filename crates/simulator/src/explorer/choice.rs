//! One decision of a schedule, and schedules as people write them.

use core::fmt;
use core::str::FromStr;

/// What happens next on one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// It executes its next operation.
    Step,
    /// It executes it, and the message that this sends is lost for some targets: bit n stands for the n-th target, in
    /// ascending order.
    Lose(u16),
    /// It takes its highest deliverable interrupt first.
    Interrupt,
    /// It takes an NMI first.
    Nmi,
    /// Its wait ends by its deadline, although somebody else could move.
    Expire,
    /// Nobody can move: time passes until its deadline, or until its tick.
    TimePasses,
    /// The oldest store in its store buffer reaches memory (total store order).
    Flush,
    /// Its timer ticks.
    Tick,
    /// It makes no step from now on: interrupts disabled for ever, NMIs included.
    Wedge,
}

/// One decision of a schedule: a CPU, and what happens next on it.
///
/// Written as the CPU's number and a letter for all but a step: `0`, `0!1` (loses the message to the first target),
/// `0i`, `0n`, `0x` (expires), `0t` (time passes), `0f` (flush), `0k` (tick), `0w` (wedge).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Choice {
    /// The CPU's number.
    pub cpu: u16,
    /// What happens on it.
    pub action: Action,
}

impl Choice {
    /// This action on this CPU.
    pub const fn new(cpu: u16, action: Action) -> Self {
        Self { cpu, action }
    }

    /// A step of this CPU.
    pub const fn step(cpu: u16) -> Self {
        Self::new(cpu, Action::Step)
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cpu)?;
        match self.action {
            Action::Step => Ok(()),
            Action::Lose(targets) => write!(f, "!{targets:x}"),
            Action::Interrupt => f.write_str("i"),
            Action::Nmi => f.write_str("n"),
            Action::Expire => f.write_str("x"),
            Action::TimePasses => f.write_str("t"),
            Action::Flush => f.write_str("f"),
            Action::Tick => f.write_str("k"),
            Action::Wedge => f.write_str("w"),
        }
    }
}

/// Text that is no choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChoiceError(pub String);

impl fmt::Display for ChoiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is no decision of a schedule: a CPU's number, then nothing for a step or one of !MASK i n x t f k w",
            self.0
        )
    }
}

impl core::error::Error for ChoiceError {}

impl FromStr for Choice {
    type Err = ChoiceError;

    fn from_str(text: &str) -> Result<Self, ChoiceError> {
        let error = || ChoiceError(text.to_owned());
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let cpu = text[..digits].parse().map_err(|_| error())?;
        let action = match &text[digits..] {
            "" => Action::Step,
            "i" => Action::Interrupt,
            "n" => Action::Nmi,
            "x" => Action::Expire,
            "t" => Action::TimePasses,
            "f" => Action::Flush,
            "k" => Action::Tick,
            "w" => Action::Wedge,
            losing => {
                let mask = losing.strip_prefix('!').and_then(|mask| u16::from_str_radix(mask, 16).ok());
                Action::Lose(mask.filter(|&mask| mask != 0).ok_or_else(error)?)
            }
        };
        Ok(Self { cpu, action })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_is_read_as_it_was_written() {
        let actions = [
            Action::Step,
            Action::Lose(1),
            Action::Lose(0xffff),
            Action::Interrupt,
            Action::Nmi,
            Action::Expire,
            Action::TimePasses,
            Action::Flush,
            Action::Tick,
            Action::Wedge,
        ];
        for cpu in [0, 9, 65535] {
            for action in actions {
                let choice = Choice::new(cpu, action);
                assert_eq!(choice.to_string().parse(), Ok(choice));
            }
        }
    }

    #[test]
    fn what_is_no_choice_is_refused() {
        for text in ["", "i", "0!", "0!0", "0!g", "0ii", "65536", "-1", "0 ", "0\u{e9}"] {
            assert!(text.parse::<Choice>().is_err(), "{text:?}");
        }
    }
}
