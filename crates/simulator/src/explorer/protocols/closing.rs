//! Mailboxes that close while calls and posts come in.

use super::books::{FOR_EVER, SHORT};
use super::protocol;
use crate::explorer::scenario::Protocol;

pub(super) fn all() -> Vec<Protocol> {
    vec![
        protocol(
            "close",
            "a call to a CPU that goes offline: run or refused, and nothing is left (L1, L5)",
            2,
            |cpu| {
                cpu.calls(0, 1, FOR_EVER);
                cpu.closes();
            },
        ),
        protocol("close-posts", "two CPUs post the same node to one that goes offline (L1, L5)", 3, |cpu| {
            cpu.posts(0, 2);
            cpu.posts(1, 2);
            cpu.closes();
        }),
        protocol("close-post", "a post to a CPU that goes offline: run or refused (L1, L5)", 2, |cpu| {
            cpu.posts(0, 1);
            cpu.closes();
        }),
        protocol(
            "close-deadline",
            "a deadline, a claim and a closing mailbox race (L1, L3, L4, L5)",
            2,
            |cpu| {
                cpu.calls(0, 1, SHORT);
                cpu.closes();
            },
        ),
        protocol(
            "close-stale",
            "the mark of a given-up call, a second call, and a closing mailbox (L1, L5)",
            2,
            |cpu| {
                cpu.does(|books| {
                    books.call(0, 1, SHORT, false);
                    books.call(1, 1, FOR_EVER, false);
                });
                cpu.closes();
            },
        ),
        protocol(
            "close-polling",
            "a call with interrupts off to a CPU that goes offline (L1, L5)",
            2,
            |cpu| {
                cpu.calls_with_interrupts_off(0, 1, FOR_EVER);
                cpu.closes();
            },
        ),
        protocol("close-callers", "two calls to a CPU that goes offline (L1, L5)", 3, |cpu| {
            cpu.calls(0, 2, FOR_EVER);
            cpu.calls(1, 2, FOR_EVER);
            cpu.closes();
        }),
        protocol("close-many", "a call to two, one of which goes offline (L1, L5)", 3, |cpu| {
            cpu.calls_many(0, &[1, 2], FOR_EVER);
            cpu.closes();
            cpu.idles();
        }),
        protocol("close-open", "a call to a CPU that goes offline and comes back (L1, L2, L5)", 2, |cpu| {
            cpu.calls_and_says(0, 1);
            cpu.closes_and_opens();
        }),
        protocol("close-open-post", "a post to a CPU that goes offline and comes back (L1, L5)", 2, |cpu| {
            cpu.posts(0, 1);
            cpu.closes_and_opens();
        }),
    ]
}
