//! No panic and no allocation on the interrupt path: shown on the very image that boots, by its machine code.
//!
//! From each entry every call and jump is followed through the linked image. What must not be met is a way into
//! `core::panicking` or the panic handler, into the allocator, through a pointer (`dyn`, which could lead anywhere), and into
//! a trap. Where a way is left out on purpose, [`CUTS`] says so with the reason. [`ROOTS`] names what the entries must
//! have led through, as functions of their own or inlined into others: a path that is no longer covered is a breach. The
//! gate is docs/adr/0011.

mod image;

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::build::Tree;
use crate::test::output;

use image::{Image, Lead};

/// Where the ways begin: the loop of a CPU while guests run, and what it does when its own has ended.
const ENTRIES: [&str; 2] = ["levelhead::run::run", "levelhead::run::quiesce"];

/// Ways that are left out, and why.
const CUTS: [(&str, &str); 2] = [
    ("levelhead::emulate::insn::decode", "iced-x86, on a table of function pointers"),
    ("levelhead::console::print", "a guest's text, through the machinery of `core::fmt`"),
];

/// What the ways must have led through: a source file and a function in it.
const ROOTS: [(&str, &str); 35] = [
    // A line: from the vector to the delivery, and back from the EOI.
    ("src/intx/table.rs", "assert"),
    ("src/intx/table.rs", "complete"),
    ("src/intx/table.rs", "listeners"),
    ("src/intx/table.rs", "virtual_rte"),
    ("src/intx/handler.rs", "assert"),
    ("src/intx/handler.rs", "complete"),
    ("src/intx/handler.rs", "carry_out"),
    ("src/intx/handler.rs", "ask"),
    ("src/intx/handler.rs", "poll"),
    ("src/intx/handler.rs", "drop"),
    ("src/intx/line.rs", "step"),
    ("src/intx/notifier.rs", "enter"),
    ("src/intx/notifier.rs", "leave"),
    ("src/intx/notifier.rs", "poll"),
    // A guest's interrupt chips.
    ("src/virq/chips.rs", "assert_pin"),
    ("src/virq/chips.rs", "settle"),
    ("src/virq/chips.rs", "before_entry"),
    ("src/virq/chips.rs", "after_exit"),
    ("src/virq/chips.rs", "lapic_write"),
    ("src/virq/chips.rs", "write_msr"),
    // The loop around both.
    ("src/run.rs", "take"),
    ("src/run.rs", "prepare"),
    ("src/run.rs", "leave"),
    ("src/run.rs", "retire"),
    ("src/exits.rs", "handle"),
    ("src/partition/vcpu.rs", "deliver"),
    ("src/partition/vcpu.rs", "complete"),
    ("src/partition/vcpu.rs", "virtual_rte"),
    // Hardware.
    ("src/machine.rs", "mask_rte"),
    ("src/machine.rs", "unmask_rte"),
    ("src/machine.rs", "set_disintx"),
    ("src/machine.rs", "intx_status"),
    ("src/arch/x86/ioapic.rs", "set_mask"),
    ("src/arch/x86/lapic.rs", "eoi"),
    ("src/arch/x86/cpu.rs", "window"),
];

/// The control's source.
const CONTROL: &str = include_str!("no_panic/control.rs");

/// What must not be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Culprit {
    Panic,
    Allocator,
}

impl Culprit {
    /// By the plain name of a function.
    fn of(function: &str) -> Option<Self> {
        let begins = |starts: &[&str]| starts.iter().any(|start| function.starts_with(start));
        if begins(&[
            "core::panicking::",
            "std::panicking::",
            "__rustc::rust_begin_unwind",
            "rust_begin_unwind",
        ]) {
            return Some(Self::Panic);
        }
        let allocator =
            ["__rustc::__r", "__rust_", "alloc::alloc::", "alloc::raw_vec::", "linked_list_allocator::"];
        (begins(&allocator) || function.starts_with("levelhead::rt::heap::")).then_some(Self::Allocator)
    }

    /// By the source file of a function that was inlined, of which the line table has the short name alone.
    fn inlined(file: &str) -> Option<Self> {
        let ends = |end: &str| file.ends_with(end);
        match () {
            () if ends("core/src/panicking.rs") => Some(Self::Panic),
            () if ["alloc/src/alloc.rs", "src/rt/heap.rs"].iter().any(|end| ends(end)) => {
                Some(Self::Allocator)
            }
            () => None,
        }
    }

    const fn verb(self) -> &'static str {
        match self {
            Self::Panic => "can panic",
            Self::Allocator => "reaches the allocator",
        }
    }
}

/// What a walk came upon.
#[derive(Debug, Default)]
struct Walk {
    /// Function to the one it was reached from.
    from: BTreeMap<u64, Option<u64>>,
    /// Source file and name of every function on the way, inlined ones too.
    met: BTreeSet<(String, String)>,
    /// The cuts that were come to.
    cut: BTreeSet<&'static str>,
    breaches: BTreeSet<String>,
}

