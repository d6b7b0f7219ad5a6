//! `gdb`: a configuration in QEMU, stopped before its first instruction, and a script by which gdb attaches to it.
//!
//! Two worlds share the CPUs. The hypervisor runs in the upper half, where it is linked; only the first instructions of
//! entry.S, before paging is on, run where it is loaded. Guests run wherever they like, most of them at 2 MiB, which is
//! where the hypervisor is loaded and where the next guest is as well. So the hypervisor's symbols are always there, and
//! of all that may be meant by a low address the script shows one at a time: the commands `guest NAME` and `entry` choose.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use object::read::elf::{ElfFile64, ProgramHeader as _};
use object::{Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, SectionKind, elf};

use crate::build::{Profile, Tree};
use crate::process::{self, End};
use crate::qemu::{Machine, shell_word};
use crate::symbols::Guest;
use crate::{bundle, run, setup, signals};

/// What `gdb` was asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The machine and what it boots. Its time limit is of no account.
    pub run: run::Options,
    /// The TCP port gdb attaches to; a free one when absent.
    pub port: Option<u16>,
}

/// Builds with all debug information, packs, starts QEMU stopped, says how to attach, and shows the console until QEMU ends.
///
/// # Errors
/// When anything before QEMU fails, and when the run does not end well; the verdict line is printed then already.
pub fn gdb(tree: &Tree, options: &Options) -> Result<()> {
    setup::gdb(options.run.setup, "gdb")?;
    let tree = Tree { profile: Profile::Debugging, ..tree.clone() };
    let options = Options { run: run::Options { timeout: Duration::MAX, ..options.run.clone() }, ..*options };
    let mut machine = run::machine(&tree, &options.run, "gdb")?;
    let config = bundle::config_path(&tree, &options.run.config);
    let name = config.file_stem().with_context(|| format!("{} has no file name", config.display()))?;
    // From here on a Ctrl-C ends QEMU and not us, so that the script does not stay behind.
    signals::catch();
    let script = tree.scratch("gdb")?.join(name).with_extension("gdb");
    bundle::write(&script, stop(&mut machine, options.port)?.as_bytes())?;
    if options.run.verbose {
        eprintln!("gdb: {}", machine.command_line());
    }
    // In another terminal, but most likely in this folder.
    let here = env::current_dir().unwrap_or_default();
    let shown = script.strip_prefix(&here).unwrap_or(&script).to_string_lossy();
    eprintln!("gdb: QEMU waits before its first instruction; attach with");
    eprintln!("  gdb -x {}", shell_word(&shown));
    let ended = run::show(&tree, &options.run, &machine, "gdb");
    // It names a port that nobody listens at any more.
    fs::remove_file(&script).with_context(|| format!("cannot remove {}", script.display()))?;
    ended
}

/// Has the machine wait for gdb at `port`, or at a free one, before its first instruction. Returns the script for gdb.
///
/// # Errors
/// When no port is free, or an image cannot be read.
pub fn stop(machine: &mut Machine, port: Option<u16>) -> Result<String> {
    let port = match port {
        Some(port) => port,
        None => free_port()?,
    };
    machine.words.extend(["-S".to_owned(), "-gdb".to_owned(), format!("tcp:{}:{port}", Ipv4Addr::LOCALHOST)]);
    script(&machine.kernel, &machine.guests, port)
}

/// Runs gdb with the script file alone, nobody watching. Returns what it printed, which is written beside the script as
/// well.
///
/// # Errors
/// When gdb cannot be started, takes longer than `limit`, or ends before the script does; with what it printed.
pub fn batch(gdb: &Path, script: &Path, limit: Duration) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut command = Command::new(gdb);
    command.args(["-nx", "-batch", "-x"]).arg(script);
    let end = process::run(&mut command, limit, |_, line| lines.push(line.to_owned()))?;
    bundle::write(&script.with_extension("log"), lines.join("\n").as_bytes())?;
    ensure!(end == End::Exited(0), "gdb ended with {end:?}:\n{}", lines.join("\n"));
    Ok(lines)
}

/// A port nobody listens at. Somebody else may take it before QEMU does, which QEMU would say.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot find a free TCP port")?;
    Ok(listener.local_addr().context("cannot find a free TCP port")?.port())
}

/// What gdb has to know of the hypervisor's image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Host {
    /// From where it is linked to where it is loaded, modulo 2^64.
    offset: u64,
    /// Where it is entered, as it is loaded.
    entry: u64,
    /// The panic handler, as it is linked.
    panic: Option<u64>,
}

impl Host {
    fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let file = ElfFile64::<Endianness>::parse(&*bytes);
        let file = file.with_context(|| format!("{} is no 64-bit ELF file", path.display()))?;
        let endian = file.endian();
        let mut segments = file.elf_program_headers().iter();
        let loaded = segments.find(|segment| segment.p_type(endian) == elf::PT_LOAD);
        let loaded = loaded.with_context(|| format!("{} has nothing to load", path.display()))?;
        let offset = loaded.p_paddr(endian).wrapping_sub(loaded.p_vaddr(endian));
        let mut symbols = file.symbols();
        let panic =
            symbols.find(|symbol| symbol.name().is_ok_and(|name| name.ends_with("rust_begin_unwind")));
        let panic = panic.map(|symbol| symbol.address());
        Ok(Self { offset, entry: file.entry().wrapping_add(offset), panic })
    }
}

