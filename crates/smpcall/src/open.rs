//! Opening and closing a mailbox: what makes a CPU one that can be called.

use core::sync::atomic::Ordering::{Relaxed, Release, SeqCst};

use crate::door::{ATTENDED, MARKS, OPEN, POSTS};
use crate::serve::Here;
use crate::{CrossCall, InterruptsOff, Kernel};
use smpcall_machine::EventKind;

impl<K: Kernel> CrossCall<K> {
    /// Opens the mailbox of this CPU: calls and posts are accepted from now on. Called by the CPU itself while
    /// it starts, with its interrupt handlers in place. Nothing happens if it is open.
    pub fn open() {
        let pinned = InterruptsOff::<K>::new();
        let Some(here) = Here::<K>::new(pinned.cpu()) else { return };
        if here.mine.door.0.load(Relaxed) & OPEN != 0 {
            return;
        }
        // The door first, so that whoever finds the list open finds the door open too. A store, because bits
        // that refused senders have left behind mean nothing. SeqCst: one of the accesses of `mark`.
        here.mine.door.0.store(OPEN, SeqCst);
        here.mine.open_posts();
        here.boxes().trace(here.me, EventKind::MailboxOpened, None, 0, 0);
    }

    /// Closes the mailbox of this CPU and empties it: what was accepted is run now, and nothing is accepted
    /// afterwards. Called by the CPU itself, with interrupts disabled, as its last act before it goes offline.
    ///
    /// # Panics
    /// From inside a served closure or post, or a wait of this CPU with interrupts off: what such a context has taken
    /// would run on an offline CPU. From an NMI handler.
    pub fn close(guard: &mut InterruptsOff<K>) {
        let _ = guard;
        let pinned = InterruptsOff::<K>::new();
        let Some(here) = Here::<K>::new(pinned.cpu()) else { return };
        assert!(
            !K::in_nmi(),
            "a mailbox cannot be closed from an NMI handler: it may have interrupted a pass"
        );
        let attended = here.mine.door.0.load(Relaxed) & ATTENDED != 0;
        assert!(
            here.mine.own.0.depth.get() == 0 && !attended,
            "a mailbox cannot be closed from inside a closure that it serves"
        );
        // SeqCst: one of the accesses of `mark`; every sender's later step sees it closed.
        let taken = here.mine.door.0.swap(0, SeqCst);
        if taken & OPEN == 0 {
            return;
        }
        here.mine.close_posts();
        // Whoever was marked before the swap is in `taken`; who comes later is refused and withdraws, or loses
        // that race and waits for what runs here. No budget ends this pass.
        // The posts are in the backlog already.
        here.run_marked(taken & MARKS & !POSTS, u32::MAX);
        here.boxes().trace(here.me, EventKind::MailboxClosed, None, 0, 0);
    }

    /// Declares that this CPU can take an NMI (its handler and stack are in place), or no longer can.
    pub fn declare_nmi(can_take: bool) {
        let pinned = InterruptsOff::<K>::new();
        if let Some(here) = Here::<K>::new(pinned.cpu()) {
            // Release: the handler that was set up before is in place for whoever sees this.
            here.mine.takes_nmi.store(u64::from(can_take), Release);
        }
    }
}
