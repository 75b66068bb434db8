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
//! | pushing, listed | beginning (where) | the runner, before it takes it from its lists |
//! | beginning | beginning | another poster: merged, as above |
//! | beginning | idle | the runner, before it runs it |
//! | pushing | idle | the poster, refused by a closed list |
//!
//! Nobody merges into a push under way, because a closed list may yet refuse it. What the runner does with its lists is
//! in [`lists`](crate::lists).
//!
//! A post is run by the pass that finds it, with interrupts disabled, or, if it is [deferred work](crate::work), after
//! the interrupt. Until then it stays listed: posting it again merges. What a CPU that will not run any more leaves
//! behind is [abandoned](Deferred::abandoned) to the CPU that has taken it down.
//!
//! # Caveats
//! * A CPU that is fenced between the beginning and the end of a post takes the post with it: nobody is handed it. A shared
//!   one can be posted again; an owned one leaks. [`posts_torn`](crate::Counters::posts_torn) of the CPU that declared it
//!   dead counts them.
//! * A CPU that is fenced in the middle of a push, before the node is on a list, leaves a shared node taken: whoever posts
//!   it from then on is told [`Contended`](PostRefusal::Contended), after a millisecond each time. Nothing was accepted and
//!   nothing is lost, but this node is of no use any more. (The dead CPU alone knew which node it was.)

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
const BEGINNING: u64 = 3;
const PHASE: u64 = 0xff;

const fn listed_on(cpu: Cpu) -> u64 {
    LISTED | (cpu.number() as u64) << 8
}

/// Still on a list, or named by its CPU as the one that it takes from there: nobody else makes a node this.
const fn beginning_on(cpu: Cpu) -> u64 {
    BEGINNING | (cpu.number() as u64) << 8
}

/// Names the pusher, so that it cannot take another's push for its own afterwards.
const fn pushed_by(cpu: Cpu, in_nmi: bool) -> u64 {
    PUSHING | (in_nmi as u64) << 8 | (cpu.number() as u64) << 16
}

/// How long a poster waits for another one that is just pushing the same node.
const PUSH_WAIT: Duration = Duration::from_millis(1);

/// What the list sees of a post.
pub(crate) struct Link<K: Kernel> {
    /// The one that was pushed before it, on the list of posts; of deferred work, the one that was listed after it. The
    /// list's owner's, once it is pushed.
    pub(crate) older: Pointer<K, Link<K>>,
    /// The one that follows it in the backlog. The backlog's owner's.
    pub(crate) newer: Pointer<K, Link<K>>,
    state: Word<K>,
    /// Ends the post that this link is the first field of.
    end: unsafe fn(NonNull<Link<K>>, End),
    /// See [`Deferred::IS_WORK`].
    is_work: bool,
}

/// How a queued post ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It runs on the CPU that was posted to.
    Run,
    /// That CPU, this one, will not run it.
    Abandoned(Cpu),
}

/// The head of a closed list: zero, so that mailboxes in statics cost nothing.
pub(crate) const fn closed<K: Kernel>() -> *mut Link<K> {
    core::ptr::null_mut()
}

/// The head of an open and empty list, and the end of one: an address that no link has.
pub(crate) const fn empty<K: Kernel>() -> *mut Link<K> {
    core::ptr::without_provenance_mut(1)
}

/// The link at an address that may be `closed` or `empty`.
pub(crate) fn link_at<K: Kernel>(address: *mut Link<K>) -> Option<NonNull<Link<K>>> {
    NonNull::new(address).filter(|link| link.as_ptr() != empty())
}

/// What to do when a post is run. Implemented for the value inside it.
pub trait Deferred<K: Kernel>: Sized + 'static {
    /// How the post is handed over, and comes back: `&'static Post`, `Pin<&'static Post>`, or a `Box`.
    type Handle: Handover<K, Self>;

    /// Whether it is deferred work: run not by the interrupt that finds it but after it, with interrupts enabled, by
    /// [`exit_interrupt`](crate::CrossCall::exit_interrupt) or [`run_work`](crate::CrossCall::run_work).
    const IS_WORK: bool = false;

    /// Runs on the CPU that was posted to: with interrupts disabled, or, as deferred work, enabled. The post may be
    /// queued again from here.
    fn run(handle: Self::Handle);

    /// Called instead of [`run`](Self::run), once, if `cpu`, which was posted to, went offline or died before it began
    /// to run it. Runs on the CPU that has taken it down, with interrupts as for `run`. The post may be queued again
    /// from here; by default it is run here.
    fn abandoned(handle: Self::Handle, cpu: Cpu) {
        let _ = cpu;
        Self::run(handle);
    }
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
                older: Pointer::<K, _>::new(core::ptr::null_mut()),
                newer: Pointer::<K, _>::new(core::ptr::null_mut()),
                state: Word::<K>::new(IDLE),
                end: end_handle::<K, T>,
                is_work: T::IS_WORK,
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
unsafe fn end_handle<K: Kernel, T: Deferred<K>>(link: NonNull<Link<K>>, how: End) {
    // SAFETY: promised by the caller; `Post` is `repr(C)` with the link first, and the link's pointer was made
    // from a pointer to the whole post.
    let handle = unsafe { T::Handle::from_raw(link.cast()) };
    match how {
        End::Run => T::run(handle),
        End::Abandoned(cpu) => T::abandoned(handle, cpu),
    }
}

