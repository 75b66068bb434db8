//! Which CPUs there are: the MADT of ACPI, types 0 and 9. Source: ACPI 6.5, "Multiple APIC Description Table".

use smpcall_local_apic::ApicId;

use crate::memory::direct;

/// Tables longer than this are not believed.
const LONGEST: usize = 1 << 20;

/// A table, or the root pointer, as bytes.
fn bytes(physical: u64, length: usize) -> &'static [u8] {
    // SAFETY: the direct map shows all of physical memory below 4 GiB, which is where firmware puts tables; nobody writes
    // them. Whether it is what it should be is checked by whoever reads it.
    unsafe { core::slice::from_raw_parts(direct(physical), length) }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn is_sound(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

/// A table with a header, if its length and its sum are right.
fn table(physical: u64) -> Option<&'static [u8]> {
    if physical == 0 || physical >= (4 << 30) - LONGEST as u64 {
        return None;
    }
    let length = u32_at(bytes(physical, 36), 4)? as usize;
    let table = (36..=LONGEST).contains(&length).then(|| bytes(physical, length))?;
    is_sound(table).then_some(table)
}

/// The table with this signature, from the root pointer at this physical address.
pub(crate) fn find(rsdp: u64, signature: [u8; 4]) -> Option<&'static [u8]> {
    if rsdp == 0 || rsdp >= (4 << 30) - 64 {
        return None;
    }
    let root = bytes(rsdp, 36);
    if &root[..8] != b"RSD PTR " || !is_sound(&root[..20]) {
        return None;
    }
    let extended = if root[15] >= 2 && is_sound(root) { table(u64_at(root, 24)?) } else { None };
    let (list, width) = match extended {
        Some(list) => (list, 8),
        None => (table(u64::from(u32_at(root, 16)?))?, 4),
    };
    list[36..].chunks_exact(width).find_map(|entry| {
        let at = if width == 8 { u64_at(entry, 0)? } else { u64::from(u32_at(entry, 0)?) };
        table(at).filter(|table| table[..4] == signature)
    })
}

/// The APICs of the CPUs that can be started, as the MADT lists them.
pub(crate) fn apics(madt: &[u8]) -> impl Iterator<Item = ApicId> + '_ {
    const ENABLED: u32 = 1;
    let mut at = 44;
    core::iter::from_fn(move || {
        loop {
            let entry = madt.get(at..)?;
            let (kind, length) = (*entry.first()?, usize::from(*entry.get(1)?));
            // A length that leads nowhere ends the list.
            let entry = entry.get(..length).filter(|entry| entry.len() >= 2)?;
            at += length;
            let (id, flags) = match kind {
                0 => (entry.get(3).copied().map(u32::from), u32_at(entry, 4)),
                9 => (u32_at(entry, 4), u32_at(entry, 8)),
                _ => continue,
            };
            if let (Some(id), Some(flags)) = (id, flags)
                && flags & ENABLED != 0
            {
                return Some(ApicId(id));
            }
        }
    })
}
