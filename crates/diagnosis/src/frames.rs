//! What a back trace tells: what the CPU waits for, whose call it runs, and what keeps its interrupts off.
//!
//! Names are those of Linux' functions from 2.6 to today, without the suffixes that compilers add (`.constprop.0`, `.isra.3`).

use crate::evidence::{CpuEvidence, Frame, Interrupted, Running, StackKind, Task, WaitEvidence};

/// What a function is known for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It tells others where this CPU is, or stops it: back traces, NMI handlers, panic.
    Plumbing,
    /// It waits until others have run a call.
    CallWait,
    /// It runs the calls of others: the frame inside of it is a call's function.
    CallHandler,
    /// It waits for a lock by spinning.
    SpinLock,
    /// It writes to a console.
    Console,
    /// It keeps all CPUs in step with interrupts off.
    StopMachine,
    /// It waits until a timer's function has ended on another CPU.
    TimerCancel,
    /// It idles.
    Idle,
    /// It idles and looks at its flags by itself.
    IdlePolling,
}

const PLUMBING: [&str; 44] = [
    "dump_stack",
    "dump_stack_lvl",
    "__dump_stack",
    "show_stack",
    "show_regs",
    "sched_show_task",
    "dump_cpu_task",
    "panic",
    "vpanic",
    "__crash_kexec",
    "crash_kexec",
    "machine_kexec",
    "crash_nmi_callback",
    "kdump_nmi_callback",
    "crash_save_cpu",
    "nmi_handle",
    "nmi",
    "do_nmi",
    "default_do_nmi",
    "exc_nmi",
    "asm_exc_nmi",
    "end_repeat_nmi",
    "repeat_nmi",
    "nmi_cpu_backtrace",
    "nmi_cpu_backtrace_handler",
    "nmi_trigger_cpumask_backtrace",
    "arch_trigger_cpumask_backtrace",
    "arch_trigger_all_cpu_backtrace_handler",
    "perf_event_nmi_handler",
    "intel_pmu_handle_irq",
    "amd_pmu_v2_handle_irq",
    "x86_pmu_handle_irq",
    "__perf_event_overflow",
    "perf_event_overflow",
    "handle_pmi_common",
    "watchdog_overflow_callback",
    "watchdog_hardlockup_check",
    "start_disk_dump",
    "try_dump",
    "try_crashdump",
    "stop_this_cpu",
    "native_stop_other_cpus",
    "smp_reboot_interrupt",
    "sysvec_reboot",
];

const CALL_WAIT: [&str; 17] = [
    "smp_call_function_single",
    "smp_call_function_many",
    "smp_call_function_many_cond",
    "smp_call_function",
    "__smp_call_function",
    "__smp_call_function_single",
    "__smp_call_function_many",
    "smp_call_function_mask",
    "smp_call_function_any",
    "native_smp_call_function_mask",
    "csd_lock_wait",
    "__csd_lock_wait",
    "csd_lock_wait_toolong",
    "generic_exec_single",
    "smp_call_function_single_async",
    "wait_for_completion_csd",
    "xen_smp_call_function",
];

const CALL_HANDLER: [&str; 12] = [
    "flush_smp_call_function_queue",
    "__flush_smp_call_function_queue",
    "generic_smp_call_function_single_interrupt",
    "generic_smp_call_function_interrupt",
    "smp_call_function_interrupt",
    "smp_call_function_single_interrupt",
    "__sysvec_call_function",
    "__sysvec_call_function_single",
    "sysvec_call_function",
    "sysvec_call_function_single",
    "csd_do_func",
    "do_handle_IPI",
];

