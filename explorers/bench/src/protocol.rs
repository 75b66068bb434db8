//! The small protocol as a program, once for all tools that run threads.

use std::sync::Arc;

use crate::case::{Case, MOST_CALLS, Target};

/// What a tool replaces: shared words, waits, threads. All accesses are sequentially consistent where the tool knows that.
pub(crate) trait Tool: 'static {
    type Word: Send + Sync + 'static;
    type Thread;

    fn word(value: u64) -> Self::Word;
    fn load(word: &Self::Word) -> u64;
    fn store(word: &Self::Word, value: u64);
    fn swap(word: &Self::Word, value: u64) -> u64;
    /// The value found; it was replaced if that is `current`.
    fn compare_exchange(word: &Self::Word, current: u64, new: u64) -> u64;
    /// This thread will wait for the word. Called at its start, for tools that must know whom to wake.
    fn watch(word: &Self::Word);
    /// Waits until the value is zero, or until it is not.
    fn wait(word: &Self::Word, zero: bool);
    fn spawn(body: impl FnOnce() + Send + 'static) -> Self::Thread;
    fn join(thread: Self::Thread);
}

struct Shared<T: Tool> {
    head: T::Word,
    irr: T::Word,
    online: T::Word,
    next: [T::Word; MOST_CALLS],
    locked: [T::Word; MOST_CALLS],
}

impl<T: Tool> Shared<T> {
    fn new() -> Self {
        Self {
            head: T::word(0),
            irr: T::word(0),
            online: T::word(1),
            next: std::array::from_fn(|_| T::word(0)),
            locked: std::array::from_fn(|_| T::word(1)),
        }
    }

    fn call_async(&self, call: usize) {
        let mut old = T::load(&self.head);
        loop {
            T::store(&self.next[call], old);
            let found = T::compare_exchange(&self.head, old, call as u64 + 1);
            if found == old {
                break;
            }
            old = found;
        }
        if old == 0 {
            T::store(&self.irr, 1);
        }
    }

    fn call_sync(&self, call: usize) {
        self.call_async(call);
        T::wait(&self.locked[call], true);
    }

    /// Returns how many calls it has run.
    fn handler(&self) -> usize {
        let mut run = 0;
        let mut call = T::swap(&self.head, 0);
        while call != 0 {
            let index = call as usize - 1;
            call = T::load(&self.next[index]);
            T::store(&self.locked[index], 0);
            run += 1;
        }
        run
    }

    fn take_interrupt(&self) -> usize {
        T::wait(&self.irr, false);
        T::store(&self.irr, 0);
        self.handler()
    }
}

/// Runs a case once, the target on the calling thread.
///
/// # Panics
/// If the case needs interrupts that pre-empt: threads have none.
pub(crate) fn run<T: Tool>(case: Case) {
    let shared = Arc::new(Shared::<T>::new());
    T::watch(&shared.irr);
    let spawn = |body: fn(&Shared<T>, usize), call: usize| {
        let shared = Arc::clone(&shared);
        T::spawn(move || body(&shared, call))
    };
    let threads: Vec<T::Thread> = match case.target {
        Target::Polls => {
            let sender = |shared: &Shared<T>, call: usize| {
                T::watch(&shared.locked[call]);
                shared.call_sync(call);
            };
            (0..case.senders).map(|call| spawn(sender, call)).collect()
        }
        Target::GoesOffline { .. } => vec![
            spawn(
                |shared, call| {
                    if T::load(&shared.online) != 0 {
                        shared.call_async(call);
                    }
                },
                0,
            ),
            spawn(
                |shared, call| {
                    T::watch(&shared.online);
                    T::watch(&shared.locked[call]);
                    T::wait(&shared.online, false);
                    shared.call_sync(call);
                },
                1,
            ),
        ],
        Target::IsInterrupted => panic!("threads take no interrupts"),
    };
    match case.target {
        Target::Polls => {
            let mut run = 0;
            while run < case.senders {
                run += shared.take_interrupt();
            }
        }
        Target::GoesOffline { drains } => {
            T::store(&shared.online, 0);
            T::store(&shared.irr, 0);
            T::store(&shared.online, 1);
            if drains {
                shared.handler();
            }
            while T::load(&shared.locked[1]) != 0 {
                shared.take_interrupt();
            }
        }
        Target::IsInterrupted => {}
    }
    for thread in threads {
        T::join(thread);
    }
}
