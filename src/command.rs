//! What a person types on the console: for the running hypervisor lines of one word, for a guest whatever it is.

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

/// Begins a command where what is typed is a guest's: Ctrl and `]`.
pub const ATTENTION: u8 = 0x1d;

/// What has been typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Typed {
    /// A command.
    Command(Command),
    /// A byte for the guest whose terminal this is.
    Byte(u8),
}

/// The console's keyboard.
///
/// As long as no guest has it for its terminal, every line is a command. Else every byte is the guest's, but for
/// [`ATTENTION`] and the line that follows it; twice in a row it is the guest's as well, once.
#[derive(Debug)]
pub struct Keyboard {
    line: CommandLine,
    /// A guest has it.
    terminal: bool,
    /// A command is being typed; always so without a guest.
    attends: bool,
}

impl Keyboard {
    /// The keyboard of a console that is no guest's.
    pub const fn new() -> Self {
        Self { line: CommandLine::new(), terminal: false, attends: true }
    }

    /// Makes it a guest's, or nobody's. What has been typed of a command is forgotten.
    pub const fn give(&mut self, to_a_guest: bool) {
        *self = Self { line: CommandLine::new(), terminal: to_a_guest, attends: !to_a_guest };
    }

    /// Takes a byte.
    pub fn push(&mut self, byte: u8) -> Option<Typed> {
        match (self.terminal, self.attends) {
            (true, false) if byte == ATTENTION => {
                self.attends = true;
                None
            }
            (true, false) => Some(Typed::Byte(byte)),
            (true, true) if byte == ATTENTION => {
                self.give(true);
                Some(Typed::Byte(byte))
            }
            (_, true) | (false, _) => {
                let command = self.line.push(byte);
                // The line is at its end, whether something stood in it or not.
                if matches!(byte, b'\r' | b'\n') {
                    self.attends = !self.terminal;
                }
                command.map(Typed::Command)
            }
        }
    }
}

impl Default for Keyboard {
    fn default() -> Self {
        Self::new()
    }
}

/// The line that is being typed.
#[derive(Debug)]
struct CommandLine {
    typed: [u8; COLUMNS],
    /// How many bytes were typed; more than there is room for makes a line that nothing is made of.
    count: usize,
}

impl CommandLine {
    /// Nothing is typed.
    const fn new() -> Self {
        Self { typed: [0; COLUMNS], count: 0 }
    }

    /// Takes a byte. The command, when it ends a line that is not empty. Backspace and delete take the last byte back.
    fn push(&mut self, byte: u8) -> Option<Command> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn typed(text: &[u8]) -> Vec<Command> {
        let mut keyboard = Keyboard::new();
        let typed = text.iter().filter_map(|byte| keyboard.push(*byte));
        typed
            .map(|typed| if let Typed::Command(command) = typed { command } else { panic!("no guest's") })
            .collect()
    }

    /// What comes of a text on a guest's terminal: its bytes, and the commands beside them.
    fn typed_at_a_guest(text: &[u8]) -> (Vec<u8>, Vec<Command>) {
        let mut keyboard = Keyboard::new();
        keyboard.give(true);
        let (mut bytes, mut commands) = (Vec::new(), Vec::new());
        for byte in text {
            match keyboard.push(*byte) {
                Some(Typed::Byte(byte)) => bytes.push(byte),
                Some(Typed::Command(command)) => commands.push(command),
                None => {}
            }
        }
        (bytes, commands)
    }

    #[test]
    fn a_guests_keys_are_its_own_but_for_a_line_after_attention() {
        assert_eq!(typed_at_a_guest(b"why\rls\n\x03\x1b[A"), (b"why\rls\n\x03\x1b[A".to_vec(), vec![]));
        assert_eq!(typed_at_a_guest(b"l\x1dwhy\rs\r"), (b"ls\r".to_vec(), vec![Command::Why]));
        assert_eq!(
            typed_at_a_guest(b"\x1dhelp\n\x1dno\nx"),
            (b"x".to_vec(), vec![Command::Help, Command::Unknown])
        );
        assert_eq!(typed_at_a_guest(b"\x1d\ra"), (b"a".to_vec(), vec![]), "an empty line asks for nothing");
        assert_eq!(typed_at_a_guest(b"\x1d\x1da"), (b"\x1da".to_vec(), vec![]));
        assert_eq!(typed_at_a_guest(b"\x1dwh\x1da"), (b"\x1da".to_vec(), vec![]), "taken back");
    }

    #[test]
    fn what_was_begun_is_forgotten_with_its_owner() {
        let mut keyboard = Keyboard::new();
        let mut give = |to_a_guest, text: &[u8]| {
            keyboard.give(to_a_guest);
            text.iter().filter_map(|byte| keyboard.push(*byte)).collect::<Vec<_>>()
        };
        assert_eq!(give(false, b"wh"), []);
        assert_eq!(give(true, b"y\x1dwh"), [Typed::Byte(b'y')]);
        assert_eq!(give(false, b"why\r"), [Typed::Command(Command::Why)]);
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
