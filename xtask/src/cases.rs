//! The table of QEMU cases (`tests/qemu/cases.toml`): its form, and how one case is run.

mod foretell;
mod threads;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::bench::stages::Traced;
use crate::build::{Profile, Tree};
use crate::digest::Digest;
use crate::qemu::{Machine, Outcome, Status, Typed};
use crate::{bench, bundle, elf, facts, gdb, linux, run, setup};

/// The table's place in the tree.
pub const TABLE: &str = "tests/qemu/cases.toml";
/// The numbers of the INTx contract: invariants, ideas and races, each from 1 to here.
pub const PROMISES: [(char, u32); 3] = [('I', 48), ('N', 21), ('T', 15)];
/// How much of a failed case's console is shown.
const TAIL: usize = 40;
/// What a case's foreign kernel is called.
const FOREIGN: &str = "foreign.elf";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    case: Vec<Case>,
}

/// One case: a machine, what it boots, and how that must end.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What reports call it; unique.
    pub name: String,
    /// The promises it checks: numbers of invariants (I), ideas (N) and races (T).
    #[serde(default)]
    pub promise: Vec<String>,
    /// The configuration that is packed, as a path from the root.
    pub config: Option<String>,
    /// Pieces of the configuration's text that are exchanged first; each must occur.
    #[serde(default)]
    pub replace: BTreeMap<String, String>,
    /// A bundle other than the packed configuration, whole.
    pub bundle: Option<Bundle>,
    /// A guest that is booted by QEMU itself, without the hypervisor.
    pub guest_direct: Option<String>,
    /// What of the benchmark is run with few rounds, and whose goals must be met.
    pub bench: Option<bench::Subject>,
    /// The guest of the benchmark whose instructions are told one by one, and must add up to what it measures.
    pub stages: Option<bench::Guest>,
    /// Whether the console must hold a whole report of the machine's facts, which can be read back.
    #[serde(default)]
    pub facts: bool,
    /// Whether the machine is booted for its facts first, and the table of lines must then be as `config explain` has it.
    #[serde(default)]
    pub explain: bool,
    /// A kernel in C that is compiled for the case, as a path from the root: an image beside the configuration, called
    /// `foreign.elf` there. `guest_direct = "foreign.elf"` boots it bare.
    pub foreign: Option<String>,
    /// The CPU's mode that it is compiled for.
    #[serde(default)]
    pub foreign_mode: Mode,
    /// The Debian package of a kernel that the configuration boots, with what else is made for it: `linux` in xtask.
    pub linux: Option<String>,
    /// What is typed on the console.
    #[serde(rename = "type")]
    pub typed: Option<String>,
    /// What is typed only once a line with this in it has appeared.
    pub type_after: Option<String>,
    /// Words added to the hypervisor's command line; the whole command line of a guest booted bare.
    #[serde(default)]
    pub append: String,
    /// `-M`.
    #[serde(default = "default_machine")]
    pub machine: String,
    /// `-cpu`.
    #[serde(default = "default_cpu")]
    pub cpu: String,
    /// `-smp`.
    #[serde(default = "default_smp")]
    pub smp: u32,
    /// `-m`.
    #[serde(default = "default_memory")]
    pub memory: String,
    /// `-accel`.
    pub accel: Option<String>,
    /// Whether it runs in one thread of the emulator and then once more with a thread for each CPU. Lines that `expect.alike` names
    /// must then be the same.
    #[serde(default)]
    pub also_on_threads: bool,
    /// The devices; those of the configuration's `# qemu:` lines when absent.
    pub devices: Option<Vec<String>>,
    /// Whether instructions are counted exactly.
    #[serde(default)]
    pub icount: bool,
    /// Whether the images are built with debug assertions, which check the order of locks.
    #[serde(default)]
    pub checked: bool,
    /// After how many seconds the case counts as hung.
    #[serde(default = "default_timeout")]
    pub timeout_s: u64,
    /// Whether nothing else may run meanwhile.
    #[serde(default)]
    pub alone: bool,
    /// How many times it is run; each must end well.
    #[serde(default = "default_repeat")]
    pub repeat: u32,
    /// Where the hypervisor is loaded instead of where its program headers say, as a size (`64M`).
    pub patch_load_base: Option<String>,
    /// What gdb does, line by line, after the script of `cargo xtask gdb`; without it, gdb has no part in the case.
    #[serde(default)]
    pub gdb: Vec<String>,
    /// The oldest QEMU (`major.minor`) that has what the case needs.
    pub needs_qemu: Option<String>,
    /// How it must end.
    pub expect: Expect,
}

