//! For how long a CPU can at most have been where it is, and for how long at least: what tells a caller that is stuck from one
//! that calls again and again.
//!
//! A CPU that waits for a call cannot be preempted. RCU counts it as passed only when it has scheduled, idled or been in user mode.
//! So a CPU that has passed since the last grace period began cannot have waited for longer; and one that RCU still waits for has
//! not scheduled since.
//!
//! Source: Linux, `kernel/rcu/tree.c`, `kernel/smp.c` (facts only).

use super::clock::Clock;
use super::reader::Reader;

/// The low bits of a grace period's number say how far it has got: none set, none is under way. `RCU_SEQ_STATE_MASK`.
const STATE: u64 = 3;
/// So many tasks that wait for a CPU are looked at.
const MOST_TASKS: usize = 1000;

/// For how long a CPU has been where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stay {
    /// At least, in nanoseconds: it has not scheduled since.
    pub(super) least: Option<u64>,
    /// At most.
    pub(super) most: Option<u64>,
}

impl Stay {
    /// The longer of two, as far as it is known for how long at least; the shorter for how long at most.
    pub(super) fn and(self, other: Self) -> Self {
        let most = [self.most, other.most].into_iter().flatten().min();
        Self { least: self.least.max(other.least), most }
    }
}

/// What follows from the tasks that wait for a CPU: they have waited for as long as it has not scheduled. One that calls again
/// and again lets others run between its calls, or it would be stuck in another way.
pub(super) fn stay_by_scheduler(reader: Reader<'_>, clock: &Clock, cpu: u32) -> Stay {
    let watchdog = since_watchdog(reader, clock, cpu);
    Stay { least: longest_wait(reader, cpu).max(watchdog), most: None }
}

/// The time for which the task that has waited longest for a CPU has done so.
fn longest_wait(reader: Reader<'_>, cpu: u32) -> Option<u64> {
    let queue = reader.per_cpu("runqueues", cpu)?;
    let now = reader.member(queue, "rq", "clock")?;
    let current = reader.kernel.current_task(cpu).ok()?;
    let head = reader.place(queue, "rq", "cfs_tasks")?;
    let link = reader.kernel.types.as_ref()?.offset("task_struct", "se.group_node")?;
    let mut longest = None;
    let mut at = reader.word(head)?;
    for _ in 0..MOST_TASKS {
        if at == head || at == 0 {
            break;
        }
        let task = at.wrapping_sub(link);
        let queued =
            reader.member(task, "task_struct", "sched_info.last_queued").filter(|&queued| queued != 0);
        if task != current {
            longest = longest.max(queued.and_then(|queued| now.checked_sub(queued)));
        }
        at = reader.word(at)?;
    }
    longest
}

/// The time for which the stopper thread has not come to tell the watchdog that it runs. The timer that asks it fires with a
/// fixed period, and asks again only when it has been answered.
fn since_watchdog(reader: Reader<'_>, clock: &Clock, cpu: u32) -> Option<u64> {
    let stopper = reader.per_cpu("cpu_stopper", cpu)?;
    let works = reader.place(stopper, "cpu_stopper", "works")?;
    let first = reader.word(works).filter(|&first| first != works)?;
    let list = reader.kernel.types.as_ref()?.offset("cpu_stop_work", "list")?;
    let function = reader.member(first.wrapping_sub(list), "cpu_stop_work", "fn")?;
    if reader.function(function).as_deref() != Some("softlockup_fn") {
        return None;
    }
    let next = reader.of_cpu("watchdog_hrtimer", "hrtimer", "node.expires", cpu)?;
    let asked = next.checked_sub(reader.number("sample_period", 8)?)?;
    clock.earliest.checked_sub(asked)
}

/// What RCU knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rcu {
    sequence: u64,
    /// How long ago the last grace period began: at least, at most.
    began: (u64, Option<u64>),
}

impl Rcu {
    pub(super) fn read(reader: Reader<'_>, clock: &Clock) -> Option<Self> {
        let state = reader.kernel.symbols.address_of("rcu_state")?;
        let sequence = reader.member(state, "rcu_state", "gp_seq")?;
        let began = clock.since_jiffies(reader.member(state, "rcu_state", "gp_start")?)?;
        Some(Self { sequence, began })
    }

    /// What follows for a CPU that is in the kernel and may not be preempted.
    pub(super) fn stay(&self, reader: Reader<'_>, cpu: u32) -> Stay {
        if self.sequence & STATE == 0 {
            // None is under way: all have passed since the last one began.
            return Stay { least: None, most: self.began.1 };
        }
        let Some(waited_for) = self.is_waited_for(reader, cpu) else { return Stay::default() };
        if waited_for {
            return Stay { least: Some(self.began.0), most: None };
        }
        Stay { least: None, most: self.began.1 }
    }

    /// Whether the grace period that is under way waits for a CPU.
    fn is_waited_for(&self, reader: Reader<'_>, cpu: u32) -> Option<bool> {
        let data = reader.per_cpu("rcu_data", cpu)?;
        let node = reader.member(data, "rcu_data", "mynode")?;
        // The node may not have begun with it yet.
        if reader.member(node, "rcu_node", "gp_seq")? != self.sequence {
            return None;
        }
        let mask = reader.member(data, "rcu_data", "grpmask")?;
        Some(reader.member(node, "rcu_node", "qsmask")? & mask != 0)
    }
}
