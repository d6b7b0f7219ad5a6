//! Link arguments for the one freestanding binary. The library, the tests and xtask link as ordinary programs.

fn main() {
    println!("cargo:rerun-if-changed=linker.ld");
    println!("cargo:rerun-if-changed=build.rs");
    let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    for arg in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=sha1",
        "-Wl,-z,max-page-size=4096",
    ] {
        println!("cargo:rustc-link-arg-bin=levelhead={arg}");
    }
    println!("cargo:rustc-link-arg-bin=levelhead=-Wl,-T{dir}/linker.ld");
}
