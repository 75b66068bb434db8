//! Posts.

use smpcall::Cpu;
use smpcall_machine::{Deadline, wait};

use super::books::FOR_EVER;
use super::protocol;
use crate::explorer::scenario::Protocol;
use crate::kernel::Calls;
use crate::{SimMachine, program};

pub(super) fn all() -> Vec<Protocol> {
    vec![
        protocol(
            "post",
            "two CPUs post the same node; a lost ring is found by the tick (L1, L2)",
            3,
            |cpu| {
                cpu.posts(0, 2);
                cpu.posts(1, 2);
                // When both posters have spoken, a tick: it finds what a lost ring has left.
                cpu.does(|books| {
                    for said in &books.said {
                        wait::<SimMachine>(&[said.equals(!0, 1)], Deadline::NEVER);
                    }
                    Calls::tick();
                });
            },
        ),
        protocol("post-handler", "a closure posts to its caller (L1, L2)", 2, |cpu| {
            let errand = cpu.errand;
            cpu.does(move |books| {
                let result = Calls::for_ever().call(Cpu::new(1), || {
                    books.run(0);
                    books.post(1, 0, errand);
                });
                books.settle(0, result);
                program::forget_but(0);
                Calls::tick();
            });
            cpu.idles();
        }),
        protocol("post-call", "a post, then a call of the same CPU: in this order (L1)", 2, |cpu| {
            let errand = cpu.errand;
            cpu.does(move |books| {
                books.post(0, 1, errand);
                books.call(0, 1, FOR_EVER, false);
                books.in_order();
            });
            cpu.idles();
        }),
    ]
}
