//! Runs what was asked for: one boot of the image for each suite.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::clock::Patience;
use crate::command_line::{Boot, memory_mib};
use crate::debugger::{self, Debugger};
use crate::deviations;
use crate::emulator::{self, Qemu};
use crate::error::{Error, StartError};
use crate::goals;
use crate::image;
use crate::line::{self, Line, Lines};
use crate::options::{Accel, ApicMode, Machine, Options};
use crate::recorder::{Exit, Recorder, Wish};
use crate::report::{Outcome, Report, SuiteReport};
use crate::suite::Suite;
use crate::vmcore;

/// Who watches a run.
pub trait Watch {
    /// Something that takes its time, or is good to know, before the first suite.
    fn note(&mut self, remark: &str);
    /// A suite begins.
    fn begin(&mut self, suite: Suite);
    /// The image has said something.
    fn hear(&mut self, line: &Line<'_>);
    /// The suite has ended.
    fn end(&mut self, report: &SuiteReport);
    /// Whether the run is to be stopped.
    fn is_cancelled(&self) -> bool;
}

/// Runs it.
///
/// # Errors
/// What was asked for makes no sense, or the machine, the image or a file is not there. What goes wrong with a machine that
/// has started is in the report.
pub fn run(options: &Options, watch: &mut dyn Watch) -> Result<Report, Error> {
    options.check()?;
    let qemu = find_machine(options)?;
    run_on(&qemu, options, watch)
}

fn run_on(qemu: &Qemu, options: &Options, watch: &mut dyn Watch) -> Result<Report, Error> {
    let begun = Instant::now();
    let kvm = options.accel == Accel::Kvm;
    let cpus = options.cpus();
    let apic = options.mode(qemu.preferred_mode(kvm));
    let mut report = Report {
        machine: options.machine.name(),
        version: qemu.version.to_string(),
        cpus,
        apic: apic.name(),
        suites: vec![],
        seconds: 0.0,
    };
    let lacks = qemu.lacks(cpus, apic, kvm);
    // Not looked for if nothing can run.
    let image = match lacks {
        Some(_) => PathBuf::new(),
        None => image::find(options.image.as_deref(), &mut |remark| watch.note(remark))?,
    };
    for suite in options.suites() {
        let reason = lacks.clone().or_else(|| reason_to_skip(suite, options));
        let one = if let Some(reason) = reason {
            SuiteReport::skipped(suite.name(), reason)
        } else {
            watch.begin(suite);
            let runner = Runner { options, qemu, image: &image, suite, cpus, apic, seed: options.seed };
            if suite == Suite::Crash { runner.repeat(watch)? } else { runner.run(watch)? }
        };
        watch.end(&one);
        report.suites.push(one);
    }
    report.seconds = begun.elapsed().as_secs_f64();
    Ok(report)
}

fn find_machine(options: &Options) -> Result<Qemu, StartError> {
    match options.machine {
        Machine::Bochs if emulator::is_installed("bochs") => return Err(StartError::BochsCannotBoot),
        Machine::Bochs => return Err(StartError::NoBochs),
        Machine::Qemu => {}
    }
    let qemu = Qemu::find()?;
    if options.accel == Accel::Kvm {
        let opened = File::options().read(true).write(true).open("/dev/kvm");
        opened.map_err(|error| StartError::NoKvm { error })?;
    }
    Ok(qemu)
}

/// Why a suite cannot run on such a machine, if it cannot.
fn reason_to_skip(suite: Suite, options: &Options) -> Option<String> {
    if suite.counts_instructions() && options.accel == Accel::Kvm {
        return Some("KVM counts no instructions".into());
    }
    if suite.freezes() && cfg!(not(unix)) {
        return Some("the debugger's stub is reached through a Unix socket".into());
    }
    None
}

/// One run.
struct Runner<'o> {
    options: &'o Options,
    qemu: &'o Qemu,
    image: &'o Path,
    suite: Suite,
    cpus: u32,
    apic: ApicMode,
    seed: u64,
}

