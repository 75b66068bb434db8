//! Posts: asynchronous, without allocation. A node is handed over by its owner and comes back when it is run.
//!
//! Each mailbox has a list, newest first: a null pointer is closed, a sentinel is open and empty. The node's
//! state keeps it from being queued twice:
//!
//! | from | to | by |
//! |---|---|---|
//! | idle | pushing (by whom) | a poster, with interrupts off |
//! | pushing | listed (where) | the same poster, after the push |
//! | listed | listed | another poster: merged, and its writes published by this very step |
//! | pushing, listed | idle | the runner, before it runs it |
//! | pushing | idle | the poster, refused by a closed list |
//!
//! Nobody merges into a push under way, because a closed list may yet refuse it.

use core::fmt;
use core::marker::PhantomPinned;
use core::pin::Pin;
use core::ptr::NonNull;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::time::Duration;

use crate::door::POSTS;
use crate::mark::Marked;
use crate::serve::Here;
use crate::{Cpu, Deadline, InterruptsOff, Kernel, Mailbox, Pointer, PostError, PostRefusal, Word};
use smpcall_machine::{EventKind, Woken, wait};

const IDLE: u64 = 0;
const PUSHING: u64 = 1;
const LISTED: u64 = 2;
const PHASE: u64 = 0xff;

const fn listed_on(cpu: Cpu) -> u64 {
    LISTED | (cpu.number() as u64) << 8
}

/// Names the pusher, so that it cannot take another's push for its own afterwards.
const fn pushed_by(cpu: Cpu, in_nmi: bool) -> u64 {
    PUSHING | (in_nmi as u64) << 8 | (cpu.number() as u64) << 16
}

/// How long a poster waits for another one that is just pushing the same node.
const PUSH_WAIT: Duration = Duration::from_millis(1);

/// What the list sees of a post.
pub(crate) struct Link<K: Kernel> {
    next: Pointer<K, Link<K>>,
    state: Word<K>,
    /// Runs the post that this link is the first field of.
    run: unsafe fn(NonNull<Link<K>>),
}

/// The head of a closed list: zero, so that mailboxes in statics cost nothing.
pub(crate) const fn closed<K: Kernel>() -> *mut Link<K> {
    core::ptr::null_mut()
}

/// The head of an open and empty list, and the end of one: an address that no link has.
const fn empty<K: Kernel>() -> *mut Link<K> {
    core::ptr::without_provenance_mut(1)
}

/// The link at an address that may be `closed` or `empty`.
fn link_at<K: Kernel>(address: *mut Link<K>) -> Option<NonNull<Link<K>>> {
    NonNull::new(address).filter(|link| link.as_ptr() != empty())
}

/// What to do when a post is run. Implemented for the value inside it.
pub trait Deferred<K: Kernel>: Sized + 'static {
    /// How the post is handed over, and comes back: `&'static Post`, `Pin<&'static Post>`, or a `Box`.
    type Handle: Handover<K, Self>;

    /// Runs on the CPU that was posted to, with interrupts disabled. The post may be queued again from here.
    fn run(handle: Self::Handle);
}

/// A unit of work that can be queued on another CPU: a link and a value of the kernel's own.
#[repr(C)]
pub struct Post<K: Kernel, T> {
    link: Link<K>,
    value: T,
    pinned: PhantomPinned,
}

impl<K: Kernel, T: Deferred<K>> Post<K, T> {
    /// An idle post.
    pub const fn new(value: T) -> Self {
        Self {
            link: Link {
                next: Pointer::<K, _>::new(core::ptr::null_mut()),
                state: Word::<K>::new(IDLE),
                run: run_handle::<K, T>,
            },
            value,
            pinned: PhantomPinned,
        }
    }

    /// The value inside.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// Takes the value out of an idle post.
    pub fn into_value(self) -> T {
        self.value
    }
}

/// So that a refused post can be unwrapped whatever is in it.
impl<K: Kernel, T> fmt::Debug for Post<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Post").finish_non_exhaustive()
    }
}

/// An owned pointer to a post that can be given away and taken back.
///
/// # Safety
/// The pointer that `into_raw` returns stays valid and is not moved or freed until `from_raw` is called with it,
/// which happens on any CPU, at most once for each successful hand-over. It has provenance over the whole post.
pub unsafe trait Handover<K: Kernel, T>: Send + 'static {
    /// Whether other pointers to the post may exist while it is handed over, so that it can be posted again
    /// before it has run. Such a post must live for ever.
    const SHARED: bool;

    /// Gives the post away.
    fn into_raw(self) -> NonNull<Post<K, T>>;

    /// Takes it back.
    ///
    /// # Safety
    /// `raw` came from `into_raw` of this type and was not taken back since.
    unsafe fn from_raw(raw: NonNull<Post<K, T>>) -> Self;
}

