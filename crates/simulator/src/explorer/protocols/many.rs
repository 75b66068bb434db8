//! Calls to many CPUs.

use super::books::{FOR_EVER, SHORT};
use super::protocol;
use crate::explorer::scenario::Protocol;

pub(super) fn all() -> Vec<Protocol> {
    vec![
        protocol("many", "a call to two (L1, L2)", 3, |cpu| {
            cpu.calls_many(0, &[1, 2], FOR_EVER);
            cpu.idles();
            cpu.idles();
        }),
        protocol(
            "many-deadline",
            "a call to two whose deadline races with their claims (L1, L3, L4)",
            3,
            |cpu| {
                cpu.calls_many(0, &[1, 2], SHORT);
                cpu.idles();
                cpu.idles();
            },
        ),
        protocol("many-crossing", "a call to two crosses a call between them (L1, L2, L6)", 3, |cpu| {
            cpu.calls_many(0, &[1, 2], FOR_EVER);
            cpu.calls(2, 2, FOR_EVER);
            cpu.idles();
        }),
        protocol("many-mutual", "two calls to many cross, interrupts off (L1, L2, L6)", 2, |cpu| {
            cpu.calls_many_with_interrupts_off(0, &[1]);
            cpu.calls_many_with_interrupts_off(1, &[0]);
        }),
    ]
}
