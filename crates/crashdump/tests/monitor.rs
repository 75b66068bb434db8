//! A guest is read through its monitor, here one that only answers; and a monitor that answers anything else is told.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};
use smpcall_crashdump::extract::{Format, extract};
use smpcall_crashdump::{Dump, KernelMemory, Kind, ReadError, VirtualMemory as _};
use support::{Tables, open, vmcoreinfo};

const IMAGE: u64 = 0xffff_ffff_8000_0000;

/// What a monitor does that it should not.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Fault {
    #[default]
    None,
    /// `pmemsave` is refused.
    Confined,
    /// `pmemsave` says that it has written, and has not.
    Elsewhere,
    /// Greets as the human monitor does.
    Human,
    /// Hangs up at this command.
    HangsUp(&'static str),
    /// Answers this command with an error.
    Refuses(&'static str),
    /// Answers this command with something that is not JSON.
    Garbles(&'static str),
}

/// The guest: memory that a test may change, and every command that was sent.
#[derive(Debug, Default)]
struct Guest {
    memory: Mutex<Vec<u8>>,
    commands: Mutex<Vec<String>>,
    fault: Fault,
    stopped: bool,
}

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Serves one client. Returns the socket.
fn serve(guest: &Arc<Guest>, directory: &Path) -> PathBuf {
    // Only different numbers are wanted.
    let socket = directory.join(format!("monitor-{}", NUMBER.fetch_add(1, Relaxed)));
    let listener = UnixListener::bind(&socket).expect("a new socket");
    let guest = Arc::clone(guest);
    thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a client");
        // The client may go away at any time.
        let _ = talk(&guest, &stream);
    });
    socket
}

fn talk(guest: &Guest, stream: &UnixStream) -> std::io::Result<()> {
    let mut to = stream;
    if guest.fault == Fault::Human {
        return to.write_all(b"QEMU 10.0.2 monitor - type 'help' for more information\n");
    }
    let version = json!({ "qemu": { "major": 10, "minor": 0, "micro": 2 }, "package": "" });
    writeln!(to, "{}", json!({ "QMP": { "version": version, "capabilities": [] } }))?;
    for line in BufReader::new(stream).lines() {
        let command: Value = serde_json::from_str(&line?).expect("a client that speaks JSON");
        let name = command["execute"].as_str().expect("a command").to_owned();
        let told = command["arguments"]["command-line"].as_str().unwrap_or(&name).to_owned();
        guest.commands.lock().expect("not poisoned").push(told.clone());
        // Events come at any time.
        writeln!(to, "{}", json!({ "event": "RTC_CHANGE", "data": {}, "timestamp": {} }))?;
        match guest.fault {
            Fault::HangsUp(at) if told == at => return Ok(()),
            Fault::Garbles(at) if told == at => return to.write_all(b"{\"return\": {\n"),
            Fault::Refuses(at) if told == at => {
                let error = json!({ "class": "GenericError", "desc": "no such thing" });
                writeln!(to, "{}", json!({ "error": error, "id": command["id"] }))?;
            }
            _ => match answer(guest, &name, &command["arguments"]) {
                Ok(value) => writeln!(to, "{}", json!({ "return": value, "id": command["id"] }))?,
                Err(desc) => writeln!(to, "{}", json!({ "error": { "desc": desc }, "id": command["id"] }))?,
            },
        }
    }
    Ok(())
}

fn answer(guest: &Guest, name: &str, arguments: &Value) -> Result<Value, String> {
    let memory = guest.memory.lock().expect("not poisoned");
    match name {
        "qmp_capabilities" => Ok(json!({})),
        "query-status" if guest.stopped => Ok(json!({ "running": false, "status": "paused" })),
        "query-status" => Ok(json!({ "running": true, "status": "running" })),
        "query-cpus-fast" => {
            Ok(json!([{ "cpu-index": 0, "target": "x86_64" }, { "cpu-index": 1, "target": "x86_64" }]))
        }
        "pmemsave" if guest.fault == Fault::Confined => Err("Could not open: Permission denied".into()),
        "pmemsave" => {
            let number = |key: &str| arguments[key].as_u64().expect("a number") as usize;
            let (at, size) = (number("val"), number("size"));
            assert!(at + size <= memory.len(), "nothing but memory is asked for");
            if guest.fault != Fault::Elsewhere {
                let file = arguments["filename"].as_str().expect("a path");
                std::fs::write(file, &memory[at..at + size]).map_err(|error| error.to_string())?;
            }
            Ok(json!({}))
        }
        "human-monitor-command" => {
            Ok(human(&memory, arguments["command-line"].as_str().expect("a line")).into())
        }
        other => panic!("the command {other} does more than look"),
    }
}

