//! Algorithms of the past that lost calls or hung, small and faithful, each beside what would have held.
//!
//! Incident 2 in its smallest form is the [small protocol's](crate::explorer::small) `bug` and `fix`; incident 4 has a
//! file [of its own](super::stray_eoi).

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::time::Duration;
use std::cell::Cell;

use smpcall_local_apic::{Access, DeliveryMode, Icr, Interrupt, Mode, Register, Shorthand, Vector};
use smpcall_machine::{Cpu, Deadline, InterruptsOff, Machine, Predicate, Woken, Word, wait};

use super::apic::send;
use crate::apic::IcrFault;
use crate::explorer::note::Note;
use crate::explorer::scenario::{Bounds, Protocol, Scenario};
use crate::explorer::system::Violation;
use crate::machine::SimAccess;
use crate::state::expect_current;
use crate::{SimCpuSet, SimMachine, SimMemory, TIMER_VECTOR, program, send_interrupt, send_interrupt_to};

/// The vector of call-function interrupts of those days (report 000).
const CALL_FUNCTION: u8 = 0xfb;
/// A vector below it.
const DEVICE: u8 = 0x31;

const VECTOR: Vector = match Vector::new(CALL_FUNCTION) {
    Some(vector) => vector,
    None => panic!("an ordinary vector"),
};

pub(super) fn all() -> Vec<Protocol> {
    vec![
        counted_call(false),
        counted_call(true),
        online_mask(false),
        online_mask(true),
        offline_queue(false),
        offline_queue(true),
        stuck_icr(false),
        stuck_icr(true),
        nmi_shorthand(false),
        nmi_shorthand(true),
        pending_interrupt(false),
        pending_interrupt(true),
        left_in_service(false),
        left_in_service(true),
    ]
}

/// As it was, or mended.
fn protocol(
    name: &str,
    about: [&str; 2],
    mended: bool,
    cpus: usize,
    build: impl Fn(&mut Scenario) + Send + Sync + 'static,
) -> Protocol {
    let name = if mended { format!("{name}-mended") } else { name.to_owned() };
    let mut protocol = Protocol::new(name, about[usize::from(mended)], cpus, move || {
        let mut scenario = Scenario::new();
        build(&mut scenario);
        scenario
    });
    protocol.broken = !mended;
    protocol
}

fn holds(condition: bool, law: &str, what: &str) -> Result<(), Violation> {
    if condition { Ok(()) } else { Err(Violation::new(law, what)) }
}

/// Incident 1: a call to all others that counts how many have run it.
struct CountedCall {
    /// Leads to the call under way: nonzero if there is one.
    call_data: Word<SimMemory>,
    finished: Word<SimMemory>,
    /// Mended: who has still to run it, one bit each.
    wanted: Word<SimMemory>,
    runs: [Note; 3],
}

fn counted_call(mended: bool) -> Protocol {
    let about = [
        "incident 1: one of two call interrupts is lost, and the caller, who only counts, waits for ever",
        "incident 1, mended: one bit for each target, and whose bit stays is rung again",
    ];
    let mut protocol = protocol("then-lost-call", about, mended, 3, move |scenario| {
        let call = scenario.share(CountedCall {
            call_data: Word::new(0),
            finished: Word::new(0),
            wanted: Word::new(0),
            runs: [const { Note::new(0) }; 3],
        });
        for (word, name) in
            [(&call.call_data, "call_data"), (&call.finished, "finished"), (&call.wanted, "wanted")]
        {
            scenario.name(word.location(), name);
        }
        scenario.cpu(move || {
            call.wanted.store(0b110, Relaxed);
            // Release: who finds the call sees what it is.
            call.call_data.store(1, Release);
            let ring = |wanted: u64| {
                let targets: SimCpuSet = (1..3).filter(|cpu| wanted & 1 << cpu != 0).map(Cpu::new).collect();
                // As then: a ring that is not sent is a lost one.
                let _ = send_interrupt_to(&targets, Interrupt::Fixed(VECTOR));
            };
            ring(0b110);
            loop {
                let deadline = if mended {
                    Deadline::within::<SimMachine>(Duration::from_micros(250))
                } else {
                    Deadline::NEVER
                };
                let all = call.finished.equals(!0, 2);
                if wait::<SimMachine>(&[all], deadline) == Woken::Met(0) {
                    break;
                }
                // Relaxed: a target that is just answering is rung for nothing.
                ring(call.wanted.load(Relaxed));
                program::forget_but(0);
            }
        });
        scenario.cpu(|| {});
        scenario.cpu(|| {});
        scenario.handler(CALL_FUNCTION, move |mut frame| {
            frame.end_of_interrupt();
            if call.call_data.load(Acquire) == 0 {
                return;
            }
            let me = SimMachine::current_cpu();
            let bit = 1 << me.number();
            // Mended: one that comes a second time finds its bit gone.
            if mended && call.wanted.fetch_and(!bit, AcqRel) & bit == 0 {
                return;
            }
            call.runs[me.index()].add(1);
            call.finished.fetch_add(1, AcqRel);
        });
        scenario.check(|| {
            holds(
                call.runs.iter().skip(1).all(|runs| runs.get() == 1),
                "L1",
                "the call did not run once on each",
            )
        });
    });
    protocol.bounds = Bounds { drops: 1, ..Bounds::default() };
    if mended {
        protocol.bounds.expiries = 1;
    }
    protocol
}

