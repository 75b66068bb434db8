//! The lines of register dumps and back traces, of all architectures as far as they matter here, and of `crash`.

use super::record::Record;
use super::scan::Scan;
use crate::evidence::{Frame, StackKind};

/// The interrupt flag of x86 (SDM volume 1, "EFLAGS Register").
pub(super) const INTERRUPT_FLAG: u64 = 1 << 9;

/// What a line says, if it belongs to a dump of registers or to a back trace.
pub(super) fn recognise(text: &str) -> Option<Record> {
    stack(text)
        .or_else(|| header(text))
        .or_else(|| registers(text))
        .or_else(|| frame(text).map(Record::Frame))
}

/// A function's name without offset, size and what is around it: `flush_tlb_func+0x0/0xb0(0x...)`.
pub(super) fn name(text: &str) -> &str {
    let end = text.find(|character: char| !is_of_name(character)).unwrap_or(text.len());
    &text[..end]
}

fn is_of_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '.' | '$')
}

fn stack(text: &str) -> Option<Record> {
    let kind = |name: &str| match name {
        "IRQ" | "SOFTIRQ" | "EOI" => Some(StackKind::Interrupt),
        "NMI" => Some(StackKind::Nmi),
        "TASK" => Some(StackKind::Task),
        "#DF" | "#DB" | "#MC" | "#VC" | "ENTRY_TRAMPOLINE" | "#VC2" => Some(StackKind::Exception),
        _ => None,
    };
    if matches!(text.trim_end_matches(':'), "Call Trace" | "Call trace" | "Backtrace" | "Stack trace") {
        return Some(Record::TraceBegins);
    }
    if let Some(inner) = text.strip_prefix("--- <").and_then(|rest| rest.split_once("> ---")) {
        return Some(Record::StackWas(match inner.0 {
            "NMI exception stack" => StackKind::Nmi,
            "IRQ stack" | "SOFTIRQ stack" => StackKind::Interrupt,
            _ => StackKind::Exception,
        }));
    }
    // `sched_show_task`: somebody else's stack follows.
    if text == "</TASK>" || text.starts_with("task:") && text.contains("state:") {
        return Some(Record::TraceEnds);
    }
    let inner = text.strip_prefix('<')?.strip_suffix('>')?;
    match inner.strip_prefix('/') {
        Some(name) => kind(name).map(|_| Record::Stack(StackKind::Task)),
        None => kind(inner).map(Record::Stack),
    }
}

fn header(text: &str) -> Option<Record> {
    if let Some(rest) = text.strip_prefix("CPU: ") {
        let mut scan = Scan(rest);
        let cpu = scan.cpu()?;
        let pid = Scan::after(rest, "PID: ").and_then(|mut scan| scan.number()).map(|pid| pid as u32);
        let comm = Scan::after(rest, "Comm: ").map(|scan| {
            let end =
                [" Not tainted", " Tainted: ", " Kdump: "].iter().filter_map(|mark| scan.0.find(mark)).min();
            scan.0[..end.unwrap_or(scan.0.len())].trim().to_owned()
        });
        // Behind the taint flags: the first word that begins like a version.
        let looks =
            |word: &&str| word.contains('.') && word.starts_with(|first: char| first.is_ascii_digit());
        let release = Scan::after(rest, "ainted").and_then(|scan| scan.0.split_whitespace().find(looks));
        return Some(Record::Header {
            cpu,
            task: comm.map(|comm| (comm, pid)),
            release: release.map(str::to_owned),
        });
    }
    // `PID: 5679   TASK: ffff811018041040  CPU: 5   COMMAND: "dd_raid"`
    let rest = text.strip_prefix("PID: ")?;
    let pid = Scan(rest).number().map(|pid| pid as u32);
    rest.contains("TASK: ").then_some(())?;
    let mut scan = Scan::after(rest, "CPU: ")?;
    let cpu = scan.cpu()?;
    let command = Scan::after(rest, "COMMAND: \"").map_or("", |scan| scan.0.trim_end_matches('"'));
    Some(Record::CrashHeader { cpu, task: (command.to_owned(), pid) })
}