fn human(memory: &[u8], line: &str) -> String {
    if let Some(rest) = line.strip_prefix("xp /") {
        let (count, at) = rest.split_once("gx 0x").expect("words");
        let (count, at) =
            (count.parse::<usize>().expect("how many"), usize::from_str_radix(at, 16).expect("where"));
        let word = |at: usize| u64::from_le_bytes(memory[at..at + 8].try_into().expect("8 bytes"));
        let line = |number: usize| format!("{:016x}: {:#018x}", at + 8 * number, word(at + 8 * number));
        return (0..count).map(line).collect::<Vec<_>>().join("\r\n");
    }
    let registers = |cpu: usize| {
        format!(
            "\r\nCPU#{cpu}\r\nRIP=ffffffff8000123{cpu} RFL=00000202 [-------] CPL=0\r\nCR0=80050033 CR2=0 CR3=0000000000001000 CR4=0\r\n"
        )
    };
    match line {
        "info registers -a" => (0..2).map(registers).collect(),
        "info lapic 0" => "SPIV\t 0x000001ff APIC enabled\r\nISR\t (none)\r\nIRR\t 236 251 \r\n".into(),
        "info lapic 1" => "SPIV\t 0x000000ff APIC disabled\r\nISR\t 236 \r\nIRR\t (none)\r\n".into(),
        "info mtree -f" => format!(
            "FlatView #4\r\n AS \"memory\", root: system\r\n  0000000000000000-{:016x} (prio 0, ram): pc.ram\r\n  \
             00000000fee00000-00000000feefffff (prio 4096, i/o): apic-msi\r\n",
            memory.len() - 1
        ),
        other => panic!("the command {other} does more than look"),
    }
}

fn guest(fault: Fault) -> Arc<Guest> {
    let mut tables = Tables::new(0x10_0000);
    tables.map(4, IMAGE, 0, 21);
    let text = vmcoreinfo(false, "");
    tables.bytes[0x9000..0x9000 + text.len()].copy_from_slice(text.as_bytes());
    tables.put(0x8_0008, 0x1234_5678);
    Arc::new(Guest { memory: Mutex::new(tables.bytes), fault, ..Guest::default() })
}

#[test]
fn memory_registers_and_what_is_pending_are_read_in_place() {
    let directory = tempfile::tempdir().expect("a directory");
    for fault in [Fault::None, Fault::Confined, Fault::Elsewhere] {
        let guest = guest(fault);
        let dump = Dump::connect(&serve(&guest, directory.path())).expect("a monitor");
        assert_eq!(dump.kind(), Kind::Monitor);
        assert_eq!(
            dump.remarks().iter().any(|remark| remark.contains("xp")),
            fault != Fault::None,
            "{:?}",
            dump.remarks()
        );
        let machine = dump.machine().expect("a machine");
        assert_eq!((machine.running, machine.version.as_str(), machine.apics.len()), (true, "10.0.2", 2));
        let pending: Vec<_> =
            dump.pending_interrupts().map(|pending| (pending.requested[7], pending.in_service[7])).collect();
        assert_eq!(pending, [(1 << (236 - 224) | 1 << (251 - 224), 0), (0, 1 << (236 - 224))]);
        assert_eq!((machine.apics[0].enabled, machine.apics[1].enabled), (true, false));
        let rips: Vec<_> = dump.cpus().iter().map(|cpu| cpu.registers.rip).collect();
        assert_eq!(rips, [0xffff_ffff_8000_1230, 0xffff_ffff_8000_1231]);
        assert_eq!(dump.vmcoreinfo(), Some(vmcoreinfo(false, "").as_str()));
        let memory = KernelMemory::new(&dump).expect("tables");
        assert_eq!(memory.read_u64(IMAGE + 0x8_0008), Ok(0x1234_5678));
        assert_eq!(memory.read_u32(IMAGE + 0x8_000a), Ok(0x1234));
        // A device is not read, not even to find out that it is one.
        let device = dump.memory().read_physical(0xfee0_0300, &mut [0; 4]);
        assert_eq!(device, Err(ReadError::Absent { address: 0xfee0_0300 }));
    }
}