/// A caller counts who is online, and one of them goes offline before the interrupt arrives.
fn online_mask(mended: bool) -> Protocol {
    let about = [
        "a caller counts the CPUs that are online, one of them goes offline, and the caller waits for it for ever",
        "as then-online-mask, mended: a CPU goes offline under the lock that callers hold",
    ];
    protocol("then-online-mask", about, mended, 2, move |scenario| {
        let [lock, offline, finished, over] = scenario.share([const { Word::<SimMemory>::new(0) }; 4]);
        for (word, name) in
            [(lock, "call_lock"), (offline, "offline"), (finished, "finished"), (over, "over")]
        {
            scenario.name(word.location(), name);
        }
        let locked = move |section: &dyn Fn()| {
            while lock.compare_exchange(0, 1, Acquire, Relaxed).is_err() {
                wait::<SimMachine>(&[lock.equals(!0, 0)], Deadline::NEVER);
                program::forget_but(0);
            }
            section();
            lock.store(0, Release);
        };
        scenario.cpu(move || {
            locked(&|| {
                if offline.load(Acquire) == 0 {
                    send(Cpu::new(1), Interrupt::Fixed(VECTOR));
                    wait::<SimMachine>(&[finished.equals(!0, 1)], Deadline::NEVER);
                }
            });
            over.store(1, Release);
        });
        scenario.cpu(move || {
            let leave = move || {
                let off = InterruptsOff::<SimMachine>::new();
                offline.store(1, Release);
                off
            };
            let off = if mended {
                let off = Cell::new(None);
                locked(&|| off.set(Some(leave())));
                off.take()
            } else {
                Some(leave())
            };
            // It takes no interrupt any more.
            wait::<SimMachine>(&[over.equals(!0, 1)], Deadline::NEVER);
            drop(off);
        });
        scenario.handler(CALL_FUNCTION, move |mut frame| {
            frame.end_of_interrupt();
            finished.store(1, Release);
        });
    })
}

/// Incident 2: requests queued on a CPU that is on its way down, with real interrupts.
struct OfflineQueue {
    head: Word<SimMemory>,
    /// 1: online; 0: dying; 3: being started; 2: back.
    online: Word<SimMemory>,
    done: [Word<SimMemory>; 2],
}

impl OfflineQueue {
    /// Queues a request, one bit each, and rings if the queue was empty.
    fn request(&self, request: usize) {
        if self.head.fetch_or(1 << request, AcqRel) == 0 {
            send(Cpu::new(2), Interrupt::Fixed(VECTOR));
        }
    }

    fn run(&self) {
        let taken = self.head.swap(0, AcqRel);
        for request in (0..2).filter(|request| taken & 1 << request != 0) {
            self.done[request].store(1, Release);
        }
    }
}

