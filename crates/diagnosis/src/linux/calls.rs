//! Calls: those that lie in a queue, and those that are out of it and not finished, which only their callers lead to.

use std::collections::{BTreeMap, BTreeSet};

use smpcall_crashdump::VirtualMemory;
use smpcall_crashdump::unwind::BackTrace;

use super::clock::Clock;
use super::descriptor::{Csd, Layout, Queue};
use super::home::{self, Homes};
use super::processor::Processor;
use super::progress::{self, Rcu, Stay};
use super::reader::Reader;
use super::{PATIENCE, again};
use crate::evidence::{CallEvidence, CallKind, CallState, Descriptor, Running, WaitEvidence};
use crate::frames;

/// All that is known of calls.
#[derive(Debug, Default)]
pub(super) struct Calls {
    pub(super) list: Vec<CallEvidence>,
    pub(super) complete: bool,
    pub(super) gaps: Vec<String>,
    /// What had changed when it was read again.
    pub(super) moving: Vec<String>,
}

/// Reads them. Sets what CPUs wait for and run.
pub(super) fn read(
    reader: Reader<'_>,
    layout: &Layout,
    clock: &Clock,
    processors: &mut [Processor],
) -> Calls {
    let rcu = Rcu::read(reader, clock);
    let homes = Homes::new(reader, processors);
    let mut search = Search {
        reader,
        layout,
        clock,
        rcu,
        homes,
        queued: BTreeSet::new(),
        found: Calls { complete: true, ..Calls::default() },
    };
    set_running(reader, clock, processors);
    let waiting: BTreeMap<u32, String> = processors
        .iter()
        .filter_map(|processor| {
            Some((processor.evidence.cpu, frames::call_wait(&processor.evidence.stack)?.to_owned()))
        })
        .collect();
    for processor in processors.iter() {
        search.queue(processor, processors, &waiting);
    }
    for (&cpu, function) in &waiting {
        let Some(at) = processors.iter().position(|processor| processor.evidence.cpu == cpu) else {
            continue;
        };
        let wait = search.wait(&processors[at], processors, function);
        processors[at].evidence.wait = Some(wait);
    }
    for call in &search.found.list {
        if call.state == CallState::Claimed
            && let Some(target) = processors.iter_mut().find(|target| target.evidence.cpu == call.target)
            && let Some(running) = &mut target.evidence.running
        {
            running.caller = running.caller.or(call.caller);
        }
    }
    again::look(reader, layout, processors, &mut search.found);
    search.found.gaps.extend(unknown_ages(&search.found.list));
    search.found
}

/// Of which CPUs it is not known whether the calls that lie there are on their way or stuck.
fn unknown_ages(calls: &[CallEvidence]) -> Vec<String> {
    let young = |call: &CallEvidence| call.nanos_at_most.is_some_and(|most| most < PATIENCE);
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for call in calls.iter().filter(|call| call.perhaps_fresh && !young(call)) {
        *counts.entry(call.target).or_default() += 1;
    }
    let gap = |(cpu, count): (u32, usize)| {
        format!(
            "how old the unfinished calls and posts to CPU {cpu} are ({count}): nothing says that they have been there for \
             longer than an IPI takes; another dump a second later would, or the IRR of CPU {cpu}"
        )
    };
    counts.into_iter().map(gap).collect()
}

/// The call that each CPU is in, and for how long. It runs with interrupts disabled, so it began after the last tick.
fn set_running(reader: Reader<'_>, clock: &Clock, processors: &mut [Processor]) {
    for processor in processors {
        let cpu = processor.evidence.cpu;
        let noted = reader
            .number_of_cpu("cur_csd_func", 8, cpu)
            .filter(|_| reader.number_of_cpu("cur_csd", 8, cpu).is_some_and(|csd| csd != 0))
            .and_then(|function| reader.function(function));
        let Some(function) =
            noted.or_else(|| frames::running_call(&processor.evidence.stack).map(str::to_owned))
        else {
            continue;
        };
        let nanos =
            if processor.evidence.interrupts_enabled == Some(false) { deaf(clock, cpu) } else { None };
        processor.evidence.running = Some(Running { function: Some(function), caller: None, nanos });
    }
}

/// For how long a CPU whose interrupts are disabled has had them so: if it is known whether that is long.
fn deaf(clock: &Clock, cpu: u32) -> Option<u64> {
    let (least, most) = clock.since_alive(cpu)?;
    most.filter(|&most| most < PATIENCE).or(Some(least).filter(|&least| least >= PATIENCE))
}

