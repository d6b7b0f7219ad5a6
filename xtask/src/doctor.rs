//! `doctor`: what this machine lacks for building, running and testing, what for, and the command that brings it.
//!
//! * here: what a finding is, and the two reports;
//! * `host`: the toolchain and the programs around it;
//! * `emulator`: QEMU, asked itself.
//!
//! Each of the two asks first and judges afterwards: what judges takes values and is tested on answers once given.
//! Nothing is changed or installed.

mod emulator;
mod host;

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Result, bail};
use serde::Serialize;

use crate::Reported;
use crate::build::Tree;
use crate::console::table::{Align, Cell, Table};
use crate::console::{BAD, Console, FAINT, GOOD, STRONG, WARNING, json};
use crate::setup::{self, Installer};

/// What the report for machines is called.
const REPORT: &str = "doctor";

/// What `doctor` was asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether to print JSON.
    pub json: bool,
    /// The QEMU to look at, if not the one `run` and `test` take.
    pub qemu: Option<PathBuf>,
}

/// Looks at everything and reports.
///
/// # Errors
/// When something needed is missing; that has been printed then.
pub fn doctor(tree: &Tree, options: &Options) -> Result<()> {
    let installer = Installer::find();
    let mut findings = host::findings(tree, installer);
    findings.extend(emulator::findings(options.qemu.as_deref()));
    let report = Report::new(findings, installer);
    if options.json {
        json::print(REPORT, &report)?;
    } else {
        report.show(&mut Console::stdout());
    }
    if report.healthy { Ok(()) } else { bail!(Reported) }
}

/// What a finding belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Section {
    Toolchain,
    HostTools,
    Qemu,
    QemuFeatures,
}

impl Section {
    fn title(self) -> &'static str {
        match self {
            Self::Toolchain => "Toolchain",
            Self::HostTools => "Host tools",
            Self::Qemu => "QEMU",
            Self::QemuFeatures => "QEMU features",
        }
    }
}

/// Whether it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Present,
    Missing,
    /// It could not be asked for, because of something else that is missing.
    Unknown,
}

/// How much depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Need {
    /// Building, `run` or `test` fails without it.
    Needed,
    /// They do not; something else is better with it.
    Useful,
}

/// How it can be had.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cure {
    /// `cargo xtask run --setup` installs QEMU.
    Setup,
    /// The Debian package of that name.
    Package(&'static str),
    /// A command as it is typed.
    Command(String),
    /// What no command does alone.
    Advice(String),
}

impl Cure {
    /// In words for people, for a system where packages are installed like that.
    fn text(&self, installer: Installer) -> String {
        match self {
            Self::Setup if installer.works() => "cargo xtask run --setup".to_owned(),
            Self::Setup => installer.line(&[setup::QEMU.package]),
            Self::Package(package) => installer.line(&[package]),
            Self::Command(text) | Self::Advice(text) => text.clone(),
        }
    }
}

/// One thing that was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    section: Section,
    name: String,
    need: Need,
    /// What it is for: fits behind "needed for" and "useful for".
    purpose: &'static str,
    state: State,
    /// What was found: a version, a path, or what is wrong.
    found: String,
    /// How a lack is mended.
    cure: Option<Cure>,
}

impl Finding {
    /// Something not looked for yet.
    fn new(section: Section, name: impl Into<String>, need: Need, purpose: &'static str) -> Self {
        let (state, found, cure) = (State::Unknown, String::new(), None);
        Self { section, name: name.into(), need, purpose, state, found, cure }
    }

    fn present(self, found: impl Into<String>) -> Self {
        Self { state: State::Present, found: found.into(), ..self }
    }

    fn missing(self, found: impl Into<String>, cure: Cure) -> Self {
        Self { state: State::Missing, found: found.into(), cure: Some(cure), ..self }
    }

    fn unknown(self, why: impl Into<String>) -> Self {
        Self { state: State::Unknown, found: why.into(), ..self }
    }

