//! Console logs: any bytes give evidence, evidence gives a report, and all of it can be written down. Seeds: the logs in
//! `crates/diagnosis/tests/fixtures/logs`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smpcall_diagnosis::logs::Reader;
use smpcall_diagnosis::picture;
use smpcall_diagnosis::report::Report;

fuzz_target!(|data: &[u8]| {
    let reader = Reader::new().read_all(data).expect("memory can be read");
    let report = Report::new("log", &reader.evidence(), 0.0);
    assert!(!report.verdicts.is_empty());
    assert!(report.text().starts_with("VERDICT "));
    assert!(looks_like_an_object(&report.json()));
    assert!(picture::svg(&report).ends_with("</svg>\n"));
});

/// Whether it is one object, as far as its ends tell.
fn looks_like_an_object(json: &str) -> bool {
    json.starts_with('{') && json.trim_end().ends_with('}')
}
