//! Calls to one CPU in Linux 3.0 (`kernel/smp.c`): a queue for each CPU, and an interrupt only if it was empty.

use core::ptr;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::cell::Cell;

use smpcall_local_apic::{Interrupt, Vector};
use smpcall_machine::{Cpu, Deadline, Machine, Pointer, Word, wait};
use smpcall_simulator::{InterruptFrame, RING_VECTOR, SimMachine, SimMemory, program, send_interrupt};

use super::super::this_cpu;
use super::{KERNEL, Kernel, blk};

/// The vector in the place of s390's external call.
const CALL_FUNCTION_SINGLE: Vector = match Vector::new(RING_VECTOR) {
    Some(vector) => vector,
    None => panic!("an ordinary vector"),
};

/// In `flags`: its owner must not use it again before it was run.
const CSD_FLAG_LOCK: u64 = 1;

/// A function that CPUs were asked to run. By name, so that what lies in a queue can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Func {
    TriggerSoftirq,
    IucvDeclareCpu,
    IucvRetrieveCpu,
}

impl Func {
    pub(in super::super) const fn name(self) -> &'static str {
        match self {
            Self::TriggerSoftirq => "trigger_softirq",
            Self::IucvDeclareCpu => "iucv_declare_cpu",
            Self::IucvRetrieveCpu => "iucv_retrieve_cpu",
        }
    }

    fn run(self, kernel: &Kernel, info: usize) {
        match self {
            Self::TriggerSoftirq => blk::trigger_softirq(kernel, info),
            // What they tell the hypervisor about its messages is not part of this.
            Self::IucvDeclareCpu | Self::IucvRetrieveCpu => {}
        }
    }
}

/// A call (`struct call_single_data`): part of a request, or on its caller's stack.
pub(super) struct CallSingleData {
    next: Pointer<SimMemory, CallSingleData>,
    flags: Word<SimMemory>,
    func: Cell<Func>,
    info: Cell<usize>,
}

impl CallSingleData {
    pub(super) const fn new() -> Self {
        Self {
            next: Pointer::new(ptr::null_mut()),
            flags: Word::new(0),
            func: Cell::new(Func::TriggerSoftirq),
            info: Cell::new(0),
        }
    }

    /// Outside of the machine.
    pub(super) fn reset(&self) {
        self.flags.store(0, Relaxed);
    }

    pub(super) fn set(&self, func: Func, info: usize) {
        self.func.set(func);
        self.info.set(info);
        // Relaxed: the queue's lock publishes it.
        self.flags.store(0, Relaxed);
    }

    fn lock(&self) {
        self.wait_for_unlock();
        // Relaxed: as above.
        self.flags.store(CSD_FLAG_LOCK, Relaxed);
    }

    /// `csd_lock_wait`, which the compiler makes part of its callers.
    fn wait_for_unlock(&self) {
        wait::<SimMachine>(&[self.flags.equals(CSD_FLAG_LOCK, 0)], Deadline::NEVER);
    }

    fn unlock(&self) {
        // Release: what was run is visible to the one that waits.
        self.flags.store(0, Release);
    }
}

/// The calls that lie with a CPU (`call_single_queue`).
pub(super) struct CallSingleQueue {
    lock: Word<SimMemory>,
    first: Pointer<SimMemory, CallSingleData>,
    last: Pointer<SimMemory, CallSingleData>,
}

impl CallSingleQueue {
    pub(super) const fn new() -> Self {
        let null = ptr::null_mut();
        Self { lock: Word::new(0), first: Pointer::new(null), last: Pointer::new(null) }
    }

    /// Outside of the machine.
    pub(super) fn reset(&self) {
        self.lock.store(0, Relaxed);
        self.clear();
    }

    fn clear(&self) {
        // Relaxed, here and below: the lock orders them.
        self.first.store(ptr::null_mut(), Relaxed);
        self.last.store(ptr::null_mut(), Relaxed);
    }

