//! What is explored: programs for a few CPUs, what they share, and what must hold at the end.

use core::fmt;
use std::cell::RefCell;
use std::sync::Arc;

use smpcall_local_apic::Routing;
use smpcall_machine::Cpu;

use super::system::Violation;
use crate::kernel::Hooks;
use crate::state::expect_current;
use crate::stepped::{Program, Stepper};
use crate::{Config, InterruptFrame};

/// A range of memory that outlives an execution.
struct Lasting {
    base: *const (),
    bytes: usize,
}

type Check = Box<dyn Fn() -> Result<(), Violation>>;
type Handling = Box<dyn Fn(InterruptFrame)>;

/// One machine's worth of a protocol: the programs of its CPUs, and what they share.
///
/// Programs run again and again, and executions are cut short: a program must own nothing across an operation that
/// relies on being dropped (scoped threads, guards of things outside of the machine; heap memory leaks). Whatever
/// lives longer than one execution - words, plain data, [notes](super::note::Note) - is [shared](Self::share), or the
/// explorer cannot put it back.
#[derive(Default)]
pub struct Scenario {
    programs: Vec<Program<'static>>,
    not_started: Vec<Cpu>,
    start_up: Option<Box<dyn Fn(Cpu, u8)>>,
    lasting: Vec<Lasting>,
    names: Vec<(usize, String)>,
    handlers: Handlers,
    check: Option<Check>,
}

impl Scenario {
    /// No CPU does anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Something that the programs share: its words, plain data and notes are put back to what they are now before each
    /// execution. It lives for ever: that is a few hundred bytes for each machine that explores the scenario.
    pub fn share<T: 'static>(&mut self, object: T) -> &'static T {
        let object = Box::leak(Box::new(object));
        self.share_static(object);
        object
    }

    /// As [`share`](Self::share), for what lives for ever anyway.
    pub fn share_static<T: ?Sized>(&mut self, object: &'static T) {
        let base = core::ptr::from_ref(object).cast();
        self.lasting.push(Lasting { base, bytes: size_of_val(object) });
    }

    /// What a word is called in counterexamples: `word.location()` and a name.
    pub fn name(&mut self, location: *const (), name: impl Into<String>) {
        self.names.push((location.addr(), name.into()));
    }

    /// The program of the next CPU: 0, 1, and so on. CPUs without a program only take interrupts.
    pub fn cpu(&mut self, program: impl Fn() + 'static) {
        self.programs.push(Box::new(program));
    }

    /// A CPU that waits for a start-up message at first. If it has a program, that does not run.
    pub fn not_started(&mut self, cpu: Cpu) {
        self.not_started.push(cpu);
    }

    /// What a CPU does that a start-up message has started: see [`World::on_start_up`](crate::World::on_start_up).
    pub fn start_up(&mut self, program: impl Fn(Cpu, u8) + 'static) {
        self.start_up = Some(Box::new(program));
    }

    /// The handler of a vector, on every CPU. It ends the interrupt itself.
    pub fn handler(&mut self, vector: u8, handler: impl Fn(InterruptFrame) + 'static) {
        self.handlers.of_vectors.push((vector, Box::new(handler)));
    }

    /// The handler of NMIs, on every CPU.
    pub fn nmi_handler(&mut self, handler: impl Fn(InterruptFrame) + 'static) {
        self.handlers.of_nmis = Some(Box::new(handler));
    }

    /// What must hold when every program has ended and every interrupt was taken.
    pub fn check(&mut self, check: impl Fn() -> Result<(), Violation> + 'static) {
        self.check = Some(Box::new(check));
    }

    /// The machine, started, and what stays behind.
    pub(crate) fn into_machine(
        self,
        config: &Config,
        hooks: Option<Hooks>,
    ) -> Result<(Stepper<'static>, Aftermath), crate::ConfigError> {
        let config = Config { not_started: self.not_started, ..config.clone() };
        let mut stepper = match hooks {
            Some(hooks) => Stepper::with_kernel(&config, self.programs, hooks)?,
            None => Stepper::new(&config, self.programs)?,
        };
        if let Some(start_up) = self.start_up {
            stepper.on_start_up(start_up);
        }
        for lasting in &self.lasting {
            stepper.declare(lasting.base, lasting.bytes);
        }
        for &(vector, _) in &self.handlers.of_vectors {
            stepper.set_handler(vector, handle);
        }
        if self.handlers.of_nmis.is_some() {
            stepper.set_nmi_handler(handle);
        }
        let machine = stepper.with(|machine| core::ptr::from_mut(machine).addr());
        let registered = Registered::new(machine, self.handlers);
        Ok((stepper, Aftermath { names: self.names, check: self.check, _registered: registered }))
    }
}