impl Runner<'_> {
    /// Crashes as often as operations were asked for, with one seed after the other, until one is not as it should be: that
    /// one is reported; else the last one is, with the sum of all checks.
    fn repeat(mut self, watch: &mut dyn Watch) -> Result<SuiteReport, StartError> {
        let begun = Instant::now();
        let crashes = self.options.operations.unwrap_or(1).max(1);
        let (mut passed, mut skipped, mut done) = (0, 0, 0);
        loop {
            let mut report = self.run(watch)?;
            passed += report.passed;
            skipped += report.skipped;
            done += 1;
            if report.failed > 0 || done == crashes || watch.is_cancelled() {
                (report.passed, report.skipped) = (passed, skipped);
                report.details.counts.insert("crashes".into(), done);
                report.details.seconds = begun.elapsed().as_secs_f64();
                return Ok(report);
            }
            let name = self.suite.name();
            watch.hear(&Line::Progress { name, done, total: crashes });
            self.seed = self.seed.wrapping_add(1);
        }
    }

    fn run(&self, watch: &mut dyn Watch) -> Result<SuiteReport, StartError> {
        let begun = Instant::now();
        let (suite, options) = (self.suite, self.options);
        let directory = tempfile::Builder::new().prefix("smpcall-lab-").tempdir();
        let directory = directory.map_err(|error| StartError::Temporary { what: "directory", error })?;
        let disk = self.disk(&directory)?;
        let socket = suite.freezes().then(|| directory.path().join("debugger"));
        let host_cpus = thread::available_parallelism().map_or(1, usize::from);
        let boot = Boot {
            image: self.image,
            suite,
            cpus: self.cpus,
            apic: self.apic,
            accel: options.accel,
            icount: options.icount || suite.counts_instructions(),
            host_cpus,
            seed: self.seed,
            operations: options.operations,
            drop: options.drop,
            disk: disk.as_deref(),
            debugger: socket.as_deref(),
        };
        let mut recorder = Recorder::new(suite, self.cpus, self.apic, self.seed);
        let mut emulator = Emulator::start(self.qemu, &boot, host_cpus)?;
        let exit = emulator.listen(&mut recorder, socket.as_deref(), watch)?;
        if !recorder.has_come_up()
            && let Exit::Status(1) = exit
        {
            let said = image::last_line(&emulator.complaints());
            return Err(StartError::QemuRefuses { program: self.qemu.program.clone(), said });
        }
        let mut details = recorder.finish(&exit);
        if suite == Suite::Conformance {
            let notes =
                deviations::judge(&mut details.checks, deviations::QEMU, self.qemu.version, self.apic);
            details.notes.extend(notes);
        }
        if suite == Suite::Bench {
            let (goals, checks) = goals::judge(&details.counts, self.cpus);
            details.goals = goals;
            details.checks.extend(checks);
        }
        if let (Some(disk), Some(bytes)) = (&disk, details.vmcore) {
            details.checks.extend(vmcore::check(disk, bytes, self.cpus, self.image));
            if let Some(path) = options.vmcore.as_deref().filter(|_| options.keeps_vmcore_of(suite)) {
                vmcore::keep(disk, bytes, path)?;
                details.notes.push(format!("the vmcore is in {}", path.display()));
            }
        }
        if details.checks.iter().all(|check| check.outcome != Outcome::Failed) {
            details.console.clear();
        }
        details.seconds = begun.elapsed().as_secs_f64();
        Ok(SuiteReport::new(suite.name(), details))
    }

    /// The disk for the vmcore: all of memory, and room for what describes it. Nothing is on it, so it takes no room.
    fn disk(&self, directory: &TempDir) -> Result<Option<PathBuf>, StartError> {
        if !self.suite.crashes() {
            return Ok(None);
        }
        let path = directory.path().join("disk");
        let bytes = (u64::from(memory_mib(self.cpus)) + 64) << 20;
        let made = File::create(&path).and_then(|file| file.set_len(bytes));
        made.map_err(|error| StartError::Temporary { what: "disk", error })?;
        Ok(Some(path))
    }
}

/// The emulator, running. It does not outlive this.
struct Emulator {
    child: Child,
    input: Option<ChildStdin>,
    output: Receiver<Vec<u8>>,
    complaints: Option<thread::JoinHandle<Vec<u8>>>,
    threads: u32,
}

