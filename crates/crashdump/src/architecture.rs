//! Whose memory it is.

use std::fmt;

/// The architecture of the machine that a source describes.
///
/// Physical memory and notes are read for all of them. Virtual memory is read for x86-64 only; the others are known by
/// name, so that they can be refused by name, and so that there is a place where they can be added: a variant of
/// [`Translation`](crate::translate::Translation), and the layout of their registers in
/// [`registers`](crate::registers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// x86-64.
    X86_64,
    /// 64-bit ARM.
    Arm64,
    /// IBM Z.
    S390x,
    /// Another, by its number in an ELF header.
    Elf(u16),
    /// Another, by what its kernel calls it (`uname -m`).
    Named([u8; 16]),
}

impl Architecture {
    /// By the number in an ELF header. Source: System V gABI, `e_machine`.
    pub const fn from_elf(machine: u16) -> Self {
        match machine {
            62 => Self::X86_64,
            183 => Self::Arm64,
            22 => Self::S390x,
            other => Self::Elf(other),
        }
    }

    /// By what its kernel calls it.
    pub fn from_name(name: &[u8]) -> Self {
        match name {
            b"x86_64" => Self::X86_64,
            b"aarch64" => Self::Arm64,
            b"s390x" => Self::S390x,
            other => {
                let mut kept = [0; 16];
                let length = other.len().min(kept.len());
                kept[..length].copy_from_slice(&other[..length]);
                Self::Named(kept)
            }
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::X86_64 => f.write_str("x86-64"),
            Self::Arm64 => f.write_str("arm64"),
            Self::S390x => f.write_str("s390x"),
            Self::Elf(machine) => write!(f, "ELF machine {machine}"),
            Self::Named(name) => {
                let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
                write!(f, "machine \"{}\"", name[..end].escape_ascii())
            }
        }
    }
}
