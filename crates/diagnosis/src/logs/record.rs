//! What a line says, if it is one of those that tell of calls and of CPUs that hang.
//!
//! The forms are those of Linux' `kernel/smp.c`, `kernel/watchdog.c`, `kernel/rcu/tree_stall.h`, `lib/nmi_backtrace.c` and the
//! architectures' dumps of registers, from 2.6 to today (facts only), of the tool `crash`, and of QEMU's monitor.

use super::scan::{self, Scan};
use super::trace;
use crate::evidence::{Detector, Frame, StackKind};

/// One line that says something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A call has been waited for too long (`csd: Detected non-responsive ...`).
    CallOverdue {
        /// The number of the report.
        report: u64,
        /// Who waits.
        waiter: u32,
        /// For how long, in nanoseconds.
        nanos: Option<u64>,
        /// For whom, if the kernel knows.
        target: Option<u32>,
        /// What is to be run.
        function: Option<String>,
    },
    /// What the target does with it.
    CallState {
        /// The number of the report.
        report: u64,
        /// What.
        state: TargetState,
    },
    /// The IPI was sent again.
    RungAgain {
        /// The number of the report.
        report: u64,
    },
    /// The wait has come to an end.
    CallEnded {
        /// The number of the report.
        report: u64,
    },
    /// One of the events that kernels from 5.13 to 6.3 list: `csd: cnt(63d8dd8): 0003->0037 ipi`.
    CallEvent {
        /// The running number, in the order in which things happened.
        count: u64,
        /// Who has done it; none: not recorded.
        source: Option<u32>,
        /// To whom; none: nobody in particular.
        target: Option<u32>,
        /// What: `queue`, `ipi`, `noipi`, `ping`, `pinged`, `idle`, `gotipi`, `handle`, `dequeue`, `hdlend`.
        kind: String,
    },
    /// A CPU has calls in its queue while it is offline.
    OfflineQueue {
        /// Which, if it is said.
        cpu: Option<u32>,
        /// What was to be run, if it is said.
        function: Option<String>,
    },
    /// A CPU hangs.
    Stall {
        /// Which; none: the next lines say it.
        cpu: Option<u32>,
        /// Who found it.
        detector: Detector,
        /// For how long, in nanoseconds.
        nanos: Option<u64>,
        /// The task that it ran.
        task: Option<(String, Option<u32>)>,
    },
    /// A row of an RCU stall: which CPU has held it up.
    StallRow {
        /// Which.
        cpu: u32,
        /// How many timer interrupts it has taken in this grace period.
        ticks: Option<u64>,
    },
    /// How a CPU has spent the last sampling period of a soft lockup.
    Utilisation {
        /// In interrupt handlers, in per cent.
        interrupts: u64,
    },
    /// CPUs are asked by an NMI where they are.
    NmiSent {
        /// Which.
        cpus: Vec<u32>,
    },
    /// The answer of one begins.
    NmiAnswer {
        /// Whose.
        cpu: u32,
        /// That it idles, and where.
        idle: Option<String>,
    },
    /// From here on it is about the task that a CPU runs, seen from outside.
    TaskDump {
        /// Which CPU.
        cpu: u32,
    },
    /// The head of a dump: which CPU, task and kernel.
    Header {
        /// Which CPU.
        cpu: u32,
        /// Its task.
        task: Option<(String, Option<u32>)>,
        /// The kernel's release.
        release: Option<String>,
    },
    /// The head of a back trace that the tool `crash` has printed.
    CrashHeader {
        /// Which CPU.
        cpu: u32,
        /// Its task.
        task: (String, Option<u32>),
    },
    /// The instruction pointer.
    InstructionPointer {
        /// The function, if it is in the kernel.
        frame: Option<Frame>,
        /// Whether it is in a user program.
        user_mode: Option<bool>,
        /// Whether interrupts are enabled, where the flags stand on the same line.
        interrupts_enabled: Option<bool>,
    },
    /// The flags: whether interrupts are enabled.
    Flags {
        /// Whether they are.
        interrupts_enabled: bool,
    },
    /// A frame of a back trace.
    Frame(Frame),
    /// A back trace begins.
    TraceBegins,
    /// A back trace has ended, or something else begins.
    TraceEnds,
    /// The following frames lie on this stack; at its end on the task's.
    Stack(StackKind),
    /// The frames until here lay on this stack (`crash`).
    StackWas(StackKind),
    /// A warning or the like begins or ends; what it dumps is no hang.
    Warning(bool),
    /// The kernel gives up.
    Panic(String),
    /// So many CPUs were started.
    CpuCount(u32),
    /// The kernel's release.
    Release(String),
    /// There is a hypervisor.
    Hypervisor(String),
    /// One of the properties of the processor, as in `/proc/cpuinfo`.
    Processor(&'static str, String),
    /// The state of a local APIC follows (`info lapic`).
    ApicOf(u32),
    /// A register of it: pending (true) or in service (false), and the vectors.
    Apic(bool, Vec<u8>),
    /// Registers of a CPU follow (`info registers -a`).
    MonitorCpu(u32),
    /// Of these: flags, privilege level, halted.
    MonitorFlags {
        /// Whether interrupts are enabled.
        interrupts_enabled: bool,
        /// Whether it is in a user program.
        user_mode: bool,
        /// Whether it is halted.
        halted: bool,
    },
}

