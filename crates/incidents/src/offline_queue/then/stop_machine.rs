//! `stop_machine` of Linux 3.0 (`kernel/stop_machine.c`): every CPU follows the same states, and the last one that has done
//! what a state asks for moves all to the next.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use smpcall_machine::{Deadline, Machine, Word, wait};
use smpcall_simulator::{SimMachine, SimMemory, program};

use super::super::{Cast, disk, this_cpu};
use super::{Kernel, MAX_CPUS_THEN, cpu};

const STOPMACHINE_NONE: u64 = 0;
const STOPMACHINE_PREPARE: u64 = 1;
const STOPMACHINE_DISABLE_IRQ: u64 = 2;
const STOPMACHINE_RUN: u64 = 3;
const STOPMACHINE_EXIT: u64 = 4;

/// What the CPUs follow (`struct stop_machine_data`), and how each one's stopper thread is told.
pub(super) struct StopMachine {
    state: Word<SimMemory>,
    thread_ack: Word<SimMemory>,
    num_threads: Word<SimMemory>,
    /// Nonzero: the stopper thread of this CPU is to run. That it is woken through memory and not by an interrupt is ours:
    /// the scheduler is no part of this.
    work: [Word<SimMemory>; MAX_CPUS_THEN],
    /// How many stopper threads are done.
    done: Word<SimMemory>,
}

impl StopMachine {
    pub(super) const fn new() -> Self {
        Self {
            state: Word::new(STOPMACHINE_NONE),
            thread_ack: Word::new(0),
            num_threads: Word::new(0),
            work: [const { Word::new(0) }; MAX_CPUS_THEN],
            done: Word::new(0),
        }
    }

    /// Outside of the machine.
    pub(super) fn reset(&self) {
        for word in
            [&self.state, &self.thread_ack, &self.num_threads, &self.done].into_iter().chain(&self.work)
        {
            word.store(0, Relaxed);
        }
    }

    fn set_state(&self, state: u64) {
        // Relaxed: the state publishes it.
        self.thread_ack.store(self.num_threads.load(Relaxed), Relaxed);
        // Release: what all did in the state before is visible in this one.
        self.state.store(state, Release);
    }

    fn ack_state(&self, state: u64) {
        // AcqRel: the last one sees what the others did, and passes it on.
        if self.thread_ack.fetch_sub(1, AcqRel) == 1 {
            self.set_state(state + 1);
        }
    }
}

/// Stops all CPUs that are online and has the target taken down by itself. On the controller, whose own stopper thread runs
/// here.
pub(super) fn __stop_machine(kernel: &Kernel, cast: Cast) {
    let _frame = program::frame("__stop_machine");
    let stop = &kernel.stop_machine;
    let online = || cast.all().filter(|&cpu| kernel.cpu_online(cpu));
    let threads = online().count() as u64;
    // Relaxed: the work words publish them.
    stop.num_threads.store(threads, Relaxed);
    stop.done.store(0, Relaxed);
    stop.set_state(STOPMACHINE_PREPARE);
    for cpu in online().filter(|&cpu| cpu != cast.controller) {
        // Release: as said.
        stop.work[cpu.index()].store(1, Release);
    }
    stop_machine_cpu_stop(kernel, cast);
    wait::<SimMachine>(&[stop.done.equals(u64::MAX, threads)], Deadline::NEVER);
}

/// The idle CPU: it runs its stopper thread when that is woken, and dies if it is offline afterwards.
pub(super) fn cpu_idle(kernel: &Kernel, cast: Cast) {
    let _frame = program::frame("cpu_idle");
    let me = this_cpu();
    let work = &kernel.stop_machine.work[me.index()];
    loop {
        wait::<SimMachine>(&[work.differs(u64::MAX, 0)], Deadline::NEVER);
        // Relaxed: nobody sets it again before this one is done.
        work.store(0, Relaxed);
        stop_machine_cpu_stop(kernel, cast);
        if !kernel.cpu_online(me) {
            cpu::cpu_die(kernel);
        }
    }
}

fn stop_machine_cpu_stop(kernel: &Kernel, cast: Cast) {
    let _frame = program::frame("stop_machine_cpu_stop");
    let stop = &kernel.stop_machine;
    let me = this_cpu();
    let mut curstate = STOPMACHINE_NONE;
    while curstate != STOPMACHINE_EXIT {
        wait::<SimMachine>(&[stop.state.differs(u64::MAX, curstate)], Deadline::NEVER);
        // Acquire: as said in `set_state`.
        curstate = stop.state.load(Acquire);
        match curstate {
            STOPMACHINE_DISABLE_IRQ => {
                if me == cast.controller {
                    // The others are about to disable their interrupts, or have. This one has not.
                    disk::finish_first_late(cast);
                }
                let _ = SimMachine::disable_interrupts();
            }
            STOPMACHINE_RUN if me == cast.target => cpu::take_cpu_down(kernel),
            _ => {}
        }
        stop.ack_state(curstate);
    }
    SimMachine::restore_interrupts(true);
    // Release: who waits for all has them out of here.
    stop.done.fetch_add(1, Release);
}
