//! Suite `posts`: posts that are owned, that merge, that are made in interrupt and NMI handlers, and deferred work.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;

use smpcall::{Deferred, Handover, Post, Posted};
use smpcall_local_apic::Interrupt;
use smpcall_machine::{Counter, Cpu, Deadline, InterruptsOff, Machine, Predicate, wait};

use super::{Run, books};
use crate::cpu::MAX_CPUS;
use crate::machine::{Calls, Lab};
use crate::tasks::Step;
use crate::{apic, faults, hooks, memory, random, tasks};

/// A post that nobody waits for is found by a tick at the latest; machines with many CPUs tick slowly.
const LIMIT: Duration = Duration::from_secs(60);
/// How often a parcel is sent on.
const HOPS: u64 = 50;
/// Parcels of each CPU.
const PARCELS: usize = 4;

/// What is counted, each by the CPU on which it happens, in the context that it happens in.
struct Page {
    hops: Counter,
    delivered: Counter,
    lost_handles: Counter,
    out_of_order: Counter,
    last_in_order: Counter,
    from_nmi: Counter,
    merged_in_nmi: Counter,
    refused_in_nmi: Counter,
    nmi_posts_run: Counter,
    work_raised: Counter,
    work_run: Counter,
    work_in_wrong_context: Counter,
    calls_from_work_failed: Counter,
}

static PAGES: [Page; MAX_CPUS] = [const {
    Page {
        hops: Counter::new(0),
        delivered: Counter::new(0),
        lost_handles: Counter::new(0),
        out_of_order: Counter::new(0),
        last_in_order: Counter::new(0),
        from_nmi: Counter::new(0),
        merged_in_nmi: Counter::new(0),
        refused_in_nmi: Counter::new(0),
        nmi_posts_run: Counter::new(0),
        work_raised: Counter::new(0),
        work_run: Counter::new(0),
        work_in_wrong_context: Counter::new(0),
        calls_from_work_failed: Counter::new(0),
    }
}; MAX_CPUS];

fn page() -> &'static Page {
    &PAGES[Lab::current_cpu().index()]
}

fn total(counter: impl Fn(&Page) -> &Counter) -> u64 {
    PAGES.iter().map(|page| counter(page).get()).sum()
}

/// Waits until a total has come to what it should be; returns what it is.
fn await_total(counter: impl Fn(&Page) -> &Counter + Copy, expected: u64) -> u64 {
    let _ = wait::<Lab>(&Predicate(|| total(counter) >= expected), Deadline::within::<Lab>(LIMIT));
    total(counter)
}

/// A post with one owner: what a kernel's own `Box` would be.
struct Owned<T: 'static>(&'static mut Post<Lab, T>);

// SAFETY: an exclusive reference for ever: the post is neither moved nor freed, and the pointer is made from all of it. Taking
// it back makes the only reference again, because it was given away.
unsafe impl<T: Send + 'static> Handover<Lab, T> for Owned<T> {
    const SHARED: bool = false;

    fn into_raw(self) -> NonNull<Post<Lab, T>> {
        NonNull::from(self.0)
    }

    unsafe fn from_raw(mut raw: NonNull<Post<Lab, T>>) -> Self {
        // SAFETY: promised by the caller: it came from `into_raw`, once.
        Self(unsafe { raw.as_mut() })
    }
}

/// What goes from CPU to CPU.
struct Parcel {
    hops: AtomicU64,
}

impl Deferred<Lab> for Parcel {
    type Handle = Owned<Self>;

    fn run(handle: Owned<Self>) {
        // Relaxed: whoever runs it is its only owner, and the post orders what the last one did.
        let hops = &handle.0.value().hops;
        hops.store(hops.load(Relaxed) + 1, Relaxed);
        page().hops.add(1);
        if hops.load(Relaxed) == HOPS {
            page().delivered.add(1);
        } else {
            send_on(handle);
        }
    }
}

fn send_on(handle: Owned<Parcel>) {
    let target = Cpu::new(random::below(apic::count() as u64) as u32);
    if Calls::post::<Parcel>(target, handle).is_err() {
        page().lost_handles.add(1);
    }
}

