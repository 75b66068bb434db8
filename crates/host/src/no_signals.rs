//! Where there are no signals: the same names as in `signals`. No machine starts that would use them.

use std::time::Duration;

use smpcall::machine::SendError;

use crate::context::Processor;

pub(crate) const AVAILABLE: bool = false;

pub(crate) struct Address;

pub(crate) fn install() {}

pub(crate) fn own_address() -> Address {
    Address
}

pub(crate) fn send_ring(_: &Address) -> Result<(), SendError> {
    Err(SendError::Unsupported)
}

pub(crate) fn send_nmi(_: &Address) -> Result<(), SendError> {
    Err(SendError::Unsupported)
}

pub(crate) fn sleep_while_nothing_is_pending(_: &Processor, _: Duration) {}
