//! The command lines: of QEMU, and of the image in it.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::Path;

use crate::options::{Accel, ApicMode};
use crate::suite::Suite;

/// What one run of the image is made of.
#[derive(Clone, Debug)]
pub(crate) struct Boot<'p> {
    pub(crate) image: &'p Path,
    pub(crate) suite: Suite,
    pub(crate) cpus: u32,
    pub(crate) apic: ApicMode,
    pub(crate) accel: Accel,
    pub(crate) icount: bool,
    /// How many CPUs the host has.
    pub(crate) host_cpus: usize,
    pub(crate) seed: u64,
    pub(crate) operations: Option<u64>,
    pub(crate) drop: Option<f64>,
    /// The disk for the vmcore.
    pub(crate) disk: Option<&'p Path>,
    /// The socket of the debugger's stub.
    pub(crate) debugger: Option<&'p Path>,
}

impl Boot<'_> {
    /// QEMU's arguments.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Arguments(vec![]);
        arguments.pair("-M", "q35");
        arguments.pair("-accel", &self.accelerator());
        if self.icount {
            arguments.pair("-icount", "shift=0,sleep=off");
        }
        arguments.pair("-cpu", if self.accel == Accel::Kvm { "host" } else { "max" });
        arguments.pair("-smp", &self.cpus.to_string());
        arguments.pair("-m", &memory_mib(self.cpus).to_string());
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            arguments.0.push(flag.into());
        }
        arguments.pair("-display", "none");
        arguments.pair("-serial", "stdio");
        // A value written to the port ends QEMU with twice that value and one.
        arguments.pair("-device", "isa-debug-exit,iobase=0xf4,iosize=4");
        if let Some(disk) = self.disk {
            arguments.with_path(
                "-drive",
                "if=none,id=d,format=raw,cache=unsafe,discard=unmap,detect-zeroes=unmap,file=",
                disk,
                "",
            );
            arguments.pair("-device", "virtio-blk-pci,drive=d");
        }
        if let Some(socket) = self.debugger {
            arguments.with_path("-chardev", "socket,id=g,server=on,wait=off,path=", socket, "");
            arguments.pair("-gdb", "chardev:g");
        }
        arguments.0.push("-kernel".into());
        arguments.0.push(self.image.into());
        if self.suite.crashes() {
            // The capture kernel's own copy, which nothing has written to.
            arguments.0.push("-initrd".into());
            arguments.0.push(self.image.into());
        }
        arguments.pair("-append", &self.words());
        arguments.0
    }

    fn accelerator(&self) -> String {
        match self.accel {
            Accel::Kvm => "kvm".into(),
            // With fewer cores than virtual CPUs, one that spins keeps the one that it waits for from running; taking turns
            // does not. And instructions are counted in turns only.
            Accel::Tcg if self.icount || self.host_cpus < self.cpus as usize => "tcg,thread=single".into(),
            Accel::Tcg => "tcg,thread=multi".into(),
        }
    }

    /// The image's own command line.
    fn words(&self) -> String {
        let Self { suite, apic, seed, .. } = self;
        let mut words = format!("suite={suite} seed={seed} apic={apic}");
        // Writing to a `String` cannot fail.
        if let Some(operations) = self.operations {
            let _ = write!(words, " operations={operations}");
        }
        if let Some(drop) = self.drop {
            let _ = write!(words, " drop={drop}");
        }
        if *suite == Suite::Conformance && *apic == ApicMode::XApic {
            // It sets logical identifiers as it likes: rings must not depend on them.
            words.push_str(" routing=physflat");
        }
        words
    }
}

/// How much memory the machine has, in MiB: the image has a stack and a mailbox for each CPU.
pub(crate) fn memory_mib(cpus: u32) -> u32 {
    if cpus <= 128 { 256 } else { 512 }
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn pair(&mut self, name: &str, value: &str) {
        self.0.extend([name.into(), value.into()]);
    }

    /// A path among options that commas part: its own commas are doubled.
    fn with_path(&mut self, name: &str, before: &str, path: &Path, after: &str) {
        let mut value = OsString::from(before);
        let text = path.to_string_lossy();
        value.push(text.replace(',', ",,"));
        value.push(after);
        self.0.extend([name.into(), value]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot() -> Boot<'static> {
        Boot {
            image: Path::new("lab.elf"),
            suite: Suite::Calls,
            cpus: 4,
            apic: ApicMode::XApic,
            accel: Accel::Tcg,
            icount: false,
            host_cpus: 2,
            seed: 7,
            operations: None,
            drop: None,
            disk: None,
            debugger: None,
        }
    }

    fn line(boot: &Boot<'_>) -> String {
        let words: Vec<String> =
            boot.arguments().iter().map(|word| word.to_string_lossy().into_owned()).collect();
        words.join(" ")
    }

    #[test]
    fn the_command_line_is_that_of_the_contract() {
        assert_eq!(
            line(&boot()),
            "-M q35 -accel tcg,thread=single -cpu max -smp 4 -m 256 -nodefaults -no-user-config -no-reboot -display none \
             -serial stdio -device isa-debug-exit,iobase=0xf4,iosize=4 -kernel lab.elf -append suite=calls seed=7 apic=xapic"
        );
    }

    #[test]
    fn threads_are_many_only_where_the_host_has_the_cores() {
        assert!(line(&Boot { host_cpus: 4, ..boot() }).contains("thread=multi"));
        assert!(line(&Boot { host_cpus: 3, ..boot() }).contains("thread=single"));
        let counting = line(&Boot { host_cpus: 64, icount: true, ..boot() });
        assert!(counting.contains("tcg,thread=single -icount shift=0,sleep=off"), "{counting}");
        assert!(line(&Boot { accel: Accel::Kvm, ..boot() }).contains("-accel kvm -cpu host"));
    }

    #[test]
    fn a_crash_has_a_disk_and_the_image_twice() {
        let disk = Path::new("a,b/disk");
        let line = line(&Boot { suite: Suite::Crash, disk: Some(disk), ..boot() });
        assert!(line.contains("file=a,,b/disk -device virtio-blk-pci,drive=d"), "{line}");
        assert!(line.contains("-kernel lab.elf -initrd lab.elf -append suite=crash"), "{line}");
    }

    #[test]
    fn a_suite_that_freezes_has_a_debugger() {
        let line = line(&Boot { suite: Suite::Frozen, debugger: Some(Path::new("s")), ..boot() });
        assert!(line.contains("-chardev socket,id=g,server=on,wait=off,path=s -gdb chardev:g"), "{line}");
    }

    #[test]
    fn conformance_has_the_logical_identifiers_for_itself() {
        let words = |suite, apic| Boot { suite, apic, ..boot() }.words();
        assert!(words(Suite::Conformance, ApicMode::XApic).contains(" routing=physflat"));
        assert!(!words(Suite::Conformance, ApicMode::X2Apic).contains("routing"));
        assert!(!words(Suite::Calls, ApicMode::XApic).contains("routing"));
    }

    #[test]
    fn numbers_reach_the_image_as_digits() {
        let line = line(&Boot { operations: Some(1_000_000), drop: Some(1e-7), ..boot() });
        assert!(line.ends_with("operations=1000000 drop=0.0000001"), "{line}");
    }
}