// SAFETY: a shared reference for ever; `T: Sync` because several CPUs have one.
unsafe impl<K: Kernel, T: Sync + 'static> Handover<K, T> for &'static Post<K, T> {
    const SHARED: bool = true;

    fn into_raw(self) -> NonNull<Post<K, T>> {
        NonNull::from(self)
    }

    unsafe fn from_raw(raw: NonNull<Post<K, T>>) -> Self {
        // SAFETY: the pointer came from a `&'static`.
        unsafe { raw.as_ref() }
    }
}

// SAFETY: as for `&'static`, which this is.
unsafe impl<K: Kernel, T: Sync + 'static> Handover<K, T> for Pin<&'static Post<K, T>> {
    const SHARED: bool = true;

    fn into_raw(self) -> NonNull<Post<K, T>> {
        NonNull::from(self.get_ref())
    }

    unsafe fn from_raw(raw: NonNull<Post<K, T>>) -> Self {
        // SAFETY: the pointer came from a `&'static`, which never moves.
        Pin::static_ref(unsafe { raw.as_ref() })
    }
}

#[cfg(feature = "alloc")]
// SAFETY: a box owns its post; leaking it and making it again from the same pointer is what `Box` documents.
unsafe impl<K: Kernel, T: Send + 'static> Handover<K, T> for alloc::boxed::Box<Post<K, T>> {
    const SHARED: bool = false;

    fn into_raw(self) -> NonNull<Post<K, T>> {
        NonNull::from(alloc::boxed::Box::leak(self))
    }

    unsafe fn from_raw(raw: NonNull<Post<K, T>>) -> Self {
        // SAFETY: the pointer came from `Box::leak`, and is taken back once.
        unsafe { alloc::boxed::Box::from_raw(raw.as_ptr()) }
    }
}

/// # Safety
/// `link` is the first field of a `Post<K, T>` that was handed over and is taken back here.
unsafe fn run_handle<K: Kernel, T: Deferred<K>>(link: NonNull<Link<K>>) {
    // SAFETY: promised by the caller; `Post` is `repr(C)` with the link first, and the link's pointer was made
    // from a pointer to the whole post.
    T::run(unsafe { T::Handle::from_raw(link.cast()) });
}

/// Runs a post that was taken from a list.
///
/// # Safety
/// `link` was pushed by [`Here::post`] and taken from its list by the caller, who runs it once.
pub(crate) unsafe fn run<K: Kernel>(link: NonNull<Link<K>>) {
    // SAFETY: a queued post is alive until its handle is taken back, which happens below.
    let run = unsafe {
        let link = link.as_ref();
        // Idle before the run, so that a post made from now on is run again. Acquire: everything that those
        // who merged had written is visible. Release: to whoever queues it next, the list no longer holds it.
        link.state.swap(IDLE, AcqRel);
        link.run
    };
    // SAFETY: the link is the first field of its post, and nobody else runs it.
    unsafe { run(link) }
}

/// How a post was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Posted {
    /// It was queued.
    Queued,
    /// It was already queued on this CPU and has not begun to run: one run will do for both.
    Merged,
}

impl<K: Kernel> Here<K> {
    /// Queues a post. Interrupts are off; this may be an NMI handler.
    pub(crate) fn post<T: Deferred<K>>(
        &self,
        target: Cpu,
        handle: T::Handle,
    ) -> Result<Posted, PostError<T::Handle>> {
        let post = handle.into_raw();
        let result = match self.boxes.get(target) {
            // SAFETY: the post was just given away, so it is alive, and shared ones live for ever.
            Some(theirs) => unsafe { self.push(target, theirs, post.cast(), T::Handle::SHARED) },
            None => Err(PostRefusal::NoSuchCpu),
        };
        result.map_err(|reason| {
            // SAFETY: it was given away above and the list has not got it.
            PostError { handle: unsafe { T::Handle::from_raw(post) }, reason }
        })
    }

