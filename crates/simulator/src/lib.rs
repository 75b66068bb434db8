//! A simulated multiprocessor: local APICs to the letter of the manuals, CPUs that run ordinary Rust code, faults
//! as data, and virtual time.
//!
//! * [`World`]: the machine in virtual time, deterministic by seed; [`Config`], [`CostModel`], [`faults`].
//! * [`Stepper`]: the machine operation by operation, for explorers.
//! * [`SimMachine`], [`SimMemory`]: the machine as the code that runs on it sees it; [`program`]: what programs can do
//!   besides.
//! * [`explorer`]: every schedule of a small machine; [`campaign`]: random ones of a big machine.
//! * [`kernel`]: what makes `smpcall` run on it.
//! * [`apic`]: the local APIC alone.
//! * [`Trace`]: what happened; [`timeline`]: the picture of it; [`perfetto`]: it as a file for Perfetto.
//!
//! A program is a closure that runs on one simulated CPU, on a stack of its own. Whenever it accesses shared memory,
//! its interrupt flag or its APIC, it may be suspended before, and interrupts may be taken there. What one CPU does
//! between two such operations is atomic.

pub mod apic;
mod bus;
pub mod campaign;
mod clock;
mod config;
mod coroutine;
mod cost;
mod devices;
mod explored;
pub mod explorer;
pub mod faults;
mod hash;
mod hotplug;
mod image;
mod interconnect;
mod interrupt;
pub mod kernel;
mod life;
mod machine;
mod memory;
pub mod mutant;
mod names;
mod operation;
pub mod perfetto;
mod places;
mod processor;
pub mod program;
mod queue;
mod races;
mod registers;
mod stack_pool;
mod state;
mod stepped;
pub mod stopping;
pub mod timeline;
mod trace;
mod waiting;
mod walk;
mod world;

pub use config::{Config, ConfigError, MAX_CPUS};
pub use cost::CostModel;
pub use devices::{SimIoApic, SimPorts};
pub use image::{Image, ImageId};
pub use interrupt::InterruptFrame;
pub use machine::{
    RING_VECTOR, SPURIOUS_VECTOR, SimAccess, SimCpuSet, SimMachine, SimTopology, TIMER_VECTOR, local_apic,
    send_interrupt, send_interrupt_to,
};
pub use memory::SimMemory;
pub use names::Names;
pub use operation::Operation;
pub use processor::{Activity, Counters, CpuReport, Source, WaitReport};
pub use state::Handler;
pub use stepped::{Pending, Program, Stepper};
pub use trace::{Trace, TraceError};
pub use world::{RunEnd, World};
