//! The small protocol: what explorers are compared by. A lock-free list of calls, an interrupt if the list was empty,
//! callers that wait until their call was run.
//!
//! | name | CPUs | |
//! |---|---|---|
//! | `ok N` | N senders and a target | the target polls for its interrupt |
//! | `irq N` | N senders and a target | the target makes a call to itself, and its handler interrupts it anywhere |
//! | `bug` | 2 senders and a target | the target goes offline and forgets the ring for what was queued meanwhile |
//! | `fix` | the same | it looks at its list when it is back |

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use smpcall_machine::{Cpu, Deadline, Word, wait};

use super::scenario::{Protocol, Scenario};
use crate::{SimMachine, SimMemory, program};

const CALLS: usize = 8;
/// The most senders: the target makes a call too.
pub const MOST: usize = CALLS - 1;
const VECTOR: u8 = 0x40;

struct Shared {
    head: Word<SimMemory>,
    irr: Word<SimMemory>,
    online: Word<SimMemory>,
    next: [Word<SimMemory>; CALLS],
    locked: [Word<SimMemory>; CALLS],
}

impl Shared {
    fn new(scenario: &mut Scenario, online: u64) -> &'static Self {
        let shared = scenario.share(Self {
            head: Word::new(0),
            irr: Word::new(0),
            online: Word::new(online),
            next: [const { Word::new(0) }; CALLS],
            locked: [const { Word::new(1) }; CALLS],
        });
        for (word, name) in [(&shared.head, "head"), (&shared.irr, "irr"), (&shared.online, "online")] {
            scenario.name(word.location(), name);
        }
        for call in 0..CALLS {
            scenario.name(shared.next[call].location(), format!("next[{call}]"));
            scenario.name(shared.locked[call].location(), format!("locked[{call}]"));
        }
        shared
    }

    /// Whether the list was empty: then its owner must be rung.
    fn push(&self, call: usize) -> bool {
        let mut old = self.head.load(Relaxed);
        loop {
            // Only what was found matters from here.
            program::forget_but(old);
            self.next[call].store(old, Relaxed);
            match self.head.compare_exchange(old, call as u64 + 1, AcqRel, Relaxed) {
                Ok(_) => return old == 0,
                Err(found) => old = found,
            }
        }
    }

    fn call(&self, call: usize) {
        if self.push(call) {
            self.irr.store(1, Release);
        }
    }

    fn finish(&self, call: usize) {
        wait::<SimMachine>(&[self.locked[call].equals(!0, 0)], Deadline::NEVER);
        program::forget_but(0);
    }

    /// How many calls were run.
    fn handle(&self) -> usize {
        let mut found = self.head.swap(0, AcqRel);
        let mut run = 0;
        while found != 0 {
            let call = found as usize - 1;
            found = self.next[call].load(Relaxed);
            self.locked[call].store(0, Release);
            run += 1;
        }
        run
    }

    fn take_interrupt(&self) {
        wait::<SimMachine>(&[self.irr.differs(!0, 0)], Deadline::NEVER);
        self.irr.store(0, Relaxed);
    }
}

/// `ok N`.
pub fn ok(senders: usize) -> Protocol {
    let about = format!("the small protocol: {senders} senders, and a target that polls");
    Protocol::new(format!("ok{senders}"), about, senders + 1, move || {
        let mut scenario = Scenario::new();
        let shared = Shared::new(&mut scenario, 1);
        for call in 0..senders {
            scenario.cpu(move || {
                shared.call(call);
                shared.finish(call);
            });
        }
        scenario.cpu(move || {
            let mut run = 0;
            while run < senders {
                program::forget_but(run as u64);
                shared.take_interrupt();
                run += shared.handle();
            }
            program::forget_but(0);
        });
        scenario
    })
}

/// `irq N`.
pub fn irq(senders: usize) -> Protocol {
    let about = format!("the small protocol: {senders} senders, and a target that is interrupted anywhere");
    Protocol::new(format!("irq{senders}"), about, senders + 1, move || {
        let mut scenario = Scenario::new();
        let shared = Shared::new(&mut scenario, 1);
        let target = Cpu::new(senders as u32);
        let ring = move || program::request_interrupt(target, VECTOR);
        for call in 0..senders {
            scenario.cpu(move || {
                if shared.push(call) {
                    ring();
                }
                shared.finish(call);
            });
        }
        scenario.cpu(move || {
            if shared.push(senders) {
                ring();
            }
            program::forget_but(0);
        });
        scenario.handler(VECTOR, move |mut frame| {
            shared.handle();
            frame.end_of_interrupt();
        });
        scenario
    })
}

fn offline(name: &str, drains: bool) -> Protocol {
    let about = if drains {
        "a target that comes back looks at its list"
    } else {
        "a target that comes back does not look at its list"
    };
    let mut protocol = Protocol::new(name, format!("the small protocol: {about}"), 3, move || {
        let mut scenario = Scenario::new();
        let shared = Shared::new(&mut scenario, 1);
        scenario.cpu(move || {
            if shared.online.load(Acquire) != 0 {
                shared.call(0);
            }
            program::forget_but(0);
        });
        scenario.cpu(move || {
            wait::<SimMachine>(&[shared.online.differs(!0, 0)], Deadline::NEVER);
            shared.call(1);
            shared.finish(1);
        });
        scenario.cpu(move || {
            shared.online.store(0, Release);
            shared.irr.store(0, Relaxed);
            shared.online.store(1, Release);
            if drains {
                shared.handle();
            }
            while shared.locked[1].load(Acquire) != 0 {
                program::forget_but(1);
                shared.take_interrupt();
                shared.handle();
            }
            program::forget_but(0);
        });
        scenario
    });
    protocol.broken = !drains;
    protocol
}

/// `bug`.
pub fn bug() -> Protocol {
    offline("bug", false)
}

/// `fix`.
pub fn fix() -> Protocol {
    offline("fix", true)
}