/// What a foreign kernel is compiled for.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// 32-bit protected mode.
    #[default]
    Protected,
    /// 64-bit mode.
    Long,
}

impl Mode {
    /// The compiler's words for it.
    const fn words(self) -> &'static str {
        match self {
            Self::Protected => "-m32 -march=i686",
            Self::Long => "-m64 -mno-red-zone",
        }
    }
}

/// What is loaded in the bundle's place.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Bundle {
    /// No module at all.
    None,
    /// Bytes that are no bundle.
    Garbage,
    /// The packed configuration, damaged.
    #[serde(untagged)]
    Damaged(bundle::Damage),
}

/// How a case must end.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// QEMU's exit status; 33 also demands the hypervisor's PASS line.
    pub exit: i32,
    /// Texts that must occur on the console, each within one line.
    #[serde(default)]
    pub contains: Vec<String>,
    /// Texts that must occur one after the other, each in a later line than the one before.
    #[serde(default)]
    pub in_order: Vec<String>,
    /// Texts that must not occur.
    #[serde(default)]
    pub absent: Vec<String>,
    /// Texts: the lines that hold one of them must be the same in both runs of `also_on_threads`.
    #[serde(default)]
    pub alike: Vec<String>,
    /// How many lines the console may have.
    pub most_lines: Option<usize>,
    /// Texts that gdb must print, each within one line.
    #[serde(default)]
    pub gdb: Vec<String>,
}

fn default_machine() -> String {
    "q35".to_owned()
}
fn default_cpu() -> String {
    "max".to_owned()
}
fn default_smp() -> u32 {
    1
}
fn default_memory() -> String {
    "256M".to_owned()
}
fn default_timeout() -> u64 {
    60
}
fn default_repeat() -> u32 {
    1
}

/// Reads the table.
///
/// # Errors
/// When it cannot be read, or a case in it makes no sense.
pub fn load(tree: &Tree) -> Result<Vec<Case>> {
    let path = tree.root.join(TABLE);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {TABLE}"))?;
    parse(&text).with_context(|| TABLE.to_owned())
}

fn parse(text: &str) -> Result<Vec<Case>> {
    let table: Table = toml::from_str(text)?;
    let mut names = BTreeSet::new();
    for case in &table.case {
        ensure!(names.insert(&case.name), "two cases are called {:?}", case.name);
        case.judge().with_context(|| format!("case {:?}", case.name))?;
    }
    Ok(table.case)
}