/// What handles a machine's interrupts.
#[derive(Default)]
struct Handlers {
    of_vectors: Vec<(u8, Handling)>,
    of_nmis: Option<Handling>,
}

thread_local! {
    /// The handlers of this thread's machines, by the address of the machine's state.
    static HANDLERS: RefCell<Vec<(usize, &'static Handlers)>> = const { RefCell::new(Vec::new()) };
}

/// Handles an interrupt of the running machine by its scenario's handler.
fn handle(frame: InterruptFrame) {
    let machine = expect_current().with(|machine| core::ptr::from_mut(machine).addr());
    let handlers =
        HANDLERS.with_borrow(|all| all.iter().find(|(owner, _)| *owner == machine).map(|&(_, found)| found));
    let handlers = handlers.expect("a scenario's machine has registered its handlers");
    let handler = match frame.vector {
        Some(vector) => {
            handlers.of_vectors.iter().rev().find(|(of, _)| *of == vector).map(|(_, handler)| handler)
        }
        None => handlers.of_nmis.as_ref(),
    };
    handler.expect("only what has a handler comes here")(frame);
}

/// The handlers of a machine can be found until this is dropped.
struct Registered {
    machine: usize,
}

impl Registered {
    fn new(machine: usize, handlers: Handlers) -> Self {
        // Leaked, like everything that scenarios share: an execution that is cut short stays inside of a handler.
        HANDLERS.with_borrow_mut(|all| all.push((machine, Box::leak(Box::new(handlers)))));
        Self { machine }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // If the thread ends, so does the list.
        let _ = HANDLERS.try_with(|all| all.borrow_mut().retain(|(machine, _)| *machine != self.machine));
    }
}

/// What is left of a scenario once its machine is built.
pub(crate) struct Aftermath {
    names: Vec<(usize, String)>,
    check: Option<Check>,
    _registered: Registered,
}

impl Aftermath {
    pub(crate) fn check(&self) -> Result<(), Violation> {
        self.check.as_ref().map_or(Ok(()), |check| check())
    }

    pub(crate) fn name_of(&self, address: usize) -> Option<&str> {
        self.names.iter().find(|(named, _)| *named == address).map(|(_, name)| name.as_str())
    }
}

/// Something to be explored, by name.
#[derive(Clone)]
pub struct Protocol {
    /// Its name.
    pub name: String,
    /// What it is about, in words.
    pub about: String,
    /// How many CPUs.
    pub cpus: usize,
    /// How they are addressed.
    pub routing: Routing,
    /// Whether nobody should have to wait for time to pass as long as nothing is lost and no deadline is forced (law L2: a
    /// ring that is missing must not be hidden by the recovery ladder).
    pub prompt: bool,
    /// Whether a violation is what it is known for: an algorithm of the past, or a deliberate mistake.
    pub broken: bool,
    /// Whether the machine has mailboxes and handlers that serve them, and what its kernel does besides.
    pub kernel: Option<Hooks>,
    /// How far it is explored if nobody says otherwise.
    pub bounds: Bounds,
    build: Arc<dyn Fn() -> Scenario + Send + Sync>,
}

impl Protocol {
    /// A protocol on this many CPUs, without mailboxes; `build` makes a scenario for each machine that explores it.
    pub fn new(
        name: impl Into<String>,
        about: impl Into<String>,
        cpus: usize,
        build: impl Fn() -> Scenario + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            about: about.into(),
            cpus,
            routing: Routing::Flat,
            prompt: false,
            broken: false,
            kernel: None,
            bounds: Bounds::default(),
            build: Arc::new(build),
        }
    }

    /// A scenario for one machine.
    pub fn scenario(&self) -> Scenario {
        (self.build)()
    }
}

impl fmt::Debug for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Protocol").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What may go wrong in an execution, and how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// At most this many interrupt messages are lost.
    pub drops: u32,
    /// At most this many waits end by their deadline although somebody could still move.
    pub expiries: u32,
    /// At most this many timer ticks come.
    pub ticks: u32,
    /// At most this many CPUs make no further step.
    pub wedges: u32,
}

/// How stores reach memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryModel {
    /// At once: sequential consistency.
    #[default]
    Sc,
    /// Through a first-in first-out buffer of each CPU: x86-TSO (Sewell et al., CACM 2010).
    Tso,
}