fn registers(text: &str) -> Option<Record> {
    let flags = || {
        let scan = Scan::after(text, "RFLAGS: ").or_else(|| Scan::after(text, "EFLAGS: "));
        scan.and_then(|mut scan| scan.hexadecimal()).map(|flags| flags & INTERRUPT_FLAG != 0)
    };
    // `[exception RIP: __smp_call_function+0x76]`, `[exception RIP: smp_call_function_many+488]`
    if let Some(scan) = Scan::after(text, "[exception RIP: ") {
        let inner = scan.0.split(']').next()?;
        let function = name(inner);
        let user_mode = Some(function.is_empty() || inner.starts_with("unknown"));
        let frame = (user_mode == Some(false))
            .then(|| Frame { offset: offset(&inner[function.len()..]), ..Frame::of(function) });
        return Some(Record::InstructionPointer { frame, user_mode, interrupts_enabled: None });
    }
    for mark in ["RIP: ", "EIP: ", "pc : ", "NIP [", "epc : "] {
        let Some(rest) = text.strip_prefix(mark) else { continue };
        // Code segment: 10 is the kernel's on x86-64, 60 on i386; 33, 23, 73, 7b are those of users.
        let segment = rest.split_once(':').map(|(segment, _)| segment);
        let is_segment =
            |segment: &&str| segment.len() == 4 && segment.bytes().all(|byte| byte.is_ascii_hexdigit());
        let segment = segment.filter(is_segment).and_then(|segment| u32::from_str_radix(segment, 16).ok());
        let user_mode = segment.map(|segment| segment & 3 == 3);
        let place = segment.map_or(rest, |_| &rest[5..]);
        let frame = frame_in(place).filter(|_| user_mode != Some(true));
        let other = frame.is_some() || segment.is_some();
        // `RIP: ffffffff81104b98  RSP: ...  RFLAGS: 00000202` of crash has flags only.
        return match (other, flags()) {
            (false, Some(interrupts_enabled)) => Some(Record::Flags { interrupts_enabled }),
            (true, interrupts_enabled) => {
                Some(Record::InstructionPointer { frame, user_mode, interrupts_enabled })
            }
            (false, None) => None,
        };
    }
    if let Some(enabled) = flags() {
        return Some(Record::Flags { interrupts_enabled: enabled });
    }
    // arm64: the letter of masked interrupts is upper case; pseudo-NMI masks by priority instead, and 0xe0 is open.
    if let Some(rest) = text.strip_prefix("pstate: ") {
        let letters = rest.split_once('(').map(|(_, letters)| letters)?;
        let word =
            letters.split_whitespace().find(|word| word.len() == 4 && word.to_lowercase() == "daif")?;
        return Some(Record::Flags { interrupts_enabled: !word.contains('I') });
    }
    if let Some(mut scan) = Scan::after(text, "pmr: ").filter(|_| text.starts_with("pmr: ")) {
        // Only what masks says anything: whether PSTATE masks as well is on its own line.
        return (scan.hexadecimal()? < 0xe0).then_some(Record::Flags { interrupts_enabled: false });
    }
    // PowerPC: soft masking counts.
    if let Some(mut scan) = Scan::after(text, "IRQMASK: ") {
        return Some(Record::Flags { interrupts_enabled: scan.number()? == 0 });
    }
    None
}

/// A line of a back trace, whoever has written it.
fn frame(text: &str) -> Option<Frame> {
    // `#7 [ffff8107fca51bb8] apic_timer_interrupt at ffffffff8020caa6 [module]`
    if let Some(rest) = text.strip_prefix('#') {
        let mut scan = Scan(rest);
        scan.number()?;
        scan.blanks();
        scan.literal("[")?;
        scan.hexadecimal()?;
        scan.literal("] ")?;
        let function = name(scan.0);
        let mut behind = Scan(&scan.0[function.len()..]);
        behind.literal(" at ")?;
        let address = behind.hexadecimal();
        let module = behind.until("[").and_then(|_| behind.0.split(']').next()).map(str::to_owned);
        return (!function.is_empty()).then(|| Frame { module, address, ..Frame::of(function) });
    }
    let mut rest = text;
    // `[<ffffffff84376b6a>]`, and two addresses on PowerPC.
    while let Some((inner, behind)) = rest.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        let digits = inner.trim_start_matches('<').trim_end_matches('>');
        if digits.len() < 8 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        rest = behind.trim_start();
    }
    let guess = rest.strip_prefix("? ");
    let found = frame_in(guess.unwrap_or(rest))?;
    // Something stands behind only if it is a module or a mark of the unwinder's.
    let unreliable = rest.ends_with("(unreliable)");
    Some(Frame { guess: guess.is_some() || unreliable, ..found })
}

/// `function+0x12/0x80 [module]`, with nothing before it but addresses in brackets.
fn frame_in(text: &str) -> Option<Frame> {
    let mut text = text.trim();
    while let Some((_, behind)) = text.strip_prefix("[<").and_then(|inner| inner.split_once(">]")) {
        text = behind.trim_start();
    }
    // `NIP [c0000000001b8d3c] function+...`: the bracket was taken with the mark.
    if let Some((digits, behind)) = text.split_once("] ")
        && digits.len() == 16
        && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    {
        text = behind;
    }
    let function = name(text);
    let behind = &text[function.len()..];
    let mut scan = Scan(behind);
    scan.literal("+0x")?;
    let offset = scan.hexadecimal()?;
    scan.literal("/0x")?;
    scan.hexadecimal()?;
    let begins_well =
        function.starts_with(|first: char| first.is_ascii_alphabetic() || matches!(first, '_' | '.'));
    let tail = scan.0.trim();
    let module = tail.strip_prefix('[').and_then(|inner| inner.split([']', ' ']).next()).map(str::to_owned);
    let tail_fits = tail.is_empty() || tail.starts_with(['[', '(']);
    (begins_well && tail_fits).then(|| Frame { offset: Some(offset), module, ..Frame::of(function) })
}

/// `+0x76` or `+488`.
fn offset(text: &str) -> Option<u64> {
    let text = text.strip_prefix('+')?;
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
