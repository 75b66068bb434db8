//! The laws, and how each is judged from what a replay left behind.
//!
//! The books of a call are kept by the replay itself: what its closures counted, what its caller was told, and what
//! the machine's counters say. Nothing here asks the protocol whether it kept its promise.

use core::fmt;
use core::time::Duration;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

/// A law of the project, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Law {
    /// Exactly once or told.
    L1,
    /// A lost ring loses no call.
    L2,
    /// Every wait ends.
    L3,
    /// A given-up wait frees nothing the target can still touch.
    L4,
    /// An offline CPU's mailbox is closed and empty.
    L5,
    /// Waiting CPUs serve.
    L6,
    /// A crash stop is bounded and complete.
    L7,
    /// Nothing old enters the capture kernel.
    L8,
}

impl Law {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::L1, Self::L2, Self::L3, Self::L4, Self::L5, Self::L6, Self::L7, Self::L8];

    /// Its number, as in `L1`.
    pub const fn name(self) -> &'static str {
        ["L1", "L2", "L3", "L4", "L5", "L6", "L7", "L8"][self as usize]
    }

    /// What it says, in a few words.
    pub const fn title(self) -> &'static str {
        match self {
            Self::L1 => "exactly once or told",
            Self::L2 => "a lost ring loses no call",
            Self::L3 => "every wait ends",
            Self::L4 => "a given-up wait frees nothing the target can still touch",
            Self::L5 => "an offline CPU's mailbox is closed and empty",
            Self::L6 => "waiting CPUs serve",
            Self::L7 => "a crash stop is bounded and complete",
            Self::L8 => "nothing old enters the capture kernel",
        }
    }
}

/// Whether a law was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Judgement {
    /// It was put to the test and kept.
    #[serde(rename = "held")]
    Held,
    /// It was broken.
    #[serde(rename = "broken")]
    Broken,
    /// The run did not put it to the test.
    #[serde(rename = "n/a")]
    NotApplicable,
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Held => "held",
            Self::Broken => "broken",
            Self::NotApplicable => "n/a",
        })
    }
}

/// The judgement of every law.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Laws([Judgement; 8]);

impl Laws {
    /// None of them was put to the test.
    pub(crate) const NOT_APPLICABLE: Self = Self([Judgement::NotApplicable; 8]);

    /// These as well, each kept or not.
    #[must_use]
    pub(crate) fn with(mut self, judged_laws: impl IntoIterator<Item = (Law, bool)>) -> Self {
        for (law, held) in judged_laws {
            self.0[law as usize] = judged(held);
        }
        self
    }

    /// The judgement of one law.
    pub const fn get(&self, law: Law) -> Judgement {
        self.0[law as usize]
    }

    /// Each law with its judgement, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (Law, Judgement)> + '_ {
        Law::ALL.into_iter().map(|law| (law, self.get(law)))
    }

    /// Whether none was broken.
    pub fn hold(&self) -> bool {
        !self.0.contains(&Judgement::Broken)
    }
}

impl Serialize for Laws {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(Law::ALL.len()))?;
        for (law, judgement) in self.iter() {
            map.serialize_entry(law.name(), &judgement)?;
        }
        map.end()
    }
}

/// What became of a call to one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TargetBooks {
    /// How often the closure ran there.
    pub(crate) runs: u64,
    /// Whether the caller was told that it did not and never will.
    pub(crate) told: bool,
    /// Whether it has looked into its mailbox since: only then could it have run what was given up.
    pub(crate) looked_since: bool,
}

/// The books of one call to many.
#[derive(Clone, Debug)]
pub(crate) struct CallBooks {
    pub(crate) targets: Vec<TargetBooks>,
    /// How long the caller waited until the call returned; `None` if it never did.
    pub(crate) returned_after: Option<Duration>,
    /// The deadline it asked for, as a time from the call on; `None` for none.
    pub(crate) limit: Option<Duration>,
    /// Rings that a fault lost.
    pub(crate) rings_lost: u64,
    /// Rings that were repeated.
    pub(crate) rings_repeated: u64,
}

/// How much later than its deadline a wait may be over: the withdrawal from each target takes its time. (Ours.)
const WITHDRAWAL: Duration = Duration::from_millis(1);

fn judged(held: bool) -> Judgement {
    if held { Judgement::Held } else { Judgement::Broken }
}

