//! The kernel's log: the keys that say how it is laid out, and the memory that it is in.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smpcall_crashdump::printk::{Layout, read};
use smpcall_crashdump::symbols::Symbols;
use smpcall_crashdump::virtual_memory::Extents;
use smpcall_vmcore::VmCoreInfo;

const BASE: u64 = 0xffff_ffff_8300_0000;

fuzz_target!(|data: &[u8]| {
    // Text up to the first zero byte, memory behind it.
    let end = data.iter().position(|&byte| byte == 0).unwrap_or(data.len());
    let (text, memory) = data.split_at(end);
    let memory = Extents(vec![(BASE, memory.to_vec())]);
    let symbols = Symbols::default();
    if let Ok(log) = read(&memory, &Layout { info: VmCoreInfo::new(text), symbols: &symbols, types: None }) {
        for record in &log.records {
            let _ = record.to_string();
        }
    }
});
