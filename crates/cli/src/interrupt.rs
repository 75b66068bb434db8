//! Ctrl-C: the first one is a wish, the second one an order.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Whether somebody wants this process to end.
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on the first SIGINT or SIGTERM (batch systems send it before their patience ends) is noted; the next one
    /// ends the process as if nobody watched.
    pub(crate) fn watch() -> io::Result<Self> {
        let wanted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the signal that sets the flag finds it unset.
            flag::register_conditional_default(signal, Arc::clone(&wanted))?;
            flag::register(signal, Arc::clone(&wanted))?;
        }
        Ok(Self(wanted))
    }

    /// Whether the first one came.
    pub(crate) fn came(&self) -> bool {
        // Relaxed: only a wish, and nothing comes with it.
        self.0.load(Ordering::Relaxed)
    }
}