struct Search<'k, 'l> {
    reader: Reader<'k>,
    layout: &'l Layout,
    clock: &'l Clock,
    rcu: Option<Rcu>,
    homes: Homes<'k>,
    /// The addresses of all descriptors that lie in a queue.
    queued: BTreeSet<u64>,
    found: Calls,
}

impl Search<'_, '_> {
    /// What lies in a CPU's queue.
    fn queue(&mut self, target: &Processor, processors: &[Processor], waiting: &BTreeMap<u32, String>) {
        let cpu = target.evidence.cpu;
        let Some(queue) = Queue::read(self.reader, self.layout, cpu) else {
            self.found.complete = false;
            self.found
                .gaps
                .push(format!("where the queue of CPU {cpu} is: call_single_queue is not among the symbols"));
            return;
        };
        self.found.complete &= queue.problem.is_none();
        self.found.gaps.extend(queue.problem);
        let fresh = self.fresh(target);
        let asleep = if queue.entries.is_empty() { None } else { self.asleep(cpu, processors, waiting) };
        // Each CPU has a call or two under way to another at a time; a heap of them is not made while an IPI is on its way.
        let heap = queue.entries.len() > 2 * processors.len();
        for csd in &queue.entries {
            self.queued.insert(csd.address);
            let mut call = self.call(csd, cpu, CallState::Queued);
            let waits = |caller: u32| {
                let seen = processors.iter().any(|caller_cpu| {
                    caller_cpu.evidence.cpu == caller && !caller_cpu.evidence.stack.is_empty()
                });
                waiting.contains_key(&caller) || !seen
            };
            call.waited = csd.kind == CallKind::Sync && call.caller.is_none_or(waits);
            call.marked = Some(true);
            // The first on an empty queue is rung for, and those behind it rely on that; but not for a CPU that polls.
            call.rung = match (target.polls(), target.evidence.idle, target.evidence.polls) {
                (true, ..) => Some(false),
                (_, _, Some(false)) => Some(true),
                _ => None,
            };
            self.age(&mut call, fresh, asleep, target);
            call.perhaps_fresh &= !heap || fresh.is_some();
            self.found.list.push(call);
        }
    }

    /// Calls that still lie in this CPU's queue cannot be older than this: it took all that were there, or is about to.
    fn fresh(&self, target: &Processor) -> Option<u64> {
        let flushes = target.flushes() && target.evidence.interrupts_enabled == Some(false);
        let will_look = target.polls() && target.reschedule == Some(true);
        if !flushes && !will_look {
            return None;
        }
        self.clock.since_alive(target.evidence.cpu)?.1
    }

    fn stay(&self, cpu: u32) -> Stay {
        let by_rcu = self.rcu.map(|rcu| rcu.stay(self.reader, cpu)).unwrap_or_default();
        by_rcu.and(progress::stay_by_scheduler(self.reader, self.clock, cpu))
    }

    /// How old a call is, as far as that can be told. `fresh`: not older than this, because its target took all that lay there;
    /// `asleep`: for so long nobody else could have made it.
    fn age(&self, call: &mut CallEvidence, fresh: Option<u64>, asleep: Option<u64>, target: &Processor) {
        let stay = call.caller.filter(|_| call.waited).map(|caller| self.stay(caller)).unwrap_or_default();
        call.nanos_at_most = [fresh, stay.most].into_iter().flatten().min();
        if fresh.is_none() {
            let least = if call.waited { stay.least } else { asleep };
            call.nanos = least.filter(|&least| least >= PATIENCE);
        }
        // Whoever has taken no interrupt for long holds up even a call that was made just now.
        let alive = self.clock.since_alive(target.evidence.cpu);
        let deaf = !target.is_able() && alive.is_some_and(|(least, _)| least >= PATIENCE);
        // With interrupts disabled everywhere, time itself stands still, and its stamps say nothing.
        let bounded = alive.is_some_and(|(_, most)| most.is_some());
        call.perhaps_fresh = bounded && !deaf && call.nanos.is_none();
    }

    /// For how long at least no other CPU has made a call to this one: they sleep, or wait for calls of their own.
    fn asleep(&self, target: u32, processors: &[Processor], waiting: &BTreeMap<u32, String>) -> Option<u64> {
        let others = processors
            .iter()
            .filter(|other| other.evidence.cpu != target && other.evidence.online != Some(false));
        let quiet = |other: &Processor| {
            let cpu = other.evidence.cpu;
            if waiting.contains_key(&cpu) {
                return self.stay(cpu).least;
            }
            self.clock.asleep(cpu).filter(|_| other.is_idle())
        };
        others.map(|other| quiet(other).unwrap_or(0)).min()
    }

