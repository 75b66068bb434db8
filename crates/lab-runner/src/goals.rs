//! What a call and a post may cost: guest instructions of all virtual CPUs, counted by QEMU (`-icount shift=0`).

use std::collections::BTreeMap;

use crate::report::{Check, Goal, Outcome};

/// The goal for one figure.
struct Wanted {
    name: &'static str,
    what: &'static str,
    goal: u64,
    /// Measured in the same setting with Linux 6.12; one figure, or those at 4 and at 16 CPUs.
    linux: &'static str,
    /// How many CPUs it takes to measure it.
    cpus: u32,
}

const WANTED: [Wanted; 5] = [
    Wanted {
        name: "call",
        what: "a call to a halted CPU and back",
        goal: 400,
        linux: "1,434 to 1,445",
        cpus: 2,
    },
    Wanted { name: "many_3", what: "a call to 3 halted CPUs and back", goal: 1_000, linux: "4,094", cpus: 4 },
    Wanted {
        name: "many_15",
        what: "a call to 15 halted CPUs and back",
        goal: 4_500,
        linux: "20,685",
        cpus: 16,
    },
    Wanted { name: "post", what: "a post, with its ring, until it returns", goal: 60, linux: "138", cpus: 2 },
    Wanted {
        name: "post_burst",
        what: "a post of a burst, until it returns",
        goal: 25,
        linux: "62",
        cpus: 2,
    },
];

/// Puts the figures beside their goals. A figure that is missing although it could have been measured is a failed check.
pub(crate) fn judge(counts: &BTreeMap<String, u64>, cpus: u32) -> (Vec<Goal>, Vec<Check>) {
    let (mut goals, mut checks) = (vec![], vec![]);
    for &Wanted { name, what, goal, linux, cpus: needed } in &WANTED {
        let (outcome, text) = match counts.get(name) {
            Some(&measured) => {
                let held = measured <= goal;
                goals.push(Goal { name, what, measured, goal, linux, held });
                let outcome = if held { Outcome::Passed } else { Outcome::Failed };
                (outcome, format!("{measured} guest instructions, at most {goal}"))
            }
            None if cpus < needed => (Outcome::Skipped, format!("needs {needed} CPUs")),
            None => (Outcome::Failed, "was not measured".to_owned()),
        };
        checks.push(Check { name: format!("{name}_within_its_goal"), outcome, text });
    }
    (goals, checks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_above_its_goal_fails_and_one_at_it_does_not() {
        let counts = [("call", 400), ("many_3", 1_001), ("post", 10), ("other", 5)];
        let counts = counts.map(|(name, value)| (name.to_owned(), value)).into();
        let (goals, checks) = judge(&counts, 4);
        let outcome =
            |name: &str| checks.iter().find(|check| check.name.starts_with(name)).map(|check| check.outcome);
        assert_eq!(goals.len(), 3);
        assert_eq!(outcome("call_"), Some(Outcome::Passed));
        assert_eq!(outcome("many_3_"), Some(Outcome::Failed));
        assert_eq!(outcome("many_15_"), Some(Outcome::Skipped), "4 CPUs have not 15 others");
        assert_eq!(outcome("post_burst_"), Some(Outcome::Failed), "it could have been measured");
    }
}
