//! Shared memory that is loom's: each word of the protocol has a loom atomic beside it, which answers for it.
//!
//! The real words keep their initial values for ever; the atomics are made anew in each execution, from those values.
//!
//! Loom wants an object to be made before the threads that use it, but which words a scenario touches shows only when
//! it runs. So a word that is met for the first time ends the exploration, which begins again and knows it from then on.
//! Plain data stays where it is; a loom cell beside it checks that its accesses do not race.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, Release, SeqCst as SeqCstOrder};

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, fence};
use smpcall_machine::{Access, Conditions, Deadline, Machine, Memory, Woken};

use crate::exploration::Limits;
use crate::machine;

/// What becomes of sequentially consistent accesses, which loom does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeqCst {
    /// Acquire-release: weaker than what ships.
    AsAcquireRelease,
    /// Acquire-release between two sequentially consistent fences: stronger than what ships. In loom, a fence also
    /// synchronises with every fence before it.
    Fenced,
}

/// A deliberate fault: some accesses get a weaker ordering than they ask for. (A compare-exchange that fails keeps its own.)
#[derive(Clone, Copy, Debug)]
pub struct Weakening {
    /// Of words whose names begin like this: `leaf`, `door`, `state` (see `Mailboxes::name_of`).
    pub words: &'static str,
    /// Which accesses to them.
    pub accesses: fn(Access) -> bool,
    /// The ordering instead of one that is stronger.
    pub order: Ordering,
}

impl Weakening {
    fn is_for(&self, name: &str, access: Access) -> bool {
        name.starts_with(self.words) && (self.accesses)(access)
    }
}

/// The memory of machines that loom explores.
#[derive(Clone, Copy, Debug)]
pub enum LoomMemory {}

/// How long nobody may write while somebody waits, in evaluations of conditions: then nobody can move any more.
const FRUITLESS: u32 = 300;

/// Below this address nothing is mapped.
const PAGE: usize = 4096;

/// What loom has for a location.
#[derive(Clone)]
enum Object {
    Word(Rc<Shadow>),
    Plain(Rc<UnsafeCell<()>>),
}

/// The loom atomic that answers for a word.
struct Shadow {
    atomic: AtomicU64,
    name: Rc<str>,
    /// How often it was written in this execution, by anybody.
    writes: Cell<u32>,
}

#[derive(Clone, Copy)]
struct Location {
    address: usize,
    is_plain: bool,
}

/// What names locations: the mailboxes of the scenario's machine.
pub(crate) type Names = fn(*const ()) -> String;

struct State {
    /// Whether an execution is under way. If not, accesses go to the real words.
    running: Cell<bool>,
    seq_cst: Cell<SeqCst>,
    weakening: Cell<Option<Weakening>>,
    /// Whether to leave executions whose rest is explored elsewhere.
    prunes: Cell<bool>,
    /// The locations that an execution has touched, in the order of their discovery.
    known: RefCell<Vec<Location>>,
    /// Those of this execution. Loom's threads are coroutines of one thread, so that they share it.
    objects: RefCell<HashMap<usize, Object>>,
    fruitless: Cell<u32>,
    /// What this execution has done to words.
    trace: RefCell<Vec<Step>>,
}

/// One access to a word.
struct Step {
    cpu: u32,
    word: Rc<Shadow>,
    access: Access,
    order: Ordering,
    found: u64,
    /// How often the word was written before this.
    writes: u32,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, word, access, order, found, .. } = self;
        write!(f, "CPU {cpu}  {}: {access:x?} {order:?}", word.name)?;
        if matches!(access, Access::Store(_)) { Ok(()) } else { write!(f, ", found {found:x}") }
    }
}

thread_local! {
    static STATE: State = State {
        running: Cell::new(false),
        seq_cst: Cell::new(SeqCst::AsAcquireRelease),
        weakening: Cell::new(None),
        prunes: Cell::new(true),
        known: RefCell::default(),
        objects: RefCell::default(),
        fruitless: Cell::new(0),
        trace: RefCell::default(),
    };
}

/// The payload of the panic with which an execution ends that has touched an unknown location.
pub(crate) struct UnknownLocation;

