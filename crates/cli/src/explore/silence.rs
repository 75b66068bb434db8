//! No word about panics that are findings.

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};

use crate::terminal;

/// Runs `explore` without the usual message for each panic: a panic of what is explored is a finding, and reported as
/// one. A panic of the explorer itself is said when it arrives here, and goes on.
pub(super) fn without_messages<R>(explore: impl FnOnce() -> R) -> R {
    let last = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&last);
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        // The panic of a thread, and that of who has waited for it.
        if kept.len() == 2 {
            kept.remove(0);
        }
        kept.push(panic.to_string());
    }));
    let result = panic::catch_unwind(AssertUnwindSafe(explore));
    panic::set_hook(usual);
    result.unwrap_or_else(|payload| {
        for message in last.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            terminal::complain(message);
        }
        panic::resume_unwind(payload)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_explorer_arrives_and_the_usual_hook_is_back() {
        let said = Arc::new(Mutex::new(0));
        let counted = Arc::clone(&said);
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |_| *counted.lock().expect("not poisoned") += 1));
        let caught = without_messages(|| panic::catch_unwind(|| panic!("a finding")).is_err());
        let before = *said.lock().expect("not poisoned");
        let arrived = panic::catch_unwind(|| without_messages(|| panic!("a bug")));
        let _ = panic::catch_unwind(|| panic!("after"));
        let after = *said.lock().expect("not poisoned");
        panic::set_hook(usual);
        assert!(caught && arrived.is_err());
        assert_eq!((before, after), (0, 1));
    }
}
