//! Reads members of structures: by symbol or per-CPU variable, and by the kernel's types.

use smpcall_crashdump::VirtualMemory;
use smpcall_crashdump::kernel::Kernel;

/// A kernel, asked for single values. Whatever is missing - a symbol, a type, a page - is `None`: evidence is unknown then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'k> {
    pub(super) kernel: &'k Kernel<'k>,
}

impl<'k> Reader<'k> {
    pub(super) fn new(kernel: &'k Kernel<'k>) -> Self {
        Self { kernel }
    }

    /// A member of the structure at an address.
    pub(super) fn member(self, address: u64, structure: &str, path: &str) -> Option<u64> {
        let field = self.kernel.types.as_ref()?.field(structure, path)?;
        let length = usize::try_from(field.size).ok().filter(|size| (1..=8).contains(size))?;
        let at = address.checked_add(field.offset)?;
        let value = self.kernel.memory.read_number(at, length).ok()?;
        Some(match field.bits {
            None => value,
            Some(bits) => {
                let mask = 1_u64.checked_shl(bits.width).map_or(u64::MAX, |above| above - 1);
                value.checked_shr(bits.shift).unwrap_or(0) & mask
            }
        })
    }

    /// The first of these members that the structure has.
    pub(super) fn any_member(self, address: u64, structure: &str, paths: &[&str]) -> Option<u64> {
        paths.iter().find_map(|path| self.member(address, structure, path))
    }

    /// Where a member of the structure at an address is.
    pub(super) fn place(self, address: u64, structure: &str, path: &str) -> Option<u64> {
        address.checked_add(self.kernel.types.as_ref()?.offset(structure, path)?)
    }

    /// The address of a CPU's variable.
    pub(super) fn per_cpu(self, variable: &str, cpu: u32) -> Option<u64> {
        self.kernel.per_cpu(variable, cpu).ok()
    }

    /// A member of a CPU's variable.
    pub(super) fn of_cpu(self, variable: &str, structure: &str, path: &str, cpu: u32) -> Option<u64> {
        self.member(self.per_cpu(variable, cpu)?, structure, path)
    }

    /// A CPU's variable of so many bytes.
    pub(super) fn number_of_cpu(self, variable: &str, bytes: usize, cpu: u32) -> Option<u64> {
        self.kernel.memory.read_number(self.per_cpu(variable, cpu)?, bytes).ok()
    }

    /// A variable of so many bytes.
    pub(super) fn number(self, variable: &str, bytes: usize) -> Option<u64> {
        self.kernel.memory.read_number(self.kernel.symbols.address_of(variable)?, bytes).ok()
    }

    /// A pointer or number of eight bytes.
    pub(super) fn word(self, address: u64) -> Option<u64> {
        self.kernel.memory.read_u64(address).ok()
    }

    /// The name of the function that begins at an address; none if none does.
    pub(super) fn function(self, address: u64) -> Option<String> {
        let found = self.kernel.locate(address).filter(|found| found.offset == 0)?;
        Some(found.name)
    }

    /// What an address is, for people: `posts+0x40 [calltrouble]`.
    pub(super) fn symbol(self, address: u64) -> Option<String> {
        let found = self.kernel.locate(address)?;
        let offset = if found.offset == 0 { String::new() } else { format!("+{:#x}", found.offset) };
        let module = found.module.map_or_else(String::new, |module| format!(" [{module}]"));
        Some(format!("{}{offset}{module}", found.name))
    }

    /// Where a fact was found: in which part of which kind of source.
    pub(super) fn source(self, part: &str) -> String {
        format!("{}: {part}", self.origin())
    }

    /// What kind of source this is.
    pub(super) fn origin(self) -> &'static str {
        if self.kernel.memory.dump().kind().lives() { "live machine" } else { "crash dump" }
    }

    /// Whether an address is one of the kernel's half.
    pub(super) const fn is_kernel(address: u64) -> bool {
        address >> 63 == 1
    }
}
