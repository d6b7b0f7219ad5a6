//! Looking at a running machine: the hypervisor's page of counters, read through QEMU's monitor.
//!
//! The monitor (QMP) speaks over a pair of sockets, one of which is QEMU's standard input: there is no file in between
//! that could stay behind. QEMU's own thread answers; the guests and the hypervisor do not notice. Whatever goes wrong
//! here only means that nothing is known.

use std::io::{BufRead, BufReader, Write as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use levelhead::counters::{SYMBOL, Seen, observe, words};
use serde_json::{Value, json};

use crate::elf;

/// How often the counters are read.
const EVERY: Duration = Duration::from_millis(250);
/// No answer takes this long, unless the machine has been stopped.
const PATIENCE: Duration = Duration::from_secs(10);

/// The words that give QEMU the monitor on its standard input. The serial console cannot stay on `stdio` then, which
/// would read there too; it goes to standard output by that one's name.
pub const WORDS: [&str; 8] = [
    "-chardev",
    "file,id=lh-com1,path=/dev/stdout",
    "-serial",
    "chardev:lh-com1",
    "-chardev",
    "socket,id=lh-qmp,fd=0",
    "-mon",
    "chardev=lh-qmp,mode=control",
];

/// What was seen last, and the thread that looks.
#[derive(Debug)]
pub struct Live {
    seen: Arc<Mutex<Option<Vec<Seen>>>>,
    ours: UnixStream,
}

impl Live {
    /// Begins to look at a machine that boots `image` with that many partitions. Returns what is to be its QEMU's
    /// standard input.
    ///
    /// # Errors
    /// When the image has no page of counters, or the system no sockets.
    pub fn start(image: &Path, partitions: usize) -> Result<(Self, Stdio)> {
        let bytes = std::fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
        let address = elf::physical_address(&bytes, SYMBOL)?;
        let (monitor, input) = Monitor::pair()?;
        let ours = monitor.lines.get_ref().try_clone().context("cannot share a socket")?;
        let seen = Arc::new(Mutex::new(None));
        let live = Self { seen: Arc::clone(&seen), ours };
        thread::spawn(move || {
            // It ends when QEMU does, or when it does not speak as expected.
            let _ = look(monitor, address, words(partitions), &seen);
        });
        Ok((live, input))
    }

    /// What was seen last of each partition, in the order of the configuration. Nothing before the first look.
    pub fn seen(&self) -> Option<Vec<Seen>> {
        self.seen.lock().ok()?.clone()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // It is closed already when QEMU has ended.
        let _ = self.ours.shutdown(Shutdown::Both);
    }
}

/// Reads the page again and again.
fn look(mut monitor: Monitor, address: u64, words: usize, seen: &Mutex<Option<Vec<Seen>>>) -> Result<()> {
    monitor.begin()?;
    let command = format!("xp /{words}gx {address:#x}");
    loop {
        let page = parse(&monitor.human(&command)?);
        if let Some(partitions) = observe(&page)
            && let Ok(mut seen) = seen.lock()
        {
            *seen = Some(partitions.collect());
        }
        thread::sleep(EVERY);
    }
}

/// QEMU's machine protocol: one JSON object per line each way, with events in between.
#[derive(Debug)]
pub struct Monitor {
    lines: BufReader<UnixStream>,
}

impl Monitor {
    /// The monitor of a QEMU that gets [`WORDS`], and what is to be its standard input.
    ///
    /// # Errors
    /// When the system has no sockets.
    pub fn pair() -> Result<(Self, Stdio)> {
        let (ours, theirs) = UnixStream::pair().context("cannot make a pair of sockets")?;
        ours.set_read_timeout(Some(PATIENCE)).context("cannot set a time limit")?;
        Ok((Self { lines: BufReader::new(ours) }, Stdio::from(OwnedFd::from(theirs))))
    }

    /// Greets a QEMU that has just started. Comes before anything else.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn begin(&mut self) -> Result<()> {
        self.next("QMP")?;
        self.ask(&json!({ "execute": "qmp_capabilities" })).map(drop)
    }

    /// What QEMU prints for a command of the monitor for people.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn human(&mut self, command: &str) -> Result<String> {
        let question =
            json!({ "execute": "human-monitor-command", "arguments": { "command-line": command } });
        Ok(self.ask(&question)?.as_str().unwrap_or_default().to_owned())
    }

    /// Sends a command and waits for its answer.
    fn ask(&mut self, command: &Value) -> Result<Value> {
        writeln!(self.lines.get_ref(), "{command}").context("the monitor is gone")?;
        self.next("return")
    }

    /// The value under `key` of the next object that has it. Events are passed over.
    fn next(&mut self, key: &str) -> Result<Value> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.lines.read_line(&mut line).context("the monitor does not answer")? == 0 {
                bail!("the monitor is gone");
            }
            let mut object: Value = serde_json::from_str(&line).context("the monitor speaks no JSON")?;
            if let Some(value) = object.get_mut(key) {
                return Ok(value.take());
            }
            if let Some(error) = object.get("error") {
                bail!("the monitor refuses: {error}");
            }
        }
    }
}

/// The words in an answer of `xp /Ngx`: lines of an address, a colon and hexadecimal words.
fn parse(dump: &str) -> Vec<u64> {
    let words =
        dump.lines().filter_map(|line| line.split_once(':')).flat_map(|(_, words)| words.split_whitespace());
    words.map_while(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use levelhead::counters::{MAGIC, Stage, VERSION};

    #[test]
    fn a_dump_is_read_word_by_word() {
        let dump = "00000000002a1000: 0x746e756f632d484c 0x0000000000000001\r\n00000000002a1010: 0x0000000000000000 0x2\r\n";
        assert_eq!(parse(dump), [MAGIC, VERSION, 0, 2]);
        assert!(parse("Cannot access memory\r\n").is_empty());
        assert_eq!(parse("0: 0x1 nonsense 0x2"), [1]);
    }

    #[test]
    fn events_are_passed_over_and_refusals_end_it() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let seen = Mutex::new(None);
        let page = |interrupts: u64| {
            let head = format!("0: {MAGIC:#x} {VERSION:#x} 0x0 0x0 0x0 0x0 0x0 0x0");
            format!("{head}\\r\\n40: {interrupts:#x} 0x2 0x0 0x0 0x0 0x0 0x0 0x0\\r\\n")
        };
        let mut script = String::from("{\"QMP\": {}}\n{\"return\": {}}\n{\"event\": \"RESUME\"}\n");
        script += &format!("{{\"return\": \"{}\"}}\n{{\"error\": {{\"desc\": \"no\"}}}}\n", page(12_722));
        (&theirs).write_all(script.as_bytes()).unwrap();
        let monitor = Monitor { lines: BufReader::new(ours) };
        let error = look(monitor, 0x2a_1000, words(1), &seen).unwrap_err().to_string();
        assert!(error.contains("refuses"), "{error}");
        let expected = Seen { stage: Stage::Running, interrupts: 12_722 };
        assert_eq!(seen.into_inner().unwrap(), Some(vec![expected]));
        let mut asked = String::new();
        BufReader::new(&theirs).read_line(&mut asked).unwrap();
        assert_eq!(asked, "{\"execute\":\"qmp_capabilities\"}\n");
    }

    #[test]
    fn a_machine_that_goes_away_ends_it() {
        let (monitor, theirs) = Monitor::pair().unwrap();
        drop(theirs);
        assert!(look(monitor, 0, words(1), &Mutex::new(None)).is_err());
    }
}
