//! The symbols of a kernel's image: from its own table, from the file that it was built as, or from both.

use crate::kallsyms::{Kallsyms, Symbol};

/// The symbols of a `vmlinux` file, moved to where the kernel runs.
#[derive(Clone, Debug, Default)]
pub struct FileSymbols {
    /// By address.
    symbols: Vec<(u64, char, Box<str>)>,
    /// Indices of `symbols`, by name.
    by_name: Vec<u32>,
}

impl FileSymbols {
    /// From addresses as linked, types and names. `slide` is how far the kernel was moved (KASLR); what is below the kernel's
    /// half - offsets of per-CPU data - stays.
    pub fn new(symbols: impl IntoIterator<Item = (u64, char, Box<str>)>, slide: u64) -> Self {
        let moved = |address: u64| if address >> 63 == 0 { address } else { address.wrapping_add(slide) };
        let mut symbols: Vec<_> =
            symbols.into_iter().map(|(address, kind, name)| (moved(address), kind, name)).collect();
        symbols.sort_by_key(|&(address, ..)| address);
        let mut by_name: Vec<u32> = (0..symbols.len() as u32).collect();
        by_name.sort_by(|&a, &b| symbols[a as usize].2.cmp(&symbols[b as usize].2));
        Self { symbols, by_name }
    }

    fn all(&self, name: &str) -> impl Iterator<Item = u64> {
        let of = |index: &u32| &self.symbols[*index as usize];
        let begin = self.by_name.partition_point(|index| &*of(index).2 < name);
        self.by_name[begin..]
            .iter()
            .map(of)
            .take_while(move |symbol| &*symbol.2 == name)
            .map(|symbol| symbol.0)
    }

    fn at(&self, address: u64) -> Option<Symbol> {
        let after = self.symbols.partition_point(|&(begin, ..)| begin <= address);
        let begin = self.symbols.get(after.checked_sub(1)?)?.0;
        let first = self.symbols.partition_point(|&(other, ..)| other < begin);
        let (_, kind, name) = self.symbols.get(first).filter(|_| begin >> 63 != 0)?;
        let next = self.symbols.get(after)?.0;
        Some(Symbol { name: name.to_string(), kind: *kind, address: begin, size: next - begin })
    }
}

/// The symbols of a kernel's image.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    kallsyms: Option<Kallsyms>,
    file: Option<FileSymbols>,
}

impl From<Kallsyms> for Symbols {
    fn from(kallsyms: Kallsyms) -> Self {
        Self { kallsyms: Some(kallsyms), file: None }
    }
}

impl Symbols {
    /// From one or both.
    pub fn new(kallsyms: Option<Kallsyms>, file: Option<FileSymbols>) -> Self {
        Self { kallsyms, file }
    }

    /// The addresses of all symbols of this name, the kernel's own first.
    pub fn all(&self, name: &str) -> impl Iterator<Item = u64> {
        let own = self.kallsyms.iter().flat_map(move |kallsyms| kallsyms.all(name));
        own.chain(self.file.iter().flat_map(move |file| file.all(name)))
    }

    /// The address of the symbol of this name; of the first, if there are several.
    pub fn address_of(&self, name: &str) -> Option<u64> {
        self.all(name).next()
    }

    /// The symbol that begins at an address of the kernel's half or before it.
    pub fn at(&self, address: u64) -> Option<Symbol> {
        // Without CONFIG_KALLSYMS_ALL the kernel's own table has no data: the file's symbol is nearer then.
        let own = self.kallsyms.as_ref().and_then(|kallsyms| kallsyms.at(address));
        let file = self.file.as_ref().and_then(|file| file.at(address));
        match (own, file) {
            (Some(own), Some(file)) if file.address > own.address => Some(file),
            (own, file) => own.or(file),
        }
    }

    /// The kernel's own table, if it was found.
    pub const fn kallsyms(&self) -> Option<&Kallsyms> {
        self.kallsyms.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kallsyms::Encoding;
    use crate::kallsyms_samples::{Order, STEXT, build};

    fn file() -> FileSymbols {
        let symbols = [
            (0x32b00, 'd', "call_single_queue"),
            (0xffff_ffff_8100_0000, 'T', "_stext"),
            (0xffff_ffff_8100_0000, 'T', "_text"),
            (0xffff_ffff_8100_0500, 't', "same"),
            (0xffff_ffff_8100_0600, 't', "same"),
            (0xffff_ffff_8110_0000, 'D', "nr_cpu_ids"),
            (0xffff_ffff_8120_0000, 'B', "_end"),
        ];
        let slide = STEXT - 0xffff_ffff_8100_0000 + 0x20_0000;
        FileSymbols::new(symbols.map(|(address, kind, name)| (address, kind, name.into())), slide)
    }

    #[test]
    fn symbols_of_a_file_move_with_the_kernel_but_for_per_cpu_offsets() {
        let symbols = Symbols::new(None, Some(file()));
        let base = STEXT + 0x20_0000;
        assert_eq!(symbols.address_of("_stext"), Some(base));
        assert_eq!(symbols.address_of("call_single_queue"), Some(0x32b00));
        assert_eq!(symbols.all("same").collect::<Vec<_>>(), [base + 0x500, base + 0x600]);
        assert_eq!(symbols.address_of("sam"), None);
        let at = symbols.at(base + 0x12).expect("there is one");
        assert_eq!((&*at.name, at.size), ("_stext", 0x500));
        assert_eq!(symbols.at(base + 0x20_0000), None, "the last has no end");
        assert_eq!(symbols.at(0x32b08), None);
    }

    #[test]
    fn the_kernels_own_symbols_go_first_and_the_files_fill_in() {
        let sample = build(Order::AddressesFirst, Encoding::BaseRelative { base: 0 });
        let kallsyms = Kallsyms::load(&sample.memory, &sample.tables, Some(STEXT)).expect("tables");
        let symbols = Symbols::new(Some(kallsyms), Some(file()));
        assert_eq!(symbols.address_of("_stext"), Some(STEXT));
        assert_eq!(symbols.address_of("nr_cpu_ids"), Some(STEXT + 0x30_0000));
        assert_eq!(symbols.at(STEXT + 0x1041).map(|symbol| symbol.name), Some("function_1".into()));
        assert!(symbols.kallsyms().is_some() && Symbols::default().kallsyms().is_none());
    }
}
