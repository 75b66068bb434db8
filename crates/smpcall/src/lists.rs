//! The lists of posts that a CPU has accepted, and that none is lost from them wherever the CPU stops.
//!
//! A CPU that is declared dead has stopped between any two instructions, and what only its registers knew is gone. So
//! at each of its steps every post that it has accepted and not begun can be reached from one of its words:
//!
//! | word | leads to | by |
//! |---|---|---|
//! | `posts` | the list that is pushed to, newest first | `older` |
//! | `taken` | what is just being moved from there to the backlog, newest first | `older` |
//! | `backlog` | what was moved, oldest first | `newer` |
//! | `work` | deferred work, a ring | `older`: see [`work`](crate::work) |
//! | `beginning` | the post that is just taken from the backlog or the work, to be run | - |
//!
//! Between these a post is moved in steps of one store each, first into the new place, then out of the old one:
//!
//! | step | then it can be reached from | who looks later sees that it is so, because |
//! |---|---|---|
//! | `taken` = the newest on the list | `posts`, `taken` | the list holds `taken` |
//! | `posts` = empty or closed | `taken` | the list does not hold `taken`, nor does the backlog |
//! | each is given its `newer`, then the backlog's end leads to the oldest | `taken`, `backlog` | the backlog holds `taken` |
//! | `taken` = null | `backlog` | `taken` is null |
//! | the ring's newest leads to the backlog's oldest | `backlog`, `work` | both have the same oldest |
//! | the ring's newest is that one | `backlog`, `work` | the ring's newest is the backlog's oldest |
//! | it leaves the backlog | `work` | it is not the backlog's oldest |
//! | `beginning` = the oldest | its list, `beginning` | it is the oldest of its list |
//! | its state says that it is beginning | its list, `beginning` | as above |
//! | it leaves its list | `beginning` | it is in no list, and its state says that it is beginning |
//! | its state is idle: it has begun | none, or wherever it was posted to again | its state says something else |
//! | `beginning` = null | as above | `beginning` is null |
//!
//! What is in `taken` is not run before `taken` is null, and what is in `beginning` is not posted again before it has
//! begun, so no answer in the last column can be stale. All stores that have to stay in this order have release ordering:
//! on x86 that costs nothing but the compiler's freedom to reorder them.

use core::ptr::NonNull;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::mailbox::Own;
use crate::post::{Link, Taken, closed, empty, is_beginning, is_work, link_at, note_beginning};
use crate::serve::Here;
use crate::{Cpu, InterruptsOff, Kernel, Mailbox, Pointer};
use smpcall_machine::EventKind;

/// By the owner with interrupts off; or, once that CPU runs no more, by whoever has taken it down.
impl<K: Kernel> Mailbox<K> {
    /// Moves what is on the list to the end of the backlog, oldest first.
    pub(crate) fn take_posts(&self) {
        self.move_posts(empty());
    }

    /// Closes the list and moves what was on it to the backlog.
    pub(crate) fn close_posts(&self) {
        self.move_posts(closed());
    }

    /// Opens a closed list. The door is open already.
    pub(crate) fn open_posts(&self) {
        // Release: see `push`.
        self.posts.0.store(empty(), Release);
    }

    /// Whether posts wait on the open list.
    pub(crate) fn has_posts(&self) -> bool {
        // Relaxed: for posts of a source whose call was seen with acquire ordering; those were listed before.
        link_at(self.posts.0.load(Relaxed)).is_some()
    }

    fn move_posts(&self, leave: *mut Link<K>) {
        // Relaxed: the exchange decides.
        let mut newest = self.posts.0.load(Relaxed);
        // Each further round is somebody else's post that was accepted.
        while newest != leave && newest != closed() {
            if link_at(newest).is_some() {
                // Relaxed: the exchange has release ordering.
                self.taken.store(newest, Relaxed);
            }
            // Acquire: nodes and values as their posters left them. Release: `taken` is written.
            match self.posts.0.compare_exchange(newest, leave, AcqRel, Relaxed) {
                Ok(_) => return self.append_taken(),
                Err(found) => newest = found,
            }
        }
    }

    /// Appends what is in `taken` to the backlog. Whoever begins this anew does the same again.
    fn append_taken(&self) {
        let mut newer: *mut Link<K> = core::ptr::null_mut();
        // Relaxed, here and below: the owner's own.
        let mut next = self.taken.load(Relaxed);
        while let Some(link) = link_at(next) {
            // SAFETY: a link that was on the list is alive, and this CPU's until it is run.
            let link = unsafe { link.as_ref() };
            link.newer.store(newer, Relaxed);
            newer = next;
            next = link.older.load(Relaxed);
        }
        // Behind what an outer pass has not run yet.
        let mut end = &self.backlog;
        while let Some(link) = NonNull::new(end.load(Relaxed)) {
            // SAFETY: as above.
            end = unsafe { &link.as_ref().newer };
        }
        end.store(newer, Release);
        self.taken.store(core::ptr::null_mut(), Release);
    }

    /// The oldest post of the backlog.
    pub(crate) fn oldest_post(&self) -> Option<NonNull<Link<K>>> {
        // Relaxed: the owner's own.
        NonNull::new(self.backlog.load(Relaxed))
    }

    /// Takes the oldest post from the backlog.
    pub(crate) fn drop_oldest_post(&self) {
        if let Some(oldest) = self.oldest_post() {
            // SAFETY: what is in the backlog is alive.
            let newer = unsafe { oldest.as_ref() }.newer.load(Relaxed);
            self.backlog.store(newer, Release);
        }
    }

