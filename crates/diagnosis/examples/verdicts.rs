//! During development: one line for each dump, compared with the note beside it.
use smpcall_diagnosis::source::{Format, Source};
fn main() {
    let full = std::env::var("FULL").is_ok();
    for name in std::env::args().skip(1) {
        let report = Source::open(&name, Format::Auto).and_then(|source| source.report());
        if let (Ok(dir), Ok(source)) = (std::env::var("EXTRACT"), Source::open(&name, Format::Auto)) {
            let _ = source.report();
            let (bytes, _) = source.extract().unwrap();
            let stem = name.rsplit('/').next().unwrap().rsplit_once('.').unwrap().0.to_owned();
            let mut note: serde_json::Value = serde_json::from_slice(&std::fs::read(format!("{name}.json")).unwrap()).unwrap();
            note["extract_of"] = serde_json::json!({"file": name.rsplit('/').next().unwrap(), "bytes": std::fs::metadata(&name).unwrap().len()});
            std::fs::write(format!("{dir}/{stem}.vmcore"), &bytes).unwrap();
            std::fs::write(format!("{dir}/{stem}.vmcore.json"), serde_json::to_string_pretty(&note).unwrap() + "\n").unwrap();
            println!("{stem} {} bytes", bytes.len());
        }
        let report = match report { Ok(report) => report, Err(error) => { println!("ERR  {name}: {error}"); continue } };
        let note: Option<serde_json::Value> = std::fs::read(format!("{name}.json")).ok().and_then(|note| serde_json::from_slice(&note).ok());
        let truth = note.map(|note| note["truth"].clone()).unwrap_or_default();
        let first = &report.verdicts[0];
        let kinds: Vec<String> = truth["kinds"].as_array().map(|kinds| kinds.iter().map(|kind| kind.as_str().unwrap_or("").to_owned()).collect()).unwrap_or_default();
        let mut ok = kinds.contains(&first.kind.to_string());
        if first.kind.to_string() != "healthy" {
            ok &= first.cpu.map(u64::from) == truth["cpu"].as_u64();
            let mut want: Vec<u64> = truth["waiters"].as_array().map(|all| all.iter().filter_map(|one| one.as_u64()).collect()).unwrap_or_default();
            if first.kind.to_string() == "mutual-wait" { want.retain(|&cpu| Some(cpu) != truth["cpu"].as_u64()); }
            let mut have: Vec<u64> = first.waiters.iter().map(|&cpu| cpu.into()).collect();
            have.sort(); want.sort();
            ok &= have == want;
        }
        println!("{} {} {:.0} ms: {}{}", if ok {"ok  "} else {"BAD "}, name.rsplit('/').next().unwrap(), report.seconds * 1e3,
            report.verdicts.iter().map(|v| format!("{} {} cpu {:?} culprit {:?} waiters {:?} fn {:?}; ", v.kind, v.confidence, v.cpu, v.culprit, v.waiters, v.function)).collect::<String>(),
            if ok { String::new() } else { format!(" TRUTH {kinds:?} {} {}", truth["cpu"], truth["waiters"]) });
        if full { println!("{}", report.text()); }
    }
}
