//! Links the guests freestanding, by link arguments for the programs alone: the library and the build scripts
//! of the workspace keep the host's linking.

/// Link arguments of every guest.
const FREESTANDING: [&str; 6] =
    ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,max-page-size=4096"];

/// The programs that carry a Multiboot header.
const MULTIBOOT: [&str; 5] = ["mb-bench", "mb-cve-2024-26812", "mb-echo", "mb-hostile", "mb-hypercall"];

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/guest.ld");
    println!("cargo::rerun-if-changed={script}");
    println!("cargo::rustc-link-arg-bins=-Wl,-T{script}");
    for argument in FREESTANDING {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    for program in MULTIBOOT {
        // Makes the header's section a root of the linker's garbage collection, which drops it elsewhere.
        println!("cargo::rustc-link-arg-bin={program}=-Wl,--undefined=multiboot_header");
    }
}