fn offline_queue(mended: bool) -> Protocol {
    let about = [
        "incident 2: a request is queued on a CPU that goes down, and later ones see the queue not empty and do not ring",
        "incident 2, mended: the dying CPU runs what is queued, and looks again when it is back",
    ];
    protocol("then-offline-queue", about, mended, 3, move |scenario| {
        let queue = scenario.share(OfflineQueue {
            head: Word::new(0),
            online: Word::new(1),
            done: [const { Word::new(0) }; 2],
        });
        for (word, name) in [
            (&queue.head, "head"),
            (&queue.online, "online"),
            (&queue.done[0], "done[0]"),
            (&queue.done[1], "done[1]"),
        ] {
            scenario.name(word.location(), name);
        }
        // A bottom half that has still seen the CPU online.
        scenario.cpu(move || {
            if queue.online.load(Acquire) == 1 {
                queue.request(0);
            }
        });
        // A notifier that calls the CPU as it comes up, and waits.
        scenario.cpu(move || {
            wait::<SimMachine>(&[queue.online.equals(!0, 2)], Deadline::NEVER);
            queue.request(1);
            wait::<SimMachine>(&[queue.done[1].equals(!0, 1)], Deadline::NEVER);
        });
        scenario.cpu(move || {
            let off = InterruptsOff::<SimMachine>::new();
            queue.online.store(0, Release);
            if mended {
                queue.run();
            }
            // What was rung for while interrupts were off is not pending any more when the CPU is started again: INIT
            // clears the request register. (This takes it without running anything.)
            queue.online.store(3, Release);
            drop(off);
            let _off = InterruptsOff::<SimMachine>::new();
            queue.online.store(2, Release);
            if mended {
                queue.run();
            }
        });
        scenario.handler(CALL_FUNCTION, move |mut frame| {
            frame.end_of_interrupt();
            // While the CPU is started, 3, its interrupts are as good as cleared.
            if queue.online.load(Acquire) != 3 {
                queue.run();
            }
        });
    })
}

/// Incident 3: the delivery-status bit of the ICR never clears by itself.
fn stuck_icr(mended: bool) -> Protocol {
    let about = [
        "incident 3: the crashing CPU waits for ever for a controller that stays busy",
        "incident 3, mended: the driver that ships bounds its wait, writes the command again, and the NMI goes out",
    ];
    protocol("then-stuck-icr", about, mended, 2, move |scenario| {
        let stopped = scenario.share(Note::new(0));
        let crashed = scenario.share(Word::<SimMemory>::new(0));
        scenario.name(crashed.location(), "crashed");
        scenario.cpu(move || {
            send(Cpu::new(1), Interrupt::Fixed(VECTOR));
            // This command is the one that sticks.
            expect_current().with(|machine| {
                let processor = machine.cpu();
                processor.apic.set_icr_fault(Some(IcrFault::StuckUntilRewritten));
                processor.refresh();
            });
            let _off = InterruptsOff::<SimMachine>::new();
            if !mended {
                let idle = || SimAccess.read(Register::ICR_LOW) & Icr::SEND_PENDING == 0;
                wait::<SimMachine>(&Predicate(idle), Deadline::NEVER);
            }
            let sent = send_interrupt(Cpu::new(1), Interrupt::Nmi);
            crashed.store(if sent.is_ok() { 1 } else { 2 }, Release);
        });
        scenario.cpu(move || {
            crashed.load(Relaxed);
        });
        scenario.handler(CALL_FUNCTION, |mut frame| frame.end_of_interrupt());
        scenario.nmi_handler(|_| stopped.add(1));
        scenario.check(|| {
            holds(stopped.get() == 1, "L7", "the NMI that stops the other CPU did not come to it once")
        });
    })
}

/// NMIs to CPUs that cannot take one yet.
fn nmi_shorthand(mended: bool) -> Protocol {
    let about = [
        "an NMI by shorthand reaches a CPU that has not set up its handler",
        "as then-nmi-shorthand, mended: NMIs go to CPUs that have declared that they take them",
    ];
    protocol("then-nmi-shorthand", about, mended, 3, move |scenario| {
        let ready = scenario.share([const { Word::<SimMemory>::new(0) }; 2]);
        let too_early = scenario.share(Note::new(0));
        scenario.name(ready[0].location(), "ready[1]");
        scenario.name(ready[1].location(), "ready[2]");
        scenario.cpu(move || {
            if mended {
                for (cpu, ready) in (1..).zip(ready) {
                    if ready.load(Acquire) != 0 {
                        send(Cpu::new(cpu), Interrupt::Nmi);
                    }
                }
            } else {
                let icr = Icr::shorthand(DeliveryMode::Nmi, 0, Shorthand::AllButSelf);
                let value = icr.encode(Mode::XApic).expect("a shorthand has no destination");
                SimAccess.write(Register::ICR_LOW, value as u32);
            }
        });
        for ready in ready {
            // Release: the handler is in place for whoever sees this.
            scenario.cpu(move || ready.store(1, Release));
        }
        scenario.nmi_handler(move |_| {
            let ready = &ready[SimMachine::current_cpu().index() - 1];
            if ready.load(Relaxed) == 0 {
                too_early.set(1);
            }
        });
        scenario
            .check(|| holds(too_early.get() == 0, "L7", "an NMI came to a CPU that had no handler for it"));
    })
}

