//! Walks: who draws each decision of a stepped machine is asked where a CPU has come to its next access.
//!
//! Most decisions of a random execution are between plain steps, and more often than not it is the CPU that has made the
//! last one that makes the next. As long as nobody can do anything but step, the CPU asks by itself; if it is drawn it goes
//! straight on, and if not it suspends itself as always, and the controller knows already who was drawn. What is drawn is
//! the same.

use core::ptr::NonNull;

use crate::explored::Explored;
use crate::explorer::system::{Bits, Draw};
use crate::state::State;

/// A walk under way.
pub(crate) struct Walk {
    /// Valid as long as the walk lasts, and used by whoever runs: its controller, or a CPU for which it waits.
    draw: NonNull<Draw<'static>>,
    /// Who can step, as of the controller's last look.
    steps: u64,
    /// What was drawn last, if nobody has done it yet: a CPU, or the end of the walk.
    #[allow(clippy::option_option, reason = "nothing was drawn, or nobody")]
    drawn: Option<Option<u16>>,
    /// Whoever draws knows what is offered: it draws what was done before.
    known: bool,
    /// How many decisions were made in this execution, and the most that there can be.
    decided: u32,
    most: u32,
}

/// What the controller does next in a walk.
pub(crate) enum Stride {
    /// It lets this CPU make a step.
    Step(u16),
    /// Nothing: whoever draws wants no more.
    Enough,
    /// There was one decision too many, on this CPU.
    TooMany(u16),
}

impl Explored {
    /// Begins a walk in an execution in which so many decisions were made. `known`: whoever draws need not be shown who can
    /// step, because it draws what was drawn before.
    ///
    /// # Safety
    /// Until [`end_walk`](Self::end_walk), `draw` is valid, and nobody else uses it.
    pub(crate) unsafe fn begin_walk(&mut self, draw: &mut Draw<'_>, known: bool, decided: u32, most: u32) {
        let draw = NonNull::from(draw);
        // SAFETY: only the lifetime changes, which the caller has promised to keep.
        let draw = unsafe { core::mem::transmute::<NonNull<Draw<'_>>, NonNull<Draw<'static>>>(draw) };
        self.walk = Some(Walk { draw, steps: 0, drawn: None, known, decided, most });
    }

    /// Ends it: how many decisions were made by now.
    pub(crate) fn end_walk(&mut self) -> Option<u32> {
        self.walk.take().map(|walk| walk.decided)
    }

    /// The controller has looked: these CPUs can step, and nobody can do anything else.
    #[inline]
    pub(crate) fn stride(&mut self, steps: u64) -> Stride {
        let Some(walk) = &mut self.walk else { return Stride::Enough };
        walk.steps = steps;
        let drawn = match walk.drawn.take() {
            Some(drawn) => drawn,
            None => walk.draw(),
        };
        let Some(cpu) = drawn else { return Stride::Enough };
        walk.decided += 1;
        if walk.decided > walk.most { Stride::TooMany(cpu) } else { Stride::Step(cpu) }
    }
}

impl Walk {
    #[inline]
    fn draw(&mut self) -> Option<u16> {
        // SAFETY: the walk lasts, and nobody else runs.
        unsafe { self.draw.as_mut()(Bits(self.steps)) }
    }
}

impl State {
    /// The running CPU has come to an access that others notice: whether it is drawn, in a walk, and makes that step at
    /// once.
    #[inline]
    pub(crate) fn goes_straight_on(&mut self) -> bool {
        if self.is_in_trouble() {
            return false;
        }
        let running = self.running;
        let Some(walk) = self.explored.walk.as_mut().filter(|walk| walk.decided < walk.most) else {
            return false;
        };
        // What the controller has seen must still hold.
        if !walk.known && !self.cpus[running].can_only_step_on() {
            return false;
        }
        let drawn = walk.draw();
        if drawn.map(usize::from) != Some(running) {
            walk.drawn = Some(drawn);
            return false;
        }
        walk.decided += 1;
        self.explored.footprint.clear();
        let processor = &mut self.cpus[running];
        processor.hashed = None;
        if !processor.can_only_step_on() {
            processor.set_stale();
        }
        processor.shadow = false;
        true
    }
}
