//! Incident 2 as now: the same machine, disk and load, with `smpcall`'s hotplug, calls and deferred work.
//!
//! A request is deferred work of the CPU that made it. The disk interrupts at the same point: the CPU that goes has disabled
//! its interrupts and is still open, and the one that takes it down has not. What is handed over then is accepted; the dying
//! CPU empties its mailbox, and what it does not come to any more is handed to the CPU that took it down. What is
//! raised while it is offline comes back to the one that raises it.

use core::time::Duration;
use std::cell::{Cell, RefCell};

use smpcall::{CallError, Callback, Deferred, HotplugError, Life, Post, Refused};
use smpcall_diagnosis::{MachineEvidence, diagnose};
use smpcall_machine::{Cpu, Deadline, Event, EventKind, Instant, InterruptsOff, Machine};
use smpcall_simulator::kernel::{Calls, Hooks};
use smpcall_simulator::{
    CpuReport, InterruptFrame, RING_VECTOR, SimMachine, TIMER_VECTOR, Trace, World, program,
};

use super::disk::{self, Book, End};
use super::{BOTTOM_HALF, COMPLETION, Cast, TIME_LIMIT, view, wait_for_the_moment};
use crate::evidence;
use crate::incident::{ReplayError, Setup, When};
use crate::laws::{Law, Laws};
use crate::replay::{Outcome, Replay};

/// How long hotplug, and each call, may last: several times what starting a CPU takes. (Ours.)
const LIMIT: Duration = Duration::from_millis(50);
/// How much later than its deadline a wait may be over. (Ours.)
const LATENESS: Duration = Duration::from_millis(1);
/// What the callbacks of a CPU that goes take: so long that the bottom half still finds it open. (Ours.)
const DYING: Duration = BOTTOM_HALF.saturating_mul(3);

/// A request of the disk, by its number.
struct Request(usize);

impl Deferred<SimMachine> for Request {
    type Handle = Box<Post<SimMachine, Self>>;
    const IS_WORK: bool = true;

    fn run(request: Self::Handle) {
        complete(request.value().0, End::AtHome);
    }

    fn abandoned(request: Self::Handle, _: Cpu) {
        complete(request.value().0, End::TakenOver);
    }
}

fn complete(number: usize, end: End) {
    let _frame = program::frame("complete");
    program::advance(COMPLETION);
    disk::ended(number, end);
}

/// What somebody was told, and how long that took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told<E> {
    pub(super) result: Result<(), E>,
    pub(super) began: Instant,
    pub(super) ended: Instant,
}

impl<E> Told<E> {
    fn of(action: impl FnOnce() -> Result<(), E>) -> Self {
        let began = SimMachine::now();
        let result = action();
        Self { result, began, ended: SimMachine::now() }
    }

    fn is_ok_in_time(&self) -> bool {
        self.result.is_ok() && self.is_in_time()
    }

    fn is_in_time(&self) -> bool {
        self.ended.since(self.began) <= LIMIT + LATENESS
    }
}

/// What was told to those that took part.
#[derive(Clone, Debug, Default)]
pub(super) struct Answers {
    pub(super) down: Option<Told<HotplugError>>,
    /// A call to the CPU that is offline.
    pub(super) call_while_offline: Option<Told<CallError>>,
    /// Whether it was offline, from when that was told until it was to come up again.
    stayed_offline: bool,
    pub(super) up: Option<Told<HotplugError>>,
    /// The notifier's call to the CPU that comes.
    pub(super) notifier: Option<Told<CallError>>,
    /// The call of the CPU that comes to the one that brings it up.
    pub(super) back: Option<Told<CallError>>,
    /// Whether all requests ended.
    all_ended: bool,
}

thread_local! {
    // Of the machine that this thread simulates.
    static CAST: Cell<Option<Cast>> = const { Cell::new(None) };
    static ANSWERS: RefCell<Answers> = RefCell::new(Answers::default());
}

fn note(change: impl FnOnce(&mut Answers)) {
    ANSWERS.with_borrow_mut(change);
}

static CALLBACKS: [Callback; 2] = [
    Callback {
        dying: Some(|_| {
            // This CPU has disabled its interrupts, and is open.
            if let Some(cast) = CAST.get() {
                disk::finish_first_late(cast);
            }
            program::advance(DYING);
        }),
        ..Callback::named("timers")
    },
    Callback { online: Some(notify), offline: Some(notify), ..Callback::named("iucv") },
];