/// What the target of an overdue call does with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetState {
    /// It is in no call.
    Unresponsive,
    /// It is in this very call.
    Running,
    /// It is in another one.
    RunningAnother(Option<String>),
}

/// What a line says, if anything.
pub fn recognise(text: &str) -> Option<Record> {
    // The most frequent first: frames of back traces.
    trace::recognise(text)
        .or_else(|| call(text))
        .or_else(|| stall(text))
        .or_else(|| nmi(text))
        .or_else(|| kernel(text))
        .or_else(|| monitor(text))
}

fn call(text: &str) -> Option<Record> {
    if let Some(mut scan) = Scan::after(text, "IPI on offline CPU ") {
        return Some(Record::OfflineQueue { cpu: scan.cpu(), function: None });
    }
    if let Some(scan) = Scan::after(text, "IPI callback ") {
        let (function, _) = scan.0.split_once(" sent to offline CPU")?;
        return Some(Record::OfflineQueue { cpu: None, function: Some(trace::name(function).to_owned()) });
    }
    if let Some(mut scan) = Scan::after(text, "csd: cnt(") {
        let count = scan.hexadecimal()?;
        scan.literal("): ")?;
        let source = cpu_of_event(scan.hexadecimal()?);
        scan.literal("->")?;
        let target = cpu_of_event(scan.hexadecimal()?);
        scan.blanks();
        let kind = scan.while_(|character| character.is_ascii_lowercase()).to_owned();
        return Some(Record::CallEvent { count, source, target, kind });
    }
    if text.contains("non-responsive CSD lock") {
        let mut scan = Scan::after(text, "CSD lock (#")?;
        let report = scan.number()?;
        scan.until("on CPU#")?;
        let waiter = scan.cpu()?;
        scan.until("waiting ")?;
        // Clocks that went backward make it negative.
        let negative = scan.literal("-").is_some();
        let nanos = scan.number().filter(|_| !negative);
        scan.until("CPU#")?;
        let target = scan.cpu();
        scan.literal("-1");
        scan.blanks();
        let function = scan.0.split(['(', ' ']).next().map(trace::name).filter(|name| !name.is_empty());
        return Some(Record::CallOverdue {
            report,
            waiter,
            nanos,
            target,
            function: function.map(str::to_owned),
        });
    }
    if let Some(mut scan) = Scan::after(text, "Re-sending CSD lock (#") {
        return Some(Record::RungAgain { report: scan.number()? });
    }
    let mut scan = Scan::after(text, "CSD lock (#")?;
    let report = scan.number()?;
    scan.literal(") ")?;
    let state = |state| Some(Record::CallState { report, state });
    match scan.0 {
        rest if rest.starts_with("got unstuck") => Some(Record::CallEnded { report }),
        rest if rest.starts_with("unresponsive") => state(TargetState::Unresponsive),
        rest if rest.starts_with("handling this request") => state(TargetState::Running),
        rest => {
            let rest = rest.strip_prefix("handling prior ")?;
            let name = trace::name(rest.split(['(', ' ']).next()?);
            state(TargetState::RunningAnother((!name.is_empty()).then(|| name.to_owned())))
        }
    }
}

