//! The command line: words of the form `key=value`, separated by spaces; other words mean nothing.

use crate::cpu::CpuCell;
use crate::fail;

static TEXT: CpuCell<&str> = CpuCell::new("");

/// Keeps the loader's text; the boot code's to call.
pub(crate) fn set(text: &'static str) {
    TEXT.set(text);
}

/// Returns the value of `key`, if the command line has it. The first one counts.
pub fn value(key: &str) -> Option<&'static str> {
    TEXT.get().split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// Returns the value of `key` as a number, decimal or after `0x` hexadecimal. Ends the guest if it is none.
pub fn number(key: &str) -> Option<u32> {
    let text = value(key)?;
    match parse(text) {
        Some(number) => Some(number),
        None => fail!("command line: {key}={text} is not a number"),
    }
}

/// The port that takes the result. Never fails: it is needed to fail.
pub(crate) fn exit_port() -> u16 {
    value("exit-port").and_then(parse).and_then(|port| u16::try_from(port).ok()).unwrap_or(0xf4)
}

fn parse(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