impl Case {
    fn judge(&self) -> Result<()> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(
            !self.name.is_empty() && self.name.chars().all(plain),
            "a name is made of lower-case letters, digits and hyphens"
        );
        for promise in &self.promise {
            ensure!(is_promise(promise), "{promise:?} is no promise; I1 to I48, N1 to N21 and T1 to T15 are");
        }
        match (
            &self.config,
            self.bundle,
            &self.guest_direct,
            self.bench.or(self.stages.map(bench::Subject::Guest)),
        ) {
            (Some(_), None | Some(Bundle::Damaged(_)), None, None)
            | (None, Some(Bundle::None | Bundle::Garbage), None, None)
            | (None, None, Some(_), None)
            | (None, None, None, Some(_)) => {}
            _ => bail!(
                "a case boots one of: `config`, `config` with a damaged `bundle`, bundle = \"none\" or \
                 \"garbage\", `guest_direct`, `bench`, `stages`"
            ),
        }
        ensure!(self.bench.is_none() || self.stages.is_none(), "a case boots one of `bench` and `stages`");
        ensure!(
            self.foreign.is_some() || self.guest_direct.as_deref() != Some(FOREIGN),
            "guest_direct = \"{FOREIGN}\" needs `foreign`"
        );
        ensure!(
            !self.explain || (self.config.is_some() && self.bundle.is_none()),
            "`explain` needs `config`, and no damage to it"
        );
        ensure!(self.replace.is_empty() || self.config.is_some(), "`replace` needs `config`");
        ensure!(self.linux.is_none() || self.config.is_some(), "`linux` needs `config`");
        ensure!(
            !self.checked || self.config.is_some(),
            "`checked` is about the hypervisor, and needs `config`"
        );
        ensure!(
            self.repeat > 0 && self.timeout_s > 0 && self.smp > 0,
            "`repeat`, `timeout_s` and `smp` are at least 1"
        );
        if let Some(base) = &self.patch_load_base {
            ensure!(self.guest_direct.is_none(), "`patch_load_base` is about the hypervisor");
            parse_size(base)?;
        }
        if let Some(version) = &self.needs_qemu {
            setup::parse_major_minor(version)
                .with_context(|| format!("needs_qemu = {version:?} is not like 9.0"))?;
        }
        ensure!(
            self.gdb.is_empty() == self.expect.gdb.is_empty(),
            "a case with `gdb` says what gdb must print (`expect.gdb`), and no other does"
        );
        if let Some(last) = self.gdb.last() {
            ensure!(
                self.guest_direct.is_none()
                    && self.bench.or(self.stages.map(bench::Subject::Guest)).is_none(),
                "`gdb` is about the hypervisor"
            );
            ensure!(self.repeat == 1, "gdb attaches once");
            ensure!(last == "detach", "gdb's last line is \"detach\": it must not be there when QEMU ends");
        }
        ensure!(
            self.also_on_threads != self.expect.alike.is_empty(),
            "a case `also_on_threads` says which lines must be the same (`expect.alike`), and no other does"
        );
        ensure!(
            !self.also_on_threads
                || (self.smp > 1 && self.accel.is_none() && !self.icount && self.config.is_some()),
            "`also_on_threads` is about several CPUs (`smp`) and a `config`, and chooses `accel` itself"
        );
        ensure!(
            !self.also_on_threads || (self.gdb.is_empty() && !self.explain),
            "`also_on_threads` goes neither with `gdb` nor with `explain`"
        );
        let status = Status::decode(self.expect.exit);
        ensure!(
            !matches!(status, Status::Crash(_)),
            "status {} can never be expected; 33, 35, 37, 39 and 41 can",
            self.expect.exit
        );
        ensure!(
            status == Status::Success || !self.expect.contains.is_empty(),
            "a case that ends by a refusal or a failure says which message it expects (`contains`)"
        );
        Ok(())
    }

    /// Why the case cannot run on a QEMU of that version, if so.
    pub fn unfit(&self, version: (u32, u32)) -> Option<String> {
        let needed = setup::parse_major_minor(self.needs_qemu.as_deref()?)?;
        (version < needed)
            .then(|| format!("needs QEMU {}.{}, this is {}.{}", needed.0, needed.1, version.0, version.1))
    }

    /// Makes the files that the case boots from, in the folder `target/qemu/<name>`.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn prepare<'a>(&'a self, tree: &'a Tree, qemu: &'a Path) -> Result<Ready<'a>, Vec<String>> {
        let prepare = || {
            let checked = Tree { profile: Profile::Checked, ..tree.clone() };
            if self.checked {
                checked.build()?;
            }
            let built = if self.checked { &checked } else { tree };
            let folder = tree.scratch("qemu")?.join(&self.name);
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            let boots = match (self.bench, self.stages) {
                (Some(subject), _) => {
                    Boots::Bench(Box::new(bench::Test::new(built, qemu, subject, &folder)?))
                }
                (None, Some(guest)) => Boots::Stages(Box::new(Traced::new(built, qemu, guest, &folder)?)),
                (None, None) => Boots::Machine(Box::new(self.machine(built, qemu, &folder)?)),
            };
            Ok(Ready { case: self, tree, folder, boots })
        };
        prepare().map_err(complain)
    }

    /// The facts on the console, where they are asked for.
    fn check_facts(&self, console: &[String]) -> Result<(), String> {
        if !self.facts {
            return Ok(());
        }
        facts::report("console", &console.join("\n")).map(drop).map_err(|error| format!("{error:#}"))
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(self.timeout_s)
    }

    /// The machine, with the files it boots from made in `folder`.
    fn machine(&self, tree: &Tree, qemu: &Path, folder: &Path) -> Result<Machine> {
        if let Some(source) = &self.foreign {
            compile_foreign(&tree.root.join(source), self.foreign_mode, &folder.join(FOREIGN))?;
        }
        let mut machine = Machine::new(qemu.to_owned(), self.kernel(tree, folder)?);
        machine.machine.clone_from(&self.machine);
        machine.cpu.clone_from(&self.cpu);
        machine.smp = self.smp;
        machine.memory.clone_from(&self.memory);
        machine.accel.clone_from(&self.accel);
        machine.icount = self.icount;
        machine.root.clone_from(&tree.root);
        let after = self.type_after.clone();
        machine.typed = self.typed.clone().map(|text| Typed { text, after });
        machine.append = match self.guest_direct {
            Some(_) => self.append.clone(),
            None => run::append(std::slice::from_ref(&self.append)),
        };
        let config = self.config.as_ref().map(|name| tree.root.join(name));
        machine.words = match (&self.devices, &config) {
            (Some(devices), _) => devices.iter().flat_map(|d| ["-device".to_owned(), d.clone()]).collect(),
            (None, Some(config)) => bundle::qemu_words(config)?,
            (None, None) => Vec::new(),
        };
        let initrd = folder.join("bundle");
        match (&config, self.bundle) {
            (Some(config), damaged) => {
                let config = self.edited(config, folder)?;
                machine.guests = bundle::guests(tree, &config)?;
                let mut bytes = bundle::pack(tree, &config, bundle::Guests::Built)?;
                if let Some(Bundle::Damaged(damage)) = damaged {
                    bytes = damage.done_to(bytes)?;
                }
                bundle::write(&initrd, &bytes)?;
                machine.initrd = Some(initrd);
            }
            (None, Some(Bundle::Garbage)) => {
                bundle::write(&initrd, &bundle::garbage())?;
                machine.initrd = Some(initrd);
            }
            (None, _) => {}
        }
        Ok(machine)
    }

    /// What `-kernel` names.
    fn kernel(&self, tree: &Tree, folder: &Path) -> Result<PathBuf> {
        if let Some(guest) = &self.guest_direct {
            return Ok(if guest == FOREIGN { folder.join(FOREIGN) } else { tree.binary(guest) });
        }
        let Some(base) = &self.patch_load_base else {
            return Ok(tree.hypervisor());
        };
        let path = tree.hypervisor();
        let image = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let moved = folder.join("levelhead");
        bundle::write(&moved, &elf::move_to(&image, parse_size(base)?)?)?;
        Ok(moved)
    }

    /// The configuration with its pieces exchanged, beside the other files of the case; the file itself when
    /// nothing is to be exchanged and no file is beside it.
    fn edited(&self, config: &Path, folder: &Path) -> Result<PathBuf> {
        if self.replace.is_empty() && self.foreign.is_none() {
            return Ok(config.to_owned());
        }
        let text = fs::read_to_string(config).with_context(|| format!("cannot read {}", config.display()))?;
        let edited = folder.join("partition.toml");
        bundle::write(&edited, bundle::exchange(&text, &self.replace)?.as_bytes())?;
        Ok(edited)
    }
}

