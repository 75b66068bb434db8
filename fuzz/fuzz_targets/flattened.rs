//! Files that begin as this format does.
#![no_main]

mod whole_file;

use libfuzzer_sys::fuzz_target;

const BEGINS: &[u8] = b"makedumpfile\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01";

fuzz_target!(|bytes: &[u8]| {
    let mut file = bytes.to_vec();
    let begins = BEGINS.len().min(file.len());
    file[..begins].copy_from_slice(&BEGINS[..begins]);
    whole_file::read(&file);
});