const SPIN_LOCK: [&str; 32] = [
    "native_queued_spin_lock_slowpath",
    "queued_spin_lock_slowpath",
    "__pv_queued_spin_lock_slowpath",
    "pv_queued_spin_lock_slowpath",
    "resilient_queued_spin_lock_slowpath",
    "queued_read_lock_slowpath",
    "queued_write_lock_slowpath",
    "_raw_spin_lock",
    "_raw_spin_lock_irq",
    "_raw_spin_lock_irqsave",
    "_raw_spin_lock_bh",
    "_raw_spin_lock_nested",
    "_raw_spin_lock_irqsave_nested",
    "_raw_read_lock",
    "_raw_read_lock_irq",
    "_raw_read_lock_irqsave",
    "_raw_write_lock",
    "_raw_write_lock_irq",
    "_raw_write_lock_irqsave",
    "do_raw_spin_lock",
    "__raw_spin_lock",
    "__raw_spin_lock_irqsave",
    "_spin_lock",
    "_spin_lock_irq",
    "_spin_lock_irqsave",
    "__ticket_spin_lock",
    "ticket_spin_lock_wait",
    "lock_acquire",
    "__lock_acquire",
    "__spin_lock_debug",
    "_raw_spin_rq_lock_nested",
    "raw_spin_rq_lock_nested",
];

const STOP_MACHINE: [&str; 7] = [
    "multi_cpu_stop",
    "stop_machine_cpu_stop",
    "stop_machine_from_inactive_cpu",
    "stop_cpu",
    "stop_machine_yield",
    "__stop_machine",
    "stopmachine",
];

const TIMER_CANCEL: [&str; 8] = [
    "hrtimer_cancel",
    "hrtimer_cancel_wait_running",
    "hrtimer_try_to_cancel",
    "del_timer_sync",
    "timer_delete_sync",
    "__timer_delete_sync",
    "try_to_del_timer_sync",
    "__try_to_del_timer_sync",
];

const IDLE: [&str; 22] = [
    "default_idle",
    "default_idle_call",
    "native_safe_halt",
    "pv_native_safe_halt",
    "safe_halt",
    "native_halt",
    "arch_cpu_idle",
    "mwait_idle",
    "mwait_idle_with_hints",
    "intel_idle",
    "intel_idle_irq",
    "intel_idle_ibrs",
    "intel_idle_xstate",
    "acpi_idle_enter",
    "acpi_idle_do_entry",
    "acpi_safe_halt",
    "acpi_processor_ffh_cstate_enter",
    "cpuidle_enter_state",
    "cpu_idle",
    "cpu_do_idle",
    "do_idle",
    "haltpoll_enter_idle",
];

const IDLE_POLLING: [&str; 3] = ["poll_idle", "cpu_idle_poll", "default_idle_poll"];

/// The parts of names by which console drivers are known.
const CONSOLE: [&str; 12] = [
    "console_write",
    "console_unlock",
    "console_flush",
    "console_emit_next_record",
    "nbcon_",
    "call_console_drivers",
    "serial8250_console",
    "uart_console",
    "wait_for_xmitr",
    "wait_for_lsr",
    "vt_console_print",
    "io_serial_",
];

/// What a function is known for, if for anything.
pub fn role(function: &str) -> Option<Role> {
    let name = plain(function);
    let tables: [(&[&str], Role); 8] = [
        (&PLUMBING, Role::Plumbing),
        (&CALL_WAIT, Role::CallWait),
        (&CALL_HANDLER, Role::CallHandler),
        (&SPIN_LOCK, Role::SpinLock),
        (&STOP_MACHINE, Role::StopMachine),
        (&TIMER_CANCEL, Role::TimerCancel),
        (&IDLE, Role::Idle),
        (&IDLE_POLLING, Role::IdlePolling),
    ];
    let known = tables.iter().find(|(names, _)| names.contains(&name)).map(|&(_, role)| role);
    known.or_else(|| CONSOLE.iter().any(|part| name.contains(part)).then_some(Role::Console))
}

/// A name without what a compiler has added to it.
fn plain(function: &str) -> &str {
    function.split('.').next().unwrap_or(function)
}

/// What keeps a CPU where it is, as its back trace tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason<'a> {
    /// What kind of thing.
    pub role: Option<Role>,
    /// The function that is worth naming: whoever took the lock, wrote to the console, or simply runs.
    pub function: &'a str,
}

