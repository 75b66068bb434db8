//! Three made-up executions: a lost ring, a claim that is not atomic, and a data race.

use core::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, Release};

use smpcall_machine::Access;

use super::super::schedule::Schedule;
use super::super::system::Violation;
use super::{Account, Awaited, CpuEnd, Deed, Ending, InterruptState, Line, Status, Writers};

/// Writes an account line by line, and keeps the interrupt state.
struct Teller {
    states: Vec<InterruptState>,
    start: Vec<InterruptState>,
    lines: Vec<Line>,
    depths: Vec<u8>,
}

impl Teller {
    fn new(cpus: usize) -> Self {
        let states = vec![InterruptState { enabled: true, ..InterruptState::default() }; cpus];
        Self { start: states.clone(), states, lines: Vec::new(), depths: vec![0; cpus] }
    }

    fn line(&mut self, cpu: u16, source: &str, deed: Deed) {
        let local = matches!(deed, Deed::Interrupts { .. } | Deed::EndOfInterrupt);
        let depth = self.depths[usize::from(cpu)];
        let after = self.states.clone();
        self.lines.push(Line { cpu, depth, source: source.into(), deed, after, local, note: None });
    }

    fn access(
        &mut self,
        cpu: u16,
        source: &str,
        access: Access,
        variable: &str,
        values: (u64, u64),
        order: Ordering,
    ) {
        let (old, new) = values;
        let deed = Deed::Access {
            access,
            variable: variable.into(),
            old: Some(old),
            new: Some(new),
            order: Some(order),
            buffered: false,
        };
        self.line(cpu, source, deed);
    }

    fn plain(&mut self, cpu: u16, source: &str, access: Access, variable: &str) {
        let variable = variable.into();
        let deed = Deed::Access { access, variable, old: None, new: None, order: None, buffered: false };
        self.line(cpu, source, deed);
    }

    fn send(&mut self, cpu: u16, source: &str, vector: u8, target: u16, lost: bool) {
        if !lost {
            self.states[usize::from(target)].requested.push(vector);
        }
        let lost = if lost { vec![target] } else { vec![] };
        self.line(cpu, source, Deed::Send { vector: Some(vector), targets: vec![target], lost });
    }

    fn enter(&mut self, cpu: u16, source: &str, vector: u8) {
        let state = &mut self.states[usize::from(cpu)];
        state.requested.retain(|&requested| requested != vector);
        state.in_service.push(vector);
        state.enabled = false;
        self.line(cpu, source, Deed::Enter { vector: Some(vector) });
        self.depths[usize::from(cpu)] += 1;
    }

    fn leave(&mut self, cpu: u16, source: &str) {
        self.states[usize::from(cpu)].in_service.pop();
        self.line(cpu, source, Deed::EndOfInterrupt);
        self.states[usize::from(cpu)].enabled = true;
        self.depths[usize::from(cpu)] -= 1;
        self.line(cpu, source, Deed::Return);
    }

    fn interrupts(&mut self, cpu: u16, source: &str, enabled: bool) {
        self.states[usize::from(cpu)].enabled = enabled;
        self.line(cpu, source, Deed::Interrupts { enabled });
    }

    fn end(self, title: &str, ending: Ending, schedule: &str, command: &str) -> Account {
        Account {
            title: title.into(),
            start: self.start,
            lines: self.lines,
            ending,
            schedule: schedule.parse::<Schedule>().expect("a schedule"),
            command: command.into(),
        }
    }
}

fn stands(status: Status, source: &str) -> CpuEnd {
    CpuEnd { status, source: source.into(), waits_for: Vec::new() }
}

/// The one message is lost, nobody rings again, and the caller waits for ever.
pub(super) fn lost_ring() -> Account {
    let mut teller = Teller::new(2);
    teller.plain(0, "call.rs:61", Access::PlainWrite(16), "slot[0].data");
    teller.access(0, "call.rs:64", Access::Store(1), "slot[0].state", (0, 1), Release);
    teller.access(0, "mark.rs:42", Access::FetchOr(1), "pending[1]", (0, 1), AcqRel);
    teller.send(0, "send.rs:118", 0xf0, 1, true);
    let waits = Awaited {
        variable: "slot[0].state".into(),
        condition: "= 3".into(),
        value: 1,
        writers: Writers::Cpus(vec![1]),
    };
    let cpus = vec![
        CpuEnd { waits_for: vec![waits], ..stands(Status::Waits, "call.rs:77") },
        stands(Status::Ended, "kernel.rs:31"),
    ];
    let violation = Violation::new("hang", "nobody can move, and CPU 0 waits for ever");
    let ending = Ending { violation, evidence: vec![3], cpus };
    teller.end(
        "call: one call, one lost message, no re-ring",
        ending,
        "0*3 0!1 #5f3a",
        "smpcall explore call --drops 1",
    )
}

