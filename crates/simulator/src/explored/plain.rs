//! An access of a running CPU to plain data: saved before it is written, and checked for races.

use core::sync::atomic::Ordering;
use std::mem::MaybeUninit;

use smpcall_machine::Access;

use super::{SavedPlain, place};
use crate::explorer::footprint::Use;
use crate::explorer::system::Violation;
use crate::hash::{absorb, pair};
use crate::places::NO_RECORD;
use crate::processor::Source;
use crate::races::{Race, Races};
use crate::state::State;

impl State {
    pub(super) fn access_plain(&mut self, slot: u32, access: Access, local: bool, source: Source) {
        let running = self.running;
        let writes = matches!(access, Access::PlainWrite(_));
        if !local {
            let how = if writes { Use::Write } else { Use::Read };
            self.explored.footprint.add(self.explored.places.all[slot as usize].place, how);
        }
        if let Access::PlainWrite(bytes) = access {
            self.save_plain(slot, bytes);
        }
        if self.explored.options.races {
            self.check_race(slot, writes, source);
        }
        if self.explored.options.hash {
            let history = self.cpus[running].history;
            let location = self.explored.make_dirty(slot);
            if writes {
                // What it writes follows from what the writer has learned so far.
                let written = absorb(history, running as u64);
                let fold = |value: u128| pair(location.name, value as u64 ^ (value >> 64) as u64);
                let before = if location.writer == 0 { 0 } else { fold(location.writer) };
                let change = before ^ fold(written);
                location.writer = written;
                self.explored.hash ^= change;
                self.learn_access(access, 0);
            } else {
                let last = location.writer;
                self.cpus[running].history = absorb(history, (last >> 64) as u64);
                self.learn_access(access, last as u64);
            }
        }
        self.tell_access(slot, access, Ordering::Relaxed, None, None, local, source);
    }

    fn save_plain(&mut self, slot: u32, bytes: usize) {
        let explored = &mut self.explored;
        let location = explored.make_dirty(slot);
        if !location.lasting || location.logged {
            return;
        }
        location.logged = true;
        let address = location.address as *const MaybeUninit<u8>;
        let start = explored.saved_bytes.len();
        // SAFETY: plain data of this size is there, says `Memory`, and nobody accesses it at the same time: there is one
        // thread. Bytes that are not initialised are not looked at.
        let old = unsafe { core::slice::from_raw_parts(address, bytes) };
        explored.saved_bytes.extend_from_slice(old);
        explored.saved_plain.push(SavedPlain { slot, start, bytes });
    }

    fn check_race(&mut self, slot: u32, writes: bool, source: Source) {
        let running = self.running;
        let explored = &mut self.explored;
        let mut first = explored.places.all[slot as usize].record;
        if first == NO_RECORD {
            let Some(given) = explored.races.give(explored.places.all[slot as usize].name) else {
                explored.violation.get_or_insert_with(|| {
                    Violation::new("race", "more plain data is accessed than races are looked for in: explore a smaller protocol")
                });
                return;
            };
            first = given;
            explored.places.all[slot as usize].record = first;
        }
        let knows = self.cpus[running].known;
        let (record, race) = if writes {
            (first, explored.races.write(first, running, &knows, source))
        } else {
            explored.races.read(first, running, &knows, source)
        };
        // Nobody knows of this access yet.
        let hashing = explored.options.hash;
        for at in 0..explored.dirty.len() {
            let location = &mut explored.places.all[explored.dirty[at] as usize];
            if location.known.is_nothing() {
                continue;
            }
            let before = location.known;
            explored.races.forget(&mut location.known, record, writes);
            if hashing && before != location.known {
                explored.known_hash ^= before.hash(location.name, &explored.races)
                    ^ location.known.hash(location.name, &explored.races);
            }
        }
        for processor in &mut self.cpus {
            processor.hashed = None;
            explored.races.forget(&mut processor.known, record, writes);
            for store in &mut processor.store_buffer {
                explored.races.forget(&mut store.known, record, writes);
            }
        }
        Races::learn(&mut self.cpus[running].known, record);
        if let Some(race) = race {
            let text = self.describe_race(slot, writes, source, race);
            self.explored.violation.get_or_insert_with(|| Violation::new("race", text));
        }
    }

    fn describe_race(&self, slot: u32, writes: bool, source: Source, race: Race) -> String {
        let does = |writes| if writes { "writes" } else { "reads" };
        let other =
            if race.cpu == usize::MAX { "another CPU".to_owned() } else { format!("CPU {}", race.cpu) };
        let kernel = self.images[0].kernel.as_ref().and_then(|kernel| {
            let address = self.explored.places.all[slot as usize].address;
            kernel.mailboxes().name_of(core::ptr::without_provenance(address))
        });
        let name = kernel.map_or("plain data".to_owned(), |name| name.to_string());
        format!(
            "CPU {} {} {name} ({}), which {other} {} before ({}), and no release that was acquired orders the two",
            self.running,
            does(writes),
            place(source),
            if race.wrote { "wrote" } else { "read" },
            place(race.source),
        )
    }
}