impl Reason<'_> {
    /// For people: `spins on a lock in drm_handle_vblank`.
    pub fn sentence(&self) -> String {
        let function = self.function;
        match self.role {
            Some(Role::SpinLock) => format!("spins on a lock in {function}"),
            Some(Role::Console) => format!("writes to a console in {function}"),
            Some(Role::StopMachine) => {
                format!("is held by stop_machine in {function} until every CPU has come")
            }
            Some(Role::TimerCancel) => format!("waits in {function} until a timer's function has ended"),
            Some(Role::CallWait) => format!("waits in {function} for a call"),
            _ => format!("runs {function}"),
        }
    }
}

/// The frames that say something of what the CPU does: not those by which it was asked where it is, and no guesses where
/// there is anything better.
pub fn telling(stack: &[Frame]) -> impl Iterator<Item = &Frame> {
    // A CPU that hangs in an NMI handler is there itself; one that was asked where it is runs the handler for that.
    let was_asked = stack.first().is_some_and(|frame| role(&frame.function) == Some(Role::Plumbing));
    let in_nmi = stack.iter().rposition(|frame| frame.stack == StackKind::Nmi).filter(|_| was_asked);
    let after_nmi = in_nmi.map_or(0, |last| last + 1);
    let rest = &stack[after_nmi..];
    // A watchdog or a dump that was started by a timer interrupt: what counts is what it interrupted.
    let is_alarm = |frame: &Frame| {
        matches!(
            plain(&frame.function),
            "watchdog_timer_fn" | "update_process_times" | "rcu_sched_clock_irq" | "softlockup_tick"
        )
    };
    let asked = rest.iter().position(|frame| !frame.guess && is_alarm(frame));
    let begins_here = |frame: &&Frame| role(&frame.function) == Some(Role::Plumbing);
    let skip = match asked.filter(|_| rest.first().is_some_and(|frame| begins_here(&frame))) {
        Some(alarm) => {
            let came_in = rest[alarm..].iter().position(|frame| frame.interrupted.is_some());
            came_in.map_or(0, |offset| alarm + offset + 1)
        }
        None => 0,
    };
    let rest = &rest[skip..];
    let any_sure = rest.iter().any(|frame| !frame.guess);
    rest.iter().filter(move |frame| !any_sure || !frame.guess).skip_while(begins_here)
}

/// What keeps a CPU where it is: the innermost thing that is known for it, or the innermost function.
pub fn reason(stack: &[Frame]) -> Option<Reason<'_>> {
    // Only so deep: what lies further out has called what is seen, and does not hold anything up itself.
    const DEPTH: usize = 8;
    let frames: Vec<&Frame> = telling(stack).collect();
    let waits = under_a_tick(&frames).filter(|&begins| innermost_wait(&frames[begins..]).is_some());
    let frames = &frames[waits.unwrap_or(0)..];
    let innermost = frames.first()?;
    let roles: Vec<Option<Role>> = frames.iter().map(|frame| role(&frame.function)).collect();
    let first = |wanted: Role| roles.iter().take(DEPTH).position(|role| *role == Some(wanted));
    if let Some(at) = first(Role::Console) {
        // The driver itself, which is innermost.
        return Some(Reason { role: Some(Role::Console), function: &frames[at].function });
    }
    if let Some(at) = first(Role::StopMachine) {
        return Some(Reason { role: Some(Role::StopMachine), function: &frames[at].function });
    }
    // A lock counts only where nothing but its own machinery lies further in.
    let locking = roles.iter().take_while(|role| **role == Some(Role::SpinLock)).count();
    if locking > 0 {
        let taker = frames.get(locking).unwrap_or(&frames[locking - 1]);
        if role(&taker.function) == Some(Role::TimerCancel) || taker.function.starts_with("lock_hrtimer_base")
        {
            let canceller = frames.iter().rfind(|frame| role(&frame.function) == Some(Role::TimerCancel));
            if let Some(canceller) = canceller {
                return Some(Reason { role: Some(Role::TimerCancel), function: &canceller.function });
            }
        }
        return Some(Reason { role: Some(Role::SpinLock), function: &taker.function });
    }
    for wanted in [Role::CallWait, Role::TimerCancel] {
        if roles.first() == Some(&Some(wanted)) {
            return Some(Reason { role: Some(wanted), function: &innermost.function });
        }
    }
    Some(Reason { role: roles[0], function: &innermost.function })
}