    fn call(&self, csd: &Csd, target: u32, state: CallState) -> CallEvidence {
        let (caller, home) = self.homes.of(csd, target);
        let function = match csd.kind {
            CallKind::Wakeup => None,
            _ => Some(self.reader.function(csd.function).unwrap_or_else(|| format!("{:#x}", csd.function))),
        };
        CallEvidence {
            caller,
            state,
            function,
            kind: Some(csd.kind),
            descriptor: Some(Descriptor { address: csd.address, home, flags: csd.flags }),
            ..CallEvidence::post(target)
        }
    }

    /// For whom a CPU waits: the calls of it that are out of every queue and not finished, and those in queues.
    fn wait(&mut self, caller: &Processor, processors: &[Processor], function: &str) -> WaitEvidence {
        let cpu = caller.evidence.cpu;
        let stay = self.stay(cpu);
        let mut wait = WaitEvidence {
            function: Some(function.to_owned()),
            nanos: stay.least.filter(|&least| least >= PATIENCE),
            nanos_at_most: stay.most,
            perhaps_fresh: stay.least.is_none_or(|least| least < PATIENCE)
                && self.clock.since_alive(cpu).is_some(),
            ..WaitEvidence::default()
        };
        let (claimed, over) = self.claimed(caller, processors);
        for (csd, target, how) in claimed {
            let mut call = self.call(&csd, target, CallState::Claimed);
            call.caller = Some(cpu);
            call.waited = true;
            call.marked = Some(false);
            call.inferred = Some(how);
            // What a CPU is in, it has not been in for longer than it has been deaf.
            let runs = processors.iter().find(|target_cpu| target_cpu.evidence.cpu == target);
            let running = runs.and_then(|target| target.evidence.running.as_ref()?.nanos);
            call.nanos = wait.nanos;
            call.nanos_at_most =
                [wait.nanos_at_most, running.filter(|&nanos| nanos < PATIENCE)].into_iter().flatten().min();
            if running.is_some_and(|nanos| nanos < PATIENCE) {
                call.nanos = None;
            } else if running.is_some() {
                call.nanos = call.nanos.max(running);
            }
            call.perhaps_fresh = wait.perhaps_fresh && call.nanos.is_none();
            self.found.list.push(call);
        }
        let mine = |call: &&CallEvidence| call.caller == Some(cpu) && call.waited;
        wait.targets = self
            .found
            .list
            .iter()
            .filter(mine)
            .map(|call| call.target)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        if wait.targets.is_empty() && over {
            // Its calls are finished: it is about to see that.
            (wait.nanos, wait.nanos_at_most) = (None, Some(0));
        } else if let Some(most) = self.freshest(cpu) {
            (wait.nanos, wait.nanos_at_most) =
                (None, Some(wait.nanos_at_most.map_or(most, |known| known.min(most))));
        }
        wait
    }

    /// How old the calls that a CPU waits for are at most, if all of them are known to be young.
    fn freshest(&self, cpu: u32) -> Option<u64> {
        let mine: Vec<&CallEvidence> =
            self.found.list.iter().filter(|call| call.caller == Some(cpu) && call.waited).collect();
        let most = mine.iter().map(|call| call.nanos_at_most).collect::<Option<Vec<u64>>>()?;
        most.into_iter().max()
    }

    /// The unfinished calls of a waiting CPU that are out of every queue, their targets, and how those are known; and whether
    /// calls were found and all are finished.
    fn claimed(&self, caller: &Processor, processors: &[Processor]) -> (Vec<(Csd, u32, String)>, bool) {
        let cpu = caller.evidence.cpu;
        let mut claimed = Vec::new();
        let (mut found, mut open) = (0, 0);
        for csd in self.of_caller(caller) {
            found += 1;
            if !csd.0.is_locked() {
                continue;
            }
            open += 1;
            if self.queued.contains(&csd.0.address) {
                continue;
            }
            let target = match (csd.1, csd.0.route) {
                (Some(target), _) => Some((target, "it is out of the queue and not finished".to_owned())),
                (None, Some((_, target))) => Some((target, "the descriptor names its target".to_owned())),
                (None, None) => self.server(&csd.0, cpu, processors),
            };
            if let Some((target, how)) = target {
                claimed.push((csd.0, target, how));
            }
        }
        (claimed, found > 0 && open == 0)
    }

