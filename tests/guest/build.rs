//! Links the guest as a static, non-relocatable ELF at 1 MiB by its own linker script.

#![allow(
    clippy::disallowed_macros,
    reason = "cargo reads what a build script prints"
)]

fn main() {
    println!("cargo::rerun-if-changed=guest.ld");
    for file in ["boot.s", "interrupts.s", "trampoline.s"] {
        println!("cargo::rerun-if-changed=src/{file}");
    }
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,-z,max-page-size=4096",
        &format!("-Wl,-T,{folder}/guest.ld"),
    ] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