    /// With the lock held and interrupts disabled (`raw_spin_lock_irqsave`).
    fn locked<T>(&self, inside: impl FnOnce() -> T) -> T {
        let were_enabled = SimMachine::disable_interrupts();
        // Acquire: what the last holder did comes before what this one does.
        while self.lock.compare_exchange(0, 1, Acquire, Relaxed).is_err() {
            wait::<SimMachine>(&[self.lock.equals(u64::MAX, 0)], Deadline::NEVER);
        }
        let result = inside();
        // Release: pairs with the next holder.
        self.lock.store(0, Release);
        SimMachine::restore_interrupts(were_enabled);
        result
    }

    /// Appends a call. Whether the queue was empty.
    fn append(&self, data: *mut CallSingleData) -> bool {
        let last = self.last.load(Relaxed);
        // SAFETY: the caller has just made this pointer from a reference, or found it on the queue, where a call stays
        // alive: requests are the kernel's for ever, and callers wait until their call was taken from here and run.
        unsafe { &*data }.next.store(ptr::null_mut(), Relaxed);
        self.last.store(data, Relaxed);
        if last.is_null() {
            self.first.store(data, Relaxed);
        } else {
            // SAFETY: as above.
            unsafe { &*last }.next.store(data, Relaxed);
        }
        last.is_null()
    }

    /// What lies here, oldest first. Outside of the machine.
    pub(super) fn functions(&self) -> Vec<Func> {
        let mut functions = Vec::new();
        let mut next = self.first.load(Relaxed);
        // SAFETY: as in `append`; no CPU runs.
        while let Some(data) = unsafe { next.as_ref() } {
            functions.push(data.func.get());
            next = data.next.load(Relaxed);
        }
        functions
    }
}

/// Puts the call into the queue, and sends an interrupt if that was empty.
fn generic_exec_single(kernel: &Kernel, cpu: Cpu, data: &CallSingleData, waits: bool) {
    let _frame = program::frame("generic_exec_single");
    let queue = &kernel.call_single_queue[cpu.index()];
    let was_empty = queue.locked(|| queue.append(ptr::from_ref(data).cast_mut()));
    if was_empty {
        // `arch_send_call_function_single_ipi`. As then: nobody looks at whether it could be sent.
        let _ = send_interrupt(cpu, Interrupt::Fixed(CALL_FUNCTION_SINGLE));
    }
    if waits {
        data.wait_for_unlock();
    }
}

/// Calls another CPU that is online, and waits. Whether it was online.
pub(super) fn smp_call_function_single(kernel: &Kernel, cpu: Cpu, func: Func) -> bool {
    let _frame = program::frame("smp_call_function_single");
    if !kernel.cpu_online(cpu) {
        return false;
    }
    let data = CallSingleData::new();
    data.set(func, 0);
    data.lock();
    generic_exec_single(kernel, cpu, &data, true);
    true
}

/// Calls another CPU with data of the caller's own, and does not wait. Whether it is online was the caller's question.
pub(super) fn __smp_call_function_single(kernel: &Kernel, cpu: Cpu, data: &CallSingleData) {
    let _frame = program::frame("__smp_call_function_single");
    data.lock();
    generic_exec_single(kernel, cpu, data, false);
}

/// The handler of the call interrupt.
pub(super) fn call_function_single_interrupt(mut frame: InterruptFrame) {
    frame.end_of_interrupt();
    KERNEL.with(|kernel| {
        generic_smp_call_function_single_interrupt(kernel);
        blk::irq_exit(kernel);
    });
}

fn generic_smp_call_function_single_interrupt(kernel: &Kernel) {
    let _frame = program::frame("generic_smp_call_function_single_interrupt");
    let queue = &kernel.call_single_queue[this_cpu().index()];
    let mut list = queue.locked(|| {
        let first = queue.first.load(Relaxed);
        queue.clear();
        first
    });
    // SAFETY: as in `append`, until it is unlocked.
    while let Some(data) = unsafe { list.as_ref() } {
        // Relaxed: this CPU's, since it was taken from the queue under its lock.
        list = data.next.load(Relaxed);
        let flags = data.flags.load(Relaxed);
        data.func.get().run(kernel, data.info.get());
        if flags & CSD_FLAG_LOCK != 0 {
            data.unlock();
        }
    }
}
