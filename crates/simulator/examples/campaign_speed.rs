use smpcall_simulator::campaign::*;
use smpcall_simulator::faults::*;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let cpus: usize = a[1].parse().unwrap();
    let calls = a[2].parse().unwrap();
    let drop: f64 = a[3].parse().unwrap();
    let seed = a.get(4).map_or(1, |s| s.parse().unwrap());
    let faults = a.get(5).map_or(vec![], |s| parse(s).unwrap());
    let t = std::time::Instant::now();
    let r = run(&Options {
        cpus,
        routing: default_routing(cpus),
        calls,
        drop: Probability::new(drop).unwrap(),
        faults,
        seed,
    })
    .unwrap();
    println!("{r:?}\n{:?}", t.elapsed());
}