/// The function in which a CPU waits for a call, if that is what it does: the wait itself is innermost, but for what it calls
/// to wait politely, and for a timer interrupt.
pub fn call_wait(stack: &[Frame]) -> Option<&str> {
    let frames: Vec<&Frame> = telling(stack).collect();
    innermost_wait(&frames).or_else(|| innermost_wait(&frames[under_a_tick(&frames)?..]))
}

/// Where the context begins that a timer interrupt has interrupted, if the CPU is in one. A tick that never came to its end
/// would report no hang.
fn under_a_tick(frames: &[&Frame]) -> Option<usize> {
    let came_in = frames.iter().position(|frame| frame.interrupted.is_some())?;
    let is_tick = |frame: &&Frame| frame.function.contains("timer_interrupt");
    frames[..=came_in].iter().any(is_tick).then_some(came_in + 1)
}

/// The state of a CPU that takes a tick while it waits is that of the wait.
pub(crate) fn interrupted_wait(stack: &[Frame]) -> Option<Interrupted> {
    let frames: Vec<&Frame> = telling(stack).collect();
    let begins = under_a_tick(&frames)?;
    innermost_wait(&frames[begins..])?;
    frames[begins - 1].interrupted
}

fn innermost_wait<'a>(frames: &[&'a Frame]) -> Option<&'a str> {
    const POLITE: usize = 3;
    let at = frames.iter().take(POLITE).position(|frame| role(&frame.function) == Some(Role::CallWait))?;
    let is_harmless = |frame: &&Frame| {
        let name = plain(&frame.function);
        ["sanitizer", "kasan", "kcsan", "rcu_read", "cpumask", "pause", "cpu_relax", "find_next_bit"]
            .iter()
            .any(|part| name.contains(part))
    };
    if !frames[..at].iter().all(is_harmless) {
        return None;
    }
    // What the caller called is more telling than the innermost helper.
    let outer = frames[at..].iter().take_while(|frame| role(&frame.function) == Some(Role::CallWait)).last();
    outer.map(|frame| frame.function.as_str())
}

/// The call of another CPU that it runs: what lies inside of the function that runs calls.
pub fn running_call(stack: &[Frame]) -> Option<&str> {
    let frames: Vec<&Frame> = telling(stack).collect();
    let at = frames.iter().position(|frame| role(&frame.function) == Some(Role::CallHandler))?;
    // An interrupt that came in later is not the call.
    let came_in =
        frames[..at].iter().rposition(|frame| frame.interrupted.is_some()).map_or(0, |last| last + 1);
    // With nothing inside of it, it is the queue itself that it does not come to the end of.
    frames[came_in..at].last().or(frames.get(at)).map(|frame| frame.function.as_str())
}

/// Fills in what a CPU's back trace tells and its reader has not said: the function, the wait, the call that it runs, whether
/// it idles.
pub(crate) fn complete(cpu: &mut CpuEvidence) {
    if cpu.stack.is_empty() {
        return;
    }
    if cpu.wait.is_none() {
        cpu.wait = call_wait(&cpu.stack)
            .map(|function| WaitEvidence { function: Some(function.into()), ..WaitEvidence::default() });
    }
    if cpu.running.is_none() && cpu.wait.is_none() {
        cpu.running = running_call(&cpu.stack)
            .map(|function| Running { function: Some(function.into()), ..Running::default() });
    }
    if cpu.function.is_none() {
        cpu.function = reason(&cpu.stack).map(|reason| reason.function.to_owned());
    }
    let innermost = telling(&cpu.stack).next().and_then(|frame| role(&frame.function));
    if cpu.idle.is_none() && matches!(innermost, Some(Role::Idle | Role::IdlePolling)) {
        cpu.idle = Some(true);
    }
    if cpu.idle.is_none() && is_in_idle_loop(&cpu.stack) {
        cpu.idle = Some(true);
    }
    if cpu.polls.is_none() && innermost == Some(Role::IdlePolling) {
        cpu.polls = Some(true);
    }
    if cpu.idle.is_none() && cpu.task.as_ref().is_some_and(Task::is_not_idle) {
        cpu.idle = Some(false);
    }
}

