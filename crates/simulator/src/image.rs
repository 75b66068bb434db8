//! What CPUs run: a kernel image, with its handlers, its mailboxes, and what a started CPU begins with.
//!
//! A machine is built with one image. A crash boots another one: the capture kernel. The CPU that boots it uses the new
//! image's handlers and mailboxes from then on; the others stay in the old one until they are reset and started.

use std::rc::Rc;

use smpcall_machine::Cpu;

use crate::interrupt::InterruptFrame;
use crate::kernel::{self, Hooks, KernelState};
use crate::machine::{RING_VECTOR, TIMER_VECTOR};
use crate::state::{Handler, State};

/// An image's number on its machine. The one that the machine was built with is [`BUILT`](Self::BUILT).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageId(pub(crate) usize);

impl ImageId {
    /// The image that the machine was built with.
    pub const BUILT: Self = Self(0);

    /// As a number: the argument of [`ImageBooted`](smpcall_machine::EventKind::ImageBooted).
    pub const fn number(self) -> usize {
        self.0
    }
}

/// What a started CPU of an image begins with.
pub(crate) type StartUp<'p> = Box<dyn Fn(Cpu, u8) + 'p>;

/// A kernel image to be [added](crate::World::add_image) to a machine.
///
/// It has no handlers at first, so that a vector that comes in makes the run panic: whoever boots it installs them, with
/// [`set_handler`](crate::program::set_handler) and [`serve`](crate::program::serve), or it has them from the beginning.
#[derive(Default)]
pub struct Image<'p> {
    pub(crate) handlers: Vec<(u8, Handler)>,
    pub(crate) nmi_handler: Option<Handler>,
    pub(crate) hooks: Option<Hooks>,
    pub(crate) entry: Option<Box<dyn Fn() + 'p>>,
    pub(crate) start_up: Option<StartUp<'p>>,
}

impl<'p> Image<'p> {
    /// An image that begins with `entry` on the CPU that [boots](crate::program::boot_kernel) it: on a fresh stack, with
    /// interrupts disabled and the APIC as it was. When it returns, the CPU idles, or parks if interrupts are still
    /// disabled.
    pub fn new(entry: impl Fn() + 'p) -> Self {
        Self { entry: Some(Box::new(entry)), ..Self::default() }
    }

    /// The handler of a vector, from the beginning.
    #[must_use]
    pub fn handler(mut self, vector: u8, handler: Handler) -> Self {
        self.handlers.push((vector, handler));
        self
    }

    /// The same handler for all vectors from 16 on: inert gates.
    #[must_use]
    pub fn handler_of_all(mut self, handler: Handler) -> Self {
        self.handlers.extend((16..=255).map(|vector| (vector, handler)));
        self
    }

    /// The handler of NMIs, from the beginning.
    #[must_use]
    pub fn nmi_handler(mut self, handler: Handler) -> Self {
        self.nmi_handler = Some(handler);
        self
    }

    /// Gives it mailboxes of its own, all closed, and these hooks. Its handlers serve the mailboxes once a program has
    /// said [`serve`](crate::program::serve).
    #[must_use]
    pub fn kernel(mut self, hooks: Hooks) -> Self {
        self.hooks = Some(hooks);
        self
    }

    /// What a CPU does that is started by a CPU of this image: see [`World::on_start_up`](crate::World::on_start_up).
    #[must_use]
    pub fn on_start_up(mut self, program: impl Fn(Cpu, u8) + 'p) -> Self {
        self.start_up = Some(Box::new(program));
        self
    }
}

/// What of an image belongs to the machine's state.
pub(crate) struct ImageState {
    /// The handlers, by vector.
    pub(crate) handlers: Box<[Option<Handler>; 256]>,
    pub(crate) nmi_handler: Option<Handler>,
    /// The mailboxes and hooks, if the image's programs call each other.
    pub(crate) kernel: Option<Rc<KernelState>>,
}

impl Default for ImageState {
    fn default() -> Self {
        Self { handlers: Box::new([None; 256]), nmi_handler: None, kernel: None }
    }
}

impl ImageState {
    /// Rings, ticks and NMIs are handled as the kernel's mailboxes need it.
    pub(crate) fn serve(&mut self) {
        self.handlers[RING_VECTOR as usize] = Some(kernel::handle_ring);
        self.handlers[TIMER_VECTOR as usize] = Some(kernel::handle_tick);
        self.nmi_handler = Some(kernel::handle_nmi);
    }
}

/// The timer's handler without a kernel that has other plans for it: a tick is only acknowledged.
pub(crate) fn acknowledge(mut frame: InterruptFrame) {
    frame.end_of_interrupt();
}

impl State {
    /// The image that the running CPU uses.
    pub(crate) fn image(&mut self) -> &mut ImageState {
        let image = self.cpu().image;
        &mut self.images[image]
    }

    /// Adds an image; its programs are the caller's to keep.
    pub(crate) fn add_image(&mut self, image: &Image<'_>) -> ImageId {
        let mut state = ImageState { nmi_handler: image.nmi_handler, ..ImageState::default() };
        for &(vector, handler) in &image.handlers {
            state.handlers[vector as usize] = Some(handler);
        }
        let cpus = self.cpus.len();
        state.kernel = image.hooks.map(|hooks| Rc::new(KernelState::new(cpus, Cpu::new(0), hooks)));
        self.images.push(state);
        ImageId(self.images.len() - 1)
    }
}
