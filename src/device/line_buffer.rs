//! Lines of text from a guest, made safe to print among the hypervisor's own.

use core::str;

/// Collects bytes until a line is complete. Lines hold printable ASCII and tabs; carriage returns are
/// dropped, and every other byte becomes `\xNN`, so that nothing a guest writes can move the cursor, colour
/// the console or begin a line that the caller has not given its prefix.
///
/// A line that would exceed `N` bytes is broken; `N` is at least 8.
#[derive(Clone, Debug)]
pub struct LineBuffer<const N: usize> {
    bytes: [u8; N],
    used: usize,
    state: State,
}

/// What became of the bytes in the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// They are the beginning of a line.
    Collecting,
    /// They were handed out as a line the guest had ended.
    Ended,
    /// They were handed out as a line the guest has yet to end: its end, if it comes next, is no line of its
    /// own.
    Broken,
}

impl<const N: usize> LineBuffer<N> {
    /// The longest form of one byte.
    const ESCAPE_BYTES: usize = 4;

    /// An empty line.
    pub const fn new() -> Self {
        const { assert!(N >= 2 * Self::ESCAPE_BYTES, "a line has room for a few characters") };
        Self { bytes: [0; N], used: 0, state: State::Collecting }
    }

    /// Adds a byte of the guest's. Returns the line, without its end, when this byte completes or fills it.
    pub fn push(&mut self, byte: u8) -> Option<&str> {
        if byte == b'\r' {
            return None;
        }
        let before = core::mem::replace(&mut self.state, State::Collecting);
        if before != State::Collecting {
            self.used = 0;
        }
        match byte {
            b'\n' if before == State::Broken => return None,
            b'\n' => return Some(self.hand_out(State::Ended)),
            b'\t' | b' '..=b'~' => self.append(&[byte]),
            _ => self.append(&[b'\\', b'x', hex_digit(byte >> 4), hex_digit(byte & 0xf)]),
        }
        // The next byte must fit, whatever its form.
        if N.saturating_sub(self.used) < Self::ESCAPE_BYTES {
            Some(self.hand_out(State::Broken))
        } else {
            None
        }
    }

    /// What has been collected of an unfinished line, for a guest that ends without finishing it.
    pub fn take_rest(&mut self) -> Option<&str> {
        match self.state {
            State::Collecting if self.used != 0 => Some(self.hand_out(State::Ended)),
            _ => None,
        }
    }

    fn append(&mut self, text: &[u8]) {
        if let Some(free) = self.bytes.get_mut(self.used..).and_then(|rest| rest.get_mut(..text.len())) {
            free.copy_from_slice(text);
            self.used = self.used.saturating_add(text.len());
        }
    }

    fn hand_out(&mut self, state: State) -> &str {
        self.state = state;
        // Only ASCII was appended, so the conversion cannot fail.
        self.bytes.get(..self.used).and_then(|line| str::from_utf8(line).ok()).unwrap_or_default()
    }
}

impl<const N: usize> Default for LineBuffer<N> {
    fn default() -> Self {
        Self::new()
    }
}

/// The low half of `nibble` as a lower-case digit.
const fn hex_digit(nibble: u8) -> u8 {
    match nibble & 0xf {
        digit @ 0..=9 => b'0' + digit,
        letter => b'a' + (letter - 10),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    fn lines<const N: usize>(bytes: &[u8]) -> Vec<String> {
        let mut buffer = LineBuffer::<N>::new();
        let mut lines: Vec<String> =
            bytes.iter().filter_map(|&byte| buffer.push(byte).map(str::to_owned)).collect();
        lines.extend(buffer.take_rest().map(str::to_owned));
        lines
    }

    #[test]
    fn lines_end_at_newlines_and_carriage_returns_vanish() {
        assert_eq!(lines::<64>(b"one\r\n\ntwo\tx\r\nrest"), ["one", "", "two\tx", "rest"]);
        assert_eq!(lines::<64>(b"done\n"), ["done"]);
    }

    #[test]
    fn every_byte_has_a_harmless_form() {
        for byte in 0..=u8::MAX {
            let expected = match byte {
                b'\n' => vec![String::new()],
                b'\r' => vec![],
                b'\t' | 0x20..=0x7e => vec![char::from(byte).to_string()],
                _ => vec![format!("\\x{byte:02x}")],
            };
            assert_eq!(lines::<16>(&[byte]), expected, "{byte:#x}");
        }
    }

    #[test]
    fn a_guest_cannot_forge_a_line_of_the_host() {
        assert_eq!(lines::<64>(b"\x1b[2K\rlevelhead: all is well\n"), ["\\x1b[2Klevelhead: all is well"]);
    }

    #[test]
    fn long_lines_are_broken_and_nothing_is_lost() {
        assert_eq!(lines::<8>(b"abcdefghijk\n"), ["abcde", "fghij", "k"]);
        assert_eq!(lines::<8>(b"abcde\r\n\nf"), ["abcde", "", "f"]);
        assert_eq!(lines::<8>(b"\x00\x01"), ["\\x00\\x01"]);
    }

    proptest! {
        #[test]
        fn any_output_is_bounded_printable_and_complete(bytes in any::<Vec<u8>>()) {
            let lines = lines::<20>(&bytes);
            for line in &lines {
                assert!(line.len() <= 20);
                assert!(line.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte)));
            }
            let kept: usize = lines.iter().map(String::len).sum();
            let sent: usize = bytes.iter().map(|byte| match byte {
                b'\n' | b'\r' => 0,
                b'\t' | b' '..=b'~' => 1,
                _ => 4,
            }).sum();
            assert_eq!(kept, sent);
        }
    }
}
