//! What a person may ask the running hypervisor on its console: lines of one word.

/// The longest line that is understood; of a longer one nothing is.
const COLUMNS: usize = 32;

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Which commands there are.
    Help,
    /// Why each line's sources are silenced, since when and by whom, and what happened to them last.
    Why,
    /// Something else.
    Unknown,
}

impl Command {
    /// Every command with its word and what it answers.
    pub const ALL: [(&str, Self, &str); 2] = [
        ("help", Self::Help, "this list"),
        (
            "why",
            Self::Why,
            "why each device's interrupt is silenced, since when and by whom, and what happened to it last",
        ),
    ];

    fn read(line: &[u8]) -> Self {
        let known = Self::ALL.into_iter().find(|(word, ..)| word.as_bytes() == line.trim_ascii());
        known.map_or(Self::Unknown, |(_, command, _)| command)
    }
}

/// The line that is being typed.
#[derive(Debug)]
pub struct CommandLine {
    typed: [u8; COLUMNS],
    /// How many bytes were typed; more than there is room for makes a line that nothing is made of.
    count: usize,
}

impl CommandLine {
    /// Nothing is typed.
    pub const fn new() -> Self {
        Self { typed: [0; COLUMNS], count: 0 }
    }

    /// Takes a byte. The command, when it ends a line that is not empty. Backspace and delete take the last byte back.
    pub fn push(&mut self, byte: u8) -> Option<Command> {
        match byte {
            b'\r' | b'\n' => {
                let count = core::mem::take(&mut self.count);
                let line = self.typed.get(..count).unwrap_or(b"?");
                return (!line.trim_ascii().is_empty()).then(|| Command::read(line));
            }
            0x08 | 0x7f => self.count = self.count.saturating_sub(1),
            _ => {
                if let Some(place) = self.typed.get_mut(self.count) {
                    *place = byte;
                }
                self.count = self.count.saturating_add(1);
            }
        }
        None
    }
}

impl Default for CommandLine {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn typed(text: &[u8]) -> Vec<Command> {
        let mut line = CommandLine::new();
        text.iter().filter_map(|byte| line.push(*byte)).collect()
    }

    #[test]
    fn each_word_is_understood_however_it_is_ended() {
        for (word, command, _) in Command::ALL {
            for end in ["\r", "\n", "\r\n", " \r"] {
                assert_eq!(typed(format!("{word}{end}").as_bytes()), [command], "{word:?} {end:?}");
            }
        }
        assert_eq!(typed(b"\n\r\n  \n"), [], "an empty line asks for nothing");
        assert_eq!(typed(b"why"), [], "not yet");
        assert_eq!(typed(b"what\nhelp\n"), [Command::Unknown, Command::Help]);
        assert_eq!(typed(b"WHY\n"), [Command::Unknown]);
        assert_eq!(typed(b"whx\x7fy\nhelpp\x08\n"), [Command::Why, Command::Help]);
        assert_eq!(typed(b"\x7f\x08why\n"), [Command::Why], "there is nothing to take back");
    }

    #[test]
    fn a_line_without_end_is_forgotten_as_a_whole() {
        let mut text = vec![b'x'; 1000];
        text.extend(b"\nwhy\n");
        assert_eq!(typed(&text), [Command::Unknown, Command::Why]);
        let mut taken_back = vec![b'x'; 40];
        taken_back.extend([8; 40]);
        taken_back.extend(b"why\n");
        assert_eq!(typed(&taken_back), [Command::Why]);
    }

    proptest! {
        #[test]
        fn nothing_that_is_typed_does_harm(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let lines = text.split(|byte| [b'\r', b'\n'].contains(byte)).count();
            prop_assert!(typed(&text).len() < lines + 1);
        }
    }
}
