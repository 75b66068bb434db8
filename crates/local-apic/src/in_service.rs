//! Which interrupts are to be ended: the right to write one end of interrupt (report 003).

use core::marker::PhantomData;

use crate::Vector;

/// The right, and the duty, to write the end of interrupt for one vector that is in service on this CPU.
///
/// The local APIC ends whatever it has in service with the highest priority; it is not told which. So an end of
/// interrupt too many ends an interrupt whose handler still runs, and one too few blocks all vectors of the class
/// and below. This can be neither copied nor sent to another CPU, and
/// [`end_of_interrupt`](crate::LocalApic::end_of_interrupt) consumes it:
///
/// ```compile_fail,E0382
/// # use smpcall_local_apic::{Access, InService, LocalApic};
/// fn ended_twice<M: smpcall_machine::Machine, A: Access>(apic: &LocalApic<M, A>, token: InService) {
///     apic.end_of_interrupt(token);
///     apic.end_of_interrupt(token);
/// }
/// ```
///
/// Two kinds of handlers have none, because the APIC never puts what they are entered for in service: that of an `ExtINT`,
/// which is ended at the 8259s and gets a [`PicInService`](crate::PicInService) from them, and that of the spurious vector,
/// which ends nothing. The one does not pass for the other:
///
/// ```compile_fail,E0308
/// # use smpcall_local_apic::{Access, LocalApic, PicInService};
/// fn ended_at_the_wrong_place<M: smpcall_machine::Machine, A: Access>(apic: &LocalApic<M, A>, token: PicInService) {
///     apic.end_of_interrupt(token);
/// }
/// ```
#[derive(Debug)]
#[must_use = "until the end of interrupt is written, the APIC withholds this vector and all of lower priority"]
pub struct InService {
    vector: Vector,
    this_cpu_only: PhantomData<*mut ()>,
}

impl InService {
    /// The token of the handler that was entered for `vector`.
    ///
    /// # Safety
    /// 1. The running CPU entered the calling handler by taking `vector` from its local APIC, which put it in service:
    ///    not for an `ExtINT` (a legacy PIC's interrupt), an NMI, SMI, INIT or start-up, nor for the spurious vector,
    ///    none of which is ever in service; nor by a software interrupt instruction.
    /// 2. It is called once per entry.
    ///
    /// Otherwise another handler's in-service bit is cleared and that handler can be entered again while it runs, which
    /// breaks what it holds exclusively. Source: SDM, "Signaling Interrupt Servicing Completion"; report 003.
    pub const unsafe fn entered(vector: Vector) -> Self {
        Self { vector, this_cpu_only: PhantomData }
    }

    /// The vector in service.
    pub const fn vector(&self) -> Vector {
        self.vector
    }

    /// Uses the token up.
    #[expect(clippy::unused_self, reason = "taking it is the point: it cannot be used again")]
    pub(crate) const fn spend(self) {}
}