impl Emulator {
    fn start(qemu: &Qemu, boot: &Boot<'_>, host_cpus: usize) -> Result<Self, StartError> {
        let mut command = Command::new(&qemu.program);
        command.args(boot.arguments());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .map_err(|error| StartError::QemuDoesNotStart { program: qemu.program.clone(), error })?;
        let (sender, output) = mpsc::channel();
        let out = child.stdout.take();
        // It ends with the emulator, whose output it reads.
        thread::spawn(move || {
            let Some(mut out) = out else { return };
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = out.read(&mut bytes) {
                if sender.send(bytes[..read].to_vec()).is_err() {
                    break;
                }
            }
        });
        let err = child.stderr.take();
        let complaints = thread::spawn(move || {
            let mut bytes = vec![];
            if let Some(err) = err {
                // What is too long to be a complaint is left unread, which stops nobody but who complains.
                let _ = err.take(1 << 20).read_to_end(&mut bytes);
            }
            bytes
        });
        let input = child.stdin.take();
        let single = boot.accel == Accel::Tcg && (boot.icount || host_cpus < boot.cpus as usize);
        let threads = if single { 1 } else { boot.cpus };
        Ok(Self { child, input, output, complaints: Some(complaints), threads })
    }

    /// Listens until the emulator has ended, and does what the image wishes.
    fn listen(
        &mut self,
        recorder: &mut Recorder,
        socket: Option<&Path>,
        watch: &mut dyn Watch,
    ) -> Result<Exit, StartError> {
        let mut patience = Patience::new(self.child.id(), self.threads);
        let mut lines = Lines::default();
        let mut hand = Hand { socket, debugger: None };
        loop {
            let bytes = match self.output.recv_timeout(Duration::from_millis(100)) {
                Ok(bytes) => bytes,
                Err(RecvTimeoutError::Timeout) => vec![],
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut wishes = vec![];
            lines.feed(&bytes, |text| {
                if let Some(Ok(line)) = line::parse(text) {
                    watch.hear(&line);
                }
                wishes.extend(recorder.hear(text));
            });
            for wish in wishes {
                if let Err(error) = hand.fulfil(wish).and_then(|byte| self.answer(byte)) {
                    self.stop();
                    return Ok(Exit::GivenUp(format!("cannot fulfil its wish ({wish:?}): {error}")));
                }
            }
            if watch.is_cancelled() {
                self.stop();
                return Err(StartError::Interrupted);
            }
            if let Some(why) = patience.has_ended(recorder.news()) {
                self.stop();
                return Ok(Exit::GivenUp(why));
            }
        }
        if let Some(rest) = lines.rest() {
            recorder.hear(&rest);
        }
        // Ctrl-C on a terminal reaches the emulator too, which may be the first to end.
        if watch.is_cancelled() {
            self.stop();
            return Err(StartError::Interrupted);
        }
        Ok(match self.child.wait().map(|status| status.code()) {
            Ok(Some(status)) => Exit::Status(status),
            Ok(None) => Exit::Killed,
            Err(error) => Exit::GivenUp(format!("nobody knows how the emulator ended: {error}")),
        })
    }

    /// Sends a byte to the image's serial line.
    fn answer(&mut self, byte: u8) -> io::Result<()> {
        let input = self.input.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        input.write_all(&[byte])?;
        input.flush()
    }

    /// What it has said on standard error, once it has ended.
    fn complaints(&mut self) -> Vec<u8> {
        self.complaints.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }

    fn stop(&mut self) {
        // It may have ended already, and then there is nothing to stop.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What breaks the machine from outside.
struct Hand<'s> {
    socket: Option<&'s Path>,
    debugger: Option<Stub>,
}

#[cfg(unix)]
type Stub = Debugger<std::os::unix::net::UnixStream>;
#[cfg(not(unix))]
type Stub = Debugger<std::net::TcpStream>;

impl Hand<'_> {
    /// Does it, and says with which byte the image is told.
    fn fulfil(&mut self, wish: Wish) -> io::Result<u8> {
        match wish {
            Wish::Freeze(cpu) => {
                if self.debugger.is_some() {
                    return Err(io::Error::other("one is frozen already"));
                }
                let socket = self.socket.ok_or_else(|| io::Error::other("this suite freezes nobody"))?;
                let mut debugger = debugger::connect(socket)?;
                debugger.freeze(cpu)?;
                self.debugger = Some(debugger);
                Ok(b'f')
            }
            Wish::Thaw => {
                let debugger = self.debugger.take().ok_or_else(|| io::Error::other("nobody is frozen"))?;
                debugger.thaw()?;
                Ok(b't')
            }
        }
    }
}

#[cfg(all(test, unix))]
mod tests;