/// Incident 5: what was pending at the crash is taken by the capture kernel at its first enable.
fn pending_interrupt(mended: bool) -> Protocol {
    let about = [
        "incident 5: an interrupt that was pending at the crash runs the capture kernel's handler before it is set up",
        "incident 5, mended: the capture kernel takes what is pending through inert gates first",
    ];
    protocol("then-pending-ipi", about, mended, 2, move |scenario| {
        let [gates, call_data] = scenario.share([const { Word::<SimMemory>::new(0) }; 2]);
        let [inert, uninitialised] = scenario.share([const { Note::new(0) }; 2]);
        scenario.name(gates.location(), "gates");
        scenario.name(call_data.location(), "call_data");
        scenario.cpu(move || {
            // The first kernel.
            let crashed = InterruptsOff::<SimMachine>::new();
            send(Cpu::new(0), Interrupt::Fixed(VECTOR));
            // The capture kernel. With interrupts off no loop clears what is pending.
            if mended {
                gates.store(1, Relaxed);
                drop(crashed);
                // The bounded time for which the gates are open: until nothing is requested.
                wait::<SimMachine>(
                    &Predicate(|| SimAccess.read(Register::interrupt_request(7)) == 0),
                    Deadline::NEVER,
                );
                let _off = InterruptsOff::<SimMachine>::new();
                call_data.store(1, Relaxed);
                gates.store(2, Relaxed);
            } else {
                gates.store(2, Relaxed);
                drop(crashed);
                call_data.store(1, Relaxed);
            }
        });
        // Another interrupt of those that may be pending, at any time.
        scenario.cpu(|| program::request_interrupt(Cpu::new(0), TIMER_VECTOR));
        scenario.handler(TIMER_VECTOR, |mut frame| frame.end_of_interrupt());
        scenario.handler(CALL_FUNCTION, move |mut frame| {
            frame.end_of_interrupt();
            if gates.load(Relaxed) == 1 {
                inert.add(1);
            } else if call_data.load(Relaxed) == 0 {
                uninitialised.set(1);
            }
        });
        scenario.check(|| {
            holds(
                uninitialised.get() == 0,
                "L8",
                "the handler called through what the capture kernel had not set up",
            )
        });
    })
}

/// Incident 5, ours: a crash inside a handler leaves its vector in service.
fn left_in_service(mended: bool) -> Protocol {
    let about = [
        "incident 5: a vector that was in service at the crash keeps the capture kernel from lower ones",
        "incident 5, mended: the capture kernel ends what is in service first",
    ];
    protocol("then-in-service", about, mended, 2, move |scenario| {
        let ticked = scenario.share(Word::<SimMemory>::new(0));
        scenario.name(ticked.location(), "ticked");
        scenario.cpu(move || {
            wait::<SimMachine>(&[ticked.equals(!0, 1)], Deadline::NEVER);
        });
        scenario.cpu(|| program::request_interrupt(Cpu::new(0), CALL_FUNCTION));
        scenario.handler(CALL_FUNCTION, move |_| {
            // The first kernel crashes here; what follows is the capture kernel. It never comes back.
            if mended {
                while SimAccess.read(Register::in_service(7)) != 0 {
                    SimAccess.write(Register::END_OF_INTERRUPT, 0);
                }
            }
            program::request_interrupt(Cpu::new(0), DEVICE);
            SimMachine::restore_interrupts(true);
            wait::<SimMachine>(&[ticked.equals(!0, 1)], Deadline::NEVER);
            let _ = SimMachine::disable_interrupts();
        });
        scenario.handler(DEVICE, move |mut frame| {
            ticked.store(1, Release);
            frame.end_of_interrupt();
        });
    })
}
