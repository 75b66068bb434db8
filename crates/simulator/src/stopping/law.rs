//! Law L7, looked at from outside: what a crash must leave behind, read from the notes as a capture kernel reads them.

use smpcall::vmcore::prstatus::{CORE, NT_PRSTATUS};
use smpcall::vmcore::{Absence, CpuStopped, CrashSummary, Notes, PrStatus, Record, Registers, Role};
use smpcall::{CrashNotes, CrashStop as _};
use smpcall_machine::Cpu;

use crate::machine::{SimCpuSet, SimMachine};
use crate::world::World;

/// What the notes of a crash say.
#[derive(Clone, Debug)]
pub struct CrashOutcome {
    /// The winner's summary.
    pub summary: CrashSummary,
    /// The CPUs that have saved themselves, each with what it says and its registers.
    pub saved: Vec<(CpuStopped, Registers)>,
    /// The CPUs that the winner names, and why.
    pub missing: Vec<(Cpu, Absence)>,
}

/// What the notes about one CPU say.
struct Entry {
    status: Option<PrStatus>,
    records: Vec<Record>,
}

fn read(notes: &CrashNotes<SimMachine>) -> Result<Entry, String> {
    // SAFETY: nothing runs on a machine that is looked at from outside, on this thread.
    let bytes = unsafe { notes.copy() };
    let mut entry = Entry { status: None, records: Vec::new() };
    for note in Notes::new(&bytes) {
        let note = note.map_err(|error| error.to_string())?;
        if note.owner == CORE.as_bytes() && note.kind == NT_PRSTATUS {
            entry.status = PrStatus::from_bytes(note.descriptor);
        } else if let Some(record) = Record::read(&note) {
            entry.records.push(record.map_err(|error| error.to_string())?);
        }
    }
    Ok(entry)
}

/// Whether a machine whose winner has come to its end holds law L7: one winner; every CPU of `able` - those that can take
/// an NMI, or have crashed - has saved its own registers and says so; whoever was neither saved nor offline is named;
/// who was stopped makes no further step; and the winner kept within its limits. None if nobody has crashed.
///
/// This is what a campaign of crashes asks at the end of each run.
///
/// # Errors
/// What does not hold, in words.
pub fn check_crash(world: &World<'_>, able: &SimCpuSet) -> Result<Option<CrashOutcome>, String> {
    let entries: Vec<Entry> = world.crash_notes().iter().map(read).collect::<Result<_, _>>()?;
    let summaries: Vec<&CrashSummary> = (entries.iter().flat_map(|entry| &entry.records))
        .filter_map(|record| if let Record::Summary(summary) = record { Some(summary) } else { None })
        .collect();
    let summary = match summaries[..] {
        [] if entries.iter().all(|entry| entry.records.is_empty()) => return Ok(None),
        [summary] => *summary,
        _ => return Err(format!("{} CPUs say that they have won", summaries.len())),
    };
    let limit = SimMachine::STOP_LIMIT.as_nanos() as u64;
    // A wait ends a little after its deadline, and what comes before and after takes time too.
    if summary.waited > limit + limit / 10 {
        return Err(format!("the winner waited for {} ns, and should for at most {limit}", summary.waited));
    }
    let mut outcome = CrashOutcome { summary, saved: Vec::new(), missing: Vec::new() };
    for (number, entry) in (0u32..).zip(&entries) {
        let cpu = Cpu::new(number);
        for record in &entry.records {
            match record {
                Record::Stopped(stopped) => {
                    let status =
                        entry.status.ok_or_else(|| format!("{cpu} says it has saved, and has not"))?;
                    if stopped.cpu != number || status.registers.r15 != u64::from(number) {
                        return Err(format!("{cpu} has saved what is another CPU's"));
                    }
                    if (stopped.role == Role::Winner) != (number == summary.winner) {
                        return Err(format!("{cpu} says that it is {:?}", stopped.role));
                    }
                    outcome.saved.push((*stopped, status.registers));
                }
                Record::Missing(missing) if missing.cpu == number => outcome.missing.push((cpu, missing.why)),
                Record::Missing(_) => return Err(format!("{cpu} is missing under another number")),
                Record::Summary(_) | Record::Pending(_) => {}
            }
        }
        let says = |stopped: fn(&Record) -> bool| entry.records.iter().any(stopped);
        let has_saved = says(|record| matches!(record, Record::Stopped(_)));
        let is_missing = says(|record| matches!(record, Record::Missing(_)));
        if able.contains(cpu) && !has_saved {
            return Err(format!("{cpu} could have saved its registers, and has not"));
        }
        if able.contains(cpu) && is_missing {
            return Err(format!("{cpu} has saved its registers, and is said to be missing"));
        }
        // A fault may keep it from the last step, to park.
        let report = world.inspect(cpu);
        if has_saved && number != summary.winner && !report.parked && !report.wedged {
            return Err(format!("{cpu} has saved its registers, and goes on"));
        }
    }
    if summary.saved as usize > outcome.saved.len() {
        return Err(format!(
            "the winner counts {} CPUs that have saved, of {}",
            summary.saved,
            outcome.saved.len()
        ));
    }
    Ok(Some(outcome))
}
