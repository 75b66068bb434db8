//! Explores the scenarios and prints a line for each; fails if one is violated or not finished.
//!
//! `cargo run --release -p smpcall-loom -- [SCENARIO]... [--preemptions N|none] [--seconds N] [--fenced]`

use std::process::ExitCode;
use std::time::{Duration, Instant};

use smpcall_loom::{Bound, Limits, Scenario, SeqCst, explore, scenarios};

struct Arguments {
    scenarios: Vec<&'static Scenario>,
    bound: Option<Bound>,
    time: Duration,
    seq_cst: SeqCst,
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut parsed = Arguments {
        scenarios: Vec::new(),
        bound: None,
        time: Duration::from_secs(60),
        seq_cst: SeqCst::AsAcquireRelease,
    };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--fenced" => parsed.seq_cst = SeqCst::Fenced,
            "--seconds" => {
                let number = arguments.next().and_then(|text| text.parse().ok());
                parsed.time = Duration::from_secs(number.ok_or("--seconds needs a number")?);
            }
            "--preemptions" => {
                let text = arguments.next().ok_or("--preemptions needs a number or none")?;
                parsed.bound = Some(match text.parse() {
                    Ok(number) => Bound::Preemptions(number),
                    Err(_) if text == "none" => Bound::None,
                    Err(error) => return Err(format!("--preemptions {text}: {error}")),
                });
            }
            name => parsed.scenarios.push(scenarios::named(name).ok_or_else(|| {
                let names: Vec<_> = scenarios::ALL.iter().map(|scenario| scenario.name).collect();
                format!("no scenario {name}; there are {}", names.join(", "))
            })?),
        }
    }
    if parsed.scenarios.is_empty() {
        parsed.scenarios = scenarios::ALL.iter().collect();
    }
    Ok(parsed)
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    // A violation is printed with its trace; where its panic was raised says little.
    std::panic::set_hook(Box::new(|_| ()));
    let mut good = true;
    for scenario in arguments.scenarios {
        let bound = arguments.bound.unwrap_or(scenario.bound);
        let limits = Limits { time: arguments.time, seq_cst: arguments.seq_cst, ..Limits::within(bound) };
        let start = Instant::now();
        let exploration = explore(scenario, &limits);
        let bound = match bound {
            Bound::None => "all schedules".to_owned(),
            Bound::Preemptions(count) => format!("<= {count} pre-emptions"),
        };
        let result = match &exploration.violation {
            Some(violation) => format!("VIOLATED: {violation}"),
            None if exploration.complete => {
                let outcomes: Vec<_> = exploration.outcomes.iter().copied().collect();
                format!("ok: {}", outcomes.join(", "))
            }
            None => "NOT FINISHED".to_owned(),
        };
        good &= exploration.complete;
        println!(
            "{:12} {:44} {bound:18} {:9} executions {:6.1} s  {result}",
            scenario.name,
            scenario.about,
            exploration.executions,
            start.elapsed().as_secs_f64()
        );
        for step in exploration.trace {
            println!("    {step}");
        }
    }
    ExitCode::from(u8::from(!good))
}