#[test]
fn what_has_changed_is_told_and_an_extract_holds_what_was_seen() {
    let directory = tempfile::tempdir().expect("a directory");
    let guest = guest(Fault::None);
    let dump = Dump::connect(&serve(&guest, directory.path())).expect("a monitor");
    let memory = KernelMemory::new(&dump).expect("tables");
    let address = IMAGE + 0x8_0008;
    assert_eq!(memory.read_u64(address), Ok(0x1234_5678));
    assert_eq!(memory.has_changed(address, 8), Ok(false));
    guest.memory.lock().expect("not poisoned")[0x8_0008] = 0xff;
    assert_eq!(memory.has_changed(address, 8), Ok(true));
    assert_eq!(memory.has_changed(address + 8, 64), Ok(false));
    assert_eq!(memory.read_u64(address), Ok(0x1234_5678), "as it was seen");

    let mut file = std::io::Cursor::new(Vec::new());
    let extracted = extract(&dump, &mut file, Format::suited(&memory)).expect("to memory");
    let small = open(&file.into_inner()).expect("a dump");
    let seen = KernelMemory::new(&small).expect("the same tables");
    assert_eq!(seen.read_u64(address), Ok(0x1234_5678));
    assert_eq!(small.pending_interrupts().collect::<Vec<_>>(), dump.pending_interrupts().collect::<Vec<_>>());
    assert_eq!((small.cpus(), small.kind()), (dump.cpus(), Kind::KdumpCompressed));
    assert_eq!(
        extracted.pages,
        small.touched().iter().map(|range| (range.end - range.start) / 4096).sum::<u64>()
    );

    memory.forget();
    assert_eq!(memory.read_u64(address), Ok(0x1234_56ff));
}

#[test]
fn nothing_but_looking_is_done_and_nothing_is_left_behind() {
    let directory = tempfile::tempdir().expect("a directory");
    let guest = Arc::new(Guest {
        stopped: true,
        memory: Mutex::new(guest(Fault::None).memory.lock().expect("mine").clone()),
        ..Guest::default()
    });
    let dump = Dump::connect(&serve(&guest, directory.path())).expect("a monitor");
    assert!(dump.remarks().is_empty(), "a guest that stands still: {:?}", dump.remarks());
    let ours = format!("smpcall-{}-", std::process::id());
    let left = || {
        let shared = [Path::new("/dev/shm").to_path_buf(), std::env::temp_dir()];
        let entries =
            shared.iter().filter_map(|path| std::fs::read_dir(path).ok()).flatten().filter_map(Result::ok);
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&ours))
            .map(|entry| entry.path())
            .collect::<Vec<_>>()
    };
    let mine = left();
    drop(dump);
    // Other tests of this process have directories of their own.
    assert!(mine.iter().any(|path| !path.exists()), "{mine:?}");
    let commands = guest.commands.lock().expect("not poisoned");
    let looks = ["qmp_capabilities", "query-status", "query-cpus-fast", "pmemsave"];
    assert!(
        commands.iter().all(|command| looks.contains(&command.as_str()) || command.starts_with("info ")),
        "{commands:?}"
    );
}

#[test]
fn monitors_that_do_not_answer_are_told() {
    let directory = tempfile::tempdir().expect("a directory");
    for (fault, says) in [
        (Fault::Human, "JSON"),
        (Fault::HangsUp("query-status"), "to the command query-status"),
        (Fault::HangsUp("info mtree -f"), "hangs up"),
        (Fault::Garbles("query-cpus-fast"), "not JSON to the command query-cpus-fast"),
        (Fault::Refuses("info registers -a"), "refuses the command human-monitor-command: no such thing"),
    ] {
        let error = Dump::connect(&serve(&guest(fault), directory.path())).expect_err("a fault").to_string();
        assert!(error.contains(says), "{fault:?}: {error}");
    }
    let error = Dump::connect(&directory.path().join("nobody")).expect_err("no socket").to_string();
    assert!(error.contains("-qmp unix:"), "{error}");
}

#[test]
fn a_monitor_that_goes_away_later_is_an_error_of_the_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let guest = guest(Fault::None);
    let socket = serve(&guest, directory.path());
    let dump = Dump::connect(&socket).expect("a monitor");
    guest.memory.lock().expect("not poisoned").truncate(0x1000);
    // The monitor's thread ends at the read beyond its memory, and the connection with it.
    let error = dump.source().read_physical(0x8_0000, &mut [0; 64]).expect_err("nobody answers");
    assert!(matches!(error, ReadError::Failed { address: 0x8_0000, .. }), "{error}");
}