/// An address in the code of the file, if it is one that gdb finds symbols in.
fn code_of(kernel: &Path) -> Option<u64> {
    let bytes = fs::read(kernel).ok()?;
    let file = object::File::parse(&*bytes).ok()?;
    file.symbols().next()?;
    let mut sections = file.sections();
    Some(sections.find(|section| section.kind() == SectionKind::Text && section.size() > 0)?.address())
}

/// The script: symbols, commands, and the connection.
fn script(kernel: &Path, guests: &[Guest], port: u16) -> Result<String> {
    let host = Host::read(kernel)?;
    let image = quoted(kernel);
    let mut text = format!(
        "\
# Written by `cargo xtask gdb`, for the QEMU that it started; docs/debugging.md.

# Code is read from the files: it is the same there before it is loaded, before paging is on, and in a guest, whose
# memory QEMU does not find behind nested paging.
set trust-readonly-sections on
file {image}

# Where the code is whose symbols are shown in the lower half; 0 for none.
set $levelhead_low = 0
define levelhead-forget-low
  if $levelhead_low
    remove-symbol-file -a $levelhead_low
    set $levelhead_low = 0
  end
end
document levelhead-forget-low
Forget what `guest` or `entry` has chosen for the lower half.
end
"
    );
    // The functions write into a string, which never fails.
    let _ = define(
        &mut text,
        "entry",
        "Stop at the hypervisor's first instruction, with its symbols where it is loaded.\n\
         They are of use until lh_entry64_high, and in the way of guests': choose one then by `guest`.",
        &(low(&format!("{image} -o {:#x}", host.offset), host.entry)
            + &format!("tbreak *{:#x}\n", host.entry)),
    );
    let panic = host.panic.map(|at| format!("break *{at:#x}\n")).unwrap_or_default();
    let _ = define(
        &mut text,
        "break-on-panic",
        "Stop where the hypervisor panics, and where it handles an exception of its own.",
        &(panic + "break lh_exception\n"),
    );
    text.push_str(
        "\ndefine-prefix guest\ndocument guest\nRead addresses in the lower half as those of one partition's guest.\nend\n",
    );
    let mut first = None;
    for Guest { name, cpu, kernel } in guests {
        let thread = u32::from(cpu.0) + 1;
        let commands = match code_of(kernel) {
            Some(address) => {
                first = first.or(Some(name));
                low(&quoted(kernel), address)
            }
            None => format!("levelhead-forget-low\necho {} has no symbols\\n\n", quoted(kernel)),
        };
        let help = format!(
            "Read addresses in the lower half as those of partition {name}.\n\
             It has CPU {}, gdb's thread {thread}: `break FUNCTION thread {thread}` stops no other guest.",
            cpu.0
        );
        let _ = define(&mut text, &format!("guest {name}"), &help, &commands);
    }
    let _ = write!(text, "\ntarget remote {}:{port}\n", Ipv4Addr::LOCALHOST);
    if let Some(name) = first {
        let _ = writeln!(text, "guest {name}");
    }
    text.push_str("echo entry, guest NAME, break-on-panic: `help user-defined` says more\\n\n");
    Ok(text)
}

/// The commands that show `symbols` in the lower half, which cover `address`.
fn low(symbols: &str, address: u64) -> String {
    format!("levelhead-forget-low\nadd-symbol-file {symbols}\nset $levelhead_low = {address:#x}\n")
}

/// Defines a command of gdb.
fn define(text: &mut String, name: &str, help: &str, commands: &str) -> std::fmt::Result {
    writeln!(text, "\ndefine {name}")?;
    commands.lines().try_for_each(|line| writeln!(text, "  {line}"))?;
    writeln!(text, "end\ndocument {name}\n{help}\nend")
}

/// A path as a word of gdb's.
fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use levelhead::irq::CpuId;

    use super::*;

    #[test]
    fn the_script_has_a_command_for_every_guest_and_begins_with_the_first_that_has_symbols() {
        let program = env::current_exe().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let guest = |name: &str, cpu, kernel: &Path| Guest {
            name: name.to_owned(),
            cpu: CpuId(cpu),
            kernel: kernel.to_owned(),
        };
        let guests = [guest("flat", 2, &source), guest("left.1", 0, &program), guest("right", 1, &program)];
        let text = script(&program, &guests, 1234).unwrap();
        for line in
            ["define guest flat", "define guest left.1", "define guest right", "target remote 127.0.0.1:1234"]
        {
            assert!(text.lines().any(|other| other == line), "{line}:\n{text}");
        }
        assert!(text.contains("has CPU 1, gdb's thread 2"), "{text}");
        assert_eq!(text.matches(" has no symbols").count(), 1, "{text}");
        assert_eq!(text.lines().rfind(|line| line.starts_with("guest ")), Some("guest left.1"));
        assert!(script(&source, &guests, 1234).is_err(), "the hypervisor is an ELF file");
    }

    #[test]
    fn this_program_is_loaded_where_it_is_linked() {
        let path = env::current_exe().unwrap();
        let host = Host::read(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        let entry = object::File::parse(&*bytes).unwrap().entry();
        assert_eq!((host.offset, host.entry), (0, entry));
        assert!(host.panic.is_some(), "std has a panic handler");
    }

    #[test]
    fn paths_are_one_word_of_gdbs() {
        assert_eq!(quoted(Path::new("/a b/c")), "\"/a b/c\"");
        assert_eq!(quoted(Path::new(r#"/a"b\c"#)), r#""/a\"b\\c""#);
    }
}
