use super::super::footprint::Footprint;
use super::super::random;
use super::super::report::Limits;
use super::super::system::Violation;
use super::*;

/// CPU 0 makes so many steps. One thing can happen besides, once, at each of them.
#[derive(Clone)]
struct Line {
    besides: Choice,
    /// What happens here and nowhere else breaks the law.
    place: u32,
    at: u32,
    happened: bool,
}

impl Line {
    const STEPS: u32 = 60;

    fn new(cpu: u16, action: Action, place: u32) -> Self {
        Self { besides: Choice::new(cpu, action), place, at: 0, happened: false }
    }
}

impl System for Line {
    fn restart(&mut self) {
        self.at = 0;
        self.happened = false;
    }

    fn choices(&mut self, choices: &mut Vec<Choice>) -> Result<(), Violation> {
        choices.clear();
        if self.at < Self::STEPS {
            choices.push(Choice::step(0));
            if !self.happened {
                choices.push(self.besides);
            }
        }
        Ok(())
    }

    fn perform(&mut self, choice: Choice) -> Result<Footprint, Violation> {
        if choice == self.besides {
            self.happened = true;
            if self.at == self.place {
                return Err(Violation::new("place", "it happened here"));
            }
        } else {
            self.at += 1;
        }
        Ok(Footprint::EVERYTHING)
    }

    fn cpus(&self) -> u16 {
        2
    }

    fn state_hash(&mut self) -> u128 {
        u128::from(self.at) << 1 | u128::from(self.happened)
    }

    fn end(&mut self) -> Result<u64, Violation> {
        Ok(0)
    }
}

fn drawn(seed: u64, executions: u64) -> sampling::Options {
    let limits = Limits { executions: Some(executions), ..Limits::default() };
    sampling::Options { seed, limits, ..sampling::Options::default() }
}

/// How many executions it takes on average to find it, with one change point.
fn cost(line: &Line) -> u64 {
    const RUNS: u64 = 40;
    let run = |seed| {
        let options = Options { sampling: drawn(seed, 10_000), depth: 2 };
        let exploration = explore(|| line.clone(), &options, &());
        assert!(exploration.found.is_some(), "{:?} seed {seed}", line.besides);
        exploration.executions
    };
    (0..RUNS).map(run).sum::<u64>() / RUNS
}

/// There are 60 places and at most two kinds of change points: 120 executions on average, 240 where half of the
/// drawn priorities are the wrong way round. Drawing evenly needs more than 2 to the power of 40.
#[test]
fn one_event_at_one_place_is_found_in_a_few_hundred_executions() {
    let events = [
        (0, Action::Lose(1)),
        (1, Action::Expire),
        (1, Action::Wedge),
        (1, Action::Tick),
        (0, Action::Interrupt),
        (0, Action::Nmi),
        (1, Action::Step),
        (1, Action::Flush),
    ];
    for (cpu, action) in events {
        for place in [5, 41] {
            let cost = cost(&Line::new(cpu, action, place));
            assert!((30..480).contains(&cost), "{action:?} at {place}: {cost} executions");
        }
    }
    let line = Line::new(0, Action::Lose(1), 41);
    assert_eq!(random::explore(|| line.clone(), &drawn(0, 50_000), &()).found, None);
}

#[test]
fn without_change_points_nothing_rare_happens() {
    for action in [Action::Lose(1), Action::Expire, Action::Wedge, Action::Tick] {
        let line = Line::new(0, action, 0);
        let options = Options { sampling: drawn(1, 1000), depth: 1 };
        let exploration = explore(|| line.clone(), &options, &());
        assert_eq!(exploration.transitions, 1000 * u64::from(Line::STEPS), "{action:?}");
        assert_eq!(exploration.found, None);
    }
}