/// Memory for ever, filled by `make`. By the boot CPU, between suites.
fn for_ever<T>(make: impl FnOnce() -> T) -> &'static mut T {
    let place = memory::allocate(size_of::<T>(), align_of::<T>()).cast::<T>();
    // SAFETY: memory of that size and alignment, which is nobody else's.
    unsafe {
        place.write(make());
        &mut *place
    }
}

fn parcels(run: &mut Run) {
    let sent = (apic::count() * PARCELS) as u64;
    for _ in 0..sent {
        send_on(Owned(for_ever(|| Post::new(Parcel { hops: AtomicU64::new(0) }))));
    }
    let delivered = await_total(|page| &page.delivered, sent);
    let (hops, lost) = (total(|page| &page.hops), total(|page| &page.lost_handles));
    run.check(
        "owned",
        delivered == sent && hops == sent * HOPS && lost == 0,
        format_args!("{delivered} of {sent} delivered after {hops} runs, {lost} refused"),
    );
}

/// A numbered post: its target runs those of one source in order.
struct Numbered(u64);

impl Deferred<Lab> for Numbered {
    type Handle = Owned<Self>;

    fn run(handle: Owned<Self>) {
        let (number, last) = (handle.0.value().0, &page().last_in_order);
        page().out_of_order.add(u64::from(number != last.get() + 1));
        last.set(number);
    }
}

fn in_order(run: &mut Run) {
    const POSTS: u64 = 500;
    let target = Cpu::new(apic::count() as u32 - 1);
    let mut refused = 0u64;
    for number in 1..=POSTS {
        let handle = Owned(for_ever(|| Post::new(Numbered(number))));
        refused += u64::from(Calls::post::<Numbered>(target, handle).is_err());
    }
    let last = &PAGES[target.index()].last_in_order;
    let _ = wait::<Lab>(&Predicate(|| last.get() == POSTS), Deadline::within::<Lab>(LIMIT));
    let wrong = total(|page| &page.out_of_order);
    run.check(
        "in_order",
        wrong == 0 && refused == 0 && last.get() == POSTS,
        format_args!("{} of {POSTS}, {wrong} out of order, {refused} refused", last.get()),
    );
}

/// What an NMI handler posts.
struct FromNmi;

impl Deferred<Lab> for FromNmi {
    type Handle = &'static Post<Lab, Self>;

    fn run(_: Self::Handle) {
        page().nmi_posts_run.add(1);
    }
}

static FROM_NMI: [Post<Lab, FromNmi>; MAX_CPUS] = [const { Post::new(FromNmi) }; MAX_CPUS];

/// In an NMI handler: posts to the next CPU.
fn nmi() {
    let me = Lab::current_cpu();
    let target = Cpu::new((me.number() + 1) % apic::count() as u32);
    match Calls::post::<FromNmi>(target, &FROM_NMI[me.index()]) {
        Ok(Posted::Queued) => page().from_nmi.add(1),
        Ok(Posted::Merged) => page().merged_in_nmi.add(1),
        Err(_) => page().refused_in_nmi.add(1),
    }
}

fn nmi_task(_: Cpu) -> Step {
    for _ in 0..100 {
        let target = Cpu::new(random::below(apic::count() as u64) as u32);
        // One that is merged with another at its target, or taken there while this CPU is interrupted itself.
        let _ = apic::send(target, Interrupt::Nmi);
        // What the NMIs interrupt: locks of the mailboxes' lists, as far as there are any.
        super::errands::post(target);
        crate::clock::delay(Duration::from_micros(20));
    }
    Step::Done
}

fn from_nmi(run: &mut Run) {
    books::begin();
    super::errands::begin();
    hooks::on_nmi(Some(nmi));
    let end = tasks::run_on(&books::everybody(), nmi_task, LIMIT, || total(|page| &page.from_nmi));
    if let Err(cpu) = end {
        run.hang("from_nmi", cpu);
    }
    super::calls::await_posts();
    hooks::on_nmi(None);
    let queued = total(|page| &page.from_nmi);
    let ran = await_total(|page| &page.nmi_posts_run, queued);
    run.count("posts_from_nmi", queued);
    run.count("posts_merged_in_nmi", total(|page| &page.merged_in_nmi));
    let refused = total(|page| &page.refused_in_nmi);
    run.check(
        "from_nmi",
        queued > 0 && ran == queued && refused == 0,
        format_args!("{queued} queued in NMI handlers, {ran} ran, {refused} refused"),
    );
    let (sum, unreconciled) = (books::sum(), super::errands::unreconciled());
    run.check(
        "under_nmis",
        sum.balances() && unreconciled == 0,
        format_args!(
            "{} queued and {} ran; {unreconciled} posts that were not run as they should",
            sum.queued, sum.posts_run
        ),
    );
}

