//! What is known of each CPU: masks, registers, task, back trace, flags, and what the scheduler and RCU have noted.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use smpcall_crashdump::VirtualMemory;
use smpcall_crashdump::percpu::CpuSet;
use smpcall_crashdump::stacks::{Stack, TASK_STACK};
use smpcall_crashdump::unwind::{BackTrace, Start};
use smpcall_vmcore::{PendingInterrupts, Registers};

use super::machine::Machine;
use super::reader::Reader;
use crate::dump;
use crate::evidence::{CpuEvidence, Frame, StackKind, Task};
use crate::frames::{self, Role};
use crate::verdict::Fact;

/// In the flags of a task: it looks at its flags by itself. x86, Linux 3.15 to 6.16: `TIF_POLLING_NRFLAG`.
const POLLING: u64 = 1 << 21;
/// It is to give up the CPU: `TIF_NEED_RESCHED` of the same kernels.
const RESCHEDULE: u64 = 1 << 3;
/// `TASK_COMM_LEN`.
const NAME: usize = 16;

/// One CPU, with what only the reader of calls needs.
#[derive(Debug, Default)]
pub(super) struct Processor {
    pub(super) evidence: CpuEvidence,
    pub(super) registers: Option<Registers>,
    pub(super) trace: Option<BackTrace>,
    /// Where the stack of its task is.
    pub(super) stack: Range<u64>,
    /// Its current task is to give up the CPU.
    pub(super) reschedule: Option<bool>,
}

impl Processor {
    /// Whether it could take an interrupt when it was seen.
    pub(super) fn is_able(&self) -> bool {
        self.evidence.interrupts_enabled == Some(true) || self.evidence.user_mode == Some(true)
    }

    /// Whether it sleeps in its idle loop, and nothing has come in.
    pub(super) fn is_idle(&self) -> bool {
        let innermost =
            frames::telling(&self.evidence.stack).next().and_then(|frame| frames::role(&frame.function));
        matches!(innermost, Some(Role::Idle | Role::IdlePolling))
    }

    /// Whether it is in the function that runs the calls of others, beyond the point at which it has emptied its queue.
    pub(super) fn flushes(&self) -> bool {
        let flush = |frame: &Frame| {
            frame.function.trim_start_matches('_').starts_with("flush_smp_call_function_queue")
        };
        let inside = |at: usize| at > 0 || self.evidence.stack[at].offset.is_some_and(|offset| offset > 0x40);
        self.evidence.stack.iter().position(|frame| !frame.guess && flush(frame)).is_some_and(inside)
    }

    /// Whether it goes round in its idle loop and looks at its flags by itself; nothing has come in.
    pub(super) fn polls(&self) -> bool {
        self.evidence.polls == Some(true)
    }
}

/// Reads all CPUs that are there.
pub(super) fn read(reader: Reader<'_>, machine: &Machine) -> Vec<Processor> {
    let kernel = reader.kernel;
    let numbers = kernel.cpus(CpuSet::Present).or_else(|_| kernel.cpus(CpuSet::Possible)).unwrap_or_default();
    let set = |set| kernel.cpus(set).ok().map(|cpus| cpus.into_iter().collect::<BTreeSet<u32>>());
    let online = set(CpuSet::Online);
    // A panic leaves the crashing CPU alone in the mask: then it says nothing of the others.
    let crashed = machine.panic.is_some();
    let online = online.filter(|online| !crashed || online.len() > 1 || numbers.len() == 1);
    let dying = set(CpuSet::Dying);
    let apics: BTreeMap<u32, PendingInterrupts> =
        kernel.memory.dump().pending_interrupts().map(|pending| (pending.cpu, pending)).collect();
    let crashing = machine.panic.as_ref().and_then(|panic| panic.cpu);
    let anybody_saved = numbers.iter().any(|&cpu| kernel.registers(cpu).is_some());
    let read = |&number: &u32| {
        let mut cpu = CpuEvidence::unknown(number);
        cpu.online = online.as_ref().map(|online| online.contains(&number));
        cpu.dying = dying.as_ref().map(|dying| dying.contains(&number) && cpu.online != Some(false));
        if let Some(pending) = apics.get(&number) {
            (cpu.pending, cpu.in_service) = dump::registers_of(pending);
        }
        let mut processor = Processor { evidence: cpu, ..Processor::default() };
        of_task(reader, &mut processor, machine);
        let registers = kernel.registers(number);
        processor.evidence.registers_saved = anybody_saved.then_some(registers.is_some());
        if let Some(registers) = registers {
            of_registers(reader, &mut processor, registers);
        }
        if crashing == Some(number) {
            // It disabled them itself on its way down.
            processor.evidence.interrupts_enabled = None;
        }
        of_loop(&mut processor);
        of_scheduler(reader, &mut processor);
        processor
    };
    numbers.iter().map(read).collect()
}

