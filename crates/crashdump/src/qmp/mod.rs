//! A QEMU guest, read in place through its monitor (QMP).
//!
//! Only commands that look are sent, and none that stops the guest: it goes on while it is read, unless it was stopped
//! already. So what was read can have changed since, and [`KernelMemory::has_changed`](crate::KernelMemory::has_changed)
//! tells.
//!
//! Memory is read by `pmemsave`, which writes a range of it to a file: in a directory of our own, which only we and the
//! monitor's owner can enter, on a file system in memory if there is one, and which is removed at the end. (A FIFO would
//! need no file, but if its reader dies, the monitor waits for another one and the guest's main loop with it.) Where
//! the monitor cannot write to it - it runs in a container, or is confined - memory is read by `xp`, which prints words:
//! about forty times slower for a page.

mod apic;
mod client;
mod memory;
mod registers;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use smpcall_vmcore::{NoteWriter, PrStatus, Record, prstatus};

pub use apic::LocalApic;

use crate::{Note, OpenError, PhysicalMemory, SavedCpu};
use client::Client;
use memory::MonitorMemory;

/// More CPUs than QEMU has are no answer of QEMU.
const MAXIMUM_CPUS: usize = 4096;

/// What a monitor says of its machine, memory apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Whether the guest runs while it is read.
    pub running: bool,
    /// How QEMU calls its state: "running", "paused", "guest-panicked", "internal-error".
    pub status: String,
    /// QEMU's version.
    pub version: String,
    /// The local APIC of each CPU, in the order of QEMU's CPU numbers. Empty if this QEMU does not tell.
    pub apics: Vec<LocalApic>,
}

/// What was asked at the start.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) memory: Box<dyn PhysicalMemory>,
    pub(crate) machine: Machine,
    pub(crate) cpus: Vec<SavedCpu>,
    pub(crate) architecture: String,
    pub(crate) remarks: Vec<String>,
}

/// Connects to a monitor's socket and asks for everything but memory.
pub(crate) fn connect(socket: &Path) -> Result<Connected, OpenError> {
    let failed = |what: String| OpenError::Monitor { path: socket.to_path_buf(), what };
    let mut client = Client::connect(socket).map_err(failed)?;
    let status = client.execute("query-status", &json!({})).map_err(failed)?;
    let cpus = client.execute("query-cpus-fast", &json!({})).map_err(failed)?;
    let cpus = cpus.as_array().map_or(&[][..], Vec::as_slice);
    let target = cpus.first().and_then(|cpu| cpu["target"].as_str()).unwrap_or("unknown").to_owned();
    let count = cpus.len().min(MAXIMUM_CPUS);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut machine = Machine {
        running: status["running"].as_bool().unwrap_or(true),
        status: text(&status["status"]),
        version: client.version().to_owned(),
        apics: Vec::new(),
    };
    let mut remarks = Vec::new();
    let mut saved = Vec::new();
    if target == "x86_64" {
        let answer = client.human("info registers -a").map_err(failed)?;
        saved = registers::parse(&answer);
        if saved.len() != count {
            remarks.push(format!(
                "the monitor told the registers of {} CPUs, and the machine has {count}",
                saved.len()
            ));
        }
        for cpu in 0..count {
            let answer = client.human(&format!("info lapic {cpu}")).map_err(failed)?;
            machine.apics.extend(LocalApic::parse(cpu as u32, &answer));
        }
        if machine.apics.len() != count {
            remarks.push(format!(
                "the monitor told of {} local APICs, and the machine has {count} CPUs: which interrupts are pending is \
                 known of those only",
                machine.apics.len()
            ));
            if machine.apics.iter().zip(0..).any(|(apic, cpu)| apic.pending.cpu != cpu) {
                machine.apics.sort_by_key(|apic| apic.pending.cpu);
            }
        }
    }
    if machine.running {
        remarks.push("the guest runs while it is read: registers and memory are of different moments".into());
    }
    let answer = client.human("info mtree -f").map_err(failed)?;
    let ranges = memory::ranges(&answer);
    if ranges.is_empty() {
        return Err(failed("does not tell where the guest's memory is (info mtree -f)".into()));
    }
    let client = Arc::new(Mutex::new(client));
    let memory = MonitorMemory::new(socket, client, ranges, &mut remarks);
    Ok(Connected { memory: Box::new(memory), machine, cpus: saved, architecture: target, remarks })
}

/// What was asked, as notes of a dump: registers, and what is pending.
pub(crate) fn notes(cpus: &[SavedCpu], machine: &Machine) -> Vec<Note> {
    let mut notes = Vec::new();
    for cpu in cpus {
        let status = PrStatus { pid: 0, registers: cpu.registers };
        let (owner, kind, descriptor) =
            (prstatus::CORE.into(), prstatus::NT_PRSTATUS, status.to_bytes().to_vec());
        notes.push(Note { owner, kind, descriptor });
        let control = cpu.control.unwrap_or_default();
        let descriptor = crate::registers::to_qemu(&cpu.registers, &control);
        notes.push(Note { owner: crate::registers::QEMU.into(), kind: 0, descriptor });
    }
    for apic in &machine.apics {
        let mut section = [0; 160];
        let mut writer = NoteWriter::new(&mut section);
        Record::Pending(apic.pending).write(&mut writer).expect("there is room for one");
        crate::notes::append(&mut notes, &section, 4, &mut Vec::new());
    }
    notes
}

/// The client, for one command at a time.
type Shared = Arc<Mutex<Client>>;

fn locked(client: &Shared) -> std::sync::MutexGuard<'_, Client> {
    // A command that panicked half-way is answered with an error by the next: its answer is not the one that is read.
    client.lock().unwrap_or_else(PoisonError::into_inner)
}
