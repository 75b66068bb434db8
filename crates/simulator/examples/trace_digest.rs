//! Prints a digest of the event traces of a few campaigns: the same line in every build, on every machine.
//!
//! `.ci/same-trace` runs it in debug and release builds and compares.

use smpcall_simulator::campaign::{Options, Workload, default_routing, run_traced};
use smpcall_simulator::faults::{Probability, parse};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for (cpus, faults) in
        [(2, ""), (16, "delay:p=0.1:by=20us,wedge:cpu=3:at=1ms:for=2ms"), (64, "duplicate:p=0.2")]
    {
        let faults = if faults.is_empty() { Vec::new() } else { parse(faults)? };
        let options = Options {
            cpus,
            routing: default_routing(cpus),
            calls: 4_000,
            workload: Workload::CALLS,
            drop: Probability::new(0.05).ok_or("0.05 is a probability")?,
            faults,
            seed: 7,
        };
        let (report, trace) = run_traced(&options)?;
        let bytes = trace.to_bytes();
        // FNV-1a: enough to compare two builds of one program.
        let digest = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |digest, &byte| {
            (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        println!(
            "{cpus} CPUs: {} calls, {} events, {} bytes, digest {digest:016x}",
            report.calls,
            trace.events.len(),
            bytes.len()
        );
    }
    Ok(())
}