/// Calls the CPU that comes or goes, and waits.
fn notify(cpu: Cpu) -> Result<(), Refused> {
    let _frame = program::frame("notify");
    let told = Told::of(|| Calls::within(LIMIT).call(cpu, || ()));
    note(|answers| answers.notifier = Some(told));
    told.result.map_err(|_| Refused(0))
}

/// The handler of the disk's interrupt, with its bottom half.
fn disk_interrupt(mut frame: InterruptFrame) {
    let _frame = program::frame("disk_interrupt");
    frame.end_of_interrupt();
    let Some(target) = CAST.get().map(|cast| cast.target) else { return };
    SimMachine::restore_interrupts(true);
    while let Some(number) = disk::next_finished() {
        program::advance(BOTTOM_HALF);
        raise(target, number);
    }
    let _ = SimMachine::disable_interrupts();
    Calls::exit_interrupt();
}

/// Hands a request to the CPU that made it; if that is offline, it ends here.
fn raise(target: Cpu, number: usize) {
    let _frame = program::frame("raise");
    disk::handed_over(number);
    if let Err(error) = Calls::post::<Request>(target, Box::new(Post::new(Request(number)))) {
        complete(error.handle.value().0, End::Refused);
    }
}

fn ring_interrupt(mut frame: InterruptFrame) {
    frame.end_of_interrupt();
    Calls::handle_ring();
    Calls::exit_interrupt();
}

fn timer_interrupt(mut frame: InterruptFrame) {
    frame.end_of_interrupt();
    Calls::tick();
    Calls::exit_interrupt();
}

/// The idle loop of a CPU that may be taken down.
fn idle() {
    let _frame = program::frame("idle");
    loop {
        let mut guard = InterruptsOff::new();
        if Calls::may_halt(&mut guard) {
            Calls::die_if_asked(&mut guard);
            program::halt();
        }
        drop(guard);
        Calls::run_work();
    }
}

/// The CPU that comes.
fn start(cast: Cast) {
    program::enable_local_apic().expect("it had enabled it before it went");
    let mut guard = InterruptsOff::new();
    Calls::start_here(&mut guard);
    drop(guard);
    SimMachine::restore_interrupts(true);
    // The other one is in the middle of bringing this one up, and calls it.
    let told = Told::of(|| Calls::within(LIMIT).call(cast.controller, || ()));
    note(|answers| answers.back = Some(told));
    disk::play_when_back(cast);
    idle();
}

/// The CPU that takes the other down and brings it up.
fn control(cast: Cast) {
    wait_for_the_moment();
    disk::finish_first_early(cast);
    let target = cast.target;
    let down = {
        let _frame = program::frame("cpu_down");
        Told::of(|| Calls::cpu_down(target, LIMIT))
    };
    let call = Told::of(|| Calls::within(LIMIT).call(target, || ()));
    let is_offline = || Calls::life(target) == Some(Life::Offline);
    let mut stayed_offline = is_offline();
    disk::play_while_offline(cast);
    disk::await_ends(1 + disk::WHILE_OFFLINE, Deadline::within::<SimMachine>(LIMIT));
    stayed_offline &= is_offline();
    note(|answers| {
        answers.down = Some(down);
        answers.call_while_offline = Some(call);
        answers.stayed_offline = stayed_offline;
    });
    let up = {
        let _frame = program::frame("cpu_up");
        Told::of(|| Calls::cpu_up(target, LIMIT))
    };
    note(|answers| answers.up = Some(up));
    let all_ended = disk::await_ends(disk::REQUESTS, Deadline::within::<SimMachine>(LIMIT));
    note(|answers| answers.all_ended = all_ended);
    program::stop();
}

/// What is left when a run is over.
pub(super) struct Remains {
    pub(super) reports: Vec<CpuReport>,
    pub(super) books: Vec<Book>,
    pub(super) answers: Answers,
    /// Whether the target is online.
    pub(super) online: bool,
}

impl Remains {
    pub(super) fn ended(&self, how: End) -> usize {
        self.books.iter().filter(|book| book.end.is_some_and(|(end, _)| end == how)).count()
    }

    fn hanging(&self) -> usize {
        self.books.iter().filter(|book| book.is_hanging()).count()
    }
}

