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
    POOL.with_borrow_mut(Vec::pop)
        .unwrap_or_else(|| DefaultStack::new(STACK_BYTES).expect("no address space left for a CPU's stack"))
}

/// Gives a stack back, on which no frame is alive.
pub(crate) fn give_back(stack: DefaultStack) {
    POOL.with_borrow_mut(|pool| {
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
}
