//! Inter-processor interrupts as POSIX signals, on Linux: which signals, their handlers, how they are sent.
//!
//! Two real-time signals that nobody else uses are taken at the first machine's start, and kept. The handlers call what
//! the protocol documents for interrupt and NMI handlers. It allocates nothing and takes no lock; all that it needs
//! of the host is the clock (`clock_gettime`), `pthread_kill`, `sched_yield`, and one thread-local pointer, which is
//! constant-initialised and has no destructor. The first two are async-signal-safe by signal-safety(7). The third is a
//! bare system call, and the last a load at a fixed offset from the thread's register, in a program that links
//! this crate statically, as Cargo does.

#![allow(
    clippy::redundant_closure_for_method_calls,
    reason = "a method of `Context<'_>` is one of one lifetime only"
)]

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicI32, AtomicU32};
use std::time::Duration;

use smpcall::machine::SendError;

use crate::context::{Processor, with_current};

pub(crate) const AVAILABLE: bool = true;

/// The numbers of the two signals; zero before `install`.
static RING: AtomicI32 = AtomicI32::new(0);
static NMI: AtomicI32 = AtomicI32::new(0);

/// A thread that is a CPU.
pub(crate) struct Address(libc::pthread_t);

/// Preserves `errno`, which belongs to the interrupted code.
struct Errno(c_int);

impl Errno {
    fn save() -> Self {
        // SAFETY: the pointer is to this thread's `errno`, which lives as long as the thread.
        Self(unsafe { *libc::__errno_location() })
    }
}

impl Drop for Errno {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = self.0 };
    }
}

extern "C" fn on_ring(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    let _errno = Errno::save();
    // A late signal finds that the thread is no CPU any more.
    with_current(|context| context.ring_signal());
}

extern "C" fn on_nmi(_: c_int, _: *mut libc::siginfo_t, ucontext: *mut c_void) {
    let _errno = Errno::save();
    // SAFETY: the kernel passes the interrupted context to a handler that was installed with `SA_SIGINFO`.
    let instruction_pointer = unsafe { instruction_pointer(ucontext) };
    with_current(|context| context.take_nmi(instruction_pointer));
}

/// # Safety
/// `ucontext` is the third argument of a signal handler.
#[cfg(target_arch = "x86_64")]
unsafe fn instruction_pointer(ucontext: *const c_void) -> u64 {
    // SAFETY: promised by the caller.
    let context = unsafe { &*ucontext.cast::<libc::ucontext_t>() };
    context.uc_mcontext.gregs[libc::REG_RIP as usize].cast_unsigned()
}

/// # Safety
/// `ucontext` is the third argument of a signal handler.
#[cfg(target_arch = "aarch64")]
unsafe fn instruction_pointer(ucontext: *const c_void) -> u64 {
    // SAFETY: promised by the caller.
    unsafe { (*ucontext.cast::<libc::ucontext_t>()).uc_mcontext.pc }
}

/// Unknown on this architecture.
///
/// # Safety
/// None is needed.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn instruction_pointer(_: *const c_void) -> u64 {
    0
}

type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// Installs the handlers, once for the process.
///
/// # Panics
/// If no two real-time signals are free.
pub(crate) fn install() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let mut free = (libc::SIGRTMIN()..=libc::SIGRTMAX()).filter(|&signal| is_free(signal));
        let (Some(ring), Some(nmi)) = (free.next(), free.next()) else {
            panic!("no two real-time signals are free for inter-processor interrupts");
        };
        // Each is masked while its handler runs: a signal that comes meanwhile is taken when the handler returns, in
        // one step with the return, so that a flood does not nest. The NMI masks rings too; rings do not mask the NMI.
        handle(nmi, on_nmi, &[ring]);
        handle(ring, on_ring, &[]);
        // Relaxed: threads that are started after this see it.
        RING.store(ring, Relaxed);
        NMI.store(nmi, Relaxed);
    });
}

/// Whether nobody has installed a handler for it.
fn is_free(signal: c_int) -> bool {
    // SAFETY: zeroes are a valid `sigaction` to be overwritten; a null pointer asks for the present action only.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, ptr::null(), &raw mut action) == 0 && action.sa_sigaction == libc::SIG_DFL
    }
}

fn handle(signal: c_int, handler: Handler, also_masked: &[c_int]) {
    // SAFETY: a `sigaction` that is filled in completely. The handler has the signature that `SA_SIGINFO` demands, and does
    // only what is async-signal-safe: see the module's documentation, and for the closures that it serves the promise
    // of `Config::by_signals`.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        // Programs need not expect their system calls to fail.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        libc::sigemptyset(&raw mut action.sa_mask);
        for &other in also_masked {
            libc::sigaddset(&raw mut action.sa_mask, other);
        }
        libc::sigaction(signal, &raw const action, ptr::null_mut())
    };
    assert_eq!(result, 0, "a real-time signal takes a handler");
}

/// The address of the current thread, with both signals unblocked.
pub(crate) fn own_address() -> Address {
    // SAFETY: a signal set that is initialised before it is used; unblocking signals that have handlers.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, RING.load(Relaxed));
        libc::sigaddset(&raw mut set, NMI.load(Relaxed));
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut());
        Address(libc::pthread_self())
    }
}

pub(crate) fn send_ring(target: &Address) -> Result<(), SendError> {
    send(target, RING.load(Relaxed))
}

pub(crate) fn send_nmi(target: &Address) -> Result<(), SendError> {
    send(target, NMI.load(Relaxed))
}

fn send(target: &Address, signal: c_int) -> Result<(), SendError> {
    let _errno = Errno::save();
    // SAFETY: the thread has not ended: CPUs leave together, when none of them sends any more (`run::leave`).
    match unsafe { libc::pthread_kill(target.0, signal) } {
        0 => Ok(()),
        // The user's limit of queued signals (EAGAIN): the controller takes no more at this moment.
        _ => Err(SendError::ControllerBusy),
    }
}

/// Sleeps as long as no interrupt is pending, `limit` at most. The kernel compares the word and goes to sleep in one step,
/// and a signal ends the sleep: one that comes before it has set its bit before that.
pub(crate) fn sleep_while_nothing_is_pending(processor: &Processor, limit: Duration) {
    let _errno = Errno::save();
    let limit = libc::timespec {
        tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    let word: *const AtomicU32 = &raw const processor.pending;
    // SAFETY: the word is alive and aligned, the time specification is alive; the kernel writes neither. It may return early
    // for any reason, which the caller expects.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word,
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            0_u32,
            &raw const limit,
            ptr::null::<u32>(),
            0_u32,
        );
    }
}
