//! Stacks for simulated CPUs, kept for the next world: mapping one costs several hundred times what reusing
//! one costs.

use std::cell::RefCell;

use corosensei::stack::DefaultStack;

/// Bytes of address space for one CPU's stack, below which lies a guard page: an overflow is a segmentation
/// fault and never silent. Only touched pages take memory. A panic that prints its back trace needs most of
/// it; a program and its nested handlers need a few KiB.
const STACK_BYTES: usize = 256 * 1024;

/// More stacks than this are unmapped when they are given back: the largest machine's worth.
const KEPT: usize = crate::config::MAX_CPUS;

thread_local! {
    static POOL: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
}

/// A stack from the pool, or a new one.
///
/// # Panics
/// If the address space is used up.
pub(crate) fn take() -> DefaultStack {
    let pooled = POOL.try_with(|pool| pool.borrow_mut().pop()).ok().flatten();
    pooled.unwrap_or_else(|| DefaultStack::new(STACK_BYTES).expect("no address space left for a CPU's stack"))
}

/// Gives a stack back, on which no frame is alive.
pub(crate) fn give_back(stack: DefaultStack) {
    // A machine that is dropped while its thread ends may find the pool gone: then the stack is unmapped.
    let _ = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        if pool.len() < KEPT {
            pool.push(stack);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use corosensei::stack::Stack;

    #[test]
    fn a_stack_that_was_given_back_is_used_again() {
        let stack = take();
        let base = stack.base();
        give_back(stack);
        assert_eq!(take().base(), base);
    }

    /// Takes a stack when its thread begins and gives it back when its thread ends.
    #[derive(Default)]
    struct Borrower(std::cell::Cell<Option<DefaultStack>>);

    impl Drop for Borrower {
        fn drop(&mut self) {
            give_back(self.0.take().unwrap_or_else(take));
        }
    }

    thread_local! {
        static BEFORE_THE_POOL: Borrower = Borrower::default();
        static AFTER_THE_POOL: Borrower = Borrower::default();
    }

    #[test]
    fn a_thread_that_ends_may_give_stacks_back_after_its_pool_is_gone() {
        // Thread-locals end in an order that is not ours to choose: one is on either side of the pool.
        let thread = std::thread::spawn(|| {
            BEFORE_THE_POOL.with(|borrower| borrower.0.set(None));
            let stack = take();
            BEFORE_THE_POOL.with(|borrower| borrower.0.set(Some(stack)));
            AFTER_THE_POOL.with(|borrower| borrower.0.set(Some(take())));
        });
        thread.join().expect("the thread ends without a panic");
    }
}