/// A case whose files are made.
#[derive(Debug)]
pub struct Ready<'a> {
    case: &'a Case,
    tree: &'a Tree,
    folder: PathBuf,
    boots: Boots,
}

/// What a case boots.
#[derive(Debug)]
enum Boots {
    Machine(Box<Machine>),
    Bench(Box<bench::Test>),
    Stages(Box<Traced>),
}

impl Ready<'_> {
    /// What its result depends on, beside what `emulator` knows: the case as the table has it, the files as they are now,
    /// and gdb if it takes part.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn digest(&self, emulator: Digest) -> Result<Digest> {
        let mut digest = emulator;
        // All of its fields, whatever they will be.
        digest.text(&format!("{:?}", self.case));
        match &self.boots {
            Boots::Machine(machine) => machine.digest(&mut digest)?,
            Boots::Bench(test) => test.digest(&mut digest)?,
            Boots::Stages(traced) => traced.digest(&mut digest)?,
        }
        if !self.case.gdb.is_empty() {
            digest.file(&setup::gdb(false, "test")?)?;
        }
        Ok(digest)
    }

    /// Runs the case as often as it says.
    ///
    /// # Errors
    /// What went wrong, with the tail of the console where there is one.
    pub fn run(&self) -> Result<(), Vec<String>> {
        let case = self.case;
        let machine = match &self.boots {
            Boots::Machine(machine) => machine,
            Boots::Bench(test) => return test.run(),
            Boots::Stages(traced) => return traced.test().map_err(complain),
        };
        let foretold = match case.explain {
            true => Some(foretell::table(case, self.tree, machine, &self.folder).map_err(complain)?),
            false => None,
        };
        if case.also_on_threads {
            return threads::run(self, machine);
        }
        for round in 1..=case.repeat {
            let (outcome, debugged) = if case.gdb.is_empty() {
                (machine.run(case.limit(), |_| {}), Ok(()))
            } else {
                self.debug(Machine::clone(machine))
            };
            let outcome = outcome.map_err(complain)?;
            let verdict = debugged.and_then(|()| self.judge(&outcome)).and_then(|()| match &foretold {
                Some(foretold) => foretell::compare(foretold, &outcome.console),
                None => Ok(()),
            });
            let place = (case.repeat > 1).then(|| format!("in round {round} of {}", case.repeat));
            self.tell(verdict, place, machine, &outcome)?;
        }
        Ok(())
    }

    /// What the case itself expects of a run.
    fn judge(&self, outcome: &Outcome) -> Result<(), String> {
        let case = self.case;
        outcome.check(case.expect.exit, case.guest_direct.is_none())?;
        case.expect.check(&outcome.console)?;
        case.check_facts(&outcome.console)?;
        // Who types says what is counted.
        let counts = case.linux.is_some() && case.typed.is_none();
        match counts && Status::decode(case.expect.exit) == Status::Success {
            true => linux::agree(&outcome.console),
            false => Ok(()),
        }
    }

    /// Keeps the console, and says of a failed run which one of several it was, how to repeat it, and how its console ended.
    fn tell(
        &self,
        verdict: Result<(), String>,
        which: Option<String>,
        machine: &Machine,
        outcome: &Outcome,
    ) -> Result<(), Vec<String>> {
        let log = self.folder.join("console.log");
        bundle::write(&log, outcome.console.join("\n").as_bytes()).map_err(complain)?;
        let Err(why) = verdict else { return Ok(()) };
        let mut lines = vec![why];
        lines.extend(which);
        lines.push(format!("command: {}", machine.command_line()));
        lines.push(format!("console: {}", self.tree.shown(&log)));
        lines.extend(outcome.tail(TAIL).into_iter().map(|line| format!("| {line}")));
        Err(lines)
    }

    /// Runs the machine with gdb attached as `cargo xtask gdb` says. Returns how each of them fared.
    fn debug(&self, mut machine: Machine) -> (Result<Outcome>, Result<(), String>) {
        let (case, script) = (self.case, self.folder.join("case.gdb"));
        let prepared = setup::gdb(false, "test").and_then(|gdb| {
            let text = gdb::stop(&mut machine, None)? + &case.gdb.join("\n") + "\n";
            bundle::write(&script, text.as_bytes())?;
            Ok(gdb)
        });
        let gdb = match prepared {
            Ok(gdb) => gdb,
            Err(error) => return (Err(error), Ok(())),
        };
        thread::scope(|scope| {
            let gdb = scope.spawn(|| gdb::batch(&gdb, &script, case.limit()));
            let outcome = machine.run(case.limit(), |_| {});
            let debugged = match gdb.join() {
                Ok(Ok(lines)) => case.expect.check_gdb(&lines),
                Ok(Err(error)) => Err(format!("{error:#}")),
                Err(_) => Err("the thread that watched gdb panicked".to_owned()),
            };
            (outcome, debugged)
        })
    }
}

