//! Levelhead's one front door: `cargo xtask <verb>`.
//!
//! * `run`: boot a configuration in QEMU;
//! * `gdb`: the same, stopped, for gdb to attach to;
//! * `test`: everything that must hold;
//! * `gate`: what must not be there, proved;
//! * `contract`: every promise about INTx with its proof;
//! * `mutants`: faults put in on purpose, which the proofs must notice;
//! * `bench`: what an interrupt costs;
//! * `kut`: kvm-unit-tests, of a checkout, as guests;
//! * `config`: judge, explain and pack configurations;
//! * `facts`: what a machine is, as the hypervisor reports it;
//! * `symbolise`: what the addresses in a log mean;
//! * `doctor`: what this machine lacks;
//! * `build`: the hypervisor and the guests;
//! * `docs`: documents that follow from the code.
//!
//! Standard output carries results (the console of a run, test lines, a table); what this tool says about itself
//! goes to standard error.

mod bench;
mod build;
mod bundle;
mod cases;
mod check;
mod config;
mod console;
mod contract;
mod digest;
mod docs;
mod doctor;
mod elf;
mod explain;
mod facts;
mod gates;
mod gdb;
mod kut;
mod linux;
mod live;
mod log;
mod mutants;
mod process;
mod qemu;
mod run;
mod setup;
mod signals;
mod symbols;
mod test;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use lexopt::prelude::{Long, Short, Value, ValueExt as _};
use serde::de::{DeserializeOwned, IntoDeserializer as _};

use build::Tree;
use console::Console;

const HELP: &str = "\
cargo xtask <verb>: build, run, test and measure Levelhead

  run [demo | FILE.toml]     boot a configuration in QEMU (default: demo, which is configs/demo.toml)
      --setup                install QEMU first if it is missing
      --device DEVICE        a QEMU device, such as edu,addr=3; may be given several times. Without it the lines
                             `# qemu: -device ...` of FILE.toml say which devices the machine has
      --append WORDS         add to the hypervisor's command line, such as log=debug
      --machine q35|pc       default q35            --cpu MODEL    default max
      --memory SIZE          default 256M           --smp COUNT    default 1
      --shell                your terminal becomes the machine's console; `linux` gives a shell then
      --timeout SECONDS      after which a run counts as hung; default 120
      --qemu PATH            another QEMU           --verbose      show the QEMU command
      --json                 one JSON document at the end, and lines for people on standard error; see docs/json.md
      -- WORDS               all further words go to QEMU

  gdb [demo | FILE.toml]     the same, stopped before the first instruction, and the command by which gdb attaches to it;
                             docs/debugging.md
      --port N               where gdb attaches; default: a free port
      --setup                install QEMU and gdb first if they are missing
      --device --append --machine --cpu --memory --smp --qemu --verbose -- WORDS     as above

  test [FILTER ...]          run every check and test whose name holds a FILTER
      --host --model --qemu  only these classes: host checks and tests, loom models, QEMU cases
      --again                also what passed before and has not changed since
      --list                 only list the names
      --json                 as JSON, one object per line, and lines for people on standard error; see docs/json.md
      --fuzz-rounds N        how many histories each test of host/border and host/intx_fuzz plays; without it, its own number
      --seed S               the first one's seed; default 0
      --setup                install QEMU, gdb, rustfmt and clippy first if they are missing

  gate [NAME ...]            run proof gates, all without a NAME: levels, unsafe, safety, documents, no-std, no-panic,
                             doc
      --json                 one JSON object per line, as for `test`

  contract [NUMBER ...]      every promise of the INTx contract (I1 to I48, N1 to N21, T1 to T15) with its proof
      --json                 one JSON object per line; see docs/json.md

  mutants [FILTER ...]       put each fault of tests/mutants/ into a copy of the tree: the tests it names must fail
      --list                 only list them
      --json                 one JSON object per line, as for `test`

  bench                      list what can be measured
  bench intx                 count instructions and VM exits per interrupt, bare and under Levelhead
      --json                 as a JSON array
      --setup --qemu PATH --verbose     as above
  bench guest                count instructions and VM exits of a Linux boot, bare and under Levelhead, and of single exits
      --json --setup --qemu PATH --verbose     as above
  bench stages               where the instructions of one interrupt go: a tree of functions, in the order in which they run
      --apic xapic|x2apic    default x2apic         --mask line|function   default line
      --sources N            devices on the line, 1 to 8; default 1
      --lines N              lines in use, 1 to 8; default 1
      --least N              show what takes N instructions or more; default 1 in 100
      --json                 as one JSON document
      --setup --qemu PATH --verbose     as above

  kut --path DIR [FILTER ...]     run the tests of a built checkout of kvm-unit-tests whose name holds a FILTER, each as a guest
      --list                 only list them, with why they cannot run here
      --smp N                on N CPUs, 1 to 8, in place of as many as each test asks for
      --timeout SECONDS      after which a test counts as hung, if it does not ask for more; default 60
      --verbose              show what the guests print
      --json                 one JSON object per line; see docs/json.md
      --setup --qemu PATH    as above

  facts [demo | FILE.toml]   boot the hypervisor in QEMU for its report of the machine, which has the devices of FILE.toml,
                             if one is named; docs/facts.md
      -o FILE                into this file, not to standard output
      --log LOG              take the report out of the console log of a machine booted with the word `facts` instead
      --setup --device --machine --cpu --memory --smp --timeout --qemu --verbose -- WORDS     as for `run`

  symbolise [LOG]            print a console log (default: standard input) with functions and lines for its addresses
      --image PATH           of this image of the hypervisor, if not of one built here
      --config FILE          also for the guests of this configuration

  config check FILE ...      judge configurations: every mistake at once, or one line for each partition
      --json                 one JSON object per line for each file; see docs/json.md
  config explain FILE        say who gets which CPU, memory, function and line, which gate and why, and what boot would refuse
      --facts FACTS          on the machine that `facts` described; without it, what depends on it is decided at boot
      --json                 as one JSON document
  config pack FILE -o OUT    judge a configuration and make its bundle

  doctor                     say what this machine lacks, what for, and how to get it
      --json                 as one JSON document
      --qemu PATH            look at this QEMU

  build                      build the hypervisor and the guests (release)
  docs                       write the documents that follow from the code: docs/messages.md, docs/config.md
  help                       show this