/// Whether it goes round in the idle loop, with interrupts disabled for moments: nothing has come in, and no lock holds it.
fn is_in_idle_loop(stack: &[Frame]) -> bool {
    let frames: Vec<&Frame> = telling(stack).collect();
    let Some(outer) =
        frames.iter().position(|frame| matches!(plain(&frame.function), "do_idle" | "cpu_idle_loop"))
    else {
        return false;
    };
    let came_in = frames[..outer].iter().any(|frame| frame.interrupted.is_some());
    !came_in && reason(stack).is_some_and(|reason| reason.role.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(names: &[&str]) -> Vec<Frame> {
        let frame = |name: &&str| match name.strip_prefix('!') {
            // An interrupt came in below this frame.
            Some(name) => Frame {
                interrupted: Some(Interrupted { interrupts_enabled: Some(true), user_mode: Some(false) }),
                ..Frame::of(name)
            },
            None => Frame::of(*name),
        };
        names.iter().map(frame).collect()
    }

    #[test]
    fn a_spin_lock_is_blamed_on_who_takes_it() {
        let frames = stack(&[
            "native_queued_spin_lock_slowpath",
            "do_raw_spin_lock",
            "_raw_spin_lock",
            "drm_handle_vblank",
            "hrtimer_interrupt",
        ]);
        let reason = reason(&frames).expect("a reason");
        assert_eq!((reason.role, reason.function), (Some(Role::SpinLock), "drm_handle_vblank"));
    }

    #[test]
    fn a_console_a_cancelled_timer_and_stop_machine_are_named() {
        let named = |names: &[&str]| {
            let frames = stack(names);
            let reason = reason(&frames).expect("a reason");
            (reason.role, reason.function.to_owned())
        };
        let console = ["pl011_console_write_atomic", "nbcon_emit_next_record", "vprintk_emit"];
        assert_eq!(named(&console), (Some(Role::Console), "pl011_console_write_atomic".into()));
        let timer =
            ["_raw_spin_lock_irqsave", "lock_hrtimer_base", "hrtimer_try_to_cancel", "hrtimer_cancel"];
        assert_eq!(named(&timer), (Some(Role::TimerCancel), "hrtimer_cancel".into()));
        let stop = ["rcu_momentary_dyntick_idle", "multi_cpu_stop", "cpu_stopper_thread"];
        assert_eq!(named(&stop), (Some(Role::StopMachine), "multi_cpu_stop".into()));
        assert_eq!(named(&["lose_spin", "kthread"]), (None, "lose_spin".into()));
    }

    #[test]
    fn a_delay_is_no_lock() {
        let frames = stack(&["delay_tsc", "__const_udelay", "try_check_zero"]);
        let reason = reason(&frames).expect("a reason");
        assert_eq!((reason.role, reason.function), (None, "delay_tsc"));
        assert_eq!(call_wait(&frames), None);
    }

    #[test]
    fn the_frames_of_an_nmi_and_of_a_watchdog_are_passed_over() {
        let mut frames = stack(&["crash_nmi_callback", "nmi_handle", "exc_nmi", "spin_here"]);
        for frame in &mut frames[..3] {
            frame.stack = StackKind::Nmi;
        }
        assert_eq!(telling(&frames).next().map(|frame| frame.function.as_str()), Some("spin_here"));
        frames[0].function = "hangs_in_nmi".into();
        assert_eq!(telling(&frames).next().map(|frame| frame.function.as_str()), Some("hangs_in_nmi"));
        let frames = stack(&[
            "dump_stack",
            "panic",
            "watchdog_timer_fn",
            "hrtimer_interrupt",
            "!apic_timer_interrupt",
            "smp_call_function_many",
            "on_each_cpu",
        ]);
        assert_eq!(call_wait(&frames), Some("smp_call_function_many"));
    }

    #[test]
    fn who_waits_for_a_call_is_known_by_the_wait_being_innermost() {
        let waits = ["smp_call_function_single", "smp_call_function_many", "on_each_cpu"];
        assert_eq!(call_wait(&stack(&waits)), Some("smp_call_function_many"));
        let polite = ["__sanitizer_cov_trace_const_cmp4", "smp_call_function_many_cond", "on_each_cpu"];
        assert_eq!(call_wait(&stack(&polite)), Some("smp_call_function_many_cond"));
        let inside = ["memcpy", "do_something", "smp_call_function_many_cond"];
        assert_eq!(call_wait(&stack(&inside)), None);
        assert_eq!(call_wait(&stack(&["schedule", "wait_for_completion"])), None);
    }

    #[test]
    fn who_takes_a_tick_while_it_waits_waits() {
        let tick = [
            "native_apic_mem_write",
            "hrtimer_interrupt",
            "!asm_sysvec_apic_timer_interrupt",
            "smp_call_function_single",
        ];
        assert_eq!(call_wait(&stack(&tick)), Some("smp_call_function_single"));
        assert_eq!(interrupted_wait(&stack(&tick)).and_then(|state| state.interrupts_enabled), Some(true));
        let other = ["spin_here", "handle_irq_event", "!asm_common_interrupt", "smp_call_function_single"];
        assert_eq!((call_wait(&stack(&other)), interrupted_wait(&stack(&other))), (None, None));
    }

    #[test]
    fn the_call_that_runs_is_what_lies_inside_of_the_handler() {
        let frames = stack(&[
            "delay_tsc",
            "slow_function",
            "__flush_smp_call_function_queue",
            "!sysvec_call_function",
        ]);
        assert_eq!(running_call(&frames), Some("slow_function"));
        let nested = stack(&[
            "!asm_sysvec_apic_timer_interrupt",
            "slow_function.isra.0",
            "flush_smp_call_function_queue",
        ]);
        assert_eq!(running_call(&nested), Some("slow_function.isra.0"));
        let queue = "flush_smp_call_function_queue";
        assert_eq!(running_call(&stack(&[queue])), Some(queue));
        assert_eq!(running_call(&stack(&["work"])), None);
    }

    #[test]
    fn guesses_count_only_where_there_is_nothing_better() {
        let guess = |name: &str| Frame { guess: true, ..Frame::of(name) };
        let frames = [guess("smp_call_function_single"), Frame::of("do_work")];
        assert_eq!(reason(&frames).map(|reason| reason.function), Some("do_work"));
        let frames = [guess("spin")];
        assert_eq!(reason(&frames).map(|reason| reason.function), Some("spin"));
        assert_eq!(reason(&[]), None);
    }

    #[test]
    fn an_idle_cpu_is_known_by_its_innermost_function() {
        let idle = |names: &[&str]| {
            let mut cpu = CpuEvidence { stack: stack(names), ..CpuEvidence::unknown(0) };
            complete(&mut cpu);
            (cpu.idle, cpu.polls)
        };
        assert_eq!(idle(&["native_safe_halt", "default_idle", "do_idle"]), (Some(true), None));
        assert_eq!(idle(&["poll_idle", "cpuidle_enter_state"]), (Some(true), Some(true)));
        assert_eq!(idle(&["pick_next_entity", "__schedule", "schedule_idle", "do_idle"]), (Some(true), None));
        assert_eq!(idle(&["_raw_spin_lock", "raw_spin_rq_lock", "__schedule", "do_idle"]), (None, None));
        assert_eq!(idle(&["handle_softirqs", "!sysvec_apic_timer_interrupt", "do_idle"]), (None, None));
    }
}