    /// # Safety
    /// The link's post is alive until it is on the list; if it is `shared`, for ever.
    #[inline(never)]
    unsafe fn push(
        &self,
        target: Cpu,
        theirs: &Mailbox<K>,
        link: NonNull<Link<K>>,
        shared: bool,
    ) -> Result<Posted, PostRefusal> {
        let pushing = pushed_by(self.me, K::in_nmi());
        // SAFETY: promised by the caller; not used after the push unless it is shared.
        let node = unsafe { link.as_ref() };
        loop {
            // Acquire: the last run's release; `next` is written below.
            match node.state.compare_exchange(IDLE, pushing, Acquire, Relaxed) {
                Ok(_) => break,
                Err(state) if state == listed_on(target) => {
                    // Release, and a write: the runner's swap reads from it, or this fails.
                    if node.state.compare_exchange(state, state, Release, Relaxed).is_ok() {
                        self.mine.counters().posts_merged.add(1);
                        self.boxes.trace(self.me, EventKind::PostMerged, Some(target), 0, 0);
                        return Ok(Posted::Merged);
                    }
                }
                Err(state) if state & PHASE == LISTED => {
                    return Err(PostRefusal::QueuedOn(Cpu::new((state >> 8) as u32)));
                }
                Err(state) => {
                    let deadline = Deadline::within::<K>(PUSH_WAIT);
                    if K::in_nmi() || wait::<K>(&[node.state.differs(!0, state)], deadline) == Woken::Deadline
                    {
                        return Err(PostRefusal::Contended);
                    }
                }
            }
        }
        let mut head = theirs.posts.0.load(Relaxed);
        loop {
            if head == closed() {
                node.state.store(IDLE, Release);
                return Err(PostRefusal::Offline);
            }
            node.next.store(head, Relaxed);
            // Release: node and value are visible to the runner that takes the list. Acquire: whoever finds the list
            // open marks the door after it was opened.
            match theirs.posts.0.compare_exchange(head, link.as_ptr(), AcqRel, Relaxed) {
                Ok(_) => break,
                Err(found) => head = found,
            }
        }
        if shared {
            // Fails if it has run in between. Release: merging posters read `listed` and owe us nothing more.
            let _ = node.state.compare_exchange(pushing, listed_on(target), Release, Relaxed);
        }
        self.mine.counters().posts_sent.add(1);
        self.boxes.trace(self.me, EventKind::PostQueued, Some(target), 0, 0);
        // Closed: the list was open, so the closing CPU finds the post when it closes the list.
        if theirs.mark_kind(POSTS) == Marked::Quiet {
            self.boxes.ring(self.me, target);
        }
        Ok(Posted::Queued)
    }
}

impl<K: Kernel> Mailbox<K> {
    /// Moves what is on the list to the end of the backlog, oldest first. By the owner, with interrupts off.
    pub(crate) fn take_posts(&self) {
        // Acquire: nodes and values as their posters left them.
        let newest = self.posts.0.swap(empty(), Acquire);
        self.append_reversed(newest);
    }

    /// Whether posts wait on the open list.
    pub(crate) fn has_posts(&self) -> bool {
        // Relaxed: for posts of a source whose call was seen with acquire ordering; those were listed before.
        link_at(self.posts.0.load(Relaxed)).is_some()
    }

    /// Closes the list and moves what was on it to the backlog.
    pub(crate) fn close_posts(&self) {
        // Acquire: as above.
        let newest = self.posts.0.swap(closed(), Acquire);
        self.append_reversed(newest);
    }

    /// Opens a closed list. The door is open already.
    pub(crate) fn open_posts(&self) {
        // Release: see `push`.
        self.posts.0.store(empty(), Release);
    }

    fn append_reversed(&self, newest: *mut Link<K>) {
        let mut oldest_first: *mut Link<K> = core::ptr::null_mut();
        let mut next = newest;
        while let Some(link) = link_at(next) {
            // SAFETY: a link that was on the list is alive, and this CPU's until it is run.
            let link = unsafe { link.as_ref() };
            let older = link.next.load(Relaxed);
            link.next.store(oldest_first, Relaxed);
            oldest_first = next;
            next = older;
        }
        // Behind what an outer pass has not run yet.
        let mut end = &self.backlog;
        while let Some(link) = NonNull::new(end.load(Relaxed)) {
            // SAFETY: as above.
            end = unsafe { &link.as_ref().next };
        }
        end.store(oldest_first, Relaxed);
    }

    /// Takes the oldest post of the backlog.
    pub(crate) fn next_post(&self) -> Option<NonNull<Link<K>>> {
        // Relaxed: the owner's own.
        let link = NonNull::new(self.backlog.load(Relaxed))?;
        // SAFETY: as in `append_reversed`.
        self.backlog.store(unsafe { link.as_ref() }.next.load(Relaxed), Relaxed);
        Some(link)
    }
}

/// Posts from this CPU, in any context.
pub(crate) fn post<K: Kernel, T: Deferred<K>>(
    target: Cpu,
    handle: T::Handle,
) -> Result<Posted, PostError<T::Handle>> {
    let pinned = InterruptsOff::<K>::new();
    match Here::new(pinned.cpu()) {
        Some(here) => here.post::<T>(target, handle),
        None => Err(PostError { handle, reason: PostRefusal::NoSuchCpu }),
    }
}
