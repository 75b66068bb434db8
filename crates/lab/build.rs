//! Tells the linker how the image is laid out: only for the bare machine, where there is an image.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=image.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none") {
        let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo says where the package is");
        // The target's default is an image that moves itself. This one stands where it is linked, also as a capture kernel:
        // there page tables lead the same addresses to other memory.
        for argument in [&format!("-T{folder}/image.ld"), "--no-pie", "--build-id=sha1", "-znorelro"] {
            println!("cargo:rustc-link-arg-bins={argument}");
        }
    }
}