    /// The descriptors for which a waiting CPU may wait, and their targets where their place says that.
    fn of_caller(&self, caller: &Processor) -> Vec<(Csd, Option<u32>)> {
        let cpu = caller.evidence.cpu;
        let Some(trace) = &caller.trace else { return vec![] };
        let is = |at: usize, name: &str| {
            let frame = &trace.frames[at];
            frame.certain && frame.location.as_ref().is_some_and(|place| place.name.starts_with(name))
        };
        let mut found = Vec::new();
        if (0..trace.frames.len()).any(|at| is(at, "smp_call_function_many")) {
            let targets = self.targets_of_many(cpu).unwrap_or_default();
            found.extend(targets.into_iter().filter_map(|target| {
                let address = self.homes.of_many(cpu, target)?;
                Some((self.layout.read(self.reader, address)?, Some(target)))
            }));
        } else if let Some(at) = (0..trace.frames.len()).find(|&at| is(at, "smp_call_function_single")) {
            found.extend(self.on_stack(trace, at).into_iter().map(|csd| (csd, None)));
            if found.is_empty() {
                let single = self.homes.of_single(cpu).and_then(|at| self.layout.read(self.reader, at));
                found.extend(single.map(|csd| (csd, None)));
            }
        }
        found
    }

    /// The CPUs that a CPU's call to many is for.
    fn targets_of_many(&self, cpu: u32) -> Option<Vec<u32>> {
        const STRUCTURE: &str = "call_function_data";
        let cfd = self.reader.per_cpu("cfd_data", cpu)?;
        let types = self.reader.kernel.types.as_ref()?;
        let place = self.reader.place(cfd, STRUCTURE, "cpumask")?;
        // Kernels for many CPUs keep masks elsewhere.
        let at = if types.field(STRUCTURE, "cpumask[0].bits").is_some() {
            place
        } else {
            self.reader.word(place)?
        };
        let count = self.reader.kernel.per_cpu_layout().ok()?.count();
        let bytes = self.reader.kernel.memory.read_bytes(at, count.div_ceil(64) * 8).ok()?;
        let is_set = |&target: &u32| bytes[target as usize / 8] >> (target % 8) & 1 != 0;
        Some((0..count as u32).filter(is_set).filter(|&target| target != cpu).collect())
    }

    /// The descriptor in the frame of the function that makes a call to one.
    fn on_stack(&self, trace: &BackTrace, at: usize) -> Option<Csd> {
        let begin = trace.frames[at].stack_pointer;
        let end = trace.frames.get(at + 1).map(|next| next.stack_pointer);
        let end = end
            .filter(|&end| (begin..begin.saturating_add(4096)).contains(&end))
            .unwrap_or(begin.saturating_add(512));
        let bytes = self.reader.kernel.memory.read_available(begin, (end - begin) as usize);
        let candidates = (0..bytes.len().saturating_sub(self.layout.size() - 1)).step_by(8);
        let mut found = candidates.filter_map(|offset| {
            let csd =
                self.layout.parse(begin + offset as u64, &bytes[offset..offset + self.layout.size()])?;
            let is_link = csd.next == 0 || Reader::is_kernel(csd.next);
            let is_csd = csd.kind == CallKind::Sync && csd.flags & !0x13 == 0 && is_link;
            (is_csd && Reader::is_kernel(csd.function) && self.reader.function(csd.function).is_some())
                .then_some(csd)
        });
        found.next()
    }

    /// Who runs a call that lies in no queue: the CPU that is in its function, or whose stack knows the descriptor.
    fn server(&self, csd: &Csd, caller: u32, processors: &[Processor]) -> Option<(u32, String)> {
        let others = || processors.iter().filter(|other| other.evidence.cpu != caller);
        let noted = others()
            .find(|other| self.reader.number_of_cpu("cur_csd", 8, other.evidence.cpu) == Some(csd.address));
        if let Some(other) = noted {
            let cpu = other.evidence.cpu;
            return Some((cpu, format!("CPU {cpu} has noted it as the one that it runs")));
        }
        let runs = || others().filter(|other| other.evidence.running.is_some());
        if let Some(other) = runs().find(|other| home::knows(self.reader, other, csd.address)) {
            let cpu = other.evidence.cpu;
            return Some((
                cpu,
                format!("CPU {cpu} has its address in the frames of the handler that runs it"),
            ));
        }
        let name = self.reader.function(csd.function)?;
        let mut inside = runs()
            .filter(|other| other.evidence.stack.iter().any(|frame| !frame.guess && frame.function == name));
        let only = inside.next().filter(|_| inside.next().is_none())?;
        Some((only.evidence.cpu, format!("only CPU {} is in its function", only.evidence.cpu)))
    }
}