Every verb takes --color auto|always|never. `auto` means: when a terminal watches, NO_COLOR is unset and TERM is not dumb.
The variable LEVELHEAD_QEMU names another QEMU for every verb. Under CI=true a missing QEMU fails `test`.";

/// Said when it is not clear which of them is meant.
const CONFIG_VERBS: &str = "there are `config check`, `config explain` and `config pack`";

/// The failure has been reported where it belongs, there is nothing to add but the exit status.
#[derive(Clone, Copy, Debug)]
struct Reported;

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failed; the report is above")
    }
}

impl std::error::Error for Reported {}

/// What the command line asks for.
#[derive(Debug)]
enum Verb {
    Run(run::Options),
    Gdb(gdb::Options),
    Test(test::Options),
    Gate(gates::Options),
    Contract(contract::Options),
    Mutants(mutants::Options),
    Bench(bench::Options),
    BenchGuest(bench::Options),
    Stages(bench::stages::Options),
    Benches,
    Kut(kut::Options),
    Facts(facts::Options),
    Symbolise(symbols::Options),
    Doctor(doctor::Options),
    Build,
    Docs,
    Config(ConfigVerb),
    Help,
}

/// What `config` shall do.
#[derive(Debug)]
enum ConfigVerb {
    Check(check::Options),
    Explain(explain::Options),
    Pack { config: String, out: PathBuf },
}

