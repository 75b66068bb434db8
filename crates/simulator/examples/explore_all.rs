use smpcall_simulator::explorer::*;
fn main() {
    let only = std::env::args().nth(1);
    let d = std::env::args().nth(2).map_or(1, |s| s.parse().unwrap());
    let x = std::env::args().nth(3).map_or(1, |s| s.parse().unwrap());
    for p in protocols::ALL {
        if only.as_ref().is_some_and(|o| o != "all" && o != p.name) {
            continue;
        }
        let t = std::time::Instant::now();
        let r = explore(p, Bounds { drops: d, expiries: x, states: 30_000_000 }).unwrap();
        println!(
            "{:16} states {:8} execs {:8} ends {:7} complete {} {:?} {}",
            p.name,
            r.states,
            r.executions,
            r.complete_executions,
            r.complete,
            t.elapsed(),
            r.violation.as_ref().map_or(String::new(), |v| v.what.clone())
        );
        if let Some(v) = &r.violation {
            for o in &v.operations {
                println!("   {o}");
            }
            println!("   {}", v.schedule.iter().map(|c| c.to_string()).collect::<Vec<_>>().join(" "));
        }
    }
}