fn complain(error: anyhow::Error) -> Vec<String> {
    vec![format!("{error:#}")]
}

impl Expect {
    fn check(&self, console: &[String]) -> Result<(), String> {
        let occurs = |text: &String| console.iter().any(|line| line.contains(text.as_str()));
        if let Some(text) = self.contains.iter().find(|text| !occurs(text)) {
            return Err(format!("the console lacks {text:?}"));
        }
        let mut rest = console.iter();
        if let Some(text) = self.in_order.iter().find(|text| !rest.any(|line| line.contains(text.as_str()))) {
            return Err(format!("the console lacks {text:?}, or says it too early"));
        }
        if let Some(text) = self.absent.iter().find(|text| occurs(text)) {
            return Err(format!("the console must not say {text:?}"));
        }
        if let Some(most) = self.most_lines
            && console.len() > most
        {
            return Err(format!("the console has {} lines, and {most} are the most", console.len()));
        }
        Ok(())
    }

    fn check_gdb(&self, printed: &[String]) -> Result<(), String> {
        let lacks = |text: &&String| !printed.iter().any(|line| line.contains(text.as_str()));
        match self.gdb.iter().find(lacks) {
            None => Ok(()),
            Some(text) => Err(format!("gdb did not print {text:?} but:\n{}", printed.join("\n"))),
        }
    }
}

