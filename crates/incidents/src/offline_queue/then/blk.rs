//! Block requests that end on the CPU that made them (`block/blk-softirq.c`), and the bottom halves in which they do.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use smpcall_machine::{Cpu, Machine};
use smpcall_simulator::{InterruptFrame, SimMachine, program};

use super::super::disk::{self, End};
use super::super::{BOTTOM_HALF, COMPLETION, this_cpu};
use super::smp::{__smp_call_function_single, Func};
use super::{KERNEL, Kernel};

/// Bottom halves that are to be run: bits of a CPU's own.
const TASKLET_SOFTIRQ: u8 = 1;
const BLOCK_SOFTIRQ: u8 = 2;

/// What each CPU has of its own. Used with interrupts disabled only.
pub(super) struct Softirqs {
    pending: Cell<u8>,
    running: Cell<bool>,
    /// Requests that end here (`blk_cpu_done`).
    blk_cpu_done: RefCell<VecDeque<usize>>,
}

impl Softirqs {
    pub(super) const fn new() -> Self {
        Self { pending: Cell::new(0), running: Cell::new(false), blk_cpu_done: RefCell::new(VecDeque::new()) }
    }

    /// Outside of the machine, or on a CPU that begins anew.
    pub(super) fn reset(&self) {
        self.pending.set(0);
        self.running.set(false);
        self.blk_cpu_done.take();
    }

    fn raise(&self, softirq: u8) {
        self.pending.set(self.pending.get() | softirq);
    }
}

fn mine(kernel: &Kernel) -> &Softirqs {
    &kernel.softirqs[this_cpu().index()]
}

/// The handler of the disk's interrupt: the rest is the bottom half's.
#[expect(non_snake_case, reason = "its name")]
pub(super) fn do_IRQ(mut frame: InterruptFrame) {
    let _frame = program::frame("do_IRQ");
    frame.end_of_interrupt();
    KERNEL.with(|kernel| {
        mine(kernel).raise(TASKLET_SOFTIRQ);
        irq_exit(kernel);
    });
}

/// Runs bottom halves, with interrupts enabled, unless one was interrupted: that one goes on with what came.
pub(super) fn irq_exit(kernel: &Kernel) {
    let softirqs = mine(kernel);
    if softirqs.pending.get() == 0 || softirqs.running.replace(true) {
        return;
    }
    {
        let _frame = program::frame("__do_softirq");
        loop {
            let pending = softirqs.pending.take();
            if pending == 0 {
                break;
            }
            SimMachine::restore_interrupts(true);
            if pending & TASKLET_SOFTIRQ != 0 {
                tasklet_action(kernel);
            }
            if pending & BLOCK_SOFTIRQ != 0 {
                blk_done_softirq(kernel);
            }
            let _ = SimMachine::disable_interrupts();
        }
    }
    softirqs.running.set(false);
}

/// The disk driver's part: looks at what is finished.
fn tasklet_action(kernel: &Kernel) {
    let _frame = program::frame("tasklet_action");
    while let Some(number) = disk::next_finished() {
        program::advance(BOTTOM_HALF);
        __blk_complete_request(kernel, number);
    }
}

/// Ends a request on the CPU that made it, if that is online, else here.
fn __blk_complete_request(kernel: &Kernel, number: usize) {
    let _frame = program::frame("__blk_complete_request");
    let were_enabled = SimMachine::disable_interrupts();
    if !raise_blk_irq(kernel, kernel.requests_of.get(), number) {
        let softirqs = mine(kernel);
        softirqs.blk_cpu_done.borrow_mut().push_back(number);
        softirqs.raise(BLOCK_SOFTIRQ);
    }
    SimMachine::restore_interrupts(were_enabled);
}

/// Whether the request was handed to that CPU. Nothing keeps it online after it was looked at.
fn raise_blk_irq(kernel: &Kernel, cpu: Cpu, number: usize) -> bool {
    let _frame = program::frame("raise_blk_irq");
    if !kernel.cpu_online(cpu) {
        return false;
    }
    let data = &kernel.requests[number];
    data.set(Func::TriggerSoftirq, number);
    disk::handed_over(number);
    __smp_call_function_single(kernel, cpu, data);
    true
}

/// What a CPU does with a request that another one hands to it.
pub(super) fn trigger_softirq(kernel: &Kernel, number: usize) {
    let softirqs = mine(kernel);
    softirqs.blk_cpu_done.borrow_mut().push_back(number);
    softirqs.raise(BLOCK_SOFTIRQ);
}

fn blk_done_softirq(kernel: &Kernel) {
    let _frame = program::frame("blk_done_softirq");
    let were_enabled = SimMachine::disable_interrupts();
    let list = mine(kernel).blk_cpu_done.take();
    SimMachine::restore_interrupts(were_enabled);
    for number in list {
        program::advance(COMPLETION);
        let end = if !disk::was_handed_over(number) {
            End::Refused
        } else if this_cpu() == kernel.requests_of.get() {
            End::AtHome
        } else {
            End::TakenOver
        };
        disk::ended(number, end);
    }
}

/// The block layer's notifier: what a dead CPU had been handed *and had taken* ends here. Nobody looks at its queue of calls.
pub(super) fn blk_cpu_dead(kernel: &Kernel, cpu: Cpu) {
    let were_enabled = SimMachine::disable_interrupts();
    let left = kernel.softirqs[cpu.index()].blk_cpu_done.take();
    let softirqs = mine(kernel);
    softirqs.blk_cpu_done.borrow_mut().extend(left);
    softirqs.raise(BLOCK_SOFTIRQ);
    irq_exit(kernel);
    SimMachine::restore_interrupts(were_enabled);
}
