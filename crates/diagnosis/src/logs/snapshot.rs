//! What one dump in a log shows of one CPU: registers, back trace, task.

use crate::evidence::{Frame, Interrupted, StackKind, Task};

/// What has caused a dump. The later ones say more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    /// Its task, seen from another CPU: the registers are old, the frames are guesses.
    FromOutside,
    /// It printed where it is by itself: a panic, a report.
    Itself,
    /// It was found to hang.
    Stall,
    /// It was asked by an NMI, or the tool `crash` has found it like that.
    Asked,
}

/// So many frames are kept: the innermost ones.
const MOST_FRAMES: usize = 64;

/// What is known of one CPU at one moment.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) cpu: u32,
    pub(super) cause: Cause,
    pub(super) task: Option<Task>,
    pub(super) stack: Vec<Frame>,
    /// Where it idles, if it did and so was not asked further.
    pub(super) idle_at: Option<String>,
    /// Of the registers, not of what lies further out.
    pub(super) interrupts_enabled: Option<bool>,
    pub(super) user_mode: Option<bool>,
    /// The stack on which the next frame lies.
    current: StackKind,
    /// Whether the next flags are those of the context that the last frame interrupted.
    flags_of_interrupted: bool,
    truncated: bool,
    traced: bool,
}

impl Snapshot {
    pub(super) fn new(cpu: u32, cause: Cause) -> Self {
        Self {
            cpu,
            cause,
            task: None,
            stack: vec![],
            idle_at: None,
            interrupts_enabled: None,
            user_mode: None,
            current: StackKind::Unknown,
            flags_of_interrupted: false,
            truncated: false,
            traced: false,
        }
    }

    /// Whether it says anything.
    pub(super) fn is_telling(&self) -> bool {
        !self.stack.is_empty()
            || self.idle_at.is_some()
            || self.interrupts_enabled.is_some()
            || self.user_mode.is_some()
    }

    pub(super) fn stack_ended(&self) -> Option<String> {
        self.truncated.then(|| format!("only the innermost {MOST_FRAMES} frames were kept"))
    }

    /// A back trace begins. True if there was one already.
    pub(super) fn begin_trace(&mut self) -> bool {
        self.current = StackKind::Unknown;
        core::mem::replace(&mut self.traced, true)
    }

    pub(super) fn enter(&mut self, stack: StackKind) {
        self.current = stack;
    }

    /// The frames until here that no stack was named for lay on this one.
    pub(super) fn were_on(&mut self, stack: StackKind) {
        for frame in self.stack.iter_mut().rev().take_while(|frame| frame.stack == StackKind::Unknown) {
            frame.stack = stack;
        }
        self.current = StackKind::Unknown;
        // The frame of the exception itself belongs to the stack that was interrupted.
        if let Some(last) = self.stack.last_mut().filter(|_| self.flags_of_interrupted) {
            last.stack = StackKind::Unknown;
        }
        let outermost = self.stack.iter().rposition(|frame| frame.interrupted.is_some());
        if let Some(after) = outermost.and_then(|at| self.stack.get_mut(at + 1..)) {
            for frame in after {
                frame.stack = StackKind::Unknown;
            }
        }
    }

    pub(super) fn push(&mut self, frame: Frame) {
        let repeated = self.stack.last().is_some_and(|last| {
            last.function == frame.function
                && !last.guess
                && (last.offset == frame.offset || last.offset.is_none() || frame.offset.is_none())
                && last.interrupted.is_none()
        });
        if repeated {
            // The instruction pointer, and the first frame of the trace from there.
            return;
        }
        if self.stack.len() == MOST_FRAMES {
            self.truncated = true;
            return;
        }
        let guess = frame.guess || self.cause == Cause::FromOutside;
        self.stack.push(Frame { stack: self.current, guess, ..frame });
    }

    /// An instruction pointer: that of the CPU itself if no frame has come yet, else that of what was interrupted.
    pub(super) fn instruction_pointer(
        &mut self,
        frame: Option<Frame>,
        user_mode: Option<bool>,
        interrupts_enabled: Option<bool>,
    ) {
        if let Some(last) = self.stack.last_mut() {
            last.interrupted = Some(Interrupted { interrupts_enabled, user_mode });
            self.flags_of_interrupted = interrupts_enabled.is_none();
        } else {
            self.user_mode = user_mode.or(self.user_mode);
            self.interrupts_enabled = interrupts_enabled.or(self.interrupts_enabled);
            self.flags_of_interrupted = false;
        }
        if let Some(frame) = frame
            && self.stack.last().is_none_or(|last| last.interrupted.is_some())
        {
            self.stack_push_unless_full(frame);
        }
    }

    fn stack_push_unless_full(&mut self, frame: Frame) {
        if self.stack.len() < MOST_FRAMES {
            self.stack.push(Frame { stack: self.current, ..frame });
        } else {
            self.truncated = true;
        }
    }

    pub(super) fn flags(&mut self, enabled: bool) {
        let interrupted = self.stack.iter_mut().rev().find_map(|frame| frame.interrupted.as_mut());
        match interrupted {
            Some(interrupted) if self.flags_of_interrupted => {
                // Of two masks, one that is closed is enough.
                let both = interrupted.interrupts_enabled.unwrap_or(true) && enabled;
                interrupted.interrupts_enabled = Some(both);
                self.flags_of_interrupted = false;
            }
            Some(_) => {}
            None => self.interrupts_enabled = Some(self.interrupts_enabled.unwrap_or(true) && enabled),
        }
    }

    /// Whether interrupts were enabled in what the CPU was doing when it was asked.
    pub(super) fn effective_flags(&self) -> Option<bool> {
        if let Some(waiting) = crate::frames::interrupted_wait(&self.stack) {
            return waiting.interrupts_enabled;
        }
        let first = crate::frames::telling(&self.stack).next();
        let at = first.and_then(|first| self.stack.iter().position(|frame| core::ptr::eq(frame, first)));
        let came_in = at.and_then(|at| self.stack[..at].iter().rev().find_map(|frame| frame.interrupted));
        match came_in {
            Some(interrupted) => interrupted.interrupts_enabled,
            None => self.interrupts_enabled,
        }
    }
}
