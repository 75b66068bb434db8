//! Posts and deferred work for a CPU that is declared dead, wherever it is in taking, listing, beginning or running them:
//! each is run, or abandoned to CPU 0, which controls; or it had begun, and is counted as torn.

use core::sync::atomic::Ordering::Relaxed;

use smpcall::{Cpu, Deferred, HotplugError, Life, Post, PostRefusal};
use smpcall_local_apic::Routing;
use smpcall_machine::Word;

use super::books::SHORT;
use super::{Actors, protocol};
use crate::explorer::note::Note;
use crate::explorer::scenario::{Bounds, Protocol};
use crate::explorer::system::Violation;
use crate::kernel::{Calls, kernel};
use crate::{RING_VECTOR, SimMachine, SimMemory};

pub(super) fn all() -> Vec<Protocol> {
    let mut all = vec![
        dying(
            "dead-post",
            "a CPU is declared dead, wherever it is in taking two posts: run, abandoned, or begun (L1)",
            2,
            |cpu, posts| {
                cpu.does(move |_| {
                    posts.post(&posts.plain[0]);
                    posts.post(&posts.plain[1]);
                    posts.declare_dead(&posts.plain[0]);
                });
                cpu.scenario.cpu(|| Calls::declare_nmi(false));
            },
        ),
        dying("dead-post-three", "as dead-post, with a poster that goes on posting (L1)", 3, |cpu, posts| {
            cpu.does(move |_| {
                posts.post(&posts.plain[0]);
                posts.declare_dead(&posts.plain[0]);
            });
            cpu.scenario.cpu(|| Calls::declare_nmi(false));
            cpu.does(move |_| posts.post(&posts.plain[1]));
        }),
        dying(
            "dead-work",
            "a CPU is declared dead, wherever it is in listing and running two pieces of work (L1)",
            2,
            |cpu, posts| {
                cpu.does(move |_| {
                    posts.post(&posts.work[0]);
                    posts.post(&posts.work[1]);
                    posts.declare_dead(&posts.work[0]);
                });
                cpu.scenario.cpu(|| Calls::declare_nmi(false));
            },
        ),
    ];
    for protocol in &mut all {
        // One register write a message.
        protocol.routing = Routing::X2ApicPhysical;
        // The call that asks whether the CPU is alive is given up.
        protocol.bounds = Bounds { drops: 0, expiries: 1, ticks: 0, wedges: 0 };
    }
    all
}

fn dying(
    name: &str,
    about: &str,
    cpus: usize,
    programs: impl Fn(&mut Actors, Posts) + Send + Sync + 'static,
) -> Protocol {
    protocol(name, about, cpus, move |cpu| {
        let posts = Posts::new(cpu, cpus == 2);
        cpu.scenario.handler(RING_VECTOR, |mut frame| {
            frame.end_of_interrupt();
            Calls::handle_ring();
            Calls::exit_interrupt();
        });
        programs(cpu, posts);
    })
}

/// The CPU that dies.
const VICTIM: Cpu = Cpu::new(1);

/// What is known of one node.
#[derive(Default)]
struct Account {
    queued: Note,
    ended: Note,
}

/// The books of all nodes.
struct Ledger {
    accounts: [Account; 2],
    /// One CPU posts the first and then the second.
    in_order: bool,
    /// One of them is posted again, to another CPU.
    again: Note,
    /// Operations in the middle of a run: a CPU may stop there.
    effects: Word<SimMemory>,
    torn: Note,
    wrong: Note,
}

const OUT_OF_ORDER: u64 = 1;
const STUCK: u64 = 2;
const NOT_AS_TOLD: u64 = 3;
const REFUSED: u64 = 4;

/// A post, or work.
struct Node<const IS_WORK: bool> {
    which: usize,
    ledger: &'static Ledger,
}

impl<const IS_WORK: bool> Deferred<SimMachine> for Node<IS_WORK> {
    type Handle = &'static Post<SimMachine, Self>;

    const IS_WORK: bool = IS_WORK;

