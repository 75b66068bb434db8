//! The emulator: where it is, which version, and what that version can do.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::StartError;
use crate::options::ApicMode;

/// Names the emulator to use instead of the one in `PATH`.
pub const QEMU_VARIABLE: &str = "SMPCALL_QEMU";

const QEMU: &str = "qemu-system-x86_64";

/// A version as in `10.0.2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second.
    pub minor: u32,
    /// The third, 0 if there is none.
    pub micro: u32,
}

impl Version {
    /// A version of these numbers.
    pub const fn new(major: u32, minor: u32, micro: u32) -> Self {
        Self { major, minor, micro }
    }

    /// The version in what `qemu-system-x86_64 --version` prints.
    pub fn parse(text: &str) -> Option<Self> {
        let (_, after) = text.lines().next()?.split_once("version ")?;
        let digits = after.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        let mut numbers = digits.split('.').map(|number| number.parse().ok());
        let (major, minor) = (numbers.next()??, numbers.next()??);
        Some(Self { major, minor, micro: numbers.next().flatten().unwrap_or(0) })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// From this version on QEMU emulates x2APIC without KVM, and with it more than 255 CPUs (its release notes, "x86").
const X2APIC_SINCE: Version = Version::new(9, 0, 0);

/// The most CPUs that the machine `q35` of these versions has: what `-smp 5000` is answered with (10.0.2: 4096; 7.2: 288).
const MANY_CPUS_SINCE: Version = Version::new(9, 0, 0);

/// QEMU, found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qemu {
    /// The program.
    pub program: PathBuf,
    /// Its version.
    pub version: Version,
}

impl Qemu {
    /// Finds it: what `SMPCALL_QEMU` names, or else what is in `PATH`.
    ///
    /// # Errors
    /// There is none, or it does not say its version.
    pub fn find() -> Result<Self, StartError> {
        let named = env::var_os(QEMU_VARIABLE).filter(|name| !name.is_empty());
        Self::at(named.as_deref())
    }

    fn at(named: Option<&OsStr>) -> Result<Self, StartError> {
        let program = PathBuf::from(named.unwrap_or(QEMU.as_ref()));
        let output = match Command::new(&program).arg("--version").output() {
            Ok(output) => output,
            Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => {
                return Err(StartError::NoQemu);
            }
            Err(error) => return Err(StartError::QemuDoesNotStart { program, error }),
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let version = Version::parse(&text).ok_or(StartError::NotQemu { program: program.clone() })?;
        Ok(Self { program, version })
    }

    /// Why this version cannot be such a machine, if it cannot. With KVM the kernel has the APICs, and no version
    /// lacks x2APIC.
    pub fn lacks(&self, cpus: u32, apic: ApicMode, kvm: bool) -> Option<String> {
        let version = self.version;
        if !kvm && apic == ApicMode::X2Apic && version < X2APIC_SINCE {
            return Some(format!("QEMU {version} emulates no x2APIC; {X2APIC_SINCE} and later do"));
        }
        if version < MANY_CPUS_SINCE && cpus > 255 {
            return Some(format!(
                "QEMU {version} emulates at most 255 CPUs; {MANY_CPUS_SINCE} and later more"
            ));
        }
        None
    }

    /// The mode of the APICs if nobody asks for one: x2APIC where this version has it.
    pub fn preferred_mode(&self, kvm: bool) -> ApicMode {
        if kvm || self.version >= X2APIC_SINCE { ApicMode::X2Apic } else { ApicMode::XApic }
    }
}

/// Whether a program of this name is in `PATH`.
pub(crate) fn is_installed(program: &str) -> bool {
    let Some(path) = env::var_os("PATH") else { return false };
    env::split_paths(&path).any(|directory| is_program(&directory.join(program)))
}

fn is_program(path: &Path) -> bool {
    path.is_file()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version(text: &str) -> Option<String> {
        Version::parse(text).map(|version| version.to_string())
    }

    #[test]
    fn versions_are_read_as_distributions_print_them() {
        let debian = "QEMU emulator version 7.2.19 (Debian 1:7.2+dfsg-7+deb12u16)\nCopyright (c) 2003-2022\n";
        assert_eq!(version(debian).as_deref(), Some("7.2.19"));
        assert_eq!(version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)").as_deref(), Some("10.0.2"));
        assert_eq!(version("QEMU emulator version 9.1").as_deref(), Some("9.1.0"));
        assert_eq!(version("QEMU emulator version 11.0.50 (v11.0.0-12-gabc)").as_deref(), Some("11.0.50"));
        assert_eq!(
            version("QEMU emulator version 8.2.2-rc1").as_deref(),
            Some("8.2.2"),
            "what follows is left out"
        );
        for wrong in
            ["", "QEMU", "version ", "version x.y", "version 9", "\nversion 9.0.0", "version 99999999999.1"]
        {
            assert_eq!(version(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_a_version_cannot_do_is_said_with_the_version_that_can() {
        let old = Qemu { program: QEMU.into(), version: Version::new(7, 2, 19) };
        let new = Qemu { version: Version::new(10, 0, 2), ..old.clone() };
        assert!(old.lacks(4, ApicMode::X2Apic, false).expect("lacks it").contains("9.0.0"));
        assert!(old.lacks(288, ApicMode::X2Apic, true).expect("lacks it").contains("255"));
        assert_eq!(old.lacks(255, ApicMode::XApic, false), None);
        assert_eq!(old.lacks(16, ApicMode::X2Apic, true), None, "KVM has it");
        assert_eq!(new.lacks(288, ApicMode::X2Apic, false), None);
        assert_eq!(old.preferred_mode(false), ApicMode::XApic);
        assert_eq!(new.preferred_mode(false), ApicMode::X2Apic);
    }

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        assert!(Version::new(10, 0, 0) > Version::new(9, 2, 4));
        assert!(Version::new(7, 2, 19) < Version::new(7, 10, 0));
    }

    #[test]
    fn a_program_that_is_named_and_not_there_is_named() {
        let error = Qemu::at(Some("/nowhere/qemu".as_ref())).expect_err("is not there");
        assert!(error.to_string().contains("/nowhere/qemu"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_program_that_is_not_qemu_is_refused() {
        let error = Qemu::at(Some("true".as_ref())).expect_err("says no version");
        assert!(matches!(error, StartError::NotQemu { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_has_a_version_or_none(text in "(QEMU emulator version )?.{0,40}") {
            let _ = Version::parse(&text);
        }
    }
}