/// Whether the machine is in the state that was reported: the target is online with interrupts enabled, 108 requests were
/// accepted for it and lie there, no ring that would make it look is pending, and the controller is in the notifier's call.
fn is_reported_state(cast: Cast, remains: &Remains) -> bool {
    let (controller, target) =
        (&remains.reports[cast.controller.index()], &remains.reports[cast.target.index()]);
    remains.online
        && super::is_not_rung(target)
        && remains.hanging() == disk::REPORTED
        && controller.frames.contains(&"notify")
        && !controller.waits.is_empty()
}

/// Replays it.
pub(crate) fn now(setup: &Setup) -> Result<Replay, ReplayError> {
    let cast = Cast::of(setup);
    let hooks = Hooks { callbacks: &CALLBACKS, ..Hooks::default() };
    let mut world = World::with_kernel(&super::config(setup), hooks)?;
    disk::reset(cast.cpus);
    CAST.set(Some(cast));
    ANSWERS.take();
    world.set_handler(RING_VECTOR, ring_interrupt);
    world.set_handler(TIMER_VECTOR, timer_interrupt);
    world.set_handler(disk::VECTOR, disk_interrupt);
    world.on_start_up(move |_, _| start(cast));
    for cpu in cast.all().filter(|&cpu| cpu != cast.controller) {
        world.spawn(cpu, idle);
    }
    world.spawn(cast.controller, move || control(cast));
    world.run(TIME_LIMIT);
    let trace = world.trace();
    let remains = Remains {
        reports: super::reports(&world),
        books: disk::books(),
        answers: ANSWERS.take(),
        online: is_open(cast.target, &trace.events),
    };
    let resent = world.mailbox_counters(|counters| counters.rings_repeated.get());
    let replay = told(setup, cast, trace, resent, &remains);
    // SAFETY: 1. Nothing that is used from here on refers to the programs' stacks: the mailboxes are emptied before another
    // machine gets them, `told` has copied what it tells, and the machine is not run any more. 2. What lives there are named
    // frames, guards of interrupts and copies of numbers: nobody relies on their being dropped.
    unsafe { world.forget_programs() };
    Ok(replay)
}

/// Whether a CPU's mailbox is open after these events: all are at boot.
fn is_open(cpu: Cpu, events: &[Event]) -> bool {
    let opens = |event: &Event| match event.kind {
        EventKind::MailboxOpened if event.cpu == cpu => Some(true),
        EventKind::MailboxClosed if event.cpu == cpu => Some(false),
        _ => None,
    };
    events.iter().rev().find_map(opens).unwrap_or(true)
}

fn told(setup: &Setup, cast: Cast, trace: Trace, resent: u64, remains: &Remains) -> Replay {
    let ipis = super::ipis(&remains.reports, &trace.events, resent);
    Replay {
        incident: setup.incident,
        when: When::Now,
        cpus: setup.cpus,
        routing: setup.routing,
        seed: setup.seed,
        fault: setup.fault,
        outcome: if is_reported_state(cast, remains) { Outcome::Lost } else { Outcome::Held },
        reason: None,
        laws: judge(cast, remains, &trace.events, ipis.lost, resent),
        ipis,
        diagnosis: diagnose(&evidence(cast, remains, &trace.events)),
        view: view::now(cast, remains),
        summary: summary(cast, remains),
        trace,
    }
}

/// Each law from what the run left behind.
fn judge(cast: Cast, remains: &Remains, events: &[Event], rings_lost: u64, resent: u64) -> Laws {
    let Answers { down, call_while_offline, up, notifier, back, .. } = &remains.answers;
    let once = remains.books.iter().all(|book| book.ends == 1);
    let ok = |told: &Option<Told<CallError>>| told.is_some_and(|told| told.is_ok_in_time());
    let went_and_came = [down, up].iter().all(|told| told.is_some_and(|told| told.is_ok_in_time()));
    let refused = call_while_offline.is_some_and(|told| told.result == Err(CallError::Offline));
    let call_in_time = call_while_offline.is_some_and(|told| told.is_in_time());
    let quiet = down.is_some_and(|down| nothing_accepted_from(cast, events, down.ended));
    let laws = Laws::NOT_APPLICABLE.with([
        (Law::L1, once && ok(notifier)),
        (Law::L3, went_and_came && call_in_time && ok(notifier) && ok(back) && remains.answers.all_ended),
        (Law::L5, refused && remains.answers.stayed_offline && quiet),
    ]);
    // Only a call that began while the other still waited puts it to the test.
    let crossed = matches!((back, up), (Some(back), Some(up)) if back.began < up.ended);
    let laws = if crossed { laws.with([(Law::L6, ok(back) && ok(notifier))]) } else { laws };
    if rings_lost == 0 { laws } else { laws.with([(Law::L2, once && ok(notifier) && resent <= rings_lost)]) }
}

