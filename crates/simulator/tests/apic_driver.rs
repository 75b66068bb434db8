//! The driver on the model: who receives what, how many commands that takes, and what happens when the controller
//! is busy; the other registers; the hand-over to a capture kernel.

#[path = "apic_driver/bus.rs"]
mod bus;
#[path = "apic_driver/enabling.rs"]
mod enabling;
#[path = "apic_driver/hand_over.rs"]
mod hand_over;
#[path = "apic_driver/policies.rs"]
mod policies;
#[path = "apic_driver/registers.rs"]
mod registers;
#[path = "apic_driver/routings.rs"]
mod routings;
#[path = "apic_driver/sending.rs"]
mod sending;
#[path = "apic_driver/starting.rs"]
mod starting;
#[path = "apic_driver/waiting.rs"]
mod waiting;
