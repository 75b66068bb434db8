//! A kernel's release: `6.1.0-32-cloud-amd64` as numbers that can be compared.

use std::fmt;

/// The release of a Linux kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelRelease {
    text: String,
    version: (u32, u32),
}

impl KernelRelease {
    /// From `uname -r`. Without two numbers at the beginning it is version 0.0.
    pub fn new(text: &str) -> Self {
        let mut numbers = text.split(|character: char| !character.is_ascii_digit());
        let mut next = || numbers.next().and_then(|digits| digits.parse().ok());
        let version = (|| Some((next()?, next()?)))().unwrap_or_default();
        Self { text: text.to_owned(), version }
    }

    /// Major and minor number.
    pub const fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Whether it is this version or later. Distributions bring features back to earlier versions: better look at what is
    /// in memory, where that can be told.
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        self.version >= (major, minor)
    }

    /// As the kernel writes it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Of a kernel of Red Hat Enterprise Linux 9 and its rebuilds: the number of the build, `517` in
    /// `5.14.0-517.el9.x86_64`.
    pub fn el9_build(&self) -> Option<u32> {
        let (_, build) = self.text.split_once('-').filter(|(_, build)| build.contains(".el9"))?;
        build.split('.').next()?.parse().ok()
    }
}

impl fmt::Display for KernelRelease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        let release = KernelRelease::new("6.12.95+deb12-cloud-amd64");
        assert_eq!(release.version(), (6, 12));
        assert!(release.at_least(6, 4) && release.at_least(5, 99) && !release.at_least(6, 13));
        assert_eq!(KernelRelease::new("5.14.0-570.12.1.el9_6.x86_64").el9_build(), Some(570));
        assert_eq!(KernelRelease::new("5.14.0-570.fc39").el9_build(), None);
        assert_eq!(KernelRelease::new("2.6.18-8.el5").version(), (2, 6));
    }

    #[test]
    fn what_is_no_release_is_the_oldest() {
        for text in ["", "linux", "6", "99999999999.1", "-.el9"] {
            assert_eq!(KernelRelease::new(text).version(), (0, 0), "{text}");
            assert_eq!(KernelRelease::new(text).el9_build(), None, "{text}");
        }
    }
}
