//! Why nothing was run: each in one sentence that says what to do.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::options::MAX_CPUS;

/// The package that has QEMU, by distribution.
const PACKAGE: &str = "install the package qemu-system-x86 (on Fedora qemu-system-x86-core)";

/// What was asked for makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Misuse {
    /// A name that no suite has.
    #[error("no such suite: {name}; known: {}", crate::Suite::names())]
    UnknownSuite {
        /// The name.
        name: String,
    },
    /// The image has room for so many, and needs one.
    #[error("the lab has 1 to {MAX_CPUS} CPUs, not {0}")]
    Cpus(u32),
    /// An APIC of this mode has 8 bits for an identifier, and all ones is everybody.
    #[error("in xAPIC mode there are at most 255 CPUs, not {0}; use --apic x2apic")]
    XApicCpus(u32),
    /// Instructions are counted by TCG.
    #[error("--icount counts what TCG executes; use it without --accel kvm")]
    IcountNeedsTcg,
    /// Above 255 CPUs KVM needs interrupt remapping, which the image does not program.
    #[error("with --accel kvm there are at most 255 CPUs here, not {0}; use --accel tcg")]
    KvmCpus(u32),
    /// A probability that is none.
    #[error("a probability is a number from 0 to 1, not {0}")]
    Drop(String),
    /// Only a crash leaves a vmcore.
    #[error("--vmcore keeps what the suite crash (or incident-5) leaves; name that suite, or none")]
    VmcoreWithoutCrash,
}

/// The machine, the image or a file is not there or cannot be used.
#[derive(Debug, Error)]
pub enum StartError {
    /// It is not in `PATH`.
    #[error(
        "there is no qemu-system-x86_64 in PATH; {PACKAGE}, or name one with {}",
        crate::emulator::QEMU_VARIABLE
    )]
    NoQemu,
    /// The program does not start.
    #[error("{} cannot be started: {}; {PACKAGE}, or name one with {}", program.display(), reason(.error), crate::emulator::QEMU_VARIABLE)]
    QemuDoesNotStart {
        /// Which.
        program: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// It does not say a version as QEMU does.
    #[error("{} does not say which version of QEMU it is; name a qemu-system-x86_64 with {}", program.display(), crate::emulator::QEMU_VARIABLE)]
    NotQemu {
        /// Which.
        program: PathBuf,
    },
    /// QEMU started and ended before the image did.
    #[error("{} does not start the machine: {said}; change what it complains about, or use another version", program.display())]
    QemuRefuses {
        /// Which.
        program: PathBuf,
        /// The last that it said.
        said: String,
    },
    /// Bochs is not installed.
    #[error("there is no bochs in PATH, and the lab's image could not boot in it yet; use --machine qemu")]
    NoBochs,
    /// Bochs loads no kernel by itself.
    #[error(
        "the lab's image boots by PVH, which Bochs has not (it would need a boot loader on a disk); use --machine qemu"
    )]
    BochsCannotBoot,
    /// There is no KVM, or not for this user.
    #[error("/dev/kvm cannot be opened: {}; use --accel tcg", reason(.error))]
    NoKvm {
        /// What the system says.
        error: io::Error,
    },
    /// The image is not readable.
    #[error("cannot read the image {}: {}; name one with --image", path.display(), reason(.error))]
    ImageUnreadable {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The file is no image.
    #[error("{} is no image of the lab kernel: it has no PVH entry; build one with `{}`", path.display(), crate::image::BUILD)]
    NotAnImage {
        /// Which.
        path: PathBuf,
    },
    /// There is no image, and nothing to build one from.
    #[error(
        "there is no image of the lab kernel beside the command, and no workspace of smpcall to build one from; run it inside of the \
         workspace, or name an image with --image"
    )]
    NoImage,
    /// A tool for building does not start.
    #[error(
        "cannot build the image: {tool} cannot be started: {}; install Rust with rustup, or name an image with --image",
        reason(.error)
    )]
    NoTool {
        /// Which.
        tool: String,
        /// What the system says.
        error: io::Error,
    },
    /// The target cannot be added.
    #[error(
        "the target {} is not installed and cannot be added: {said}; run `rustup target add {}`",
        crate::image::TARGET,
        crate::image::TARGET
    )]
    NoTarget {
        /// The last that rustup said.
        said: String,
    },
    /// It does not compile.
    #[error("the image does not build: {said}; `{}` says more", crate::image::BUILD)]
    BuildFailed {
        /// The first error.
        said: String,
    },
    /// No directory for sockets and disks.
    #[error("cannot make a temporary {what}: {}; make room in {}, or name another place with TMPDIR", reason(.error), std::env::temp_dir().display())]
    Temporary {
        /// What.
        what: &'static str,
        /// What the system says.
        error: io::Error,
    },
    /// The vmcore cannot be kept.
    #[error("cannot write {}: {}; choose another place", path.display(), reason(.error))]
    Vmcore {
        /// Where it should be.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Somebody wants it to end.
    #[error("interrupted: the machine was stopped, and nothing is known of what it did")]
    Interrupted,
}

/// What the system says, in the middle of a sentence and without its number.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_lowercase().chain(characters).collect())
}

/// Why there is no report.
#[derive(Debug, Error)]
pub enum Error {
    /// What was asked for makes no sense.
    #[error(transparent)]
    Misuse(#[from] Misuse),
    /// What is needed is not there.
    #[error(transparent)]
    Start(#[from] StartError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_part_of_the_sentence() {
        let error = StartError::NoKvm { error: io::Error::from_raw_os_error(2) };
        assert_eq!(
            error.to_string(),
            "/dev/kvm cannot be opened: no such file or directory; use --accel tcg"
        );
        let path = PathBuf::from("a/core");
        let error = StartError::Vmcore { path, error: io::ErrorKind::StorageFull.into() };
        assert_eq!(error.to_string(), "cannot write a/core: no storage space; choose another place");
    }
}