fn main() -> ExitCode {
    let mut words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let result = console::color_word(&mut words).and_then(|color| {
        console::choose(color);
        perform(&parse(words)?)
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if error.is::<config::Problems>() {
                // Records, which say themselves what they are.
                eprintln!("{error}");
            } else if !error.is::<Reported>() {
                eprintln!("error: {error:#}");
            }
            // What a shell makes of a program that a signal ended.
            let interrupted = signals::caught().and_then(|signal| u8::try_from(128 + signal).ok());
            interrupted.map_or(ExitCode::FAILURE, ExitCode::from)
        }
    }
}

fn perform(verb: &Verb) -> Result<()> {
    if let Verb::Help = verb {
        Console::stdout().line(HELP);
        return Ok(());
    }
    let tree = Tree::find()?;
    match verb {
        Verb::Run(options) => run::run(&tree, options),
        Verb::Gdb(options) => gdb::gdb(&tree, options),
        Verb::Test(options) => test::test(&tree, options),
        Verb::Gate(options) => gates::run(&tree, options),
        Verb::Contract(options) => contract::run(&tree, options),
        Verb::Mutants(options) => mutants::run(&tree, options),
        Verb::Bench(options) => bench::intx(&tree, options),
        Verb::BenchGuest(options) => bench::boot::guest(&tree, options),
        Verb::Stages(options) => bench::stages::stages(&tree, options),
        Verb::Benches => {
            bench::list();
            Ok(())
        }
        Verb::Kut(options) => kut::run(&tree, options),
        Verb::Facts(options) => facts::facts(&tree, options),
        Verb::Symbolise(options) => symbols::symbolise(&tree, options),
        Verb::Doctor(options) => doctor::doctor(&tree, options),
        Verb::Build => tree.build(),
        Verb::Docs => docs::write(&tree),
        Verb::Config(ConfigVerb::Check(options)) => check::check(&tree, options),
        Verb::Config(ConfigVerb::Explain(options)) => explain::explain(&tree, options),
        Verb::Config(ConfigVerb::Pack { config, out }) => {
            let config = bundle::config_path(&tree, config);
            bundle::write(out, &bundle::pack(&tree, &config, bundle::Guests::Build)?)
        }
        Verb::Help => Ok(()),
    }
}

fn parse(words: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Verb> {
    let mut words = lexopt::Parser::from_args(words);
    let verb = match words.next()? {
        None | Some(Short('h') | Long("help")) => return Ok(Verb::Help),
        Some(Value(verb)) => verb.string()?,
        Some(other) => return Err(other.unexpected().into()),
    };
    match verb.as_str() {
        "run" => parse_run(&mut words, Boot::Run),
        "gdb" => parse_run(&mut words, Boot::Gdb),
        "test" => parse_test(&mut words),
        "gate" => parse_gate(&mut words),
        "contract" => parse_contract(&mut words),
        "mutants" => parse_mutants(&mut words),
        "bench" => parse_bench(&mut words),
        "kut" => parse_kut(&mut words),
        "facts" => parse_run(&mut words, Boot::Facts),
        "symbolise" => parse_symbolise(&mut words),
        "doctor" => parse_doctor(&mut words),
        "build" => alone(&mut words, Verb::Build),
        "docs" => alone(&mut words, Verb::Docs),
        "config" => parse_config(&mut words),
        "help" => Ok(Verb::Help),
        other => {
            bail!(
                "there is no verb {other:?}; the verbs are run, gdb, test, gate, contract, mutants, bench, kut, facts, symbolise, \
                 config, doctor, build, docs and help"
            )
        }
    }
}

/// The number that follows `option`.
fn number<T: FromStr<Err: fmt::Display>>(words: &mut lexopt::Parser, option: &str) -> Result<T> {
    let word = words.value()?.string()?;
    word.parse().map_err(|error| anyhow!("{option} {word}: {error}; it takes a number, as in `{option} 2`"))
}

/// The word that follows `option`, which is one of a few.
fn choice<T: DeserializeOwned>(words: &mut lexopt::Parser, option: &str) -> Result<T> {
    let word = words.value()?.string()?;
    T::deserialize(word.as_str().into_deserializer())
        .map_err(|error: serde::de::value::Error| anyhow!("{option} {word}: {error}"))
}

/// A verb that takes no words.
fn alone(words: &mut lexopt::Parser, verb: Verb) -> Result<Verb> {
    match words.next()? {
        None => Ok(verb),
        Some(Short('h') | Long("help")) => Ok(Verb::Help),
        Some(other) => Err(other.unexpected().into()),
    }
}

/// What a machine is booted for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Boot {
    Run,
    /// The same, and not in a hurry.
    Gdb,
    /// Only for its facts.
    Facts,
}

