//! CPU hotplug of Linux 3.0 (`kernel/cpu.c`, and s390's part of it as far as x86 has something like it).
//!
//! s390 switches external interrupts off in control register 0 of a CPU that goes, and stops it by a signal processor order;
//! when it comes, an initial CPU reset forgets what is pending. In their places here: task priority 255, under which a local
//! APIC keeps what is pending and offers nothing; a halt with interrupts disabled; INIT.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use smpcall::Hotplug;
use smpcall_local_apic::{Access, Register};
use smpcall_machine::{Cpu, Deadline, Machine, wait};
use smpcall_simulator::{SimAccess, SimMachine, program};

use super::super::{Cast, disk, this_cpu};
use super::smp::{Func, smp_call_function_single};
use super::{Kernel, blk, stop_machine};

/// Above every vector: none is taken.
const ALL_MASKED: u32 = 0xff;

impl Kernel {
    pub(super) fn cpu_online(&self, cpu: Cpu) -> bool {
        // Acquire: what the CPU did before it came.
        self.cpu_online_mask.load(Acquire) & 1 << cpu.number() != 0
    }

    fn set_cpu_online(&self, cpu: Cpu, online: bool) {
        // Release: what was done before is visible to who sees it.
        if online {
            self.cpu_online_mask.fetch_or(1 << cpu.number(), Release);
        } else {
            self.cpu_online_mask.fetch_and(!(1 << cpu.number()), Release);
        }
    }
}

/// `echo 0` or `echo 1` into a CPU's file `online`.
#[expect(clippy::used_underscore_items, reason = "their names")]
pub(super) fn sysc_noemu(kernel: &Kernel, cast: Cast, online: bool) {
    let _sysc_noemu = program::frame("sysc_noemu");
    let _sys_write = program::frame("sys_write");
    let _vfs_write = program::frame("vfs_write");
    let _sysfs_write_file = program::frame("sysfs_write_file");
    let _store_online = program::frame("store_online");
    if online {
        let _frame = program::frame("cpu_up");
        _cpu_up(kernel, cast);
    } else {
        let _frame = program::frame("cpu_down");
        _cpu_down(kernel, cast);
    }
}

/// Which notifiers run. Of all there are, those that have to do with this.
#[derive(Clone, Copy)]
enum Notification {
    /// `CPU_DOWN_PREPARE`.
    DownPrepare,
    /// `CPU_DEAD`.
    Dead,
    /// `CPU_ONLINE`.
    Online,
}

fn cpu_notify(kernel: &Kernel, cast: Cast, notification: Notification) {
    let _outer = program::frame("__raw_notifier_call_chain");
    let _inner = program::frame("notifier_call_chain");
    match notification {
        Notification::DownPrepare => iucv_cpu_notify(kernel, cast.target, Func::IucvRetrieveCpu),
        Notification::Dead => blk::blk_cpu_dead(kernel, cast.target),
        Notification::Online => iucv_cpu_notify(kernel, cast.target, Func::IucvDeclareCpu),
    }
}

fn iucv_cpu_notify(kernel: &Kernel, cpu: Cpu, func: Func) {
    let _frame = program::frame("iucv_cpu_notify");
    smp_call_function_single(kernel, cpu, func);
}

fn _cpu_down(kernel: &Kernel, cast: Cast) {
    let _frame = program::frame("_cpu_down");
    cpu_notify(kernel, cast, Notification::DownPrepare);
    stop_machine::__stop_machine(kernel, cast);
    // `__cpu_die`.
    wait::<SimMachine>(&[kernel.cpu_dead.equals(u64::MAX, 1)], Deadline::NEVER);
    cpu_notify(kernel, cast, Notification::Dead);
}

/// On the CPU that goes, while all others stand still with interrupts disabled.
pub(super) fn take_cpu_down(kernel: &Kernel) {
    let _frame = program::frame("take_cpu_down");
    // `__cpu_disable`.
    kernel.set_cpu_online(this_cpu(), false);
    SimAccess.write(Register::TASK_PRIORITY, ALL_MASKED);
    // Now the `CPU_DYING` notifiers, of which generic SMP code has none: that is what the report asks for.
}

/// The end of a CPU that is offline.
pub(super) fn cpu_die(kernel: &Kernel) -> ! {
    let _ = SimMachine::disable_interrupts();
    // Release: its last store.
    kernel.cpu_dead.store(1, Release);
    program::park()
}

fn _cpu_up(kernel: &Kernel, cast: Cast) {
    let _frame = program::frame("_cpu_up");
    // `__cpu_up`. Relaxed: the new CPU reads it only when it goes again.
    kernel.cpu_dead.store(0, Relaxed);
    // As then: nobody looks at whether it could be sent.
    let _ = SimMachine::start_cpu(cast.target);
    let online = 1 << cast.target.number();
    wait::<SimMachine>(&[kernel.cpu_online_mask.equals(online, online)], Deadline::NEVER);
    cpu_notify(kernel, cast, Notification::Online);
}

/// The CPU that comes.
pub(super) fn start_secondary(kernel: &Kernel, cast: Cast) {
    program::enable_local_apic().expect("it had enabled it before it went");
    let me = this_cpu();
    kernel.softirqs[me.index()].reset();
    kernel.set_cpu_online(me, true);
    SimMachine::restore_interrupts(true);
    // Tasks come back to it, and make requests again.
    disk::play_when_back(cast);
    stop_machine::cpu_idle(kernel, cast);
}
