//! Mailboxes in a static, sized at compile time.

use crate::door::GROUPS;
use crate::slot::LEVELS;
use crate::{EventSlot, Kernel, Mailbox, Mailboxes, Word};

/// How many leaf words each CPU needs on a machine of this many CPUs: none up to 48.
pub const fn leaf_words(cpus: usize) -> usize {
    // Whole cache lines, so that the leaves of two targets never share one.
    if cpus <= GROUPS { 0 } else { cpus.div_ceil(64).next_multiple_of(8) }
}

/// How many words a bitmap of this many CPUs has.
pub const fn set_words(cpus: usize) -> usize {
    cpus.div_ceil(64)
}

#[repr(C, align(64))]
struct Aligned<T>(T);

/// The memory of [`Mailboxes`] for a static. Made by [`mailboxes!`](crate::mailboxes), which computes the sizes.
pub struct Storage<
    K: Kernel,
    const CPUS: usize,
    const LEAF_WORDS: usize,
    const SET_WORDS: usize,
    const EVENTS: usize,
> {
    cpus: [Mailbox<K>; CPUS],
    leaves: Aligned<[[Word<K>; LEAF_WORDS]; CPUS]>,
    #[expect(clippy::type_complexity, reason = "claim and panic bits, per level, per CPU")]
    claims: Aligned<[[[[Word<K>; SET_WORDS]; 2]; LEVELS]; CPUS]>,
    events: Aligned<[[EventSlot; EVENTS]; CPUS]>,
}

impl<K: Kernel, const CPUS: usize, const LEAF_WORDS: usize, const SET_WORDS: usize, const EVENTS: usize>
    Storage<K, CPUS, LEAF_WORDS, SET_WORDS, EVENTS>
{
    /// Closed and empty mailboxes: all zero bytes.
    #[expect(clippy::new_without_default, reason = "made in statics only; megabytes on a stack otherwise")]
    pub const fn new() -> Self {
        Self {
            cpus: [const { Mailbox::NEW }; CPUS],
            leaves: Aligned([const { [const { Word::<K>::new(0) }; LEAF_WORDS] }; CPUS]),
            claims: Aligned(
                [const { [const { [const { [const { Word::<K>::new(0) }; SET_WORDS] }; 2] }; LEVELS] }; CPUS],
            ),
            events: Aligned([const { [const { EventSlot::NEW }; EVENTS] }; CPUS]),
        }
    }

    /// The mailboxes that live in this memory.
    pub const fn mailboxes(&'static self) -> Mailboxes<K> {
        Mailboxes::from_parts(
            &self.cpus,
            self.leaves.0.as_flattened(),
            self.claims.0.as_flattened().as_flattened().as_flattened(),
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
                { $crate::set_words($cpus) },
                $events,
            > = $crate::Storage::new();
            STORAGE.mailboxes()
        };
    };
}