impl Walk {
    /// Walks from all functions named in `entries`.
    fn new(image: &Image, entries: &[&str], cuts: &[(&'static str, &str)], root: &str) -> Result<Self> {
        let mut walk = Self::default();
        let mut open = Vec::new();
        for entry in entries {
            let before = open.len();
            open.extend(image.find(entry));
            if open.len() == before {
                walk.breaches.insert(format!("the image has no function {entry} to begin at"));
            }
        }
        walk.from.extend(open.iter().map(|start| (*start, None)));
        while let Some(start) = open.pop() {
            let (addresses, leads) = image.leads(start);
            for address in addresses {
                for place in image.places(address)? {
                    let Some((file, _)) = place.line else { continue };
                    if let Some(culprit) = Culprit::inlined(&file) {
                        let what = format!("{} by {}, inlined", culprit.verb(), place.function);
                        walk.complain(image, start, address, &what, root)?;
                    }
                    let file =
                        file.strip_prefix(root).map_or(&*file, |inside| inside.trim_start_matches('/'));
                    walk.met.insert((file.to_owned(), place.function));
                }
            }
            for (address, lead) in leads {
                let what = match lead {
                    Lead::Function(to) => {
                        let name = image.name(to);
                        if let Some((cut, _)) = cuts.iter().find(|(cut, _)| *cut == name) {
                            walk.cut.insert(cut);
                            continue;
                        }
                        match Culprit::of(name) {
                            Some(culprit) => format!("{} by {name}", culprit.verb()),
                            None => {
                                if let Entry::Vacant(place) = walk.from.entry(to) {
                                    place.insert(Some(start));
                                    open.push(to);
                                }
                                continue;
                            }
                        }
                    }
                    Lead::Nowhere(to) => format!("leads to {to:#x}, where no function is"),
                    Lead::Pointer => "goes through a pointer, which could lead anywhere".to_owned(),
                    Lead::Trap => "runs into a trap".to_owned(),
                    Lead::Unreadable => "holds bytes that are no instruction known here".to_owned(),
                };
                walk.complain(image, start, address, &what, root)?;
            }
        }
        Ok(walk)
    }

    /// Notes a breach of the function at `start`, with its place in our sources and the way there.
    fn complain(&mut self, image: &Image, start: u64, address: u64, what: &str, root: &str) -> Result<()> {
        let places = image.places(address)?;
        let ours = places.iter().find_map(|place| {
            let (file, line) = place.line.as_ref()?;
            let file = file.strip_prefix(root)?.trim_start_matches('/');
            Some(format!("{file}:{line}, in {}", place.function))
        });
        let at = ours.unwrap_or_else(|| match places.first() {
            Some(place) => format!("in {}", place.function),
            None => "in assembly".to_owned(),
        });
        let mut way = vec![image.name(start)];
        let mut last = start;
        while let Some(Some(from)) = self.from.get(&last) {
            way.push(image.name(*from));
            last = *from;
        }
        way.reverse();
        self.breaches.insert(format!(
            "{}: {what} ({at}; instruction {address:#x}); the way: {}",
            image.name(start),
            way.join(" > ")
        ));
        Ok(())
    }
}

/// Walks the release image, which is built first if it must be.
///
/// # Errors
/// When there is no image, or the control shows that this gate would miss something.
pub fn check(tree: &Tree) -> Result<Vec<String>> {
    control(tree)?;
    if let Err(lines) = output(&mut tree.build_command()) {
        bail!("{}", lines.join("\n"));
    }
    let image = Image::read(&tree.hypervisor())?;
    let walk = Walk::new(&image, &ENTRIES, &CUTS, &tree.root.display().to_string())?;
    let mut breaches: Vec<String> = walk.breaches.into_iter().collect();
    breaches.extend(
        ROOTS
            .iter()
            .filter(|(file, name)| !walk.met.contains(&((*file).to_owned(), (*name).to_owned())))
            .map(|(file, name)| {
                format!(
                    "`{name}` of {file} is on no way from {}: nothing is shown of it",
                    ENTRIES.join(" or ")
                )
            }),
    );
    let stale = CUTS.iter().filter(|(cut, _)| !walk.cut.contains(cut));
    breaches
        .extend(stale.map(|(cut, _)| format!("{cut} is left out of the walk, which does not come to it")));
    Ok(breaches)
}

/// Compiles the control and expects exactly the breaches that are built into it.
fn control(tree: &Tree) -> Result<()> {
    let folder = tree.scratch("gates/no-panic")?;
    let (source, program) = (folder.join("control.rs"), folder.join("control"));
    fs::write(&source, CONTROL).with_context(|| format!("cannot write {}", source.display()))?;
    let mut command = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    command.current_dir(&tree.root).args(["--edition", "2024", "-C", "opt-level=3", "-C", "panic=abort"]);
    command.args([
        "-C",
        "overflow-checks=on",
        "-C",
        "debuginfo=line-tables-only",
        "-C",
        "link-arg=-no-pie",
        "-o",
    ]);
    if let Err(lines) = output(command.arg(&program).arg(&source)) {
        bail!("the control does not compile:\n{}", lines.join("\n"));
    }
    let image = Image::read(&program)?;
    for (function, expected) in [
        ("clean", None),
        ("index", Some("can panic by core::panicking::panic_bounds_check")),
        ("overflow", Some("can panic by core::panicking::panic_const::panic_const_add_overflow")),
        ("deep", Some("the way: control::deep > control::deeper")),
        ("allocate", Some("reaches the allocator")),
        ("dynamic", Some("goes through a pointer")),
    ] {
        let walk = Walk::new(&image, &[&format!("control::{function}")], &[], &folder.display().to_string())?;
        let lines: Vec<String> = walk.breaches.into_iter().collect();
        match expected {
            None => {
                ensure!(lines.is_empty(), "the control's `{function}` is clean, but:\n{}", lines.join("\n"))
            }
            Some(expected) => ensure!(
                lines.iter().any(|line| line.contains(expected)),
                "the control's `{function}` is not caught ({expected:?} expected): this gate proves nothing\n{}",
                lines.join("\n")
            ),
        }
    }
    Ok(())
}