    fn run(handle: Self::Handle) {
        let &Self { which, ledger } = handle.value();
        ledger.effects.fetch_add(1, Relaxed);
        let [first, second] = &ledger.accounts;
        let in_order = ledger.in_order && ledger.again.get() == 0;
        if in_order && which == 0 && first.ended.get() == 0 && second.ended.get() != 0 {
            ledger.wrong.set(OUT_OF_ORDER);
        }
        ledger.accounts[which].ended.add(1);
    }
}

#[derive(Clone, Copy)]
struct Posts {
    ledger: &'static Ledger,
    plain: &'static [Post<SimMachine, Node<false>>; 2],
    work: &'static [Post<SimMachine, Node<true>>; 2],
}

impl Posts {
    fn new(cpu: &mut Actors, in_order: bool) -> Self {
        let ledger: &'static Ledger = cpu.scenario.share(Ledger {
            accounts: Default::default(),
            in_order,
            again: Note::new(0),
            effects: Word::new(0),
            torn: Note::new(0),
            wrong: Note::new(0),
        });
        cpu.scenario.name(ledger.effects.location(), "effects");
        let plain = cpu.scenario.share(core::array::from_fn(|which| Post::new(Node { which, ledger })));
        let work = cpu.scenario.share(core::array::from_fn(|which| Post::new(Node { which, ledger })));
        cpu.scenario.check(move || ledger.check());
        Self { ledger, plain, work }
    }

    fn post<const IS_WORK: bool>(self, node: &'static Post<SimMachine, Node<IS_WORK>>) {
        match Calls::post::<Node<IS_WORK>>(VICTIM, node) {
            Ok(_) => self.ledger.accounts[node.value().which].queued.add(1),
            Err(error) if error.reason == PostRefusal::Offline => {}
            Err(_) => self.ledger.wrong.set(REFUSED),
        }
    }

    /// Declares the victim dead; then this node is free to be posted anywhere.
    fn declare_dead<const IS_WORK: bool>(self, node: &'static Post<SimMachine, Node<IS_WORK>>) {
        // SAFETY: what its posts write are notes, and no task migrates.
        let result = unsafe { Calls::declare_dead(VICTIM, SHORT.expect("it is a limit")) };
        let life = Calls::life(VICTIM);
        let fits = match result {
            Ok(()) => life == Some(Life::Offline),
            Err(HotplugError::IsAlive | HotplugError::Fence(_)) => life == Some(Life::Online),
            Err(_) => false,
        };
        if !fits {
            self.ledger.wrong.set(NOT_AS_TOLD);
        }
        if result.is_ok() {
            let mine = kernel().mailboxes().get(Cpu::new(0)).expect("there is a boot CPU");
            self.ledger.torn.set(mine.counters().posts_torn.get());
            self.ledger.again.set(1);
            match Calls::post::<Node<IS_WORK>>(Cpu::new(0), node) {
                Ok(_) => self.ledger.accounts[node.value().which].queued.add(1),
                Err(_) => self.ledger.wrong.set(STUCK),
            }
        }
    }
}

impl Ledger {
    fn check(&self) -> Result<(), Violation> {
        match self.wrong.get() {
            0 => {}
            OUT_OF_ORDER => return Err(Violation::new("L1", "an earlier post ended after a later one")),
            STUCK => {
                return Err(Violation::new("L1", "a post is still queued on a CPU that was declared dead"));
            }
            REFUSED => return Err(Violation::new("L1", "a post was refused for no reason")),
            _ => {
                return Err(Violation::new("L5", "a CPU is not where declare_dead said"));
            }
        }
        let [queued, ended] =
            [|account: &Account| account.queued.get(), |account: &Account| account.ended.get()]
                .map(|of| self.accounts.each_ref().map(of));
        let torn = self.torn.get();
        let twice = queued.iter().zip(&ended).any(|(queued, ended)| ended > queued);
        if twice || queued.iter().sum::<u64>() != ended.iter().sum::<u64>() + torn {
            let what = format!("posts queued {queued:?} times ended {ended:?} times, and {torn} were torn");
            return Err(Violation::new("L1", what));
        }
        Ok(())
    }
}