fn of_registers(reader: Reader<'_>, processor: &mut Processor, registers: Registers) {
    let cpu = &mut processor.evidence;
    cpu.interrupts_enabled = Some(registers.interrupts_enabled());
    cpu.user_mode = Some(registers.cs & 3 == 3);
    processor.registers = Some(registers);
    if cpu.user_mode == Some(true) {
        return;
    }
    let trace = reader.kernel.unwind(Start::registers(&registers));
    cpu.stack = dump::stack(&trace);
    if !trace.is_whole() {
        cpu.stack_ended = Some(trace.end.to_string());
    }
    if processor.stack.is_empty()
        && let Some(outer) = trace.frames.iter().rfind(|frame| frame.stack == Stack::Task)
    {
        // Without types: a task's stack begins at a multiple of its size.
        let begin = outer.stack_pointer & !(TASK_STACK - 1);
        processor.stack = begin..begin.saturating_add(TASK_STACK);
    }
    // What an NMI has interrupted is what counts: it is what stopped the CPU at a crash.
    let asked = cpu.stack.first().is_some_and(|frame| frames::role(&frame.function) == Some(Role::Plumbing));
    let nmi = cpu.stack.iter().rposition(|frame| frame.stack == StackKind::Nmi).filter(|_| asked);
    if let Some(state) = nmi.and_then(|last| cpu.stack[last].interrupted) {
        (cpu.interrupts_enabled, cpu.user_mode) = (state.interrupts_enabled, state.user_mode);
    }
    processor.trace = Some(trace);
}

fn of_task(reader: Reader<'_>, processor: &mut Processor, machine: &Machine) {
    let cpu = &mut processor.evidence;
    let Ok(task) = reader.kernel.current_task(cpu.cpu) else { return };
    cpu.task = self::task(reader, task);
    if let Some(stack) = reader.member(task, "task_struct", "stack").filter(|&stack| Reader::is_kernel(stack))
    {
        processor.stack = stack..stack.saturating_add(TASK_STACK);
    }
    let flags =
        reader.any_member(task, "task_struct", &["thread_info.flags"]).filter(|_| machine.knows_flags);
    processor.reschedule = flags.map(|flags| flags & RESCHEDULE != 0);
    let idles = cpu.task.as_ref().is_some_and(|task| task.pid == Some(0));
    cpu.polls = flags.filter(|_| idles).map(|flags| flags & POLLING != 0);
    if cpu.task.as_ref().is_some_and(Task::is_not_idle) {
        // Only an idle task is not rung.
        cpu.polls = Some(false);
    }
    if processor.reschedule == Some(true) {
        let what = format!("task of CPU {}", cpu.cpu);
        cpu.facts.push(
            Fact::new(what, "is to give up the CPU (TIF_NEED_RESCHED)", reader.source("scheduler")).at(task),
        );
    }
}

/// The flag of polling stands while an interrupt is served too, which keeps the CPU from looking.
fn of_loop(processor: &mut Processor) {
    let cpu = &mut processor.evidence;
    let in_interrupt = frames::telling(&cpu.stack).any(|frame| frame.interrupted.is_some());
    if cpu.polls == Some(true) && (in_interrupt || cpu.stack.is_empty()) {
        cpu.polls = None;
    }
}

/// A task's name and number.
pub(super) fn task(reader: Reader<'_>, task: u64) -> Option<Task> {
    let name = reader.place(task, "task_struct", "comm")?;
    let name = reader.kernel.memory.read_string(name, NAME).ok()?;
    let pid = reader.member(task, "task_struct", "pid").map(|pid| pid as u32);
    Some(Task { name, pid })
}

fn of_scheduler(reader: Reader<'_>, processor: &mut Processor) {
    let cpu = &mut processor.evidence;
    let number = cpu.cpu;
    // In order of age: in `irq_stat`, since 6.2 in `pcpu_hot`, since 6.15 by itself.
    let softirqs = reader
        .of_cpu("pcpu_hot", "pcpu_hot", "softirq_pending", number)
        .or_else(|| reader.number_of_cpu("__softirq_pending", 2, number))
        .or_else(|| reader.of_cpu("irq_stat", "irq_cpustat_t", "__softirq_pending", number));
    cpu.softirqs_pending = softirqs.map(|pending| pending as u32);
    cpu.clock_nanos = reader.of_cpu("runqueues", "rq", "clock", number);
    let has_steal_time = reader.number("has_steal_clock", 4).is_some_and(|has| has != 0);
    if has_steal_time {
        let of = |path| reader.of_cpu("steal_time", "kvm_steal_time", path, number);
        cpu.preempted = of("preempted").map(|preempted| preempted & 1 != 0);
        cpu.stolen_nanos = of("steal");
    }
    // Each stopper has a list of what it is to do next; it comes before everything else that is to run.
    let works = reader
        .per_cpu("cpu_stopper", number)
        .and_then(|stopper| reader.place(stopper, "cpu_stopper", "works"));
    if let Some((works, first)) = works.and_then(|works| Some((works, reader.word(works)?)))
        && first != works
        && first != 0
    {
        let function = reader
            .member(first.wrapping_sub(list_in_work(reader)), "cpu_stop_work", "fn")
            .and_then(|function| reader.function(function));
        let what = format!("stopper thread of CPU {number}");
        let value = format!("has not come to run {}", function.as_deref().unwrap_or("its next work"));
        cpu.facts.push(Fact::new(what, value, reader.source("cpu_stopper")).at(works));
    }
}

fn list_in_work(reader: Reader<'_>) -> u64 {
    reader.kernel.types.as_ref().and_then(|types| types.offset("cpu_stop_work", "list")).unwrap_or(0)
}
