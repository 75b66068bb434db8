//! The kernel's virtual memory: a dump, and the page tables in it.

use std::sync::{Mutex, PoisonError};

use smpcall_vmcore::VmCoreInfo;

use crate::memory::PAGE_BYTES;
use crate::translate::{Mapping, PageTables, Translation};
use crate::{Architecture, Dump, OpenError, PhysicalMemory, ReadError, VirtualMemory};

/// The virtual address of the kernel's image, before it is moved, and so the difference between the virtual addresses
/// of the image and its physical ones, but for `phys_base`. Source: Linux, `Documentation/arch/x86/x86_64/mm.rst`.
const IMAGE_BASE: u64 = 0xffff_ffff_8000_0000;

/// How many translations are kept: pages of 4 KiB, direct-mapped.
const KEPT: usize = 512;

/// The kernel's virtual memory. Everything that reads kernel structures is given a reference to one.
#[derive(Debug)]
pub struct KernelMemory<'d> {
    dump: &'d Dump,
    translation: Translation,
    /// By page number, modulo their number.
    kept: Mutex<Vec<Option<Mapping>>>,
}

impl<'d> KernelMemory<'d> {
    /// With the page tables that `VMCOREINFO` names; else with those of a CPU whose `cr3` is known; else, if a dump
    /// has neither and its segments have virtual addresses, with these.
    ///
    /// # Errors
    /// [`OpenError::OtherArchitecture`], [`OpenError::NoPageTables`], [`OpenError::BadPageTables`].
    pub fn new(dump: &'d Dump) -> Result<Self, OpenError> {
        if dump.architecture() != Architecture::X86_64 {
            return Err(OpenError::OtherArchitecture(dump.architecture()));
        }
        let translation = roots::find(dump)?;
        Ok(Self { dump, translation, kept: Mutex::new(vec![None; KEPT]) })
    }

    /// The dump that it is the memory of.
    pub fn dump(&self) -> &'d Dump {
        self.dump
    }

    /// How addresses are translated.
    pub fn translation(&self) -> &Translation {
        &self.translation
    }

    /// What the kernel says of itself; without any keys if it says nothing.
    pub fn vmcoreinfo(&self) -> VmCoreInfo<'d> {
        VmCoreInfo::new(self.dump.vmcoreinfo().unwrap_or_default().as_bytes())
    }

    /// The physical address of a virtual one.
    ///
    /// # Errors
    /// If nothing is mapped there, or a page table cannot be read.
    pub fn translate(&self, address: u64) -> Result<u64, ReadError> {
        let mapping = self.mapping(address)?;
        Ok(mapping.physical + (address - mapping.addresses.start))
    }

    fn mapping(&self, address: u64) -> Result<Mapping, ReadError> {
        let place = (address / PAGE_BYTES) as usize % KEPT;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mapping) = &kept[place]
            && mapping.addresses.contains(&address)
        {
            return Ok(mapping.clone());
        }
        let mapping = self.translation.find(self.dump.memory(), address)?;
        kept[place] = Some(mapping.clone());
        Ok(mapping)
    }

    /// As [`read`](VirtualMemory::read), past what is kept of the source: what is there now, if the source lives.
    ///
    /// # Errors
    /// As `read`.
    pub fn read_again(&self, address: u64, into: &mut [u8]) -> Result<(), ReadError> {
        self.read_from(self.dump.source(), address, into)
    }

    fn read_from(&self, memory: &dyn PhysicalMemory, address: u64, into: &mut [u8]) -> Result<(), ReadError> {
        let length = into.len() as u64;
        // The last byte of all may be read, so the end itself may be no address.
        if length != 0 && address.checked_add(length - 1).is_none() {
            return Err(ReadError::Wraps { address, length });
        }
        let (mut at, mut rest) = (address, into);
        while !rest.is_empty() {
            let (physical, bytes) = self.in_one_piece(at, rest.len())?;
            let (part, tail) = rest.split_at_mut(bytes);
            memory.read_physical(physical, part)?;
            (at, rest) = (at.wrapping_add(bytes as u64), tail);
        }
        Ok(())
    }

    /// The physical address of a virtual one, and how many of the wanted bytes follow there: one read of the source for
    /// as many pages as lie together is what makes reading a symbol table fast.
    fn in_one_piece(&self, address: u64, wanted: usize) -> Result<(u64, usize), ReadError> {
        let mapping = self.mapping(address)?;
        let physical = mapping.physical + (address - mapping.addresses.start);
        let mut bytes = (mapping.addresses.end - address).max(1);
        while (bytes as usize) < wanted {
            let Some(next) = address.checked_add(bytes) else { break };
            // What cannot be translated is told when it is that piece's turn.
            let Ok(mapping) = self.mapping(next) else { break };
            if physical.checked_add(bytes) != Some(mapping.physical + (next - mapping.addresses.start)) {
                break;
            }
            bytes += (mapping.addresses.end - next).max(1);
        }
        Ok((physical, usize::try_from(bytes).unwrap_or(usize::MAX).min(wanted)))
    }

    /// Whether these bytes are others now than when they were read: for a source that lives. Always false for one that
    /// does not.
    ///
    /// # Errors
    /// As `read`.
    pub fn has_changed(&self, address: u64, length: usize) -> Result<bool, ReadError> {
        if !self.dump.kind().lives() {
            return Ok(false);
        }
        let before = self.read_bytes(address, length)?;
        let mut now = vec![0; length];
        self.read_again(address, &mut now)?;
        Ok(before != now)
    }

    /// Forgets pages and translations that are kept, so that they are read anew: for a source that lives.
    pub fn forget(&self) {
        self.dump.forget();
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).fill(None);
    }
}