/// Whether nothing was accepted for the target, and nothing begun on it, from then on until it opened again.
fn nothing_accepted_from(cast: Cast, events: &[Event], offline: Instant) -> bool {
    let since = events.iter().skip_while(|event| event.time < offline);
    let opens = |event: &&Event| event.kind == EventKind::MailboxOpened && event.cpu == cast.target;
    since.take_while(|event| !opens(event)).all(|event| match event.kind {
        EventKind::PostQueued => event.other != Some(cast.target),
        EventKind::CallClaimed | EventKind::WorkRun | EventKind::PostRun => event.cpu != cast.target,
        _ => true,
    })
}

fn evidence(cast: Cast, remains: &Remains, events: &[Event]) -> MachineEvidence {
    let mut evidence = evidence::of_machine(&remains.reports, events, None);
    evidence.cpus[cast.target.index()].online = Some(remains.online);
    let time = remains.reports[cast.controller.index()].time;
    evidence.calls = super::hanging_requests(cast, &remains.books, time, "complete");
    evidence
}

fn summary(cast: Cast, remains: &Remains) -> String {
    let Cast { controller, target, .. } = cast;
    let Answers { down, up, call_while_offline, notifier, .. } = &remains.answers;
    let said = |told: Option<Result<(), String>>| match told {
        Some(Ok(())) => "succeeded".to_owned(),
        Some(Err(error)) => format!("failed ({error})"),
        None => "did not end within the run".to_owned(),
    };
    let hotplug = |told: &Option<Told<HotplugError>>| {
        said(told.map(|told| told.result.map_err(|error| error.to_string())))
    };
    let call = |told: &Option<Told<CallError>>| {
        said(told.map(|told| told.result.map_err(|error| error.to_string())))
    };
    format!(
        "{controller} took {target} down, which {}, and brought it up again, which {}. {} requests: {} ended on {target}; {} \
         accepted as it went, and taken over by {controller}; {} refused while it was offline, and ended where the disk \
         interrupted; {} unaccounted for. A call to it while it was offline {}; the notifier's call as it came up {}.",
        hotplug(down),
        hotplug(up),
        remains.books.len(),
        remains.ended(End::AtHome),
        remains.ended(End::TakenOver),
        remains.ended(End::Refused),
        remains.books.iter().filter(|book| book.ends != 1).count(),
        match call_while_offline {
            Some(Told { result: Err(CallError::Offline), .. }) => "was refused".to_owned(),
            told => call(told),
        },
        call(notifier),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::{Fault, Incident};
    use crate::laws::Judgement::{self, Broken, Held, NotApplicable};
    use smpcall_local_apic::Routing;
    use smpcall_simulator::{Config, WaitReport};

    fn told<E>(result: Result<(), E>, from: u64, to: u64) -> Told<E> {
        Told { result, began: Instant::from_nanos(from), ended: Instant::from_nanos(to) }
    }

    fn good() -> (Cast, Remains) {
        let (incident, when) = (Incident::OfflineQueue, When::Now);
        let setup =
            Setup { incident, when, cpus: 4, routing: Routing::Flat, seed: 1, fault: Fault::Reported };
        let world = World::new(&Config::new(4, Routing::Flat, 1)).expect("a machine");
        let answers = Answers {
            down: Some(told(Ok(()), 10, 20)),
            call_while_offline: Some(told(Err(CallError::Offline), 20, 21)),
            stayed_offline: true,
            up: Some(told(Ok(()), 30, 60)),
            notifier: Some(told(Ok(()), 50, 55)),
            back: Some(told(Ok(()), 45, 52)),
            all_ended: true,
        };
        let book = Book {
            handed_over: Some((Cpu::new(1), Instant::from_nanos(5))),
            end: Some((End::AtHome, Cpu::new(3))),
            ends: 1,
        };
        let (reports, books) = (super::super::reports(&world), vec![book; disk::REQUESTS]);
        (Cast::of(&setup), Remains { reports, books, answers, online: true })
    }

    fn judged(change: impl FnOnce(&mut Remains), events: &[Event], lost: u64, resent: u64) -> [Judgement; 5] {
        let (cast, mut remains) = good();
        change(&mut remains);
        let laws = judge(cast, &remains, events, lost, resent);
        [Law::L1, Law::L2, Law::L3, Law::L5, Law::L6].map(|law| laws.get(law))
    }

    #[test]
    fn each_broken_law_is_seen() {
        assert_eq!(judged(|_| {}, &[], 1, 0), [Held; 5]);
        assert_eq!(judged(|_| {}, &[], 0, 0), [Held, NotApplicable, Held, Held, Held]);
        assert_eq!(judged(|_| {}, &[], 1, 2), [Held, Broken, Held, Held, Held]);
        let twice = |remains: &mut Remains| remains.books[9].ends = 2;
        assert_eq!(judged(twice, &[], 1, 0), [Broken, Broken, Held, Held, Held]);
        let late = |remains: &mut Remains| {
            remains.answers.up = Some(told(Ok(()), 30, 30 + 2 * LIMIT.as_nanos() as u64));
        };
        assert_eq!(judged(late, &[], 1, 0), [Held, Held, Broken, Held, Held]);
        let accepted =
            |remains: &mut Remains| remains.answers.call_while_offline = Some(told(Ok(()), 20, 21));
        assert_eq!(judged(accepted, &[], 1, 0), [Held, Held, Held, Broken, Held]);
        let opened = |remains: &mut Remains| remains.answers.stayed_offline = false;
        assert_eq!(judged(opened, &[], 1, 0), [Held, Held, Held, Broken, Held]);
        let deaf = |remains: &mut Remains| remains.answers.back = Some(told(Err(CallError::Busy), 45, 52));
        assert_eq!(judged(deaf, &[], 1, 0), [Held, Held, Broken, Held, Broken]);
        let after = |remains: &mut Remains| remains.answers.back = Some(told(Ok(()), 70, 71));
        assert_eq!(judged(after, &[], 1, 0), [Held, Held, Held, Held, NotApplicable]);
    }

    #[test]
    fn what_is_accepted_between_going_and_coming_breaks_the_fifth_law() {
        let event = |time, kind, cpu, other: Option<u32>| Event {
            time: Instant::from_nanos(time),
            kind,
            cpu: Cpu::new(cpu),
            other: other.map(Cpu::new),
            detail: 0,
            argument: 0,
        };
        let opened = event(40, EventKind::MailboxOpened, 3, None);
        let (queued, run) = (EventKind::PostQueued, EventKind::WorkRun);
        let fifth = |events: &[Event]| judged(|_| {}, events, 0, 0)[3];
        let closed = event(20, EventKind::MailboxClosed, 3, None);
        assert!(is_open(Cpu::new(3), &[]) && !is_open(Cpu::new(3), &[closed]));
        assert!(is_open(Cpu::new(3), &[closed, opened]) && is_open(Cpu::new(1), &[closed]));
        assert_eq!(fifth(&[event(15, queued, 1, Some(3)), opened, event(45, queued, 1, Some(3))]), Held);
        assert_eq!(fifth(&[event(25, queued, 1, Some(2)), event(26, run, 1, None), opened]), Held);
        assert_eq!(fifth(&[event(25, queued, 1, Some(3)), opened]), Broken);
        assert_eq!(fifth(&[event(25, run, 3, None), opened]), Broken);
    }

    #[test]
    fn each_part_of_the_reported_state_is_needed() {
        let lost = || {
            let (cast, mut remains) = good();
            for book in &mut remains.books[..disk::REPORTED] {
                (book.end, book.ends) = (None, 0);
            }
            let (source, since) = (core::panic::Location::caller(), Instant::default());
            remains.reports[1].waits.push(WaitReport { source, since, deadline: Deadline::NEVER });
            remains.reports[1].frames = vec!["cpu_up", "notify"];
            (cast, remains)
        };
        let (cast, remains) = lost();
        assert!(is_reported_state(cast, &remains));
        let changes: [fn(&mut Remains); 5] = [
            |remains| remains.online = false,
            |remains| remains.reports[3].requested.push(RING_VECTOR),
            |remains| remains.books[0].end = Some((End::TakenOver, Cpu::new(1))),
            |remains| remains.reports[1].frames.truncate(1),
            |remains| remains.reports[1].waits.clear(),
        ];
        for change in changes {
            let (cast, mut remains) = lost();
            change(&mut remains);
            assert!(!is_reported_state(cast, &remains));
        }
    }
}
