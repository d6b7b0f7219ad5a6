//! `config check`: judges configurations and says everything that is wrong with them, or who they are.

use anyhow::{Result, bail};
use levelhead::config::Partition;
use serde::Serialize;

use crate::build::Tree;
use crate::config::{Finding, LoadedConfig, Problems};
use crate::console::{Console, json};
use crate::{Reported, bundle};

/// What the report for machines is called.
const REPORT: &str = "config-check";

/// What `config check` was asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Names of `configs/`, or paths.
    pub configs: Vec<String>,
    /// Whether to print JSON.
    pub json: bool,
}

/// Judges each file.
///
/// # Errors
/// When one of them is no good; that has been printed then.
pub fn check(tree: &Tree, options: &Options) -> Result<()> {
    let mut good = true;
    let mut console = Console::beside(options.json);
    for name in &options.configs {
        let path = bundle::config_path(tree, name);
        let judged = bundle::load(tree, &path, bundle::Guests::Build);
        let file = tree.shown(&path).to_string();
        good &= judged.is_ok();
        if options.json {
            json::print_line(REPORT, &Judgement::new(file, &judged))?;
            continue;
        }
        match judged {
            Ok(loaded) => summary(&file, &loaded).iter().for_each(|line| console.line(line)),
            Err(problems) => problems.findings().iter().for_each(|finding| console.line(finding)),
        }
    }
    if good { Ok(()) } else { bail!(Reported) }
}

/// One line for each partition of a good file.
fn summary(file: &str, loaded: &LoadedConfig) -> Vec<String> {
    let line = |partition: &Partition| format!("{file}: {}", describe(partition, loaded));
    loaded.config.partitions.iter().map(line).collect()
}

/// A partition in a line.
fn describe(partition: &Partition, loaded: &LoadedConfig) -> String {
    let cpus: Vec<_> = partition.cpus.iter().map(|cpu| cpu.0.to_string()).collect();
    let devices: Vec<_> = partition.devices.iter().map(|device| device.bdf.to_string()).collect();
    let kernel = loaded.images.get(usize::from(partition.kernel.0)).map_or("", |image| &*image.name);
    format!(
        "partition {}: CPU {}, {} KiB, kernel {kernel}, {} module(s), device(s) {}",
        partition.name,
        cpus.join(" "),
        partition.memory_bytes >> 10,
        partition.modules.len(),
        if devices.is_empty() { "none".to_owned() } else { devices.join(" ") },
    )
}

/// What is said of one file, for machines.
#[derive(Debug, Serialize)]
struct Judgement {
    file: String,
    good: bool,
    /// The names of a good file's partitions.
    partitions: Vec<String>,
    records: Vec<Record>,
}

/// A record, for machines. `line` and `column` are null for the file as a whole.
#[derive(Debug, Serialize)]
pub struct Record {
    line: Option<usize>,
    column: Option<usize>,
    key: String,
    level: String,
    party: String,
    code: &'static str,
    what: String,
    remedy: String,
}

impl Judgement {
    fn new(file: String, judged: &Result<LoadedConfig, Problems>) -> Self {
        let (partitions, records) = match judged {
            Ok(loaded) => {
                let names = loaded.config.partitions.iter().map(|partition| partition.name.clone());
                (names.collect(), Vec::new())
            }
            Err(problems) => (Vec::new(), problems.findings().iter().map(Record::new).collect()),
        };
        Self { file, good: judged.is_ok(), partitions, records }
    }
}

impl Record {
    /// What was found.
    pub fn new(Finding { position, refusal, .. }: &Finding) -> Self {
        let remedy = refusal.remedy.as_deref().unwrap_or(refusal.message.remedy());
        Self {
            line: position.map(|(line, _)| line),
            column: position.map(|(_, column)| column),
            key: refusal.place.clone(),
            level: refusal.message.level().to_string(),
            party: refusal.message.party().to_string(),
            code: refusal.message.code(),
            what: refusal.what.clone(),
            remedy: remedy.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::json::tests::{example, printed};
    use levelhead::message::Message;

    #[test]
    fn the_report_is_what_docs_json_shows() {
        let problems =
            Problems::of_file("mine.toml".into(), Message::NoSuchFile, "cannot be read".into(), "create it");
        assert_eq!(printed(REPORT, &Judgement::new("mine.toml".into(), &Err(problems))), example(REPORT));
    }
}
