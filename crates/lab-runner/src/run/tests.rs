//! What a run makes of an emulator that misbehaves: a shell script stands for it.

use std::cell::Cell;
use std::fs;

use super::*;
use crate::emulator::Version;

/// What came of it, and what was heard.
#[derive(Default)]
struct Heard {
    lines: usize,
    ended: usize,
    cancel: Cell<bool>,
}

impl Watch for Heard {
    fn note(&mut self, _: &str) {}
    fn begin(&mut self, _: Suite) {}
    fn hear(&mut self, _: &Line<'_>) {
        self.lines += 1;
    }
    fn end(&mut self, _: &SuiteReport) {
        self.ended += 1;
    }
    fn is_cancelled(&self) -> bool {
        self.cancel.get()
    }
}

/// An emulator that does this, a file that looks like an image, and where it is.
///
/// The script itself is not executed but read by one that nobody writes: a file that another thread's child still has
/// open for writing cannot be executed.
fn emulator(script: &str, version: Version) -> (Qemu, PathBuf, TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let image = directory.path().join("image");
    fs::write(directory.path().join("image.sh"), script).expect("is written");
    fs::write(&image, image::testing::elf(*b"Xen\0", image::PVH_ENTRY)).expect("is written");
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/run/emulator.sh");
    (Qemu { program, version }, image, directory)
}

fn run_suites(script: &str, suites: &[Suite], heard: &mut Heard) -> Result<Report, Error> {
    let (qemu, image, _directory) = emulator(script, Version::new(10, 0, 2));
    let options = Options { suites: suites.to_vec(), image: Some(image), ..Options::default() };
    run_on(&qemu, &options, heard)
}

fn run_script(script: &str) -> SuiteReport {
    let report = run_suites(script, &[Suite::Calls], &mut Heard::default()).expect("starts");
    report.suites.into_iter().next().expect("one suite")
}

const UP: &str = "echo '@ lab version=1 cpus=4 apic=x2apic tsc_khz=1'; echo '@ suite calls begin'";
const OVER: &str = "echo '@ suite calls end'; echo '@ end 1 0 0'; exit 33";

#[test]
fn a_run_from_the_first_line_to_the_last_has_passed() {
    let mut heard = Heard::default();
    let script = format!("{UP}; echo '@ pass a'; {OVER}");
    let report = run_suites(&script, &[Suite::Calls], &mut heard).expect("starts");
    let suite = &report.suites[0];
    assert_eq!((suite.passed, suite.failed, suite.skipped), (1, 0, 0), "{suite:?}");
    assert!(report.is_right() && suite.details.console.is_empty());
    assert_eq!((report.version.as_str(), report.cpus, report.apic), ("10.0.2", 4, "x2apic"));
    assert_eq!((heard.lines, heard.ended), (5, 1));
}

#[test]
fn each_suite_is_a_run_of_its_own() {
    let script = r#"for word; do case $word in suite=*) name=${word#suite=};; esac; done
echo "@ lab version=1 cpus=4 apic=x2apic tsc_khz=1"
[ "$name" = posts ] && exit 0
echo "@ suite $name begin"; echo "@ pass a"; echo "@ suite $name end"; echo "@ end 1 0 0"; exit 33"#;
    let suites = [Suite::Calls, Suite::Posts, Suite::Hotplug];
    let report = run_suites(script, &suites, &mut Heard::default()).expect("starts");
    let failed: Vec<u64> = report.suites.iter().map(|suite| suite.failed).collect();
    assert_eq!(failed, [0, 1, 0], "{:?}", report.suites);
}

#[test]
fn a_run_that_breaks_off_shows_the_end_of_the_console() {
    let suite = run_script(&format!("{UP}; echo '@ pass a'; echo panicked; printf 'at cross_ca'; exit 37"));
    assert_eq!(suite.failed, 1, "{suite:?}");
    assert_eq!(suite.details.console.last().map(String::as_str), Some("at cross_ca"), "the partial line too");
    assert!(suite.details.console.contains(&"panicked".to_owned()));
}

#[test]
fn a_triple_fault_is_no_success() {
    let suite = run_script(&format!("{UP}; exit 0"));
    assert!(suite.details.checks[0].text.contains("reset"), "{suite:?}");
}

#[test]
fn an_emulator_that_is_killed_is_told() {
    let suite = run_script(&format!("{UP}; kill -9 $$"));
    assert!(suite.details.checks[0].text.contains("killed"), "{suite:?}");
}

#[test]
fn an_emulator_that_does_not_start_the_machine_is_no_failed_suite() {
    let script = "echo 'qemu: -smp 4: no such thing' >&2; exit 1";
    let error = run_suites(script, &[Suite::Calls], &mut Heard::default()).expect_err("does not start");
    assert!(error.to_string().contains("-smp 4: no such thing"), "{error}");
}

#[test]
fn who_cancels_does_not_wait() {
    let heard = &mut Heard::default();
    heard.cancel.set(true);
    let begun = Instant::now();
    let result = run_suites(&format!("{UP}; exec sleep 600"), &[Suite::Calls], heard);
    assert!(matches!(result, Err(Error::Start(StartError::Interrupted))), "{result:?}");
    assert!(begun.elapsed() < Duration::from_secs(300), "the emulator was stopped, not waited for");
}

#[test]
fn a_wish_that_cannot_be_fulfilled_ends_the_run() {
    let suite = run_script(&format!("{UP}; echo '@ freeze 1'; exec sleep 600"));
    assert!(suite.details.checks[0].text.contains("this suite freezes nobody"), "{suite:?}");
}

#[test]
fn what_the_version_cannot_do_is_skipped_with_the_reason() {
    let (qemu, image, _directory) = emulator("exit 1", Version::new(7, 2, 19));
    let options = Options { image: Some(image), apic: Some(ApicMode::X2Apic), ..Options::default() };
    let report = run_on(&qemu, &options, &mut Heard::default()).expect("nothing is started");
    assert!(!report.suites.is_empty() && report.is_right());
    for suite in report.suites {
        assert_eq!((suite.passed, suite.skipped), (0, 1), "{}", suite.name);
        assert_eq!(suite.details.checks[0].outcome, Outcome::Skipped);
        assert!(suite.details.checks[0].text.contains("emulates no x2APIC"), "{suite:?}");
    }
}