/// CPUs of events are hexadecimal, and `ffff` is none.
fn cpu_of_event(number: u64) -> Option<u32> {
    if number == 0xffff { None } else { scan::cpu(number) }
}

fn stall(text: &str) -> Option<Record> {
    let seconds = |seconds: u64| seconds.checked_mul(1_000_000_000);
    if let Some(mut scan) = Scan::after(text, "soft lockup - CPU#") {
        let cpu = Some(scan.cpu()?);
        scan.until("stuck for ")?;
        let nanos = scan.number().and_then(seconds);
        let task = scan.until("[").map(|_| scan.0.trim_end_matches(']')).and_then(comm_and_pid);
        return Some(Record::Stall { cpu, detector: Detector::SoftLockup, nanos, task });
    }
    if let Some(mut scan) = Scan::after(text, "soft lockup detected on CPU#") {
        return Some(Record::Stall {
            cpu: Some(scan.cpu()?),
            detector: Detector::SoftLockup,
            nanos: None,
            task: None,
        });
    }
    let hard = |cpu| Record::Stall { cpu, detector: Detector::HardLockup, nanos: None, task: None };
    if let Some(mut scan) = Scan::after(text, "detected hard LOCKUP on cpu ") {
        return scan.cpu().map(|cpu| hard(Some(cpu)));
    }
    if let Some(scan) = Scan::after(text, "detected hard LOCKUP on other CPUs ") {
        return scan::cpus(scan.0)?.first().map(|&cpu| hard(Some(cpu)));
    }
    if text.contains("Hard LOCKUP") {
        let mut scan = Scan::after(text, "CPU:").or_else(|| Scan::after(text, "CPU "))?;
        scan.blanks();
        return scan.cpu().map(|cpu| hard(Some(cpu)));
    }
    if text.contains("detected stall") && (text.contains("rcu") || text.contains("INFO:"))
        || text.contains("self-detected stall on CPU")
    {
        let cpu = Scan::after(text, "stall on CPU ").and_then(|mut scan| scan.cpu());
        return Some(Record::Stall { cpu, detector: Detector::RcuStall, nanos: None, task: None });
    }
    if let Some(head) = text.find(" this GP)").map(|at| &text[..at]) {
        // `3-...!: (0 ticks this GP`, also behind `rcu:`.
        let mut scan = Scan(head.strip_prefix("rcu:").unwrap_or(head).trim_start());
        let cpu = scan.cpu()?;
        let flags = scan.until(": (")?;
        let plain =
            flags.chars().all(|flag| matches!(flag, '-' | '.' | '!' | '?' | 'O' | 'o' | 'N' | 'D' | 'W'));
        let ticks = scan.number();
        return plain.then_some(Record::StallRow { cpu, ticks });
    }
    if let Some(at) = text.find("% hardirq") {
        let interrupts = text[..at].rsplit(|character: char| !character.is_ascii_digit()).next()?;
        return Some(Record::Utilisation { interrupts: interrupts.parse().ok()? });
    }
    None
}

/// `name:pid`, where the name may have colons of its own.
pub(super) fn comm_and_pid(text: &str) -> Option<(String, Option<u32>)> {
    let (name, pid) = text.rsplit_once(':')?;
    Some((name.to_owned(), pid.trim().parse().ok()))
}