/// The target claims with a load and a store; its interrupt handler comes between them.
pub(super) fn claimed_twice() -> Account {
    let mut teller = Teller::new(3);
    teller.access(0, "call.rs:64", Access::Store(1), "slot[0].state", (0, 1), Release);
    teller.access(0, "mark.rs:42", Access::FetchOr(1), "pending[2]", (0, 1), AcqRel);
    teller.access(2, "serve.rs:90", Access::Swap(0), "pending[2]", (1, 0), AcqRel);
    teller.access(2, "serve.rs:97", Access::Load, "slot[0].state", (1, 1), Acquire);
    teller.access(1, "mark.rs:42", Access::FetchOr(1), "pending[2]", (0, 1), AcqRel);
    teller.send(1, "send.rs:118", 0xf0, 2, false);
    teller.enter(2, "serve.rs:98", 0xf0);
    teller.access(2, "serve.rs:90", Access::Swap(0), "pending[2]", (1, 0), AcqRel);
    teller.access(2, "serve.rs:97", Access::Load, "slot[0].state", (1, 1), Acquire);
    teller.access(2, "serve.rs:98", Access::Store(2), "slot[0].state", (1, 2), Relaxed);
    teller.line(2, "serve.rs:101", Deed::Other("runs the closure of slot[0]".into()));
    teller.leave(2, "kernel.rs:44");
    teller.access(2, "serve.rs:98", Access::Store(2), "slot[0].state", (2, 2), Relaxed);
    teller.line(2, "serve.rs:101", Deed::Other("runs the closure of slot[0]".into()));
    let cpus = vec![
        stands(Status::Runs, "call.rs:70"),
        stands(Status::Ended, ""),
        stands(Status::Runs, "serve.rs:104"),
    ];
    let violation = Violation::new("L1", "the closure of slot[0] ran twice");
    let ending = Ending { violation, evidence: vec![10, 14], cpus };
    teller.end(
        "mutant claim-by-store: a claim in two steps",
        ending,
        "0*2 2*2 1*2 2i 2*7 #01c4",
        "smpcall explore mutant-claim-by-store",
    )
}

/// The flag is set without release, so that nothing orders the data behind it.
pub(super) fn data_race() -> Account {
    let mut teller = Teller::new(2);
    teller.interrupts(0, "call.rs:58", false);
    teller.plain(0, "call.rs:61", Access::PlainWrite(16), "slot[0].data");
    teller.access(0, "call.rs:64", Access::Store(1), "slot[0].state", (0, 1), Relaxed);
    teller.interrupts(0, "call.rs:66", true);
    teller.access(1, "serve.rs:97", Access::CompareExchange(1, 2, Relaxed), "slot[0].state", (1, 2), Acquire);
    teller.plain(1, "serve.rs:100", Access::PlainRead(16), "slot[0].data");
    let cpus = vec![stands(Status::Runs, "call.rs:70"), stands(Status::Runs, "serve.rs:101")];
    let what = "slot[0].data: rows 2 and 6 access it, one of them writes, and nothing orders them";
    let ending = Ending { violation: Violation::new("race", what), evidence: vec![1, 5], cpus };
    teller.end(
        "mutant publish-relaxed: data behind a relaxed flag",
        ending,
        "0*4 1*2 #9e07",
        "smpcall explore mutant-publish-relaxed",
    )
}

/// Two CPUs with interrupts disabled call each other and do not serve; and all else that has a sign of its own.
pub(super) fn mutual() -> Account {
    let mut teller = Teller::new(2);
    for (cpu, other) in [(0, 1), (1, 0)] {
        teller.interrupts(cpu, "call.rs:58", false);
        teller.access(cpu, "mark.rs:42", Access::FetchOr(1), &format!("pending[{other}]"), (0, 1), AcqRel);
        teller.send(cpu, "send.rs:118", 0xf0, other, false);
    }
    let waits = |cpu: u16| Awaited {
        variable: format!("done[{cpu}]"),
        condition: "= 1".into(),
        value: 0,
        writers: Writers::Cpus(vec![1 - cpu]),
    };
    let cpus =
        [0, 1].map(|cpu| CpuEnd { waits_for: vec![waits(cpu)], ..stands(Status::Waits, "call.rs:77") });
    let violation = Violation::new("hang", "nobody can move");
    let ending = Ending { violation, evidence: Vec::new(), cpus: cpus.into() };
    teller.end("mutual calls without serving", ending, "0*3 1*3 #0000", "smpcall explore mutual")
}
