//! The bits of the door word: what a sender and a target tell each other in one atomic step.
//!
//! | bit | name | set by | cleared by |
//! |---|---|---|---|
//! | 0 | `OPEN` | the owner, opening | the owner, closing |
//! | 1 | `ATTENDED` | the owner: it will look again by itself | the owner, if no mark is set |
//! | 2 | `POSTS` | senders of posts | a pass |
//! | 3 | `RESCHEDULE` | senders | a pass |
//! | 16..64 | group bits | callers | a pass |
//!
//! Zero means closed, so that mailboxes in statics cost nothing before their CPU is up.

/// The mailbox accepts calls and posts.
pub(crate) const OPEN: u64 = 1 << 0;
/// The owner is in a pass or polls: it looks at the door again before it leaves, so nobody needs to ring.
pub(crate) const ATTENDED: u64 = 1 << 1;
/// The post list may hold something.
pub(crate) const POSTS: u64 = 1 << 2;
/// The scheduler of this CPU should look at its queue.
pub(crate) const RESCHEDULE: u64 = 1 << 3;
/// The first group bit.
pub(crate) const FIRST_GROUP: u32 = 16;
/// How many group bits there are.
pub(crate) const GROUPS: usize = 48;
/// All group bits.
pub(crate) const ALL_GROUPS: u64 = !0 << FIRST_GROUP;
/// Everything that asks the owner to do something.
pub(crate) const MARKS: u64 = ALL_GROUPS | POSTS | RESCHEDULE;

/// The bit of a group.
#[inline(always)]
pub(crate) const fn group_bit(group: usize) -> u64 {
    1 << (FIRST_GROUP as usize + group)
}