    /// Begins a post: `me` will run it.
    ///
    /// # Safety
    /// Called by `me` with interrupts off; `link` is the oldest of a list, and `drop_oldest` takes it from there.
    #[inline]
    pub(crate) unsafe fn begin(
        &self,
        link: NonNull<Link<K>>,
        me: Cpu,
        drop_oldest: impl FnOnce(&Self),
    ) -> Taken<K> {
        // Relaxed: the exchange that follows has release ordering.
        self.beginning.store(link.as_ptr(), Relaxed);
        // SAFETY: it is listed here, and this is its CPU.
        unsafe { note_beginning(link, me) };
        drop_oldest(self);
        // SAFETY: it is on no list any more, and only this CPU takes from this CPU's lists.
        let taken = unsafe { Taken::new(link) };
        self.own.0.posts_under_way.add(1);
        // Before its handle is given back, from where it may be freed.
        self.beginning.store(core::ptr::null_mut(), Release);
        taken
    }

    /// Finishes what a CPU was doing with its lists when it stopped. Returns the post that it had taken from them and not
    /// begun: it is the oldest of its kind.
    ///
    /// # Safety
    /// This is the mailbox of `from`, which runs no more, and its last accesses happen before this.
    unsafe fn recover(&self, from: Cpu) -> Option<NonNull<Link<K>>> {
        // Relaxed, here and below: its CPU's own.
        let taken = self.taken.load(Relaxed);
        if link_at(taken).is_some() {
            // Acquire: nodes as their posters left them. What is pushed meanwhile comes before these.
            let listed = self.posts.0.load(Acquire);
            // SAFETY: what is on a list of the CPU, or was just taken from there, is alive.
            let found = unsafe {
                leads_to(listed, taken, |link| &link.older)
                    || leads_to(self.backlog.load(Relaxed), taken, |link| &link.newer)
            };
            if found {
                self.taken.store(core::ptr::null_mut(), Relaxed);
            } else {
                self.append_taken();
            }
        }
        let newest_work = self.work.load(Relaxed);
        if let Some(oldest) = self.oldest_post()
            && (newest_work == oldest.as_ptr() || self.oldest_work() == Some(oldest))
        {
            // It was just being listed as work.
            self.work.store(oldest.as_ptr(), Relaxed);
            self.drop_oldest_post();
        }
        let link = NonNull::new(self.beginning.load(Relaxed))?;
        self.beginning.store(core::ptr::null_mut(), Relaxed);
        let listed = self.oldest_post() == Some(link) || self.oldest_work() == Some(link);
        // SAFETY: the CPU named it as the one that it begins.
        (!listed && unsafe { is_beginning(link, from) }).then_some(link)
    }
}

/// Whether a link is on the list that begins there.
///
/// # Safety
/// What is on the list is alive.
unsafe fn leads_to<K: Kernel>(
    first: *mut Link<K>,
    link: *mut Link<K>,
    next: impl Fn(&Link<K>) -> &Pointer<K, Link<K>>,
) -> bool {
    let mut at = first;
    while let Some(listed) = link_at(at) {
        if at == link {
            return true;
        }
        // SAFETY: promised by the caller. Relaxed: the list's owner has written it, or its poster before the push.
        at = next(unsafe { listed.as_ref() }).load(Relaxed);
    }
    false
}

/// Takes over what `from` has accepted and not begun to run, and [abandons](crate::Deferred::abandoned) it to this CPU, oldest
/// first: posts with interrupts disabled, then deferred work, with interrupts as they are. Returns how many there were.
///
/// # Safety
/// `from` runs no more until this has returned - it is parked, or fenced - and its last accesses happen before this.
/// Nobody else does the same for it. Its list is its own or closed: whoever still pushes is refused.
pub(crate) unsafe fn abandon_posts<K: Kernel>(from: Cpu) -> usize {
    let Some(theirs) = K::mailboxes().get(from) else { return 0 };
    let mut abandoned = 0;
    let mut abandon = |here: Here<K>, link| {
        abandoned += 1;
        here.mine.counters().posts_abandoned.add(1);
        here.boxes().trace(here.me, EventKind::PostAbandoned, Some(from), 0, 0);
        // SAFETY: the link was on the lists of a CPU that runs no more, and was taken from there by this one.
        unsafe { Taken::new(link) }
    };
    let pinned = InterruptsOff::<K>::new();
    let Some(here) = Here::<K>::new(pinned.cpu()) else { return 0 };
    // SAFETY: promised by the caller.
    let mut beginning = unsafe { theirs.recover(from) };
    theirs.close_posts();
    // SAFETY: it is a queued post that nobody else takes.
    if let Some(link) = beginning.take_if(|link| !unsafe { is_work(*link) }) {
        abandon(here, link).abandon(from);
    }
    while let Some(link) = theirs.oldest_post() {
        // SAFETY: as above.
        if unsafe { is_work(link) } {
            // SAFETY: `from` does not use its list of work.
            unsafe { theirs.list_work() };
        } else {
            theirs.drop_oldest_post();
            abandon(here, link).abandon(from);
        }
    }
    drop(pinned);
    loop {
        let pinned = InterruptsOff::<K>::new();
        let Some(here) = Here::<K>::new(pinned.cpu()) else { break };
        let link = beginning.take().or_else(|| {
            let oldest = theirs.oldest_work();
            theirs.drop_oldest_work();
            oldest
        });
        let Some(link) = link else { break };
        let taken = abandon(here, link);
        drop(pinned);
        taken.abandon(from);
    }
    abandoned
}

/// A post runs that was begun. Dropped, it has ended.
pub(crate) struct UnderWay(pub(crate) &'static Own);

impl Drop for UnderWay {
    #[inline(always)]
    fn drop(&mut self) {
        let under_way = &self.0.posts_under_way;
        under_way.set(under_way.get() - 1);
    }
}