    /// Present with what was found, or missing with what is wrong.
    fn judged(self, result: Result<impl Into<String>, impl Into<String>>, cure: Cure) -> Self {
        match result {
            Ok(found) => self.present(found),
            Err(wrong) => self.missing(wrong, cure),
        }
    }

    fn lacks(&self, need: Need) -> bool {
        self.state == State::Missing && self.need == need
    }
}

/// Everything, for people and for machines.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether nothing needed is missing.
    healthy: bool,
    findings: Vec<Row>,
    /// One line that mends what is needed and missing, else what is useful and missing, as far as commands can.
    to_do: Option<String>,
}

/// A finding as it is reported.
#[derive(Debug, Serialize)]
struct Row {
    section: Section,
    name: String,
    state: State,
    found: String,
    need: Need,
    purpose: &'static str,
    remedy: Option<String>,
}

impl Report {
    fn new(findings: Vec<Finding>, installer: Installer) -> Self {
        let cures = |need| {
            let lacks = findings.iter().filter(move |finding| finding.lacks(need));
            lacks.filter_map(|finding| finding.cure.as_ref()).collect::<BTreeSet<_>>()
        };
        let healthy = !findings.iter().any(|finding| finding.lacks(Need::Needed));
        let to_do = one_line(&cures(if healthy { Need::Useful } else { Need::Needed }), installer);
        let row = |finding: Finding| Row {
            section: finding.section,
            name: finding.name,
            state: finding.state,
            found: finding.found,
            need: finding.need,
            purpose: finding.purpose,
            remedy: finding.cure.map(|cure| cure.text(installer)),
        };
        Self { healthy, to_do, findings: findings.into_iter().map(row).collect() }
    }

    fn count(&self, state: State, need: Need) -> usize {
        self.findings.iter().filter(|row| row.state == state && row.need == need).count()
    }

    fn show(&self, console: &mut Console) {
        let columns = ["", "", "found", "for"].map(|title| (title, Align::Left));
        let mut table = Table::new(columns);
        let mut section = None;
        for row in &self.findings {
            if section != Some(row.section) {
                section = Some(row.section);
                table.row([Cell::painted(STRONG, row.section.title())]);
            }
            let (style, state) = match (row.state, row.need) {
                (State::Present, _) => (GOOD, "ok"),
                (State::Missing, Need::Needed) => (BAD, "missing"),
                (State::Missing, Need::Useful) => (WARNING, "missing"),
                (State::Unknown, _) => (FAINT, "unknown"),
            };
            let name = format!("  {}", row.name);
            let purpose = Cell::painted(FAINT, row.purpose);
            table.row([name.into(), Cell::painted(style, state), row.found.as_str().into(), purpose]);
        }
        console.table(&table);
        for row in self.findings.iter().filter(|row| row.state == State::Missing) {
            let (style, need) = match row.need {
                Need::Needed => (BAD, "needed"),
                Need::Useful => (WARNING, "useful"),
            };
            let name = console.paint(style, &row.name);
            let remedy = row.remedy.as_deref().map(|remedy| format!("; to do: {remedy}"));
            let remedy = remedy.unwrap_or_default();
            console.line(format_args!("{name}, {need} for {}: {}{remedy}", row.purpose, row.found));
        }
        console.line(self.sum(console));
    }

    /// The last line.
    fn sum(&self, console: &Console) -> String {
        let total = self.findings.len();
        let present = self.findings.iter().filter(|row| row.state == State::Present).count();
        let [needed, useful] = [Need::Needed, Need::Useful].map(|need| self.count(State::Missing, need));
        let verdict =
            if self.healthy { console.paint(GOOD, "READY") } else { console.paint(BAD, "NOT READY") };
        let to_do = self.to_do.as_deref().map(|line| format!("; to do: {line}")).unwrap_or_default();
        format!(
            "doctor: {verdict}, {present} of {total} there, missing: {needed} needed, {useful} useful{to_do}"
        )
    }
}

