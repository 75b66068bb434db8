//! Where an address is: in which function, how far into it, of which module.

use std::fmt;

/// A place in code or data, as kernels print it: `function+0x12/0x80 [module]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The symbol that begins there or before.
    pub name: String,
    /// How far behind its beginning, in bytes.
    pub offset: u64,
    /// How many bytes there are up to the next symbol; 0 if that is not known.
    pub size: u64,
    /// The module that it is in; none for the kernel's image.
    pub module: Option<String>,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:#x}/{:#x}", self.name, self.offset, self.size)?;
        match &self.module {
            Some(module) => write!(f, " [{module}]"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_printed_as_kernels_do() {
        let mut location = Location { name: "vfs_write".into(), offset: 0xfb, size: 0x450, module: None };
        assert_eq!(location.to_string(), "vfs_write+0xfb/0x450");
        location.module = Some("xfs".into());
        assert_eq!(location.to_string(), "vfs_write+0xfb/0x450 [xfs]");
    }
}