/// Deferred work: with interrupts enabled, outside of NMI handlers, and it may call.
struct Work;

impl Deferred<Lab> for Work {
    type Handle = Owned<Self>;
    const IS_WORK: bool = true;

    fn run(_: Owned<Self>) {
        let wrong = !Lab::interrupts_enabled() || Lab::in_nmi();
        let target = Cpu::new(random::below(apic::count() as u64) as u32);
        let called = Calls::within(LIMIT).call(target, Lab::current_cpu);
        let pinned = InterruptsOff::<Lab>::new();
        page().work_in_wrong_context.add(u64::from(wrong));
        page().calls_from_work_failed.add(u64::from(called != Ok(target)));
        page().work_run.add(1);
        drop(pinned);
    }
}

fn work(run: &mut Run) {
    let raised = (apic::count() * 20) as u64;
    for number in 0..raised {
        let target = Cpu::new((number % apic::count() as u64) as u32);
        let handle = Owned(for_ever(|| Post::new(Work)));
        page().work_raised.add(u64::from(Calls::post::<Work>(target, handle).is_ok()));
    }
    let ran = await_total(|page| &page.work_run, raised);
    let wrong = total(|page| &page.work_in_wrong_context);
    let failed = total(|page| &page.calls_from_work_failed);
    run.check(
        "deferred_work",
        ran == raised && wrong == 0 && failed == 0 && total(|page| &page.work_raised) == raised,
        format_args!("{ran} of {raised} ran, {wrong} in the wrong context, {failed} of their calls failed"),
    );
}

/// A post that is made again before it has run.
struct Repeated;

static REPEATED_RUNS: AtomicU64 = AtomicU64::new(0);

impl Deferred<Lab> for Repeated {
    type Handle = &'static Post<Lab, Self>;

    fn run(_: Self::Handle) {
        // Relaxed: a count.
        REPEATED_RUNS.fetch_add(1, Relaxed);
    }
}

/// One after the other to one target that does not take them: all but the first merge.
fn merging(run: &mut Run) {
    static POST: Post<Lab, Repeated> = Post::new(Repeated);
    let guard = InterruptsOff::<Lab>::new();
    let me = guard.cpu();
    let before = REPEATED_RUNS.load(Relaxed);
    // To this CPU, which cannot take its own ring before the guard is gone.
    let first = Calls::post::<Repeated>(me, &POST);
    let merged = (0..9).filter(|_| matches!(Calls::post::<Repeated>(me, &POST), Ok(Posted::Merged))).count();
    drop(guard);
    let _ = wait::<Lab>(&Predicate(|| REPEATED_RUNS.load(Relaxed) > before), Deadline::within::<Lab>(LIMIT));
    let ran = REPEATED_RUNS.load(Relaxed) - before;
    run.check(
        "merging",
        matches!(first, Ok(Posted::Queued)) && merged == 9 && ran == 1,
        format_args!("of 10 posts {merged} merged with the first, and {ran} ran"),
    );
}

pub(super) fn run(run: &mut Run) {
    for page in &PAGES {
        let Page { hops, delivered, lost_handles, out_of_order, last_in_order, from_nmi, .. } = page;
        let Page { merged_in_nmi, refused_in_nmi, nmi_posts_run, work_raised, work_run, .. } = page;
        let Page { work_in_wrong_context, calls_from_work_failed, .. } = page;
        for counter in [hops, delivered, lost_handles, out_of_order, last_in_order, from_nmi, merged_in_nmi] {
            counter.set(0);
        }
        for counter in [
            refused_in_nmi,
            nmi_posts_run,
            work_raised,
            work_run,
            work_in_wrong_context,
            calls_from_work_failed,
        ] {
            counter.set(0);
        }
    }
    faults::set(run.options.dropped_per_million, None);
    parcels(run);
    in_order(run);
    merging(run);
    from_nmi(run);
    work(run);
    faults::set(0, None);
}
