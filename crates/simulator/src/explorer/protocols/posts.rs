//! Posts.

use core::time::Duration;

use smpcall::Cpu;
use smpcall_machine::{Deadline, wait};

use super::books::{FOR_EVER, SHORT};
use super::protocol;
use crate::explorer::scenario::Protocol;
use crate::kernel::Calls;
use crate::{SimCpuSet, SimMachine, program};

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
        // A pass that looked at the first call, ran the posts before it and found it withdrawn must not claim the second
        // one in its place: the post came in between.
        protocol(
            "post-reuse",
            "a given-up call, a post, a call from the same slot: in this order (L1)",
            2,
            |cpu| {
                let errand = cpu.errand;
                cpu.does(move |books| {
                    books.call(0, 1, SHORT, false);
                    books.post(0, 1, errand);
                    let result = Calls::for_ever().call(Cpu::new(1), || {
                        books.run(1);
                        books.in_order();
                    });
                    books.settle(1, result);
                });
                cpu.idles();
            },
        ),
        protocol("post-reuse-many", "as post-reuse, with calls to many (L1)", 2, |cpu| {
            let errand = cpu.errand;
            cpu.does(move |books| {
                books.call_many(0, &[1], Calls::within(Duration::from_micros(100)));
                books.post(0, 1, errand);
                let set: SimCpuSet = [Cpu::new(1)].into_iter().collect();
                let result = Calls::for_ever().call_many(&set, |_| {
                    books.run(1);
                    books.in_order();
                });
                books.settle(1, result.map_err(|_| smpcall::CallError::Offline));
            });
            cpu.idles();
        }),
    ]
}