/// The commands among `cures` as one line to type, if there is any.
fn one_line(cures: &BTreeSet<&Cure>, installer: Installer) -> Option<String> {
    let mut commands = Vec::new();
    let mut packages = Vec::new();
    for cure in cures {
        match cure {
            Cure::Setup if installer.works() => commands.push(cure.text(installer)),
            Cure::Setup => packages.push(setup::QEMU.package),
            Cure::Package(package) => packages.push(package),
            Cure::Command(command) => commands.push(command.clone()),
            Cure::Advice(_) => {}
        }
    }
    if !packages.is_empty() && installer.apt {
        commands.insert(0, installer.line(&packages));
    }
    (!commands.is_empty()).then(|| commands.join(" && "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::json::tests::{example, printed};
    use crate::console::tests::Paper;

    const ROOT: Installer = Installer { apt: true, root: true, sudo: false };
    const SUDO: Installer = Installer { apt: true, root: false, sudo: true };
    const NONE: Installer = Installer { apt: false, root: true, sudo: true };

    fn finding(name: &str, need: Need) -> Finding {
        Finding::new(Section::HostTools, name, need, "the cases")
    }

    fn shown(report: &Report) -> String {
        let paper = Paper::default();
        report.show(&mut Console::plain(paper.clone()));
        paper.text()
    }

    #[test]
    fn only_something_needed_makes_a_machine_unfit() {
        let useful = finding("gdb", Need::Useful).missing("not found", Cure::Package("gdb"));
        let needed = finding("cc", Need::Needed).missing("not found", Cure::Package("gcc"));
        let unknown = finding("npt", Need::Needed).unknown("nobody tells");
        assert!(Report::new(vec![useful.clone(), unknown], ROOT).healthy);
        let report = Report::new(vec![useful, needed], ROOT);
        assert!(!report.healthy);
        assert_eq!(report.to_do.as_deref(), Some("apt-get install gcc"), "what is needed comes first");
    }

    #[test]
    fn one_line_mends_what_commands_can() {
        let line = |cures: &[Cure], installer| one_line(&cures.iter().collect(), installer);
        let setup = [Cure::Setup, Cure::Advice("buy another".into())];
        assert_eq!(line(&setup, ROOT).as_deref(), Some("cargo xtask run --setup"));
        assert_eq!(line(&setup, NONE), None);
        let neither = Installer { apt: true, root: false, sudo: false };
        assert_eq!(line(&setup, neither).as_deref(), Some("as root: apt-get install qemu-system-x86"));
        let several = [Cure::Setup, Cure::Package("gdb"), Cure::Package("gcc"), Cure::Command("x".into())];
        assert_eq!(
            line(&several, SUDO).as_deref(),
            Some("sudo apt-get install gcc gdb && cargo xtask run --setup && x")
        );
    }

    #[test]
    fn people_read_what_is_missing_what_for_and_what_to_do() {
        let findings = vec![
            finding("cc", Need::Needed).present("12.2"),
            finding("gdb", Need::Useful).missing("not found", Cure::Package("gdb")),
        ];
        let expected = "                     found      for
Host tools
  cc        ok       12.2       the cases
  gdb       missing  not found  the cases
gdb, useful for the cases: not found; to do: sudo apt-get install gdb
doctor: READY, 1 of 2 there, missing: 0 needed, 1 useful; to do: sudo apt-get install gdb
";
        assert_eq!(shown(&Report::new(findings, SUDO)), expected);
    }

    #[test]
    fn the_report_is_what_docs_json_shows() {
        let findings = vec![
            Finding::new(Section::Toolchain, "rustc", Need::Needed, "everything").present("1.95.0"),
            Finding::new(Section::HostTools, "gdb", Need::Useful, "`cargo xtask gdb`")
                .missing("not found", Cure::Package("gdb")),
        ];
        assert_eq!(printed(REPORT, &Report::new(findings, ROOT)), example(REPORT));
    }
}
