//! What is known of the machine as a whole: whether it panicked, its processor, its hypervisor.

use smpcall_crashdump::VirtualMemory;

use super::reader::Reader;
use crate::errata::CpuModel;
use crate::evidence::Panic;

/// No CPU: what `panic_cpu` and `crashing_cpu` hold until there is one.
const NOBODY: i32 = -1;
/// The hypervisors that Linux tells apart, by their enumerators in `enum x86_hypervisor_type`.
const HYPERVISORS: [(&str, &str); 7] = [
    ("X86_HYPER_KVM", "KVM"),
    ("X86_HYPER_MS_HYPERV", "Hyper-V"),
    ("X86_HYPER_VMWARE", "VMware"),
    ("X86_HYPER_XEN_PV", "Xen"),
    ("X86_HYPER_XEN_HVM", "Xen"),
    ("X86_HYPER_JAILHOUSE", "Jailhouse"),
    ("X86_HYPER_ACRN", "ACRN"),
];

/// The machine.
#[derive(Debug, Default)]
pub(super) struct Machine {
    pub(super) panic: Option<Panic>,
    pub(super) model: Option<CpuModel>,
    pub(super) hypervisor: Option<String>,
    /// The numbers of the flags of tasks are those of this kernel.
    pub(super) knows_flags: bool,
    /// The kernel notes in each descriptor who called whom, and in each CPU what it runs.
    pub(super) notes_calls: bool,
}

impl Machine {
    pub(super) fn read(reader: Reader<'_>) -> Self {
        let release = &reader.kernel.release;
        Self {
            panic: panic(reader),
            model: model(reader),
            hypervisor: hypervisor(reader),
            // Since 4.9 the flags are in the task; in 6.17 they were numbered anew.
            knows_flags: release.at_least(4, 9) && !release.at_least(6, 17),
            notes_calls: reader.kernel.per_cpu("cur_csd", 0).is_ok(),
        }
    }
}

fn panic(reader: Reader<'_>) -> Option<Panic> {
    let cpu = |variable| reader.number(variable, 4).map(|value| (value as u32).cast_signed());
    let found = ["panic_cpu", "crashing_cpu"].into_iter().filter_map(cpu).find(|&cpu| cpu != NOBODY)?;
    Some(Panic { cpu: u32::try_from(found).ok(), reason: None })
}

fn model(reader: Reader<'_>) -> Option<CpuModel> {
    let at = reader.kernel.symbols.address_of("boot_cpu_data")?;
    let of = |path| reader.member(at, "cpuinfo_x86", path);
    let text = |path, length| {
        let at = reader.place(at, "cpuinfo_x86", path)?;
        let text = reader.kernel.memory.read_string(at, length).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    Some(CpuModel {
        vendor: text("x86_vendor_id", 16)?,
        family: of("x86")? as u32,
        model: of("x86_model")? as u32,
        stepping: of("x86_stepping").or_else(|| of("x86_mask")).map(|stepping| stepping as u32),
        name: text("x86_model_id", 64),
    })
}

fn hypervisor(reader: Reader<'_>) -> Option<String> {
    let kind = i64::from(reader.number("x86_hyper_type", 4)? as u32);
    let types = reader.kernel.types.as_ref()?;
    let known = HYPERVISORS.iter().find(|(name, _)| types.enumerator(name) == Some(kind))?;
    Some(known.1.to_owned())
}