/// A new exploration: nothing is known.
pub(crate) fn begin_exploration(limits: &Limits) {
    STATE.with(|state| {
        state.running.set(false);
        state.seq_cst.set(limits.seq_cst);
        state.weakening.set(limits.weakening);
        state.prunes.set(limits.prunes);
        state.known.borrow_mut().clear();
    });
}

/// No execution is under way: accesses go to the real words from now on.
pub(crate) fn end_execution() {
    STATE.with(|state| state.running.set(false));
}

/// What the last execution did to words, in loom's order.
pub(crate) fn trace() -> Vec<String> {
    STATE.with(|state| state.trace.borrow().iter().map(Step::to_string).collect())
}

/// A new execution, on loom's first thread before it spawns others.
pub(crate) fn begin_execution(names: Names) {
    STATE.with(|state| {
        let mut objects = state.objects.borrow_mut();
        objects.clear();
        for location in state.known.borrow().iter() {
            objects.insert(location.address, location.object(names));
        }
        state.fruitless.set(0);
        state.trace.borrow_mut().clear();
        state.running.set(true);
    });
}

impl Location {
    fn object(self, names: Names) -> Object {
        if self.is_plain {
            return Object::Plain(Rc::new(UnsafeCell::new(())));
        }
        let word = std::ptr::with_exposed_provenance::<std::sync::atomic::AtomicU64>(self.address);
        // SAFETY: the location was given to `before` as one of 8 bytes that is accessed atomically, and what scenarios
        // share is in statics.
        let initial = unsafe { (*word).load(Relaxed) };
        let name = names(word.cast()).into();
        Object::Word(Rc::new(Shadow { atomic: AtomicU64::new(initial), name, writes: Cell::new(0) }))
    }
}

impl State {
    /// What loom has for a location.
    fn object(&self, location: *const (), is_plain: bool) -> Object {
        let address = location.expose_provenance();
        if let Some(object) = self.objects.borrow().get(&address) {
            return object.clone();
        }
        // The protocol has sentinels, one of which a fault may follow as if it were a pointer.
        assert!(address.is_multiple_of(8) && address >= PAGE, "an access to {address:#x}, where nothing is");
        self.known.borrow_mut().push(Location { address, is_plain });
        // Not by the panic hook: nothing is wrong.
        resume_unwind(Box::new(UnknownLocation))
    }

    fn order_of(&self, name: &str, access: Access, order: Ordering) -> Ordering {
        match self.weakening.get() {
            Some(weakening) if weakening.is_for(name, access) => weaker(order, weakening.order),
            _ => order,
        }
    }
}

/// The weaker one of two orderings, as far as that is one.
fn weaker(order: Ordering, limit: Ordering) -> Ordering {
    let acquires = |order| matches!(order, Acquire | AcqRel | SeqCstOrder);
    let releases = |order| matches!(order, Release | AcqRel | SeqCstOrder);
    match (acquires(order) && acquires(limit), releases(order) && releases(limit)) {
        (true, true) => AcqRel,
        (true, false) => Acquire,
        (false, true) => Release,
        (false, false) => Relaxed,
    }
}

/// The ordering of a load or a store: the half that it can have.
fn half(order: Ordering, other: Ordering) -> Ordering {
    match order {
        AcqRel | SeqCstOrder => other,
        order if order == other => order,
        _ => Relaxed,
    }
}

fn perform(word: &AtomicU64, access: Access, order: Ordering) -> u64 {
    match access {
        Access::Load => word.load(half(order, Acquire)),
        Access::Store(value) => {
            word.store(value, half(order, Release));
            0
        }
        Access::Swap(value) => word.swap(value, order),
        Access::FetchOr(bits) => word.fetch_or(bits, order),
        Access::FetchAnd(bits) => word.fetch_and(bits, order),
        Access::FetchAdd(value) => word.fetch_add(value, order),
        Access::CompareExchange(current, new, failure) => {
            match word.compare_exchange(current, new, order, half(failure, Acquire)) {
                Ok(found) | Err(found) => found,
            }
        }
        Access::PlainRead(_) | Access::PlainWrite(_) => unreachable!("plain data is not a word"),
    }
}

