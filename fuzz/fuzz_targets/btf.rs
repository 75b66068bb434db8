//! Types: of a kernel, and split ones of a module on top of them.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use smpcall_crashdump::btf::Btf;
use smpcall_crashdump::types::Types;

fn ask(types: &Types, data: &[u8]) {
    // Names that the seeds have.
    for structure in
        ["many", "__call_single_data", "call_single_data_t", "__call_single_node", "troubled", "int"]
    {
        let _ = types.size_of(structure);
        for path in
            ["node.llist.next", "calls[2].node.dst", "calls", "rest[7]", "func", "call.info", "u_flags"]
        {
            if let Some(field) = types.field(structure, path) {
                let _ = (field.value(data), field.element_size());
            }
        }
    }
    let _ = (types.enumerator("CSD_MINUS"), types.per_cpu_variable("call_single_queue"));
}

fuzz_target!(|data: &[u8]| {
    // Two pieces: the second begins where the first two bytes say.
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return };
    let (base, module) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
    let Ok(base) = Btf::new(base, None) else { return };
    let base = Arc::new(base);
    ask(&Types::from(Arc::clone(&base)), data);
    if let Ok(module) = Btf::new(module, Some(base)) {
        ask(&Types::from(Arc::new(module)), data);
    }
});