impl VirtualMemory for KernelMemory<'_> {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), ReadError> {
        self.read_from(self.dump.memory(), address, into)
    }
}

/// Where the page tables are.
mod roots {
    use super::{Dump, IMAGE_BASE, OpenError, PageTables, PhysicalMemory, Translation, VmCoreInfo};
    use crate::registers::Control;

    pub(super) fn find(dump: &Dump) -> Result<Translation, OpenError> {
        let mut tried = Vec::new();
        if let Some(text) = dump.vmcoreinfo() {
            match by_vmcoreinfo(dump, VmCoreInfo::new(text.as_bytes())) {
                Ok(tables) => return Ok(Translation::X86_64(tables)),
                Err(Some(what)) => tried.push(what),
                Err(None) => {}
            }
        }
        if let Some(tables) = by_registers(dump) {
            return Ok(Translation::X86_64(tables));
        }
        let segments = dump.mapped();
        if tried.is_empty() && !segments.is_empty() {
            return Ok(Translation::Segments(segments.to_vec()));
        }
        match tried.pop() {
            None => Err(OpenError::NoPageTables),
            Some(what) => Err(OpenError::BadPageTables { what }),
        }
    }

    /// None if the text does not say; the reason if what it says is not so.
    fn by_vmcoreinfo(dump: &Dump, info: VmCoreInfo<'_>) -> Result<PageTables, Option<String>> {
        let symbol = info.symbol("swapper_pg_dir").ok_or(None)?;
        let base = info.number("phys_base").or(dump.phys_base()).unwrap_or(0);
        let root = symbol.wrapping_sub(IMAGE_BASE).wrapping_add_signed(base);
        let encryption = info.number("sme_mask").unwrap_or(0).cast_unsigned();
        let five_levels = info.number("pgtable_l5_enabled").is_some_and(|enabled| enabled != 0);
        let tables = PageTables { root, five_levels, encryption };
        // They translate themselves, or they are none.
        match tables.walk(dump.memory(), symbol) {
            Ok(mapping) if mapping.physical + (symbol - mapping.addresses.start) == root => Ok(tables),
            Ok(mapping) => Err(Some(format!(
                "VMCOREINFO says that swapper_pg_dir is at {symbol:#x}, physical address {root:#x}; the tables there \
                 say physical address {:#x}",
                mapping.physical + (symbol - mapping.addresses.start)
            ))),
            Err(error) => Err(Some(format!(
                "VMCOREINFO says that swapper_pg_dir is at {symbol:#x}, physical address {root:#x}; {error}"
            ))),
        }
    }

    /// The tables that map most of the range in which the kernel's image is.
    ///
    /// With page-table isolation each task has two topmost tables beside each other, and that of user mode, which has
    /// bit 12 of its address set, maps next to nothing of the kernel.
    fn by_registers(dump: &Dump) -> Option<PageTables> {
        let encryption = 0;
        let mut best: Option<(usize, PageTables)> = None;
        for control in dump.cpus().iter().filter_map(|cpu| cpu.control).filter(|control| control.cr3 != 0) {
            let five_levels = control.cr4 & Control::LA57 != 0;
            for root in [control.cr3 & !0x1fff, control.cr3 & !0xfff] {
                let tables = PageTables { root, five_levels, encryption };
                let mapped = image_pages(dump.memory(), tables);
                if mapped > best.map_or(0, |(mapped, _)| mapped) {
                    best = Some((mapped, tables));
                }
            }
        }
        best.map(|(_, tables)| tables)
    }

    /// How many pieces of 2 MiB of the gibibyte that the kernel's image is in have something mapped at their start.
    fn image_pages(memory: &dyn PhysicalMemory, tables: PageTables) -> usize {
        (IMAGE_BASE..IMAGE_BASE + (1 << 30))
            .step_by(2 << 20)
            .filter(|&address| tables.walk(memory, address).is_ok())
            .count()
    }
}
