//! Takes the hypervisor's report of a machine (docs/facts.md) out of a console log.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use levelhead::facts::frame::{self, Damage};
use levelhead::message::Message;

use crate::bundle;
use crate::config::Problems;

/// What `facts` was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The console log of a machine booted with the word `facts`.
    pub log: PathBuf,
    /// Where the facts go; standard output if nowhere.
    pub out: Option<PathBuf>,
}

/// Writes the facts that the log holds.
///
/// # Errors
/// When a file cannot be read or written, and when the report is not whole.
pub fn facts(options: &Options) -> Result<()> {
    let shown = options.log.display().to_string();
    let bytes = fs::read(&options.log).with_context(|| format!("cannot read {shown}"))?;
    // Noise on the wire is no reason to refuse a log; the report's own lines are checked.
    let text = extract(&shown, &String::from_utf8_lossy(&bytes))?;
    match &options.out {
        None => print!("{text}"),
        Some(path) => bundle::write(path, text.as_bytes())?,
    }
    Ok(())
}

/// Takes the report out of the text of `log`.
fn extract(log: &str, text: &str) -> Result<String, Problems> {
    frame::extract(text).map_err(|(line, damage): (usize, Damage)| {
        let file = if line == 0 { log.to_owned() } else { format!("{log}:{line}") };
        Problems::of_file(file, Message::FactsDamaged, damage.to_string(), Message::FactsDamaged.remedy())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_told_with_its_line() {
        const LOG: &str = "firmware\nfacts: begin revision 1\nfacts: 92cd revision = 1\n\
                           facts: 2a65 hypervisor = \"0.1.0\"\nfacts: end 2 lines, checksum c5f12a65\n";
        assert_eq!(extract("a.log", LOG).unwrap(), "revision = 1\nhypervisor = \"0.1.0\"\n");
        let damaged = LOG.replace("0.1.0", "0.7.0");
        let error = extract("a.log", &damaged).unwrap_err().to_string();
        assert!(error.starts_with("a.log:4: ERROR Config/facts-damaged: file: "), "{error}");
    }
}
