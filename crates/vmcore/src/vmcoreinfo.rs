//! The text of the `VMCOREINFO` note: what a dump's reader needs to know of the kernel that wrote it.
//!
//! One `KEY=value` a line. Linux' keys have a form: `OSRELEASE=text`, `SYMBOL(name)=` and a hexadecimal address,
//! `NUMBER(name)=`, `SIZE(name)=` and `OFFSET(name)=` and a decimal number. Source: Linux,
//! `Documentation/admin-guide/kdump/vmcoreinfo.rst`.

/// The owner of the note. Its type is 0.
pub const OWNER: &str = "VMCOREINFO";

/// The text, to be asked for keys. Nothing is kept: each question reads the text from its start, which is a page.
#[derive(Clone, Copy, Debug)]
pub struct VmCoreInfo<'a>(&'a [u8]);

impl<'a> VmCoreInfo<'a> {
    /// The text of a descriptor. Bytes after the first zero are padding.
    pub fn new(descriptor: &'a [u8]) -> Self {
        let end = descriptor.iter().position(|&byte| byte == 0).unwrap_or(descriptor.len());
        Self(&descriptor[..end])
    }

    /// All lines that have a key and are text, in order.
    pub fn lines(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0
            .split(|&byte| byte == b'\n')
            .filter_map(|line| core::str::from_utf8(line).ok()?.split_once('='))
    }

    /// The value of a key; of its first line, if there are several.
    pub fn get(self, key: &str) -> Option<&'a str> {
        self.lines().find(|(found, _)| *found == key).map(|(_, value)| value)
    }

    /// The release of the kernel: `OSRELEASE`.
    pub fn release(self) -> Option<&'a str> {
        self.get("OSRELEASE")
    }

    /// The address of `SYMBOL(name)`; none if there is none, or it is no hexadecimal number.
    pub fn symbol(self, name: &str) -> Option<u64> {
        u64::from_str_radix(self.of("SYMBOL", name)?, 16).ok()
    }

    /// `NUMBER(name)`; none if there is none, or it is no number. (x86-64's `phys_base` is negative at times.)
    pub fn number(self, name: &str) -> Option<i64> {
        let text = self.of("NUMBER", name)?;
        // Some are written in hexadecimal (`KERNELOFFSET` is the known one, without `NUMBER`), with the prefix.
        match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok().map(u64::cast_signed),
            None => text.parse().ok(),
        }
    }

    /// `SIZE(name)` in bytes.
    pub fn size(self, name: &str) -> Option<u64> {
        self.of("SIZE", name)?.parse().ok()
    }

    /// `OFFSET(name)` in bytes, where the name is `struct.member`.
    pub fn offset(self, name: &str) -> Option<u64> {
        self.of("OFFSET", name)?.parse().ok()
    }

    fn of(self, form: &str, name: &str) -> Option<&'a str> {
        self.lines().find_map(|(key, value)| {
            let found = key.strip_prefix(form)?.strip_prefix('(')?.strip_suffix(')')?;
            (found == name).then_some(value)
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    const TEXT: &[u8] = b"OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=ffffffff82a1b940\n\
        NUMBER(phys_base)=-16777216\nNUMBER(sme_mask)=0x800000000000\nSIZE(list_head)=16\nOFFSET(page.flags)=0\n\xff\xfe\nlast\0\0=";

    #[test]
    fn keys_are_found_in_each_of_their_forms() {
        let info = VmCoreInfo::new(TEXT);
        assert_eq!(info.release(), Some("6.1.0"));
        assert_eq!(info.get("PAGESIZE"), Some("4096"));
        assert_eq!(info.symbol("init_uts_ns"), Some(0xffff_ffff_82a1_b940));
        assert_eq!(info.number("phys_base"), Some(-16_777_216));
        assert_eq!(info.number("sme_mask"), Some(0x8000_0000_0000));
        assert_eq!(info.size("list_head"), Some(16));
        assert_eq!(info.offset("page.flags"), Some(0));
        assert_eq!(info.lines().count(), 7);
    }

    #[test]
    fn what_is_not_there_or_no_number_is_none() {
        let info = VmCoreInfo::new(b"SYMBOL(a)=xyz\nSYMBOLb=1\nNUMBER(c)=\nSIZE()=4");
        assert_eq!((info.symbol("a"), info.symbol("b"), info.number("c")), (None, None, None));
        assert_eq!(info.get("OSRELEASE"), None);
        assert_eq!(info.size(""), Some(4));
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_asked(bytes: std::vec::Vec<u8>, name in "[a-z]{0,3}") {
            let info = VmCoreInfo::new(&bytes);
            let _ = (info.symbol(&name), info.number(&name), info.size(&name), info.offset(&name), info.release());
        }
    }
}
