//! Explores the protocols of `explorer::protocols` within bounds of your choice: the tests hold the small ones, this is
//! for the large ones, which take minutes.
//!
//! `cargo run --release --example explore -- [PROTOCOL|all] [LOST] [EXPIRED] [STATES]`: the protocol (all of them), how many
//! messages may be lost (1), how many waits may end early (1), and after how many states to give up (30 million).

use std::process::ExitCode;
use std::time::Instant;

use smpcall_simulator::explorer::{Bounds, explore, protocols};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default| match arguments.get(index) {
        Some(argument) => argument.parse().ok(),
        None => Some(default),
    };
    let wanted = arguments.first().map_or("all", String::as_str);
    let protocols: Vec<_> =
        protocols::ALL.iter().filter(|protocol| wanted == "all" || wanted == protocol.name).collect();
    let (Some(drops), Some(expiries), Some(states), false) =
        (number(1, 1), number(2, 1), number(3, 30_000_000), protocols.is_empty())
    else {
        eprintln!("usage: explore [PROTOCOL|all] [LOST] [EXPIRED] [STATES]; the protocols are:");
        for protocol in protocols::ALL {
            eprintln!("  {:18} {}", protocol.name, protocol.about);
        }
        return ExitCode::from(2);
    };

    let mut found = false;
    for protocol in protocols {
        let start = Instant::now();
        let bounds = Bounds { drops, expiries, states: states as usize };
        let exploration = match explore(protocol, bounds) {
            Ok(exploration) => exploration,
            Err(error) => {
                eprintln!("{}: {error}", protocol.name);
                return ExitCode::from(3);
            }
        };
        println!(
            "{:18} {:9} states, {:9} executions, {:6} to the end, {} in {:.1?}",
            protocol.name,
            exploration.states,
            exploration.executions,
            exploration.complete_executions,
            if exploration.complete { "complete" } else { "not complete" },
            start.elapsed()
        );
        if let Some(violation) = exploration.violation {
            found = true;
            let schedule: Vec<String> = violation.schedule.iter().map(ToString::to_string).collect();
            println!("  {}\n  {}", violation.what, schedule.join(" "));
            for operation in violation.operations {
                println!("    {operation}");
            }
        }
    }
    ExitCode::from(u8::from(found))
}