fn nmi(text: &str) -> Option<Record> {
    if text.starts_with("Sending NMI from CPU") {
        let scan = Scan::after(text, "to CPUs ").or_else(|| Scan::after(text, "to other CPUs "))?;
        return Some(Record::NmiSent { cpus: scan::cpus(scan.0)? });
    }
    if let Some(mut scan) = Scan::after(text, "NMI backtrace for cpu ") {
        let cpu = scan.cpu()?;
        let idle =
            Scan::after(scan.0, "skipped: idling at ").map(|scan| trace::name(scan.0.trim()).to_owned());
        return Some(Record::NmiAnswer { cpu, idle });
    }
    let mut scan = Scan::after(text, "Task dump for CPU ")?;
    Some(Record::TaskDump { cpu: scan.cpu()? })
}

fn kernel(text: &str) -> Option<Record> {
    if let Some(scan) = Scan::after(text, "Kernel panic - not syncing: ") {
        return Some(Record::Panic(scan.0.trim().to_owned()));
    }
    if let Some(scan) = Scan::after(text, "Brought up ") {
        // `1 node, 4 CPUs`, and before there were nodes `4 CPUs`.
        let words: Vec<&str> = scan.0.split_whitespace().collect();
        let at = words.iter().position(|word| word.starts_with("CPU"))?;
        let count = words.get(at.checked_sub(1)?)?.parse().ok().and_then(scan::cpu)?;
        return Some(Record::CpuCount(count));
    }
    if let Some(scan) = Scan::after(text, "Linux version ") {
        return scan.0.split_whitespace().next().map(|release| Record::Release(release.to_owned()));
    }
    if let Some(scan) = Scan::after(text, "Hypervisor detected: ") {
        return Some(Record::Hypervisor(scan.0.trim().to_owned()));
    }
    if let Some(scan) = Scan::after(text, "Hardware name: ") {
        let known = [
            ("QEMU", "QEMU"),
            ("Bochs", "QEMU"),
            ("KVM", "KVM"),
            ("Google Compute Engine", "KVM (Google Compute Engine)"),
            ("Amazon EC2", "Amazon EC2"),
            ("VMware", "VMware"),
            ("VirtualBox", "VirtualBox"),
            ("Microsoft Corporation Virtual Machine", "Hyper-V"),
            ("Xen HVM", "Xen"),
        ];
        let found = known.iter().find(|(mark, _)| scan.0.contains(mark));
        return found.map(|&(_, name)| Record::Hypervisor(name.to_owned()));
    }
    if text.contains("[ cut here ]") || text.contains("[ end trace ") {
        return Some(Record::Warning(text.contains("cut here")));
    }
    // `CPU0: Intel(R) Xeon(R) ... (family: 0x6, model: 0x55, stepping: 0x4)` and `/proc/cpuinfo`.
    let (key, value) = text.split_once(':')?;
    let known = ["vendor_id", "cpu family", "model", "model name", "stepping"];
    let key = known.iter().find(|known| **known == key.trim())?;
    Some(Record::Processor(key, value.trim().to_owned()))
}

fn monitor(text: &str) -> Option<Record> {
    if let Some(mut scan) = Scan::after(text, "dumping local APIC state for CPU ") {
        return Some(Record::ApicOf(scan.cpu()?));
    }
    if let Some(rest) = text.strip_prefix("ISR ").or_else(|| text.strip_prefix("IRR ")) {
        let word = |word: &str| word.parse::<u8>().ok();
        let words = rest.split_whitespace().filter(|word| *word != "(level)");
        let vectors = if rest.trim() == "(none)" { Some(vec![]) } else { words.map(word).collect() };
        return vectors.map(|vectors: Vec<u8>| Record::Apic(text.starts_with("IRR"), vectors));
    }
    if let Some(rest) = text.strip_prefix("CPU#") {
        return rest.parse().ok().and_then(scan::cpu).map(Record::MonitorCpu);
    }
    if text.starts_with("RIP=") {
        let mut scan = Scan::after(text, "RFL=")?;
        let flags = scan.hexadecimal()?;
        let mut level = Scan::after(text, "CPL=")?;
        let halted = Scan::after(text, "HLT=").is_some_and(|scan| scan.0.starts_with('1'));
        return Some(Record::MonitorFlags {
            interrupts_enabled: flags & trace::INTERRUPT_FLAG != 0,
            user_mode: level.number()? == 3,
            halted,
        });
    }
    None
}
