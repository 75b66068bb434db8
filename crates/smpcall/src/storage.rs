//! Mailboxes in a static, sized at compile time.

use crate::door::GROUPS;
use crate::slot::{LEVELS, TARGETS_PER_WORD};
use crate::{EventSlot, Kernel, Mailbox, Mailboxes, Word};

/// How many leaf words each CPU needs on a machine of this many CPUs: none up to 48.
pub const fn leaf_words(cpus: usize) -> usize {
    // Whole cache lines, so that the leaves of two targets never share one.
    if cpus <= GROUPS { 0 } else { cpus.div_ceil(64).next_multiple_of(8) }
}

/// How many words hold two bits for each of this many CPUs: the targets of a call to many, or their outcomes.
pub const fn target_words(cpus: usize) -> usize {
    cpus.div_ceil(TARGETS_PER_WORD as usize)
}

#[repr(C, align(64))]
struct Aligned<T>(T);

/// The memory of [`Mailboxes`] for a static. Made by [`mailboxes!`](crate::mailboxes), which computes the sizes.
pub struct Storage<
    K: Kernel,
    const CPUS: usize,
    const LEAF_WORDS: usize,
    const TARGET_WORDS: usize,
    const EVENTS: usize,
> {
    cpus: [Mailbox<K>; CPUS],
    leaves: Aligned<[[Word<K>; LEAF_WORDS]; CPUS]>,
    #[expect(clippy::type_complexity, reason = "targets and outcomes, per level, per CPU")]
    targets: Aligned<[[[[Word<K>; TARGET_WORDS]; 2]; LEVELS]; CPUS]>,
    events: Aligned<[[EventSlot; EVENTS]; CPUS]>,
}

impl<K: Kernel, const CPUS: usize, const LEAF_WORDS: usize, const TARGET_WORDS: usize, const EVENTS: usize>
    Storage<K, CPUS, LEAF_WORDS, TARGET_WORDS, EVENTS>
{
    /// Closed and empty mailboxes: all zero bytes.
    #[expect(clippy::new_without_default, reason = "made in statics only; megabytes on a stack otherwise")]
    pub const fn new() -> Self {
        Self {
            cpus: [const { Mailbox::NEW }; CPUS],
            leaves: Aligned([const { [const { Word::<K>::new(0) }; LEAF_WORDS] }; CPUS]),
            targets: Aligned(
                [const { [const { [const { [const { Word::<K>::new(0) }; TARGET_WORDS] }; 2] }; LEVELS] };
                    CPUS],
            ),
            events: Aligned([const { [const { EventSlot::NEW }; EVENTS] }; CPUS]),
        }
    }

    /// The mailboxes that live in this memory.
    pub const fn mailboxes(&'static self) -> Mailboxes<K> {
        Mailboxes::from_parts(
            &self.cpus,
            self.leaves.0.as_flattened(),
            self.targets.0.as_flattened().as_flattened().as_flattened(),
            self.events.0.as_flattened(),
        )
    }
}

/// A static with the mailboxes of a machine: `mailboxes! { static MAILBOXES: MyKernel = 64 CPUs, 128 events }`.
///
/// The events are per CPU, a power of two up to 16,384, or 0 for no event ring. Both are literals, constants or blocks.
#[macro_export]
macro_rules! mailboxes {
    ($(#[$attribute:meta])* $visibility:vis static $name:ident: $kernel:ty = $cpus:tt CPUs, $events:tt events) => {
        $(#[$attribute])*
        $visibility static $name: $crate::Mailboxes<$kernel> = {
            static STORAGE: $crate::Storage<
                $kernel,
                $cpus,
                { $crate::leaf_words($cpus) },
                { $crate::target_words($cpus) },
                $events,
            > = $crate::Storage::new();
            STORAGE.mailboxes()
        };
    };
}