// SAFETY: a word is answered for with what its loom atomic holds, which is always accessed in its stead, with the ordering
// asked for or (in a weakened exploration, which is to fail) a weaker one. `wait` evaluates the conditions.
unsafe impl Memory for LoomMemory {
    fn before(location: *const (), access: Access, order: Ordering) -> Option<u64> {
        STATE.with(|state| {
            if !state.running.get() {
                return None;
            }
            let is_plain = matches!(access, Access::PlainRead(_) | Access::PlainWrite(_));
            if std::thread::panicking() {
                // The execution is over. What unwinds finds zeroes everywhere, and changes nothing.
                return (!is_plain).then_some(0);
            }
            if access.writes() {
                state.fruitless.set(0);
            }
            match state.object(location, is_plain) {
                Object::Plain(cell) => {
                    if access.writes() {
                        cell.with_mut(|_| ());
                    } else {
                        cell.with(|_| ());
                    }
                    None
                }
                Object::Word(word) => {
                    let order = state.order_of(&word.name, access, order);
                    let fenced = order == SeqCstOrder && state.seq_cst.get() == SeqCst::Fenced;
                    if fenced {
                        fence(SeqCstOrder);
                    }
                    let found = perform(&word.atomic, access, order);
                    if fenced {
                        fence(SeqCstOrder);
                    }
                    let writes = word.writes.get();
                    if access.writes() {
                        word.writes.set(writes + 1);
                    }
                    state.trace.borrow_mut().push(Step {
                        cpu: machine::number(),
                        word,
                        access,
                        order,
                        found,
                        writes,
                    });
                    Some(found)
                }
            }
        })
    }

    fn after(_: *const (), _: Access, _: u64) {}

    fn wait<M: Machine<Memory = Self>>(conditions: &impl Conditions, deadline: Deadline) -> Woken {
        loop {
            if std::thread::panicking() {
                // The execution is over: nobody will make a condition true, and those who unwind must not wait.
                return Woken::Met(0);
            }
            let look = Look::begin();
            if let Some(index) = conditions.first_met() {
                return Woken::Met(index);
            }
            if machine::expires(deadline) {
                return Woken::Deadline;
            }
            M::pause();
            let seen = look.end();
            let fruitless = STATE.with(|state| state.fruitless.replace(state.fruitless.get() + 1));
            assert!(fruitless < FRUITLESS, "nobody can move: a call, a post or a ring is lost");
            loom::thread::yield_now();
            let prunes = STATE.with(|state| state.prunes.get());
            if prunes && seen.iter().all(|(word, writes)| word.writes.get() == *writes) {
                // Nothing has been written, so that another look has nothing new to see (and whether the last one could
                // have seen something newer is explored where it was made). Without this, loom would explore for ever
                // how two CPUs that wait take turns.
                loom::skip_branch();
            }
        }
    }
}

/// One look of a wait: which words it loads.
struct Look {
    from: usize,
}

impl Look {
    fn begin() -> Self {
        Self { from: STATE.with(|state| state.trace.borrow().len()) }
    }

    /// The words that this CPU has touched since, and how often each was written by then.
    fn end(self) -> Vec<(Rc<Shadow>, u32)> {
        let me = machine::number();
        STATE.with(|state| {
            let trace = state.trace.borrow();
            let mine = trace[self.from..].iter().filter(|step| step.cpu == me);
            mine.map(|step| (Rc::clone(&step.word), step.writes)).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weakened_ordering_has_what_both_have() {
        assert_eq!(weaker(SeqCstOrder, AcqRel), AcqRel);
        assert_eq!(weaker(AcqRel, Release), Release);
        assert_eq!(weaker(Acquire, AcqRel), Acquire, "never stronger than what was asked for");
        assert_eq!(weaker(Acquire, Release), Relaxed);
    }

    #[test]
    fn loads_and_stores_have_their_half_of_an_ordering() {
        assert_eq!([half(SeqCstOrder, Acquire), half(AcqRel, Acquire), half(Acquire, Acquire)], [Acquire; 3]);
        assert_eq!([half(Release, Acquire), half(Acquire, Release), half(Relaxed, Release)], [Relaxed; 3]);
    }
}