impl CallBooks {
    pub(crate) fn judge(&self) -> Laws {
        let mut laws = Laws::NOT_APPLICABLE;
        laws.0[Law::L1 as usize] = judged(self.targets.iter().all(TargetBooks::accounted_for));
        if self.rings_lost > 0 {
            laws.0[Law::L2 as usize] = judged(self.survives_lost_rings());
        }
        laws.0[Law::L3 as usize] = judged(self.ended_in_time());
        laws.0[Law::L4 as usize] = self.given_up_stays_given_up();
        laws
    }

    /// A target that makes no step cannot break the law, so it does not put it to the test either.
    fn given_up_stays_given_up(&self) -> Judgement {
        let told = || self.targets.iter().filter(|target| target.told);
        if told().any(|target| target.runs > 0) {
            Judgement::Broken
        } else if told().any(|target| target.looked_since) {
            Judgement::Held
        } else {
            Judgement::NotApplicable
        }
    }

    /// Every call was run, and no more rings were repeated than were lost.
    fn survives_lost_rings(&self) -> bool {
        self.returned_after.is_some()
            && self.targets.iter().all(|target| target.runs > 0 || target.told)
            && self.rings_repeated <= self.rings_lost
    }

    fn ended_in_time(&self) -> bool {
        self.returned_after.is_some_and(|waited| self.limit.is_none_or(|limit| waited <= limit + WITHDRAWAL))
    }
}

impl TargetBooks {
    const fn accounted_for(&self) -> bool {
        matches!(self, Self { runs: 1, told: false, .. } | Self { runs: 0, told: true, .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: TargetBooks = TargetBooks { runs: 1, told: false, looked_since: false };

    fn books() -> CallBooks {
        CallBooks {
            targets: vec![RUN; 3],
            returned_after: Some(Duration::from_micros(300)),
            limit: Some(Duration::from_secs(1)),
            rings_lost: 1,
            rings_repeated: 1,
        }
    }

    fn judged_with(change: impl FnOnce(&mut CallBooks)) -> [Judgement; 4] {
        let mut books = books();
        change(&mut books);
        let laws = books.judge();
        assert_eq!(laws.get(Law::L5), Judgement::NotApplicable);
        [Law::L1, Law::L2, Law::L3, Law::L4].map(|law| laws.get(law))
    }

    const HELD: Judgement = Judgement::Held;
    const BROKEN: Judgement = Judgement::Broken;
    const NONE: Judgement = Judgement::NotApplicable;

    #[test]
    fn a_call_that_ran_everywhere_holds_the_laws() {
        assert_eq!(judged_with(|_| {}), [HELD, HELD, HELD, NONE]);
        assert_eq!(
            judged_with(|books| (books.rings_lost, books.rings_repeated) = (0, 0)),
            [HELD, NONE, HELD, NONE]
        );
    }

    #[test]
    fn a_call_neither_run_nor_told_breaks_three_laws() {
        let lost = |books: &mut CallBooks| {
            books.targets[1].runs = 0;
            books.returned_after = None;
            books.rings_repeated = 0;
        };
        assert_eq!(judged_with(lost), [BROKEN, BROKEN, BROKEN, NONE]);
    }

    #[test]
    fn running_twice_breaks_the_first_law() {
        assert_eq!(judged_with(|books| books.targets[0].runs = 2)[0], BROKEN);
    }

    #[test]
    fn ringing_more_often_than_rings_were_lost_breaks_the_second_law() {
        assert_eq!(judged_with(|books| books.rings_repeated = 2)[1], BROKEN);
    }

    #[test]
    fn a_wait_beyond_its_deadline_breaks_the_third_law() {
        assert_eq!(judged_with(|books| books.returned_after = Some(Duration::from_secs(2)))[2], BROKEN);
    }

    #[test]
    fn told_is_held_unless_it_runs_all_the_same() {
        let told = TargetBooks { runs: 0, told: true, looked_since: true };
        assert_eq!(judged_with(|books| books.targets[2] = told), [HELD, HELD, HELD, HELD]);
        let both = TargetBooks { runs: 1, ..told };
        assert_eq!(judged_with(|books| books.targets[2] = both), [BROKEN, HELD, HELD, BROKEN]);
    }
    #[test]
    fn the_fourth_law_is_not_judged_by_a_target_that_never_looks_again() {
        let dead = TargetBooks { runs: 0, told: true, looked_since: false };
        assert_eq!(judged_with(|books| books.targets[2] = dead), [HELD, HELD, HELD, NONE]);
        let awake = TargetBooks { looked_since: true, ..dead };
        assert_eq!(judged_with(|books| books.targets[1..].copy_from_slice(&[awake, dead]))[3], HELD);
    }
}
