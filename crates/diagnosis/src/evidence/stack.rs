//! Where a CPU was: the frames of its stack, innermost first.

use core::fmt;

use serde::Serialize;

/// Which of a CPU's stacks a frame lies on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StackKind {
    /// The stack of the task.
    Task,
    /// The stack on which interrupts and softirqs run.
    Interrupt,
    /// The stack of the NMI handler.
    Nmi,
    /// The stack of another exception: double fault, debug, machine check.
    Exception,
    /// It is not known.
    #[default]
    Unknown,
}

/// One frame of a back trace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Frame {
    /// The function without offset: `smp_call_function_single`; an address in hexadecimal if it has no name.
    pub function: String,
    /// How far into the function, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// The module that the function belongs to; none for the kernel proper.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// The address itself.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "crate::verdict::hexadecimal")]
    pub address: Option<u64>,
    /// On which stack it lies.
    pub stack: StackKind,
    /// Whether it is a guess: a return address that lay on the stack and that no unwinder vouches for.
    pub guess: bool,
    /// What it interrupted, if an interrupt or exception came in here: the registers of the *next* frame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interrupted: Option<Interrupted>,
}

/// The state that an interrupt or an exception saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Interrupted {
    /// Whether maskable interrupts were enabled there.
    pub interrupts_enabled: Option<bool>,
    /// Whether it was a user program.
    pub user_mode: Option<bool>,
}

impl Frame {
    /// A frame of which only the function is known.
    pub fn of(function: impl Into<String>) -> Self {
        Self { function: function.into(), ..Self::default() }
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.guess {
            f.write_str("? ")?;
        }
        f.write_str(&self.function)?;
        if let Some(offset) = self.offset {
            write!(f, "+{offset:#x}")?;
        }
        if let Some(module) = &self.module {
            write!(f, " [{module}]")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_written_as_kernels_write_it() {
        assert_eq!(Frame::of("schedule").to_string(), "schedule");
        let module = Some("lose_calls".into());
        let frame = Frame { offset: Some(0x12), module, guess: true, ..Frame::of("spin") };
        assert_eq!(frame.to_string(), "? spin+0x12 [lose_calls]");
    }
}