/// Compiles a freestanding kernel and links it by the script of the same name (`.ld`), 32-bit as other projects' test
/// kernels are, or 64-bit. The host's C compiler is enough: nothing is included or linked that belongs to a 32-bit system.
fn compile_foreign(source: &Path, mode: Mode, image: &Path) -> Result<()> {
    const WORDS: &str = "-mgeneral-regs-only -std=gnu11 -O2 -Wall -Wextra -ffreestanding -fno-pic \
                         -fno-stack-protector -fno-asynchronous-unwind-tables -no-pie -static -nostdlib \
                         -Wl,--build-id=none -Wl,-z,noexecstack";
    let mut script = OsString::from("-Wl,-T,");
    script.push(source.with_extension("ld"));
    let mut command = setup::c_compiler();
    command
        .args(mode.words().split_whitespace())
        .args(WORDS.split_whitespace())
        .arg(script)
        .arg("-o")
        .arg(image)
        .arg(source);
    let output =
        command.output().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    ensure!(
        output.status.success(),
        "{} cannot be compiled:\n{}",
        source.display(),
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(())
}

/// Whether `text` is the number of a promise.
pub fn is_promise(text: &str) -> bool {
    let mut characters = text.chars();
    let class = characters.next();
    let number = characters.as_str();
    let limit = PROMISES.iter().find(|(letter, _)| class == Some(*letter)).map_or(0, |(_, last)| *last);
    !number.starts_with(['0', '+']) && number.parse().is_ok_and(|number: u32| (1..=limit).contains(&number))
}

/// Reads `64M` or `1G` as bytes.
fn parse_size(text: &str) -> Result<u64> {
    let units = [("K", 1_u64 << 10), ("M", 1 << 20), ("G", 1 << 30)];
    let parsed = units.iter().find_map(|(suffix, unit)| {
        let number: u64 = text.strip_suffix(suffix)?.parse().ok()?;
        number.checked_mul(*unit)
    });
    parsed.with_context(|| format!("{text:?} is not a size like 64M"))
}

#[cfg(test)]
pub mod tests;