/// A post that was taken from its list, and is about to end.
pub(crate) struct Taken<K: Kernel> {
    link: NonNull<Link<K>>,
    end: unsafe fn(NonNull<Link<K>>, End),
}

impl<K: Kernel> Taken<K> {
    /// # Safety
    /// `link` was pushed by [`Here::post`] and taken from its lists by the caller, who makes this once.
    pub(crate) unsafe fn new(link: NonNull<Link<K>>) -> Self {
        // SAFETY: a queued post is alive until its handle is taken back, which is up to the caller from now on.
        let node = unsafe { link.as_ref() };
        // Idle before the run, so that a post made from now on is run again. Acquire: everything that those
        // who merged had written is visible. Release: to whoever queues it next, the list no longer holds it.
        node.state.swap(IDLE, AcqRel);
        Self { link, end: node.end }
    }

    /// Runs it here.
    pub(crate) fn run(self) {
        // SAFETY: the link is the first field of its post, and who made this has promised that nobody else ends it.
        unsafe { (self.end)(self.link, End::Run) }
    }

    /// Hands it over: `cpu` will not run it.
    pub(crate) fn abandon(self, cpu: Cpu) {
        // SAFETY: as in `run`.
        unsafe { (self.end)(self.link, End::Abandoned(cpu)) }
    }
}

/// Whether a queued post is deferred work.
///
/// # Safety
/// The link was taken from its list by the caller and has not ended.
pub(crate) unsafe fn is_work<K: Kernel>(link: NonNull<Link<K>>) -> bool {
    // SAFETY: promised by the caller: so it is alive. The field never changes.
    unsafe { link.as_ref() }.is_work
}

/// Says that `cpu` is about to begin a post that it has listed. From then on nobody but `cpu`, or who has fenced it, makes
/// its state another.
///
/// # Safety
/// As for [`is_work`]; called by `cpu`.
pub(crate) unsafe fn note_beginning<K: Kernel>(link: NonNull<Link<K>>, cpu: Cpu) {
    // SAFETY: promised by the caller: so it is alive. Release: `cpu` has named it before, and takes it from its list
    // afterwards. An exchange, so that the end acquires what those who merged before this have written.
    unsafe { link.as_ref() }.state.swap(beginning_on(cpu), Release);
}

/// Whether `cpu` was about to begin it and has not.
///
/// # Safety
/// The link is named by `cpu`, which runs no more, as the one that it begins: so its post was not given back.
pub(crate) unsafe fn is_beginning<K: Kernel>(link: NonNull<Link<K>>, cpu: Cpu) -> bool {
    // SAFETY: promised by the caller: so it is alive. Relaxed: if it is so, nobody else changes it.
    unsafe { link.as_ref() }.state.load(Relaxed) == beginning_on(cpu)
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
        let result = match self.boxes().get(target) {
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
            // Acquire: the last run's release; `older` is written below.
            match node.state.compare_exchange(IDLE, pushing, Acquire, Relaxed) {
                Ok(_) => break,
                Err(state) if state == listed_on(target) || state == beginning_on(target) => {
                    // Release, and a write: the runner's swap reads from it, or this fails.
                    if node.state.compare_exchange(state, state, Release, Relaxed).is_ok() {
                        self.mine.counters().posts_merged.add(1);
                        self.boxes().trace(self.me, EventKind::PostMerged, Some(target), 0, 0);
                        return Ok(Posted::Merged);
                    }
                }
                Err(state) if matches!(state & PHASE, LISTED | BEGINNING) => {
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
            node.older.store(head, Relaxed);
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
        let now = K::now();
        self.trace_at(now, EventKind::PostQueued, Some(target), 0, 0);
        // Closed: the list was open, so the closing CPU finds the post when it closes the list.
        if theirs.mark_kind(POSTS) == Marked::Quiet {
            self.ring_at(now, target);
        }
        Ok(Posted::Queued)
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