/// The verbs that boot one machine, which take nearly the same words.
fn parse_run(words: &mut lexopt::Parser, boot: Boot) -> Result<Verb> {
    let mut options = run::Options::default();
    let (mut config, mut port, mut log, mut out) = (None, None, None, None);
    loop {
        // What follows `--` is QEMU's, also where it looks like an option.
        if let Some(raw) = words.try_raw_args()
            && raw.peek().is_some_and(|word| word == "--")
        {
            let rest = raw.skip(1).map(|word| word.string());
            options.words = rest.collect::<Result<_, _>>()?;
            break;
        }
        let Some(word) = words.next()? else { break };
        match word {
            Long("setup") => options.setup = true,
            Long("json") if boot != Boot::Facts => options.json = true,
            Long("shell") if boot == Boot::Run => options.shell = true,
            Long("verbose") | Short('v') => options.verbose = true,
            Long("append") if boot != Boot::Facts => options.append.push(words.value()?.string()?),
            Long("machine") => options.machine = Some(words.value()?.string()?),
            Long("cpu") => options.cpu = Some(words.value()?.string()?),
            Long("memory") => options.memory = Some(words.value()?.string()?),
            Long("smp") => options.smp = Some(number(words, "--smp")?),
            Long("device") => options.devices.push(words.value()?.string()?),
            Long("qemu") => options.qemu = Some(words.value()?.into()),
            Long("port") if boot == Boot::Gdb => port = Some(number(words, "--port")?),
            Long("log") if boot == Boot::Facts => log = Some(PathBuf::from(words.value()?)),
            Short('o') | Long("output") if boot == Boot::Facts => out = Some(PathBuf::from(words.value()?)),
            Long("timeout") if boot != Boot::Gdb => {
                let seconds: u64 = number(words, "--timeout")?;
                ensure!(seconds > 0, "--timeout 0 leaves no time to run");
                options.timeout = Duration::from_secs(seconds);
            }
            Short('h') | Long("help") => return Ok(Verb::Help),
            Value(name) if config.is_none() => config = Some(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    if boot == Boot::Facts {
        ensure!(
            log.is_none() || (config.is_none() && options == run::Options::default()),
            "facts: --log takes the report from a file; no machine is booted for it"
        );
        return Ok(Verb::Facts(facts::Options { run: options, config, log, out }));
    }
    options.config = config.unwrap_or(options.config);
    if options.shell {
        ensure!(!options.json, "--shell has its console on your terminal, where --json has no place");
        if options.config == "linux" {
            linux::SHELL.clone_into(&mut options.config);
        }
    }
    Ok(if boot == Boot::Gdb { Verb::Gdb(gdb::Options { run: options, port }) } else { Verb::Run(options) })
}

fn parse_test(words: &mut lexopt::Parser) -> Result<Verb> {
    let mut options = test::Options::default();
    while let Some(word) = words.next()? {
        match word {
            Long("setup") => options.setup = true,
            Long("again") => options.again = true,
            Long("list") => options.list = true,
            Long("json") => options.json = true,
            Long("host") => options.classes.push(test::Class::Host),
            Long("model") => options.classes.push(test::Class::Model),
            Long("qemu") => options.classes.push(test::Class::Qemu),
            Long("fuzz-rounds") => options.fuzz.rounds = Some(number(words, "--fuzz-rounds")?),
            Long("seed") => options.fuzz.seed = Some(number(words, "--seed")?),
            Short('h') | Long("help") => return Ok(Verb::Help),
            Value(filter) => options.filters.push(filter.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Verb::Test(options))
}

fn parse_gate(words: &mut lexopt::Parser) -> Result<Verb> {
    let mut options = gates::Options::default();
    while let Some(word) = words.next()? {
        match word {
            Long("json") => options.json = true,
            Short('h') | Long("help") => return Ok(Verb::Help),
            Value(name) => options.names.push(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Verb::Gate(options))
}

fn parse_contract(words: &mut lexopt::Parser) -> Result<Verb> {
    let mut options = contract::Options::default();
    while let Some(word) = words.next()? {
        match word {
            Long("json") => options.json = true,
            Short('h') | Long("help") => return Ok(Verb::Help),
            Value(number) => options.numbers.push(number.string()?.to_uppercase()),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Verb::Contract(options))
}

fn parse_mutants(words: &mut lexopt::Parser) -> Result<Verb> {
    let mut options = mutants::Options::default();
    while let Some(word) = words.next()? {
        match word {
            Long("json") => options.json = true,
            Long("list") => options.list = true,
            Short('h') | Long("help") => return Ok(Verb::Help),
            Value(filter) => options.filters.push(filter.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Verb::Mutants(options))
}

fn parse_bench(words: &mut lexopt::Parser) -> Result<Verb> {
    let mut options = bench::Options::default();
    let (mut guest, mut least) = (bench::stages::DEFAULT, None);
    let mut subject = None;
    while let Some(word) = words.next()? {
        match word {
            Long("setup") => options.setup = true,
            Long("json") => options.json = true,
            Long("verbose") | Short('v') => options.verbose = true,
            Long("qemu") => options.qemu = Some(words.value()?.into()),
            Long("apic") => guest.apic = choice(words, "--apic")?,
            Long("mask") => guest.mask = choice(words, "--mask")?,
            Long("sources") => guest.sources = number(words, "--sources")?,
            Long("lines") => guest.lines = number(words, "--lines")?,
            Long("least") => least = Some(number(words, "--least")?),
            Short('h') | Long("help") => return Ok(Verb::Help),
            Value(name) if subject.is_none() => subject = Some(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    match subject.as_deref() {
        Some("stages") => {
            guest.judge()?;
            Ok(Verb::Stages(bench::stages::Options { common: options, guest, least }))
        }
        Some(name @ ("intx" | "guest")) => {
            ensure!(
                guest == bench::stages::DEFAULT && least.is_none(),
                "`bench {name}` has no choice of guests; --apic, --mask, --sources, --lines and --least are for `bench stages`"
            );
            Ok(if name == "intx" { Verb::Bench(options) } else { Verb::BenchGuest(options) })
        }
        Some(other) => {
            let names = bench::BENCHES.map(|(name, _)| format!("`bench {name}`")).join(", ");
            bail!("there is no bench {other:?}; there is {names}")
        }
        None => {
            ensure!(!options.json, "usage: cargo xtask bench NAME --json; `bench` alone lists the names");
            Ok(Verb::Benches)
        }
    }
}

fn parse_kut(words: &mut lexopt::Parser) -> Result<Verb> {
    let mut options = kut::Options::default();
    let mut path = None;
    while let Some(word) = words.next()? {
        match word {
            Long("path") => path = Some(PathBuf::from(words.value()?)),
            Long("list") => options.list = true,
            Long("json") => options.json = true,
            Long("setup") => options.setup = true,
            Long("verbose") | Short('v') => options.verbose = true,
            Long("qemu") => options.qemu = Some(words.value()?.into()),
            Long("smp") => {
                let cpus: u8 = number(words, "--smp")?;
                ensure!((1..=kut::MOST_CPUS).contains(&cpus), "--smp {cpus}: it is 1 to {}", kut::MOST_CPUS);
                options.smp = Some(cpus);
            }
            Long("timeout") => {
                let seconds: u64 = number(words, "--timeout")?;
                ensure!(seconds > 0, "--timeout 0 leaves no time to run");
                options.limit = Duration::from_secs(seconds);
            }
            Short('h') | Long("help") => return Ok(Verb::Help),
            Value(filter) => options.filters.push(filter.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    options.path = path.context(
        "usage: cargo xtask kut --path DIR [FILTER ...], where DIR is a checkout of kvm-unit-tests that has been built",
    )?;
    Ok(Verb::Kut(options))
}

fn parse_symbolise(words: &mut lexopt::Parser) -> Result<Verb> {
    let mut options = symbols::Options::default();
    while let Some(word) = words.next()? {
        match word {
            Long("image") => options.image = Some(words.value()?.into()),
            Long("config") => options.config = Some(words.value()?.string()?),
            Short('h') | Long("help") => return Ok(Verb::Help),
            Value(path) if options.log.is_none() => options.log = Some(path.into()),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Verb::Symbolise(options))
}

fn parse_doctor(words: &mut lexopt::Parser) -> Result<Verb> {
    let mut options = doctor::Options::default();
    while let Some(word) = words.next()? {
        match word {
            Long("json") => options.json = true,
            Long("qemu") => options.qemu = Some(words.value()?.into()),
            Short('h') | Long("help") => return Ok(Verb::Help),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Verb::Doctor(options))
}

fn parse_config(words: &mut lexopt::Parser) -> Result<Verb> {
    match words.next()? {
        Some(Value(verb)) => match &*verb.string()? {
            "check" => parse_config_check(words),
            "explain" => parse_config_explain(words),
            "pack" => parse_config_pack(words),
            other => bail!("there is no `config {other}`; {CONFIG_VERBS}"),
        },
        Some(Short('h') | Long("help")) => Ok(Verb::Help),
        Some(other) => Err(other.unexpected().into()),
        None => bail!("config what? {CONFIG_VERBS}"),
    }
}

fn parse_config_check(words: &mut lexopt::Parser) -> Result<Verb> {
    let mut options = check::Options::default();
    while let Some(word) = words.next()? {
        match word {
            Long("json") => options.json = true,
            Short('h') | Long("help") => return Ok(Verb::Help),
            Value(name) => options.configs.push(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    ensure!(!options.configs.is_empty(), "usage: cargo xtask config check FILE... [--json]");
    Ok(Verb::Config(ConfigVerb::Check(options)))
}

fn parse_config_explain(words: &mut lexopt::Parser) -> Result<Verb> {
    let mut options = explain::Options::default();
    let mut config = None;
    while let Some(word) = words.next()? {
        match word {
            Long("facts") => options.facts = Some(words.value()?.into()),
            Long("json") => options.json = true,
            Short('h') | Long("help") => return Ok(Verb::Help),
            Value(name) if config.is_none() => config = Some(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    options.config = config.context("usage: cargo xtask config explain FILE [--facts FACTS] [--json]")?;
    Ok(Verb::Config(ConfigVerb::Explain(options)))
}

fn parse_config_pack(words: &mut lexopt::Parser) -> Result<Verb> {
    let (mut config, mut out) = (None, None);
    while let Some(word) = words.next()? {
        match word {
            Short('o') | Long("output") => out = Some(PathBuf::from(words.value()?)),
            Short('h') | Long("help") => return Ok(Verb::Help),
            Value(name) if config.is_none() => config = Some(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let usage = "usage: cargo xtask config pack FILE -o OUT";
    Ok(Verb::Config(ConfigVerb::Pack { config: config.context(usage)?, out: out.context(usage)? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_options(words: &[&str]) -> run::Options {
        match parse(words.iter().copied()).unwrap() {
            Verb::Run(options) => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn run_takes_its_options_in_any_order() {
        let options = run_options(&[
            "run",
            "--setup",
            "a.toml",
            "--device",
            "edu,addr=5",
            "--device=x",
            "--memory",
            "1G",
        ]);
        assert!(options.setup && !options.verbose);
        assert_eq!(options.config, "a.toml");
        assert_eq!(options.devices, ["edu,addr=5", "x"]);
        assert_eq!(options.memory.as_deref(), Some("1G"));
        assert_eq!(run_options(&["run"]).config, "demo");
    }

    #[test]
    fn gdb_takes_the_words_of_run_but_no_time_limit() {
        let words = ["gdb", "two", "--port", "1234", "--smp", "2", "--", "-no-shutdown"];
        let Verb::Gdb(options) = parse(words).unwrap() else { panic!("another verb") };
        assert_eq!((options.port, options.run.smp), (Some(1234), Some(2)));
        assert_eq!(
            (options.run.config.as_str(), &*options.run.words),
            ("two", &["-no-shutdown".to_owned()][..])
        );
        assert!(parse(["gdb", "--timeout", "9"]).is_err());
        assert!(parse(["run", "--port", "1234"]).is_err());
    }

    #[test]
    fn facts_takes_the_machine_of_run() {
        let words = ["facts", "--smp", "4", "-o", "x.toml", "--device=edu,addr=3", "demo", "--", "-o", "y"];
        let Verb::Facts(options) = parse(words).unwrap() else { panic!("another verb") };
        assert_eq!((options.config.as_deref(), options.run.smp), (Some("demo"), Some(4)));
        assert_eq!((options.log, options.out), (None, Some("x.toml".into())));
        assert_eq!(
            (options.run.devices, options.run.words),
            (vec!["edu,addr=3".into()], vec!["-o".into(), "y".into()])
        );
        let Verb::Facts(options) = parse(["facts", "--log=a.log", "--output=b"]).unwrap() else {
            panic!("another verb")
        };
        assert_eq!(
            (options.config, options.log, options.out),
            (None, Some("a.log".into()), Some("b".into()))
        );
    }

    #[test]
    fn words_behind_two_hyphens_are_qemus() {
        let options = run_options(&["run", "demo", "--verbose", "--", "-d", "int", "--", "-S"]);
        assert!(options.verbose);
        assert_eq!(options.words, ["-d", "int", "--", "-S"]);
    }

    #[test]
    fn test_takes_classes_and_filters() {
        let Verb::Test(options) = parse(["test", "--qemu", "demo", "echo", "--list", "--again"]).unwrap()
        else {
            panic!("another verb");
        };
        assert_eq!(options.classes, [test::Class::Qemu]);
        assert_eq!(options.filters, ["demo", "echo"]);
        assert!(options.list && options.again);
    }

    #[test]
    fn fuzzing_is_longer_and_elsewhere_by_option() {
        let Verb::Test(options) = parse(["test", "host/border", "--fuzz-rounds", "9", "--seed=7"]).unwrap()
        else {
            panic!("another verb");
        };
        assert_eq!((options.fuzz.rounds, options.fuzz.seed), (Some(9), Some(7)));
    }

    #[test]
    fn stages_takes_a_guest() {
        let Verb::Stages(options) = parse(["bench", "stages"]).unwrap() else { panic!("another verb") };
        assert_eq!((options.guest, options.least), (bench::stages::DEFAULT, None));
        let words =
            ["bench", "--apic", "xapic", "stages", "--sources=2", "--mask", "function", "--least", "9"];
        let Verb::Stages(options) = parse(words).unwrap() else { panic!("another verb") };
        assert_eq!(
            (options.guest.name().as_str(), options.least),
            ("xapic busy, mask = \"function\", 2 on the line", Some(9))
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (words, hint) in [
            (&["fly"][..], "run, gdb, test, gate, contract"),
            (&["run", "--fly"], "--fly"),
            (&["run", "a", "b"], "\"b\""),
            (&["run", "--smp", "many"], "--smp many: invalid digit found in string; it takes a number"),
            (&["gdb", "--port", "70000"], "--port 70000: number too large"),
            (&["run", "--timeout", "0"], "--timeout"),
            (&["gdb", "--timeout", "9"], "--timeout"),
            (&["test", "--seed", "today"], "--seed today"),
            (&["bench", "--json"], "bench NAME"),
            (&["facts", "--log", "a", "demo"], "no machine is booted"),
            (&["facts", "--log", "a", "--smp", "2"], "no machine is booted"),
            (&["facts", "--append", "log=off"], "--append"),
            (&["facts", "--json"], "--json"),
            (&["bench", "boot"], "bench intx"),
            (&["bench", "intx", "--apic", "xapic"], "for `bench stages`"),
            (
                &["bench", "stages", "--apic", "apic"],
                "--apic apic: unknown variant `apic`, expected `xapic` or `x2apic`",
            ),
            (&["bench", "stages", "--sources", "9"], "9 devices on the line"),
            (&["bench", "stages", "--lines", "0"], "0 lines in use"),
            (&["pack", "a.toml"], "there is no verb"),
            (&["kut"], "kut --path DIR"),
            (&["kut", "--path", "a", "--smp", "9"], "1 to 8"),
            (&["config"], "config check"),
            (&["config", "judge"], "config check"),
            (&["config", "check"], "FILE..."),
            (&["config", "explain"], "--facts FACTS"),
            (&["config", "explain", "a", "b"], "\"b\""),
            (&["config", "pack", "a.toml"], "-o OUT"),
        ] {
            let error = format!("{:#}", parse(words.iter().copied()).unwrap_err());
            assert!(error.contains(hint), "{words:?}: {error}");
        }
    }

    #[test]
    fn every_verb_of_the_help_exists() {
        assert!(matches!(parse([] as [&str; 0]).unwrap(), Verb::Help));
        assert!(matches!(parse(["help"]).unwrap(), Verb::Help));
        assert!(matches!(parse(["build"]).unwrap(), Verb::Build));
        let doctor = parse(["doctor", "--json", "--qemu", "q"]).unwrap();
        assert!(matches!(doctor, Verb::Doctor(options) if options.json && options.qemu == Some("q".into())));
        assert!(matches!(parse(["bench", "intx", "--json"]).unwrap(), Verb::Bench(_)));
        assert!(matches!(parse(["bench"]).unwrap(), Verb::Benches));
        for (name, _) in bench::BENCHES {
            assert!(
                matches!(
                    parse(["bench", name]).unwrap(),
                    Verb::Bench(_) | Verb::BenchGuest(_) | Verb::Stages(_)
                ),
                "{name}"
            );
            assert!(HELP.contains(&format!("\n  bench {name} ")), "{name}");
        }
        let kut = parse(["kut", "ioapic", "--path", "d", "--smp=2", "--json"]).unwrap();
        assert!(
            matches!(kut, Verb::Kut(options) if options.json && options.smp == Some(2) && options.filters == ["ioapic"])
        );
        assert!(matches!(parse(["gate", "no-std", "--json"]).unwrap(), Verb::Gate(_)));
        let contract = parse(["contract", "i5", "--json"]).unwrap();
        assert!(matches!(contract, Verb::Contract(options) if options.json && options.numbers == ["I5"]));
        let mutants = parse(["mutants", "t1", "--list"]).unwrap();
        assert!(matches!(mutants, Verb::Mutants(options) if options.list && options.filters == ["t1"]));
        assert!(matches!(parse(["symbolise", "log", "--image", "a"]).unwrap(), Verb::Symbolise(_)));
        let check = parse(["config", "check", "a", "--json", "b"]).unwrap();
        assert!(
            matches!(check, Verb::Config(ConfigVerb::Check(options)) if options.json && options.configs == ["a", "b"])
        );
        let explain = parse(["config", "explain", "a", "--facts", "f", "--json"]).unwrap();
        assert!(
            matches!(explain, Verb::Config(ConfigVerb::Explain(options)) if options.json && options.facts == Some("f".into()))
        );
        let pack = parse(["config", "pack", "a", "-o", "b"]).unwrap();
        assert!(matches!(pack, Verb::Config(ConfigVerb::Pack { .. })));
    }
}
